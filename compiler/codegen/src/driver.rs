//! The whole order, from an expanded model to an artifact: the only file that knows it.
//!
//! ```text
//! Model ──precision──▶ graph ──passes──▶ fused ──plan──▶ kernels ──emit──▶ MLIR ──compile──▶ objects ──link──▶ artifact
//! ```

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use xfc_lang::arch::{Binding, Model, Step};
use xfc_lang::graph::{DType, Program};
use xfc_lang::passes::precision::CacheType;
use xfc_lang::passes::quantise::Plan;
use xfc_lang::passes::{self, Event, Moment, Report};
use xfc_runtime::artifact::container::{self, VariantParts};
use xfc_runtime::artifact::manifest;
use xfc_runtime::error::RuntimeError;

use crate::error::CodegenError;
use crate::kernels::{Built, Input, Known, Outline, build_for, outline_for};
pub use crate::plan::Stored;
use crate::target::{Keep, Target};

/// A form that a model takes on the way, as `--emit` names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// What the user wrote.
    Spec,
    /// Modules expanded, every layer explicit.
    Arch,
    /// Core operations, casts explicit.
    Graph,
    /// One node a kernel.
    Fused,
    /// Launches, buffers, caches, weights.
    Plan,
    /// Kernels as MLIR.
    Mlir,
    /// Kernels as optimised LLVM IR.
    Llvm,
    /// Kernels as assembly.
    Asm,
}

impl Stage {
    /// All stages in order.
    pub const ALL: [Stage; 8] =
        [Stage::Spec, Stage::Arch, Stage::Graph, Stage::Fused, Stage::Plan, Stage::Mlir, Stage::Llvm, Stage::Asm];

    /// As on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Stage::Spec => "spec",
            Stage::Arch => "arch",
            Stage::Graph => "graph",
            Stage::Fused => "fused",
            Stage::Plan => "plan",
            Stage::Mlir => "mlir",
            Stage::Llvm => "llvm",
            Stage::Asm => "asm",
        }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Stage {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let names: Vec<&str> = Stage::ALL.iter().map(|s| s.name()).collect();
        Stage::ALL.into_iter().find(|stage| stage.name() == s).ok_or_else(|| format!("stages are {}", names.join(", ")))
    }
}

/// How a model is compiled.
#[derive(Clone, Debug)]
pub struct Options {
    /// Of weights and of the inputs of contractions: f32 or bf16.
    pub dtype: DType,
    /// Of what caches keep; `None`: as `dtype`.
    pub cache: Option<CacheType>,
    /// Which matrices are held in blocks.
    pub quant: Plan,
    /// Compiling threads.
    pub threads: usize,
    /// Passes to leave out.
    pub skip_passes: Vec<String>,
    /// Run only the first so many passes.
    pub pass_limit: Option<usize>,
    /// Write every stage into this folder.
    pub dump: Option<PathBuf>,
    /// Keep LLVM IR and assembly of kernels.
    pub keep: Keep,
    /// Kernels that need not be compiled again.
    pub known: Option<Arc<Known>>,
}

impl Default for Options {
    fn default() -> Self {
        let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Options {
            dtype: DType::F32,
            cache: None,
            quant: Plan::default(),
            threads,
            skip_passes: Vec::new(),
            pass_limit: None,
            dump: None,
            keep: Keep::default(),
            known: None,
        }
    }
}

impl Options {
    /// Of what caches keep.
    pub fn cache_type(&self) -> CacheType {
        self.cache.unwrap_or(CacheType::Float(self.dtype))
    }
}

/// A model before and after the passes.
#[derive(Clone, Debug)]
pub struct Fused {
    /// Core operations, casts explicit.
    pub graph: Program,
    /// One node a kernel.
    pub program: Program,
    /// What each pass did.
    pub passes: Vec<Report>,
    /// Time spent on casts and passes.
    pub elapsed: Duration,
}

/// Makes casts explicit and runs the passes.
///
/// # Errors
/// An unknown or required pass is to be skipped; a dump cannot be written; a defect of a pass.
pub fn fuse(model: &Model, options: &Options) -> Result<Fused, CodegenError> {
    let start = Instant::now();
    let mut graph = model.program.clone();
    passes::quantise::prepare(&mut graph, options.dtype, options.cache_type(), &options.quant)?;
    let mut program = graph.clone();
    let mut dump_error = None;
    let mut dump = |event: Event<'_>| {
        if let (Some(dir), Moment::After, None) = (&options.dump, event.moment, &dump_error) {
            let name = format!("30-after-{:02}-{}.xg", event.index, event.pass);
            dump_error = dump_text(dir, &name, &event.program.to_string()).err();
        }
    };
    if let Some(dir) = &options.dump {
        dump_text(dir, "20-graph.xg", &graph.to_string())?;
    }
    let mut run =
        passes::Options { skip: options.skip_passes.clone(), limit: options.pass_limit, dump: Some(&mut dump) };
    let reports = passes::run(&mut program, &mut run)?;
    if let Some(error) = dump_error {
        return Err(error);
    }
    Ok(Fused { graph, program, passes: reports, elapsed: start.elapsed() })
}

/// A compiled model.
#[derive(Debug)]
pub struct Compilation {
    /// The artifact.
    pub bytes: Vec<u8>,
    /// One for each target.
    pub built: Vec<Built>,
    /// Before and after the passes.
    pub fused: Fused,
    /// Time of each part, in order; of all targets together.
    pub elapsed: Vec<(&'static str, Duration)>,
}

/// Compiles a model for each target into one artifact that carries `card`.
///
/// # Errors
/// As [`fuse`]; a construct without a lowering.
pub fn compile(
    model: &Model,
    card: &str,
    targets: &[Box<dyn Target>],
    options: &Options,
) -> Result<Compilation, CodegenError> {
    let fused = fuse(model, options)?;
    let mut elapsed = vec![("passes", fused.elapsed)];
    let mut built = Vec::new();
    for target in targets {
        let b = build_kernels(model, &fused.program, &**target, options)?;
        for (name, time) in b.elapsed {
            match elapsed.iter_mut().find(|(known, _)| *known == name) {
                Some((_, sum)) => *sum += time,
                None => elapsed.push((name, time)),
            }
        }
        if let Some(dir) = &options.dump {
            // One folder a target where there are several.
            let name = target.name().replace(':', "-");
            let dir = if targets.len() > 1 { dir.join(name) } else { dir.clone() };
            dump_kernels(&dir, &b)?;
        }
        built.push(b);
    }
    let start = Instant::now();
    let bytes = write_artifact(card, &built)?;
    elapsed.push(("link", start.elapsed()));
    Ok(Compilation { bytes, built, fused, elapsed })
}

/// Plans and compiles a fused program of a model for one target.
///
/// # Errors
/// A construct without a lowering.
pub fn build_kernels(
    model: &Model,
    fused: &Program,
    target: &dyn Target,
    options: &Options,
) -> Result<Built, CodegenError> {
    with_input(model, fused, options, |input| {
        build_for(input, target, options.threads, options.keep, options.known.as_deref())
    })
}

/// Plans a fused program of a model for one target and compiles nothing.
///
/// # Errors
/// A construct without a lowering.
pub fn outline(
    model: &Model,
    fused: &Program,
    target: &dyn Target,
    options: &Options,
) -> Result<Outline, CodegenError> {
    with_input(model, fused, options, |input| outline_for(input, target))
}

fn with_input<T>(model: &Model, fused: &Program, options: &Options, then: impl FnOnce(&Input<'_>) -> T) -> T {
    let bindings: std::collections::HashMap<&str, &Binding> =
        model.arch.parameters.iter().zip(&model.bindings).map(|(p, b)| (p.path.as_str(), b)).collect();
    let stored = |path: &str| bindings.get(path).map(|b| stored(b));
    let input = Input {
        program: fused,
        dtype: options.dtype,
        stored: &stored,
        format: &model.format,
        ignore: &model.ignore,
        parameters: model.arch.parameter_count(),
    };
    then(&input)
}

/// A binding as the artifact says it.
pub fn stored(binding: &Binding) -> Stored {
    let steps = binding.steps.iter().map(|step| match step {
        Step::Transpose { perm } => manifest::Step::Transpose { perm: perm.clone() },
        Step::Slice { dim, start, len } => manifest::Step::Slice { dim: *dim, start: *start, len: *len },
        Step::Lead { dim, len } => manifest::Step::Lead { dim: *dim, len: *len },
        Step::Index { dim, index } => manifest::Step::Index { dim: *dim, index: *index },
        Step::Reshape { shape } => manifest::Step::Reshape { shape: shape.clone() },
    });
    let (names, shape) = (binding.names.clone(), binding.shape.clone());
    Stored { names, shape, steps: steps.collect(), offset: binding.offset }
}

/// Writes the bytes of an artifact of what was built for each target, the best variant first.
///
/// # Errors
/// A manifest that the runtime would not take: a defect of xfc.
pub fn write_artifact(card: &str, built: &[Built]) -> Result<Vec<u8>, CodegenError> {
    let mut variants = Vec::new();
    let mut best_first: Vec<&Built> = built.iter().collect();
    best_first.sort_by_key(|b| std::cmp::Reverse(b.rank));
    for b in best_first {
        variants.push(VariantParts { manifest: b.manifest.clone(), code: b.image.clone() });
    }
    Ok(container::write(card, &variants)?)
}

/// Writes one file of a dump.
///
/// # Errors
/// The folder or file cannot be written.
pub fn dump_text(dir: &Path, name: &str, text: &str) -> Result<(), CodegenError> {
    let path = dir.join(name);
    std::fs::create_dir_all(dir).map_err(|source| RuntimeError::io(dir, "write", source))?;
    std::fs::write(&path, text).map_err(|source| {
        // Half of a dump would look like one. Where it cannot be removed either, the error is still the first one.
        let _ = std::fs::remove_file(&path);
        RuntimeError::io(&path, "write", source).into()
    })
}

fn dump_kernels(dir: &Path, built: &Built) -> Result<(), CodegenError> {
    for (i, kernel) in built.kernels.iter().enumerate() {
        dump_text(dir, &format!("40-{i:03}-{}.mlir", kernel.name), &kernel.mlir)?;
        if let Some(text) = &kernel.code.llvm {
            dump_text(dir, &format!("50-{i:03}-{}.ll", kernel.name), text)?;
        }
        if let Some(text) = &kernel.code.assembly {
            dump_text(dir, &format!("50-{i:03}-{}.s", kernel.name), text)?;
        }
    }
    let text =
        serde_json::to_string_pretty(&built.manifest).map_err(|e| CodegenError::bug("manifest", e.to_string()))?;
    dump_text(dir, "60-manifest.json", &text)
}
