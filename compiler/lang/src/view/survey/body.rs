//! What the analysis of a model asks of a graph again and again: what a value is made of, and the little that hides it.

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};
use std::rc::Rc;

use crate::graph::{Graph, NodeId, Type, ValueId};
use crate::ops::fused::{LayerNorm, RmsNorm};
use crate::ops::{BinaryOp, Core};
use crate::passes::is_constant;

/// A graph with what is known of it.
pub(super) struct Body<'g> {
    pub(super) graph: &'g Graph,
    constant: BTreeSet<NodeId>,
    above: RefCell<HashMap<NodeId, Rc<BTreeSet<NodeId>>>>,
}

/// A normalisation.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Norm {
    /// `RMSNorm` or `LayerNorm`.
    pub(super) kind: &'static str,
    /// Whether elements have weights.
    pub(super) gain: bool,
    /// Whether elements have biases.
    pub(super) bias: bool,
    /// Whether 1 is added to the weights.
    pub(super) one_more: bool,
    /// What is normalised: the number of elements.
    pub(super) width: u64,
}

impl Norm {
    /// `RMSNorm (1 + w)`.
    pub(super) fn text(&self) -> String {
        match (self.gain, self.one_more, self.bias) {
            (true, true, _) => format!("{} (1 + w)", self.kind),
            (true, false, false) if self.kind == "LayerNorm" => "LayerNorm without bias".to_owned(),
            (false, ..) => format!("{} without weights", self.kind),
            _ => self.kind.to_owned(),
        }
    }
}

impl<'g> Body<'g> {
    pub(super) fn new(graph: &'g Graph) -> Self {
        let constant = graph.nodes().filter(|n| is_constant(graph, *n)).collect();
        Body { graph, constant, above: RefCell::default() }
    }

    /// Whether nothing a value is made of is known only at run time.
    pub(super) fn is_constant(&self, value: ValueId) -> bool {
        self.constant.contains(&value.node)
    }

    pub(super) fn core(&self, value: ValueId) -> Option<&'g Core> {
        self.graph.op(value.node).as_core()
    }

    /// Everything that a node depends on, itself too.
    pub(super) fn above(&self, node: NodeId) -> Rc<BTreeSet<NodeId>> {
        if let Some(known) = self.above.borrow().get(&node) {
            return Rc::clone(known);
        }
        let (mut seen, mut stack) = (BTreeSet::new(), vec![node]);
        while let Some(at) = stack.pop() {
            if seen.insert(at) {
                stack.extend(self.graph.operands(at).iter().map(|v| v.node));
            }
        }
        let seen = Rc::new(seen);
        self.above.borrow_mut().insert(node, Rc::clone(&seen));
        seen
    }

    /// What a value is made of, constants left out, as far as nodes at which `ends`; these are among them.
    pub(super) fn cone(&self, of: ValueId, ends: impl Fn(NodeId) -> bool) -> Vec<NodeId> {
        let (mut seen, mut stack) = (BTreeSet::new(), vec![of.node]);
        while let Some(at) = stack.pop() {
            if self.constant.contains(&at) || !seen.insert(at) || ends(at) {
                continue;
            }
            stack.extend(self.graph.operands(at).iter().map(|v| v.node));
        }
        seen.into_iter().collect()
    }

    /// The norm that a value is, with what elements are multiplied by and what is added to them, and what it normalises.
    pub(super) fn norm(&self, value: ValueId) -> Option<(Norm, ValueId)> {
        // Where two norms share what they normalise, their weights stand behind it.
        let (without, shift) = self.without_bias(value);
        let weighted = self.binary(without, BinaryOp::Mul).and_then(|parts| {
            let weights = parts.into_iter().find(|v| self.is_constant(*v) && self.uniform(*v).is_none())?;
            Some((parts.into_iter().find(|v| *v != weights)?, weights))
        });
        let (inner, weights) = weighted.map_or((without, None), |(inner, weights)| (inner, Some(weights)));
        let op = self.graph.op(inner.node);
        let operands = self.graph.operands(inner.node);
        let width = width(self.graph.ty(value));
        let one_more = weights.or(operands.get(1).copied()).is_some_and(|w| {
            let parts = self.graph.operands(w.node);
            let one =
                |v: &ValueId| matches!(self.core(*v), Some(Core::Const { values }) if values.iter().all(|v| *v == 1.0));
            matches!(self.core(w), Some(Core::Binary(BinaryOp::Add))) && parts.iter().any(one)
        });
        let (gain, shift) = (weights.is_some(), shift && without != value);
        let norm = if let Some(norm) = op.as_fused::<RmsNorm>() {
            Norm { kind: "RMSNorm", gain: norm.gain || gain, bias: shift, one_more, width }
        } else if let Some(norm) = op.as_fused::<LayerNorm>() {
            Norm { kind: "LayerNorm", gain: norm.gain || gain, bias: norm.bias || shift, one_more, width }
        } else {
            return None;
        };
        Some((norm, *operands.first()?))
    }

    /// The operands of a value that is `f` of two.
    pub(super) fn binary(&self, value: ValueId, f: BinaryOp) -> Option<[ValueId; 2]> {
        match self.core(value)? {
            Core::Binary(g) if *g == f => self.graph.operands(value.node).try_into().ok(),
            _ => None,
        }
    }

    /// The number that every element of a constant is.
    pub(super) fn uniform(&self, value: ValueId) -> Option<f64> {
        self.is_constant(value).then(|| super::scalar::value(self.graph, value, &[])).flatten()
    }

    /// A value behind casts, views and factors that are the same for all elements, and the product of these factors.
    pub(super) fn behind(&self, mut value: ValueId) -> (ValueId, f64) {
        let mut factor = 1.0;
        loop {
            let operands = self.graph.operands(value.node);
            value = match (self.core(value), &operands[..]) {
                (Some(Core::Cast | Core::Reshape | Core::SelectRows), [x]) => *x,
                (Some(Core::Binary(f @ (BinaryOp::Mul | BinaryOp::Div))), [a, b]) => {
                    match (self.uniform(*a), self.uniform(*b)) {
                        (None, Some(n)) => {
                            factor *= if *f == BinaryOp::Mul { n } else { 1.0 / n };
                            *a
                        }
                        (Some(n), None) if *f == BinaryOp::Mul => {
                            factor *= n;
                            *b
                        }
                        _ => return (value, factor),
                    }
                }
                _ => return (value, factor),
            };
        }
    }

    /// A value before something constant was added to it, and whether that was so.
    pub(super) fn without_bias(&self, value: ValueId) -> (ValueId, bool) {
        match self.binary(value, BinaryOp::Add) {
            Some([a, b]) if self.is_constant(b) && self.uniform(b).is_none() => (a, true),
            Some([a, b]) if self.is_constant(a) && self.uniform(a).is_none() => (b, true),
            _ => (value, false),
        }
    }

    /// A value before it was multiplied by a learned number for each element, and what it was multiplied by besides.
    pub(super) fn without_gain(&self, value: ValueId) -> Option<(ValueId, f64)> {
        let parts = self.binary(value, BinaryOp::Mul)?;
        let is_gain =
            |v: &ValueId| self.is_constant(*v) && self.uniform(*v).is_none() && self.graph.ty(*v).dims.len() == 1;
        let gain = parts.into_iter().find(is_gain)?;
        let other = parts.into_iter().find(|v| *v != gain)?;
        Some(self.behind(other))
    }

    /// The operands of a product with weights: what is multiplied, and the weights. Weights may be rows of a stack, chosen at run time.
    pub(super) fn product(&self, node: NodeId) -> Option<(ValueId, ValueId)> {
        let Some(Core::Contract { .. }) = self.graph.op(node).as_core() else { return None };
        let [a, b] = self.graph.operands(node).try_into().ok()?;
        let is_weights = |v: ValueId| self.is_constant(v) || self.stack(v).is_some();
        match (is_weights(a), is_weights(b)) {
            (false, true) => Some((a, b)),
            (true, false) => Some((b, a)),
            _ => None,
        }
    }

    /// The type of a stack of weights and the indices into it, for a value that is elements of one, chosen at run time.
    pub(super) fn stack(&self, value: ValueId) -> Option<(&'g Type, ValueId)> {
        let (value, _) = self.behind(value);
        let operands = self.graph.operands(value.node);
        match (self.core(value), &operands[..]) {
            (Some(Core::Gather), [table, index]) if self.is_constant(*table) && !self.is_constant(*index) => {
                let ty = self.graph.ty(*table);
                (ty.dims.len() >= 2).then_some((ty, *index))
            }
            _ => None,
        }
    }
}

/// The last dimension of a type where it is known, else 0.
pub(super) fn width(ty: &Type) -> u64 {
    ty.dims.last().and_then(|d| d.fixed()).unwrap_or(0)
}

/// A dimension of a type where it is known, else 0.
pub(super) fn size(ty: &Type, dim: usize) -> u64 {
    ty.dims.get(dim).and_then(|d| d.fixed()).unwrap_or(0)
}
