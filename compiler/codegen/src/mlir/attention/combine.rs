//! The results of an attention whose keys were divided into parts: each part's, relative to its own maximum, brought to one.
//!
//! Of each head and part a row of the operand holds the weighted sum of values, the maximum as a power of two, and the sum of weights. Of a part without
//! keys there is only the maximum, which says so.
//! Steps of more rows than [`PARTED_ROWS`](crate::plan::kernel::PARTED_ROWS) are not divided, and there is nothing to do.
//!
//! Operands of the launch: the parts, the result.

use super::super::frame::{Buffer, RowSpace};
use super::super::machine::Machine;
use super::super::writer::{Cmp, Elem, Ty, Val, Writer};
use super::ABSENT;
use super::results::Results;
use crate::error::CodegenError;
use crate::plan::kernel::CombineSpec;

/// Where the parts of a row and a head lie.
pub(super) fn parts_of(w: &mut Writer, buffer: Buffer, (row, head): (Val, Val), spec: &CombineSpec) -> Val {
    let of_row = w.element(buffer.data, row, spec.row_elements() * 4);
    w.element(of_row, head, spec.row_elements() / spec.heads * 4)
}

/// Writes the kernel; gives its text and the bytes of scratch it needs. `parted`: for steps that are divided; otherwise it does nothing.
///
/// # Errors
/// An element type without a lowering.
pub fn emit(symbol: &str, spec: &CombineSpec, machine: &Machine, parted: bool) -> Result<(String, u64), CodegenError> {
    let (mut w, params) = Writer::kernel(symbol, machine);
    if !parted {
        return Ok(w.finish(0));
    }
    let lanes = machine.lanes;
    let buffer = w.buffer(params.args, 0);
    let results = Results { out: w.buffer(params.args, 1), elem: spec.result, dim: spec.value_dim, lanes };
    let n_rows = w.n_rows(params.args, RowSpace { axis: spec.axis, selected: false });
    w.for_loop(params.tile_begin, params.tile_end, 1, &[], |w, tile, _| {
        let group = w.div_unsigned(tile, n_rows);
        let row = w.rem_unsigned(tile, n_rows);
        let heads = w.i64((spec.heads / spec.kv_heads) as i64);
        let first = w.mul(group, heads);
        let end = w.add(first, heads);
        w.for_loop(first, end, 1, &[], |w, head, _| {
            let parts = parts_of(w, buffer, (row, head), spec);
            combine(w, spec, &results, parts, (row, head))?;
            Ok(vec![])
        })?;
        Ok(vec![])
    })?;
    Ok(w.finish(0))
}

fn combine(
    w: &mut Writer,
    spec: &CombineSpec,
    results: &Results,
    parts: Val,
    place: (Val, Val),
) -> Result<(), CodegenError> {
    let lanes = results.lanes;
    let bytes = (spec.value_dim + 2) * 4;
    let scalar = |w: &mut Writer, part: Val, element: u64| {
        let at = w.offset_const(part, (spec.value_dim + element) * 4);
        w.load(Ty::scalar(Elem::F32), at)
    };
    let (begin, end) = (w.i64(0), w.i64(spec.parts as i64));
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
