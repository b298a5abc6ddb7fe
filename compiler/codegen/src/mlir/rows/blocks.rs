//! What tokens bring to products with weights in blocks: rows rounded to integers of 8 bits, with a scale and a sum for each group; or to bf16, where products of many rows
//! multiply that.

use xfc_lang::graph::blocks::Blocks;
use xfc_lang::graph::{DType, ValueId};

use super::Body;
use super::view::View;
use crate::error::CodegenError;
use crate::mlir::expr::cast;
use crate::mlir::writer::{Elem, Ty, Val, Writer};
use crate::plan::kernel::{Sink, TokenRow};

impl Body<'_> {
    /// Rounds a value to blocks, right where it goes: nothing in the row reads it.
    pub(super) fn round_to_blocks(
        &mut self,
        w: &mut Writer,
        x: ValueId,
        value: ValueId,
        sinks: &[usize],
    ) -> Result<(), CodegenError> {
        let DType::Blocks(blocks) = self.graph.ty(value).dtype else {
            return Err(CodegenError::bug("rows", "blocks of another type"));
        };
        let mut view = self.view_of(w, x)?;
        if !view.unit_last() {
            let copy = self.scratch(w, view.elem, &view.dims);
            self.copy(w, &view, &copy)?;
            view = copy;
        }
        for sink in sinks {
            if self.spec.sinks[*sink].1 != Sink::Buffer {
                return Err(CodegenError::bug("rows", "blocks that go elsewhere than to a buffer"));
            }
            let buffer = self.buffers[self.spec.params.len() + sink];
            let base = w.row(buffer, self.row, 1);
            self.outer(w, &view.dims, view.dims.len().saturating_sub(1), Vec::new(), &mut |w, outer| {
                let mut row = w.i64(0);
                for (at, n) in outer.iter().zip(&view.dims) {
                    let n = w.i64(*n as i64);
                    let before = w.mul(row, n);
                    row = w.add(before, *at);
                }
                self.row_in_blocks(w, &view, &outer, blocks, (base, row))
            })?;
        }
        Ok(())
    }

    /// One row: the elements at `outer`, to row `row` of those at `base`.
    fn row_in_blocks(
        &self,
        w: &mut Writer,
        view: &View,
        outer: &[Val],
        blocks: Blocks,
        (base, row): (Val, Val),
    ) -> Result<(), CodegenError> {
        let n = view.dims.last().copied().unwrap_or(1);
        let token = TokenRow::with(n, blocks, self.spec.widened);
        let group = u64::from(blocks.group);
        let base = w.element(base, row, token.bytes);
        let whole = n / group;
        let (zero, end) = (w.i64(0), w.i64(whole as i64));
        w.for_loop(zero, end, 1, &[], |w, at, _| {
            self.group_in_blocks(w, view, outer, (base, token), at, group, group)?;
            Ok(vec![])
        })?;
        if whole < token.groups {
            let at = w.i64(whole as i64);
            self.group_in_blocks(w, view, outer, (base, token), at, group, n - whole * group)?;
        }
        Ok(())
    }

    /// One group, of which the first `present` elements exist.
    #[expect(clippy::too_many_arguments, reason = "a place in two layouts")]
    fn group_in_blocks(
        &self,
        w: &mut Writer,
        view: &View,
        outer: &[Val],
        (base, token): (Val, TokenRow),
        index: Val,
        group: u64,
        present: u64,
    ) -> Result<(), CodegenError> {
        let lanes = u64::from(self.lanes);
        let size = w.i64(group as i64);
        let first = w.mul(index, size);
        let nothing = w.f32(0.0, self.lanes);
        let mut elements = Vec::new();
        for start in (0..group).step_by(self.lanes as usize) {
            if start >= present {
                elements.push(nothing);
                continue;
            }
            let mask = (start + lanes > present).then(|| {
                let inside: Vec<i64> = (0..lanes).map(|l| i64::from(start + l < present)).collect();
                w.lanes(&inside, Elem::I1)
            });
            let shift = w.i64(start as i64);
            let at = w.add(first, shift);
            let x = view.load(w, &[outer, &[at]].concat(), self.lanes, mask);
            let x = w.splat(x, self.lanes);
            let x = cast(w, x, Elem::F32)?;
            // A row of one element repeats, behind the mask too.
            elements.push(match mask {
                Some(mask) if view.dims.last() == Some(&1) => w.select(mask, x, nothing),
                _ => x,
            });
        }
        // A row of the step may be more rows of a product than it takes to be many.
        let several = view.dims.iter().rev().skip(1).any(|n| *n > 1);
        if let Some(widened_at) = token.widened_at.filter(|_| self.halves_alone || several) {
            let to = w.offset_const(base, widened_at);
            let to = w.element(to, index, group * 2);
            self.keep_halves(w, &elements, to, group)?;
            if self.halves_alone {
                return Ok(());
            }
        }
        let mut most = nothing;
        for x in &elements {
            let x = w.fabs(*x);
            most = w.max(most, x);
        }
        let most = w.reduce_max(most);
        let (zero, one) = (w.f32(0.0, 0), w.f32(1.0, 0));
        let range = w.f32(127.0, 0);
        let scale = w.div(most, range);
        let inverse = w.div(one, scale);
        let is_zero = w.cmp(crate::mlir::writer::Cmp::Eq, scale, zero);
        let inverse = w.select(is_zero, zero, inverse);
        let inverse = w.splat(inverse, self.lanes);
        let at = w.element(base, index, group);
        let mut sum = None;
        for (i, x) in elements.into_iter().enumerate() {
            let x = w.mul(x, inverse);
            // What is no number has a scale that is none.
            let integer = w.nearest_byte(x);
            sum = Some(match sum {
                None => integer,
                Some(sum) => w.add(sum, integer),
            });
            let byte = w.resize(integer, Elem::I8);
            let start = i as u64 * lanes;
            let to = w.offset_const(at, start);
            store_within(w, byte, to, group - start);
        }
        let keep = |w: &mut Writer, list: u64, value: Val| {
            let list = w.offset_const(base, list);
            let to = w.element(list, index, 4);
            w.store(value, to);
        };
        let bits = w.bitcast(scale, Ty::scalar(Elem::I32));
        let kept = w.int(TokenRow::SCALE_BITS, bits.ty);
        let bits = w.and(bits, kept);
        let scale = w.bitcast(bits, scale.ty);
        keep(w, token.scales_at, scale);
        let minus = w.f32(-f64::from(TokenRow::WHOLE), 0);
        let offset = w.mul(scale, minus);
        keep(w, token.offsets_at, offset);
        if let Some(sum) = sum {
            let sum = w.reduce_add(sum);
            keep(w, token.sums_at, sum);
            let whole = w.int(i64::from(TokenRow::WHOLE.to_bits()), sum.ty);
            for (list, bits) in token.starts_at.into_iter().zip([4, 8]) {
                let added = w.shl(sum, bits - 1);
                let start = w.sub(whole, added);
                keep(w, list, start);
            }
        }
        Ok(())
    }

    /// The elements of a group in bf16.
    fn keep_halves(&self, w: &mut Writer, elements: &[Val], to: Val, group: u64) -> Result<(), CodegenError> {
        for (i, x) in elements.iter().enumerate() {
            let half = cast(w, *x, Elem::I16)?;
            let start = i as u64 * u64::from(self.lanes);
            let to = w.offset_const(to, start * 2);
            store_within(w, half, to, group - start);
        }
        Ok(())
    }
}

/// Stores the first `n` lanes of a vector, or all of it.
fn store_within(w: &mut Writer, value: Val, to: Val, n: u64) {
    let lanes = u64::from(value.ty.lanes);
    if lanes <= n {
        w.store(value, to);
        return;
    }
    let inside: Vec<i64> = (0..lanes).map(|lane| i64::from(lane < n)).collect();
    let inside = w.lanes(&inside, Elem::I1);
    w.store_masked(value, to, inside);
}
