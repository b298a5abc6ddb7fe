//! Fused graph in, artifact out.
//!
//! ```text
//! fused Program ──plan──▶ kernels + launches + buffers ──mlir──▶ MLIR ──target──▶ code ──▶ artifact
//! ```
//!
//! Reads no weights, touches no device. [`driver`] is the only file that knows the whole order.

pub mod driver;
pub mod error;
pub mod kernels;
pub mod mlir;
pub mod plan;
pub mod target;
