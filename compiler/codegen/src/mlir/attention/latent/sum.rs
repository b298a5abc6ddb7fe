//! What the teams do that hold results: half of the columns each.

use xfc_lang::graph::DType;

use super::{Barrier, I32, KEYS, Latent, PAGES, SUMMING, WEIGHTS, Work};
use crate::error::CodegenError;
use crate::mlir::attention::segment::Place;
use crate::mlir::attention::tensors::{Four, KEYS as OF_TILE, QUERIES, fours, scaled};
use crate::mlir::attention::turned::{OF_TEAM, PIECE, STEP_ROWS, TEAM};
use crate::mlir::teams::Matrix;
use crate::mlir::writer::{Cmp, Elem, Ty, Val, Writer};

const F32: Ty = Ty::scalar(Elem::F32);

/// Columns that an instruction multiplies: whole parts of rows. Of 256 its sums alone would be more registers than a launch gives to each thread, which ptxas refuses,
/// whatever teams pass on to one another.
const AT_ONCE: u64 = 128;

impl Latent<'_> {
    /// Adds up the weighted values of all stages, and stores them.
    pub(super) fn sum(&self, w: &mut Writer, work: &Work, thread: Val) -> Result<(), CodegenError> {
        let (rows, columns) = (self.layout.rows, self.layout.columns);
        let first = w.int(TEAM as i64, I32);
        let number = w.sub(thread, first);
        let team = w.shr(number, TEAM.ilog2());
        let last = w.int(TEAM as i64 - 1, I32);
        let within = w.and(number, last);
        let place = Place::of(w, within, QUERIES);
        let shared = w.shared_place(self.shared);
        let shared = w.anew(shared);
        let behind = w.int(self.layout.weights as i64, I32);
        let weights = w.add(shared, behind);
        let weights = w.descriptor(weights, WEIGHTS.lines(), (PIECE, 8 * WEIGHTS.width));
        // Parts of a row before the first column.
        let of_part = |elements: u64| elements * 2 / rows.width * KEYS * rows.width;
        let before = self.at.spec.value_in_key.unwrap_or(0);
        let stages = w.int((self.layout.stages + of_part(before)) as i64, I32);
        let of_team = w.int(of_part(columns) as i64, I32);
        let of_team = w.mul(team, of_team);
        let values = w.add(shared, stages);
        let values = w.add(values, of_team);
        let values = w.descriptor(values, rows.lines(), (KEYS * rows.width, 8 * rows.width));
        let query = w.add(place.first_query, place.eighth);
        let wide = w.widen_unsigned(query, Elem::I64);
        let factor = w.element(self.factors, wide, 4);
        let (zero, none) = (w.int(0, I32), w.f32(0.0, 0));
        let arrives = w.cmp(Cmp::Eq, place.lane, zero);
        let begin = w.i64(0);
        let out = vec![none; (columns / 2) as usize];
        let out = w.for_loop(begin, work.n, 1, &out, |w, stage, out| {
            let number = w.resize(stage, Elem::I32);
            let there = Self::of_weights(w, Barrier::WeightsThere);
            self.wait_for(w, there, number);
            let decay = factors(w, factor);
            let one = w.f32(1.0, 0);
            let changed = decay.map(|decay| w.cmp(Cmp::Ne, decay, one));
            let any = w.or(changed[0], changed[1]);
            let out = w.if_else(any, out, |w| Ok(scaled(w, &fours(out), &decay).concat()))?;
            let before = self.stage_at(w, number);
            let before = w.shr(before, PIECE.ilog2());
            let before = w.widen_unsigned(before, Elem::I64);
            let values = w.add(values, before);
            let step = |step: u64| {
                (0..columns).step_by(AT_ONCE as usize).map(move |first| {
                    let of_step = Matrix { first: weights, behind: WEIGHTS.step(step, OF_TEAM) };
                    let behind = of_part(first) + step * STEP_ROWS * rows.width;
                    let end = (first + AT_ONCE).min(columns);
                    ((first / 2) as usize..(end / 2) as usize, [of_step, Matrix { first: values, behind }])
                })
            };
            let of_page = KEYS / STEP_ROWS / PAGES;
            let [early, late] = [0, 1].map(|page| (page * of_page..(page + 1) * of_page).flat_map(step));
            let [early, late] = [early, late].map(Iterator::collect::<Vec<_>>);
            w.sync_group();
            // The first page is written over while the second is multiplied.
            let out = w.begin_halves(self.dot, &early, &late, &out);
            let [first, second] = [0, 1].map(|page| Self::of_page(w, Barrier::PageDone, (number, page)));
            self.arrive(w, first, arrives)?;
            let out = w.end_products(&out);
            self.arrive(w, second, arrives)?;
            let done = Self::of_weights(w, Barrier::WeightsDone);
            self.arrive(w, done, arrives)?;
            Ok(out)
        })?;
        let number = w.resize(work.n, Elem::I32);
        let there = Self::of_weights(w, Barrier::WeightsThere);
        self.wait_for(w, there, number);
        let totals = factors(w, factor);
        self.leave(w, work, (place, team), &fours(&out), totals)
    }

    /// Stores what a team holds: of a part as it is, otherwise divided by the sums of weights.
    fn leave(
        &self,
        w: &mut Writer,
        work: &Work,
        (place, team): (Place, Val),
        out: &[Four],
        totals: [Val; 2],
    ) -> Result<(), CodegenError> {
        let segment = &work.segment;
        let first = w.anew(place.first_query);
        debug_assert_eq!(SUMMING * self.layout.columns, self.at.spec.value_dim);
        let columns = w.int(self.layout.columns as i64, I32);
        let before = w.mul(team, columns);
        let own = w.add(place.quarter, place.quarter);
        let column = w.add(before, own);
        let column = w.widen_unsigned(column, Elem::I64);
        for half in 0..2 {
            let behind = w.int((half * OF_TILE) as i64, I32);
            let query = w.add(first, place.eighth);
            let query = w.add(query, behind);
            let query = w.widen_unsigned(query, Elem::I64);
            let there = w.cmp(Cmp::Lt, query, segment.n);
            let pairs: Vec<[Val; 2]> = out.iter().map(|four| [0, 1].map(|i| four[(2 * half + i) as usize])).collect();
            w.if_then(there, |w| {
                let head = w.add(segment.tile.first_head, query);
                if let Some(part) = work.part {
                    let Some(at) = self.at.part_of(w, self.n_rows, (segment.from, head), part) else { return Ok(()) };
                    let at = w.element(at, column, 4);
                    for (n, pair) in (0..).zip(&pairs) {
                        let at = w.offset_const(at, n * OF_TILE * 4);
                        w.store_two(*pair, at);
                    }
                    return Ok(());
                }
                let results = &self.at.results;
                let (zero, one) = (w.f32(0.0, 0), w.f32(1.0, 0));
                // A query that sees nothing gives zeros.
                let total = totals[half as usize];
                let nothing = w.cmp(Cmp::Eq, total, zero);
                let divisor = w.select(nothing, one, total);
                let factor = w.div(one, divisor);
                let bytes = if results.elem == DType::BF16 { 2 } else { 4 };
                let at = w.row(results.out, segment.from, bytes);
                let at = w.element(at, head, results.dim * bytes);
                let at = w.element(at, column, bytes);
                for (n, pair) in (0..).zip(&pairs) {
                    let [low, high] = pair.map(|x| w.mul(x, factor));
                    let at = w.offset_const(at, n * OF_TILE * bytes);
                    let next = w.offset_const(at, bytes);
                    // Rows of results may begin anywhere.
                    let (low, high) = if results.elem == DType::BF16 {
                        let both = w.narrow_pair(low, high);
                        let upper = w.shr(both, 16);
                        (w.resize(both, Elem::I16), w.resize(upper, Elem::I16))
                    } else {
                        (low, high)
                    };
                    w.store_own(low, at);
                    w.store_own(high, next);
                }
                Ok(())
            })?;
        }
        Ok(())
    }
}

/// Numbers of a thread's two queries.
fn factors(w: &mut Writer, at: Val) -> [Val; 2] {
    [0, OF_TILE].map(|behind| {
        let at = w.offset_const(at, behind * 4);
        w.load(F32, at)
    })
}
