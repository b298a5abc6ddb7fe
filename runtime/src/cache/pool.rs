//! Ref-counted pages of one group, by number.
//!
//! Page 0 is never given out: table entries that hold no page point at it. Numbers are handed out densely, lowest first, so that memory is touched
//! only as far as it was ever needed.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Number of a page.
pub type PageId = u32;

/// The page that holds nothing.
pub const NULL_PAGE: PageId = 0;

/// The pages of a group.
#[derive(Clone, Debug)]
pub(super) struct Pool {
    /// Owners of each page that was ever given out; entry 0 is the null page.
    owners: Vec<u32>,
    free: BinaryHeap<Reverse<PageId>>,
    limit: u32,
}

impl Pool {
    /// A pool of at most `limit` pages besides the null page.
    pub(super) fn new(limit: u32) -> Self {
        // Room for all of them, where the system has it, so that steps seldom ask for more.
        let mut owners = vec![1];
        let _ = owners.try_reserve_exact(limit as usize);
        Self { owners, free: BinaryHeap::new(), limit }
    }

    /// Most pages, the null page counted: what the memory must have room for.
    pub(super) fn capacity_pages(&self) -> u64 {
        u64::from(self.limit) + 1
    }

    /// Pages that can still be taken.
    pub(super) fn available(&self) -> usize {
        self.free.len() + (self.limit as usize + 1).saturating_sub(self.owners.len())
    }

    /// Pages that have an owner.
    pub(super) fn live(&self) -> u64 {
        (self.owners.len() - 1 - self.free.len()) as u64
    }

    /// Pages that were ever given out.
    pub(super) fn touched(&self) -> u64 {
        (self.owners.len() - 1) as u64
    }

    /// A page with one owner, or `None` when all are taken.
    pub(super) fn take(&mut self) -> Option<PageId> {
        if let Some(Reverse(page)) = self.free.pop() {
            self.owners[page as usize] = 1;
            return Some(page);
        }
        if self.owners.len() > self.limit as usize {
            return None;
        }
        self.owners.push(1);
        Some((self.owners.len() - 1) as PageId)
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
            self.free.push(Reverse(page));
        }
    }

    /// Owners of `page`: with more than one, writing to it would be seen by others.
    pub(super) fn owners(&self, page: PageId) -> u32 {
        self.owners[page as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gives_lowest_first_up_to_the_limit() {
        let mut pool = Pool::new(2);
        assert_eq!((pool.take(), pool.take(), pool.take()), (Some(1), Some(2), None));
        pool.share(1);
        pool.release(1);
        assert_eq!((pool.available(), pool.live()), (0, 2));
        pool.release(1);
        assert_eq!((pool.available(), pool.live(), pool.touched()), (1, 1, 2));
        assert_eq!(pool.take(), Some(1));
        pool.release(NULL_PAGE);
        assert_eq!(pool.capacity_pages(), 3);
    }
}
