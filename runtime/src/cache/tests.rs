//! The store against a model of memory: whatever is forked, cut and freed, every position that may be read holds what was written.

use super::*;
use crate::artifact::manifest::{CacheGroup, Keep};
use crate::artifact::sample;
use proptest::prelude::*;

const OPTIONS: CacheOptions =
    CacheOptions { max_sequences: 4, context_tokens: 40, once_tokens: 40, step_tokens: 7, pool_tokens: None };

/// Gives sequences so many tokens.
fn begin(store: &mut CacheStore, step: &[(SequenceId, u64)]) -> Result<Vec<PageCopy>> {
    let mut copies = Vec::new();
    let appends = step.iter().map(|(sequence, n)| Append { sequence: *sequence, tokens: std::slice::from_ref(n) });
    store.begin_step(appends, &mut copies)?;
    Ok(copies)
}

fn table(store: &CacheStore, group: usize, sequences: &[SequenceId]) -> BlockTable {
    let mut table = BlockTable::default();
    store.block_table(group, sequences, &mut table).unwrap();
    table
}

/// Memory as the kernels see it, and what every sequence should find there.
struct World {
    manifest: Manifest,
    store: CacheStore,
    memory: BTreeMap<(usize, PageId, u64), u64>,
    written: Vec<(SequenceId, Vec<u64>)>,
    next: u64,
}

impl World {
    fn new(options: CacheOptions) -> Self {
        let manifest = sample::manifest();
        let store = CacheStore::new(&manifest, options).unwrap();
        Self { manifest, store, memory: BTreeMap::new(), written: Vec::new(), next: 1 }
    }

    /// Where position `p` of row `s` is, as the ABI says.
    fn place(table: &BlockTable, s: usize, p: u64) -> (PageId, u64) {
        let entry = (p / u64::from(table.page_tokens)) % u64::from(table.entries);
        (table.table[s * table.entries as usize + entry as usize], p % u64::from(table.page_tokens))
    }

    fn step(&mut self, parts: &[(usize, u64)]) -> Result<()> {
        let step: Vec<(SequenceId, u64)> = parts.iter().map(|&(i, n)| (self.written[i].0, n)).collect();
        let before = (self.store.live_bytes(), self.store.allocated_bytes());
        let copies = match begin(&mut self.store, &step) {
            Ok(copies) => copies,
            Err(error) => {
                assert_eq!(before, (self.store.live_bytes(), self.store.allocated_bytes()));
                return Err(error);
            }
        };
        for copy in copies {
            assert!(copy.from != copy.to && copy.to != NULL_PAGE && copy.from != NULL_PAGE);
            for element in 0..4 {
                if let Some(&value) = self.memory.get(&(copy.group, copy.from, element)) {
                    self.memory.insert((copy.group, copy.to, element), value);
                }
            }
        }
        let ids: Vec<SequenceId> = step.iter().map(|part| part.0).collect();
        let starts: Vec<u64> = parts.iter().map(|&(i, _)| self.written[i].1.len() as u64).collect();
        for &(i, n) in parts {
            self.written[i].1.extend(self.next..self.next + n);
            self.next += n;
        }
        for g in 0..self.manifest.caches.len() {
            let table = table(&self.store, g, &ids);
            let mut seen = std::collections::BTreeSet::new();
            for (s, &(i, _)) in parts.iter().enumerate() {
                for p in starts[s]..self.written[i].1.len() as u64 {
                    let (page, element) = Self::place(&table, s, p);
                    assert_ne!(page, NULL_PAGE);
                    assert!(seen.insert((page, element)), "two positions in one place");
                    self.memory.insert((g, page, element), self.written[i].1[p as usize]);
                }
            }
            // What the step's queries read.
            for (s, &(i, _)) in parts.iter().enumerate() {
                let end = self.written[i].1.len() as u64;
                assert_eq!(u64::from(table.lengths[s]), end);
                let first = match self.manifest.caches[g].keep {
                    Keep::All | Keep::Once | Keep::State => 0,
                    Keep::Window(window) => (starts[s] + 1).saturating_sub(window),
                    Keep::Step => starts[s],
                };
                self.expect(g, &table, s, i, first..end);
            }
        }
        self.store.end_step(ids).unwrap();
        Ok(())
    }

    fn expect(&self, g: usize, table: &BlockTable, s: usize, i: usize, range: std::ops::Range<u64>) {
        for p in range {
            let (page, element) = Self::place(table, s, p);
            assert_eq!(
                self.memory.get(&(g, page, element)),
                Some(&self.written[i].1[p as usize]),
                "group {g}, sequence {i}, position {p}"
            );
        }
    }

    /// Everything that the next token of any sequence would read is there.
    fn check(&self) {
        for (i, (id, values)) in self.written.iter().enumerate() {
            let end = values.len() as u64;
            assert_eq!(self.store.length(*id, 0).unwrap(), end);
            for (g, group) in self.manifest.caches.iter().enumerate() {
                let table = table(&self.store, g, &[*id]);
                match group.keep {
                    Keep::All | Keep::Once | Keep::State => self.expect(g, &table, 0, i, 0..end),
                    Keep::Window(window) => {
                        self.expect(g, &table, 0, i, (end + 1).saturating_sub(window).min(end)..end)
                    }
                    Keep::Step => {}
                }
            }
        }
    }
}

#[derive(Clone, Debug)]
enum Action {
    Add,
    Step(Vec<(usize, u64)>),
    Fork(usize),
    Truncate(usize, u64),
    Free(usize),
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        1 => Just(Action::Add),
        6 => proptest::collection::vec((0usize..4, 1u64..5), 1..4).prop_map(Action::Step),
        2 => (0usize..4).prop_map(Action::Fork),
        2 => (0usize..4, 0u64..12).prop_map(|(i, n)| Action::Truncate(i, n)),
        1 => (0usize..4).prop_map(Action::Free),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn memory_agrees_with_a_model(actions in proptest::collection::vec(action(), 1..60), pool in proptest::option::of(8u64..60)) {
        let mut world = World::new(CacheOptions { pool_tokens: pool, ..OPTIONS });
        for action in actions {
            let n = world.written.len();
            match action {
                Action::Add => if let Ok(id) = world.store.add() {
                    world.written.push((id, Vec::new()));
                } else {
                    prop_assert_eq!(n, 4);
                },
                Action::Step(parts) => {
                    let mut parts: Vec<(usize, u64)> = parts.into_iter().filter(|part| part.0 < n).collect();
                    parts.sort_unstable();
                    parts.dedup_by_key(|part| part.0);
                    let fits = parts.iter().map(|part| part.1).sum::<u64>() <= 7
                        && parts.iter().all(|&(i, tokens)| world.written[i].1.len() as u64 + tokens <= 40);
                    let done = world.step(&parts);
                    if pool.is_none() {
                        prop_assert_eq!(done.is_ok(), fits, "{:?}", done);
                    }
                }
                Action::Fork(i) if i < n => if let Ok(id) = world.store.fork(world.written[i].0) {
                    let values = world.written[i].1.clone();
                    world.written.push((id, values));
                },
                Action::Truncate(i, back) if i < n => {
                    let to = (world.written[i].1.len() as u64).saturating_sub(back);
                    if world.store.truncate(world.written[i].0, 0, to).is_ok() {
                        world.written[i].1.truncate(to as usize);
                    }
                }
                Action::Free(i) if i < n => {
                    let (id, _) = world.written.swap_remove(i);
                    world.store.free(id).unwrap();
                    prop_assert!(world.store.free(id).is_err());
                }
                Action::Fork(_) | Action::Truncate(..) | Action::Free(_) => {}
            }
            world.check();
        }
        for (id, _) in std::mem::take(&mut world.written) {
            world.store.free(id).unwrap();
        }
        prop_assert_eq!(world.store.live_bytes(), 0);
    }
}

#[test]
fn bytes_are_exact() {
    let mut store = CacheStore::new(&sample::manifest(), OPTIONS).unwrap();
    let one = store.add().unwrap();
    let page = 2 * 128;
    begin(&mut store, &[(one, 5)]).unwrap();
    assert_eq!(store.live_bytes(), 3 * 2 * page);
    store.end_step([one]).unwrap();
    assert_eq!(store.live_bytes(), 2 * 2 * page);
    let two = store.fork(one).unwrap();
    assert_eq!(store.live_bytes(), 2 * 2 * page);
    let copies = begin(&mut store, &[(two, 1)]).unwrap();
    assert_eq!(copies.len(), 2);
    store.end_step([two]).unwrap();
    assert_eq!(store.live_bytes(), 2 * 3 * page);
    store.free(one).unwrap();
    assert_eq!(store.live_bytes(), 2 * 2 * page);
    store.free(two).unwrap();
    // The second step's page, one alone, was not one of the two of the first.
    assert_eq!((store.live_bytes(), store.allocated_bytes()), (0, (2 * 3 + 3) * page));
}

#[test]
fn rings_stay_small_and_can_be_cut_as_far_as_they_hold() {
    let mut store = CacheStore::new(&sample::manifest(), CacheOptions { context_tokens: 1000, ..OPTIONS }).unwrap();
    let id = store.add().unwrap();
    for _ in 0..100 {
        begin(&mut store, &[(id, 5)]).unwrap();
        store.end_step([id]).unwrap();
    }
    // Window 5 and steps of 7: ceil(12 / 4) + 1 pages.
    assert_eq!(store.live_bytes(), (125 + 4) * 256);
    let error = store.truncate(id, 0, 400).unwrap_err().to_string();
    assert!(error.contains("the ring holds them from"), "{error}");
    store.truncate(id, 0, 495).unwrap();
    assert!(store.truncate(id, 0, 496).is_err());
    store.truncate(id, 0, 0).unwrap();
    assert_eq!(store.live_bytes(), 0);
}

#[test]
fn requests_that_cannot_be_met_change_nothing() {
    let mut store = CacheStore::new(&sample::manifest(), OPTIONS).unwrap();
    let id = store.add().unwrap();
    for (step, expected) in [
        (vec![(id, 8)], "the step has 8 tokens, the session takes 7"),
        (vec![(id, 1), (id, 1)], "twice"),
        (vec![(id, 41)], "41 positions, the context has 40"),
    ] {
        let error = begin(&mut store, &step).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    let no_axes = [Append { sequence: id, tokens: &[] }];
    let error = store.begin_step(no_axes.into_iter(), &mut Vec::new()).unwrap_err().to_string();
    assert!(error.contains("0 axes"), "{error}");
    assert_eq!((store.length(id, 0).unwrap(), store.live_bytes()), (0, 0));
}

#[test]
fn a_state_is_a_page_before_the_last_step_and_one_after_it() {
    let mut manifest = sample::manifest();
    (manifest.caches[0].keep, manifest.caches[0].page_tokens) = (Keep::State, 1);
    let mut store = CacheStore::new(&manifest, OPTIONS).unwrap();
    let one = store.add().unwrap();
    let step = |store: &mut CacheStore, id, n| {
        assert_eq!(begin(store, &[(id, n)]).unwrap().iter().filter(|c| c.group == 0).count(), 0, "no copies");
        store.end_step([id]).unwrap();
        let table = table(store, 0, &[id]);
        assert_eq!((table.entries, table.table.len()), (2, 2));
        (table.table[0], table.table[1])
    };
    let (none, first) = step(&mut store, one, 5);
    assert_eq!(none, NULL_PAGE);
    let (before, second) = step(&mut store, one, 1);
    assert_eq!(before, first);
    let two = store.fork(one).unwrap();
    let (before, own) = step(&mut store, two, 2);
    assert!(before == second && own != first && own != second, "a fork writes a page of its own");
    let error = store.truncate(one, 0, 3).unwrap_err().to_string();
    assert!(error.contains("beginning of the last step, position 5"), "{error}");
    store.truncate(one, 0, 5).unwrap();
    let (before, again) = step(&mut store, one, 1);
    assert!(before == first && again != second && again != own);
    store.truncate(one, 0, 0).unwrap();
    assert_eq!(step(&mut store, one, 1).0, NULL_PAGE);
    store.free(one).unwrap();
    store.free(two).unwrap();
    assert_eq!(store.live_bytes(), 0);
}

#[test]
fn the_formula_of_pages_is_what_is_allocated() {
    let mut manifest = sample::manifest();
    let state = CacheGroup { keep: Keep::State, page_tokens: 1, ..manifest.caches[0].clone() };
    manifest.caches.push(state);
    let told = |options: CacheOptions| -> Vec<String> {
        let limit = options.limit(&manifest, 0);
        let all = manifest.caches.iter().map(|group| page_formula(group, &options, limit));
        let (pages, texts): (Vec<u64>, Vec<String>) = all.unzip();
        assert_eq!(pages, CacheStore::new(&manifest, options).unwrap().capacity_pages(), "{options:?}");
        texts
    };
    let expected = ["4 * ceil(40 / 4) + 1", "4 * (ceil((5 + 7) / 4) + 1) + 1", "floor(7 / 4) + 4 * 2 + 1", "4 * 3 + 1"];
    assert_eq!(told(OPTIONS), expected);
    let pool = CacheOptions { pool_tokens: Some(50), ..OPTIONS };
    assert_eq!(told(pool)[0], "min(4 * ceil(40 / 4), floor(50 / 4) + 4) + 1");
    let manifest_pages = |options| CacheStore::new(&manifest, options).unwrap().capacity_pages();
    assert_eq!(manifest_pages(OPTIONS), [41, 17, 10, 13]);
    assert_eq!(manifest_pages(pool)[0], 17);
}
