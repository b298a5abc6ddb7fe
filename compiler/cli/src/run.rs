//! `xfc run`, `xfc logits`, `xfc embed`, `xfc bench`: compile on the way, then the runtime's own commands.

use std::path::Path;
use std::time::Instant;

use xfc_check::taps::choose;
use xfc_codegen::driver;
use xfc_codegen::target::Target;
use xfc_lang::arch::matches_pattern;
use xfc_lang::graph::named::{named_values, tap};
use xfc_runtime::artifact::{Artifact, HostFeatures};
use xfc_runtime::commands::run::Record;
use xfc_runtime::commands::{self, CacheArgs, DevicesArgs, LoadArgs, Output};
use xfc_runtime::error::RuntimeError;
use xfc_runtime::files::check_writable;

use crate::args::{BenchCommand, EmbedCommand, LogitsCommand, ModelArgs, RunCommand};
use crate::auto;
use crate::cache;
use crate::error::{CliError, Result};
use crate::model::{self, Named};
use crate::output::remark;
use crate::stored;

/// Generates text or tokens.
///
/// # Errors
/// The model does not compile, or the runtime's command fails.
pub(crate) fn run(command: &RunCommand) -> Result<()> {
    let mut args = command.args.clone();
    args.check()?;
    command.tap_output.as_deref().map(check_writable).transpose()?;
    let artifact = open(&command.model, &mut args.load, &command.tap)?;
    if let Some(path) = &command.tap_output {
        let outputs = artifact.manifests().next().map(|m| &m.outputs[..]).unwrap_or_default();
        let names = outputs.iter().map(|o| o.name.clone()).filter(|name| command.taps(name)).collect();
        args.record = Some(Record { names, path: path.clone() });
    }
    with_output(|output| commands::run::run(&artifact, &args, output))
}

/// Computes outputs at every position.
///
/// # Errors
/// The model does not compile, or the runtime's command fails.
pub(crate) fn logits(command: &LogitsCommand) -> Result<()> {
    let mut args = command.args.clone();
    args.check()?;
    let artifact = open(&command.model, &mut args.load, &command.tap)?;
    with_output(|output| commands::logits::run(&artifact, &args, output))
}

/// Computes sentence embeddings.
///
/// # Errors
/// The model does not compile, or the runtime's command fails.
pub(crate) fn embed(command: &EmbedCommand) -> Result<()> {
    let mut args = command.args.clone();
    let artifact = open(&command.model, &mut args.load, &[])?;
    with_output(|output| commands::embed::run(&artifact, &args, output))
}

/// Measures speed.
///
/// # Errors
/// The model does not compile, or the runtime's command fails.
pub(crate) fn bench(command: &BenchCommand) -> Result<()> {
    let mut args = command.args.clone();
    args.check()?;
    let mut load = LoadArgs { checkpoint: args.checkpoint.take(), gpu: args.gpu, ..LoadArgs::default() };
    let artifact = open(&command.model, &mut load, &[])?;
    (args.checkpoint, args.target) = (load.checkpoint, load.target);
    with_output(|output| commands::bench::run(&artifact, &args, output))
}

/// Lists GPUs.
///
/// # Errors
/// There is none.
pub(crate) fn devices(args: &DevicesArgs) -> Result<()> {
    with_output(|output| commands::devices::run(args, output))
}

/// Shows or empties the cache folder.
///
/// # Errors
/// There is none, or the system refuses.
pub(crate) fn cache(args: &CacheArgs) -> Result<()> {
    with_output(|output| commands::cache::run(args, output))
}

impl RunCommand {
    /// Whether an output is one of the tapped values.
    fn taps(&self, name: &str) -> bool {
        self.tap.iter().any(|pattern| matches_pattern(pattern, name))
    }
}

fn with_output(command: impl FnOnce(&mut Output<'_>) -> xfc_runtime::error::Result<()>) -> Result<()> {
    let mut output = Output { out: &mut std::io::stdout().lock(), notes: &mut std::io::stderr() };
    match command(&mut output) {
        Err(error) if commands::is_closed_pipe(&error) => Ok(()),
        result => Ok(result?),
    }
}

/// The artifact that MODEL names, or that was compiled from it into the cache, with the values that `taps` name among its outputs. A
/// checkpoint folder is also where weights come from.
pub(crate) fn open(args: &ModelArgs, load: &mut LoadArgs, taps: &[String]) -> Result<Artifact> {
    let named = model::name(&args.model)?;
    let targets = args.plain_targets()?;
    if let [one] = &targets[..]
        && !args.target.is_empty()
    {
        load.target = Some(one.name().to_owned());
    }
    if let Named::Artifact(path) = &named {
        model::takes_no_options(path, args, &[])?;
        if !taps.is_empty() {
            return Err(CliError::usage(
                format!("{} is compiled: its outputs are fixed", path.display()),
                "give `--tap` with the card or the checkpoint folder",
            ));
        }
        return Ok(Artifact::open(path)?);
    }
    runs_here(&args.model, &targets, load.gpu)?;
    load.check()?;
    if args.tiny {
        // No checkpoint has these sizes.
        load.checkpoint.get_or_insert_with(|| "random".to_owned());
    }
    if let (Named::Checkpoint(path) | Named::Gguf(path), None) = (&named, &load.checkpoint) {
        load.checkpoint = Some(path.display().to_string());
    }
    let args = &model::with_config_of(load.checkpoint.as_deref(), &named, args);
    let args = &auto::resolve(&named, args, load)?;
    let start = Instant::now();
    let mut loaded = model::load(&named, args)?;
    let args = &stored::resolve(&mut loaded, load.checkpoint.as_deref(), args)?;
    if !taps.is_empty() {
        let named = named_values(&loaded.model.program);
        let chosen = choose(&named, taps)?;
        loaded.model.program = tap(&loaded.model.program, &chosen);
        loaded.key.push_str(&format!("\ntaps {:?}", chosen.iter().map(|n| &n.path).collect::<Vec<_>>()));
    }
    if load.no_cache {
        let compiled = driver::compile(&loaded.model, &loaded.card, &args.targets()?, &args.options()?)?;
        return Ok(Artifact::from_bytes(compiled.bytes)?);
    }
    let entry = cache::artifact(&loaded, args)?;
    let family = format!("{} ({})", loaded.model.arch.name, card_name(&loaded));
    let place = |word: &str| entry.path.as_ref().map_or(String::new(), |path| format!("{word}{}", path.display()));
    if entry.fresh {
        let seconds = start.elapsed().as_secs_f64();
        remark(format!("compiled {}: {family}, in {seconds:.2} s{}", args.model, place(", into ")));
    } else {
        remark(format!("{}: {family}, compiled before{}", args.model, place(": ")));
    }
    Ok(entry.artifact)
}

/// Refuses targets of which this machine runs none, before anything is compiled for them.
fn runs_here(model: &str, targets: &[Box<dyn Target>], gpu: Option<usize>) -> Result<()> {
    let described: Vec<_> = targets.iter().map(|target| target.describe()).collect();
    match HostFeatures::for_targets(&described, gpu)?.refusal(&described) {
        None => Ok(()),
        Some(problem) => Err(RuntimeError::Unsupported {
            subject: model.to_owned(),
            problem,
            help: "leave `--target` out, or give one that this machine runs; `xfc compile` compiles for others"
                .to_owned(),
        }
        .into()),
    }
}

fn card_name(loaded: &model::Loaded) -> String {
    let name = loaded.spec.sources.get(loaded.spec.source).map(|s| s.name.to_string()).unwrap_or_default();
    Path::new(&name).file_name().map_or(name.clone(), |n| n.to_string_lossy().into_owned())
}
