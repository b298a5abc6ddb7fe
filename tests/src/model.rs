//! A reference case, expanded by the front end and given its weights.
//!
//! Given a [`Case`], [`expand`] picks the card as a user's checkpoint folder would, and [`parameters`] makes every parameter of the model
//! from the case's tensors as the bindings say. The steps of a binding are carried out here in the plainest way, so that the
//! interpreter's results depend on no code of the runtime.

use std::collections::BTreeMap;

use serde_json::Value;
use xfc_lang::arch::{Binding, ElaborateOptions, Model, Step, elaborate};
use xfc_lang::reference::Tensor;
use xfc_lang::spec::{Library, Spec, pick_card};

use crate::Result;
use crate::case::Case;

/// Parameters by instance path.
pub type Parameters = BTreeMap<String, Tensor>;

/// The card that serves a config of this `model_type`.
pub fn card(config: &Value) -> Result<Spec> {
    Ok(pick_card(config, &Library::embedded())?)
}

/// Expands the card of `config`'s family with `sizes`, another or the same config.
pub fn expand_with(config: &Value, sizes: &Value) -> Result<Model> {
    let options = ElaborateOptions { config: Some(sizes.clone()), ..ElaborateOptions::default() };
    Ok(elaborate(&card(config)?, &options)?)
}

/// Expands the model of a case.
pub fn expand(case: &Case) -> Result<Model> {
    expand_with(&case.config, &case.config)
}

/// Every parameter of the model, made from the case's tensors.
pub fn parameters(case: &Case, model: &Model) -> Result<Parameters> {
    let mut made = Parameters::new();
    for (parameter, binding) in model.arch.parameters.iter().zip(&model.bindings) {
        let stored = case.tensors.iter().find(|t| binding.names.contains(&t.name));
        let stored = stored.ok_or_else(|| format!("{}: no tensor is named {:?}", parameter.path, binding.names))?;
        if sizes(&binding.shape) != stored.shape {
            return Err(
                format!("{}: {} is {:?}, not {:?}", parameter.path, stored.name, stored.shape, binding.shape).into()
            );
        }
        let tensor = bind(binding, stored.values(case.seed))?;
        if tensor.dims != sizes(&parameter.shape) {
            return Err(
                format!("{}: bound as {:?}, wired as {:?}", parameter.path, tensor.dims, parameter.shape).into()
            );
        }
        made.insert(parameter.path.clone(), tensor);
    }
    Ok(made)
}

fn sizes(shape: &[u64]) -> Vec<usize> {
    shape.iter().map(|&n| n as usize).collect()
}

/// The parameter that a binding makes of a stored tensor.
fn bind(binding: &Binding, values: Vec<f32>) -> Result<Tensor> {
    let (mut dims, mut values) = (sizes(&binding.shape), values);
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
            return Err(format!("a step makes {dims:?} of {} elements", values.len()).into());
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
