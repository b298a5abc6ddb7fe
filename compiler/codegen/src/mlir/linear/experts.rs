//! Products with the matrices of the experts that are chosen for each row.
//!
//! For one row, a tile is one of its choices by one panel of outputs: exactly the chosen matrices are read. For more, a tile is an expert by a
//! panel: it looks through the choices of all rows for those of its expert, and runs them as one product, so that each matrix is read once a
//! step. A number outside the stack means the nearest expert.

use super::{Linear, Place};
use crate::error::CodegenError;
use crate::mlir::writer::{Cmp, Elem, KernelParams, Ty, Val, Writer};
use crate::plan::kernel::{Experts, dtype_bytes};

/// Most choices that are looked through at a time, about.
const CHUNK: u64 = 16_384;

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
        // One more than is ever kept: a choice is written before it is known to count.
        Ok(if by_expert { (rows_of_chunk(experts) * experts.chosen + 1) * 4 } else { 0 })
    }

    /// The product of choice number `choice` over all rows.
    fn one_choice(
        &mut self,
        w: &mut Writer,
        (choice, panel): (Val, Val),
        n_rows: Val,
        experts: Experts,
    ) -> Result<(), CodegenError> {
        let place = place(w, choice, experts);
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
        let zero = w.i64(0);
        let chunk = rows_of_chunk(experts);
        w.for_loop(zero, n_rows, chunk as i64, &[], |w, begin, _| {
            let size = w.i64(chunk as i64);
            let end = w.add(begin, size);
            let end = w.min(end, n_rows);
            let count = self.choices_of(w, expert, (begin, end), list, experts)?;
            w.sync();
            for step in 0..self.steps() {
                self.enter_columns(w, panel, step, Some(expert));
                w.for_loop(zero, count, i64::from(self.schedule.micro_rows), &[], |w, first, _| {
                    self.tile_of_list(w, list, (first, count), experts)?;
                    Ok(vec![])
                })?;
            }
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
            let place = place(w, choice, experts);
            xs.push(self.x_at(w, place, experts));
            places.push((number, place));
        }
        self.block(w, &xs, &places, count)
    }

    fn x_at(&self, w: &mut Writer, place: Place, experts: Experts) -> Val {
        let place = Place { choice: place.choice.filter(|_| experts.by_choice), ..place };
        self.row_at(w, self.x, place, self.width_of_x(), dtype_bytes(self.spec.operand))
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

/// Row and choice of a choice's number over all rows.
fn place(w: &mut Writer, number: Val, experts: Experts) -> Place {
    let chosen = w.i64(experts.chosen as i64);
    let row = w.div_unsigned(number, chosen);
    Place { row, choice: Some(w.rem_unsigned(number, chosen)) }
}
