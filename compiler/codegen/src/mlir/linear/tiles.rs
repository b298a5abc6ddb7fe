//! Products of many rows by tensor cores: a block of threads has some rows by some panels, of which the inputs come to shared memory in stages while
//! those that came before are multiplied.
//!
//! A stage is 32 inputs. Of the rows it holds `[row][16 bytes]`, where the four pieces of a row change places from row to row so that
//! eight rows of one piece lie in all banks; of each panel it holds what lies in memory, `[piece][column][16 bytes]`, which does so by itself. A warp has
//! its rows by all columns. Sums go through shared memory to lanes that are columns, as the epilogue has them.

use super::{Linear, Place};
use crate::error::CodegenError;
use crate::mlir::machine::TileDot;
use crate::mlir::schedule::TileSchedule;
use crate::mlir::writer::{Cmp, Elem, KernelParams, Ty, Val, Writer};

/// Inputs of a stage.
const INPUTS: u64 = 32;

/// Bytes of a row, or of a column, that are moved at a time: eight inputs.
const PIECE: u64 = 16;

/// Pieces of a stage.
const PIECES: u64 = INPUTS * 2 / PIECE;

/// Bytes of a panel of a stage.
const PANEL_BYTES: u64 = PIECES * 32 * PIECE;

/// Rows and columns of the tiles that an instruction multiplies, and its inputs.
const TILE: (u64, u64, u64) = (16, 8, 16);

/// f32 between the rows of sums, so that they begin in different banks.
const PADDING: u64 = 4;

const I32: Ty = Ty::scalar(Elem::I32);

/// Bytes of shared memory that a product takes.
pub fn shared_bytes(parts: u64, rows: u64, of: TileSchedule) -> u64 {
    let columns = parts * of.panels * 32;
    let stage = rows * INPUTS * 2 + parts * of.panels * PANEL_BYTES;
    (stage * of.stages).max(rows * (columns + PADDING) * 4)
}

/// A tile that is being computed, and where.
struct Tiles {
    of: TileSchedule,
    dot: TileDot,
    rows: u64,
    /// Panels of all parts.
    panels: u64,
    /// First byte of the stages.
    shared: Val,
    thread: Val,
    lane: Val,
    warp: Val,
    /// First panel, and rows `begin .. end`, of which `end` is that of the launch.
    panel: Val,
    begin: Val,
    end: Val,
}

impl Tiles {
    fn stage_bytes(&self) -> u64 {
        self.rows * INPUTS * 2 + self.panels * PANEL_BYTES
    }

    /// Rows of a warp.
    fn rows_of_warp(&self, w: &Writer) -> u64 {
        self.rows / u64::from(w.machine().groups)
    }

    fn row_tiles(&self, w: &Writer) -> u64 {
        self.rows_of_warp(w) / TILE.0
    }
}

impl Linear<'_> {
    /// Writes the tiles.
    pub(super) fn of_tiles(
        &mut self,
        w: &mut Writer,
        params: &KernelParams,
        (of, dot): (TileSchedule, TileDot),
    ) -> Result<(), CodegenError> {
        let elements = w.n_rows(params.args, self.spec.space);
        let times = w.i64(self.spec.times as i64);
        let n_rows = w.mul(elements, times);
        let rows = self.schedule.rows_per_tile;
        let blocks = w.ceil_div(n_rows, rows);
        w.for_loop(params.tile_begin, params.tile_end, 1, &[], |w, tile, _| {
            let panels = w.div_unsigned(tile, blocks);
            let block = w.rem_unsigned(tile, blocks);
            let size = w.i64(of.panels as i64);
            let panel = w.mul(panels, size);
            let size = w.i64(rows as i64);
            let begin = w.mul(block, size);
            let thread = w.thread();
            let (lane, warp) = (self.low_bits(w, thread, 31), w.shr(thread, 5));
            let shared = w.shared("stages", shared_bytes(self.spec.parts as u64, rows, of));
            let panels = self.spec.parts as u64 * of.panels;
            self.one_tile(w, &Tiles { of, dot, rows, panels, shared, thread, lane, warp, panel, begin, end: n_rows })?;
            Ok(vec![])
        })?;
        Ok(())
    }

    fn low_bits(&self, w: &mut Writer, x: Val, mask: i64) -> Val {
        let mask = w.int(mask, x.ty);
        w.and(x, mask)
    }

    fn one_tile(&mut self, w: &mut Writer, tiles: &Tiles) -> Result<(), CodegenError> {
        self.enter_columns(w, tiles.panel, 0, None);
        let n = self.spec.inputs.div_ceil(INPUTS);
        for stage in 0..tiles.of.stages - 1 {
            let stage = w.i64(stage as i64);
            self.bring(w, tiles, stage, n)?;
        }
        let zero = w.f32(0.0, 0);
        let n_sums = tiles.row_tiles(w) * tiles.panels * (32 / TILE.1) * 4;
        let (begin, end) = (w.i64(0), w.i64(n as i64));
        let sums = w.for_loop(begin, end, 1, &vec![zero; n_sums as usize], |w, stage, sums| {
            // This stage has come; and all warps are done with the one whose place the next takes.
            w.wait_for_copies(tiles.of.stages - 2);
            w.sync();
            let ahead = w.i64(tiles.of.stages as i64 - 1);
            let next = w.add(stage, ahead);
            self.bring(w, tiles, next, n)?;
            // A warp without rows has nothing to multiply.
            let warp = w.group();
            let size = w.i64(tiles.rows_of_warp(w) as i64);
            let before = w.mul(warp, size);
            let first = w.add(tiles.begin, before);
            let has_rows = w.cmp(Cmp::Lt, first, tiles.end);
            w.if_else(has_rows, sums, |w| Ok(self.multiply_stage(w, tiles, stage, sums)))
        })?;
        // Sums take the place of the stages.
        w.wait_for_copies(0);
        w.sync();
        self.store_sums(w, tiles, &sums);
        w.sync();
        self.finish_tile(w, tiles)?;
        w.sync();
        Ok(())
    }

    /// Asks for a stage of `n`; nothing is copied of those behind the last.
    fn bring(&self, w: &mut Writer, tiles: &Tiles, stage: Val, n: u64) -> Result<(), CodegenError> {
        let last = w.i64(n as i64);
        let exists = w.cmp(Cmp::Lt, stage, last);
        w.if_then(exists, |w| {
            let count = w.i64(tiles.of.stages as i64);
            let place = w.rem_unsigned(stage, count);
            let size = w.i64(tiles.stage_bytes() as i64);
            let place = w.mul(place, size);
            self.bring_rows(w, tiles, stage, place)?;
            self.bring_panels(w, tiles, stage, place);
            Ok(())
        })?;
        w.end_copies();
        Ok(())
    }

    fn bring_rows(&self, w: &mut Writer, tiles: &Tiles, stage: Val, place: Val) -> Result<(), CodegenError> {
        // Views may begin anywhere.
        let two = w.i64(2);
        let stride = w.mul(self.x.row_stride, two);
        let address = w.address(self.x.data);
        let either = w.or(stride, address);
        let odd = self.low_bits(w, either, PIECE as i64 - 1);
        let zero = w.i64(0);
        let aligned = w.cmp(Cmp::Eq, odd, zero);
        let threads = u64::from(w.machine().threads * w.machine().groups);
        let n_pieces = tiles.rows * PIECES / threads;
        w.if_then(aligned, |w| {
            for i in 0..n_pieces {
                let (to, from, bytes) = self.piece_of_rows(w, tiles, (stage, place), i * threads);
                w.copy_piece(tiles.shared, to, from, bytes, self.x.data);
            }
            Ok(())
        })?;
        let is_other = w.cmp(Cmp::Ne, odd, zero);
        w.if_then(is_other, |w| {
            for i in 0..n_pieces {
                let (to, from, bytes) = self.piece_of_rows(w, tiles, (stage, place), i * threads);
                let to = w.offset(tiles.shared, to);
                let (zero, end, two) = (w.i64(0), w.i64(PIECE as i64 / 2), w.i64(2));
                w.for_loop(zero, end, 1, &[], |w, k, _| {
                    let behind = w.mul(k, two);
                    let is_there = w.cmp(Cmp::Lt, behind, bytes);
                    let none = w.int(0, Ty::scalar(Elem::I16));
                    let x = w.if_else(is_there, &[none], |w| {
                        let at = w.offset(from, behind);
                        Ok(vec![w.load(Ty::scalar(Elem::I16), at)])
                    })?;
                    let at = w.offset(to, behind);
                    w.store_own(x[0], at);
                    Ok(vec![])
                })?;
            }
            Ok(())
        })
    }

    /// Of the piece whose number is a thread's own and `shift` more: where it goes, where it is, and how many bytes of it there are.
    fn piece_of_rows(&self, w: &mut Writer, tiles: &Tiles, (stage, place): (Val, Val), shift: u64) -> (Val, Val, Val) {
        let shift = w.int(shift as i64, I32);
        let index = w.add(tiles.thread, shift);
        let piece = self.low_bits(w, index, PIECES as i64 - 1);
        let row = w.shr(index, PIECES.ilog2());
        let to = self.place_in_rows(w, row, piece);
        let to = w.widen_unsigned(to, Elem::I64);
        let to = w.add(to, place);
        // Behind the last row it is repeated.
        let row = w.widen_unsigned(row, Elem::I64);
        let row = w.add(tiles.begin, row);
        let one = w.i64(1);
        let last = w.sub(tiles.end, one);
        let row = w.min(row, last);
        let from = w.row(self.x, row, 2);
        let piece = w.widen_unsigned(piece, Elem::I64);
        let per_stage = w.i64(INPUTS as i64);
        let before = w.mul(stage, per_stage);
        let within = w.shl(piece, 3);
        let input = w.add(before, within);
        let (inputs, zero, whole) = (w.i64(self.spec.inputs as i64), w.i64(0), w.i64(PIECE as i64));
        let left = w.sub(inputs, input);
        let left = w.max(left, zero);
        let bytes = w.shl(left, 1);
        let bytes = w.min(bytes, whole);
        (to, w.element(from, input, 2), bytes)
    }

    /// Where a piece of a row lies in a stage.
    fn place_in_rows(&self, w: &mut Writer, row: Val, piece: Val) -> Val {
        let pair = w.shr(row, 1);
        let turn = self.low_bits(w, pair, PIECES as i64 - 1);
        let piece = w.xor(piece, turn);
        let piece = w.shl(piece, PIECE.ilog2());
        let row = w.shl(row, (INPUTS * 2).ilog2());
        w.add(row, piece)
    }

    fn bring_panels(&self, w: &mut Writer, tiles: &Tiles, stage: Val, place: Val) {
        let thread = w.widen_unsigned(tiles.thread, Elem::I64);
        let own = w.shl(thread, PIECE.ilog2());
        let (size, pieces) = (w.i64(PANEL_BYTES as i64), w.i64(PIECES as i64));
        let before = w.mul(stage, size);
        let behind = w.add(before, own);
        // Which piece of the inputs it is, and whether there is one.
        let first = w.mul(stage, pieces);
        let of_stage = w.shr(thread, 5);
        let piece = w.add(first, of_stage);
        let n = w.i64(self.groups() as i64);
        let is_input = w.cmp(Cmp::Lt, piece, n);
        let (whole, none) = (w.i64(PIECE as i64), w.i64(0));
        for (part, start) in self.starts.iter().enumerate() {
            for j in 0..tiles.of.panels {
                let shift = w.i64(j as i64);
                let panel = w.add(tiles.panel, shift);
                let n = w.i64(self.panels() as i64);
                let is_panel = w.cmp(Cmp::Lt, panel, n);
                let exists = w.and(is_input, is_panel);
                let bytes = w.select(exists, whole, none);
                let from = w.offset_const(*start, j * self.panel_bytes());
                let from = w.offset(from, behind);
                let at = tiles.rows * INPUTS * 2 + (part as u64 * tiles.of.panels + j) * PANEL_BYTES;
                let at = w.i64(at as i64);
                let to = w.add(place, at);
                let to = w.add(to, own);
                w.copy_piece(tiles.shared, to, from, bytes, *start);
            }
        }
    }

    /// `sums`, in the order of row tiles, panels, column tiles, and the four of a thread, with the products of a stage.
    fn multiply_stage(&self, w: &mut Writer, tiles: &Tiles, stage: Val, sums: &[Val]) -> Vec<Val> {
        let mut sums = sums.to_vec();
        let count = w.i64(tiles.of.stages as i64);
        let place = w.rem_unsigned(stage, count);
        let size = w.i64(tiles.stage_bytes() as i64);
        let place = w.mul(place, size);
        let stage = w.offset(tiles.shared, place);
        let column_tiles = 32 / TILE.1;
        let (row_tiles, rows) = (tiles.row_tiles(w), tiles.rows_of_warp(w));
        let rows = w.int(rows as i64, I32);
        let first_row = w.mul(tiles.warp, rows);
        let row_of_lane = self.low_bits(w, tiles.lane, 15);
        let half = w.shr(tiles.lane, 4);
        let eighth = w.shr(tiles.lane, 3);
        let (piece_of_lane, pair_of_lane) = (self.low_bits(w, eighth, 1), w.shr(tiles.lane, 4));
        let column = self.low_bits(w, tiles.lane, 7);
        for step in 0..INPUTS / TILE.2 {
            let first_piece = w.int((step * 2) as i64, I32);
            let mut of_rows = Vec::new();
            for m in 0..row_tiles {
                let shift = w.int((m * TILE.0) as i64, I32);
                let row = w.add(first_row, row_of_lane);
                let row = w.add(row, shift);
                let piece = w.add(first_piece, half);
                let at = self.place_in_rows(w, row, piece);
                of_rows.push(w.load_tiles(stage, at));
            }
            let mut of_columns = Vec::new();
            for panel in 0..tiles.panels {
                for pair in 0..column_tiles / 2 {
                    let piece = w.add(first_piece, piece_of_lane);
                    let piece = w.shl(piece, (32 * PIECE).ilog2());
                    let of_pair = w.shl(pair_of_lane, 3);
                    let of_column = w.add(of_pair, column);
                    let shift = w.int((pair * 2 * TILE.1) as i64, I32);
                    let of_column = w.add(of_column, shift);
                    let of_column = w.shl(of_column, PIECE.ilog2());
                    let at = w.add(piece, of_column);
                    let base = w.int((tiles.rows * INPUTS * 2 + panel * PANEL_BYTES) as i64, I32);
                    let at = w.add(at, base);
                    let [a, b, c, d] = w.load_tiles(stage, at);
                    of_columns.extend([[a, b], [c, d]]);
                }
            }
            for (m, rows) in of_rows.iter().enumerate() {
                for (n, columns) in of_columns.iter().enumerate() {
                    let at = (m * of_columns.len() + n) * 4;
                    let four = [sums[at], sums[at + 1], sums[at + 2], sums[at + 3]];
                    sums[at..at + 4].copy_from_slice(&w.tile_dot(tiles.dot, *rows, *columns, four));
                }
            }
        }
        sums
    }

    /// Bytes of a row of sums.
    fn row_of_sums(&self, tiles: &Tiles) -> u64 {
        (tiles.panels * 32 + PADDING) * 4
    }

    fn store_sums(&self, w: &mut Writer, tiles: &Tiles, sums: &[Val]) {
        let rows = w.int(tiles.rows_of_warp(w) as i64, I32);
        let first_row = w.mul(tiles.warp, rows);
        let quarter = w.shr(tiles.lane, 2);
        let row = w.add(first_row, quarter);
        let of_lane = self.low_bits(w, tiles.lane, 3);
        let size = w.int(self.row_of_sums(tiles) as i64, I32);
        let at = w.mul(row, size);
        let column = w.shl(of_lane, 3);
        let at = w.add(at, column);
        let at = w.widen_unsigned(at, Elem::I64);
        let at = w.offset(tiles.shared, at);
        let per_row_tile = sums.len() as u64 / tiles.row_tiles(w);
        for (i, sum) in (0..).zip(sums) {
            let (m, rest) = (i / per_row_tile, i % per_row_tile);
            let (n, of_four) = (rest / 4, rest % 4);
            let row = m * TILE.0 + of_four / 2 * (TILE.0 / 2);
            let bytes = row * self.row_of_sums(tiles) + (n * TILE.1 + of_four % 2) * 4;
            let to = w.offset_const(at, bytes);
            w.store_own(*sum, to);
        }
    }

    /// Epilogue and store of the rows of each warp.
    fn finish_tile(&mut self, w: &mut Writer, tiles: &Tiles) -> Result<(), CodegenError> {
        let rows = tiles.rows_of_warp(w);
        for j in 0..tiles.of.panels {
            let shift = w.i64(j as i64);
            let panel = w.add(tiles.panel, shift);
            let n = w.i64(self.panels() as i64);
            let is_panel = w.cmp(Cmp::Lt, panel, n);
            w.if_then(is_panel, |w| {
                self.enter_columns(w, panel, 0, None);
                let warp = w.group();
                let size = w.i64(rows as i64);
                let first = w.mul(warp, size);
                let (begin, end) = (w.i64(0), size);
                w.for_loop(begin, end, 1, &[], |w, i, _| {
                    let of_tile = w.add(first, i);
                    let row = w.add(tiles.begin, of_tile);
                    let inside = w.cmp(Cmp::Lt, row, tiles.end);
                    w.if_then(inside, |w| {
                        let at = w.element(tiles.shared, of_tile, self.row_of_sums(tiles));
                        let sums: Vec<Val> = (0..self.spec.parts as u64)
                            .map(|part| {
                                let at = w.offset_const(at, (part * tiles.of.panels + j) * 32 * 4);
                                w.load(Ty::of(Elem::F32, self.schedule.lanes), at)
                            })
                            .collect();
                        self.finish_row(w, Place { row, choice: None }, &sums)
                    })?;
                    Ok(vec![])
                })?;
                Ok(())
            })?;
        }
        Ok(())
    }
}
