//! Where there are free pages in a row: of each run of pages the largest block, found by its size.
//!
//! A block has 1, 2, 4, 8 or 16 pages and begins at a multiple of its size. Given which pages of a run are free, promises the lowest run that has a
//! block of a size, without going over all of them.

use std::ops::Range;

/// Pages of a run.
pub(super) const RUN_PAGES: usize = 16;

/// Sizes of blocks: powers of two up to a run.
const SIZES: usize = RUN_PAGES.ilog2() as usize + 1;

/// The free blocks of many runs.
#[derive(Clone, Debug)]
pub(super) struct Blocks {
    /// Free pages of each run.
    pages: Vec<u16>,
    /// Of each size, the runs whose largest block has it.
    runs: [Runs; SIZES],
}

/// A set of runs, by index.
#[derive(Clone, Debug, Default)]
struct Runs {
    words: Vec<u64>,
    /// Words before this one are empty.
    first: usize,
}

impl Blocks {
    /// No blocks yet, with room for so many runs where the system has it.
    pub(super) fn new(n_runs: usize) -> Self {
        let mut pages = Vec::new();
        let _ = pages.try_reserve_exact(n_runs);
        let runs = std::array::from_fn(|_| {
            let mut words = Vec::new();
            let _ = words.try_reserve_exact(n_runs.div_ceil(64));
            Runs { words, first: 0 }
        });
        Self { pages, runs }
    }

    /// Says which pages of a run are free.
    pub(super) fn set(&mut self, run: usize, free: u16) {
        if self.pages.len() <= run {
            self.pages.resize(run + 1, 0);
        }
        let before = std::mem::replace(&mut self.pages[run], free);
        let (before, after) = (largest(before), largest(free));
        if before != after {
            if let Some(size) = before {
                self.runs[size].remove(run);
            }
            if let Some(size) = after {
                self.runs[size].insert(run);
            }
        }
    }

    /// The first pages of a block that has as many as are wanted, by their numbers: in the smallest gap that does, and of these the lowest.
    pub(super) fn first(&mut self, wanted: usize) -> Option<Range<usize>> {
        let size = wanted.next_power_of_two().ilog2() as usize;
        let (of, run) = (size..SIZES).find_map(|of| Some((of, self.runs[of].lowest()?)))?;
        // Beside the largest block of a run there may be one that fits better.
        let free = self.pages[run];
        let begins = beginnings(free)[size];
        let begins = (size + 1..=of + 1).map(|above| begins & !within(free, above)).find(|&begins| begins != 0)?;
        let start = run * RUN_PAGES + begins.trailing_zeros() as usize;
        Some(start..start + wanted)
    }

    /// The last pages of a largest block: as many as are wanted, or as it has.
    pub(super) fn last(&mut self, wanted: usize) -> Option<Range<usize>> {
        let (of, run) = (0..SIZES).rev().find_map(|of| Some((of, self.runs[of].lowest()?)))?;
        let begins = beginnings(self.pages[run])[of];
        let end = run * RUN_PAGES + begins.ilog2() as usize + (1 << of);
        Some(end - wanted.min(1 << of)..end)
    }
}

/// Where the blocks of each size begin, a bit a page.
fn beginnings(free: u16) -> [u16; SIZES] {
    let mut begins = [free; SIZES];
    for size in 1..SIZES {
        let half = 1 << (size - 1);
        // Every page whose number is a multiple of the size.
        let multiples = (0..RUN_PAGES).step_by(2 * half).fold(0, |all, page| all | 1 << page);
        begins[size] = begins[size - 1] & begins[size - 1] >> half & multiples;
    }
    begins
}

/// The pages that lie within blocks of a size; none of one that is larger than a run.
fn within(free: u16, size: usize) -> u16 {
    let begins = beginnings(free).get(size).copied().unwrap_or(0);
    (0..size.min(SIZES - 1)).fold(begins, |pages, half| pages | pages << (1 << half))
}

/// The size of the largest block, as its logarithm.
fn largest(free: u16) -> Option<usize> {
    beginnings(free).iter().rposition(|&begins| begins != 0)
}

impl Runs {
    fn insert(&mut self, run: usize) {
        let word = run / 64;
        if self.words.len() <= word {
            self.words.resize(word + 1, 0);
        }
        self.words[word] |= 1 << (run % 64);
        self.first = self.first.min(word);
    }

    fn remove(&mut self, run: usize) {
        self.words[run / 64] &= !(1 << (run % 64));
    }

    fn lowest(&mut self) -> Option<usize> {
        while *self.words.get(self.first)? == 0 {
            self.first += 1;
        }
        Some(self.first * 64 + self.words[self.first].trailing_zeros() as usize)
    }
}
