//! Loads any compiled transformer, binds a checkpoint, keeps the caches and runs it.
//!
//! ```text
//! model.xfm ──artifact──▶ plan + code ─┐
//! checkpoint ──weights──▶ packed buffers ├─▶ device ──▶ session (one ragged batch a step) ──▶ text
//!              cache: pages, rings ──────┘
//! ```
//!
//! Knows no architecture, links no LLVM, depends on no part of the compiler. Prints nothing and ends no process: errors are
//! [`RuntimeError`]s, progress is a callback, and [`commands`] write to the writers they are given.
//!
//! ```no_run
//! use std::path::Path;
//! use xfc_runtime::artifact::Artifact;
//! use xfc_runtime::generate::GenerateOptions;
//! use xfc_runtime::model::{Model, ModelOptions};
//! use xfc_runtime::session::SessionOptions;
//! use xfc_runtime::weights::Checkpoint;
//!
//! # fn main() -> Result<(), xfc_runtime::RuntimeError> {
//! let artifact = Artifact::open(Path::new("model.xfm"))?;
//! let checkpoint = Checkpoint::open(Path::new("checkpoint"))?;
//! let model = Model::load(&artifact, &checkpoint, &ModelOptions::default())?;
//!
//! let mut session = model.session(&SessionOptions::default())?;
//! let sequence = session.add_sequence()?;
//! let options = GenerateOptions { max_tokens: Some(16), ..GenerateOptions::default() };
//! let tokens = session.generate(sequence, &[1, 2, 3], options)?.collect::<Result<Vec<u32>, _>>()?;
//! # drop(tokens);
//! # Ok(())
//! # }
//! ```

pub mod error;
pub mod files;
pub mod folder;
pub mod json;
pub mod memory;
pub mod artifact;
pub mod gguf;
pub mod weights;
pub mod cache;
pub mod device;
pub mod cost;
pub mod need;
pub mod model;
pub mod step;
mod widen;
pub mod session;
pub mod generate;
pub mod images;
pub mod profile;
pub mod bench;
pub mod text;
pub mod embed;
pub mod commands;
#[cfg(test)]
mod tests;

pub use error::RuntimeError;
