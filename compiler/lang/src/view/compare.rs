//! What differs between two models, or between two stages of one: aligned by instance path, layers with equal differences told once.
//!
//! Given two scenes, [`compare`] returns lines that say what is only in the first (`-`), only in the second (`+`), and what changed (`~`), before
//! and after; and marks the parts of both scenes, so that they can be drawn [`side by side`](super::side_by_side()). Scenes that are compared layer by
//! layer are made [unfolded](super::Subject::folded).

use std::collections::BTreeMap;

use super::caches::in_short;
use super::layout::measure;
use super::magnitude;
use super::scene::{Kind, Mark, Node, Scene};

/// A line of a comparison.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiffLine {
    /// What it says.
    pub mark: Mark,
    /// How deep in modules.
    pub depth: usize,
    /// The module or node, and what of it.
    pub text: String,
}

/// Compares two scenes and marks their parts; the lines are empty when nothing differs.
pub fn compare(a: &mut Scene, b: &mut Scene) -> Vec<DiffLine> {
    let mut pair = Pair { a, b };
    let mut lines = pair.facets(Part::Frame(0), Part::Frame(0), 0);
    lines.extend(pair.inside(0, 0, 0));
    lines
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    Frame(usize),
    Node(usize),
}

struct Pair<'s> {
    a: &'s mut Scene,
    b: &'s mut Scene,
}

/// The parts that lie right in a frame, in the order of their nodes, with names that tell them apart.
fn children(scene: &Scene, frame: usize) -> Vec<(String, Part)> {
    let mut parts: Vec<(usize, Part)> = Vec::new();
    for (i, node) in scene.nodes.iter().enumerate() {
        let below = scene.around(node.frame).take_while(|f| *f != frame).last();
        if node.frame == frame {
            parts.push((i, Part::Node(i)));
        } else if let Some(child) = below.filter(|c| scene.frames[*c].parent == Some(frame))
            && parts.iter().all(|(_, p)| *p != Part::Frame(child))
        {
            parts.push((i, Part::Frame(child)));
        }
    }
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    let mut named = Vec::new();
    for (_, part) in parts {
        let name = name(scene, part);
        let n = seen.entry(name.clone()).or_default();
        *n += 1;
        named.push((if *n == 1 { name } else { format!("{name} ({n})") }, part));
    }
    named
}

fn name(scene: &Scene, part: Part) -> String {
    match part {
        Part::Frame(f) => scene.frames[f].name.clone(),
        Part::Node(n) => scene.nodes[n].title.clone(),
    }
}

/// What a part is, by name: what is compared when both sides have it.
fn facets(scene: &Scene, part: Part) -> Vec<(String, String)> {
    let mut list: Vec<(String, String)> = Vec::new();
    let mut add = |key: &str, value: String| list.push((key.to_owned(), value));
    match part {
        Part::Frame(f) => {
            let frame = &scene.frames[f];
            for (key, value) in options(&frame.module) {
                add(&key, value);
            }
            add("parameters", magnitude::digits(frame.parameters));
            if let Some(repeat) = &frame.repeat {
                add("layers", repeat.times.to_string());
                if repeat.instances < repeat.times {
                    add("layers with weights", repeat.instances.to_string());
                }
            }
        }
        Part::Node(n) => {
            let node = &scene.nodes[n];
            if !matches!(node.kind, Kind::Input | Kind::Output) {
                add("is", node.kind.name().to_owned());
                for (i, line) in node.lines.iter().enumerate() {
                    add(&format!("line {i}"), line.replace('→', "to"));
                }
            }
            for weight in &node.weights {
                add(weight.path.rsplit('.').next().unwrap_or_default(), weight.ty.clone());
            }
            add("reads", reads(scene, n).join(", "));
            add("gives", node.results.join(", "));
            for (key, value) in node.facts.iter().filter(|(k, _)| ["scale", "eps"].contains(&k.as_str())) {
                add(key, value.clone());
            }
            let module = node.facts.iter().find(|(k, _)| k == "module");
            for (key, value) in module.into_iter().flat_map(|(_, module)| options(module)) {
                add(&key, value);
            }
        }
    }
    list
}

/// The definition and the options of `linear(size: 4096, with_bias: false)`.
fn options(module: &str) -> Vec<(String, String)> {
    let Some((name, rest)) = module.split_once('(') else { return Vec::new() };
    let rest = rest.strip_suffix(')').unwrap_or(rest);
    let pairs = separated(rest).into_iter().filter_map(|pair| pair.split_once(": "));
    let option = |(k, v): (&str, &str)| (format!("option {k}"), v.to_owned());
    std::iter::once(("module".to_owned(), name.to_owned())).chain(pairs.map(option)).collect()
}

/// What stands between the commas that are in no brackets and no quotes.
fn separated(text: &str) -> Vec<&str> {
    let (mut depth, mut quoted, mut start, mut parts) = (0_i32, false, 0, Vec::new());
    for (i, c) in text.char_indices() {
        match c {
            '\'' => quoted = !quoted,
            '(' | '[' | '{' if !quoted => depth += 1,
            ')' | ']' | '}' if !quoted => depth -= 1,
            ',' if !quoted && depth == 0 => {
                parts.push(text[start..i].trim_start());
                start = i + 1;
            }
            _ => {}
        }
    }
    parts.push(text[start..].trim_start());
    parts
}

/// What a node reads, by the names of what makes it.
fn reads(scene: &Scene, node: usize) -> Vec<String> {
    let own = scene.nodes[node].frame;
    let layer = scene.around(own).find(|f| is_number(&scene.frames[*f].name));
    let wires = scene.wires.iter().filter(|w| w.to.0 == node);
    wires
        .map(|w| {
            let from = w.from.0;
            if layer.is_some_and(|layer| !scene.is_in(scene.nodes[from].frame, layer)) {
                // So that all layers say the same of what comes in.
                return "the layer's input".to_owned();
            }
            // Of another module, its name: what is inside of it is its own business.
            let outer = scene.around(scene.nodes[from].frame).take_while(|f| !scene.is_in(own, *f)).last();
            outer.map_or_else(|| scene.nodes[from].title.clone(), |frame| scene.frames[frame].name.clone())
        })
        .collect()
}

fn is_number(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| b.is_ascii_digit())
}

impl Pair<'_> {
    /// What differs inside two frames.
    fn inside(&mut self, a: usize, b: usize, depth: usize) -> Vec<DiffLine> {
        let (left, right) = (children(self.a, a), children(self.b, b));
        let layers = |list: &[(String, Part)]| {
            list.len() > 1 && list.iter().all(|(name, part)| is_number(name) && matches!(part, Part::Frame(_)))
        };
        if layers(&left) && layers(&right) {
            return self.layers(&left, &right, depth);
        }
        let mut lines = Vec::new();
        let matched = align(&left, &right);
        let moved = self.moves(&left, &right, &matched);
        let (mut i, mut j) = (0, 0);
        for (x, y) in matched.into_iter().chain([(left.len(), right.len())]) {
            // Several parts that one kernel now does.
            while i < x {
                let name = left[i].0.clone();
                if let Some((_, to)) = moved.iter().find(|(from, _)| *from == i) {
                    lines.extend(self.moved(&left[i], &right[*to], depth));
                    i += 1;
                    continue;
                }
                let merged =
                    right[j..y.min(right.len())].iter().position(|(r, _)| r.split(" + ").any(|part| part == name));
                match merged {
                    Some(at) => {
                        let kernel = right[j + at].1;
                        self.mark(true, left[i].1, Mark::Changed, &format!("now part of {}", right[j + at].0));
                        self.mark(false, kernel, Mark::Changed, "several modules in one kernel");
                        lines.push(line(Mark::Changed, depth, format!("{name} -> part of {}", right[j + at].0)));
                    }
                    None => self.only(true, left[i].1, depth, &mut lines),
                }
                i += 1;
            }
            while j < y {
                let parts: Vec<&str> = right[j].0.split(" + ").collect();
                let came = moved.iter().any(|(_, to)| *to == j);
                if !(came || parts.len() > 1 && parts.iter().any(|p| left.iter().any(|(l, _)| l == p))) {
                    self.only(false, right[j].1, depth, &mut lines);
                }
                j += 1;
            }
            if x < left.len() && y < right.len() {
                lines.extend(self.both(left[x].1, right[y].1, depth));
            }
            (i, j) = (x + 1, y + 1);
        }
        lines
    }

    /// Parts that stand elsewhere on the other side: those of one name, then weights of one shape that are used in the same way.
    fn moves(
        &self,
        left: &[(String, Part)],
        right: &[(String, Part)],
        matched: &[(usize, usize)],
    ) -> Vec<(usize, usize)> {
        let mut from: Vec<usize> = (0..left.len()).filter(|i| matched.iter().all(|m| m.0 != *i)).collect();
        let mut to: Vec<usize> = (0..right.len()).filter(|j| matched.iter().all(|m| m.1 != *j)).collect();
        let mut moves = Vec::new();
        let same_name = |i: usize, j: usize| left[i].0 == right[j].0;
        let same_use = |i: usize, j: usize| match (left[i].1, right[j].1) {
            (Part::Node(a), Part::Node(b)) => {
                let (a, b) = (&self.a.nodes[a], &self.b.nodes[b]);
                let types = |n: &Node| n.weights.iter().map(|w| w.ty.clone()).collect::<Vec<_>>();
                !a.weights.is_empty()
                    && a.kind == Kind::Rows
                    && (a.kind, &a.lines) == (b.kind, &b.lines)
                    && types(a) == types(b)
            }
            _ => false,
        };
        for same in [&same_name as &dyn Fn(usize, usize) -> bool, &same_use] {
            from.retain(|i| match to.iter().position(|j| same(*i, *j)) {
                Some(at) => {
                    moves.push((*i, to.remove(at)));
                    false
                }
                None => true,
            });
        }
        moves
    }

    /// What there is to say of a part that stands elsewhere.
    fn moved(&mut self, left: &(String, Part), right: &(String, Part), depth: usize) -> Vec<DiffLine> {
        let mut lines = self.both(left.1, right.1, depth);
        let reads = format!("{}: reads ", name(self.b, right.1));
        let names = if left.0 == right.0 { left.0.clone() } else { format!("{} -> {}", left.0, right.0) };
        match lines.iter_mut().find(|l| l.text.starts_with(&reads)) {
            Some(line) => line.text = format!("{names}: moved, reads {}", &line.text[reads.len()..]),
            None => lines.insert(0, line(Mark::Changed, depth, format!("{names}: moved"))),
        }
        self.mark(true, left.1, Mark::Changed, "moved");
        self.mark(false, right.1, Mark::Changed, "moved");
        lines
    }

    /// Lists of layers: each with that of the same number, equal differences told once.
    fn layers(&mut self, left: &[(String, Part)], right: &[(String, Part)], depth: usize) -> Vec<DiffLine> {
        let n = left.len().min(right.len());
        let mut groups: Vec<(Vec<String>, Vec<DiffLine>)> = Vec::new();
        for (a, b) in left.iter().zip(right) {
            let lines = self.both(a.1, b.1, depth + 1);
            // The line of the layer itself would say its number.
            let lines: Vec<DiffLine> =
                lines.into_iter().filter(|l| l.depth > depth + 1 || l.mark != Mark::Same).collect();
            match groups.iter_mut().find(|g| g.1 == lines) {
                Some(group) => group.0.push(a.0.clone()),
                None => groups.push((vec![a.0.clone()], lines)),
            }
        }
        let mut out = Vec::new();
        let differ = groups.iter().any(|g| !g.1.is_empty()) || left.len() != right.len();
        for (numbers, lines) in groups {
            let which = short(&numbers);
            if lines.is_empty() {
                if differ {
                    out.push(line(Mark::Same, depth, format!("{which}: the same")));
                }
                continue;
            }
            let each = if numbers.len() > 1 { format!(" ({} layers, each)", numbers.len()) } else { String::new() };
            out.push(line(Mark::Same, depth, format!("{which}{each}")));
            out.extend(lines);
        }
        for (first, rest, mark) in [(true, &left[n..], Mark::Removed), (false, &right[n..], Mark::Added)] {
            if rest.is_empty() {
                continue;
            }
            for (_, part) in rest {
                self.mark(first, *part, mark, "");
            }
            let numbers: Vec<String> = rest.iter().map(|(name, _)| name.clone()).collect();
            let layers = if numbers.len() == 1 { "1 layer".to_owned() } else { format!("{} layers", numbers.len()) };
            out.push(line(mark, depth, format!("{} ({layers})", short(&numbers))));
        }
        out
    }

    /// Two parts of one name.
    fn both(&mut self, a: Part, b: Part, depth: usize) -> Vec<DiffLine> {
        let own = name(self.b, b);
        match (a, b) {
            (Part::Frame(f), Part::Frame(g)) => {
                let about = self.facets(a, b, depth);
                let inner = self.inside(f, g, depth + 1);
                if about.is_empty() && inner.is_empty() {
                    return Vec::new();
                }
                let mut lines = if is_number(&own) { Vec::new() } else { vec![line(Mark::Same, depth, own)] };
                lines.extend(about.into_iter().map(|l| DiffLine { depth: depth + 1, ..l }));
                lines.extend(inner);
                lines
            }
            (Part::Node(_), Part::Node(_)) => self.facets(a, b, depth),
            _ => {
                let words = format!("{own}: {} -> {}", what(self.a, a), what(self.b, b));
                self.mark(true, a, Mark::Changed, &words);
                self.mark(false, b, Mark::Changed, &words);
                vec![line(Mark::Changed, depth, words)]
            }
        }
    }

    /// What of two parts of one name is not the same.
    fn facets(&mut self, a: Part, b: Part, depth: usize) -> Vec<DiffLine> {
        let (before, after) = (facets(self.a, a), facets(self.b, b));
        let value = |list: &[(String, String)], key: &str| {
            list.iter().find(|(k, _)| k == key).map(|(_, v)| v.clone()).unwrap_or_default()
        };
        let mut keys: Vec<&String> = before.iter().map(|f| &f.0).collect();
        keys.extend(after.iter().map(|f| &f.0).filter(|k| before.iter().all(|f| f.0 != **k)));
        let mut changes = Vec::new();
        for key in keys {
            let (old, new) = (value(&before, key), value(&after, key));
            if old != new {
                let shown = |v: &str| if v.is_empty() { "nothing".to_owned() } else { measure::shorten(v, 160) };
                let key = if key.starts_with("line ") { String::new() } else { format!("{key} ") };
                changes.push(format!("{key}{} -> {}", shown(&old), shown(&new)));
            }
        }
        if changes.is_empty() {
            return Vec::new();
        }
        let words = changes.join("\n");
        self.mark(true, a, Mark::Changed, &words);
        self.mark(false, b, Mark::Changed, &words);
        let own = name(self.b, b);
        let prefix = |change: String| if matches!(b, Part::Frame(_)) { change } else { format!("{own}: {change}") };
        changes.into_iter().map(|change| line(Mark::Changed, depth, prefix(change))).collect()
    }

    /// A part that one side alone has.
    fn only(&mut self, first: bool, part: Part, depth: usize, lines: &mut Vec<DiffLine>) {
        let mark = if first { Mark::Removed } else { Mark::Added };
        self.mark(first, part, mark, "");
        let scene = if first { &*self.a } else { &*self.b };
        lines.push(line(mark, depth, format!("{}: {}", name(scene, part), what(scene, part))));
    }

    /// Marks a part, and what lies in it when it is there on one side alone.
    fn mark(&mut self, first: bool, part: Part, mark: Mark, words: &str) {
        let scene = if first { &mut *self.a } else { &mut *self.b };
        let whole = matches!(mark, Mark::Added | Mark::Removed);
        match part {
            Part::Node(n) => (scene.nodes[n].mark, scene.nodes[n].change) = (mark, words.to_owned()),
            Part::Frame(f) => {
                (scene.frames[f].mark, scene.frames[f].change) = (mark, words.to_owned());
                let inner: Vec<usize> = (0..scene.frames.len()).filter(|i| whole && scene.is_in(*i, f)).collect();
                for i in inner {
                    scene.frames[i].mark = mark;
                    for node in scene.nodes.iter_mut().filter(|n| n.frame == i) {
                        node.mark = mark;
                    }
                }
            }
        }
    }
}

/// A part in a few words.
fn what(scene: &Scene, part: Part) -> String {
    match part {
        Part::Frame(f) => {
            let frame = &scene.frames[f];
            let nodes: Vec<&Node> = scene.nodes.iter().filter(|n| scene.is_in(n.frame, f)).collect();
            let inside = if nodes.len() == 1 { "1 node".to_owned() } else { format!("{} nodes", nodes.len()) };
            let module = frame.module.split('(').next().filter(|m| !m.is_empty());
            let list: Vec<&str> = nodes.iter().take(8).map(|n| n.title.as_str()).collect();
            let more = if nodes.len() > 8 { ", .." } else { "" };
            let parameters =
                if frame.parameters > 0 { format!(", {}", measure::count(frame.parameters)) } else { String::new() };
            match module {
                Some(module) => format!("{module} ({inside}{parameters})"),
                None => format!("{inside} ({}{more}){parameters}", list.join(", ")),
            }
        }
        Part::Node(n) => {
            let node = &scene.nodes[n];
            let mut words = vec![node.lines.join("; ").replace('→', "to")];
            words.extend(
                node.weights.iter().map(|w| format!("{} {}", w.path.rsplit('.').next().unwrap_or_default(), w.ty)),
            );
            let reads = reads(scene, n);
            if !reads.is_empty() {
                words.push(format!("of {}", reads.join(", ")));
            }
            words.retain(|w| !w.is_empty());
            if words.is_empty() { node.kind.name().to_owned() } else { measure::shorten(&words.join("; "), 200) }
        }
    }
}

fn line(mark: Mark, depth: usize, text: String) -> DiffLine {
    DiffLine { mark, depth, text }
}

fn short(numbers: &[String]) -> String {
    let paths: Vec<String> = numbers.iter().map(|n| format!("x.{n}")).collect();
    let paths: Vec<&str> = paths.iter().map(String::as_str).collect();
    let short = in_short(&paths);
    format!("layers {}", short.trim_start_matches("x."))
}

/// A longest common subsequence of names, as pairs of places.
fn align(a: &[(String, Part)], b: &[(String, Part)]) -> Vec<(usize, usize)> {
    let mut length = vec![vec![0usize; b.len() + 1]; a.len() + 1];
    for i in (0..a.len()).rev() {
        for j in (0..b.len()).rev() {
            length[i][j] =
                if a[i].0 == b[j].0 { length[i + 1][j + 1] + 1 } else { length[i + 1][j].max(length[i][j + 1]) };
        }
    }
    let (mut i, mut j, mut pairs) = (0, 0, Vec::new());
    while i < a.len() && j < b.len() {
        if a[i].0 == b[j].0 {
            pairs.push((i, j));
            (i, j) = (i + 1, j + 1);
        } else if length[i + 1][j] >= length[i][j + 1] {
            i += 1;
        } else {
            j += 1;
        }
    }
    pairs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_with_commas_and_brackets() {
        let read = options(
            "gqa(heads: 32, rotate: rotary({a: 1, b: 'x, (y'}), mask: k_pos <= q_pos and q_pos - k_pos < 4096, g: f(1))",
        );
        let read: Vec<(&str, &str)> = read.iter().map(|(k, v)| (&**k, &**v)).collect();
        let wanted = [
            ("module", "gqa"),
            ("option heads", "32"),
            ("option rotate", "rotary({a: 1, b: 'x, (y'})"),
            ("option mask", "k_pos <= q_pos and q_pos - k_pos < 4096"),
            ("option g", "f(1)"),
        ];
        assert_eq!(read, wanted);
    }
}
