//! The results of an attention whose keys were divided into parts: each part's, relative to its own maximum, brought to one.
//!
//! Of each head and part a row of the operand holds the weighted sum of values, the maximum as a power of two, and the sum of weights. Of a part without
//! keys there is only the maximum, which says so.
//! Steps of more rows than the [`Division`] says are not divided, and there is nothing to do.
//!
//! Operands of the launch: the parts, the result.

use super::super::frame::{Buffer, RowSpace};
use super::super::machine::Machine;
use super::super::writer::{Cmp, Elem, Ty, Val, Writer};
use super::results::Results;
use super::{ABSENT, Attention, Rows};
use crate::error::CodegenError;
use crate::plan::kernel::{CombineSpec, Division};

/// Parts of each head and row in a step of so many rows.
pub(super) fn parts(w: &mut Writer, division: &Division, n_rows: Val) -> Val {
    let all = w.i64(division.parts as i64);
    if !division.shared {
        return all;
    }
    let one = w.i64(1);
    let of_row = w.div_unsigned(all, n_rows);
    w.max(of_row, one)
}

/// Where the parts of a row and a head lie, of which there are so many of each.
pub(super) fn parts_of(
    w: &mut Writer,
    buffer: Buffer,
    (row, head): (Val, Val),
    (spec, n_parts): (&CombineSpec, Val),
) -> Val {
    let heads = w.i64(spec.heads as i64);
    let before = w.mul(row, heads);
    let before = w.add(before, head);
    let before = w.mul(before, n_parts);
    w.element(buffer.data, before, spec.part_elements() * 4)
}

impl Attention<'_> {
    /// Where a part of the results of a row and a head goes, in a step of so many rows; none where nothing is divided.
    pub(super) fn part_of(&self, w: &mut Writer, n_rows: Val, place: (Val, Val), part: Val) -> Option<Val> {
        let spec = CombineSpec::of(self.spec);
        let n_parts = parts(w, &spec.division, n_rows);
        let at = parts_of(w, self.parts?, place, (&spec, n_parts));
        Some(w.element(at, part, spec.part_elements() * 4))
    }
}

/// Writes the kernel; gives its text and the bytes of scratch it needs. `heads`: of a tile, in steps that are divided; in others it does nothing.
///
/// # Errors
/// An element type without a lowering.
pub fn emit(
    symbol: &str,
    spec: &CombineSpec,
    machine: &Machine,
    heads: Option<u64>,
) -> Result<(String, u64), CodegenError> {
    let (mut w, params) = Writer::kernel(symbol, machine);
    let Some(heads) = heads else { return Ok(w.finish(0)) };
    let lanes = machine.lanes;
    let buffer = w.buffer(params.args, 0);
    let results = Results { out: w.buffer(params.args, 1), elem: spec.result, dim: spec.value_dim, lanes };
    let n_rows = w.n_rows(params.args, RowSpace { axis: spec.axis, selected: false });
    let n_parts = parts(&mut w, &spec.division, n_rows);
    let asked = Rows::of(&mut w, params.args, spec.axis, spec.when);
    w.for_loop(params.tile_begin, params.tile_end, 1, &[], |w, tile, _| {
        let group = w.div_unsigned(tile, n_rows);
        let row = w.rem_unsigned(tile, n_rows);
        let heads = w.i64(heads as i64);
        let first = w.mul(group, heads);
        let end = w.add(first, heads);
        let all = |w: &mut Writer| {
            w.for_loop(first, end, 1, &[], |w, head, _| {
                let parts = parts_of(w, buffer, (row, head), (spec, n_parts));
                combine(w, spec, &results, (parts, n_parts), (row, head))?;
                Ok(vec![])
            })
        };
        match asked.is_meant(w, row) {
            None => all(w)?,
            Some(meant) => {
                w.if_then(meant, |w| all(w).map(|_| ()))?;
                vec![]
            }
        };
        Ok(vec![])
    })?;
    Ok(w.finish(0))
}

fn combine(
    w: &mut Writer,
    spec: &CombineSpec,
    results: &Results,
    (parts, n_parts): (Val, Val),
    place: (Val, Val),
) -> Result<(), CodegenError> {
    let lanes = results.lanes;
    let bytes = spec.part_elements() * 4;
    let scalar = |w: &mut Writer, part: Val, element: u64| {
        let at = w.offset_const(part, (spec.value_dim + element) * 4);
        w.load(Ty::scalar(Elem::F32), at)
    };
    let (begin, end) = (w.i64(0), n_parts);
    let absent = w.f32(ABSENT, 0);
    let highest = w.for_loop(begin, end, 1, &[absent], |w, part, highest| {
        let part = w.element(parts, part, bytes);
        let maximum = scalar(w, part, 0);
        Ok(vec![w.max(highest[0], maximum)])
    })?[0];
    let masks = results.masks(w);
    let zero = w.f32(0.0, lanes);
    let mut totals = vec![w.f32(0.0, 0)];
    totals.extend(masks.iter().map(|_| zero));
    let totals = w.for_loop(begin, end, 1, &totals, |w, part, totals| {
        let part = w.element(parts, part, bytes);
        let maximum = scalar(w, part, 0);
        let has_keys = w.cmp(Cmp::Ne, maximum, absent);
        w.if_else(has_keys, totals, |w| {
            let factor = if spec.softmax {
                let below = w.sub(maximum, highest);
                w.exp2(below)
            } else {
                w.f32(1.0, 0)
            };
            let sum = scalar(w, part, 1);
            let mut next = vec![w.fma(sum, factor, totals[0])];
            let factor = w.splat(factor, lanes);
            for (v, (mask, total)) in masks.iter().zip(&totals[1..]).enumerate() {
                let at = w.offset_const(part, v as u64 * u64::from(lanes) * 4);
                let ty = Ty::of(Elem::F32, lanes);
                let x = match mask {
                    None => w.load(ty, at),
                    Some(mask) => w.load_masked(ty, at, *mask),
                };
                next.push(w.fma(x, factor, *total));
            }
            Ok(next)
        })
    })?;
    results.store(w, place, totals[0], &totals[1..])
}
