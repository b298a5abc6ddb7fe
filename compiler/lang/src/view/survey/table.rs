//! Surveys as a table in text, and as JSON.

use std::fmt::Write;

use serde_json::{Map, Value, json};

use super::facts::{Fact, facts};
use super::layer::{Layer, What};
use super::model::{Stack, Survey};
use crate::view::caches::in_short;
use crate::view::layout::measure;

/// A row of the table: the same fact of each model.
pub(super) struct Row {
    pub(super) facts: Vec<Fact>,
}

impl Row {
    /// Whether models differ in it.
    pub(super) fn differs(&self) -> bool {
        self.facts.windows(2).any(|w| w[0].text != w[1].text)
    }
}

/// The rows of a table, those left out of which no model has anything.
pub(super) fn rows(surveys: &[Survey], contexts: &[u64]) -> Vec<Row> {
    let all: Vec<Vec<Fact>> = surveys.iter().map(|s| facts(s, contexts)).collect();
    let n = all.iter().map(Vec::len).min().unwrap_or(0);
    let row = |i: usize| Row { facts: all.iter().filter_map(|f| f.get(i).cloned()).collect() };
    (0..n).map(row).filter(|r| r.facts.iter().any(|f| !f.text.is_empty())).collect()
}

/// Narrowest and widest column, in characters.
const COLUMN: (usize, usize) = (22, 44);
/// Width of the whole table where columns allow it.
const PAGE: usize = 140;

/// The table for people; `~` marks the rows in which models differ.
pub fn survey_text(surveys: &[Survey], contexts: &[u64]) -> String {
    let rows = rows(surveys, contexts);
    let labels = rows.iter().filter_map(|r| r.facts.first()).map(|f| f.label.chars().count()).max().unwrap_or(0) + 4;
    let column = (PAGE.saturating_sub(labels) / surveys.len().max(1)).clamp(COLUMN.0, COLUMN.1);
    let mut out = String::new();
    let mut line = |sign: char, label: &str, cells: &[Vec<String>]| {
        let height = cells.iter().map(Vec::len).max().unwrap_or(0).max(1);
        for i in 0..height {
            let label = if i == 0 { label } else { "" };
            let sign = if i == 0 { sign } else { ' ' };
            let mut text = format!("{sign} {label:labels$}");
            for cell in cells {
                let part = cell.get(i).map_or("", String::as_str);
                let _ = write!(text, "{part:column$}");
            }
            let _ = writeln!(out, "{}", text.trim_end());
        }
    };
    let wrapped = |text: &str| measure::wrap_all(text, column - 2);
    line(' ', "", &surveys.iter().map(|s| wrapped(&s.name)).collect::<Vec<_>>());
    if surveys.iter().any(|s| s.title != s.name) {
        line(' ', "", &surveys.iter().map(|s| wrapped(&s.title)).collect::<Vec<_>>());
    }
    let mut group = "";
    for row in &rows {
        let Some(first) = row.facts.first() else { continue };
        if first.group != group {
            group = first.group;
            line(' ', "", &[]);
            line(' ', group, &[]);
        }
        let sign = if row.differs() { '~' } else { ' ' };
        let dash = |f: &Fact| if f.text.is_empty() { vec!["-".to_owned()] } else { wrapped(&f.text) };
        line(sign, &format!("  {}", first.label), &row.facts.iter().map(dash).collect::<Vec<_>>());
    }
    out
}

/// The same for programs, with every layer.
pub fn survey_json(surveys: &[Survey], contexts: &[u64]) -> Value {
    let rows = rows(surveys, contexts);
    let model = |(i, survey): (usize, &Survey)| {
        let mut facts = Map::new();
        for fact in rows.iter().filter_map(|r| r.facts.get(i)) {
            facts.insert(fact.key.clone(), json!({"text": fact.text, "value": fact.value}));
        }
        let stacks: Vec<Value> = survey.stacks.iter().map(stack).collect();
        json!({"name": survey.name, "model": survey.title, "facts": facts, "stacks": stacks})
    };
    let differing: Vec<&str> =
        rows.iter().filter(|r| r.differs()).filter_map(|r| r.facts.first()).map(|f| f.key.as_str()).collect();
    json!({
        "context_tokens": contexts, "differing": differing,
        "models": surveys.iter().enumerate().map(model).collect::<Vec<_>>(),
    })
}

fn stack(stack: &Stack) -> Value {
    let mut kinds: Vec<(&Layer, Vec<usize>)> = Vec::new();
    for (i, layer) in stack.layers.iter().enumerate() {
        match kinds.iter_mut().find(|(l, _)| **l == **layer) {
            Some((_, at)) => at.push(i),
            None => kinds.push((layer, vec![i])),
        }
    }
    let kind = |(layer, at): (&Layer, Vec<usize>)| {
        let paths: Vec<String> = at.iter().map(|i| format!("{}.{i}", stack.path)).collect();
        let which = in_short(&paths.iter().map(String::as_str).collect::<Vec<_>>());
        let stages: Vec<Value> = layer
            .stages
            .iter()
            .map(|s| {
                json!({
                    "residual": s.residual, "norm_after_sum": s.after.as_ref().map(|n| n.text()),
                    "branches": s.branches.iter().map(|b| json!({
                        "norm_before": b.before.as_ref().map(|n| n.text()), "norm_after": b.after.as_ref().map(|n| n.text()),
                        "factor": b.factor, "scaled_by_weights": b.scaled, "kind": b.what.word(), "is": what(&b.what),
                    })).collect::<Vec<_>>(),
                })
            })
            .collect();
        json!({"which": which, "layers": at, "stages": stages})
    };
    json!({"path": stack.path, "width": stack.width, "kinds": kinds.into_iter().map(kind).collect::<Vec<_>>()})
}

fn what(what: &What) -> Value {
    match what {
        What::Attention(a) => json!({
            "attention": a.kind(), "heads": a.heads, "kv_heads": a.kv_heads, "key_width": a.key_width, "value_width": a.value_width,
            "latent_width": a.latent, "query_latent_width": a.compressed_queries, "sees": a.sight.text(), "positions": a.position_text(),
            "rope_theta": a.rotary.as_ref().and_then(|r| r.base), "rotary_width": a.rotary.as_ref().map(|r| r.width),
            "rotary_gain": a.rotary.as_ref().map(|r| r.gain), "rotary_interleaved": a.rotary.as_ref().map(|r| r.interleaved),
            "qk_norm": a.qk_norm_text(), "bias": a.bias, "output_bias": a.out_bias, "further": a.more(),
        }),
        What::Feed(f) => json!({
            "activation": f.each().map(|d| d.activation.clone()), "inner_width": f.dense.as_ref().map(|d| d.inner),
            "experts": f.experts.as_ref().map(|e| json!({
                "count": e.count, "chosen": e.chosen, "inner_width": e.each.inner, "router": e.router,
            })),
        }),
        What::Mixer(m) => json!({"mixer": m.kind(), "states": m.states}),
        What::LowRank(low) => json!({"low_rank": low.rank, "residual": low.residual}),
        What::Other(text) => json!({"operations": text}),
    }
}
