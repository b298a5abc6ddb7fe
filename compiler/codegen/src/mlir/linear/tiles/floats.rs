//! Tiles of floats of 8 bits by bf16, which they are widened to when a warp takes them: products of tiles of bf16, summed within a group, and then times
//! the scales of the columns added to sums of f32.
//!
//! A stage of a panel is the scales of its groups, `[group][column]`, and behind them what lies in memory, `[piece of 16 inputs][column][16 bytes]`; a group
//! of 128 comes in two stages, each with its scales. A lane has four inputs of a column side by side, and so takes four of a row side by side too.

use xfc_lang::graph::blocks::Blocks;

use super::{COLUMNS, I32, PIECE, Stage, TILE, Tiles};
use crate::error::CodegenError;
use crate::mlir::linear::{Linear, packed};
use crate::mlir::writer::{Cmp, Elem, Ty, Val, Writer};

/// Inputs of a stage.
const INPUTS: u64 = 64;

/// Inputs that an instruction multiplies.
const STEP: u64 = TILE.2 / 2;

/// Bytes of the scales of a group.
const SCALES: u64 = COLUMNS * 4;

/// Groups that a stage has, or has a part of.
fn groups(blocks: Blocks) -> u64 {
    (INPUTS / u64::from(blocks.group)).max(1)
}

pub(super) fn stage(blocks: Blocks) -> Stage {
    Stage { inputs: INPUTS, row: INPUTS * 2, words: 0, panel: groups(blocks) * SCALES + INPUTS * COLUMNS }
}

impl Linear<'_> {
    /// Brings the panels of a stage.
    pub(super) fn bring_floats(
        &self,
        w: &mut Writer,
        tiles: &Tiles,
        blocks: Blocks,
        (stage, place): (Val, Val),
    ) -> Result<(), CodegenError> {
        let threads = u64::from(w.machine().threads * w.machine().groups);
        let layout = packed(blocks, COLUMNS, PIECE);
        let groups = groups(blocks);
        let (all, per_group) = (self.panel_bytes(), layout.group_bytes());
        // Where the first group begins, and the stage's part of it, where it has one.
        let (first, part) = if layout.group > INPUTS {
            let stages = w.i64((layout.group / INPUTS) as i64);
            let group = w.div_unsigned(stage, stages);
            let part = w.rem_unsigned(stage, stages);
            let (size, of_part) = (w.i64(per_group as i64), w.i64((INPUTS * COLUMNS) as i64));
            (w.mul(group, size), w.mul(part, of_part))
        } else {
            let size = w.i64((groups * per_group) as i64);
            (w.mul(stage, size), w.i64(0))
        };
        let is_whole = (self.panel_bytes() / per_group).is_multiple_of(groups);
        let bring = |w: &mut Writer, behind: Val, to: Val| {
            let exists = (!is_whole).then(|| {
                let end = w.i64(all as i64);
                w.cmp(Cmp::Lt, behind, end)
            });
            let to = w.add(place, to);
            self.bring_piece_of_panels(w, tiles, (behind, to), exists);
        };
        // Pieces of elements, of which a group has so many.
        let elements = layout.group.min(INPUTS) * COLUMNS;
        for round in 0..INPUTS * COLUMNS / PIECE / threads {
            let shift = w.int((round * threads) as i64, I32);
            let piece = w.add(tiles.thread, shift);
            let piece = w.widen_unsigned(piece, Elem::I64);
            let at = w.shl(piece, PIECE.ilog2());
            let group = w.shr(at, elements.ilog2());
            let more = w.i64((per_group - elements) as i64);
            let before = if groups > 1 { w.mul(group, more) } else { w.i64(0) };
            let behind = w.add(first, part);
            let behind = w.add(behind, before);
            let behind = w.add(behind, at);
            let head = w.i64(SCALES as i64);
            let behind = w.add(behind, head);
            let heads = w.i64((groups * SCALES) as i64);
            let to = w.add(at, heads);
            bring(w, behind, to);
        }
        let n = w.int((groups * SCALES / PIECE) as i64, I32);
        let is_scale = w.cmp(Cmp::Lt, tiles.thread, n);
        w.if_then(is_scale, |w| {
            let piece = w.widen_unsigned(tiles.thread, Elem::I64);
            let at = w.shl(piece, PIECE.ilog2());
            let group = w.shr(at, SCALES.ilog2());
            let more = w.i64((per_group - SCALES) as i64);
            let before = w.mul(group, more);
            let behind = w.add(first, before);
            let behind = w.add(behind, at);
            bring(w, behind, at);
            Ok(())
        })
    }

    /// `sums`, in the order of row tiles, panels, column tiles, and the four of a thread, with the products of the stage at `stage`.
    pub(super) fn multiply_floats(
        &self,
        w: &mut Writer,
        tiles: &Tiles,
        blocks: Blocks,
        stage: Val,
        sums: &[Val],
    ) -> Result<Vec<Val>, CodegenError> {
        let dot = w.machine().tile_dot.ok_or_else(|| CodegenError::bug("linear", "no products of tiles"))?;
        let (row_tiles, column_tiles) = (tiles.row_tiles(w) as usize, (COLUMNS / TILE.1) as usize);
        let groups = groups(blocks);
        let steps = INPUTS / STEP / groups;
        let mut sums = sums.to_vec();
        let own = w.shl(tiles.lane, 2);
        let own = w.widen_unsigned(own, Elem::I64);
        let of_lane = w.offset(stage, own);
        // The scales of two neighbours of each column tile.
        let pair = super::low_bits(w, tiles.lane, 3);
        let pair = w.shl(pair, 3);
        let pair = w.widen_unsigned(pair, Elem::I64);
        let scales_of_lane = w.offset(stage, pair);
        let zero = w.f32(0.0, 0);
        for group in 0..groups {
            let of_rows: Vec<Vec<[Val; 4]>> = (0..row_tiles as u64)
                .map(|m| (0..steps).map(|step| self.rows_by_eight(w, tiles, stage, m, group * steps + step)).collect())
                .collect();
            for panel in 0..tiles.panels {
                let at = tiles.stage.panels_at(tiles.rows) + panel * tiles.stage.panel;
                for n in 0..column_tiles {
                    let of_columns: Vec<[Val; 2]> = (0..steps)
                        .map(|step| {
                            let piece = group * steps + step;
                            let behind = groups * SCALES + (piece * COLUMNS + n as u64 * TILE.1) * PIECE;
                            let at = w.offset_const(of_lane, at + behind);
                            let word = w.load(I32, at);
                            w.pairs_of_e4m3(word)
                        })
                        .collect();
                    let scales = w.offset_const(scales_of_lane, at + group * SCALES + n as u64 * TILE.1 * 4);
                    let scales: [Val; 2] = w.load_words(scales);
                    let scales = scales.map(|bits| w.bitcast(bits, Ty::scalar(Elem::F32)));
                    for (m, of_rows) in of_rows.iter().enumerate() {
                        let mut products = [zero; 4];
                        for (of_rows, of_columns) in of_rows.iter().zip(&of_columns) {
                            products = w.tile_dot(dot, *of_rows, *of_columns, products);
                        }
                        let first = ((m * tiles.panels as usize + panel as usize) * column_tiles + n) * 4;
                        for (i, product) in products.into_iter().enumerate() {
                            let sum = &mut sums[first + i];
                            *sum = w.fma(product, scales[i % 2], *sum);
                        }
                    }
                }
            }
        }
        Ok(sums)
    }
}
