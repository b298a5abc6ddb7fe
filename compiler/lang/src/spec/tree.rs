//! YAML as a tree with positions.
//!
//! Limits are checked while reading, before anything large is held: bytes, depth, and nodes after aliases are expanded.

use std::collections::HashMap;
use std::sync::Arc;

use saphyr_parser::{Event, Parser, ScalarStyle};

use crate::diagnostic::{Code, Diagnostic, Span};

/// Longest text read, in bytes.
pub(super) const MAX_BYTES: usize = 1 << 20;
const MAX_DEPTH: usize = 32;
const MAX_NODES: usize = 100_000;

/// A value of a card's data.
#[derive(Clone, Debug, PartialEq)]
pub enum Datum {
    /// `null`, or nothing.
    Null,
    /// `true`, `false`.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// Any other number.
    Float(f64),
    /// Text.
    Str(Arc<str>),
    /// A sequence.
    List(Vec<Datum>),
    /// A mapping in the order of its keys' places.
    Map(Vec<(Arc<str>, Datum)>),
}

impl Datum {
    /// The value under a key of a mapping, unless it is absent or null.
    pub fn get(&self, key: &str) -> Option<&Datum> {
        match self {
            Datum::Map(entries) => {
                entries.iter().find(|(k, _)| &**k == key).map(|(_, v)| v).filter(|v| **v != Datum::Null)
            }
            _ => None,
        }
    }

    /// What kind of value it is, for messages.
    pub fn kind(&self) -> &'static str {
        match self {
            Datum::Null => "null",
            Datum::Bool(_) => "true or false",
            Datum::Int(_) => "a whole number",
            Datum::Float(_) => "a number",
            Datum::Str(_) => "a string",
            Datum::List(_) => "a list",
            Datum::Map(_) => "a mapping",
        }
    }
}

impl From<&serde_json::Value> for Datum {
    fn from(value: &serde_json::Value) -> Self {
        use serde_json::Value;
        match value {
            Value::Null => Datum::Null,
            Value::Bool(b) => Datum::Bool(*b),
            Value::Number(n) => n.as_i64().map_or_else(|| Datum::Float(n.as_f64().unwrap_or(f64::NAN)), Datum::Int),
            Value::String(s) => Datum::Str(s.as_str().into()),
            Value::Array(items) => Datum::List(items.iter().map(Datum::from).collect()),
            // How newer configs write a number that is not finite: there is no such number.
            Value::Object(entries) if entries.len() == 1 && entries.contains_key("__float__") => Datum::Null,
            Value::Object(entries) => Datum::Map(entries.iter().map(|(k, v)| (k.as_str().into(), v.into())).collect()),
        }
    }
}

impl std::fmt::Display for Datum {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Datum::Null => f.write_str("null"),
            Datum::Bool(b) => write!(f, "{b}"),
            Datum::Int(v) => write!(f, "{v}"),
            Datum::Float(v) => write!(f, "{v:?}"),
            Datum::Str(s) => f.write_str(s),
            Datum::List(items) => {
                f.write_str("[")?;
                for (i, item) in items.iter().enumerate() {
                    write!(f, "{}{item}", if i > 0 { ", " } else { "" })?;
                }
                f.write_str("]")
            }
            Datum::Map(entries) => {
                f.write_str("{")?;
                for (i, (key, value)) in entries.iter().enumerate() {
                    write!(f, "{}{key}: {value}", if i > 0 { ", " } else { "" })?;
                }
                f.write_str("}")
            }
        }
    }
}

/// A node of the tree.
#[derive(Clone, Debug)]
pub struct Node {
    /// Its value.
    pub kind: NodeKind,
    /// Its place.
    pub span: Span,
}

/// The kinds of node.
#[derive(Clone, Debug)]
pub enum NodeKind {
    /// Text; `plain` when it stands without quotes, so that it may mean a number.
    Scalar {
        /// The text, unquoted.
        text: Arc<str>,
        /// Without quotes.
        plain: bool,
        /// A `|` block.
        literal: bool,
    },
    /// A sequence.
    List(Vec<Node>),
    /// A mapping: keys with their places.
    Map(Vec<(Key, Node)>),
}

/// A key of a mapping.
#[derive(Clone, Debug)]
pub struct Key {
    /// Its text.
    pub text: Arc<str>,
    /// Its place.
    pub span: Span,
}

impl Node {
    /// The value, without positions.
    pub fn datum(&self) -> Datum {
        match &self.kind {
            NodeKind::Scalar { text, plain, .. } if *plain => plain_scalar(text),
            NodeKind::Scalar { text, .. } => Datum::Str(text.clone()),
            NodeKind::List(items) => Datum::List(items.iter().map(Node::datum).collect()),
            NodeKind::Map(entries) => Datum::Map(entries.iter().map(|(k, v)| (k.text.clone(), v.datum())).collect()),
        }
    }
}

/// Whether a text is a whole number that is out of range.
pub(super) fn too_large(text: &str) -> bool {
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) && text.parse::<i64>().is_err()
}

/// What a scalar without quotes means, in YAML 1.2's core schema.
fn plain_scalar(text: &str) -> Datum {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Datum::Null,
        "true" | "True" | "TRUE" => return Datum::Bool(true),
        "false" | "False" | "FALSE" => return Datum::Bool(false),
        _ => {}
    }
    if let Ok(v) = text.parse::<i64>() {
        return Datum::Int(v);
    }
    let digits = text.starts_with(|c: char| c.is_ascii_digit() || matches!(c, '-' | '+' | '.'));
    match text.parse::<f64>() {
        Ok(v) if digits && v.is_finite() => Datum::Float(v),
        _ => Datum::Str(text.into()),
    }
}

/// Reads one YAML document; `None` when something stops it, with diagnostics. Duplicate keys are diagnostics too.
pub fn parse_yaml(text: &str, source: u32, diagnostics: &mut Vec<Diagnostic>) -> Option<Node> {
    if text.len() > MAX_BYTES {
        let span = Span { source, start: 0, end: 0 };
        diagnostics.push(Diagnostic::new(
            Code::TooLarge,
            format!("{} bytes of text; at most {MAX_BYTES} are read", text.len()),
            span,
        ));
        return None;
    }
    let mut reader = Reader {
        parser: Parser::new_from_str(text),
        offsets: text.char_indices().map(|(i, _)| i as u32).chain([text.len() as u32]).collect(),
        text,
        source,
        anchors: HashMap::new(),
        nodes: 0,
        diagnostics,
    };
    match reader.document() {
        Ok(node) => node,
        Err(Stop(d)) => {
            diagnostics.push(*d);
            None
        }
    }
}

/// What the parser says of a text that is no YAML, and what is likely meant: the place is that of the cause where it is known.
fn not_yaml(text: &str, info: &str, span: Span) -> Diagnostic {
    let told = |span| Diagnostic::new(Code::YamlSyntax, format!("not YAML: {info}"), span);
    let place = |start: usize, len: usize| Span { start: start as u32, end: (start + len) as u32, ..span };
    let mut lines: Vec<(usize, &str)> = Vec::new();
    let mut start = 0;
    for line in text.split_inclusive('\n') {
        // The parser may notice one line too early that a tab stands in the next.
        if start > span.end as usize + 1 {
            break;
        }
        lines.push((start, line));
        start += line.len();
    }
    let tab = lines.iter().find_map(|(start, line)| {
        let blank = &line[..line.len() - line.trim_start().len()];
        Some(start + blank.find('\t').filter(|_| !line.trim().is_empty())?)
    });
    if let Some(tab) = tab {
        return told(place(tab, 1)).label("a tab").help("lines are indented with spaces, in the equations too");
    }
    // The equations before the mistake, if it is not before them.
    if let Some(at) = lines.iter().position(|(_, l)| l.starts_with("wiring:")) {
        let (start, line) = lines[at];
        if !line["wiring:".len()..].trim_start().starts_with(['|', '>', '"', '\'']) {
            return told(place(start, line.trim_end().len()))
                .label("no block begins here")
                .help("the equations are one block of text: `wiring: |`, and every line of them indented");
        }
        let is_key = |l: &str| l.find(':').is_some_and(|i| l[..i].chars().all(|c| c.is_ascii_lowercase() || c == '_'));
        let out = lines[at + 1..].iter().find(|(_, l)| !l.starts_with([' ', '\n', '\r', '#']));
        if let Some((start, line)) = out.filter(|(_, l)| !is_key(l)) {
            return told(place(*start, line.trim_end().len()))
                .label("the equations end before this line")
                .help("every line of `wiring: |` is indented further than `wiring`");
        }
    }
    let line = lines.last().map_or("", |(_, l)| l);
    let in_braces = line.split_once('{').is_some_and(|(_, rest)| rest.contains('['));
    told(span).maybe_help((info.contains("flow") && in_braces).then(|| {
        "in `{ .. }` a text with brackets or commas stands in quotes, as in `a: \"b[out, in]\"`; on a line of its own it needs none".to_string()
    }))
}

struct Stop(Box<Diagnostic>);

struct Reader<'a> {
    parser: Parser<'a, saphyr_parser::StrInput<'a>>,
    /// Bytes of each character: the parser counts characters.
    offsets: Vec<u32>,
    text: &'a str,
    source: u32,
    anchors: HashMap<usize, (Node, usize)>,
    nodes: usize,
    diagnostics: &'a mut Vec<Diagnostic>,
}

impl<'a> Reader<'a> {
    fn next(&mut self) -> Result<(Event<'a>, Span), Stop> {
        match self.parser.next_event() {
            Some(Ok((event, span))) => {
                let span = self.span(span.start.index(), span.end.index());
                Ok((event, span))
            }
            Some(Err(error)) => {
                let at = error.marker().index();
                let span = self.span(at, at + 1);
                Err(Stop(Box::new(not_yaml(self.text, error.info(), span))))
            }
            None => Ok((Event::StreamEnd, self.span(0, 0))),
        }
    }

    fn span(&self, start: usize, end: usize) -> Span {
        let byte = |i: usize| self.offsets.get(i).copied().unwrap_or(self.text.len() as u32);
        Span { source: self.source, start: byte(start), end: byte(end.max(start)) }
    }

    fn document(&mut self) -> Result<Option<Node>, Stop> {
        loop {
            let (event, span) = self.next()?;
            match event {
                Event::StreamStart | Event::DocumentStart(_) | Event::Nothing => {}
                Event::StreamEnd | Event::DocumentEnd => {
                    return Err(Stop(Box::new(Diagnostic::new(Code::YamlSyntax, "the text is empty", span))));
                }
                event => return self.node(event, span, 0).map(Some),
            }
        }
    }

    fn node(&mut self, event: Event<'a>, span: Span, depth: usize) -> Result<Node, Stop> {
        self.count(1, span)?;
        if depth > MAX_DEPTH {
            return Err(Stop(Box::new(Diagnostic::new(
                Code::TooLarge,
                format!("nested deeper than {MAX_DEPTH} levels"),
                span,
            ))));
        }
        let before = self.nodes;
        let (node, anchor) = match event {
            Event::Scalar(text, style, anchor, _) => {
                let kind = NodeKind::Scalar {
                    text: text.as_ref().into(),
                    plain: style == ScalarStyle::Plain,
                    literal: style == ScalarStyle::Literal,
                };
                if style == ScalarStyle::Plain && too_large(&text) {
                    let message = format!("the whole number {text} is too large: at most {}", i64::MAX);
                    self.diagnostics.push(Diagnostic::new(Code::TooLarge, message, span).label("too large"));
                }
                (Node { kind, span }, anchor)
            }
            Event::SequenceStart(anchor, _) => {
                let mut items = Vec::new();
                loop {
                    let (event, at) = self.next()?;
                    if matches!(event, Event::SequenceEnd) {
                        break (Node { kind: NodeKind::List(items), span: span.to(at) }, anchor);
                    }
                    items.push(self.node(event, at, depth + 1)?);
                }
            }
            Event::MappingStart(anchor, _) => {
                let (entries, span) = self.mapping(span, depth)?;
                (Node { kind: NodeKind::Map(entries), span }, anchor)
            }
            Event::Alias(anchor) => {
                let Some((node, size)) = self.anchors.get(&anchor).cloned() else {
                    return Err(Stop(Box::new(Diagnostic::new(
                        Code::YamlSyntax,
                        "an alias of something that is not complete",
                        span,
                    ))));
                };
                self.count(size, span)?;
                (node, 0)
            }
            _ => return Err(Stop(Box::new(Diagnostic::new(Code::YamlSyntax, "the text ends too early", span)))),
        };
        if anchor > 0 {
            self.anchors.insert(anchor, (node.clone(), self.nodes - before + 1));
        }
        Ok(node)
    }

    fn mapping(&mut self, start: Span, depth: usize) -> Result<(Vec<(Key, Node)>, Span), Stop> {
        let mut entries: Vec<(Key, Node)> = Vec::new();
        loop {
            let (event, at) = self.next()?;
            let text: Arc<str> = match event {
                Event::MappingEnd => return Ok((entries, start.to(at))),
                Event::Scalar(text, ..) => text.as_ref().into(),
                _ => return Err(Stop(Box::new(Diagnostic::new(Code::WrongKind, "a key must be text", at)))),
            };
            let (event, value_at) = self.next()?;
            let value = self.node(event, value_at, depth + 1)?;
            if let Some((first, _)) = entries.iter().find(|(k, _)| k.text == text) {
                let d = Diagnostic::new(Code::DuplicateKey, format!("the key `{text}` is given twice"), at)
                    .other(first.span, "first here");
                self.diagnostics.push(d);
                continue;
            }
            entries.push((Key { text, span: at }, value));
        }
    }

    fn count(&mut self, nodes: usize, span: Span) -> Result<(), Stop> {
        self.nodes += nodes;
        if self.nodes > MAX_NODES {
            return Err(Stop(Box::new(Diagnostic::new(
                Code::TooLarge,
                format!("more than {MAX_NODES} values, aliases expanded"),
                span,
            ))));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> (Option<Node>, Vec<Diagnostic>) {
        let mut diagnostics = Vec::new();
        (parse_yaml(text, 0, &mut diagnostics), diagnostics)
    }

    #[test]
    fn values_and_places() {
        let (node, _) = parse("é: 1\nb: [1.5e-3, true, 'x', 37B, null, .inf]\n");
        let NodeKind::Map(entries) = node.expect("it parses").kind else { panic!() };
        assert_eq!(entries[1].0.span, Span { source: 0, start: 6, end: 7 });
        let Datum::List(items) = entries[1].1.datum() else { panic!() };
        assert_eq!(items[0], Datum::Float(1.5e-3));
        assert_eq!(items[3], Datum::Str("37B".into()));
        assert_eq!(items[4], Datum::Null);
    }

    #[test]
    fn numbers_of_a_config_that_are_not_finite_are_none() {
        let value = serde_json::json!({"limit": [0.0, {"__float__": "Infinity"}], "a": {"__float__": "NaN", "b": 1}});
        let datum = Datum::from(&value);
        assert_eq!(datum.get("limit"), Some(&Datum::List(vec![Datum::Float(0.0), Datum::Null])));
        assert!(matches!(datum.get("a"), Some(Datum::Map(_))));
    }

    #[test]
    fn alias_bombs_are_refused() {
        let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_string();
        for i in 1..9 {
            let refs = vec![format!("*a{}", i - 1); 10].join(", ");
            text += &format!("a{i}: &a{i} [{refs}]\n");
        }
        let (node, diagnostics) = parse(&text);
        assert!(node.is_none());
        assert_eq!(diagnostics[0].code, Code::TooLarge);
    }

    /// The cause is shown where it stands, not where the parser noticed.
    #[test]
    fn likely_causes_are_told() {
        let told = |text: &str| {
            let d = parse(text).1.remove(0);
            let label = d
                .primary
                .map_or_else(Default::default, |p| (p.text, text[..p.span.start as usize].matches('\n').count() + 1));
            (label.0, d.help.unwrap_or_default(), label.1)
        };
        let tab = told("sizes:\n  a: 1\n\tb: 2\n");
        assert!(tab.0 == "a tab" && tab.1.contains("spaces") && tab.2 == 3, "{tab:?}");
        let tab = told("wiring: |\n  f(x) {\n\ty = x\n    return y\n  }\n");
        assert!(tab.0 == "a tab", "{tab:?}");
        let bare = told("a: 1\nwiring:\n  f(x) = {n: x}\n  model(ids: i64[tokens]) { return {y: 1} }\n");
        assert!(bare.1.contains("`wiring: |`") && bare.2 == 2, "{bare:?}");
        let out = told("wiring: |\n  a = 1\nb = 2\n  model(ids: i64[tokens]) { return {y: b} }\n");
        assert!(out.0.contains("end before this line") && out.2 == 3, "{out:?}");
        let flow = told("names:\n  hf: {a: b[out in], c: [d}\n");
        assert!(flow.1.contains("in quotes"), "{flow:?}");
    }

    #[test]
    fn bad_texts_are_diagnostics() {
        assert_eq!(parse("a: [1, 2").1[0].code, Code::YamlSyntax);
        assert_eq!(parse("").1[0].code, Code::YamlSyntax);
        assert_eq!(parse("a: 1\na: 2\n").1[0].code, Code::DuplicateKey);
        assert_eq!(parse(&"[".repeat(3000)).1.len(), 1);
    }
}
