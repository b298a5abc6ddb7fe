//! The parts of the results of a tile made one by the last block that is done with one of them, as [`combine`] does it in a launch of its own.

use super::Divided;
use crate::error::CodegenError;
use crate::mlir::attention::{Tile, combine};
use crate::mlir::writer::{Cmp, Elem, Ty, Val, Writer};
use crate::plan::kernel::CombineSpec;

const F32: Ty = Ty::scalar(Elem::F32);

/// Parts that a warp loads at a time.
const TOGETHER: u64 = 4;

/// Lanes of a warp.
const LANES: u64 = 32;

impl Divided<'_> {
    /// Says that the part of a tile is there; the last of `n_parts` makes one result of all. All threads of the block come here.
    pub(super) fn join(
        &self,
        w: &mut Writer,
        (tile, n_heads): (Tile, Val),
        (row, n_parts): (Val, Val),
    ) -> Result<(), CodegenError> {
        let Some(counters) = self.at.counters else { return Ok(()) };
        let spec = CombineSpec::of(self.at.spec);
        // Of the tiles of a row: those of a head of keys follow one another.
        let group = spec.heads / spec.kv_heads;
        let [tiles, group_heads, heads] = [group.div_ceil(tile.heads), group, tile.heads].map(|n| w.i64(n as i64));
        let first = w.mul(tile.kv_head, group_heads);
        let within = w.sub(tile.first_head, first);
        let within = w.div_unsigned(within, heads);
        let number = w.mul(tile.kv_head, tiles);
        let number = w.add(number, within);
        let of_row = w.i64(spec.division.joined as i64);
        let before = w.mul(row, of_row);
        let number = w.add(before, number);
        let counter = w.element(counters.data, number, 4);
        let is_last = w.is_last_of(counter, n_parts)?;
        w.if_then(is_last, |w| {
            let (group, groups) = (w.group(), i64::from(w.machine().groups));
            w.for_loop(group, n_heads, groups, &[], |w, number, _| {
                let head = w.add(tile.first_head, number);
                self.join_head(w, &spec, (row, head), n_parts)?;
                Ok(vec![])
            })?;
            Ok(())
        })
    }

    /// The parts of a head made one, by a warp.
    fn join_head(
        &self,
        w: &mut Writer,
        spec: &CombineSpec,
        place: (Val, Val),
        n_parts: Val,
    ) -> Result<(), CodegenError> {
        let Some(buffer) = self.at.parts else { return Ok(()) };
        let results = &self.at.results;
        let (lanes, bytes) = (results.lanes, spec.part_elements() * 4);
        let most = combine::parts(w, &spec.division, self.n_rows);
        let parts = combine::parts_of(w, buffer, place, (spec, most));
        let (zero, one) = (w.i64(0), w.i64(1));
        let last = w.sub(n_parts, one);
        let maximum_at = spec.value_dim * 4;
        // Each lane finds the highest of some.
        let lane = self.place(w).lane;
        let first = w.min(lane, last);
        let at = w.element(parts, first, bytes);
        let at = w.offset_const(at, maximum_at);
        let own = w.load(F32, at);
        let second = w.i64(LANES as i64);
        let highest = w.for_loop(second, n_parts, LANES as i64, &[own], |w, begin, highest| {
            let part = w.add(begin, lane);
            let part = w.min(part, last);
            let at = w.element(parts, part, bytes);
            let at = w.offset_const(at, maximum_at);
            let own = w.load(F32, at);
            Ok(vec![w.max(highest[0], own)])
        })?[0];
        let highest = w.splat(highest, lanes);
        let highest = w.reduce_max(highest);
        let masks = results.masks(w);
        let nothing = w.f32(0.0, lanes);
        let mut totals = vec![w.f32(0.0, 0)];
        totals.extend(masks.iter().map(|_| nothing));
        let totals = w.for_loop(zero, n_parts, TOGETHER as i64, &totals, |w, begin, totals| {
            let mut totals = totals.to_vec();
            for number in 0..TOGETHER {
                let behind = w.i64(number as i64);
                let part = w.add(begin, behind);
                let there = w.cmp(Cmp::Lt, part, n_parts);
                let part = w.min(part, last);
                let part = w.element(parts, part, bytes);
                let at = w.offset_const(part, maximum_at);
                let maximum = w.load(F32, at);
                let at = w.offset_const(part, maximum_at + 4);
                let sum = w.load(F32, at);
                let below = w.sub(maximum, highest);
                let factor = w.quick_exp2(below);
                let none = w.f32(0.0, 0);
                let factor = w.select(there, factor, none);
                totals[0] = w.fma(sum, factor, totals[0]);
                let factor = w.splat(factor, lanes);
                for (v, mask) in masks.iter().enumerate() {
                    let at = w.offset_const(part, v as u64 * u64::from(lanes) * 4);
                    let ty = Ty::of(Elem::F32, lanes);
                    let x = match mask {
                        None => w.load(ty, at),
                        Some(mask) => w.load_masked(ty, at, *mask),
                    };
                    totals[1 + v] = w.fma(x, factor, totals[1 + v]);
                }
            }
            Ok(totals)
        })?;
        results.store(w, place, totals[0], &totals[1..])
    }
}
