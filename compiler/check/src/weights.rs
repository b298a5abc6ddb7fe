//! The weights of the interpreter: each parameter read from a checkpoint and carried through the steps of its binding.
//!
//! Given a model and a checkpoint, [`parameter`] promises the parameter as wired, in f32. The steps are carried out in the plainest
//! way, so that the interpreter's results depend on no packing or loading code of the runtime.

use half::{bf16, f16};
use safetensors::Dtype;
use xfc_lang::arch::{Binding, Model, Step};
use xfc_lang::graph::blocks::Blocks;
use xfc_lang::reference::Tensor;
use xfc_runtime::gguf::Encoding;
use xfc_runtime::weights::Checkpoint;

use crate::{blocks, scaled};

/// The parameter at an absolute path; where it is `held` in blocks as it is stored, with the scales and minima that those have.
///
/// # Errors
/// In words: no such parameter, no such tensor, or one that does not fit.
pub fn parameter(model: &Model, checkpoint: &Checkpoint, path: &str, held: Option<Blocks>) -> Result<Tensor, String> {
    let at = model.arch.parameters.iter().position(|p| p.path == path);
    let binding = at.and_then(|i| model.bindings.get(i)).ok_or_else(|| format!("there is no parameter {path}"))?;
    bind(binding, stored(binding, checkpoint, held)?)
}

/// The elements of a binding's stored tensor, in row-major order; of a larger one those that are read.
fn stored(binding: &Binding, checkpoint: &Checkpoint, held: Option<Blocks>) -> Result<Vec<f32>, String> {
    let count: u64 = binding.shape.iter().product();
    match checkpoint {
        Checkpoint::Random(random) => {
            let name = binding.names.first().map_or("", String::as_str);
            let tensor = random.tensor(name, &binding.shape);
            Ok((0..count).map(|i| tensor.value(i)).collect())
        }
        Checkpoint::Stored(stored) => {
            let plain = |name: &String| {
                let tensor = stored.tensor(name)?;
                let values = match tensor.encoding {
                    Encoding::Plain(dtype) => floats(dtype, stored.bytes(tensor)),
                    Encoding::Blocks(format) => blocks::floats(format, stored.bytes(tensor), held),
                    Encoding::Unread(_) => None,
                };
                let values = values.ok_or_else(|| format!("{name} is stored as {:?}", tensor.encoding));
                Some(values.map(|values| (tensor.shape.clone(), values.into_iter().map(|x| x as f32).collect())))
            };
            // The first name under which there is anything.
            let found =
                binding.names.iter().find_map(|name| scaled::parameter(stored, name, held).or_else(|| plain(name)));
            let found = found.ok_or_else(|| format!("no tensor is named {:?}", binding.names))?;
            let (shape, values): (Vec<u64>, Vec<f32>) = found?;
            if shape == binding.shape {
                return Ok(values);
            }
            if !binding.admits(&shape) {
                return Err(format!("{:?}: {shape:?}, not {:?}", binding.names, binding.shape));
            }
            Ok(gather(&sizes(&shape), &values, &sizes(&binding.shape), <[usize]>::to_vec))
        }
    }
}

/// A scale or a minimum as blocks hold it.
pub(crate) fn held_in(held: Option<Blocks>, x: f64) -> f64 {
    match held {
        Some(held) if held.form.is_float() => f64::from(x as f32),
        Some(_) => f16::from_f64(x).to_f64(),
        None => x,
    }
}

/// Stored little-endian numbers as f64; `None` for types that hold no plain numbers.
pub(crate) fn floats(dtype: Dtype, bytes: &[u8]) -> Option<Vec<f64>> {
    Some(match dtype {
        Dtype::F64 => bytes.as_chunks().0.iter().map(|x| f64::from_le_bytes(*x)).collect(),
        Dtype::F32 => bytes.as_chunks().0.iter().map(|x| f64::from(f32::from_le_bytes(*x))).collect(),
        Dtype::F16 => bytes.as_chunks().0.iter().map(|x| f16::from_le_bytes(*x).to_f64()).collect(),
        Dtype::BF16 => bytes.as_chunks().0.iter().map(|x| bf16::from_le_bytes(*x).to_f64()).collect(),
        Dtype::I64 => bytes.as_chunks().0.iter().map(|x| i64::from_le_bytes(*x) as f64).collect(),
        Dtype::I32 => bytes.as_chunks().0.iter().map(|x| f64::from(i32::from_le_bytes(*x))).collect(),
        Dtype::BOOL | Dtype::U8 => bytes.iter().map(|x| f64::from(*x)).collect(),
        _ => return None,
    })
}

fn sizes(shape: &[u64]) -> Vec<usize> {
    shape.iter().map(|&n| n as usize).collect()
}

/// The parameter that a binding makes of the elements of a tensor of the binding's shape.
///
/// # Errors
/// In words: a number of elements that the steps do not lead to.
pub fn bind(binding: &Binding, values: Vec<f32>) -> Result<Tensor, String> {
    let shifted = |x: f32| if binding.offset == 0.0 { x } else { (f64::from(x) + binding.offset) as f32 };
    let (mut dims, mut values) = (sizes(&binding.shape), values.into_iter().map(shifted).collect::<Vec<f32>>());
    for step in &binding.steps {
        (dims, values) = match step {
            Step::Transpose { perm } => {
                let new = perm.iter().map(|&p| dims[p]).collect::<Vec<_>>();
                let pick = |at: &[usize]| {
                    let mut old = vec![0; dims.len()];
                    perm.iter().zip(at).for_each(|(&p, &i)| old[p] = i);
                    old
                };
                (new.clone(), gather(&dims, &values, &new, pick))
            }
            Step::Slice { dim, start, len } => {
                let mut new = dims.clone();
                new[*dim] = *len as usize;
                let pick = |at: &[usize]| {
                    let mut old = at.to_vec();
                    old[*dim] += *start as usize;
                    old
                };
                (new.clone(), gather(&dims, &values, &new, pick))
            }
            // The values are of the binding's shape, so that nothing is left to cut.
            Step::Lead { .. } => (dims, values),
            Step::Index { dim, index } => {
                let mut new = dims.clone();
                new.remove(*dim);
                let pick = |at: &[usize]| {
                    let mut old = at.to_vec();
                    old.insert(*dim, *index as usize);
                    old
                };
                (new.clone(), gather(&dims, &values, &new, pick))
            }
            Step::Reshape { shape } => (sizes(shape), values),
        };
        if dims.iter().product::<usize>() != values.len() {
            return Err(format!("a step makes {dims:?} of {} elements", values.len()));
        }
    }
    Ok(Tensor::f32(dims, values))
}

/// The elements of a tensor of shape `new`, each read where `pick` says.
fn gather(dims: &[usize], values: &[f32], new: &[usize], pick: impl Fn(&[usize]) -> Vec<usize>) -> Vec<f32> {
    let mut at = vec![0; new.len()];
    let mut out = Vec::with_capacity(new.iter().product());
    for _ in 0..new.iter().product() {
        let flat = pick(&at).iter().zip(dims).fold(0, |flat, (i, size)| flat * size + i);
        out.push(values[flat]);
        for d in (0..new.len()).rev() {
            at[d] += 1;
            if at[d] < new[d] {
                break;
            }
            at[d] = 0;
        }
    }
    out
}
