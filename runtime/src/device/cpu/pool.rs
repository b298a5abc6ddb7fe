//! Threads that share the tiles of a list of launches.
//!
//! The caller is worker 0 and needs nobody: workers that are late find less to do, and a list of launches with one tile each never leaves the
//! caller. Each launch begins when the one before it is done on all workers. A worker that waits for others claims its first tiles of a later
//! launch already and may get ready for them. Between lists, workers spin briefly and then sleep.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// What is done with tiles: `(worker, launch, tile_begin, tile_end)`.
pub type Body<'a> = &'a (dyn Fn(usize, usize, u32, u32) + Sync);

/// What a worker does while it waits, for tiles that it will do later: `(launch, tile_begin, tile_end, over)`, until `over` says so.
pub type Ahead<'a> = &'a (dyn Fn(usize, u32, u32, &dyn Fn() -> bool) + Sync);

/// How long a worker without work spins before it sleeps.
const SPIN: Duration = Duration::from_micros(100);
/// Turns that a worker spins at the end of a launch before it lets others have the processor.
const SPIN_TURNS: u32 = 2000;
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
    /// One list at a time.
    turn: Mutex<()>,
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
    sleepers: AtomicUsize,
    bed: Mutex<()>,
    wake: Condvar,
}

/// Progress of one launch, on a cache line of its own.
#[repr(align(64))]
#[derive(Default)]
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
}

impl ThreadPool {
    /// A pool of `workers` workers (at least one): the caller and `workers - 1` threads.
    ///
    /// # Errors
    /// The system gives no more threads.
    pub fn new(workers: usize) -> std::io::Result<Self> {
        let mut pool = Self { shared: Arc::default(), threads: Vec::new(), turn: Mutex::new(()) };
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
        // Poison only says that a caller panicked elsewhere; the lock guards no data.
        let _turn = self.turn.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let counters: Vec<Counter> = tiles.iter().map(|_| Counter::default()).collect();
        let workers = self.workers() as u64;
        let job = Job { tiles, counters: &counters, body, ahead, workers, failed: AtomicBool::new(false) };
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
        self.shared.call();
        for thread in self.threads.drain(..) {
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
            let mine = early.take_if(|claim: &mut Claim| claim.launch == launch);
            let take_part = || {
                self.work_on(worker, launch, mine);
                if early.is_none() {
                    early = self.get_ready(launch);
                }
            };
            if catch_unwind(AssertUnwindSafe(take_part)).is_err() {
                self.failed.store(true, Ordering::Release);
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
            self.counters[launch].done.fetch_add(end - begin, Ordering::Release);
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
        let over = || self.is_done(launch) || self.failed.load(Ordering::Acquire);
        if over() {
            return None;
        }
        let shared = (launch + 1..self.tiles.len()).take(LAUNCHES_AHEAD).find(|&later| self.tiles[later] > 1);
        let claim = shared.and_then(|later| self.claim(later))?;
        (self.ahead)(claim.launch, claim.begin as u32, claim.end as u32, &over);
        Some(claim)
    }

    fn is_done(&self, launch: usize) -> bool {
        self.counters[launch].done.load(Ordering::Acquire) >= u64::from(self.tiles[launch])
    }

    /// Until all tiles of the launch are done, by whomever; `false` when somebody failed.
    fn wait_for(&self, launch: usize) -> bool {
        let mut turns = 0;
        while !self.is_done(launch) {
            if self.failed.load(Ordering::Acquire) {
                return false;
            }
            pause(&mut turns);
        }
        !self.failed.load(Ordering::Acquire)
    }
}

impl Shared {
    /// Lets workers into `job`.
    fn open(&self, job: &Job<'_>) {
        self.job.store(std::ptr::from_ref(job).cast_mut().cast(), Ordering::Relaxed);
        self.gate.fetch_or(OPEN, Ordering::Release);
        self.call();
    }

    /// Wakes whoever sleeps, with a new epoch.
    fn call(&self) {
        self.epoch.fetch_add(1, Ordering::SeqCst);
        if self.sleepers.load(Ordering::SeqCst) > 0 {
            let _bed = self.bed.lock();
            self.wake.notify_all();
        }
    }

    /// Lets nobody in any more and waits until everybody is out.
    fn close(&self) {
        self.gate.fetch_and(!OPEN, Ordering::AcqRel);
        let mut turns = 0;
        while self.gate.load(Ordering::Acquire) != 0 {
            pause(&mut turns);
        }
    }

    /// The life of a worker thread.
    fn serve(&self, worker: usize) {
        let mut seen = 0;
        while let Some(epoch) = self.wait_for_call(seen) {
            seen = epoch;
            if self.gate.fetch_add(1, Ordering::Acquire) & OPEN != 0 {
                let job = self.job.load(Ordering::Relaxed).cast_const().cast::<Job<'_>>();
                // SAFETY: `run` keeps the job alive until `close` has seen this thread leave; the gate was open when this thread was counted.
                unsafe { &*job }.work(worker);
            }
            self.gate.fetch_sub(1, Ordering::Release);
        }
    }

    /// The next epoch after `seen`, or `None` at the end.
    fn wait_for_call(&self, seen: u64) -> Option<u64> {
        let news = || {
            let epoch = self.epoch.load(Ordering::SeqCst);
            (epoch != seen || self.stop.load(Ordering::SeqCst)).then_some(epoch)
        };
        let asleep_at = Instant::now() + SPIN;
        let mut epoch = news();
        while epoch.is_none() && Instant::now() < asleep_at {
            for _ in 0..32 {
                std::hint::spin_loop();
            }
            epoch = news();
        }
        if epoch.is_none() {
            let mut bed = self.bed.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            self.sleepers.fetch_add(1, Ordering::SeqCst);
            while news().is_none() {
                bed = self.wake.wait(bed).unwrap_or_else(std::sync::PoisonError::into_inner);
            }
            self.sleepers.fetch_sub(1, Ordering::SeqCst);
            epoch = news();
        }
        if self.stop.load(Ordering::SeqCst) { None } else { epoch }
    }
}

/// Spins; after a while lets other threads run.
fn pause(turns: &mut u32) {
    *turns = turns.saturating_add(1);
    if *turns < SPIN_TURNS { std::hint::spin_loop() } else { std::thread::yield_now() }
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
