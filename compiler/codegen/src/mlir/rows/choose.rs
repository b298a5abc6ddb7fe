//! Softmax over a row's last dimension, and choices: the largest elements, those at indices, rows of a table.
//!
//! NaN counts as the largest, and ties go to the lower index. An index outside reads the nearest element: the interpreter refuses it.

use xfc_lang::graph::ValueId;

use super::view::View;
use super::{Body, Row};
use crate::error::CodegenError;
use crate::mlir::writer::{Cmp, Elem, Ty, Val, Writer};

/// Given the last coordinate, lanes and a mask: what to take the largest of.
type KeyFn<'f> = dyn Fn(&mut Writer, Val, u32, Option<Val>) -> Val + 'f;

impl Body<'_> {
    /// `exp(x - max) / sum` where the mask holds, 0 elsewhere; zeros where nothing is seen. A sink takes part in maximum and sum.
    pub(super) fn softmax(
        &mut self,
        w: &mut Writer,
        scores: ValueId,
        mask: Option<ValueId>,
        sink: Option<ValueId>,
        target: &View,
    ) -> Result<(), CodegenError> {
        let from = self.view_of(w, scores)?;
        let Some(n) = from.dims.last().copied() else {
            return Err(self.unsupported(scores.node, "a softmax over tokens"));
        };
        let vectors = from.unit_last() && target.unit_last() && mask.is_none_or(|m| self.vectors(m));
        let lanes = if vectors && n > 1 { self.lanes } else { 0 };
        let this = &*self;
        this.outer(w, &from.dims, from.dims.len() - 1, Vec::new(), &mut |w, mut at| {
            let last = at.len();
            at.push(w.i64(0));
            // What is not seen, and lanes behind the last element.
            let lowest = w.f32(f64::NEG_INFINITY, 0);
            let seen = |w: &mut Writer, at: &[Val], l: u32, tail: Option<Val>| -> Result<Val, CodegenError> {
                let none = w.splat(lowest, l);
                let mut x = from.load(w, at, l, tail);
                x = w.splat(x, l);
                if let Some(mask) = mask {
                    let mask = this.compute(w, mask, at, l, tail)?;
                    let mask = w.splat(mask, l);
                    x = w.select(mask, x, none);
                }
                Ok(match tail {
                    Some(tail) => w.select(tail, x, none),
                    None => x,
                })
            };
            let start = w.splat(lowest, lanes);
            let highest = this.last_dim(w, n, vectors, &[start], &mut |w, i, l, tail, c| {
                at[last] = i;
                let x = seen(w, &at, l, tail)?;
                Ok(vec![w.max(c[0], x)])
            })?[0];
            let mut highest = w.reduce_max(highest);
            let zero = w.f32(0.0, 0);
            let sink = match sink {
                None => None,
                Some(sink) => {
                    at[last] = w.i64(0);
                    let sink = this.compute(w, sink, &at, 0, None)?;
                    highest = w.max(highest, sink);
                    Some(sink)
                }
            };
            let nothing = w.cmp(Cmp::Eq, highest, lowest);
            let shift = w.select(nothing, zero, highest);
            let start = w.splat(zero, lanes);
            let sum = this.last_dim(w, n, vectors, &[start], &mut |w, i, l, tail, c| {
                at[last] = i;
                let x = seen(w, &at, l, tail)?;
                let shift = w.splat(shift, l);
                let x = w.sub(x, shift);
                let e = w.exp(x);
                target.store(w, e, &at, tail);
                Ok(vec![w.add(c[0], e)])
            })?[0];
            let mut sum = w.reduce_add(sum);
            if let Some(sink) = sink {
                let x = w.sub(sink, shift);
                let e = w.exp(x);
                sum = w.add(sum, e);
            }
            let is_zero = w.cmp(Cmp::Eq, sum, zero);
            let one = w.f32(1.0, 0);
            let sum = w.select(is_zero, one, sum);
            this.last_dim(w, n, vectors, &[], &mut |w, i, l, tail, _| {
                at[last] = i;
                let e = target.load(w, &at, l, tail);
                let sum = w.splat(sum, l);
                let p = w.div(e, sum);
                target.store(w, p, &at, tail);
                Ok(vec![])
            })?;
            Ok(())
        })?;
        w.sync();
        Ok(())
    }

    /// The index of the largest element of the last dimension.
    pub(super) fn arg_max(&mut self, w: &mut Writer, from: ValueId, to: ValueId) -> Result<Row, CodegenError> {
        let target = self.scratch(w, Elem::I64, &self.dims(to)?);
        self.largest(w, from, 1, &target)?;
        Ok(Row::Memory(target))
    }

    /// The indices of the `k` largest elements of the last dimension, largest first.
    pub(super) fn largest(&mut self, w: &mut Writer, from: ValueId, k: u64, target: &View) -> Result<(), CodegenError> {
        let x = self.view_of(w, from)?;
        let Some(n) = x.dims.last().copied().filter(|_| matches!(x.elem, Elem::F32 | Elem::I64)) else {
            return Err(self.unsupported(from.node, "the largest of these values"));
        };
        // 32 bits that order as the elements do, then the index counted down: the largest of these has the lowest index of the largest elements.
        let keys = self.scratch(w, Elem::I64, &[n]);
        let wide = x.elem == Elem::I64;
        let order = wide.then(|| self.scratch(w, Elem::I64, &[n]));
        let this = &*self;
        let vectors = x.unit_last();
        let lanes = if vectors && n > 1 { this.lanes } else { 0 };
        this.outer(w, &x.dims, x.dims.len() - 1, Vec::new(), &mut |w, outer| {
            let mut at = outer.clone();
            let last = at.len();
            at.push(w.i64(0));
            this.last_dim(w, n, vectors, &[], &mut |w, i, l, tail, _| {
                at[last] = i;
                let value = x.load(w, &at, l, tail);
                let value = w.splat(value, l);
                let place = count_down(w, i, l);
                match &order {
                    Some(order) => {
                        order.store(w, value, &[i], tail);
                        keys.store(w, place, &[i], tail);
                    }
                    None => {
                        let key = sortable(w, value);
                        let key = w.resize(key, Elem::I64);
                        let key = w.shl(key, 32);
                        let key = w.or(key, place);
                        keys.store(w, key, &[i], tail);
                    }
                }
                Ok(vec![])
            })?;
            w.sync();
            let (zero, end) = (w.i64(0), w.i64(k as i64));
            w.for_loop(zero, end, 1, &[], |w, j, _| {
                let least = w.int(i64::MIN, Ty::scalar(Elem::I64));
                let start = w.splat(least, lanes);
                let best = |w: &mut Writer, which: &KeyFn<'_>| {
                    let best = this.last_dim(w, n, vectors, &[start], &mut |w, i, l, tail, c| {
                        let x = which(w, i, l, tail);
                        let x = match tail {
                            Some(tail) => {
                                let least = w.splat(least, l);
                                w.select(tail, x, least)
                            }
                            None => x,
                        };
                        Ok(vec![w.max(c[0], x)])
                    })?[0];
                    Ok::<Val, CodegenError>(w.reduce_max(best))
                };
                let key = match &order {
                    // Of integers, first the largest, then the lowest index where it is.
                    Some(order) => {
                        let highest = best(w, &|w, i, l, tail| order.load(w, &[i], l, tail))?;
                        best(w, &|w, i, l, tail| {
                            let x = order.load(w, &[i], l, tail);
                            let highest = w.splat(highest, l);
                            let is_it = w.cmp(Cmp::Eq, x, highest);
                            let key = keys.load(w, &[i], l, tail);
                            let least = w.splat(least, l);
                            w.select(is_it, key, least)
                        })?
                    }
                    None => best(w, &|w, i, l, tail| keys.load(w, &[i], l, tail))?,
                };
                let low = w.int(0xFFFF_FFFF, key.ty);
                let place = w.and(key, low);
                let index = w.sub(low, place);
                w.sync();
                keys.store(w, least, &[index], None);
                if let Some(order) = &order {
                    order.store(w, least, &[index], None);
                }
                w.sync();
                let mut to = outer.clone();
                to.push(j);
                target.store(w, index, &to, None);
                Ok(vec![])
            })?;
            w.sync();
            Ok(())
        })
    }

    /// The elements at indices of the last dimension.
    pub(super) fn take(
        &mut self,
        w: &mut Writer,
        values: ValueId,
        indices: ValueId,
        target: &View,
    ) -> Result<(), CodegenError> {
        let (values, indices) = (self.view_of(w, values)?, self.view_of(w, indices)?);
        let n = values.dims.last().copied().unwrap_or(1);
        self.nest(w, &target.dims, false, &mut |w, at, _, _| {
            let index = indices.load(w, at, 0, None);
            let index = clamped(w, index, n);
            let mut from = at.to_vec();
            if let Some(last) = from.last_mut() {
                *last = index;
            }
            let value = values.load(w, &from, 0, None);
            target.store(w, value, at, None);
            Ok(())
        })
    }

    /// A row of a table, as a view.
    pub(super) fn table_row(&mut self, w: &mut Writer, table: ValueId, index: ValueId) -> Result<View, CodegenError> {
        let table = self.view_of(w, table)?;
        let index = self.compute(w, index, &[], 0, None)?;
        let index = clamped(w, index, table.dims[0]);
        Ok(table.index(w, index))
    }

    /// Rows of a table, one for each index, copied to `target`.
    pub(super) fn table_rows(
        &mut self,
        w: &mut Writer,
        table: ValueId,
        indices: ValueId,
        target: &View,
    ) -> Result<(), CodegenError> {
        if let Some(packed) = self.packed(table) {
            let dims = self.dims(table)?;
            return self.packed_rows(w, packed, &dims, indices, target);
        }
        let (table, indices) = (self.view_of(w, table)?, self.view_of(w, indices)?);
        let this = &*self;
        this.outer(w, &indices.dims, indices.dims.len(), Vec::new(), &mut |w, at| {
            let index = indices.load(w, &at, 0, None);
            let index = clamped(w, index, table.dims[0]);
            let from = table.index(w, index);
            let to = at.iter().fold(target.clone(), |to, i| to.index(w, *i));
            this.copy(w, &from, &to)
        })
    }
}

/// An index inside `0..n`.
pub(super) fn clamped(w: &mut Writer, index: Val, n: u64) -> Val {
    let index = w.resize(index, Elem::I64);
    let (zero, last) = (w.i64(0), w.i64(n as i64 - 1));
    let index = w.max(index, zero);
    w.min(index, last)
}

/// `2^32 - 1 - i` for each element from `i` on.
fn count_down(w: &mut Writer, i: Val, lanes: u32) -> Val {
    let highest = w.i64(0xFFFF_FFFF);
    let first = w.sub(highest, i);
    if lanes == 0 {
        return first;
    }
    let first = w.splat(first, lanes);
    let iota: Vec<i64> = (0..i64::from(lanes)).collect();
    let iota = w.lanes(&iota, Elem::I64);
    w.sub(first, iota)
}

/// f32 as i32 of the same order, with both zeros one and every NaN the largest; never the least i32.
fn sortable(w: &mut Writer, x: Val) -> Val {
    // -0 + 0 is 0.
    let zero = w.f32(0.0, x.ty.lanes);
    let is_number = w.cmp(Cmp::Eq, x, x);
    let x = w.add(x, zero);
    let bits = w.bitcast(x, x.ty.with(Elem::I32));
    let none = w.int(0, bits.ty);
    let magnitude = w.int(i64::from(i32::MAX), bits.ty);
    let flipped = w.xor(bits, magnitude);
    let is_negative = w.cmp(Cmp::Lt, bits, none);
    let key = w.select(is_negative, flipped, bits);
    w.select(is_number, key, magnitude)
}
