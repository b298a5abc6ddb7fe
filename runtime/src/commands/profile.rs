//! `--profile`: a table of where the time went, and files to look into.

use super::Output;
use crate::artifact::manifest::Manifest;
use crate::bench::limits::{Effort, Limits, prober_of};
use crate::device::cpu::ThreadPool;
use crate::error::{Result, RuntimeError};
use crate::files::{check_writable, write_atomic};
use crate::model::Model;
use crate::profile::{Recorder, Recording, Summary, chrome_trace, flame_html, table};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Steps that a file shows: enough to look at, and few enough to load.
const SHOWN_STEPS: usize = 64;

/// Arguments of profiling.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct ProfileArgs {
    /// Print where the time went: for each kernel time, GB/s, GFLOP/s and the share of the limit that binds it
    #[arg(long)]
    pub profile: bool,
    /// Write what each worker did when: FILE.json for Chrome's trace viewer or Perfetto, FILE.html as a flame chart; may repeat
    #[arg(long, value_name = "FILE")]
    pub profile_out: Vec<PathBuf>,
}

/// What a file of a recording holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Trace,
    Flame,
}

impl ProfileArgs {
    /// Whether anything is to be recorded.
    pub fn is_wanted(&self) -> bool {
        self.profile || !self.profile_out.is_empty()
    }

    /// Refuses files that would not be written in the end.
    ///
    /// # Errors
    /// A name that ends neither with `.json` nor with `.html`; a file that cannot be written.
    pub fn check(&self) -> Result<()> {
        self.profile_out.iter().try_for_each(|path| form(path).and_then(|_| check_writable(path)))
    }

    /// Writes the files.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn write(&self, recording: &Recording, manifest: &Manifest, output: &mut Output<'_>) -> Result<()> {
        for path in &self.profile_out {
            let text = match form(path)? {
                Form::Trace => chrome_trace(recording, manifest).to_string(),
                Form::Flame => {
                    flame_html(recording, manifest, &format!("{} on {}", manifest.model, manifest.target.name))?
                }
            };
            write_atomic(path, text.as_bytes())?;
            output.note(format_args!("{} recorded steps written to {}\n", recording.steps.len(), path.display()))?;
        }
        Ok(())
    }
}

fn form(path: &Path) -> Result<Form> {
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("json") => Ok(Form::Trace),
        Some("html") => Ok(Form::Flame),
        _ => Err(RuntimeError::request(
            format!("{}: a profile is a .json (trace) or a .html (flame chart)", path.display()),
            "end the name with .json or .html",
        )),
    }
}

/// A model being recorded for a command.
#[derive(Debug)]
pub(super) struct Recorded<'a> {
    args: &'a ProfileArgs,
    model: Arc<Model>,
    recorder: Arc<Recorder>,
}

impl<'a> Recorded<'a> {
    /// Records from now on, if that is wanted.
    pub(super) fn begin(args: &'a ProfileArgs, model: &Arc<Model>) -> Option<Self> {
        if !args.is_wanted() {
            return None;
        }
        let recorder = Arc::new(Recorder::new(model.device().n_workers()));
        model.device().record(Some(Arc::clone(&recorder)));
        Some(Self { args, model: Arc::clone(model), recorder })
    }

    /// Stops, measures the machine, and says what was recorded.
    pub(super) fn end(self, output: &mut Output<'_>) -> Result<()> {
        self.model.device().record(None);
        let (recording, manifest) = (self.recorder.take(), self.model.manifest());
        if self.args.profile {
            let limits = limits(&self.model)?;
            let summary = Summary::of(&recording, manifest, Some(&limits));
            output.note(format_args!(
                "{} steps; limits afterwards: {:.1} GB/s read, {:.0} GFLOP/s in f32, {:.0} in 16 bits, {:.0} in 8\n{}",
                summary.steps,
                limits.read * 1e-9,
                limits.f32_flops * 1e-9,
                limits.half_flops * 1e-9,
                limits.byte_ops * 1e-9,
                table(&summary),
            ))?;
        }
        self.args.write(&recording.first_steps(SHOWN_STEPS), manifest, output)
    }
}

/// What the machine can do, on the GPU or on as many threads as the model has.
fn limits(model: &Model) -> Result<Limits> {
    let no_threads = |error: std::io::Error| RuntimeError::Device { device: "cpu", problem: error.to_string() };
    let pool = Arc::new(ThreadPool::new(model.device().n_workers()).map_err(no_threads)?);
    prober_of(model, &pool, Effort::default())?.probe()
}
