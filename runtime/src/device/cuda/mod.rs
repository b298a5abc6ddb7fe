//! An NVIDIA GPU, through its driver's library, which is looked for when it is needed: nothing of CUDA is there to build or to run elsewhere.
//!
//! Everything of a model runs on one stream. A step's arrays go to the device in one copy; its launches are then made one by one, or, where a step of
//! the same rows was made before, as the graph that was recorded of it: a launch of a graph costs the host one call whatever its kernels. Nothing
//! waits for the device until an output is read.

mod context;

pub use self::context::{Gpu, driver_version, gpus, memory_of};

use self::context::{Allocation, Context, Pinned, failed, problem};
use super::launch::StepTables;
use super::{Device, DeviceMemory, Memory, Step};
use crate::artifact::manifest::{self, Manifest};
use crate::error::Result;
use cudarc::driver::{result, sys};
use memmap2::MmapMut;
use std::collections::HashMap;
use std::ffi::{CStr, c_void};
use std::sync::{Arc, Mutex, PoisonError};

/// The function in each PTX module.
const SYMBOL: &CStr = c"kernel";

/// Bytes that are copied to the device at a time while the next ones are brought together.
const STAGE_BYTES: usize = 32 << 20;

/// Scratch that blocks have together, at least what one needs: of kernels that use it, so many blocks run as there is room for.
const SCRATCH_BYTES: u64 = 256 << 20;

/// Most rows of a step that is recorded: longer ones seldom come again.
const RECORDED_ROWS: u64 = 64;

/// Most recorded steps that are kept.
const MOST_GRAPHS: usize = 64;

/// A kernel that the driver has made code of.
#[derive(Debug)]
struct Kernel {
    module: sys::CUmodule,
    function: sys::CUfunction,
    threads: u32,
    /// Of each block.
    scratch_bytes: u64,
    /// Of each block, beside what the code asks for.
    shared_bytes: u32,
}

/// A GPU with one model's code loaded.
#[derive(Debug)]
pub struct CudaDevice {
    kernels: Vec<Kernel>,
    /// Locked while a step is given to the device.
    working: Mutex<Working>,
    context: Arc<Context>,
    gpu: Gpu,
}

// SAFETY: handles of the driver may be used by any thread; each call sets the context first.
unsafe impl Send for CudaDevice {}
// SAFETY: as above; what changes is behind a lock.
unsafe impl Sync for CudaDevice {}

/// Memory that steps use one after the other, and what was recorded of them.
#[derive(Debug)]
struct Working {
    tables: StepTables,
    memory: Option<Allocation>,
    staging: Option<Pinned>,
    scratch: Allocation,
    graphs: HashMap<Key, sys::CUgraphExec>,
}

/// Steps with equal keys are equal launches with equal arguments.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    workspace: u64,
    sizes: Vec<u64>,
    n_sequences: u32,
    /// Entries of each block table.
    entries: Vec<u32>,
    /// Index and tiles.
    launches: Vec<(usize, u32)>,
}

impl Key {
    fn of(step: &Step<'_>) -> Self {
        Key {
            workspace: step.workspace,
            sizes: step.sizes.to_vec(),
            n_sequences: step.n_sequences,
            entries: step.caches.iter().map(|cache| cache.entries).collect(),
            launches: step.launches.iter().map(|launch| (launch.index, launch.tiles)).collect(),
        }
    }
}

impl CudaDevice {
    /// GPU `gpu` with the code of `manifest`: PTX modules, each ended by a zero byte, that begin at `entries`.
    ///
    /// # Errors
    /// There is no such GPU, the driver refuses the code, or there is no memory for the scratch of blocks.
    pub fn new(manifest: &Manifest, code: &[u8], entries: &[u64], gpu: usize) -> Result<Self> {
        let known = gpus()?;
        let gpu = known
            .get(gpu)
            .cloned()
            .ok_or_else(|| problem(format!("there is no GPU {gpu}: the driver has {}, counted from 0", known.len())))?;
        let context = Arc::new(Context::new(gpu.index)?);
        let most = manifest.kernels.iter().map(|kernel| kernel.scratch_bytes).max().unwrap_or(0);
        let scratch = context.allocate(if most == 0 { 1 } else { SCRATCH_BYTES.max(most) })?;
        let mut device = Self {
            kernels: Vec::with_capacity(entries.len()),
            working: Mutex::new(Working {
                tables: StepTables::default(),
                memory: None,
                staging: None,
                scratch,
                graphs: HashMap::new(),
            }),
            context,
            gpu,
        };
        for (kernel, &entry) in manifest.kernels.iter().zip(entries) {
            let text = usize::try_from(entry).ok().and_then(|entry| code.get(entry..));
            let text = text.and_then(|text| CStr::from_bytes_until_nul(text).ok());
            let text = text.ok_or_else(|| problem(format!("the code of kernel {} is damaged", kernel.name)))?;
            device.kernels.push(load(text, kernel)?);
        }
        Ok(device)
    }

    /// Which GPU it is.
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// Gives the launches of a step to the stream.
    fn launch_all(&self, working: &Working, step: &Step<'_>) -> Result<()> {
        let base = working.memory.as_ref().map_or(0, |memory| memory.address);
        for launch in step.launches {
            let kernel = self.kernels.get(launch.kernel);
            let kernel = kernel.ok_or_else(|| problem(format!("the code has no kernel {}", launch.kernel)))?;
            let mut arguments = working.tables.arguments(step, launch, base, working.scratch.address)?;
            let blocks = match kernel.scratch_bytes {
                0 => launch.tiles,
                each => launch.tiles.min(u32::try_from(working.scratch.bytes / each).unwrap_or(u32::MAX)),
            };
            let mut list = [arguments.as_mut_ptr().cast::<c_void>()];
            // SAFETY: the function takes one argument by value, of as many bytes as its kernel's operands ask for, which the driver copies
            // before it returns; the addresses in it are those of live memory, as `Device::run` promises.
            unsafe {
                result::launch_kernel(
                    kernel.function,
                    (blocks, 1, 1),
                    (kernel.threads, 1, 1),
                    kernel.shared_bytes,
                    self.context.stream,
                    &mut list,
                )
            }
            .map_err(|e| failed(&format!("launch {} of kernel {}", launch.index, launch.kernel), e))?;
        }
        Ok(())
    }

    /// Records the launches of a step.
    fn record_graph(&self, working: &Working, step: &Step<'_>) -> Result<sys::CUgraphExec> {
        let stream = self.context.stream;
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream is alive, and nothing else is given to it until the recording ends: `working` is locked.
        unsafe { result::stream::begin_capture(stream, mode) }.map_err(|e| failed("recording a step", e))?;
        let launched = self.launch_all(working, step);
        // SAFETY: begun above.
        let graph = unsafe { result::stream::end_capture(stream) }.map_err(|e| failed("recording a step", e));
        launched?;
        let graph = graph?;
        let mut exec = std::ptr::null_mut();
        // SAFETY: the graph was just recorded and is destroyed once, whether or not it could be made ready.
        let made = unsafe { sys::cuGraphInstantiateWithFlags(&raw mut exec, graph, 0) }.result();
        // SAFETY: as above.
        let _ = unsafe { result::graph::destroy(graph) };
        made.map_err(|e| failed("making a recorded step ready", e))?;
        Ok(exec)
    }

    /// Brings the arrays of a step to the device.
    fn bring_tables(&self, working: &mut Working, step: &Step<'_>) -> Result<()> {
        if working.tables.fill(step) {
            // What was recorded has the old addresses, and may still run.
            self.context.wait()?;
            forget(&mut working.graphs);
        }
        let n = working.tables.bytes().len();
        if working.memory.as_ref().is_none_or(|memory| memory.bytes < n as u64) {
            working.memory = Some(self.context.allocate(n as u64)?);
            working.staging = Some(Pinned::new(&self.context, n)?);
        }
        let (Some(memory), Some(staging)) = (&working.memory, &mut working.staging) else {
            return Err(problem("no memory for the arrays of a step"));
        };
        // The copy of the step before reads the same memory.
        self.context.wait()?;
        let staged = &mut staging.bytes_mut()[..n];
        staged.copy_from_slice(working.tables.bytes());
        // SAFETY: the memory is as large; `staged` stays as it is until the next step has waited.
        unsafe { result::memcpy_htod_async(memory.address, staged, self.context.stream) }
            .map_err(|e| failed("a copy to the GPU", e))
    }
}

/// Gives recorded steps back.
fn forget(graphs: &mut HashMap<Key, sys::CUgraphExec>) {
    // In no order: each is by itself.
    let all: Vec<sys::CUgraphExec> = graphs.drain().map(|(_, exec)| exec).collect();
    for exec in all {
        // SAFETY: made by `record_graph` and destroyed once; the device has waited for it.
        let _ = unsafe { result::graph::exec_destroy(exec) };
    }
}

/// Makes the driver compile a kernel.
fn load(text: &CStr, of: &manifest::Kernel) -> Result<Kernel> {
    let (name, scratch_bytes) = (&of.name, of.scratch_bytes);
    let shared_bytes = u32::try_from(of.shared_bytes).map_err(|e| problem(format!("kernel {name}: {e}")))?;
    // SAFETY: the text ends in a zero byte; the driver copies it.
    let module = unsafe { result::module::load_data(text.as_ptr().cast()) }
        .map_err(|e| failed(&format!("compiling kernel {name} for this GPU"), e))?;
    let found = || -> Result<(sys::CUfunction, i32), result::DriverError> {
        // SAFETY: the module was just loaded.
        let function = unsafe { result::module::get_function(module, SYMBOL.to_owned()) }?;
        use sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK;
        // SAFETY: the function is the module's, which is loaded.
        let threads =
            unsafe { result::function::get_function_attribute(function, CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK) }?;
        Ok((function, threads))
    };
    // The code says with how many threads it runs, and no other number is allowed.
    let (function, threads) = found().map_err(|e| failed(&format!("loading kernel {name}"), e))?;
    if shared_bytes > 0 {
        use sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        // SAFETY: the function is the module's, which is loaded.
        unsafe {
            result::function::set_function_attribute(
                function,
                CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                shared_bytes.cast_signed(),
            )
        }
        .map_err(|e| failed(&format!("asking for {shared_bytes} bytes of shared memory for kernel {name}"), e))?;
    }
    Ok(Kernel { module, function, threads: threads as u32, scratch_bytes, shared_bytes })
}

impl Drop for CudaDevice {
    fn drop(&mut self) {
        if self.context.enter().is_err() {
            return;
        }
        let _ = self.context.wait();
        forget(&mut self.working.get_mut().unwrap_or_else(PoisonError::into_inner).graphs);
        for kernel in &self.kernels {
            // SAFETY: loaded once, unloaded once, and nothing runs.
            let _ = unsafe { result::module::unload(kernel.module) };
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

    fn adopt(&self, block: MmapMut) -> Result<Memory> {
        let memory = self.context.allocate(block.len() as u64)?;
        let mut stages = [Pinned::new(&self.context, STAGE_BYTES)?, Pinned::new(&self.context, STAGE_BYTES)?];
        let mut copied: [Option<sys::CUevent>; 2] = [None, None];
        let result = (|| {
            for (i, part) in block.chunks(STAGE_BYTES).enumerate() {
                if let Some(event) = copied[i % 2] {
                    // SAFETY: created below and alive.
                    unsafe { result::event::synchronize(event) }.map_err(|e| failed("a copy to the GPU", e))?;
                }
                let stage = &mut stages[i % 2].bytes_mut()[..part.len()];
                stage.copy_from_slice(part);
                let address = memory.address + (i * STAGE_BYTES) as u64;
                let event = match copied[i % 2] {
                    Some(event) => event,
                    None => {
                        let flags = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING;
                        let event = result::event::create(flags).map_err(|e| failed("an event", e))?;
                        *copied[i % 2].insert(event)
                    }
                };
                // SAFETY: the range lies in `memory`; the stage is written again only after its event.
                unsafe { result::memcpy_htod_async(address, stage, self.context.stream) }
                    .map_err(|e| failed("a copy to the GPU", e))?;
                // SAFETY: both are alive.
                unsafe { result::event::record(event, self.context.stream) }.map_err(|e| failed("an event", e))?;
            }
            self.context.wait()
        })();
        for event in copied.into_iter().flatten() {
            // SAFETY: created above, destroyed once.
            let _ = unsafe { result::event::destroy(event) };
        }
        result?;
        let (address, bytes) = (memory.address, memory.bytes);
        Ok(Memory::Device(DeviceMemory { address, bytes, owner: Box::new(memory) }))
    }

    fn allocate(&self, bytes: u64) -> Result<Memory> {
        let memory = self.context.allocate(bytes)?;
        let (address, bytes) = (memory.address, memory.bytes);
        Ok(Memory::Device(DeviceMemory { address, bytes, owner: Box::new(memory) }))
    }

    fn upload(&self, memory: &mut Memory, at: u64, bytes: &[u8]) -> Result<()> {
        let address = memory.device_address(at, bytes.len() as u64)?;
        self.context.upload(address, bytes)
    }

    fn download(&self, memory: &Memory, at: u64, out: &mut [u8]) -> Result<()> {
        let address = memory.device_address(at, out.len() as u64)?;
        self.context.enter()?;
        // SAFETY: the range lies in memory of this device; `out` is not touched until the copy is done.
        unsafe { result::memcpy_dtoh_async(out, address, self.context.stream) }
            .map_err(|e| failed("a copy from the GPU", e))?;
        self.context.wait()
    }

    fn copy(&self, memory: &mut Memory, from: u64, to: u64, bytes: u64) -> Result<()> {
        let (from, to) = (memory.device_address(from, bytes)?, memory.device_address(to, bytes)?);
        self.context.enter()?;
        let size = usize::try_from(bytes).map_err(|e| problem(e.to_string()))?;
        // SAFETY: both ranges lie in memory of this device; pages do not overlap.
        unsafe { result::memcpy_dtod_async(to, from, size, self.context.stream) }
            .map_err(|e| failed("a copy on the GPU", e))
    }

    unsafe fn run(&self, step: &Step<'_>) -> Result<()> {
        self.context.enter()?;
        let mut working = self.working.lock().unwrap_or_else(PoisonError::into_inner);
        self.bring_tables(&mut working, step)?;
        if step.sizes.iter().any(|rows| *rows > RECORDED_ROWS) {
            return self.launch_all(&working, step);
        }
        let key = Key::of(step);
        let known = working.graphs.get(&key).copied();
        let exec = match known {
            Some(exec) => exec,
            None => {
                if working.graphs.len() >= MOST_GRAPHS {
                    self.context.wait()?;
                    forget(&mut working.graphs);
                }
                let exec = self.record_graph(&working, step)?;
                working.graphs.insert(key, exec);
                exec
            }
        };
        // SAFETY: recorded with the addresses of memory that is alive, as `Device::run` promises for steps of this workspace.
        unsafe { result::graph::launch(exec, self.context.stream) }.map_err(|e| failed("a recorded step", e))
    }
}
