//! Products of many rows by tensor cores: a block of threads has some rows by some panels, of which the inputs come to shared memory in stages while
//! those that came before are multiplied.
//!
//! Of the rows a stage holds `[row][piece of 16 bytes]`, where the pieces of a row change places from row to row so that eight rows of one piece lie in all
//! banks, as do the two pieces side by side of four rows; behind them it holds what belongs to each panel. A warp has its rows by all columns. Sums go
//! through shared memory to lanes that are columns, as the epilogue has them.
//!
//! Teams of four warps have another form (`teams.rs`), where some threads bring what others multiply.
//!
//! Rows follow one another, or are listed: those that chose an expert.

mod bytes;
mod floats;
mod halves;
mod rows;
mod teams;

use xfc_lang::graph::DType;

use self::rows::Brought;
use super::experts::of_number;
use super::{Linear, Place};
use crate::error::CodegenError;
use crate::mlir::machine::Machine;
use crate::mlir::schedule::{LinearSchedule, TileSchedule};
use crate::mlir::writer::{Cmp, Elem, KernelParams, Ty, Val, Writer};
use crate::plan::kernel::{Experts, LinearSpec};

/// Bytes of a row, or of a column, that are moved at a time.
const PIECE: u64 = 16;

/// Columns of a panel.
const COLUMNS: u64 = 32;

/// Rows and columns of the tiles that an instruction multiplies, and bytes of their inputs.
const TILE: (u64, u64, u64) = (16, 8, 32);

/// f32 between the rows of sums, so that they begin in different banks.
const PADDING: u64 = 4;

const I32: Ty = Ty::scalar(Elem::I32);

/// Bytes of shared memory that a product takes.
pub fn shared_bytes(operand: DType, parts: u64, rows: u64, of: TileSchedule) -> u64 {
    let panels = parts * of.panels;
    (Stage::of(operand, of).bytes(rows, panels) * of.stages).max(rows * row_of_sums(panels, of))
}

/// Bytes of shared memory that the launch of a product brings.
pub fn brought_bytes(spec: &LinearSpec, schedule: &LinearSchedule) -> u64 {
    match schedule.tiles {
        Some(of) if of.teams.is_some() => {
            teams::brought_bytes(shared_bytes(spec.operand, spec.parts as u64, schedule.rows_per_tile, of))
        }
        _ => 0,
    }
}

/// Bytes of a row of sums.
fn row_of_sums(panels: u64, of: TileSchedule) -> u64 {
    (panels * COLUMNS + if of.teams.is_some() { teams::PADDING } else { PADDING }) * 4
}

/// What a stage holds.
#[derive(Clone, Copy)]
struct Stage {
    /// Inputs.
    inputs: u64,
    /// Bytes of a row.
    row: u64,
    /// Words that are brought for a row besides.
    words: u64,
    /// Bytes of a panel.
    panel: u64,
}

impl Stage {
    fn of(operand: DType, of: TileSchedule) -> Stage {
        match operand.blocks() {
            Some(blocks) if blocks.form.is_float() => floats::stage(blocks),
            Some(blocks) => bytes::stage(blocks),
            None if of.teams.is_some() => teams::STAGE,
            None => halves::STAGE,
        }
    }

    fn pieces(&self) -> u64 {
        self.row / PIECE
    }

    /// First byte of the panels.
    fn panels_at(&self, rows: u64) -> u64 {
        rows * self.row
    }

    /// First byte of the words.
    fn words_at(&self, rows: u64, panels: u64) -> u64 {
        self.panels_at(rows) + panels * self.panel
    }

    fn bytes(&self, rows: u64, panels: u64) -> u64 {
        self.words_at(rows, panels) + rows * self.words * 4
    }
}

/// A tile that is being computed, and where.
struct Tiles {
    of: TileSchedule,
    stage: Stage,
    rows: u64,
    /// Panels of all parts.
    panels: u64,
    /// First byte of the stages.
    shared: Val,
    /// Threads that bring the stages, and which of them this is.
    bringing: u64,
    thread: Val,
    lane: Val,
    warp: Val,
    /// First panel.
    panel: Val,
    /// Numbers `begin .. end`: of rows, where `end` is that of the launch, or in a list of choices.
    begin: Val,
    end: Val,
    list: Option<(Val, Experts)>,
}

impl Tiles {
    fn stage_bytes(&self) -> u64 {
        self.stage.bytes(self.rows, self.panels)
    }

    /// Rows of a warp.
    fn rows_of_warp(&self, w: &Writer) -> u64 {
        self.rows / u64::from(w.machine().groups)
    }

    fn row_tiles(&self, w: &Writer) -> u64 {
        self.rows_of_warp(w) / TILE.0
    }

    /// The row of the tile that the first of a warp is.
    fn first_row(&self, w: &mut Writer) -> Val {
        let rows = w.int(self.rows_of_warp(w) as i64, I32);
        w.mul(self.warp, rows)
    }

    fn place(&self, w: &mut Writer, number: Val) -> Place {
        match self.list {
            None => Place { row: number, choice: None },
            Some((list, experts)) => {
                let choice = w.load_u32(list, number);
                of_number(w, choice, experts)
            }
        }
    }

    /// Bytes of a row of sums.
    fn row_of_sums(&self) -> u64 {
        row_of_sums(self.panels, self.of)
    }
}

fn low_bits(w: &mut Writer, x: Val, mask: u64) -> Val {
    let mask = w.int(mask as i64, x.ty);
    w.and(x, mask)
}

/// Whether a machine has instructions for products of tiles of this type.
pub fn multiplies(machine: &Machine, operand: DType) -> bool {
    match operand {
        DType::BF16 => machine.tile_dot.is_some(),
        DType::Blocks(blocks) if blocks.form.is_float() => machine.tile_dot.is_some(),
        operand => operand.blocks().is_some() && machine.byte_tile_dot.is_some(),
    }
}

impl Linear<'_> {
    /// Writes the tiles; gives the bytes of scratch they need.
    pub(super) fn of_tiles(
        &mut self,
        w: &mut Writer,
        params: &KernelParams,
        of: TileSchedule,
    ) -> Result<u64, CodegenError> {
        if let Some(experts) = self.spec.experts {
            return self.tiles_of_experts(w, params, of, experts);
        }
        let n_rows = self.n_rows(w, params.args);
        let rows = self.schedule.rows_per_tile;
        let blocks = w.ceil_div(n_rows, rows);
        w.for_loop(params.tile_begin, params.tile_end, 1, &[], |w, tile, _| {
            let panels = w.div_unsigned(tile, blocks);
            let block = w.rem_unsigned(tile, blocks);
            let size = w.i64(of.panels as i64);
            let panel = w.mul(panels, size);
            let size = w.i64(rows as i64);
            let begin = w.mul(block, size);
            let tiles = self.tile(w, of, panel, (begin, n_rows), None);
            self.one_tile(w, &tiles, None)?;
            Ok(vec![])
        })?;
        Ok(0)
    }

    /// Writes tiles of an expert by some panels: the rows that chose it, some after others.
    fn tiles_of_experts(
        &mut self,
        w: &mut Writer,
        params: &KernelParams,
        of: TileSchedule,
        experts: Experts,
    ) -> Result<u64, CodegenError> {
        let n_rows = w.n_rows(params.args, self.spec.space);
        let n_tiles = self.panels().div_ceil(of.panels);
        let rows = self.schedule.rows_per_tile as i64;
        w.for_loop(params.tile_begin, params.tile_end, 1, &[], |w, tile, _| {
            let count = w.i64(n_tiles as i64);
            let expert = w.div_unsigned(tile, count);
            let panels = w.rem_unsigned(tile, count);
            let size = w.i64(of.panels as i64);
            let panel = w.mul(panels, size);
            let list = params.scratch;
            self.for_lists(w, expert, n_rows, (list, experts), |linear, w, count| {
                let zero = w.i64(0);
                w.for_loop(zero, count, rows, &[], |w, first, _| {
                    let tiles = linear.tile(w, of, panel, (first, count), Some((list, experts)));
                    linear.one_tile(w, &tiles, Some(expert))?;
                    Ok(vec![])
                })?;
                Ok(())
            })?;
            Ok(vec![])
        })?;
        Ok(super::experts::list_bytes(experts))
    }

    fn tile(
        &self,
        w: &mut Writer,
        of: TileSchedule,
        panel: Val,
        (begin, end): (Val, Val),
        list: Option<(Val, Experts)>,
    ) -> Tiles {
        let (rows, parts) = (self.schedule.rows_per_tile, self.spec.parts as u64);
        let mut thread = w.thread();
        let (lane, warp) = (low_bits(w, thread, 31), w.shr(thread, 5));
        let mut bringing = u64::from(w.machine().threads * w.machine().groups);
        let shared = match of.teams {
            None => w.shared("stages", shared_bytes(self.spec.operand, parts, rows, of)),
            Some(teams) => {
                let others = bringing - u64::from(w.machine().threads * teams.bringing);
                bringing -= others;
                let others = w.int(others as i64, I32);
                thread = w.sub(thread, others);
                teams::shared(w)
            }
        };
        let stage = Stage::of(self.spec.operand, of);
        let panels = parts * of.panels;
        Tiles { of, stage, rows, panels, shared, bringing, thread, lane, warp, panel, begin, end, list }
    }

    fn one_tile(&mut self, w: &mut Writer, tiles: &Tiles, expert: Option<Val>) -> Result<(), CodegenError> {
        self.enter_columns(w, tiles.panel, 0, expert);
        if let Some(teams) = tiles.of.teams {
            return self.one_tile_of_teams(w, tiles, teams, expert);
        }
        let brought = self.brought(w, tiles);
        let n = self.spec.inputs.div_ceil(tiles.stage.inputs);
        for stage in 0..tiles.of.stages - 1 {
            let stage = w.i64(stage as i64);
            self.bring(w, tiles, &brought, stage, n)?;
        }
        let zero = w.f32(0.0, 0);
        let n_sums = tiles.row_tiles(w) * tiles.panels * (COLUMNS / TILE.1) * 4;
        let (begin, end) = (w.i64(0), w.i64(n as i64));
        let sums = w.for_loop(begin, end, 1, &vec![zero; n_sums as usize], |w, stage, sums| {
            // This stage has come; and all warps are done with the one whose place the next takes.
            w.wait_for_copies(tiles.of.stages - 2);
            w.sync();
            let ahead = w.i64(tiles.of.stages as i64 - 1);
            let next = w.add(stage, ahead);
            self.bring(w, tiles, &brought, next, n)?;
            // A warp without rows has nothing to multiply.
            let warp = w.group();
            let size = w.i64(tiles.rows_of_warp(w) as i64);
            let before = w.mul(warp, size);
            let first = w.add(tiles.begin, before);
            let has_rows = w.cmp(Cmp::Lt, first, tiles.end);
            w.if_else(has_rows, sums, |w| {
                let place = self.place_of_stage(w, tiles, stage);
                let at = w.offset(tiles.shared, place);
                match self.blocks() {
                    Some(blocks) if blocks.form.is_float() => self.multiply_floats(w, tiles, blocks, at, sums),
                    Some(blocks) => self.multiply_bytes(w, tiles, blocks, at, sums),
                    None => self.multiply_halves(w, tiles, at, sums),
                }
            })
        })?;
        // Sums take the place of the stages.
        w.wait_for_copies(0);
        w.sync();
        self.store_sums(w, tiles, &sums);
        w.sync();
        self.finish_tile(w, tiles, expert)?;
        w.sync();
        Ok(())
    }

    /// Bytes from the first stage's place to that of stage number `stage`.
    fn place_of_stage(&self, w: &mut Writer, tiles: &Tiles, stage: Val) -> Val {
        let count = w.i64(tiles.of.stages as i64);
        let place = w.rem_unsigned(stage, count);
        let size = w.i64(tiles.stage_bytes() as i64);
        w.mul(place, size)
    }

    /// Asks for a stage of `n`; nothing is copied of those behind the last.
    fn bring(&self, w: &mut Writer, tiles: &Tiles, brought: &Brought, stage: Val, n: u64) -> Result<(), CodegenError> {
        let last = w.i64(n as i64);
        let exists = w.cmp(Cmp::Lt, stage, last);
        w.if_then(exists, |w| {
            let place = self.place_of_stage(w, tiles, stage);
            self.bring_rows(w, tiles, brought, (stage, place))?;
            match self.blocks() {
                Some(blocks) if blocks.form.is_float() => self.bring_floats(w, tiles, blocks, (stage, place))?,
                Some(blocks) => self.bring_groups(w, tiles, brought, blocks, (stage, place))?,
                None => self.bring_panels(w, tiles, (stage, place)),
            }
            Ok(())
        })?;
        w.end_copies();
        Ok(())
    }

    /// Begins to copy a piece of each panel of the tile: `behind` bytes behind the panel's first, to `to` bytes behind its first in the stage. `exists`, where
    /// not all pieces do.
    fn bring_piece_of_panels(&self, w: &mut Writer, tiles: &Tiles, (behind, to): (Val, Val), exists: Option<Val>) {
        let (whole, none) = (w.int(PIECE as i64, I32), w.int(0, I32));
        for (part, start) in self.starts.iter().enumerate() {
            for j in 0..tiles.of.panels {
                let is_panel = (!self.panels().is_multiple_of(tiles.of.panels)).then(|| {
                    let shift = w.i64(j as i64);
                    let panel = w.add(tiles.panel, shift);
                    let n = w.i64(self.panels() as i64);
                    w.cmp(Cmp::Lt, panel, n)
                });
                let from = w.offset(*start, behind);
                let from = w.offset_const(from, j * self.panel_bytes());
                let panel = part as u64 * tiles.of.panels + j;
                let at = w.i64((tiles.stage.panels_at(tiles.rows) + panel * tiles.stage.panel) as i64);
                let to = w.add(to, at);
                let exists = match (exists, is_panel) {
                    (Some(piece), Some(panel)) => Some(w.and(piece, panel)),
                    (piece, panel) => piece.or(panel),
                };
                match exists {
                    None => w.copy_some(tiles.shared, to, from, whole),
                    Some(exists) => {
                        let bytes = w.select(exists, whole, none);
                        w.copy_piece(tiles.shared, to, from, bytes, *start);
                    }
                }
            }
        }
    }

    fn store_sums(&self, w: &mut Writer, tiles: &Tiles, sums: &[Val]) {
        let in_blocks = self.integers().is_some();
        let first_row = tiles.first_row(w);
        let quarter = w.shr(tiles.lane, 2);
        let row = w.add(first_row, quarter);
        let of_lane = low_bits(w, tiles.lane, 3);
        let size = w.int(tiles.row_of_sums() as i64, I32);
        let at = w.mul(row, size);
        // Two columns of each tile side by side, or eight columns of four tiles.
        let column = w.shl(of_lane, if in_blocks { 5 } else { 3 });
        let at = w.add(at, column);
        let at = w.widen_unsigned(at, Elem::I64);
        let at = w.offset(tiles.shared, at);
        let per_row_tile = sums.len() as u64 / tiles.row_tiles(w);
        let per_panel = COLUMNS / TILE.1;
        for (i, sum) in (0..).zip(sums) {
            let (m, rest) = (i / per_row_tile, i % per_row_tile);
            let (n, of_four) = (rest / 4, rest % 4);
            let row = m * TILE.0 + of_four / 2 * (TILE.0 / 2);
            let column = if in_blocks {
                n / per_panel * COLUMNS + of_four % 2 * per_panel + n % per_panel
            } else {
                n * TILE.1 + of_four % 2
            };
            let to = w.offset_const(at, row * tiles.row_of_sums() + column * 4);
            w.store_own(*sum, to);
        }
    }

    /// Epilogue and store of the rows of each warp.
    fn finish_tile(&mut self, w: &mut Writer, tiles: &Tiles, expert: Option<Val>) -> Result<(), CodegenError> {
        let rows = tiles.rows_of_warp(w);
        for j in 0..tiles.of.panels {
            let shift = w.i64(j as i64);
            let panel = w.add(tiles.panel, shift);
            let n = w.i64(self.panels() as i64);
            let is_panel = w.cmp(Cmp::Lt, panel, n);
            w.if_then(is_panel, |w| {
                self.enter_columns(w, panel, 0, expert);
                let warp = w.group();
                let size = w.i64(rows as i64);
                let first = w.mul(warp, size);
                let (begin, end) = (w.i64(0), size);
                w.for_loop(begin, end, 1, &[], |w, i, _| {
                    let of_tile = w.add(first, i);
                    let number = w.add(tiles.begin, of_tile);
                    let inside = w.cmp(Cmp::Lt, number, tiles.end);
                    w.if_then(inside, |w| {
                        let at = w.element(tiles.shared, of_tile, tiles.row_of_sums());
                        let sums: Vec<Val> = (0..self.spec.parts as u64)
                            .map(|part| {
                                let at = w.offset_const(at, (part * tiles.of.panels + j) * COLUMNS * 4);
                                w.load(Ty::of(Elem::F32, self.schedule.lanes), at)
                            })
                            .collect();
                        let place = tiles.place(w, number);
                        self.finish_row(w, place, &sums)
                    })?;
                    Ok(vec![])
                })?;
                Ok(())
            })?;
        }
        Ok(())
    }
}
