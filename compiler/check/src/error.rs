//! What a check itself can fail with; a value that departs is a result, not an error.

use xfc_codegen::error::CodegenError;
use xfc_lang::passes::quantise::QuantiseError;
use xfc_lang::reference::InterpretError;
use xfc_runtime::error::RuntimeError;

/// Result of everything in this crate that can fail.
pub type Result<T, E = CheckError> = std::result::Result<T, E>;

/// An error of a check.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// Files, requests, devices.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// The model cannot be compiled.
    #[error(transparent)]
    Codegen(#[from] CodegenError),
    /// The interpreter cannot run it.
    #[error("the interpreter: {0}")]
    Interpret(#[from] InterpretError),
}

impl From<QuantiseError> for CheckError {
    fn from(error: QuantiseError) -> Self {
        CheckError::Codegen(error.into())
    }
}

impl CheckError {
    /// The caller's request cannot be met.
    pub fn request(problem: impl Into<String>, help: impl Into<String>) -> Self {
        CheckError::Runtime(RuntimeError::request(problem, help))
    }
}
