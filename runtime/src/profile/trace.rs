//! A recording in the format of Chrome's trace viewer, which Perfetto reads too: one lane for steps, one for each worker.

use super::Recording;
use crate::artifact::manifest::Manifest;
use serde_json::{Value, json};

/// The trace: kernels are named by where they are in the model, times are in microseconds.
pub fn chrome_trace(recording: &Recording, manifest: &Manifest) -> Value {
    let us = |ns: u64| ns as f64 / 1e3;
    let mut events = vec![json!({ "name": "process_name", "ph": "M", "pid": 1, "args": { "name": manifest.model } })];
    let lanes =
        std::iter::once("steps".to_owned()).chain((0..recording.lanes.len()).map(|worker| format!("worker {worker}")));
    for (tid, name) in lanes.enumerate() {
        events.push(json!({ "name": "thread_name", "ph": "M", "pid": 1, "tid": tid, "args": { "name": name } }));
        events.push(
            json!({ "name": "thread_sort_index", "ph": "M", "pid": 1, "tid": tid, "args": { "sort_index": tid } }),
        );
    }
    for step in &recording.steps {
        let rows: u64 = step.shape.axes.first().map_or(0, |axis| axis.sequences.iter().map(|(_, new)| new).sum());
        events.push(json!({
            "name": format!("step of {rows}"), "cat": "step", "ph": "X", "pid": 1, "tid": 0,
            "ts": us(step.begin_ns), "dur": us(step.end_ns - step.begin_ns), "args": { "rows": rows },
        }));
    }
    for (worker, spans) in recording.lanes.iter().enumerate() {
        for span in spans {
            let Some(step) = recording.steps.get(span.step as usize) else { continue };
            let Some(launch) = step.launches.get(span.launch as usize) else { continue };
            let Some(planned) = manifest.launches.get(launch.index) else { continue };
            let kernel = manifest.kernels.get(launch.kernel).map_or("", |kernel| &kernel.name);
            let work = step.shape.work_of(planned);
            events.push(json!({
                "name": planned.name, "cat": kernel, "ph": "X", "pid": 1, "tid": worker + 1,
                "ts": us(span.begin_ns), "dur": us(span.end_ns - span.begin_ns),
                "args": {
                    "kernel": kernel, "tiles": span.tiles, "busy_us": us(span.busy_ns), "launch_memory_bytes": work.memory_bytes(),
                    "launch_flops": work.flops(),
                },
            }));
        }
    }
    json!({ "traceEvents": events, "displayTimeUnit": "ns" })
}

#[cfg(test)]
mod tests {
    use super::super::tests::recording;
    use super::*;
    use crate::artifact::sample;

    #[test]
    fn every_span_is_an_event_on_its_lane() {
        let trace = chrome_trace(&recording(), &sample::manifest());
        let events = trace["traceEvents"].as_array().unwrap();
        let on = |tid: u64| events.iter().filter(|e| e["ph"] == "X" && e["tid"] == tid).collect::<Vec<_>>();
        assert_eq!((on(0).len(), on(1).len(), on(2).len()), (2, 2, 1));
        let span = on(1)[0];
        assert_eq!(
            (span["name"].as_str(), span["ts"].as_f64(), span["dur"].as_f64()),
            (Some("all"), Some(1.5), Some(3.0))
        );
        assert_eq!(span["args"]["kernel"], "nothing");
        assert_eq!(events.iter().filter(|e| e["name"] == "thread_name").count(), 3);
    }
}
