//! `bench`: how fast a model runs here, and how far that is from what the machine can do.

use super::{LoadArgs, Output, ProfileArgs};
use crate::artifact::Artifact;
use crate::bench::limits::Effort;
use crate::bench::{self, BenchOptions, Report};
use crate::error::Result;
use crate::files::{check_writable, write_atomic};
use crate::folder::CacheFolder;
use crate::profile::Recording;
use crate::session::DEFAULT_STEP_TOKENS;
use crate::weights::Checkpoint;
use clap::ValueEnum;
use std::path::PathBuf;

/// Form of the result.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum BenchFormat {
    /// A Markdown table.
    #[default]
    Md,
    /// Everything that was measured, as JSON.
    Json,
}

/// Arguments of `bench`, besides the model.
#[derive(clap::Args, Clone, Debug)]
pub struct BenchArgs {
    /// Weights: a checkpoint folder, a safetensors or GGUF file, or `random`, which needs no file [default: the model's folder, else random]
    #[arg(long, value_name = "PATH|random")]
    pub checkpoint: Option<String>,
    /// Lengths of prompts to time; 0 for none
    #[arg(short, long, value_name = "N,..", value_delimiter = ',', default_value = "512")]
    pub prompt: Vec<u64>,
    /// Numbers of tokens to generate one after another; 0 for none
    #[arg(short = 'n', long, value_name = "N,..", value_delimiter = ',', default_value = "128")]
    pub max_tokens: Vec<u64>,
    /// Numbers of sequences at a time
    #[arg(short, long, value_name = "N,..", value_delimiter = ',', default_value = "1")]
    pub batch: Vec<u32>,
    /// Tokens that sequences have before anything is timed
    #[arg(short, long, value_name = "N,..", value_delimiter = ',', default_value = "0")]
    pub depth: Vec<u64>,
    /// Numbers of threads [default: one for each processor]
    #[arg(short, long, value_name = "N,..", value_delimiter = ',')]
    pub threads: Vec<usize>,
    /// Number of the GPU to run on, where the code is for GPUs; `devices` lists them [default: 0]
    #[arg(long, value_name = "N")]
    pub gpu: Option<usize>,
    /// Timed runs of each test
    #[arg(short, long, value_name = "N", default_value_t = 5)]
    pub repeats: u32,
    /// How often a run is made until the machine was the same before and after it
    #[arg(long, value_name = "N", default_value_t = bench::ATTEMPTS)]
    pub attempts: u32,
    /// Most tokens of a step, over all sequences
    #[arg(long, value_name = "N", default_value_t = DEFAULT_STEP_TOKENS)]
    pub step_tokens: u64,
    /// Form of the result
    #[arg(long, value_enum, default_value_t)]
    pub format: BenchFormat,
    /// Write the result here instead of to the terminal
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Recording of one more run of each test.
    #[command(flatten)]
    pub profile: ProfileArgs,
    /// Name of the variant to run; set by a command that has an option for it
    #[arg(skip)]
    pub target: Option<String>,
}

impl BenchArgs {
    fn options(&self) -> BenchOptions {
        BenchOptions {
            prompts: self.prompt.clone(),
            generate: self.max_tokens.clone(),
            depths: self.depth.clone(),
            batches: self.batch.clone(),
            threads: self.threads.clone(),
            gpu: self.gpu,
            repeats: self.repeats,
            step_tokens: self.step_tokens,
            attempts: self.attempts,
            effort: Effort::default(),
            profile: self.profile.is_wanted(),
        }
    }
}

impl BenchArgs {
    /// Refuses what would fail whatever the model.
    ///
    /// # Errors
    /// Numbers that make no sense; files that cannot be written.
    pub fn check(&self) -> Result<()> {
        self.options().check()?;
        self.profile.check()?;
        self.output.iter().try_for_each(|path| check_writable(path))
    }
}

/// Runs the command.
///
/// # Errors
/// What loading, stepping and writing can fail with; a test does not fit the model.
pub fn run(artifact: &Artifact, args: &BenchArgs, output: &mut Output<'_>) -> Result<()> {
    args.check()?;
    let checkpoint = args.checkpoint.as_deref().unwrap_or("random");
    let checkpoint = Checkpoint::from_argument(checkpoint)?;
    let bar = LoadArgs::progress_bar();
    let progress = |done: u64, total: u64| LoadArgs::advance(&bar, done, total);
    let report = {
        let mut say = |text: std::fmt::Arguments<'_>| {
            bar.finish_and_clear();
            output.note(text)
        };
        let folder = CacheFolder::of_user()?;
        let (target, options) = (args.target.clone(), args.options());
        bench::run(artifact, &checkpoint, target, &options, Some(&progress), folder.as_ref(), &mut say)?
    };
    let text = match args.format {
        BenchFormat::Md => report.to_markdown(),
        BenchFormat::Json => format!("{:#}\n", report.to_json()),
    };
    match &args.output {
        Some(path) => {
            write_atomic(path, text.as_bytes())?;
            output.note(format_args!("written to {}\n", path.display()))?;
        }
        None => output.print(format_args!("{text}"))?,
    }
    write_recordings(artifact, &report, args, output)
}

/// All recorded tests, one after another, in the files that were asked for.
fn write_recordings(artifact: &Artifact, report: &Report, args: &BenchArgs, output: &mut Output<'_>) -> Result<()> {
    let Some(manifest) = artifact.manifests().find(|manifest| manifest.target.name == report.target) else {
        return Ok(());
    };
    let mut all = Recording::default();
    report.profiles.iter().for_each(|profile| all.append(&profile.recording));
    args.profile.write(&all, manifest, output)
}
