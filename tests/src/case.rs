//! A reference case: a tiny model's config, generated weights, inputs, and what another implementation computed from them.
//!
//! Given a name in `tests/reference/cases`, [`Case::load`] reads the folder; [`Case::write_checkpoint`] writes what a user would have:
//! a folder with `config.json` and safetensors in one file or in shards. Nothing of a case is computed by xfc.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};
use tempfile::TempDir;
use xfc_runtime::step::InputData;

use crate::{Result, fill, repository};

/// A reference case, loaded.
#[derive(Clone, Debug)]
pub struct Case {
    /// Name of its folder.
    pub name: String,
    /// Its folder in the repository.
    pub folder: PathBuf,
    /// `config.json`, in the form that transformers 5 writes.
    pub config: Value,
    /// The config in the form that published checkpoints use.
    pub config_as_given: Value,
    /// Seed of the weights.
    pub seed: u64,
    /// Every tensor of the checkpoint, in file order.
    pub tensors: Vec<TensorSpec>,
    /// Names that are the same tensor as another, and so are not stored: alias to stored name.
    pub tied: BTreeMap<String, String>,
    /// Inputs of integers of the forward pass by name, the batch axis dropped.
    pub inputs: BTreeMap<String, Vec<i64>>,
    /// Its inputs of floats, the batch axis dropped: images, sound.
    pub floats: BTreeMap<String, Golden>,
    /// Tokens to generate after the prompt; 0 where the model does not generate.
    pub greedy_steps: usize,
    golden: Vec<u8>,
}

/// How a tensor of the checkpoint is generated.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorSpec {
    /// Name in the checkpoint.
    pub name: String,
    /// Stored shape, outermost first.
    pub shape: Vec<usize>,
    /// Centre of its values.
    pub offset: f64,
    /// Half the width of their range.
    pub scale: f64,
}

/// A tensor of floats that another implementation computed.
#[derive(Clone, Debug, PartialEq)]
pub struct Golden {
    /// Shape, outermost first.
    pub shape: Vec<usize>,
    /// Values in row-major order.
    pub values: Vec<f32>,
}

/// How a checkpoint lies on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// `model.safetensors`.
    Single,
    /// So many `model-0000i-of-0000n.safetensors` and their `model.safetensors.index.json`.
    Sharded(usize),
}

/// A checkpoint folder that disappears with the value.
#[derive(Debug)]
pub struct Checkpoint {
    folder: TempDir,
}

impl Checkpoint {
    /// The folder.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }
}

impl TensorSpec {
    /// Its values, in row-major order.
    pub fn values(&self, seed: u64) -> Vec<f32> {
        fill::fill(&self.name, seed, self.shape.iter().product(), self.offset, self.scale)
    }
}

impl Case {
    /// The folder that holds the cases.
    pub fn root() -> PathBuf {
        repository().join("tests/reference/cases")
    }

    /// The names of all cases, sorted.
    pub fn names() -> Result<Vec<String>> {
        let root = Case::root();
        let mut names = Vec::new();
        for entry in fs::read_dir(&root).map_err(|e| format!("{}: {e}", root.display()))? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                names.push(entry.file_name().to_string_lossy().into_owned());
            }
        }
        names.sort();
        Ok(names)
    }

    /// A case without a folder: nothing of it was computed by another implementation.
    pub fn generated(name: &str, config: Value, tensors: Vec<TensorSpec>) -> Case {
        Case {
            name: name.to_owned(),
            folder: PathBuf::new(),
            config_as_given: config.clone(),
            config,
            seed: 1,
            tensors,
            tied: BTreeMap::new(),
            inputs: BTreeMap::new(),
            floats: BTreeMap::new(),
            greedy_steps: 0,
            golden: Vec::new(),
        }
    }

    /// Reads the case `name`.
    pub fn load(name: &str) -> Result<Case> {
        let folder = Case::root().join(name);
        let params = read_json(&folder.join("params.json"))?;
        let inputs = read_json(&folder.join("inputs.json"))?;
        let about = read_json(&folder.join("case.json"))?;
        let bad = |what: &str| format!("{}: {what}", folder.display());
        let tensors = params["tensors"].as_array().ok_or_else(|| bad("params.json has no tensors"))?;
        let forward = inputs["forward"].as_object().ok_or_else(|| bad("inputs.json has no forward"))?;
        let (floats, ints): (Vec<_>, Vec<_>) = forward.iter().partition(|(_, v)| v["fill"].is_object());
        let seed = params["seed"].as_u64().ok_or_else(|| bad("params.json has no seed"))?;
        Ok(Case {
            name: name.to_owned(),
            config: read_json(&folder.join("config.json"))?,
            config_as_given: about["config_as_given"].clone(),
            seed,
            tensors: tensors.iter().map(tensor_spec).collect::<Result<_>>()?,
            tied: serde_json::from_value(params["tied"].clone())?,
            inputs: ints.into_iter().map(|(k, v)| Ok((k.clone(), batch_of_one(v)?))).collect::<Result<_>>()?,
            floats: floats
                .into_iter()
                .map(|(k, v)| Ok((k.clone(), filled(&v["fill"], seed)?)))
                .collect::<Result<_>>()?,
            greedy_steps: serde_json::from_value(inputs["greedy_steps"].clone())?,
            golden: read(&folder.join("golden.safetensors"))?,
            folder,
        })
    }

    /// Name of the input that is continued: the decoder's where there is an encoder.
    pub fn token_input(&self) -> &'static str {
        if self.inputs.contains_key("decoder_input_ids") { "decoder_input_ids" } else { "input_ids" }
    }

    /// The tokens that are continued.
    pub fn prompt(&self) -> Result<&[i64]> {
        let name = self.token_input();
        Ok(self.inputs.get(name).ok_or_else(|| format!("case {} has no {name}", self.name))?)
    }

    /// What a sequence is given once, before its tokens: the encoder's inputs, where there is one.
    pub fn source(&self) -> BTreeMap<String, InputData> {
        let mut inputs = self.all_inputs();
        inputs.retain(|name, _| self.token_input() != "input_ids" && name != self.token_input());
        inputs
    }

    /// All inputs, as the runtime takes them.
    pub fn all_inputs(&self) -> BTreeMap<String, InputData> {
        let ints = self.inputs.iter().map(|(name, ids)| (name.clone(), InputData::Ints(ids.clone())));
        let floats = self.floats.iter().map(|(name, x)| (name.clone(), InputData::Floats(x.values.clone())));
        ints.chain(floats).collect()
    }

    /// The names of the golden tensors, sorted.
    pub fn golden_names(&self) -> Result<Vec<String>> {
        let mut names: Vec<_> = SafeTensors::deserialize(&self.golden)?.names().into_iter().map(String::from).collect();
        names.sort();
        Ok(names)
    }

    /// The outputs of the model that are golden, by their names: `logits`, `last_hidden_state`. What lies within the model has a dot in its name.
    pub fn outputs(&self) -> Result<BTreeMap<String, Golden>> {
        let names = self.golden_names()?.into_iter().filter(|name| !name.contains('.'));
        let outputs: BTreeMap<String, Golden> =
            names.map(|name| Ok((name.clone(), self.golden(&name)?))).collect::<Result<_>>()?;
        if outputs.is_empty() { Err(format!("case {} has no output", self.name).into()) } else { Ok(outputs) }
    }

    /// The golden tensor `name` of floats.
    pub fn golden(&self, name: &str) -> Result<Golden> {
        let file = SafeTensors::deserialize(&self.golden)?;
        let tensor = file.tensor(name).map_err(|e| format!("golden of case {}: {name}: {e}", self.name))?;
        if tensor.dtype() != Dtype::F32 {
            return Err(format!("golden of case {}: {name} is {:?}, not F32", self.name, tensor.dtype()).into());
        }
        let values = tensor.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        Ok(Golden { shape: tensor.shape().to_vec(), values })
    }

    /// The golden tensor `name` of choices, by its rows: what is best among a token's scores, in no order.
    pub fn golden_choices(&self, name: &str) -> Result<Vec<Vec<i64>>> {
        let file = SafeTensors::deserialize(&self.golden)?;
        let tensor = file.tensor(name).map_err(|e| format!("golden of case {}: {name}: {e}", self.name))?;
        if let (Dtype::I32, [_, k]) = (tensor.dtype(), tensor.shape())
            && *k > 0
        {
            let choices =
                tensor.data().chunks_exact(4).map(|b| i64::from(i32::from_le_bytes([b[0], b[1], b[2], b[3]])));
            return Ok(choices.collect::<Vec<_>>().chunks_exact(*k).map(<[i64]>::to_vec).collect());
        }
        let found = (tensor.dtype(), tensor.shape());
        Err(format!("golden of case {}: {name} is {found:?}, not I32 of two dimensions", self.name).into())
    }

    /// The tokens that follow the prompt when the largest logit is taken each time.
    pub fn greedy_ids(&self) -> Result<Vec<i64>> {
        let file = SafeTensors::deserialize(&self.golden)?;
        let tensor = file.tensor("greedy.ids").map_err(|e| format!("golden of case {}: greedy.ids: {e}", self.name))?;
        let bytes = tensor.data().chunks_exact(8);
        Ok(bytes.map(|b| i64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]])).collect())
    }

    /// Writes the checkpoint into a temporary folder.
    pub fn checkpoint(&self, layout: Layout) -> Result<Checkpoint> {
        let folder = tempfile::Builder::new().prefix(&format!("xfc-{}-", self.name)).tempdir()?;
        self.write_checkpoint(folder.path(), layout)?;
        Ok(Checkpoint { folder })
    }

    /// Writes `config.json` and the generated tensors into `folder`, which exists.
    pub fn write_checkpoint(&self, folder: &Path, layout: Layout) -> Result<()> {
        fs::write(folder.join("config.json"), serde_json::to_vec_pretty(&self.config)?)?;
        match layout {
            Layout::Single => write_tensors(&folder.join("model.safetensors"), self.seed, &self.tensors),
            Layout::Sharded(shards) => self.write_shards(folder, shards),
        }
    }

    fn write_shards(&self, folder: &Path, shards: usize) -> Result<()> {
        let per_shard = self.tensors.len().div_ceil(shards.max(1)).max(1);
        let shards = self.tensors.len().div_ceil(per_shard);
        let mut weight_map = BTreeMap::new();
        for (shard, tensors) in self.tensors.chunks(per_shard).enumerate() {
            let file = format!("model-{:05}-of-{shards:05}.safetensors", shard + 1);
            weight_map.extend(tensors.iter().map(|t| (t.name.clone(), file.clone())));
            write_tensors(&folder.join(file), self.seed, tensors)?;
        }
        let elements: usize = self.tensors.iter().map(|t| t.shape.iter().product::<usize>()).sum();
        let index = json!({ "metadata": { "total_size": elements * 4 }, "weight_map": weight_map });
        fs::write(folder.join("model.safetensors.index.json"), serde_json::to_vec_pretty(&index)?)?;
        Ok(())
    }
}

/// Writes `tensors` with their generated values as one safetensors file of f32.
pub fn write_tensors(path: &Path, seed: u64, tensors: &[TensorSpec]) -> Result<()> {
    let bytes: Vec<Vec<u8>> =
        tensors.iter().map(|t| t.values(seed).iter().flat_map(|v| v.to_le_bytes()).collect()).collect();
    let mut views = Vec::with_capacity(tensors.len());
    for (tensor, bytes) in tensors.iter().zip(&bytes) {
        views.push((tensor.name.as_str(), TensorView::new(Dtype::F32, tensor.shape.clone(), bytes)?));
    }
    safetensors::serialize_to_file(views, None, path).map_err(|e| format!("{}: {e}", path.display()))?;
    Ok(())
}

fn tensor_spec(value: &Value) -> Result<TensorSpec> {
    let bad = || format!("params.json: not a tensor: {value}");
    Ok(TensorSpec {
        name: value["name"].as_str().ok_or_else(bad)?.to_owned(),
        shape: serde_json::from_value(value["shape"].clone())?,
        offset: value["offset"].as_f64().ok_or_else(bad)?,
        scale: value["scale"].as_f64().ok_or_else(bad)?,
    })
}

/// An input whose values are generated as weights are.
fn filled(fill: &Value, seed: u64) -> Result<Golden> {
    let spec = tensor_spec(fill)?;
    match spec.shape.split_first() {
        Some((1, shape)) => Ok(Golden { shape: shape.to_vec(), values: spec.values(seed) }),
        _ => Err("inputs.json: an input whose batch is not 1".into()),
    }
}

fn batch_of_one(value: &Value) -> Result<Vec<i64>> {
    let mut batch: Vec<Vec<i64>> = serde_json::from_value(value.clone())?;
    match batch.pop() {
        Some(row) if batch.is_empty() => Ok(row),
        _ => Err("inputs.json: an input whose batch is not 1".into()),
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    Ok(fs::read(path).map_err(|e| format!("{}: {e}", path.display()))?)
}

fn read_json(path: &Path) -> Result<Value> {
    Ok(serde_json::from_slice(&read(path)?).map_err(|e| format!("{}: {e}", path.display()))?)
}
