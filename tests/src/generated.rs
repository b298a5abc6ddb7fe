//! A model of generated sizes, both ways: interpreted, and compiled for every target that every machine has.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use xfc_codegen::driver::Options;
use xfc_lang::graph::verify::verify;
use xfc_lang::graph::{DType, Program};
use xfc_lang::passes::precision::{self, CacheType};
use xfc_lang::reference::{Interpreter, State, Tensor};
use xfc_runtime::artifact::Artifact;
use xfc_runtime::model::{Model, ModelOptions};
use xfc_runtime::step::StepOutputs;
use xfc_runtime::weights::Checkpoint;

use crate::Result;
use crate::case::Layout;
use crate::compare::{Precision, Tier, compare};
use crate::compile::{TARGETS, artifact};
use crate::model::{expand, parameters};
use crate::synthetic::case;

/// The seeds of a test's models: a few from `first` in a quick run; `XFC_SEEDS` asks for more, `XFC_FIRST_SEED` for others.
pub fn seeds(first: u64, quick: u64) -> Range<u64> {
    let number = |name: &str, otherwise| std::env::var(name).ok().and_then(|n| n.parse().ok()).unwrap_or(otherwise);
    let first = number("XFC_FIRST_SEED", first);
    first..first + number("XFC_SEEDS", quick)
}

/// Checks the model of each seed and reports all failures.
///
/// # Panics
/// One fails.
pub fn check_seeds(first: u64, quick: u64, check: impl Fn(u64) -> Result<()>) {
    let failed = seeds(first, quick).filter_map(|seed| check(seed).err().map(|e| e.to_string()));
    let failed: Vec<String> = failed.collect();
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

/// What a compiled model is compared with.
pub struct Truth<'a> {
    /// The program in the model's dtype.
    pub program: &'a Program,
    /// The interpreter of it.
    pub rounded: Interpreter<'a, f32>,
    /// The interpreter of the program in f32, where the model's dtype or that of its caches is another: what rounding makes of it is the difference.
    pub exact: Option<Interpreter<'a, f32>>,
    /// The model's precision.
    pub precision: Precision,
}

/// The states of one sequence, as the interpreters have them.
#[derive(Default)]
pub struct Sequence {
    rounded: State<f32>,
    exact: State<f32>,
}

impl Truth<'_> {
    /// Compares what the compiled model made of `inputs` of the sequence, which is number `at` of the step; `place` tells which step.
    pub fn check(
        &self,
        sequence: &mut Sequence,
        inputs: &BTreeMap<String, Tensor>,
        (outputs, at): (&StepOutputs, usize),
        place: &str,
    ) -> Result<()> {
        let want = self.rounded.step(&mut sequence.rounded, inputs)?;
        let exact = self.exact.as_ref().map(|i| i.step(&mut sequence.exact, inputs)).transpose()?;
        for (name, want) in &want {
            let got = outputs.get(name).and_then(|o| o.rows_of(at)).ok_or_else(|| format!("no output {name}"))?;
            let values = want.to_f64();
            let tier = exact.as_ref().map_or(Tier::Model, |exact| {
                let apart = exact[name].to_f64().into_iter().zip(&values).map(|(a, b)| (a - b).abs());
                Tier::Rounded(apart.fold(0.0, f64::max))
            });
            compare(&format!("{name} of {place}"), &want.dims, got, &values, tier, self.precision)?;
        }
        Ok(())
    }
}

/// Expands the model of `config` in `dtype` with such caches, and gives `check` what is true of it, and it compiled for each target in turn.
pub fn both_ways(
    config: serde_json::Value,
    (dtype, cache): (DType, CacheType),
    check: impl Fn(&Truth<'_>, &Arc<Model>) -> Result<()>,
) -> Result<()> {
    let case = case("generated", config)?;
    let expanded = expand(&case)?;
    let weights = parameters(&case, &expanded)?;
    let mut program = expanded.program.clone();
    precision::apply(&mut program, dtype, cache)?;
    let is_rounded = program != expanded.program;
    let weights = |path: &str| weights.get(path).cloned().ok_or_else(|| format!("there is no {path}").into());
    let interpreter =
        |program| -> Result<_> { Ok(Interpreter::<f32>::new(verify(program).map_err(|v| v.to_string())?, &weights)?) };
    let truth = Truth {
        program: &program,
        rounded: interpreter(&program)?,
        exact: is_rounded.then(|| interpreter(&expanded.program)).transpose()?,
        precision: if dtype == DType::F32 { Precision::F32 } else { Precision::BF16 },
    };
    let artifact =
        Artifact::from_bytes(artifact(&case, &TARGETS, &Options { dtype, cache: Some(cache), ..Options::default() })?)?;
    let folder = case.checkpoint(Layout::Single)?;
    let checkpoint = Checkpoint::open(folder.path())?;
    for manifest in artifact.manifests() {
        let target = Some(manifest.target.name.clone());
        let model =
            Model::load(&artifact, &checkpoint, &ModelOptions { threads: Some(2), target, ..ModelOptions::default() })?;
        check(&truth, &model)?;
    }
    Ok(())
}
