//! Loop nests over the elements of a row's value, the last dimension in vectors with a masked tail.

use xfc_lang::graph::ValueId;

use super::view::View;
use super::{Body, Coordinates};
use crate::error::CodegenError;
use crate::mlir::writer::{Elem, Val, Writer};

/// Given coordinates, lanes and a mask: one element, or one vector of them.
pub(super) type ElementFn<'f> = dyn FnMut(&mut Writer, &Coordinates, u32, Option<Val>) -> Result<(), CodegenError> + 'f;

/// Given all coordinates but the last.
pub(super) type OuterFn<'f> = dyn FnMut(&mut Writer, Vec<Val>) -> Result<(), CodegenError> + 'f;

/// Given the last coordinate, lanes, a mask and what is carried: what is carried on.
pub(super) type StepFn<'f> =
    dyn FnMut(&mut Writer, Val, u32, Option<Val>, &[Val]) -> Result<Vec<Val>, CodegenError> + 'f;

impl Body<'_> {
    pub(super) fn copy(&self, w: &mut Writer, from: &View, to: &View) -> Result<(), CodegenError> {
        let vectors = from.unit_last() && to.unit_last();
        self.nest(w, &to.dims, vectors, &mut |w, at, lanes, mask| {
            let x = from.load(w, at, lanes, mask);
            to.store(w, x, at, mask);
            Ok(())
        })
    }

    /// Computes all elements of a value into `target`.
    pub(super) fn fill(&self, w: &mut Writer, value: ValueId, target: &View) -> Result<(), CodegenError> {
        let vectors = target.unit_last() && self.vectors(value);
        self.nest(w, &target.dims, vectors, &mut |w, at, lanes, mask| {
            let x = self.compute(w, value, at, lanes, mask)?;
            let x = w.splat(x, lanes);
            target.store(w, x, at, mask);
            Ok(())
        })
    }

    /// A loop nest over `dims`, the last in vectors where possible, with a masked tail. What it stores, all lanes see behind it.
    pub(super) fn nest(
        &self,
        w: &mut Writer,
        dims: &[u64],
        vectors: bool,
        element: &mut ElementFn<'_>,
    ) -> Result<(), CodegenError> {
        self.outer(w, dims, dims.len().saturating_sub(1), Vec::new(), &mut |w, outer| {
            let Some(n) = dims.last() else { return element(w, &outer, 0, None) };
            let mut at = outer;
            at.push(w.i64(0));
            let last = at.len() - 1;
            self.last_dim(w, *n, vectors, &[], &mut |w, i, lanes, mask, _| {
                at[last] = i;
                element(w, &at, lanes, mask)?;
                Ok(vec![])
            })?;
            Ok(())
        })?;
        w.sync();
        Ok(())
    }

    pub(super) fn outer(
        &self,
        w: &mut Writer,
        dims: &[u64],
        n_outer: usize,
        at: Vec<Val>,
        inner: &mut OuterFn<'_>,
    ) -> Result<(), CodegenError> {
        if at.len() == n_outer {
            return inner(w, at);
        }
        let n = dims[at.len()];
        let zero = w.i64(0);
        if n == 1 {
            let mut next = at;
            next.push(zero);
            return self.outer(w, dims, n_outer, next, inner);
        }
        let end = w.i64(n as i64);
        w.for_loop(zero, end, 1, &[], |w, i, _| {
            let mut next = at;
            next.push(i);
            self.outer(w, dims, n_outer, next, inner)?;
            Ok(vec![])
        })?;
        Ok(())
    }

    /// A loop over `0..n` in vectors and a masked rest (or one by one), carrying values.
    pub(super) fn last_dim(
        &self,
        w: &mut Writer,
        n: u64,
        vectors: bool,
        carried: &[Val],
        body: &mut StepFn<'_>,
    ) -> Result<Vec<Val>, CodegenError> {
        let zero = w.i64(0);
        if n == 1 || !vectors {
            let end = w.i64(n as i64);
            if n == 1 {
                return body(w, zero, 0, None, carried);
            }
            return w.for_loop(zero, end, 1, carried, |w, i, c| body(w, i, 0, None, c));
        }
        let lanes = u64::from(self.lanes);
        let whole = n / lanes * lanes;
        let mut carried = carried.to_vec();
        if whole > 0 {
            let end = w.i64(whole as i64);
            carried = w.for_loop(zero, end, lanes as i64, &carried, |w, i, c| body(w, i, self.lanes, None, c))?;
        }
        if whole < n {
            let inside: Vec<i64> = (0..lanes).map(|l| i64::from(whole + l < n)).collect();
            let mask = w.lanes(&inside, Elem::I1);
            let at = w.i64(whole as i64);
            carried = body(w, at, self.lanes, Some(mask), &carried)?;
        }
        Ok(carried)
    }
}
