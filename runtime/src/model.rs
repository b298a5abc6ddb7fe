//! A model that is ready to run: code of one variant, weights in place, workers waiting.

use crate::artifact::container::Variant;
use crate::artifact::manifest::{DType, Input, Manifest};
use crate::artifact::{Artifact, HostFeatures};
use crate::cache::CacheOptions;
use crate::device::cpu::{CpuDevice, ThreadPool};
use crate::device::cuda;
use crate::device::workspace::LoadedWeights;
use crate::device::{Counts, Device};
use crate::error::{Result, RuntimeError};
use crate::folder::CacheFolder;
use crate::need::{self, Loaded};
use crate::session::{Session, SessionOptions};
use crate::weights::{self, Checkpoint, PackedWeights, Progress};
use serde_json::{Value, json};
use std::fmt;
use std::sync::Arc;
use std::time::Instant;

/// How a model is loaded.
#[derive(Clone, Default)]
pub struct ModelOptions<'a> {
    /// Workers; `None`: one for each processor that this process may use.
    pub threads: Option<usize>,
    /// A pool to share with other models instead of threads of its own; `threads` is then not used.
    pub pool: Option<Arc<ThreadPool>>,
    /// Name of the variant to use; `None`: the best one that runs here.
    pub target: Option<String>,
    /// Number of the GPU to use, where code for GPUs runs; `None`: the first.
    pub gpu: Option<usize>,
    /// The session that the model is loaded for: what would not fit together is refused before anything is taken; `None`: any.
    pub session: Option<SessionOptions>,
    /// Told how far packing the weights is.
    pub progress: Option<Progress<'a>>,
    /// Told how far copying the weights to a device is.
    pub copying: Option<Progress<'a>>,
    /// Where packed weights are kept for the next time; `None`: they are not.
    pub keep: Option<&'a CacheFolder>,
    /// Where what a GPU's driver makes of code is kept for the next time; `None`: it is not.
    pub keep_code: Option<&'a CacheFolder>,
}

/// How long it took until a model was ready.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LoadTimes {
    /// Seconds to make the code ready.
    pub code_seconds: f64,
    /// Seconds to pack the weights, or to map those that were kept.
    pub weights_seconds: f64,
    /// Seconds to bring them to the device's memory; 0 where they stay where they are.
    pub copy_seconds: f64,
}

impl fmt::Debug for ModelOptions<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ModelOptions")
            .field("threads", &self.threads)
            .field("target", &self.target)
            .field("gpu", &self.gpu)
            .finish_non_exhaustive()
    }
}

impl ModelOptions<'_> {
    /// What the session keeps that is planned for.
    fn caches(&self, manifest: &Manifest) -> Result<CacheOptions> {
        self.session.clone().unwrap_or_else(SessionOptions::least).cache_options(manifest)
    }

    /// The pool that was given, or a new one.
    fn pool(&self) -> Result<Arc<ThreadPool>> {
        match &self.pool {
            Some(pool) => Ok(Arc::clone(pool)),
            None => Ok(Arc::new(new_pool(self.threads)?)),
        }
    }
}

/// From an artifact to the first token.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Start {
    /// Loading.
    pub load: LoadTimes,
    /// What the device did until then, of which code and recordings count here.
    pub counts: Counts,
    /// Seconds from the beginning of loading until the first token was there; 0 where none was made.
    pub first_token_seconds: f64,
}

impl Start {
    /// Of a model that has just made its first token.
    pub fn of(model: &Model, first_token_seconds: f64) -> Self {
        Self { load: model.times, counts: model.device.counts(), first_token_seconds }
    }

    /// As data; times in seconds.
    pub fn to_json(&self) -> Value {
        json!({
            "code_seconds": self.load.code_seconds, "kernels": self.counts.kernels, "kernels_kept": self.counts.kernels_kept,
            "weights_seconds": self.load.weights_seconds, "copy_seconds": self.load.copy_seconds,
            "captures": self.counts.captures, "capture_seconds": self.counts.capture_seconds,
            "first_token_seconds": self.first_token_seconds,
        })
    }
}

impl fmt::Display for Start {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { load, counts, first_token_seconds } = self;
        write!(f, "code {:.2} s", load.code_seconds)?;
        if counts.kernels > 0 {
            write!(f, " ({} kernels, {} of them compiled before)", counts.kernels, counts.kernels_kept)?;
        }
        write!(f, ", weights {:.2} s", load.weights_seconds)?;
        if counts.kernels > 0 {
            write!(
                f,
                ", copying them {:.2} s, {} recorded steps {:.3} s",
                load.copy_seconds, counts.captures, counts.capture_seconds
            )?;
        }
        write!(f, ", first token after {first_token_seconds:.2} s")
    }
}

/// A loaded model. Any number of sessions, on any threads, may use it at once.
#[derive(Debug)]
pub struct Model {
    manifest: Arc<Manifest>,
    device: Arc<dyn Device>,
    weights: Arc<LoadedWeights>,
    remarks: Vec<String>,
    times: LoadTimes,
}

impl Model {
    /// Loads the best variant of `artifact` for this machine and binds `checkpoint` to it.
    ///
    /// # Errors
    /// No variant runs here, the checkpoint does not fit, or there is no memory.
    pub fn load(artifact: &Artifact, checkpoint: &Checkpoint, options: &ModelOptions<'_>) -> Result<Arc<Self>> {
        let variant = choose(artifact, options.target.as_deref(), options.gpu)?;
        let manifest = Arc::clone(variant.manifest());
        let pool = options.pool()?;
        let begin = Instant::now();
        let workers = pool.workers();
        let device = device_for(&variant, pool, options)?;
        let code_seconds = begin.elapsed().as_secs_f64();
        let begin = Instant::now();
        let kept = options.keep.is_some_and(|folder| weights::are_kept(&manifest, checkpoint, folder));
        if !kept && device.room()?.is_none() {
            need::ensure_host(&manifest, &options.caches(&manifest)?, workers as u64)?;
        }
        let packed = match options.keep {
            Some(folder) => weights::bind_kept(&manifest, checkpoint, workers, options.progress, folder)?,
            None => weights::bind(&manifest, checkpoint, workers, options.progress)?,
        };
        let weights_seconds = begin.elapsed().as_secs_f64();
        let times = LoadTimes { code_seconds, weights_seconds, copy_seconds: 0.0 };
        Self::ready(manifest, device, packed, options.copying, times)
    }

    /// The same model on other threads, as [`ModelOptions`] say; the weights are shared. `artifact` is what this model was loaded from.
    ///
    /// # Errors
    /// As [`Model::load`].
    pub fn with_threads(&self, artifact: &Artifact, options: &ModelOptions<'_>) -> Result<Arc<Self>> {
        let variant = choose(artifact, Some(&self.manifest.target.name), options.gpu)?;
        if **variant.manifest() != *self.manifest {
            return Err(RuntimeError::request(
                "the artifact is not the one that the model was loaded from",
                "load it again",
            ));
        }
        self.sharing(&variant, options)
    }

    /// Another artifact with the weights of this model, which it lays out in the same way: the same program, scheduled otherwise.
    ///
    /// # Errors
    /// Weights that lie otherwise; else as [`Model::load`].
    pub fn with_code(&self, artifact: &Artifact, options: &ModelOptions<'_>) -> Result<Arc<Self>> {
        let variant = choose(artifact, Some(&self.manifest.target.name), options.gpu)?;
        if variant.manifest().weights != self.manifest.weights {
            return Err(RuntimeError::request(
                "the artifact has other weights than the model, or lays them out otherwise",
                "load it with its checkpoint",
            ));
        }
        self.sharing(&variant, options)
    }

    /// The code of a variant with the weights of this model.
    fn sharing(&self, variant: &Variant<'_>, options: &ModelOptions<'_>) -> Result<Arc<Self>> {
        let manifest = Arc::clone(variant.manifest());
        if variant.is_ptx() {
            return Err(RuntimeError::request(
                "weights in the memory of a GPU are not shared with other code",
                "load the model again",
            ));
        }
        let begin = Instant::now();
        let device = device_for(variant, options.pool()?, options)?;
        let times = LoadTimes { code_seconds: begin.elapsed().as_secs_f64(), ..LoadTimes::default() };
        let (weights, remarks) = (Arc::clone(&self.weights), self.remarks.clone());
        Ok(Arc::new(Self { manifest, device, weights, remarks, times }))
    }

    /// A model on any device that has the code of `manifest` loaded.
    ///
    /// # Errors
    /// The device has no memory for the weights.
    pub fn on_device(manifest: Arc<Manifest>, device: Arc<dyn Device>, packed: PackedWeights) -> Result<Arc<Self>> {
        Self::ready(manifest, device, packed, None, LoadTimes::default())
    }

    fn ready(
        manifest: Arc<Manifest>,
        device: Arc<dyn Device>,
        packed: PackedWeights,
        copying: Option<Progress<'_>>,
        times: LoadTimes,
    ) -> Result<Arc<Self>> {
        let PackedWeights { block, offsets, mut remarks } = packed;
        remarks.extend(device.remarks());
        let begin = Instant::now();
        let memory = device.adopt(block, copying)?;
        let times = LoadTimes { copy_seconds: begin.elapsed().as_secs_f64(), ..times };
        Ok(Arc::new(Self { manifest, device, weights: Arc::new(LoadedWeights { memory, offsets }), remarks, times }))
    }

    /// How long loading took.
    pub fn times(&self) -> LoadTimes {
        self.times
    }

    /// What the model is: inputs, outputs, target.
    pub fn manifest(&self) -> &Arc<Manifest> {
        &self.manifest
    }

    /// What a user should know of how the checkpoint fits: tensors that nothing reads, tensors that were made up.
    pub fn remarks(&self) -> &[String] {
        &self.remarks
    }

    /// Where it runs.
    pub fn device(&self) -> &Arc<dyn Device> {
        &self.device
    }

    pub(crate) fn weights(&self) -> &Arc<LoadedWeights> {
        &self.weights
    }

    /// As [`Manifest::token_input`].
    pub fn token_input(&self) -> Option<&Input> {
        self.manifest.token_input()
    }

    /// As [`Manifest::source_input`].
    pub fn source_input(&self) -> Option<&Input> {
        self.manifest.source_input()
    }

    /// A session with no sequences yet.
    ///
    /// # Errors
    /// The options ask for more than the model or the machine has.
    pub fn session(self: &Arc<Self>, options: &SessionOptions) -> Result<Session> {
        Session::new(Arc::clone(self), options)
    }
}

impl Manifest {
    /// The input that takes a text's tokens: the first required one of integers, one for each element of the first axis.
    pub fn token_input(&self) -> Option<&Input> {
        let integers = |input: &&Input| matches!(input.dtype, DType::I64 | DType::I32) && input.dims.is_empty();
        self.inputs.iter().filter(integers).find(|input| input.axis == 0 && input.default.is_none())
    }

    /// The input that takes what a sequence is given once, before its tokens: the first required one of integers, one for each element.
    pub fn source_input(&self) -> Option<&Input> {
        let integers = |input: &&Input| matches!(input.dtype, DType::I64 | DType::I32) && input.dims.is_empty();
        let mut inputs = self.inputs.iter().filter(integers);
        inputs.find(|input| self.given_once(input.axis) && input.default.is_none())
    }
}

/// The variant of an artifact that runs here: the one of that name, or the best; where it is for GPUs, on the one of number `gpu`, or the first.
///
/// # Errors
/// There is none, or no such GPU.
pub fn choose<'a>(artifact: &'a Artifact, target: Option<&str>, gpu: Option<usize>) -> Result<Variant<'a>> {
    let named = |manifest: &&Manifest| target.is_none_or(|name| manifest.target.name == name);
    let host = HostFeatures::for_targets(artifact.manifests().filter(named).map(|manifest| &manifest.target), gpu)?;
    artifact.select(&host, target)
}

/// A device with the code of a variant, on which there is room for the rest.
fn device_for(variant: &Variant<'_>, pool: Arc<ThreadPool>, options: &ModelOptions<'_>) -> Result<Arc<dyn Device>> {
    let manifest = variant.manifest();
    if variant.is_ptx() {
        let opened = cuda::Opened::new(options.gpu.unwrap_or(0))?;
        need::ensure(manifest, &options.caches(manifest)?, &opened.room(manifest)?, Loaded::Nothing)?;
        let (code, entries) = variant.code();
        return Ok(Arc::new(opened.load(manifest, code, entries, options.keep_code)?));
    }
    Ok(Arc::new(CpuDevice::new(manifest, variant.load_code()?, pool)?))
}

/// More threads than any machine has processors.
const MOST_THREADS: usize = 4096;

/// A pool of so many workers; `None`: one for each processor that this process may use.
pub(crate) fn new_pool(threads: Option<usize>) -> Result<ThreadPool> {
    let threads = match threads {
        Some(0) => return Err(RuntimeError::request("0 threads cannot run anything", "ask for at least one thread")),
        Some(threads) if threads > MOST_THREADS => {
            let help = format!("ask for at most {MOST_THREADS}; more than the machine has processors only slows down");
            return Err(RuntimeError::request(format!("{threads} threads are too many"), help));
        }
        Some(threads) => threads,
        None => std::thread::available_parallelism().map_or(1, usize::from),
    };
    ThreadPool::new(threads).map_err(|error| RuntimeError::Device {
        device: "cpu",
        problem: format!("cannot start {threads} threads: {error}"),
    })
}
