//! Graphs as JSON, for programs: nodes in topological order, operands as `node.port`.

use std::collections::HashMap;

use serde_json::{Value, json};

use crate::graph::{Graph, NodeId, Program, ValueId};

/// The chosen graphs of a program, by index.
pub fn json(program: &Program, graphs: &[usize]) -> Value {
    let inputs: Vec<Value> = program
        .inputs
        .iter()
        .map(|i| json!({"name": i.name, "type": i.ty.to_string(), "default": i.default}))
        .collect();
    let graphs: Vec<Value> = graphs
        .iter()
        .map(|g| {
            let mut value = graph(&program.graphs[*g]);
            value["index"] = json!(g);
            value
        })
        .collect();
    json!({"program": program.name, "axes": program.axes, "inputs": inputs, "graphs": graphs})
}

fn graph(graph: &Graph) -> Value {
    let order = graph.topological();
    let index: HashMap<NodeId, usize> = order.iter().enumerate().map(|(i, n)| (*n, i)).collect();
    let value = |v: &ValueId| format!("{}.{}", index[&v.node], v.port);
    let nodes: Vec<Value> = order
        .iter()
        .map(|node| {
            let op = graph.op(*node);
            let attributes: serde_json::Map<String, Value> =
                op.attributes().into_iter().map(|(k, v)| (k.to_owned(), json!(v))).collect();
            let bodies: serde_json::Map<String, Value> =
                op.bodies().into_iter().map(|(k, g)| (k.to_owned(), self::graph(g))).collect();
            json!({
                "id": index[node],
                "op": op.name(),
                "operands": graph.operands(*node).iter().map(value).collect::<Vec<_>>(),
                "types": graph.types(*node).iter().map(ToString::to_string).collect::<Vec<_>>(),
                "path": graph.origin(*node).path,
                "attributes": attributes,
                "bodies": bodies,
            })
        })
        .collect();
    json!({
        "name": graph.name,
        "params": graph.params().iter().map(|p| json!({"name": p.name, "value": value(&p.value)})).collect::<Vec<_>>(),
        "outputs": graph.outputs().iter().map(|o| json!({"name": o.name, "value": value(&o.value)})).collect::<Vec<_>>(),
        "nodes": nodes,
    })
}
