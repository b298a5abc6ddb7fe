//! Products with many rows, whose sums lie in scratch: a tile goes over its inputs block by block, so that what all of its rows are multiplied with
//! stays in the first levels of caches.
//!
//! Where registers hold tiles bf16 (`tiles`) and integers (`bytes`) are multiplied as they are, and bf16 as f32 otherwise (`widened`): a tile then widens what its rows
//! have of a block, and of one register tile's columns after another the weights, once for all rows and columns and not for each register tile. Behind the
//! last block sums go through the epilogue.
//!
//! Scratch: inputs `[row][input]`, some bytes apart where they are as they were; weights, if they are widened (`[input][part][column]` in f32) or of four bits
//! (as bytes); of integers, what the sums of each group begin at, and these sums; sums `[panel][step][row][part][column]` in f32.

mod bytes;
mod halves;
pub mod tiles;
mod widened;

use super::experts::of_number;
use super::{Linear, Place};
use crate::error::CodegenError;
use crate::mlir::schedule::{Multiplied, ScratchSchedule};
use crate::mlir::writer::{Cmp, Elem, KernelParams, Ty, Val, Writer};
use crate::plan::kernel::{Experts, dtype_bytes};

/// Bytes between rows that lie in scratch as they are, so that rows of a tile are not all kept in the same few places of a cache.
const APART: u64 = 64;

/// Bytes of a bf16.
const HALF: u64 = 2;

/// Which rows a tile has.
#[derive(Clone, Copy, Debug)]
pub(super) enum Rows {
    /// Those of the step, by their number.
    OfStep,
    /// Choices that are listed.
    Listed(Val, Experts),
}

/// A tile: its panels and its rows, each from the first on and before the last.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tile {
    pub(super) panels: (Val, Val),
    pub(super) expert: Option<Val>,
    pub(super) rows: (Val, Val),
    pub(super) of: Rows,
    /// Registers that hold tiles are as short as it has rows, at most as many as one holds, and hold its sums until all inputs are multiplied.
    pub(super) short: bool,
}

/// Where a tile's parts lie in scratch, and how large they are.
#[derive(Clone, Copy, Debug)]
struct Places {
    xs: Val,
    weights: Val,
    /// Whole numbers of groups.
    integers: Val,
    sums: Val,
    /// Inputs of a block.
    inputs: u64,
    /// Bytes of a row of inputs, of an input's weights and of a row's sums, and of the sums of a step.
    x_bytes: u64,
    columns_bytes: u64,
    step_bytes: u64,
}

impl Linear<'_> {
    /// Writes the tiles of a product that no row chooses; gives the bytes of scratch they need.
    pub(super) fn of_blocks(
        &mut self,
        w: &mut Writer,
        params: &KernelParams,
        schedule: ScratchSchedule,
    ) -> Result<u64, CodegenError> {
        let s = self.schedule;
        let elements = w.n_rows(params.args, self.spec.space);
        let times = w.i64(self.spec.times as i64);
        let n_rows = w.mul(elements, times);
        let blocks = w.ceil_div(n_rows, s.rows_per_tile);
        let of_head = self.panels();
        let groups = of_head.div_ceil(schedule.panels);
        w.for_loop(params.tile_begin, params.tile_end, 1, &[], |w, tile, _| {
            let group = w.div_unsigned(tile, blocks);
            let block = w.rem_unsigned(tile, blocks);
            let rows = w.rows_of_block(block, s.rows_per_tile, n_rows);
            let n_groups = w.i64(groups as i64);
            let head = w.div_unsigned(group, n_groups);
            let group = w.rem_unsigned(group, n_groups);
            let n_panels = w.i64(of_head as i64);
            let (first, last) = w.rows_of_block(group, schedule.panels, n_panels);
            let before = w.mul(head, n_panels);
            let panels = (w.add(before, first), w.add(before, last));
            let tile = Tile { panels, expert: None, rows, of: Rows::OfStep, short: false };
            self.tile_by_block(w, tile, params.scratch, schedule)?;
            Ok(vec![])
        })?;
        self.leave_form(w)?;
        Ok(self.block_scratch(schedule))
    }

    /// Leaves registers as they were found.
    pub(super) fn leave_form(&self, w: &mut Writer) -> Result<(), CodegenError> {
        if self.in_tiles() { self.leave_tiles(w) } else { Ok(()) }
    }

    fn in_tiles(&self) -> bool {
        self.schedule.scratch.is_some_and(|blocks| blocks.form != Multiplied::Widened)
    }

    /// Integers, multiplied as bf16.
    fn in_widened_tiles(&self) -> bool {
        self.schedule.scratch.is_some_and(|blocks| blocks.form == Multiplied::WidenedTiles)
    }

    /// Bytes of what tiles are multiplied with of a row, for each input.
    fn tile_bytes(&self) -> u64 {
        if self.in_widened_tiles() { HALF } else { dtype_bytes(self.spec.operand) }
    }

    /// Bytes of scratch that a tile needs.
    pub(super) fn block_scratch(&self, schedule: ScratchSchedule) -> u64 {
        let (inputs, columns) = (self.block_inputs(schedule), self.step_columns());
        let sums = schedule.panels * self.steps() * self.padded_rows() * columns * 4;
        self.rows_bytes(schedule) + self.weights_bytes(inputs) + self.integers_bytes(inputs) + sums
    }

    /// Bytes of scratch for the inputs of a tile's rows.
    fn rows_bytes(&self, schedule: ScratchSchedule) -> u64 {
        let of_block = self.padded_rows() * self.x_bytes(self.block_inputs(schedule));
        // Of few rows all inputs, of those that are listed.
        let of_few = if self.may_be_short() && self.spec.experts.is_some() {
            tiles::TILE_ROWS * self.x_bytes(self.all_inputs())
        } else {
            0
        };
        of_block.max(of_few)
    }

    /// Bytes of so many inputs of a row in scratch.
    fn x_bytes(&self, inputs: u64) -> u64 {
        if self.in_tiles() { inputs * self.tile_bytes() + APART } else { inputs * 4 }
    }

    /// Bytes of the weights of so many inputs in scratch: widened, or of fewer bits than a byte.
    fn weights_bytes(&self, inputs: u64) -> u64 {
        match self.blocks() {
            Some(_) if self.in_widened_tiles() => inputs * self.schedule.panel_columns * HALF,
            Some(blocks) if blocks.form.bits() < 8 => inputs * self.schedule.panel_columns,
            Some(_) => 0,
            None if self.in_tiles() => 0,
            None => inputs * self.step_columns() * 4,
        }
    }

    /// Bytes of whole numbers of so many inputs in scratch.
    fn integers_bytes(&self, inputs: u64) -> u64 {
        let groups = self.blocks().filter(|_| !self.in_widened_tiles());
        groups.map_or(0, |blocks| bytes::integers_bytes(inputs / u64::from(blocks.group)))
    }

    /// Columns of a register tile, of all parts.
    fn step_columns(&self) -> u64 {
        u64::from(self.schedule.lanes * self.schedule.vectors) * self.spec.parts as u64
    }

    /// Rows of a tile in whole register tiles.
    fn padded_rows(&self) -> u64 {
        self.schedule.rows_per_tile.next_multiple_of(self.schedule.micro_rows.into())
    }

    /// Inputs, in whole groups.
    fn all_inputs(&self) -> u64 {
        self.blocks().map_or(self.spec.inputs, |blocks| self.spec.inputs.next_multiple_of(blocks.group.into()))
    }

    /// Inputs of a block, in whole vectors, registers or groups: such that blocks are alike, if any number in question is.
    fn block_inputs(&self, schedule: ScratchSchedule) -> u64 {
        let vector = match self.blocks() {
            Some(blocks) => blocks.group.into(),
            None if self.in_tiles() => tiles::TILE_INPUTS,
            None => self.schedule.lanes.into(),
        };
        let most = schedule.inputs / vector;
        let all = self.all_inputs().div_ceil(vector);
        let alike = (most / 2..=most).rev().find(|n| *n > 0 && self.all_inputs().is_multiple_of(n * vector));
        alike.unwrap_or(all.min(most)) * vector
    }

    /// Writes one tile.
    pub(super) fn tile_by_block(
        &mut self,
        w: &mut Writer,
        tile: Tile,
        scratch: Val,
        schedule: ScratchSchedule,
    ) -> Result<(), CodegenError> {
        // The head, which its inputs are of.
        self.enter_columns(w, tile.panels.0, 0, tile.expert);
        let short = Tile { short: true, ..tile };
        let places = self.places(w, &tile, scratch, schedule);
        if !self.may_be_short() {
            self.sum_of_tile(w, &tile, &places, scratch)?;
        } else if self.schedule.rows_per_tile <= tiles::TILE_ROWS {
            let places = self.places(w, &short, scratch, schedule);
            self.sum_of_tile(w, &short, &places, scratch)?;
        } else {
            let (n, most) = (w.sub(tile.rows.1, tile.rows.0), w.i64(tiles::TILE_ROWS as i64));
            let is_short = w.cmp(Cmp::Le, n, most);
            w.if_then(is_short, |w| {
                let places = self.places(w, &short, scratch, schedule);
                self.sum_of_tile(w, &short, &places, scratch)
            })?;
            let is_long = w.cmp(Cmp::Gt, n, most);
            w.if_then(is_long, |w| self.sum_of_tile(w, &tile, &places, scratch))?;
        }
        self.for_steps(w, &tile, &places, |linear, w, sums| linear.finish_sums(w, &tile, &places, sums))
    }

    /// Leaves the sums of a tile in scratch.
    fn sum_of_tile(&mut self, w: &mut Writer, tile: &Tile, places: &Places, scratch: Val) -> Result<(), CodegenError> {
        if self.in_tiles() {
            let rows = tile.short.then(|| w.sub(tile.rows.1, tile.rows.0));
            self.enter_tiles(w, rows, scratch)?;
        }
        let (zero, whole) = (w.i64(0), self.all_inputs() / places.inputs);
        if !tile.short {
            self.clear(w, tile, places)?;
        }
        let blocks = w.i64(whole as i64);
        w.for_loop(zero, blocks, 1, &[], |w, block, _| {
            let size = w.i64(places.inputs as i64);
            let first = w.mul(block, size);
            self.add_block(w, tile, places, (first, places.inputs))?;
            Ok(vec![])
        })?;
        let rest = self.all_inputs() - whole * places.inputs;
        if rest > 0 {
            let first = w.i64((whole * places.inputs) as i64);
            self.add_block(w, tile, places, (first, rest))?;
        }
        Ok(())
    }

    fn places(&self, w: &mut Writer, tile: &Tile, scratch: Val, schedule: ScratchSchedule) -> Places {
        let of_block = self.block_inputs(schedule);
        let weights = w.offset_const(scratch, self.rows_bytes(schedule));
        let integers = w.offset_const(weights, self.weights_bytes(of_block));
        let sums = w.offset_const(integers, self.integers_bytes(of_block));
        let inputs = if tile.short { self.all_inputs() } else { of_block };
        let (x_bytes, columns_bytes) = (self.x_bytes(inputs), self.step_columns() * 4);
        let step_bytes = self.padded_rows() * columns_bytes;
        Places { xs: scratch, weights, integers, sums, inputs, x_bytes, columns_bytes, step_bytes }
    }

    /// Runs `body` for each register tile's columns of a tile's panels, with the place of their sums.
    fn for_steps(
        &mut self,
        w: &mut Writer,
        tile: &Tile,
        places: &Places,
        body: impl Fn(&mut Self, &mut Writer, Val) -> Result<(), CodegenError>,
    ) -> Result<(), CodegenError> {
        let (first, last) = tile.panels;
        let head = self.head;
        w.for_loop(first, last, 1, &[], |w, panel, _| {
            let number = w.sub(panel, first);
            let sums = w.element(places.sums, number, self.steps() * places.step_bytes);
            for step in 0..self.steps() {
                self.enter_columns(w, panel, step, tile.expert);
                let sums = w.offset_const(sums, step * places.step_bytes);
                body(self, w, sums)?;
            }
            Ok(vec![])
        })?;
        // Known outside of the loop.
        self.head = head;
        Ok(())
    }

    /// Lets all sums of a tile begin at nothing.
    fn clear(&self, w: &mut Writer, tile: &Tile, places: &Places) -> Result<(), CodegenError> {
        let n = w.sub(tile.panels.1, tile.panels.0);
        let of_panel = w.i64((self.steps() * places.step_bytes) as i64);
        let end = w.mul(n, of_panel);
        let (begin, zero) = (w.i64(0), w.f32(0.0, self.schedule.lanes));
        let vector_bytes = u64::from(self.schedule.lanes) * 4;
        w.for_loop(begin, end, vector_bytes as i64, &[], |w, at, _| {
            let at = w.offset(places.sums, at);
            w.store(zero, at);
            Ok(vec![])
        })?;
        Ok(())
    }

    /// Adds the products of `inputs` inputs from `first` on.
    fn add_block(
        &mut self,
        w: &mut Writer,
        tile: &Tile,
        places: &Places,
        (first, inputs): (Val, u64),
    ) -> Result<(), CodegenError> {
        let in_tiles = self.in_tiles();
        if in_tiles {
            self.bring_inputs(w, tile, places, (first, inputs))?;
        } else {
            self.widen_inputs(w, tile, places, (first, inputs))?;
        }
        self.for_steps(w, tile, places, |linear, w, sums| {
            if !in_tiles {
                linear.widen_weights(w, places, (first, inputs))?;
            }
            let (zero, n) = (w.i64(0), w.sub(tile.rows.1, tile.rows.0));
            // What all rows are multiplied with stays in the first level of caches: of tiles one part's weights, as they lie.
            for part in 0..if in_tiles { linear.spec.parts } else { 1 } {
                if linear.in_widened_tiles() {
                    linear.widen_to_halves(w, part, places, (first, inputs))?;
                } else if let Some(blocks) = linear.blocks() {
                    linear.add_groups_of(w, (tile, part, blocks), places, sums, (first, inputs))?;
                    continue;
                }
                w.for_loop(zero, n, i64::from(linear.schedule.micro_rows), &[], |w, row, _| {
                    let sums = w.element(sums, row, places.columns_bytes);
                    if in_tiles {
                        linear.add_tiles(w, (tile, part), places, (row, sums), (first, inputs))?;
                    } else {
                        let x = w.element(places.xs, row, places.x_bytes);
                        linear.add_widened(w, places, (x, sums), inputs)?;
                    }
                    Ok(vec![])
                })?;
            }
            Ok(())
        })
    }

    /// What is multiplied of a row: of the head that the columns are of, where there are several.
    pub(super) fn inputs_of_row(&self, w: &mut Writer, row: Val) -> Val {
        let x = w.row(self.x, row, self.input_bytes());
        match self.head {
            Some(head) => w.element(x, head, self.width_of_x() * self.input_bytes()),
            None => x,
        }
    }

    /// The inputs of a row of a tile, and where its results go.
    fn row_of(&self, w: &mut Writer, tile: &Tile, number: Val) -> (Val, Place) {
        match tile.of {
            Rows::OfStep => (self.inputs_of_row(w, number), Place { row: number, choice: None }),
            Rows::Listed(list, experts) => {
                let choice = w.load_u32(list, number);
                let place = of_number(w, choice, experts);
                (self.x_at(w, place, experts), place)
            }
        }
    }

    /// Brings the sums of the current columns through the epilogue.
    fn finish_sums(&self, w: &mut Writer, tile: &Tile, places: &Places, sums: Val) -> Result<(), CodegenError> {
        let vector = Ty::of(Elem::F32, self.schedule.lanes);
        let vector_bytes = u64::from(self.schedule.lanes) * 4;
        w.for_loop(tile.rows.0, tile.rows.1, 1, &[], |w, row, _| {
            let number = w.sub(row, tile.rows.0);
            let from = w.element(sums, number, places.columns_bytes);
            let mut mine = Vec::new();
            for v in 0..places.columns_bytes / vector_bytes {
                let from = w.offset_const(from, v * vector_bytes);
                mine.push(w.load(vector, from));
            }
            let (_, place) = self.row_of(w, tile, row);
            self.finish_row(w, place, &mine)?;
            Ok(vec![])
        })?;
        Ok(())
    }
}
