//! The `xfrun` command: runs artifacts without the compiler.
//!
//! Exit codes: 0 success; 1 failure; 2 wrong arguments or a request that cannot be met; 3 an input file that is missing, damaged or does not fit;
//! 4 a machine that cannot run the code, or has no GPU to list.

use clap::{Parser, Subcommand};
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use xfc_runtime::artifact::Artifact;
use xfc_runtime::commands::{
    self, BenchArgs, CacheArgs, DevicesArgs, EXIT_CODES, EmbedArgs, LoadArgs, LogitsArgs, Output, RunArgs,
};
use xfc_runtime::error::{EXIT_OK, Result, RuntimeError};

/// Runs a compiled transformer (.xfm).
#[derive(Debug, Parser)]
#[command(name = "xfrun", version, about, after_help = EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Continue a text, or token ids
    Run {
        #[command(flatten)]
        artifact: ArtifactArgs,
        #[command(flatten)]
        args: RunArgs,
    },
    /// Compute a model's outputs at every position
    Logits {
        #[command(flatten)]
        artifact: ArtifactArgs,
        #[command(flatten)]
        args: LogitsArgs,
    },
    /// Compute sentence embeddings and their similarities
    Embed {
        #[command(flatten)]
        artifact: ArtifactArgs,
        #[command(flatten)]
        args: EmbedArgs,
    },
    /// Measure speed, and how far it is from what this machine can do
    Bench {
        #[command(flatten)]
        artifact: ArtifactArgs,
        #[command(flatten)]
        args: BenchArgs,
    },
    /// List the GPUs that code runs on here
    Devices(DevicesArgs),
    /// Show or empty the folder in which packed weights are kept
    #[command(subcommand)]
    Cache(CacheArgs),
}

#[derive(clap::Args, Debug)]
struct ArtifactArgs {
    /// What `xfc compile` wrote
    #[arg(value_name = "ARTIFACT")]
    artifact: PathBuf,
    /// Run the variant of this name [default: the best one for this machine]
    #[arg(long, value_name = "TARGET")]
    target: Option<String>,
}

impl ArtifactArgs {
    fn open(&self, load: &mut LoadArgs) -> Result<Artifact> {
        self.open_for(&mut load.target)
    }

    fn open_for(&self, target: &mut Option<String>) -> Result<Artifact> {
        target.clone_from(&self.target);
        Artifact::open(&self.artifact)
    }
}

fn main() -> ExitCode {
    let mut cli = Cli::parse();
    let mut output = Output { out: &mut std::io::stdout().lock(), notes: &mut std::io::stderr() };
    match execute(&mut cli.command, &mut output) {
        Ok(()) => ExitCode::from(EXIT_OK),
        Err(error) if commands::is_closed_pipe(&error) => ExitCode::from(EXIT_OK),
        Err(error) => report(&error),
    }
}

fn execute(command: &mut Command, output: &mut Output<'_>) -> Result<()> {
    match command {
        Command::Run { artifact, args } => commands::run::run(&artifact.open(&mut args.load)?, args, output),
        Command::Logits { artifact, args } => commands::logits::run(&artifact.open(&mut args.load)?, args, output),
        Command::Bench { artifact, args } => commands::bench::run(&artifact.open_for(&mut args.target)?, args, output),
        Command::Devices(args) => commands::devices::run(args, output),
        Command::Cache(args) => commands::cache::run(args, output),
        Command::Embed { artifact, args } => commands::embed::run(&artifact.open(&mut args.load)?, args, output),
    }
}

/// Writes the error and what to do about it to standard error.
fn report(error: &RuntimeError) -> ExitCode {
    let help = error.help().map(|help| format!("\n  help: {help}")).unwrap_or_default();
    // Where standard error cannot be written, the exit code still tells.
    let _ = writeln!(std::io::stderr(), "error: {error}{help}");
    ExitCode::from(error.exit_code())
}
