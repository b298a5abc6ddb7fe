//! How far a model is from itself when its matrices are held in fewer bits: over a text, or by the rounding alone.
//!
//! Each plan is compiled and run as it would be. Kernels that an earlier plan had are not compiled again, and nothing is written anywhere.

use std::fmt;
use std::sync::Arc;

use xfc_codegen::driver::Options;
use xfc_codegen::target::Target;
use xfc_lang::arch::Model;
use xfc_lang::graph::blocks::Blocks;
use xfc_lang::graph::path::parameters;
use xfc_lang::passes::quantise::Plan;
use xfc_runtime::error::RuntimeError;
use xfc_runtime::model::Model as Loaded;
use xfc_runtime::weights::Checkpoint;

use crate::error::{CheckError, Result};
use crate::eval::{Window, log_sum, predict, require_finite, vocabulary, windows};
use crate::subject::Subject;
use crate::units::Unit;
use crate::weights::parameter;

/// Tokens of a window where nobody says.
const CONTEXT: u64 = 512;

/// The scored tokens of a window.
struct Predicted {
    /// A row for each.
    logits: Vec<f32>,
    /// `ln(sum(exp(row)))` of each.
    sums: Vec<f64>,
}

impl Predicted {
    /// The sum of the divergences of the rows from those of `other`, of so many numbers each.
    fn divergence(&self, other: &Predicted, width: usize) -> f64 {
        let mut sum = 0.0;
        let rows = self.logits.chunks_exact(width).zip(other.logits.chunks_exact(width));
        for ((ours, theirs), (q, p)) in rows.zip(self.sums.iter().zip(&other.sums)) {
            let term = |(x, y): (&f32, &f32)| {
                let (log_q, log_p) = (f64::from(*x) - q, f64::from(*y) - p);
                log_p.exp() * (log_p - log_q)
            };
            // Rounding may leave a little below zero.
            sum += ours.iter().zip(theirs).map(term).sum::<f64>().max(0.0);
        }
        sum
    }
}

/// A model that is held in other ways, and the text that it is run on.
pub struct Measure<'a> {
    subject: Subject<'a>,
    target: Box<dyn Target>,
    tokens: &'a [i64],
    windows: Vec<Window>,
    /// What the model predicts without a plan, in each window.
    reference: Vec<Predicted>,
    /// Numbers of a row.
    width: usize,
    remarks: Vec<String>,
}

impl<'a> Measure<'a> {
    /// Runs the text, in windows of `context` tokens, through the model as it is without a plan.
    ///
    /// # Errors
    /// As [`evaluate`](crate::eval::evaluate); a text with nothing to score.
    pub fn new(subject: Subject<'a>, target: Box<dyn Target>, tokens: &'a [i64], context: Option<u64>) -> Result<Self> {
        let nothing = Vec::new();
        let mut measure =
            Measure { subject, target, tokens, windows: nothing, reference: Vec::new(), width: 1, remarks: Vec::new() };
        let plain = measure.load(&Plan::default())?;
        measure.width = vocabulary(&plain)?;
        if let Some(far) = tokens.iter().find(|id| usize::try_from(**id).map_or(true, |id| id >= measure.width)) {
            return Err(CheckError::request(
                format!("the text has token {far}, the model predicts {}", measure.width),
                "check that tokenizer and model belong together",
            ));
        }
        let most = plain.manifest().most_elements(0).unwrap_or(u64::MAX);
        let context = context.unwrap_or(CONTEXT.min(most));
        if context < 2 || context > most {
            let range = if most == u64::MAX { "at least 2".to_owned() } else { format!("from 2 to {most}") };
            let help = format!("give `-c` {range}");
            return Err(CheckError::request(format!("windows of {context} tokens were asked for"), help));
        }
        let context = usize::try_from(context).unwrap_or(usize::MAX);
        measure.windows = windows(tokens.len(), context, context);
        if measure.windows.is_empty() {
            return Err(CheckError::request(
                format!("the text has {} tokens, and nothing to score", tokens.len()),
                "give a text of some hundred tokens",
            ));
        }
        measure.remarks = plain.remarks().to_vec();
        measure.reference = measure.rows(&plain)?;
        Ok(measure)
    }

    /// Tokens whose predictions are compared.
    pub fn scored(&self) -> usize {
        self.windows.iter().map(Window::len).sum()
    }

    /// What a user should know of how the checkpoint fits.
    pub fn remarks(&self) -> &[String] {
        &self.remarks
    }

    /// The mean divergence, in nats, of the model held as `plan` says from the model without a plan.
    ///
    /// # Errors
    /// A construct without a lowering; logits that are not finite; no memory.
    pub fn divergence(&self, plan: &Plan) -> Result<f64> {
        let found = self.rows(&self.load(plan)?)?;
        let sum: f64 =
            found.iter().zip(&self.reference).map(|(ours, theirs)| ours.divergence(theirs, self.width)).sum();
        Ok(sum / self.scored().max(1) as f64)
    }

    fn load(&self, plan: &Plan) -> Result<Arc<Loaded>> {
        let options = Options { quant: plan.clone(), ..self.subject.options.clone() };
        let subject = Subject { options: &options, ..self.subject };
        subject.compile(&subject.model.program, &*self.target)
    }

    /// What a model predicts in each window.
    fn rows(&self, model: &Arc<Loaded>) -> Result<Vec<Predicted>> {
        let of = |window: &Window| {
            let (logits, width) = predict(model, self.tokens, *window)?;
            for (i, row) in logits.chunks_exact(width).enumerate() {
                require_finite(row, "this run", window.scored + i)?;
            }
            let sums = logits.chunks_exact(width).map(log_sum).collect();
            Ok(Predicted { logits, sums })
        };
        self.windows.iter().map(of).collect()
    }
}

impl fmt::Debug for Measure<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Measure").field("windows", &self.windows).finish_non_exhaustive()
    }
}

/// Rows of a matrix that are rounded to know how far rounding goes.
const SAMPLED_ROWS: usize = 256;

/// For each format, what rounding does to the matrices of a unit: the squared error as a share of the squares, times the number of weights.
/// Of large matrices a part of the rows is rounded.
///
/// # Errors
/// Parameters that the checkpoint does not hold, or of which a number is not finite.
pub fn rounding(model: &Model, checkpoint: &Checkpoint, unit: &Unit, formats: &[Blocks]) -> Result<Vec<f64>> {
    let wrong = |problem: String, help: &str| RuntimeError::input(checkpoint.path(), problem, help);
    let mut errors = vec![0.0; formats.len()];
    for m in &unit.matrices {
        let paths: Vec<String> = m.paths.iter().flat_map(|path| parameters(path)).collect();
        let (mut squares, mut lost) = (0.0, vec![0.0; formats.len()]);
        for path in &paths {
            let tensor = parameter(model, checkpoint, path, None)
                .map_err(|problem| wrong(problem, "give the checkpoint of this model"))?;
            let values: Vec<f32> = tensor.to_f64().into_iter().map(|x| x as f32).collect();
            // Nothing that rounding does to them would be a number.
            if let Some(bad) = values.iter().find(|x| !x.is_finite()) {
                return Err(wrong(
                    format!("`{path}` holds {bad}"),
                    "the file is damaged, or was saved of a model that broke",
                )
                .into());
            }
            let row = tensor.dims.last().copied().unwrap_or(1).max(1);
            let every = (values.len() / row).div_ceil(SAMPLED_ROWS).max(1);
            for values in values.chunks(row).step_by(every) {
                squares += values.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>();
                for (format, lost) in formats.iter().zip(&mut lost) {
                    let mut rounded = values.to_vec();
                    rounded.chunks_mut(usize::from(format.group)).for_each(|group| format.round(group));
                    *lost += values.iter().zip(&rounded).map(|(x, y)| f64::from(x - y).powi(2)).sum::<f64>();
                }
            }
        }
        let weights = (m.rows * m.columns) as f64;
        for (error, lost) in errors.iter_mut().zip(lost) {
            *error += if squares > 0.0 { lost / squares * weights } else { 0.0 };
        }
    }
    Ok(errors)
}
