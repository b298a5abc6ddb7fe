//! Products with the matrices of the experts that are chosen for each row.
//!
//! For one row, a tile is one of its choices by one panel of outputs: exactly the chosen matrices are read. For more, a tile is an expert by a
//! panel: it looks through the choices of all rows for those of its expert, and runs them as one product, so that each matrix is read once a
//! step. A number outside the stack means the nearest expert.

use super::by_block::{Rows, Tile};
use super::{CACHE_LINE, Linear, Place};
use crate::error::CodegenError;
use crate::mlir::writer::{Cmp, Elem, KernelParams, Ty, Val, Writer};
use crate::plan::kernel::Experts;

/// Most choices that are looked through at a time, about.
const CHUNK: u64 = 16_384;

/// Choices that a thread looks at before the block counts what it found.
const TOGETHER: u64 = 8;

/// Threads of a warp.
const WARP: u64 = 32;

impl Linear<'_> {
    /// Writes the tiles; gives the bytes of scratch they need.
    pub(super) fn of_experts(
        &mut self,
        w: &mut Writer,
        params: &KernelParams,
        experts: Experts,
    ) -> Result<u64, CodegenError> {
        let n_rows = w.n_rows(params.args, self.spec.space);
        let by_expert = self.schedule.by_expert;
        w.for_loop(params.tile_begin, params.tile_end, 1, &[], |w, tile, _| {
            let panels = w.i64(self.panels() as i64);
            let block = w.div_unsigned(tile, panels);
            let panel = w.rem_unsigned(tile, panels);
            if by_expert {
                self.rows_of_expert(w, (block, panel), n_rows, params.scratch, experts)?;
            } else {
                self.one_choice(w, (block, panel), n_rows, experts)?;
            }
            Ok(vec![])
        })?;
        self.leave_form(w)?;
        let blocks = self.schedule.scratch.filter(|_| by_expert);
        Ok(match blocks {
            Some(blocks) => list_bytes(experts).next_multiple_of(CACHE_LINE) + self.block_scratch(blocks),
            None if by_expert => list_bytes(experts),
            None => 0,
        })
    }

    /// The product of choice number `choice` over all rows.
    fn one_choice(
        &mut self,
        w: &mut Writer,
        (choice, panel): (Val, Val),
        n_rows: Val,
        experts: Experts,
    ) -> Result<(), CodegenError> {
        let place = of_number(w, choice, experts);
        let expert = self.expert_at(w, place, experts)?;
        let chosen = w.i64(experts.chosen as i64);
        let end = w.mul(n_rows, chosen);
        let x = self.x_at(w, place, experts);
        for step in 0..self.steps() {
            self.enter_columns(w, panel, step, Some(expert));
            self.block(w, &[x], &[(choice, place)], end)?;
        }
        Ok(())
    }

    /// The products of all rows that chose an expert.
    fn rows_of_expert(
        &mut self,
        w: &mut Writer,
        (expert, panel): (Val, Val),
        n_rows: Val,
        list: Val,
        experts: Experts,
    ) -> Result<(), CodegenError> {
        let blocks = self.schedule.scratch;
        self.for_lists(w, expert, n_rows, (list, experts), |linear, w, count| {
            let zero = w.i64(0);
            if let Some(blocks) = blocks {
                let (one, rows) = (w.i64(1), linear.schedule.rows_per_tile);
                let panels = (panel, w.add(panel, one));
                let scratch = w.offset_const(list, list_bytes(experts).next_multiple_of(CACHE_LINE));
                w.for_loop(zero, count, rows as i64, &[], |w, first, _| {
                    let rows = w.i64(rows as i64);
                    let last = w.add(first, rows);
                    let rows = (first, w.min(last, count));
                    let tile =
                        Tile { panels, expert: Some(expert), rows, of: Rows::Listed(list, experts), short: false };
                    linear.tile_by_block(w, tile, scratch, blocks)?;
                    Ok(vec![])
                })?;
                return Ok(());
            }
            for step in 0..linear.steps() {
                linear.enter_columns(w, panel, step, Some(expert));
                w.for_loop(zero, count, i64::from(linear.schedule.micro_rows), &[], |w, first, _| {
                    linear.tile_of_list(w, list, (first, count), experts)?;
                    Ok(vec![])
                })?;
            }
            Ok(())
        })
    }

    /// Runs `body` on lists of the choices of `expert`, which all rows together are; it is given how many there are.
    pub(super) fn for_lists(
        &mut self,
        w: &mut Writer,
        expert: Val,
        n_rows: Val,
        (list, experts): (Val, Experts),
        body: impl FnOnce(&mut Self, &mut Writer, Val) -> Result<(), CodegenError>,
    ) -> Result<(), CodegenError> {
        let zero = w.i64(0);
        let chunk = rows_of_chunk(experts);
        w.for_loop(zero, n_rows, chunk as i64, &[], |w, begin, _| {
            let size = w.i64(chunk as i64);
            let end = w.add(begin, size);
            let end = w.min(end, n_rows);
            let count = if w.is_block() {
                self.choices_of_block(w, expert, (begin, end), list, experts)?
            } else {
                self.choices_of(w, expert, (begin, end), list, experts)?
            };
            w.sync();
            body(self, w, count)?;
            w.sync();
            Ok(vec![])
        })?;
        Ok(())
    }

    /// Lists the numbers of the choices of `expert` among those of the rows `begin .. end`; how many there are.
    fn choices_of(
        &self,
        w: &mut Writer,
        expert: Val,
        (begin, end): (Val, Val),
        list: Val,
        experts: Experts,
    ) -> Result<Val, CodegenError> {
        let (zero, one) = (w.i64(0), w.i64(1));
        let chosen = w.i64(experts.chosen as i64);
        let count = w.for_loop(begin, end, 1, &[zero], |w, row, count| {
            let first = w.mul(row, chosen);
            w.for_loop(zero, chosen, 1, count, |w, choice, count| {
                let number = w.add(first, choice);
                let at = w.element(list, count[0], 4);
                let narrow = w.resize(number, Elem::I32);
                w.store(narrow, at);
                let own = self.expert_at(w, Place { row, choice: Some(choice) }, experts)?;
                let is_it = w.cmp(Cmp::Eq, own, expert);
                let counted = w.select(is_it, one, zero);
                Ok(vec![w.add(count[0], counted)])
            })
        })?;
        Ok(count[0])
    }

    /// The same by a block of threads, each of which looks at some choices at a time.
    fn choices_of_block(
        &self,
        w: &mut Writer,
        expert: Val,
        (begin, end): (Val, Val),
        list: Val,
        experts: Experts,
    ) -> Result<Val, CodegenError> {
        let threads = u64::from(w.machine().threads * w.machine().groups);
        let warps = threads / WARP;
        let counts = w.shared("counts", warps * 4);
        let narrow = w.thread();
        let thread = w.widen_unsigned(narrow, Elem::I64);
        let last_lane = w.int(WARP as i64 - 1, narrow.ty);
        let lane = w.and(narrow, last_lane);
        let warp = w.shr(narrow, WARP.ilog2());
        let one_bit = w.int(1, narrow.ty);
        let own = w.shl_by(one_bit, lane);
        let before_own = w.sub(own, one_bit);
        let none = w.int(0, narrow.ty);
        let is_first = w.cmp(Cmp::Eq, lane, none);
        let mine = w.widen_unsigned(warp, Elem::I64);
        let mine = w.element(counts, mine, 4);
        let (zero, one, chosen) = (w.i64(0), w.i64(1), w.i64(experts.chosen as i64));
        let (first, end) = (w.mul(begin, chosen), w.mul(end, chosen));
        let last = w.sub(end, one);
        let count = w.for_loop(first, end, (threads * TOGETHER) as i64, &[zero], |w, base, count| {
            let own = w.add(base, thread);
            let mut of_thread = Vec::new();
            for i in 0..TOGETHER {
                let shift = w.i64((i * threads) as i64);
                let number = w.add(own, shift);
                let exists = w.cmp(Cmp::Lt, number, end);
                let nearest = w.min(number, last);
                let place = of_number(w, nearest, experts);
                let chosen = self.expert_at(w, place, experts)?;
                of_thread.push((number, exists, chosen));
            }
            let mut found = Vec::new();
            let mut of_warp = none;
            for (number, exists, chosen) in of_thread {
                let is_it = w.cmp(Cmp::Eq, chosen, expert);
                let is_it = w.and(is_it, exists);
                let all = w.ballot(is_it);
                let before = w.and(all, before_own);
                let before = w.count_bits(before);
                found.push((number, is_it, w.add(of_warp, before)));
                let more = w.count_bits(all);
                of_warp = w.add(of_warp, more);
            }
            w.if_then(is_first, |w| {
                w.store_own(of_warp, mine);
                Ok(())
            })?;
            w.sync();
            let (mut before, mut total) = (none, none);
            for other in 0..warps {
                let at = w.offset_const(counts, other * 4);
                let of_other = w.load(none.ty, at);
                let number = w.int(other as i64, none.ty);
                let is_before = w.cmp(Cmp::Lt, number, warp);
                let added = w.select(is_before, of_other, none);
                before = w.add(before, added);
                total = w.add(total, of_other);
            }
            let before = w.widen_unsigned(before, Elem::I64);
            let before = w.add(count[0], before);
            for (number, is_it, of_warp) in found {
                let of_warp = w.widen_unsigned(of_warp, Elem::I64);
                let at = w.add(before, of_warp);
                let at = w.element(list, at, 4);
                let narrow = w.resize(number, Elem::I32);
                w.if_then(is_it, |w| {
                    w.store_own(narrow, at);
                    Ok(())
                })?;
            }
            // What was counted has been read.
            w.sync();
            let total = w.widen_unsigned(total, Elem::I64);
            Ok(vec![w.add(count[0], total)])
        })?;
        Ok(count[0])
    }

    /// The register tile of the choices from `first` on of a list; behind its end the last is repeated.
    fn tile_of_list(
        &self,
        w: &mut Writer,
        list: Val,
        (first, count): (Val, Val),
        experts: Experts,
    ) -> Result<(), CodegenError> {
        let one = w.i64(1);
        let last = w.sub(count, one);
        let (mut xs, mut places) = (Vec::new(), Vec::new());
        for i in 0..self.schedule.micro_rows {
            let i = w.i64(i64::from(i));
            let number = w.add(first, i);
            let listed = w.min(number, last);
            let choice = w.load_u32(list, listed);
            let place = of_number(w, choice, experts);
            xs.push(self.x_at(w, place, experts));
            places.push((number, place));
        }
        self.block(w, &xs, &places, count)
    }

    /// The inputs of a choice.
    pub(super) fn x_at(&self, w: &mut Writer, place: Place, experts: Experts) -> Val {
        let place = Place { choice: place.choice.filter(|_| experts.by_choice), ..place };
        self.row_at(w, self.x, place, self.width_of_x(), self.input_bytes())
    }

    /// The expert of a choice.
    fn expert_at(&self, w: &mut Writer, place: Place, experts: Experts) -> Result<Val, CodegenError> {
        let index = self.index.ok_or_else(|| CodegenError::bug("linear", "no index of experts"))?;
        let at = self.row_at(w, index, place, 1, 8);
        let number = w.load(Ty::scalar(Elem::I64), at);
        let (zero, last) = (w.i64(0), w.i64(experts.count as i64 - 1));
        let number = w.max(number, zero);
        Ok(w.min(number, last))
    }
}

fn rows_of_chunk(experts: Experts) -> u64 {
    (CHUNK / experts.chosen).max(1)
}

/// Bytes of a list of choices.
pub(super) fn list_bytes(experts: Experts) -> u64 {
    // One more than is ever kept: a choice may be written before it is known to count.
    (rows_of_chunk(experts) * experts.chosen + 1) * 4
}

/// Row and choice of a choice's number over all rows.
pub(super) fn of_number(w: &mut Writer, number: Val, experts: Experts) -> Place {
    let chosen = w.i64(experts.chosen as i64);
    let row = w.div_unsigned(number, chosen);
    Place { row, choice: Some(w.rem_unsigned(number, chosen)) }
}
