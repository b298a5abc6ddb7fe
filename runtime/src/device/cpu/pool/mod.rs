//! Threads that share the tiles of a list of launches.
//!
//! The caller is worker 0 and needs nobody: workers that are late find less to do, and a list of launches with one tile each never leaves the
//! caller. Each launch begins when the one before it is done on all workers. A worker that waits for others claims its first tiles of a later
//! launch already and may get ready for them. Whoever waits spins briefly and then sleeps: at the end of a launch, too, since the worker that is
//! waited for may itself be waiting for a processor, and gets the sleeper's. A worker that made others wait because something else ran on its
//! processor stays away for a while: the rest is slower without it, and much slower with it.

mod bed;
mod delay;

use self::bed::Bed;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// What is done with tiles: `(worker, launch, tile_begin, tile_end)`.
pub type Body<'a> = &'a (dyn Fn(usize, usize, u32, u32) + Sync);

/// What a worker does while it waits, for tiles that it will do later: `(launch, tile_begin, tile_end, over)`, until `over` says so.
pub type Ahead<'a> = &'a (dyn Fn(usize, u32, u32, &dyn Fn() -> bool) + Sync);

/// How long a worker that waits spins before it sleeps.
const SPIN: Duration = Duration::from_micros(100);
/// How long a worker that was put off its processor stays away: longer than others' time slices, so that what the next attempt may cost is little.
const AWAY: Duration = Duration::from_millis(50);
/// Of the tiles that are left, a worker claims its share divided by this.
const PARTS: u64 = 2;
/// Launches that are looked at for tiles to claim early.
const LAUNCHES_AHEAD: usize = 4;
/// Set in [`Shared::gate`] while workers may enter the job.
const OPEN: u64 = 1 << 63;

/// Why a list of launches was not finished.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a worker thread panicked")]
pub struct WorkerPanicked;

/// A fixed number of workers, the caller counted. Dropping it ends and joins the threads.
#[derive(Debug)]
pub struct ThreadPool {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    /// One list at a time, with the counters that lists have needed so far.
    turn: Mutex<Vec<Counter>>,
}

#[derive(Debug, Default)]
struct Shared {
    /// The job, valid while the gate is open or somebody is inside.
    job: AtomicPtr<()>,
    /// [`OPEN`], and the number of threads inside.
    gate: AtomicU64,
    /// Changes with every job.
    epoch: AtomicU64,
    stop: AtomicBool,
    /// How long whoever waits spins.
    spin: Duration,
    /// Where workers wait for a job.
    idle: Bed,
    /// Where workers wait for each other.
    barrier: Bed,
    /// For each worker, whether it is to stay away.
    away: Box<[AtomicBool]>,
}

/// Progress of one launch, on a cache line of its own.
#[repr(align(64))]
#[derive(Debug, Default)]
struct Counter {
    /// First tile that nobody has claimed; may run past the number of tiles.
    next: AtomicU64,
    /// Tiles done.
    done: AtomicU64,
}

/// A list of launches being run.
struct Job<'a> {
    tiles: &'a [u32],
    counters: &'a [Counter],
    body: Body<'a>,
    ahead: Ahead<'a>,
    workers: u64,
    failed: AtomicBool,
    shared: &'a Shared,
}

impl ThreadPool {
    /// A pool of `workers` workers (at least one): the caller and `workers - 1` threads.
    ///
    /// # Errors
    /// The system gives no more threads.
    pub fn new(workers: usize) -> std::io::Result<Self> {
        // With fewer processors than workers, whoever is waited for needs the processor of whoever waits.
        let enough = std::thread::available_parallelism().is_ok_and(|processors| processors.get() >= workers);
        let spin = if enough { SPIN } else { Duration::ZERO };
        let away = (0..workers.max(1)).map(|_| AtomicBool::default()).collect();
        let shared = Shared { spin, away, ..Shared::default() };
        let mut pool = Self { shared: Arc::new(shared), threads: Vec::new(), turn: Mutex::default() };
        for worker in 1..workers.max(1) {
            let shared = Arc::clone(&pool.shared);
            // When this fails, dropping `pool` ends the threads that were started.
            pool.threads
                .push(std::thread::Builder::new().name(format!("xfm-{worker}")).spawn(move || shared.serve(worker))?);
        }
        Ok(pool)
    }

    /// Number of workers, the caller counted.
    pub fn workers(&self) -> usize {
        self.threads.len() + 1
    }

    /// Calls `body` for all tiles of all launches; `tiles[l]` is the number of tiles of launch `l`. Ranges of one launch do not overlap and may run
    /// at the same time; launch `l + 1` begins after launch `l` has ended.
    ///
    /// # Errors
    /// `body` panicked on some thread. The pool stays usable.
    pub fn run(&self, tiles: &[u32], body: Body<'_>) -> Result<(), WorkerPanicked> {
        self.run_ahead(tiles, body, &|_, _, _, _| ())
    }

    /// As [`run`](Self::run); workers that wait do `ahead` for tiles that they have claimed, which launches before them may not have ended for.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn run_ahead(&self, tiles: &[u32], body: Body<'_>, ahead: Ahead<'_>) -> Result<(), WorkerPanicked> {
        // Poison only says that a caller panicked elsewhere; the counters are set anew.
        let mut counters = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        if counters.len() < tiles.len() {
            counters.resize_with(tiles.len(), Counter::default);
        }
        for counter in &mut counters[..tiles.len()] {
            *counter = Counter::default();
        }
        let job = Job {
            tiles,
            counters: &counters,
            body,
            ahead,
            workers: self.workers() as u64,
            failed: AtomicBool::new(false),
            shared: &self.shared,
        };
        let shared_work = !self.threads.is_empty() && tiles.iter().any(|&tiles| tiles > 1);
        if shared_work {
            self.shared.open(&job);
        }
        // Does not unwind: panics of the body are caught inside, so that nobody is left with a job that is gone.
        job.work(0);
        if shared_work {
            self.shared.close();
        }
        if job.failed.load(Ordering::Acquire) { Err(WorkerPanicked) } else { Ok(()) }
    }
}

impl Drop for ThreadPool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.idle.call();
        for thread in self.threads.drain(..) {
            thread.thread().unpark();
            // A thread that panicked outside of a job has nothing to hand over.
            let _ = thread.join();
        }
    }
}

/// Tiles of a launch that a worker will do.
#[derive(Clone, Copy)]
struct Claim {
    launch: usize,
    begin: u64,
    end: u64,
}

impl Job<'_> {
    /// Takes part until all launches are done or one failed.
    fn work(&self, worker: usize) {
        let mut early = None;
        for launch in 0..self.tiles.len() {
            if early.is_none() && self.shared.stays_away(worker) {
                return;
            }
            let mine = early.take_if(|claim: &mut Claim| claim.launch == launch);
            let take_part = || {
                self.work_on(worker, launch, mine);
                if early.is_none() && !self.shared.stays_away(worker) {
                    early = self.get_ready(launch);
                }
            };
            if catch_unwind(AssertUnwindSafe(take_part)).is_err() {
                self.failed.store(true, Ordering::SeqCst);
                self.shared.call(worker);
            }
            if !self.wait_for(launch) {
                return;
            }
        }
    }

    /// Does tiles of a launch until none is left, those of `mine` first.
    fn work_on(&self, worker: usize, launch: usize, mine: Option<Claim>) {
        // A single tile is the caller's: the others would only carry its operands around.
        if self.tiles[launch] <= 1 && worker != 0 {
            return;
        }
        let mut next = mine.or_else(|| self.claim(launch));
        while let Some(Claim { begin, end, .. }) = next {
            (self.body)(worker, launch, begin as u32, end as u32);
            let done = self.counters[launch].done.fetch_add(end - begin, Ordering::SeqCst) + end - begin;
            if done >= u64::from(self.tiles[launch]) {
                self.shared.call(worker);
            }
            next = self.claim(launch);
        }
    }

    /// Some of the tiles that nobody has claimed: the fewer are left, the fewer, so that all workers end together.
    fn claim(&self, launch: usize) -> Option<Claim> {
        let tiles = u64::from(self.tiles[launch]);
        let next = &self.counters[launch].next;
        let left = tiles.saturating_sub(next.load(Ordering::Relaxed));
        if left == 0 {
            return None;
        }
        let part = (left / (self.workers * PARTS)).max(1);
        let begin = next.fetch_add(part, Ordering::Relaxed);
        (begin < tiles).then(|| Claim { launch, begin, end: (begin + part).min(tiles) })
    }

    /// While others are at a launch, claims tiles of a later one and gets ready for them.
    fn get_ready(&self, launch: usize) -> Option<Claim> {
        let over = || self.is_done(launch) || self.failed.load(Ordering::SeqCst);
        if over() {
            return None;
        }
        let shared = (launch + 1..self.tiles.len()).take(LAUNCHES_AHEAD).find(|&later| self.tiles[later] > 1);
        let claim = shared.and_then(|later| self.claim(later))?;
        (self.ahead)(claim.launch, claim.begin as u32, claim.end as u32, &over);
        Some(claim)
    }

    fn is_done(&self, launch: usize) -> bool {
        self.counters[launch].done.load(Ordering::SeqCst) >= u64::from(self.tiles[launch])
    }

    /// Until all tiles of the launch are done, by whomever; `false` when somebody failed.
    fn wait_for(&self, launch: usize) -> bool {
        let failed = || self.failed.load(Ordering::SeqCst);
        self.shared.barrier.wait(self.shared.spin, || (failed() || self.is_done(launch)).then_some(()));
        !failed()
    }
}

impl Shared {
    /// Lets workers into `job`.
    fn open(&self, job: &Job<'_>) {
        self.job.store(std::ptr::from_ref(job).cast_mut().cast(), Ordering::Relaxed);
        self.gate.fetch_or(OPEN, Ordering::SeqCst);
        self.epoch.fetch_add(1, Ordering::SeqCst);
        self.idle.call();
    }

    /// Lets nobody in any more and waits until everybody is out.
    fn close(&self) {
        self.gate.fetch_and(!OPEN, Ordering::SeqCst);
        self.barrier.wait(self.spin, || (self.gate.load(Ordering::SeqCst) == 0).then_some(()));
    }

    /// The life of a worker thread.
    fn serve(&self, worker: usize) {
        let mut seen = 0;
        delay::forget();
        while let Some(epoch) = self.wait_for_call(seen) {
            seen = epoch;
            if self.gate.fetch_add(1, Ordering::SeqCst) & OPEN != 0 {
                let job = self.job.load(Ordering::Relaxed).cast_const().cast::<Job<'_>>();
                // SAFETY: `run` keeps the job alive until `close` has seen this thread leave; the gate was open when this thread was counted.
                unsafe { &*job }.work(worker);
            }
            if self.gate.fetch_sub(1, Ordering::SeqCst) == 1 {
                self.call(worker);
            }
            if self.away[worker].load(Ordering::Relaxed) {
                std::thread::park_timeout(AWAY);
                self.away[worker].store(false, Ordering::Relaxed);
                delay::forget();
                // The job that it left may not have ended: it takes part again.
                seen = 0;
            }
        }
    }

    /// Wakes who waits for this worker. If they wait because it was put off its processor, it is to stay away; the caller cannot, so that another
    /// one leaves it its processor.
    fn call(&self, worker: usize) {
        if self.barrier.call() && delay::was_put_off() {
            let who = if worker == 0 { self.away.len() - 1 } else { worker };
            self.away[who].store(true, Ordering::Relaxed);
        }
    }

    fn stays_away(&self, worker: usize) -> bool {
        worker != 0 && self.away[worker].load(Ordering::Relaxed)
    }

    /// The next epoch after `seen`, or `None` at the end.
    fn wait_for_call(&self, seen: u64) -> Option<u64> {
        self.idle.wait(self.spin, || {
            let epoch = self.epoch.load(Ordering::SeqCst);
            if self.stop.load(Ordering::SeqCst) { Some(None) } else { (epoch != seen).then_some(Some(epoch)) }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_tile_once_and_launches_in_order() {
        for workers in [1, 2, 5] {
            let pool = ThreadPool::new(workers).unwrap();
            for round in 0..200u32 {
                let tiles = [1, 0, 7, round % 50, 1000, 1];
                let seen: Vec<Vec<AtomicU64>> =
                    tiles.iter().map(|&n| (0..n).map(|_| AtomicU64::new(0)).collect()).collect();
                pool.run(&tiles, &|worker, launch, begin, end| {
                    assert!(worker < workers && begin < end);
                    assert!(tiles[launch] > 1 || worker == 0);
                    for before in seen[..launch].iter().flatten() {
                        assert_eq!(before.load(Ordering::Relaxed), 1);
                    }
                    for tile in begin..end {
                        seen[launch][tile as usize].fetch_add(1, Ordering::Relaxed);
                    }
                })
                .unwrap();
                assert!(seen.iter().flatten().all(|count| count.load(Ordering::Relaxed) == 1));
            }
        }
    }

    #[test]
    fn who_waits_gets_ready_for_tiles_that_it_does_later() {
        let pool = ThreadPool::new(2).unwrap();
        let (ready, done) = (AtomicU64::new(0), AtomicU64::new(0));
        let set = |bits: &AtomicU64, launch: usize, begin, end| {
            for tile in begin..end {
                assert_eq!(
                    bits.fetch_or(1 << (16 * launch + tile as usize), Ordering::SeqCst)
                        >> (16 * launch + tile as usize)
                        & 1,
                    0
                );
            }
        };
        // The caller's single tile lasts until the other worker got ready for its part of the launch behind it.
        pool.run_ahead(
            &[1, 16],
            &|_, launch, begin, end| {
                while launch == 0 && ready.load(Ordering::SeqCst) == 0 {
                    std::thread::yield_now();
                }
                set(&done, launch, begin, end);
            },
            &|launch, begin, end, over| {
                assert!(launch == 1 && !over());
                set(&ready, launch, begin, end);
            },
        )
        .unwrap();
        assert_eq!(done.into_inner(), 0xFFFF_0001);
    }

    #[test]
    fn panics_are_reported_and_the_pool_goes_on() {
        let pool = ThreadPool::new(3).unwrap();
        for at in [0, 99] {
            let result =
                pool.run(&[100, 100], &|_, launch, begin, end| assert!(launch == 0 || !(begin..end).contains(&at)));
            assert_eq!(result, Err(WorkerPanicked));
            assert_eq!(pool.run(&[100], &|_, _, _, _| ()), Ok(()));
        }
        // Of whoever gets ready, too; the caller's single tile lasts until somebody does.
        let reached = AtomicBool::new(false);
        let body = |_, launch, _, _| {
            while launch == 0 && !reached.load(Ordering::SeqCst) {
                std::thread::yield_now();
            }
        };
        let ahead = |_, _, _, _: &dyn Fn() -> bool| {
            reached.store(true, Ordering::SeqCst);
            panic!("on purpose");
        };
        assert_eq!(pool.run_ahead(&[1, 16], &body, &ahead), Err(WorkerPanicked));
        assert_eq!(pool.run(&[100], &|_, _, _, _| ()), Ok(()));
    }

    #[test]
    fn who_was_away_takes_part_again() {
        let pool = ThreadPool::new(2).unwrap();
        for _ in 0..3 {
            pool.shared.away[1].store(true, Ordering::SeqCst);
            let both = AtomicU64::new(0);
            pool.run(&[2], &|_, _, begin, end| {
                both.fetch_add(u64::from(end - begin), Ordering::SeqCst);
                while both.load(Ordering::SeqCst) < 2 {
                    std::thread::yield_now();
                }
            })
            .unwrap();
        }
    }

    #[test]
    fn callers_take_turns_and_sleepers_wake() {
        let pool = ThreadPool::new(2).unwrap();
        let count = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..20 {
                        std::thread::sleep(Duration::from_micros(300));
                        pool.run(&[16], &|_, _, begin, end| {
                            count.fetch_add(u64::from(end - begin), Ordering::Relaxed);
                        })
                        .unwrap();
                    }
                });
            }
        });
        assert_eq!(count.into_inner(), 4 * 20 * 16);
    }
}
