//! Fused kernels as MLIR. The only folder that names melior.
//!
//! [`writer`] writes typed operations as text, [`math`] the elementary functions, [`expr`] the scalar graphs of epilogues, masks and scores, and
//! one file a kernel family the loop nests: [`linear`], [`attention`], [`rows`]. [`pipeline`] parses, verifies and lowers to the LLVM dialect.
//! No target is named here: what a machine can do is a [`machine`], how a kernel is tiled a [`schedule`], and a target gives both.

mod ahead;
mod arith;
mod arrivals;
pub mod attention;
mod block;
pub mod expr;
pub mod frame;
pub mod linear;
pub mod machine;
pub mod math;
pub mod pipeline;
pub mod rows;
pub mod schedule;
mod small_floats;
mod tables;
mod teams;
mod tile_registers;
mod tiles;
pub mod writer;

#[cfg(test)]
mod tests;
