//! The `xfc` command: arguments in, one subcommand run, messages and an exit code out.
//!
//! Exit codes are those of the runtime: 0 success, 1 failure, 2 wrong arguments, 3 an input file that is missing, damaged or does not
//! fit, 4 a machine that cannot run the code.

mod allocated;
mod args;
mod auto;
mod cache;
mod check;
mod compare;
mod compile;
mod cost;
mod error;
mod eval;
mod inspect;
mod layer;
mod machine;
mod model;
mod names;
mod output;
mod quant;
mod run;
mod see;
mod stored;
mod summary;
mod tune;
mod tuned;
mod values;
mod verify;
mod variants;

use std::process::ExitCode;

use clap::FromArgMatches as _;

use crate::args::{Cli, Command};

fn main() -> ExitCode {
    let matches = args::command().get_matches();
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|e| e.exit());
    let result = match &cli.command {
        Command::Compile(args) => compile::run(args),
        Command::Inspect(args) => inspect::run(args),
        Command::Compare(args) => compare::run(args),
        Command::Check(args) => check::run(args),
        Command::Run(args) => run::run(args),
        Command::Logits(args) => run::logits(args),
        Command::Embed(args) => run::embed(args),
        Command::Bench(args) => run::bench(args),
        Command::Verify(args) => verify::run(args),
        Command::Eval(args) => eval::run(args),
        Command::Tune(args) => tune::run(args),
        Command::Quant(args) => quant::run(args),
        Command::Devices(args) => run::devices(args),
        Command::Cache(args) => run::cache(args),
        Command::Explain(args) => see::explain(args.code.as_deref()).map(|text| output::print(text.trim_end())),
        Command::Doc(args) => {
            see::doc(args.name.as_deref(), args.models.as_deref()).map(|text| output::print(text.trim_end()))
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => e.report(),
    }
}
