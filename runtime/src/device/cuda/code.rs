//! The code of a model on a GPU: the driver makes machine code of PTX, which is kept for the next start.
//!
//! ```text
//! cubin │ blake3 of it: 32 bytes │ magic
//! ```
//!
//! The name of a file is a hash of the PTX, the GPU's compute capability and the driver's version. A file that is not whole, or that the driver
//! refuses, is made again. Kernels are compiled on as many threads as there are processors.

use super::context::{Context, Gpu, driver_version, failed, problem, text_of};
use crate::artifact::manifest::Manifest;
use crate::error::{Result, RuntimeError};
use crate::files::write_atomic;
use crate::folder::{CacheFolder, Kind};
use cudarc::driver::{result, sys};
use std::ffi::{CStr, c_void};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The function in each PTX module.
const SYMBOL: &CStr = c"kernel";
/// Raised when what a file holds changes.
const MAGIC: &[u8; 8] = b"xfccode1";
/// Bytes of a hash.
const HASH_BYTES: usize = 32;
/// Bytes for what the driver says of code that it refuses.
const LOG_BYTES: usize = 8192;

/// A kernel that the driver has made code of.
#[derive(Debug)]
pub(super) struct Kernel {
    context: Arc<Context>,
    module: sys::CUmodule,
    pub(super) function: sys::CUfunction,
    /// For people.
    pub(super) name: String,
    /// Of a block: the code says with how many it runs (`.reqntid`), and no other number is allowed.
    pub(super) threads: u32,
    /// Of each block, in the device's memory.
    pub(super) scratch_bytes: u64,
    /// Shared memory of each block, beside what the code asks for.
    pub(super) shared_bytes: u32,
    /// It waits by itself for the launches before it.
    pub(super) waits: bool,
}

impl Kernel {
    /// The same, for launches that bring so much shared memory.
    fn with_shared(mut self, bytes: u64, name: &str) -> Result<Self> {
        if bytes == 0 {
            return Ok(self);
        }
        use sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES as BROUGHT;
        let wanted = i32::try_from(bytes).map_err(|e| problem(format!("kernel {name}: {e}")))?;
        self.context.enter()?;
        // SAFETY: the function is of the module, which is loaded.
        unsafe { result::function::set_function_attribute(self.function, BROUGHT, wanted) }
            .map_err(|e| failed(&format!("asking for {bytes} bytes of shared memory for kernel {name}"), e))?;
        self.shared_bytes = wanted.cast_unsigned();
        Ok(self)
    }
}

// SAFETY: handles of the driver may be used by any thread; each call sets the context first.
unsafe impl Send for Kernel {}

impl Drop for Kernel {
    fn drop(&mut self) {
        if self.context.enter().is_ok() {
            // SAFETY: loaded once, unloaded once; the driver waits for what runs.
            let _ = unsafe { result::module::unload(self.module) };
        }
    }
}

/// The kernels of a model.
#[derive(Debug)]
pub(super) struct Loaded {
    /// In the manifest's order.
    pub(super) kernels: Vec<Kernel>,
    /// How many of them were compiled by an earlier start.
    pub(super) kept: usize,
    /// Why what was compiled is not kept.
    pub(super) trouble: Option<String>,
}

/// A kernel, and what is to be kept of it.
struct Made {
    kernel: Kernel,
    fresh: Option<(PathBuf, Vec<u8>)>,
    was_kept: bool,
    /// What the driver's linker said where it made nothing of code that the driver loads all the same.
    unlinked: Option<RuntimeError>,
}

/// Loads the kernels of `manifest`: PTX modules, each ended by a zero byte, that begin at `entries`.
///
/// # Errors
/// The driver refuses the code.
pub(super) fn load_all(
    context: &Arc<Context>,
    gpu: &Gpu,
    manifest: &Manifest,
    (code, entries): (&[u8], &[u64]),
    keep: Option<&CacheFolder>,
) -> Result<Loaded> {
    let mut texts = Vec::with_capacity(entries.len());
    for (kernel, &entry) in manifest.kernels.iter().zip(entries) {
        let text = usize::try_from(entry).ok().and_then(|entry| code.get(entry..));
        let text = text.and_then(|text| CStr::from_bytes_until_nul(text).ok());
        texts.push((kernel, text.ok_or_else(|| problem(format!("the code of kernel {} is damaged", kernel.name)))?));
    }
    let version = driver_version()?;
    let make = |index: usize| -> Result<Made> {
        let (kernel, text) = texts[index];
        let path = keep.map(|folder| folder.path(Kind::Code, &key(text, gpu.capability, version)));
        let of = |image: &[u8]| -> Result<Kernel> {
            let mut loaded = load(context, (image, text), &kernel.name, kernel.scratch_bytes)?
                .with_shared(kernel.shared_bytes, &kernel.name)?;
            loaded.waits = kernel.waits;
            Ok(loaded)
        };
        if let (Some(folder), Some(path)) = (keep, &path)
            && let Some(kernel) = read(path).and_then(|cubin| of(&cubin).ok())
        {
            folder.touch(path);
            return Ok(Made { kernel, fresh: None, was_kept: true, unlinked: None });
        }
        match compile(context, gpu, text, &kernel.name).and_then(|cubin| Ok((of(&cubin)?, cubin))) {
            Ok((kernel, cubin)) => {
                let fresh = path.map(|path| (path, cubin));
                Ok(Made { kernel, fresh, was_kept: false, unlinked: None })
            }
            // Without its linker the driver compiles all the same, and nothing is kept.
            Err(error) => match of(text.to_bytes_with_nul()) {
                Ok(kernel) => Ok(Made { kernel, fresh: None, was_kept: false, unlinked: Some(error) }),
                Err(_) => Err(error),
            },
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(texts.len());
    let next = AtomicUsize::new(0);
    let work = || -> Result<Vec<(usize, Made)>> {
        context.enter()?;
        let mut made = Vec::new();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= texts.len() {
                return Ok(made);
            }
            made.push((index, make(index)?));
        }
    };
    let mut made = std::thread::scope(|scope| -> Result<Vec<(usize, Made)>> {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
        let mut all = work();
        for other in others {
            let theirs = other.join().unwrap_or_else(|_| Err(problem("a thread that compiled kernels panicked")));
            all = all.and_then(|mut all| {
                all.extend(theirs?);
                Ok(all)
            });
        }
        all
    })?;
    made.sort_by_key(|(index, _)| *index);
    let first_unlinked = made.iter_mut().find_map(|(_, made)| made.unlinked.take()).filter(|_| keep.is_some());
    let fresh: Vec<&(PathBuf, Vec<u8>)> = made.iter().filter_map(|(_, made)| made.fresh.as_ref()).collect();
    let trouble = keep.and_then(|folder| keep_all(folder, &fresh).err()).or(first_unlinked).map(|error| {
        let why = error.help().map(|help| format!(" ({help})")).unwrap_or_default();
        format!("the compiled kernels were not kept for the next start: {error}{why}")
    });
    let kept = made.iter().filter(|(_, made)| made.was_kept).count();
    Ok(Loaded { kernels: made.into_iter().map(|(_, made)| made.kernel).collect(), kept, trouble })
}

/// Writes what was compiled. Where there can be no room for all of it, nothing is written, and that is no trouble: a cap was set.
fn keep_all(folder: &CacheFolder, fresh: &[&(PathBuf, Vec<u8>)]) -> Result<()> {
    let bytes = |cubin: &Vec<u8>| (cubin.len() + HASH_BYTES + MAGIC.len()) as u64;
    if fresh.is_empty() || !folder.make_room(Kind::Code, fresh.iter().map(|(_, cubin)| bytes(cubin)).sum())? {
        return Ok(());
    }
    fresh.iter().try_for_each(|(path, cubin)| write_atomic(path, &sealed(cubin)))
}

/// What a file is called.
fn key(text: &CStr, capability: (u32, u32), version: (u32, u32)) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update(MAGIC);
    for number in [capability.0, capability.1, version.0, version.1] {
        hasher.update(&number.to_le_bytes());
    }
    hasher.update(text.to_bytes());
    hasher.finalize().to_hex().as_str()[..32].to_owned()
}

/// What a file holds.
fn sealed(cubin: &[u8]) -> Vec<u8> {
    [cubin, blake3::hash(cubin).as_bytes(), MAGIC].concat()
}

/// The code of a file; `None` where there is none, or it is not what was written.
fn read(path: &Path) -> Option<Vec<u8>> {
    opened(fs::read(path).ok()?)
}

fn opened(mut file: Vec<u8>) -> Option<Vec<u8>> {
    let length = file.len().checked_sub(HASH_BYTES + MAGIC.len())?;
    let (cubin, end) = file.split_at(length);
    if end[HASH_BYTES..] != MAGIC[..] || end[..HASH_BYTES] != blake3::hash(cubin).as_bytes()[..] {
        return None;
    }
    file.truncate(length);
    Some(file)
}

/// What the driver's linker calls a GPU for code that runs on no later one (`.target sm_90a`); `None` for other code, for which it takes the
/// context's by itself.
fn own_target(text: &CStr, gpu: &Gpu) -> Option<usize> {
    const OF_ONE_ALONE: usize = 0x10000;
    let text = std::str::from_utf8(text.to_bytes()).ok()?;
    let target = text.lines().find_map(|line| line.trim().strip_prefix(".target "))?;
    let name = target.split([',', ' ']).next()?;
    name.ends_with('a').then(|| OF_ONE_ALONE + (gpu.capability.0 * 10 + gpu.capability.1) as usize)
}

/// Makes the driver compile a module for the GPU of the context, which is the calling thread's.
fn compile(context: &Arc<Context>, gpu: &Gpu, text: &CStr, name: &str) -> Result<Vec<u8>> {
    context.enter()?;
    let target = own_target(text, gpu);
    match link(text, target, name) {
        // Some drivers refuse to be told a target that they find by themselves.
        Err(error) if target.is_some() => link(text, None, name).map_err(|_| error),
        linked => linked,
    }
}

/// Makes machine code of a module, for a target where one is given.
fn link(text: &CStr, target: Option<usize>, name: &str) -> Result<Vec<u8>> {
    let mut log = vec![0u8; LOG_BYTES];
    use sys::CUjit_option_enum::{CU_JIT_ERROR_LOG_BUFFER, CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES, CU_JIT_TARGET};
    let mut options = vec![CU_JIT_ERROR_LOG_BUFFER, CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES];
    // The driver takes a number where a pointer is declared, and writes into both until the linker is destroyed.
    let mut values = vec![log.as_mut_ptr().cast::<c_void>(), std::ptr::without_provenance_mut(LOG_BYTES)];
    if let Some(target) = target {
        options.push(CU_JIT_TARGET);
        values.push(std::ptr::without_provenance_mut(target));
    }
    let mut linker: sys::CUlinkState = std::ptr::null_mut();
    // SAFETY: the arrays are as long as is said and live until the linker is destroyed below.
    unsafe { sys::cuLinkCreate_v2(options.len() as u32, options.as_mut_ptr(), values.as_mut_ptr(), &raw mut linker) }
        .result()
        .map_err(|e| failed("making a linker", e))?;
    let linked = || -> Result<Vec<u8>, result::DriverError> {
        let bytes = text.to_bytes_with_nul();
        // SAFETY: the driver reads the text, its zero byte included, and copies it.
        unsafe {
            sys::cuLinkAddData_v2(
                linker,
                sys::CUjitInputType::CU_JIT_INPUT_PTX,
                bytes.as_ptr().cast_mut().cast(),
                bytes.len(),
                c"kernel.ptx".as_ptr(),
                0,
                std::ptr::null_mut(),
                std::ptr::null_mut(),
            )
        }
        .result()?;
        let (mut cubin, mut size) = (std::ptr::null_mut(), 0);
        // SAFETY: writes where its result is, which lives as long as the linker.
        unsafe { sys::cuLinkComplete(linker, &raw mut cubin, &raw mut size) }.result()?;
        // SAFETY: `cubin` is `size` bytes of the linker's, which is destroyed after they were copied.
        Ok(unsafe { std::slice::from_raw_parts(cubin.cast::<u8>(), size) }.to_vec())
    }();
    // SAFETY: created above, destroyed once.
    let _ = unsafe { sys::cuLinkDestroy(linker) };
    linked.map_err(|e| {
        let said = String::from_utf8_lossy(&log);
        let said = said.trim_end_matches('\0').trim();
        let said = if said.is_empty() { String::new() } else { format!("\n  {}", said.replace('\n', "\n  ")) };
        problem(format!("compiling kernel {name} for this GPU failed: {}{said}", text_of(e)))
    })
}

/// Threads of a block of the kernel of a module, as it says (`.reqntid`); `None` where it does not.
fn threads_of(text: &CStr) -> Option<u32> {
    let text = std::str::from_utf8(text.to_bytes()).ok()?;
    let code: Vec<&str> = text.lines().map(|line| line.split("//").next().unwrap_or_default()).collect();
    let code = code.join("\n");
    // What lies behind the name and before the body.
    let head = code.split_once(".entry")?.1.split('{').next()?;
    let numbers = head.split_once(".reqntid")?.1.split('.').next()?;
    let mut numbers = numbers.split(',').map(|number| number.trim().parse::<u32>().ok());
    numbers.try_fold(1, |product: u32, number| product.checked_mul(number?)).filter(|threads| *threads > 0)
}

/// Registers that a kernel's threads must have when it begins, where teams of them give some back for others to take (`setmaxnreg`): what both end with. With fewer
/// those would wait for ever.
fn registers_of(text: &CStr) -> Option<u32> {
    let text = std::str::from_utf8(text.to_bytes()).ok()?;
    let counts = |way: &str| -> Vec<u32> {
        let instruction = format!("setmaxnreg.{way}.sync.aligned.u32");
        let uses = text.split(&instruction).skip(1);
        uses.filter_map(|rest| rest.split(';').next()?.trim().parse().ok()).collect()
    };
    let taken = counts("inc");
    counts("dec").into_iter().find(|given| taken.contains(given))
}

/// Loads a module with one kernel: what the driver runs, and the PTX that it is of.
pub(super) fn load(
    context: &Arc<Context>,
    (image, text): (&[u8], &CStr),
    name: &str,
    scratch_bytes: u64,
) -> Result<Kernel> {
    let threads = threads_of(text)
        .ok_or_else(|| problem(format!("the code of kernel {name} does not say with how many threads it runs")))?;
    context.enter()?;
    // SAFETY: what the driver's linker wrote, whole as its hash says, or PTX that a zero byte ends; the driver copies it.
    let module = unsafe { result::module::load_data(image.as_ptr().cast()) }
        .map_err(|e| failed(&format!("loading kernel {name}"), e))?;
    let mut kernel = Kernel {
        context: Arc::clone(context),
        module,
        function: std::ptr::null_mut(),
        name: name.to_owned(),
        threads,
        scratch_bytes,
        shared_bytes: 0,
        waits: false,
    };
    let needed = registers_of(text);
    let found = || -> Result<(sys::CUfunction, i32, Option<i32>), result::DriverError> {
        // SAFETY: the module was just loaded.
        let function = unsafe { result::module::get_function(module, SYMBOL.to_owned()) }?;
        use sys::CUfunction_attribute_enum::{CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK, CU_FUNC_ATTRIBUTE_NUM_REGS};
        // SAFETY: the function is the module's, which is loaded.
        let read = |attribute| unsafe { result::function::get_function_attribute(function, attribute) };
        let registers = needed.map(|_| read(CU_FUNC_ATTRIBUTE_NUM_REGS)).transpose()?;
        Ok((function, read(CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK)?, registers))
    };
    let (function, most, registers) = found().map_err(|e| failed(&format!("loading kernel {name}"), e))?;
    kernel.function = function;
    // The driver says how many the registers allow, which may be more than the code runs with, and never less where it can run.
    if i64::from(most) < i64::from(threads) {
        return Err(problem(format!(
            "kernel {name} runs {threads} threads in a block, of which this GPU has {most} at most"
        )));
    }
    if let (Some(needed), Some(registers)) = (needed, registers)
        && i64::from(registers) != i64::from(needed)
    {
        return Err(problem(format!(
            "kernel {name} divides {needed} registers a thread among its teams, and the driver gave it {registers}: compile the model for cuda:sm_80, or update the driver"
        )));
    }
    Ok(kernel)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_written_is_read() {
        let cubin = b"\x7fELF and more".to_vec();
        let file = sealed(&cubin);
        assert_eq!(opened(file.clone()), Some(cubin));
        for at in 0..file.len() {
            let mut changed = file.clone();
            changed[at] ^= 1;
            assert_eq!(opened(changed), None, "byte {at}");
        }
        assert_eq!(opened(file[..file.len() - 1].to_vec()), None);
        assert_eq!(opened(b"short".to_vec()), None);
    }

    #[test]
    fn code_of_one_gpu_alone_is_named_for_it() {
        let gpu = Gpu { index: 0, name: String::new(), capability: (9, 0), memory_bytes: 0 };
        assert_eq!(own_target(c".version 8.0\n.target sm_90a\n.address_size 64", &gpu), Some(0x10000 + 90));
        assert_eq!(own_target(c".version 7.0\n.target sm_80, debug\n", &gpu), None);
        assert_eq!(own_target(c"", &gpu), None);
    }

    #[test]
    fn threads_are_those_that_the_code_asks_for() {
        let module = |directives: &str| {
            let text = format!(
                ".version 7.0\n.target sm_80\n// .reqntid 7\n.visible .entry kernel(\n\t.param .u64 a\n)\n{directives}{{\n\tret;\n}}\n"
            );
            threads_of(&std::ffi::CString::new(text).unwrap())
        };
        assert_eq!(module(".reqntid 384, 1, 1\n"), Some(384));
        assert_eq!(module(".maxntid 1024\n.reqntid 32, 4\n"), Some(128));
        assert_eq!(module(".reqntid 64\n.minnctapersm 2\n"), Some(64));
        assert_eq!(module(".reqntid 64 .maxnreg 32 "), Some(64));
        for none in ["", ".maxntid 256\n", "// .reqntid 256\n", ".reqntid 0\n", ".reqntid many\n"] {
            assert_eq!(module(none), None, "{none:?}");
        }
    }

    #[test]
    fn registers_are_those_that_teams_divide() {
        let of = |text: &str| registers_of(&std::ffi::CString::new(text).unwrap());
        let teams = "setmaxnreg.dec.sync.aligned.u32 56;\n setmaxnreg.inc.sync.aligned.u32 168;\n\
                     setmaxnreg.inc.sync.aligned.u32 224;\n setmaxnreg.dec.sync.aligned.u32 168;\n";
        assert_eq!(of(teams), Some(168));
        assert_eq!(of("ret;"), None);
    }

    #[test]
    fn code_is_kept_for_one_gpu_and_driver() {
        let name = key(c".version 7.0", (8, 0), (12, 4));
        assert_eq!(name, key(c".version 7.0", (8, 0), (12, 4)));
        for other in [
            key(c".version 7.1", (8, 0), (12, 4)),
            key(c".version 7.0", (9, 0), (12, 4)),
            key(c".version 7.0", (8, 0), (12, 5)),
        ] {
            assert_ne!(name, other);
        }
    }
}
