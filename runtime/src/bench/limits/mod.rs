//! What this machine can do at most, measured on the threads that will do the work.
//!
//! Given a pool and the instruction set of the code, [`Prober`] promises: the fastest that its threads read memory that no cache holds, the most
//! that they multiply, and how long two of them take to answer each other. Memory speed of a shared machine changes within seconds, so a
//! probe is short (about half a second) and is repeated around every measurement; [`disagreement`] says how far two are apart.

mod kernels;

pub use kernels::Isa;

use crate::artifact::manifest::Products;
use crate::cost::Work;
use crate::device::cpu::ThreadPool;
use crate::error::{Result, RuntimeError};
use crate::memory;
use crate::model::Model;
use kernels::{READ_UNIT, Reading, multiply, multiply_tiles, read};
use memmap2::MmapMut;
use std::fmt::Debug;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The memory read is this many times what the last caches hold.
const TIMES_CACHE: u64 = 4;
/// Bytes of memory that a thread takes at a time.
const CHUNK: usize = 4 << 20;
/// Turns of a loop of products that a thread takes at a time: some tens of microseconds.
const TURNS: u32 = 4096;

/// How thoroughly a probe measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Effort {
    /// Bytes of the memory that is read, at least; four times the last caches where that is more.
    pub buffer_bytes: u64,
    /// Time for each of the four ways of reading; at least one pass each.
    pub read: Duration,
    /// Time for each kind of product, and for the answers.
    pub short: Duration,
}

impl Default for Effort {
    /// Half a second in all, over 512 MB.
    fn default() -> Self {
        Self { buffer_bytes: 512 << 20, read: Duration::from_millis(65), short: Duration::from_millis(75) }
    }
}

/// What the machine could do just now.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// Bytes a second that all threads together read from memory.
    pub read: f64,
    /// Operations a second on 32-bit numbers.
    pub f32_flops: f64,
    /// Operations a second on 16-bit numbers: of tiles of them, of the instruction for pairs, or as for 32 bits where that is more or there is none.
    pub half_flops: f64,
    /// Operations a second on 8-bit integers: of tiles of them, of the instruction for sums of four, or as for 32 bits where that is more or there is none.
    pub byte_ops: f64,
    /// Nanoseconds until one thread has the answer of another; `None` with one thread, and of a GPU.
    pub round_trip_ns: Option<f64>,
    /// Bytes a second that a GPU copies in its memory, read and written; `None` of processors.
    pub copy: Option<f64>,
    /// Nanoseconds of a GPU's time for a kernel that does nothing, among others in a recorded step; `None` of processors.
    pub launch_ns: Option<f64>,
}

/// How the processors in use lie to each other, told by their answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Regime {
    /// There is only one thread.
    One,
    /// They share a cache.
    Near,
    /// They share none.
    Far,
    /// Somebody else uses them.
    Contended,
}

impl Regime {
    /// As in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::One => "one",
            Self::Near => "near",
            Self::Far => "far",
            Self::Contended => "contended",
        }
    }
}

impl Limits {
    /// The least time of the products of `work`, each width at its own rate.
    pub fn seconds_of_products(&self, work: &Work) -> f64 {
        work.seconds_of_products(self.f32_flops, self.half_flops, self.byte_ops)
    }

    /// Below 250 ns for an answer two processors share a cache; above 750 ns no processor is that far away.
    pub fn regime(&self) -> Regime {
        match self.round_trip_ns {
            None => Regime::One,
            Some(ns) if ns < 250.0 => Regime::Near,
            Some(ns) if ns < 750.0 => Regime::Far,
            Some(_) => Regime::Contended,
        }
    }

    /// Half of both: what a run between two probes is compared with.
    pub fn mean(&self, other: &Self) -> Self {
        let mean = |a: f64, b: f64| (a + b) / 2.0;
        Self {
            read: mean(self.read, other.read),
            f32_flops: mean(self.f32_flops, other.f32_flops),
            half_flops: mean(self.half_flops, other.half_flops),
            byte_ops: mean(self.byte_ops, other.byte_ops),
            round_trip_ns: self.round_trip_ns.zip(other.round_trip_ns).map(|(a, b)| mean(a, b)),
            copy: self.copy.zip(other.copy).map(|(a, b)| mean(a, b)),
            launch_ns: self.launch_ns.zip(other.launch_ns).map(|(a, b)| mean(a, b)),
        }
    }
}

/// How far two probes are apart: the largest relative difference of their rates (0 for equal ones), and infinity when the regime changed.
pub fn disagreement(a: &Limits, b: &Limits) -> f64 {
    if a.regime() != b.regime() {
        return f64::INFINITY;
    }
    let apart = |a: f64, b: f64| (a - b).abs() / a.max(b).max(f64::MIN_POSITIVE);
    let rates = [(a.f32_flops, b.f32_flops), (a.half_flops, b.half_flops), (a.byte_ops, b.byte_ops)];
    rates.into_iter().fold(apart(a.read, b.read), |most, (a, b)| most.max(apart(a, b)))
}

/// Measures [`Limits`] again and again.
pub trait Probe: Debug {
    /// Measures.
    ///
    /// # Errors
    /// A thread panicked, or the device failed.
    fn probe(&self) -> Result<Limits>;
}

/// What measures the limits of the device of a model: its own, or else that of the threads of `pool`.
///
/// # Errors
/// There is no memory to measure with.
pub fn prober_of(model: &Model, pool: &Arc<ThreadPool>, effort: Effort) -> Result<Box<dyn Probe>> {
    if let Some(own) = model.device().prober(effort)? {
        return Ok(own);
    }
    let target = &model.manifest().target;
    let isa = Isa::of(&target.arch, &target.features);
    Ok(Box::new(Prober::new(Arc::clone(pool), isa, Narrow::of(&target.features), effort)?))
}

/// Measures the limits of a pool of threads.
#[derive(Debug)]
pub struct Prober {
    pool: Arc<ThreadPool>,
    isa: Isa,
    narrow: Narrow,
    effort: Effort,
    memory: MmapMut,
}

impl Probe for Prober {
    fn probe(&self) -> Result<Limits> {
        let mut read = 0.0f64;
        for reading in Reading::ALL {
            read = read.max(self.read(reading)?);
        }
        let f32_flops = self.products(Products::Single)?;
        // What is narrow can be widened: some processors multiply floats faster than pairs of halves.
        let Narrow { half, bytes, half_tiles, byte_tiles } = self.narrow;
        let of = |products, some: bool, tiles: bool| match (some, tiles) {
            (_, true) => self.multiply(&|| multiply_tiles(self.isa, products, TURNS)).map(|most| most.max(f32_flops)),
            (true, false) => self.products(products).map(|most| most.max(f32_flops)),
            (false, false) => Ok(f32_flops),
        };
        let (half_flops, byte_ops) = (of(Products::Half, half, half_tiles)?, of(Products::Byte, bytes, byte_tiles)?);
        Ok(Limits {
            read,
            f32_flops,
            half_flops,
            byte_ops,
            round_trip_ns: self.round_trip()?,
            copy: None,
            launch_ns: None,
        })
    }
}

impl Prober {
    /// A prober of the threads of `pool`, for code of `isa` that has the instructions for narrow products that `narrow` says. Takes some
    /// hundred megabytes, as `effort` says.
    ///
    /// # Errors
    /// There is no memory for it.
    pub fn new(pool: Arc<ThreadPool>, isa: Isa, narrow: Narrow, effort: Effort) -> Result<Self> {
        let caches = TIMES_CACHE * memory::last_cache_bytes().unwrap_or(0);
        // Not more than is worth waiting for; nor less than a chunk.
        let bytes = effort.buffer_bytes.max(caches.min(8 * effort.buffer_bytes)).max(CHUNK as u64);
        memory::ensure("measuring the memory's speed", bytes)?;
        let no_memory = |error: std::io::Error| RuntimeError::Device {
            device: "cpu",
            problem: format!("no memory for {bytes} bytes to measure with: {error}"),
        };
        let bytes = bytes as usize / CHUNK * CHUNK;
        let mut memory = MmapMut::map_anon(bytes).map_err(no_memory)?;
        // As for weights: large pages where they are to be had.
        #[cfg(target_os = "linux")]
        let _ = memory.advise(memmap2::Advice::HugePage);
        // Untouched pages are all the same page.
        std::thread::scope(|scope| {
            let part = (bytes / pool.workers()).next_multiple_of(READ_UNIT);
            for part in memory.chunks_mut(part) {
                scope.spawn(|| part.fill(1));
            }
        });
        let narrow = Narrow {
            half: narrow.half && isa.has_half(),
            bytes: narrow.bytes && isa.has_bytes(),
            half_tiles: narrow.half_tiles && isa.has_tiles(Products::Half),
            byte_tiles: narrow.byte_tiles && isa.has_tiles(Products::Byte),
        };
        Ok(Self { pool, isa, narrow, effort, memory })
    }

    /// The instruction set whose products are measured.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Runs `body` for `tiles` tiles on the pool; seconds.
    fn time(&self, tiles: usize, body: &(dyn Fn(usize) + Sync)) -> Result<f64> {
        let begin = Instant::now();
        let each = |_, _, begin, end| (begin..end).for_each(|tile: u32| body(tile as usize));
        let failed = |error: crate::device::cpu::WorkerPanicked| RuntimeError::Device {
            device: "cpu",
            problem: error.to_string(),
        };
        self.pool.run(&[tiles as u32], &each).map_err(failed)?;
        Ok(begin.elapsed().as_secs_f64().max(1e-9))
    }

    /// The best of the passes over all memory that fit into the time, at least one.
    fn read(&self, reading: Reading) -> Result<f64> {
        let isa = Isa::host();
        let chunks = self.memory.len() / CHUNK;
        let body = |chunk: usize| read(isa, reading, &self.memory[chunk * CHUNK..(chunk + 1) * CHUNK]);
        let (begin, mut best) = (Instant::now(), f64::INFINITY);
        while best.is_infinite() || begin.elapsed() < self.effort.read {
            best = best.min(self.time(chunks, &body)?);
        }
        Ok(self.memory.len() as f64 / best)
    }

    fn products(&self, products: Products) -> Result<f64> {
        self.multiply(&|| multiply(self.isa, products, TURNS))
    }

    /// The best of the runs of `some` operations that fit into the time; where it does none, one operation at a time.
    fn multiply(&self, some: &(dyn Fn() -> u64 + Sync)) -> Result<f64> {
        let tiles = self.pool.workers() * 64;
        let done = AtomicU64::new(0);
        let body = |_: usize| {
            let flops = match some() {
                0 => plain_products(),
                flops => flops,
            };
            done.fetch_add(flops, Ordering::Relaxed);
        };
        let (begin, mut best) = (Instant::now(), 0.0f64);
        while best == 0.0 || begin.elapsed() < self.effort.short {
            done.store(0, Ordering::Relaxed);
            let seconds = self.time(tiles, &body)?;
            best = best.max(done.load(Ordering::Relaxed) as f64 / seconds);
        }
        Ok(best)
    }

    /// Two threads take turns in setting a flag. Each tile waits for the other, so that two threads have one each.
    fn round_trip(&self) -> Result<Option<f64>> {
        if self.pool.workers() < 2 {
            return Ok(None);
        }
        let (ball, over) = ([Flag::default(), Flag::default()], AtomicBool::new(false));
        let (rounds, nanoseconds) = (AtomicU64::new(0), AtomicU64::new(0));
        let body = |tile: usize| {
            let (own, other) = (&ball[tile].0, &ball[1 - tile].0);
            // The first round tells that both are there.
            let (mut n, mut begin) = (0u64, Instant::now());
            while !over.load(Ordering::Relaxed) {
                if tile == 0 {
                    own.store(n + 1, Ordering::Release);
                }
                while other.load(Ordering::Acquire) <= n && !over.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
                if tile == 1 {
                    own.store(n + 1, Ordering::Release);
                    n += 1;
                    continue;
                }
                n += 1;
                if n == 1 {
                    begin = Instant::now();
                } else if (n.is_multiple_of(64) || n.is_power_of_two()) && begin.elapsed() >= self.effort.short {
                    // Reading the clock would count; where answers take long, 64 of them would take too long.
                    rounds.store(n - 1, Ordering::Relaxed);
                    nanoseconds.store(begin.elapsed().as_nanos() as u64, Ordering::Relaxed);
                    over.store(true, Ordering::Relaxed);
                }
            }
        };
        self.time(2, &body)?;
        Ok(Some(nanoseconds.into_inner() as f64 / rounds.into_inner().max(1) as f64))
    }
}

/// Which narrow products code has instructions for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Narrow {
    /// Of 16-bit numbers.
    pub half: bool,
    /// Of 8-bit integers.
    pub bytes: bool,
    /// Of tiles of 16-bit numbers.
    pub half_tiles: bool,
    /// Of tiles of 8-bit integers.
    pub byte_tiles: bool,
}

impl Narrow {
    /// Those of a target with these features that a loop measures.
    pub fn of(features: &[String]) -> Self {
        let has = |names: &[&str]| features.iter().any(|feature| names.contains(&feature.as_str()));
        // `avx512bf16` of one family, `bf16` of another.
        Narrow {
            half: has(&["avx512bf16", "bf16"]),
            bytes: has(&["avx512vnni"]),
            half_tiles: has(&["amx-bf16"]),
            byte_tiles: has(&["amx-int8"]),
        }
    }
}

/// A flag on cache lines of its own: some processors fetch two at a time.
#[derive(Default)]
#[repr(align(128))]
struct Flag(AtomicU64);

/// Products without vectors; the number of operations.
fn plain_products() -> u64 {
    let mut sums = [0.0f32; 8];
    for _ in 0..TURNS {
        sums.iter_mut().for_each(|sum| *sum = std::hint::black_box(*sum) * 1.000_000_1 + 1e-9);
    }
    std::hint::black_box(sums);
    u64::from(TURNS) * 16
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Enough to see that everything is measured.
    pub(crate) const QUICK: Effort =
        Effort { buffer_bytes: 8 << 20, read: Duration::from_millis(2), short: Duration::from_millis(2) };

    fn limits(read: f64, round_trip_ns: Option<f64>) -> Limits {
        Limits {
            read,
            f32_flops: 100.0,
            half_flops: 200.0,
            byte_ops: 400.0,
            round_trip_ns,
            copy: None,
            launch_ns: None,
        }
    }

    #[test]
    fn probes_are_compared() {
        let near = limits(50.0, Some(105.0));
        assert_eq!(disagreement(&near, &near), 0.0);
        assert!((disagreement(&near, &limits(45.0, Some(140.0))) - 0.1).abs() < 1e-12);
        assert_eq!(disagreement(&near, &limits(50.0, Some(500.0))), f64::INFINITY);
        assert_eq!(limits(1.0, Some(900.0)).regime(), Regime::Contended);
        assert_eq!(limits(1.0, None).regime(), Regime::One);
        let mean = near.mean(&limits(60.0, Some(115.0)));
        assert_eq!((mean.read, mean.round_trip_ns), (55.0, Some(110.0)));
    }

    #[test]
    fn every_limit_is_measured() {
        for threads in [1, 2, 3] {
            let pool = Arc::new(ThreadPool::new(threads).unwrap());
            let prober = Prober::new(
                pool,
                Isa::host(),
                Narrow { half: true, bytes: true, half_tiles: true, byte_tiles: true },
                QUICK,
            )
            .unwrap();
            let limits = prober.probe().unwrap();
            assert!(
                limits.read > 0.0 && limits.f32_flops > 0.0 && limits.half_flops > 0.0 && limits.byte_ops > 0.0,
                "{limits:?}"
            );
            assert_eq!(limits.round_trip_ns.is_some(), threads > 1);
            assert!(limits.round_trip_ns.is_none_or(|ns| ns > 0.0));
        }
    }
}
