//! Measuring on a machine that changes: each run lies between two probes of the machine's limits, and is made again when they disagree.
//!
//! Given how to probe and how to run, [`Settler::run`] promises the run whose probes agree, or after some attempts the one whose probes
//! disagree least, marked. The probe after a run is the one before the next.

use super::limits::{Limits, Regime, disagreement};
use crate::error::Result;

/// Probes agree when their rates differ by at most this part, and the regime is the same.
pub const AGREE_WITHIN: f64 = 0.1;
/// Runs during which others used more than so many processors do not count either.
pub const OTHERS_AT_MOST: f64 = 0.25;
/// How often a run is made before it is taken as it is, where nobody says.
pub const ATTEMPTS: u32 = 3;

/// A run between two probes.
#[derive(Clone, Debug, PartialEq)]
pub struct Bracketed {
    /// How long it took.
    pub seconds: f64,
    /// The machine just before.
    pub before: Limits,
    /// The machine just after.
    pub after: Limits,
    /// Processors that others used from the run's begin to the end of the probe after it, where the system says.
    pub others: Option<f64>,
    /// Attempts made; this is one of them.
    pub attempts: u32,
}

impl Bracketed {
    /// Why the run does not count; `None` when it does.
    pub fn trouble(&self) -> Option<String> {
        let apart = disagreement(&self.before, &self.after);
        if apart.is_infinite() {
            return Some(format!("{} became {}", self.before.regime().name(), self.after.regime().name()));
        }
        if apart > AGREE_WITHIN {
            return Some(format!("limits changed by {:.0} %", apart * 100.0));
        }
        if self.before.regime() == Regime::Contended {
            return Some("the threads wait for processors".to_owned());
        }
        let others = self.others.filter(|others| *others > OTHERS_AT_MOST)?;
        Some(format!("others used {others:.1} processors"))
    }

    /// What the run is compared with.
    pub fn limits(&self) -> Limits {
        self.before.mean(&self.after)
    }

    /// For choosing among runs that do not count.
    fn badness(&self) -> f64 {
        disagreement(&self.before, &self.after).min(1e3) + self.others.unwrap_or(0.0)
    }
}

/// Makes runs between probes. A probe says what the machine can do, and how many processors others used since the probe before it.
pub struct Settler<'a> {
    probe: &'a mut dyn FnMut() -> Result<(Limits, Option<f64>)>,
    /// How often a run is made at most; at least one.
    attempts: u32,
    /// The probe after the last run.
    last: Option<Limits>,
}

impl<'a> Settler<'a> {
    /// Nothing probed yet; a run is made at most `attempts` times.
    pub fn new(probe: &'a mut dyn FnMut() -> Result<(Limits, Option<f64>)>, attempts: u32) -> Self {
        Self { probe, attempts: attempts.max(1), last: None }
    }

    /// Makes a run until it counts; it returns seconds. `retry` is told why a run is made again.
    ///
    /// # Errors
    /// A probe or a run failed.
    pub fn run(
        &mut self,
        run: &mut dyn FnMut() -> Result<f64>,
        retry: &mut dyn FnMut(&str) -> Result<()>,
    ) -> Result<Bracketed> {
        let mut best: Option<Bracketed> = None;
        for attempts in 1..=self.attempts {
            let before = match self.last {
                Some(limits) => limits,
                None => (self.probe)()?.0,
            };
            let seconds = run()?;
            let (after, others) = (self.probe)()?;
            self.last = Some(after);
            let made = Bracketed { seconds, before, after, others, attempts };
            let trouble = made.trouble();
            if best.as_ref().is_none_or(|best| trouble.is_none() || made.badness() < best.badness()) {
                best = Some(made);
            }
            match trouble {
                None => break,
                Some(trouble) if attempts < self.attempts => retry(&trouble)?,
                Some(_) => {}
            }
        }
        let attempts = |best: Bracketed, attempts| Bracketed { attempts, ..best };
        match best {
            Some(best) if best.trouble().is_some() => Ok(attempts(best, self.attempts)),
            Some(best) => Ok(best),
            // There is at least one attempt.
            None => Err(crate::error::RuntimeError::request("nothing was measured", "")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(read: f64, round_trip_ns: f64) -> Limits {
        Limits {
            read,
            f32_flops: 100.0,
            half_flops: 200.0,
            byte_ops: 400.0,
            round_trip_ns: Some(round_trip_ns),
            copy: None,
            launch_ns: None,
        }
    }

    /// Plays scripted probes and runs; how often each was made.
    fn play(
        probes: &[(Limits, Option<f64>)],
        runs: &[f64],
        times: usize,
    ) -> (Vec<Bracketed>, usize, usize, Vec<String>) {
        let (mut probed, mut ran, mut said) = (0, 0, Vec::new());
        let mut next_probe = || {
            probed += 1;
            Ok(probes[(probed - 1) % probes.len()])
        };
        let mut settler = Settler::new(&mut next_probe, ATTEMPTS);
        let mut results = Vec::new();
        for _ in 0..times {
            let mut run = || {
                ran += 1;
                Ok(runs[(ran - 1) % runs.len()])
            };
            let mut retry = |why: &str| {
                said.push(why.to_owned());
                Ok(())
            };
            results.push(settler.run(&mut run, &mut retry).unwrap());
        }
        (results, probed, ran, said)
    }

    #[test]
    fn quiet_machines_are_probed_once_a_run() {
        let (results, probed, ran, said) = play(&[(limits(50.0, 100.0), Some(0.0))], &[1.0], 3);
        assert_eq!((results.len(), probed, ran, said.len()), (3, 4, 3, 0));
        assert!(results.iter().all(|r| r.attempts == 1 && r.trouble().is_none()));
    }

    #[test]
    fn a_change_of_regime_is_measured_again() {
        let (near, far) = (limits(50.0, 100.0), limits(80.0, 500.0));
        let (results, probed, ran, said) = play(&[(near, None), (far, None), (far, None)], &[1.0, 2.0], 1);
        assert_eq!((probed, ran), (3, 2));
        assert_eq!((results[0].seconds, results[0].attempts, results[0].before), (2.0, 2, far));
        assert_eq!(said, ["near became far"]);
    }

    #[test]
    fn what_never_settles_is_marked_and_the_least_bad() {
        let probes = [50.0, 80.0, 60.0, 10.0].map(|read| (limits(read, 100.0), None));
        let (results, probed, ran, said) = play(&probes, &[1.0, 2.0, 3.0], 1);
        assert_eq!((probed, ran, said.len()), (4, 3, 2));
        assert_eq!((results[0].seconds, results[0].attempts), (2.0, ATTEMPTS));
        assert_eq!(results[0].trouble().unwrap(), "limits changed by 25 %");
    }

    #[test]
    fn others_at_work_are_trouble() {
        let quiet = limits(50.0, 100.0);
        let (results, _, ran, said) = play(&[(quiet, None), (quiet, Some(0.9)), (quiet, Some(0.1))], &[1.0, 2.0], 1);
        assert_eq!((results[0].seconds, ran, said[0].as_str()), (2.0, 2, "others used 0.9 processors"));
        let (results, _, ran, _) = play(&[(limits(50.0, 2000.0), Some(0.0))], &[1.0], 1);
        assert_eq!((ran, results[0].trouble().unwrap().as_str()), (3, "the threads wait for processors"));
    }
}
