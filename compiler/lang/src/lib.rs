//! Cards and modules in, fused graph out.
//!
//! ```text
//! card.yaml, lib/*.xf ──spec──▶ Spec ──arch──▶ Arch + Program ──passes──▶ fused Program
//!                                                   │                        │
//!                                                   └──────── reference ─────┘   (both mean the same numbers)
//! ```
//!
//! No LLVM, no device, no weights: everything here is decided from text and sizes alone.

pub mod diagnostic;
pub mod spec;
pub mod arch;
pub mod ops;
pub mod graph;
pub mod passes;
pub mod reference;
pub mod view;

pub use arch::{ElaborateOptions, Model, elaborate, tiny};
pub use spec::{Library, Spec, gguf_config, load_card, pick_card, pick_gguf_card};
