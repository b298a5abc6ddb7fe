//! Runs PTX on the processor, for tests of generated CUDA kernels on machines without a GPU.
//!
//! ```text
//! PTX text --ptx--> syntax tree --decode--> Program (flat, calls inlined) --exec--> blocks, warps, lanes
//! ```
//!
//! The emulator is stricter than a device: accesses out of bounds, misaligned, or of memory that nothing wrote, races on shared memory and, also
//! between blocks, on global memory, collectives that a part of a warp executes, waits that never end, registers that nobody gave back, and
//! asynchronous results used too early are faults that name the thread and the line. It is exact where the instruction set is, and says where it is not: approximations are computed in f64 and rounded, and a
//! tensor core's sums are rounded once.
//!
//! Launches run one after another. One that may begin before others have ended (`Launch::overlaps`) runs late, and may do no more than what is
//! right however early it begins: until `griddepcontrol.wait` it writes nothing and reads nothing that launches before it may be writing.
//!
//! Understood is what LLVM's NVPTX back end emits for sm_80 to sm_90a, and of sm_100 pairs of f32, and inline assembly with `mma`, `ldmatrix`, `stmatrix`, `wgmma`,
//! `cp.async`, bulk copies, tiles and mbarriers. Everything else is refused when a module is parsed: indirect and recursive calls (direct
//! ones are inlined), registers of 128 bits, textures, sparse and sub-byte products, clusters of several blocks, instructions of later
//! architectures. Atomics on shared memory do not race with each other, but order nothing else.
//!
//! ```
//! use xfc_emulator::{Launch, Memory, Module, launch};
//!
//! let text = ".version 8.6 .target sm_90a .address_size 64
//!     .entry k(.param .u64 to) {
//!         .reg .b64 %a; .reg .b32 %t;
//!         ld.param.u64 %a, [to];
//!         mov.u32 %t, %ntid.x;
//!         st.global.u32 [%a], %t;
//!         ret;
//!     }";
//! let module = Module::parse(text)?;
//! let mut memory = Memory::new();
//! let to = memory.alloc(4, 4);
//! launch(&module, "k", &mut memory, &Launch::new([1, 1, 1], [32, 1, 1], &to.to_le_bytes()))?;
//! let mut out = [0; 4];
//! memory.read(to, &mut out)?;
//! assert_eq!(out, 32u32.to_le_bytes());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
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
