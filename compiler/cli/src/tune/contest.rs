//! Which schedule of a family is fastest, on a machine whose speed changes from second to second.
//!
//! Nothing is compared with what was measured at another time: two schedules run in turn, one pair of runs after another, and what counts is the
//! median of the quotients of each pair. Candidates run against the best so far, stage by stage; the best of all runs against the default in the end,
//! more often, and is taken when it is clearly faster. Each candidate's outputs are compared with the default's.

use std::time::Instant;

use xfc_check::layers::{Loaded, Timed, Took};
use xfc_codegen::target::Target;
use xfc_codegen::target::profile::{Family, Fields, Measured, Profile};
use xfc_runtime::bench::Use;

use crate::error::{CliError, Result};
use crate::output::remark;

/// Faster by less is not clearly faster.
const CLEARLY: f64 = 1.03;
/// Of candidates beside the best so far: faster by less may be chance.
const PERHAPS: f64 = 1.01;
/// After one pair, slower than this is not worth another.
const HOPELESS: f64 = 0.95;
/// Pairs of runs of a candidate, and of the best in the end.
const PAIRS: [usize; 2] = [3, 11];
/// A run takes at least so long: it is as many steps as that takes.
const RUN_SECONDS: f64 = 0.012;
/// Most steps of a run.
const MOST_STEPS: f64 = 64.0;
/// The part of the time that is for looking; the rest is for making sure.
const LOOKING: f64 = 0.8;
/// Candidates of a stage in a quick run.
const QUICK: usize = 2;

/// A family and what it is measured with.
pub(super) struct Contest<'a> {
    /// With schedules as the compiler chooses them.
    pub(super) base: &'a dyn Target,
    /// A profile that sets nothing.
    pub(super) empty: &'a Profile,
    pub(super) family: Family,
    /// Rows of a step.
    pub(super) rows: u64,
    /// When it has to end, about.
    pub(super) until: Instant,
}

/// What was found.
pub(super) struct Found {
    /// `GB/s`.
    pub(super) unit: &'static str,
    /// Speed of the default.
    pub(super) default: f64,
    /// What is clearly faster.
    pub(super) chosen: Option<(Fields, Measured)>,
    /// Candidates that were measured.
    pub(super) tried: usize,
    /// Processors that others used meanwhile.
    pub(super) others: Option<f64>,
}

impl Contest<'_> {
    /// Measures candidates until none is left or the time is over.
    ///
    /// # Errors
    /// A device that failed; code that does not compile, which is a defect of xfc.
    pub(super) fn run(&self, loaded: &Loaded, quick: bool) -> Result<Found> {
        let begin = Instant::now();
        let looking_until = begin + self.until.saturating_duration_since(begin).mul_f64(LOOKING);
        let used = Use::now();
        let mut default = Racer::new(loaded.timed(self.rows, 0)?)?;
        let size = size(&default.first.outputs);
        if !tells(size) {
            remark(format!(
                "warning: {}: the outputs of the default are of size {size}: those of other schedules are not compared with them",
                self.family
            ));
        }
        let mut tried = 0;
        let mut best: Option<(Fields, Racer)> = None;
        let mut stage = 0;
        'stages: loop {
            let now = best.as_ref().map_or(self.family.no_fields(), |(fields, _)| *fields);
            let Some(mut candidates) = self.base.candidates(&self.family, stage, &now) else { break };
            stage += 1;
            candidates.truncate(if quick { QUICK } else { usize::MAX });
            for fields in candidates {
                // Of each family at least one.
                if tried > 0 && Instant::now() > looking_until {
                    break 'stages;
                }
                let Some(mut racer) = self.candidate(loaded, fields, &default)? else { continue };
                tried += 1;
                let opponent = best.as_mut().map_or(&mut default, |(_, racer)| racer);
                if gain(opponent, &mut racer, PAIRS[0])?.median > PERHAPS {
                    best = Some((fields, racer));
                }
            }
        }
        let chosen = match &mut best {
            None => None,
            Some((fields, racer)) => {
                let gain = gain(&mut default, racer, PAIRS[1])?;
                // In three pairs of four at least.
                let clear = gain.median > CLEARLY && gain.lower_quartile > 1.0;
                clear.then_some((*fields, gain.median))
            }
        };
        let (unit, rate) = default.rate(&self.family);
        let measured =
            |gain: f64| Measured { unit: unit.to_owned(), default: rounded(rate), chosen: rounded(rate * gain) };
        Ok(Found {
            unit,
            default: rate,
            chosen: chosen.map(|(fields, gain)| (fields, measured(gain))),
            tried,
            others: used.others_since(),
        })
    }

    /// A candidate, ready to run. `None` where it gives other outputs, which is said.
    fn candidate(&self, loaded: &Loaded, fields: Fields, default: &Racer) -> Result<Option<Racer>> {
        let profile = self.empty.clone().with(self.family, fields, None);
        let target = self.base.with_profile(profile);
        let target = target.map_err(|error| CliError::Departed(format!("{}: {fields}: {error}", self.family)))?;
        let racer = Racer::new(loaded.with_target(&*target)?.timed(self.rows, 0)?)?;
        let [old, new] = [default, &racer].map(|racer| &racer.first.outputs[..]);
        if !tells(size(old)) || same(old, new) {
            return Ok(Some(racer));
        }
        remark(format!(
            "warning: {}: {fields}: the outputs are not those of the default; it is left out. This is a defect of xfc: please report it",
            self.family
        ));
        Ok(None)
    }
}

/// A schedule that runs.
struct Racer {
    timed: Timed,
    /// Its first step that was not the very first.
    first: Took,
    /// Steps of a run.
    steps: usize,
    /// Seconds of a step in each run.
    seconds: Vec<f64>,
}

impl Racer {
    fn new(mut timed: Timed) -> Result<Self> {
        timed.run()?;
        let first = timed.run()?;
        let steps = (RUN_SECONDS / first.seconds.max(1e-9)).ceil().clamp(1.0, MOST_STEPS) as usize;
        Ok(Racer { timed, first, steps, seconds: Vec::new() })
    }

    /// Seconds of a step, over one run of so many.
    fn run(&mut self, steps: usize) -> Result<f64> {
        let mut seconds = 0.0;
        for _ in 0..steps {
            seconds += self.timed.run()?.seconds;
        }
        let seconds = seconds / steps as f64;
        self.seconds.push(seconds);
        Ok(seconds)
    }

    /// Unit and number: of memory where few rows are bound by it, else of products.
    fn rate(&self, family: &Family) -> (&'static str, f64) {
        let mut seconds = self.seconds.clone();
        seconds.sort_by(f64::total_cmp);
        let seconds = seconds.get(seconds.len() / 2).copied().unwrap_or(self.first.seconds).max(1e-12);
        let work = &self.first.work;
        let is_read = matches!(family, Family::Product(of) if of.rows.max_rows().is_some());
        if is_read {
            ("GB/s", work.memory_bytes() as f64 / seconds * 1e-9)
        } else {
            ("GFLOP/s", work.flops() as f64 / seconds * 1e-9)
        }
    }
}

/// How much faster one is than another.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Gain {
    median: f64,
    lower_quartile: f64,
}

impl Gain {
    fn of(mut quotients: Vec<f64>) -> Self {
        quotients.sort_by(f64::total_cmp);
        let at = |i: usize| quotients.get(i).copied().unwrap_or(0.0);
        let n = quotients.len();
        let median = if n.is_multiple_of(2) && n > 0 { (at(n / 2 - 1) + at(n / 2)) / 2.0 } else { at(n / 2) };
        Gain { median, lower_quartile: at(n / 4) }
    }
}

/// Runs both in turn, and the first of a pair in turn too.
fn gain(old: &mut Racer, new: &mut Racer, pairs: usize) -> Result<Gain> {
    let steps = old.steps.max(new.steps);
    let mut quotients = Vec::with_capacity(pairs);
    for pair in 0..pairs {
        let (a, b) = if pair.is_multiple_of(2) {
            let a = old.run(steps)?;
            (a, new.run(steps)?)
        } else {
            let b = new.run(steps)?;
            (old.run(steps)?, b)
        };
        quotients.push(a / b.max(1e-12));
        if pair == 0 && quotients[0] < HOPELESS {
            break;
        }
    }
    Ok(Gain::of(quotients))
}

/// The root of the mean square.
fn size(outputs: &[f32]) -> f64 {
    (outputs.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / outputs.len().max(1) as f64).sqrt()
}

/// Whether something can be compared with outputs of this size.
fn tells(size: f64) -> bool {
    size.is_finite() && size > 0.0
}

/// Whether outputs are the same to rounding. Sums may be added in another order, and where a value between layers is rounded to fewer bits the last of these
/// may differ.
fn same(a: &[f32], b: &[f32]) -> bool {
    let size = size(a);
    let near = |(a, b): (&f32, &f32)| f64::from((a - b).abs()) <= 0.05 * size;
    a.len() == b.len() && tells(size) && a.iter().zip(b).all(near)
}

/// To three digits behind the point.
fn rounded(x: f64) -> f64 {
    (x * 1e3).round() / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_counts_is_the_middle() {
        assert_eq!(Gain::of(vec![1.5, 1.0, 1.1]), Gain { median: 1.1, lower_quartile: 1.0 });
        assert_eq!(Gain::of(vec![1.0, 1.2]), Gain { median: 1.1, lower_quartile: 1.0 });
        assert_eq!(Gain::of(vec![]).median, 0.0);
    }

    #[test]
    fn outputs_are_compared_by_their_size() {
        assert!(same(&[100.0, -100.0], &[101.0, -100.0]));
        assert!(!same(&[100.0, -100.0], &[100.0, -80.0]));
        assert!(
            !same(&[1.0], &[1.0, 2.0]) && !same(&[f32::NAN], &[f32::NAN]) && !same(&[], &[]) && !same(&[0.0], &[0.0])
        );
    }
}
