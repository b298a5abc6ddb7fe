//! Kernels, launches, buffers: what to run, in which order, on which memory. Knows the graph and the artifact, no instruction set.
//!
//! [`mod@build`] walks the fused program once per instance and appends launches; [`weights`] turns constant expressions over the checkpoint
//! into packed weights; [`caches`] groups what is kept by how long; [`memory`] places the intermediate values by liveness;
//! [`cost`](mod@cost) says what a kernel has to read and multiply.

pub mod build;
pub mod caches;
pub mod cost;
mod divide;
mod division;
mod experts;
pub mod flatten;
pub mod kernel;
mod kernel_text;
mod launches;
mod limits;
pub mod memory;
mod pages;
mod parts;
mod place;
mod scans;
pub mod step_caches;
mod token_row;
pub mod weights;
mod whole;

pub use self::build::{Plan, PlannedLaunch, build};
pub use self::cost::{cost, written_row_bytes};
pub use self::weights::Stored;
