//! What can go wrong after the graph is verified: a construct without a lowering (the user's business), or a defect of ours.

/// An error of code generation.
#[derive(Debug, thiserror::Error)]
pub enum CodegenError {
    /// The graph is valid but this operation, type or shape has no lowering yet.
    #[error("{what} has no compiled form yet{}", at(.path))]
    Unsupported {
        /// What was met.
        what: String,
        /// Instance path, empty when there is none.
        path: String,
    },
    /// The target's name is not understood.
    #[error("unknown target `{name}`: {reason}")]
    Target {
        /// As given.
        name: String,
        /// Why, and what is possible.
        reason: String,
    },
    /// The fused graph breaks a promise of the passes. A defect of xfc.
    #[error("internal error in {stage}: {message}")]
    Bug {
        /// Where.
        stage: &'static str,
        /// What was expected and found.
        message: String,
    },
    /// MLIR rejected generated text. A defect of xfc.
    #[error("internal error: MLIR rejected kernel `{kernel}` at {stage}:\n{messages}")]
    Mlir {
        /// Which kernel.
        kernel: String,
        /// Which step.
        stage: &'static str,
        /// What MLIR said.
        messages: String,
    },
    /// LLVM rejected a module or its output. A defect of xfc.
    #[error("internal error: LLVM rejected kernel `{kernel}`: {message}")]
    Llvm {
        /// Which kernel.
        kernel: String,
        /// What LLVM said.
        message: String,
    },
    /// A pass could not run, or left an invalid graph.
    #[error(transparent)]
    Pass(#[from] xfc_lang::passes::PassError),
    /// A program could not be rewritten for a dtype, or its matrices not be put into blocks.
    #[error(transparent)]
    Precision(#[from] xfc_lang::passes::quantise::QuantiseError),
    /// The container or a dump could not be written.
    #[error(transparent)]
    Artifact(#[from] xfc_runtime::error::RuntimeError),
}

fn at(path: &str) -> String {
    if path.is_empty() { String::new() } else { format!(" (at `{path}`)") }
}

impl CodegenError {
    /// A construct without a lowering.
    pub(crate) fn unsupported(what: impl Into<String>, path: impl Into<String>) -> Self {
        CodegenError::Unsupported { what: what.into(), path: path.into() }
    }

    /// A broken promise.
    pub(crate) fn bug(stage: &'static str, message: impl Into<String>) -> Self {
        CodegenError::Bug { stage, message: message.into() }
    }
}
