//! One test on one device: its runs, and the figures that follow from those that count.

use super::limits::Regime;
use super::settle::Bracketed;
use super::workload::Test;
use crate::cost::Work;
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// Several measurements of one thing.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// Their mean.
    pub mean: f64,
    /// Their standard deviation, of a sample; 0 of one measurement.
    pub deviation: f64,
    /// The largest.
    pub best: f64,
}

impl Spread {
    /// Of at least one value; zeros of none.
    pub fn of(values: &[f64]) -> Self {
        let n = values.len().max(1) as f64;
        let mean = values.iter().sum::<f64>() / n;
        let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
        let deviation = if values.len() > 1 { (squares / (n - 1.0)).sqrt() } else { 0.0 };
        Self { mean, deviation, best: values.iter().copied().fold(0.0, f64::max) }
    }
}

/// One test on one number of threads.
#[derive(Clone, Debug)]
pub struct Row {
    /// Threads.
    pub threads: usize,
    /// What was timed.
    pub test: Test,
    /// What a run has to do.
    pub work: Work,
    /// Launches of a run, of a device that counts them.
    pub launches: Option<u64>,
    /// The runs.
    pub runs: Vec<Bracketed>,
}

impl Row {
    /// The runs that count: those that settled, or all where none did.
    pub(super) fn counted(&self) -> Vec<&Bracketed> {
        let settled: Vec<&Bracketed> = self.runs.iter().filter(|run| run.trouble().is_none()).collect();
        if settled.is_empty() { self.runs.iter().collect() } else { settled }
    }

    /// A figure of each run that counts.
    pub(super) fn each(&self, figure: impl Fn(&Bracketed) -> f64) -> Vec<f64> {
        self.counted().into_iter().map(figure).collect()
    }

    /// Tokens a second, over all sequences.
    pub fn tokens_rate(&self) -> Spread {
        Spread::of(&self.each(|run| self.test.total_tokens() as f64 / run.seconds))
    }

    /// Bytes of weights and caches a second.
    pub fn bytes_rate(&self) -> Spread {
        Spread::of(&self.each(|run| self.work.memory_bytes() as f64 / run.seconds))
    }

    /// Operations a second.
    pub fn flops_rate(&self) -> Spread {
        Spread::of(&self.each(|run| self.work.flops() as f64 / run.seconds))
    }

    /// The share of the speed of reading that each run reached, compared with the probes around it.
    pub fn of_read(&self) -> Spread {
        Spread::of(&self.each(|run| self.work.memory_bytes() as f64 / run.seconds / run.limits().read))
    }

    /// The share of the speed of products, each width against its own limit.
    pub fn of_products(&self) -> Spread {
        Spread::of(&self.each(|run| run.limits().seconds_of_products(&self.work) / run.seconds))
    }

    /// The limit of products for this row's mixture of widths.
    pub(super) fn products_limit(&self, run: &Bracketed) -> f64 {
        let limits = run.limits();
        let least = limits.seconds_of_products(&self.work);
        if least > 0.0 { self.work.flops() as f64 / least } else { limits.f32_flops }
    }

    /// The share of the time that as many kernels which do nothing would take, one after another as they were recorded: what a GPU cannot do without
    /// between kernels. `None` where that is not measured.
    pub fn of_launches(&self) -> Option<Spread> {
        let launches = self.launches? as f64;
        let launch_ns = |run: &Bracketed| run.limits().launch_ns;
        self.counted().first().and_then(|run| launch_ns(run))?;
        Some(Spread::of(&self.each(|run| launches * launch_ns(run).unwrap_or(0.0) * 1e-9 / run.seconds)))
    }

    /// Why runs do not count; empty when all do.
    pub fn troubles(&self) -> Vec<String> {
        self.runs.iter().filter_map(Bracketed::trouble).collect()
    }

    /// What is said beside the row.
    pub(super) fn note(&self) -> String {
        let troubles = self.troubles();
        match troubles.first() {
            None => String::new(),
            Some(first) if troubles.len() == self.runs.len() => format!("never settled: {first}"),
            Some(_) => format!("{} of {} runs settled", self.runs.len() - troubles.len(), self.runs.len()),
        }
    }

    pub(super) fn regimes(&self) -> String {
        let regimes: BTreeSet<Regime> =
            self.counted().iter().flat_map(|run| [run.before.regime(), run.after.regime()]).collect();
        regimes.into_iter().map(Regime::name).collect::<Vec<_>>().join(", ")
    }

    pub(super) fn to_json(&self) -> Value {
        let spread = |s: Spread| json!({ "mean": s.mean, "deviation": s.deviation, "best": s.best });
        let limits = |l: &super::limits::Limits| {
            json!({
                "read_bytes_per_second": l.read, "f32_flops_per_second": l.f32_flops, "half_flops_per_second": l.half_flops,
                "byte_ops_per_second": l.byte_ops,
                "round_trip_ns": l.round_trip_ns, "regime": l.regime().name(), "copy_bytes_per_second": l.copy, "launch_ns": l.launch_ns,
            })
        };
        let run = |run: &Bracketed| {
            json!({
                "seconds": run.seconds, "attempts": run.attempts, "settled": run.trouble().is_none(), "trouble": run.trouble(),
                "others_processors": run.others, "before": limits(&run.before), "after": limits(&run.after),
            })
        };
        json!({
            "test": self.test.name(), "threads": self.threads, "batch": self.test.batch, "tokens": self.test.tokens,
            "depth": self.test.depth, "settled": self.troubles().is_empty(), "tokens_per_second": spread(self.tokens_rate()),
            "bytes_per_second": spread(self.bytes_rate()), "flops_per_second": spread(self.flops_rate()),
            "launches": self.launches, "of_launches": self.of_launches().map(spread),
            "of_read": spread(self.of_read()), "of_products": spread(self.of_products()),
            "weight_bytes": self.work.weight_bytes, "cache_bytes": self.work.cache_bytes, "f32_flops": self.work.f32_flops,
            "half_flops": self.work.half_flops, "byte_ops": self.work.byte_ops, "runs": self.runs.iter().map(run).collect::<Vec<_>>(),
        })
    }
}
