//! Machine code in memory of its own: verified, then executable, never both writable and executable.

#![allow(unsafe_code, reason = "turns addresses inside a mapping into function pointers")]

use super::abi::KernelFn;
use crate::error::{Result, RuntimeError};
use memmap2::{Mmap, MmapMut};

/// A loaded code image. Kernels obtained from it must not be called once it is dropped: keep it beside whatever calls them.
#[derive(Debug)]
pub struct Code {
    map: Mmap,
    entries: Vec<usize>,
}

impl Code {
    /// Copies `image` into fresh memory, checks the copy against `sum`, and makes it read-only and executable.
    pub(super) fn map(image: &[u8], sum: u32, entries: &[u64]) -> Result<Self> {
        let fail = |problem: String| RuntimeError::Device { device: "cpu", problem };
        let no_memory =
            |error: std::io::Error| fail(format!("no executable memory for {} bytes of code: {error}", image.len()));
        // An empty mapping is not allowed; a manifest without kernels has an empty image.
        let mut map = MmapMut::map_anon(image.len().max(1)).map_err(no_memory)?;
        map[..image.len()].copy_from_slice(image);
        if crc32fast::hash(&map[..image.len()]) != sum {
            return Err(fail("the code changed while it was loaded".to_owned()));
        }
        let map = map.make_exec().map_err(no_memory)?;
        flush_instructions(&map);
        let entries = entries
            .iter()
            .map(|&entry| usize::try_from(entry).ok().filter(|&entry| entry < image.len()))
            .collect::<Option<_>>()
            .ok_or_else(|| fail("an entry lies outside of the code".to_owned()))?;
        Ok(Self { map, entries })
    }

    /// Number of kernels.
    pub fn n_kernels(&self) -> usize {
        self.entries.len()
    }

    /// The function of kernel `k`, if there is one. Calling it is unsafe: see [`KernelFn`].
    pub fn kernel(&self, k: usize) -> Option<KernelFn> {
        let entry = *self.entries.get(k)?;
        let address = self.map[entry..].as_ptr();
        // SAFETY: `address` is not null and a function pointer has the size of a data pointer on the supported architectures. Making the
        // pointer calls nothing; whoever calls it answers for the code behind it.
        Some(unsafe { std::mem::transmute::<*const u8, KernelFn>(address) })
    }
}

/// Whether this process may use registers that hold tiles: asks the system once, which says no where the processor has none.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub(super) fn allows_tiles() -> bool {
    use std::sync::OnceLock;
    /// `arch_prctl`, what it is asked for, and the number of the registers among those that the processor can save.
    const ASK: (u64, u64, u64) = (158, 0x1023, 18);
    static ALLOWED: OnceLock<bool> = OnceLock::new();
    *ALLOWED.get_or_init(|| {
        let mut answer = ASK.0;
        // SAFETY: a system call that writes no memory of this process; it changes `rax`, `rcx` and `r11`, which is said.
        unsafe {
            std::arch::asm!("syscall", inlateout("rax") answer, in("rdi") ASK.1, in("rsi") ASK.2, out("rcx") _, out("r11") _, options(nostack));
        }
        answer == 0
    })
}

/// Whether this process may use registers that hold tiles: not on a system that was never asked how.
#[cfg(all(target_arch = "x86_64", not(target_os = "linux")))]
pub(super) fn allows_tiles() -> bool {
    false
}

/// Makes freshly written code visible to instruction fetch, where the processor does not do so by itself: data lines to the point of
/// unification, then the instruction lines away.
#[cfg(target_arch = "aarch64")]
fn flush_instructions(code: &[u8]) {
    use std::arch::asm;
    let types: usize;
    // SAFETY: reads a register that Linux lets every process read, and changes nothing.
    unsafe { asm!("mrs {}, ctr_el0", out(reg) types, options(nomem, nostack, preserves_flags)) };
    // Fields hold the logarithm of a line's words.
    let (data_line, code_line) = (4_usize << (types >> 16 & 15), 4_usize << (types & 15));
    let range = code.as_ptr_range();
    let lines = |bytes: usize| (range.start.addr() & !(bytes - 1)..range.end.addr()).step_by(bytes);
    for line in lines(data_line) {
        // SAFETY: the line holds bytes of a live, readable slice; the instruction writes back what it holds and changes no value.
        unsafe { asm!("dc cvau, {}", in(reg) line, options(nostack, preserves_flags)) };
    }
    // SAFETY: waits until the lines are written back.
    unsafe { asm!("dsb ish", options(nostack, preserves_flags)) };
    for line in lines(code_line) {
        // SAFETY: as above; the instruction forgets a cached copy of the line.
        unsafe { asm!("ic ivau, {}", in(reg) line, options(nostack, preserves_flags)) };
    }
    // SAFETY: waits until the copies are gone, and fetches what follows anew.
    unsafe { asm!("dsb ish", "isb", options(nostack, preserves_flags)) };
}

/// Nothing to do: instruction fetch is coherent.
#[cfg(not(target_arch = "aarch64"))]
fn flush_instructions(_code: &[u8]) {}
