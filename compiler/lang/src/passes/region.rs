//! Elementwise regions behind products: what an epilogue can take in.

use std::collections::{BTreeSet, HashMap};

use super::matching::{is_constant, is_elementwise, is_weight_expression, uniform};
use crate::graph::build::Builder;
use crate::graph::{DType, Dim, Graph, NodeId, Type, ValueId};
use crate::ops::Core;
use crate::ops::shape::broadcasts_to;

/// Elementwise nodes between some accumulators and one result, used nowhere else.
#[derive(Debug)]
pub(super) struct Region {
    /// In topological order; the last one makes the result.
    nodes: Vec<NodeId>,
    /// Values that come from elsewhere.
    pub(super) extras: Vec<ValueId>,
}

/// Which of several regions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Extent {
    /// The one that ends where all accumulators first meet.
    Smallest,
    /// The one that reaches furthest.
    Largest,
}

impl Region {
    /// A region that begins at `accumulators`, which are all of one type.
    ///
    /// Its extras do not depend on the accumulators: all that does lies inside, or behind the result.
    pub(super) fn find(graph: &Graph, accumulators: &[ValueId], extent: Extent) -> Option<Region> {
        let dims = &graph.ty(*accumulators.first()?).dims;
        let order = graph.topological();
        // Nodes that depend on the accumulators through elementwise nodes only; with all nodes that each depends on.
        let mut behind: HashMap<NodeId, BTreeSet<ValueId>> = HashMap::new();
        let mut found = None;
        for node in &order {
            let operands = graph.operands(*node);
            let inside = |v: &ValueId| accumulators.contains(v) || behind.contains_key(&v.node);
            let fits = is_elementwise(graph.op(*node))
                && graph.types(*node)[0].dims == *dims
                && matches!(graph.types(*node)[0].dtype, DType::F32 | DType::BF16 | DType::F16 | DType::Bool)
                && operands.iter().any(inside)
                && operands.iter().all(|v| inside(v) || may_be_extra(graph, *v, dims));
            if !fits {
                continue;
            }
            let mut needs = BTreeSet::new();
            for v in operands.iter().filter(|v| inside(v)) {
                needs.insert(*v);
                needs.extend(behind.get(&v.node).into_iter().flatten());
            }
            let closed = accumulators.iter().all(|a| needs.contains(a)) && is_closed(graph, &needs, *node);
            behind.insert(*node, needs);
            if closed && graph.types(*node)[0].dtype.is_float() {
                found = Some(*node);
                if extent == Extent::Smallest {
                    break;
                }
            }
        }
        let last = found?;
        let members: BTreeSet<NodeId> =
            behind[&last].iter().map(|v| v.node).filter(|n| behind.contains_key(n)).chain([last]).collect();
        let nodes: Vec<NodeId> = order.into_iter().filter(|n| members.contains(n)).collect();
        let mut extras = Vec::new();
        for v in nodes.iter().flat_map(|n| graph.operands(*n)) {
            let outside = !accumulators.contains(&v) && !members.contains(&v.node) && uniform(graph, v).is_none();
            if outside && !extras.contains(&v) {
                extras.push(v);
            }
        }
        Some(Region { nodes, extras })
    }

    /// The value that the region makes.
    pub(super) fn result(&self) -> Option<ValueId> {
        self.nodes.last().map(|node| ValueId { node: *node, port: 0 })
    }

    /// Adds the region to a graph of scalars, where `values` stand for the accumulators and the extras; the scalar of the result.
    pub(super) fn scalars(
        &self,
        graph: &Graph,
        body: &mut Graph,
        mut values: HashMap<ValueId, ValueId>,
    ) -> Option<ValueId> {
        let mut b = Builder::new(body);
        for node in &self.nodes {
            let mut operands = Vec::new();
            for v in graph.operands(*node) {
                let scalar = match (values.get(&v), uniform(graph, v)) {
                    (Some(known), _) => *known,
                    (None, Some(c)) => b.scalar_of(c, graph.ty(v).dtype),
                    (None, None) => return None,
                };
                operands.push(scalar);
            }
            let op = graph.op(*node).as_core()?.clone();
            let scalar = b.core(op, &operands, Type::scalar(graph.types(*node)[0].dtype)).ok()?;
            values.insert(ValueId { node: *node, port: 0 }, scalar);
        }
        values.get(&self.result()?).copied()
    }
}

fn may_be_extra(graph: &Graph, value: ValueId, dims: &[Dim]) -> bool {
    let ty = graph.ty(value);
    let is_known = matches!(graph.op(value.node).as_core(), Some(Core::Const { .. }));
    // Arithmetic on weights is nothing that is packed: a group of rows does it for itself.
    let has_value = is_known || is_weight_expression(graph, value) || !is_constant(graph, value.node);
    // One for all rows, one a row, one a column, or all: a product of heads has no operand for each head alone.
    let lead = |dims: &'_ [Dim]| dims[..dims.len().saturating_sub(1)].to_vec();
    let by_rows = lead(&ty.dims) == lead(dims) || lead(&ty.dims).iter().all(|d| *d == Dim::Fixed(1));
    has_value
        && broadcasts_to(&ty.dims, dims)
        && (uniform(graph, value).is_some() || (ty.dtype == DType::F32 && by_rows))
}

/// Whether all that `node` needs is used by what it needs, or by itself, alone.
fn is_closed(graph: &Graph, needs: &BTreeSet<ValueId>, node: NodeId) -> bool {
    let member = |user: NodeId| user == node || needs.contains(&ValueId { node: user, port: 0 });
    needs.iter().all(|v| !graph.is_output(*v) && graph.uses(*v).iter().all(|(user, _)| member(*user)))
}
