//! A block of keys for all queries of a tile, page by page and each for all heads: the keys of the whole block, then the softmaxes, then the values.
//!
//! In steps of many rows, sequences that have few of them are gone over so too, beside others whose keys are worth bringing to the caches head by head:
//! each by all its heads of keys in one tile, of those that have its rows in turn.

use super::super::machine::Machine;
use super::super::schedule::{AttentionSchedule, FewSchedule};
use super::super::writer::{Cmp, Elem, Ty, Val, Writer};
use super::blocks::{Block, Blocks, CACHE_LINE, Micro, Segment};
use super::{Attention, Tile};
use crate::error::CodegenError;

/// Most bytes of a page that are asked for at once.
const BEGINNING: u64 = 2048;

/// Sequences that have few rows in a step of many.
pub(super) struct Few<'k> {
    blocks: Blocks<'k>,
    schedule: FewSchedule,
}

impl<'k> Few<'k> {
    pub(super) fn new(
        at: &'k Attention<'k>,
        of_many: &AttentionSchedule,
        schedule: FewSchedule,
        machine: &Machine,
    ) -> Result<Self, CodegenError> {
        let of_few =
            AttentionSchedule { rows_per_tile: schedule.rows, blocks: Some(schedule.blocks), few: None, ..*of_many };
        Ok(Few { blocks: Blocks::new(at, &of_few, machine)?, schedule })
    }

    pub(super) fn scratch_bytes(&self) -> u64 {
        self.blocks.scratch_bytes()
    }

    /// A tile of the launch: of the sequences of its rows, those that have few where it is their turn, and of the others what `of_many` makes.
    pub(super) fn tile(&self, w: &mut Writer, tile: Tile, of_many: &Blocks<'_>) -> Result<(), CodegenError> {
        let at = self.blocks.at;
        at.each_segment(w, tile, |w, from, to| {
            let (zero, one) = (w.i64(0), w.i64(1));
            let sequence = w.load_u32(at.rows.sequences, from);
            let next = w.add(sequence, one);
            let [first, end] = [sequence, next].map(|sequence| w.load_u32(at.rows.offsets, sequence));
            let rows = w.sub(end, first);
            let most = w.i64(self.schedule.rows as i64);
            let (is_few, is_not) = (w.cmp(Cmp::Le, rows, most), w.cmp(Cmp::Gt, rows, most));
            let share = tile.share.unwrap_or(zero);
            let shares = w.i64(self.schedule.shares as i64);
            let before = w.mul(tile.kv_head, shares);
            let own = w.add(before, share);
            let turns = w.i64((at.spec.kv_heads * self.schedule.shares) as i64);
            let turn = w.rem_unsigned(sequence, turns);
            let is_own = w.cmp(Cmp::Eq, turn, own);
            let is_few = w.and(is_few, is_own);
            w.if_then(is_few, |w| {
                let end_head = w.i64(at.group() as i64);
                let all = Tile { kv_head: zero, first_head: zero, end_head, part: None, share: None, ..tile };
                self.blocks.segment(w, all, from, to)
            })?;
            let is_first = w.cmp(Cmp::Eq, share, zero);
            let is_not = w.and(is_not, is_first);
            w.if_then(is_not, |w| of_many.segment(w, tile, from, to))
        })
    }
}

impl Blocks<'_> {
    /// All register tiles and a block.
    pub(super) fn by_page(&self, w: &mut Writer, segment: &Segment, block: &Block) -> Result<(), CodegenError> {
        self.each_register_tile(w, segment, |w, micro| {
            let (n_keys, whole) = self.look(w, segment, block, micro)?;
            let [zero, one] = [0, 1].map(|x| w.i64(x));
            let whole = w.select(whole, one, zero);
            for (array, x) in [(self.layout.seen, n_keys), (self.layout.whole, whole)] {
                let at = self.cell(w, array, micro.number, 8);
                w.store(x, at);
            }
            Ok(())
        })?;
        self.each_page(w, segment, false, |w, micro, _, page| self.score_pages(w, micro, page))?;
        let first = w.i64(0);
        self.ask_for(w, first, true)?;
        self.each_register_tile(w, segment, |w, micro| {
            let zero = w.i64(0);
            let n_keys = self.recall(w, self.layout.seen, micro);
            let some = w.cmp(Cmp::Lt, zero, n_keys);
            w.if_then(some, |w| {
                let whole = self.recall(w, self.layout.whole, micro);
                let whole = w.cmp(Cmp::Ne, whole, zero);
                self.shares_of(w, segment, (block, n_keys), micro, whole)
            })
        })?;
        self.each_page(w, segment, true, |w, micro, n_keys, page| self.weigh(w, micro, n_keys, Some(page)))
    }

    fn recall(&self, w: &mut Writer, array: u64, micro: Micro) -> Val {
        let at = self.cell(w, array, micro.number, 8);
        w.load(Ty::scalar(Elem::I64), at)
    }

    /// Asks for the beginning of a page of the block, which lies elsewhere than the one before: the rest comes while pages are read.
    fn ask_for(&self, w: &mut Writer, page: Val, values: bool) -> Result<(), CodegenError> {
        if self.schedule.prefetch == 0 {
            return Ok(());
        }
        let array = if values { self.layout.value_pages } else { self.layout.key_pages };
        let cell = self.cell(w, array, page, 8);
        let at = w.load(Ty::scalar(Elem::Ptr), cell);
        let (zero, end) = (w.i64(0), w.i64(self.schedule.prefetch.min(BEGINNING) as i64));
        w.for_loop(zero, end, CACHE_LINE as i64, &[], |w, offset, _| {
            let line = w.offset(at, offset);
            w.prefetch(line, 1);
            Ok(vec![])
        })?;
        Ok(())
    }

    /// A loop over the pages of a block, and for each over the register tiles that look at its keys, or its values: `body(tile, keys that it looks at, page)`.
    fn each_page(
        &self,
        w: &mut Writer,
        segment: &Segment,
        values: bool,
        body: impl FnOnce(&mut Writer, Micro, Val, Val) -> Result<(), CodegenError>,
    ) -> Result<(), CodegenError> {
        let (begin, end) = (w.i64(0), w.i64(i64::from(self.schedule.pages)));
        w.for_loop(begin, end, 1, &[], |w, page, _| {
            let page_tokens = w.i64(self.at.spec.page_tokens as i64);
            let before = w.mul(page, page_tokens);
            let (one, last) = (w.i64(1), w.i64(i64::from(self.schedule.pages) - 1));
            let next = w.add(page, one);
            let next = w.min(next, last);
            self.ask_for(w, next, values)?;
            self.each_register_tile(w, segment, |w, micro| {
                let n_keys = self.recall(w, self.layout.seen, micro);
                let some = w.cmp(Cmp::Lt, before, n_keys);
                w.if_then(some, |w| body(w, micro, n_keys, page))
            })?;
            Ok(vec![])
        })?;
        Ok(())
    }
}
