//! A recording as a flame chart: one HTML file that needs nothing else, neither network nor libraries.
//!
//! Given a recording, promises the template of `flame.html` with the recording in it as data: steps, the modules of the model nested under each
//! other, kernels, and below them what each worker did.

use super::Recording;
use super::summary::launch_ranges;
use crate::artifact::manifest::Manifest;
use crate::error::{Result, RuntimeError};
use serde_json::{Value, json};
use std::collections::BTreeMap;

const TEMPLATE: &str = include_str!("flame.html");
/// Where the template wants the data.
const PLACE: &str = "\"DATA\"";

/// The chart.
///
/// # Errors
/// The data cannot be written as JSON.
pub fn flame_html(recording: &Recording, manifest: &Manifest, title: &str) -> Result<String> {
    let failed = |error: serde_json::Error| RuntimeError::request(format!("the recording is no JSON: {error}"), "");
    let data = serde_json::to_string(&data(recording, manifest, title)).map_err(failed)?;
    // Inside a script element no text may look like its end.
    Ok(TEMPLATE.replacen(PLACE, &data.replace('<', "\\u003c"), 1))
}

/// `names` and `kernels` are said once; spans are `[name, kernel, begin ns, length ns, ..]`.
fn data(recording: &Recording, manifest: &Manifest, title: &str) -> Value {
    let mut names: BTreeMap<usize, usize> = BTreeMap::new();
    let mut texts: Vec<&str> = Vec::new();
    let mut launches = Vec::new();
    let ranges = launch_ranges(recording);
    for (step, ranges) in recording.steps.iter().zip(&ranges) {
        for (launch, range) in step.launches.iter().zip(ranges) {
            let (Some((begin, end)), Some(planned)) = (range, manifest.launches.get(launch.index)) else { continue };
            let name = *names.entry(launch.index).or_insert_with(|| {
                texts.push(&planned.name);
                texts.len() - 1
            });
            let work = step.shape.work_of(planned);
            launches.push(json!([name, launch.kernel, begin, end - begin, work.memory_bytes(), work.flops()]));
        }
    }
    let steps = recording.steps.iter().map(|step| {
        let rows: u64 = step.shape.axes.first().map_or(0, |axis| axis.sequences.iter().map(|(_, new)| new).sum());
        json!([rows, step.begin_ns, step.end_ns - step.begin_ns])
    });
    let lanes = recording.lanes.iter().map(|spans| {
        let span = |span: &super::Span| {
            let launch = recording.steps.get(span.step as usize)?.launches.get(span.launch as usize)?;
            let name = *names.get(&launch.index)?;
            Some(json!([name, launch.kernel, span.begin_ns, span.end_ns - span.begin_ns, span.tiles]))
        };
        spans.iter().filter_map(span).collect::<Vec<_>>()
    });
    json!({
        "title": title, "names": texts, "kernels": manifest.kernels.iter().map(|kernel| &kernel.name).collect::<Vec<_>>(),
        "steps": steps.collect::<Vec<_>>(), "lanes": lanes.collect::<Vec<_>>(), "launches": launches,
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::recording;
    use super::*;
    use crate::artifact::sample;

    #[test]
    fn the_chart_holds_the_recording_and_needs_nothing_else() {
        let mut manifest = sample::manifest();
        manifest.launches[0].name = "layers.0</script>".to_owned();
        let html = flame_html(&recording(), &manifest, "a title").unwrap();
        assert!(!html.contains(PLACE) && !html.contains("http") && !html.contains(" src="));
        assert_eq!(html.matches("</script>").count(), 1);
        let start = html.find("const data = ").unwrap() + "const data = ".len();
        let line = html[start..].lines().next().unwrap().trim_end_matches(';');
        let data: Value = serde_json::from_str(line).unwrap();
        assert_eq!(data["names"], json!(["layers.0</script>"]));
        assert_eq!((data["steps"].as_array().unwrap().len(), data["launches"].as_array().unwrap().len()), (2, 2));
        assert_eq!(data["lanes"][0][0], json!([0, 0, 1500, 3000, 1]));
    }
}
