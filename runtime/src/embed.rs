//! Sentences to vectors: a model's last hidden states, pooled and normalised.

use crate::artifact::manifest::{DType, Manifest};
use crate::error::{Result, RuntimeError};
use crate::session::Session;
use crate::step::{InputData, StepInput, Wanted};
use crate::text::tokenizer::Encoded;
use std::sync::Arc;

/// How the vectors of a sentence's tokens become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Pooling {
    /// Their mean.
    Mean,
    /// The first token's.
    Cls,
    /// The last token's.
    Last,
}

/// How sentences are embedded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EmbedSettings {
    /// Tokens to one vector.
    pub pooling: Pooling,
    /// Scale to length 1.
    pub normalize: bool,
    /// Longer texts are cut.
    pub max_tokens: Option<usize>,
}

impl Session {
    /// One vector for each text, in their order. As many texts share a step as the session's steps have room for.
    ///
    /// # Errors
    /// The model has no hidden states to offer, or a text does not fit.
    pub fn embed(&mut self, texts: &[Encoded], pooling: Pooling, normalize: Normalize) -> Result<Vec<Vec<f32>>> {
        let manifest = Arc::clone(self.model().manifest());
        let output = embedding_output(&manifest)?;
        let most = usize::try_from(self.cache().options().max_sequences).unwrap_or(usize::MAX);
        let mut vectors = Vec::with_capacity(texts.len());
        let mut rest = texts;
        while !rest.is_empty() {
            let mut tokens = 0;
            let fits = |text: &&Encoded| {
                tokens += text.ids.len() as u64;
                tokens <= self.step_tokens()
            };
            let n = rest.iter().take_while(fits).take(most).count().max(1);
            let (batch, after) = rest.split_at(n);
            rest = after;
            let sequences = batch.iter().map(|_| self.add_sequence()).collect::<Result<Vec<_>>>()?;
            let step: Result<Vec<StepInput>> = batch
                .iter()
                .zip(&sequences)
                .map(|(text, &sequence)| {
                    Ok(StepInput { sequence, inputs: self.text_inputs(text)?, wanted: Wanted::All })
                })
                .collect();
            let result = step.and_then(|step| self.step(&step));
            for sequence in sequences {
                self.free(sequence)?;
            }
            let outputs = result?;
            let states = outputs
                .get(&output)
                .ok_or_else(|| RuntimeError::request(format!("the step returned no `{output}`"), ""))?;
            for index in 0..n {
                vectors.push(pool(states.rows_of(index).unwrap_or_default(), states.row_len(), pooling, normalize));
            }
        }
        Ok(vectors)
    }

    /// The inputs for a text: its tokens, and their types where the model wants them.
    fn text_inputs(&self, text: &Encoded) -> Result<Vec<(String, InputData)>> {
        let none =
            || RuntimeError::request("the model has no input for tokens", "use `logits`, which takes inputs by name");
        let token_input = self.model().token_input().ok_or_else(none)?;
        let ints = |ids: &[u32]| InputData::Ints(ids.iter().map(|&id| id.into()).collect());
        let mut inputs = vec![(token_input.name.clone(), ints(&text.ids))];
        if self
            .model()
            .manifest()
            .inputs
            .iter()
            .any(|input| input.name == "token_type_ids" && input.dtype == DType::I64)
        {
            inputs.push(("token_type_ids".to_owned(), ints(&text.type_ids)));
        }
        Ok(inputs)
    }
}

/// Whether vectors are scaled to length 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Normalize {
    /// They are.
    Yes,
    /// They stay as they are.
    No,
}

/// The output that holds a vector for each token: `last_hidden_state`, or the only one of that form.
fn embedding_output(manifest: &Manifest) -> Result<String> {
    let mut candidates =
        manifest.outputs.iter().filter(|output| output.axis == 0 && output.dims.len() == 1 && output.name != "logits");
    let named = manifest.outputs.iter().find(|output| output.name == "last_hidden_state" && output.axis == 0);
    match (named, candidates.next(), candidates.next()) {
        (Some(output), ..) | (None, Some(output), None) => Ok(output.name.clone()),
        _ => {
            let names: Vec<&str> = manifest.outputs.iter().map(|output| output.name.as_str()).collect();
            let problem =
                format!("the model has no output `last_hidden_state` to embed with, only {}", names.join(", "));
            Err(RuntimeError::request(problem, "compile the model as an encoder: without a head that predicts words"))
        }
    }
}

/// One vector of rows of `width`.
fn pool(rows: &[f32], width: usize, pooling: Pooling, normalize: Normalize) -> Vec<f32> {
    let n = rows.len() / width.max(1);
    let mut vector = match pooling {
        Pooling::Cls => rows[..width.min(rows.len())].to_vec(),
        Pooling::Last => rows[rows.len() - width.min(rows.len())..].to_vec(),
        Pooling::Mean => {
            let sum = |column: usize| rows.iter().skip(column).step_by(width).map(|&x| f64::from(x)).sum::<f64>();
            (0..width).map(|column| (sum(column) / n.max(1) as f64) as f32).collect()
        }
    };
    if normalize == Normalize::Yes {
        let length = vector.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt().max(1e-12);
        for x in &mut vector {
            *x = (f64::from(*x) / length) as f32;
        }
    }
    vector
}

/// The cosine of the angle between two vectors; 0 where one has no length.
pub fn cosine(a: &[f32], b: &[f32]) -> f32 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum::<f64>();
    let lengths = (dot(a, a) * dot(b, b)).sqrt();
    if lengths > 0.0 { (dot(a, b) / lengths) as f32 } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pools() {
        let rows = [3.0, 4.0, 1.0, 0.0];
        assert_eq!(pool(&rows, 2, Pooling::Mean, Normalize::No), [2.0, 2.0]);
        assert_eq!(pool(&rows, 2, Pooling::Cls, Normalize::Yes), [0.6, 0.8]);
        assert_eq!(pool(&rows, 2, Pooling::Last, Normalize::No), [1.0, 0.0]);
        assert_eq!(pool(&[0.0, 0.0], 2, Pooling::Mean, Normalize::Yes), [0.0, 0.0]);
        assert_eq!((cosine(&[1.0, 0.0], &[0.0, 2.0]), cosine(&[1.0, 1.0], &[2.0, 2.0])), (0.0, 1.0));
        assert_eq!(cosine(&[0.0], &[0.0]), 0.0);
    }
}
