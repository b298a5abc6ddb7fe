//! What a feed-forward layer is: its products, its activation, and, of a mixture, its experts and who chooses among them.

use std::collections::BTreeSet;

use super::attention::{has_bias, number};
use super::body::{Body, size, width};
use super::{mixer, scalar};
use crate::graph::{NodeId, ValueId};
use crate::ops::{BinaryOp, Core, ReduceOp, UnaryOp};
use crate::view::{describe, formula};

/// Longest formula that stands for an activation without a name; beyond it its operations do.
const LONGEST: usize = 60;

/// A feed-forward layer; of a mixture, what each token meets.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Feed {
    /// What every token meets: the layer itself, or shared experts.
    pub(super) dense: Option<Dense>,
    /// Whether that is multiplied by a gate of its own, in a mixture.
    pub(super) gated_dense: bool,
    pub(super) experts: Option<Experts>,
    /// The whole is multiplied, element by element, by a sigmoid of another product.
    pub(super) gated: bool,
    /// What is multiplied first is mixed, element by element, with the same of the token before.
    pub(super) shifted: bool,
}

/// Products with an activation between them.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Dense {
    /// Elements between the products.
    pub(super) inner: u64,
    /// `SwiGLU`, `GELU`; a formula where it has no name.
    pub(super) activation: String,
    /// Whether any product has a bias.
    pub(super) bias: bool,
}

/// Experts that are chosen among.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Experts {
    pub(super) count: u64,
    /// Of these, how many a token meets.
    pub(super) chosen: u64,
    pub(super) each: Dense,
    /// `softmax`, `sigmoid`: what makes weights of the router's scores.
    pub(super) router: &'static str,
}

impl Feed {
    /// What else there is.
    pub(super) fn more(&self) -> Vec<&'static str> {
        let gated = self.gated.then_some("output gated by a sigmoid");
        gated.into_iter().chain(self.shifted.then_some(mixer::SHIFT)).collect()
    }

    /// Adds what is computed beside it of the same values.
    pub(super) fn join(&mut self, other: Feed) {
        self.gated_dense |= other.gated_dense;
        self.gated |= other.gated;
        self.shifted |= other.shifted;
        self.experts = self.experts.take().or(other.experts);
        self.dense = match (self.dense.take(), other.dense) {
            (Some(a), Some(b)) => Some(Dense { inner: a.inner + b.inner, bias: a.bias || b.bias, ..a }),
            (a, b) => a.or(b),
        };
    }
}

/// The feed-forward layer that gives `result`, of the nodes `inside` its branch.
pub(super) fn feed(body: &Body<'_>, inside: &[NodeId], result: ValueId) -> Option<Feed> {
    let inside: BTreeSet<NodeId> = inside.iter().copied().collect();
    let mut feed = Feed { shifted: mixer::shifts(body, &inside), ..Feed::default() };
    let mut stack = vec![(result, false)];
    let mut found = false;
    // A sum of several: experts and those that every token meets.
    while let Some((value, gated)) = stack.pop() {
        let (value, _) = body.behind(value);
        if let Some(parts) = body.binary(value, BinaryOp::Add).filter(|p| p.iter().all(|v| !body.is_constant(*v))) {
            stack.extend(parts.map(|v| (v, gated)));
            continue;
        }
        if let Some([a, b]) = body.binary(value, BinaryOp::Mul) {
            // A gate for the whole: one number a token.
            match (width(body.graph.ty(a)), width(body.graph.ty(b))) {
                (1, n) if n > 1 => stack.push((b, true)),
                (n, 1) if n > 1 => stack.push((a, true)),
                _ => {}
            }
            if !stack.is_empty() {
                continue;
            }
            // A gate for each element of the whole.
            let is_gate = |v: ValueId| sigmoid_of_product(body, v);
            match (is_gate(a), is_gate(b)) {
                (true, false) => stack.push((b, gated)),
                (false, true) => stack.push((a, gated)),
                _ => {}
            }
            if !stack.is_empty() {
                feed.gated = true;
                continue;
            }
        }
        let term = term(body, &inside, value, gated)?;
        found = true;
        feed.join(term);
    }
    found.then_some(feed)
}

fn term(body: &Body<'_>, inside: &BTreeSet<NodeId>, value: ValueId, gated: bool) -> Option<Feed> {
    let (value, bias) = body.without_bias(value);
    let nodes: Vec<NodeId> =
        body.cone(value, |n| !inside.contains(&n)).into_iter().filter(|n| inside.contains(n)).collect();
    let stacked: Vec<NodeId> = nodes.iter().copied().filter(|n| stack_of(body, *n).is_some()).collect();
    if stacked.is_empty() {
        let mut dense = dense(body, inside, value)?;
        dense.bias |= bias;
        return Some(Feed { dense: Some(dense), gated_dense: gated, ..Feed::default() });
    }
    // The last product of the experts: no other depends on it.
    let above = |n: NodeId| body.above(n);
    let last = *stacked.iter().find(|n| stacked.iter().all(|m| *m == **n || !above(*m).contains(n)))?;
    let (count, index) = stack_of(body, last)?;
    let dense = dense(body, inside, ValueId { node: last, port: 0 })?;
    let chosen = width(body.graph.ty(index)).max(1);
    let router = router(body, &nodes, index);
    Some(Feed { experts: Some(Experts { count, chosen, each: dense, router }), ..Feed::default() })
}

/// Whether a value is a sigmoid of a product, with its bias.
fn sigmoid_of_product(body: &Body<'_>, value: ValueId) -> bool {
    let (value, _) = body.behind(value);
    let Some(Core::Unary(UnaryOp::Sigmoid)) = body.core(value) else { return false };
    let of = body.graph.operands(value.node).first().map(|v| body.without_bias(body.behind(*v).0).0);
    of.is_some_and(|v| body.product(body.behind(v).0.node).is_some())
}

/// Elements between the two products that a value is made by, where they are fewer than before and behind and nothing is done to them.
pub(super) fn low_rank(body: &Body<'_>, inside: &[NodeId], value: ValueId) -> Option<u64> {
    let (x, _) = body.product(value.node)?;
    let (inner, _) = body.behind(x);
    let (from, _) = body.product(inner.node)?;
    let of = |v: ValueId| width(body.graph.ty(v));
    let small = of(inner) < of(value) && of(inner) < of(from) && inside.contains(&inner.node);
    small.then(|| of(inner))
}

/// The number of matrices that a product chooses among, and the indices.
fn stack_of(body: &Body<'_>, node: NodeId) -> Option<(u64, ValueId)> {
    let (_, weights) = body.product(node)?;
    let (ty, index) = body.stack(weights)?;
    (ty.dims.len() >= 3).then(|| (size(ty, 0), index))
}

/// What makes weights of scores: on the way of the indices and of whatever else depends on the same scores.
fn router(body: &Body<'_>, nodes: &[NodeId], index: ValueId) -> &'static str {
    let chooses = body.cone(index, |n| body.product(n).is_some());
    let scores: Vec<NodeId> = chooses.iter().copied().filter(|n| body.product(*n).is_some()).collect();
    let after = |n: &NodeId| scores.iter().any(|s| body.above(*n).contains(s));
    let over = |n: &NodeId| body.graph.operands(*n).first().map_or(0, |v| width(body.graph.ty(*v)));
    let chosen = width(body.graph.ty(index));
    for node in chooses.iter().chain(nodes).filter(|n| after(n)) {
        match body.graph.op(*node).as_core() {
            Some(Core::Softmax) if over(node) == chosen => return "softmax over the chosen",
            Some(Core::Softmax) => return "softmax",
            // Not the activation of an expert: a score for each.
            Some(Core::Unary(UnaryOp::Sigmoid))
                if body.graph.types(*node).first().is_some_and(|t| t.dims.len() <= 2) =>
            {
                return "sigmoid";
            }
            _ => {}
        }
    }
    "other"
}

/// The products that give `value`, which is the result of the last.
fn dense(body: &Body<'_>, inside: &BTreeSet<NodeId>, value: ValueId) -> Option<Dense> {
    let (x, _) = body.product(value.node)?;
    let ends = |n: NodeId| body.product(n).is_some() || !inside.contains(&n);
    let products: Vec<NodeId> =
        body.cone(x, ends).into_iter().filter(|n| inside.contains(n) && body.product(*n).is_some()).collect();
    // One product alone is a projection, and two without anything between them are one of low rank.
    if products.is_empty() {
        return None;
    }
    let inner = width(body.graph.ty(x));
    if products.iter().any(|n| *n == body.behind(x).0.node) {
        return None;
    }
    let mut leaves = Vec::new();
    leaves_of(body, x, &mut leaves, 0);
    let activation = match leaves[..] {
        [one] => scalar::activation(|t| scalar::value(body.graph, x, &[(one, t)]), false),
        [a, b] => gate(body, x, a, b).or_else(|| gate(body, x, b, a)),
        _ => cut_gate(body, x, &leaves),
    };
    let names = leaves.iter().zip(["a", "b", "c", "d"]).map(|(v, n)| (*v, n.to_owned())).collect();
    let activation = activation
        .or_else(|| formula::of(body.graph, x, &names).filter(|f| f.len() <= LONGEST))
        .unwrap_or_else(|| describe::of_nodes(body.graph, &elementwise(body, x, &leaves)));
    let bias = products.into_iter().any(|n| has_bias(body, n)) || has_bias(body, value.node);
    Some(Dense { inner, activation, bias })
}

/// The name of `f(a) · (b + c)` with a constant c.
fn gate(body: &Body<'_>, value: ValueId, a: ValueId, b: ValueId) -> Option<String> {
    let at = |x: f64, y: f64| scalar::value(body.graph, value, &[(a, x), (b, y)]);
    // Linear in b, at places where nothing is clamped.
    for x in [0.7, -0.4, 1.9] {
        let (zero, one, two) = (at(x, 0.0)?, at(x, 1.0)?, at(x, 2.0)?);
        if ((two - one) - (one - zero)).abs() > 1e-9 * (two.abs() + 1e-9).max(1e-6) {
            return None;
        }
    }
    let name = scalar::activation(|x| Some(at(x, 1.0)? - at(x, 0.0)?), true)?;
    let added = at(0.9, 0.0)? / (at(0.9, 1.0)? - at(0.9, 0.0)?);
    let held = !name.ends_with("clamped") && at(0.9, 1e6)? < 1e5 * at(0.9, 1.0)?;
    let clamped = if held { ", clamped" } else { "" };
    Some(if added.abs() < 1e-9 {
        format!("{name}{clamped}")
    } else {
        format!("{name}, up + {}{clamped}", formula::short(added))
    })
}

/// The name of `f(max(a - mean(a) - c · deviation(a), 0)) · b`: of the elements of a gate, those alone that are far above their mean.
fn cut_gate(body: &Body<'_>, value: ValueId, leaves: &[ValueId]) -> Option<String> {
    let is_reduced = |v: &&ValueId| matches!(body.core(**v), Some(Core::Reduce(ReduceOp::Mean)));
    let (reduced, products): (Vec<&ValueId>, Vec<&ValueId>) = leaves.iter().partition(is_reduced);
    let [one, other] = products[..] else { return None };
    let of = |a: &ValueId| reduced.iter().all(|r| body.above(r.node).contains(&a.node));
    let (a, b) = if of(one) { (*one, *other) } else { (*other, *one) };
    if reduced.is_empty() || !of(&a) || of(&b) {
        return None;
    }
    // The mean of the squares is made of what the mean was taken of.
    let square = |v: &ValueId| reduced.iter().any(|r| r.node != v.node && body.above(v.node).contains(&r.node));
    let at = |x: f64, mean: f64, deviation: f64| {
        let known = reduced.iter().map(|v| (**v, if square(v) { deviation * deviation } else { mean }));
        let one = |y: f64| scalar::value(body.graph, value, &known.clone().chain([(a, x), (b, y)]).collect::<Vec<_>>());
        Some(one(1.0)? - one(0.0)?)
    };
    let name = scalar::activation_above(|x| at(x, 0.0, 0.0), true, 0.0)?;
    // Where it begins, for a deviation of one.
    let (mut low, mut high) = (-8.0, 8.0);
    if at(low, 0.0, 1.0)? != 0.0 || at(high, 0.0, 1.0)? == 0.0 {
        return None;
    }
    for _ in 0..60 {
        let middle = (low + high) / 2.0;
        if at(middle, 0.0, 1.0)? == 0.0 { low = middle } else { high = middle }
    }
    // The mean shifts it, and what is above is what exceeds the bound.
    let exceeds = (at(high + 1.0, 0.0, 1.0)? - at(1.0, 0.0, 0.0)?).abs() < 1e-6;
    let shifts = (at(high + 3.0, 2.0, 1.0)? - at(1.0, 0.0, 0.0)?).abs() < 1e-6;
    (exceeds && shifts).then(|| format!("{name} of gates beyond mean + {} σ (statistical top-k)", number(high)))
}

/// Whether a value is a product and a bias that was chosen among several with its matrix.
fn chosen_bias(body: &Body<'_>, value: ValueId) -> bool {
    let of = |v: ValueId| body.stack(v).is_some();
    body.binary(value, BinaryOp::Add).is_some_and(|[a, b]| of(a) != of(b))
}

/// The operations between `leaves` and `value`, views apart.
fn elementwise(body: &Body<'_>, value: ValueId, leaves: &[ValueId]) -> Vec<NodeId> {
    let is_leaf = |n: NodeId| leaves.iter().any(|leaf| leaf.node == n);
    let plain = |n: &NodeId| !is_leaf(*n) && !matches!(body.graph.op(*n).as_core(), Some(Core::Reshape | Core::Cast));
    body.cone(value, is_leaf).into_iter().filter(plain).collect()
}

/// The values that an elementwise computation begins with: products, with their biases.
fn leaves_of(body: &Body<'_>, value: ValueId, leaves: &mut Vec<ValueId>, depth: usize) {
    let elementwise =
        matches!(body.core(value), Some(Core::Unary(_) | Core::Binary(_) | Core::Select | Core::Cast | Core::Reshape));
    let is_leaf = !elementwise || body.without_bias(value).1 || chosen_bias(body, value) || depth > 64;
    if body.is_constant(value) || leaves.contains(&value) || leaves.len() > 4 {
        return;
    }
    if is_leaf {
        leaves.push(value);
        return;
    }
    for operand in body.graph.operands(value.node) {
        leaves_of(body, operand, leaves, depth + 1);
    }
}
