//! Recognises normalisations written out, whatever the order of operands and the form of the mean.
//!
//! before   s = mul x, x ; m = reduce_mean s ; r = rsqrt (add m, eps) ; t = mul x, r ; y = mul t, w
//! after    y = rms_norm x, w {eps, gain = true}
//!
//! With `sub x, (reduce_mean x)` for x it is a `layer_norm`, which also takes a bias.

use super::Pass;
use super::matching::{binary, core, is_constant, operand_if, rewrite_nodes, uniform};
use crate::graph::build::Builder;
use crate::graph::{DType, Dim, Graph, NodeId, Program, Type, ValueId};
use crate::ops::fused::{LayerNorm, RmsNorm};
use crate::ops::{BinaryOp, Core, ReduceOp, UnaryOp};

pub(super) struct FuseNorm;

impl Pass for FuseNorm {
    fn name(&self) -> &'static str {
        "fuse_norm"
    }

    fn run(&self, program: &mut Program) -> bool {
        rewrite_nodes(program, rewrite)
    }
}

fn rewrite(graph: &mut Graph, node: NodeId) -> Option<()> {
    let normal = ValueId { node, port: 0 };
    let (x, eps) = normalised(graph, normal)?;
    let Some(Dim::Fixed(width)) = graph.ty(x).dims.last().copied() else { return None };
    let centred = binary(graph, x, BinaryOp::Sub).filter(|[a, m]| mean(graph, *m) == Some(*a)).map(|[a, _]| a);

    let vector = Type::new(DType::F32, [Dim::Fixed(width)]);
    let gained = scaled_by(graph, normal, BinaryOp::Mul, &vector);
    let (mut end, gain) = gained.map_or((normal, None), |(end, w)| (end, Some(w)));
    let y = match centred {
        None => {
            let operands: Vec<_> = [Some(x), gain].into_iter().flatten().collect();
            Builder::like(graph, node).fused1(RmsNorm { eps, gain: gain.is_some() }, &operands).ok()?
        }
        Some(x) => {
            let biased = scaled_by(graph, end, BinaryOp::Add, &vector);
            let bias = biased.map(|(_, b)| b);
            end = biased.map_or(end, |(end, _)| end);
            let operands: Vec<_> = [Some(x), gain, bias].into_iter().flatten().collect();
            let op = LayerNorm { eps, gain: gain.is_some(), bias: bias.is_some() };
            Builder::like(graph, node).fused1(op, &operands).ok()?
        }
    };
    graph.replace(end, y);
    Some(())
}

/// `x` and `eps` of a value that is `x / sqrt(mean(x²) + eps)`.
fn normalised(graph: &Graph, value: ValueId) -> Option<(ValueId, f64)> {
    let pairs = match (binary(graph, value, BinaryOp::Mul), binary(graph, value, BinaryOp::Div)) {
        (Some([a, b]), _) => vec![(a, inverse_root(graph, b)), (b, inverse_root(graph, a))],
        (_, Some([a, b])) => vec![(a, operand_if(graph, b, |op| *op == Core::Unary(UnaryOp::Sqrt)))],
        _ => return None,
    };
    pairs.into_iter().find_map(|(x, shifted)| {
        let [a, b] = binary(graph, shifted?, BinaryOp::Add)?;
        let (m, eps) = match (uniform(graph, a), uniform(graph, b)) {
            (_, Some(eps)) => (a, eps),
            (Some(eps), _) => (b, eps),
            _ => return None,
        };
        let squared = square(graph, mean(graph, m)?)?;
        (squared == x && graph.ty(x) == graph.ty(value)).then_some((x, eps))
    })
}

/// The operand of `1 / sqrt(..)`.
fn inverse_root(graph: &Graph, value: ValueId) -> Option<ValueId> {
    if let Some(x) = operand_if(graph, value, |op| *op == Core::Unary(UnaryOp::Rsqrt)) {
        return Some(x);
    }
    if let Some([x, n]) = binary(graph, value, BinaryOp::Pow) {
        return (uniform(graph, n) == Some(-0.5)).then_some(x);
    }
    let [one, root] = binary(graph, value, BinaryOp::Div)?;
    (uniform(graph, one) == Some(1.0)).then(|| operand_if(graph, root, |op| *op == Core::Unary(UnaryOp::Sqrt)))?
}

/// The operand of a mean over the last dimension.
fn mean(graph: &Graph, value: ValueId) -> Option<ValueId> {
    if let Some(x) = operand_if(graph, value, |op| *op == Core::Reduce(ReduceOp::Mean)) {
        return Some(x);
    }
    let of_sum = |sum: ValueId, n: f64| {
        let x = operand_if(graph, sum, |op| *op == Core::Reduce(ReduceOp::Sum))?;
        let width = graph.ty(x).dims.last()?.fixed()? as f64;
        (n == width).then_some(x)
    };
    if let Some([sum, n]) = binary(graph, value, BinaryOp::Div) {
        return of_sum(sum, uniform(graph, n)?);
    }
    let [a, b] = binary(graph, value, BinaryOp::Mul)?;
    match (uniform(graph, a), uniform(graph, b)) {
        (_, Some(n)) => of_sum(a, (1.0 / n).round()).filter(|x| is_reciprocal(graph, *x, n)),
        (Some(n), _) => of_sum(b, (1.0 / n).round()).filter(|x| is_reciprocal(graph, *x, n)),
        _ => None,
    }
}

fn is_reciprocal(graph: &Graph, x: ValueId, n: f64) -> bool {
    graph.ty(x).dims.last().and_then(|d| d.fixed()).is_some_and(|width| (n * width as f64 - 1.0).abs() < 1e-7)
}

fn square(graph: &Graph, value: ValueId) -> Option<ValueId> {
    if let Some([a, b]) = binary(graph, value, BinaryOp::Mul) {
        return (a == b).then_some(a);
    }
    let [x, n] = binary(graph, value, BinaryOp::Pow)?;
    (uniform(graph, n) == Some(2.0)).then_some(x)
}

/// The only use of a value, when it is `f` with a constant `vector`; the result and the vector.
fn scaled_by(graph: &Graph, value: ValueId, f: BinaryOp, vector: &Type) -> Option<(ValueId, ValueId)> {
    let [(user, operand)] = graph.uses(value)[..] else { return None };
    let result = ValueId { node: user, port: 0 };
    let other = binary(graph, result, f)?[1 - operand];
    let fits = graph.ty(other) == vector && is_constant(graph, other.node) && core(graph, other).is_some();
    (fits && !graph.is_output(value) && graph.ty(result) == graph.ty(value)).then_some((result, other))
}
