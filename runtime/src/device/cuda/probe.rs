//! What a GPU can do at most: how fast it reads, copies and multiplies, and what a launch costs it.
//!
//! Times are those between events of the stream. Each figure is the best of the runs that fit into the time, at least one.

use super::code::{Kernel, load};
use super::context::{Allocation, Context, Event, Gpu, failed, problem};
use super::graphs::Graph;
use super::texts::{self, READ_BYTES, THREADS, Text};
use crate::artifact::manifest::Products;
use crate::bench::limits::{Effort, Limits, Probe};
use crate::error::Result;
use cudarc::driver::result;
use std::ffi::{CString, c_void};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The memory read is so many times what an effort says: a half of it, which is copied, is then more than any cache holds.
const TIMES_BUFFER: u64 = 5;
/// Blocks on a processor at a time.
const BLOCKS_OF_PROCESSOR: u32 = 4;
/// Kernels in the graph that measures launches.
const EMPTY_KERNELS: usize = 256;
/// A run of products takes at least so long: events are exact to half a microsecond.
const LEAST_SECONDS: f64 = 1e-3;

/// Measures a GPU.
#[derive(Debug)]
pub(super) struct GpuProber {
    context: Arc<Context>,
    effort: Effort,
    blocks: u32,
    read: Kernel,
    /// In f32, bf16 and bytes: the ways to multiply, each with the operations of a thread in a turn.
    products: [Vec<(Kernel, u64)>; 3],
    launches: Graph,
    /// Not used again, but for the recording.
    _nothing: Kernel,
    buffer: Allocation,
    begin: Event,
    end: Event,
}

impl GpuProber {
    /// A prober of the GPU of a context, which is the calling thread's. Takes some gigabytes of its memory, or a quarter of what is free.
    pub(super) fn new(context: &Arc<Context>, gpu: &Gpu, effort: Effort) -> Result<Self> {
        let kernel = |text: &Text| -> Result<Kernel> {
            let ptx = CString::new(text.text.as_str()).map_err(|e| problem(e.to_string()))?;
            load(context, (ptx.to_bytes_with_nul(), &ptx), text.name, 0)
        };
        let product = |which| -> Result<Vec<(Kernel, u64)>> {
            let ways = [Some(texts::products(which)), texts::teams(which)].into_iter().flatten();
            ways.filter(|text| gpu.runs(text.arch)).map(|text| Ok((kernel(&text)?, text.operations))).collect()
        };
        let blocks = context.processors()?.saturating_mul(BLOCKS_OF_PROCESSOR);
        let turn = u64::from(blocks) * u64::from(THREADS) * u64::from(READ_BYTES);
        let bytes = effort.buffer_bytes.saturating_mul(TIMES_BUFFER).min(context.memory()?.0 / 4);
        // Whole turns of all threads.
        let buffer = context.allocate((bytes / turn).max(1) * turn)?;
        let nothing = kernel(&texts::nothing())?;
        let launches =
            Graph::record(context, || (0..EMPTY_KERNELS).try_for_each(|_| launch(context, &nothing, 1, &mut [])))?;
        Ok(Self {
            effort,
            blocks,
            read: kernel(&texts::read())?,
            products: [product(Products::Single)?, product(Products::Half)?, product(Products::Byte)?],
            launches,
            _nothing: nothing,
            buffer,
            begin: Event::timed(context)?,
            end: Event::timed(context)?,
            context: Arc::clone(context),
        })
    }

    /// Seconds of what `work` gives to the stream.
    fn time(&self, work: &dyn Fn() -> Result<()>) -> Result<f64> {
        self.begin.record()?;
        work()?;
        self.end.record()?;
        self.end.wait()?;
        Ok(self.end.seconds_since(&self.begin)?.max(1e-9))
    }

    /// The best of the runs that fit into the time.
    fn best(&self, time: Duration, work: &dyn Fn() -> Result<()>) -> Result<f64> {
        let (begin, mut best) = (Instant::now(), f64::INFINITY);
        while best.is_infinite() || begin.elapsed() < time {
            best = best.min(self.time(work)?);
        }
        Ok(best)
    }

    /// Bytes a second that are read.
    fn read(&self) -> Result<f64> {
        let turn = u64::from(self.blocks) * u64::from(THREADS) * u64::from(READ_BYTES);
        let turns = (self.buffer.bytes / turn) as u32;
        let work = || {
            // The place for a result that there is not lies in what is read.
            let (mut from, mut to, mut turns) = (self.buffer.address, self.buffer.address, turns);
            let list = &mut [pointer(&mut from), pointer(&mut to), pointer(&mut turns)];
            launch(&self.context, &self.read, self.blocks, list)
        };
        Ok((u64::from(turns) * turn) as f64 / self.best(self.effort.read, &work)?)
    }

    /// Bytes a second that are read and written, of copies from one half to the other.
    fn copy(&self) -> Result<f64> {
        let half = self.buffer.bytes / 2;
        let work = || {
            // SAFETY: both halves lie in the buffer and do not overlap.
            unsafe {
                result::memcpy_dtod_async(
                    self.buffer.address + half,
                    self.buffer.address,
                    half as usize,
                    self.context.stream,
                )
            }
            .map_err(|e| failed("a copy on the GPU", e))
        };
        Ok(2.0 * half as f64 / self.best(self.effort.read, &work)?)
    }

    /// Operations a second, by the way that is the fastest here.
    fn multiply(&self, ways: &[(Kernel, u64)]) -> Result<f64> {
        ways.iter().try_fold(0.0, |best: f64, way| Ok(best.max(self.multiply_by(way)?)))
    }

    fn multiply_by(&self, (kernel, operations): &(Kernel, u64)) -> Result<f64> {
        let run = |mut turns: u32| {
            let mut to = self.buffer.address;
            launch(&self.context, kernel, self.blocks, &mut [pointer(&mut to), pointer(&mut turns)])
        };
        // Long enough to be timed.
        let mut turns = 2;
        while turns < 1 << 24 && self.time(&|| run(turns))? < LEAST_SECONDS {
            turns *= 2;
        }
        let seconds = self.best(self.effort.short, &|| run(turns))?;
        Ok((u64::from(turns) * u64::from(self.blocks) * u64::from(THREADS) * operations) as f64 / seconds)
    }

    /// Nanoseconds of an empty kernel among others in a graph.
    fn launch_ns(&self) -> Result<f64> {
        let work = || {
            // SAFETY: recorded here, of kernels that are loaded.
            unsafe { self.launches.launch(self.context.stream) }.map_err(|e| failed("empty kernels", e))
        };
        Ok(self.best(self.effort.short, &work)? * 1e9 / EMPTY_KERNELS as f64)
    }
}

impl Probe for GpuProber {
    fn probe(&self) -> Result<Limits> {
        self.context.enter()?;
        let copy = self.copy()?;
        Ok(Limits {
            // Reading alone is slower than a copy only where it is done badly.
            read: self.read()?.max(copy),
            f32_flops: self.multiply(&self.products[0])?,
            half_flops: self.multiply(&self.products[1])?,
            byte_ops: self.multiply(&self.products[2])?,
            round_trip_ns: None,
            copy: Some(copy),
            launch_ns: Some(self.launch_ns()?),
        })
    }
}

/// The address of an argument.
fn pointer<T>(argument: &mut T) -> *mut c_void {
    (&raw mut *argument).cast()
}

/// Gives a kernel with these arguments to the stream.
fn launch(context: &Context, kernel: &Kernel, blocks: u32, list: &mut [*mut c_void]) -> Result<()> {
    // SAFETY: the list has the addresses of as many arguments as the kernel of `texts` takes, of its types, alive for this call, in which the
    // driver copies them; memory that they name is as large as the kernel takes it to be.
    unsafe { result::launch_kernel(kernel.function, (blocks, 1, 1), (kernel.threads, 1, 1), 0, context.stream, list) }
        .map_err(|e| failed("measuring the GPU", e))
}
