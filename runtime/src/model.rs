//! A model that is ready to run: code of one variant, weights in place, workers waiting.

use crate::artifact::abi::PTX;
use crate::artifact::container::Variant;
use crate::artifact::manifest::{DType, Input, Manifest};
use crate::artifact::{Artifact, HostFeatures};
use crate::device::Device;
use crate::device::cpu::{CpuDevice, ThreadPool};
use crate::device::cuda::CudaDevice;
use crate::device::workspace::LoadedWeights;
use crate::error::{Result, RuntimeError};
use crate::folder::CacheFolder;
use crate::session::{Session, SessionOptions};
use crate::weights::{self, Checkpoint, PackedWeights, Progress};
use std::fmt;
use std::sync::Arc;

/// How a model is loaded.
#[derive(Clone, Default)]
pub struct ModelOptions<'a> {
    /// Workers; `None`: one for each processor that this process may use.
    pub threads: Option<usize>,
    /// A pool to share with other models instead of threads of its own; `threads` is then not used.
    pub pool: Option<Arc<ThreadPool>>,
    /// Name of the variant to use; `None`: the best one that runs here.
    pub target: Option<String>,
    /// Told how far packing the weights is.
    pub progress: Option<Progress<'a>>,
    /// Where packed weights are kept for the next time; `None`: they are not.
    pub keep: Option<&'a CacheFolder>,
}

impl fmt::Debug for ModelOptions<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ModelOptions")
            .field("threads", &self.threads)
            .field("target", &self.target)
            .finish_non_exhaustive()
    }
}

impl ModelOptions<'_> {
    /// The pool that was given, or a new one.
    fn pool(&self) -> Result<Arc<ThreadPool>> {
        match &self.pool {
            Some(pool) => Ok(Arc::clone(pool)),
            None => Ok(Arc::new(new_pool(self.threads)?)),
        }
    }
}

/// A loaded model. Any number of sessions, on any threads, may use it at once.
#[derive(Debug)]
pub struct Model {
    manifest: Arc<Manifest>,
    device: Arc<dyn Device>,
    weights: Arc<LoadedWeights>,
    remarks: Vec<String>,
}

impl Model {
    /// Loads the best variant of `artifact` for this machine and binds `checkpoint` to it.
    ///
    /// # Errors
    /// No variant runs here, the checkpoint does not fit, or there is no memory.
    pub fn load(artifact: &Artifact, checkpoint: &Checkpoint, options: &ModelOptions<'_>) -> Result<Arc<Self>> {
        let variant = artifact.select(&host_for(artifact), options.target.as_deref())?;
        let manifest = Arc::clone(variant.manifest());
        let pool = options.pool()?;
        let packed = match options.keep {
            Some(folder) => weights::bind_kept(&manifest, checkpoint, pool.workers(), options.progress, folder)?,
            None => weights::bind(&manifest, checkpoint, pool.workers(), options.progress)?,
        };
        Self::on_device(manifest, device_for(&variant, pool)?, packed)
    }

    /// The same model on other threads, as [`ModelOptions`] say; the weights are shared. `artifact` is what this model was loaded from.
    ///
    /// # Errors
    /// As [`Model::load`].
    pub fn with_threads(&self, artifact: &Artifact, options: &ModelOptions<'_>) -> Result<Arc<Self>> {
        let variant = artifact.select(&host_for(artifact), Some(&self.manifest.target.name))?;
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
        let variant = artifact.select(&host_for(artifact), Some(&self.manifest.target.name))?;
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
        let device = device_for(variant, options.pool()?)?;
        Ok(Arc::new(Self { manifest, device, weights: Arc::clone(&self.weights), remarks: self.remarks.clone() }))
    }

    /// A model on any device that has the code of `manifest` loaded.
    ///
    /// # Errors
    /// The device has no memory for the weights.
    pub fn on_device(manifest: Arc<Manifest>, device: Arc<dyn Device>, packed: PackedWeights) -> Result<Arc<Self>> {
        let PackedWeights { block, offsets, remarks } = packed;
        let memory = device.adopt(block)?;
        Ok(Arc::new(Self { manifest, device, weights: Arc::new(LoadedWeights { memory, offsets }), remarks }))
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

    /// The input that takes a text's tokens: the first required one of integers, one for each element of the first axis.
    pub fn token_input(&self) -> Option<&Input> {
        let integers = |input: &&Input| matches!(input.dtype, DType::I64 | DType::I32) && input.dims.is_empty();
        self.manifest.inputs.iter().filter(integers).find(|input| input.axis == 0 && input.default.is_none())
    }

    /// The input that takes what a sequence is given once, before its tokens: the first required one of integers, one for each element.
    pub fn source_input(&self) -> Option<&Input> {
        let integers = |input: &&Input| matches!(input.dtype, DType::I64 | DType::I32) && input.dims.is_empty();
        let mut inputs = self.manifest.inputs.iter().filter(integers);
        inputs.find(|input| self.manifest.given_once(input.axis) && input.default.is_none())
    }

    /// A session with no sequences yet.
    ///
    /// # Errors
    /// The options ask for more than the model or the machine has.
    pub fn session(self: &Arc<Self>, options: &SessionOptions) -> Result<Session> {
        Session::new(Arc::clone(self), options)
    }
}

/// This machine, with its GPU where the artifact has code for one.
fn host_for(artifact: &Artifact) -> HostFeatures {
    let host = HostFeatures::detect();
    if artifact.manifests().any(|manifest| manifest.target.arch == PTX) { host.with_gpu() } else { host }
}

/// A device with the code of a variant.
fn device_for(variant: &Variant<'_>, pool: Arc<ThreadPool>) -> Result<Arc<dyn Device>> {
    if variant.is_ptx() {
        let (code, entries) = variant.code();
        return Ok(Arc::new(CudaDevice::new(variant.manifest(), code, entries, 0)?));
    }
    Ok(Arc::new(CpuDevice::new(variant.manifest(), variant.load_code()?, pool)?))
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
