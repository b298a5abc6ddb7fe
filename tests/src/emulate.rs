//! Processors that this machine may not have, through QEMU's user mode: the runtime of their architecture in an emulator.
//!
//! [`Processor::command`] promises an emulator and a runtime that exist; when one does not, the error says how to get it. `make test` sets both up.

use std::path::PathBuf;
use std::process::Command;

use crate::{Result, command};

/// The Rust target of the runtime for AArch64: linked statically, so that it needs nothing of another system's files.
pub const AARCH64: &str = "aarch64-unknown-linux-musl";

/// An emulated processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Processor {
    /// QEMU's command.
    pub emulator: &'static str,
    /// Its options: which processor.
    pub options: &'static [&'static str],
}

/// Has SSE2 and SSE3, and raises SIGILL for anything newer.
pub const X86_64: Processor = Processor { emulator: "qemu-x86_64", options: &["-cpu", "qemu64"] };

/// Armv8.0: NEON, and none of the later features.
pub const CORTEX_A53: Processor = Processor { emulator: "qemu-aarch64", options: &["-cpu", "cortex-a53"] };

/// Every feature that QEMU knows, with vectors of 256 bits where code asks for the longest.
pub const AARCH64_MAX: Processor =
    Processor { emulator: "qemu-aarch64", options: &["-cpu", "max,sve-default-vector-length=32"] };

impl Processor {
    /// `xfrun` on this processor, without arguments.
    pub fn command(&self) -> Result<Command> {
        let runtime = match self.emulator {
            "qemu-x86_64" => command::path("xfrun")?,
            _ => aarch64_runtime()?,
        };
        let found = std::env::var_os("PATH")
            .is_some_and(|path| std::env::split_paths(&path).any(|folder| folder.join(self.emulator).is_file()));
        if !found {
            return Err(format!("{} is not installed: tools/setup.sh --emulate (or make test)", self.emulator).into());
        }
        let mut command = Command::new(self.emulator);
        command.args(self.options).arg(runtime);
        Ok(command)
    }
}

/// Where `xfrun` was built for AArch64: in its own folder beside that of the running test's profile.
fn aarch64_runtime() -> Result<PathBuf> {
    let suite = std::env::current_exe()?;
    let built = suite.ancestors().nth(3).map(|target| target.join(AARCH64).join("debug/xfrun"));
    match built.filter(|path| path.is_file()) {
        Some(path) => Ok(path),
        None => Err(format!(
            "xfrun is not built for AArch64: cargo build --bin xfrun -p xfc-runtime --target {AARCH64} (or make test)"
        )
        .into()),
    }
}
