//! What the team does that makes scores, and weights of them.

use super::{Barrier, I32, KEYS, Latent, PAGES, SCORING, STAGES, WEIGHTS, Work};
use crate::error::CodegenError;
use crate::mlir::attention::segment::{Bounds, Place};
use crate::mlir::attention::tensors::{Asked, Four, KEYS as OF_TILE, QUERIES, Weights, fours, narrowed};
use crate::mlir::attention::turned::{OF_TEAM, PIECE, QueryPlace};
use crate::mlir::teams::Matrix;
use crate::mlir::writer::{Cmp, Elem, Val, Writer};

/// What a thread needs for all stages.
struct Own<'s> {
    asked: &'s [Asked],
    bounds: Bounds,
    /// How many keys behind the first of a stage its first of every eight is.
    behind: Val,
    /// Descriptors of queries, and of the keys of the first stage.
    queries: Val,
    keys: Val,
    /// Of its first query: the place of its weights, without that of the tile, and of what its results are scaled by.
    weights: Val,
    factor: Val,
    /// Whether it arrives for its warp, and whether it writes what four threads know.
    arrives: Val,
    is_first: Val,
}

impl Latent<'_> {
    /// Makes the weights of all stages.
    pub(super) fn score(&self, w: &mut Writer, work: &Work, thread: Val) -> Result<(), CodegenError> {
        let segment = &work.segment;
        let place = Place::of(w, thread, QUERIES);
        let zero = w.int(0, I32);
        let point = w.int(SCORING, I32);
        let to = QueryPlace { rows: self.layout.rows, shared: self.shared, at: zero, before: zero, thread, point };
        self.at.bring_queries(w, segment, to)?;
        let asked = self.at.asked_of_tile(w, segment, place, 0);
        let bounds = Bounds::of(w, &asked);
        let is_first = w.cmp(Cmp::Eq, place.quarter, zero);
        // What there is before any key is a part's alone.
        let takes = match work.part {
            None => is_first,
            Some(part) => {
                let none = w.i64(0);
                let is_part = w.cmp(Cmp::Eq, part, none);
                w.and(is_first, is_part)
            }
        };
        let held = self.at.held(w, &asked, takes, 0)?;
        let own = self.own(w, place, is_first, (&asked, bounds));
        let n = asked.len();
        let tokens = w.i64(self.at.spec.page_tokens as i64);
        let first_key = w.mul(segment.first_page, tokens);
        w.sync_group();
        let begin = w.i64(0);
        let held = w.for_loop(begin, work.n, 1, &held.list(), |w, stage, held| {
            let keys = w.i64(KEYS as i64);
            let before = w.mul(stage, keys);
            let first_key = w.add(first_key, before);
            let number = w.resize(stage, Elem::I32);
            let scores = self.scores(w, &own, number, first_key)?;
            let (maxima, totals) = held.split_at(n);
            let step = self.at.step(w, &scores, maxima);
            let mut added = Vec::new();
            for ((total, sum), decay) in totals.iter().zip(&step.sums).zip(&step.decay) {
                added.push(w.fma(*total, *decay, *sum));
            }
            let weights = narrowed(w, &step.weights, n);
            let done = Self::of_weights(w, Barrier::WeightsDone);
            self.wait_for_last(w, done, number);
            self.leave_weights(w, &own, &weights, &step.decay)?;
            Ok([step.maxima, added].concat())
        })?;
        let (maxima, totals) = held.split_at(n);
        let totals: Vec<Val> = totals.iter().map(|total| w.over_four(*total, Writer::add)).collect();
        let number = w.resize(work.n, Elem::I32);
        let done = Self::of_weights(w, Barrier::WeightsDone);
        self.wait_for_last(w, done, number);
        self.leave_factors(w, &own, &totals)?;
        w.sync_group();
        let there = Self::of_weights(w, Barrier::WeightsThere);
        self.arrive(w, there, own.arrives)?;
        self.leave_ends(w, work, place, (is_first, maxima, &totals))
    }

    fn own<'s>(&self, w: &mut Writer, place: Place, is_first: Val, (asked, bounds): (&'s [Asked], Bounds)) -> Own<'s> {
        let rows = self.layout.rows;
        let shared = w.shared_place(self.shared);
        let shared = w.anew(shared);
        let queries = w.descriptor(shared, rows.lines(), (PIECE, 8 * rows.width));
        let stages = w.int(self.layout.stages as i64, I32);
        let stages = w.add(shared, stages);
        let keys = w.descriptor(stages, rows.lines(), (PIECE, 8 * rows.width));
        let behind = w.add(place.quarter, place.quarter);
        let behind = w.widen_unsigned(behind, Elem::I64);
        let query = w.add(place.first_query, place.eighth);
        let wide = w.widen_unsigned(query, Elem::I64);
        let factor = w.element(self.factors, wide, 4);
        let weights = w.offset_const(self.shared, self.layout.weights);
        let weights = w.element(weights, wide, WEIGHTS.bytes);
        let quarter = w.widen_unsigned(place.quarter, Elem::I64);
        let weights = w.element(weights, quarter, 4);
        let zero = w.int(0, I32);
        let arrives = w.cmp(Cmp::Eq, place.lane, zero);
        Own { asked, bounds, behind, queries, keys, weights, factor, arrives, is_first }
    }

    /// The scores of a stage, of which `first_key` is the first key, without those that are not seen.
    fn scores(&self, w: &mut Writer, own: &Own<'_>, number: Val, first_key: Val) -> Result<Vec<Four>, CodegenError> {
        let rows = self.layout.rows;
        let round = w.shr(number, STAGES.ilog2());
        for page in 0..PAGES {
            let there = Self::of_page(w, Barrier::PageThere, (number, page));
            self.wait_for(w, there, round);
        }
        let before = self.stage_at(w, number);
        let before = w.shr(before, PIECE.ilog2());
        let before = w.widen_unsigned(before, Elem::I64);
        let keys = w.add(own.keys, before);
        let step = |step| {
            [(own.queries, OF_TEAM), (keys, KEYS)].map(|(first, n)| Matrix { first, behind: rows.step(step, n) })
        };
        let factors: Vec<[Matrix; 2]> = (0..self.steps()).map(step).collect();
        // What four warps run together they come to as whole warps.
        w.sync_group();
        let products = w.products(self.dot, &factors, KEYS);
        let own_key = w.add(first_key, own.behind);
        let scores = self.at.scored(w, own.asked, (own_key, fours(&products)))?;
        let whole = (!self.at.span.has_gaps).then(|| {
            let first = w.resize(first_key, Elem::I32);
            let n = w.int(KEYS as i64, I32);
            let end = w.add(first, n);
            own.bounds.see_all(w, first, end)
        });
        self.at.seen_alone(w, own.asked, (own_key, scores), whole)
    }

    /// Leaves the weights of a stage for those who multiply them by values.
    fn leave_weights(
        &self,
        w: &mut Writer,
        own: &Own<'_>,
        weights: &[Weights],
        decay: &[Val],
    ) -> Result<(), CodegenError> {
        let thread = w.thread();
        let last = w.int(31, I32);
        let lane = w.and(thread, last);
        let eighth = w.shr(lane, 2);
        for (pair, four) in (0..).zip(weights) {
            for half in 0..2 {
                // The pieces of a row are tiles of keys.
                let tile = w.int(2 * pair + half, I32);
                let piece = WEIGHTS.turned(w, tile, eighth);
                let piece = w.widen_unsigned(piece, Elem::I64);
                let at = w.element(own.weights, piece, PIECE);
                for query in 0..2 {
                    let at = w.offset_const(at, query * OF_TILE * WEIGHTS.bytes);
                    w.store_own(four[(2 * half as u64 + query) as usize], at);
                }
            }
        }
        self.leave_factors(w, own, decay)?;
        w.order_shared();
        w.sync_group();
        let there = Self::of_weights(w, Barrier::WeightsThere);
        self.arrive(w, there, own.arrives)
    }

    /// Leaves a number of each query.
    fn leave_factors(&self, w: &mut Writer, own: &Own<'_>, numbers: &[Val]) -> Result<(), CodegenError> {
        w.if_then(own.is_first, |w| {
            for (half, number) in (0..).zip(numbers) {
                let at = w.offset_const(own.factor, half * OF_TILE * 4);
                w.store_own(*number, at);
            }
            Ok(())
        })
    }

    /// Stores of each query what belongs to a part beside its values.
    fn leave_ends(
        &self,
        w: &mut Writer,
        work: &Work,
        place: Place,
        (is_first, maxima, totals): (Val, &[Val], &[Val]),
    ) -> Result<(), CodegenError> {
        let Some(part) = work.part else { return Ok(()) };
        let segment = &work.segment;
        for (half, (maximum, total)) in (0..).zip(maxima.iter().zip(totals)) {
            let behind = w.int(half * OF_TILE as i64, I32);
            let query = w.add(place.first_query, place.eighth);
            let query = w.add(query, behind);
            let query = w.widen_unsigned(query, Elem::I64);
            let there = w.cmp(Cmp::Lt, query, segment.n);
            let there = w.and(there, is_first);
            w.if_then(there, |w| {
                let head = w.add(segment.tile.first_head, query);
                if let Some(at) = self.at.part_of(w, self.n_rows, (segment.from, head), part) {
                    for (i, x) in (0..).zip([maximum, total]) {
                        let at = w.offset_const(at, (self.at.spec.value_dim + i) * 4);
                        w.store_own(*x, at);
                    }
                }
                Ok(())
            })?;
        }
        Ok(())
    }
}
