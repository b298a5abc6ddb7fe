//! Which stored element each element of a parameter is, after transposing, slicing, indexing and reshaping.
//!
//! Nothing is moved: steps become a strided view, or several where a reshape crosses the strides of what was before it.

use crate::artifact::manifest::Step;
use crate::artifact::validate::stepped_shape;

/// Shape with a step in stored (or earlier) elements for each dimension.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Strided {
    shape: Vec<u64>,
    strides: Vec<u64>,
    offset: u64,
}

/// A view of a stored tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Lens {
    /// Innermost (over stored elements) first; an element of stage `s + 1` is a row-major index into stage `s`.
    stages: Vec<Strided>,
    rows: Option<usize>,
}

/// Rows may be cut where groups of every size begin.
const WHOLE: u64 = 128;

/// The dimension, after a step, whose neighbours were those of dimension `rows` of a view of this shape, counted from a multiple of [`WHOLE`].
fn follow(rows: usize, shape: &[u64], step: &Step) -> Option<usize> {
    match step {
        Step::Transpose { perm } => perm.iter().position(|dim| *dim == rows),
        Step::Slice { dim, start, .. } => (*dim != rows || start.is_multiple_of(WHOLE)).then_some(rows),
        Step::Lead { .. } => Some(rows),
        Step::Index { dim, .. } if *dim == rows => None,
        Step::Index { dim, .. } => Some(if *dim < rows { rows - 1 } else { rows }),
        // What is before it and itself stays, or itself and what is behind it.
        Step::Reshape { shape: to } if shape.get(..=rows) == to.get(..=rows) => Some(rows),
        Step::Reshape { shape: to } => {
            to.len().checked_sub(shape.len() - rows).filter(|behind| shape[rows..] == to[*behind..])
        }
    }
}

impl Strided {
    fn contiguous(shape: Vec<u64>) -> Self {
        let mut strides = vec![1; shape.len()];
        for dim in (0..shape.len().saturating_sub(1)).rev() {
            strides[dim] = strides[dim + 1] * shape[dim + 1];
        }
        Self { shape, strides, offset: 0 }
    }

    fn is_contiguous(&self) -> bool {
        let plain = Self::contiguous(self.shape.clone());
        self.shape.iter().zip(self.strides.iter().zip(&plain.strides)).all(|(&dim, (a, b))| dim == 1 || a == b)
    }

    /// How many elements from this row-major index on, so far apart, go along one dimension, and how far apart their positions are.
    fn row(&self, index: u64, apart: u64) -> (u64, u64) {
        // Elements behind each step along the dimension.
        let mut inner = 1u64;
        for (&size, &stride) in self.shape.iter().zip(&self.strides).rev() {
            let behind = inner.saturating_mul(size);
            if apart < behind {
                let steps = apart / inner;
                let left = size - index / inner % size;
                return if apart.is_multiple_of(inner) { (left.div_ceil(steps), steps * stride) } else { (1, 1) };
            }
            inner = behind;
        }
        (1, 1)
    }

    /// Position of the element with this row-major index.
    fn position(&self, mut index: u64) -> u64 {
        let mut position = self.offset;
        for (&dim, &stride) in self.shape.iter().zip(&self.strides).rev() {
            position += index % dim * stride;
            index /= dim;
        }
        position
    }
}

impl Lens {
    /// The view that `steps` make of a tensor stored with `shape`.
    ///
    /// # Errors
    /// A step does not apply.
    pub(super) fn new(shape: &[u64], steps: &[Step]) -> Result<Self, String> {
        let mut current = Strided::contiguous(shape.to_vec());
        let mut stages = Vec::new();
        let mut rows = shape.len().checked_sub(1);
        for step in steps {
            let result = stepped_shape(&current.shape, step)?;
            rows = rows.and_then(|rows| follow(rows, &current.shape, step));
            match step {
                Step::Transpose { perm } => {
                    current.strides = perm.iter().map(|&dim| current.strides[dim]).collect();
                    current.shape = result;
                }
                Step::Slice { dim, start, .. } => {
                    current.offset += start * current.strides[*dim];
                    current.shape = result;
                }
                Step::Lead { .. } => current.shape = result,
                Step::Index { dim, index } => {
                    current.offset += index * current.strides[*dim];
                    current.strides.remove(*dim);
                    current.shape = result;
                }
                Step::Reshape { .. } => {
                    let mut next = Strided::contiguous(result);
                    if current.is_contiguous() {
                        next.offset = current.offset;
                    } else {
                        stages.push(current);
                    }
                    current = next;
                }
            }
        }
        stages.push(current);
        Ok(Self { stages, rows })
    }

    /// The dimension whose neighbours are neighbours in a stored row, from a place on where groups of every size begin.
    pub(super) fn rows(&self) -> Option<usize> {
        self.rows
    }

    fn outer(&self) -> &Strided {
        // There is always one stage: `new` pushes the last.
        &self.stages[self.stages.len() - 1]
    }

    /// Shape of the view.
    pub(super) fn shape(&self) -> &[u64] {
        &self.outer().shape
    }

    /// Where the view's element `index` (row-major) is stored, how many elements from it on lie the same distance apart (at least one), and
    /// that distance in stored elements.
    pub(super) fn run(&self, index: u64) -> (u64, u64, u64) {
        let (mut at, mut n, mut stride) = (index, u64::MAX, 1);
        for stage in self.stages.iter().rev() {
            // As long as they stay in one row of this stage, along whichever of its dimensions they go.
            let (most, step) = stage.row(at, stride);
            n = n.min(most);
            at = stage.position(at);
            stride = if n > 1 { step } else { 1 };
        }
        (at, n, stride)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn positions(lens: &Lens) -> Vec<u64> {
        (0..lens.shape().iter().product()).map(|i| lens.run(i).0).collect()
    }

    /// Positions as runs give them, and how many runs there were.
    fn in_runs(lens: &Lens) -> (Vec<u64>, usize) {
        let (total, mut all, mut runs) = (lens.shape().iter().product::<u64>(), Vec::new(), 0);
        while (all.len() as u64) < total {
            let (at, n, stride) = lens.run(all.len() as u64);
            all.extend((0..n.min(total - all.len() as u64)).map(|k| at + k * stride));
            runs += 1;
        }
        (all, runs)
    }

    #[test]
    fn steps_compose() {
        let transposed = Lens::new(&[2, 3], &[Step::Transpose { perm: vec![1, 0] }]).unwrap();
        assert_eq!(transposed.shape(), [3, 2]);
        assert_eq!(positions(&transposed), [0, 3, 1, 4, 2, 5]);
        assert_eq!(transposed.run(0), (0, 2, 3));
        let slice =
            Lens::new(&[2, 3], &[Step::Slice { dim: 1, start: 1, len: 2 }, Step::Index { dim: 0, index: 1 }]).unwrap();
        assert_eq!(positions(&slice), [4, 5]);
        let crossing = [
            Step::Transpose { perm: vec![1, 0] },
            Step::Reshape { shape: vec![2, 3] },
            Step::Slice { dim: 0, start: 1, len: 1 },
        ];
        let crossing = Lens::new(&[2, 3], &crossing).unwrap();
        assert_eq!(positions(&crossing), [4, 2, 5]);
        assert_eq!(in_runs(&crossing).0, [4, 2, 5]);
        // Of each pair of rows, one in turn: whole rows are runs.
        let pairs = [
            Step::Reshape { shape: vec![2, 3, 2, 5] },
            Step::Transpose { perm: vec![0, 2, 1, 3] },
            Step::Reshape { shape: vec![12, 5] },
        ];
        let pairs = Lens::new(&[12, 5], &pairs).unwrap();
        let rows: Vec<u64> =
            [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11].iter().flat_map(|row| row * 5..row * 5 + 5).collect();
        assert_eq!((positions(&pairs), in_runs(&pairs)), (rows.clone(), (rows, 12)));
        let plain =
            Lens::new(&[2, 3], &[Step::Slice { dim: 0, start: 1, len: 1 }, Step::Reshape { shape: vec![3] }]).unwrap();
        assert_eq!((positions(&plain), plain.run(1)), (vec![3, 4, 5], (4, 2, 1)));
        assert_eq!(positions(&Lens::new(&[], &[]).unwrap()), [0]);
        // Rows of a stack that are stored as columns, every second of them: each is a run.
        let stored_across = [
            Step::Transpose { perm: vec![0, 2, 1] },
            Step::Index { dim: 0, index: 1 },
            Step::Reshape { shape: vec![4, 3, 2] },
            Step::Index { dim: 2, index: 1 },
            Step::Transpose { perm: vec![1, 0] },
        ];
        let across = Lens::new(&[2, 6, 4], &stored_across).unwrap();
        let rows: Vec<u64> = [28, 36, 44].iter().flat_map(|row| *row..row + 4).collect();
        assert_eq!((across.rows(), positions(&across), in_runs(&across)), (Some(1), rows.clone(), (rows, 3)));
        let lead = Lens::new(&[2, 3], &[Step::Lead { dim: 1, len: 2 }, Step::Transpose { perm: vec![1, 0] }]).unwrap();
        assert_eq!(positions(&lead), [0, 3, 1, 4]);
        assert!(Lens::new(&[2], &[Step::Lead { dim: 0, len: 3 }]).is_err());
        let rows = [&transposed, &slice, &crossing, &pairs, &plain].map(Lens::rows);
        assert_eq!(rows, [Some(0), None, None, Some(1), Some(0)]);
        assert!(Lens::new(&[2], &[Step::Index { dim: 1, index: 0 }]).is_err());
    }
}
