//! Where a parameter lies in a checkpoint: the stored tensor, and the steps that lead from it to the parameter.

/// Where a parameter lies in a checkpoint.
#[derive(Clone, Debug, PartialEq)]
pub struct Binding {
    /// Names of the stored tensor, tried in order.
    pub names: Vec<String>,
    /// Its shape as stored; where a step is [`Step::Lead`], of what is read of it.
    pub shape: Vec<u64>,
    /// What makes the parameter of it, first to last.
    pub steps: Vec<Step>,
    /// Added to each stored number.
    pub offset: f64,
}

/// A step from a stored tensor to a parameter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Dimension `d` of the result is dimension `perm[d]`.
    Transpose {
        /// A permutation.
        perm: Vec<usize>,
    },
    /// Elements `start .. start + len` of `dim`.
    Slice {
        /// The dimension cut.
        dim: usize,
        /// First element.
        start: u64,
        /// Number of elements.
        len: u64,
    },
    /// The first `len` elements of `dim`, of which the stored tensor may have more than [`Binding::shape`] says. Before all other steps.
    Lead {
        /// The dimension cut.
        dim: usize,
        /// Number of elements.
        len: u64,
    },
    /// Element `index` of `dim`, which is removed.
    Index {
        /// The dimension removed.
        dim: usize,
        /// The element.
        index: u64,
    },
    /// The same elements in row-major order.
    Reshape {
        /// The new shape.
        shape: Vec<u64>,
    },
}

impl Binding {
    /// Whether a stored tensor of this shape is one that the steps lead from.
    pub fn admits(&self, shape: &[u64]) -> bool {
        let leads = |at: usize| self.steps.iter().any(|s| matches!(s, Step::Lead { dim, .. } if *dim == at));
        let fits = |(at, (have, want)): (usize, (&u64, &u64))| have == want || have > want && leads(at);
        shape.len() == self.shape.len() && shape.iter().zip(&self.shape).enumerate().all(fits)
    }
}
