//! The contract between compiler and runtime: container, kernel ABI, plans, weight bindings, cache layout.
//!
//! [`abi`] is what a kernel is called with, [`manifest`] is what to call and with which buffers; the [`container`] holds both
//! beside the code. Whoever changes any of them raises [`VERSION`].

pub mod abi;
mod blocks;
pub mod manifest;
pub mod validate;
pub mod features;
pub mod code;
pub mod container;
mod delta;
mod elf;
mod sums;
mod table;
#[cfg(test)]
pub(crate) mod sample;
#[cfg(test)]
mod tests;

pub use code::Code;
pub use container::{Artifact, CodeImage, Variant, VariantParts, write};
pub use features::HostFeatures;

/// Version of the container, the manifest and the kernel ABI together. A runtime refuses any other.
/// 2: launches say what they cost. 3: plans of further variants say what differs from the first. 6: weights in floats of 8 bits. 7: launches that wait by themselves.
/// 8: products that are of other numbers in some phases than the program says.
pub const VERSION: u32 = 8;
