//! Loading a model as a command does: checkpoint by argument, progress on the terminal.

use crate::artifact::Artifact;
use crate::artifact::manifest::Manifest;
use crate::error::{Result, RuntimeError};
use crate::folder::CacheFolder;
use crate::gguf::is_gguf_file;
use crate::model::{Model, ModelOptions, choose};
use crate::session::SessionOptions;
use crate::text::settings::trained_tokens;
use crate::text::tokenizer::Tokenizer;
use crate::weights::Checkpoint;
use indicatif::{ProgressBar, ProgressStyle};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Where weights and words come from, and how many threads work.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct LoadArgs {
    /// Weights: a checkpoint folder, a safetensors or GGUF file, or `random`
    #[arg(long, value_name = "PATH|random")]
    pub checkpoint: Option<String>,
    /// Make up numbers for tensors that the checkpoint lacks, and say which
    #[arg(long)]
    pub allow_missing: bool,
    /// Tokenizer: tokenizer.json or its folder [default: the checkpoint's]
    #[arg(long, value_name = "PATH")]
    pub tokenizer: Option<PathBuf>,
    /// Threads [default: one for each processor]
    #[arg(short, long, value_name = "N")]
    pub threads: Option<usize>,
    /// Number of the GPU to run on, where the code is for GPUs; `devices` lists them [default: 0]
    #[arg(long, value_name = "N")]
    pub gpu: Option<usize>,
    /// Pack the weights and compile for the GPU anew, and keep nothing in the cache folder
    #[arg(long)]
    pub no_cache: bool,
    /// Name of the variant to run; set by a command that has an option for it
    #[arg(skip)]
    pub target: Option<String>,
}

impl LoadArgs {
    /// What [`LoadArgs::load`] would load.
    ///
    /// # Errors
    /// No variant runs here.
    pub fn choose(&self, artifact: &Artifact) -> Result<Arc<Manifest>> {
        Ok(Arc::clone(choose(artifact, self.target.as_deref(), self.gpu)?.manifest()))
    }

    /// Loads the model for a session, with a progress bar on standard error where that is a terminal.
    ///
    /// # Errors
    /// As [`Model::load`]; no checkpoint was given.
    pub fn load(&self, artifact: &Artifact, session: &SessionOptions) -> Result<Arc<Model>> {
        let checkpoint = self.checkpoint.as_deref().ok_or_else(|| {
            RuntimeError::request(
                "no checkpoint was given",
                "give `--checkpoint PATH`, or `--checkpoint random` to try without one",
            )
        })?;
        let mut checkpoint = Checkpoint::from_argument(checkpoint)?;
        if self.allow_missing {
            checkpoint = checkpoint.with_missing_made_up(0);
        }
        // Without a cache folder everything works as well, later.
        let folder = if self.no_cache { None } else { CacheFolder::of_user()? };
        let bar = Self::progress_bar();
        let progress = |done: u64, total: u64| Self::advance(&bar, done, total);
        let copying = |done: u64, total: u64| Self::advance_copy(&bar, done, total);
        let options = ModelOptions {
            threads: self.threads,
            target: self.target.clone(),
            gpu: self.gpu,
            session: Some(session.clone()),
            progress: Some(&progress),
            copying: Some(&copying),
            keep: folder.as_ref(),
            keep_code: folder.as_ref(),
            ..ModelOptions::default()
        };
        let model = Model::load(artifact, &checkpoint, &options).map_err(RuntimeError::or_made_up);
        bar.finish_and_clear();
        for remark in model.iter().flat_map(|model| model.remarks()) {
            // Where standard error cannot be written, nobody is there to be warned.
            let _ = writeln!(std::io::stderr(), "warning: {remark}");
        }
        model
    }

    /// A bar for packing weights and copying them to a device, which draws nothing where standard error is not a terminal.
    pub(super) fn progress_bar() -> ProgressBar {
        let style =
            ProgressStyle::with_template("{msg} {bar:40} {percent} %").unwrap_or_else(|_| ProgressStyle::default_bar());
        ProgressBar::new(0).with_style(style).with_message("loading weights")
    }

    /// Moves the bar for copying, which begins anew behind that for packing.
    pub(super) fn advance_copy(bar: &ProgressBar, done: u64, total: u64) {
        bar.set_message("copying to GPU ");
        bar.set_length(total);
        bar.set_position(done);
    }

    /// Moves the bar; threads report in any order.
    pub(super) fn advance(bar: &ProgressBar, done: u64, total: u64) {
        bar.set_length(total);
        bar.set_position(bar.position().max(done));
    }

    /// The folder with the checkpoint's other files, if there is a checkpoint; a GGUF file, which holds all itself, is the file.
    pub fn folder(&self) -> Option<PathBuf> {
        let path = self.path()?;
        if path.is_dir() || is_gguf_file(path) {
            return Some(path.to_owned());
        }
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        Some(folder.unwrap_or(Path::new(".")).to_owned())
    }

    /// The checkpoint's path, if it has one.
    fn path(&self) -> Option<&Path> {
        self.checkpoint.as_deref().filter(|&checkpoint| checkpoint != "random").map(Path::new)
    }

    /// Refuses what is no checkpoint, before anything is looked for beside it or compiled for it.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn check(&self) -> Result<()> {
        self.path().map_or(Ok(()), |path| Checkpoint::open(path).map(drop))
    }

    /// What is to be said where more positions are used than the model was trained for; `None` where they are not more, or nothing is known.
    ///
    /// # Errors
    /// The checkpoint's config.json cannot be read.
    pub fn beyond_training(&self, tokens: u64) -> Result<Option<String>> {
        let folder = self.folder().filter(|folder| folder.is_dir());
        let trained = folder.as_deref().map(trained_tokens).transpose()?.flatten();
        Ok(trained.filter(|trained| tokens > *trained).map(|trained| {
            format!("warning: {tokens} positions, where config.json says max_position_embeddings {trained}: the model was not trained for more")
        }))
    }

    /// The tokenizer.
    ///
    /// # Errors
    /// There is none, or it cannot be read.
    pub fn open_tokenizer(&self) -> Result<Tokenizer> {
        self.check()?;
        match self.tokenizer.clone().or_else(|| self.folder()) {
            Some(path) => Tokenizer::open(&path),
            None => Err(RuntimeError::request(
                "there is no tokenizer, because no checkpoint folder was given",
                "give `--tokenizer PATH`, or token ids with `--tokens`",
            )),
        }
    }
}
