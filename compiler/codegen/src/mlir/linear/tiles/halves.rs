//! Tiles of bf16: a stage of a panel is what lies in memory, `[piece][column][16 bytes]`, of which eight columns of one piece lie in all banks by
//! themselves.

use super::{COLUMNS, I32, PIECE, Stage, TILE, Tiles, low_bits};
use crate::error::CodegenError;
use crate::mlir::linear::Linear;
use crate::mlir::writer::{Cmp, Elem, Val, Writer};

/// 32 inputs.
pub(super) const STAGE: Stage = Stage { inputs: 32, row: 64, words: 0, panel: 64 * COLUMNS };

impl Linear<'_> {
    pub(super) fn bring_panels(&self, w: &mut Writer, tiles: &Tiles, (stage, place): (Val, Val)) {
        let thread = w.widen_unsigned(tiles.thread, Elem::I64);
        let own = w.shl(thread, PIECE.ilog2());
        let (size, pieces) = (w.i64(STAGE.panel as i64), w.i64(STAGE.pieces() as i64));
        let before = w.mul(stage, size);
        let behind = w.add(before, own);
        // Which piece of the inputs it is, and whether there is one.
        let exists = (!self.groups().is_multiple_of(STAGE.pieces())).then(|| {
            let first = w.mul(stage, pieces);
            let of_stage = w.shr(thread, COLUMNS.ilog2());
            let piece = w.add(first, of_stage);
            let n = w.i64(self.groups() as i64);
            w.cmp(Cmp::Lt, piece, n)
        });
        let to = w.add(place, own);
        self.bring_piece_of_panels(w, tiles, (behind, to), exists);
    }

    /// `sums`, in the order of row tiles, panels, column tiles, and the four of a thread, with the products of the stage at `stage`.
    pub(super) fn multiply_halves(
        &self,
        w: &mut Writer,
        tiles: &Tiles,
        stage: Val,
        sums: &[Val],
    ) -> Result<Vec<Val>, CodegenError> {
        let dot = w.machine().tile_dot.ok_or_else(|| CodegenError::bug("linear", "no products of tiles"))?;
        let mut sums = sums.to_vec();
        let eighth = w.shr(tiles.lane, 3);
        let (piece_of_lane, pair_of_lane) = (low_bits(w, eighth, 1), w.shr(tiles.lane, 4));
        let column = low_bits(w, tiles.lane, 7);
        for step in 0..STAGE.row / TILE.2 {
            let of_rows: Vec<_> =
                (0..tiles.row_tiles(w)).map(|m| self.tile_of_rows(w, tiles, stage, m, step)).collect();
            let mut of_columns = Vec::new();
            for panel in 0..tiles.panels {
                for pair in 0..COLUMNS / TILE.1 / 2 {
                    let first_piece = w.int((step * 2) as i64, I32);
                    let piece = w.add(first_piece, piece_of_lane);
                    let piece = w.shl(piece, (COLUMNS * PIECE).ilog2());
                    let of_pair = w.shl(pair_of_lane, 3);
                    let of_column = w.add(of_pair, column);
                    let shift = w.int((pair * 2 * TILE.1) as i64, I32);
                    let of_column = w.add(of_column, shift);
                    let of_column = w.shl(of_column, PIECE.ilog2());
                    let at = w.add(piece, of_column);
                    let base = tiles.stage.panels_at(tiles.rows) + panel * STAGE.panel;
                    let base = w.int(base as i64, I32);
                    let at = w.add(at, base);
                    let [a, b, c, d] = w.load_tiles(stage, at);
                    of_columns.extend([[a, b], [c, d]]);
                }
            }
            for (m, rows) in of_rows.iter().enumerate() {
                for (n, columns) in of_columns.iter().enumerate() {
                    let at = (m * of_columns.len() + n) * 4;
                    let four = [sums[at], sums[at + 1], sums[at + 2], sums[at + 3]];
                    sums[at..at + 4].copy_from_slice(&w.tile_dot(dot, *rows, *columns, four));
                }
            }
        }
        Ok(sums)
    }

    /// Row tile number `m` of a warp, and its two pieces number `step`, as an instruction has them.
    pub(super) fn tile_of_rows(&self, w: &mut Writer, tiles: &Tiles, stage: Val, m: u64, step: u64) -> [Val; 4] {
        let of_lane = low_bits(w, tiles.lane, TILE.0 - 1);
        let half = w.shr(tiles.lane, TILE.0.ilog2());
        let first_row = tiles.first_row(w);
        let row = w.add(first_row, of_lane);
        let at = self.place_in_rows(w, tiles, row, half);
        let turned = w.int((step * TILE.2) as i64, I32);
        let at = w.xor(at, turned);
        let shift = w.int((m * TILE.0 * tiles.stage.row) as i64, I32);
        let at = w.add(at, shift);
        w.load_tiles(stage, at)
    }
}
