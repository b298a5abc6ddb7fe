//! What becomes of groups that a checkpoint stores, in the expressions that make matrices of parameters: where they lie, and that nothing rounds
//! them on the way.

use crate::graph::blocks::Blocks;
use crate::graph::build::Builder;
use crate::graph::{DType, Graph, Type, ValueId};
use crate::ops::{Core, Op, ShapeError};

/// The dimension of a weight expression whose neighbours are in stored groups, all of them whole but the last; `of_parameter` is that of the
/// parameter at a path.
pub(super) fn along(graph: &Graph, value: ValueId, of_parameter: &dyn Fn(&str) -> Option<usize>) -> Option<usize> {
    let Op::Core(op) = graph.op(value.node) else { return None };
    let operands = graph.operands(value.node);
    let mut dims = operands.iter().map(|operand| along(graph, *operand, of_parameter));
    match op {
        Core::Weight { path } => of_parameter(path),
        Core::Cast => dims.next()?,
        Core::Transpose { perm } => {
            let along = dims.next()??;
            perm.iter().position(|dim| *dim == along)
        }
        Core::Slice { dim, start } => {
            let whole = start.is_multiple_of(u64::from(Blocks::GROUPS[2]));
            dims.next()?.filter(|along| along != dim || whole)
        }
        Core::Concat { dim } => {
            let first = dims.next()??;
            (first != *dim && dims.all(|other| other == Some(first))).then_some(first)
        }
        Core::Reshape => {
            let (from, to) = (&graph.ty(*operands.first()?).dims, &graph.ty(value).dims);
            let along = dims.next()??;
            // What is before it and itself stays, or itself and what is behind it.
            let behind = to.len().checked_sub(from.len() - along);
            let before = from.get(..=along) == to.get(..=along);
            if before { Some(along) } else { behind.filter(|behind| from[along..] == to[*behind..]) }
        }
        _ => None,
    }
}

/// A weight expression in f32, with none of the casts in it. Who else reads its parameters reads what they were narrowed to.
///
/// # Errors
/// What a verified program has not.
pub(super) fn unrounded(graph: &mut Graph, value: ValueId) -> Result<ValueId, ShapeError> {
    let op = graph.op(value.node).clone();
    let operands = graph.operands(value.node);
    let ty = graph.ty(value).clone();
    match (&op, &operands[..]) {
        (Op::Core(Core::Cast), [x]) => return unrounded(graph, *x),
        (Op::Core(Core::Weight { .. }), _) if ty.dtype != DType::F32 => {
            // A parameter has one type wherever it is read.
            graph.set_type(value, Type::new(DType::F32, ty.dims));
            let uses = graph.uses(value);
            let narrow = Builder::like(graph, value.node).cast(value, ty.dtype)?;
            uses.into_iter().for_each(|(user, operand)| graph.set_operand(user, operand, narrow));
            return Ok(value);
        }
        _ => {}
    }
    let whole = operands.iter().map(|operand| unrounded(graph, *operand)).collect::<Result<Vec<_>, _>>()?;
    // What is made of a parameter that is narrow is as narrow, also where its operand is one by now.
    if ty.dtype == DType::F32 && whole == operands {
        return Ok(value);
    }
    let origin = graph.origin(value.node).clone();
    Ok(graph.add(op, &whole, Type::new(DType::F32, ty.dims), origin))
}
