//! What was measured, as a table for people and as JSON for programs.
//!
//! A row's figures are those of its settled runs; where none settled, of all, and the row says so.

use super::machine::Machine;
use super::settle::Bracketed;
use super::workload::Test;
use super::{BenchOptions, Profile, limits::Regime};
use crate::artifact::manifest::{DType, Manifest, Pack, Weight};
use crate::cost::Work;
use crate::memory::human;
use crate::profile;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fmt::Write;

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
    /// The runs.
    pub runs: Vec<Bracketed>,
}

impl Row {
    /// The runs that count: those that settled, or all where none did.
    fn counted(&self) -> Vec<&Bracketed> {
        let settled: Vec<&Bracketed> = self.runs.iter().filter(|run| run.trouble().is_none()).collect();
        if settled.is_empty() { self.runs.iter().collect() } else { settled }
    }

    /// A figure of each run that counts.
    fn each(&self, figure: impl Fn(&Bracketed) -> f64) -> Vec<f64> {
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
    fn products_limit(&self, run: &Bracketed) -> f64 {
        let limits = run.limits();
        let least = limits.seconds_of_products(&self.work);
        if least > 0.0 { self.work.flops() as f64 / least } else { limits.f32_flops }
    }

    /// Why runs do not count; empty when all do.
    pub fn troubles(&self) -> Vec<String> {
        self.runs.iter().filter_map(Bracketed::trouble).collect()
    }

    /// What is said beside the row.
    fn note(&self) -> String {
        let troubles = self.troubles();
        match troubles.first() {
            None => String::new(),
            Some(first) if troubles.len() == self.runs.len() => format!("never settled: {first}"),
            Some(_) => format!("{} of {} runs settled", self.runs.len() - troubles.len(), self.runs.len()),
        }
    }

    fn regimes(&self) -> String {
        let regimes: BTreeSet<Regime> =
            self.counted().iter().flat_map(|run| [run.before.regime(), run.after.regime()]).collect();
        regimes.into_iter().map(Regime::name).collect::<Vec<_>>().join(", ")
    }

    fn to_json(&self) -> Value {
        let spread = |s: Spread| json!({ "mean": s.mean, "deviation": s.deviation, "best": s.best });
        let limits = |l: &super::limits::Limits| {
            json!({
                "read_bytes_per_second": l.read, "f32_flops_per_second": l.f32_flops, "half_flops_per_second": l.half_flops,
                "byte_ops_per_second": l.byte_ops,
                "round_trip_ns": l.round_trip_ns, "regime": l.regime().name(),
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
            "of_read": spread(self.of_read()), "of_products": spread(self.of_products()),
            "weight_bytes": self.work.weight_bytes, "cache_bytes": self.work.cache_bytes, "f32_flops": self.work.f32_flops,
            "half_flops": self.work.half_flops, "byte_ops": self.work.byte_ops, "runs": self.runs.iter().map(run).collect::<Vec<_>>(),
        })
    }
}

/// Everything that was measured.
#[derive(Clone, Debug)]
pub struct Report {
    /// Where and when.
    pub machine: Machine,
    /// The model's name.
    pub model: String,
    /// Its parameters.
    pub parameters: u64,
    /// Type of the weights that products read.
    pub dtype: String,
    /// Bytes of all weights as products read them, padding not counted.
    pub weight_bytes: u64,
    /// The variant that ran.
    pub target: String,
    /// What compiled it.
    pub compiler: String,
    /// Where the weights came from.
    pub weights: String,
    /// Whether the artifact says what its launches cost.
    pub has_costs: bool,
    /// Runs for each row.
    pub repeats: u32,
    /// How often a run is made at most.
    pub attempts: u32,
    /// One a test and number of threads.
    pub rows: Vec<Row>,
    /// Recorded runs.
    pub profiles: Vec<Profile>,
}

impl Report {
    /// Of nothing yet.
    pub fn new(manifest: &Manifest, weights: String, options: &BenchOptions) -> Self {
        let bytes = Weight::stored_bytes;
        // Of matrices; gains and tables of positions may be wider.
        let widest = manifest.weights.iter().filter(|w| w.shape.len() > 1).max_by_key(|w| bytes(w));
        let dtype = match widest.map(|weight| (weight.pack, weight.dtype)) {
            Some((Pack::Blocks(blocks), _)) => blocks.name(),
            Some((_, DType::BF16)) => "bf16".to_owned(),
            Some((_, DType::F16)) => "f16".to_owned(),
            Some((_, DType::F32)) => "f32".to_owned(),
            Some((_, DType::I64 | DType::I32 | DType::Bool)) | None => "-".to_owned(),
        };
        Self {
            machine: Machine::here(),
            model: manifest.model.clone(),
            parameters: manifest.parameters,
            dtype,
            weight_bytes: manifest.weights.iter().map(bytes).sum(),
            target: manifest.target.name.clone(),
            compiler: manifest.compiler.clone(),
            weights,
            has_costs: manifest.launches.iter().any(|launch| launch.cost.is_some()),
            repeats: options.repeats,
            attempts: options.attempts,
            rows: Vec::new(),
            profiles: Vec::new(),
        }
    }

    /// As Markdown: facts, the table, what its columns are, profiles.
    pub fn to_markdown(&self) -> String {
        let machine = &self.machine;
        let mut text = String::new();
        let mut line = |written: std::fmt::Arguments<'_>| {
            // Writing to a string does not fail.
            let _ = writeln!(text, "{written}");
        };
        let commit = machine.commit.map(|commit| format!(" ({commit})")).unwrap_or_default();
        let size = |bytes: Option<u64>| bytes.map_or_else(|| "unknown".to_owned(), human);
        line(format_args!(
            "{}{commit}, {}: {}, {} processors, last cache {}, memory {}",
            machine.version,
            machine.date,
            machine.cpu,
            machine.processors,
            size(machine.last_cache_bytes),
            size(machine.memory_bytes),
        ));
        line(format_args!(
            "{}: {} parameters, {}, {} ({}); target {}",
            self.model,
            count(self.parameters),
            self.dtype,
            human(self.weight_bytes),
            self.weights,
            self.target,
        ));
        line(format_args!(""));
        line(format_args!(
            "| model | threads | batch | test | tokens/s | best | GB/s | of read | GFLOP/s | of products | read limit | products limit | round trip | note |"
        ));
        line(format_args!("|---|--:|--:|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|---|"));
        for row in &self.rows {
            let rate = row.tokens_rate();
            let giga = |values: Vec<f64>| range(&values.iter().map(|v| v * 1e-9).collect::<Vec<_>>(), 1);
            let reads = row.counted().iter().flat_map(|run| [run.before.read, run.after.read]).collect();
            let trips: Vec<f64> =
                row.counted().iter().flat_map(|run| [run.before, run.after]).filter_map(|l| l.round_trip_ns).collect();
            let trip = if trips.is_empty() { String::new() } else { format!("{}, {}", times(&trips), row.regimes()) };
            line(format_args!(
                "| {} {} | {} | {} | {} | {:.2} ± {:.2} | {:.2} | {:.1} | {:.0} % | {:.1} | {:.0} % | {} | {} | {trip} | {} |",
                self.model,
                self.dtype,
                row.threads,
                row.test.batch,
                row.test.name(),
                rate.mean,
                rate.deviation,
                rate.best,
                row.bytes_rate().mean * 1e-9,
                row.of_read().mean * 100.0,
                row.flops_rate().mean * 1e-9,
                row.of_products().mean * 100.0,
                giga(reads),
                giga(row.each(|run| row.products_limit(run))),
                row.note(),
            ));
        }
        line(format_args!(""));
        line(format_args!(
            "Runs a row: {}. GB/s: weights and cache that must be read; limits: GB/s and GFLOP/s of the same threads, probed before and after each run.",
            self.repeats
        ));
        if !self.has_costs {
            line(format_args!("The artifact does not say what its launches cost: GB/s and GFLOP/s are unknown."));
        }
        if machine.debug_build {
            line(format_args!("This is a debug build: what lies between kernels is slow."));
        }
        for profile in &self.profiles {
            line(format_args!(
                "\n{}, {} recorded steps:\n\n{}",
                profile.title,
                profile.summary.steps,
                profile::table(&profile.summary)
            ));
        }
        text
    }

    /// As data.
    pub fn to_json(&self) -> Value {
        let profile = |profile: &Profile| json!({ "title": profile.title, "summary": profile.summary.to_json() });
        json!({
            "machine": self.machine,
            "model": {
                "name": self.model, "parameters": self.parameters, "dtype": self.dtype, "weight_bytes": self.weight_bytes,
                "target": self.target, "compiler": self.compiler, "weights": self.weights, "has_costs": self.has_costs,
            },
            "protocol": {
                "repeats": self.repeats, "probes_agree_within": super::AGREE_WITHIN, "others_processors_at_most": super::OTHERS_AT_MOST,
                "attempts": self.attempts,
            },
            "rows": self.rows.iter().map(Row::to_json).collect::<Vec<_>>(),
            "profiles": self.profiles.iter().map(profile).collect::<Vec<_>>(),
        })
    }
}

/// Things that are counted: `4,288` as it is, `43.1 k`, `134.52 M`, `8.03 B`.
fn count(n: u64) -> String {
    let in_units = |unit: f64| n as f64 / unit;
    match n {
        0..1_000 => n.to_string(),
        1_000..10_000 => format!("{},{:03}", n / 1_000, n % 1_000),
        10_000..999_950 => format!("{:.1} k", in_units(1e3)),
        999_950..999_995_000 => format!("{:.2} M", in_units(1e6)),
        _ => format!("{:.2} B", in_units(1e9)),
    }
}

/// `53.1`, or `53.1-55.0` where values differ.
fn range(values: &[f64], digits: usize) -> String {
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    let most = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let (least, most) = (format!("{least:.digits$}"), format!("{most:.digits$}"));
    if least == most { least } else { format!("{least}-{most}") }
}

/// Nanoseconds for people: `105 ns`, `31-37 ms`.
fn times(ns: &[f64]) -> String {
    let most = ns.iter().copied().fold(0.0, f64::max);
    let (unit, name) = match most {
        _ if most >= 1e7 => (1e6, "ms"),
        _ if most >= 1e4 => (1e3, "us"),
        _ => (1.0, "ns"),
    };
    format!("{} {name}", range(&ns.iter().map(|ns| ns / unit).collect::<Vec<_>>(), 0))
}

#[cfg(test)]
mod tests {
    use super::super::limits::Limits;
    use super::super::workload::Kind;
    use super::*;
    use crate::artifact::sample;

    #[test]
    fn small_models_have_parameters_too() {
        let told = [
            (0, "0"),
            (992, "992"),
            (4_288, "4,288"),
            (43_140, "43.1 k"),
            (999_950, "1.00 M"),
            (134_515_008, "134.52 M"),
        ];
        for (n, text) in told.into_iter().chain([(8_030_261_248, "8.03 B")]) {
            assert_eq!(count(n), text);
        }
    }

    fn run(seconds: f64, before: f64, after: f64) -> Bracketed {
        let limits =
            |read| Limits { read, f32_flops: 10e9, half_flops: 20e9, byte_ops: 40e9, round_trip_ns: Some(100.0) };
        Bracketed { seconds, before: limits(before), after: limits(after), others: Some(0.0), attempts: 1 }
    }

    fn report(runs: Vec<Bracketed>) -> Report {
        let mut report = Report::new(&sample::manifest(), "random weights".to_owned(), &super::super::tests::options());
        let test = Test { kind: Kind::Generate, tokens: 10, depth: 0, batch: 2 };
        let work = Work {
            weight_bytes: 3_000_000_000,
            cache_bytes: 1_000_000_000,
            half_flops: 8_000_000_000,
            f32_flops: 1_000_000_000,
            value_bytes: 1,
            byte_ops: 0,
        };
        report.rows.push(Row { threads: 2, test, work, runs });
        report
    }

    #[test]
    fn figures_follow_from_the_runs() {
        let report = report(vec![run(1.0, 8e9, 8e9), run(2.0, 8e9, 8e9)]);
        let row = &report.rows[0];
        let rate = row.tokens_rate();
        assert_eq!((rate.mean, rate.best), (15.0, 20.0));
        assert!((rate.deviation - 50f64.sqrt()).abs() < 1e-9);
        assert_eq!(row.bytes_rate().mean, 3e9);
        assert_eq!(row.of_read().mean, 0.375);
        // 0.1 s for 32 bits and 0.4 s for 16.
        assert!((row.of_products().mean - 0.375).abs() < 1e-12);
        assert!((row.products_limit(&row.runs[0]) - 18e9).abs() < 1.0);
        let text = report.to_markdown();
        assert!(text.contains("| sample f32 | 2 | 2 | tg10 | 15.00 ± 7.07 | 20.00 | 3.0 | 38 % | 6.8 | 38 % | 8.0 | 18.0 | 100 ns, near |  |"), "{text}");
    }

    #[test]
    fn unsettled_runs_are_left_out_or_marked() {
        let some = report(vec![run(1.0, 8e9, 8e9), run(4.0, 8e9, 4e9)]);
        assert_eq!(some.rows[0].tokens_rate().mean, 20.0);
        assert!(some.to_markdown().contains("| 1 of 2 runs settled |"));
        let none = report(vec![run(4.0, 8e9, 4e9)]);
        assert_eq!(none.rows[0].tokens_rate().mean, 5.0);
        assert!(none.to_markdown().contains("| never settled: limits changed by 50 % |"));
        assert_eq!(none.to_json()["rows"][0]["settled"], false);
    }

    #[test]
    fn json_holds_what_was_measured() {
        let json = report(vec![run(1.0, 8e9, 8.1e9)]).to_json();
        let json: Value = serde_json::from_str(&json.to_string()).unwrap();
        assert_eq!(json["rows"][0]["runs"][0]["before"]["regime"], "near");
        assert_eq!(json["rows"][0]["tokens_per_second"]["best"], 20.0);
        assert_eq!((json["model"]["dtype"].as_str(), json["model"]["weight_bytes"].as_u64()), (Some("f32"), Some(48)));
        assert_eq!(json["machine"]["version"], concat!("xfc ", env!("CARGO_PKG_VERSION")));
        assert_eq!(range(&[1.04, 1.01], 1), "1.0");
        assert_eq!(range(&[1.0, 2.0], 1), "1.0-2.0");
        assert_eq!((times(&[105.0, 104.6]).as_str(), times(&[3.1e7, 3.7e7]).as_str()), ("105 ns", "31-37 ms"));
    }
}
