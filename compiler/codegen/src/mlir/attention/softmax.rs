//! One step of the softmax for the queries of a register tile: scores of a block of keys to weights of its values.
//!
//! Weights are powers of two relative to a maximum that is raised only when some score exceeds it by [`MARGIN`]: results and sums are scaled then
//! and seldom after the first blocks, and no lane is searched for the largest score otherwise. The division at the end takes out whatever they are relative to.

use super::super::writer::{Cmp, Elem, Ty, Val, Writer};
use super::blocks::{Block, Blocks, Micro, Segment};
use super::{LOWEST, Page, Query};
use crate::error::CodegenError;

/// How far a score may lie above the maximum, in powers of two: weights stay far from overflow.
const MARGIN: f64 = 8.0;

/// Vectors of keys that are worked on together.
const TOGETHER: u64 = 4;

/// A query of a register tile.
struct Place {
    /// Its number among those whose scores there is room for, and among all.
    place: Val,
    index: Val,
    query: Query,
    head: Val,
}

impl Blocks<'_> {
    fn place(&self, w: &mut Writer, segment: &Segment, micro: Micro, local: Val) -> Place {
        let [of_head, index, place] = [micro.first_of_head, micro.first, micro.place].map(|first| w.add(first, local));
        let (row, head) = self.locate(w, micro.tile, segment.from, segment.n, of_head);
        let sequence = w.load_u32(self.at.rows.sequences, segment.from);
        let [position, low, high] = [self.layout.positions, self.layout.lows, self.layout.highs].map(|array| {
            let at = self.cell(w, array, of_head, 8);
            w.load(Ty::scalar(Elem::I64), at)
        });
        Place { place, index, query: Query { row, sequence, position, low, high }, head }
    }

    /// Whether a query of the register tile sees a key of the block.
    pub(super) fn any_visible(
        &self,
        w: &mut Writer,
        segment: &Segment,
        block: &Block,
        micro: Micro,
    ) -> Result<Val, CodegenError> {
        let (begin, end) = (w.i64(0), w.i64(i64::from(self.schedule.queries)));
        let none = w.int(0, Ty::scalar(Elem::I1));
        let any = w.for_loop(begin, end, 1, &[none], |w, local, any| {
            let place = self.place(w, segment, micro, local);
            let all = w.i64(self.block_keys() as i64);
            self.each_of_keys(w, (block, all), any, |w, first_key, number, any| {
                let page = Page { query: &place.query, page: number, first_key, head: place.head };
                let mut any = any[0];
                for v in 0..self.at.page_vectors() {
                    let keys = self.at.keys_of(w, page, v)?;
                    let visible = self.at.visible(w, &place.query, &keys)?;
                    let visible = w.reduce_or(visible);
                    any = w.or(any, visible);
                }
                Ok(vec![any])
            })
        })?;
        Ok(any[0])
    }

    /// A loop over the first pages of a block, of so many keys: `body(first key, page number, carried)`.
    fn each_of_keys(
        &self,
        w: &mut Writer,
        (block, n_keys): (&Block, Val),
        carried: &[Val],
        body: impl FnOnce(&mut Writer, Val, Val, &[Val]) -> Result<Vec<Val>, CodegenError>,
    ) -> Result<Vec<Val>, CodegenError> {
        let (begin, end) = (w.i64(0), w.ceil_div(n_keys, self.at.spec.page_tokens));
        w.for_loop(begin, end, 1, carried, |w, p, carried| {
            let page = w.add(block.page, p);
            let size = w.i64(self.at.spec.page_tokens as i64);
            let first_key = w.mul(page, size);
            body(w, first_key, page, carried)
        })
    }

    /// Scores to weights, of all queries of the register tile, for the first keys of a block. `masked`: some of them may not be seen.
    pub(super) fn shares(
        &self,
        w: &mut Writer,
        segment: &Segment,
        (block, n_keys): (&Block, Val),
        micro: Micro,
        masked: bool,
    ) -> Result<(), CodegenError> {
        // The last vectors that are worked on together may have keys that no query sees.
        let together = self.together() * u64::from(self.at.lanes);
        let n_keys = w.ceil_div(n_keys, together);
        let together = w.i64(together as i64);
        let n_keys = w.mul(n_keys, together);
        let keys = (block, n_keys);
        let (begin, mut end) = (w.i64(0), w.i64(i64::from(self.schedule.queries)));
        if self.schedule.tiles {
            // Of many queries that repeat the last, which nobody reads, the weights are whatever was there.
            let left = w.sub(segment.n, micro.first_of_head);
            end = w.min(end, left);
        }
        w.for_loop(begin, end, 1, &[], |w, local, _| {
            let place = self.place(w, segment, micro, local);
            let scores = self.cell(w, self.layout.scores, place.place, self.block_keys() * 4);
            if !self.at.spec.softmax {
                self.rewrite(w, keys, &place, scores, &[], masked)?;
                return Ok(vec![]);
            }
            self.softmax(w, keys, &place, scores, masked)?;
            Ok(vec![])
        })?;
        if self.schedule.tiles && !self.at.spec.softmax {
            self.split_weights(w, micro, n_keys)?;
        }
        Ok(())
    }

    /// Products in scratch to scores; what is not seen scores [`LOWEST`], or 0 where scores are weights themselves. Gives the highest of each
    /// lane, of it and `highest`.
    fn rewrite(
        &self,
        w: &mut Writer,
        keys: (&Block, Val),
        place: &Place,
        scores: Val,
        highest: &[Val],
        masked: bool,
    ) -> Result<Vec<Val>, CodegenError> {
        let spec = self.at.spec;
        let hidden = w.f32(if spec.softmax { LOWEST } else { 0.0 }, self.at.lanes);
        self.each_of_keys(w, keys, highest, |w, first_key, number, highest| {
            let page = Page { query: &place.query, page: number, first_key, head: place.head };
            let token = w.sub(first_key, keys.0.first_key);
            let at = w.element(scores, token, 4);
            let mut highest = highest.to_vec();
            for v in 0..self.at.page_vectors() {
                let at = w.offset_const(at, v as u64 * u64::from(self.at.lanes) * 4);
                let mut x = w.load(Ty::of(Elem::F32, self.at.lanes), at);
                let of_keys = self.at.keys_of(w, page, v)?;
                if self.at.factor().is_none() {
                    x = self.at.score(w, &of_keys, x)?;
                }
                if masked {
                    let visible = self.at.visible(w, &place.query, &of_keys)?;
                    x = w.select(visible, x, hidden);
                }
                w.store(x, at);
                for h in &mut highest {
                    *h = larger(w, *h, x);
                }
            }
            Ok(highest)
        })
    }

    fn softmax(
        &self,
        w: &mut Writer,
        keys: (&Block, Val),
        place: &Place,
        scores: Val,
        masked: bool,
    ) -> Result<(), CodegenError> {
        let lanes = self.at.lanes;
        let lowest = w.f32(LOWEST, lanes);
        let highest = if masked || self.at.factor().is_none() {
            self.rewrite(w, keys, place, scores, &[lowest], masked)?
        } else {
            self.each_vectors(w, keys.1, &[lowest], |w, first, highest| {
                let mut highest = highest[0];
                for v in 0..self.together() {
                    let x = self.load(w, scores, first, v);
                    highest = larger(w, highest, x);
                }
                Ok(vec![highest])
            })?
        };
        let factor = self.at.factor().unwrap_or(std::f64::consts::LOG2_E);
        let maximum_at = self.cell(w, self.layout.maxima, place.index, 4);
        let maximum = w.load(Ty::scalar(Elem::F32), maximum_at);
        let sums_at = self.cell(w, self.layout.sums, place.index, u64::from(lanes) * 4);
        let above = {
            let y = relative(w, highest[0], factor, maximum);
            let margin = w.f32(MARGIN, lanes);
            let above = w.cmp(Cmp::Gt, y, margin);
            w.reduce_or(above)
        };
        let maximum = w.if_else(above, &[maximum], |w| {
            let highest = w.reduce_max(highest[0]);
            let factor = w.f32(factor, 0);
            let highest = w.mul(highest, factor);
            let raised = w.max(maximum, highest);
            w.store(raised, maximum_at);
            let by = w.sub(maximum, raised);
            let decay = w.exp2(by);
            let decay = w.splat(decay, lanes);
            let out = self.cell(w, self.layout.out, place.index, self.layout.out_bytes);
            let n = self.at.spec.value_dim.div_ceil(u64::from(lanes));
            let all = (0..n).map(|v| w.offset_const(out, v * u64::from(lanes) * 4)).collect::<Vec<_>>();
            for at in all.into_iter().chain([sums_at]) {
                let x = w.load(Ty::of(Elem::F32, lanes), at);
                let x = w.mul(x, decay);
                w.store(x, at);
            }
            Ok(vec![raised])
        })?[0];
        let sums = w.load(Ty::of(Elem::F32, lanes), sums_at);
        let sums = self.each_vectors(w, keys.1, &[sums], |w, first, sums| {
            let mut sums = sums[0];
            let mut weights = Vec::new();
            for v in 0..self.together() {
                let x = self.load(w, scores, first, v);
                let y = relative(w, x, factor, maximum);
                let mut p = w.exp2(y);
                if masked {
                    let zero = w.f32(0.0, lanes);
                    let lowest = w.f32(LOWEST, lanes);
                    let hidden = w.cmp(Cmp::Le, x, lowest);
                    p = w.select(hidden, zero, p);
                }
                sums = w.add(sums, p);
                weights.push(p);
            }
            if self.schedule.tiles {
                self.store_weights(w, place.place, first, &weights);
                return Ok(vec![sums]);
            }
            for (v, p) in (0..).zip(weights) {
                let at = self.vector_at(w, scores, first, v);
                w.store(p, at);
            }
            Ok(vec![sums])
        })?;
        w.store(sums[0], sums_at);
        Ok(())
    }

    /// Vectors that [`each_vectors`](Self::each_vectors) takes at a time: whole pages, so that all lanes of a page that has a weight are weights.
    fn together(&self) -> u64 {
        let vectors = self.block_keys() / u64::from(self.at.lanes);
        if vectors.is_multiple_of(TOGETHER) { TOGETHER } else { self.at.page_vectors() as u64 }
    }

    /// A loop over the first keys of a block, some vectors at a time: `body(first key of the block's, carried)`.
    fn each_vectors(
        &self,
        w: &mut Writer,
        n_keys: Val,
        carried: &[Val],
        body: impl FnOnce(&mut Writer, Val, &[Val]) -> Result<Vec<Val>, CodegenError>,
    ) -> Result<Vec<Val>, CodegenError> {
        let begin = w.i64(0);
        w.for_loop(begin, n_keys, (self.together() * u64::from(self.at.lanes)) as i64, carried, body)
    }

    /// Where vector `v` from a key on lies.
    fn vector_at(&self, w: &mut Writer, scores: Val, first: Val, v: u64) -> Val {
        let at = w.element(scores, first, 4);
        w.offset_const(at, v * u64::from(self.at.lanes) * 4)
    }

    fn load(&self, w: &mut Writer, scores: Val, first: Val, v: u64) -> Val {
        let at = self.vector_at(w, scores, first, v);
        w.load(Ty::of(Elem::F32, self.at.lanes), at)
    }
}

/// `x * factor - maximum`.
fn relative(w: &mut Writer, x: Val, factor: f64, maximum: Val) -> Val {
    let lanes = x.ty.lanes;
    let zero = w.f32(0.0, 0);
    let minus = w.sub(zero, maximum);
    let minus = w.splat(minus, lanes);
    let factor = w.f32(factor, lanes);
    w.fma(x, factor, minus)
}

/// The larger of two; the first where the second is no number.
fn larger(w: &mut Writer, a: Val, b: Val) -> Val {
    let is_larger = w.cmp(Cmp::Gt, b, a);
    w.select(is_larger, b, a)
}
