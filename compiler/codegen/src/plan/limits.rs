//! Limits of ids and positions, from the tables that they index.

use xfc_lang::graph::{Dim, Graph, ValueId};
use xfc_lang::ops::{BinaryOp, Core};

use super::build::Planner;
use super::place::{Place, row_type};

impl Planner<'_> {
    /// Learns the limits of ids and positions from the tables they index.
    pub(super) fn note_tables(&mut self, body: &Graph, operands: &[Place]) {
        for node in body.nodes() {
            let Some(Core::Gather) = body.op(node).as_core() else { continue };
            let [table, index] = body.operands(node)[..] else { continue };
            let Some(Dim::Fixed(n)) = body.ty(table).dims.first().copied() else { continue };
            let (index, offset) = offset_of(body, index);
            // Where a condition chooses between a position and something else.
            let chosen = match (body.op(index.node).as_core(), &body.operands(index.node)[..]) {
                (Some(Core::Select), [_, a, b]) => [*a, *b]
                    .map(|x| offset_of(body, x))
                    .into_iter()
                    .find(|(x, _)| matches!(body.op(x.node).as_core(), Some(Core::Position))),
                _ => None,
            };
            let (index, offset) = chosen.map_or((index, offset), |(x, more)| (x, offset + more));
            let n = n.saturating_sub(offset);
            match body.op(index.node).as_core() {
                Some(Core::Position) => {
                    let axis = row_type(body.ty(index)).ok().map(|(space, _)| space.axis);
                    if let Some(most) = axis.and_then(|axis| self.max_positions.get_mut(axis)) {
                        *most = Some(most.map_or(n, |m| m.min(n)));
                    }
                }
                Some(Core::Arg { index }) => {
                    if let Some(Place::Buffer { id, .. }) = operands.get(*index).map(Place::source)
                        && let Some(input) = self.input_of.get(id)
                    {
                        let limit = self.limits.entry(*input).or_insert(n);
                        *limit = (*limit).min(n);
                    }
                }
                _ => {}
            }
        }
    }
}

/// `x` and `c` of an index `x + c` with a constant `c`; a value of its own and 0 otherwise.
fn offset_of(body: &Graph, index: ValueId) -> (ValueId, u64) {
    let operands = body.operands(index.node);
    if let (Some(Core::Binary(BinaryOp::Add)), [a, b]) = (body.op(index.node).as_core(), &operands[..]) {
        for (x, c) in [(*a, *b), (*b, *a)] {
            if let Some(Core::Const { values }) = body.op(c.node).as_core()
                && let [c] = values[..]
                && c >= 0.0
            {
                return (x, c as u64);
            }
        }
    }
    (index, 0)
}
