//! The two commands as a user runs them: found beside the suite, run in a folder of their own, their cache beside it.
//!
//! [`path`] promises a binary that exists; when it does not, the error says how to build it. `make test` builds both first.

use std::env::consts::{DLL_PREFIX, DLL_SUFFIX, EXE_SUFFIX};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

use crate::Result;
use crate::compile::kernels;
use crate::emulate::Processor;

/// Where `xfc` or `xfrun` was built: beside the folder of the running test.
pub fn path(name: &str) -> Result<PathBuf> {
    let suite = std::env::current_exe()?;
    let built = suite.ancestors().nth(2).map(|folder| folder.join(format!("{name}{EXE_SUFFIX}")));
    match built.filter(|path| path.is_file()) {
        Some(path) => Ok(path),
        None => Err(format!("{name} is not built: cargo build --bins -p xfc-cli -p xfc-runtime (or make test)").into()),
    }
}

/// The library of `tests/driver`, which is built with the suite: beside the running test.
fn driver() -> Result<PathBuf> {
    let suite = std::env::current_exe()?;
    let file = format!("{DLL_PREFIX}xfc_driver{DLL_SUFFIX}");
    let built = suite.parent().map(|folder| folder.join(file));
    built.filter(|path| path.is_file()).ok_or_else(|| "the emulated driver is not beside the suite".into())
}

/// A folder to run commands in; it disappears with the value.
#[derive(Debug)]
pub struct Shell {
    folder: TempDir,
}

/// What a command said and how it ended.
#[derive(Clone, Debug)]
pub struct Ran {
    /// The command, for messages.
    pub command: String,
    /// Exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Shell {
    /// An empty folder.
    pub fn new() -> Result<Self> {
        Ok(Shell { folder: tempfile::Builder::new().prefix("xfc-shell-").tempdir()? })
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Runs `xfc` or `xfrun` with arguments in the folder.
    pub fn run(&self, name: &str, arguments: &[&str]) -> Result<Ran> {
        self.run_command(Command::new(path(name)?), name, arguments)
    }

    /// Runs `xfrun` with arguments in the folder, on a processor that this machine may not have.
    pub fn run_emulated(&self, processor: &Processor, arguments: &[&str]) -> Result<Ran> {
        let shown = format!("{} {} xfrun", processor.emulator, processor.options.join(" "));
        self.run_command(processor.command()?, &shown, arguments)
    }

    /// Runs `xfrun` with arguments in the folder, with a CUDA driver that emulates GPUs and these of its settings.
    pub fn run_on_driver(&self, settings: &[(&str, String)], arguments: &[&str]) -> Result<Ran> {
        let folder = self.folder().join(".driver");
        let library = folder.join("libcuda.so");
        if !library.exists() {
            fs::create_dir_all(&folder)?;
            fs::copy(driver()?, &library)?;
        }
        let mut command = Command::new(path("xfrun")?);
        in_folder(command.args(arguments).env("NO_COLOR", "1").env("LD_LIBRARY_PATH", &folder), self.folder());
        command.envs(settings.iter().map(|(name, value)| (name, value)));
        ran(command, "xfrun", arguments)
    }

    fn run_command(&self, mut command: Command, shown: &str, arguments: &[&str]) -> Result<Ran> {
        in_folder(command.args(arguments).env("NO_COLOR", "1"), self.folder());
        ran(command, shown, arguments)
    }
}

/// Runs a command to its end.
fn ran(mut command: Command, shown: &str, arguments: &[&str]) -> Result<Ran> {
    let Output { status, stdout, stderr } = command.output()?;
    Ok(Ran {
        command: format!("{shown} {}", arguments.join(" ")),
        code: status.code(),
        stdout: String::from_utf8(stdout)?,
        stderr: String::from_utf8(stderr)?,
    })
}

/// Has a command run in a folder, with a cache and settings of its own there: what the user keeps or measured plays no part. Kernels are those of the
/// whole suite.
pub fn in_folder<'c>(command: &'c mut Command, folder: &Path) -> &'c mut Command {
    let own = [("XFC_CACHE_DIR", folder.join(".cache")), ("XFC_TUNE_DIR", folder.join(".tune"))];
    command.current_dir(folder).envs(own).env("XFC_KERNELS_DIR", kernels())
}

impl Ran {
    /// The output of a command that must have succeeded.
    pub fn success(self) -> Result<String> {
        if self.code == Some(0) {
            return Ok(self.stdout);
        }
        Err(format!("`{}` ended with {:?}:\n{}{}", self.command, self.code, self.stdout, self.stderr).into())
    }

    /// The messages of a command that must have failed in an orderly way, with exit code `code`, naming all of `named`.
    pub fn failure(self, code: i32, named: &[&str]) -> Result<String> {
        let wrong = |what: String| Err(format!("`{}` {what}:\n{}{}", self.command, self.stdout, self.stderr).into());
        if self.stderr.contains("panicked at") || self.stderr.contains("RUST_BACKTRACE") {
            return wrong("panicked".to_owned());
        }
        if self.code != Some(code) {
            return wrong(format!("ended with {:?}, not {code}", self.code));
        }
        // Messages may be wrapped anywhere.
        let said: String = self.stderr.split_whitespace().collect();
        for name in named {
            if !said.contains(&name.split_whitespace().collect::<String>()) {
                return wrong(format!("does not say `{name}`"));
            }
        }
        Ok(self.stderr)
    }
}
