//! What a GGUF checkpoint says of a model, as descriptions read it.

use xfc_lang::spec::Facts;
use xfc_runtime::weights::Checkpoint;

/// Most elements of a list of metadata that a description may read: one a layer, and no vocabulary.
const MOST_LISTED: u64 = 4096;

/// What a GGUF file says to descriptions; `None` of another checkpoint.
pub fn facts(checkpoint: &Checkpoint) -> Option<Facts<'_>> {
    let Checkpoint::Stored(stored) = checkpoint else { return None };
    let (header, file) = stored.header()?;
    let values = header.metadata.iter();
    let short = values.clone().filter_map(|(key, value)| Some((key.clone(), value.to_json(file, MOST_LISTED)?)));
    let lengths = values.filter_map(|(key, value)| Some((key.clone(), value.as_list()?.len)));
    Some(Facts {
        name: checkpoint.path(),
        metadata: short.collect(),
        lengths: lengths.collect(),
        tensors: stored.tensors().map(|(name, tensor)| (name.to_owned(), tensor.shape.clone())).collect(),
        numbers: Box::new(|name| Some(stored.numbers(name)?.into_iter().map(f64::from).collect())),
    })
}
