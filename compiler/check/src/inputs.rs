//! Inputs by name: made up for a model, cut into pieces, and as the interpreter takes them.

use std::collections::BTreeMap;

use xfc_lang::graph::{DType, Dim, Program};
use xfc_lang::reference::{Data, Tensor};
use xfc_runtime::artifact::manifest::{self, Input, Manifest};
use xfc_runtime::step::{self, InputData};

/// Inputs of one sequence.
pub type Inputs = BTreeMap<String, InputData>;

/// Which inputs are made up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// Those without a default.
    Required,
    /// Also integers that have one.
    All,
}

/// Numbers that follow from a seed, for `lengths` elements of each axis: integers below the input's limit, floats in [-1, 1).
pub fn random(manifest: &Manifest, lengths: &[u64], seed: u64, which: Which) -> Inputs {
    let wanted = |input: &&Input| {
        let integers = matches!(input.dtype, manifest::DType::I64 | manifest::DType::I32) && input.limit.is_some();
        input.default.is_none() || (which == Which::All && integers)
    };
    let make = |(index, input): (usize, &Input)| {
        let n = lengths.get(input.axis).copied().unwrap_or(0);
        let seed = seed ^ ((index as u64 + 1) << 48);
        let data = match input.dtype {
            manifest::DType::Bool => InputData::Ints(vec![1; (n * input.width()) as usize]),
            _ => InputData::made_up(input, n, |i| splitmix64(seed, i)),
        };
        (input.name.clone(), data)
    };
    manifest.inputs.iter().enumerate().filter(|(_, input)| wanted(input)).map(make).collect()
}

/// Whether some inputs need not be given and [`Which::All`] gives them.
pub fn has_optional(manifest: &Manifest) -> bool {
    manifest.inputs.iter().any(|input| input.default.is_some() && input.limit.is_some())
}

/// Output number `index + 1` of SplitMix64 seeded with `key`.
fn splitmix64(key: u64, index: u64) -> u64 {
    let z = key.wrapping_add(index.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Elements that inputs put on an axis, or that every sequence has of it.
pub fn length(manifest: &Manifest, inputs: &Inputs, axis: usize) -> u64 {
    if let Some(extent) = manifest.extents.get(axis).copied().flatten() {
        return extent;
    }
    let on_axis = manifest.inputs.iter().filter(|input| input.axis == axis);
    let elements = |input: &Input| inputs.get(&input.name).map(|data| data.len() as u64 / input.width().max(1));
    on_axis.filter_map(elements).max().unwrap_or(0)
}

/// The part of a sequence's inputs with elements `start .. start + n` of the first axis. Inputs of other axes go with the first part.
pub fn piece(manifest: &Manifest, inputs: &Inputs, start: u64, n: u64) -> Vec<(String, InputData)> {
    let range = start as usize..(start + n) as usize;
    step::piece(manifest, inputs.iter().map(|(name, data)| (name.as_str(), data)), &range)
}

/// Inputs as the interpreter takes them.
pub fn tensors(program: &Program, inputs: &Inputs) -> BTreeMap<String, Tensor> {
    let mut tensors = BTreeMap::new();
    for (name, data) in inputs {
        let Some(decl) = program.inputs.iter().find(|decl| decl.name == *name) else { continue };
        let row: u64 = decl.ty.dims.iter().map(|d| if let Dim::Fixed(n) = d { *n } else { 1 }).product();
        let rows = data.len() / (row as usize).max(1);
        let dims: Vec<usize> =
            decl.ty.dims.iter().map(|d| if let Dim::Fixed(n) = d { *n as usize } else { rows }).collect();
        let tensor = match (data, decl.ty.dtype) {
            (InputData::Ints(v), DType::Bool) => Tensor { dims, data: Data::Bool(v.iter().map(|x| *x != 0).collect()) },
            (InputData::Ints(v), _) => Tensor::i64(dims, v.clone()),
            (InputData::Floats(v), _) => Tensor::f32(dims, v.clone()),
        };
        tensors.insert(name.clone(), tensor);
    }
    tensors
}
