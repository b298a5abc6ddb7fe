//! Checkpoint to buffers: mapping, naming, converting, packing.
//!
//! ```text
//! safetensors, GGUF ──checkpoint──▶ tensors ──lens──▶ views ──convert──▶ numbers ──pack──▶ one block, as the kernels read it
//! ```
//!
//! `encoded` and `words` find a tensor that has scales, `scaled` and `packed` multiply them in, `blocks` decodes blocks that hold their own. Weights are packed straight from the mapped files into their final place: no second copy in memory.

mod names;
mod random;
mod lens;
mod convert;
mod blocks;
mod e4m3;
mod scaled;
mod packed;
mod words;
mod encoded;
mod quantise;
mod stored;
mod pack;
mod bind;
mod kept;
mod checkpoint;
#[cfg(test)]
pub(crate) mod tests;

pub use bind::{PackedWeights, Progress, bind};
pub use blocks::{BlockFormat, GROUP};
pub use checkpoint::{Checkpoint, Stored, Tensor};
pub(crate) use convert::store;
pub use kept::{are_kept, bind_kept};
pub use random::Random;
pub use stored::StoredAs;
