//! What is checked: a model with its weights, compiled for a target or interpreted, with any of its values among its outputs.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::sync::Arc;

use xfc_codegen::driver::{self, Options};
use xfc_codegen::target::Target;
use xfc_lang::arch::Model;
use xfc_lang::graph::named::{Named, tap};
use xfc_lang::graph::verify::{Verified, verify};
use xfc_lang::graph::{DType, Program};
use xfc_lang::passes::precision::CacheType;
use xfc_lang::passes::quantise;
use xfc_lang::reference::{Float, Interpreter, State, Tensor};
use xfc_runtime::artifact::Artifact;
use xfc_runtime::artifact::manifest::Manifest;
use xfc_runtime::model::{Model as Loaded, ModelOptions};
use xfc_runtime::session::SessionOptions;
use xfc_runtime::step::{StepInput, Wanted};
use xfc_runtime::weights::Checkpoint;

use crate::compare::Precision;
use crate::error::{CheckError, Result};
use crate::inputs::{self, Inputs};
use crate::truth::{self, Halves};
use crate::weights::parameter;

/// A tensor of numbers.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rows {
    /// Sizes, rows first.
    pub dims: Vec<usize>,
    /// Row-major.
    pub values: Vec<f64>,
}

/// Outputs by name.
pub type Outputs = BTreeMap<String, Rows>;

/// A model and everything that decides what it computes.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// Expanded, in f32.
    pub model: &'a Model,
    /// Its weights.
    pub checkpoint: &'a Checkpoint,
    /// The weights that the interpreter reads, where they are others: a test plants a difference so.
    pub truth: Option<&'a Checkpoint>,
    /// How it is compiled; the dtype is the interpreter's too.
    pub options: &'a Options,
    /// Threads of compiled code; `None`: one for each processor.
    pub threads: Option<usize>,
}

impl Subject<'_> {
    /// The precision that its values have.
    pub fn precision(&self) -> Precision {
        // What is rounded to 8 bits in groups is about as narrow as bf16.
        let (dtype, cache) = (self.options.dtype, self.options.cache_type());
        let narrow = dtype != DType::F32 || cache != CacheType::Float(DType::F32) || !self.options.quant.is_empty();
        if narrow { Precision::BF16 } else { Precision::F32 }
    }

    /// The program with `taps` among its outputs.
    pub fn program(&self, taps: &[&Named]) -> Program {
        if taps.is_empty() { self.model.program.clone() } else { tap(&self.model.program, taps) }
    }

    /// The program as it is interpreted: the precision of everything explicit.
    fn prepared(&self, program: &Program) -> Result<Program> {
        let mut program = program.clone();
        quantise::prepare(&mut program, self.options.dtype, self.options.cache_type(), &self.options.quant)?;
        Ok(program)
    }

    /// A parameter as the interpreter reads it.
    fn weight(&self, path: &str) -> Result<Tensor, Box<dyn Error + Send + Sync>> {
        let held = self.options.quant.of(path).filter(|blocks| blocks.stored);
        parameter(self.model, self.truth.unwrap_or(self.checkpoint), path, held).map_err(Into::into)
    }

    /// What the interpreter makes of each sequence, whole and alone, in `F`.
    ///
    /// # Errors
    /// Weights or inputs that do not fit.
    pub fn interpret<F: Float>(&self, program: &Program, sequences: &[&Inputs]) -> Result<Vec<Outputs>> {
        let program = self.prepared(program)?;
        let interpreter = Interpreter::<F>::new(verified(&program)?, &|path| self.weight(path))?;
        let run = |inputs: &&Inputs| {
            let outputs = interpreter.step(&mut State::new(), &inputs::tensors(&program, inputs))?;
            let rows = |(name, tensor): (String, Tensor)| (name, Rows { values: tensor.to_f64(), dims: tensor.dims });
            Ok(outputs.into_iter().map(rows).collect())
        };
        sequences.iter().map(run).collect()
    }

    /// What the interpreter makes of sequences that are cut into steps, where in some of them a plan multiplies what the program does not say ([`truth`]); `None` where in none:
    /// then [`interpret`](Self::interpret) is the truth, whatever the cuts.
    ///
    /// # Errors
    /// As [`interpret`](Self::interpret); a plan that no program has.
    pub fn interpret_as<F: Float>(
        &self,
        manifest: &Manifest,
        program: &Program,
        sequences: &[&Inputs],
        cuts: &Cuts,
    ) -> Result<Option<Vec<Outputs>>> {
        let steps = truth::of_steps(manifest, sequences, cuts);
        if steps.iter().all(BTreeSet::is_empty) {
            return Ok(None);
        }
        let plain = self.prepared(program)?;
        let halves: BTreeSet<&Halves> = steps.iter().collect();
        let programs: Vec<(&Halves, Program)> =
            halves.into_iter().map(|of| Ok((of, truth::with_halves(&plain, of)?))).collect::<Result<_>>()?;
        // All read the same weights.
        let first = Interpreter::<F>::new(verified(&plain)?, &|path| self.weight(path))?;
        let interpreters: BTreeMap<&Halves, Interpreter<'_, F>> =
            programs.iter().map(|(of, program)| Ok((*of, first.of(verified(program)?)?))).collect::<Result<_>>()?;
        let run = |(inputs, cuts): (&&Inputs, &Vec<u64>)| {
            let (mut state, mut start, mut all) = (State::new(), 0, Outputs::new());
            for (n, of) in cuts.iter().zip(&steps).filter(|(n, _)| **n > 0) {
                let piece: Inputs = inputs::piece(manifest, inputs, start, *n).into_iter().collect();
                let outputs = interpreters[of].step(&mut state, &inputs::tensors(&plain, &piece))?;
                for (name, tensor) in outputs {
                    let values = tensor.to_f64();
                    let rows = all.entry(name).or_insert_with(|| Rows {
                        dims: std::iter::once(0).chain(tensor.dims.iter().skip(1).copied()).collect(),
                        values: Vec::new(),
                    });
                    rows.dims[0] += tensor.dims.first().copied().unwrap_or(1);
                    rows.values.extend(values);
                }
                start += n;
            }
            Ok(all)
        };
        sequences.iter().zip(cuts).map(run).collect::<Result<_>>().map(Some)
    }

    /// The program compiled for a target and loaded with the checkpoint.
    ///
    /// # Errors
    /// A construct without a lowering, a checkpoint that does not fit, a machine that cannot run the code.
    pub fn compile(&self, program: &Program, target: &dyn Target) -> Result<Arc<Loaded>> {
        let model = Model { program: program.clone(), ..self.model.clone() };
        let fused = driver::fuse(&model, self.options)?;
        let built = driver::build_kernels(&model, &fused.program, target, self.options)?;
        let artifact = Artifact::from_bytes(driver::write_artifact("", &[built])?)?;
        let options = ModelOptions { threads: self.threads, ..ModelOptions::default() };
        Ok(Loaded::load(&artifact, self.checkpoint, &options)?)
    }
}

fn verified(program: &Program) -> Result<Verified<'_>> {
    verify(program).map_err(|v| CheckError::request(v.to_string(), "this is a defect of xfc"))
}

/// How sequences are cut into steps: for each, how many elements of the first axis each step adds; 0 leaves it out of the step.
pub type Cuts = Vec<Vec<u64>>;

/// What a compiled model makes of sequences that share steps as `cuts` say: the outputs of each sequence's steps, one below the other.
///
/// # Errors
/// Inputs that the model does not take, or a device that failed.
pub fn run(model: &Arc<Loaded>, sequences: &[&Inputs], cuts: &Cuts) -> Result<Vec<Outputs>> {
    let manifest = model.manifest();
    let n_steps = cuts.iter().map(Vec::len).max().unwrap_or(0);
    let longest = |inputs: &&Inputs, axes: std::ops::Range<usize>| {
        axes.map(|axis| inputs::length(manifest, inputs, axis)).max().unwrap_or(1).max(1)
    };
    let n_axes = manifest.axes.len();
    let most = |axes: std::ops::Range<usize>| sequences.iter().map(|inputs| longest(inputs, axes.clone())).max();
    let lengths: Vec<u64> = sequences.iter().map(|inputs| longest(inputs, 0..n_axes)).collect();
    let options = SessionOptions {
        max_sequences: sequences.len().max(1) as u32,
        context_tokens: most(0..1),
        once_tokens: most(1..n_axes),
        // Whatever the cuts, no step is longer than all that there is.
        step_tokens: lengths.iter().sum::<u64>().max(1),
        ..SessionOptions::default()
    };
    let mut session = model.session(&options)?;
    let ids = sequences.iter().map(|_| session.add_sequence()).collect::<Result<Vec<_>, _>>()?;
    let mut starts = vec![0; sequences.len()];
    let mut results: Vec<Outputs> = vec![Outputs::new(); sequences.len()];
    for step in 0..n_steps {
        let length = |s: &usize| cuts[*s].get(step).copied().unwrap_or(0);
        let present: Vec<usize> = (0..sequences.len()).filter(|s| length(s) > 0).collect();
        let input = |s: &usize| StepInput {
            sequence: ids[*s],
            inputs: inputs::piece(manifest, sequences[*s], starts[*s], length(s)),
            wanted: Wanted::All,
        };
        let given: Vec<StepInput> = present.iter().map(input).collect();
        let outputs = session.step(&given)?;
        for (index, s) in present.iter().enumerate() {
            for output in &outputs.outputs {
                let rows = output.rows_of(index).unwrap_or_default();
                let row_len = output.row_len().max(1);
                let all = results[*s].entry(output.name.clone()).or_insert_with(|| Rows {
                    dims: std::iter::once(0).chain(output.dims.iter().map(|d| *d as usize)).collect(),
                    values: Vec::new(),
                });
                all.dims[0] += rows.len() / row_len;
                all.values.extend(rows.iter().map(|x| f64::from(*x)));
            }
            starts[*s] += length(s);
        }
    }
    Ok(results)
}
