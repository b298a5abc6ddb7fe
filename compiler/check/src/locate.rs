//! Where compiled code and interpreter first part: values given out between, first of the model, then of the body that departs.
//!
//! Giving a value out ends a fused kernel there. When a departure disappears under it, values are tried one at a time.

use xfc_codegen::target::Target;
use xfc_lang::graph::named::{Named, named_values};

use crate::compare::Measure;
use crate::error::Result;
use crate::inputs::Inputs;
use crate::subject::{Subject, run};
use crate::verify::{Check, measure_rows};

/// Most values that are tried one at a time: each is a compilation.
const MOST_PROBES: usize = 40;

/// The first value that departs.
#[derive(Clone, Debug)]
pub struct Located {
    /// What it is.
    pub value: Named,
    /// Its shape, over all sequences of the check one below the other.
    pub dims: Vec<usize>,
    /// How it differs.
    pub measure: Measure,
    /// Whether it departs only while nothing else is given out.
    pub alone: bool,
}

/// Finds the first value that departs in a check; `None` when giving values out makes everything agree.
///
/// # Errors
/// As [`Subject::compile`] and [`Subject::interpret`].
pub fn locate(
    subject: &Subject<'_>,
    target: &dyn Target,
    check: &Check,
    sequences: &[Inputs],
    progress: &mut dyn FnMut(&str),
) -> Result<Option<Located>> {
    let named = named_values(&subject.model.program);
    let chosen: Vec<&Inputs> = check.sequences.iter().map(|s| &sequences[*s]).collect();
    let search = Search { subject, target, check, chosen };
    let outer: Vec<&Named> = named.iter().filter(|n| n.depth() == 0 && usable(n)).collect();
    progress("looking for the first value that departs");
    let first = search.first(&outer, false)?;
    let inside = |of: &Named| named.iter().filter(|n| usable(n) && n.is_inside(of)).collect::<Vec<_>>();
    let suspects = match &first {
        Some(found) => inside(&found.value),
        None => named.iter().filter(|n| usable(n)).collect(),
    };
    if let Some(found) = search.first(&suspects, false)?.filter(|_| first.is_some()) {
        return Ok(Some(found));
    }
    for value in suspects.iter().take(MOST_PROBES) {
        progress(&format!("giving out {} alone", value.path));
        if let Some(found) = search.first(&[*value], true)? {
            return Ok(Some(found));
        }
    }
    Ok(first)
}

fn usable(named: &Named) -> bool {
    named.is_per_element() && named.is_float()
}

struct Search<'a> {
    subject: &'a Subject<'a>,
    target: &'a dyn Target,
    check: &'a Check,
    chosen: Vec<&'a Inputs>,
}

impl Search<'_> {
    /// The first of `values` that departs while all of them are given out.
    fn first(&self, values: &[&Named], alone: bool) -> Result<Option<Located>> {
        if values.is_empty() {
            return Ok(None);
        }
        let program = self.subject.program(values);
        let model = self.subject.compile(&program, self.target)?;
        let got = run(&model, &self.chosen, &self.check.cuts)?;
        let want = match self.subject.interpret_as::<f32>(model.manifest(), &program, &self.chosen, &self.check.cuts)? {
            Some(want) => want,
            None => self.subject.interpret::<f32>(&program, &self.chosen)?,
        };
        for value in values {
            for (got, want) in got.iter().zip(&want) {
                let Some(want) = want.get(&value.path) else { continue };
                let values = got.get(&value.path).map(|rows| rows.values.as_slice()).unwrap_or_default();
                let measure = measure_rows(values, &want.values, self.subject);
                if measure.first.is_some() {
                    return Ok(Some(Located { value: (*value).clone(), dims: want.dims.clone(), measure, alone }));
                }
            }
        }
        Ok(None)
    }
}
