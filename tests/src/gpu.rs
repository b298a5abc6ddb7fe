//! A GPU that is none: runs the PTX of an artifact on the processor, instruction by instruction, and refuses what a GPU would not survive.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use memmap2::MmapMut;
use xfc_codegen::driver::Options;
use xfc_emulator::{Launch, Memory as Emulated, Module, launch};
use xfc_runtime::artifact::container::Variant;
use xfc_runtime::artifact::{Artifact, HostFeatures};
use xfc_runtime::device::cuda::Gpu;
use xfc_runtime::device::launch::StepTables;
use xfc_runtime::device::{Device, DeviceMemory, Memory, Owner, Step};
use xfc_runtime::error::RuntimeError;
use xfc_runtime::model::Model;
use xfc_runtime::weights::{self, Checkpoint, Progress};

use crate::Result;
use crate::case::{Case, Layout};
use crate::compile::artifact;

type Done<T> = std::result::Result<T, RuntimeError>;

/// Memory begins at multiples of this, and of no more.
const ALIGN: u64 = 256;

/// Blocks that run at the same time, where each has scratch in memory.
const BLOCKS: u32 = 3;

/// The memory of an emulated device.
#[derive(Clone, Default)]
struct Shared(Arc<Mutex<Emulated>>);

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Emulated> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Frees its memory when it is dropped.
struct Allocation(Shared, u64);

impl Owner for Allocation {}

impl fmt::Debug for Allocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "memory at {:#x}", self.1)
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        // What was freed before is a defect of the harness, and this is no place for a second panic.
        let _ = self.0.lock().free(self.1);
    }
}

struct Kernel {
    name: String,
    module: Module,
    threads: [u32; 3],
    param_bytes: usize,
    /// Of a block, in the device's memory.
    scratch_bytes: u64,
    /// Of a block, beside what the code asks for.
    shared_bytes: u32,
    /// Its launches may begin before those before them have ended.
    waits: bool,
}

/// A device that emulates one.
pub struct EmulatedGpu {
    kernels: Vec<Kernel>,
    memory: Shared,
    tables: Mutex<StepTables>,
}

impl fmt::Debug for EmulatedGpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "an emulated GPU with {} kernels", self.kernels.len())
    }
}

impl EmulatedGpu {
    /// With the code of a variant.
    pub fn new(variant: &Variant<'_>) -> Result<Self> {
        Self::with(variant, |_, text| text.to_owned())
    }

    /// With what `change` makes of the PTX of each kernel, given its number.
    pub fn with(variant: &Variant<'_>, change: impl Fn(usize, &str) -> String) -> Result<Self> {
        let (code, entries) = variant.code();
        let kernels = variant.manifest().kernels.iter().zip(entries).enumerate().map(|(number, (kernel, entry))| {
            let text = code[*entry as usize..].split(|byte| *byte == 0).next().unwrap_or_default();
            let named = |error: &dyn fmt::Display| format!("{}: {error}", kernel.name);
            let text = change(number, std::str::from_utf8(text)?);
            let module = Module::parse(&text).map_err(|error| named(&error))?;
            let function = module.kernel("kernel").ok_or_else(|| named(&"there is no function `kernel`"))?;
            let threads = function.reqntid.ok_or_else(|| named(&"says no number of threads"))?;
            let param_bytes =
                function.params.iter().map(|param| param.offset + param.bytes).max().unwrap_or(0) as usize;
            let (name, scratch_bytes) = (kernel.name.clone(), kernel.scratch_bytes);
            let shared_bytes = u32::try_from(kernel.shared_bytes)?;
            Ok(Kernel { name, threads, param_bytes, scratch_bytes, shared_bytes, waits: kernel.waits, module })
        });
        let kernels = kernels.collect::<Result<Vec<_>>>()?;
        Ok(EmulatedGpu { kernels, memory: Shared::default(), tables: Mutex::default() })
    }

    fn allocated(&self, bytes: u64) -> (u64, Memory) {
        let address = self.memory.lock().alloc(bytes.max(1), ALIGN);
        let owner = Box::new(Allocation(self.memory.clone(), address));
        (address, Memory::Device(DeviceMemory { address, bytes, owner }))
    }
}

fn fault(what: impl fmt::Display) -> RuntimeError {
    RuntimeError::Device { device: "emulated", problem: what.to_string() }
}

impl Device for EmulatedGpu {
    fn name(&self) -> &'static str {
        "emulated"
    }

    fn n_workers(&self) -> usize {
        1
    }

    fn adopt(&self, block: MmapMut, _progress: Option<Progress<'_>>) -> Done<Memory> {
        let (address, memory) = self.allocated(block.len() as u64);
        self.memory.lock().write(address, &block).map_err(fault)?;
        Ok(memory)
    }

    fn allocate(&self, bytes: u64) -> Done<Memory> {
        Ok(self.allocated(bytes).1)
    }

    fn upload(&self, memory: &mut Memory, at: u64, bytes: &[u8]) -> Done<()> {
        let address = memory.device_address(at, bytes.len() as u64)?;
        self.memory.lock().write(address, bytes).map_err(fault)
    }

    fn download(&self, memory: &Memory, at: u64, out: &mut [u8]) -> Done<()> {
        let address = memory.device_address(at, out.len() as u64)?;
        self.memory.lock().read(address, out).map_err(fault)
    }

    fn copy(&self, memory: &mut Memory, from: u64, to: u64, bytes: u64) -> Done<()> {
        let mut copied = vec![0; bytes as usize];
        self.download(memory, from, &mut copied)?;
        self.upload(memory, to, &copied)
    }

    #[expect(unsafe_code, reason = "the trait's promise; every access is checked here")]
    unsafe fn run(&self, step: &Step<'_>) -> Done<()> {
        let mut tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        tables.fill(step);
        let mut memory = self.memory.lock();
        let base = memory.alloc(tables.bytes().len() as u64, ALIGN);
        memory.write(base, tables.bytes()).map_err(fault)?;
        for (number, one) in step.launches.iter().enumerate() {
            let kernel = &self.kernels[one.kernel];
            let scratch = match kernel.scratch_bytes {
                0 => None,
                each => Some(memory.alloc_uninit(each * u64::from(BLOCKS), ALIGN)),
            };
            let blocks = if scratch.is_some() { one.tiles.min(BLOCKS) } else { one.tiles };
            let arguments = tables.arguments(step, one, base, scratch.unwrap_or(0))?;
            let arguments = arguments
                .get(..kernel.param_bytes)
                .ok_or_else(|| fault(format!("{}: {} bytes of arguments are too few", kernel.name, arguments.len())))?;
            let mut how = Launch::new([blocks, 1, 1], kernel.threads, arguments);
            how.dynamic_shared = kernel.shared_bytes;
            // As a device launches them: see `device/cuda/launching.rs`.
            how.overlaps = kernel.waits && number > 0;
            let stats = launch(&kernel.module, "kernel", &mut memory, &how)
                .map_err(|error| fault(format!("{}: {error}", kernel.name)))?;
            if stats.prefetched_in_vain > 0 {
                let n = stats.prefetched_in_vain;
                return Err(fault(format!("{}: {n} bytes are asked for ahead and not read", kernel.name)));
            }
            if let Some(scratch) = scratch {
                memory.free(scratch).map_err(fault)?;
            }
        }
        memory.free(base).map_err(fault)
    }
}

/// A machine with a GPU on which all older code runs, and that for 9.0 alone.
pub fn host() -> HostFeatures {
    host_of((9, 0))
}

fn host_of(capability: (u32, u32)) -> HostFeatures {
    let gpu = Gpu { index: 0, name: "emulated".to_owned(), capability, memory_bytes: 0 };
    HostFeatures { gpu: Some(gpu), ..HostFeatures::detect() }
}

/// The variant of an artifact for a target, on an emulated GPU, with the weights of a checkpoint.
pub fn load(artifact: &Artifact, target: &str, checkpoint: &Checkpoint) -> Result<Arc<Model>> {
    load_changed(artifact, target, checkpoint, |_, text| text.to_owned())
}

/// The same with what `change` makes of the PTX of each kernel, given its number.
pub fn load_changed(
    artifact: &Artifact,
    target: &str,
    checkpoint: &Checkpoint,
    change: impl Fn(usize, &str) -> String,
) -> Result<Arc<Model>> {
    // Newer code asks for a newer GPU, on which that for one alone does not run.
    let newer = host_of((10, 0));
    let arch = target.strip_prefix("cuda:").unwrap_or_default();
    let is_newer = newer.gpu.as_ref().is_some_and(|gpu| gpu.runs(arch));
    let host = if is_newer { newer } else { host() };
    let variant = artifact.select(&host, Some(target))?;
    let packed = weights::bind(variant.manifest(), checkpoint, 1, None)?;
    let device = EmulatedGpu::with(&variant, change)?;
    Ok(Model::on_device(Arc::clone(variant.manifest()), Arc::new(device), packed)?)
}

/// A reference case, compiled for a GPU and loaded on an emulated one.
pub fn load_case(case: &Case, target: &str, options: &Options) -> Result<Arc<Model>> {
    let artifact = Artifact::from_bytes(artifact(case, &[target], options)?)?;
    let checkpoint = case.checkpoint(Layout::Single)?;
    load(&artifact, target, &Checkpoint::open(checkpoint.path())?)
}
