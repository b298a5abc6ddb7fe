//! Where values lie while the program is walked: given before any buffer is placed, and what launches refer to.

use std::rc::Rc;

use super::weights::WeightExpr;

/// Where a value lies while the walk goes on.
#[derive(Clone, Debug)]
pub(super) enum Place {
    /// Columns of an intermediate value.
    Buffer { id: usize, column_bytes: u64, row_stride: u64 },
    /// The selected rows of a place over all of the axis.
    Selected(Box<Place>),
    /// The first row of each sequence, of a place over all of the axis.
    First { of: Box<Place>, axis: usize },
    /// A constant expression over weights.
    Weight(WeightExpr),
    /// A cache, by absolute path.
    Cache(String),
    /// A constant: row-major values and their dimensions.
    Constant { values: Rc<[f64]>, dims: Vec<u64> },
    /// Nothing: a value that only a cache takes.
    Nowhere,
}

impl Place {
    /// The place that rows are chosen of; itself otherwise.
    pub(super) fn source(&self) -> &Place {
        match self {
            Place::Selected(of) | Place::First { of, .. } => of,
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
