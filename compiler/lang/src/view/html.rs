//! A scene as one page: the drawing, and a script that moves in it, opens and closes modules, searches, and tells about what is selected.
//!
//! The page is one file that asks for nothing: no network, no fonts, no libraries. Without scripts it still shows the drawing. What stands in a
//! card reaches the page only as escaped text and as JSON in which no `<` is left.

use std::fmt::Write;

use serde_json::{Value, json};

use super::layout::measure;
use super::layout::plan::Item;
use super::layout::{LABEL, Layout, Side, layout};
use super::magnitude;
use super::scene::{Cost, Frame, Mark, Node, Scene, Shape};
use super::svg::{DARK, STYLE, about, drawing, escape, kinds};

const PAGE_STYLE: &str = include_str!("page/page.css");
const PLACING: &str = include_str!("page/place.js");
const SCRIPT: &str = include_str!("page/page.js");

/// The page of a scene.
pub fn html(scene: &Scene) -> String {
    let layout = layout(scene);
    let title = escape(&format!("{} · {}", scene.title, scene.stage));
    let mut svg = String::new();
    drawing(scene, &layout, &mut svg);
    let mut legend = String::new();
    for (kind, words) in kinds(scene) {
        let _ = write!(legend, "<span><i class=\"key {}\"></i>{words}</span>", kind.name());
    }
    legend.push_str("<span><i class=\"key weight-key\"></i>weight</span>");
    if scene.nodes.iter().any(|n| n.mark != Mark::Same) || scene.frames.iter().any(|f| f.mark != Mark::Same) {
        for mark in [Mark::Removed, Mark::Added, Mark::Changed] {
            let _ = write!(legend, "<span><i class=\"key mark-key {0}\"></i>{0}</span>", mark.name());
        }
    }
    let (width, height) = (layout.placed[0].width, layout.placed[0].height);
    format!(
        r#"<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>{title}</title>
<style>
{STYLE}
@media (prefers-color-scheme: dark) {{ :root:not([data-theme=light]) .drawing {{
{DARK}}} }}
:root[data-theme=dark] .drawing {{
{DARK}}}
{PAGE_STYLE}
</style>
</head>
<body class="drawing">
<header>
<h1>{}</h1><p>{}</p>
<form id="search" role="search"><input id="query" type="search" placeholder="Search  /" aria-label="Search modules, operations, weights" autocomplete="off" spellcheck="false"><output id="found" aria-live="polite"></output></form>
<div class="tools" role="toolbar" aria-label="View">
<button id="smaller" title="Zoom out  −" aria-label="Zoom out">−</button><output id="scale">100%</output><button id="larger" title="Zoom in  +" aria-label="Zoom in">+</button>
<button id="fit" title="Show everything  0">Fit</button>
<button id="shut" title="Close modules  c">Close all</button><button id="open" title="Open modules  o">Open all</button>
<button id="theme" title="Light or dark  t" aria-label="Light or dark">◐</button>
</div>
</header>
<main id="stage">
<svg id="canvas" xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" role="group" aria-label="{title}"><g id="view">
{svg}</g></svg>
<aside id="details" aria-live="polite" aria-label="Details" hidden></aside>
</main>
<footer>{legend}</footer>
<script type="application/json" id="data">{}</script>
<script>
{PLACING}
{SCRIPT}
</script>
</body>
</html>
"#,
        escape(&scene.title),
        escape(&about(scene)),
        script_safe(&data(scene, &layout)),
    )
}

/// JSON that cannot end the element it stands in, nor open a comment in it.
fn script_safe(value: &Value) -> String {
    let text = value.to_string();
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '<' => out.push_str("\\u003c"),
            '>' => out.push_str("\\u003e"),
            '&' => out.push_str("\\u0026"),
            '\u{2028}' => out.push_str("\\u2028"),
            '\u{2029}' => out.push_str("\\u2029"),
            c => out.push(c),
        }
    }
    out
}

/// What the script needs: plans and sizes, and what is told about each part.
fn data(scene: &Scene, layout: &Layout) -> Value {
    let frames: Vec<Value> = (0..scene.frames.len()).map(|f| frame(scene, layout, f)).collect();
    let nodes: Vec<Value> = (0..scene.nodes.len()).map(|n| node(scene, layout, n)).collect();
    let values: Vec<Value> = layout
        .values
        .iter()
        .map(|v| json!({"from": v.node, "to": v.readers, "type": scene.wires[v.wire].label}))
        .collect();
    json!({"frames": frames, "nodes": nodes, "values": values})
}

fn frame(scene: &Scene, layout: &Layout, f: usize) -> Value {
    let (frame, plan) = (&scene.frames[f], &layout.plans[f]);
    let items: Vec<Value> = plan
        .items
        .iter()
        .map(|item| match item {
            Item::Node(n) => json!([0, n]),
            Item::Frame(f) => json!([1, f]),
            Item::Bend => json!([2, 0]),
            Item::Entry => json!([3, 0]),
            Item::Exit => json!([4, 0]),
        })
        .collect();
    let mut labels = Vec::new();
    for item in 0..plan.items.len() {
        for (port, value, side) in layout.labels(f, item) {
            let width = measure::mono(&scene.wires[layout.values[value].wire].label, LABEL);
            labels.push(json!([item, port, value, width, if side == Side::Left { -1 } else { 1 }]));
        }
    }
    json!({
        "parent": frame.parent, "stack": frame.repeat.as_ref().is_some_and(|r| r.times > 1), "name": measure::title(frame), "closed": frame.closed,
        "least": layout.headers[f].0, "header": layout.headers[f].1,
        "size": [layout.closed[f].width, layout.closed[f].height],
        "items": items, "layers": plan.layers, "aside": plan.aside, "columns": plan.columns,
        "links": plan.links.iter().map(|l| json!([l.from.0, l.from.1, l.to.0, l.to.1, l.value])).collect::<Vec<_>>(),
        "tops": plan.tops.iter().map(Vec::len).collect::<Vec<_>>(),
        "bottoms": plan.bottoms.iter().map(Vec::len).collect::<Vec<_>>(),
        "labels": labels,
        "about": about_frame(frame),
    })
}

fn about_frame(frame: &Frame) -> Value {
    let mut rows: Vec<(&str, String)> = Vec::new();
    let mut add = |name, value: String| {
        if !value.is_empty() {
            rows.push((name, value));
        }
    };
    add("path", frame.path.clone());
    add("module", frame.module.clone());
    if let Some(repeat) = &frame.repeat {
        let shared = repeat.text().split_once(", ").map_or_else(String::new, |(_, shared)| format!(", {shared}"));
        add("layers", format!("{} ({} times{shared})", repeat.which, repeat.times));
    }
    add("reads", frame.slices.clone());
    if frame.parameters > 0 {
        add("parameters", magnitude::digits(frame.parameters));
    }
    add("arithmetic", arithmetic(&frame.cost));
    add("difference", frame.change.clone());
    json!(rows)
}

fn node(scene: &Scene, layout: &Layout, n: usize) -> Value {
    let (node, block) = (&scene.nodes[n], &layout.nodes[n]);
    let weights: Vec<Value> = node
        .weights
        .iter()
        .map(|w| json!([w.path, w.ty, magnitude::digits(w.elements), magnitude::bytes(w.bytes)]))
        .collect();
    json!({
        "frame": node.frame, "size": [block.width, block.height], "sign": node.shape == Shape::Sign,
        "name": node.title, "kind": node.kind.name(), "text": node.lines, "weights": weights, "about": about_node(node, scene.times(node.frame)),
    })
}

fn about_node(node: &Node, times: u64) -> Value {
    let mut rows: Vec<(String, String)> = Vec::new();
    let mut add = |name: &str, value: String| {
        if !value.is_empty() {
            rows.push((name.to_owned(), value));
        }
    };
    add("path", node.path.clone());
    if times > 1 {
        add("run", format!("{times} times, once a layer"));
    }
    if let Some((place, text)) = &node.equation {
        add("equation", text.clone());
        add("at", place.clone());
    }
    add("result", node.results.join(", "));
    if node.result_bytes > 0 {
        add("bytes", format!("{} of results a token", magnitude::bytes(node.result_bytes)));
    }
    add("arithmetic", arithmetic(&node.cost));
    for (name, value) in &node.facts {
        add(name, value.clone());
    }
    add("ends", node.reason.clone());
    add("difference", node.change.clone());
    json!(rows)
}

/// Operations a token in words; nothing where there are none.
fn arithmetic(cost: &Cost) -> String {
    let fixed = (cost.flops > 0.0).then(|| format!("{} FLOP a token", magnitude::count(cost.flops)));
    let grows = (cost.flops_per_key > 0.0)
        .then(|| format!("{} FLOP for each token seen", magnitude::count(cost.flops_per_key)));
    [fixed, grows].into_iter().flatten().collect::<Vec<_>>().join(" + ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_cannot_leave_its_element() {
        let text = script_safe(&json!({"a": "</script><!-- <script> & \u{2028}"}));
        assert!(!text.contains('<') && !text.contains('>') && !text.contains('&'), "{text}");
        let back: Value = serde_json::from_str(&text).expect("it is JSON");
        assert_eq!(back["a"], "</script><!-- <script> & \u{2028}");
    }
}
