//! What `--quant stored` stands for: how the parameters are held that a checkpoint stores in few bits.

use std::collections::BTreeMap;

use xfc_codegen::driver;
use xfc_lang::arch::Model;
use xfc_lang::graph::blocks::{BlockForm, Blocks};
use xfc_lang::passes::quantise::{StoredForm, StoredForms};
use xfc_runtime::artifact::manifest::Source;
use xfc_runtime::weights::Checkpoint;

/// The parameters that a checkpoint stores in few bits.
#[derive(Clone, Debug, Default)]
pub struct StoredWeights {
    /// How each is held.
    pub forms: StoredForms,
    /// How many there are of each encoding, and the blocks that hold it.
    pub encodings: BTreeMap<(String, Blocks), usize>,
}

/// How the parameters of `model` are held that `checkpoint` stores in few bits.
pub fn stored(model: &Model, checkpoint: &Checkpoint) -> StoredWeights {
    let mut all = StoredWeights::default();
    let Checkpoint::Stored(stored) = checkpoint else { return all };
    if checkpoint.format() != Some(if model.format.is_empty() { "hf" } else { &model.format }) {
        return all;
    }
    for (parameter, binding) in model.arch.parameters.iter().zip(&model.bindings) {
        let driver::Stored { names, shape, steps, offset } = driver::stored(binding);
        let source = Source { path: parameter.path.clone(), names, shape, steps, offset };
        let Some(found) = stored.stored_as(&source) else { continue };
        let form = match (found.bits, found.minimum) {
            _ if found.floats => BlockForm::Fp8,
            (4, false) => BlockForm::Int4,
            (4, true) => BlockForm::Uint4,
            (_, false) => BlockForm::Int8,
            (_, true) => BlockForm::Uint8,
        };
        let blocks = Blocks { stored: found.along.is_some(), ..Blocks::weights(form, found.group as u16) };
        let along = found.along.unwrap_or_default();
        all.forms.insert(parameter.path.clone(), StoredForm { blocks, along });
        *all.encodings.entry((found.encoding, blocks)).or_default() += 1;
    }
    all
}
