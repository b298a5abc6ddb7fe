//! Tiles of bytes, of weights in blocks: whole numbers summed exactly within a group, as [`blocks`](crate::mlir::linear::blocks) says, and then with the
//! scales of both added to sums of f32.
//!
//! A stage of a panel is its groups as they lie in memory, but that the words of each run of inputs change places, four columns at a time. A lane loads the words
//! of four columns and one run at once, so that tile `n` of a panel has the columns `4 q + n` and each lane has sums of eight neighbours. Of 4 bits a
//! word is eight inputs side by side, so that lanes take the rows' bytes in the same order, eight at a time.
//!
//! The sum of a group begins at the bits of a large f32, so that it is an f32 without being converted: [`WHOLE`] more than what it is. `WHOLE` times a scale of
//! f16 is an f32, and so is rounded only what is wanted: `fma(WHOLE + sum, scale, -WHOLE * scale)`.

use xfc_lang::graph::blocks::Blocks;

use super::{Brought, COLUMNS, I32, PIECE, Stage, TILE, Tiles, low_bits};
use crate::error::CodegenError;
use crate::mlir::linear::{Linear, packed};
use crate::mlir::writer::{Cmp, Elem, Ty, Val, Writer};
use crate::plan::kernel::TokenRow;

/// What sums of a group begin at: a group of 128 is 2^22 - 49024 at most, by 127 and 255.
const WHOLE: f32 = 12_582_912.0;

/// Least inputs of a stage.
const LEAST_INPUTS: u64 = 64;

/// Words of a row and a group: the scale, and the sum of the integers.
const WORDS: u64 = 2;

/// Bytes of a run of inputs: a word of each column.
const RUN: u64 = COLUMNS * 4;

/// One group or two: those whose inputs fill four pieces of a row, or more.
pub(super) fn stage(blocks: Blocks) -> Stage {
    let group = u64::from(blocks.group);
    let inputs = group.max(LEAST_INPUTS);
    let groups = inputs / group;
    Stage { inputs, row: inputs, words: groups * WORDS, panel: groups * packed(blocks, COLUMNS, PIECE).group_bytes() }
}

/// The numbers that multiply the sums of a group: of a lane's eight columns.
struct Scales {
    scales: Vec<Val>,
    /// `-WHOLE` times these.
    whole: Vec<Val>,
    minima: Option<Vec<Val>>,
}

/// What a row brings to a group.
#[derive(Clone, Copy)]
struct RowScale {
    scale: Val,
    /// What the sum begins at.
    first: Val,
    /// The sum of its integers.
    sum: Val,
}

impl Linear<'_> {
    /// Brings the panels of a stage, and the words of the rows.
    pub(super) fn bring_groups(
        &self,
        w: &mut Writer,
        tiles: &Tiles,
        brought: &Brought,
        blocks: Blocks,
        (stage, place): (Val, Val),
    ) -> Result<(), CodegenError> {
        let threads = u64::from(w.machine().threads * w.machine().groups);
        let layout = packed(blocks, COLUMNS, PIECE);
        let token = TokenRow::new(self.spec.inputs, blocks);
        let groups = tiles.stage.inputs / layout.group;
        let (per_group, head) = (layout.group_bytes() / PIECE, layout.integers_at() / PIECE);
        let count = w.i64(groups as i64);
        let first_group = w.mul(stage, count);
        let first_byte = w.shl(first_group, 2);
        let size = w.i64(tiles.stage.panel as i64);
        let before = w.mul(stage, size);
        let all = w.i64((token.groups * layout.group_bytes()) as i64);
        for round in 0..(groups * per_group).div_ceil(threads) {
            let shift = w.int((round * threads) as i64, I32);
            let index = w.add(tiles.thread, shift);
            let n = w.int((groups * per_group) as i64, I32);
            let is_piece = w.cmp(Cmp::Lt, index, n);
            w.if_then(is_piece, |w| {
                // Four columns of run `r` are moved by two places for each run.
                let size = w.int(per_group as i64, I32);
                let of_group = w.rem_unsigned(index, size);
                let head = w.int(head as i64, I32);
                let of_words = w.sub(of_group, head);
                let zero = w.int(0, I32);
                let is_word = w.cmp(Cmp::Ge, of_words, zero);
                let run = w.shr(of_words, 3);
                let turns = w.shl(run, 1);
                let turned = w.add(of_words, turns);
                let turned = low_bits(w, turned, 7);
                let straight = low_bits(w, of_words, 7);
                let moved = w.sub(turned, straight);
                let moved = w.select(is_word, moved, zero);
                let target = w.add(index, moved);
                let [from, to] = [index, target].map(|piece| {
                    let at = w.shl(piece, PIECE.ilog2());
                    w.widen_unsigned(at, Elem::I64)
                });
                let behind = w.add(before, from);
                let exists = (!token.groups.is_multiple_of(groups)).then(|| w.cmp(Cmp::Lt, behind, all));
                let to = w.add(place, to);
                self.bring_piece_of_panels(w, tiles, (behind, to), exists);
                Ok(())
            })?;
        }
        let Some(row) = brought.words else { return Ok(()) };
        // `[group][scale, sum][row]`.
        let of_thread = w.shr(tiles.thread, tiles.rows.ilog2());
        for round in 0..tiles.rows * tiles.stage.words / threads {
            let shift = w.int((round * threads / tiles.rows) as i64, I32);
            let list = w.add(of_thread, shift);
            let group = w.shr(list, 1);
            let is_sum = low_bits(w, list, 1);
            let zero = w.int(0, I32);
            let is_sum = w.cmp(Cmp::Ne, is_sum, zero);
            let [sums, scales] = [token.sums_at, token.scales_at].map(|at| w.i64(at as i64));
            let base = w.select(is_sum, sums, scales);
            let group = w.widen_unsigned(group, Elem::I64);
            let at = w.shl(group, 2);
            let at = w.add(at, base);
            let at = w.add(at, first_byte);
            let from = w.offset(row, at);
            let index = w.int((round * threads) as i64, I32);
            let index = w.add(tiles.thread, index);
            let to = w.shl(index, 2);
            let to = w.widen_unsigned(to, Elem::I64);
            let words = w.i64(tiles.stage.words_at(tiles.rows, tiles.panels) as i64);
            let to = w.add(to, words);
            let to = w.add(to, place);
            // Of rows that do not exist nothing is stored.
            if token.groups.is_multiple_of(groups) {
                w.copy_word(tiles.shared, to, from);
                continue;
            }
            let group = w.add(first_group, group);
            let n = w.i64(token.groups as i64);
            let exists = w.cmp(Cmp::Lt, group, n);
            let from = w.select(exists, from, row);
            let (whole, none) = (w.int(4, I32), w.int(0, I32));
            let bytes = w.select(exists, whole, none);
            w.copy_word_if(tiles.shared, to, from, bytes);
        }
        Ok(())
    }

    /// `sums`, in the order of row tiles, panels, column tiles, and the four of a thread, with the products of the stage at `stage`.
    pub(super) fn multiply_bytes(
        &self,
        w: &mut Writer,
        tiles: &Tiles,
        blocks: Blocks,
        stage: Val,
        sums: &[Val],
    ) -> Result<Vec<Val>, CodegenError> {
        let dot = w.machine().byte_tile_dot.ok_or_else(|| CodegenError::bug("linear", "no products of tiles"))?;
        let layout = packed(blocks, COLUMNS, PIECE);
        let (row_tiles, column_tiles) = (tiles.row_tiles(w) as usize, (COLUMNS / TILE.1) as usize);
        let mut sums = sums.to_vec();
        for group in 0..tiles.stage.inputs / layout.group {
            let steps = layout.group / TILE.2;
            let of_rows: Vec<Vec<[Val; 4]>> = (0..row_tiles as u64)
                .map(|m| {
                    let step = |step| {
                        let step = group * steps + step;
                        if layout.bits == 4 {
                            self.rows_by_eight(w, tiles, stage, m, step)
                        } else {
                            self.tile_of_rows(w, tiles, stage, m, step)
                        }
                    };
                    (0..steps).map(step).collect()
                })
                .collect();
            let rows: Vec<[RowScale; 2]> =
                (0..row_tiles as u64).map(|m| self.row_scales(w, tiles, blocks, stage, (m, group))).collect();
            for panel in 0..tiles.panels {
                let at = tiles.stage.panels_at(tiles.rows) + panel * tiles.stage.panel + group * layout.group_bytes();
                let of_group = w.offset_const(stage, at);
                let scales = self.scales(w, tiles, blocks, of_group);
                let integers = w.offset_const(of_group, layout.integers_at());
                let of_columns: Vec<_> =
                    (0..steps).map(|step| self.four_tiles(w, tiles, layout.bits, integers, step)).collect();
                // One tile of columns after another: their sums are many registers.
                for n in 0..column_tiles {
                    for (m, (of_rows, rows)) in of_rows.iter().zip(&rows).enumerate() {
                        let mut whole = [rows[0].first, rows[0].first, rows[1].first, rows[1].first];
                        for (of_rows, of_columns) in of_rows.iter().zip(&of_columns) {
                            whole = w.byte_tile_dot(dot, *of_rows, of_columns[n], whole);
                        }
                        let first = ((m * tiles.panels as usize + panel as usize) * column_tiles + n) * 4;
                        for (i, whole) in whole.into_iter().enumerate() {
                            let column = i % 2 * column_tiles + n;
                            let sum = &mut sums[first + i];
                            *sum = scaled(w, whole, &scales, column, rows[i / 2], *sum);
                        }
                    }
                }
            }
        }
        Ok(sums)
    }

    /// As [`tile_of_rows`](Self::tile_of_rows), where each lane has eight bytes of a row side by side, four of each piece that an instruction takes.
    pub(super) fn rows_by_eight(&self, w: &mut Writer, tiles: &Tiles, stage: Val, m: u64, step: u64) -> [Val; 4] {
        let first_row = tiles.first_row(w);
        let quarter = w.shr(tiles.lane, 2);
        let of_lane = low_bits(w, tiles.lane, 3);
        let piece = w.shr(of_lane, 1);
        let row = w.add(first_row, quarter);
        let at = self.place_in_rows(w, tiles, row, piece);
        let within = low_bits(w, of_lane, 1);
        let within = w.shl(within, 3);
        let at = w.add(at, within);
        let turned = w.int((step * TILE.2) as i64, I32);
        let at = w.xor(at, turned);
        let at = w.widen_unsigned(at, Elem::I64);
        let at = w.offset(stage, at);
        let [[a, c], [b, d]] = [0, TILE.0 / 2].map(|more| {
            let at = w.offset_const(at, (m * TILE.0 + more) * tiles.stage.row);
            w.load_words(at)
        });
        [a, b, c, d]
    }

    /// What the two rows of a lane in row tile `m` bring to a group of the stage.
    fn row_scales(
        &self,
        w: &mut Writer,
        tiles: &Tiles,
        blocks: Blocks,
        stage: Val,
        (m, group): (u64, u64),
    ) -> [RowScale; 2] {
        let first_row = tiles.first_row(w);
        let quarter = w.shr(tiles.lane, 2);
        let row = w.add(first_row, quarter);
        let at = w.shl(row, 2);
        let at = w.widen_unsigned(at, Elem::I64);
        let at = w.offset(stage, at);
        [0, TILE.0 / 2].map(|more| {
            let words = tiles.stage.words_at(tiles.rows, tiles.panels) + (m * TILE.0 + more) * 4;
            let [scale, sum] = [0, 1].map(|word| {
                let at = w.offset_const(at, words + (group * WORDS + word) * tiles.rows * 4);
                w.load(I32, at)
            });
            // What was added to each weight, times the row's integers.
            let added = if blocks.form.has_minimum() { 0 } else { 1 << (blocks.form.bits() - 1) };
            let minus = w.int(-added, I32);
            let minus = w.mul(sum, minus);
            let whole = w.int(i64::from(WHOLE.to_bits()), I32);
            let first = w.add(whole, minus);
            RowScale { scale: w.bitcast(scale, Ty::scalar(Elem::F32)), first, sum: w.to_float(sum) }
        })
    }

    /// The scales of a lane's eight columns.
    fn scales(&self, w: &mut Writer, tiles: &Tiles, blocks: Blocks, of_group: Val) -> Scales {
        let of_lane = low_bits(w, tiles.lane, 3);
        let at = w.shl(of_lane, PIECE.ilog2());
        let at = w.widen_unsigned(at, Elem::I64);
        let at = w.offset(of_group, at);
        let eight = |w: &mut Writer, at: Val| -> Vec<Val> {
            let words: [Val; 4] = w.load_words(at);
            let mut list = Vec::new();
            for word in words {
                for down in [0, 16] {
                    let half = if down == 0 { word } else { w.shr(word, down) };
                    let half = w.resize(half, Elem::I16);
                    list.push(w.from_half(half));
                }
            }
            list
        };
        let scales = eight(w, at);
        let minus = w.f32(f64::from(-WHOLE), 0);
        let whole = scales.iter().map(|scale| w.mul(*scale, minus)).collect();
        let minima = blocks.form.has_minimum().then(|| {
            let at = w.offset_const(at, packed(blocks, COLUMNS, PIECE).scales_bytes());
            eight(w, at)
        });
        Scales { scales, whole, minima }
    }

    /// The four column tiles of a panel, over 32 inputs.
    fn four_tiles(&self, w: &mut Writer, tiles: &Tiles, bits: u64, integers: Val, step: u64) -> Vec<[Val; 2]> {
        let (run, quarter) = (low_bits(w, tiles.lane, 3), w.shr(tiles.lane, 2));
        let turns = w.shl(run, 1);
        let place = w.add(quarter, turns);
        let place = low_bits(w, place, 7);
        let place = w.shl(place, PIECE.ilog2());
        let run = w.shl(run, RUN.ilog2());
        let at = w.add(run, place);
        let at = w.widen_unsigned(at, Elem::I64);
        let at = w.offset(integers, at);
        let at = w.offset_const(at, step * bits * RUN);
        let low: [Val; 4] = w.load_words(at);
        if bits == 8 {
            let at = w.offset_const(at, 4 * RUN);
            let high: [Val; 4] = w.load_words(at);
            return low.into_iter().zip(high).map(|(low, high)| [low, high]).collect();
        }
        let halves = |word: Val| {
            [0, 4].map(|down| {
                let moved = if down == 0 { word } else { w.shr(word, down) };
                low_bits(w, moved, 0x0F0F_0F0F)
            })
        };
        low.into_iter().map(halves).collect()
    }
}

/// `sum`, and that of a group with its scales.
fn scaled(w: &mut Writer, whole: Val, of: &Scales, column: usize, row: RowScale, sum: Val) -> Val {
    let whole = w.bitcast(whole, sum.ty);
    let mut product = w.fma(whole, of.scales[column], of.whole[column]);
    if let Some(minima) = &of.minima {
        product = w.fma(row.sum, minima[column], product);
    }
    w.fma(product, row.scale, sum)
}
