//! Layers with several streams of which one is computed (AltUp, arXiv:2301.13310): all are predicted from all, the layer runs on one of them, and
//! what it changes there corrects every stream.

use super::body::{Body, width};
use super::layer::{Layer, Walk};
use crate::graph::{Dim, NodeId, Program, ValueId};
use crate::ops::{BinaryOp, Core};

/// What a layer does with its streams.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Streams {
    /// How many there are.
    pub(super) count: usize,
    /// Elements of an input of the layer's own that gates what is added to the streams that are not computed.
    pub(super) own_input: Option<u64>,
}

impl Streams {
    /// As a table says it, behind the order of sublayers.
    pub(super) fn text(&self) -> String {
        let own = self.own_input.map(|n| format!(", gated input of {n} of each layer's own"));
        format!("on one of {} streams, all predicted and corrected (AltUp){}", self.count, own.unwrap_or_default())
    }
}

/// The layer that a body is whose results are several streams. `None` where the streams are not of this kind.
pub(super) fn layer(program: &Program, body: &Body<'_>, depth: usize) -> Option<Layer> {
    let graph = body.graph;
    let ty = graph.ty(graph.outputs().first()?.value);
    let outputs: Vec<ValueId> = graph.outputs().iter().map(|o| o.value).filter(|v| graph.ty(*v) == ty).collect();
    let params: Vec<ValueId> = graph.params().iter().map(|p| p.value).filter(|v| graph.ty(*v) == ty).collect();
    if outputs.len() < 2 || outputs.len() != params.len() {
        return None;
    }
    let depends = |node: NodeId, on: ValueId| body.above(node).contains(&on.node);
    if !outputs.iter().all(|o| params.iter().all(|p| depends(o.node, *p))) {
        return None;
    }
    // What a layer changes: the difference of what it gives and what it was given, on which every stream depends.
    let change = |node: NodeId| {
        let value = ValueId { node, port: 0 };
        let [after, before] = body.binary(value, BinaryOp::Sub)?;
        let is_change = graph.ty(value) == ty
            && !body.is_constant(before)
            && body.behind(after).0 != body.behind(before).0
            && depends(after.node, before)
            && params.iter().all(|p| depends(before.node, *p))
            && outputs.iter().all(|o| depends(o.node, value));
        is_change.then_some((value, after, before))
    };
    let (changed, after, before) = graph.topological().into_iter().find_map(change)?;
    let stages = Walk { program, body, stream: Some(body.behind(before).0), depth }.back(after).stages;
    // An input that streams depend on but not what is computed.
    let own_input = graph.params().iter().map(|p| p.value).find(|p| {
        let ty = graph.ty(*p);
        let by_token = matches!(ty.dims.first(), Some(Dim::Axis(_) | Dim::Rows(_)));
        by_token && !depends(changed.node, *p) && outputs.iter().any(|o| gates(body, o.node, *p))
    });
    let own_input = own_input.map(|p| width(graph.ty(p)));
    Some(Layer { stages, streams: Some(Streams { count: outputs.len(), own_input }) })
}

/// Whether something computed is multiplied by an input, on the way to a node.
fn gates(body: &Body<'_>, node: NodeId, input: ValueId) -> bool {
    body.above(node).contains(&input.node)
        && body.graph.uses(input).into_iter().any(|(user, _)| {
            let product = body.graph.op(user).as_core();
            matches!(product, Some(Core::Binary(BinaryOp::Mul)))
                && body.graph.operands(user).iter().all(|v| !body.is_constant(*v))
        })
}
