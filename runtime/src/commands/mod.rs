//! The bodies of `run`, `logits`, `embed`, `bench`, `devices` and `cache`, shared by `xfrun` and `xfc`: arguments as plain structs, results written to the writers given.

mod inputs;
mod load;
mod profile;
pub mod bench;
pub mod cache;
pub mod devices;
pub mod embed;
pub mod logits;
pub mod run;
pub mod tokens;
#[cfg(test)]
mod tests;

pub use bench::{BenchArgs, BenchFormat};
pub use cache::CacheArgs;
pub use devices::DevicesArgs;
pub use embed::EmbedArgs;
pub use load::LoadArgs;
pub use logits::LogitsArgs;
pub use profile::ProfileArgs;
pub use run::RunArgs;
pub use tokens::Tokens;

use crate::error::{Result, RuntimeError};
use std::fmt;
use std::io::{self, Write};

/// Exit codes, for a command's help.
pub const EXIT_CODES: &str = "Exit codes:
  0  success
  1  failure (a file cannot be written, a device failed)
  2  wrong arguments, or a request that cannot be met
  3  an input file is missing, damaged or does not fit
  4  this machine cannot run the code; of `devices`: there is no GPU";

/// Where a command writes.
pub struct Output<'a> {
    /// Results.
    pub out: &'a mut dyn Write,
    /// Remarks for people: times, what was written where.
    pub notes: &'a mut dyn Write,
}

impl fmt::Debug for Output<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Output").finish_non_exhaustive()
    }
}

impl Output<'_> {
    /// Writes a part of the result and shows it at once.
    fn print(&mut self, text: fmt::Arguments<'_>) -> Result<()> {
        self.out.write_fmt(text).and_then(|()| self.out.flush()).map_err(|error| output_error("standard output", error))
    }

    /// Writes a remark.
    fn note(&mut self, text: fmt::Arguments<'_>) -> Result<()> {
        self.notes.write_fmt(text).map_err(|error| output_error("standard error", error))
    }
}

fn output_error(path: &str, source: io::Error) -> RuntimeError {
    RuntimeError::Io { path: path.to_owned(), doing: "write", source }
}

/// So many of something: `1 token`, `2 tokens`.
fn counted(n: u64, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

/// Whether a command failed only because nobody reads its output any more (`| head`).
pub fn is_closed_pipe(error: &RuntimeError) -> bool {
    matches!(error, RuntimeError::Io { source, .. } if source.kind() == io::ErrorKind::BrokenPipe)
}
