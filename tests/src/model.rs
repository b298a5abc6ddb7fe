//! A reference case, expanded by the front end and given its weights.
//!
//! Given a [`Case`], [`expand`] picks the card as a user's checkpoint folder would, and [`parameters`] makes every parameter of the model
//! from the case's tensors as the bindings say, so that the interpreter's results depend on no code of the runtime.

use std::collections::BTreeMap;

use serde_json::Value;
use xfc_check::weights::bind;
use xfc_lang::arch::{ElaborateOptions, Model, elaborate};
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
