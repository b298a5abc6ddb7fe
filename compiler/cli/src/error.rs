//! What a subcommand can fail with, how it is shown, and its exit code.

use std::process::ExitCode;

use xfc_check::CheckError;
use xfc_codegen::error::CodegenError;
use xfc_codegen::target::profile::ProfileError;
use xfc_lang::diagnostic::Report;
use xfc_lang::passes::PassError;
use xfc_lang::passes::quantise::{PlanError, QuantiseError};
use xfc_lang::reference::InterpretError;
use xfc_runtime::error::{EXIT_FAILURE, EXIT_INPUT, EXIT_USAGE, RuntimeError};

use crate::output::remark;

/// Result of a subcommand.
pub(crate) type Result<T> = std::result::Result<T, CliError>;

/// An error of a subcommand.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CliError {
    /// The description is wrong: every message with its place.
    #[error("{0}")]
    Text(#[from] Report),
    /// The description is right but cannot be compiled, or xfc has a defect.
    #[error("{0}")]
    Codegen(#[from] CodegenError),
    /// Files, devices, requests.
    #[error("{0}")]
    Runtime(#[from] RuntimeError),
    /// The interpreter cannot run the model.
    #[error("the interpreter: {0}")]
    Interpret(InterpretError),
    /// Arguments that do not fit together.
    #[error("{problem}")]
    Usage {
        /// What does not fit.
        problem: String,
        /// What to do.
        help: String,
    },
    /// A check found values that depart.
    #[error("{0}")]
    Departed(String),
    /// A profile that is not taken.
    #[error("{path} {error}")]
    Profile {
        /// The file.
        path: String,
        /// Why.
        error: ProfileError,
    },
    /// A file named on the command line.
    #[error("{path}: {problem}")]
    File {
        /// The file.
        path: String,
        /// What is wrong with it.
        problem: String,
    },
}

impl From<CheckError> for CliError {
    fn from(error: CheckError) -> Self {
        match error {
            CheckError::Runtime(e) => CliError::Runtime(e),
            CheckError::Codegen(e) => CliError::Codegen(e),
            CheckError::Interpret(e) => CliError::Interpret(e),
        }
    }
}

impl CliError {
    /// Arguments that do not fit together.
    pub(crate) fn usage(problem: impl Into<String>, help: impl Into<String>) -> Self {
        CliError::Usage { problem: problem.into(), help: help.into() }
    }

    /// A file that cannot be used.
    pub(crate) fn file(path: &std::path::Path, problem: impl std::fmt::Display) -> Self {
        CliError::File { path: path.display().to_string(), problem: problem.to_string() }
    }

    /// Prints the error and what to do; gives the exit code.
    pub(crate) fn report(self) -> ExitCode {
        match &self {
            // A report renders itself, with severity, place and source line.
            CliError::Text(report) => remark(report.to_string().trim_end_matches('\n')),
            other => remark(format!("error: {other}")),
        }
        let help = match &self {
            CliError::Runtime(e) | CliError::Codegen(CodegenError::Artifact(e)) => e.help().map(str::to_owned),
            CliError::Usage { help, .. } => Some(help.clone()),
            CliError::Profile { error, .. } => Some(error.help().to_owned()),
            CliError::Codegen(CodegenError::Bug { .. } | CodegenError::Mlir { .. } | CodegenError::Llvm { .. }) => {
                Some("this is a defect of xfc: please report it with the card and the command".to_owned())
            }
            CliError::Codegen(CodegenError::Precision(QuantiseError::Plan(PlanError::Unused { meant, .. }))) => {
                let meant = meant.as_ref().map(|meant| format!("did you mean `{meant}`? ")).unwrap_or_default();
                Some(format!("{meant}`xfc inspect MODEL --names` lists the paths"))
            }
            _ => None,
        };
        if let Some(help) = help.filter(|h| !h.is_empty()) {
            remark(format!("  help: {help}"));
        }
        ExitCode::from(match &self {
            CliError::Text(_) | CliError::File { .. } | CliError::Profile { .. } => EXIT_INPUT,
            CliError::Runtime(e) => e.exit_code(),
            CliError::Usage { .. }
            | CliError::Codegen(
                CodegenError::Target { .. } | CodegenError::Pass(PassError::Unknown { .. } | PassError::Required(_)),
            ) => EXIT_USAGE,
            // The request cannot be met; the other errors of code generation are defects.
            CliError::Codegen(CodegenError::Unsupported { .. } | CodegenError::Precision(QuantiseError::Plan(_))) => {
                EXIT_USAGE
            }
            CliError::Codegen(_) | CliError::Interpret(_) | CliError::Departed(_) => EXIT_FAILURE,
        })
    }
}
