//! A row body in core operations only: fused ones are replaced by their decompositions.

use std::collections::HashMap;

use xfc_lang::graph::build::Builder;
use xfc_lang::graph::{Graph, NodeId, ValueId};
use xfc_lang::ops::Op;

use crate::error::CodegenError;

/// Copies `body` with every fused operation decomposed.
///
/// # Errors
/// A decomposition that does not fit its operands: a defect of xfc.
pub fn flatten(body: &Graph) -> Result<Graph, CodegenError> {
    let bug = |e: String| CodegenError::bug("flattening", e);
    let mut out = Graph::new(body.name.clone());
    let mut nodes: HashMap<NodeId, Vec<ValueId>> = HashMap::new();
    for param in body.params() {
        let value = out.add_param(param.name.clone(), body.ty(param.value).clone());
        nodes.insert(param.value.node, vec![value]);
    }
    for node in body.topological() {
        if nodes.contains_key(&node) {
            continue;
        }
        let operands: Vec<ValueId> = body.operands(node).into_iter().map(|v| nodes[&v.node][v.port]).collect();
        let values = match body.op(node) {
            Op::Core(op) => {
                let copied = out.add_node(op.clone(), &operands, body.types(node).to_vec(), body.origin(node).clone());
                (0..body.types(node).len()).map(|port| ValueId { node: copied, port }).collect()
            }
            Op::Fused(op) => {
                let types: Vec<_> = operands.iter().map(|v| out.ty(*v).clone()).collect();
                let meaning = op.decompose(&types).map_err(|e| bug(e.to_string()))?;
                let meaning = flatten(&meaning)?;
                Builder::new(&mut out).inline(&meaning, &operands).map_err(|e| bug(e.to_string()))?
            }
        };
        nodes.insert(node, values);
    }
    for output in body.outputs() {
        out.add_output(output.name.clone(), nodes[&output.value.node][output.value.port]);
    }
    Ok(out)
}
