//! `xfc run`, `xfc logits`, `xfc embed`, `xfc bench`: compile on the way, then the runtime's own commands.

use std::path::Path;
use std::time::Instant;

use xfc_runtime::artifact::Artifact;
use xfc_runtime::commands::{self, LoadArgs, Output};

use crate::args::{BenchCommand, EmbedCommand, LogitsCommand, ModelArgs, RunCommand};
use crate::cache;
use crate::error::{CliError, Result};
use crate::model::{self, Named};

/// Generates text or tokens.
///
/// # Errors
/// The model does not compile, or the runtime's command fails.
pub(crate) fn run(command: &RunCommand) -> Result<()> {
    let mut args = command.args.clone();
    let artifact = open(&command.model, &mut args.load)?;
    with_output(|output| commands::run::run(&artifact, &args, output))
}

/// Computes outputs at every position.
///
/// # Errors
/// The model does not compile, or the runtime's command fails.
pub(crate) fn logits(command: &LogitsCommand) -> Result<()> {
    let mut args = command.args.clone();
    let artifact = open(&command.model, &mut args.load)?;
    with_output(|output| commands::logits::run(&artifact, &args, output))
}

/// Computes sentence embeddings.
///
/// # Errors
/// The model does not compile, or the runtime's command fails.
pub(crate) fn embed(command: &EmbedCommand) -> Result<()> {
    let mut args = command.args.clone();
    let artifact = open(&command.model, &mut args.load)?;
    with_output(|output| commands::embed::run(&artifact, &args, output))
}

/// Measures speed.
///
/// # Errors
/// The model does not compile, or the runtime's command fails.
pub(crate) fn bench(command: &BenchCommand) -> Result<()> {
    let mut args = command.args.clone();
    let mut load = LoadArgs { checkpoint: args.checkpoint.take(), ..LoadArgs::default() };
    let artifact = open(&command.model, &mut load)?;
    (args.checkpoint, args.target) = (load.checkpoint, load.target);
    with_output(|output| commands::bench::run(&artifact, &args, output))
}

fn with_output(command: impl FnOnce(&mut Output<'_>) -> xfc_runtime::error::Result<()>) -> Result<()> {
    let mut output = Output { out: &mut std::io::stdout().lock(), notes: &mut std::io::stderr() };
    match command(&mut output) {
        Err(error) if commands::is_closed_pipe(&error) => Ok(()),
        result => Ok(result?),
    }
}

/// The artifact that MODEL names, or that was compiled from it into the cache. A checkpoint folder is also where weights come from.
#[expect(clippy::print_stderr, reason = "says what was compiled, and where it went")]
fn open(args: &ModelArgs, load: &mut LoadArgs) -> Result<Artifact> {
    let named = model::name(&args.model)?;
    if let [one] = &args.targets()?[..]
        && !args.target.is_empty()
    {
        load.target = Some(one.name().to_owned());
    }
    if let Named::Artifact(path) = &named {
        if args.tiny {
            return Err(CliError::usage(
                format!("{} is compiled: its sizes are fixed", path.display()),
                "give `--tiny` with the card or the checkpoint folder",
            ));
        }
        return Ok(Artifact::open(path)?);
    }
    if args.tiny {
        // No checkpoint has these sizes.
        load.checkpoint.get_or_insert_with(|| "random".to_owned());
    }
    if let (Named::Checkpoint(dir), None) = (&named, &load.checkpoint) {
        load.checkpoint = Some(dir.display().to_string());
    }
    let start = Instant::now();
    let loaded = model::load(&named, args)?;
    let entry = cache::artifact(&loaded, args)?;
    let family = format!("{} ({})", loaded.model.arch.name, card_name(&loaded));
    if entry.fresh {
        eprintln!(
            "compiled {}: {family}, in {:.2} s, into {}",
            args.model,
            start.elapsed().as_secs_f64(),
            entry.path.display()
        );
    } else {
        eprintln!("{}: {family}, compiled before: {}", args.model, entry.path.display());
    }
    Ok(Artifact::open(&entry.path)?)
}

fn card_name(loaded: &model::Loaded) -> String {
    let name = loaded.spec.sources.get(loaded.spec.source).map(|s| s.name.to_string()).unwrap_or_default();
    Path::new(&name).file_name().map_or(name.clone(), |n| n.to_string_lossy().into_owned())
}
