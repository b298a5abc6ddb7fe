//! `xfc inspect --names`: where each parameter lies in a checkpoint, as the card's `names` say.

use xfc_lang::arch::{Binding, Step};

use crate::model::Loaded;

/// A line for each parameter: the stored tensor, its shape, our path, and which part of the tensor the parameter is.
pub(crate) fn list(loaded: &Loaded) -> String {
    let rows: Vec<[String; 3]> = loaded
        .model
        .arch
        .parameters
        .iter()
        .zip(&loaded.model.bindings)
        .map(|(p, b)| [b.names.join(" or "), shape(&b.shape), format!("{}{}", p.path, part(b))])
        .collect();
    let [name, size] = [0, 1].map(|i| rows.iter().map(|row| row[i].len()).max().unwrap_or(0));
    let line = |[stored, dims, ours]: &[String; 3]| format!("{stored:<name$}  {dims:<size$}  {ours}");
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

fn shape(dims: &[u64]) -> String {
    format!("[{}]", dims.iter().map(u64::to_string).collect::<Vec<_>>().join(", "))
}

/// What of the stored tensor a parameter is, where that is not all as it lies there.
fn part(binding: &Binding) -> String {
    let said = binding.steps.iter().map(|step| match step {
        Step::Transpose { .. } => "transposed".to_owned(),
        Step::Slice { dim, start, len } => format!("{start}..{} of dimension {dim}", start + len),
        Step::Lead { dim, len } => format!("the first {len} of dimension {dim}"),
        Step::Index { dim, index } => format!("element {index} of dimension {dim}"),
        Step::Reshape { shape: dims } => format!("as {}", shape(dims)),
    });
    let said: Vec<String> = said.collect();
    if said.is_empty() { String::new() } else { format!(": {}", said.join(", ")) }
}
