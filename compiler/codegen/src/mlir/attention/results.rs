//! Where results of an attention go: a row for each query row, a part of it for each head.

use xfc_lang::graph::DType;

use super::super::expr::{cast, elem_of};
use super::super::frame::Buffer;
use super::super::writer::{Cmp, Elem, Val, Writer};
use crate::error::CodegenError;

/// The buffer of the results.
#[derive(Clone, Copy, Debug)]
pub(super) struct Results {
    pub(super) out: Buffer,
    /// As stored.
    pub(super) elem: DType,
    /// Elements of a head.
    pub(super) dim: u64,
    pub(super) lanes: u32,
}

impl Results {
    /// Of each vector of a head, the lanes that exist; `None` when all do.
    pub(super) fn masks(&self, w: &mut Writer) -> Vec<Option<Val>> {
        let lanes = u64::from(self.lanes);
        (0..self.dim.div_ceil(lanes))
            .map(|v| {
                let inside: Vec<i64> = (0..lanes).map(|l| i64::from(v * lanes + l < self.dim)).collect();
                inside.contains(&0).then(|| w.lanes(&inside, Elem::I1))
            })
            .collect()
    }

    /// Stores vectors, with the lanes that exist.
    pub(super) fn store_vectors(&self, w: &mut Writer, at: Val, vectors: &[Val]) {
        let masks = self.masks(w);
        for (v, (x, mask)) in vectors.iter().zip(masks).enumerate() {
            let at = w.offset_const(at, v as u64 * u64::from(self.lanes) * x.ty.elem.bytes());
            match mask {
                None => w.store(*x, at),
                Some(mask) => w.store_masked(*x, at, mask),
            }
        }
    }

    /// Stores `out` divided by `sum`, which is 0 where nothing was seen, for a row and a head.
    pub(super) fn store(
        &self,
        w: &mut Writer,
        (row, head): (Val, Val),
        sum: Val,
        out: &[Val],
    ) -> Result<(), CodegenError> {
        let elem = elem_of(self.elem, Elem::I64)?;
        let zero = w.f32(0.0, 0);
        let one = w.f32(1.0, 0);
        // A query that sees nothing gives zeros.
        let nothing = w.cmp(Cmp::Eq, sum, zero);
        let divisor = w.select(nothing, one, sum);
        let factor = w.div(one, divisor);
        let factor = w.splat(factor, self.lanes);
        let at = w.row(self.out, row, elem.bytes());
        let at = w.element(at, head, self.dim * elem.bytes());
        let mut vectors = Vec::new();
        for o in out {
            let y = w.mul(*o, factor);
            vectors.push(cast(w, y, elem)?);
        }
        self.store_vectors(w, at, &vectors);
        Ok(())
    }
}
