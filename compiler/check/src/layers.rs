//! Programs of one kind of layer, compiled and run on made-up weights: what speed is measured on where a whole model would say too little.
//!
//! A [`Layer`] is a few layers of one kind in the language, and how they are compiled. [`Layer::load`] makes code of it, [`Loaded::with_target`] other code for
//! the same weights, and [`Timed`] runs steps and says how long the kernels that are meant took.

use std::sync::Arc;
use std::time::Instant;

use xfc_codegen::driver::{self, Options};
use xfc_codegen::target::Target;
use xfc_lang::arch::{ElaborateOptions, Model, elaborate};
use xfc_lang::graph::DType;
use xfc_lang::passes::precision::CacheType;
use xfc_lang::passes::quantise::Plan;
use xfc_lang::spec::{Library, parse_card};
use xfc_runtime::artifact::Artifact;
use xfc_runtime::cache::SequenceId;
use xfc_runtime::cost::Work;
use xfc_runtime::device::cpu::ThreadPool;
use xfc_runtime::model::{Model as Running, ModelOptions};
use xfc_runtime::profile::{Recorder, Summary};
use xfc_runtime::session::{Session, SessionOptions};
use xfc_runtime::step::{InputData, StepInput, Wanted};
use xfc_runtime::weights::Checkpoint;

use crate::error::{CheckError, Result};
use crate::inputs::{Which, random};

/// Outputs of a layer's program: products of all that the layers made, so that nothing wrong stays unseen.
const OUTPUTS: u64 = 64;

/// Layers of one kind.
#[derive(Debug)]
pub struct Layer {
    /// Its card.
    text: String,
    model: Model,
    options: Options,
    /// What the names of the kernels begin with that are meant.
    kernels: String,
}

/// Sizes of an attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    /// Of queries.
    pub heads: u64,
    /// Of keys and values.
    pub kv_heads: u64,
    /// Width of each.
    pub dim: u64,
}

/// Sizes of a mixture of experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mixture {
    /// Width of the model.
    pub width: u64,
    /// Width of an expert.
    pub inner: u64,
    /// Experts.
    pub experts: u64,
    /// Those of a token.
    pub chosen: u64,
}

/// A module of one product, or of a gate beside what it opens.
fn product(parts: usize) -> &'static str {
    if parts > 1 {
        "product(n)(x) {\n  gate = linear(n)\n  up = linear(n)\n  return silu(gate(x)) * up(x)\n}"
    } else {
        "product(n)(x) {\n  only = linear(n)\n  return only(x)\n}"
    }
}

/// As names of kernels have it.
fn several(parts: usize) -> String {
    if parts > 1 { format!("{parts}x") } else { String::new() }
}

/// How weights of a type come about.
fn options_of(operand: DType) -> Options {
    let (dtype, quant) = match operand {
        DType::Blocks(blocks) => (DType::BF16, Plan::all(Some(blocks))),
        other => (other, Plan::default()),
    };
    Options { dtype, quant, ..Options::default() }
}

impl Layer {
    /// So many pairs of products from `widths[0]` to `widths[1]` and back, one after another, each of numbers of about 1 and added to what it is
    /// given: gate after gate would make nothing of what is small, and much of what was rounded otherwise. Of two `parts` each is a gate beside what it opens.
    ///
    /// # Errors
    /// A type that weights do not have.
    pub fn products(operand: DType, parts: usize, widths: [u64; 2], pairs: u64) -> Result<Self> {
        let [outer, inner] = widths;
        let wiring = format!(
            "{}\npair(i)(x) {{\n  up = product({inner})\n  down = product({outer})\n  return x + down(up(plain(x)))\n}}\n\
             plain(x) = rms_norm(1.0e-6, gain = false)(x)\n\
             model(x: f32[tokens, {outer}]) {{\n  layers = [pair(i) for i in 0..{pairs}]\n  out = linear({OUTPUTS})\n  return {{y: out(plain(layers(x)))}}\n}}",
            product(parts),
        );
        let kernels = format!("linear_{operand}_{}", several(parts));
        Self::of_wiring("{}", &wiring, options_of(operand), kernels)
    }

    /// So many products of one shape, each with inputs and weights of its own.
    ///
    /// # Errors
    /// A type that weights do not have.
    pub fn apart(operand: DType, parts: usize, inputs: u64, outputs: u64, copies: u64) -> Result<Self> {
        let list = |item: &dyn Fn(u64) -> String| (0..copies).map(item).collect::<Vec<_>>().join(", ");
        let wiring = format!(
            "{}\nmodel({}) {{\n  {} = product({outputs})\n  return {{{}}}\n}}",
            product(parts),
            list(&|i| format!("x{i}: f32[tokens, {inputs}]")),
            list(&|i| format!("p{i}")),
            list(&|i| format!("y{i}: p{i}(x{i})")),
        );
        let kernels = format!("linear_{operand}_{}", several(parts));
        Self::of_wiring("{}", &wiring, options_of(operand), kernels)
    }

    /// So many layers of attention with causal masks, queries of `dtype` over keys and values of `cache`.
    ///
    /// # Errors
    /// A type that caches do not have.
    pub fn attention(dtype: DType, cache: CacheType, of: Heads, layers: u64) -> Result<Self> {
        let Heads { heads, kv_heads, dim } = of;
        let wiring = format!(
            "layer(i)(x) {{\n  q_proj = linear({})\n  k_proj = linear({kv})\n  v_proj = linear({kv})\n  out = linear({OUTPUTS})\n  \
             k = cache(split(k_proj(x), {kv_heads}))\n  v = cache(split(v_proj(x), {kv_heads}))\n  \
             return out(merge(attend(split(q_proj(x), {heads}), k, v, causal)))\n}}\n\
             model(x: f32[tokens, {OUTPUTS}]) {{\n  layers = [layer(i) for i in 0..{layers}]\n  return {{y: layers(x)}}\n}}",
            heads * dim,
            kv = kv_heads * dim,
        );
        let options = Options { dtype, cache: Some(cache), ..Options::default() };
        Self::of_wiring("{}", &wiring, options, "attention_".to_owned())
    }

    /// A gated mixture of experts.
    ///
    /// # Errors
    /// A type that weights do not have.
    pub fn experts(operand: DType, of: Mixture) -> Result<Self> {
        let Mixture { width, inner, experts, chosen } = of;
        let wiring = format!(
            "model(x: f32[tokens, {width}]) {{\n  moe = moe({experts}, {chosen}, gated_mlp({inner}, silu))\n  out = linear({OUTPUTS})\n  \
             return {{y: out(moe(x))}}\n}}"
        );
        Self::of_wiring("{}", &wiring, options_of(operand), format!("linear_{operand}_{chosen}of{experts}_"))
    }

    /// A program in the language with these sizes (a mapping, as YAML), of which the kernels are meant whose names begin so.
    ///
    /// # Errors
    /// A text that does not expand.
    pub fn of_wiring(sizes: &str, wiring: &str, options: Options, kernels: String) -> Result<Self> {
        let indented: String = wiring.lines().map(|line| format!("  {line}\n")).collect();
        let card = format!("xfc: 1\nname: Layers\nsizes: {sizes}\nwiring: |\n{indented}");
        let wrong = |report: String| CheckError::request(report, "this is a defect of xfc");
        let spec = parse_card("layers.yaml", &card, &Library::embedded()).map_err(|r| wrong(r.to_string()))?;
        let model = elaborate(&spec, &ElaborateOptions::default()).map_err(|r| wrong(r.to_string()))?;
        // Kernels that are the same in another schedule are compiled once.
        let options = Options { known: options.known.or_else(|| Some(Arc::default())), ..options };
        Ok(Layer { text: card, model, options, kernels })
    }

    /// All that decides what it is: equal texts are equal layers.
    pub fn text(&self) -> String {
        let Options { dtype, cache, quant, .. } = &self.options;
        format!("{}{dtype} {cache:?} {quant}", self.text)
    }

    fn artifact(&self, target: &dyn Target) -> Result<Artifact> {
        let fused = driver::fuse(&self.model, &self.options)?;
        let built = driver::build_kernels(&self.model, &fused.program, target, &self.options)?;
        Ok(Artifact::from_bytes(driver::write_artifact("", &[built])?)?)
    }

    /// Compiles for a target, with made-up weights.
    ///
    /// # Errors
    /// A construct without a lowering; a machine that lacks memory or does not run the code.
    pub fn load(self: &Arc<Self>, target: &dyn Target, pool: &Arc<ThreadPool>) -> Result<Loaded> {
        let options = ModelOptions { pool: Some(Arc::clone(pool)), ..ModelOptions::default() };
        let model = Running::load(&self.artifact(target)?, &Checkpoint::random(0), &options)?;
        Ok(Loaded { layer: Arc::clone(self), model, pool: Arc::clone(pool) })
    }
}

/// Layers that are ready to run.
#[derive(Clone, Debug)]
pub struct Loaded {
    layer: Arc<Layer>,
    model: Arc<Running>,
    pool: Arc<ThreadPool>,
}

impl Loaded {
    /// The same layers and weights with the code of another target: one with another profile.
    ///
    /// # Errors
    /// As [`Layer::load`].
    pub fn with_target(&self, target: &dyn Target) -> Result<Self> {
        let options = ModelOptions { pool: Some(Arc::clone(&self.pool)), ..ModelOptions::default() };
        let model = self.model.with_code(&self.layer.artifact(target)?, &options)?;
        Ok(Self { model, ..self.clone() })
    }

    /// Steps of `rows` tokens behind `before` others.
    ///
    /// # Errors
    /// There is no memory for them.
    pub fn timed(&self, rows: u64, before: u64) -> Result<Timed> {
        let options = SessionOptions {
            context_tokens: Some(rows + before),
            step_tokens: rows.max(before.min(STEP_TOKENS)),
            ..SessionOptions::default()
        };
        let mut session = self.model.session(&options)?;
        let sequence = session.add_sequence()?;
        let given = |rows: u64| random(self.model.manifest(), &[rows], 1, Which::Required).into_iter().collect();
        let mut done = 0;
        while done < before {
            let piece = STEP_TOKENS.min(before - done);
            session.step(&[StepInput { sequence, inputs: given(piece), wanted: Wanted::None }])?;
            done += piece;
        }
        let recorder = Arc::new(Recorder::new(self.pool.workers()));
        let kernels = self.layer.kernels.clone();
        Ok(Timed { session, sequence, inputs: given(rows), before, recorder, kernels })
    }
}

/// Tokens that are brought in at a time before others are timed.
const STEP_TOKENS: u64 = 512;

/// A step that can be made again and again.
#[derive(Debug)]
pub struct Timed {
    session: Session,
    sequence: SequenceId,
    inputs: Vec<(String, InputData)>,
    before: u64,
    recorder: Arc<Recorder>,
    kernels: String,
}

/// What a step took.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Took {
    /// Of the kernels that are meant, from each launch's begin to its end.
    pub seconds: f64,
    /// What these cannot do without.
    pub work: Work,
    /// Of the whole step, inputs and outputs included.
    pub whole_seconds: f64,
    /// What came out.
    pub outputs: Vec<f32>,
}

impl Timed {
    /// Makes the step once.
    ///
    /// # Errors
    /// A device that failed; no kernel is one of those that are meant.
    pub fn run(&mut self) -> Result<Took> {
        self.session.truncate(self.sequence, self.before)?;
        let model = Arc::clone(self.session.model());
        let step = [StepInput { sequence: self.sequence, inputs: self.inputs.clone(), wanted: Wanted::All }];
        model.device().record(Some(Arc::clone(&self.recorder)));
        let start = Instant::now();
        let outputs = self.session.step(&step);
        let whole_seconds = start.elapsed().as_secs_f64();
        model.device().record(None);
        let summary = Summary::of(&self.recorder.take(), model.manifest(), None);
        let mut took = Took { whole_seconds, ..Took::default() };
        took.outputs = outputs?.outputs.into_iter().flat_map(|output| output.data).collect();
        for row in summary.rows.iter().filter(|row| row.kernel.starts_with(&self.kernels)) {
            took.seconds += row.seconds;
            took.work.add(&row.work);
        }
        if took.seconds == 0.0 {
            let names: Vec<&str> = summary.rows.iter().map(|row| row.kernel.as_str()).collect();
            let problem = format!("no kernel is a `{}`; there are {}", self.kernels, names.join(", "));
            return Err(CheckError::request(problem, "this is a defect of xfc"));
        }
        Ok(took)
    }
}

/// Bytes of a matrix of so many elements.
pub fn matrix_bytes(operand: DType, rows: u64, columns: u64) -> u64 {
    match operand {
        DType::Blocks(blocks) => rows * blocks.row_bytes(columns),
        DType::BF16 | DType::F16 => rows * columns * 2,
        _ => rows * columns * 4,
    }
}
