//! Computes once what is computed twice from the same operands.
//!
//! before   %1 = cos %0 ; %2 = cos %0 ; %3 = add %1, %2
//! after    %1 = cos %0 ; %2 = add %1, %1

use std::collections::HashMap;

use super::Pass;
use crate::graph::{Graph, NodeId, Program, ValueId};
use crate::ops::Core;

pub(super) struct CommonSubexpressions;

impl Pass for CommonSubexpressions {
    fn name(&self) -> &'static str {
        "common_subexpressions"
    }

    fn run(&self, program: &mut Program) -> bool {
        let mut changed = false;
        for graph in &mut program.graphs {
            changed |= graph_once(graph);
        }
        changed
    }
}

fn graph_once(graph: &mut Graph) -> bool {
    let mut first: HashMap<String, NodeId> = HashMap::new();
    let mut changed = false;
    for node in graph.topological() {
        // Calls and caches stand for what they keep; arguments are distinct.
        if matches!(
            graph.op(node).as_core(),
            Some(Core::Arg { .. } | Core::Call { .. } | Core::Cache { .. } | Core::Scan { .. })
        ) {
            continue;
        }
        let Some(earlier) = first.get(&key(graph, node)).copied() else {
            first.insert(key(graph, node), node);
            continue;
        };
        for port in 0..graph.types(node).len() {
            graph.replace(ValueId { node, port }, ValueId { node: earlier, port });
        }
        graph.remove(node);
        changed = true;
    }
    changed
}

/// Equal for nodes that compute the same.
fn key(graph: &Graph, node: NodeId) -> String {
    let op = graph.op(node);
    let bodies: Vec<_> = op.bodies().into_iter().map(|(_, body)| body.text(&[])).collect();
    let (operands, types) = (graph.operands(node), graph.types(node));
    format!("{} {:?} {bodies:?} {operands:?} {types:?}", op.name(), op.attributes())
}
