//! Runs PTX on the processor, for tests of generated CUDA kernels on machines without a GPU.
//!
//! ```text
//! PTX text --ptx--> syntax tree --decode--> Program (flat, calls inlined) --exec--> blocks, warps, lanes
//! ```
//!
//! The emulator is stricter than a device: accesses out of bounds, misaligned, or of memory that nothing wrote, races on shared memory,
//! collectives that a part of a warp executes, waits that never end, and asynchronous results used too early are faults that name the thread
//! and the line. It is exact where the instruction set is, and says where it is not: approximations are computed in f64 and rounded, and a
//! tensor core's sums are rounded once.
//!
//! The reference is NVIDIA's *PTX ISA*, version 8.8; files name its sections.

pub(crate) mod numbers;
pub(crate) mod ptx;
pub(crate) mod decode;
pub(crate) mod exec;
mod module;
mod tensor_map;

pub use exec::fault::{Fault, FaultKind};
pub use exec::launch::{Launch, SHARED_LIMIT, launch};
pub use exec::memory::Memory;
pub use exec::stats::{LineStats, Stats};
pub use module::{Kernel, Module, Param};
pub use ptx::ParseError;
pub use tensor_map::{Swizzle, TensorMap};
