//! What scratch holds of the queries of a tile: how they are brought there, and how their results leave it.

use super::super::expr::{cast, elem_of};
use super::super::writer::{Cmp, Elem, Ty, Val, Writer};
use super::blocks::Blocks;
use super::layout::Form;
use super::{ABSENT, FAR, LOWEST, Query, Tile, combine};
use crate::error::CodegenError;
use crate::plan::kernel::CombineSpec;

impl Blocks<'_> {
    /// Brings a query into scratch: where it is among those of its head of keys, and among all.
    pub(super) fn enter(
        &self,
        w: &mut Writer,
        tile: Tile,
        query: &Query,
        head: Val,
        (of_head, index): (Val, Val),
    ) -> Result<(), CodegenError> {
        let spec = self.at.spec;
        let lanes = self.at.lanes;
        for (array, value) in
            [(self.layout.positions, query.position), (self.layout.lows, query.low), (self.layout.highs, query.high)]
        {
            let at = self.cell(w, array, of_head, 8);
            w.store(value, at);
        }
        let (maximum, sum) = match &spec.sink {
            Some(sink) => {
                let sink = self.at.sink(w, query, sink, head)?;
                let log2e = w.f32(std::f64::consts::LOG2_E, 0);
                (w.mul(sink, log2e), w.f32(1.0, 0))
            }
            None => (w.f32(LOWEST, 0), w.f32(if spec.softmax { 0.0 } else { 1.0 }, 0)),
        };
        // What there is before any key is of the first part.
        let (maximum, sum) = match tile.part {
            None => (maximum, sum),
            Some(part) => {
                let first = w.i64(0);
                let is_first = w.cmp(Cmp::Eq, part, first);
                let [lowest, nothing] = [LOWEST, 0.0].map(|x| w.f32(x, 0));
                (w.select(is_first, maximum, lowest), w.select(is_first, sum, nothing))
            }
        };
        let at = self.cell(w, self.layout.maxima, index, 4);
        w.store(maximum, at);
        let zero = w.f32(0.0, lanes);
        let sums = self.cell(w, self.layout.sums, index, u64::from(lanes) * 4);
        w.store(zero, sums);
        w.store(sum, sums);
        let out = self.cell(w, self.layout.out, index, self.layout.out_bytes);
        for v in 0..spec.value_dim.div_ceil(u64::from(lanes)) {
            let at = w.offset_const(out, v * u64::from(lanes) * 4);
            w.store(zero, at);
        }
        // The elements: pairs as they are, others as f32.
        let stored = elem_of(spec.query, Elem::I64)?;
        let row = w.row(self.at.q, query.row, stored.bytes());
        let from = w.element(row, head, spec.key_dim * stored.bytes());
        if matches!(self.keys, Form::Words(_)) {
            return self.enter_words(w, (from, stored), index);
        }
        let to = self.cell(w, self.layout.queries, index, self.layout.query_bytes);
        let mut element = 0;
        while element < spec.key_dim {
            let n = if spec.key_dim - element >= u64::from(lanes) { lanes } else { 0 };
            let at = w.offset_const(from, element * stored.bytes());
            let x = w.load(Ty::of(stored, n), at);
            let x = if self.keys.bytes() == 2 { x } else { cast(w, x, Elem::F32)? };
            let at = w.offset_const(to, element * self.keys.bytes());
            w.store(x, at);
            element += u64::from(n.max(1));
        }
        // Registers that hold tiles read whole ones.
        while self.schedule.tiles && element * self.keys.bytes() < self.layout.query_bytes {
            let (zero, at) = (w.int(0, Ty::scalar(Elem::I16)), w.offset_const(to, element * self.keys.bytes()));
            w.store(zero, at);
            element += 1;
        }
        Ok(())
    }

    /// Of register tile `t`: which keys some of its queries see, and which all of them.
    pub(super) fn bound(&self, w: &mut Writer, from: Val, t: Val) {
        let queries = w.i64(i64::from(self.schedule.queries));
        let first = w.mul(t, queries);
        let sequence = w.load_u32(self.at.rows.sequences, from);
        let length = w.load_u32(self.at.cache.lengths, sequence);
        let zero = w.i64(0);
        let mut bounds: Option<[Val; 4]> = None;
        for i in 0..u64::from(self.schedule.queries) {
            let [position, low, high] = [self.layout.positions, self.layout.lows, self.layout.highs].map(|array| {
                let at = self.cell(w, array + i * 8, first, 8);
                w.load(Ty::scalar(Elem::I64), at)
            });
            // What the mask says of the age of a key, which is all that it says where it has no gaps.
            let age = |bound: Option<i128>| bound.and_then(|age| i64::try_from(age).ok()).filter(|age| age.abs() < FAR);
            let from = match (self.at.span.largest, age(self.at.span.largest)) {
                (None, _) => zero,
                (_, Some(largest)) => {
                    let largest = w.i64(largest);
                    let from = w.sub(position, largest);
                    w.max(from, zero)
                }
                _ => w.i64(FAR),
            };
            let to = match (self.at.span.least, age(self.at.span.least)) {
                (None, _) => length,
                (_, Some(least)) => {
                    let ahead = w.i64(1 - least);
                    let to = w.add(position, ahead);
                    w.min(to, length)
                }
                _ => zero,
            };
            bounds = Some(match bounds {
                None => [low, high, from, to],
                Some([l, h, f, t]) => [w.min(l, low), w.max(h, high), w.max(f, from), w.min(t, to)],
            });
        }
        let at = self.cell(w, self.layout.bounds, t, 32);
        for (i, bound) in bounds.into_iter().flatten().enumerate() {
            let at = w.offset_const(at, i as u64 * 8);
            w.store(bound, at);
        }
    }

    /// The cell of a query in the results of parts.
    fn part_of(&self, w: &mut Writer, tile: Tile, place: (Val, Val)) -> Option<Val> {
        let (part, buffer) = (tile.part?, self.at.parts?);
        let n_parts = w.i64(self.at.spec.division.parts as i64);
        let at = combine::parts_of(w, buffer, place, (&CombineSpec::of(self.at.spec), n_parts));
        Some(w.element(at, part, (self.at.spec.value_dim + 2) * 4))
    }

    /// Says of a query that this part of the keys has none.
    pub(super) fn absent(&self, w: &mut Writer, tile: Tile, place: (Val, Val)) {
        if let Some(at) = self.part_of(w, tile, place) {
            let at = w.offset_const(at, self.at.spec.value_dim * 4);
            let absent = w.f32(ABSENT, 0);
            w.store(absent, at);
        }
    }

    /// Stores the result of a query.
    pub(super) fn leave(&self, w: &mut Writer, tile: Tile, place: (Val, Val), index: Val) -> Result<(), CodegenError> {
        let lanes = self.at.lanes;
        let sums = self.cell(w, self.layout.sums, index, u64::from(lanes) * 4);
        let sums = w.load(Ty::of(Elem::F32, lanes), sums);
        let sum = w.reduce_add(sums);
        let at = self.cell(w, self.layout.out, index, self.layout.out_bytes);
        let n = self.at.spec.value_dim.div_ceil(u64::from(lanes));
        let out: Vec<Val> = (0..n)
            .map(|v| {
                let at = w.offset_const(at, v * u64::from(lanes) * 4);
                w.load(Ty::of(Elem::F32, lanes), at)
            })
            .collect();
        let Some(at) = self.part_of(w, tile, place) else {
            return self.at.results.store(w, place, sum, &out);
        };
        self.at.results.store_vectors(w, at, &out);
        let maximum = self.cell(w, self.layout.maxima, index, 4);
        let maximum = w.load(Ty::scalar(Elem::F32), maximum);
        for (i, x) in [maximum, sum].into_iter().enumerate() {
            let at = w.offset_const(at, (self.at.spec.value_dim + i as u64) * 4);
            w.store(x, at);
        }
        Ok(())
    }
}
