//! The rows of a survey: one fact of one model each, as text, as a value for programs and, where it is one, as a number.

use serde_json::{Value, json};

use super::attention::{Attention, number};
use super::feed::{Dense, Feed};
use super::layer::{Branch, Layer, Stage, What};
use super::mixer::{self, Mixer};
use super::model::{By, Stack, Survey};
use super::spread;
use crate::spec::ActiveCounts;
use crate::view::caches::{CacheFact, Keep};
use crate::view::magnitude::{self, digits};

/// One fact of one model.
#[derive(Clone, Debug, PartialEq)]
pub struct Fact {
    /// The part of the table that it stands in.
    pub group: &'static str,
    /// What it is called in JSON.
    pub key: String,
    /// What it is called in tables.
    pub label: String,
    /// For people; empty where the model has no such thing.
    pub text: String,
    /// For programs.
    pub value: Value,
    /// Of facts that are sizes: how much.
    pub number: Option<f64>,
}

/// Everything that a table says of a model, for contexts of so many tokens. Every model has the same rows in the same order.
pub(super) fn facts(survey: &Survey, contexts: &[u64]) -> Vec<Fact> {
    let mut facts = Vec::new();
    sizes(survey, &mut facts);
    blocks(survey, &mut facts);
    attentions(survey, &mut facts);
    feeds(survey, &mut facts);
    works(survey, contexts, &mut facts);
    facts
}

fn add(facts: &mut Vec<Fact>, group: &'static str, key: &str, label: &str, text: String) {
    let value = if text.is_empty() { Value::Null } else { json!(text) };
    facts.push(Fact { group, key: key.to_owned(), label: label.to_owned(), text, value, number: None });
}

fn amount(facts: &mut Vec<Fact>, group: &'static str, (key, label): (&str, &str), text: String, n: f64) {
    let value = if n.fract() == 0.0 && n.abs() < 9e15 { json!(n as u64) } else { json!(n) };
    facts.push(Fact { group, key: key.to_owned(), label: label.to_owned(), text, value, number: Some(n) });
}

/// One text of all stacks, or one for each where they differ.
fn by_stack(survey: &Survey, text: impl Fn(&Stack) -> String) -> String {
    let texts: Vec<(String, String)> = survey.stacks.iter().map(|s| (s.short_name(), text(s))).collect();
    match &texts[..] {
        [] => String::new(),
        [(_, first), rest @ ..] if rest.iter().all(|(_, t)| t == first) => first.clone(),
        all => {
            let told = all.iter().filter(|(_, text)| !text.is_empty());
            told.map(|(name, text)| format!("{name}: {text}")).collect::<Vec<_>>().join("; ")
        }
    }
}

/// A value of each layer of each stack.
fn by_layer(survey: &Survey, value: impl Fn(&Layer) -> Option<String>) -> String {
    by_stack(survey, |stack| spread::of(stack, &value).join(", "))
}

const SIZE: &str = "Size";

fn sizes(survey: &Survey, facts: &mut Vec<Fact>) {
    let parameters = survey.numbers.parameters as f64;
    amount(facts, SIZE, ("parameters", "parameters"), magnitude::count(parameters), parameters);
    let active = survey.numbers.active(ActiveCounts::All) as f64;
    let share =
        if active < 0.995 * parameters { format!(" ({:.0} %)", 100.0 * active / parameters) } else { String::new() };
    amount(facts, SIZE, ("active", "active for a token"), format!("{}{share}", magnitude::count(active)), active);
    let layers: usize = survey.stacks.iter().map(|s| s.layers.len()).sum();
    let each: Vec<String> = survey.stacks.iter().map(|s| format!("{} {}", s.layers.len(), s.short_name())).collect();
    let told = if survey.stacks.len() > 1 { each.join(" + ") } else { layers.to_string() };
    amount(facts, SIZE, ("layers", "layers"), told, layers as f64);
    let width = survey.main().map_or(0, |s| s.width);
    amount(facts, SIZE, ("width", "width"), by_stack(survey, |s| digits(s.width)), width as f64);
    let words =
        survey.stacks.iter().flat_map(|s| &s.entry.tables).filter(|(_, by)| *by == By::Input).map(|t| t.0).max();
    let words = words.unwrap_or(0);
    amount(
        facts,
        SIZE,
        ("vocabulary", "vocabulary"),
        if words == 0 { String::new() } else { digits(words) },
        words as f64,
    );
}

const BLOCK: &str = "Block";

fn blocks(survey: &Survey, facts: &mut Vec<Fact>) {
    let placed = by_stack(survey, |stack| {
        // What the first layer reads may be normed already, where embeddings are.
        let normed = |i: usize| stack.entry.norm.is_some() && i == 0;
        let each: Vec<_> = stack.layers.iter().enumerate().map(|(i, l)| Some(placement(l, normed(i)))).collect();
        spread::over(&each).join(", ")
    });
    add(facts, BLOCK, "norm_placement", "norms stand", placed);
    add(facts, BLOCK, "norm_kind", "norms are", norm_kinds(survey));
    add(facts, BLOCK, "residual", "sublayers", by_layer(survey, |l| Some(residual(l))));
    add(facts, BLOCK, "biases", "biases", biases(survey));
    add(facts, BLOCK, "embedding", "embedding", by_stack(survey, embedding));
    let head = survey.head.as_ref().map_or_else(String::new, |h| {
        let mut words = vec![match (h.product, h.tied) {
            (true, true) => "tied to the embedding".to_owned(),
            (true, false) => "its own matrix".to_owned(),
            (false, _) => "none".to_owned(),
        }];
        words.extend(h.cap.map(|c| format!("held under {}", number(c))));
        words.join(", ")
    });
    add(facts, BLOCK, "head", "head", head);
}

/// Where norms stand around sublayers; what a layer is given may be `normed`.
pub(super) fn placement(layer: &Layer, normed: bool) -> String {
    let of = |s: usize, stage: &Stage, branch: &Branch| {
        let around = (branch.before.is_some(), branch.after.is_some(), stage.after.is_some());
        match around {
            (false, false, false) if normed && s == 0 => "before sublayers",
            (true, false, false) => "before sublayers",
            (false, false, true) => "after the residual sum",
            (true, true, false) => "before and after sublayers",
            (false, true, false) => "after sublayers, before the sum",
            (true, false, true) => "before sublayers and after the sum",
            (_, true, true) => "after sublayers and after the sum",
            (false, false, false) => "nowhere",
        }
    };
    let short = |text: &str| match text {
        "before sublayers" => "before sublayers (pre-norm)".to_owned(),
        "after the residual sum" => "after the residual sum (post-norm)".to_owned(),
        "before and after sublayers" => "before and after sublayers (sandwich)".to_owned(),
        other => other.to_owned(),
    };
    let all: Vec<(&What, &str)> = layer
        .stages
        .iter()
        .enumerate()
        .flat_map(|(i, s)| s.branches.iter().map(move |b| (&b.what, of(i, s, b))))
        .collect();
    match &all[..] {
        [] => "not recognised".to_owned(),
        [(_, first), rest @ ..] if rest.iter().all(|(_, t)| t == first) => short(first),
        all => all.iter().map(|(what, text)| format!("{}: {text}", what.word())).collect::<Vec<_>>().join(", "),
    }
}

fn norm_kinds(survey: &Survey) -> String {
    let mut kinds: Vec<String> = Vec::new();
    for stack in &survey.stacks {
        let branches = stack.layers.iter().flat_map(|l| l.branches());
        let norms = branches.flat_map(|b| b.before.iter().chain(&b.after));
        let sums = stack.layers.iter().flat_map(|l| &l.stages).filter_map(|s| s.after.as_ref());
        for norm in norms.chain(sums).chain(&stack.after) {
            let text = norm.text();
            if !kinds.contains(&text) {
                kinds.push(text);
            }
        }
    }
    if kinds.is_empty() { "none".to_owned() } else { kinds.join(", ") }
}

fn residual(layer: &Layer) -> String {
    let low_rank = |b: &&Branch| matches!(b.what, What::LowRank(_));
    let parallel = layer.stages.iter().any(|s| s.branches.iter().filter(|b| !low_rank(b)).count() > 1);
    let broken = layer.stages.iter().any(|s| !s.residual);
    let order = match (parallel, broken, layer.stages.is_empty()) {
        (.., true) => "not recognised",
        (true, ..) => "in parallel",
        (_, true, _) => "one after another, some without a residual",
        _ => "one after another",
    };
    let scaled = if layer.branches().any(|b| b.scaled) { ", scaled by learned weights" } else { "" };
    let beside = layer.branches().find(low_rank).map(|b| format!(", beside one {}", b.what.word()));
    let streams = layer.streams.as_ref().map(|s| format!(", {}", s.text()));
    format!("{order}{scaled}{}{}", beside.unwrap_or_default(), streams.unwrap_or_default())
}

fn biases(survey: &Survey) -> String {
    let mut places: Vec<&str> = Vec::new();
    let layers = || survey.stacks.iter().flat_map(|s| &s.layers);
    if layers().flat_map(|l| l.attentions()).any(|a| a.bias) {
        places.push("queries, keys, values");
    }
    if layers().flat_map(|l| l.attentions()).any(|a| a.out_bias) {
        places.push("attention output");
    }
    let has = |f: &Feed| f.dense.as_ref().is_some_and(|d| d.bias) || f.experts.as_ref().is_some_and(|e| e.each.bias);
    if layers().flat_map(|l| l.feeds()).any(has) {
        places.push("feed-forward");
    }
    if survey.head.as_ref().is_some_and(|h| h.bias) {
        places.push("head");
    }
    if places.is_empty() { "none".to_owned() } else { places.join("; ") }
}

fn embedding(stack: &Stack) -> String {
    let entry = &stack.entry;
    let mut words: Vec<String> = Vec::new();
    if let Some((from, to)) = entry.projected {
        words.push(format!("projected {} → {}", digits(from), digits(to)));
    }
    if (entry.factor - 1.0).abs() > 1e-9 {
        words.push(format!("× {}", number(entry.factor)));
    }
    words.extend(entry.norm.as_ref().map(|n| format!("then {}", n.text())));
    let tables = entry.tables.iter().filter(|(_, by)| *by == By::Input).count();
    if tables > 1 {
        words.push(format!("{tables} tables added"));
    }
    if words.is_empty() && tables > 0 { "looked up".to_owned() } else { words.join(", ") }
}

const ATTENTION: &str = "Attention";

fn attentions(survey: &Survey, facts: &mut Vec<Fact>) {
    let own = |l: &Layer, f: &dyn Fn(&Attention) -> Option<String>| l.attentions().find(|a| !a.cross).and_then(f);
    let mut row = |key: &str, label: &str, text: String| add(facts, ATTENTION, key, label, text);
    // What mixes tokens where there is no attention stands beside it.
    let kind =
        |l: &Layer| own(l, &|a| Some(a.kind().to_owned())).or_else(|| l.mixers().next().map(|m| m.kind().to_owned()));
    row("attention", "kind", by_layer(survey, kind));
    row("mixer", "state of a layer", by_layer(survey, |l| l.mixers().next().map(Mixer::states_text)));
    row("heads", "heads", by_layer(survey, |l| own(l, &|a| Some(a.heads_text()))));
    row("head_width", "width of a head", by_layer(survey, |l| own(l, &|a| Some(a.width_text()))));
    row("positions", "positions", by_stack(survey, positions));
    row("sight", "each token sees", by_layer(survey, |l| own(l, &|a| Some(a.sight.text()))));
    let norm = |a: &Attention| a.qk_norm_text();
    row("qk_norm", "norm of queries, keys", or_none(by_layer(survey, |l| own(l, &norm))));
    let shifted = |l: &Layer| l.mixers().next().filter(|m| m.shifted).map(|_| mixer::SHIFT.to_owned());
    let more = |l: &Layer| own(l, &|a| Some(a.more().join(", ")).filter(|m| !m.is_empty())).or_else(|| shifted(l));
    let more = by_layer(survey, more);
    row("attention_more", "further", more);
    let cross =
        by_layer(survey, |l| l.attentions().find(|a| a.cross).map(|a| format!("{}, {}", a.kind(), a.heads_text())));
    row("cross_attention", "of another sequence", cross);
}

fn or_none(text: String) -> String {
    if text.is_empty() { "none".to_owned() } else { text }
}

/// How a stack knows the order of tokens.
pub(super) fn positions(stack: &Stack) -> String {
    let mut words: Vec<String> = Vec::new();
    let places = stack.entry.tables.iter().filter(|(_, by)| *by == By::Position);
    words.extend(places.map(|(rows, _)| format!("learned, {} places", digits(*rows))));
    if stack.entry.sinusoids {
        words.push("sinusoids".to_owned());
    }
    let own = |l: &Layer| l.attentions().find(|a| !a.cross).and_then(Attention::position_text);
    let any = stack.layers.iter().any(|l| own(l).is_some());
    let with_none = |l: &Layer| own(l).or_else(|| Some("none".to_owned()));
    if any {
        words.extend(spread::of(stack, with_none));
    }
    if words.is_empty() { "none".to_owned() } else { words.join(", ") }
}

const FEED: &str = "Feed-forward";

fn feeds(survey: &Survey, facts: &mut Vec<Fact>) {
    let of = |l: &Layer, f: &dyn Fn(&Feed) -> Option<String>| l.feeds().next().and_then(f);
    let mut row = |key: &str, label: &str, text: String| add(facts, FEED, key, label, text);
    row("activation", "activation", by_layer(survey, |l| of(l, &|f| f.each().map(|d| d.activation.clone()))));
    let plain = |f: &Feed| match &f.experts {
        Some(experts) => Some(format!("{} of each expert", digits(experts.each.inner))),
        None => f.dense.as_ref().map(|d| digits(d.inner)),
    };
    row("inner_width", "inner width", by_layer(survey, |l| of(l, &plain)));
    let more = by_layer(survey, |l| of(l, &|f| Some(f.more().join(", ")).filter(|m| !m.is_empty())));
    row("feed_more", "further", more);
    let low = |s: &Stack, l: &Layer| l.low_ranks().next().map(|low| low.text(s.width));
    row("low_rank", "low-rank product", by_stack(survey, |s| spread::of(s, |l| low(s, l)).join(", ")));
    let mixture = by_layer(survey, |l| of(l, &Feed::mixture));
    let mixture = if mixture.is_empty() { "none".to_owned() } else { mixture };
    row("mixture", "mixture of experts", mixture);
    let other = by_layer(survey, |l| {
        let told: Vec<String> =
            l.branches().filter_map(|b| if let What::Other(t) = &b.what { Some(t.clone()) } else { None }).collect();
        (!told.is_empty()).then(|| told.join("; "))
    });
    row("other", "not recognised", other);
}

impl Feed {
    /// What is told of its products: those of the experts where there are some.
    pub(super) fn each(&self) -> Option<&Dense> {
        self.experts.as_ref().map(|e| &e.each).or(self.dense.as_ref())
    }

    /// `128 of 768, 8 chosen by softmax, 1 shared of 768`.
    pub(super) fn mixture(&self) -> Option<String> {
        let experts = self.experts.as_ref()?;
        let shared = self.dense.as_ref().map_or_else(String::new, |d| {
            let gate = if self.gated_dense { "gated " } else { "" };
            format!(", {gate}shared of {}", digits(d.inner))
        });
        Some(format!(
            "{} of {}, {} chosen ({}){shared}",
            experts.count,
            digits(experts.each.inner),
            experts.chosen,
            experts.router
        ))
    }
}

const WORK: &str = "Memory and work";

/// Dtypes that all weights may have: bytes of a parameter. What formats of few bits take depends on which matrices can be held so.
const DTYPES: [(&str, u64); 2] = [("f32", 4), ("bf16", 2)];

fn works(survey: &Survey, contexts: &[u64], facts: &mut Vec<Fact>) {
    let per_token = survey.numbers.cache_bytes_per_token() as f64;
    let told = if per_token == 0.0 { "none".to_owned() } else { magnitude::bytes(per_token as u64) };
    amount(facts, WORK, ("cache_bytes_per_token", "KV cache of a token, bf16"), told, per_token);
    // Tables of positions end, and with them the context.
    let ends =
        survey.stacks.iter().flat_map(|s| &s.entry.tables).filter(|(_, by)| *by == By::Position).map(|t| t.0).min();
    let within = |tokens: u64| survey.work.extent.is_some() || ends.is_none_or(|n| tokens <= n);
    let over = || ends.map_or_else(String::new, |n| format!("past its {} places", digits(n)));
    let state: u64 = survey.caches.iter().filter(|f| f.keep == Keep::State).map(CacheFact::all_bytes).sum();
    let told = if state == 0 { "none".to_owned() } else { magnitude::bytes(state) };
    amount(facts, WORK, ("state_bytes", "state of a sequence, f32"), told, state as f64);
    for tokens in contexts {
        // Types are f32 before a dtype is chosen: half of it in bf16, but for states, which are held in f32 whatever the dtype.
        let of = |f: &CacheFact| if f.keep == Keep::State { f.all_bytes() } else { f.all_bytes() / 2 };
        let kept: u64 = survey.caches.iter().map(|f| of(f).saturating_mul(f.keep.bound(*tokens))).sum();
        let label = format!("kept for {} tokens", short(*tokens));
        let key = format!("cache_bytes_{tokens}");
        let told = if kept == 0 { "none".to_owned() } else { magnitude::bytes(kept) };
        maybe(facts, (&key, &label), if within(*tokens) { Ok((told, kept as f64)) } else { Err(over()) });
    }
    for (name, bytes) in DTYPES {
        let bytes = survey.numbers.parameters.saturating_mul(bytes);
        let key = format!("weight_bytes_{name}");
        amount(facts, WORK, (&key, &format!("weights, {name}")), magnitude::bytes(bytes), bytes as f64);
    }
    for tokens in contexts {
        let n = survey.work.extent.unwrap_or(*tokens);
        let label = format!("FLOPs of a token after {}", short(*tokens));
        let told = match (survey.work.whole, within(*tokens)) {
            (true, _) => Err("sequences come whole".to_owned()),
            (_, false) => Err(over()),
            _ => Ok(survey.work.decode(n)),
        };
        maybe(
            facts,
            (&format!("decode_flops_{tokens}"), &label),
            told.map(|flops| (magnitude::thousands(flops), flops)),
        );
    }
    for tokens in contexts {
        let n = survey.work.extent.unwrap_or(*tokens);
        let label = format!("… of a prompt of {}", short(*tokens));
        let told = if within(*tokens) { Ok(survey.work.prefill(n)) } else { Err(over()) };
        maybe(
            facts,
            (&format!("prefill_flops_{tokens}"), &label),
            told.map(|flops| (magnitude::thousands(flops), flops)),
        );
    }
}

/// An amount, or why there is none.
fn maybe(facts: &mut Vec<Fact>, (key, label): (&str, &str), told: Result<(String, f64), String>) {
    match told {
        Ok((text, n)) => amount(facts, WORK, (key, label), text, n),
        Err(why) => {
            let (key, label) = (key.to_owned(), label.to_owned());
            facts.push(Fact { group: WORK, key, label, text: why, value: Value::Null, number: None });
        }
    }
}

/// `32k` of 32768.
pub(super) fn short(tokens: u64) -> String {
    match tokens {
        n if n >= 1 << 20 && n.is_multiple_of(1 << 20) => format!("{}M", n >> 20),
        n if n >= 1 << 10 && n.is_multiple_of(1 << 10) => format!("{}k", n >> 10),
        n => digits(n),
    }
}

impl Stack {
    /// `encoder` of `encoder.layers`.
    pub(super) fn short_name(&self) -> String {
        self.path.split('.').next().unwrap_or_default().to_owned()
    }
}
