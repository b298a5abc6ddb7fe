//! Tokens one after another: an iterator over a session's sequence.

use crate::cache::SequenceId;
use crate::error::{Result, RuntimeError};
use crate::session::Session;
use crate::step::{InputData, StepInput, StepOutput, StepOutputs, Wanted};
use crate::text::sampler::{Sampler, SamplerOptions};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// How a continuation is made.
#[derive(Clone, Debug, Default)]
pub struct GenerateOptions {
    /// Most tokens to make; `None`: until a stop token or the end of the context.
    pub max_tokens: Option<u64>,
    /// How each is picked.
    pub sampler: SamplerOptions,
    /// For a model that writes from a source: the tokens with which its text begins. They are no part of what is made.
    pub start_ids: Vec<u32>,
    /// Further inputs of the sequence, given with its first tokens: an image, sound.
    pub inputs: Vec<(String, InputData)>,
    /// Tokens that are never made.
    pub suppress_ids: Vec<u32>,
    /// Tokens that end the text; they are not part of it.
    pub stop_ids: Vec<u32>,
    /// Set by another thread to end after the current token.
    pub cancel: Option<Arc<AtomicBool>>,
    /// Outputs to keep of every token that is run: see [`Generate::recorded`].
    pub record: Vec<String>,
}

/// Why there are no more tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// [`GenerateOptions::max_tokens`] were made.
    Length,
    /// The model chose a stop token.
    Stop,
    /// The context is full.
    Context,
    /// [`GenerateOptions::cancel`] was set.
    Cancelled,
    /// A step failed; the iterator returned the error.
    Error,
}

/// A continuation being made. Each item is a token's id.
#[derive(Debug)]
pub struct Generate<'a> {
    session: &'a mut Session,
    logits: String,
    /// What the next step is given: tokens first; before the first step also a source and what else was given.
    input: StepInput,
    sampler: Sampler,
    options: GenerateOptions,
    /// Of the last step.
    outputs: StepOutputs,
    recorded: StepOutputs,
    made: u64,
    finished: Option<FinishReason>,
}

impl Session {
    /// Continues `sequence` with `prompt` (at least one token) and then with what the model makes of it. For a model that writes from a
    /// source, and a sequence that has none yet, the prompt is the source, and the text begins with [`GenerateOptions::start_ids`].
    ///
    /// # Errors
    /// The model is not one that continues text, the prompt is empty or does not fit into the context, an option is out of range.
    pub fn generate(&mut self, sequence: SequenceId, prompt: &[u32], options: GenerateOptions) -> Result<Generate<'_>> {
        let manifest = Arc::clone(self.model().manifest());
        let refuse = |problem: &str, help: &str| Err(RuntimeError::request(problem, help));
        let Some(token_input) = self.model().token_input().map(|input| input.name.clone()) else {
            return refuse("the model has no input for tokens", "give its inputs by name, with `logits`");
        };
        let logits = manifest
            .outputs
            .iter()
            .find(|output| output.name == "logits" && output.axis == 0 && output.dims.len() == 1);
        let Some(logits) = logits.map(|output| output.name.clone()) else {
            return refuse(
                "the model has no output `logits`, so that it cannot continue a text",
                "use `logits` or `embed`",
            );
        };
        if manifest.whole_sequences {
            return refuse("the model reads text as a whole and does not continue it", "use `logits` or `embed`");
        }
        if prompt.is_empty() {
            return refuse("the prompt has no tokens", "give a prompt of at least one token");
        }
        let lengths = self.lengths(sequence)?;
        let source_input = self.model().source_input().filter(|input| lengths[input.axis] == 0);
        let source_input = source_input.map(|input| input.name.clone());
        let room = self.context_tokens().saturating_sub(if source_input.is_some() { 0 } else { lengths[0] });
        if prompt.len() as u64 > room {
            let problem = format!("the prompt has {} tokens, the context has room for {room}", prompt.len());
            return Err(RuntimeError::request(problem, "shorten the prompt, or ask for a larger context (`-c`)"));
        }
        let ints = |ids: &[u32]| ids.iter().map(|&id| i64::from(id)).collect::<Vec<i64>>();
        let (source, pending) = match source_input {
            Some(_) if options.start_ids.is_empty() => {
                let problem = format!(
                    "the model writes from a source, and the token with which `{token_input}` begins was not given"
                );
                let help = format!(
                    "a checkpoint's config has it as `decoder_start_token_id`; with token ids: `--tokens {token_input}=ID`"
                );
                return Err(RuntimeError::request(problem, help));
            }
            Some(name) => (Some((name, ints(prompt))), ints(&options.start_ids)),
            None => (None, ints(prompt)),
        };
        let sampler = Sampler::new(&options.sampler)?;
        let mut options = options;
        let given = [(token_input, pending)].into_iter().chain(source).map(|(name, ids)| (name, InputData::Ints(ids)));
        let inputs = given.chain(std::mem::take(&mut options.inputs)).collect();
        let wanted = if options.record.is_empty() { Wanted::Last } else { Wanted::All };
        Ok(Generate {
            session: self,
            logits,
            input: StepInput { sequence, inputs, wanted },
            sampler,
            options,
            outputs: StepOutputs::default(),
            recorded: StepOutputs::default(),
            made: 0,
            finished: None,
        })
    }
}

impl Generate<'_> {
    /// Why it ended, once it has.
    pub fn finish_reason(&self) -> Option<FinishReason> {
        self.finished
    }

    /// The outputs named in [`GenerateOptions::record`], a row for each token run so far: the prompt, and all that was made but the last.
    pub fn recorded(&self) -> &StepOutputs {
        &self.recorded
    }

    /// The session, for what it can tell between tokens.
    pub fn session(&self) -> &Session {
        self.session
    }

    /// The next token, or why there is none.
    fn advance(&mut self) -> Result<u32, (FinishReason, Option<RuntimeError>)> {
        if self.options.max_tokens.is_some_and(|most| self.made >= most) {
            return Err((FinishReason::Length, None));
        }
        if self.options.cancel.as_ref().is_some_and(|cancel| cancel.load(Ordering::Relaxed)) {
            return Err((FinishReason::Cancelled, None));
        }
        let failed = |error| (FinishReason::Error, Some(error));
        let length = self.session.length(self.input.sequence).map_err(failed)?;
        let pending = self.input.inputs.first().map_or(0, |(_, tokens)| tokens.len());
        if length + pending as u64 > self.session.context_tokens() {
            return Err((FinishReason::Context, None));
        }
        self.session.step_in_pieces_into(&self.input, &mut self.outputs).map_err(failed)?;
        if !self.options.record.is_empty() {
            let kept = self.outputs.outputs.iter().filter(|output| self.options.record.contains(&output.name));
            self.recorded.extend(StepOutputs { outputs: kept.cloned().collect() });
        }
        let logits = self.outputs.get_mut(&self.logits).and_then(StepOutput::last_row_mut);
        let logits = logits.ok_or_else(|| failed(RuntimeError::request("the step returned no logits", "")))?;
        for &id in &self.options.suppress_ids {
            if let Some(logit) = logits.get_mut(id as usize) {
                *logit = f32::NEG_INFINITY;
            }
        }
        let token = self.sampler.sample(logits).map_err(failed)?;
        if self.options.stop_ids.contains(&token) {
            return Err((FinishReason::Stop, None));
        }
        self.go_on(token);
        self.made += 1;
        Ok(token)
    }

    /// Gives the next step this token alone.
    fn go_on(&mut self, token: u32) {
        let inputs = &mut self.input.inputs;
        inputs.truncate(1);
        if let Some((_, InputData::Ints(tokens))) = inputs.first_mut() {
            tokens.clear();
            tokens.push(token.into());
        }
    }
}

impl Iterator for Generate<'_> {
    type Item = Result<u32>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.finished.is_some() {
            return None;
        }
        match self.advance() {
            Ok(token) => Some(Ok(token)),
            Err((reason, error)) => {
                self.finished = Some(reason);
                error.map(Err)
            }
        }
    }
}
