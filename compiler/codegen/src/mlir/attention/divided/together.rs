//! What the groups of a tile hold of a query, made one result.

use super::{COLUMNS, Divided, F32, Place};
use crate::error::CodegenError;
use crate::mlir::attention::Tile;
use crate::mlir::attention::tensors::{Held, KEYS};
use crate::mlir::writer::{Cmp, Elem, Ty, Val, Writer};

impl Divided<'_> {
    /// Brings what a group holds to shared memory.
    pub(super) fn leave(&self, w: &mut Writer, place: Place, held: Held) {
        let layout = &self.layout;
        let group = w.element(self.shared, place.group, layout.group_bytes);
        let own = w.element(group, place.eighth, layout.row_bytes);
        for i in 0..layout.queries {
            let row = w.offset_const(own, i * KEYS * layout.row_bytes);
            // Tile `n` has columns `n`, `n + 8`, and so on, of its 64.
            let columns = w.element(row, place.quarter, 16 * 4);
            for (n, four) in held.out.iter().enumerate() {
                for e in 0..2 {
                    let (chunk, tile) = (n as u64 / 8, n as u64 % 8);
                    let at = w.offset_const(columns, (chunk * COLUMNS + tile + 8 * e) * 4);
                    w.store_own(four[(2 * i + e) as usize], at);
                }
            }
            let total = w.over_four(held.totals[i as usize], Writer::add);
            // Equal in the four threads of a query.
            for (n, x) in [held.maxima[i as usize], total].into_iter().enumerate() {
                let at = w.offset_const(row, (layout.padded + n as u64) * 4);
                let zero = w.i64(0);
                let is_first = w.cmp(Cmp::Eq, place.quarter, zero);
                w.store_own_if(x, at, is_first);
            }
        }
    }

    /// Makes one result of what the groups hold of each query, and stores it.
    pub(super) fn together(
        &self,
        w: &mut Writer,
        (tile, n_heads): (Tile, Val),
        place: Place,
        row: Val,
        part: Option<(Val, Val)>,
    ) -> Result<(), CodegenError> {
        let groups = i64::from(w.machine().groups);
        w.for_loop(place.group, n_heads, groups, &[], |w, number, _| {
            let own = w.element(self.shared, number, self.layout.row_bytes);
            let mut vectors = Vec::new();
            let mut ends = None;
            for of_values in 0..u64::from(self.schedule.value_groups) {
                let first = of_values * u64::from(self.schedule.key_groups);
                let (columns, end) = self.one_of(w, own, first);
                vectors.extend(columns);
                ends = Some(end);
            }
            let Some((maximum, total)) = ends else { return Ok(vec![]) };
            let head = w.add(tile.first_head, number);
            let whole = |w: &mut Writer| self.at.results.store(w, (row, head), total, &vectors);
            let of_part = |w: &mut Writer, part: Val| {
                let Some(at) = self.at.part_of(w, self.n_rows, (row, head), part) else { return Ok(()) };
                self.at.results.store_vectors(w, at, &vectors);
                let zero = w.i64(0);
                let is_first = w.cmp(Cmp::Eq, place.lane, zero);
                for (i, x) in [maximum, total].into_iter().enumerate() {
                    let at = w.offset_const(at, (self.at.spec.value_dim + i as u64) * 4);
                    w.store_own_if(x, at, is_first);
                }
                Ok(())
            };
            match part {
                None => whole(w)?,
                Some((part, _)) if self.at.counters.is_none() => of_part(w, part)?,
                // One part is the result.
                Some((part, n_parts)) => {
                    let one = w.i64(1);
                    let is_whole = w.cmp(Cmp::Eq, n_parts, one);
                    w.if_either(is_whole, whole, |w| of_part(w, part))?;
                }
            }
            Ok(vec![])
        })?;
        Ok(())
    }

    /// The results of a query of the groups from `first` on that have the same columns: vectors, the maximum and the sum of weights.
    fn one_of(&self, w: &mut Writer, own: Val, first: u64) -> (Vec<Val>, (Val, Val)) {
        let layout = &self.layout;
        let rows: Vec<Val> = (0..u64::from(self.schedule.key_groups))
            .map(|group| w.offset_const(own, (first + group) * layout.group_bytes))
            .collect();
        let [maxima, totals] = [0, 1].map(|n| {
            rows.iter()
                .map(|row| {
                    let at = w.offset_const(*row, (layout.padded + n) * 4);
                    w.load(F32, at)
                })
                .collect::<Vec<Val>>()
        });
        let maximum = maxima[1..].iter().fold(maxima[0], |a, b| w.max(a, *b));
        let factors: Vec<Val> = maxima
            .iter()
            .map(|one| {
                let below = w.sub(*one, maximum);
                w.quick_exp2(below)
            })
            .collect();
        let mut total = w.f32(0.0, 0);
        for (one, factor) in totals.iter().zip(&factors) {
            total = w.fma(*one, *factor, total);
        }
        let lanes = self.at.lanes;
        let n = layout.columns.div_ceil(u64::from(lanes));
        let vectors = (0..n)
            .map(|v| {
                let mut sum = w.f32(0.0, lanes);
                for (row, factor) in rows.iter().zip(&factors) {
                    let at = w.offset_const(*row, v * u64::from(lanes) * 4);
                    let x = w.load(Ty::of(Elem::F32, lanes), at);
                    let factor = w.splat(*factor, lanes);
                    sum = w.fma(x, factor, sum);
                }
                sum
            })
            .collect();
        (vectors, (maximum, total))
    }
}
