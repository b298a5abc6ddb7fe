//! What can go wrong at run time: files, devices, tensors, requests.
//!
//! Each error names the thing, what was expected and what was found; [`RuntimeError::help`] says what to do about it.
//! Nothing here prints; commands render both lines.

use std::io;
use std::path::Path;

/// Result of everything in this crate that can fail.
pub type Result<T, E = RuntimeError> = std::result::Result<T, E>;

/// An error of the runtime.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// The operating system refused to read or write a file.
    #[error("{path}: cannot {doing}: {source}")]
    Io {
        /// The file.
        path: String,
        /// `open`, `read`, `write`...
        doing: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// An artifact is damaged, of another version, or not an artifact.
    #[error("{path}: {problem}")]
    Artifact {
        /// The file, or `artifact in memory`.
        path: String,
        /// What is wrong with it.
        problem: String,
        /// What to do.
        help: String,
    },
    /// An input file (checkpoint, tokenizer, inputs, configuration) does not hold what it should.
    #[error("{path}: {problem}")]
    Input {
        /// The file.
        path: String,
        /// Expected and found.
        problem: String,
        /// What to do.
        help: String,
    },
    /// A checkpoint's tensors are not those that the artifact reads; every one is named.
    #[error("{path}: {} not fit the model:\n  {}", tensors_that_do(problems.len()), first_lines(problems))]
    Binding {
        /// The checkpoint.
        path: String,
        /// One line a tensor.
        problems: Vec<String>,
        /// Tensors of these that the checkpoint lacks.
        missing: usize,
        /// What to do.
        help: String,
    },
    /// What a model computed is of no use: a number that is none, or infinite.
    #[error("{problem}")]
    NotFinite {
        /// Which number, and where.
        problem: String,
    },
    /// This machine cannot run the code.
    #[error("{subject}: {problem}")]
    Unsupported {
        /// The artifact.
        subject: String,
        /// What it needs and what there is.
        problem: String,
        /// What to do.
        help: String,
    },
    /// The caller asked for something that cannot be done.
    #[error("{problem}")]
    Request {
        /// Asked and allowed.
        problem: String,
        /// What to do.
        help: String,
    },
    /// A device, its memory or a worker failed.
    #[error("{device}: {problem}")]
    Device {
        /// `cpu`, `null`...
        device: &'static str,
        /// What happened.
        problem: String,
    },
}

/// So many tensors as the subject of a sentence.
fn tensors_that_do(n: usize) -> String {
    if n == 1 { "1 tensor does".to_owned() } else { format!("{n} tensors do") }
}

/// The lines of a list, the first of a long one.
fn first_lines(lines: &[String]) -> String {
    const MOST_LINES: usize = 40;
    let mut text = lines.iter().take(MOST_LINES).map(String::as_str).collect::<Vec<_>>().join("\n  ");
    if lines.len() > MOST_LINES {
        text.push_str(&format!("\n  and {} more", lines.len() - MOST_LINES));
    }
    text
}

/// Exit code of success.
pub const EXIT_OK: u8 = 0;
/// Exit code of a failure that none of the others describes.
pub const EXIT_FAILURE: u8 = 1;
/// Exit code of wrong arguments or of a request that cannot be met.
pub const EXIT_USAGE: u8 = 2;
/// Exit code of an input file that is missing, damaged or does not fit.
pub const EXIT_INPUT: u8 = 3;
/// Exit code of a machine that cannot run the code.
pub const EXIT_UNSUPPORTED: u8 = 4;

impl RuntimeError {
    /// The operating system refused `doing` (an infinitive: `open`) on `path`.
    pub fn io(path: &Path, doing: &'static str, source: io::Error) -> Self {
        Self::Io { path: path.display().to_string(), doing, source }
    }

    /// `path` does not hold what it should.
    pub fn input(path: impl Into<String>, problem: impl Into<String>, help: impl Into<String>) -> Self {
        Self::Input { path: path.into(), problem: problem.into(), help: help.into() }
    }

    /// The caller's request cannot be met.
    pub fn request(problem: impl Into<String>, help: impl Into<String>) -> Self {
        Self::Request { problem: problem.into(), help: help.into() }
    }

    /// With the advice to make up what a checkpoint lacks, for a command that can be asked for that.
    #[must_use]
    pub fn or_made_up(mut self) -> Self {
        if let Self::Binding { missing: 1.., help, .. } = &mut self {
            help.push_str("; `--allow-missing` makes up what is missing");
        }
        self
    }

    /// What the reader can do about it, where there is something to say.
    pub fn help(&self) -> Option<&str> {
        match self {
            Self::Artifact { help, .. }
            | Self::Input { help, .. }
            | Self::Unsupported { help, .. }
            | Self::Binding { help, .. }
            | Self::Request { help, .. } => (!help.is_empty()).then_some(help.as_str()),
            Self::Io { source, .. } => match source.kind() {
                io::ErrorKind::NotFound => Some("check the path"),
                io::ErrorKind::PermissionDenied => Some("check the permissions of the file and its folder"),
                io::ErrorKind::StorageFull => Some("free some space on the disk"),
                _ => None,
            },
            Self::NotFinite { .. } => {
                Some("`xfc verify` with this checkpoint says which value is the first that is not finite")
            }
            Self::Device { .. } => None,
        }
    }

    /// The documented exit code of a command that ends with this error: [`EXIT_FAILURE`], [`EXIT_USAGE`], [`EXIT_INPUT`] or
    /// [`EXIT_UNSUPPORTED`].
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Io { doing: "write", .. } | Self::Device { .. } | Self::NotFinite { .. } => EXIT_FAILURE,
            Self::Io { .. } | Self::Artifact { .. } | Self::Input { .. } | Self::Binding { .. } => EXIT_INPUT,
            Self::Unsupported { .. } => EXIT_UNSUPPORTED,
            Self::Request { .. } => EXIT_USAGE,
        }
    }
}
