//! One group of cache slots: which page holds which positions of which sequence, under the group's rule of keeping.

use super::pool::{LONGEST_RUN, NULL_PAGE, PageId, Pool, Wish};
use crate::artifact::manifest::{CacheGroup, Keep, Manifest};
use std::collections::BTreeMap;
use std::ops::Range;

/// How many tokens a cache is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheOptions {
    /// Most sequences at a time.
    pub max_sequences: u32,
    /// Most positions of a sequence.
    pub context_tokens: u64,
    /// Most elements of an axis that a sequence is given once, such as a source.
    pub once_tokens: u64,
    /// Most tokens of a step, over all its sequences.
    pub step_tokens: u64,
    /// Positions that all sequences together may hold, where that is less than `max_sequences * context_tokens`.
    pub pool_tokens: Option<u64>,
}

/// Most elements of one axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AxisLimit {
    /// Of a sequence.
    pub sequence: u64,
    /// Of a step, over all its sequences.
    pub step: u64,
}

impl CacheOptions {
    /// What `axis` is made for: where every sequence has the same number of elements, that number; else the context for the axis that
    /// grows, and `once_tokens` for what is given once, which is one step however long.
    pub fn limit(&self, manifest: &Manifest, axis: usize) -> AxisLimit {
        let sequences = u64::from(self.max_sequences);
        match manifest.extents.get(axis).copied().flatten() {
            Some(extent) => AxisLimit { sequence: extent, step: extent.saturating_mul(sequences) },
            None if axis == 0 => AxisLimit { sequence: self.context_tokens, step: self.step_tokens },
            None => {
                let sequence = self.once_tokens.min(manifest.most_elements(axis).unwrap_or(u64::MAX));
                AxisLimit { sequence, step: self.step_tokens.max(sequence) }
            }
        }
    }
}

/// The pages of one sequence in one group.
#[derive(Clone, Debug, Default)]
pub(super) struct Table {
    /// Entry `(p / page_tokens) % entries` holds position `p`; shorter than a growing group's entries until it has grown. Of a state: the page
    /// before the last step, and the one after it.
    pages: Vec<PageId>,
    /// Lowest position whose contents are whole: a ring overwrites what is below. Of a state: the position that the page before the last step is of.
    held_from: u64,
    /// Pages of the pool that are kept for it, behind the one that it took last.
    kept: Range<PageId>,
}

impl Table {
    /// Entries that it has so far.
    pub(super) fn entries(&self) -> usize {
        self.pages.len()
    }
}

/// A copy of one page to another, over all slots of the group, to be done before the step's kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageCopy {
    /// Index of the group.
    pub group: usize,
    /// Page that keeps its contents.
    pub from: PageId,
    /// Page that gets them.
    pub to: PageId,
}

/// The pages of one group.
#[derive(Clone, Debug)]
pub(super) struct Group {
    keep: Keep,
    pub(super) axis: usize,
    page_tokens: u64,
    /// Bytes of a page over all slots that have their own memory.
    page_bytes: u64,
    /// Entries of a ring; 0 where tables grow.
    ring: u64,
    /// Entries of the largest table.
    most_entries: usize,
    pub(super) pool: Pool,
}

impl Group {
    /// # Errors
    /// The number of pages does not fit into 32 bits.
    pub(super) fn new(spec: &CacheGroup, options: &CacheOptions, limit: AxisLimit) -> Result<Self, String> {
        let tokens = spec.page_tokens;
        let (ring, pages) = pages(spec, options, limit);
        let pages = u32::try_from(pages).ok().filter(|&pages| pages < u32::MAX);
        let pages = pages.ok_or_else(|| format!("cache group `{}` would have more than 2^32 pages", spec.name))?;
        Ok(Self {
            keep: spec.keep,
            axis: spec.axis,
            page_tokens: tokens,
            page_bytes: page_bytes(spec),
            ring,
            most_entries: match spec.keep {
                Keep::State => 2,
                _ if ring > 0 => ring as usize,
                _ => limit.sequence.div_ceil(tokens).min(pages.into()) as usize,
            },
            pool: Pool::new(pages),
        })
    }

    /// The table of an empty sequence, with room for as many entries as a sequence of the store may need.
    pub(super) fn table(&self) -> Table {
        let mut pages = Vec::new();
        let _ = pages.try_reserve_exact(self.most_entries);
        Table { pages, ..Table::default() }
    }

    /// Bytes of the pages that some sequence owns.
    pub(super) fn live_bytes(&self) -> u64 {
        self.pool.live() * self.page_bytes
    }

    /// Bytes of the pages that were ever written.
    pub(super) fn allocated_bytes(&self) -> u64 {
        self.pool.touched() * self.page_bytes
    }

    /// Entry of a page in a table, and how many entries a table must have for it.
    fn entry(&self, page_index: u64) -> usize {
        if self.ring > 0 { (page_index % self.ring) as usize } else { page_index as usize }
    }

    /// The pages (by index in the sequence) that positions `from .. to` touch; empty when there are none.
    fn page_indices(&self, from: u64, to: u64) -> Range<u64> {
        if from == to { 0..0 } else { from / self.page_tokens..(to - 1) / self.page_tokens + 1 }
    }

    /// Pages that [`Group::append`] of positions `from .. to` takes from the pool. `released` counts the owners that appends before this one
    /// took from each page: a page that two sequences share is copied for one of them only.
    pub(super) fn pages_needed(
        &self,
        table: &Table,
        from: u64,
        to: u64,
        released: &mut BTreeMap<PageId, u32>,
    ) -> usize {
        if self.keep == Keep::State {
            return usize::from(to > from);
        }
        let mut needed = 0;
        for index in self.page_indices(from, to) {
            match table.pages.get(self.entry(index)) {
                None | Some(&NULL_PAGE) => needed += 1,
                Some(&page) if self.pool.owners(page) > 1 => {
                    let gone = released.entry(page).or_default();
                    if self.pool.owners(page) > *gone + 1 {
                        *gone += 1;
                        needed += 1;
                    }
                }
                Some(_) => (),
            }
        }
        needed
    }

    /// Gives pages of its own to positions `from .. to` of a sequence that has `from` positions. The caller has made sure that
    /// [`Group::pages_needed`] are available; `false` says that they were not.
    #[must_use]
    pub(super) fn append(
        &mut self,
        table: &mut Table,
        from: u64,
        to: u64,
        group: usize,
        copies: &mut Vec<PageCopy>,
    ) -> bool {
        if self.keep == Keep::State {
            return self.append_state(table, from, to);
        }
        let indices = self.page_indices(from, to);
        for index in indices.clone() {
            let entry = self.entry(index);
            if table.pages.len() <= entry {
                table.pages.resize(entry + 1, NULL_PAGE);
            }
            let page = table.pages[entry];
            if page != NULL_PAGE && self.pool.owners(page) == 1 {
                continue;
            }
            let wish = self.wish(table, entry, indices.end - index);
            let Some(own) = self.pool.take(wish, &mut table.kept) else { return false };
            // Only the page in which `from` lies holds positions that stay; another old page of this entry went out of a ring.
            let keeps_contents = index * self.page_tokens < from;
            if page != NULL_PAGE && keeps_contents {
                copies.push(PageCopy { group, from: page, to: own });
            }
            self.pool.release(page);
            table.pages[entry] = own;
        }
        if self.ring > 0 && to > from {
            let oldest = ((to - 1) / self.page_tokens + 1).saturating_sub(self.ring) * self.page_tokens;
            table.held_from = table.held_from.max(oldest);
        }
        true
    }

    /// What a sequence asks for that takes `left` pages in this step, of which the first is for `entry`. A table that grows has as many pages kept for it
    /// as it has already, so that what is kept is no more than what is used; one that never has more than it is given now, those.
    fn wish(&self, table: &Table, entry: usize, left: u64) -> Wish {
        let grows = matches!(self.keep, Keep::All | Keep::Window(_));
        let pages = if grows { left.max(entry as u64) } else { left };
        let most = (self.most_entries.saturating_sub(entry) as u64).clamp(1, LONGEST_RUN);
        let after = entry.checked_sub(1).map_or(NULL_PAGE, |before| table.pages[before]);
        Wish { after, pages: pages.max(1).checked_next_power_of_two().unwrap_or(u64::MAX).min(most) }
    }

    /// Makes the page after the last step the one before this step, and gives a new one to be written.
    fn append_state(&mut self, table: &mut Table, from: u64, to: u64) -> bool {
        if from == to {
            return true;
        }
        let Some(own) = self.pool.take(Wish { after: NULL_PAGE, pages: 1 }, &mut table.kept) else { return false };
        table.pages.resize(2, NULL_PAGE);
        self.pool.release(table.pages[0]);
        table.pages[0] = std::mem::replace(&mut table.pages[1], own);
        table.held_from = from;
        true
    }

    /// Whether a sequence may go back to `to` positions, or what stands in the way.
    pub(super) fn can_truncate(&self, table: &Table, to: u64) -> Result<(), String> {
        match self.keep {
            Keep::Window(window) if to > 0 && table.held_from > to.saturating_sub(window - 1) => Err(format!(
                "a window of {window} at position {to} needs positions from {}, the ring holds them from {}",
                to.saturating_sub(window - 1),
                table.held_from
            )),
            Keep::State if to > 0 && (to != table.held_from || table.pages.first() == Some(&NULL_PAGE)) => {
                Err(format!(
                    "a state goes back to the beginning of the last step, position {}, or to the first token, and position {to} was asked for",
                    table.held_from
                ))
            }
            _ => Ok(()),
        }
    }

    /// Goes back from `from` positions to `to`; [`Group::can_truncate`] holds.
    pub(super) fn truncate(&mut self, table: &mut Table, from: u64, to: u64) {
        if self.keep == Keep::State && to > 0 {
            if let [before, after] = &mut table.pages[..] {
                self.pool.release(std::mem::replace(after, std::mem::replace(before, NULL_PAGE)));
            }
            return;
        }
        let kept = to.div_ceil(self.page_tokens);
        self.pool.give_up(&mut table.kept);
        let mut dropped = kept..from.div_ceil(self.page_tokens);
        if self.ring > 0 {
            dropped.start = dropped.start.max(dropped.end.saturating_sub(self.ring));
        }
        for index in dropped {
            let entry = self.entry(index);
            if let Some(page) = table.pages.get_mut(entry) {
                self.pool.release(std::mem::replace(page, NULL_PAGE));
            }
        }
        if self.ring == 0 {
            table.pages.truncate(kept as usize);
        }
        if to == 0 {
            // What is left of a ring holds nothing that is read again.
            self.release(table);
        }
    }

    /// A second owner of all pages.
    pub(super) fn fork(&mut self, table: &Table) -> Table {
        for &page in &table.pages {
            self.pool.share(page);
        }
        let mut copy = self.table();
        copy.pages.extend(&table.pages);
        Table { held_from: table.held_from, ..copy }
    }

    /// Gives all pages back.
    pub(super) fn release(&mut self, table: &mut Table) {
        self.pool.give_up(&mut table.kept);
        for page in table.pages.drain(..) {
            self.pool.release(page);
        }
        table.held_from = 0;
    }

    /// What is kept after a step: everything, but for groups of which nothing is.
    pub(super) fn end_step(&mut self, table: &mut Table) {
        if self.keep == Keep::Step {
            self.release(table);
        }
    }

    /// Entries per sequence that address tables without meeting, of which the largest has `most`. Those of tables that grow are a power of two, or
    /// all that a sequence may need: what follows from their number, such as a step that a device has recorded, seldom changes.
    pub(super) fn entries(&self, most: usize) -> usize {
        match self.keep {
            Keep::State => 2,
            _ if self.ring > 0 => self.ring as usize,
            _ => most.max(1).next_power_of_two().min(self.most_entries.max(most)),
        }
    }

    /// A sequence's row of the block table.
    pub(super) fn row(&self, table: &Table, entries: usize, out: &mut Vec<PageId>) {
        let end = out.len() + entries;
        out.extend(table.pages.iter().take(entries));
        out.resize(end, NULL_PAGE);
    }

    /// Tokens of a page.
    pub(super) fn page_tokens(&self) -> u64 {
        self.page_tokens
    }
}

/// Entries of a ring, 0 where tables grow, and the pages of a group, the null page not counted.
fn pages(spec: &CacheGroup, options: &CacheOptions, limit: AxisLimit) -> (u64, u64) {
    let tokens = spec.page_tokens;
    let sequences = u64::from(options.max_sequences);
    let ring = match spec.keep {
        Keep::Window(window) => window.saturating_add(limit.step).div_ceil(tokens) + 1,
        Keep::All | Keep::Once | Keep::Step | Keep::State => 0,
    };
    let each = limit.sequence.div_ceil(tokens);
    let pages = match spec.keep {
        // Rounding up costs each sequence one page at most.
        Keep::All | Keep::Once => match options.pool_tokens {
            Some(all) => sequences.saturating_mul(each).min((all / tokens).saturating_add(sequences)),
            None => sequences.saturating_mul(each),
        },
        Keep::Window(_) => sequences.saturating_mul(ring),
        // Two that a sequence has, and one that its step takes before it gives one back.
        Keep::State => sequences.saturating_mul(3),
        // A sequence's part of a step may begin and end inside a page.
        Keep::Step => (limit.step / tokens).saturating_add(sequences.saturating_mul(2)),
    };
    (ring, pages)
}

/// The pages of a group that memory has room for, and the formula that gives them: what [`CacheStore`](super::CacheStore) allocates.
pub fn page_formula(spec: &CacheGroup, options: &CacheOptions, limit: AxisLimit) -> (u64, String) {
    let (AxisLimit { sequence, step }, tokens, n) = (limit, spec.page_tokens, options.max_sequences);
    let formula = match (spec.keep, options.pool_tokens) {
        (Keep::All | Keep::Once, Some(all)) => {
            format!("min({n} * ceil({sequence} / {tokens}), floor({all} / {tokens}) + {n})")
        }
        (Keep::All | Keep::Once, None) => format!("{n} * ceil({sequence} / {tokens})"),
        (Keep::Window(window), _) => format!("{n} * (ceil(({window} + {step}) / {tokens}) + 1)"),
        (Keep::State, _) => format!("{n} * 3"),
        (Keep::Step, _) => format!("floor({step} / {tokens}) + {n} * 2"),
    };
    (pages(spec, options, limit).1.saturating_add(1), format!("{formula} + 1"))
}

/// Bytes of one page over all slots of a group; slots that share memory are counted once, with the largest.
pub fn page_bytes(group: &CacheGroup) -> u64 {
    let mut shared: BTreeMap<usize, u64> = BTreeMap::new();
    let mut bytes = 0u64;
    for slot in &group.slots {
        match slot.alias {
            Some(alias) => {
                let largest = shared.entry(alias).or_default();
                *largest = (*largest).max(slot.page_bytes);
            }
            None => bytes = bytes.saturating_add(slot.page_bytes),
        }
    }
    shared.values().fold(bytes, |bytes, &shared| bytes.saturating_add(shared))
}
