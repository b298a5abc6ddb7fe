//! An NVIDIA GPU, through its driver's library, which is looked for when it is needed: nothing of CUDA is there to build or to run elsewhere.
//!
//! Everything of a model runs on one stream. A step's inputs and arrays go to the device through pinned memory; its launches are then made one by
//! one, or, where a step of the same rows was made before, as the graph that was recorded of it: a launch of a graph costs the host one call
//! whatever its kernels, unless each launch is to be waited for (`XFC_CUDA_CHECK=1`). Launches of a step may begin before those before them have ended
//! (`launching.rs`). **Nothing waits for the device until an output is read**, which is copied to pinned memory at once.

mod code;
mod context;
mod graphs;
mod launching;
mod probe;
pub mod texts;
mod transfer;

pub use self::context::{Gpu, driver_version, gpu, gpus, is_absent, memory_of};

use self::code::{Kernel, Loaded};
use self::context::{Allocation, Context, Event, failed, problem, text_of};
use self::graphs::{Graph, Key, Recent};
use self::launching::Overlap;
use self::probe::GpuProber;
use self::transfer::{Receiver, Ring};
use super::launch::StepTables;
use super::{Counts, Device, DeviceMemory, Launch, Memory, Room, Rows, Step};
use crate::artifact::manifest::Manifest;
use crate::bench::limits::{Effort, Probe};
use crate::error::Result;
use crate::folder::CacheFolder;
use crate::profile::Recorder;
use crate::weights::Progress;
use cudarc::driver::result;
use memmap2::MmapMut;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Scratch that blocks have together, at least what one needs: of kernels that use it, so many blocks run as there is room for.
const SCRATCH_BYTES: u64 = 256 << 20;

/// A variable of the environment: where it is `1`, no step is recorded, and each launch is waited for, so that the one that fails is known.
const CHECK: &str = "XFC_CUDA_CHECK";

/// Memory is given in pieces of so many bytes.
const GRANULE_BYTES: u64 = 2 << 20;

/// Kept free for what is not planned, or 1/32 of the memory where that is less: code (up to about 100 MB), at most 256 recorded steps of some
/// hundred launches (about a kilobyte each), and the arrays of steps.
const RESERVE_BYTES: u64 = 512 << 20;

/// Most rows of a step that is recorded: longer ones seldom come again.
const RECORDED_ROWS: u64 = 64;

/// A GPU on which nothing is loaded yet.
#[derive(Debug)]
pub struct Opened {
    context: Arc<Context>,
    gpu: Gpu,
}

impl Opened {
    /// GPU `index`, as the driver counts from 0.
    ///
    /// # Errors
    /// There is no driver or no such GPU, or it cannot be used.
    pub fn new(index: usize) -> Result<Self> {
        let gpu = gpu(index)?;
        Ok(Self { context: Arc::new(Context::new(gpu.index)?), gpu })
    }

    /// Its memory, as it would be with the scratch that kernels of `manifest` need.
    ///
    /// # Errors
    /// The driver does not say.
    pub fn room(&self, manifest: &Manifest) -> Result<Room> {
        Ok(Room { scratch_bytes: scratch_bytes(manifest), ..room(&self.context, &self.gpu)? })
    }

    /// Loads the code of `manifest`: PTX modules, each ended by a zero byte, that begin at `entries`. What the driver makes of it is kept in
    /// `keep`, and taken from there.
    ///
    /// # Errors
    /// The driver refuses the code, or there is no memory for the scratch of blocks.
    pub fn load(
        self,
        manifest: &Manifest,
        code: &[u8],
        entries: &[u64],
        keep: Option<&CacheFolder>,
    ) -> Result<CudaDevice> {
        let Self { context, gpu } = self;
        let begin = Instant::now();
        let Loaded { kernels, kept, trouble } = code::load_all(&context, &gpu, manifest, (code, entries), keep)?;
        let counts = Counts {
            code_seconds: begin.elapsed().as_secs_f64(),
            kernels: kernels.len() as u64,
            kernels_kept: kept as u64,
            ..Counts::default()
        };
        Ok(CudaDevice {
            kernels,
            checked: is_checked().then(|| manifest.launches.iter().map(|launch| launch.name.clone()).collect()),
            working: Mutex::new(Working {
                tables: StepTables::default(),
                memory: None,
                ring: Ring::new(&context)?,
                receiver: Receiver::new(&context),
                scratch: context.allocate(scratch_bytes(manifest))?,
                graphs: Recent::default(),
                counts,
            }),
            recorder: Mutex::new(None),
            remarks: trouble.into_iter().collect(),
            overlap: Overlap::new()?,
            context,
            gpu,
        })
    }
}

/// Whether launches are to be waited for one by one.
fn is_checked() -> bool {
    std::env::var(CHECK).is_ok_and(|value| value == "1")
}

/// Bytes of the scratch of all blocks.
fn scratch_bytes(manifest: &Manifest) -> u64 {
    match manifest.kernels.iter().map(|kernel| kernel.scratch_bytes).max().unwrap_or(0) {
        0 => 1,
        most => SCRATCH_BYTES.max(most),
    }
}

/// The memory of a GPU on which nothing is yet.
fn room(context: &Context, gpu: &Gpu) -> Result<Room> {
    let (free, total) = context.memory()?;
    Ok(Room {
        device: format!("GPU {} ({})", gpu.index, gpu.name),
        free,
        total: Some(total),
        scratch_bytes: 0,
        granule_bytes: GRANULE_BYTES,
        reserve_bytes: RESERVE_BYTES.min(total / 32),
    })
}

/// A GPU with one model's code loaded.
#[derive(Debug)]
pub struct CudaDevice {
    /// Dropped before `kernels`: recorded steps name them. Locked while anything is given to the stream: what a recording sees is one step alone.
    working: Mutex<Working>,
    kernels: Vec<Kernel>,
    /// Names of the launches, where each is waited for.
    checked: Option<Vec<String>>,
    recorder: Mutex<Option<Arc<Recorder>>>,
    remarks: Vec<String>,
    overlap: Overlap,
    context: Arc<Context>,
    gpu: Gpu,
}

// SAFETY: handles of the driver may be used by any thread; each call sets the context first. What changes is behind locks.
unsafe impl Sync for CudaDevice {}

/// Memory that steps use one after the other, and what was recorded of them.
#[derive(Debug)]
struct Working {
    /// Dropped first: graphs have the addresses of what follows.
    graphs: Recent<Graph>,
    tables: StepTables,
    memory: Option<Allocation>,
    ring: Ring,
    receiver: Receiver,
    scratch: Allocation,
    counts: Counts,
}

// SAFETY: as above.
unsafe impl Send for Working {}

impl CudaDevice {
    /// Which GPU it is.
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// What steps work with; the context is the calling thread's.
    fn working(&self) -> Result<MutexGuard<'_, Working>> {
        self.context.enter()?;
        Ok(self.working.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Memory of zeros.
    fn allocated(&self, bytes: u64) -> Result<Memory> {
        let _alone = self.working()?;
        let memory = self.context.allocate(bytes)?;
        let (address, bytes) = (memory.address, memory.bytes);
        Ok(Memory::Device(DeviceMemory { address, bytes, owner: Box::new(memory) }))
    }

    /// Gives the launches of a step to the stream, which may overlap.
    fn launch_all(&self, working: &Working, step: &Step<'_>, overlaps: bool) -> Result<()> {
        (0..step.launches.len()).try_for_each(|number| self.launch(working, step, number, overlaps))
    }

    /// Gives a launch of a step to the stream; where it `overlaps`, it is behind those before it and nothing else.
    fn launch(&self, working: &Working, step: &Step<'_>, number: usize, overlaps: bool) -> Result<()> {
        let launch = &step.launches[number];
        let base = working.memory.as_ref().map_or(0, |memory| memory.address);
        let kernel = self.kernels.get(launch.kernel);
        let kernel = kernel.ok_or_else(|| problem(format!("the code has no kernel {}", launch.kernel)))?;
        let mut arguments = working.tables.arguments(step, launch, base, working.scratch.address)?;
        let blocks = blocks_of(launch, kernel, working);
        // SAFETY: the arguments are the launch's; the addresses in them are those of live memory, as `Device::run` promises. Early are those of
        // kernels that wait, behind another.
        let mut give = |is_early| unsafe { launching::give(&self.context, kernel, blocks, &mut arguments, is_early) };
        let is_early = overlaps && kernel.waits && number > 0;
        let given = match give(is_early) {
            // What fails otherwise too was not refused for that. In a recording it does.
            Err(refused) if is_early => give(false).map(|()| self.overlap.end()).map_err(|_| refused),
            given => given,
        };
        given.map_err(|e| failed(&format!("launch {} of kernel {}", launch.index, kernel.name), e))
    }

    /// Records the launches of a step.
    fn record_graph(&self, working: &mut Working, step: &Step<'_>) -> Result<Graph> {
        let begin = Instant::now();
        // Nothing else is given to the stream until the recording ends: `working` is locked.
        let record = |overlaps| Graph::record(&self.context, || self.launch_all(working, step, overlaps));
        let overlaps = self.overlap.is_on();
        let graph = match record(overlaps) {
            // What could not be recorded so may be as launches that follow one another.
            Err(_) if overlaps => {
                let graph = record(false)?;
                self.overlap.end();
                graph
            }
            recorded => recorded?,
        };
        working.counts.captures += 1;
        working.counts.capture_seconds += begin.elapsed().as_secs_f64();
        Ok(graph)
    }

    /// Runs a step launch by launch, with an event behind each, and waits for it.
    fn run_recorded(&self, working: &Working, step: &Step<'_>, recorder: &Recorder) -> Result<()> {
        let events = (0..=step.launches.len()).map(|_| Event::timed(&self.context));
        let events = events.collect::<Result<Vec<_>>>()?;
        // What came before is not this step's.
        self.context.wait()?;
        recorder.begin_step(step);
        let begin_ns = recorder.now_ns();
        events[0].record()?;
        for number in 0..step.launches.len() {
            self.launch(working, step, number, false)?;
            events[number + 1].record()?;
        }
        self.context.wait()?;
        let mut last_ns = begin_ns;
        for (number, launch) in step.launches.iter().enumerate() {
            let end_ns = begin_ns + (events[number + 1].seconds_since(&events[0])? * 1e9) as u64;
            recorder.span(0, number, (last_ns, end_ns), launch.tiles);
            last_ns = end_ns;
        }
        recorder.end_step();
        Ok(())
    }

    /// Runs a step launch by launch and waits for each, to name the one that fails; `names` are those of all launches.
    fn run_checked(&self, working: &Working, step: &Step<'_>, names: &[String]) -> Result<()> {
        // What came before is no launch's.
        self.context.wait()?;
        for (number, launch) in step.launches.iter().enumerate() {
            self.launch(working, step, number, false)?;
            let Err(error) = self.context.wait_plainly() else { continue };
            let kernel = &self.kernels[launch.kernel];
            let name = names.get(launch.index).map_or("without a name", String::as_str);
            return Err(problem(format!(
                "launch {} ({name}), kernel {}, {} blocks of {} threads and {} bytes of shared memory that it brings: {}",
                launch.index,
                kernel.name,
                blocks_of(launch, kernel, working),
                kernel.threads,
                kernel.shared_bytes,
                text_of(error),
            )));
        }
        Ok(())
    }

    /// Brings the arrays of a step to the device.
    fn bring_tables(&self, working: &mut Working, step: &Step<'_>) -> Result<()> {
        let moved = working.tables.fill(step);
        let bytes = working.tables.bytes();
        // The latter also where a step before this one found no memory.
        let is_short = working.memory.as_ref().is_none_or(|memory| memory.bytes < bytes.len() as u64);
        if moved || is_short {
            // What was recorded has the old addresses, and what still runs reads there; this happens when a step is larger than all before it.
            self.context.wait()?;
            working.graphs.clear();
        }
        if is_short {
            working.memory = Some(self.context.allocate(bytes.len() as u64)?);
        }
        let memory = working.memory.as_ref().ok_or_else(|| problem("no memory for the arrays of a step"))?;
        working.ring.send(memory.address, bytes)
    }
}

/// How many blocks run the tiles of a launch: as many as have scratch, each of which takes several then.
fn blocks_of(launch: &Launch, kernel: &Kernel, working: &Working) -> u32 {
    match kernel.scratch_bytes {
        0 => launch.tiles,
        each => launch.tiles.min(u32::try_from(working.scratch.bytes / each).unwrap_or(u32::MAX)),
    }
}

impl Drop for CudaDevice {
    fn drop(&mut self) {
        // What runs is waited for; what the fields hold is then given back by themselves.
        if self.context.enter().is_ok() {
            let _ = self.context.wait();
        }
    }
}

impl Device for CudaDevice {
    fn name(&self) -> &'static str {
        "cuda"
    }

    fn n_workers(&self) -> usize {
        1
    }

    fn host_threads(&self) -> usize {
        std::thread::available_parallelism().map_or(1, usize::from)
    }

    fn record(&self, recorder: Option<Arc<Recorder>>) {
        *self.recorder.lock().unwrap_or_else(PoisonError::into_inner) = recorder;
    }

    fn room(&self) -> Result<Option<Room>> {
        let room = room(&self.context, &self.gpu)?;
        // The code has its part of it already.
        Ok(Some(Room { reserve_bytes: room.reserve_bytes / 2, ..room }))
    }

    fn counts(&self) -> Counts {
        self.working.lock().unwrap_or_else(PoisonError::into_inner).counts
    }

    fn remarks(&self) -> Vec<String> {
        self.remarks.iter().cloned().chain(self.overlap.remark()).collect()
    }

    fn wait(&self) -> Result<()> {
        let _alone = self.working()?;
        self.context.wait()
    }

    fn prober(&self, effort: Effort) -> Result<Option<Box<dyn Probe>>> {
        let _alone = self.working()?;
        Ok(Some(Box::new(GpuProber::new(&self.context, &self.gpu, effort)?)))
    }

    fn adopt(&self, block: MmapMut, progress: Option<Progress<'_>>) -> Result<Memory> {
        let _alone = self.working()?;
        let memory = self.context.allocate(block.len() as u64)?;
        transfer::upload(&self.context, &memory, &block, progress)?;
        let (address, bytes) = (memory.address, memory.bytes);
        Ok(Memory::Device(DeviceMemory { address, bytes, owner: Box::new(memory) }))
    }

    fn allocate(&self, bytes: u64) -> Result<Memory> {
        self.allocated(bytes)
    }

    fn upload(&self, memory: &mut Memory, at: u64, bytes: &[u8]) -> Result<()> {
        let address = memory.device_address(at, bytes.len() as u64)?;
        self.working()?.ring.send(address, bytes)
    }

    fn download(&self, memory: &Memory, at: u64, out: &mut [u8]) -> Result<()> {
        let bytes = out.len() as u64;
        let mut done = 0;
        self.read_rows(memory, Rows { at, stride: bytes, bytes, n: 1 }, &mut |piece| {
            out[done..done + piece.len()].copy_from_slice(piece);
            done += piece.len();
        })
    }

    fn read_rows(&self, memory: &Memory, rows: Rows, each: &mut dyn FnMut(&[u8])) -> Result<()> {
        let Rows { at, stride, bytes, n } = rows;
        if n == 0 || bytes == 0 {
            return Ok(());
        }
        let address = memory.device_address(at, (n - 1).saturating_mul(stride).saturating_add(bytes))?;
        self.working()?.receiver.receive(Rows { at: address, ..rows }, each)
    }

    fn copy(&self, memory: &mut Memory, from: u64, to: u64, bytes: u64) -> Result<()> {
        let (from, to) = (memory.device_address(from, bytes)?, memory.device_address(to, bytes)?);
        let _alone = self.working()?;
        let size = usize::try_from(bytes).map_err(|e| problem(e.to_string()))?;
        // SAFETY: both ranges lie in memory of this device; pages do not overlap.
        unsafe { result::memcpy_dtod_async(to, from, size, self.context.stream) }
            .map_err(|e| failed("a copy on the GPU", e))
    }

    unsafe fn run(&self, step: &Step<'_>) -> Result<()> {
        let working = &mut *self.working()?;
        self.bring_tables(working, step)?;
        working.counts.steps += 1;
        working.counts.launches += step.launches.len() as u64;
        if let Some(names) = &self.checked {
            return self.run_checked(working, step, names);
        }
        let recorder = self.recorder.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(recorder) = recorder {
            return self.run_recorded(working, step, &recorder);
        }
        if step.sizes.iter().any(|rows| *rows > RECORDED_ROWS) {
            return self.launch_all(working, step, self.overlap.is_on());
        }
        let key = Key::of(step);
        let graph = match working.graphs.get(&key) {
            // Looked up again below: a reference would keep what a recording changes.
            Some(_) => None,
            None => Some(self.record_graph(working, step)?),
        };
        let graph = match graph {
            Some(made) => working.graphs.insert(key, made),
            None => working.graphs.get(&key).ok_or_else(|| problem("a recorded step is lost"))?,
        };
        // SAFETY: recorded with the addresses of memory that is alive, as `Device::run` promises for steps of this workspace.
        unsafe { graph.launch(self.context.stream) }.map_err(|e| failed("a recorded step", e))
    }
}
