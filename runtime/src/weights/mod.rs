//! Checkpoint to buffers: mapping, naming, converting, packing.
//!
//! ```text
//! safetensors ──checkpoint──▶ tensors ──lens──▶ views ──convert──▶ numbers ──pack──▶ one block, as the kernels read it
//! ```
//!
//! `encoded` finds a tensor that has scales, `scaled` multiplies them in. Weights are packed straight from the mapped files into their final place: no second copy in memory.

mod names;
mod random;
mod lens;
mod convert;
mod scaled;
mod encoded;
mod pack;
mod bind;
mod checkpoint;
#[cfg(test)]
pub(crate) mod tests;

pub use bind::{PackedWeights, Progress, bind};
pub use checkpoint::{Checkpoint, Stored, Tensor};
pub(crate) use convert::store;
pub use random::Random;
