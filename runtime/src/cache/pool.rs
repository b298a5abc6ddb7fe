//! Ref-counted pages of one group, by number.
//!
//! Page 0 is never given out: table entries that hold no page point at it. Pages that a sequence gets one after another follow one another in memory
//! as far as free pages allow, so that reading them seldom jumps: whoever takes a page has those behind it kept for it, as many as it asks for and at
//! most to the end of their run. What is kept counts as free: it is kept from others only while there are other pages, and no request fails that would
//! not fail without. Numbers are handed out lowest first, smallest gap first, so that memory is touched little further than it was ever needed.

mod blocks;

use blocks::{Blocks, RUN_PAGES};
use std::ops::Range;

/// Number of a page.
pub type PageId = u32;

/// The page that holds nothing.
pub const NULL_PAGE: PageId = 0;

/// Most pages that are kept for one sequence, the one that it takes counted; runs begin at multiples of it.
pub(super) const LONGEST_RUN: u64 = RUN_PAGES as u64;

/// What a sequence asks for when it takes a page.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wish {
    /// The page behind which the new one would best lie, or the null page.
    pub(super) after: PageId,
    /// How many pages in a row are wanted, this one counted; at least one.
    pub(super) pages: u64,
}

/// Pages of one run, a bit each.
#[derive(Clone, Copy, Debug, Default)]
struct Run {
    /// Without an owner.
    free: u16,
    /// Of those, the ones that are kept for a sequence.
    kept: u16,
    /// That ever had an owner.
    touched: u16,
}

/// The pages of a group.
#[derive(Clone, Debug)]
pub(super) struct Pool {
    /// Owners of each page of the runs that were ever begun; entry 0 is the null page.
    owners: Vec<u32>,
    runs: Vec<Run>,
    /// Blocks of pages that nobody has and nobody has asked to keep.
    open: Blocks,
    /// Blocks of pages that nobody has.
    free: Blocks,
    n_live: u32,
    n_touched: u32,
    limit: u32,
}

impl Pool {
    /// A pool of at most `limit` pages besides the null page.
    pub(super) fn new(limit: u32) -> Self {
        // Room for all of them, where the system has it, so that steps seldom ask for more.
        let n_runs = limit as usize / RUN_PAGES + 1;
        let (mut owners, mut runs) = (Vec::new(), Vec::new());
        let _ = owners.try_reserve_exact(n_runs * RUN_PAGES);
        let _ = runs.try_reserve_exact(n_runs);
        Self { owners, runs, open: Blocks::new(n_runs), free: Blocks::new(n_runs), n_live: 0, n_touched: 0, limit }
    }

    /// Most pages, the null page counted: what the memory must have room for.
    pub(super) fn capacity_pages(&self) -> u64 {
        u64::from(self.limit) + 1
    }

    /// Pages that can still be taken.
    pub(super) fn available(&self) -> usize {
        (self.limit - self.n_live) as usize
    }

    /// Pages that have an owner.
    pub(super) fn live(&self) -> u64 {
        self.n_live.into()
    }

    /// Pages that were ever given out.
    pub(super) fn touched(&self) -> u64 {
        self.n_touched.into()
    }

    /// A page with one owner, or `None` when all are taken. `kept` are the pages that are kept for the sequence, behind the one that it took last:
    /// the new one is the first of them where nobody else had to have it, and otherwise they are given up for others.
    pub(super) fn take(&mut self, wish: Wish, kept: &mut Range<PageId>) -> Option<PageId> {
        let next = wish.after.checked_add(1).filter(|_| wish.after != NULL_PAGE);
        if let Some(page) = next.filter(|page| kept.contains(page) && self.is_free(*page)) {
            kept.start = page + 1;
            self.own(page);
            return Some(page);
        }
        self.give_up(kept);
        let wanted = wish.pages.clamp(1, LONGEST_RUN) as usize;
        let block = next.and_then(|next| self.behind(next, wanted)).or_else(|| self.open_block(wanted));
        let block = block.or_else(|| self.free.last(wanted))?;
        let page = block.start as PageId;
        *kept = page + 1..block.end as PageId;
        self.own(page);
        self.change(page, |run| run.kept |= run.free & bits(kept));
        Some(page)
    }

    /// Others may have the pages that were kept for a sequence.
    pub(super) fn give_up(&mut self, kept: &mut Range<PageId>) {
        if kept.start < kept.end {
            self.change(kept.start, |run| run.kept &= !bits(kept));
        }
        *kept = NULL_PAGE..NULL_PAGE;
    }

    /// Another owner of `page`. The null page is not counted.
    pub(super) fn share(&mut self, page: PageId) {
        if page != NULL_PAGE {
            self.owners[page as usize] += 1;
        }
    }

    /// One owner less; without owners the page is free.
    pub(super) fn release(&mut self, page: PageId) {
        if page == NULL_PAGE {
            return;
        }
        let owners = &mut self.owners[page as usize];
        *owners -= 1;
        if *owners == 0 {
            self.n_live -= 1;
            self.change(page, |run| run.free |= bits(&(page..page + 1)));
        }
    }

    /// Owners of `page`: with more than one, writing to it would be seen by others.
    pub(super) fn owners(&self, page: PageId) -> u32 {
        self.owners[page as usize]
    }

    fn is_free(&self, page: PageId) -> bool {
        let run = self.runs.get(page as usize / RUN_PAGES);
        run.is_some_and(|run| run.free & bits(&(page..page + 1)) != 0)
    }

    /// Makes one sequence the owner of a free page.
    fn own(&mut self, page: PageId) {
        let bit = bits(&(page..page + 1));
        self.owners[page as usize] = 1;
        self.n_live += 1;
        self.n_touched += u32::from(self.runs[page as usize / RUN_PAGES].touched & bit == 0);
        self.change(page, |run| {
            *run = Run { free: run.free & !bit, kept: run.kept & !bit, touched: run.touched | bit }
        });
    }

    /// Changes the run of a page.
    fn change(&mut self, page: PageId, change: impl FnOnce(&mut Run)) {
        let index = page as usize / RUN_PAGES;
        let run = &mut self.runs[index];
        change(run);
        self.open.set(index, run.free & !run.kept);
        self.free.set(index, run.free);
    }

    /// Open pages from `next` on: as many as are wanted, or as there are in the run. A run is begun where all of it is wanted.
    fn behind(&self, next: PageId, wanted: usize) -> Option<Range<usize>> {
        let (index, first) = (next as usize / RUN_PAGES, next as usize % RUN_PAGES);
        let run = self.runs.get(index).filter(|_| first > 0 || wanted == RUN_PAGES)?;
        let there = ((run.free & !run.kept) >> first).trailing_ones() as usize;
        let next = next as usize;
        (there > 0).then(|| next..next + there.min(wanted))
    }

    /// The block of open pages that is nearest to what is wanted: of as many, in the smallest gap; of fewer only where no more runs can be begun.
    fn open_block(&mut self, wanted: usize) -> Option<Range<usize>> {
        if let Some(block) = self.open.first(wanted) {
            return Some(block);
        }
        while self.owners.len() <= self.limit as usize {
            self.begin_run();
            if let Some(block) = self.open.first(wanted) {
                return Some(block);
            }
        }
        self.open.last(wanted)
    }

    /// Takes up the next pages that nobody had yet.
    fn begin_run(&mut self) {
        let first = self.owners.len();
        let n = (self.limit as usize + 1 - first).min(RUN_PAGES) as PageId;
        self.owners.resize(first + n as usize, 0);
        self.runs.push(Run::default());
        let first = first as PageId;
        // The null page is nobody's to take.
        let pages = first.max(1)..first + n;
        if first == NULL_PAGE {
            self.owners[0] = 1;
        }
        self.change(first, |run| run.free = bits(&pages));
    }
}

/// Pages of one run as bits; none of no pages.
fn bits(pages: &Range<PageId>) -> u16 {
    let below = |page: PageId| (1u32 << page) - 1;
    let first = pages.start as usize % RUN_PAGES;
    let n = pages.end.saturating_sub(pages.start);
    (below(n) << first) as u16
}

#[cfg(test)]
mod tests;
