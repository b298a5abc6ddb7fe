//! What the driver gives: the GPUs there are, a context and a stream of one, memory on it and memory that it copies from.

use crate::device::Owner;
use crate::error::{Result, RuntimeError};
use crate::memory::human;
use cudarc::driver::{result, sys};
use std::ffi::c_void;
use std::sync::{Arc, OnceLock};

/// A GPU of this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gpu {
    /// Which, as the driver counts.
    pub index: usize,
    /// The maker's name.
    pub name: String,
    /// Compute capability: major and minor.
    pub capability: (u32, u32),
    /// Bytes of memory.
    pub memory_bytes: u64,
}

impl Gpu {
    /// Whether it runs code for an architecture, by its name in PTX: code runs on later ones too, but where the name ends in a letter on its own alone.
    pub fn runs(&self, arch: &str) -> bool {
        let Some(number) = arch.strip_prefix("sm_") else { return false };
        let own = self.capability.0 * 10 + self.capability.1;
        match number.strip_suffix('a') {
            Some(number) => number.parse() == Ok(own),
            None => number.parse().is_ok_and(|number: u32| number <= own),
        }
    }
}

/// The GPU of this number.
///
/// # Errors
/// There is none: names those there are. As [`gpus`].
pub fn gpu(index: usize) -> Result<Gpu> {
    let known = gpus()?;
    known.get(index).cloned().ok_or_else(|| none_of(index, &known))
}

fn none_of(index: usize, known: &[Gpu]) -> RuntimeError {
    let names: Vec<String> = known.iter().map(|gpu| format!("{} ({})", gpu.index, gpu.name)).collect();
    RuntimeError::request(
        format!("there is no GPU {index}: this machine has {}", names.join(", ")),
        "give `--gpu` one of these numbers",
    )
}

/// The GPUs that the driver offers.
///
/// # Errors
/// There is no driver, or it has no GPU.
pub fn gpus() -> Result<Vec<Gpu>> {
    start()?;
    let n = result::device::get_count().map_err(|e| failed("counting GPUs", e))?;
    let gpu = |index: i32| {
        let device = result::device::get(index)?;
        use sys::CUdevice_attribute_enum as Attribute;
        // SAFETY: the device is one that the driver has just named.
        let attribute = |which| unsafe { result::device::get_attribute(device, which) };
        let major = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
        let minor = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
        // SAFETY: as above.
        let memory = unsafe { result::device::total_mem(device)? };
        Ok(Gpu {
            index: index as usize,
            name: result::device::get_name(device)?,
            capability: (major as u32, minor as u32),
            memory_bytes: memory as u64,
        })
    };
    let gpus = (0..n).map(gpu).collect::<Result<Vec<_>, _>>().map_err(|e| failed("asking what GPUs there are", e))?;
    if gpus.is_empty() { Err(problem("the driver has no GPU")) } else { Ok(gpus) }
}

/// The newest version of CUDA that the driver knows: major and minor.
///
/// # Errors
/// There is no driver.
pub fn driver_version() -> Result<(u32, u32)> {
    start()?;
    let mut version = 0;
    // SAFETY: writes one number.
    unsafe { sys::cuDriverGetVersion(&raw mut version) }.result().map_err(|e| failed("asking for the version", e))?;
    let version = u32::try_from(version).unwrap_or(0);
    Ok((version / 1000, version % 1000 / 10))
}

/// Bytes of a GPU's memory that are free, once this process has a context on it, and all.
///
/// # Errors
/// There is no such GPU, or it cannot be used.
pub fn memory_of(gpu: usize) -> Result<(u64, u64)> {
    Context::new(gpu)?.memory()
}

/// Loads the driver's library, once.
fn start() -> Result<()> {
    started().map_err(|failure| problem(failure.text))
}

/// Whether this machine has no GPU that code could run on, and nothing is wrong with it: no driver, or a driver without a GPU.
pub fn is_absent() -> bool {
    match started() {
        Err(failure) => failure.is_absent,
        Ok(()) => result::device::get_count() == Ok(0),
    }
}

/// Why the driver does not start.
#[derive(Clone, Debug)]
struct Failure {
    text: String,
    /// There is no driver, or no GPU.
    is_absent: bool,
}

fn started() -> Result<(), Failure> {
    static STARTED: OnceLock<Result<(), Failure>> = OnceLock::new();
    let started = STARTED.get_or_init(|| {
        // SAFETY: asks whether a library of that name can be loaded, which runs its constructors and nothing else.
        if !unsafe { sys::is_culib_present() } {
            let text = "no CUDA driver: the library libcuda.so is not found".to_owned();
            return Err(Failure { text, is_absent: true });
        }
        result::init().map_err(|e| Failure {
            text: format!("the CUDA driver does not start: {}", text_of(e)),
            // A library that stands in for the driver's where code is built.
            is_absent: matches!(e.0, sys::CUresult::CUDA_ERROR_NO_DEVICE | sys::CUresult::CUDA_ERROR_STUB_LIBRARY),
        })
    });
    started.clone()
}

/// An error's name and what the driver says of it.
pub(super) fn text_of(error: result::DriverError) -> String {
    let shown = error.error_string().ok().and_then(|s| s.to_str().ok()).unwrap_or("no description").to_owned();
    format!("{:?} ({shown})", error.0)
}

pub(super) fn problem(problem: impl Into<String>) -> RuntimeError {
    RuntimeError::Device { device: "cuda", problem: problem.into() }
}

pub(super) fn failed(doing: &str, error: result::DriverError) -> RuntimeError {
    problem(format!("{doing} failed: {}", text_of(error)))
}

/// A context and a stream of one GPU.
#[derive(Debug)]
pub(super) struct Context {
    device: sys::CUdevice,
    context: sys::CUcontext,
    /// The one on which everything runs, in order.
    pub(super) stream: sys::CUstream,
}

// SAFETY: handles of the driver may be used by any thread; each call below sets the context first.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

impl Context {
    pub(super) fn new(gpu: usize) -> Result<Self> {
        start()?;
        let device = result::device::get(gpu as i32).map_err(|e| failed(&format!("opening GPU {gpu}"), e))?;
        // SAFETY: the device exists; what is retained here is released once, when this is dropped.
        let context =
            unsafe { result::primary_ctx::retain(device) }.map_err(|e| failed(&format!("opening GPU {gpu}"), e))?;
        let mut this = Self { device, context, stream: result::stream::null() };
        this.enter()?;
        this.stream =
            result::stream::create(result::stream::StreamKind::NonBlocking).map_err(|e| failed("a stream", e))?;
        Ok(this)
    }

    /// Makes the context that of the calling thread.
    pub(super) fn enter(&self) -> Result<()> {
        // SAFETY: the context is retained until this is dropped.
        unsafe { result::ctx::set_current(self.context) }.map_err(|e| failed("entering the GPU", e))
    }

    /// Waits until all that was asked for is done.
    pub(super) fn wait(&self) -> Result<()> {
        self.wait_plainly().map_err(|e| failed("a step", e))
    }

    /// The same, with the driver's own error.
    pub(super) fn wait_plainly(&self) -> Result<(), result::DriverError> {
        // SAFETY: the stream is this context's and alive.
        unsafe { result::stream::synchronize(self.stream) }
    }

    /// Blocks of threads run on so many processors at a time.
    pub(super) fn processors(&self) -> Result<u32> {
        let which = sys::CUdevice_attribute_enum::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;
        // SAFETY: the device is one that the driver has named.
        let n = unsafe { result::device::get_attribute(self.device, which) };
        n.map(|n| n.max(1) as u32).map_err(|e| failed("asking for the processors", e))
    }

    /// Bytes of memory: free, and all.
    pub(super) fn memory(&self) -> Result<(u64, u64)> {
        self.enter()?;
        let (free, all) = result::mem_get_info().map_err(|e| failed("asking for the memory", e))?;
        Ok((free as u64, all as u64))
    }

    /// Memory of zeros.
    pub(super) fn allocate(self: &Arc<Self>, bytes: u64) -> Result<Allocation> {
        self.enter()?;
        let size = usize::try_from(bytes.max(1)).map_err(|e| problem(e.to_string()))?;
        // SAFETY: the context is the calling thread's.
        let address = unsafe { result::malloc_sync(size) }.map_err(|error| {
            let free = result::mem_get_info().map_or(0, |(free, _)| free as u64);
            problem(format!("no memory for {} more ({} are free): {}", human(bytes), human(free), text_of(error)))
        })?;
        let memory = Allocation { context: Arc::clone(self), address, bytes };
        // SAFETY: the memory was just given and is as large.
        unsafe { result::memset_d8_async(address, 0, size, self.stream) }.map_err(|e| failed("clearing memory", e))?;
        self.wait()?;
        Ok(memory)
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // Nothing is left to be done where the driver refuses: the process ends, or another context goes on.
        if self.enter().is_ok() && !self.stream.is_null() {
            // SAFETY: created in `new`, destroyed once.
            let _ = unsafe { result::stream::destroy(self.stream) };
        }
        // SAFETY: retained in `new`, released once.
        let _ = unsafe { result::primary_ctx::release(self.device) };
    }
}

/// A point in the stream.
#[derive(Debug)]
pub(super) struct Event {
    context: Arc<Context>,
    event: sys::CUevent,
}

// SAFETY: handles of the driver may be used by any thread; each call sets the context first.
unsafe impl Send for Event {}

impl Event {
    /// For waiting alone, which costs less.
    pub(super) fn new(context: &Arc<Context>) -> Result<Self> {
        Self::with(context, sys::CUevent_flags::CU_EVENT_DISABLE_TIMING)
    }

    /// One that knows when it was passed.
    pub(super) fn timed(context: &Arc<Context>) -> Result<Self> {
        Self::with(context, sys::CUevent_flags::CU_EVENT_DEFAULT)
    }

    fn with(context: &Arc<Context>, flags: sys::CUevent_flags) -> Result<Self> {
        context.enter()?;
        let event = result::event::create(flags).map_err(|e| failed("an event", e))?;
        Ok(Self { context: Arc::clone(context), event })
    }

    /// Stands behind all that was asked for until now.
    pub(super) fn record(&self) -> Result<()> {
        // SAFETY: event and stream are of one context and alive.
        unsafe { result::event::record(self.event, self.context.stream) }.map_err(|e| failed("an event", e))
    }

    /// Waits until the device has passed it; at once where it was never recorded.
    pub(super) fn wait(&self) -> Result<()> {
        // SAFETY: the event is alive.
        unsafe { result::event::synchronize(self.event) }.map_err(|e| failed("a step", e))
    }

    /// Seconds from an earlier event to this one; the device has passed both.
    pub(super) fn seconds_since(&self, earlier: &Event) -> Result<f64> {
        // SAFETY: both are alive, timed and of one stream.
        let ms = unsafe { result::event::elapsed(earlier.event, self.event) }.map_err(|e| failed("timing", e))?;
        Ok(f64::from(ms) * 1e-3)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if self.context.enter().is_ok() {
            // SAFETY: created in `with`, destroyed once; the driver keeps what is still in use.
            let _ = unsafe { result::event::destroy(self.event) };
        }
    }
}

/// Memory of the device.
#[derive(Debug)]
pub(super) struct Allocation {
    context: Arc<Context>,
    pub(super) address: u64,
    pub(super) bytes: u64,
}

impl Owner for Allocation {}

impl Drop for Allocation {
    fn drop(&mut self) {
        if self.context.enter().is_ok() {
            // SAFETY: given by `malloc_sync` and freed once; the driver waits for kernels that use it.
            let _ = unsafe { result::free_sync(self.address) };
        }
    }
}

/// Host memory that the device copies from by itself.
#[derive(Debug)]
pub(super) struct Pinned {
    context: Arc<Context>,
    start: *mut c_void,
    bytes: usize,
}

// SAFETY: plain memory, used through `&mut`.
unsafe impl Send for Pinned {}

impl Pinned {
    pub(super) fn new(context: &Arc<Context>, bytes: usize) -> Result<Self> {
        context.enter()?;
        // SAFETY: the context is the calling thread's.
        let start = unsafe { result::malloc_host(bytes.max(1), 0) }.map_err(|e| failed("pinned memory", e))?;
        Ok(Self { context: Arc::clone(context), start, bytes })
    }

    /// How many bytes it has.
    pub(super) fn len(&self) -> usize {
        self.bytes
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: `start` is `bytes` bytes of memory that only this owns; any bytes are valid.
        unsafe { std::slice::from_raw_parts_mut(self.start.cast(), self.bytes) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if self.context.enter().is_ok() {
            // SAFETY: given by `malloc_host` and freed once.
            let _ = unsafe { result::free_host(self.start) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_runs_where() {
        let gpu = |major, minor| Gpu { index: 0, name: String::new(), capability: (major, minor), memory_bytes: 0 };
        assert!(gpu(9, 0).runs("sm_80") && gpu(9, 0).runs("sm_90a") && gpu(9, 0).runs("sm_89"));
        assert!(!gpu(10, 0).runs("sm_90a") && gpu(10, 0).runs("sm_100") && gpu(12, 0).runs("sm_100"));
        assert!(!gpu(7, 5).runs("sm_80") && !gpu(9, 0).runs("sm_100") && !gpu(9, 0).runs("avx2"));
    }

    #[test]
    fn a_gpu_that_is_not_there_is_told_from_those_that_are() {
        let gpu = |index, name: &str| Gpu { index, name: name.to_owned(), capability: (9, 0), memory_bytes: 0 };
        let error = none_of(3, &[gpu(0, "One"), gpu(1, "Two")]);
        assert_eq!(error.to_string(), "there is no GPU 3: this machine has 0 (One), 1 (Two)");
        assert!(error.help().is_some_and(|help| help.contains("--gpu")));
    }

    #[test]
    fn without_a_driver_the_error_says_so() {
        if let Err(error) = gpus() {
            let shown = error.to_string();
            assert!(shown.contains("driver"), "{shown}");
        }
    }
}
