//! Arithmetic of a token: with how much before it, when it is one of a prompt and when it is one after another.
//!
//! Counted as the graph is written. What is made of kept values counts once a token; attention counts the keys that its mask shows.

use super::scalar::{Sight, sight};
use crate::graph::path::instances;
use crate::graph::{Dim, Graph, NodeId, Program, Type};
use crate::ops::Core;
use crate::ops::fused::Attention;
use crate::view::{cost, describe};

/// The arithmetic of a model.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Work {
    /// Operations of an element of each axis, whatever the context.
    pub(super) fixed: f64,
    /// Operations that are made for the last token of a prompt alone: the head.
    pub(super) last: f64,
    /// Attentions: operations for each key that is seen, and which are.
    pub(super) seen: Vec<(f64, Sight)>,
    /// The whole sequence comes at once.
    pub(super) whole: bool,
    /// Elements of the axis that everything is counted for, where they are known.
    pub(super) extent: Option<u64>,
}

impl Work {
    /// Counts a recognised program: the axis of its first output, and every axis that is given with it.
    pub(super) fn of(program: &Program) -> Self {
        let mut work = Work::default();
        let generates = program.axes.iter().position(|a| a == "tokens").unwrap_or(0);
        work.extent = program.extent(crate::graph::AxisId(generates));
        let several = program.axes.len() > 1;
        for instance in instances(program).unwrap_or_default() {
            let Some(graph) = program.graphs.get(instance.graph) else { continue };
            let tail = if instance.graph == 0 { tail(graph) } else { Vec::new() };
            for node in graph.nodes() {
                // What is made of a source is made once, not for each token after it.
                if several && axis(graph, node).is_some_and(|a| a != generates) {
                    continue;
                }
                let cost = cost::of(graph, node);
                if let Some(attention) = graph.op(node).as_fused::<Attention>() {
                    let sight = sight(&attention.mask, describe::mask(attention));
                    work.whole |= attention.reach.future && program.axes.len() == 1;
                    match work.seen.iter_mut().find(|(_, s)| *s == sight) {
                        Some((flops, _)) => *flops += cost.flops_per_key,
                        None => work.seen.push((cost.flops_per_key, sight)),
                    }
                } else {
                    let flops = cost.flops + cost.flops_per_key;
                    *(if tail.contains(&node) { &mut work.last } else { &mut work.fixed }) += flops;
                }
            }
        }
        work
    }

    /// Operations for the token that has `context` tokens with it.
    pub(super) fn decode(&self, context: u64) -> f64 {
        let seen: f64 = self.seen.iter().map(|(flops, sight)| flops * sight.keys(context)).sum();
        self.fixed + self.last + seen
    }

    /// Operations of a token of a prompt of so many, on average; outputs are of the last alone.
    pub(super) fn prefill(&self, tokens: u64) -> f64 {
        let n = tokens.max(1);
        let seen: f64 = self.seen.iter().map(|(flops, sight)| flops * sight.mean_keys(n)).sum();
        let outputs = if self.whole { self.last } else { self.last / n as f64 };
        self.fixed + outputs + seen
    }
}

/// The axis that a node's results are of.
fn axis(graph: &Graph, node: NodeId) -> Option<usize> {
    let ty: &Type = graph.types(node).first()?;
    ty.dims.iter().find_map(|d| match d {
        Dim::Axis(a) | Dim::Rows(a) | Dim::Visible(a) => Some(a.0),
        Dim::Fixed(_) => None,
    })
}

/// What only outputs need, behind the last layer.
fn tail(graph: &Graph) -> Vec<NodeId> {
    let mut tail = Vec::new();
    let mut order = graph.topological();
    order.reverse();
    for node in order {
        let stays = matches!(graph.op(node).as_core(), Some(Core::Call { .. } | Core::Arg { .. } | Core::Cache { .. }))
            || graph.op(node).as_fused::<Attention>().is_some();
        let users: Vec<NodeId> = (0..graph.types(node).len())
            .flat_map(|port| graph.uses(crate::graph::ValueId { node, port }))
            .map(|(user, _)| user)
            .collect();
        if !stays && users.iter().all(|u| tail.contains(u)) {
            tail.push(node);
        }
    }
    tail
}

impl Sight {
    /// Keys that the last of so many tokens sees.
    pub(super) fn keys(&self, context: u64) -> f64 {
        let n = context.max(1);
        (match self {
            Sight::Before | Sight::All | Sight::Other(_) => n,
            Sight::Window(w) => n.min(*w),
            Sight::Chunk(c) => (n - 1) % c + 1,
            Sight::Around(w) => n.min(*w + 1),
        }) as f64
    }

    /// Keys that so many tokens see on average.
    pub(super) fn mean_keys(&self, tokens: u64) -> f64 {
        let n = tokens.max(1) as f64;
        match self {
            Sight::Before | Sight::Other(_) => (n + 1.0) / 2.0,
            Sight::All => n,
            Sight::Window(w) => {
                let w = (*w as f64).min(n);
                (w * (w + 1.0) / 2.0 + (n - w) * w) / n
            }
            Sight::Chunk(c) => {
                let (whole, rest, c) = ((tokens / c) as f64, (tokens % c) as f64, *c as f64);
                (whole * c * (c + 1.0) / 2.0 + rest * (rest + 1.0) / 2.0) / n
            }
            Sight::Around(w) => n.min(2.0 * *w as f64 + 1.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_counted_as_one_by_one() {
        for n in 1..40u64 {
            for (sight, sees) in [
                (Sight::Before, &(|q, k| k <= q) as &dyn Fn(u64, u64) -> bool),
                (Sight::All, &|_, _| true),
                (Sight::Window(7), &|q, k| k <= q && q - k < 7),
                (Sight::Chunk(6), &|q, k| k <= q && q / 6 == k / 6),
            ] {
                let of = |q: u64| (0..n).filter(|k| sees(q, *k)).count() as f64;
                assert_eq!(sight.keys(n), of(n - 1), "{sight:?} {n}");
                let mean = (0..n).map(of).sum::<f64>() / n as f64;
                assert!((sight.mean_keys(n) - mean).abs() < 1e-9, "{sight:?} {n}");
            }
        }
    }
}
