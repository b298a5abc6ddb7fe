//! The `xfc` command: arguments in, one subcommand run, messages and an exit code out.
//!
//! Exit codes are those of the runtime: 0 success, 1 failure, 2 wrong arguments, 3 an input file that is missing, damaged or does not
//! fit, 4 a machine that cannot run the code.

mod args;
mod cache;
mod check;
mod compile;
mod error;
mod eval;
mod inspect;
mod layer;
mod model;
mod output;
mod run;
mod summary;
mod values;
mod verify;
mod variants;

use std::process::ExitCode;

use clap::Parser as _;

use crate::args::{Cli, Command};

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match &cli.command {
        Command::Compile(args) => compile::run(args),
        Command::Inspect(args) => inspect::run(args),
        Command::Check(args) => check::run(args),
        Command::Run(args) => run::run(args),
        Command::Logits(args) => run::logits(args),
        Command::Embed(args) => run::embed(args),
        Command::Bench(args) => run::bench(args),
        Command::Verify(args) => verify::run(args),
        Command::Eval(args) => eval::run(args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => e.report(),
    }
}
