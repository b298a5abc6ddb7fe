//! Products of floats of 8 bits in groups by bf16: each is widened, and a group's sum multiplied by the scales of the outputs.
//!
//! Of a column a run of inputs lies side by side: a word, or the 16 bytes that a thread of a block loads at a time. Rows are bf16 as they lie, without
//! padding, so that the last group of inputs may be a part of one, which one group of threads adds.

use xfc_lang::graph::blocks::Blocks;
use xfc_runtime::artifact::manifest;

use super::{Linear, packed};
use crate::error::CodegenError;
use crate::mlir::writer::{Cmp, Elem, Ty, Val, Writer};
use crate::plan::kernel::dtype_bytes;

/// Bytes of an input.
const INPUT: u64 = 2;

/// Inputs that a word of a row holds.
const PAIR: u64 = 2;

/// Inputs of a piece of 16 bytes of a row.
const EIGHT: u64 = 8;

/// Runs of a word that a loop takes at a time; up to twice as many are written out.
const UNROLL: u64 = 4;

/// Words of columns that are asked for before the first is multiplied, of rows that take few registers, and of others.
const AHEAD: (usize, usize) = (64, 16);

/// How the inputs of rows are loaded.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Rows {
    /// One by one.
    Singly,
    /// In pieces of 16 bytes, to multiples of which all rows are aligned.
    Pieces,
}

/// A group of inputs, or a part of one.
struct Part<'a> {
    panel: manifest::Blocks,
    /// Its inputs of each row.
    xs: &'a [Val],
    /// Where it begins in the panel of each matrix.
    starts: &'a [Val],
    rows: Rows,
}

impl Linear<'_> {
    /// Blocks of integers, to which tokens bring such too.
    pub(super) fn integers(&self) -> Option<Blocks> {
        self.blocks().filter(|blocks| !blocks.form.is_float())
    }

    /// Bytes of an input of a row.
    pub(super) fn input_bytes(&self) -> u64 {
        dtype_bytes(self.spec.brought())
    }

    /// How weights in blocks are laid out.
    pub(super) fn packed(&self, blocks: Blocks) -> manifest::Blocks {
        packed(blocks, self.schedule.panel_columns, self.schedule.depth)
    }

    /// Accumulators in the order row, part, vector.
    pub(super) fn products_of_floats(
        &self,
        w: &mut Writer,
        xs: &[Val],
        blocks: Blocks,
    ) -> Result<Vec<Val>, CodegenError> {
        let zero = w.f32(0.0, self.schedule.lanes);
        let sums = vec![zero; xs.len() * self.spec.parts * self.schedule.vectors as usize];
        if !w.is_block() || !self.spec.inputs.is_multiple_of(EIGHT) {
            return self.sums_of_floats(w, xs, blocks, Rows::Singly, &sums);
        }
        // Views may begin anywhere.
        let aligned = {
            let addresses: Vec<Val> = xs.iter().map(|x| w.address(*x)).collect();
            let nothing = w.i64(0);
            let any = addresses.into_iter().fold(nothing, |any, address| w.or(any, address));
            let mask = w.i64((EIGHT * INPUT) as i64 - 1);
            let odd = w.and(any, mask);
            w.cmp(Cmp::Eq, odd, nothing)
        };
        let sums = w.if_else(aligned, &sums, |w| self.sums_of_floats(w, xs, blocks, Rows::Pieces, &sums))?;
        let yes = w.int(1, aligned.ty);
        let other = w.xor(aligned, yes);
        w.if_else(other, &sums, |w| self.sums_of_floats(w, xs, blocks, Rows::Singly, &sums))
    }

    /// `sums` and the products of all inputs.
    fn sums_of_floats(
        &self,
        w: &mut Writer,
        xs: &[Val],
        blocks: Blocks,
        rows: Rows,
        sums: &[Val],
    ) -> Result<Vec<Val>, CodegenError> {
        let panel = self.packed(blocks);
        let (whole, rest) = (self.spec.inputs / panel.group, self.spec.inputs % panel.group);
        let part = |w: &mut Writer, group: Val, present: u64, sums: &[Val]| {
            let starts: Vec<Val> = self.starts.iter().map(|at| w.element(*at, group, panel.group_bytes())).collect();
            let xs: Vec<Val> = xs.iter().map(|x| w.element(*x, group, panel.group * INPUT)).collect();
            self.add_part(w, &Part { panel, xs: &xs, starts: &starts, rows }, present, sums)
        };
        let (begin, end) = (w.group(), w.i64(whole as i64));
        let mut sums = sums.to_vec();
        if whole > 0 {
            sums = w.for_loop(begin, end, i64::from(w.machine().groups), &sums, |w, group, sums| {
                self.ask_for_next(w, group, 1, panel.group_bytes());
                part(w, group, panel.group, sums)
            })?;
        }
        if rest == 0 {
            return Ok(sums);
        }
        if !w.is_block() {
            return part(w, end, rest, &sums);
        }
        // Every group of threads would add it.
        let all = w.int(1, Ty::scalar(Elem::I1));
        let mine = w.in_first_group(all);
        w.if_else(mine, &sums, |w| part(w, end, rest, &sums))
    }

    /// `sums` and the first `present` inputs of a part.
    fn add_part(&self, w: &mut Writer, of: &Part<'_>, present: u64, sums: &[Val]) -> Result<Vec<Val>, CodegenError> {
        let s = self.schedule;
        let depth = of.panel.floats.unwrap_or(1);
        let shift = of.panel.scales_bytes() + self.column_shift() * depth;
        let words: Vec<Val> = of.starts.iter().map(|start| w.offset_const(*start, shift)).collect();
        let zero = w.f32(0.0, s.lanes);
        let mut products = vec![zero; sums.len()];
        let factor = if w.is_block() {
            self.add_runs_of_block(w, of, &words, present, &mut products);
            w.f32(Writer::OF_HALF, s.lanes)
        } else {
            products = self.add_runs_of_words(w, of, &words, present, &products)?;
            w.f32(1.0, s.lanes)
        };
        let mut scales = Vec::new();
        for start in of.starts {
            for v in 0..u64::from(s.vectors) {
                let at = w.offset_const(*start, (self.column_shift() + v * u64::from(s.lanes)) * 4);
                let scale = w.load(Ty::of(Elem::F32, s.lanes), at);
                scales.push(scale);
            }
        }
        let scaled = |w: &mut Writer, (i, product): (usize, &Val)| {
            let product = if w.is_block() { w.mul(*product, factor) } else { *product };
            w.fma(product, scales[i % scales.len()], sums[i])
        };
        Ok(products.iter().enumerate().map(|each| scaled(w, each)).collect())
    }

    /// `sums` and the products of runs of a word, with registers for vectors.
    fn add_runs_of_words(
        &self,
        w: &mut Writer,
        of: &Part<'_>,
        words: &[Val],
        present: u64,
        sums: &[Val],
    ) -> Result<Vec<Val>, CodegenError> {
        let depth = of.panel.floats.unwrap_or(1);
        let (runs, left) = (present / depth, present % depth);
        let looped = if runs <= 2 * UNROLL { 0 } else { runs / UNROLL * UNROLL };
        let mut sums = sums.to_vec();
        if looped > 0 {
            let (begin, end) = (w.i64(0), w.i64(looped as i64));
            sums = w.for_loop(begin, end, UNROLL as i64, &sums, |w, first, sums| {
                let mut sums = sums.to_vec();
                let words: Vec<Val> = words.iter().map(|at| w.element(*at, first, of.panel.columns * depth)).collect();
                let xs: Vec<Val> = of.xs.iter().map(|x| w.element(*x, first, depth * INPUT)).collect();
                for run in 0..UNROLL {
                    self.add_word(w, of.panel, (&words, &xs), (run, depth), &mut sums);
                }
                Ok(sums)
            })?;
        }
        for run in looped..runs {
            self.add_word(w, of.panel, (words, of.xs), (run, depth), &mut sums);
        }
        if left > 0 {
            self.add_word(w, of.panel, (words, of.xs), (runs, left), &mut sums);
        }
        Ok(sums)
    }

    /// Adds the products of the first `present` inputs of run number `run`, a word of each column.
    fn add_word(
        &self,
        w: &mut Writer,
        panel: manifest::Blocks,
        (words, xs): (&[Val], &[Val]),
        (run, present): (u64, u64),
        sums: &mut [Val],
    ) {
        let s = self.schedule;
        let depth = panel.floats.unwrap_or(1);
        let vector_bytes = u64::from(s.lanes) * depth;
        let mut stored = Vec::new();
        for start in words {
            for v in 0..u64::from(s.vectors) {
                let at = w.offset_const(*start, run * panel.columns * depth + v * vector_bytes);
                self.prefetch(w, at, v * vector_bytes);
                stored.push(w.load(Ty::of(Elem::I32, s.lanes), at));
            }
        }
        for k in 0..present {
            let columns: Vec<Val> = stored.iter().map(|word| w.from_e4m3(*word, k as u32)).collect();
            for (x, mine) in xs.iter().zip(sums.chunks_exact_mut(columns.len())) {
                let x = self.single_input(w, *x, run * depth + k);
                for (sum, column) in mine.iter_mut().zip(&columns) {
                    *sum = w.fma(x, *column, *sum);
                }
            }
        }
    }

    /// Input number `k` of a row, in all lanes.
    fn single_input(&self, w: &mut Writer, x: Val, k: u64) -> Val {
        let at = w.offset_const(x, k * INPUT);
        let bits = w.load(Ty::scalar(Elem::I16), at);
        let x = w.from_bf16(bits);
        w.splat(x, self.schedule.lanes)
    }

    /// Adds the products of runs of 16 bytes, divided by [`Writer::OF_HALF`], by a block of threads.
    fn add_runs_of_block(&self, w: &mut Writer, of: &Part<'_>, words: &[Val], present: u64, sums: &mut [Val]) {
        let s = self.schedule;
        let depth = of.panel.floats.unwrap_or(1);
        let columns = words.len() * s.vectors as usize;
        let ahead = if s.micro_rows == 1 { AHEAD.0 } else { AHEAD.1 };
        let together = (ahead / 4 / columns).max(1) as u64;
        let runs = present.div_ceil(depth);
        for first in (0..runs).step_by(together as usize) {
            let last = runs.min(first + together);
            let mut loaded = Vec::new();
            for run in first..last {
                for start in words {
                    for v in 0..u64::from(s.vectors) {
                        let behind = (run * of.panel.columns + v * u64::from(s.lanes)) * depth;
                        let at = w.offset_const(*start, behind);
                        loaded.push(w.load_aligned(Ty::of(Elem::I32, s.lanes * 4), at, depth));
                    }
                }
            }
            for (run, loaded) in (first..last).zip(loaded.chunks_exact(columns)) {
                for eight in 0..depth / EIGHT {
                    let k = run * depth + eight * EIGHT;
                    let words = loaded.iter().flat_map(|four| {
                        let first = (eight * EIGHT / 4) as usize;
                        [first, first + 1].map(|word| w.word_of(*four, word))
                    });
                    let words: Vec<Val> = words.collect();
                    self.add_eight_of_block(w, of, &words, (k, present.saturating_sub(k).min(EIGHT)), sums);
                }
            }
        }
    }

    /// Adds the products of inputs `k .. k + present`, of at most eight, by two words of each column.
    fn add_eight_of_block(
        &self,
        w: &mut Writer,
        of: &Part<'_>,
        words: &[Val],
        (k, present): (u64, u64),
        sums: &mut [Val],
    ) {
        if present == 0 {
            return;
        }
        let columns: Vec<[Val; 4]> = words.iter().map(|word| w.from_e4m3_by_halves(*word)).collect();
        // One row after another: what they hold takes few registers then.
        for (x, mine) in of.xs.iter().zip(sums.chunks_exact_mut(words.len() / 2)) {
            let inputs: Vec<Val> = match of.rows {
                Rows::Singly => (k..k + present).map(|k| self.single_input(w, *x, k)).collect(),
                Rows::Pieces => {
                    let at = w.offset_const(*x, k * INPUT);
                    let piece: [Val; (EIGHT / PAIR) as usize] = w.load_words(at);
                    let mut inputs = Vec::new();
                    for pair in piece {
                        let (low, high) = w.pair_halves(pair);
                        inputs.extend([low, high].map(|x| w.splat(x, self.schedule.lanes)));
                    }
                    inputs
                }
            };
            for (i, input) in inputs.iter().enumerate() {
                for (sum, column) in mine.iter_mut().zip(columns.chunks_exact(2)) {
                    *sum = w.fma(*input, column[i / 4][i % 4], *sum);
                }
            }
        }
    }
}
