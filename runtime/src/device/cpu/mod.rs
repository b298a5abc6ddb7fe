//! The host's processor: calls generated machine code on a pool of threads.

mod pool;

pub use pool::{Ahead, Body, ThreadPool, WorkerPanicked};

use super::{Device, Launch, Memory, Step};
use crate::artifact::abi::{XfmArgs, XfmAxis, XfmCache};
use crate::artifact::manifest::Manifest;
use crate::artifact::{Code, VERSION};
use crate::error::{Result, RuntimeError};
use crate::profile::Recorder;
use std::ffi::c_void;
use std::sync::{Arc, Mutex, PoisonError};

/// Bytes of weights that a worker fetches while it waits: what the second level of caches holds beside the rest.
const FETCH_BYTES: u64 = 512 << 10;
/// Bytes that are fetched between looks at whether the wait is over.
const FETCH_STEP: u64 = 4096;
/// Bytes that memory is read in.
const LINE: u64 = 64;

/// Scratch of a worker begins at multiples of this, so that workers share no cache line and no page.
const SCRATCH_ALIGN: u64 = 4096;

/// The host with one model's code loaded.
#[derive(Debug)]
pub struct CpuDevice {
    code: Code,
    pool: Arc<ThreadPool>,
    /// Locked while a step runs.
    working: Mutex<Working>,
    scratch_bytes: usize,
    recorder: Mutex<Option<Arc<Recorder>>>,
}

/// Memory that steps use one after the other, so that a step takes none from the system.
#[derive(Debug)]
struct Working {
    /// `scratch_bytes` for each worker. Holds nothing between launches.
    scratch: Memory,
    /// The axes and caches of a step in the form that kernels read.
    axes: Vec<XfmAxis>,
    caches: Vec<XfmCache>,
    /// Tiles of each launch.
    tiles: Vec<u32>,
}

// SAFETY: the addresses in the tables are followed only while the step that they were made for runs.
unsafe impl Send for Working {}

impl CpuDevice {
    /// A device that runs `code`, the code of `manifest`, on `pool`.
    ///
    /// # Errors
    /// No memory for the workers' scratch.
    pub fn new(manifest: &Manifest, code: Code, pool: Arc<ThreadPool>) -> Result<Self> {
        let most = manifest.kernels.iter().map(|kernel| kernel.scratch_bytes).max().unwrap_or(0).max(1);
        let scratch_bytes = most.next_multiple_of(SCRATCH_ALIGN);
        let scratch = Memory::host(scratch_bytes.saturating_mul(pool.workers() as u64))?;
        let working = Working { scratch, axes: Vec::new(), caches: Vec::new(), tiles: Vec::new() };
        Ok(Self {
            code,
            pool,
            working: Mutex::new(working),
            scratch_bytes: scratch_bytes as usize,
            recorder: Mutex::default(),
        })
    }
}

/// A step in the form that kernels read. Lives on the caller's stack while the workers use it.
struct Prepared<'a> {
    code: &'a Code,
    axes: &'a [XfmAxis],
    caches: &'a [XfmCache],
    step: &'a Step<'a>,
    scratch: *mut u8,
    scratch_bytes: usize,
}

// SAFETY: the pointers are read-only views of `step`, which is borrowed for as long, and `scratch`, of which each worker uses its own part.
unsafe impl Sync for Prepared<'_> {}

impl Prepared<'_> {
    /// Calls the kernel of one launch for some tiles.
    ///
    /// # Safety
    /// What [`Device::run`] asks for; and `worker` is the calling worker's own index, below the number for which scratch was made.
    unsafe fn call(&self, worker: usize, launch: usize, begin: u32, end: u32) {
        let Launch { kernel, buffers, .. } = &self.step.launches[launch];
        let kernel = self.code.kernel(*kernel).expect("checked before the step");
        let args = XfmArgs {
            buffers: self.step.buffers[buffers.clone()].as_ptr(),
            sizes: self.step.sizes.as_ptr(),
            axes: self.axes.as_ptr(),
            caches: self.caches.as_ptr(),
            version: VERSION,
            worker: worker as u32,
            device: 0,
            n_sequences: self.step.n_sequences,
        };
        let scratch = self.scratch.wrapping_add(worker * self.scratch_bytes).cast::<c_void>();
        // SAFETY: the code is verified and alive, `args` points at tables that outlive the call, the tiles are this worker's alone (the
        // pool hands out each once), the scratch is as large as the largest kernel of the manifest wants.
        unsafe { kernel(&raw const args, begin, end, scratch) }
    }
}

impl Prepared<'_> {
    /// Reads the weights of some tiles of a launch into this processor's caches, until the wait is over.
    ///
    /// # Safety
    /// What [`Device::run`] asks for.
    unsafe fn fetch(&self, launch: usize, tiles: std::ops::Range<u32>, over: &dyn Fn() -> bool) {
        let Some(stream) = self.step.launches[launch].stream else { return };
        let matrices = &self.step.buffers[stream.first..stream.first + stream.matrices];
        let mut left = FETCH_BYTES;
        for tile in tiles {
            for matrix in matrices {
                for at in (0..stream.tile_bytes).step_by(FETCH_STEP as usize) {
                    if over() || left < FETCH_STEP {
                        return;
                    }
                    left -= FETCH_STEP;
                    for line in (at..(at + FETCH_STEP).min(stream.tile_bytes)).step_by(LINE as usize) {
                        let at = u64::from(tile) * stream.tile_bytes + line;
                        // SAFETY: the launch has as many tiles as the matrix has parts of `tile_bytes` bytes, and the matrix is alive and only read.
                        unsafe { matrix.data.wrapping_add(at as usize).read_volatile() };
                    }
                }
            }
        }
    }
}

impl Device for CpuDevice {
    fn name(&self) -> &'static str {
        "cpu"
    }

    fn n_workers(&self) -> usize {
        self.pool.workers()
    }

    fn record(&self, recorder: Option<Arc<Recorder>>) {
        *self.recorder.lock().unwrap_or_else(PoisonError::into_inner) = recorder;
    }

    unsafe fn run(&self, step: &Step<'_>) -> Result<()> {
        let fail = |problem: String| RuntimeError::Device { device: "cpu", problem };
        for launch in step.launches {
            if self.code.kernel(launch.kernel).is_none() {
                return Err(fail(format!("the code has no kernel {}", launch.kernel)));
            }
            if step.buffers.get(launch.buffers.clone()).is_none() {
                return Err(fail(format!("launch {} has no buffers", launch.index)));
            }
        }
        let axis = |axis: &super::AxisStep| XfmAxis {
            offsets: axis.offsets.as_ptr(),
            positions: axis.positions.as_ptr(),
            sequences: axis.sequences.as_ptr(),
            rows: axis.rows.as_ptr(),
        };
        let cache = |cache: &crate::cache::BlockTable| XfmCache {
            table: cache.table.as_ptr(),
            lengths: cache.lengths.as_ptr(),
            entries: cache.entries,
            page_tokens: cache.page_tokens,
        };
        // All of it is set anew, so that poison does not matter.
        let mut working = self.working.lock().unwrap_or_else(PoisonError::into_inner);
        let Working { scratch, axes, caches, tiles } = &mut *working;
        refill(axes, step.axes.iter().map(axis));
        refill(caches, step.caches.iter().map(cache));
        refill(tiles, step.launches.iter().map(|launch| launch.tiles));
        let scratch = scratch.address();
        let prepared = Prepared { code: &self.code, axes, caches, step, scratch, scratch_bytes: self.scratch_bytes };
        // SAFETY: the caller of `run` promises what `call` asks for; the pool gives each thread its own index.
        let body = |worker, launch, begin, end| unsafe { prepared.call(worker, launch, begin, end) };
        // SAFETY: the caller of `run` promises what `fetch` asks for.
        let ahead = |launch, begin, end, over: &dyn Fn() -> bool| unsafe { prepared.fetch(launch, begin..end, over) };
        let recorder = self.recorder.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let result = match recorder {
            None => self.pool.run_ahead(tiles, &body, &ahead),
            Some(recorder) => {
                let recorded = |worker, launch, begin, end| {
                    let begin_ns = recorder.now_ns();
                    body(worker, launch, begin, end);
                    recorder.part(worker, launch, begin_ns, end - begin);
                };
                recorder.begin_step(step);
                let result = self.pool.run_ahead(tiles, &recorded, &ahead);
                recorder.end_step();
                result
            }
        };
        result.map_err(|error| fail(error.to_string()))
    }
}

/// Other contents for a list, in the memory that it has.
fn refill<T>(list: &mut Vec<T>, items: impl Iterator<Item = T>) {
    list.clear();
    list.extend(items);
}
