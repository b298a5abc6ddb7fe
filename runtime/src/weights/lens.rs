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
        for step in steps {
            let result = stepped_shape(&current.shape, step)?;
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
        Ok(Self { stages })
    }

    fn outer(&self) -> &Strided {
        // There is always one stage: `new` pushes the last.
        &self.stages[self.stages.len() - 1]
    }

    /// Shape of the view.
    pub(super) fn shape(&self) -> &[u64] {
        &self.outer().shape
    }

    /// Stored element of the view's element `index` (row-major).
    pub(super) fn position(&self, index: u64) -> u64 {
        self.stages.iter().rev().fold(index, |index, stage| stage.position(index))
    }

    /// Distance of neighbours along the last dimension in stored elements, where it is the same everywhere.
    pub(super) fn stride(&self) -> Option<u64> {
        (self.stages.len() == 1).then(|| self.outer().strides.last().copied().unwrap_or(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn positions(lens: &Lens) -> Vec<u64> {
        (0..lens.shape().iter().product()).map(|i| lens.position(i)).collect()
    }

    #[test]
    fn steps_compose() {
        let transposed = Lens::new(&[2, 3], &[Step::Transpose { perm: vec![1, 0] }]).unwrap();
        assert_eq!(transposed.shape(), [3, 2]);
        assert_eq!(positions(&transposed), [0, 3, 1, 4, 2, 5]);
        assert_eq!(transposed.stride(), Some(3));
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
        assert_eq!(crossing.stride(), None);
        let plain =
            Lens::new(&[2, 3], &[Step::Slice { dim: 0, start: 1, len: 1 }, Step::Reshape { shape: vec![3] }]).unwrap();
        assert_eq!((positions(&plain), plain.stride()), (vec![3, 4, 5], Some(1)));
        assert_eq!(positions(&Lens::new(&[], &[]).unwrap()), [0]);
        let lead = Lens::new(&[2, 3], &[Step::Lead { dim: 1, len: 2 }, Step::Transpose { perm: vec![1, 0] }]).unwrap();
        assert_eq!(positions(&lead), [0, 3, 1, 4]);
        assert!(Lens::new(&[2], &[Step::Lead { dim: 0, len: 3 }]).is_err());
        assert!(Lens::new(&[2], &[Step::Index { dim: 1, index: 0 }]).is_err());
    }
}
