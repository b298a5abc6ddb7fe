//! Tiles of bf16 that teams of four warps multiply, each 64 rows by all columns, out of stages that other warps bring to shared memory.
//!
//! ```text
//! stage   rows     [row][8 pieces of 16 bytes]          pieces change places by the row's number
//!         columns  [piece][panel][column][16 bytes]     so that all columns of a tile are equally far apart
//! ```
//!
//! Each stage has two barriers. One says that it is full: the copies of panels, which lie in pieces of all their columns as they do in memory, count their bytes on
//! it, and a warp that brings rows arrives when a stage later its own copies are there. The other says that it is empty: the warps of a team arrive when their
//! products of it are done, while those of the next go on already.
//!
//! Behind the inputs' end rows are 0, and so are pieces of panels, and panels behind the last: they are copied from memory that is 0. When all is multiplied, sums
//! take the place of the stages, and all warps finish rows: several at a time, so that what the epilogue reads is asked for before any of it is waited for.

use super::{COLUMNS, I32, PIECE, Stage, Tiles};
use crate::error::CodegenError;
use crate::mlir::linear::Linear;
use crate::mlir::machine::TeamDot;
use crate::mlir::schedule::TeamSchedule;
use crate::mlir::teams::Layout;
use crate::mlir::writer::{Cmp, Elem, Ty, Val, Writer};
use crate::plan::kernel::LinearSpec;

/// 64 inputs.
pub(super) const STAGE: Stage = Stage { inputs: 64, row: 128, words: 0, panel: 128 * COLUMNS };

/// f32 between the rows of sums, so that pairs of four rows lie in all banks.
pub(super) const PADDING: u64 = 8;

/// What the places of stages are multiples of.
const ALIGNMENT: u64 = 1024;

/// Rows of a team.
const ROWS: u64 = 64;

/// Bytes of inputs that an instruction multiplies.
const STEP: u64 = 32;

/// Rows that a warp finishes at a time: all that is loaded for them, and where they are, has to fit its registers.
fn together(spec: &LinearSpec) -> u64 {
    if spec.experts.is_some() || spec.parts + spec.extras.len() > 3 { 8 } else { 16 }
}

/// Threads of a warp.
const WARP: u64 = 32;

/// Bytes of a piece of a panel.
const PANEL_PIECE: u64 = COLUMNS * PIECE;

/// Bytes of shared memory that a launch brings for so many of stages.
pub(super) fn brought_bytes(stages: u64) -> u64 {
    stages + ALIGNMENT
}

/// Where the stages begin.
pub(super) fn shared(w: &mut Writer) -> Val {
    let brought = w.shared_of_launch();
    w.aligned_shared(brought, ALIGNMENT)
}

/// The barriers of all stages.
#[derive(Clone, Copy)]
struct Barriers {
    first: Val,
    stages: u64,
}

impl Barriers {
    fn new(w: &mut Writer, stages: u64) -> Self {
        let at = w.shared("barriers", 2 * stages * 8);
        Barriers { first: w.shared_place(at), stages }
    }

    /// That of a slot, which says that it is full.
    fn full(self, w: &mut Writer, slot: Val) -> Val {
        let behind = w.shl(slot, 3);
        w.add(self.first, behind)
    }

    fn empty(self, w: &mut Writer, slot: Val) -> Val {
        let full = self.full(w, slot);
        let behind = w.int(self.stages as i64 * 8, I32);
        w.add(full, behind)
    }
}

/// A piece of a panel that a thread brings of each stage.
struct Source {
    /// Where the stages' pieces begin, and where the first goes in a stage.
    at: Val,
    to: Val,
    /// Whether it brings any.
    is_own: Val,
    /// Its number among those of a panel's stage, where the last stage has not all.
    piece: Option<Val>,
    /// Whether there is such a panel, where that is not known.
    is_panel: Option<Val>,
}

impl Linear<'_> {
    pub(super) fn one_tile_of_teams(
        &mut self,
        w: &mut Writer,
        tiles: &Tiles,
        teams: TeamSchedule,
        expert: Option<Val>,
    ) -> Result<(), CodegenError> {
        let dot = w.machine().team_dot.ok_or_else(|| CodegenError::bug("linear", "no products of teams"))?;
        let barriers = Barriers::new(w, tiles.of.stages);
        let n = w.i64(self.spec.inputs.div_ceil(STAGE.inputs) as i64);
        // Teams that have rows.
        let rows = w.i64(tiles.rows as i64);
        let left = w.sub(tiles.end, tiles.begin);
        let left = w.min(left, rows);
        let n_teams = w.ceil_div(left, ROWS);
        let n_teams = w.resize(n_teams, Elem::I32);
        let n_warps = w.shl(n_teams, TeamSchedule::GROUPS.ilog2());
        let number = w.thread();
        let zero = w.int(0, I32);
        let is_first = w.cmp(Cmp::Eq, number, zero);
        w.if_then(is_first, |w| {
            let arrivals = w.int(i64::from(teams.bringing) + 1, I32);
            for slot in 0..tiles.of.stages {
                let slot = w.int(slot as i64, I32);
                let (full, empty) = (barriers.full(w, slot), barriers.empty(w, slot));
                w.make_barrier(full, arrivals);
                w.make_barrier(empty, n_warps);
            }
            Ok(())
        })?;
        // Copies see the barriers, and write over what threads read and wrote of the last tile.
        w.order_shared();
        w.sync();
        let brings = w.cmp(Cmp::Ge, tiles.thread, zero);
        w.if_then(brings, |w| self.bring_stages(w, tiles, barriers, n))?;
        let team = w.shr(tiles.warp, TeamSchedule::GROUPS.ilog2());
        let multiplies = w.cmp(Cmp::Lt, team, n_teams);
        w.if_then(multiplies, |w| {
            let sums = self.multiply_stages(w, tiles, barriers, dot, n)?;
            // All have read what sums are written over.
            let threads = w.shl(n_warps, 5);
            w.sync_some(threads);
            store_sums(w, tiles, &sums);
            Ok(())
        })?;
        w.sync();
        w.if_then(is_first, |w| {
            for slot in 0..tiles.of.stages {
                let slot = w.int(slot as i64, I32);
                let (full, empty) = (barriers.full(w, slot), barriers.empty(w, slot));
                w.end_barrier(full);
                w.end_barrier(empty);
            }
            Ok(())
        })?;
        self.finish_tile_of_teams(w, tiles, expert)?;
        w.sync();
        Ok(())
    }

    /// Brings all stages, by the warps that do nothing else.
    fn bring_stages(&self, w: &mut Writer, tiles: &Tiles, barriers: Barriers, n: Val) -> Result<(), CodegenError> {
        let brought = self.brought(w, tiles);
        let source = self.source_of_panels(w, tiles);
        let zeros = (source.is_panel.is_some() || source.piece.is_some()).then(|| w.zeros(PANEL_PIECE));
        let (first, one) = (w.int(0, I32), w.int(1, I32));
        let is_first = w.cmp(Cmp::Eq, tiles.thread, first);
        let own = w.cmp(Cmp::Eq, tiles.lane, first);
        // What a thread brought is there, and may be read.
        let announce = |w: &mut Writer, slot: Val, but: u64| {
            w.wait_for_copies(but);
            w.order_shared();
            w.sync_group();
            let full = barriers.full(w, slot);
            w.if_then(own, |w| {
                w.arrive(full);
                Ok(())
            })
        };
        let begin = w.i64(0);
        let carried = w.for_loop(begin, n, 1, &[first, one, first], |w, stage, carried| {
            let (slot, bit, before) = (carried[0], carried[1], carried[2]);
            let (full, empty) = (barriers.full(w, slot), barriers.empty(w, slot));
            w.wait_for_phase(empty, bit);
            let wide = w.widen_unsigned(slot, Elem::I64);
            let size = w.i64(tiles.stage_bytes() as i64);
            let place = w.mul(wide, size);
            w.if_then(is_first, |w| {
                let bytes = w.int((tiles.panels * STAGE.panel) as i64, I32);
                w.arrive_and_expect(full, bytes);
                Ok(())
            })?;
            self.bring_rows(w, tiles, &brought, (stage, place))?;
            w.end_copies();
            self.bring_panels_whole(w, (&source, zeros), (stage, place), full)?;
            let is_later = w.cmp(Cmp::Gt, stage, begin);
            w.if_then(is_later, |w| announce(w, before, 1))?;
            let (next, turned) = w.next_slot(slot, bit, tiles.of.stages);
            Ok(vec![next, turned, slot])
        })?;
        announce(w, carried[2], 0)
    }

    fn source_of_panels(&self, w: &mut Writer, tiles: &Tiles) -> Source {
        // A thread issues its copy by itself, one after another: warps share them evenly.
        let of_warp = self.pieces_of_warp(tiles);
        let size = w.int(of_warp as i64, I32);
        let warp = w.shr(tiles.thread, 5);
        let before = w.mul(warp, size);
        let number = w.add(before, tiles.lane);
        let is_own = w.cmp(Cmp::Lt, tiles.lane, size);
        let count = w.int(tiles.panels as i64, I32);
        let piece = w.div_unsigned(number, count);
        let panel = w.rem_unsigned(number, count);
        let of_part = w.int(tiles.of.panels as i64, I32);
        let part = w.div_unsigned(panel, of_part);
        let of_part = w.rem_unsigned(panel, of_part);
        let of_part = w.widen_unsigned(of_part, Elem::I64);
        let mut start = self.starts[0];
        for (number, other) in self.starts.iter().enumerate().skip(1) {
            let number = w.int(number as i64, I32);
            let is_it = w.cmp(Cmp::Eq, part, number);
            start = w.select(is_it, *other, start);
        }
        let at = w.element(start, of_part, self.panel_bytes());
        let piece = w.widen_unsigned(piece, Elem::I64);
        let at = w.element(at, piece, PANEL_PIECE);
        let is_panel = (!self.panels().is_multiple_of(tiles.of.panels)).then(|| {
            let number = w.add(tiles.panel, of_part);
            let n = w.i64(self.panels() as i64);
            w.cmp(Cmp::Lt, number, n)
        });
        let to = w.shl(number, PANEL_PIECE.ilog2());
        let columns = w.int(tiles.stage.panels_at(tiles.rows) as i64, I32);
        let to = w.add(to, columns);
        let shared = w.shared_place(tiles.shared);
        let to = w.add(shared, to);
        let piece = (!self.groups().is_multiple_of(STAGE.pieces())).then_some(piece);
        Source { at, to, is_own, piece, is_panel }
    }

    /// Pieces of all panels of a stage that a warp brings, each a thread.
    fn pieces_of_warp(&self, tiles: &Tiles) -> u64 {
        tiles.panels * STAGE.pieces() * WARP / tiles.bringing
    }

    /// Begins to copy the panels of a stage.
    fn bring_panels_whole(
        &self,
        w: &mut Writer,
        (source, zeros): (&Source, Option<Val>),
        (stage, place): (Val, Val),
        full: Val,
    ) -> Result<(), CodegenError> {
        w.if_then(source.is_own, |w| {
            let mut from = w.element(source.at, stage, STAGE.panel);
            if let Some(zeros) = zeros {
                let mut exists = source.is_panel;
                if let Some(piece) = source.piece {
                    let pieces = w.i64(STAGE.pieces() as i64);
                    let before = w.mul(stage, pieces);
                    let number = w.add(before, piece);
                    let n = w.i64(self.groups() as i64);
                    let is_piece = w.cmp(Cmp::Lt, number, n);
                    exists = Some(exists.map_or(is_piece, |is_panel| w.and(is_panel, is_piece)));
                }
                if let Some(exists) = exists {
                    from = w.select(exists, from, zeros);
                }
            }
            let place = w.resize(place, Elem::I32);
            let to = w.add(source.to, place);
            w.copy_bytes(to, from, PANEL_PIECE, full);
            Ok(())
        })
    }

    /// The sums of a team's rows.
    fn multiply_stages(
        &self,
        w: &mut Writer,
        tiles: &Tiles,
        barriers: Barriers,
        dot: TeamDot,
        n: Val,
    ) -> Result<Vec<Val>, CodegenError> {
        let shared = w.shared_place(tiles.shared);
        let team = w.shr(tiles.warp, TeamSchedule::GROUPS.ilog2());
        let size = w.int((ROWS * STAGE.row) as i64, I32);
        let of_team = w.mul(team, size);
        let rows = w.add(shared, of_team);
        let columns = w.int(tiles.stage.panels_at(tiles.rows) as i64, I32);
        let columns = w.add(shared, columns);
        let rows = w.descriptor(rows, Layout::Turned, (PIECE, 8 * STAGE.row));
        let columns = w.descriptor(columns, Layout::Chunks, (tiles.panels * PANEL_PIECE, 8 * PIECE));
        let n_sums = (tiles.panels * COLUMNS / 2) as usize;
        let (first, begin) = (w.int(0, I32), w.i64(0));
        let own = w.cmp(Cmp::Eq, tiles.lane, first);
        let zero = w.f32(0.0, 0);
        let carried = [&[first, first, first], &vec![zero; n_sums][..]].concat();
        let carried = w.for_loop(begin, n, 1, &carried, |w, stage, carried| {
            let (slot, bit, before) = (carried[0], carried[1], carried[2]);
            let full = barriers.full(w, slot);
            w.wait_for_phase(full, bit);
            let wide = w.widen_unsigned(slot, Elem::I64);
            // Places in descriptors are of 16 bytes, and what is added to them stays within.
            let size = w.i64((tiles.stage_bytes() / PIECE) as i64);
            let place = w.mul(wide, size);
            let (rows, columns) = (w.add(rows, place), w.add(columns, place));
            let factors: Vec<[Val; 2]> = (0..STAGE.row / STEP)
                .map(|step| {
                    let along = w.i64((step * STEP / PIECE) as i64);
                    let down = w.i64((step * STEP / PIECE * tiles.panels * PANEL_PIECE / PIECE) as i64);
                    [w.add(rows, along), w.add(columns, down)]
                })
                .collect();
            // What four warps run together they come to as whole warps.
            w.sync_group();
            let sums = w.begin_products(dot, &factors, &carried[3..]);
            // Those of the stage before are done.
            let is_later = w.cmp(Cmp::Gt, stage, begin);
            let arrives = w.and(is_later, own);
            w.if_then(arrives, |w| {
                let empty = barriers.empty(w, before);
                w.arrive(empty);
                Ok(())
            })?;
            let (next, turned) = w.next_slot(slot, bit, tiles.of.stages);
            Ok([&[next, turned, slot], &sums[..]].concat())
        })?;
        Ok(w.end_products(&carried[3..]))
    }

    /// Epilogue and store: rows of a panel by all warps, some at a time.
    fn finish_tile_of_teams(&mut self, w: &mut Writer, tiles: &Tiles, expert: Option<Val>) -> Result<(), CodegenError> {
        let together = together(self.spec);
        let n = w.i64((tiles.of.panels * tiles.rows / together) as i64);
        let (warp, groups) = (w.group(), w.machine().groups);
        w.for_loop(warp, n, i64::from(groups), &[], |w, number, _| {
            let panels = w.i64(tiles.of.panels as i64);
            let of_part = w.rem_unsigned(number, panels);
            let rows = w.div_unsigned(number, panels);
            let size = w.i64(together as i64);
            let rows = w.mul(rows, size);
            let first = w.add(tiles.begin, rows);
            let panel = w.add(tiles.panel, of_part);
            let n = w.i64(self.panels() as i64);
            let is_panel = w.cmp(Cmp::Lt, panel, n);
            let inside = w.cmp(Cmp::Lt, first, tiles.end);
            let exists = w.and(is_panel, inside);
            w.if_then(exists, |w| {
                self.enter_columns(w, panel, 0, expert);
                let at = w.element(tiles.shared, rows, tiles.row_of_sums());
                let at = w.element(at, of_part, COLUMNS * 4);
                self.finish_rows(w, tiles, at, first)
            })?;
            Ok(vec![])
        })?;
        Ok(())
    }

    /// Some rows from number `first` on, whose sums of the first part are at `at`.
    fn finish_rows(&self, w: &mut Writer, tiles: &Tiles, at: Val, first: Val) -> Result<(), CodegenError> {
        let one = w.i64(1);
        let last = w.sub(tiles.end, one);
        let mut rows = Vec::new();
        for i in 0..together(self.spec) {
            let shift = w.i64(i as i64);
            let number = w.add(first, shift);
            let inside = w.cmp(Cmp::Le, number, last);
            let nearest = w.min(number, last);
            let place = tiles.place(w, nearest);
            let bases = self.extra_bases(w, place)?;
            let mut args: Vec<Val> = (0..self.spec.parts as u64)
                .map(|part| {
                    let at = w.offset_const(at, i * tiles.row_of_sums() + part * tiles.of.panels * COLUMNS * 4);
                    w.load(Ty::of(Elem::F32, self.schedule.lanes), at)
                })
                .collect();
            args.extend(self.load_extras(w, &bases, 0)?);
            rows.push((inside, place, args));
        }
        for (inside, place, args) in rows {
            w.if_then(inside, |w| {
                let out = self.out_at(w, place)?;
                self.finish_vector(w, out, &args, 0)
            })?;
        }
        Ok(())
    }
}

/// A thread has two columns side by side of each eight, of two rows that are eight apart.
fn store_sums(w: &mut Writer, tiles: &Tiles, sums: &[Val]) {
    let quarter = w.shr(tiles.lane, 2);
    let first = w.shl(tiles.warp, 4);
    let row = w.add(first, quarter);
    let size = w.int(tiles.row_of_sums() as i64, I32);
    let at = w.mul(row, size);
    let of_four = super::low_bits(w, tiles.lane, 3);
    let column = w.shl(of_four, 3);
    let at = w.add(at, column);
    let at = w.widen_unsigned(at, Elem::I64);
    let at = w.offset(tiles.shared, at);
    for (i, pair) in (0..).zip(sums.chunks_exact(2)) {
        let to = w.offset_const(at, i % 2 * 8 * tiles.row_of_sums() + i / 2 * 8 * 4);
        w.store_two([pair[0], pair[1]], to);
    }
}
