//! Values by name in a safetensors file: what another implementation computed, with the inputs that it was given.
//!
//! | tensor | what it is |
//! |---|---|
//! | the name of an input of the model, `inputs.` before it or not | that input |
//! | a path of ours (`layers.3.mlp`) | that value |
//! | a module of the checkpoint (`model.layers.3.mlp`) | the value that the module returned |
//! | the name of an output (`logits`) | that output |
//! | `hidden_states.N` | what goes into layer N; with `encoder_` or `decoder_` before it where there are two stacks of layers |
//!
//! A leading batch of 1 is left out of account. Other tensors are reported as not compared.

use std::collections::BTreeMap;
use std::path::Path;

use safetensors::Dtype;
use safetensors::tensor::TensorView;
use xfc_runtime::artifact::manifest::{DType, Manifest};
use xfc_runtime::error::RuntimeError;
use xfc_runtime::files::write_atomic;
use xfc_runtime::step::InputData;
use xfc_runtime::weights::Checkpoint;

use crate::inputs::Inputs;
use crate::subject::{Outputs, Rows};
use crate::weights::floats;

/// Values computed elsewhere.
#[derive(Clone, Debug, Default)]
pub struct Dump {
    /// Everything in the file, by name.
    pub tensors: BTreeMap<String, Rows>,
}

impl Dump {
    /// Reads a file.
    ///
    /// # Errors
    /// It cannot be read, or holds types that are no numbers.
    pub fn open(path: &Path) -> Result<Self, RuntimeError> {
        let mut dump = Dump::default();
        let Checkpoint::Stored(stored) = Checkpoint::open(path)? else { return Ok(dump) };
        for (name, tensor) in stored.tensors() {
            let values = tensor.dtype().and_then(|dtype| floats(dtype, stored.bytes(tensor))).ok_or_else(|| {
                RuntimeError::input(
                    path.display().to_string(),
                    format!("`{name}` is stored as {:?}", tensor.encoding),
                    "store floats, or 64-bit integers for ids",
                )
            })?;
            let dims = tensor.shape.iter().map(|d| *d as usize).collect();
            dump.tensors.insert(name.to_owned(), Rows { dims, values });
        }
        Ok(dump)
    }

    /// The inputs of a model, with the batch taken off.
    ///
    /// # Errors
    /// An input that must be given is not there, one has another shape, or inputs of one axis have different lengths.
    pub fn inputs(&self, manifest: &Manifest, path: &Path) -> Result<Inputs, RuntimeError> {
        let mut inputs = Inputs::new();
        let mut lengths: BTreeMap<usize, (u64, String)> = BTreeMap::new();
        for input in &manifest.inputs {
            let found = self.tensors.get(&input.name).or_else(|| self.tensors.get(&format!("inputs.{}", input.name)));
            let Some(rows) = found else {
                if input.default.is_some() {
                    continue;
                }
                return Err(RuntimeError::input(
                    path.display().to_string(),
                    format!("does not hold the input `{}`", input.name),
                    "store the inputs by their names beside the values, as tools/dump_reference.py does",
                ));
            };
            // Of what there is one of in a sequence, such as an image, the batch taken off is all that led.
            let is_single = manifest.extents.get(input.axis).is_some_and(|extent| *extent == Some(1));
            let single: Vec<usize> = [1].iter().chain(&rows.dims).copied().collect();
            let dims = match &rows.dims[..] {
                [1, rest @ ..] if rest.len() == input.dims.len() + 1 => rest,
                dims if is_single && dims.len() == input.dims.len() => &single,
                dims => dims,
            };
            if dims.len() != input.dims.len() + 1 || dims[1..].iter().map(|d| *d as u64).ne(input.dims.iter().copied())
            {
                let expected: String = input.dims.iter().map(|dim| format!(", {dim}")).collect();
                return Err(RuntimeError::input(
                    path.display().to_string(),
                    format!("`{}` has the shape {:?}, expected [elements{expected}]", input.name, rows.dims),
                    "a dump is of one sequence",
                ));
            }
            let data = match input.dtype {
                DType::F32 | DType::F16 | DType::BF16 => {
                    InputData::Floats(rows.values.iter().map(|x| *x as f32).collect())
                }
                DType::I64 | DType::I32 | DType::Bool => {
                    InputData::Ints(rows.values.iter().map(|x| *x as i64).collect())
                }
            };
            let (axis, elements) = (input.axis, dims[0] as u64);
            let axis_name = manifest.axes.get(axis).map_or("elements", String::as_str);
            let known =
                manifest.extents.get(axis).copied().flatten().map(|extent| (extent, "every sequence".to_owned()));
            let expected = known.or_else(|| lengths.get(&axis).cloned());
            let problem = match expected {
                Some((n, of)) if n != elements => {
                    Some(format!("`{}` has {elements} {axis_name}, {of} has {n}", input.name))
                }
                _ if elements == 0 => Some(format!("`{}` has no {axis_name}", input.name)),
                _ => None,
            };
            if let Some(problem) = problem {
                return Err(RuntimeError::input(
                    path.display().to_string(),
                    problem,
                    format!("store all inputs of one sequence: those of {axis_name} are equally long"),
                ));
            }
            lengths.entry(axis).or_insert_with(|| (elements, format!("`{}`", input.name)));
            inputs.insert(input.name.clone(), data);
        }
        Ok(inputs)
    }
}

/// Writes values, in f32, and the inputs that they belong to.
///
/// # Errors
/// The file cannot be written.
pub fn write(path: &Path, inputs: &Inputs, values: &Outputs) -> Result<(), RuntimeError> {
    let mut tensors: Vec<(String, Dtype, Vec<usize>, Vec<u8>)> = Vec::new();
    for (name, data) in inputs {
        let (dtype, n, bytes): (_, _, Vec<u8>) = match data {
            InputData::Ints(v) => (Dtype::I64, v.len(), v.iter().flat_map(|x| x.to_le_bytes()).collect()),
            InputData::Floats(v) => (Dtype::F32, v.len(), v.iter().flat_map(|x| x.to_le_bytes()).collect()),
        };
        tensors.push((format!("inputs.{name}"), dtype, vec![n], bytes));
    }
    for (name, rows) in values {
        let bytes = rows.values.iter().flat_map(|x| (*x as f32).to_le_bytes()).collect();
        tensors.push((name.clone(), Dtype::F32, rows.dims.clone(), bytes));
    }
    let failed = |error: safetensors::SafeTensorError| RuntimeError::Io {
        path: path.display().to_string(),
        doing: "write",
        source: std::io::Error::other(error),
    };
    let mut views = Vec::with_capacity(tensors.len());
    for (name, dtype, dims, bytes) in &tensors {
        views.push((name.as_str(), TensorView::new(*dtype, dims.clone(), bytes).map_err(failed)?));
    }
    write_atomic(path, &safetensors::serialize(views, None).map_err(failed)?)
}
