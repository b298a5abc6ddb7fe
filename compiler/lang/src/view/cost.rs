//! What operations cost: floating-point operations and bytes of a token, from types alone.
//!
//! A dimension that grows with the step counts once (one token); one that grows with what is kept counts in
//! [`Cost::flops_per_key`]. Moves cost nothing here. The figures are of the arithmetic as written, not of a machine.

use super::scene::Cost;
use crate::graph::{Dim, Graph, NodeId, Type};
use crate::ops::fused::{Attention, ExpertLinear, HeadLinear, LayerNorm, Linear, RmsNorm, Rows};
use crate::ops::shape::ContractSpec;
use crate::ops::{Core, Op};

/// The arithmetic of a node for one token.
pub(super) fn of(graph: &Graph, node: NodeId) -> Cost {
    let operands: Vec<&Type> = graph.operands(node).into_iter().map(|v| graph.ty(v)).collect();
    let Some(result) = graph.types(node).first() else { return Cost::default() };
    match graph.op(node) {
        Op::Core(core) => match core {
            Core::Unary(_) | Core::Binary(_) | Core::Select => elements(result, 1.0),
            Core::Reduce(_) | Core::Softmax | Core::TopK { .. } => operands
                .first()
                .map_or_else(Cost::default, |x| elements(x, if *core == Core::Softmax { 4.0 } else { 1.0 })),
            Core::Contract { spec } => contract(spec, &operands),
            Core::Scan { step, .. } => step.nodes().fold(Cost::default(), |sum, node| sum.plus(of(step, node), 1.0)),
            Core::Arg { .. }
            | Core::Weight { .. }
            | Core::Const { .. }
            | Core::Position
            | Core::Index
            | Core::Cast
            | Core::Reshape
            | Core::Transpose { .. }
            | Core::Slice { .. }
            | Core::Concat { .. }
            | Core::Repeat { .. }
            | Core::Broadcast
            | Core::Windows { .. }
            | Core::Regroup
            | Core::First
            | Core::Last
            | Core::Gather
            | Core::Take
            | Core::Cache { .. }
            | Core::SelectRows
            | Core::Call { .. } => Cost::default(),
        },
        op => fused(op, &operands, result),
    }
}

fn fused(op: &Op, operands: &[&Type], result: &Type) -> Cost {
    let product = op.as_fused::<Linear>().map(|l| (l.parts, &l.epilogue));
    if let Some((parts, epilogue)) = product.or_else(|| op.as_fused::<ExpertLinear>().map(|e| (e.parts, &e.epilogue))) {
        let inputs = operands.first().and_then(|x| x.dims.last()?.fixed()).unwrap_or(1) as f64;
        let after = epilogue.nodes().filter(|n| is_arithmetic(epilogue.op(*n))).count() as f64;
        return elements(result, 2.0 * parts as f64 * inputs + after);
    }
    if op.as_fused::<HeadLinear>().is_some() {
        let inputs = operands.first().and_then(|x| x.dims.last()?.fixed()).unwrap_or(1) as f64;
        return elements(result, 2.0 * inputs);
    }
    if let Some(attention) = op.as_fused::<Attention>() {
        let [Dim::Fixed(heads), Dim::Fixed(width)] = result.dims[result.dims.len().saturating_sub(2)..] else {
            return Cost::default();
        };
        let keys = operands.first().and_then(|q| q.dims.last()?.fixed()).unwrap_or(width);
        let score = attention.score.nodes().filter(|n| is_arithmetic(attention.score.op(*n))).count() as f64;
        // Products with keys and values, and the softmax: scale, exponential, sum and weight of each score.
        return Cost {
            flops: 0.0,
            flops_per_key: heads as f64 * (2.0 * keys as f64 + 2.0 * width as f64 + 4.0 + score),
        };
    }
    if let Some(rows) = op.as_fused::<Rows>() {
        return rows.body.nodes().fold(Cost::default(), |sum, node| sum.plus(of(&rows.body, node), 1.0));
    }
    if op.as_fused::<RmsNorm>().is_some() {
        return elements(result, 4.0);
    }
    if op.as_fused::<LayerNorm>().is_some() {
        return elements(result, 7.0);
    }
    elements(result, 1.0)
}

fn is_arithmetic(op: &Op) -> bool {
    matches!(op.as_core(), Some(Core::Unary(_) | Core::Binary(_) | Core::Select | Core::Reduce(_)))
}

/// So many operations for each element of a value.
fn elements(ty: &Type, each: f64) -> Cost {
    by_dims(ty.dims.iter(), each)
}

fn by_dims<'d>(dims: impl Iterator<Item = &'d Dim>, each: f64) -> Cost {
    let (mut n, mut grows) = (each, false);
    for dim in dims {
        match dim {
            Dim::Fixed(size) => n *= *size as f64,
            Dim::Visible(_) => grows = true,
            Dim::Axis(_) | Dim::Rows(_) => {}
        }
    }
    if grows { Cost { flops: 0.0, flops_per_key: n } } else { Cost { flops: n, flops_per_key: 0.0 } }
}

fn contract(spec: &str, operands: &[&Type]) -> Cost {
    let Ok(spec) = ContractSpec::parse(spec) else { return Cost::default() };
    let mut seen: Vec<char> = Vec::new();
    let mut dims = Vec::new();
    for (labels, ty) in [&spec.a, &spec.b].into_iter().zip(operands) {
        for (label, dim) in labels.iter().zip(&ty.dims) {
            if !seen.contains(label) {
                seen.push(*label);
                dims.push(*dim);
            }
        }
    }
    by_dims(dims.iter(), 2.0)
}

/// Bytes of a value's elements that one token brings; all of it where no dimension grows.
pub(super) fn token_bytes(ty: &Type) -> u64 {
    let fixed = |dims: &[Dim]| dims.iter().filter_map(|d| d.fixed()).fold(1, u64::saturating_mul);
    match (ty.dtype.blocks(), ty.dims.split_last()) {
        (Some(blocks), Some((Dim::Fixed(last), lead))) => fixed(lead).saturating_mul(blocks.row_bytes(*last)),
        _ => fixed(&ty.dims).saturating_mul(ty.dtype.size_bytes()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{AxisId, DType, Origin};

    #[test]
    fn products_count_twice_and_keys_apart() {
        let mut g = Graph::new("g");
        let x = g.add_param("x", Type::new(DType::F32, [Dim::Axis(AxisId(0)), Dim::Fixed(64)]));
        let w = g.add_param("w", Type::new(DType::F32, [Dim::Fixed(16), Dim::Fixed(64)]));
        let k = g.add_param("k", Type::new(DType::F32, [Dim::Visible(AxisId(0)), Dim::Fixed(64)]));
        let spec = |s: &str| Core::Contract { spec: s.into() };
        let ty = Type::new(DType::F32, [Dim::Axis(AxisId(0)), Dim::Fixed(16)]);
        let y = g.add(spec("ni,oi->no"), &[x, w], ty, Origin::default());
        let scores = Type::new(DType::F32, [Dim::Axis(AxisId(0)), Dim::Visible(AxisId(0))]);
        let s = g.add(spec("nd,td->nt"), &[x, k], scores, Origin::default());
        assert_eq!(of(&g, y.node), Cost { flops: 2048.0, flops_per_key: 0.0 });
        assert_eq!(of(&g, s.node), Cost { flops: 0.0, flops_per_key: 128.0 });
    }
}
