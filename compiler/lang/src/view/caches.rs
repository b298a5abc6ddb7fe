//! What is kept of each token, and why: the derivation from masks, layer by layer, layers with equal answers together.
//!
//! Given a program with its attentions recognised, it finds for each cache the attentions that read it, the bounds that their masks set on the
//! age of a key, and from these how long a token is kept. [`caches`] returns facts; [`text`](cache_text) and [`json`](cache_json) show them.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write;

use serde_json::{Value, json};

use super::{cost, describe, formula, magnitude};
use crate::graph::path::{instances, join};
use crate::graph::{AxisId, Dim, NodeId, Program, Type, ValueId};
use crate::ops::Core;
use crate::ops::core::scan::state_paths;
use crate::ops::fused::{Attention, Reach};
use crate::passes::analysis::mask;

/// How long what a token brings is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// The last so many tokens and those of a step, in a ring.
    Ring(u64),
    /// As long as the sequence, in pages.
    Paged,
    /// Of another axis than the queries': written once, read at every step.
    Once,
    /// For the step that brings it.
    Step,
    /// A state of the sequence, however many tokens it has.
    State,
}

impl Keep {
    /// As in tables: `ring`.
    pub fn name(self) -> &'static str {
        match self {
            Keep::Ring(_) => "ring",
            Keep::Paged => "paged",
            Keep::Once => "once",
            Keep::Step => "step",
            Keep::State => "state",
        }
    }

    /// Most tokens kept between steps in a context of `tokens`.
    pub fn bound(self, tokens: u64) -> u64 {
        match self {
            Keep::Ring(n) => n.min(tokens),
            Keep::Paged | Keep::Once => tokens,
            Keep::Step => 0,
            Keep::State => tokens.min(1),
        }
    }
}

/// One thing that is kept, of all the layers that keep it alike.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheFact {
    /// Absolute paths, one a layer.
    pub paths: Vec<String>,
    /// The layers in short: `layers.0-31`; empty outside of layers.
    pub layers: String,
    /// The path inside a layer.
    pub name: String,
    /// What is kept of a token: `f32[8, 128]`.
    pub ty: String,
    /// Its bytes, in one layer.
    pub token_bytes: u64,
    /// How long.
    pub keep: Keep,
    /// Attentions see it through other operations: it is kept as it is, before keys and values are made of it.
    pub latent: bool,
    /// The masks that it is read under.
    pub masks: Vec<MaskFact>,
}

/// A mask and what follows from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MaskFact {
    /// The mask as a formula.
    pub mask: String,
    /// Its parts with the ages `q_pos - k_pos` at which they can hold, in words.
    pub parts: Vec<(String, String)>,
    /// What follows.
    pub reach: Reach,
}

/// What a program keeps. `None` when it has no finite list of layers.
pub fn caches(program: &Program) -> Option<Vec<CacheFact>> {
    let mut readers = HashMap::new();
    let list = instances(program)?;
    follow(program, 0, "", &[], &mut readers);
    let mut facts: Vec<CacheFact> = Vec::new();
    for instance in list {
        for fact in of_instance(program, instance.graph, &instance.at, &readers) {
            let path = join(&instance.at, &fact.name);
            let same = |f: &&mut CacheFact| {
                (&f.name, &f.ty, f.keep, f.latent, &f.masks)
                    == (&fact.name, &fact.ty, fact.keep, fact.latent, &fact.masks)
                    && list_of(&f.layers) == list_of(&instance.at)
            };
            match facts.iter_mut().find(same) {
                Some(known) => known.paths.push(path),
                None => facts.push(CacheFact { paths: vec![path], layers: instance.at.clone(), ..fact }),
            }
        }
    }
    for fact in &mut facts {
        let at: Vec<&str> = fact
            .paths
            .iter()
            .map(|p| p.strip_suffix(fact.name.as_str()).unwrap_or_default().trim_end_matches('.'))
            .collect();
        fact.layers = in_short(&at);
    }
    Some(facts)
}

/// `layers` of `layers.3`.
fn list_of(at: &str) -> &str {
    at.rsplit_once('.').map_or("", |(list, _)| list)
}

/// Paths of layers in short: `layers.0-31`, `layers.0, 2, .. 30`, `layers.0-2, 5`.
pub fn in_short(paths: &[&str]) -> String {
    let list = paths.first().map_or("", |p| list_of(p));
    let numbers: Option<Vec<u64>> =
        paths.iter().map(|p| p.strip_prefix(list)?.trim_start_matches('.').parse().ok()).collect();
    let Some(numbers) = numbers.filter(|n| !n.is_empty()) else { return paths.join(", ") };
    let mut parts: Vec<String> = Vec::new();
    let mut i = 0;
    while i < numbers.len() {
        let step = |j: usize| numbers[j] - numbers[j - 1];
        let mut end = i + 1;
        while end < numbers.len() && numbers[end] > numbers[end - 1] && (end == i + 1 || step(end) == step(i + 1)) {
            end += 1;
        }
        let run = &numbers[i..end];
        match run {
            [one] => parts.push(one.to_string()),
            [first, .., last] if last - first == run.len() as u64 - 1 => parts.push(format!("{first}-{last}")),
            [first, second, _, .., last] => parts.push(format!("{first}, {second}, .. {last}")),
            [first, ..] => {
                parts.push(first.to_string());
                end = i + 1;
            }
            [] => {}
        }
        i = end;
    }
    format!("{list}.{}", parts.join(", "))
}

/// What a body keeps at one instance, paths relative to it, and the keys and values that it does not keep.
fn of_instance(program: &Program, index: usize, at: &str, readers: &HashMap<String, Vec<Reader>>) -> Vec<CacheFact> {
    let (graph, axes) = (&program.graphs[index], &program.axes);
    let mut facts = Vec::new();
    for node in graph.topological() {
        let Some(Core::Cache { path }) = graph.op(node).as_core() else { continue };
        let readers = readers.get(&join(at, path)).map_or(&[][..], Vec::as_slice);
        let ty = graph.ty(ValueId { node, port: 0 });
        let masks = masks(program, readers.iter().map(|r| (r.graph, r.attention)));
        let other_axis = readers.iter().any(|r| {
            let graph = &program.graphs[r.graph];
            let queries = graph.operands(r.attention).first().and_then(|q| graph.ty(*q).dims.first().copied());
            !matches!((queries, ty.dims.first()), (Some(Dim::Axis(q) | Dim::Rows(q)), Some(Dim::Visible(k))) if q == *k)
        });
        let of_first = ty.dims.first() == Some(&Dim::Visible(AxisId(0)));
        facts.push(CacheFact {
            paths: Vec::new(),
            layers: String::new(),
            name: path.clone(),
            ty: kept_type(ty, axes),
            token_bytes: cost::token_bytes(ty),
            keep: if readers.is_empty() { Keep::Paged } else { keep(&masks, other_axis, of_first) },
            latent: readers.iter().any(|r| !r.directly),
            masks,
        });
    }
    for node in graph.topological() {
        let Some(Core::Scan { path, states, .. }) = graph.op(node).as_core() else { continue };
        for (name, start) in state_paths(path, *states).zip(graph.operands(node)) {
            facts.push(CacheFact {
                paths: Vec::new(),
                layers: String::new(),
                name,
                ty: graph.ty(start).text(axes),
                token_bytes: cost::token_bytes(graph.ty(start)),
                keep: Keep::State,
                latent: false,
                masks: Vec::new(),
            });
        }
    }
    for node in graph.topological() {
        if graph.op(node).as_fused::<Attention>().is_none() {
            continue;
        }
        for (operand, name) in [(1, "keys"), (2, "values")] {
            let Some(value) = graph.operands(node).get(operand).copied() else { continue };
            if matches!(graph.ty(value).dims.first(), Some(Dim::Visible(_))) {
                continue;
            }
            let at = &graph.origin(node).path;
            facts.push(CacheFact {
                paths: Vec::new(),
                layers: String::new(),
                name: join(at, name),
                ty: kept_type(graph.ty(value), axes),
                token_bytes: cost::token_bytes(graph.ty(value)),
                keep: Keep::Step,
                latent: false,
                masks: masks(program, std::iter::once((index, node))),
            });
        }
    }
    facts
}

fn kept_type(ty: &Type, axes: &[String]) -> String {
    Type::new(ty.dtype, ty.dims.get(1..).unwrap_or_default().to_vec()).text(axes)
}

/// An attention that reads a cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Reader {
    graph: usize,
    attention: NodeId,
    operand: usize,
    directly: bool,
}

/// Caches by absolute path that a value is made of, and whether it is what is kept.
type Kept = BTreeMap<String, bool>;

/// Follows what is kept through one instance of a body and the bodies that it calls, and notes which attentions read it. Gives what its results are made of.
fn follow(
    program: &Program,
    index: usize,
    at: &str,
    args: &[Kept],
    readers: &mut HashMap<String, Vec<Reader>>,
) -> Vec<Kept> {
    let graph = &program.graphs[index];
    let mut values: HashMap<ValueId, Kept> = HashMap::new();
    for node in graph.topological() {
        let operands: Vec<Kept> =
            graph.operands(node).iter().map(|v| values.get(v).cloned().unwrap_or_default()).collect();
        let first = ValueId { node, port: 0 };
        match graph.op(node).as_core() {
            Some(Core::Arg { index }) => {
                values.insert(first, args.get(*index).cloned().unwrap_or_default());
            }
            Some(Core::Cache { path }) => {
                values.insert(first, Kept::from([(join(at, path), true)]));
            }
            Some(Core::Call { graph: callee, at: relative }) => {
                let results = follow(program, *callee, &join(at, relative), &operands, readers);
                values.extend(results.into_iter().enumerate().map(|(port, kept)| (ValueId { node, port }, kept)));
            }
            _ if graph.op(node).as_fused::<Attention>().is_some() => {
                for (operand, kept) in operands.iter().enumerate() {
                    for (path, directly) in kept {
                        let reader = Reader { graph: index, attention: node, operand, directly: *directly };
                        let known = readers.entry(path.clone()).or_default();
                        if !known.contains(&reader) {
                            known.push(reader);
                        }
                    }
                }
            }
            op => {
                let view = matches!(op, Some(Core::Reshape | Core::Cast));
                let mut made = Kept::new();
                for (path, directly) in operands.into_iter().flatten() {
                    *made.entry(path).or_insert(true) &= directly && view;
                }
                if !made.is_empty() {
                    let ports = 0..graph.types(node).len();
                    values.extend(ports.map(|port| (ValueId { node, port }, made.clone())));
                }
            }
        }
    }
    graph.outputs().iter().map(|o| values.get(&o.value).cloned().unwrap_or_default()).collect()
}

fn masks(program: &Program, attentions: impl Iterator<Item = (usize, NodeId)>) -> Vec<MaskFact> {
    let mut facts: Vec<MaskFact> = Vec::new();
    for (index, node) in attentions {
        let graph = &program.graphs[index];
        let Some(attention) = graph.op(node).as_fused::<Attention>() else { continue };
        let names = describe::parameters(graph, node, &attention.mask, Attention::MASK_PARAMS.len());
        let part = |part: mask::Part| {
            let text = formula::of(&attention.mask, part.value, &names);
            (text.unwrap_or_else(|| "a condition".into()), ages(&part))
        };
        let parts = mask::parts(&attention.mask).into_iter().map(part).collect();
        let fact = MaskFact { mask: describe::mask(graph, node), parts, reach: attention.reach };
        if !facts.contains(&fact) {
            facts.push(fact);
        }
    }
    facts
}

fn ages(part: &mask::Part) -> String {
    if part.never {
        return "never".into();
    }
    match (part.least, part.largest) {
        (None, None) => "at any age".into(),
        (Some(least), None) => format!("age >= {least}"),
        (None, Some(largest)) => format!("age <= {largest}"),
        (Some(least), Some(largest)) => format!("{least} <= age <= {largest}"),
    }
}

fn keep(masks: &[MaskFact], other_axis: bool, of_first: bool) -> Keep {
    if other_axis {
        return if of_first { Keep::Step } else { Keep::Once };
    }
    if masks.iter().any(|m| m.reach.future) {
        return Keep::Step;
    }
    let windows: Option<Vec<u64>> = masks.iter().map(|m| m.reach.window).collect();
    windows.map_or(Keep::Paged, |w| Keep::Ring(w.into_iter().max().unwrap_or(0).max(1)))
}

impl CacheFact {
    /// The conclusion in words.
    pub fn because(&self) -> String {
        match self.keep {
            Keep::Once => "keys of another sequence than the queries': written once, when that is read, and kept as it is".into(),
            Keep::State => "each token is given what the one before it left: one state of the sequence, however long it is".into(),
            Keep::Step => "keys after the query, or all of them, can be seen: the sequence comes whole in one step, and nothing is kept between steps".into(),
            Keep::Paged if self.masks.is_empty() => "nothing bounds who reads it: every token is kept".into(),
            Keep::Paged => "no bound on the age: the first token is needed as long as the sequence runs, so every token is kept, in pages".into(),
            Keep::Ring(1) => "only the token itself is seen: a ring of 1 token and those of the step".into(),
            Keep::Ring(n) => format!("the oldest key needed is {} back: a ring of {n} tokens and those of the step", n - 1),
        }
    }

    /// `ring`, `paged, latent`.
    pub fn kind(&self) -> String {
        let latent = if self.latent { ", latent" } else { "" };
        format!("{}{latent}", self.keep.name())
    }

    /// Bytes of a token in all layers; of a state, of the sequence.
    pub fn all_bytes(&self) -> u64 {
        self.token_bytes.saturating_mul(self.paths.len() as u64)
    }
}

/// What is kept by the same rule in the same layers: keys and values are told together.
fn groups(facts: &[CacheFact]) -> Vec<Vec<&CacheFact>> {
    let mut groups: Vec<Vec<&CacheFact>> = Vec::new();
    for fact in facts {
        let key = |f: &CacheFact| (f.layers.clone(), f.masks.clone(), f.kind());
        match groups.iter_mut().find(|g| key(g[0]) == key(fact)) {
            Some(group) => group.push(fact),
            None => groups.push(vec![fact]),
        }
    }
    groups
}

/// Facts for people, with the bounds for a context of `tokens`.
pub fn cache_text(facts: &[CacheFact], tokens: u64) -> String {
    let mut out = String::new();
    if facts.is_empty() {
        return "nothing is kept: no attention, and no state\n".into();
    }
    let (mut per_token, mut most) = (0u64, 0u64);
    for group in groups(facts) {
        let first = group[0];
        let names: Vec<String> = group.iter().map(|f| format!("{} {}", f.name, f.ty)).collect();
        let title = if first.layers.is_empty() { "model" } else { &first.layers };
        let _ = writeln!(out, "{title}: {}", names.join(", "));
        for mask in &first.masks {
            let _ = writeln!(out, "  mask    {}", mask.mask);
            let widest = mask.parts.iter().map(|(part, _)| part.chars().count()).max().unwrap_or(0);
            for (part, ages) in mask.parts.iter().filter(|(part, _)| part != "true") {
                let _ = writeln!(out, "            {part:widest$}  {ages}");
            }
        }
        let _ = writeln!(out, "  so      {}", first.because());
        let _ = writeln!(out, "  kind    {}", first.kind());
        let each: u64 = group.iter().map(|f| f.token_bytes).sum();
        let all: u64 = group.iter().map(|f| f.all_bytes()).sum();
        let n = first.paths.len();
        let layers = if n == 1 { String::new() } else { format!(", {} in {n} layers", magnitude::digits(all)) };
        let is_state = first.keep == Keep::State;
        let of = if is_state { "sequence" } else { "token" };
        let _ = writeln!(out, "  bytes   {} a {of}{layers}", magnitude::digits(each));
        let kept = first.keep.bound(tokens);
        let bytes = all.saturating_mul(kept);
        if !is_state {
            let (kept, tokens) = (magnitude::digits(kept), magnitude::digits(tokens));
            let _ = writeln!(out, "  bound   {kept} tokens kept of {tokens}: {}", magnitude::bytes(bytes));
        }
        most = most.saturating_add(bytes);
        if kept > 0 && !is_state {
            per_token = per_token.saturating_add(all);
        }
        out.push('\n');
    }
    let _ = writeln!(
        out,
        "total: {} bytes a token while nothing is dropped; at most {} for a context of {} tokens, and the tokens of a step",
        magnitude::digits(per_token),
        magnitude::bytes(most),
        magnitude::digits(tokens)
    );
    out
}

/// Facts for programs.
pub fn cache_json(facts: &[CacheFact], tokens: u64) -> Value {
    let reach = |m: &MaskFact| {
        json!({
            "mask": m.mask, "oldest_key_age": m.reach.window.map(|w| w.saturating_sub(1)), "sees_later_keys": m.reach.future,
            "parts": m.parts.iter().map(|(part, ages)| json!({"part": part, "ages": ages})).collect::<Vec<_>>(),
        })
    };
    let list: Vec<Value> = facts
        .iter()
        .map(|f| {
            let window = if let Keep::Ring(n) = f.keep { Some(n) } else { None };
            json!({
                "layers": f.layers, "name": f.name, "paths": f.paths, "type": f.ty, "kind": f.keep.name(), "latent": f.latent,
                "window_tokens": window, "because": f.because(), "masks": f.masks.iter().map(reach).collect::<Vec<_>>(),
                "bytes_per_token_and_layer": f.token_bytes, "bytes_per_token": f.all_bytes(),
                "bound_tokens": f.keep.bound(tokens), "bound_bytes": f.all_bytes().saturating_mul(f.keep.bound(tokens)),
            })
        })
        .collect();
    let most: u64 =
        facts.iter().map(|f| f.all_bytes().saturating_mul(f.keep.bound(tokens))).fold(0, u64::saturating_add);
    json!({"context_tokens": tokens, "caches": list, "bound_bytes": most})
}

#[cfg(test)]
mod tests {
    use super::in_short;

    #[test]
    fn layers_are_said_in_short() {
        assert_eq!(in_short(&["layers.0", "layers.1", "layers.2"]), "layers.0-2");
        assert_eq!(in_short(&["layers.0", "layers.2", "layers.4", "layers.6"]), "layers.0, 2, .. 6");
        assert_eq!(in_short(&["a.b.0", "a.b.1", "a.b.5"]), "a.b.0-1, 5");
        assert_eq!(in_short(&["a.b.7"]), "a.b.7");
        assert_eq!(in_short(&[""]), "");
    }
}
