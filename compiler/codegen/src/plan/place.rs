//! Where values lie while the program is walked: given before any buffer is placed, and what launches refer to.

use std::rc::Rc;

use xfc_lang::graph::{Dim, Type};

use super::kernel::row_elements;
use super::weights::WeightExpr;
use crate::error::CodegenError;
use crate::mlir::frame::RowSpace;

/// Where a value lies while the walk goes on.
#[derive(Clone, Debug)]
pub(super) enum Place {
    /// Columns of an intermediate value.
    Buffer { id: usize, column_bytes: u64, row_stride: u64 },
    /// The selected rows of a place over all of the axis.
    Selected(Box<Place>),
    /// The first or the last row of each sequence, of a place over all of the axis.
    End { of: Box<Place>, axis: usize, last: bool },
    /// A constant expression over weights.
    Weight(WeightExpr),
    /// A cache, by absolute path.
    Cache(String),
    /// Elements of each head of a cache, from one on.
    CachePart { path: String, first: u64 },
    /// A constant: row-major values and their dimensions.
    Constant { values: Rc<[f64]>, dims: Vec<u64> },
    /// Nothing: a value that only a cache takes.
    Nowhere,
}

impl Place {
    /// The place that rows are chosen of; itself otherwise.
    pub(super) fn source(&self) -> &Place {
        match self {
            Place::Selected(of) | Place::End { of, .. } => of,
            place => place,
        }
    }
}

/// What a launch refers to before buffers are placed.
#[derive(Clone, Debug)]
pub(super) enum Operand {
    Place(Place),
    Weight(usize),
    Cache { group: usize, slot: usize },
}

/// Kernels index within a row in 32 bits.
const MAX_DIM: u64 = i32::MAX as u64;

pub(super) fn fixed_dims(ty: &Type) -> Vec<u64> {
    ty.dims.iter().filter_map(|d| if let Dim::Fixed(n) = d { Some(*n) } else { None }).collect()
}

/// Elements from one row of a type to the next, where rows have these dimensions and lie without gaps; `widened` as for [`row_elements`].
pub(super) fn stride_of_rows(ty: &Type, dims: &[u64], widened: u64) -> u64 {
    match dims.split_last() {
        Some((last, lead)) => lead.iter().product::<u64>() * row_elements(ty.dtype, *last, widened),
        None => 1,
    }
}

/// The rows of a type, and its other dimensions.
pub(super) fn row_type(ty: &Type) -> Result<(RowSpace, Vec<u64>), CodegenError> {
    let space = match ty.dims.first() {
        Some(Dim::Axis(a)) => RowSpace { axis: a.0, selected: false },
        Some(Dim::Rows(a)) => RowSpace { axis: a.0, selected: true },
        _ => return Err(CodegenError::unsupported(format!("a value of type {ty} that is not computed per token"), "")),
    };
    let dims = ty.dims[1..]
        .iter()
        .map(|d| {
            if let Dim::Fixed(n) = d
                && *n <= MAX_DIM
            {
                Ok(*n)
            } else {
                Err(CodegenError::unsupported(format!("a value of type {ty}"), ""))
            }
        })
        .collect::<Result<Vec<_>, _>>()?;
    Ok((space, dims))
}
