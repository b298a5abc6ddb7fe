//! Products by a block of threads: a lane has a column, of which it reads 16 bytes at a time; groups of threads take turns along the inputs.
//!
//! Of the inputs `depth` lie side by side for each column. Memory is asked for several turns ahead of the products; what every group has is added up
//! behind the loop ([`Writer::add_groups`]).

use super::Linear;
use crate::error::CodegenError;
use crate::mlir::writer::{Elem, Ty, Val, Writer};
use crate::plan::kernel::dtype_bytes;

/// Turns whose weights are loaded before the first is multiplied.
const TOGETHER: u64 = 4;

impl Linear<'_> {
    /// Accumulators in the order row, part, vector, of one group's turns.
    pub(super) fn products_in_turns(&self, w: &mut Writer, xs: &[Val]) -> Result<Vec<Val>, CodegenError> {
        let s = self.schedule;
        let whole = self.spec.inputs / s.depth;
        let groups = u64::from(w.machine().groups);
        let zero = w.f32(0.0, s.lanes);
        let mut sums = vec![zero; xs.len() * self.spec.parts * s.vectors as usize];
        let first = w.group();
        // Turns of all groups that are whole; then those that are left, one by one.
        let together = whole / (groups * TOGETHER) * groups * TOGETHER;
        let (begin, end) = (first, w.i64(together as i64));
        if together > 0 {
            sums = w.for_loop(begin, end, (groups * TOGETHER) as i64, &sums, |w, turn, sums| {
                let mut sums = sums.to_vec();
                let turns: Vec<Val> = (0..TOGETHER)
                    .map(|i| {
                        let shift = w.i64((i * groups) as i64);
                        w.add(turn, shift)
                    })
                    .collect();
                let weights: Vec<Vec<Val>> = turns.iter().map(|turn| self.weights_of(w, *turn)).collect();
                for (turn, weights) in turns.iter().zip(&weights) {
                    self.multiply_turn(w, xs, *turn, weights, s.depth, &mut sums);
                }
                Ok(sums)
            })?;
        }
        let begin = w.add(end, first);
        let end = w.i64(whole as i64);
        sums = w.for_loop(begin, end, groups as i64, &sums, |w, turn, sums| {
            let mut sums = sums.to_vec();
            let weights = self.weights_of(w, turn);
            self.multiply_turn(w, xs, turn, &weights, s.depth, &mut sums);
            Ok(sums)
        })?;
        let rest = self.spec.inputs % s.depth;
        if rest > 0 {
            // Every group would add them.
            let turn = w.i64(whole as i64);
            let all = w.int(1, Ty::scalar(Elem::I1));
            let mine = w.in_first_group(all);
            let before = sums.clone();
            sums = w.if_else(mine, &before, |w| {
                let mut sums = before.clone();
                let weights = self.weights_of(w, turn);
                self.multiply_turn(w, xs, turn, &weights, rest, &mut sums);
                Ok(sums)
            })?;
        }
        Ok(sums)
    }

    /// The weights of a turn: 16 bytes of each column, for each part and vector.
    fn weights_of(&self, w: &mut Writer, turn: Val) -> Vec<Val> {
        let s = self.schedule;
        let elem = if self.bf16() { Elem::I32 } else { Elem::F32 };
        let ty = Ty::of(elem, s.lanes * 4);
        let mut list = Vec::new();
        for start in &self.starts {
            let at = w.element(*start, turn, self.group_bytes());
            for v in 0..u64::from(s.vectors) {
                let at = w.offset_const(at, v * u64::from(s.lanes) * 16);
                list.push(w.load_aligned(ty, at, 16));
            }
        }
        list
    }

    /// Adds the products of the first `present` inputs of a turn.
    fn multiply_turn(&self, w: &mut Writer, xs: &[Val], turn: Val, weights: &[Val], present: u64, sums: &mut [Val]) {
        let s = self.schedule;
        let bytes = dtype_bytes(self.spec.operand);
        let words: Vec<Vec<Val>> = weights.iter().map(|four| (0..4).map(|i| w.word_of(*four, i)).collect()).collect();
        let xs: Vec<Val> = xs.iter().map(|x| w.element(*x, turn, s.depth * bytes)).collect();
        let number = |w: &mut Writer, x: Val, k: u64| {
            let at = w.offset_const(x, k * bytes);
            let value = if self.bf16() {
                let bits = w.load(Ty::scalar(Elem::I16), at);
                w.from_bf16(bits)
            } else {
                w.load(Ty::scalar(Elem::F32), at)
            };
            w.splat(value, s.lanes)
        };
        let mut k = 0;
        for word in 0..4 {
            // A word holds a number of f32, or two of bf16.
            let columns: Vec<Vec<Val>> = words
                .iter()
                .map(|four| {
                    if self.bf16() {
                        let (low, high) = w.pair_halves(four[word]);
                        vec![low, high]
                    } else {
                        vec![four[word]]
                    }
                })
                .collect();
            for i in 0..columns.first().map_or(0, Vec::len) {
                if k >= present {
                    return;
                }
                for (x, mine) in xs.iter().zip(sums.chunks_exact_mut(columns.len())) {
                    let x = number(w, *x, k);
                    for (sum, column) in mine.iter_mut().zip(&columns) {
                        *sum = w.fma(x, column[i], *sum);
                    }
                }
                k += 1;
            }
        }
    }
}
