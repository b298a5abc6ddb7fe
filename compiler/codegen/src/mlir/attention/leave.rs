//! How the results of a [segment](super::segment) leave: those in bf16 by way of shared memory, those in f32 from registers, four threads a sector.

use xfc_lang::graph::DType;

use super::Attention;
use super::segment::{Place, Segment};
use super::tensors::{Held, KEYS, QUERIES};
use crate::error::CodegenError;
use crate::mlir::expr::elem_of;
use crate::mlir::writer::{Cmp, Elem, Ty, Val, Writer};

const I32: Ty = Ty::scalar(Elem::I32);

/// Where the results of a group pass through shared memory.
#[derive(Clone, Copy)]
pub(super) struct Leaving {
    pub(super) shared: Val,
    /// Bytes from one query's results to the next.
    pub(super) stride: u64,
    /// Queries of a group.
    pub(super) queries: u64,
}

impl Attention<'_> {
    /// Divides results by the sums of weights and stores them. `list`: what a thread holds of each tile of its group.
    pub(super) fn leave(
        &self,
        w: &mut Writer,
        segment: &Segment,
        place: Place,
        leaving: Leaving,
        list: &[Val],
    ) -> Result<(), CodegenError> {
        // What results pass through is found where it is needed: known ahead, it would take registers from the products.
        let place = Place { first_query: w.anew(place.first_query), ..place };
        let (zero, one) = (w.f32(0.0, 0), w.f32(1.0, 0));
        let is_narrow = self.results.elem == DType::BF16;
        let tiles = (leaving.queries / QUERIES) as usize;
        let of_tile = list.len() / tiles;
        for tile in 0..tiles {
            let held = Held::of(&list[tile * of_tile..(tile + 1) * of_tile], 2);
            for half in 0..2 {
                let total = w.over_four(held.totals[half], Writer::add);
                // A query that sees nothing gives zeros.
                let nothing = w.cmp(Cmp::Eq, total, zero);
                let divisor = w.select(nothing, one, total);
                let factor = w.div(one, divisor);
                let pairs: Vec<[Val; 2]> = held
                    .out
                    .iter()
                    .map(|four| [four[2 * half], four[2 * half + 1]].map(|x| w.mul(x, factor)))
                    .collect();
                let behind = w.int((tile as u64 * QUERIES + half as u64 * KEYS) as i64, I32);
                let query = w.add(place.first_query, place.eighth);
                let query = w.add(query, behind);
                let query = w.widen_unsigned(query, Elem::I64);
                if is_narrow {
                    leaving.narrow(w, place, query, &pairs);
                } else {
                    self.leave_wide(w, segment, place, query, &pairs)?;
                }
            }
        }
        if is_narrow { self.store_narrow(w, segment, place, leaving) } else { Ok(()) }
    }

    /// Stores what a thread holds of a query's results, which are in f32.
    fn leave_wide(
        &self,
        w: &mut Writer,
        segment: &Segment,
        place: Place,
        query: Val,
        pairs: &[[Val; 2]],
    ) -> Result<(), CodegenError> {
        let results = &self.results;
        let there = w.cmp(Cmp::Lt, query, segment.n);
        w.if_then(there, |w| {
            let (row, head) = self.locate(w, segment.tile, segment.from, segment.n, query);
            let to = w.row(results.out, row, 4);
            let to = w.element(to, head, results.dim * 4);
            let own = w.widen_unsigned(place.quarter, Elem::I64);
            let to = w.element(to, own, 2 * 4);
            for (n, pair) in pairs.iter().enumerate() {
                for (i, x) in pair.iter().enumerate() {
                    let at = w.offset_const(to, (n as u64 * KEYS + i as u64) * 4);
                    w.store_own(*x, at);
                }
            }
            Ok(())
        })
    }

    /// Stores the results of a group that lie in shared memory.
    fn store_narrow(
        &self,
        w: &mut Writer,
        segment: &Segment,
        place: Place,
        leaving: Leaving,
    ) -> Result<(), CodegenError> {
        let results = &self.results;
        let elem = elem_of(results.elem, Elem::I64)?;
        w.sync_group();
        let first = w.widen_unsigned(place.first_query, Elem::I64);
        let n = w.i64(leaving.queries as i64);
        let end = w.add(first, n);
        let end = w.min(end, segment.n);
        w.for_loop(first, end, 1, &[], |w, query, _| {
            let (row, head) = self.locate(w, segment.tile, segment.from, segment.n, query);
            let from = w.element(leaving.shared, query, leaving.stride);
            let masks = results.masks(w);
            let vectors: Vec<Val> = masks
                .into_iter()
                .enumerate()
                .map(|(v, mask)| {
                    let at = w.offset_const(from, v as u64 * u64::from(results.lanes) * elem.bytes());
                    let ty = Ty::of(elem, results.lanes);
                    match mask {
                        None => w.load(ty, at),
                        Some(mask) => w.load_masked(ty, at, mask),
                    }
                })
                .collect();
            let to = w.row(results.out, row, elem.bytes());
            let to = w.element(to, head, results.dim * elem.bytes());
            results.store_vectors(w, to, &vectors);
            Ok(vec![])
        })?;
        Ok(())
    }
}

impl Leaving {
    /// Brings what a thread holds of a query's results, rounded to bf16, to the query's place in shared memory.
    fn narrow(self, w: &mut Writer, place: Place, query: Val, pairs: &[[Val; 2]]) {
        let row = w.element(self.shared, query, self.stride);
        let own = w.widen_unsigned(place.quarter, Elem::I64);
        let own = w.element(row, own, 2 * 2);
        for (n, [low, high]) in pairs.iter().enumerate() {
            let at = w.offset_const(own, n as u64 * KEYS * 2);
            let pair = w.narrow_pair(*low, *high);
            w.store_own(pair, at);
        }
    }
}
