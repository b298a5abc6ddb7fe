//! Pages that are taken, shared and released in any order, against a list of owners: none has two takers, all can be taken, and rows are as long as
//! free pages allow.

use super::*;
use proptest::prelude::*;
use std::collections::BTreeSet;

const ALONE: Wish = Wish { after: NULL_PAGE, pages: 1 };

#[test]
fn gives_lowest_first_up_to_the_limit() {
    let (mut pool, mut kept) = (Pool::new(2), 0..0);
    let mut take = |pool: &mut Pool| pool.take(ALONE, &mut kept);
    assert_eq!((take(&mut pool), take(&mut pool), take(&mut pool)), (Some(1), Some(2), None));
    pool.share(1);
    pool.release(1);
    assert_eq!((pool.available(), pool.live()), (0, 2));
    pool.release(1);
    assert_eq!((pool.available(), pool.live(), pool.touched()), (1, 1, 2));
    assert_eq!(take(&mut pool), Some(1));
    pool.release(NULL_PAGE);
    assert_eq!(pool.capacity_pages(), 3);
}

/// Who takes pages, one after another, with a wish of its own.
#[derive(Clone, Debug, Default)]
struct Taker {
    pages: Vec<PageId>,
    kept: Range<PageId>,
}

impl Taker {
    fn take(&mut self, pool: &mut Pool, pages: u64) -> Option<PageId> {
        let after = self.pages.last().copied().unwrap_or(NULL_PAGE);
        let page = pool.take(Wish { after, pages }, &mut self.kept)?;
        self.pages.push(page);
        Some(page)
    }

    fn release(&mut self, pool: &mut Pool) {
        pool.give_up(&mut self.kept);
        self.pages.drain(..).for_each(|page| pool.release(page));
    }

    /// Pages that do not follow the one before them.
    fn jumps(&self) -> usize {
        self.pages.windows(2).filter(|pair| pair[1] != pair[0] + 1).count()
    }
}

#[test]
fn takers_in_turn_get_long_rows() {
    for n in [2, 3, 16, 31] {
        let mut pool = Pool::new(u32::MAX - 1);
        let mut takers = vec![Taker::default(); n];
        for taken in 0..256 {
            for taker in &mut takers {
                taker.take(&mut pool, u64::max(1, taken)).unwrap();
            }
        }
        for taker in &takers {
            // 1, 1, 2, 4 and 8 pages, then runs.
            assert!(taker.jumps() <= 4 + 240 / RUN_PAGES, "{n} takers: {:?}", taker.pages);
        }
        // Kept is no more than used, and what is not kept lies in the smallest gaps.
        let last = takers.iter().flat_map(|taker| &taker.pages).max().copied().unwrap_or(0);
        assert!(last as usize <= n * 256 * 9 / 8 + 2 * RUN_PAGES, "{n} takers: {last}");
    }
}

#[test]
fn what_is_kept_is_there_for_others_who_find_nothing_else() {
    let mut pool = Pool::new(20);
    let (mut one, mut other) = (Taker::default(), Taker::default());
    one.take(&mut pool, 16).unwrap();
    assert_eq!((pool.available(), one.kept.len()), (19, 7), "no run is whole, eight pages are the most");
    (0..19).for_each(|_| assert!(other.take(&mut pool, 1).is_some()));
    assert_eq!((pool.available(), one.take(&mut pool, 1), other.take(&mut pool, 1)), (0, None, None));
    other.release(&mut pool);
    let next = one.pages[0] + 1;
    assert_eq!(one.take(&mut pool, 4), Some(next), "given back, it is behind the last page again");
}

#[derive(Clone, Debug)]
enum Action {
    Take(usize, u64),
    Share(usize, usize),
    Cut(usize, usize),
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        8 => (0usize..6, 1u64..40).prop_map(|(i, pages)| Action::Take(i, pages)),
        1 => (0usize..6, 0usize..6).prop_map(|(from, to)| Action::Share(from, to)),
        2 => (0usize..6, prop_oneof![Just(0usize), 0usize..40]).prop_map(|(i, n)| Action::Cut(i, n)),
    ]
}

/// What the pool should know: owners of each page, and whether someone keeps it.
struct World {
    pool: Pool,
    takers: Vec<Taker>,
    owners: Vec<u32>,
    kept: Vec<bool>,
    touched: BTreeSet<PageId>,
}

impl World {
    fn new(limit: u32) -> Self {
        let n = limit as usize + 1;
        let (pool, takers) = (Pool::new(limit), vec![Taker::default(); 6]);
        Self { pool, takers, owners: vec![0; n], kept: vec![false; n], touched: BTreeSet::new() }
    }

    fn is_free(&self, page: usize) -> bool {
        page > 0 && self.owners.get(page) == Some(&0)
    }

    fn is_open(&self, page: usize) -> bool {
        self.is_free(page) && !self.kept[page]
    }

    fn take(&mut self, i: usize, wanted: u64) {
        let n = self.owners.len();
        let n_free = (1..n).filter(|&page| self.is_free(page)).count();
        assert_eq!(self.pool.available(), n_free);
        let before = self.takers[i].clone();
        let Some(page) = self.takers[i].take(&mut self.pool, wanted) else {
            assert_eq!(n_free, 0);
            self.give_up(before.kept);
            return;
        };
        let page = page as usize;
        assert!(self.is_free(page), "page {page} is given out twice");
        let next = before.pages.last().map(|&page| page as usize + 1);
        if next.is_some_and(|next| before.kept.contains(&(next as PageId)) && self.is_free(next)) {
            assert_eq!(Some(page), next, "a page that was kept and is free is the next");
        } else {
            self.give_up(before.kept);
            assert!(!self.kept[page] || !(1..n).any(|page| self.is_open(page)), "{page} is another's");
            let is_whole = |run: usize| (run..run + RUN_PAGES).all(|page| self.is_open(page));
            if wanted >= LONGEST_RUN && next != Some(page) && (0..n).step_by(RUN_PAGES).any(is_whole) {
                assert!(is_whole(page) && self.takers[i].kept.len() == RUN_PAGES - 1, "a whole run was free");
            }
            // Of what is kept some may have been taken since, where nothing else was free, and given back: nobody keeps it then.
            for page in self.takers[i].kept.clone() {
                self.kept[page as usize] = self.is_free(page as usize);
            }
        }
        self.touched.insert(page as PageId);
        self.owners[page] = 1;
        self.kept[page] = false;
    }

    fn give_up(&mut self, kept: Range<PageId>) {
        kept.for_each(|page| self.kept[page as usize] = false);
    }

    /// A taker has the first `n` of its pages left.
    fn cut(&mut self, i: usize, n: usize) {
        self.give_up(self.takers[i].kept.clone());
        self.pool.give_up(&mut self.takers[i].kept);
        for page in self.takers[i].pages.drain(n..) {
            self.owners[page as usize] -= 1;
            self.pool.release(page);
        }
    }

    fn share(&mut self, from: usize, to: usize) {
        self.cut(to, 0);
        self.takers[to].pages = self.takers[from].pages.clone();
        for &page in &self.takers[to].pages {
            self.owners[page as usize] += 1;
            self.pool.share(page);
        }
    }

    fn check(&self) {
        for &page in self.takers.iter().flat_map(|taker| &taker.pages) {
            assert_eq!(self.pool.owners(page), self.owners[page as usize]);
        }
        let live = self.owners.iter().filter(|&&owners| owners > 0).count() as u64;
        assert_eq!((self.pool.live(), self.pool.touched()), (live, self.touched.len() as u64));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_page_has_two_takers_and_all_can_be_taken(
        limit in 1u32..200,
        actions in proptest::collection::vec((action(), 1usize..12), 1..80),
    ) {
        let mut world = World::new(limit);
        for (action, times) in actions {
            match action {
                Action::Take(i, pages) => (0..times).for_each(|_| world.take(i, pages)),
                Action::Share(from, to) if from != to => world.share(from, to),
                Action::Share(..) => {}
                Action::Cut(i, n) => world.cut(i, n.min(world.takers[i].pages.len())),
            }
            world.check();
        }
        while world.pool.available() > 0 {
            world.take(0, LONGEST_RUN);
        }
        world.check();
        prop_assert_eq!(world.pool.live(), u64::from(limit));
        (0..6).for_each(|i| world.cut(i, 0));
        prop_assert_eq!(world.pool.available(), limit as usize);
    }
}
