//! The block diagram of a model, as surveys draw it: what a layer adds to the stream, once for all layers that are built alike.
//!
//! Given a survey, it returns a [`Scene`] that the drawings of this folder draw. Differences are marked where one model has a block that the
//! first has not, and where a block is of another kind; sizes alone are no difference, they stand in the table.

use super::attention::{Attention, number};
use super::body::Norm;
use super::facts::positions;
use super::feed::Feed;
use super::layer::{Branch, Layer, Stage, What};
use super::model::{By, Stack, Survey};
use super::streams::Streams;
use super::{mixer, spread};
use crate::view::caches::in_short;
use crate::view::digits;
use crate::view::scene::{Cost, Frame, Kind, Mark, Node, Repeat, Scene, Shape, Wire};

/// A block diagram, with what each block is compared by.
pub(super) struct Figure {
    pub(super) scene: Scene,
    /// By node: its place among the blocks of a model.
    keys: Vec<String>,
}

/// The diagrams of several models, marked against the first.
pub(super) fn figures(surveys: &[Survey]) -> Vec<Scene> {
    let mut all: Vec<Figure> = surveys.iter().map(figure).collect();
    if let [first, others @ ..] = &mut all[..] {
        let both = others.len() == 1;
        for other in others {
            mark(first, other, both);
        }
    }
    all.into_iter().map(|f| f.scene).collect()
}

fn figure(survey: &Survey) -> Figure {
    let root = Frame { name: survey.name.clone(), ..Frame::default() };
    let scene = Scene { title: survey.name.clone(), frames: vec![root], ..Scene::default() };
    let mut figure = Figure { scene, keys: Vec::new() };
    let mut memory = None;
    let count = survey.stacks.len();
    for (i, stack) in survey.stacks.iter().enumerate() {
        // Counted from the last, so that a decoder is compared with a decoder.
        let place = format!("stack {}", count - i);
        let mut stream = figure.entry(stack, &place);
        for (layers, which) in groups(stack) {
            stream = figure.layers(stack, &layers, which, stream, memory, &place);
        }
        if let Some(norm) = &stack.after {
            stream = figure.norm(0, norm, "norm", stream, &format!("{place}.final"));
        }
        if i + 1 == count
            && let Some(head) = survey.head.as_ref().filter(|h| h.product)
        {
            let mut lines = vec![format!("{} → {}", digits(stack.width), digits(head.width))];
            lines.extend(head.tied.then(|| "tied to the embedding".to_owned()));
            lines.extend(head.bias.then(|| "with bias".to_owned()));
            lines.extend(head.cap.map(|c| format!("held under {}", number(c))));
            let name = head.name.clone();
            let at = figure.node(0, Kind::Product, Shape::Card, ("Output head", &lines), "head");
            figure.wire(stream, at);
            let out = figure.node(0, Kind::Output, Shape::Pill, (&name, &[]), "output");
            figure.wire(Some(at), out);
        }
        memory = stream;
    }
    figure
}

/// Layers that are built alike, and which they are: runs one after another; where there are many runs, each kind once.
fn groups(stack: &Stack) -> Vec<(Vec<usize>, String)> {
    let built: Vec<String> = stack.layers.iter().map(|l| structure(l)).collect();
    let mut runs: Vec<Vec<usize>> = Vec::new();
    for i in 0..built.len() {
        match runs.last_mut() {
            Some(run) if built[run[0]] == built[i] => run.push(i),
            _ => runs.push(vec![i]),
        }
    }
    if runs.len() > 4 {
        let mut kinds: Vec<Vec<usize>> = Vec::new();
        for i in 0..built.len() {
            match kinds.iter_mut().find(|k| built[k[0]] == built[i]) {
                Some(kind) => kind.push(i),
                None => kinds.push(vec![i]),
            }
        }
        runs = kinds;
    }
    let name = |run: &Vec<usize>| {
        let paths: Vec<String> = run.iter().map(|i| format!("x.{i}")).collect();
        in_short(&paths.iter().map(String::as_str).collect::<Vec<_>>()).trim_start_matches("x.").to_owned()
    };
    let single = runs.len() == 1;
    runs.iter().map(|r| (r.clone(), if single { String::new() } else { name(r) })).collect()
}

/// What decides how a layer is drawn: the order of its blocks and where norms stand.
fn structure(layer: &Layer) -> String {
    let branch =
        |b: &Branch| format!("{}{}{}", u8::from(b.before.is_some()), b.what.word(), u8::from(b.after.is_some()));
    let stage = |s: &Stage| {
        let branches: Vec<String> = s.branches.iter().map(branch).collect();
        format!("{}{}{}", branches.join("|"), u8::from(s.residual), u8::from(s.after.is_some()))
    };
    let streams = layer.streams.as_ref().map_or(String::new(), Streams::text);
    format!("{streams} {}", layer.stages.iter().map(stage).collect::<Vec<_>>().join(" "))
}

type At = Option<usize>;

impl Figure {
    fn node(&mut self, frame: usize, kind: Kind, shape: Shape, (title, lines): (&str, &[String]), key: &str) -> usize {
        let n =
            self.keys.iter().filter(|k| *k == key || k.strip_prefix(key).is_some_and(|r| r.starts_with('#'))).count();
        self.keys.push(if n == 0 { key.to_owned() } else { format!("{key}#{n}") });
        self.scene.nodes.push(Node {
            frame,
            kind,
            shape,
            title: title.to_owned(),
            path: String::new(),
            lines: lines.to_vec(),
            reason: String::new(),
            weights: Vec::new(),
            facts: Vec::new(),
            equation: None,
            results: Vec::new(),
            result_bytes: 0,
            cost: Cost::default(),
            mark: Mark::Same,
            change: String::new(),
        });
        self.scene.nodes.len() - 1
    }

    fn wire(&mut self, from: At, to: usize) {
        let Some(from) = from else { return };
        let operand = self.scene.wires.iter().filter(|w| w.to.0 == to).count();
        let wire = Wire { from: (from, 0), to: (to, operand), label: String::new(), mark: Mark::Same };
        self.scene.wires.push(wire);
    }

    fn norm(&mut self, frame: usize, norm: &Norm, key: &str, from: At, place: &str) -> At {
        let text = norm.text();
        let (title, rest) = text.split_once(' ').map_or((text.as_str(), None), |(t, r)| (t, Some(r.to_owned())));
        let lines: Vec<String> = rest.into_iter().collect();
        let at = self.node(frame, Kind::Rows, Shape::Card, (title, &lines), &format!("{place}.{key}"));
        self.wire(from, at);
        Some(at)
    }

    /// What comes before the layers.
    fn entry(&mut self, stack: &Stack, place: &str) -> At {
        let entry = &stack.entry;
        let mut parts: Vec<usize> = Vec::new();
        for (rows, by) in &entry.tables {
            let (title, key) = match by {
                By::Input => ("Embedding", "embedding"),
                By::Position => ("Learned positions", "positions"),
            };
            let mut lines = vec![format!("{} × {}", digits(*rows), digits(stack.width))];
            if *by == By::Input && (entry.factor - 1.0).abs() > 1e-9 {
                lines.push(format!("times {}", number(entry.factor)));
            }
            parts.push(self.node(0, Kind::Lookup, Shape::Card, (title, &lines), &format!("{place}.{key}")));
        }
        if let Some((from, to)) = entry.projected {
            let lines = [format!("{} → {}", digits(from), digits(to))];
            parts.push(self.node(
                0,
                Kind::Product,
                Shape::Card,
                ("Projection", &lines),
                &format!("{place}.projection"),
            ));
        }
        if entry.sinusoids {
            let key = format!("{place}.positions");
            parts.push(self.node(0, Kind::Lookup, Shape::Card, ("Sinusoidal positions", &[]), &key));
        }
        let mut stream = match parts[..] {
            [] => None,
            [one] => Some(one),
            _ => {
                let sum = self.node(0, Kind::Rows, Shape::Sign, ("+", &[]), &format!("{place}.sum"));
                parts.into_iter().for_each(|p| self.wire(Some(p), sum));
                Some(sum)
            }
        };
        if let Some(norm) = &entry.norm {
            stream = self.norm(0, norm, "entry norm", stream, place);
        }
        stream
    }

    /// Layers that are built alike, as one box.
    fn layers(&mut self, stack: &Stack, which: &[usize], name: String, stream: At, memory: At, place: &str) -> At {
        let part = Stack { layers: which.iter().map(|i| stack.layers[*i].clone()).collect(), ..stack.clone() };
        let Some(first) = part.layers.first().cloned() else { return stream };
        let times = part.layers.len() as u64;
        let frame = self.scene.frames.len();
        let title = if stack.path.is_empty() { "layer".to_owned() } else { stack.path.clone() };
        self.scene.frames.push(Frame {
            parent: Some(0),
            name: if name.is_empty() { title } else { format!("{title} {name}") },
            path: stack.path.clone(),
            repeat: (times > 1).then_some(Repeat { times, instances: times, which: name }),
            ..Frame::default()
        });
        let mut stream = stream;
        if let Some(streams) = &first.streams {
            let title = format!("Prediction of {} streams from all", streams.count);
            let at = self.node(frame, Kind::Other, Shape::Card, (&title, &[]), &format!("{place}.prediction"));
            self.wire(stream, at);
            stream = Some(at);
        }
        for (s, stage) in first.stages.iter().enumerate() {
            let mut ends = Vec::new();
            for (b, branch) in stage.branches.iter().enumerate() {
                let key = format!("{place}.{}", branch.what.word());
                let mut at = stream;
                if let Some(norm) = &branch.before {
                    at = self.norm(frame, norm, "before", at, &key);
                }
                let (title, lines) = block(&part, s, b);
                let kind = match &branch.what {
                    What::Attention(_) => Kind::Attention,
                    What::Feed(_) | What::LowRank(_) => Kind::Product,
                    What::Mixer(_) | What::Other(_) => Kind::Other,
                };
                let own = self.node(frame, kind, Shape::Card, (&title, &lines), &key);
                self.wire(at, own);
                if matches!(&branch.what, What::Attention(a) if a.cross) {
                    self.wire(memory, own);
                }
                at = Some(own);
                if let Some(norm) = &branch.after {
                    at = self.norm(frame, norm, "after", at, &key);
                }
                ends.push(at);
            }
            let words: Vec<&str> = stage.branches.iter().map(|b| b.what.word()).collect();
            let place = format!("{place}.{}", words.join(" and "));
            if stage.residual {
                let sum = self.node(frame, Kind::Rows, Shape::Sign, ("+", &[]), &format!("{place}.sum"));
                ends.into_iter().for_each(|e| self.wire(e, sum));
                self.wire(stream, sum);
                stream = Some(sum);
            } else {
                stream = ends.into_iter().flatten().next_back().or(stream);
            }
            if let Some(norm) = &stage.after {
                stream = self.norm(frame, norm, "after sum", stream, &place);
            }
        }
        if let Some(streams) = &first.streams {
            let own = streams.own_input.map(|n| format!("and by a gated input of {} of its own", digits(n)));
            let lines: Vec<String> = ["by what changed in one".to_owned()].into_iter().chain(own).collect();
            let key = format!("{place}.correction");
            let at = self.node(frame, Kind::Other, Shape::Card, ("Correction of all streams", &lines), &key);
            self.wire(stream, at);
            stream = Some(at);
        }
        if first.stages.is_empty() {
            let other = self.node(frame, Kind::Other, Shape::Card, ("Not recognised", &[]), &format!("{place}.other"));
            self.wire(stream, other);
            stream = Some(other);
        }
        stream
    }
}

/// Title and lines of branch `b` of stage `s` of layers that are built alike.
fn block(part: &Stack, s: usize, b: usize) -> (String, Vec<String>) {
    let at = |l: &Layer| l.stages.get(s).and_then(|s| s.branches.get(b)).cloned();
    let attention = |f: &dyn Fn(&Attention) -> Option<String>| {
        spread::of(part, |l| match at(l)?.what {
            What::Attention(a) => f(&a),
            _ => None,
        })
    };
    let feed = |f: &dyn Fn(&Feed) -> Option<String>| {
        spread::of(part, |l| match at(l)?.what {
            What::Feed(feed) => f(&feed),
            _ => None,
        })
    };
    let branch = part.layers.first().and_then(|l| at(l));
    let (title, mut lines) = match branch.as_ref().map(|b| &b.what) {
        Some(What::Attention(first)) => {
            let kinds = attention(&|a| Some(a.kind().to_owned()));
            let name = match &kinds[..] {
                [one] => titled(one),
                _ => "Attention".to_owned(),
            };
            let name = if first.cross { name.replace(" attention", " cross-attention") } else { name };
            let mut lines: Vec<String> = if kinds.len() > 1 { kinds } else { Vec::new() };
            let count = part.layers.iter().filter_map(|l| match at(l)?.what {
                What::Attention(a) => Some(heads(&a).len()),
                _ => None,
            });
            for line in 0..count.max().unwrap_or(0) {
                lines.extend(attention(&|a| heads(a).get(line).cloned()));
            }
            if !first.cross {
                let own = spread::of(part, |l| match at(l)?.what {
                    What::Attention(a) => a.position_text(),
                    _ => None,
                });
                let own =
                    if own.is_empty() && positions(part) == "none" { vec!["no positions".to_owned()] } else { own };
                lines.extend(own);
            }
            lines.extend(attention(&|a| Some(format!("sees {}", a.sight.text()))));
            lines.extend(attention(&|a| a.qk_norm_text().map(|n| format!("norm of queries, keys: {n}"))));
            lines.extend(attention(&|a| Some(a.more().join(", ")).filter(|m| !m.is_empty())));
            lines.extend(attention(&|a| (a.bias || a.out_bias).then(|| "with biases".to_owned())));
            (name, lines)
        }
        Some(What::Feed(_)) => {
            let plain = feed(&|f| {
                let dense = f.dense.as_ref().filter(|_| f.experts.is_none())?;
                Some(format!("{} → {} → {}", digits(part.width), digits(dense.inner), digits(part.width)))
            });
            let mixture = feed(&|f| f.mixture().map(|m| format!("experts: {m}")));
            let activations = feed(&|f| f.each().map(|d| d.activation.clone()));
            let name = match (&activations[..], mixture.is_empty()) {
                ([one], true) => format!("{one} feed-forward"),
                (_, true) => "Feed-forward".to_owned(),
                ([one], false) => format!("Mixture of {one} experts"),
                (_, false) => "Mixture of experts".to_owned(),
            };
            let mut lines: Vec<String> = if activations.len() > 1 { activations } else { Vec::new() };
            lines.extend(plain.into_iter().chain(mixture));
            let bias = |f: &Feed| f.each().is_some_and(|d| d.bias).then(|| "with biases".to_owned());
            lines.extend(feed(&bias));
            lines.extend(feed(&|f| Some(f.more().join(", ")).filter(|m| !m.is_empty())));
            (name, lines)
        }
        Some(What::Mixer(first)) => {
            let states = spread::of(part, |l| match at(l)?.what {
                What::Mixer(m) => Some(m.states_text()),
                _ => None,
            });
            let mut lines = states;
            lines.extend(first.shifted.then(|| mixer::SHIFT.to_owned()));
            (capital(first.kind().split(" (").next().unwrap_or_default()), lines)
        }
        Some(What::LowRank(low)) => {
            ("Low-rank product".to_owned(), low.text(part.width).split(", ").map(str::to_owned).collect())
        }
        Some(What::Other(text)) => ("Not recognised".to_owned(), vec![text.clone()]),
        None => (String::new(), Vec::new()),
    };
    lines.extend(branch.as_ref().filter(|b| b.scaled).map(|_| "result scaled by learned weights".to_owned()));
    lines
        .extend(branch.filter(|b| (b.factor - 1.0).abs() > 1e-9).map(|b| format!("result times {}", number(b.factor))));
    (title, lines)
}

/// `Grouped-query attention` of `grouped-query (GQA)`.
fn titled(kind: &str) -> String {
    format!("{} attention", capital(kind.split(" (").next().unwrap_or(kind)))
}

fn capital(text: &str) -> String {
    let mut letters = text.chars();
    let first: String = letters.next().map(|c| c.to_uppercase().collect()).unwrap_or_default();
    format!("{first}{}", letters.as_str())
}

/// Heads with their widths, in lines.
fn heads(a: &Attention) -> Vec<String> {
    let of = match (a.latent, a.heads == a.kv_heads, a.key_width == a.value_width) {
        (None, false, _) => format!("{} heads of {}, {} of keys and values", a.heads, a.width_text(), a.kv_heads),
        (_, _, true) => format!("{} heads of {}", a.heads, a.key_width),
        (_, _, false) => format!("{} heads: {}", a.heads, a.width_text()),
    };
    let made = a.latent.map(|kept| format!("keys and values made of {} kept a token", digits(kept)));
    let queries = a.latent.and(a.compressed_queries).map(|n| format!("queries made of {}", digits(n)));
    std::iter::once(of).chain(made).chain(queries).collect()
}

/// Marks what in `other` is of another kind than in `first`; what it lacks too, where nothing else is compared.
fn mark(first: &mut Figure, other: &mut Figure, both: bool) {
    let kind = |node: &Node| {
        let text = format!("{} {}", node.title, node.lines.join(" "));
        text.chars().filter(|c| !c.is_ascii_digit() && !",. ()÷".contains(*c)).collect::<String>()
    };
    for (i, key) in other.keys.iter().enumerate() {
        let known = first.keys.iter().position(|k| k == key);
        let (mark, change) = match known.map(|k| &first.scene.nodes[k]) {
            None => (Mark::Added, format!("{} has no such block", first.scene.title)),
            Some(old) if kind(old) != kind(&other.scene.nodes[i]) => {
                (Mark::Changed, format!("{}: {}", first.scene.title, said(old)))
            }
            Some(_) => (Mark::Same, String::new()),
        };
        (other.scene.nodes[i].mark, other.scene.nodes[i].change) = (mark, change);
    }
    if both {
        let missing: Vec<usize> = (0..first.keys.len()).filter(|i| !other.keys.contains(&first.keys[*i])).collect();
        for i in missing {
            first.scene.nodes[i].mark = Mark::Removed;
            first.scene.nodes[i].change = format!("{} has no such block", other.scene.title);
        }
    }
}

fn said(node: &Node) -> String {
    std::iter::once(&node.title).chain(&node.lines).cloned().collect::<Vec<_>>().join(", ")
}
