//! What mixes tokens without attention: recurrences, whose state goes on from token to token, and convolutions, which see a few tokens back.

use std::collections::BTreeSet;

use super::body::Body;
use crate::graph::{Graph, NodeId, ValueId};
use crate::ops::Core;

/// A branch that mixes tokens by scans.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Mixer {
    /// Whether a state is computed, rather than a window of the last tokens.
    pub(super) recurrent: bool,
    /// Sizes of the computed states, `24 × 128 × 64`; of a convolution, of the tokens that it holds.
    pub(super) states: Vec<String>,
    /// What is multiplied first is mixed, element by element, with the same of the token before.
    pub(super) shifted: bool,
}

/// What is said of such a mixture.
pub(super) const SHIFT: &str = "mixed with the token before (token shift)";

impl Mixer {
    /// As in tables.
    pub(super) fn kind(&self) -> &'static str {
        if self.recurrent { "recurrence (scan)" } else { "convolution" }
    }

    /// `state 24 × 128 × 64`.
    pub(super) fn states_text(&self) -> String {
        let word = match (self.recurrent, self.states.len()) {
            (true, 1) => "state",
            (true, _) => "states",
            (false, _) => "holds",
        };
        match &self.states[..] {
            [first, rest @ ..] if !rest.is_empty() && rest.iter().all(|s| s == first) => {
                format!("{} {word} of {first}", self.states.len())
            }
            all => format!("{word} {}", all.join(" and ")),
        }
    }
}

/// The recurrence that the nodes `inside` a branch have.
pub(super) fn recurrence(body: &Body<'_>, inside: &[NodeId]) -> Option<Mixer> {
    mixer(body, inside, true)
}

/// The convolution that they have between their products. One before all of them, such as a mixture with the token before, is none.
pub(super) fn convolution(body: &Body<'_>, inside: &[NodeId]) -> Option<Mixer> {
    let behind_product = |n: &NodeId| body.above(*n).iter().any(|a| inside.contains(a) && body.product(*a).is_some());
    let scans: Vec<NodeId> = inside.iter().copied().filter(behind_product).collect();
    mixer(body, &scans, false)
}

fn mixer(body: &Body<'_>, nodes: &[NodeId], recurrent: bool) -> Option<Mixer> {
    let mut states = Vec::new();
    for node in nodes {
        let Some(Core::Scan { states: n, step, .. }) = body.graph.op(*node).as_core() else { continue };
        for (start, output) in body.graph.operands(*node).into_iter().take(*n).zip(step.outputs()) {
            if is_computed(step, output.value) == recurrent {
                let sizes: Vec<String> =
                    body.graph.ty(start).dims.iter().filter_map(|d| d.fixed()).map(|n| n.to_string()).collect();
                states.push(sizes.join(" × "));
            }
        }
    }
    let shifted = recurrent && shifts(body, &nodes.iter().copied().collect());
    (!states.is_empty()).then_some(Mixer { recurrent, states, shifted })
}

/// Whether a branch mixes what it reads with the same of the token before, ahead of its products: it holds one token, and adds.
pub(super) fn shifts(body: &Body<'_>, inside: &BTreeSet<NodeId>) -> bool {
    inside.iter().any(|node| {
        let Some(Core::Scan { states: 1, step, .. }) = body.graph.op(*node).as_core() else { return false };
        let operands = body.graph.operands(*node);
        let [start, x] = operands[..] else { return false };
        let one = |v: ValueId| body.graph.ty(v).dims.iter().filter_map(|d| d.fixed()).product::<u64>();
        let ahead = body.above(*node).iter().all(|n| !inside.contains(n) || body.product(*n).is_none());
        ahead && one(start) == one(x) && step.outputs().first().is_some_and(|o| !is_computed(step, o.value))
    })
}

/// Whether arithmetic makes a value of what the step is given, rather than moves.
fn is_computed(step: &Graph, value: ValueId) -> bool {
    let mut stack = vec![value.node];
    while let Some(node) = stack.pop() {
        match step.op(node).as_core() {
            Some(Core::Cast | Core::Reshape | Core::Slice { .. } | Core::Concat { .. } | Core::Transpose { .. }) => {
                stack.extend(step.operands(node).iter().map(|v| v.node));
            }
            Some(Core::Arg { .. } | Core::Const { .. }) => {}
            _ => return true,
        }
    }
    false
}
