//! The host's processor: calls generated machine code on a pool of threads.

mod pool;

pub use pool::{Ahead, Body, ThreadPool, WorkerPanicked};

use super::{Device, Memory, Step};
use crate::artifact::abi::{KernelFn, XfmArgs, XfmAxis, XfmBuffer, XfmCache};
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
    /// `scratch_bytes` for each worker; locked while a step runs.
    scratch: Mutex<Memory>,
    scratch_bytes: usize,
    recorder: Mutex<Option<Arc<Recorder>>>,
}

impl CpuDevice {
    /// A device that runs `code`, the code of `manifest`, on `pool`.
    ///
    /// # Errors
    /// No memory for the workers' scratch.
    pub fn new(manifest: &Manifest, code: Code, pool: Arc<ThreadPool>) -> Result<Self> {
        let most = manifest.kernels.iter().map(|kernel| kernel.scratch_bytes).max().unwrap_or(0).max(1);
        let scratch_bytes = most.next_multiple_of(SCRATCH_ALIGN);
        let scratch = Memory::host(scratch_bytes.saturating_mul(pool.workers() as u64))?;
        Ok(Self {
            code,
            pool,
            scratch: Mutex::new(scratch),
            scratch_bytes: scratch_bytes as usize,
            recorder: Mutex::default(),
        })
    }
}

/// A step in the form that kernels read. Lives on the caller's stack while the workers use it.
struct Prepared<'a> {
    kernels: Vec<KernelFn>,
    first_buffers: Vec<*const XfmBuffer>,
    axes: Vec<XfmAxis>,
    caches: Vec<XfmCache>,
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
        let args = XfmArgs {
            buffers: self.first_buffers[launch],
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
        unsafe { self.kernels[launch](&raw const args, begin, end, scratch) }
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
        let mut kernels = Vec::with_capacity(step.launches.len());
        let mut first_buffers = Vec::with_capacity(step.launches.len());
        for launch in step.launches {
            let kernel = self.code.kernel(launch.kernel);
            kernels.push(kernel.ok_or_else(|| fail(format!("the code has no kernel {}", launch.kernel)))?);
            let buffers = step.buffers.get(launch.buffers.clone());
            first_buffers
                .push(buffers.ok_or_else(|| fail(format!("launch {} has no buffers", launch.index)))?.as_ptr());
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
        // Scratch holds nothing between launches, so that poison does not matter.
        let mut scratch = self.scratch.lock().unwrap_or_else(PoisonError::into_inner);
        let prepared = Prepared {
            kernels,
            first_buffers,
            axes: step.axes.iter().map(axis).collect(),
            caches: step.caches.iter().map(cache).collect(),
            step,
            scratch: scratch.address(),
            scratch_bytes: self.scratch_bytes,
        };
        let tiles: Vec<u32> = step.launches.iter().map(|launch| launch.tiles).collect();
        // SAFETY: the caller of `run` promises what `call` asks for; the pool gives each thread its own index.
        let body = |worker, launch, begin, end| unsafe { prepared.call(worker, launch, begin, end) };
        // SAFETY: the caller of `run` promises what `fetch` asks for.
        let ahead = |launch, begin, end, over: &dyn Fn() -> bool| unsafe { prepared.fetch(launch, begin..end, over) };
        let recorder = self.recorder.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let result = match recorder {
            None => self.pool.run_ahead(&tiles, &body, &ahead),
            Some(recorder) => {
                let recorded = |worker, launch, begin, end| {
                    let begin_ns = recorder.now_ns();
                    body(worker, launch, begin, end);
                    recorder.part(worker, launch, begin_ns, end - begin);
                };
                recorder.begin_step(step);
                let result = self.pool.run_ahead(&tiles, &recorded, &ahead);
                recorder.end_step();
                result
            }
        };
        result.map_err(|error| fail(error.to_string()))
    }
}
