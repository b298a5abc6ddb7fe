//! Weights and inputs as f32, widened from bf16 once for a tile, and not for each register tile.
//!
//! Of one register tile's columns after another the weights of a block are widened, and all rows multiplied with them: as many as the first level of caches
//! keeps.

use super::{Linear, Places, Tile};
use crate::error::CodegenError;
use crate::mlir::writer::{Elem, Ty, Val, Writer};
use crate::plan::kernel::dtype_bytes;

/// Vectors of inputs that are widened in a round of a loop.
const TOGETHER: u64 = 4;

impl Linear<'_> {
    /// Widens inputs of all rows of a tile; behind the last are zeros up to a whole vector.
    pub(super) fn widen_inputs(
        &self,
        w: &mut Writer,
        tile: &Tile,
        places: &Places,
        (first, inputs): (Val, u64),
    ) -> Result<(), CodegenError> {
        let lanes = u64::from(self.schedule.lanes);
        let narrow = Ty::of(Elem::I16, self.schedule.lanes);
        let bytes = dtype_bytes(self.spec.operand);
        let widen = |w: &mut Writer, x: Val, to: Val| {
            let x = w.widen_unsigned(x, Elem::I32);
            let x = w.shl(x, 16);
            w.store(x, to);
        };
        w.for_loop(tile.rows.0, tile.rows.1, 1, &[], |w, row, _| {
            let (x, _) = self.row_of(w, tile, row);
            let x = w.element(x, first, bytes);
            let number = w.sub(row, tile.rows.0);
            let to = w.element(places.xs, number, places.x_bytes);
            let vectors = inputs / lanes;
            let looped = vectors / TOGETHER * TOGETHER;
            let (zero, end) = (w.i64(0), w.i64(looped as i64));
            w.for_loop(zero, end, TOGETHER as i64, &[], |w, vector, _| {
                let x = w.element(x, vector, lanes * bytes);
                let to = w.element(to, vector, lanes * 4);
                for v in 0..TOGETHER {
                    let from = w.offset_const(x, v * lanes * bytes);
                    let x = w.load(narrow, from);
                    let to = w.offset_const(to, v * lanes * 4);
                    widen(w, x, to);
                }
                Ok(vec![])
            })?;
            for v in looped..inputs.div_ceil(lanes) {
                let from = w.offset_const(x, v * lanes * bytes);
                let there: Vec<i64> = (0..lanes).map(|lane| i64::from(v * lanes + lane < inputs)).collect();
                let x = if v < vectors {
                    w.load(narrow, from)
                } else {
                    let mask = w.lanes(&there, Elem::I1);
                    w.load_masked(narrow, from, mask)
                };
                let to = w.offset_const(to, v * lanes * 4);
                widen(w, x, to);
            }
            Ok(vec![])
        })?;
        Ok(())
    }

    /// Widens the weights of the current columns.
    pub(super) fn widen_weights(
        &self,
        w: &mut Writer,
        places: &Places,
        (first, inputs): (Val, u64),
    ) -> Result<(), CodegenError> {
        let s = self.schedule;
        let vector_bytes = u64::from(s.lanes) * 4;
        let pairs = w.shr(first, 1);
        let starts: Vec<Val> = self.starts.iter().map(|start| w.element(*start, pairs, self.group_bytes())).collect();
        let (zero, end) = (w.i64(0), w.i64(inputs.div_ceil(2) as i64));
        w.for_loop(zero, end, 1, &[], |w, pair, _| {
            let to = w.element(places.weights, pair, 2 * places.columns_bytes);
            for (part, start) in starts.iter().enumerate() {
                let from = w.element(*start, pair, self.group_bytes());
                for v in 0..u64::from(s.vectors) {
                    let at = w.offset_const(from, v * vector_bytes);
                    let both = w.load(Ty::of(Elem::I32, s.lanes), at);
                    let (low, high) = w.pair_halves(both);
                    let to = w.offset_const(to, (part as u64 * u64::from(s.vectors) + v) * vector_bytes);
                    w.store(low, to);
                    let to = w.offset_const(to, places.columns_bytes);
                    w.store(high, to);
                }
            }
            Ok(vec![])
        })?;
        Ok(())
    }

    /// Adds the products of a block to the sums of one register tile.
    pub(super) fn add_widened(
        &self,
        w: &mut Writer,
        places: &Places,
        (x, sums_at): (Val, Val),
        inputs: u64,
    ) -> Result<(), CodegenError> {
        let s = self.schedule;
        let vector_bytes = u64::from(s.lanes) * 4;
        let per_row = places.columns_bytes / vector_bytes;
        let vector = Ty::of(Elem::F32, s.lanes);
        let at = |i: u64| i / per_row * places.columns_bytes + i % per_row * vector_bytes;
        let n = u64::from(s.micro_rows) * per_row;
        let mut sums = Vec::new();
        for i in 0..n {
            let from = w.offset_const(sums_at, at(i));
            sums.push(w.load(vector, from));
        }
        // Of an odd number the last pair has a weight of zero, and an input.
        let inputs = inputs.next_multiple_of(2);
        let unroll = u64::from(s.unroll).max(1);
        let looped = inputs / unroll * unroll;
        let multiply = |w: &mut Writer, x: Val, weights: Val, sums: &mut [Val]| {
            let row: Vec<Val> = (0..per_row)
                .map(|v| {
                    let from = w.offset_const(weights, v * vector_bytes);
                    w.load(vector, from)
                })
                .collect();
            for (i, mine) in sums.chunks_exact_mut(row.len()).enumerate() {
                let from = w.offset_const(x, i as u64 * places.x_bytes);
                let x = w.load(Ty::scalar(Elem::F32), from);
                let x = w.splat(x, s.lanes);
                for (sum, weight) in mine.iter_mut().zip(&row) {
                    *sum = w.fma(x, *weight, *sum);
                }
            }
        };
        let (zero, end) = (w.i64(0), w.i64(looped as i64));
        let mut sums = w.for_loop(zero, end, unroll as i64, &sums, |w, input, sums| {
            let mut sums = sums.to_vec();
            let x = w.element(x, input, 4);
            let weights = w.element(places.weights, input, places.columns_bytes);
            for u in 0..unroll {
                let x = w.offset_const(x, u * 4);
                let weights = w.offset_const(weights, u * places.columns_bytes);
                multiply(w, x, weights, &mut sums);
            }
            Ok(sums)
        })?;
        for input in looped..inputs {
            let x = w.offset_const(x, input * 4);
            let weights = w.offset_const(places.weights, input * places.columns_bytes);
            multiply(w, x, weights, &mut sums);
        }
        for (i, sum) in sums.into_iter().enumerate() {
            let to = w.offset_const(sums_at, at(i as u64));
            w.store(sum, to);
        }
        Ok(())
    }
}
