//! Gives kernels to the stream: behind all that was given before or, of kernels that wait by themselves, as soon as the launch before lets them begin.
//!
//! A launch begins early where its kernel waits (`Kernel::waits`) and it follows another launch of the same step. So the first one of a step begins when all
//! that was given to the stream before it is done: the inputs and arrays of the step are there, pages are copied, and the step before has ended. The
//! others begin after it has begun, and see these too, even before they wait. What comes behind a step waits for its last launch to end, which it
//! does behind all others, since every kernel that begins early waits before it ends. Launches with an event behind each (`--profile`), or of
//! which each is waited for (`XFC_CUDA_CHECK=1`), follow one another as ever.
//!
//! In a recording such launches are edges of another kind between kernels, which drivers know since CUDA 12.3. `XFC_CUDA_OVERLAP=0` turns all of it off; and so
//! does a driver that refuses it, from then on.

use super::code::Kernel;
use super::context::{Context, driver_version};
use crate::error::Result;
use cudarc::driver::{result, sys};
use std::ffi::c_void;
use std::sync::atomic::{AtomicBool, Ordering};

/// The version of CUDA since which drivers record launches that begin early.
const SINCE: (u32, u32) = (12, 3);

/// Set to 0: no launch begins early.
const VARIABLE: &str = "XFC_CUDA_OVERLAP";

/// Whether launches may begin before those before them have ended.
#[derive(Debug)]
pub(super) struct Overlap {
    is_on: AtomicBool,
    was_refused: AtomicBool,
}

impl Overlap {
    /// As the driver and the user have it.
    ///
    /// # Errors
    /// There is no driver.
    pub(super) fn new() -> Result<Self> {
        let is_wanted = std::env::var_os(VARIABLE).is_none_or(|value| value != "0");
        let is_on = AtomicBool::new(is_wanted && driver_version()? >= SINCE);
        Ok(Self { is_on, was_refused: AtomicBool::new(false) })
    }

    pub(super) fn is_on(&self) -> bool {
        self.is_on.load(Ordering::Relaxed)
    }

    /// The driver refuses it: no launch begins early any more.
    pub(super) fn end(&self) {
        let was_on = self.is_on.swap(false, Ordering::Relaxed);
        self.was_refused.fetch_or(was_on, Ordering::Relaxed);
    }

    /// What there is to say about it.
    pub(super) fn remark(&self) -> Option<String> {
        let refused =
            "the driver refuses launches that begin before those before them have ended: each waits for the last";
        self.was_refused.load(Ordering::Relaxed).then(|| refused.to_owned())
    }
}

/// Gives a kernel to the stream, with so many blocks; `is_early`: it may begin before the launch before it has ended.
///
/// # Errors
/// The driver refuses it; nothing was given then.
///
/// # Safety
/// `arguments` is what the kernel takes by value, of as many bytes as its operands ask for; the addresses in it are those of live memory. Launches that begin
/// early are of kernels that wait, behind another launch.
pub(super) unsafe fn give(
    context: &Context,
    kernel: &Kernel,
    blocks: u32,
    arguments: &mut [u8],
    is_early: bool,
) -> Result<(), result::DriverError> {
    // The driver copies what these point to before it returns.
    let mut list = [arguments.as_mut_ptr().cast::<c_void>()];
    if !is_early {
        let (grid, block) = ((blocks, 1, 1), (kernel.threads, 1, 1));
        // SAFETY: as the caller promises.
        return unsafe {
            result::launch_kernel(kernel.function, grid, block, kernel.shared_bytes, context.stream, &mut list)
        };
    }
    let mut attribute = sys::CUlaunchAttribute {
        id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
        pad: [0; 4],
        value: sys::CUlaunchAttributeValue { pad: [0; 64] },
    };
    attribute.value.programmaticStreamSerializationAllowed = 1;
    let config = sys::CUlaunchConfig {
        gridDimX: blocks,
        gridDimY: 1,
        gridDimZ: 1,
        blockDimX: kernel.threads,
        blockDimY: 1,
        blockDimZ: 1,
        sharedMemBytes: kernel.shared_bytes,
        hStream: context.stream,
        attrs: &raw mut attribute,
        numAttrs: 1,
    };
    // SAFETY: as the caller promises; the attribute lives until the call returns.
    unsafe { sys::cuLaunchKernelEx(&raw const config, kernel.function, list.as_mut_ptr(), std::ptr::null_mut()) }
        .result()
}
