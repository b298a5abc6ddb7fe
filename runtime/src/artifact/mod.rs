//! The contract between compiler and runtime: container, kernel ABI, plans, weight bindings, cache layout.
//!
//! [`abi`] is what a kernel is called with, [`manifest`] is what to call and with which buffers; the container holds both
//! beside the code. Whoever changes either raises [`VERSION`].

pub mod abi;
pub mod manifest;

/// Version of the container, the manifest and the kernel ABI together. A runtime refuses any other.
pub const VERSION: u32 = 1;
