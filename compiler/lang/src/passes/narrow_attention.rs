//! Lets an attention round its own result, which nothing else reads.
//!
//! before   a = attention q, k, v ; r = reshape a ; y = cast r : bf16
//! after    a = attention q, k, v {narrow = true} ; y = reshape a

use super::Pass;
use super::matching::rewrite_nodes;
use crate::graph::build::Builder;
use crate::graph::{DType, Graph, NodeId, Program, ValueId};
use crate::ops::Core;
use crate::ops::fused::Attention;

pub(super) struct NarrowAttention;

impl Pass for NarrowAttention {
    fn name(&self) -> &'static str {
        "narrow_attention"
    }

    fn run(&self, program: &mut Program) -> bool {
        rewrite_nodes(program, rewrite)
    }
}

fn rewrite(graph: &mut Graph, node: NodeId) -> Option<()> {
    let attention = graph.op(node).as_fused::<Attention>()?;
    // What is made in two ways is rounded where it is one.
    if attention.narrow || attention.from_start {
        return None;
    }
    let narrow = Attention { narrow: true, ..attention.clone() };
    let mut last = ValueId { node, port: 0 };
    loop {
        let [(user, _)] = graph.uses(last)[..] else { return None };
        if graph.is_output(last) {
            return None;
        }
        last = ValueId { node: user, port: 0 };
        match graph.op(user).as_core()? {
            Core::Reshape => {}
            Core::Cast if graph.ty(last).dtype == DType::BF16 => break,
            _ => return None,
        }
    }
    let operands = graph.operands(node);
    let dims = graph.ty(last).dims.clone();
    let mut b = Builder::like(graph, node);
    let y = b.fused1(narrow, &operands).ok()?;
    let y = b.reshape(y, dims).ok()?;
    graph.replace(last, y);
    Some(())
}
