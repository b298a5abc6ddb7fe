//! What teams do that multiply.

use super::{
    Barrier, I32, Layout, MULTIPLY, OF_TEAM, PIECE, Place, STEP, STEP_ROWS, Segment, Slot, TEAM, TURNS, Teams,
};
use crate::error::CodegenError;
use crate::mlir::attention::leave::Leaving;
use crate::mlir::attention::segment::Bounds;
use crate::mlir::attention::tensors::{Asked, Held, KEYS, QUERIES, Step, Weights, fours, narrowed, scaled};
use crate::mlir::teams::Matrix;
use crate::mlir::writer::{Cmp, Elem, Val, Writer};

/// What a thread that multiplies needs for all blocks.
struct Own<'s> {
    asked: &'s [Asked],
    bounds: Bounds,
    /// The first key of the first block, and how many behind it the thread's first of every eight is.
    first_key: Val,
    behind: Val,
    /// Whether it arrives for its warp.
    arrives: Val,
    /// Descriptors of its team's queries, and of keys and values of the first stage.
    queries: Val,
    keys: Val,
    values: Val,
    /// The points where its team takes its turn and gives it on, and how many threads meet there.
    turns: [Val; 3],
}

impl Teams<'_> {
    /// The queries of a team by all blocks.
    pub(super) fn multiply(
        &self,
        w: &mut Writer,
        segment: &Segment,
        place: Place,
        n_blocks: Val,
    ) -> Result<(), CodegenError> {
        let team = w.shr(place.thread, TEAM.ilog2());
        self.bring_queries(w, segment, place, team)?;
        let asked = self.at.asked_of_tile(w, segment, place, 0);
        let bounds = Bounds::of(w, &asked);
        let zero = w.int(0, I32);
        // Each has the sums of two threads.
        let two = w.int(2, I32);
        let is_first = w.cmp(Cmp::Lt, place.quarter, two);
        let held = self.at.held(w, &asked, is_first, self.at.spec.value_dim / KEYS)?;
        let own = self.own(w, segment, place, team, (&asked, bounds));
        // The first team has the first turn.
        let is_last = w.cmp(Cmp::Ne, team, zero);
        w.if_then(is_last, |w| {
            w.pass(own.turns[1], own.turns[2]);
            Ok(())
        })?;
        w.sync_group();
        let none = w.i64(0);
        let some = w.cmp(Cmp::Gt, n_blocks, none);
        let list = w.if_else(some, &held.list(), |w| Ok(self.blocks(w, &own, held.clone(), n_blocks)?.list()))?;
        let mut held = Held::of(&list, asked.len());
        let half = w.f32(0.5, 0);
        held.totals = held.totals.iter().map(|total| w.mul(*total, half)).collect();
        let is_turn = w.cmp(Cmp::Eq, team, zero);
        w.if_then(is_turn, |w| {
            w.meet(own.turns[0], own.turns[2]);
            Ok(())
        })?;
        // Results take the place of stages when nothing is multiplied any more.
        let [all, threads] = [MULTIPLY, i64::from(self.schedule.teams) * TEAM as i64].map(|n| w.int(n, I32));
        w.meet(all, threads);
        let stages = w.offset_const(self.shared, self.layout.stages);
        let leaving = Leaving { shared: stages, stride: self.layout.result_stride, queries: QUERIES };
        self.at.leave(w, segment, place, leaving, &held.list())
    }

    fn own<'s>(
        &self,
        w: &mut Writer,
        segment: &Segment,
        place: Place,
        team: Val,
        (asked, bounds): (&'s [Asked], Bounds),
    ) -> Own<'s> {
        let Layout { keys, values, .. } = self.layout;
        let shared = w.shared_place(self.shared);
        let shared = w.anew(shared);
        let size = w.int(self.layout.team_bytes as i64, I32);
        let before = w.mul(team, size);
        let queries = w.add(shared, before);
        let stages = w.int(self.layout.stages as i64, I32);
        let stages = w.add(shared, stages);
        let behind = w.int(self.layout.values_at as i64, I32);
        let of_values = w.add(stages, behind);
        let queries = w.descriptor(queries, keys.lines(), (PIECE, 8 * keys.width));
        let of_keys = w.descriptor(stages, keys.lines(), (PIECE, 8 * keys.width));
        let of_values = w.descriptor(of_values, values.lines(), (self.schedule.keys * values.width, 8 * values.width));
        let zero = w.int(0, I32);
        let arrives = w.cmp(Cmp::Eq, place.lane, zero);
        let [first, last, threads] =
            [TURNS, TURNS + 1, i64::from(self.schedule.teams) * TEAM as i64].map(|n| w.int(n, I32));
        let turns = [w.add(first, team), w.sub(last, team), threads];
        let tokens = w.i64(self.at.spec.page_tokens as i64);
        let first_key = w.mul(segment.first_page, tokens);
        let behind = w.add(place.quarter, place.quarter);
        let behind = w.widen_unsigned(behind, Elem::I64);
        Own { asked, bounds, first_key, behind, arrives, queries, keys: of_keys, values: of_values, turns }
    }

    /// A descriptor of the same in a stage.
    fn in_stage(&self, w: &mut Writer, descriptor: Val, slot: Val) -> Val {
        let slot = w.widen_unsigned(slot, Elem::I64);
        let size = w.i64((self.layout.stage_bytes / PIECE) as i64);
        let before = w.mul(slot, size);
        w.add(descriptor, before)
    }

    /// Queries and keys of a stage, step by step.
    fn factors_of_scores(&self, w: &mut Writer, own: &Own<'_>, slot: Val) -> Vec<[Matrix; 2]> {
        let rows = self.layout.keys;
        let keys = self.in_stage(w, own.keys, slot);
        let step = |step| {
            [(own.queries, OF_TEAM), (keys, self.schedule.keys)]
                .map(|(first, n)| Matrix { first, behind: rows.step(step, n) })
        };
        (0..rows.bytes / STEP).map(step).collect()
    }

    /// Weights and values of a stage, step by step.
    fn factors_of_values(
        &self,
        w: &mut Writer,
        own: &Own<'_>,
        slot: Val,
        weights: &[Weights],
    ) -> Vec<([Val; 4], Matrix)> {
        let first = self.in_stage(w, own.values, slot);
        let of_step = STEP_ROWS * self.layout.values.width;
        (0..).zip(weights).map(|(step, weights)| (*weights, Matrix { first, behind: step * of_step })).collect()
    }

    /// This warp has done with a part of a stage.
    fn done(&self, w: &mut Writer, own: &Own<'_>, which: Barrier, slot: Slot) -> Result<(), CodegenError> {
        w.if_then(own.arrives, |w| {
            let at = self.barrier(w, which, slot.number);
            w.arrive(at);
            Ok(())
        })
    }

    /// Products with the keys of a block, by number, to scores without those that are not seen.
    fn scores(
        &self,
        w: &mut Writer,
        own: &Own<'_>,
        block: Val,
        products: &[Val],
    ) -> Result<Vec<[Val; 4]>, CodegenError> {
        let n = w.i64(self.schedule.keys as i64);
        let before = w.mul(block, n);
        let first_key = w.add(own.first_key, before);
        let own_key = w.add(first_key, own.behind);
        let scores = self.at.scored(w, own.asked, (own_key, fours(products)))?;
        let whole = (!self.at.span.has_gaps).then(|| {
            let first = w.resize(first_key, Elem::I32);
            let n = w.int(self.schedule.keys as i64, I32);
            let end = w.add(first, n);
            own.bounds.see_all(w, first, end)
        });
        self.at.seen_alone(w, own.asked, (own_key, scores), whole)
    }

    /// What is held after all blocks, of which there are some.
    fn blocks(&self, w: &mut Writer, own: &Own<'_>, held: Held, n_blocks: Val) -> Result<Held, CodegenError> {
        let queries = held.maxima.len();
        let first = w.int(0, I32);
        let slot = Slot { number: first, bit: first };
        self.wait_for(w, Barrier::KeysThere, slot);
        let factors = self.factors_of_scores(w, own, slot.number);
        // What four warps run together they come to as whole warps.
        w.sync_group();
        let products = w.products(self.dot, &factors, self.schedule.keys);
        self.done(w, own, Barrier::KeysDone, slot)?;
        let begin = w.i64(0);
        let scores = self.scores(w, own, begin, &products)?;
        let step = self.at.step(w, &scores, &held.maxima);
        let totals = added(w, &held.totals, &step);
        let weights = narrowed(w, &step.weights, queries);
        let (number, bit) = w.next_slot(slot.number, slot.bit, self.schedule.stages);
        let of_held = Held { maxima: step.maxima, totals, out: held.out }.list();
        let n_held = of_held.len();
        let carried = [&[number, bit, slot.number, slot.bit], &of_held[..], &weights.concat()[..]].concat();
        let one = w.i64(1);
        let carried = w.for_loop(one, n_blocks, 1, &carried, |w, block, carried| {
            let slot = Slot { number: carried[0], bit: carried[1] };
            let before = Slot { number: carried[2], bit: carried[3] };
            let (of_held, weights) = carried[4..].split_at(n_held);
            let held = Held::of(of_held, queries);
            self.wait_for(w, Barrier::KeysThere, slot);
            self.wait_for(w, Barrier::ValuesThere, before);
            let of_scores = self.factors_of_scores(w, own, slot.number);
            let of_values = self.factors_of_values(w, own, before.number, &fours(weights));
            w.sync_group();
            let (products, out) =
                w.begin_both(self.dot, (&of_scores, self.schedule.keys), (&of_values, &held.out.concat()), own.turns);
            self.done(w, own, Barrier::KeysDone, slot)?;
            let scores = self.scores(w, own, block, &products)?;
            let step = self.at.step(w, &scores, &held.maxima);
            // Weights are made while results are multiplied, and not behind that: their sums are asked for, by others too, before a wait of which nobody
            // knows that it is over already.
            let weights = w.made(&step.weights.concat());
            let totals = added(w, &held.totals, &step);
            self.wait_for(w, Barrier::ValuesThere, before);
            w.sync_group();
            let (out, weights) = w.end_sums(&out, &weights);
            self.done(w, own, Barrier::ValuesDone, before)?;
            let out = w.if_else(step.any, &out, |w| Ok(scaled(w, &fours(&out), &step.decay).concat()))?;
            let weights = narrowed(w, &fours(&weights), queries);
            let held = Held { maxima: step.maxima, totals, out: fours(&out) };
            let (number, bit) = w.next_slot(slot.number, slot.bit, self.schedule.stages);
            Ok([&[number, bit, slot.number, slot.bit], &held.list()[..], &weights.concat()[..]].concat())
        })?;
        let last = Slot { number: carried[2], bit: carried[3] };
        let (of_held, weights) = carried[4..].split_at(n_held);
        let held = Held::of(of_held, queries);
        self.wait_for(w, Barrier::ValuesThere, last);
        let factors = self.factors_of_values(w, own, last.number, &fours(weights));
        w.sync_group();
        let out = w.add_products(self.dot, &factors, &held.out.concat());
        Ok(Held { out: fours(&out), ..held })
    }
}

/// Sums of weights with those of a step, each of two threads side by side.
fn added(w: &mut Writer, totals: &[Val], step: &Step) -> Vec<Val> {
    let mut added = Vec::new();
    for ((total, sum), decay) in totals.iter().zip(&step.sums).zip(&step.decay) {
        let other = w.shuffle(*sum, 1);
        let both = w.add(*sum, other);
        added.push(w.fma(*total, *decay, both));
    }
    added
}
