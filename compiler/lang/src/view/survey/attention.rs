//! What an attention is: heads, what is kept, how positions come in, what is seen.

use std::collections::BTreeSet;

use super::body::{Body, Norm, size, width};
use super::scalar::{self, Scores, Sight};
use crate::graph::{Dim, NodeId, ValueId};
use crate::ops::fused;
use crate::ops::{BinaryOp, Core, UnaryOp};
use crate::view::describe;

/// An attention in a layer.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Attention {
    pub(super) heads: u64,
    pub(super) kv_heads: u64,
    /// Elements of a query and of a key.
    pub(super) key_width: u64,
    /// Elements of a value.
    pub(super) value_width: u64,
    /// What is kept of a token where keys and values are made of it later: elements.
    pub(super) latent: Option<u64>,
    /// Elements that queries are made of, where they are made in two products.
    pub(super) compressed_queries: Option<u64>,
    /// Keys are of another axis than queries.
    pub(super) cross: bool,
    pub(super) rotary: Option<Rotary>,
    /// Queries are scaled by their position.
    pub(super) by_position: bool,
    /// A norm of queries and keys, and whether it is of each head rather than of all together.
    pub(super) qk_norm: Option<(Norm, bool)>,
    pub(super) sight: Sight,
    pub(super) scores: Scores,
    /// A learned score of a key that is none.
    pub(super) sink: bool,
    /// The factor of scores where it is not `width^-0.5`.
    pub(super) scale: Option<f64>,
    /// Its result is multiplied by a gate.
    pub(super) gated: bool,
    /// Queries, keys or values have biases.
    pub(super) bias: bool,
    /// The last product has a bias.
    pub(super) out_bias: bool,
}

/// Rotary positions.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Rotary {
    /// Elements of a head that turn.
    pub(super) width: u64,
    /// The base of the frequencies, where they are powers of one.
    pub(super) base: Option<f64>,
    /// How frequencies are changed for a longer context.
    pub(super) scaling: Scaling,
    /// What cosines and sines are multiplied by.
    pub(super) gain: f64,
    /// Pairs are neighbours, rather than an element of each half.
    pub(super) interleaved: bool,
}

/// What is done to frequencies.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Scaling {
    None,
    /// All are divided.
    All(f64),
    /// Slow ones are divided, fast ones kept, as a line over their numbers.
    ByNumber(f64),
    /// Slow ones are divided, fast ones kept, in another way.
    Slow(f64),
    /// They are not known when compiling.
    Unknown,
}

impl Attention {
    /// Takes in another attention of the same branch: where both see the same, the heads of both are its heads.
    pub(super) fn join(&mut self, other: &Attention) {
        if (&self.sight, self.cross, self.latent) == (&other.sight, other.cross, other.latent) {
            self.heads += other.heads;
            self.kv_heads += other.kv_heads;
        }
    }
}

/// The attention that `node` is, in a branch that gives `result`.
pub(super) fn attention(body: &Body<'_>, node: NodeId, result: ValueId) -> Attention {
    let operands = body.graph.operands(node);
    let ty = |i: usize| operands.get(i).map(|v| body.graph.ty(*v));
    let dim = |i: usize, d: usize| ty(i).map_or(0, |t| size(t, d));
    let fused = body.graph.op(node).as_fused::<fused::Attention>();
    let weights = |n: NodeId| body.product(n).is_some();
    let ends = |n: NodeId| weights(n) || is_cache(body, n);
    let of = |i: usize| operands.get(i).map(|v| body.cone(*v, ends)).unwrap_or_default();
    let (queries, keys) = (of(0), of(1));
    let key_width = dim(0, 2);
    let axis = |i: usize| ty(i).and_then(|t| t.dims.first().copied());
    let cross = match (axis(0), axis(1)) {
        (Some(Dim::Axis(q) | Dim::Rows(q)), Some(Dim::Axis(k) | Dim::Visible(k))) => q != k,
        _ => false,
    };
    // Keys and values as they are kept, and what they are made of before that.
    let kept: Vec<NodeId> = operands.iter().skip(1).take(2).flat_map(|v| caches(body, *v)).collect();
    let through = |v: &ValueId| body.cone(*v, |n| is_cache(body, n)).into_iter().any(weights);
    let latent = operands.iter().skip(1).take(2).any(|v| through(v) && !caches(body, *v).is_empty());
    let kept_width =
        |n: &NodeId| body.graph.types(*n).first().map_or(0, |t| t.dims.iter().filter_map(|d| d.fixed()).product());
    let distinct: BTreeSet<NodeId> = kept.iter().copied().collect();
    let before: Vec<NodeId> = distinct
        .iter()
        .flat_map(|n| body.graph.operands(*n))
        .flat_map(|v| body.cone(v, weights))
        .chain(keys.iter().copied())
        .collect();
    let turning = |nodes: &[NodeId]| rotary(body, nodes, key_width);
    let made: Vec<NodeId> = queries.iter().chain(&before).copied().filter(|n| weights(*n)).collect();
    let values = operands.get(2).map(|v| body.cone(*v, weights)).unwrap_or_default();
    let made: Vec<NodeId> = made.into_iter().chain(values.into_iter().filter(|n| weights(*n))).collect();
    let first: Vec<NodeId> = queries.iter().copied().filter(|n| weights(*n)).collect();
    let learned = operands.iter().skip(3).any(|v| body.is_constant(*v));
    let usual = (key_width as f64).powf(-0.5);
    let (behind_out, out_bias) = body.without_bias(body.behind(result).0);
    let after = body.cone(behind_out, |n| n == node);
    let scores = fused.map(|a| scalar::scores(&a.score, learned)).unwrap_or_default();
    let scale = fused.map_or(usual, |a| a.scale * scores.slope * queries_factor(body, &operands));
    Attention {
        heads: dim(0, 1),
        kv_heads: dim(1, 1),
        key_width,
        value_width: dim(2, 2),
        latent: latent.then(|| distinct.iter().map(kept_width).sum()),
        compressed_queries: first.iter().find_map(|n| compressed(body, *n)),
        cross,
        rotary: turning(&queries).or_else(|| turning(&before)),
        by_position: scaled_by_position(body, &queries),
        // Of what is kept before keys are made of it, a norm is none of keys.
        qk_norm: qk_norm(body, &queries).or_else(|| qk_norm(body, if latent { &keys } else { &before })),
        sight: fused.map_or(Sight::All, |a| scalar::sight(&a.mask, describe::mask(body.graph, node))),
        scores,
        sink: body.graph.op(node).bodies().iter().any(|(name, _)| *name == "sink"),
        scale: Some(scale).filter(|s| (s / usual - 1.0).abs() > 1e-4),
        gated: after.iter().any(|n| is_gate(body, *n)),
        bias: made.iter().any(|n| has_bias(body, *n)),
        out_bias,
    }
}

fn is_cache(body: &Body<'_>, node: NodeId) -> bool {
    matches!(body.graph.op(node).as_core(), Some(Core::Cache { .. }))
}

/// The caches that a value is read from, nearest first.
fn caches(body: &Body<'_>, value: ValueId) -> Vec<NodeId> {
    body.cone(value, |n| is_cache(body, n)).into_iter().filter(|n| is_cache(body, *n)).collect()
}

/// What queries are multiplied by, all alike.
fn queries_factor(body: &Body<'_>, operands: &[ValueId]) -> f64 {
    operands.first().map_or(1.0, |q| body.behind(*q).1)
}

/// Elements between two products that give queries.
fn compressed(body: &Body<'_>, product: NodeId) -> Option<u64> {
    let (x, _) = body.product(product)?;
    let (mut x, _) = body.behind(x);
    if let Some((_, of)) = body.norm(x) {
        x = body.behind(of).0;
    }
    let (x, _) = body.without_bias(x);
    let (_, weights) = body.product(x.node)?;
    let made = width(body.graph.ty(x));
    (made > 0 && !body.graph.ty(weights).dims.is_empty()).then_some(made)
}

/// Whether a product's result gets a bias.
pub(super) fn has_bias(body: &Body<'_>, product: NodeId) -> bool {
    let mut value = ValueId { node: product, port: 0 };
    loop {
        let uses = body.graph.uses(value);
        let added = uses.iter().any(|(user, _)| {
            let sum = ValueId { node: *user, port: 0 };
            body.without_bias(sum) == (value, true)
        });
        match &uses[..] {
            _ if added => return true,
            [(user, 0)] if matches!(body.graph.op(*user).as_core(), Some(Core::Cast | Core::Reshape)) => {
                value = ValueId { node: *user, port: 0 };
            }
            _ => return false,
        }
    }
}

/// A product of two values of which one is a sigmoid or the like of something.
fn is_gate(body: &Body<'_>, node: NodeId) -> bool {
    let Some(operands) = body.binary(ValueId { node, port: 0 }, BinaryOp::Mul) else { return false };
    operands.iter().any(|v| {
        let (v, _) = body.behind(*v);
        matches!(body.core(v), Some(Core::Unary(UnaryOp::Sigmoid | UnaryOp::Tanh)))
    })
}

fn qk_norm(body: &Body<'_>, nodes: &[NodeId]) -> Option<(Norm, bool)> {
    nodes.iter().find_map(|n| {
        let value = ValueId { node: *n, port: 0 };
        let (norm, _) = body.norm(value)?;
        Some((norm, body.graph.ty(value).dims.len() > 2))
    })
}

/// Whether positions reach queries in another way than through sines and cosines.
fn scaled_by_position(body: &Body<'_>, queries: &[NodeId]) -> bool {
    let waves = |n: NodeId| matches!(body.graph.op(n).as_core(), Some(Core::Unary(UnaryOp::Sin | UnaryOp::Cos)));
    let angles: BTreeSet<NodeId> = queries.iter().copied().filter(|n| waves(*n)).collect();
    let position = |n: &NodeId| matches!(body.graph.op(*n).as_core(), Some(Core::Position));
    let all: BTreeSet<NodeId> = queries.iter().copied().collect();
    // What positions reach without passing a sine: their users that are no angle.
    let (mut seen, mut stack): (BTreeSet<NodeId>, Vec<NodeId>) =
        (BTreeSet::new(), queries.iter().copied().filter(position).collect());
    while let Some(at) = stack.pop() {
        if !seen.insert(at) {
            continue;
        }
        for (user, _) in (0..body.graph.types(at).len()).flat_map(|port| body.graph.uses(ValueId { node: at, port })) {
            if all.contains(&user) && !angles.contains(&user) {
                stack.push(user);
            }
        }
    }
    let heads = |n: &NodeId| body.graph.types(*n).first().is_some_and(|t| t.dims.len() > 2 && width(t) > 1);
    seen.iter().any(|n| heads(n) && matches!(body.graph.op(*n).as_core(), Some(Core::Binary(BinaryOp::Mul))))
}

/// How the nodes that make queries or keys turn them.
fn rotary(body: &Body<'_>, nodes: &[NodeId], head: u64) -> Option<Rotary> {
    let is = |n: &&NodeId, f: UnaryOp| matches!(body.graph.op(**n).as_core(), Some(Core::Unary(g)) if *g == f);
    let cosine = nodes.iter().find(|n| is(n, UnaryOp::Cos))?;
    nodes.iter().find(|n| is(n, UnaryOp::Sin))?;
    let pairs = body.graph.types(*cosine).first().map_or(0, width);
    let angle = body.graph.operands(*cosine).first().copied()?;
    let frequencies = frequencies(body, angle);
    let value = ValueId { node: *cosine, port: 0 };
    let gain = body.graph.uses(value).into_iter().find_map(|(user, _)| {
        let [a, b] = body.binary(ValueId { node: user, port: 0 }, BinaryOp::Mul)?;
        body.uniform(if a == value { b } else { a })
    });
    let (base, scaling) = frequencies.as_deref().map_or((None, Scaling::Unknown), scaling);
    let interleaved = nodes.iter().any(|n| match body.graph.op(*n).as_core() {
        Some(Core::Slice { dim, .. }) => body.graph.types(*n).first().is_some_and(|t| {
            let source = body.graph.operands(*n).first().map_or(0, |v| size(body.graph.ty(*v), *dim));
            *dim + 1 == t.dims.len() && size(t, *dim) == 1 && source == 2
        }),
        Some(Core::Transpose { perm }) => {
            let n_dims = perm.len();
            let swaps = n_dims >= 2 && perm.ends_with(&[n_dims - 1, n_dims - 2]);
            swaps && body.graph.types(*n).first().is_some_and(|t| width(t) == 2 || size(t, n_dims - 2) == 2)
        }
        _ => false,
    });
    // Where angles stand twice, once for each half, they are as many as elements that turn.
    let twice =
        frequencies.as_deref().is_some_and(|f| f.len() % 2 == 0 && f[..f.len() / 2] == f[f.len() / 2..] && f.len() > 2);
    let turning = if twice { pairs } else { 2 * pairs };
    Some(Rotary { width: turning.min(head), base, scaling, gain: gain.unwrap_or(1.0), interleaved })
}

/// The constants that positions are multiplied by.
fn frequencies(body: &Body<'_>, angle: ValueId) -> Option<Vec<f64>> {
    let mut value = angle;
    let mut factor = 1.0;
    for _ in 0..16 {
        let operands = body.graph.operands(value.node);
        match (body.core(value)?, &operands[..]) {
            (Core::Reshape | Core::Cast | Core::Broadcast, [x]) => value = *x,
            (Core::Binary(BinaryOp::Mul), [a, b]) => match (body.uniform(*a), body.uniform(*b)) {
                (_, Some(n)) => (value, factor) = (*a, factor * n),
                (Some(n), _) => (value, factor) = (*b, factor * n),
                _ => {
                    let list = [*a, *b].into_iter().find_map(|v| constants(body, v))?;
                    return Some(list.into_iter().map(|f| f * factor).collect());
                }
            },
            (Core::Contract { .. }, [a, b]) => return [*a, *b].into_iter().find_map(|v| constants(body, v)),
            _ => return None,
        }
    }
    None
}

fn constants(body: &Body<'_>, mut value: ValueId) -> Option<Vec<f64>> {
    for _ in 0..8 {
        match body.core(value)? {
            Core::Const { values } => return (values.len() > 1).then(|| values.clone()),
            Core::Reshape | Core::Cast | Core::Broadcast => value = *body.graph.operands(value.node).first()?,
            _ => return None,
        }
    }
    None
}

/// The base of frequencies and how they depart from its powers: `f[i] = base^(-i / n)` where nothing is scaled.
fn scaling(frequencies: &[f64]) -> (Option<f64>, Scaling) {
    let n = frequencies.len() as f64;
    let (Some(first), Some(second), Some(last)) = (frequencies.first(), frequencies.get(1), frequencies.last()) else {
        return (None, Scaling::Unknown);
    };
    if !frequencies.iter().all(|f| *f > 0.0) {
        return (None, Scaling::Unknown);
    }
    let power = |base: f64, i: usize| base.powf(-(i as f64) / n);
    let follows =
        |base: f64, by: f64| frequencies.iter().enumerate().all(|(i, f)| (f * by / power(base, i) - 1.0).abs() < 1e-4);
    let whole = rounded((first / last).powf(n / (n - 1.0)));
    let factor = 1.0 / first;
    if follows(whole, factor) {
        return (Some(whole), if (factor - 1.0).abs() < 1e-6 { Scaling::None } else { Scaling::All(rounded(factor)) });
    }
    // Fast ones are as they were.
    let base = rounded((first / second).powf(n));
    let kept = frequencies.iter().enumerate().take_while(|(i, f)| (*f / power(base, *i) - 1.0).abs() < 1e-3).count();
    if kept < 2 {
        return (None, Scaling::Unknown);
    }
    // Over many pairs the rounding of two neighbours is that of their distance.
    let base = rounded((first / frequencies[kept - 1]).powf(n / (kept as f64 - 1.0)));
    let share = |i: usize| frequencies[i] / power(base, i);
    let factor = rounded(1.0 / share(frequencies.len() - 1));
    if factor <= 1.0 {
        return (Some(base), Scaling::Unknown);
    }
    let keep: Vec<f64> = (0..frequencies.len()).map(|i| (share(i) - 1.0 / factor) / (1.0 - 1.0 / factor)).collect();
    let between: Vec<f64> = keep.iter().copied().filter(|k| (0.02..0.98).contains(k)).collect();
    let steps: Vec<f64> = between.windows(2).map(|w| w[0] - w[1]).collect();
    let even = steps.len() > 1 && steps.iter().all(|s| (s - steps[0]).abs() < 0.02 * steps[0].abs());
    (Some(base), if even { Scaling::ByNumber(factor) } else { Scaling::Slow(factor) })
}

/// A number without what rounding to 32 bits made of it.
fn rounded(x: f64) -> f64 {
    let digits = 10f64.powf(3.0 - x.abs().log10().floor());
    let short = (x * digits).round() / digits;
    if (short / x - 1.0).abs() < 2e-4 { short } else { x }
}

impl Rotary {
    /// `θ 500,000, slow turns ÷ 8`.
    pub(super) fn text(&self, head: u64) -> String {
        let mut parts = Vec::new();
        parts.push(self.base.map_or_else(|| "RoPE".to_owned(), |b| format!("RoPE θ {}", number(b))));
        if self.width < head {
            parts.push(format!("{} of {head} elements", self.width));
        }
        match self.scaling {
            Scaling::None => {}
            Scaling::All(f) => parts.push(format!("stretched ×{}", number(f))),
            Scaling::ByNumber(f) => parts.push(format!("YaRN ×{}", number(f))),
            Scaling::Slow(f) => parts.push(format!("slow turns ×{}", number(f))),
            Scaling::Unknown => parts.push("computed frequencies".to_owned()),
        }
        parts.join(", ")
    }
}

/// A number with digits grouped, or short.
pub(super) fn number(x: f64) -> String {
    if x == x.trunc() && (0.0..1e15).contains(&x) {
        crate::view::digits(x as u64)
    } else {
        crate::view::formula::short(x)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frequencies_of(base: f64, n: usize, change: impl Fn(usize, f64) -> f64) -> Vec<f64> {
        (0..n).map(|i| f64::from(change(i, base.powf(-(i as f64) / n as f64)) as f32)).collect()
    }

    #[test]
    fn bases_and_scalings_follow_from_frequencies() {
        assert_eq!(scaling(&frequencies_of(10_000.0, 64, |_, f| f)), (Some(10_000.0), Scaling::None));
        assert_eq!(scaling(&frequencies_of(5e5, 32, |_, f| f / 4.0)), (Some(5e5), Scaling::All(4.0)));
        let ramp = |i: usize, f: f64| {
            let keep = 1.0 - ((i as f64 - 20.0) / 25.0).clamp(0.0, 1.0);
            f * (keep + (1.0 - keep) / 40.0)
        };
        assert_eq!(scaling(&frequencies_of(10_000.0, 64, ramp)), (Some(10_000.0), Scaling::ByNumber(40.0)));
        let smooth = |_: usize, f: f64| {
            let turns = 8192.0 * f / (2.0 * std::f64::consts::PI);
            let keep = ((turns - 1.0) / 3.0).clamp(0.0, 1.0);
            f * (keep + (1.0 - keep) / 8.0)
        };
        assert_eq!(scaling(&frequencies_of(5e5, 64, smooth)), (Some(5e5), Scaling::Slow(8.0)));
        assert_eq!(scaling(&[1.0, 0.5, 0.0]), (None, Scaling::Unknown));
        assert_eq!(scaling(&[1.0]), (None, Scaling::Unknown));
    }
}
