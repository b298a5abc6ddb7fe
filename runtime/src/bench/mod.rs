//! How fast a model runs on this machine, and how far that is from what the machine can do.
//!
//! ```text
//! artifact + weights ──workload──▶ timed runs, each between two probes (settle, limits) ──▶ rows ──report──▶ Markdown, JSON
//!                                  one more run with a recorder ──▶ profile
//! ```
//!
//! Given what to time, promises for each test tokens a second and the bytes and operations that the model cannot do without, as shares of limits
//! that were measured on the same threads just before and after.

pub mod limits;
mod machine;
mod report;
mod row;
mod settle;
mod workload;

pub use machine::{Machine, Use};
pub use report::Report;
pub use row::{Row, Spread};
pub use settle::{AGREE_WITHIN, ATTEMPTS, Bracketed, OTHERS_AT_MOST, Settler};
pub use workload::{AxisKind, Kind, PlannedStep, Test, Workload};

use crate::artifact::Artifact;
use crate::artifact::manifest::Manifest;
use crate::device::cpu::ThreadPool;
use crate::error::{Result, RuntimeError};
use crate::folder::CacheFolder;
use crate::model::{Model, ModelOptions, Start, choose, new_pool};
use crate::need::Need;
use crate::profile::{Recorder, Recording, Summary};
use crate::session::SessionOptions;
use crate::weights::{Checkpoint, Progress};
use limits::{Effort, Limits, prober_of};
use std::fmt;
use std::sync::Arc;
use std::time::Instant;

/// Steps of generation that are recorded.
const RECORDED_STEPS: usize = 16;
/// Steps of each test that a trace shows.
const TRACED_STEPS: usize = 4;
/// Steps of generation that are made before any is timed.
const WARM_UP_STEPS: usize = 4;

/// What to time.
#[derive(Clone, Debug)]
pub struct BenchOptions {
    /// Lengths of prompts; 0 is none.
    pub prompts: Vec<u64>,
    /// Numbers of tokens to generate; 0 is none.
    pub generate: Vec<u64>,
    /// Tokens that sequences have before.
    pub depths: Vec<u64>,
    /// Numbers of sequences.
    pub batches: Vec<u32>,
    /// Numbers of threads; empty: one for each processor. On a GPU they are not used.
    pub threads: Vec<usize>,
    /// Number of the GPU, where code for GPUs runs; `None`: the first.
    pub gpu: Option<usize>,
    /// Runs that are timed for each test.
    pub repeats: u32,
    /// Most tokens of a step, over all sequences.
    pub step_tokens: u64,
    /// How often a run is made until the probes around it agree.
    pub attempts: u32,
    /// How thorough probes are.
    pub effort: Effort,
    /// Record one more run of each test.
    pub profile: bool,
}

impl BenchOptions {
    /// All tests for one number of threads, prompts first.
    pub fn tests(&self) -> Vec<Test> {
        let mut tests = Vec::new();
        for &batch in &self.batches {
            for &depth in &self.depths {
                let prompts = self.prompts.iter().map(|&tokens| Test { kind: Kind::Prompt, tokens, depth, batch });
                let generate = self.generate.iter().map(|&tokens| Test { kind: Kind::Generate, tokens, depth, batch });
                tests.extend(prompts.chain(generate).filter(|test| test.tokens > 0));
            }
        }
        tests
    }

    /// Refuses numbers that make no sense.
    ///
    /// # Errors
    /// Names the option.
    pub(crate) fn check(&self) -> Result<()> {
        let at_least_one = [
            ("sequences", "-b", self.batches.contains(&0)),
            ("threads", "-t", self.threads.contains(&0)),
            ("repeats", "--repeats", self.repeats == 0),
            ("attempts", "--attempts", self.attempts == 0),
            ("tokens of a step", "--step-tokens", self.step_tokens == 0),
        ];
        if let Some((what, option, _)) = at_least_one.into_iter().find(|(_, _, zero)| *zero) {
            return Err(RuntimeError::request(
                format!("0 {what} were asked for"),
                format!("give `{option}` at least 1"),
            ));
        }
        if self.tests().is_empty() {
            return Err(RuntimeError::request("there is nothing to time", "give `-p` or `-n` a number above 0"));
        }
        Ok(())
    }
}

/// Remarks on how far it is, for people.
pub type Say<'a> = &'a mut dyn FnMut(fmt::Arguments<'_>) -> Result<()>;

/// A recorded run of a test.
#[derive(Clone, Debug)]
pub struct Profile {
    /// `tg128, 2 threads`.
    pub title: String,
    /// Where the time went.
    pub summary: Summary,
    /// Its first steps.
    pub recording: Recording,
}

/// Times everything that `options` ask for. Weights are packed anew; what a GPU's driver makes of code is kept in `keep_code`.
///
/// # Errors
/// What loading and stepping fail with; a test does not fit the model.
pub fn run(
    artifact: &Artifact,
    checkpoint: &Checkpoint,
    target: Option<String>,
    options: &BenchOptions,
    progress: Option<Progress<'_>>,
    keep_code: Option<&CacheFolder>,
    say: Say<'_>,
) -> Result<Report> {
    options.check()?;
    // Before anything is loaded and timed: nothing is measured for a test that fails in the end.
    let variant = choose(artifact, target.as_deref(), options.gpu)?;
    let manifest = Arc::clone(variant.manifest());
    let threads: Vec<Option<usize>> = match options.threads.as_slice() {
        [] => vec![None],
        list if variant.is_ptx() => list.first().copied().map(Some).into_iter().collect(),
        list => list.iter().copied().map(Some).collect(),
    };
    for test in options.tests().iter().filter(|test| !is_left_out(test, &manifest)) {
        test.check(&manifest)?;
    }
    let largest = largest_session(options, &manifest)?;
    let mut model: Option<Arc<Model>> = None;
    let mut report: Option<Report> = None;
    for threads in threads {
        let pool = Arc::new(new_pool(threads)?);
        let begin = Instant::now();
        let with = ModelOptions {
            pool: Some(Arc::clone(&pool)),
            target: target.clone(),
            gpu: options.gpu,
            session: Some(largest.clone()),
            progress,
            keep_code,
            ..ModelOptions::default()
        };
        let loaded = match &model {
            None => Model::load(artifact, checkpoint, &with)?,
            Some(first) => first.with_threads(artifact, &with)?,
        };
        model.get_or_insert_with(|| Arc::clone(&loaded));
        let gpu = loaded.device().room()?.map(|room| room.device);
        let report = report.get_or_insert_with(|| Report::new(loaded.manifest(), checkpoint.path(), options));
        report.gpu = gpu;
        time_all(&loaded, &pool, options, (begin, report), say)?;
    }
    report.ok_or_else(|| RuntimeError::request("there is nothing to time", "give `-t` at least one number"))
}

/// The session of the test that needs most memory, so that none fails for want of it after others were timed.
///
/// # Errors
/// As [`Need::of`].
fn largest_session(options: &BenchOptions, manifest: &Manifest) -> Result<SessionOptions> {
    let mut largest = (0, SessionOptions::least());
    for test in options.tests().iter().filter(|test| !is_left_out(test, manifest)) {
        let session = test.session(manifest, options.step_tokens);
        let bytes = Need::of(manifest, &session.cache_options(manifest)?, 0)?.total();
        if bytes > largest.0 {
            largest = (bytes, session);
        }
    }
    Ok(largest.1)
}

/// Models that take whole sequences generate nothing; that is no reason not to time their prompts.
fn is_left_out(test: &Test, manifest: &Manifest) -> bool {
    manifest.whole_sequences && test.kind == Kind::Generate
}

/// All tests on one pool.
fn time_all(
    model: &Arc<Model>,
    pool: &Arc<ThreadPool>,
    options: &BenchOptions,
    (begin, report): (Instant, &mut Report),
    say: Say<'_>,
) -> Result<()> {
    let (manifest, device) = (model.manifest(), model.device());
    let begin_seconds = begin.elapsed().as_secs_f64();
    let prober = prober_of(model, pool, options.effort)?;
    let mut used = Use::now();
    let mut probe = || {
        let limits = prober.probe()?;
        let others = used.others_since();
        used = Use::now();
        // What others do on the processors is no matter of a GPU.
        Ok((limits, others.filter(|_| limits.launch_ns.is_none())))
    };
    let mut settler = Settler::new(&mut probe, options.attempts);
    for test in options.tests() {
        if is_left_out(&test, manifest) {
            say(format_args!("{}: left out, the model takes whole sequences\n", test.name()))?;
            continue;
        }
        let making = Instant::now();
        let mut workload = Workload::new(model, test, options.step_tokens)?;
        let test = workload.test();
        let place = match &report.gpu {
            Some(gpu) => gpu.clone(),
            None => threads_text(pool.workers()),
        };
        let title = format!("{}, batch {}, {place}", test.name(), test.batch);
        if report.start.is_none() {
            workload.run(Some(1))?;
            report.start = Some(Start::of(model, begin_seconds + making.elapsed().as_secs_f64()));
        }
        workload.run(Some(if test.kind == Kind::Generate { WARM_UP_STEPS } else { usize::MAX }))?;
        let mut row = Row { threads: pool.workers(), test, work: workload.work(), launches: None, runs: Vec::new() };
        for repeat in 1..=options.repeats {
            let mut timed = || {
                let before = device.counts().launches;
                let seconds = workload.run(None)?;
                row.launches = Some(device.counts().launches - before).filter(|launches| *launches > 0);
                Ok(seconds)
            };
            let mut retry = |why: &str| say(format_args!("{title}: run {repeat} is made again: {why}\n"));
            let run = settler.run(&mut timed, &mut retry)?;
            let rate = test.total_tokens() as f64 / run.seconds;
            say(format_args!("{title}: run {repeat} of {}: {rate:.2} tokens/s\n", options.repeats))?;
            row.runs.push(run);
        }
        if options.profile {
            let limits = row.runs.last().map(Bracketed::limits);
            report.profiles.push(record(model, &mut workload, title, limits.as_ref())?);
        }
        report.rows.push(row);
    }
    Ok(())
}

/// One more run, recorded.
fn record(model: &Arc<Model>, workload: &mut Workload, title: String, limits: Option<&Limits>) -> Result<Profile> {
    let recorder = Arc::new(Recorder::new(model.device().n_workers()));
    model.device().record(Some(Arc::clone(&recorder)));
    let ran = workload.run(Some(RECORDED_STEPS));
    model.device().record(None);
    ran?;
    let recording = recorder.take();
    let summary = Summary::of(&recording, model.manifest(), limits);
    Ok(Profile { title, summary, recording: recording.first_steps(TRACED_STEPS) })
}

/// `1 thread`, `2 threads`.
fn threads_text(n: usize) -> String {
    if n == 1 { "1 thread".to_owned() } else { format!("{n} threads") }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn options() -> BenchOptions {
        BenchOptions {
            prompts: vec![6],
            generate: vec![3, 0],
            depths: vec![0],
            batches: vec![1, 2],
            threads: vec![1],
            gpu: None,
            repeats: 1,
            step_tokens: 8,
            attempts: 1,
            effort: limits::tests::QUICK,
            profile: false,
        }
    }

    #[test]
    fn tests_are_all_combinations() {
        let names = |options: &BenchOptions| {
            options.tests().iter().map(|t| format!("{}x{}", t.name(), t.batch)).collect::<Vec<_>>()
        };
        assert_eq!(names(&options()), ["pp6x1", "tg3x1", "pp6x2", "tg3x2"]);
        let deep = BenchOptions { depths: vec![0, 5], batches: vec![1], ..options() };
        assert_eq!(names(&deep), ["pp6x1", "tg3x1", "pp6 @ d5x1", "tg3 @ d5x1"]);
        for (wrong, help) in [
            (BenchOptions { prompts: vec![0], generate: vec![0], ..options() }, "`-p` or `-n`"),
            (BenchOptions { batches: vec![1, 0], ..options() }, "`-b`"),
            (BenchOptions { threads: vec![0], ..options() }, "`-t`"),
            (BenchOptions { repeats: 0, ..options() }, "`--repeats`"),
            (BenchOptions { attempts: 0, ..options() }, "`--attempts`"),
            (BenchOptions { step_tokens: 0, ..options() }, "`--step-tokens`"),
        ] {
            let error = wrong.check().unwrap_err();
            assert!(error.help().is_some_and(|said| said.contains(help)), "{error:?}");
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn a_model_is_timed_and_recorded() {
        let artifact = crate::tests::artifact();
        let mut said = String::new();
        let mut say = |text: fmt::Arguments<'_>| {
            said.push_str(&text.to_string());
            Ok(())
        };
        let options = BenchOptions { depths: vec![4], threads: vec![1, 2], profile: true, ..options() };
        let report = run(&artifact, &Checkpoint::random(0), None, &options, None, None, &mut say).unwrap();
        assert_eq!((report.rows.len(), report.profiles.len()), (8, 8));
        for row in &report.rows {
            assert_eq!(row.runs.len(), 1);
            assert!(row.runs[0].seconds > 0.0 && row.runs[0].before.read > 0.0);
        }
        let profile = &report.profiles[1];
        assert_eq!((profile.title.as_str(), profile.summary.steps), ("tg3 @ d4, batch 1, 1 thread", 3));
        assert_eq!(profile.summary.rows.iter().map(|row| row.calls).sum::<u64>(), 6);
        assert!(said.contains("pp6 @ d4, batch 2, 2 threads: run 1 of 1"), "{said}");
        let too_deep = BenchOptions { depths: vec![100], ..options };
        let error = run(&artifact, &Checkpoint::random(0), None, &too_deep, None, None, &mut |_| Ok(())).unwrap_err();
        assert!(error.to_string().contains("the model has 40"), "{error}");
    }
}
