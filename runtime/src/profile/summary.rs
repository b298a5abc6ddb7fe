//! A recording as one row a kernel, the slowest first, and that as a table.
//!
//! Given a recording, the manifest and (where measured) the machine's limits, promises for each kernel and place in the model: calls, time from
//! the first worker's begin to the last one's end, what it had to read and multiply, and the share of whichever limit binds it.

use super::Recording;
use crate::artifact::manifest::Manifest;
use crate::bench::limits::Limits;
use crate::cost::Work;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt::Write;

/// What a kernel cannot be faster than.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    /// Reading weights and caches.
    Read,
    /// Products.
    Products,
    /// Neither: it moves values that may lie in the processor's caches.
    Values,
}

impl Bound {
    /// As in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Products => "products",
            Self::Values => "-",
        }
    }
}

/// Whether work is mostly values that other kernels made: they may lie in the processor's caches, and memory is no limit.
fn moves_values(work: &Work) -> bool {
    work.flops() == 0 && work.memory_bytes() <= work.value_bytes
}

/// The least time that `work` takes, and what binds it.
pub(super) fn least_seconds(work: &Work, limits: &Limits) -> (f64, Bound) {
    let read = work.memory_bytes() as f64 / limits.read;
    let products = limits.seconds_of_products(work);
    if moves_values(work) {
        (0.0, Bound::Values)
    } else if read >= products {
        (read, Bound::Read)
    } else {
        (products, Bound::Products)
    }
}

/// All launches of one kernel at one kind of place.
#[derive(Clone, Debug, PartialEq)]
pub struct KernelRow {
    /// The kernel's name.
    pub kernel: String,
    /// Where: the launch's name with `*` for the numbers of layers.
    pub place: String,
    /// Launches.
    pub calls: u64,
    /// Time of all of them.
    pub seconds: f64,
    /// What they had to do.
    pub work: Work,
    /// What binds them, and the share of it that they reached.
    pub bound: Option<(Bound, f64)>,
}

impl KernelRow {
    /// Bytes a second: of weights and caches; where values are most of it, of all.
    pub fn bytes_rate(&self) -> f64 {
        let values = if moves_values(&self.work) { self.work.value_bytes } else { 0 };
        (self.work.memory_bytes() + values) as f64 / self.seconds.max(1e-12)
    }

    /// Operations a second.
    pub fn flops_rate(&self) -> f64 {
        self.work.flops() as f64 / self.seconds.max(1e-12)
    }
}

/// Where the time of some steps went.
#[derive(Clone, Debug, PartialEq)]
pub struct Summary {
    /// Steps.
    pub steps: usize,
    /// From the first step's begin to the last one's end.
    pub seconds: f64,
    /// In steps, but in no launch: waiting for the slowest worker and handing out work.
    pub between_launches: f64,
    /// Between steps: inputs, outputs, whatever the caller does.
    pub between_steps: f64,
    /// The slowest first.
    pub rows: Vec<KernelRow>,
}

impl Summary {
    /// Sums a recording up.
    pub fn of(recording: &Recording, manifest: &Manifest, limits: Option<&Limits>) -> Self {
        let ranges = launch_ranges(recording);
        let mut rows: BTreeMap<(String, String), KernelRow> = BTreeMap::new();
        let mut in_launches = 0u64;
        for (step, ranges) in recording.steps.iter().zip(&ranges) {
            for (launch, range) in step.launches.iter().zip(ranges) {
                let Some((begin, end)) = range else { continue };
                let Some(planned) = manifest.launches.get(launch.index) else { continue };
                let kernel = manifest.kernels.get(launch.kernel).map(|k| k.name.clone()).unwrap_or_default();
                let place = place_of(&planned.name);
                let row = rows.entry((kernel.clone(), place.clone())).or_insert_with(|| KernelRow {
                    kernel,
                    place,
                    calls: 0,
                    seconds: 0.0,
                    work: Work::default(),
                    bound: None,
                });
                row.calls += 1;
                row.seconds += (end - begin) as f64 * 1e-9;
                row.work.add(&step.shape.work_of(planned));
                in_launches += end - begin;
            }
        }
        let mut rows: Vec<KernelRow> = rows.into_values().collect();
        for row in &mut rows {
            row.bound = limits.map(|limits| {
                let (least, bound) = least_seconds(&row.work, limits);
                (bound, least / row.seconds.max(1e-12))
            });
        }
        rows.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
        let in_steps: u64 = recording.steps.iter().map(|step| step.end_ns - step.begin_ns).sum();
        let all = match (recording.steps.first(), recording.steps.last()) {
            (Some(first), Some(last)) => last.end_ns - first.begin_ns,
            _ => 0,
        };
        let seconds = |ns: u64| ns as f64 * 1e-9;
        Self {
            steps: recording.steps.len(),
            seconds: seconds(all),
            between_launches: seconds(in_steps.saturating_sub(in_launches)),
            between_steps: seconds(all.saturating_sub(in_steps)),
            rows,
        }
    }

    /// As data.
    pub fn to_json(&self) -> Value {
        let row = |row: &KernelRow| {
            json!({
                "kernel": row.kernel, "place": row.place, "calls": row.calls, "seconds": row.seconds,
                "share": row.seconds / self.seconds.max(1e-12), "memory_bytes": row.work.memory_bytes(),
                "value_bytes": row.work.value_bytes, "flops": row.work.flops(), "bound": row.bound.map(|(bound, _)| bound.name()),
                "of_limit": row.bound.filter(|(bound, _)| *bound != Bound::Values).map(|(_, share)| share),
            })
        };
        json!({
            "steps": self.steps, "seconds": self.seconds, "between_launches_seconds": self.between_launches,
            "between_steps_seconds": self.between_steps, "kernels": self.rows.iter().map(row).collect::<Vec<_>>(),
        })
    }
}

/// For each step, for each launch: from the first worker's begin to the last one's end.
pub(super) fn launch_ranges(recording: &Recording) -> Vec<Vec<Option<(u64, u64)>>> {
    let mut ranges: Vec<Vec<Option<(u64, u64)>>> =
        recording.steps.iter().map(|step| vec![None; step.launches.len()]).collect();
    for span in recording.lanes.iter().flatten() {
        let range = ranges.get_mut(span.step as usize).and_then(|step| step.get_mut(span.launch as usize));
        let Some(range) = range else { continue };
        let (begin, end) = range.unwrap_or((span.begin_ns, span.end_ns));
        *range = Some((begin.min(span.begin_ns), end.max(span.end_ns)));
    }
    ranges
}

/// A launch's name with `*` for every component that is a number.
fn place_of(name: &str) -> String {
    let component =
        |part: &str| if part.bytes().all(|b| b.is_ascii_digit()) && !part.is_empty() { "*" } else { part }.to_owned();
    let path = |path: &str| path.split('.').map(component).collect::<Vec<_>>().join(".");
    name.split(' ').map(path).collect::<Vec<_>>().join(" ")
}

/// The summary as Markdown.
pub fn table(summary: &Summary) -> String {
    let mut text = String::from(
        "| kernel | where | calls | ms | share | GB/s | GFLOP/s | bound | of limit |\n|---|---|--:|--:|--:|--:|--:|---|--:|\n",
    );
    let share = |seconds: f64| format!("{:.1} %", 100.0 * seconds / summary.seconds.max(1e-12));
    for row in &summary.rows {
        let (bound, of_limit) = match row.bound {
            Some((bound, share)) if bound != Bound::Values => (bound.name(), format!("{:.0} %", 100.0 * share)),
            Some((bound, _)) => (bound.name(), String::new()),
            None => ("", String::new()),
        };
        let flops = if row.work.flops() == 0 { String::new() } else { format!("{:.1}", row.flops_rate() * 1e-9) };
        // Writing to a string does not fail.
        let _ = writeln!(
            text,
            "| {} | {} | {} | {:.3} | {} | {:.1} | {flops} | {bound} | {of_limit} |",
            row.kernel,
            row.place,
            row.calls,
            row.seconds * 1e3,
            share(row.seconds),
            row.bytes_rate() * 1e-9,
        );
    }
    for (name, seconds) in [("between launches", summary.between_launches), ("between steps", summary.between_steps)] {
        let _ = writeln!(text, "| ({name}) | | | {:.3} | {} | | | | |", seconds * 1e3, share(seconds));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::tests::recording;
    use super::*;
    use crate::artifact::sample;

    #[test]
    fn times_and_shares_add_up() {
        let manifest = sample::manifest();
        let limits = Limits {
            read: 1e9,
            f32_flops: 1e9,
            half_flops: 2e9,
            byte_ops: 4e9,
            round_trip_ns: None,
            copy: None,
            launch_ns: None,
        };
        let summary = Summary::of(&recording(), &manifest, Some(&limits));
        let near = |a: f64, b: f64| assert!((a - b).abs() < 1e-12, "{a} {b}");
        near(summary.seconds, 8e-6);
        near(summary.between_steps, 1e-6);
        // 7 us in steps, of which 3 and 2 in launches.
        near(summary.between_launches, 2e-6);
        let [row] = &summary.rows[..] else { panic!("{:?}", summary.rows) };
        assert_eq!((row.kernel.as_str(), row.place.as_str(), row.calls), ("nothing", "all", 2));
        near(row.seconds, 5e-6);
        assert_eq!((row.work.weight_bytes, row.work.f32_flops), (96, 96));
        let (bound, share) = row.bound.unwrap();
        assert_eq!(bound, Bound::Read);
        near(share, 96e-9 / 5e-6);
        let text = table(&summary);
        assert!(text.contains("| nothing | all | 2 | 0.005 | 62.5 % |") && text.contains("(between steps)"), "{text}");
        let json = summary.to_json();
        assert_eq!((json["steps"].as_u64(), json["kernels"][0]["calls"].as_u64()), (Some(2), Some(2)));
        assert!(Summary::of(&recording(), &manifest, None).rows[0].bound.is_none());
        assert!(Summary::of(&Recording::default(), &manifest, None).rows.is_empty());
    }

    #[test]
    fn layers_are_one_place() {
        assert_eq!(
            place_of("layers.3.self_attn.q_proj + layers.3.self_attn.k_proj"),
            "layers.*.self_attn.q_proj + layers.*.self_attn.k_proj"
        );
        assert_eq!(place_of("embed (selected rows)"), "embed (selected rows)");
    }

    #[test]
    fn the_slower_limit_binds() {
        let limits = Limits {
            read: 100.0,
            f32_flops: 10.0,
            half_flops: 20.0,
            byte_ops: 40.0,
            round_trip_ns: None,
            copy: None,
            launch_ns: None,
        };
        let work = Work { weight_bytes: 100, half_flops: 40, f32_flops: 10, ..Work::default() };
        assert_eq!(least_seconds(&work, &limits), (3.0, Bound::Products));
        let work = Work { weight_bytes: 300, cache_bytes: 100, ..work };
        assert_eq!(least_seconds(&work, &limits), (4.0, Bound::Read));
        assert_eq!(least_seconds(&Work { value_bytes: 9, ..Work::default() }, &limits).1, Bound::Values);
    }
}
