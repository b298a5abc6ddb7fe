//! Compiled against interpreter: a sequence whole, in pieces, token by token, and several in one step, on each target.
//!
//! The interpreter runs every sequence whole and alone, once; whatever way compiled code takes must come to the same. Where a plan multiplies some products of a phase as
//! bf16 that the program has in integers of 8 bits, it runs the steps of a check as they are cut, each in its own arithmetic ([`crate::truth`]).

use xfc_codegen::target::Target;
use xfc_runtime::artifact::manifest::Manifest;

use crate::compare::{Element, Measure, Tier, measure_unless};
use crate::error::{CheckError, Result};
use crate::inputs::{self, Inputs, Which};
use crate::subject::{Cuts, Outputs, Subject, run};
use crate::truth;

/// How much is checked.
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    /// Tokens of the longest sequence.
    pub tokens: u64,
    /// Changes the inputs.
    pub seed: u64,
}

/// One way to compute sequences.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// For people.
    pub name: String,
    /// Which of the sequences.
    pub sequences: Vec<usize>,
    /// How they are cut.
    pub cuts: Cuts,
}

/// What a check found on a target.
#[derive(Clone, Debug)]
pub struct Finding {
    /// Name of the target.
    pub target: String,
    /// The check.
    pub check: Check,
    /// The output that is furthest off, relative to what is allowed.
    pub output: String,
    /// Its shape.
    pub dims: Vec<usize>,
    /// How it differs.
    pub measure: Measure,
    /// Of the steps of the check, in how many the plan multiplies bf16 where the program says integers of 8 bits; the interpreter does so too.
    pub halved_steps: usize,
}

impl Finding {
    /// Whether everything agreed.
    pub fn passed(&self) -> bool {
        self.measure.first.is_none()
    }
}

/// What all checks found.
#[derive(Clone, Debug, Default)]
pub struct Verification {
    /// In the order they ran.
    pub findings: Vec<Finding>,
    /// The inputs of each sequence.
    pub sequences: Vec<Inputs>,
}

impl Verification {
    /// The first check that failed.
    pub fn failure(&self) -> Option<&Finding> {
        self.findings.iter().find(|f| !f.passed())
    }
}

/// Lengths of the sequences on the first axis.
fn lengths(tokens: u64) -> [u64; 3] {
    [tokens, (tokens * 2 / 3).max(1), tokens.min(5)]
}

/// Made-up inputs of the sequences that the checks use; the last gives all inputs, where some are optional.
pub fn sequences(manifest: &Manifest, extent: Extent) -> Vec<Inputs> {
    let most = manifest.most_elements(0).unwrap_or(u64::MAX);
    let tokens = lengths(extent.tokens.min(most).max(1));
    let make = |index: usize, which: Which| {
        // Other axes have other lengths, so that none is taken for another.
        let length = |axis: usize| if axis == 0 { tokens[index] } else { tokens[(index + axis) % 3].max(2) - 1 };
        let known = |axis: usize| manifest.extents.get(axis).copied().flatten();
        let lengths: Vec<u64> = (0..manifest.axes.len()).map(|a| known(a).unwrap_or_else(|| length(a))).collect();
        inputs::random(manifest, &lengths, extent.seed.wrapping_add(index as u64), which)
    };
    let mut sequences: Vec<Inputs> = (0..3).map(|index| make(index, Which::Required)).collect();
    if inputs::has_optional(manifest) {
        sequences.push(make(0, Which::All));
    }
    sequences
}

/// The checks that a model allows.
pub fn checks(manifest: &Manifest, sequences: &[Inputs]) -> Vec<Check> {
    let length = |s: usize| sequences.get(s).map_or(0, |inputs| inputs::length(manifest, inputs, 0));
    let check = |name: String, sequences: Vec<usize>, cuts: Cuts| Check { name, sequences, cuts };
    let [a, b, c] = [length(0), length(1), length(2)];
    let mut checks = vec![check(format!("whole: {a} tokens"), vec![0], vec![vec![a]])];
    if sequences.len() > 3 {
        checks.push(check(format!("whole, all inputs: {a} tokens"), vec![3], vec![vec![length(3)]]));
    }
    if manifest.whole_sequences {
        checks.push(check(
            format!("3 sequences: {a}, {b} and {c} tokens"),
            vec![0, 1, 2],
            vec![vec![a], vec![b], vec![c]],
        ));
        return checks;
    }
    if a > 1 {
        let pieces = pieces(a);
        let shown: Vec<String> = pieces.iter().map(u64::to_string).collect();
        checks.push(check(format!("in pieces: {}", shown.join(" + ")), vec![0], vec![pieces]));
        checks.push(check(format!("token by token: {a} steps"), vec![0], vec![vec![1; a as usize]]));
        checks.push(check(format!("3 sequences: {a}, {b} and {c} tokens"), vec![0, 1, 2], shared(a, b, c)));
    }
    checks
}

/// 1, then growing pieces, then the rest.
fn pieces(tokens: u64) -> Vec<u64> {
    let mut pieces = vec![1];
    let mut left = tokens - 1;
    let mut next = 3;
    while left > 0 {
        let piece = if next * 2 > left { left } else { next };
        pieces.push(piece);
        left -= piece;
        next = next * 2 + 1;
    }
    pieces
}

/// Steps that mix long pieces with single tokens, and in which sequences come and go.
fn shared(a: u64, b: u64, c: u64) -> Cuts {
    let split = |n: u64, tail: u64| (n - tail.min(n - 1), tail.min(n - 1));
    let (a0, a1) = split(a, 2);
    let (b0, b1) = split(b, 1);
    let (c0, c1) = split(c, c / 2);
    vec![vec![a0, a1.min(1), a1.saturating_sub(1), 0], vec![0, b0, b1, 0], vec![c0, 0, 0, c1]]
}

/// Runs all checks on all targets. `progress` is told what comes next.
///
/// # Errors
/// The model has no outputs, or cannot be compiled, interpreted or run.
pub fn verify(
    subject: &Subject<'_>,
    targets: &[Box<dyn Target>],
    extent: Extent,
    progress: &mut dyn FnMut(&str),
) -> Result<Verification> {
    let mut done = Verification::default();
    let mut truth: Vec<Outputs> = Vec::new();
    let nothing = || Err(CheckError::request("the model computes no output", "return what is to be checked"));
    if subject.model.program.graphs.first().is_none_or(|graph| graph.outputs().is_empty()) {
        return nothing();
    }
    for target in targets {
        progress(&format!("compiling for {}", target.name()));
        let model = subject.compile(&subject.model.program, &**target)?;
        if truth.is_empty() {
            done.sequences = sequences(model.manifest(), extent);
            progress("interpreting");
            truth = subject.interpret::<f32>(&subject.model.program, &done.sequences.iter().collect::<Vec<_>>())?;
            if truth.iter().any(|outputs| outputs.values().all(|rows| rows.values.is_empty())) {
                return nothing();
            }
        }
        for check in checks(model.manifest(), &done.sequences) {
            progress(&format!("{}: {}", target.name(), check.name));
            let chosen: Vec<&Inputs> = check.sequences.iter().map(|s| &done.sequences[*s]).collect();
            let got = run(&model, &chosen, &check.cuts)?;
            let program = &subject.model.program;
            let own = subject.interpret_as::<f32>(model.manifest(), program, &chosen, &check.cuts)?;
            let want: Vec<&Outputs> = match &own {
                Some(own) => own.iter().collect(),
                None => check.sequences.iter().map(|s| &truth[*s]).collect(),
            };
            let steps = truth::of_steps(model.manifest(), &chosen, &check.cuts);
            let halved_steps = steps.iter().filter(|step| !step.is_empty()).count();
            done.findings.push(Finding { halved_steps, ..worst(subject, target.name(), check, &got, &want) });
        }
    }
    Ok(done)
}

/// The output that departs most from what the interpreter says.
fn worst(subject: &Subject<'_>, target: &str, check: Check, got: &[Outputs], want: &[&Outputs]) -> Finding {
    let mut worst: Option<(f64, Finding)> = None;
    for (got, want) in got.iter().zip(want) {
        for (name, want) in *want {
            let empty = Vec::new();
            let values = got.get(name).map_or(&empty, |rows| &rows.values);
            let measure = measure_rows(values, &want.values, subject);
            let share = measure.furthest.map_or(0.0, |e: Element| e.difference / e.allowed);
            if worst.as_ref().is_none_or(|(most, _)| share > *most) {
                let finding = Finding {
                    target: target.to_owned(),
                    check: check.clone(),
                    output: name.clone(),
                    dims: want.dims.clone(),
                    measure,
                    halved_steps: 0,
                };
                worst = Some((share, finding));
            }
        }
    }
    let nothing = || Finding {
        target: target.to_owned(),
        check,
        output: String::new(),
        dims: Vec::new(),
        measure: Measure::default(),
        halved_steps: 0,
    };
    worst.map_or_else(nothing, |(_, finding)| finding)
}

/// As [`measure_unless`] the interpreter's value is not finite; rows that are missing depart.
pub(crate) fn measure_rows(got: &[f64], want: &[f64], subject: &Subject<'_>) -> Measure {
    if got.len() == want.len() {
        return measure_unless(got, want, Tier::Value, subject.precision(), |want| !want.is_finite());
    }
    Measure::missing(want.len())
}
