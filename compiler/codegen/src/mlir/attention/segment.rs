//! Rows of one sequence that a block of threads multiplies by tensor cores, and what each thread asks for.
//!
//! Queries are numbered by rows and, within a row, by the heads of the tile. A group has some tiles of 16 queries; of each a thread asks for two, eight apart.

use super::tensors::{Asked, Four, KEYS, fours};
use super::{Attention, Tile};
use crate::error::CodegenError;
use crate::mlir::writer::{Cmp, Elem, Ty, Val, Writer};

const I32: Ty = Ty::scalar(Elem::I32);

/// Rows of one sequence, by the heads of a tile.
#[derive(Clone, Copy)]
pub(super) struct Segment {
    pub(super) tile: Tile,
    pub(super) from: Val,
    /// Queries.
    pub(super) n: Val,
    pub(super) sequence: Val,
    pub(super) first_page: Val,
    pub(super) end_page: Val,
    /// One past the last key that any query sees.
    pub(super) high: Val,
}

/// A thread's place, as 32-bit numbers; and its group's first query.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub(super) thread: Val,
    pub(super) lane: Val,
    pub(super) eighth: Val,
    pub(super) quarter: Val,
    pub(super) first_query: Val,
}

impl Place {
    /// Of a thread, where groups have so many queries.
    pub(super) fn of(w: &mut Writer, thread: Val, queries: u64) -> Place {
        let [last, three] = [31, 3].map(|n| w.int(n, I32));
        let lane = w.and(thread, last);
        let group = w.shr(thread, 5);
        let n = w.int(queries as i64, I32);
        Place { thread, lane, eighth: w.shr(lane, 2), quarter: w.and(lane, three), first_query: w.mul(group, n) }
    }
}

/// Of the queries of a group: keys that some of them see, and that all do.
#[derive(Clone, Copy)]
pub(super) struct Bounds {
    some: [Val; 2],
    all: [Val; 2],
}

impl Bounds {
    /// Of what the threads of a group ask for.
    pub(super) fn of<'a>(w: &mut Writer, asked: impl IntoIterator<Item = &'a Asked>) -> Bounds {
        let all: Vec<&Asked> = asked.into_iter().collect();
        let over = |w: &mut Writer, of: fn(&Asked) -> Val, largest: bool| {
            let own = all[1..].iter().fold(of(all[0]), |a, b| {
                let b = of(b);
                if largest { w.max(a, b) } else { w.min(a, b) }
            });
            let own = w.splat(own, 32);
            if largest { w.reduce_max(own) } else { w.reduce_min(own) }
        };
        Bounds {
            some: [over(w, |a| a.from, false), over(w, |a| a.to, true)],
            all: [over(w, |a| a.from, true), over(w, |a| a.to, false)],
        }
    }

    /// Whether some query sees any of the keys `first .. end`.
    pub(super) fn see(&self, w: &mut Writer, first: Val, end: Val) -> Val {
        let begins = w.cmp(Cmp::Lt, first, self.some[1]);
        let ends = w.cmp(Cmp::Gt, end, self.some[0]);
        w.and(begins, ends)
    }

    /// Whether all queries see all of them.
    pub(super) fn see_all(&self, w: &mut Writer, first: Val, end: Val) -> Val {
        let after = w.cmp(Cmp::Ge, first, self.all[0]);
        let before = w.cmp(Cmp::Le, end, self.all[1]);
        w.and(after, before)
    }
}

impl Attention<'_> {
    /// What a tile has of each sequence.
    pub(super) fn segments(
        &self,
        w: &mut Writer,
        tile: Tile,
        body: impl FnOnce(&mut Writer, &Segment) -> Result<(), CodegenError>,
    ) -> Result<(), CodegenError> {
        self.each_segment(w, tile, |w, from, to| {
            let rows = w.sub(to, from);
            let heads = w.i64(tile.heads as i64);
            let n = w.mul(rows, heads);
            // Positions of a sequence ascend.
            let one = w.i64(1);
            let last = w.sub(to, one);
            let (first, last) = (self.enter_row(w, from), self.enter_row(w, last));
            let tokens = w.i64(self.spec.page_tokens as i64);
            let end_page = w.ceil_div(last.high, self.spec.page_tokens);
            let first_page = w.div_unsigned(first.low, tokens);
            let first_page = w.min(first_page, end_page);
            let sequence = first.sequence;
            body(w, &Segment { tile, from, n, sequence, first_page, end_page, high: last.high })
        })
    }

    /// The queries of a thread, in the tile that begins so many behind its group's first.
    pub(super) fn asked_of_tile(&self, w: &mut Writer, segment: &Segment, place: Place, behind: u64) -> Vec<Asked> {
        (0..2)
            .map(|half| {
                let behind = w.int((behind + half * KEYS) as i64, I32);
                let query = w.add(place.first_query, place.eighth);
                let query = w.add(query, behind);
                let query = w.widen_unsigned(query, Elem::I64);
                let (row, head) = self.locate(w, segment.tile, segment.from, segment.n, query);
                let query = self.enter_row(w, row);
                self.asked(w, query, head)
            })
            .collect()
    }

    /// Scores of some tiles of keys without those that are not seen, where `whole` does not say that all are; of the two keys of a thread, `first_key` is the first.
    pub(super) fn seen_alone(
        &self,
        w: &mut Writer,
        asked: &[Asked],
        (first_key, scores): (Val, Vec<Four>),
        whole: Option<Val>,
    ) -> Result<Vec<Four>, CodegenError> {
        let hide = |w: &mut Writer| {
            let seen = self.seen(w, asked, first_key, scores.len() as u64)?;
            Ok::<Vec<Four>, CodegenError>(self.hide(w, &scores, &seen, asked.len()))
        };
        let Some(whole) = whole else { return hide(w) };
        let one = w.int(1, whole.ty);
        let cut = w.xor(whole, one);
        let flat = w.if_else(cut, &scores.concat(), |w| Ok(hide(w)?.concat()))?;
        Ok(fours(&flat))
    }
}
