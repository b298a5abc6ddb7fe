//! What becomes of sums: the epilogue, with what it reads, and the store.

use super::{Linear, Place};
use crate::error::CodegenError;
use crate::mlir::expr::{cast, elem_of, scalar_graph};
use crate::mlir::frame::Buffer;
use crate::mlir::writer::{Elem, Ty, Val, Writer};
use crate::plan::kernel::Extra;

impl Linear<'_> {
    /// Epilogue and store of one row.
    pub(super) fn finish_row(&self, w: &mut Writer, place: Place, sums: &[Val]) -> Result<(), CodegenError> {
        let vectors = self.schedule.vectors as usize;
        let out = self.out_at(w, place)?;
        let bases = self.extra_bases(w, place)?;
        for v in 0..vectors {
            let mut args: Vec<Val> = (0..self.spec.parts).map(|p| sums[p * vectors + v]).collect();
            args.extend(self.load_extras(w, &bases, v)?);
            self.finish_vector(w, out, &args, v)?;
        }
        Ok(())
    }

    /// Where a row of the current columns is stored.
    pub(super) fn out_at(&self, w: &mut Writer, place: Place) -> Result<Val, CodegenError> {
        let out_bytes = elem_of(self.spec.result, Elem::I64)?.bytes();
        let column = self.column.ok_or_else(|| CodegenError::bug("linear", "columns were not entered"))?;
        let mut out_row = self.row_at(w, self.out, place, self.spec.outputs, out_bytes);
        if let Some(head) = self.head {
            out_row = w.element(out_row, head, self.spec.outputs * out_bytes);
        }
        Ok(w.element(out_row, column, out_bytes))
    }

    /// Where what the epilogue reads for a row begins.
    pub(super) fn extra_bases(&self, w: &mut Writer, place: Place) -> Result<Vec<Val>, CodegenError> {
        let column = self.column.ok_or_else(|| CodegenError::bug("linear", "columns were not entered"))?;
        let each = self.spec.extras.iter().zip(&self.extras);
        each.map(|(extra, buffer)| self.extra_base(w, *extra, *buffer, place, column)).collect()
    }

    /// What the epilogue reads for a vector of a row.
    pub(super) fn load_extras(&self, w: &mut Writer, bases: &[Val], vector: usize) -> Result<Vec<Val>, CodegenError> {
        let each = self.spec.extras.iter().zip(bases);
        each.map(|(extra, base)| self.load_extra(w, *extra, *base, vector)).collect()
    }

    /// Epilogue and store of a vector of a row at `out`, of its sums and of what the epilogue reads.
    pub(super) fn finish_vector(
        &self,
        w: &mut Writer,
        out: Val,
        args: &[Val],
        vector: usize,
    ) -> Result<(), CodegenError> {
        let lanes = self.schedule.lanes;
        let out_elem = elem_of(self.spec.result, Elem::I64)?;
        let y = scalar_graph(w, &self.spec.epilogue, args, Elem::I64)?;
        let y = w.splat(y[0], lanes);
        let y = cast(w, y, out_elem)?;
        let at = w.offset_const(out, vector as u64 * u64::from(lanes) * out_elem.bytes());
        match self.masks[vector] {
            None => w.store(y, at),
            Some(mask) => w.store_masked(y, at, mask),
        }
        Ok(())
    }

    fn extra_base(
        &self,
        w: &mut Writer,
        extra: Extra,
        buffer: Buffer,
        place: Place,
        column: Val,
    ) -> Result<Val, CodegenError> {
        let bytes = elem_of(extra.dtype, Elem::I64)?.bytes();
        let width = if extra.per_column { self.spec.outputs } else { 1 };
        let base = match self.expert.filter(|_| extra.per_expert) {
            Some(expert) => w.element(buffer.data, expert, width * bytes),
            None if extra.per_row => self.row_at(w, buffer, place, width, bytes),
            None => buffer.data,
        };
        Ok(if extra.per_column { w.element(base, column, bytes) } else { base })
    }

    fn load_extra(&self, w: &mut Writer, extra: Extra, base: Val, vector: usize) -> Result<Val, CodegenError> {
        let s = self.schedule;
        let elem = elem_of(extra.dtype, Elem::I64)?;
        if !extra.per_column {
            let x = w.load(Ty::scalar(elem), base);
            return Ok(w.splat(x, s.lanes));
        }
        let at = w.offset_const(base, vector as u64 * u64::from(s.lanes) * elem.bytes());
        let ty = Ty::of(elem, s.lanes);
        Ok(match self.masks[vector] {
            None => w.load(ty, at),
            Some(mask) => w.load_masked(ty, at, mask),
        })
    }
}
