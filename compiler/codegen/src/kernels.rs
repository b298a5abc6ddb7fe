//! A fused program to the plan, the manifest and the code of one target.
//!
//! Distinct kernels are compiled once, on as many threads as are given; results are merged in kernel order, so that the artifact's
//! bytes do not depend on the number of threads.

use std::collections::HashMap;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use xfc_lang::graph::{AxisId, DType, Program};
use xfc_runtime::artifact::container::CodeImage;
use xfc_runtime::artifact::manifest::{Kernel, Launch, Manifest, Variant};

use crate::error::CodegenError;
use crate::plan::{Plan, Stored, build, cost, written_row_bytes};
use crate::target::{Compiled, Compiler, Emitted, Keep, Target};

/// What is compiled.
pub struct Input<'a> {
    /// The fused program.
    pub program: &'a Program,
    /// Of weights and of the inputs of contractions: f32 or bf16.
    pub dtype: DType,
    /// The binding of each parameter, by absolute path.
    pub stored: &'a dyn Fn(&str) -> Option<Stored>,
    /// The checkpoint format of these names: `hf`, `gguf`.
    pub format: &'a str,
    /// Checkpoint tensors that nothing needs to read.
    pub ignore: &'a [String],
    /// Total parameters.
    pub parameters: u64,
}

/// A kernel, compiled for one regime or several.
#[derive(Clone, Debug)]
pub struct CompiledKernel {
    /// For people.
    pub name: String,
    /// MLIR as emitted.
    pub mlir: String,
    /// What LLVM made of it.
    pub code: Compiled,
    /// Scratch each worker must have.
    pub scratch_bytes: u64,
    /// Shared memory that a launch must bring for each block of threads.
    pub shared_bytes: u64,
    /// Its launches wait by themselves for those before them.
    pub waits: bool,
}

/// Kernels that were compiled before, by the text that decides them: for models that are compiled again and again with few changes.
#[derive(Debug, Default)]
pub struct Known {
    kernels: Mutex<HashMap<String, Compiled>>,
    folder: Option<PathBuf>,
}

impl Known {
    /// The file in such a folder that says of which build of xfc it is: what [`build_of`] says.
    pub const BUILD: &str = "build";

    /// Kept as files in a folder, for several processes of one build of xfc; `None` where the folder is of another.
    pub fn in_folder(folder: PathBuf, build: &str) -> Option<Self> {
        let same = fs::read_to_string(folder.join(Self::BUILD)).is_ok_and(|of| of == build);
        same.then(|| Known { kernels: Mutex::default(), folder: Some(folder) })
    }

    /// The file of what is made of `key`; two hashes of 64 bits are as good as the key.
    fn file(&self, key: &str) -> Option<PathBuf> {
        let hash = |part: u8| {
            let mut hasher = DefaultHasher::new();
            (part, key).hash(&mut hasher);
            hasher.finish()
        };
        Some(self.folder.as_ref()?.join(format!("{:016x}{:016x}", hash(0), hash(1))))
    }

    fn get(&self, key: &str, keep: Keep) -> Option<Compiled> {
        if keep == Keep::default()
            && let Some(file) = self.file(key)
        {
            // Its hash comes before it.
            let object = fs::read(file).ok().and_then(|mut bytes| {
                let object = (bytes.len() >= HASH_BYTES).then(|| bytes.split_off(HASH_BYTES))?;
                (bytes == hash_of(&object)).then_some(object)
            });
            if let Some(object) = object {
                return Some(Compiled { object, ..Compiled::default() });
            }
        }
        self.kernels.lock().unwrap_or_else(PoisonError::into_inner).get(key).cloned()
    }

    fn insert(&self, key: String, keep: Keep, code: &Compiled) {
        if keep == Keep::default()
            && let Some(file) = self.file(&key)
        {
            // Whole or not there; what cannot be written this process alone knows.
            static WRITTEN: AtomicUsize = AtomicUsize::new(0);
            let number = WRITTEN.fetch_add(1, Ordering::Relaxed);
            let part = file.with_extension(format!("{}-{number}", std::process::id()));
            let bytes = [&hash_of(&code.object)[..], &code.object].concat();
            if fs::write(&part, bytes).and_then(|()| fs::rename(&part, file)).is_ok() {
                return;
            }
            let _ = fs::remove_file(part);
        }
        self.kernels.lock().unwrap_or_else(PoisonError::into_inner).insert(key, code.clone());
    }
}

/// Bytes of the hash of an object.
const HASH_BYTES: usize = 8;

fn hash_of(object: &[u8]) -> [u8; HASH_BYTES] {
    let mut hasher = DefaultHasher::new();
    object.hash(&mut hasher);
    hasher.finish().to_le_bytes()
}

/// What tells builds of a program apart: the size and the time of its file.
pub fn build_of(program: &Path) -> String {
    let stamp = fs::metadata(program).ok().map(|meta| (meta.len(), meta.modified().ok()));
    format!("{stamp:?}")
}

/// A plan and its code for one target.
#[derive(Debug)]
pub struct Built {
    /// The plan.
    pub plan: Plan,
    /// The manifest.
    pub manifest: Manifest,
    /// The target's rank among others.
    pub rank: u32,
    /// Kernels in the order of the entry table.
    pub kernels: Vec<CompiledKernel>,
    /// Their code.
    pub image: CodeImage,
    /// Time spent planning, and compiling kernels.
    pub elapsed: [(&'static str, Duration); 2],
}

/// A plan without code: what would be compiled.
#[derive(Clone, Debug)]
pub struct Outline {
    /// The manifest, as it would be.
    pub manifest: Manifest,
    /// For each launch, bytes of values that it writes for each of its rows; the others of its `row_bytes` are read.
    pub written_row_bytes: Vec<u64>,
}

/// Plans a fused program for one target and compiles nothing.
///
/// # Errors
/// A construct without a lowering, or a defect of xfc.
pub fn outline_for(input: &Input<'_>, target: &dyn Target) -> Result<Outline, CodegenError> {
    let plan = build(input.program, input.stored, input.dtype, target)?;
    let (units, unit_of) = units(&plan, target);
    let kernels = units.iter().map(|(kernel, phase)| {
        let spec = &plan.kernels[*kernel];
        let Emitted { scratch_bytes, shared_bytes, waits, .. } = target.emit(spec, *phase)?;
        Ok(Kernel { name: spec.name(), scratch_bytes, shared_bytes, waits })
    });
    let kernels = kernels.collect::<Result<_, CodegenError>>()?;
    let written_row_bytes = plan.launches.iter().map(|l| written_row_bytes(&plan.kernels[l.kernel])).collect();
    Ok(Outline { manifest: manifest(input, target, &plan, &unit_of, kernels), written_row_bytes })
}

/// The distinct kernels of a plan, each with the phase that it is compiled for; and for each kernel specification its own, by phase.
fn units(plan: &Plan, target: &dyn Target) -> (Vec<(usize, usize)>, Vec<Vec<usize>>) {
    let mut units: Vec<(usize, usize)> = Vec::new();
    let mut index: HashMap<String, usize> = HashMap::new();
    let mut unit_of: Vec<Vec<usize>> = Vec::new();
    for (k, spec) in plan.kernels.iter().enumerate() {
        let text = spec.text();
        let mut of_phase = Vec::new();
        for phase in 0..target.phases().len() {
            let key = format!("{}\n{text}", target.schedule(spec, phase));
            let unit = *index.entry(key).or_insert_with(|| {
                units.push((k, phase));
                units.len() - 1
            });
            of_phase.push(unit);
        }
        unit_of.push(of_phase);
    }
    (units, unit_of)
}

/// Plans and compiles a fused program for one target.
///
/// # Errors
/// A construct without a lowering, or a defect of xfc.
pub fn build_for(
    input: &Input<'_>,
    target: &dyn Target,
    threads: usize,
    keep: Keep,
    known: Option<&Known>,
) -> Result<Built, CodegenError> {
    let start = Instant::now();
    let plan = build(input.program, input.stored, input.dtype, target)?;
    let (units, unit_of) = units(&plan, target);
    let planned = start.elapsed();
    let start = Instant::now();
    let kernels = compile_units(&plan, &units, target, threads, keep, known)?;
    let objects: Vec<(String, &[u8])> = kernels.iter().map(|k| (k.name.clone(), k.code.object.as_slice())).collect();
    let image = target.link(&objects)?;
    let listed = kernels.iter().map(|k| {
        let CompiledKernel { name, scratch_bytes, shared_bytes, waits, .. } = k;
        Kernel { name: name.clone(), scratch_bytes: *scratch_bytes, shared_bytes: *shared_bytes, waits: *waits }
    });
    let listed = listed.collect();
    let manifest = manifest(input, target, &plan, &unit_of, listed);
    Ok(Built {
        plan,
        manifest,
        rank: target.rank(),
        kernels,
        image,
        elapsed: [("plan", planned), ("kernels", start.elapsed())],
    })
}

/// What the artifact says of a plan whose kernels are these.
fn manifest(
    input: &Input<'_>,
    target: &dyn Target,
    plan: &Plan,
    unit_of: &[Vec<usize>],
    kernels: Vec<Kernel>,
) -> Manifest {
    let phases = target.phases();
    let launches = plan
        .launches
        .iter()
        .map(|launch| Launch {
            name: launch.name.clone(),
            axis: launch.space.axis,
            rows: launch.space.selected,
            times: launch.times,
            variants: (0..phases.len())
                .map(|phase| {
                    let spec = &plan.kernels[launch.kernel];
                    let tiling = target.tiling(spec, phase);
                    Variant {
                        kernel: unit_of[launch.kernel][phase],
                        rows_per_tile: tiling.rows_per_tile,
                        tiles_per_block: tiling.tiles_per_block,
                        multiplies: target.multiplies(spec, phase),
                    }
                })
                .collect(),
            operands: launch.operands.clone(),
            when: launch.when,
            collective: None,
            cost: Some(cost(&plan.kernels[launch.kernel], &plan.caches)),
        })
        .collect();
    Manifest {
        version: xfc_runtime::artifact::VERSION,
        compiler: concat!("xfc ", env!("CARGO_PKG_VERSION")).to_owned(),
        model: input.program.name.clone(),
        target: target.describe(),
        axes: input.program.axes.clone(),
        extents: (0..input.program.axes.len()).map(|axis| input.program.extent(AxisId(axis))).collect(),
        inputs: plan.inputs.clone(),
        outputs: plan.outputs.clone(),
        whole_sequences: plan.whole_sequences,
        max_positions: plan.max_positions.clone(),
        weights: plan.weights.clone(),
        format: input.format.to_owned(),
        ignore: input.ignore.to_vec(),
        caches: plan.caches.clone(),
        arenas: plan.arenas.clone(),
        kernels,
        phases,
        launches,
        parameters: input.parameters,
    }
}

fn compile_units(
    plan: &Plan,
    units: &[(usize, usize)],
    target: &dyn Target,
    threads: usize,
    keep: Keep,
    known: Option<&Known>,
) -> Result<Vec<CompiledKernel>, CodegenError> {
    let next = AtomicUsize::new(0);
    let done: Mutex<Vec<Option<Result<CompiledKernel, CodegenError>>>> =
        Mutex::new((0..units.len()).map(|_| None).collect());
    let work = || -> Result<(), CodegenError> {
        // Made for the first kernel that is not known.
        let mut compiler: Option<Box<dyn Compiler>> = None;
        loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            let Some((kernel, phase)) = units.get(i) else { return Ok(()) };
            let spec = &plan.kernels[*kernel];
            // Named after the regime only where regimes differ.
            let same = (0..target.phases().len()).all(|p| target.schedule(spec, p) == target.schedule(spec, *phase));
            let suffix = if same { String::new() } else { format!("_{}", target.phases()[*phase].name) };
            let name = format!("{}{suffix}", spec.name());
            let result = target.emit(spec, *phase).and_then(|emitted| {
                let key = format!("{} {keep:?} {name}\n{}", target.name(), emitted.mlir);
                let code = match known.and_then(|known| known.get(&key, keep)) {
                    Some(code) => code,
                    None => {
                        let compiler = match &mut compiler {
                            Some(compiler) => compiler,
                            none => none.insert(target.compiler()?),
                        };
                        let code = compiler.compile(&name, &emitted.mlir, keep)?;
                        if let Some(known) = known {
                            known.insert(key, keep, &code);
                        }
                        code
                    }
                };
                let Emitted { mlir, scratch_bytes, shared_bytes, waits } = emitted;
                Ok(CompiledKernel { name, mlir, code, scratch_bytes, shared_bytes, waits })
            });
            done.lock().unwrap_or_else(PoisonError::into_inner)[i] = Some(result);
        }
    };
    let started: Vec<Result<(), CodegenError>> =
        std::thread::scope(|scope| {
            let workers: Vec<_> = (1..threads.clamp(1, units.len().max(1))).map(|_| scope.spawn(work)).collect();
            let mut results = vec![work()];
            results.extend(workers.into_iter().map(|w| {
                w.join().unwrap_or_else(|_| Err(CodegenError::bug("kernels", "a compiling thread panicked")))
            }));
            results
        });
    started.into_iter().collect::<Result<Vec<()>, _>>()?;
    let done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.into_iter()
        .map(|r| r.unwrap_or_else(|| Err(CodegenError::bug("kernels", "a kernel was not compiled"))))
        .collect()
}
