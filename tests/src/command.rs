//! The two commands as a user runs them: found beside the suite, run with what is given.
//!
//! [`path`] promises a binary that exists; when it does not, the error says how to build it. `make test` builds both first.

use std::env::consts::EXE_SUFFIX;
use std::path::PathBuf;
use std::process::{Command, Output};

use crate::Result;

/// Where `xfc` or `xfrun` was built: beside the folder of the running test.
pub fn path(name: &str) -> Result<PathBuf> {
    let suite = std::env::current_exe()?;
    let built = suite.ancestors().nth(2).map(|folder| folder.join(format!("{name}{EXE_SUFFIX}")));
    match built.filter(|path| path.is_file()) {
        Some(path) => Ok(path),
        None => Err(format!("{name} is not built: cargo build --bins -p xfc-cli -p xfc-runtime (or make test)").into()),
    }
}

/// Runs `name` with `arguments` to its end.
pub fn run<I>(name: &str, arguments: I) -> Result<Output>
where
    I: IntoIterator,
    I::Item: AsRef<std::ffi::OsStr>,
{
    Ok(Command::new(path(name)?).args(arguments).env("NO_COLOR", "1").output()?)
}
