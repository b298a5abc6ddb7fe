//! Products of integers in groups: weights of 4 or 8 bits by what tokens bring, rounded to 8.
//!
//! Within a group everything is whole numbers, summed exactly: by an instruction for sums of four products of bytes, or in f32, which holds them.
//! A group's sum is multiplied by the scale of the token's group and added, multiplied by the scales of the outputs, to sums of f32. Weights are
//! stored without a sign, so that sums begin at what was added to them: minus half their range times the sum of the token's integers. With
//! minima nothing was added, and each minimum is multiplied by that sum instead.
//!
//! Where four products are one instruction, making floats of the sums and scaling them is what costs most besides. So sums begin at the bits of a float
//! whose neighbours are whole numbers ([`TokenRow::WHOLE`]): what they end with is a float already, from which one fused operation takes that number
//! and multiplies with the token's scale, exactly but for one rounding, since a scale has two bits less than a float.

use xfc_lang::graph::blocks::Blocks;
use xfc_runtime::artifact::manifest;

use super::Linear;
use crate::error::CodegenError;
use crate::mlir::machine::{ByteDot, Machine};
use crate::mlir::writer::{Elem, Ty, Val, Writer};
use crate::plan::kernel::TokenRow;

/// Runs of inputs that a loop takes at a time; up to twice as many are written out. Of more at a time, LLVM asks for the inputs of all rows far
/// ahead and has no registers for them.
const UNROLL: u64 = 4;

/// How the runtime lays out weights in blocks, in panels of so many columns; of floats at least `depth` inputs of a column side by side.
pub fn packed(blocks: Blocks, columns: u64, depth: u64) -> manifest::Blocks {
    manifest::Blocks {
        columns,
        bits: blocks.form.bits(),
        group: u64::from(blocks.group),
        minimum: blocks.form.has_minimum(),
        stored: blocks.stored,
        floats: blocks.form.is_float().then_some(depth.max(LEAST_DEPTH)),
    }
}

/// Floats of a column that lie side by side at least: they fill a word.
const LEAST_DEPTH: u64 = 4;

/// Where the rows and the weights of a product lie, and how they are laid out.
pub(super) struct Groups<'a> {
    pub(super) xs: &'a [Val],
    pub(super) token: TokenRow,
    pub(super) panel: manifest::Blocks,
    pub(super) group: u64,
    /// Sums begin at [`TokenRow::WHOLE`].
    pub(super) whole: bool,
}

impl Groups<'_> {
    /// The number of a group in one of a token's lists.
    pub(super) fn of_token(&self, w: &mut Writer, x: Val, list: u64, group: Val, elem: Elem) -> Val {
        let at = w.offset_const(x, list);
        let at = w.element(at, group, 4);
        w.load(Ty::scalar(elem), at)
    }
}

/// Whether the sums of a group are small enough to be floats by their bits, on a machine that makes use of it.
pub(super) fn begins_whole(machine: &Machine, panel: &manifest::Blocks, group: u64) -> bool {
    matches!(machine.byte_dot, ByteDot::Intrinsic(_)) && are_whole(machine, panel, group)
}

/// Whether the sums of a group are small enough to be floats by their bits, and one operation scales them.
pub(super) fn are_whole(machine: &Machine, panel: &manifest::Blocks, group: u64) -> bool {
    let most = if panel.minimum { (1 << panel.bits) - 1 } else { 1 << (panel.bits - 1) };
    machine.fma && group * most * 127 < 1 << 22
}

impl Linear<'_> {
    /// Accumulators in the order row, part, vector.
    pub(super) fn products_of_groups(
        &self,
        w: &mut Writer,
        xs: &[Val],
        blocks: Blocks,
    ) -> Result<Vec<Val>, CodegenError> {
        let s = self.schedule;
        let (panel, group) = (packed(blocks, s.panel_columns, s.depth), u64::from(blocks.group));
        let whole = begins_whole(w.machine(), &panel, group);
        let of = Groups { xs, token: TokenRow::new(self.spec.inputs, blocks), panel, group, whole };
        let zero = w.f32(0.0, s.lanes);
        let sums = vec![zero; xs.len() * self.spec.parts * s.vectors as usize];
        let (begin, end) = (w.group(), w.i64(of.token.groups as i64));
        w.for_loop(begin, end, i64::from(w.machine().groups), &sums, |w, group, sums| {
            self.ask_for_next(w, group, 1, of.panel.group_bytes());
            let starts: Vec<Val> =
                self.starts.iter().map(|start| w.element(*start, group, of.panel.group_bytes())).collect();
            // What of the integers of each token sums begin with, or what minima are multiplied with.
            let list = if of.whole && !of.panel.minimum {
                of.token.starts_at[usize::from(of.panel.bits == 8)]
            } else {
                of.token.sums_at
            };
            let sums_of_tokens: Vec<Val> = xs.iter().map(|x| of.of_token(w, *x, list, group, Elem::I32)).collect();
            let integers = self.group_sums(w, &of, &starts, group, &sums_of_tokens)?;
            Ok(self.scaled(w, &of, &starts, group, &sums_of_tokens, &integers, sums))
        })
    }

    /// Bytes from a panel's start to the columns being worked on, in lists of words and of halves.
    pub(super) fn column_shift(&self) -> u64 {
        self.step * u64::from(self.schedule.lanes * self.schedule.vectors)
    }

    /// Sums over one group in whole numbers, as f32, to which [`TokenRow::WHOLE`] is added where they begin so.
    fn group_sums(
        &self,
        w: &mut Writer,
        of: &Groups<'_>,
        starts: &[Val],
        group: Val,
        sums_of_tokens: &[Val],
    ) -> Result<Vec<Val>, CodegenError> {
        let s = self.schedule;
        let per_row = self.spec.parts * s.vectors as usize;
        let byte_dot = w.machine().byte_dot;
        let mut sums = Vec::new();
        for sum in sums_of_tokens {
            let first = if of.whole {
                let nothing = w.int(i64::from(TokenRow::WHOLE.to_bits()), sum.ty);
                if of.panel.minimum { nothing } else { *sum }
            } else {
                // What was added to each weight, times the token's integers.
                let added = if of.panel.minimum { 0 } else { 1 << (of.panel.bits - 1) };
                let minus = w.int(-added, sum.ty);
                let first = w.mul(*sum, minus);
                if byte_dot == ByteDot::Widened { w.to_float(first) } else { first }
            };
            let first = w.splat(first, s.lanes);
            sums.extend(vec![first; per_row]);
        }
        let shift = of.panel.integers_at() + self.column_shift() * 4;
        let words: Vec<Val> = starts.iter().map(|start| w.offset_const(*start, shift)).collect();
        let xs: Vec<Val> = of.xs.iter().map(|x| w.element(*x, group, of.group)).collect();
        let runs = of.group * of.panel.bits / 32;
        if runs <= 2 * UNROLL {
            for run in 0..runs {
                self.add_run(w, of, &words, &xs, run, &mut sums);
            }
        } else {
            let (begin, end) = (w.i64(0), w.i64(runs as i64));
            sums = w.for_loop(begin, end, UNROLL as i64, &sums, |w, first, sums| {
                let mut sums = sums.to_vec();
                let words: Vec<Val> = words.iter().map(|at| w.element(*at, first, of.panel.columns * 4)).collect();
                let xs: Vec<Val> = xs.iter().map(|x| w.element(*x, first, 32 / of.panel.bits)).collect();
                for run in 0..UNROLL {
                    self.add_run(w, of, &words, &xs, run, &mut sums);
                }
                Ok(sums)
            })?;
        }
        let to_float = |sum: Val| {
            if of.whole { w.bitcast(sum, Ty::of(Elem::F32, s.lanes)) } else { w.to_float(sum) }
        };
        Ok(if byte_dot == ByteDot::Widened { sums } else { sums.into_iter().map(to_float).collect() })
    }

    /// Adds the products of one word of each column: for one row as the words come, as [`Linear::multiply`] does.
    fn add_run(&self, w: &mut Writer, of: &Groups<'_>, words: &[Val], xs: &[Val], run: u64, sums: &mut [Val]) {
        let vectors = u64::from(self.schedule.vectors);
        let vector_bytes = u64::from(self.schedule.lanes) * 4;
        let load = |w: &mut Writer, start: Val, v: u64| {
            let at = w.offset_const(start, run * of.panel.columns * 4 + v * vector_bytes);
            self.prefetch(w, at, v * vector_bytes);
            w.load(Ty::of(Elem::I32, self.schedule.lanes), at)
        };
        let places = words.iter().flat_map(|start| (0..vectors).map(move |v| (*start, v)));
        if xs.len() == 1 {
            for ((start, v), sum) in places.zip(sums) {
                let stored = load(w, start, v);
                self.add_stored(w, of, &[stored], xs, run, std::slice::from_mut(sum));
            }
            return;
        }
        let stored: Vec<Val> = places.map(|(start, v)| load(w, start, v)).collect();
        self.add_stored(w, of, &stored, xs, run, sums);
    }

    /// Adds the products of these words of as many columns.
    fn add_stored(&self, w: &mut Writer, of: &Groups<'_>, stored: &[Val], xs: &[Val], run: u64, sums: &mut [Val]) {
        let s = self.schedule;
        let word = Ty::of(Elem::I32, s.lanes);
        let planes = 8 / of.panel.bits;
        if let (ByteDot::Pairs { halves, bytes: Some(bytes) }, 2) = (w.machine().byte_dot, planes) {
            return self.add_halves_of_bytes(w, (halves, bytes), stored, xs, run * 8, sums);
        }
        for plane in 0..planes {
            let shift = (plane * of.panel.bits) as u32;
            let first = (run * planes + plane) * 4;
            // Of the words of each column, every byte or half a byte at `mask`, moved down.
            let masked = |w: &mut Writer, down: u32, mask: i64| -> Vec<Val> {
                let narrow = if planes == 2 { mask & 0x0F0F_0F0F } else { mask };
                let each = |stored: &Val| {
                    let moved = if down + shift == 0 { *stored } else { w.shr(*stored, down + shift) };
                    let mask = w.int(narrow, word);
                    if narrow == 0xFFFF_FFFF { moved } else { w.and(moved, mask) }
                };
                stored.iter().map(each).collect()
            };
            match w.machine().byte_dot {
                ByteDot::Intrinsic(name) => {
                    let packed = Ty::of(Elem::I8, s.lanes * 4);
                    let columns = masked(w, 0, 0xFFFF_FFFF);
                    let columns: Vec<Val> = columns.into_iter().map(|c| w.bitcast(c, packed)).collect();
                    for (x, mine) in xs.iter().zip(sums.chunks_exact_mut(columns.len())) {
                        let at = w.offset_const(*x, first);
                        let four = w.load(Ty::scalar(Elem::I32), at);
                        let four = w.splat(four, s.lanes);
                        let four = w.bitcast(four, packed);
                        for (sum, column) in mine.iter_mut().zip(&columns) {
                            *sum = w.intrinsic(name, &[*sum, *column, four], sum.ty);
                        }
                    }
                }
                ByteDot::Pairs { halves: name, .. } => {
                    // Bytes 0 and 2 are 16-bit numbers where they stand, and 1 and 3 where these stood.
                    let pairs = Ty::of(Elem::I16, s.lanes * 2);
                    let columns = [0, 8].map(|down| {
                        let halves = masked(w, down, 0x00FF_00FF);
                        halves.into_iter().map(|c| w.bitcast(c, pairs)).collect::<Vec<_>>()
                    });
                    for (x, mine) in xs.iter().zip(sums.chunks_exact_mut(stored.len())) {
                        let at = w.offset_const(*x, first);
                        let four = w.load(Ty::scalar(Elem::I32), at);
                        let four = w.splat(four, s.lanes);
                        let odd = w.bitcast(four, pairs);
                        let even = w.shl(odd, 8);
                        let [even, odd] = [even, odd].map(|x| w.shr_signed(x, 8));
                        for (at, sum) in mine.iter_mut().enumerate() {
                            for (x, columns) in [even, odd].iter().zip(&columns) {
                                let products = w.intrinsic(name, &[columns[at], *x], sum.ty);
                                *sum = w.add(*sum, products);
                            }
                        }
                    }
                }
                ByteDot::Widened => {
                    for byte in 0..4 {
                        let columns = masked(w, byte * 8, 0xFF);
                        let columns: Vec<Val> = columns.into_iter().map(|c| w.to_float(c)).collect();
                        for (x, mine) in xs.iter().zip(sums.chunks_exact_mut(columns.len())) {
                            let at = w.offset_const(*x, first + u64::from(byte));
                            let one = w.load(Ty::scalar(Elem::I8), at);
                            let one = w.resize(one, Elem::I32);
                            let one = w.to_float(one);
                            let one = w.splat(one, s.lanes);
                            for (sum, column) in mine.iter_mut().zip(&columns) {
                                *sum = w.fma(one, *column, *sum);
                            }
                        }
                    }
                }
            }
        }
    }

    /// Adds the products of one word of each column, eight numbers of 4 bits, by what tokens bring behind `first`: by 127 two are below 2^12 and
    /// four below 2^13, so that 16 bits hold them. `names` are those of [`ByteDot::Pairs`].
    fn add_halves_of_bytes(
        &self,
        w: &mut Writer,
        names: (&str, &str),
        stored: &[Val],
        xs: &[Val],
        first: u64,
        sums: &mut [Val],
    ) {
        let lanes = self.schedule.lanes;
        let (packed, pairs) = (Ty::of(Elem::I8, lanes * 4), Ty::of(Elem::I16, lanes * 2));
        let planes = [0, 4].map(|down| {
            let half = |column: &Val| {
                let moved = if down == 0 { *column } else { w.shr(*column, down) };
                let mask = w.int(0x0F0F_0F0F, column.ty);
                let half = w.and(moved, mask);
                w.bitcast(half, packed)
            };
            stored.iter().map(half).collect::<Vec<_>>()
        });
        let one = w.int(1, pairs);
        for (x, mine) in xs.iter().zip(sums.chunks_exact_mut(stored.len())) {
            let tokens = [0, 4].map(|behind| {
                let at = w.offset_const(*x, first + behind);
                let four = w.load(Ty::scalar(Elem::I32), at);
                let four = w.splat(four, lanes);
                w.bitcast(four, packed)
            });
            for (column, sum) in mine.iter_mut().enumerate() {
                let [low, high] = [0, 1].map(|p| w.intrinsic(names.1, &[planes[p][column], tokens[p]], pairs));
                let of_four = w.add(low, high);
                let products = w.intrinsic(names.0, &[of_four, one], sum.ty);
                *sum = w.add(*sum, products);
            }
        }
    }

    /// `sums` and those of a group, with its scales.
    #[expect(clippy::too_many_arguments, reason = "all of them differ from group to group")]
    pub(super) fn scaled(
        &self,
        w: &mut Writer,
        of: &Groups<'_>,
        starts: &[Val],
        group: Val,
        sums_of_tokens: &[Val],
        integers: &[Val],
        sums: &[Val],
    ) -> Vec<Val> {
        let s = self.schedule;
        let halves = |w: &mut Writer, behind: u64| -> Vec<Val> {
            let mut list = Vec::new();
            for start in starts {
                for v in 0..u64::from(s.vectors) {
                    let shift = (self.column_shift() + v * u64::from(s.lanes)) * 2;
                    let at = w.offset_const(*start, behind + shift);
                    self.prefetch(w, at, shift);
                    let half = w.load(Ty::of(Elem::I16, s.lanes), at);
                    list.push(w.from_half(half));
                }
            }
            list
        };
        let scales = halves(w, 0);
        let minima = if of.panel.minimum { halves(w, of.panel.scales_bytes()) } else { Vec::new() };
        let mut out = Vec::with_capacity(sums.len());
        for (row, x) in of.xs.iter().enumerate() {
            let scale = of.of_token(w, *x, of.token.scales_at, group, Elem::F32);
            let minimum = of.panel.minimum.then(|| {
                let sum = w.to_float(sums_of_tokens[row]);
                let sum = w.mul(sum, scale);
                w.splat(sum, s.lanes)
            });
            let scale = w.splat(scale, s.lanes);
            let offset = of.whole.then(|| {
                let offset = of.of_token(w, *x, of.token.offsets_at, group, Elem::F32);
                w.splat(offset, s.lanes)
            });
            for (column, of_column) in scales.iter().enumerate() {
                let i = row * scales.len() + column;
                let product = match offset {
                    Some(offset) => w.fma(integers[i], scale, offset),
                    None => w.mul(integers[i], scale),
                };
                let mut sum = w.fma(product, *of_column, sums[i]);
                if let Some(token) = minimum {
                    sum = w.fma(token, minima[column], sum);
                }
                out.push(sum);
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use xfc_lang::graph::blocks::BlockForm;

    use super::*;
    use crate::mlir::machine::PairDot;

    #[test]
    fn sums_are_floats_by_their_bits_and_scales_take_the_start_away_exactly() {
        let whole = TokenRow::WHOLE;
        for sum in [0, 1, -1, 4_145_280, -4_145_280, (1 << 22) - 1, -(1 << 22)] {
            let bits = (whole.to_bits() as i32).wrapping_add(sum) as u32;
            assert_eq!(f64::from(f32::from_bits(bits)), f64::from(whole) + f64::from(sum));
        }
        for scale in [1.0f32, 0.1, 1.0 / 127.0, 3.402_823e30, 1.999_999_9, 1.2e-30] {
            let kept = f32::from_bits(scale.to_bits() & TokenRow::SCALE_BITS as u32);
            assert!((f64::from(kept) / f64::from(scale) - 1.0).abs() < 4e-7);
            assert_eq!(f64::from(kept * whole), f64::from(kept) * f64::from(whole));
            // As the kernel does: a fused product has the sum times the scale, rounded once.
            let sum = -31_234;
            let product = (whole + sum as f32).mul_add(kept, -whole * kept);
            assert_eq!(product, (f64::from(sum) * f64::from(kept)) as f32);
        }
    }

    #[test]
    fn groups_whose_sums_are_too_large_begin_at_nothing() {
        let machine = |byte_dot| Machine {
            lanes: 16,
            threads: 1,
            groups: 1,
            side_by_side: 0,
            fma: true,
            round: true,
            pair_dot: PairDot::Widened,
            byte_dot,
            word_dot: None,
            half: true,
            tile_dot: None,
            byte_tile_dot: None,
            tile_registers: None,
            team_dot: None,
            overlaps: false,
        };
        let dot = machine(ByteDot::Intrinsic("of four bytes"));
        let panel = |form, group| packed(Blocks::weights(form, group), 64, 1);
        for form in [BlockForm::Int8, BlockForm::Int4, BlockForm::Uint8, BlockForm::Uint4] {
            assert!(begins_whole(&dot, &panel(form, 128), 128));
        }
        assert!(!begins_whole(&dot, &panel(BlockForm::Uint8, 256), 256));
        assert!(!begins_whole(&machine(ByteDot::Widened), &panel(BlockForm::Int4, 32), 32));
    }
}
