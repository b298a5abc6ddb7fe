//! Arithmetic of a token: with how much before it, when it is one of a prompt and when it is one after another.
//!
//! Counted on the graph that is compiled: products with kept values are moved into the queries and the results where that keeps less, and a prompt
//! makes keys and values of its own where that multiplies less. What is made of kept values otherwise counts once a token; attention counts the
//! keys that its mask shows.

use std::collections::BTreeSet;

use super::scalar::{Sight, sight};
use crate::graph::path::instances;
use crate::graph::{Dim, Graph, NodeId, Program, Type};
use crate::ops::Core;
use crate::ops::fused::Attention;
use crate::passes;
use crate::view::{cost, describe};

/// The arithmetic of a model.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Work {
    /// Of a token after others.
    step: Arithmetic,
    /// Of a token of a prompt that begins a sequence.
    prompt: Arithmetic,
    /// The whole sequence comes at once.
    pub(super) whole: bool,
    /// Elements of the axis that everything is counted for, where they are known.
    pub(super) extent: Option<u64>,
}

/// The arithmetic of a token in steps of one kind.
#[derive(Clone, Debug, Default, PartialEq)]
struct Arithmetic {
    /// Operations of an element of each axis, whatever the context.
    fixed: f64,
    /// Operations that are made for the last token of a prompt alone: the head.
    last: f64,
    /// Attentions: operations for each key that is seen, and which are.
    seen: Vec<(f64, Sight)>,
}

/// What a step is given of a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Step,
    Prompt,
}

impl Work {
    /// Counts a recognised program: the axis of its first output, and every axis that is given with it.
    pub(super) fn of(program: &Program) -> Self {
        let mut program = program.clone();
        for pass in passes::pipeline().into_iter().filter(|p| p.name() == "absorb") {
            pass.run(&mut program);
        }
        let generates = program.axes.iter().position(|a| a == "tokens").unwrap_or(0);
        let ahead = |g: &Graph| g.nodes().any(|n| g.op(n).as_fused::<Attention>().is_some_and(|a| a.reach.future));
        Work {
            step: Arithmetic::of(&program, generates, Phase::Step),
            prompt: Arithmetic::of(&program, generates, Phase::Prompt),
            whole: program.axes.len() == 1 && program.graphs.iter().any(ahead),
            extent: program.extent(crate::graph::AxisId(generates)),
        }
    }

    /// Operations for the token that has `context` tokens with it.
    pub(super) fn decode(&self, context: u64) -> f64 {
        let seen: f64 = self.step.seen.iter().map(|(flops, sight)| flops * sight.keys(context)).sum();
        self.step.fixed + self.step.last + seen
    }

    /// Operations of a token of a prompt of so many, on average; outputs are of the last alone.
    pub(super) fn prefill(&self, tokens: u64) -> f64 {
        let n = tokens.max(1);
        let seen: f64 = self.prompt.seen.iter().map(|(flops, sight)| flops * sight.mean_keys(n)).sum();
        let outputs = if self.whole { self.prompt.last } else { self.prompt.last / n as f64 };
        self.prompt.fixed + outputs + seen
    }
}

impl Arithmetic {
    fn of(program: &Program, generates: usize, phase: Phase) -> Self {
        let mut all = Arithmetic::default();
        let several = program.axes.len() > 1;
        let done: Vec<BTreeSet<NodeId>> = program.graphs.iter().map(|g| done(g, phase)).collect();
        for instance in instances(program).unwrap_or_default() {
            let Some(graph) = program.graphs.get(instance.graph) else { continue };
            let tail = if instance.graph == 0 { tail(graph) } else { Vec::new() };
            for node in graph.nodes().filter(|n| done[instance.graph].contains(n)) {
                // What is made of a source is made once, not for each token after it.
                if several && axis(graph, node).is_some_and(|a| a != generates) {
                    continue;
                }
                let cost = cost::of(graph, node);
                if let Some(attention) = graph.op(node).as_fused::<Attention>() {
                    let sight = sight(&attention.mask, describe::mask(graph, node));
                    match all.seen.iter_mut().find(|(_, s)| *s == sight) {
                        Some((flops, _)) => *flops += cost.flops_per_key,
                        None => all.seen.push((cost.flops_per_key, sight)),
                    }
                } else {
                    let flops = cost.flops + cost.flops_per_key;
                    *(if tail.contains(&node) { &mut all.last } else { &mut all.fixed }) += flops;
                }
            }
        }
        all
    }
}

/// The nodes that a step of this kind computes: of an attention for sequences that begin and its other form, the one alone.
fn done(graph: &Graph, phase: Phase) -> BTreeSet<NodeId> {
    let is_kept = |n: &NodeId| matches!(graph.op(*n).as_core(), Some(Core::Cache { .. }));
    let mut open: Vec<NodeId> = graph.outputs().iter().map(|o| o.value.node).collect();
    open.extend(graph.nodes().filter(is_kept));
    let mut done = BTreeSet::new();
    while let Some(node) = open.pop() {
        let mut operands = graph.operands(node);
        if graph.op(node).as_fused::<Attention>().is_some_and(|a| a.from_start) {
            let otherwise = operands.pop();
            if phase == Phase::Step {
                open.extend(otherwise.map(|v| v.node));
                continue;
            }
        }
        if done.insert(node) {
            open.extend(operands.into_iter().map(|v| v.node));
        }
    }
    done
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
