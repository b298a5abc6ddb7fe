//! Which operations treat every element of a ragged axis by itself.

use crate::graph::{Dim, Graph, NodeId, ValueId};
use crate::ops::fused::{Attention, ExpertLinear, HeadLinear, LayerNorm, Linear, RmsNorm, Rows};
use crate::ops::shape::ContractSpec;
use crate::ops::{Core, Op};

/// The ragged dimension that leads all of a node's results, when element `i` of them depends on element `i` of each operand that
/// has it, and on nothing else of the axis.
pub(in crate::passes) fn leading(graph: &Graph, node: NodeId) -> Option<Dim> {
    let types = graph.types(node);
    let dim = *types.first()?.dims.first()?;
    let only_leading = |dims: &[Dim]| dims.first() == Some(&dim) && dims[1..].iter().all(|d| !d.is_ragged());
    if !matches!(dim, Dim::Axis(_) | Dim::Rows(_)) || !types.iter().all(|t| only_leading(&t.dims)) {
        return None;
    }
    // An operand either leads with the same dimension or has none that is ragged.
    let aligned = |v: &ValueId| {
        let dims = &graph.ty(*v).dims;
        only_leading(dims) || dims.iter().all(|d| !d.is_ragged())
    };
    let operands = graph.operands(node);
    if !operands.iter().all(aligned) {
        return None;
    }
    let rank = types[0].dims.len();
    let by_itself = match graph.op(node) {
        Op::Core(op) => match op {
            Core::Position => true,
            // Aligned at the last dimension: the leading one of an operand must be the leading one of the result.
            Core::Unary(_) | Core::Binary(_) | Core::Select | Core::Cast => operands.iter().all(|v| {
                let dims = &graph.ty(*v).dims;
                dims.len() == rank || dims.iter().all(|d| !d.is_ragged())
            }),
            Core::Reshape => true,
            Core::Transpose { perm } => perm.first() == Some(&0),
            Core::Slice { dim, .. } | Core::Concat { dim } | Core::Repeat { dim, .. } | Core::Windows { dim, .. } => {
                *dim > 0
            }
            // As elementwise operations: what is ragged leads, and stays where it is.
            Core::Broadcast => operands.iter().all(|v| {
                let dims = &graph.ty(*v).dims;
                dims.len() == rank || dims.iter().all(|d| !d.is_ragged())
            }),
            // The table must not be ragged: a row of it is another element's.
            Core::Gather => operands.first().is_some_and(|t| graph.ty(*t).dims.iter().all(|d| !d.is_ragged())),
            Core::Take | Core::Reduce(_) | Core::TopK { .. } | Core::Softmax => rank > 1,
            // What leads the result leads each operand that has it: nothing is summed over tokens.
            Core::Contract { spec } => ContractSpec::parse(spec).is_ok_and(|spec| {
                let labels = [&spec.a, &spec.b];
                rank > 1
                    && labels.into_iter().zip(&operands).all(|(labels, v)| {
                        let leads = labels.first() == spec.out.first();
                        leads == graph.ty(*v).dims.iter().any(|d| d.is_ragged())
                    })
            }),
            Core::Arg { .. }
            | Core::Weight { .. }
            | Core::Const { .. }
            | Core::Index
            | Core::Cache { .. }
            | Core::SelectRows
            | Core::Regroup
            | Core::First
            | Core::Last
            | Core::Scan { .. }
            | Core::Call { .. } => false,
        },
        op if op.as_fused::<RmsNorm>().is_some() || op.as_fused::<LayerNorm>().is_some() => rank > 1,
        op if op.as_fused::<Linear>().is_some() || op.as_fused::<ExpertLinear>().is_some() => rank > 1,
        op if op.as_fused::<HeadLinear>().is_some() => rank > 2,
        op if op.as_fused::<Rows>().is_some() => true,
        op if op.as_fused::<Attention>().is_some() => false,
        Op::Fused(_) => false,
    };
    by_itself.then_some(dim)
}
