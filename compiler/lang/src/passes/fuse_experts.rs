//! Makes a product with matrices gathered from a stack an `expert_linear`, so that no gathered matrix is ever made.
//!
//! before   m = gather w, index ; y = contract x, m {spec = "ti,taoi->tao"}
//! after    y = expert_linear x, w, index {parts = 1, stacked = [], epilogue = (acc) { return acc }}

use super::Pass;
use super::matching::{is_weight_expression, order, rewrite_nodes};
use crate::graph::build::Builder;
use crate::graph::{Dim, Graph, NodeId, Program, ValueId};
use crate::ops::Core;
use crate::ops::fused::{ExpertLinear, Linear};
use crate::ops::shape::ContractSpec;

pub(super) struct FuseExperts;

impl Pass for FuseExperts {
    fn name(&self) -> &'static str {
        "fuse_experts"
    }

    fn run(&self, program: &mut Program) -> bool {
        rewrite_nodes(program, rewrite)
    }
}

fn rewrite(graph: &mut Graph, node: NodeId) -> Option<()> {
    let Core::Contract { spec } = graph.op(node).as_core()? else { return None };
    let spec = ContractSpec::parse(spec).ok()?;
    let [a, b] = graph.operands(node)[..] else { return None };
    let (x, [stack, index], x_labels, labels) = match (chosen(graph, a), chosen(graph, b)) {
        (None, Some(of)) => (a, of, &spec.a, &spec.b),
        (Some(of), None) => (b, of, &spec.b, &spec.a),
        _ => return None,
    };
    // The token, the choice, and two labels of the matrix, of which one is summed over.
    let [t, choice, p, q] = labels[..] else { return None };
    let (o, i, perm) = if spec.out.contains(&p) { (p, q, [0, 1, 2]) } else { (q, p, [0, 2, 1]) };
    let made = [t, choice, o];
    if spec.out.contains(&i) || x_labels.contains(&o) || !x_labels.contains(&i) {
        return None;
    }
    let x_order = if x_labels.contains(&choice) { vec![t, choice, i] } else { vec![t, i] };
    let (x_perm, out_perm) = (order(x_labels, &x_order)?, order(&made, &spec.out)?);

    let mut b = Builder::like(graph, node);
    let stack = if perm.is_sorted() { stack } else { b.transpose(stack, perm.to_vec()).ok()? };
    let x = if x_perm.is_sorted() { x } else { b.transpose(x, x_perm).ok()? };
    let identity = ExpertLinear { parts: 1, stacked: Vec::new(), epilogue: Linear::identity().epilogue };
    let y = b.fused1(identity, &[x, stack, index]).ok()?;
    let y = if out_perm.is_sorted() { y } else { b.transpose(y, out_perm).ok()? };
    graph.replace(ValueId { node, port: 0 }, y);
    Some(())
}

/// The stack and the index of a value that is the chosen ones of a stack of matrices.
fn chosen(graph: &Graph, value: ValueId) -> Option<[ValueId; 2]> {
    if graph.op(value.node).as_core() != Some(&Core::Gather) {
        return None;
    }
    let [stack, index] = graph.operands(value.node)[..] else { return None };
    let by_token = matches!(graph.ty(index).dims[..], [Dim::Axis(_) | Dim::Rows(_), Dim::Fixed(_)]);
    let fits = by_token
        && graph.ty(index).dtype == crate::graph::DType::I64
        && graph.ty(stack).dims.len() == 3
        && is_weight_expression(graph, stack);
    fits.then_some([stack, index])
}
