//! What was measured, as a table for people and as JSON for programs.
//!
//! A row's figures are those of its settled runs; where none settled, of all, and the row says so.

use super::machine::Machine;
use super::row::Row;
use super::settle::Bracketed;
use super::{BenchOptions, Profile};
use crate::artifact::manifest::{DType, Manifest, Pack, Weight};
use crate::memory::human;
use crate::model::Start;
use crate::profile;
use serde_json::{Value, json};
use std::fmt::Write;

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
    /// The GPU that it ran on: `GPU 0 (NVIDIA H200)`.
    pub gpu: Option<String>,
    /// From loading to the first step, once there was one.
    pub start: Option<Start>,
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
            gpu: None,
            start: None,
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
        let on = self.gpu.as_ref().map(|gpu| format!(" on {gpu}")).unwrap_or_default();
        line(format_args!(
            "{}: {} parameters, {}, {} ({}); target {}{on}",
            self.model,
            count(self.parameters),
            self.dtype,
            human(self.weight_bytes),
            self.weights,
            self.target,
        ));
        if let Some(start) = &self.start {
            line(format_args!("Start: {start}"));
        }
        line(format_args!(""));
        let (place, last) = if self.gpu.is_some() { ("device", "launches") } else { ("threads", "round trip") };
        line(format_args!(
            "| model | {place} | batch | test | tokens/s | best | GB/s | of read | GFLOP/s | of products | read limit | products limit | {last} | note |"
        ));
        line(format_args!("|---|--:|--:|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|---|"));
        for row in &self.rows {
            let rate = row.tokens_rate();
            let giga = |values: Vec<f64>| range(&values.iter().map(|v| v * 1e-9).collect::<Vec<_>>(), 1);
            let reads = row.counted().iter().flat_map(|run| [run.before.read, run.after.read]).collect();
            let trips: Vec<f64> =
                row.counted().iter().flat_map(|run| [run.before, run.after]).filter_map(|l| l.round_trip_ns).collect();
            let launches: Vec<f64> = row.each(|run| run.limits().launch_ns.unwrap_or(0.0));
            let trip = match (trips.is_empty(), row.launches, row.of_launches()) {
                (false, _, _) => format!("{}, {}", times(&trips), row.regimes()),
                (true, Some(n), Some(share)) => format!("{n} of {}, {:.0} %", times(&launches), share.mean * 100.0),
                (true, _, _) => String::new(),
            };
            let place = self.gpu.as_ref().map_or_else(|| row.threads.to_string(), |gpu| short(gpu).to_owned());
            line(format_args!(
                "| {} {} | {} | {} | {} | {:.2} ± {:.2} | {:.2} | {:.1} | {:.0} % | {:.1} | {:.0} % | {} | {} | {trip} | {} |",
                self.model,
                self.dtype,
                place,
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
        let whose = if self.gpu.is_some() { "GPU" } else { "threads" };
        line(format_args!(
            "Runs a row: {}. GB/s: weights and cache that must be read; limits: GB/s and GFLOP/s of the same {whose}, probed before and after each run.",
            self.repeats
        ));
        if self.gpu.is_some() {
            line(format_args!("{}", self.gpu_text()));
        }
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

    /// What the limits of a GPU are, and what was measured of them last.
    fn gpu_text(&self) -> String {
        let last = self.rows.iter().flat_map(|row| &row.runs).next_back().map(Bracketed::limits);
        let copy = last.and_then(|limits| limits.copy).unwrap_or(0.0) * 1e-9;
        let [single, half, byte] = last
            .map_or([0.0; 3], |limits| [limits.f32_flops, limits.half_flops, limits.byte_ops])
            .map(|rate| rate * 1e-12);
        format!(
            "Read limit: the faster of a kernel that reads and of a copy, of which reads and writes count ({copy:.0} GB/s). Products: {single:.1} TFLOP/s in f32, \
             {half:.0} in bf16, {byte:.0} TOP/s in bytes, by loops of `fma` and `mma.sync`. Launches: of a run, the time of an empty kernel in a graph, and the share of the time that so many take."
        )
    }

    /// As data.
    pub fn to_json(&self) -> Value {
        let profile = |profile: &Profile| json!({ "title": profile.title, "summary": profile.summary.to_json() });
        json!({
            "machine": self.machine,
            "model": {
                "name": self.model, "parameters": self.parameters, "dtype": self.dtype, "weight_bytes": self.weight_bytes,
                "target": self.target, "compiler": self.compiler, "weights": self.weights, "has_costs": self.has_costs,
                "gpu": self.gpu,
            },
            "start": self.start.map(|start| start.to_json()),
            "protocol": {
                "repeats": self.repeats, "probes_agree_within": super::AGREE_WITHIN, "others_processors_at_most": super::OTHERS_AT_MOST,
                "attempts": self.attempts,
            },
            "rows": self.rows.iter().map(Row::to_json).collect::<Vec<_>>(),
            "profiles": self.profiles.iter().map(profile).collect::<Vec<_>>(),
        })
    }
}

/// `GPU 0` of `GPU 0 (NVIDIA H200)`.
fn short(gpu: &str) -> &str {
    gpu.split(" (").next().unwrap_or(gpu)
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
    use super::super::workload::{Kind, Test};
    use super::*;
    use crate::artifact::sample;
    use crate::cost::Work;
    use crate::device::Counts;
    use crate::model::LoadTimes;

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
        let limits = |read| Limits {
            read,
            f32_flops: 10e9,
            half_flops: 20e9,
            byte_ops: 40e9,
            round_trip_ns: Some(100.0),
            copy: None,
            launch_ns: None,
        };
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
        report.rows.push(Row { threads: 2, test, work, launches: None, runs });
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
    fn a_gpu_has_launches_in_place_of_round_trips() {
        let mut report = report(vec![run(1.0, 8e9, 8e9)]);
        report.gpu = Some("GPU 0 (One)".to_owned());
        let counts = Counts { kernels: 7, kernels_kept: 3, captures: 2, capture_seconds: 0.004, ..Counts::default() };
        let load = LoadTimes { code_seconds: 1.5, weights_seconds: 2.0, copy_seconds: 0.5 };
        report.start = Some(Start { load, counts, first_token_seconds: 4.25 });
        report.rows[0].launches = Some(100_000);
        let run = &mut report.rows[0].runs[0];
        for limits in [&mut run.before, &mut run.after] {
            (limits.round_trip_ns, limits.launch_ns, limits.copy) = (None, Some(1500.0), Some(7e9));
        }
        let text = report.to_markdown();
        for part in [
            "target cpu:here on GPU 0 (One)\nStart: code 1.50 s (7 kernels, 3 of them compiled before), weights 2.00 s, copying them 0.50 s, 2 \
             recorded steps 0.004 s, first token after 4.25 s\n",
            "| model | device | batch |",
            "| sample f32 | GPU 0 | 2 | tg10 |",
            "| 100000 of 1500 ns, 15 % |  |",
            "(7 GB/s)",
        ] {
            assert!(text.contains(part), "{part:?} is not in {text}");
        }
        let json = report.to_json();
        assert!((json["rows"][0]["of_launches"]["mean"].as_f64().unwrap() - 0.15).abs() < 1e-9);
        assert_eq!((&json["start"]["kernels_kept"], &json["model"]["gpu"]), (&3.into(), &"GPU 0 (One)".into()));
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
