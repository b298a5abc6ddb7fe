//! Runs the pipeline: skips, limits, dumps, times, and verifies after each pass.

use std::time::{Duration, Instant};

use thiserror::Error;

use super::{Pass, check_fused, pipeline};
use crate::graph::Program;
use crate::graph::verify::{Violations, verify};

/// Called before and after each pass that runs.
#[derive(Clone, Copy, Debug)]
pub struct Event<'p> {
    /// Place of the pass in the pipeline, from 0.
    pub index: usize,
    /// Its name.
    pub pass: &'static str,
    /// Before or after it.
    pub moment: Moment,
    /// The program at that moment.
    pub program: &'p Program,
}

/// When a dump is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// Before the pass.
    Before,
    /// After it, and after the verifier.
    After,
}

/// How the pipeline is run.
#[derive(Default)]
pub struct Options<'o> {
    /// Names of passes to leave out; required ones cannot be.
    pub skip: Vec<String>,
    /// Run only the first so many; the program is then not checked to be fused.
    pub limit: Option<usize>,
    /// Called before and after each pass.
    pub dump: Option<&'o mut dyn FnMut(Event<'_>)>,
}

impl std::fmt::Debug for Options<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Options").field("skip", &self.skip).field("limit", &self.limit).finish_non_exhaustive()
    }
}

/// What one pass did.
#[derive(Clone, Copy, Debug)]
pub struct Report {
    /// Place in the pipeline, from 0.
    pub index: usize,
    /// Its name.
    pub pass: &'static str,
    /// Whether it changed the program.
    pub changed: bool,
    /// Time it took, without the verifier's.
    pub elapsed: Duration,
}

/// Why the pipeline stopped.
#[derive(Clone, Debug, Error)]
pub enum PassError {
    /// `--skip-pass` names no pass.
    #[error("there is no pass '{name}'; the passes are {known}")]
    Unknown {
        /// What was asked for.
        name: String,
        /// All names.
        known: String,
    },
    /// `--skip-pass` names a required pass.
    #[error("pass '{0}' is required and cannot be skipped")]
    Required(String),
    /// The program was not valid when it came in.
    #[error("the graph is not valid:\n{0}")]
    Input(Violations),
    /// A defect of a pass.
    #[error("pass '{pass}' broke the graph, which is a defect of the compiler:\n{violations}")]
    Broken {
        /// Its name.
        pass: &'static str,
        /// What the verifier found.
        violations: Violations,
    },
    /// Operations that no kernel takes are left.
    #[error("these operations can be interpreted and not compiled yet:\n{0}")]
    Unfused(Violations),
}

/// Runs the pipeline over a program.
///
/// # Errors
/// Unknown or required names in `skip`; a program that was or becomes invalid; operations that remain unfused.
pub fn run(program: &mut Program, options: &mut Options<'_>) -> Result<Vec<Report>, PassError> {
    let passes = pipeline();
    for name in &options.skip {
        match passes.iter().find(|p| p.name() == name) {
            None => {
                let mut known: Vec<_> = passes.iter().map(|p| p.name()).collect();
                known.sort_unstable();
                known.dedup();
                return Err(PassError::Unknown { name: name.clone(), known: known.join(", ") });
            }
            Some(pass) if pass.required() => return Err(PassError::Required(name.clone())),
            Some(_) => {}
        }
    }
    verify(program).map_err(PassError::Input)?;
    let limit = options.limit.unwrap_or(passes.len()).min(passes.len());
    let mut reports = Vec::new();
    for (index, pass) in passes[..limit].iter().enumerate() {
        if options.skip.iter().any(|name| name == pass.name()) {
            continue;
        }
        reports.push(step(*pass, index, program, options)?);
    }
    if limit == passes.len() {
        check_fused(program).map_err(PassError::Unfused)?;
    }
    Ok(reports)
}

fn step(pass: &dyn Pass, index: usize, program: &mut Program, options: &mut Options<'_>) -> Result<Report, PassError> {
    let name = pass.name();
    if let Some(dump) = &mut options.dump {
        dump(Event { index, pass: name, moment: Moment::Before, program });
    }
    let start = Instant::now();
    let changed = pass.run(program);
    let elapsed = start.elapsed();
    verify(program).map_err(|violations| PassError::Broken { pass: name, violations })?;
    if let Some(dump) = &mut options.dump {
        dump(Event { index, pass: name, moment: Moment::After, program });
    }
    Ok(Report { index, pass: name, changed, elapsed })
}
