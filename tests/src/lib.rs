//! The test harness: reference cases, numeric comparison, generated weights.
//!
//! ```text
//! reference/cases/NAME ──case──▶ Case ──fill──▶ checkpoint folder ──▶ any stage of xfc
//!                                  │                                        │
//!                                  └─ golden ──────────compare──────────────┘
//! ```
//!
//! Everything here is for the suites in `tests/suite/`, which are one binary. Harness errors are [`Error`], which name the file.

pub mod cards;
pub mod case;
pub mod choices;
pub mod command;
pub mod compile;
pub mod embeddings;
pub mod emulate;
pub mod fill;
pub mod fuzz;
pub mod generated;
pub mod gguf;
pub mod gpu;
pub mod model;
pub mod program;
pub mod ptxas;
pub mod source;
pub mod synthetic;

pub use xfc_check::compare;

use std::fmt;
use std::path::{Path, PathBuf};

/// What went wrong, in words; shown as they are when a test returns it.
pub struct Error(Box<dyn std::error::Error + Send + Sync>);

impl<E: Into<Box<dyn std::error::Error + Send + Sync>>> From<E> for Error {
    fn from(error: E) -> Self {
        Error(error.into())
    }
}

impl Error {
    /// The error of that type, if it is one.
    pub fn downcast_ref<T: std::error::Error + 'static>(&self) -> Option<&T> {
        self.0.downcast_ref()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// A result of the harness.
pub type Result<T> = std::result::Result<T, Error>;

/// The root of the repository.
pub fn repository() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().unwrap_or(tests).to_path_buf()
}
