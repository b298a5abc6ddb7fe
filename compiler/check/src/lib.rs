//! Checking: a compiled model against the interpreter, against values computed elsewhere, and against another model on a text.
//!
//! ```text
//! Model + Checkpoint ──weights──▶ interpreter ─┐
//!         │                                    ├─compare──▶ table, first value that departs
//!         └──tap──▶ driver ──▶ session ────────┘
//! dump.safetensors ──dump──▶ values by name ───┘
//! text ──eval──▶ perplexity, divergence
//! text ──sensitivity──▶ divergence of each unit of matrices in each format ──mixed──▶ plan
//! ```
//!
//! Prints nothing; [`compare`] is the one table of tolerances, which the test suite uses too.

pub mod allocate;
mod blocks;
pub mod compare;
pub mod dump;
pub mod error;
pub mod eval;
pub mod gguf;
pub mod inputs;
pub mod layers;
pub mod locate;
pub mod mixed;
pub mod modules;
pub mod records;
pub mod reference;
mod packed;
mod scaled;
pub mod sensitivity;
pub mod stored;
pub mod subject;
pub mod taps;
pub mod truth;
pub mod units;
pub mod verify;
pub mod weights;

pub use error::CheckError;
