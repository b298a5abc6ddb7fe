//! What the passes behind a product ask of it, whether every row has the same matrices or those of its experts.

use super::matching::is_weight_expression;
use crate::graph::build::Builder;
use crate::graph::{Graph, NodeId, ValueId};
use crate::ops::fused::{ExpertLinear, HeadLinear, Linear};
use crate::ops::shape::ShapeError;
use crate::ops::{Core, Op};

/// A `linear` or an `expert_linear`, its operands aside.
#[derive(Clone, Debug)]
pub(super) struct Product {
    pub(super) parts: usize,
    pub(super) epilogue: Graph,
    /// Which extras are stacks; `None` of a `linear`.
    stacked: Option<Vec<usize>>,
}

impl Product {
    pub(super) fn of(graph: &Graph, node: NodeId) -> Option<Self> {
        let op = graph.op(node);
        let plain = |l: &Linear| Product { parts: l.parts, epilogue: l.epilogue.clone(), stacked: None };
        let chosen = |e: &ExpertLinear| Product {
            parts: e.parts,
            epilogue: e.epilogue.clone(),
            stacked: Some(e.stacked.clone()),
        };
        op.as_fused::<Linear>().map(plain).or_else(|| op.as_fused::<ExpertLinear>().map(chosen))
    }

    /// A product like this one with `parts` matrices, without an epilogue or extras.
    pub(super) fn like(&self, parts: usize, epilogue: Graph) -> Self {
        Product { parts, epilogue, stacked: self.stacked.as_ref().map(|_| Vec::new()) }
    }

    /// Whether the result is the accumulator of one matrix.
    pub(super) fn is_identity(&self) -> bool {
        let (outputs, params) = (self.epilogue.outputs(), self.epilogue.params());
        self.parts == 1 && outputs.first().map(|o| o.value) == params.first().map(|p| p.value)
    }

    /// How many operands stand before the extras: `x`, the matrices, the index of the experts.
    pub(super) fn n_fixed(&self) -> usize {
        1 + self.parts + usize::from(self.stacked.is_some())
    }

    /// The number among the extras of one that the region reads as `value`, which is added to `operands` if it is not there: what is read
    /// of a stack at the experts is the stack.
    pub(super) fn extra(&mut self, graph: &Graph, operands: &mut Vec<ValueId>, value: ValueId) -> usize {
        let n_fixed = self.n_fixed();
        let stack = self.stacked.as_ref().and_then(|_| {
            let [table, index] = graph.operands(value.node)[..] else { return None };
            let is_row = graph.op(value.node).as_core() == Some(&Core::Gather)
                && operands.get(n_fixed - 1) == Some(&index)
                && graph.ty(table).dims.len() == 2
                && is_weight_expression(graph, table);
            is_row.then_some(table)
        });
        let operand = stack.unwrap_or(value);
        let is_stack = |i: usize| self.stacked.as_ref().is_some_and(|s| s.contains(&i));
        let known = |(i, v): (usize, &ValueId)| *v == operand && is_stack(i) == stack.is_some();
        if let Some(i) = operands[n_fixed..].iter().enumerate().position(known) {
            return i;
        }
        operands.push(operand);
        let number = operands.len() - 1 - n_fixed;
        if let (Some(stacked), Some(_)) = (&mut self.stacked, stack) {
            stacked.push(number);
        }
        number
    }

    /// Adds the node.
    pub(super) fn add(self, b: &mut Builder<'_>, operands: &[ValueId]) -> Result<ValueId, ShapeError> {
        let Product { parts, epilogue, stacked } = self;
        match stacked {
            None => b.fused1(Linear { parts, epilogue }, operands),
            Some(stacked) => b.fused1(ExpertLinear { parts, stacked, epilogue }, operands),
        }
    }
}

/// Whether an operation is a product with weights, which is a kernel of its own.
pub(super) fn is_product(op: &Op) -> bool {
    op.as_fused::<Linear>().is_some()
        || op.as_fused::<HeadLinear>().is_some()
        || op.as_fused::<ExpertLinear>().is_some()
}
