//! Loads any compiled transformer, binds a checkpoint, keeps the caches and runs it.
//!
//! ```text
//! model.xfm ──artifact──▶ plan + code ─┐
//! checkpoint ──weights──▶ packed buffers ├─▶ device ──▶ session (one ragged batch a step) ──▶ text
//!              cache: pages, rings ──────┘
//! ```
//!
//! Knows no architecture, links no LLVM, depends on no part of the compiler.

pub mod error;
pub mod files;
pub mod artifact;
pub mod weights;
pub mod cache;
pub mod device;
pub mod model;
pub mod step;
pub mod session;
pub mod generate;
pub mod text;
pub mod embed;
pub mod commands;
#[cfg(test)]
mod tests;

pub use error::RuntimeError;
