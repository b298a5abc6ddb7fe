//! A value of the current row in memory: a base address and a stride for each dimension.

use crate::mlir::writer::{Cmp, Elem, Ty, Val, Writer};

/// Elements at `base + sum(index[d] * strides[d])`.
#[derive(Clone, Debug)]
pub(super) struct View {
    /// Address of element 0.
    pub base: Val,
    /// Element type.
    pub elem: Elem,
    /// Sizes.
    pub dims: Vec<u64>,
    /// Elements from one index to the next.
    pub strides: Vec<u64>,
}

impl View {
    /// Row-major strides.
    pub(super) fn row_major(dims: &[u64]) -> Vec<u64> {
        let mut strides = vec![1; dims.len()];
        for d in (1..dims.len()).rev() {
            strides[d - 1] = strides[d] * dims[d];
        }
        strides
    }

    /// Elements without gaps.
    pub(super) fn contiguous(base: Val, elem: Elem, dims: &[u64]) -> View {
        View { base, elem, dims: dims.to_vec(), strides: View::row_major(dims) }
    }

    /// Whether neighbours along the last dimension are neighbours in memory.
    pub(super) fn unit_last(&self) -> bool {
        self.strides.last().is_none_or(|s| *s == 1)
    }

    /// Other dimensions of the same elements, when they are still a view.
    pub(super) fn reshape(&self, dims: &[u64]) -> Option<View> {
        let old: Vec<(u64, u64)> =
            self.dims.iter().copied().zip(self.strides.iter().copied()).filter(|(d, _)| *d != 1).collect();
        let mut strides = vec![1; dims.len()];
        let (mut o, mut n) = (old.len(), dims.len());
        // Match groups of dimensions with equal products, from the last.
        while n > 0 {
            if dims[n - 1] == 1 {
                n -= 1;
                continue;
            }
            let (mut old_size, mut new_size) = (1, 1);
            let (old_end, new_end) = (o, n);
            loop {
                if old_size == new_size && old_size > 1 {
                    break;
                }
                if old_size <= new_size {
                    o = o.checked_sub(1)?;
                    old_size *= old[o].0;
                } else {
                    n = n.checked_sub(1)?;
                    new_size *= dims[n];
                }
            }
            for pair in old[o..old_end].windows(2) {
                if pair[0].1 != pair[1].0 * pair[1].1 {
                    return None;
                }
            }
            let mut stride = old[old_end - 1].1;
            for d in (n..new_end).rev() {
                strides[d] = stride;
                stride *= dims[d];
            }
        }
        (o == 0).then(|| View { dims: dims.to_vec(), strides, ..self.clone() })
    }

    /// Elements `start .. start + len` of `dim`.
    pub(super) fn slice(&self, w: &mut Writer, dim: usize, start: u64, len: u64) -> View {
        let base = w.offset_const(self.base, start * self.strides[dim] * self.elem.bytes());
        let mut view = View { base, ..self.clone() };
        view.dims[dim] = len;
        view
    }

    /// Element `index` of the first dimension, which disappears.
    pub(super) fn index(&self, w: &mut Writer, index: Val) -> View {
        let base = w.element(self.base, index, self.strides[0] * self.elem.bytes());
        View { base, elem: self.elem, dims: self.dims[1..].to_vec(), strides: self.strides[1..].to_vec() }
    }

    /// Without the first dimension, at its element 0.
    pub(super) fn drop_first(&self) -> View {
        View { base: self.base, elem: self.elem, dims: self.dims[1..].to_vec(), strides: self.strides[1..].to_vec() }
    }

    /// Dimension `d` of the result is dimension `perm[d]`.
    pub(super) fn transpose(&self, perm: &[usize]) -> View {
        View {
            dims: perm.iter().map(|p| self.dims[*p]).collect(),
            strides: perm.iter().map(|p| self.strides[*p]).collect(),
            ..self.clone()
        }
    }

    /// A new dimension of `size` 1 before dimension `at`.
    pub(super) fn insert(&self, at: usize, size: u64) -> View {
        let mut view = self.clone();
        view.dims.insert(at, size);
        view.strides.insert(at, 0);
        view
    }

    /// Windows of `size` elements along `dim`, each `stride` after the one before, the elements of a window behind it.
    pub(super) fn windows(&self, dim: usize, size: u64, stride: u64) -> View {
        let mut view = self.clone();
        view.dims[dim] = (self.dims[dim] - size) / stride + 1;
        view.strides[dim] *= stride;
        view.dims.insert(dim + 1, size);
        view.strides.insert(dim + 1, self.strides[dim]);
        view
    }

    /// Repeated to `dims`, aligned at the last.
    pub(super) fn broadcast(&self, dims: &[u64]) -> View {
        let missing = dims.len() - self.dims.len();
        let own = |d: usize| d.checked_sub(missing).filter(|d| self.dims[*d] == dims[d + missing]);
        let strides = (0..dims.len()).map(|d| own(d).map_or(0, |d| self.strides[d])).collect();
        View { dims: dims.to_vec(), strides, ..self.clone() }
    }

    /// Dimension `dim` as two, the inner of size `inner`.
    pub(super) fn split(&self, dim: usize, inner: u64) -> View {
        let mut view = self.clone();
        view.dims[dim] /= inner;
        view.dims.insert(dim + 1, inner);
        view.strides.insert(dim, self.strides[dim] * inner);
        view
    }

    fn address(&self, w: &mut Writer, at: &[Val]) -> Val {
        let mut address = self.base;
        // Both are aligned at the last dimension.
        let skipped = at.len().saturating_sub(self.dims.len());
        let missing = self.dims.len().saturating_sub(at.len());
        for (d, i) in at[skipped..].iter().enumerate().map(|(d, i)| (d + missing, i)) {
            if self.dims[d] == 1 || self.strides[d] == 0 {
                continue;
            }
            address = w.element(address, *i, self.strides[d] * self.elem.bytes());
        }
        address
    }

    /// The element at `at`, or `lanes` of them along the last dimension; a dimension of size 1 repeats.
    pub(super) fn load(&self, w: &mut Writer, at: &[Val], lanes: u32, mask: Option<Val>) -> Val {
        let address = self.address(w, at);
        let repeats = self.dims.last().is_none_or(|d| *d == 1);
        let (lanes, mask) = if repeats { (0, None) } else { (lanes, mask) };
        // A boolean is a byte in memory, and a bit only in registers.
        let ty = Ty::of(if self.elem == Elem::I1 { Elem::I8 } else { self.elem }, lanes);
        let value = match mask {
            None => w.load(ty, address),
            Some(mask) => w.load_masked(ty, address, mask),
        };
        if self.elem != Elem::I1 {
            return value;
        }
        let zero = w.int(0, ty);
        w.cmp(Cmp::Ne, value, zero)
    }

    /// Stores what [`load`](Self::load) would give back.
    pub(super) fn store(&self, w: &mut Writer, value: Val, at: &[Val], mask: Option<Val>) {
        let address = self.address(w, at);
        let value = if self.elem == Elem::I1 { w.resize(value, Elem::I8) } else { value };
        match mask {
            None => w.store(value, address),
            Some(mask) => w.store_masked(value, address, mask),
        }
    }
}
