//! How well a model predicts a text, and how far two runs of it are apart.
//!
//! The text is cut into windows of `context` tokens, each `stride` further on. A window scores the tokens that no window before it
//! scored, each predicted from all tokens of the window before it; the first token of a window is never scored in it. With a stride of
//! the whole context no token is seen twice; with a smaller one every scored token but those of the first window has at least
//! `context - stride` tokens before it.
//!
//! Perplexity is `exp(mean(-ln p))` over the scored tokens.

use std::sync::Arc;

use xfc_runtime::error::RuntimeError;
use xfc_runtime::model::Model;
use xfc_runtime::session::SessionOptions;
use xfc_runtime::step::{InputData, StepInput, Wanted};

use crate::error::{CheckError, Result};
use crate::records::{Record, Recorder};

/// A prediction counts as clear where the best logit is ahead of the second by more than this share of the logits' standard deviation.
pub const CLEAR_MARGIN: f64 = 0.05;

/// A part of the text that is run at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// First token.
    pub start: usize,
    /// One past the last token.
    pub end: usize,
    /// First token that is scored.
    pub scored: usize,
}

impl Window {
    /// Tokens that are scored.
    pub fn len(&self) -> usize {
        self.end - self.scored
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The windows of a text of so many tokens. `context` is at least 2, `stride` from 1 to `context`.
pub fn windows(tokens: usize, context: usize, stride: usize) -> Vec<Window> {
    let mut windows = Vec::new();
    let (mut start, mut before) = (0, 0);
    while before < tokens {
        let end = tokens.min(start + context);
        let window = Window { start, end, scored: before.max(start + 1).min(end) };
        if !window.is_empty() {
            windows.push(window);
        }
        before = end;
        start += stride;
    }
    windows
}

/// A sum with its spread.
#[derive(Clone, Copy, Debug, Default)]
pub struct Mean {
    n: f64,
    sum: f64,
    squares: f64,
}

impl Mean {
    fn add(&mut self, x: f64) {
        self.n += 1.0;
        self.sum += x;
        self.squares += x * x;
    }

    /// The mean; NaN of nothing.
    pub fn mean(&self) -> f64 {
        self.sum / self.n
    }

    /// The standard error of the mean.
    pub fn error(&self) -> f64 {
        let variance = (self.squares / self.n - self.mean() * self.mean()).max(0.0);
        (variance / (self.n - 1.0).max(1.0)).sqrt()
    }

    /// The perplexity, where the numbers are `-ln p`.
    pub fn perplexity(&self) -> f64 {
        self.mean().exp()
    }

    /// The standard error of the perplexity.
    pub fn perplexity_error(&self) -> f64 {
        self.perplexity() * self.error()
    }
}

/// How far a run is from another one.
#[derive(Clone, Debug, Default)]
pub struct Divergence {
    /// The other run's `-ln p`.
    pub other: Mean,
    /// Kullback-Leibler divergence of this run from the other, in nats, of each scored token, ascending.
    pub divergences: Vec<f64>,
    /// Tokens at which both have the same best prediction.
    pub agree: usize,
    /// Tokens at which the other's best prediction is clear (see [`CLEAR_MARGIN`]).
    pub clear: usize,
    /// Clear ones at which both have the same best prediction.
    pub clear_agree: usize,
}

impl Divergence {
    /// The mean.
    pub fn mean(&self) -> f64 {
        self.divergences.iter().sum::<f64>() / self.divergences.len().max(1) as f64
    }

    /// The value that a share of the tokens does not exceed.
    pub fn quantile(&self, share: f64) -> f64 {
        let last = self.divergences.len().saturating_sub(1);
        self.divergences.get((share * last as f64).round() as usize).copied().unwrap_or(f64::NAN)
    }

    /// Adds the logits of one token, `target`, by both runs.
    pub fn add(&mut self, ours: &[f32], theirs: &[f32], target: usize) {
        let (a, b) = (log_sum(ours), log_sum(theirs));
        let term = |(x, y): (&f32, &f32)| {
            let (log_q, log_p) = (f64::from(*x) - a, f64::from(*y) - b);
            log_p.exp() * (log_p - log_q)
        };
        let sum: f64 = ours.iter().zip(theirs).map(term).sum();
        // Rounding may leave a little below zero. What is not a number stays so, which `f64::max` would not do.
        self.divergences.push(if sum < 0.0 { 0.0 } else { sum });
        self.other.add(b - f64::from(theirs[target]));
        let same = best(ours) == best(theirs);
        self.agree += usize::from(same);
        if is_clear(theirs) {
            self.clear += 1;
            self.clear_agree += usize::from(same);
        }
    }
}

/// What an evaluation found.
#[derive(Clone, Debug, Default)]
pub struct Evaluation {
    /// Of each scored token, `-ln p`.
    pub loss: Mean,
    /// Scored tokens.
    pub scored: usize,
    /// Windows.
    pub windows: usize,
    /// How far this is from another run.
    pub divergence: Option<Divergence>,
}

/// What a run is compared with.
#[derive(Debug)]
pub enum Against {
    /// Another model, run on the same windows.
    Model(Arc<Model>),
    /// What a run before wrote.
    Record(Record),
}

/// Runs a text through a model. `progress` is told the windows done and the loss so far.
///
/// # Errors
/// The model is not one that predicts the next token, a token does not exist, logits of either run are not finite, the other run is of another text, a file cannot be written.
pub fn evaluate(
    model: &Arc<Model>,
    tokens: &[i64],
    windows: &[Window],
    against: Option<&Against>,
    mut recorder: Option<&mut Recorder>,
    progress: &mut dyn FnMut(usize, &Mean),
) -> Result<Evaluation> {
    let mut done = Evaluation { windows: windows.len(), ..Evaluation::default() };
    let mut divergence = against.map(|_| Divergence::default());
    let mut row = 0;
    for (index, window) in windows.iter().enumerate() {
        let (logits, width) = predict(model, tokens, *window)?;
        let other = match against {
            None => None,
            Some(Against::Model(other)) => Some(predict(other, tokens, *window)?),
            Some(Against::Record(record)) => Some((record.rows(row, window.len())?, record.width())),
        };
        if let Some((_, theirs)) = other.as_ref().filter(|(_, theirs)| *theirs != width) {
            return Err(CheckError::request(
                format!("the other run has {theirs} tokens to choose from, this one {width}"),
                "compare runs of models with one vocabulary",
            ));
        }
        for (i, ours) in logits.chunks_exact(width).enumerate() {
            let target = tokens[window.scored + i] as usize;
            if target >= width {
                return Err(CheckError::request(
                    format!("the text has token {target}, the model predicts {width}"),
                    "check that tokenizer and model belong together",
                ));
            }
            require_finite(ours, "this run", window.scored + i)?;
            if let Some((theirs, _)) = &other {
                require_finite(&theirs[i * width..(i + 1) * width], "the other run", window.scored + i)?;
            }
            done.loss.add(log_sum(ours) - f64::from(ours[target]));
            if let (Some(divergence), Some((theirs, _))) = (&mut divergence, &other) {
                divergence.add(ours, &theirs[i * width..(i + 1) * width], target);
            }
        }
        if let Some(recorder) = recorder.as_deref_mut() {
            recorder.add(&logits)?;
        }
        row += window.len();
        progress(index + 1, &done.loss);
    }
    done.scored = row;
    if let Some(divergence) = &mut divergence {
        divergence.divergences.sort_by(f64::total_cmp);
    }
    Ok(Evaluation { divergence, ..done })
}

/// Refuses logits of which nothing can be said.
pub(crate) fn require_finite(logits: &[f32], run: &str, token: usize) -> Result<()> {
    let Some(first) = logits.iter().position(|x| !x.is_finite()) else { return Ok(()) };
    let bad = logits.iter().filter(|x| !x.is_finite()).count();
    let problem = format!(
        "{run} predicts token {token} of the text with logits that are not finite: {} for id {first}, {bad} of {} in all",
        logits[first],
        logits.len()
    );
    Err(RuntimeError::NotFinite { problem }.into())
}

/// How many tokens a model chooses from, if it is one that predicts the next.
///
/// # Errors
/// It has no logits for each token, reads sequences as a whole, or needs more than tokens.
pub fn vocabulary(model: &Model) -> Result<usize> {
    let manifest = model.manifest();
    let refuse = |problem: &str| Err(CheckError::request(problem, "perplexity is of models that continue a text"));
    if manifest.whole_sequences {
        return refuse("the model reads a text as a whole, so that it does not predict the next token");
    }
    if manifest.inputs.iter().filter(|input| input.default.is_none()).count() != 1 || model.token_input().is_none() {
        return refuse("the model needs more than the tokens of a text");
    }
    let logits = manifest.outputs.iter().find(|o| o.name == "logits" && o.axis == 0 && o.dims.len() == 1);
    match logits {
        Some(output) => Ok(output.dims[0] as usize),
        None => refuse("the model has no output `logits` for each token"),
    }
}

/// The logits that predict the scored tokens of a window, and their number for each.
pub(crate) fn predict(model: &Arc<Model>, tokens: &[i64], window: Window) -> Result<(Vec<f32>, usize)> {
    let width = vocabulary(model)?;
    let name = model.token_input().map(|input| input.name.clone()).unwrap_or_default();
    // The last token of a window predicts nothing in it.
    let given = &tokens[window.start..window.end - 1];
    let options = SessionOptions { context_tokens: Some(given.len() as u64), ..SessionOptions::default() };
    let mut session = model.session(&options)?;
    let sequence = session.add_sequence()?;
    let first = (window.scored - 1 - window.start) as u32;
    let wanted = Wanted::List((first..given.len() as u32).collect());
    let inputs = vec![(name, InputData::Ints(given.to_vec()))];
    let outputs = session.step_in_pieces(&StepInput { sequence, inputs, wanted })?;
    let logits = outputs.outputs.into_iter().find(|o| o.name == "logits").map(|o| o.data).unwrap_or_default();
    Ok((logits, width))
}

/// `ln(sum(exp(x)))`.
pub(crate) fn log_sum(logits: &[f32]) -> f64 {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|x| f64::from(x - largest).exp()).sum();
    f64::from(largest) + sum.ln()
}

/// The index of the largest, the lowest of equals.
fn best(logits: &[f32]) -> usize {
    (0..logits.len()).reduce(|best, i| if logits[i] > logits[best] { i } else { best }).unwrap_or(0)
}

/// Whether the best logit is ahead of the second by more than [`CLEAR_MARGIN`] standard deviations.
pub fn is_clear(logits: &[f32]) -> bool {
    let mut spread = Mean::default();
    let (mut first, mut second) = (f64::NEG_INFINITY, f64::NEG_INFINITY);
    for x in logits.iter().map(|x| f64::from(*x)) {
        spread.add(x);
        if x > first {
            (first, second) = (x, first);
        } else if x > second {
            second = x;
        }
    }
    let deviation = (spread.squares / spread.n - spread.mean() * spread.mean()).max(0.0).sqrt();
    first - second > CLEAR_MARGIN * deviation
}
