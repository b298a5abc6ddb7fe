//! What mixes tokens without attention: recurrences, whose state goes on from token to token, and convolutions, which see a few tokens back.

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
}

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
        format!("{word} {}", self.states.join(" and "))
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
    (!states.is_empty()).then_some(Mixer { recurrent, states })
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
