//! What a GGUF file says of a model's sizes: the `gguf:` of a card, and a config.json made of a file's metadata by it.
//!
//! ```text
//! gguf: {hidden_size: embedding_length}     +     family.embedding_length = 4096     ──▶     {"hidden_size": 4096}
//! ```
//!
//! Given the metadata and the tensors' shapes, promises a config as the card's `sizes:` read it. Which keys there are for which family is in
//! the cards alone.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;

use super::tree::{Datum, Key, Node, NodeKind};
use super::{Library, Spec, library, load_card};
use crate::diagnostic::{Code, Diagnostic, Report, did_you_mean};

/// The metadata key of a file's family.
const ARCHITECTURE: &str = "general.architecture";

/// Gives the numbers of a tensor by its name.
type Numbers<'a> = dyn Fn(&str) -> Option<Vec<f64>> + 'a;

/// A GGUF file as descriptions see it.
pub struct Facts<'a> {
    /// What messages call it, a path.
    pub name: String,
    /// Values by key; of long lists only [`Facts::lengths`] tells.
    pub metadata: BTreeMap<String, Value>,
    /// Elements of each list.
    pub lengths: BTreeMap<String, u64>,
    /// Shapes of the tensors, the last dimension contiguous.
    pub tensors: BTreeMap<String, Vec<u64>>,
    /// The numbers of a tensor.
    pub numbers: Box<Numbers<'a>>,
}

impl std::fmt::Debug for Facts<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Facts").field("name", &self.name).field("metadata", &self.metadata).finish_non_exhaustive()
    }
}

impl Facts<'_> {
    /// The family that the file says it is of.
    pub fn architecture(&self) -> Option<&str> {
        self.metadata.get(ARCHITECTURE)?.as_str()
    }

    /// A key as a card has it: a leading `/` leaves out the family's name before it.
    fn key(&self, key: &str) -> String {
        match key.strip_prefix('/') {
            Some(whole) => whole.to_owned(),
            None => format!("{}.{key}", self.architecture().unwrap_or_default()),
        }
    }

    fn value(&self, key: &str) -> Option<&Value> {
        self.metadata.get(&self.key(key)).filter(|value| !value.is_null())
    }
}

/// Where a config's key has its value in a file.
#[derive(Clone, Debug, PartialEq)]
pub struct GgufPlace {
    what: What,
    /// Only where the file has this tensor.
    with: Option<Arc<str>>,
    /// Only where the file lacks this tensor.
    without: Option<Arc<str>>,
    /// Only where these keys have these values.
    when: Vec<(Arc<str>, Datum)>,
}

#[derive(Clone, Debug, PartialEq)]
enum What {
    /// The value of a key, another one for some.
    Key(Arc<str>, Vec<(Arc<str>, Datum)>),
    /// The number of a list's elements.
    Length(Arc<str>),
    /// The size of a tensor's first dimension.
    Rows(Arc<str>),
    /// The numbers of a tensor.
    Numbers(Arc<str>),
    /// This, whatever the metadata says.
    Literal(Datum),
}

/// Most numbers that are taken from a tensor: sizes are no weights.
const MOST_NUMBERS: u64 = 4096;

const PLACE_KEYS: &[&str] = &["key", "as", "length", "rows", "numbers", "value", "with", "without", "when"];

/// Reads the `gguf:` of a card.
pub(super) fn parse(node: &Node, diagnostics: &mut Vec<Diagnostic>) -> Vec<(Key, Vec<GgufPlace>)> {
    let NodeKind::Map(entries) = &node.kind else {
        let d = Diagnostic::new(Code::WrongKind, "`gguf` must be a mapping", node.span).label("expected a mapping");
        diagnostics.push(d);
        return Vec::new();
    };
    let all = |node: &Node, diagnostics: &mut Vec<Diagnostic>| match &node.kind {
        NodeKind::List(items) => items.iter().filter_map(|item| place(item, diagnostics)).collect(),
        _ => place(node, diagnostics).into_iter().collect(),
    };
    entries.iter().map(|(key, node)| (key.clone(), all(node, diagnostics))).collect()
}

fn place(node: &Node, diagnostics: &mut Vec<Diagnostic>) -> Option<GgufPlace> {
    let mut wrong = |message: String, label: &str, help: Option<String>| {
        let d = Diagnostic::new(Code::WrongKind, message, node.span).label(label).maybe_help(help);
        diagnostics.push(d);
        None
    };
    let entries = match (&node.kind, node.datum()) {
        (NodeKind::Map(entries), _) => entries,
        (_, Datum::Str(key)) => {
            return Some(GgufPlace { what: What::Key(key, Vec::new()), with: None, without: None, when: Vec::new() });
        }
        (_, other) => return wrong(format!("{} where a metadata key is needed", other.kind()), "expected a key", None),
    };
    if let Some((key, _)) = entries.iter().find(|(key, _)| !PLACE_KEYS.contains(&&*key.text)) {
        let help = did_you_mean(&key.text, PLACE_KEYS.iter().copied())
            .unwrap_or_else(|| format!("the keys are {}", PLACE_KEYS.join(", ")));
        return wrong(format!("a place in a GGUF file has no key `{}`", key.text), "unknown key", Some(help));
    }
    let find = |key: &str| entries.iter().find(|(k, _)| &*k.text == key).map(|(_, node)| node.datum());
    let text = |key: &str| match find(key) {
        Some(Datum::Str(text)) => Ok(Some(text)),
        None => Ok(None),
        Some(other) => Err(format!("`{key}` is {}, a name was expected", other.kind())),
    };
    let map = |key: &str| match find(key) {
        Some(Datum::Map(entries)) => Ok(entries),
        None => Ok(Vec::new()),
        Some(other) => Err(format!("`{key}` is {}, a mapping was expected", other.kind())),
    };
    let read = || -> Result<GgufPlace, String> {
        let as_other = map("as")?;
        let mut said: Vec<What> = Vec::new();
        said.extend(text("key")?.map(|key| What::Key(key, as_other.clone())));
        said.extend(text("length")?.map(What::Length));
        said.extend(text("rows")?.map(What::Rows));
        said.extend(text("numbers")?.map(What::Numbers));
        said.extend(find("value").map(What::Literal));
        let [what] = said.as_slice() else {
            return Err(format!("{} of `key`, `length`, `rows`, `numbers` and `value`, one was expected", said.len()));
        };
        if !as_other.is_empty() && !matches!(what, What::Key(..)) {
            return Err("`as` belongs to a `key`".to_owned());
        }
        Ok(GgufPlace { what: what.clone(), with: text("with")?, without: text("without")?, when: map("when")? })
    };
    match read() {
        Ok(place) => Some(place),
        Err(message) => wrong(message, "no place in a GGUF file", None),
    }
}

impl GgufPlace {
    /// The value that a file has there.
    fn value(&self, facts: &Facts<'_>) -> Option<Value> {
        let has = |name: &Arc<str>| facts.tensors.contains_key(&**name);
        let is = |(key, expected): &(Arc<str>, Datum)| facts.value(key).is_some_and(|found| same(found, expected));
        if !self.with.iter().all(has) || self.without.iter().any(has) || !self.when.iter().all(is) {
            return None;
        }
        match &self.what {
            What::Key(key, as_other) => {
                let found = facts.value(key)?;
                let written = found.as_str().map_or_else(|| found.to_string(), str::to_owned);
                let other = as_other.iter().find(|(from, _)| **from == *written);
                Some(other.map_or_else(|| found.clone(), |(_, to)| json(to)))
            }
            What::Length(key) => facts.lengths.get(&facts.key(key)).map(|n| (*n).into()),
            What::Rows(tensor) => facts.tensors.get(&**tensor)?.first().map(|n| (*n).into()),
            What::Numbers(tensor) => {
                let n: u64 = facts.tensors.get(&**tensor)?.iter().fold(1, |n, dim| n.saturating_mul(*dim));
                if n > MOST_NUMBERS { None } else { Some((facts.numbers)(tensor)?.into()) }
            }
            What::Literal(value) => Some(json(value)),
        }
    }
}

fn same(found: &Value, expected: &Datum) -> bool {
    match (&Datum::from(found), expected) {
        (Datum::Int(a), Datum::Float(b)) | (Datum::Float(b), Datum::Int(a)) => *a as f64 == *b,
        (found, expected) => found == expected,
    }
}

fn json(value: &Datum) -> Value {
    match value {
        Datum::Null => Value::Null,
        Datum::Bool(b) => (*b).into(),
        Datum::Int(n) => (*n).into(),
        Datum::Float(x) => (*x).into(),
        Datum::Str(text) => text.to_string().into(),
        Datum::List(items) => items.iter().map(json).collect(),
        Datum::Map(entries) => entries.iter().map(|(key, value)| (key.to_string(), json(value))).collect(),
    }
}

/// The config.json that a file stands for, as the card's `gguf:` says: keys with dots lead into mappings.
///
/// # Errors
/// The card does not say how it reads GGUF files.
pub fn gguf_config(spec: &Spec, facts: &Facts<'_>) -> Result<Value, Report> {
    let has_names = spec.names.iter().any(|(format, _)| &**format == "gguf");
    if spec.gguf.is_empty() || !has_names {
        let lacks = if has_names { "`gguf:`" } else { "`gguf:` below `names:`" };
        let message = format!("{}: the card {} has no {lacks}, so that it reads no GGUF files", facts.name, spec.name);
        let mut report = Report::unplaced(Code::UnknownModel, message);
        report.diagnostics[0].help = Some("give a checkpoint of safetensors, or add what the card lacks".to_owned());
        return Err(report);
    }
    let mut config = Value::Object(serde_json::Map::new());
    for (key, places) in &spec.gguf {
        if let Some(value) = places.iter().find_map(|place| place.value(facts)) {
            insert(&mut config, &key.text, value);
        }
    }
    Ok(match &spec.matches.under {
        Some(under) => serde_json::json!({&**under: config}),
        None => config,
    })
}

fn insert(config: &mut Value, key: &str, value: Value) {
    let Value::Object(entries) = config else { return };
    match key.split_once('.') {
        Some((first, rest)) => {
            let inner = entries.entry(first).or_insert_with(|| Value::Object(serde_json::Map::new()));
            insert(inner, rest, value);
        }
        None => {
            entries.insert(key.to_owned(), value);
        }
    }
}

/// The card that serves a GGUF file, by its `general.architecture`; of several the one that asks for most keys.
///
/// # Errors
/// A file that no card serves, and everything that is wrong with the card.
pub fn pick_gguf_card(facts: &Facts<'_>, library: &Library) -> Result<Spec, Report> {
    let fail = |message: String, help: String| {
        let mut report = Report::unplaced(Code::UnknownModel, format!("{}: {message}", facts.name));
        report.diagnostics[0].help = Some(help);
        Err(report)
    };
    let Some(architecture) = facts.architecture() else {
        let help = "convert the model again, or name a card with `--checkpoint FILE`".to_owned();
        return fail(format!("the metadata has no `{ARCHITECTURE}`, so that its family is unknown"), help);
    };
    let set = |key: &String| facts.value(key).is_some_and(|value| value.as_u64() != Some(0));
    let (mut served, mut best): (Vec<String>, Option<(usize, &str)>) = (Vec::new(), None);
    for name in library.in_order() {
        let text = library.card_text(name).unwrap_or_default();
        let (families, keys) = (library::matched(text, "gguf"), library::matched(text, "gguf_keys"));
        let fits = families.iter().any(|family| family == architecture) && keys.iter().all(set);
        if fits && best.is_none_or(|(most, _)| keys.len() > most) {
            best = Some((keys.len(), name));
        }
        served.extend(families);
    }
    if let Some((_, name)) = best {
        return load_card(name, library);
    }
    served.sort();
    served.dedup();
    let close = did_you_mean(architecture, served.iter().map(String::as_str));
    let help =
        close.unwrap_or_else(|| format!("the cards serve {}; other families load from safetensors", served.join(", ")));
    fail(format!("no card serves `{ARCHITECTURE}: {architecture}`"), help)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use serde_json::json;

    use super::*;

    const CARD: &str = "xfc: 1
name: Test
matches: {gguf: test}
sizes: {a: 1}
gguf:
  a: [missing, first]
  words: {length: /tokenizer.words}
  rope.type: {key: kind, as: {none: default}}
  rope.divisors: {numbers: freqs}
  rows: {rows: table}
  tied: [{value: true, without: head}, {value: false}]
  special: [{value: 7, when: {first: 5, kind: none}, with: freqs}, {value: 8}]
  other: {value: 9, when: {first: 6}}
  none: {key: first, as: {5: null}}
wiring: |
  model(x: f32[tokens, 1]) { return {y: x} }
names:
  gguf: {}
";

    fn library(cards: &[(&str, &str)]) -> Library {
        Library::build(cards.iter().map(|(name, text)| (PathBuf::from(name), (*text).to_owned())))
    }

    fn facts(metadata: Value) -> Facts<'static> {
        let Value::Object(entries) = metadata else { panic!("a mapping") };
        Facts {
            name: "x.gguf".to_owned(),
            metadata: entries.into_iter().collect(),
            lengths: BTreeMap::from([("tokenizer.words".to_owned(), 3)]),
            tensors: BTreeMap::from([("table".to_owned(), vec![9, 4]), ("freqs".to_owned(), vec![2])]),
            numbers: Box::new(|name| (name == "freqs").then(|| vec![1.0, 0.5])),
        }
    }

    #[test]
    fn metadata_becomes_a_config() {
        let library = library(&[("test.yaml", CARD)]);
        let facts = facts(json!({"general.architecture": "test", "test.first": 5, "test.kind": "none"}));
        let spec = pick_gguf_card(&facts, &library).unwrap_or_else(|e| panic!("{e}"));
        let config = gguf_config(&spec, &facts).unwrap_or_else(|e| panic!("{e}"));
        let expected = json!({"a": 5, "words": 3, "rope": {"type": "default", "divisors": [1.0, 0.5]}, "rows": 9, "tied": true, "special": 7, "none": null});
        assert_eq!(config, expected);
    }

    #[test]
    fn the_card_that_asks_for_most_serves() {
        let more = CARD.replace("name: Test", "name: More").replace("gguf: test}", "gguf: test, gguf_keys: [experts]}");
        let library = library(&[("a.yaml", &more), ("test.yaml", CARD)]);
        let named = |metadata: Value| pick_gguf_card(&facts(metadata), &library).map(|spec| spec.name.to_string());
        assert_eq!(named(json!({"general.architecture": "test", "test.experts": 4})).as_deref().ok(), Some("More"));
        assert_eq!(named(json!({"general.architecture": "test", "test.experts": 0})).as_deref().ok(), Some("Test"));
        for (metadata, said) in [
            (json!({}), "x.gguf: the metadata has no `general.architecture`"),
            (json!({"general.architecture": "tess"}), "did you mean `test`"),
            (json!({"general.architecture": "zzzzzz"}), "the cards serve test"),
        ] {
            let error = named(metadata).expect_err("no card serves it").to_string();
            assert!(error.contains(said), "{said} is not in {error}");
        }
    }

    #[test]
    fn what_is_no_place_is_a_diagnostic() {
        for (entry, said) in [
            ("a: {kye: b}", "did you mean `key`"),
            ("a: {key: b, value: 1}", "2 of `key`"),
            ("a: {with: b}", "0 of `key`"),
            ("a: {length: b, as: {c: d}}", "`as` belongs to a `key`"),
            ("a: {key: b, when: c}", "`when` is a string"),
            ("a: 5", "a whole number where a metadata key is needed"),
            ("a: {key: [b]}", "`key` is a list"),
        ] {
            let text = CARD.replace("  a: [missing, first]", &format!("  {entry}"));
            let error = library(&[("test.yaml", &text)]);
            let error = load_card("test", &error).map(|_| ()).expect_err("it is wrong").to_string();
            assert!(error.contains(said), "{said} is not in {error}");
        }
    }

    #[test]
    fn a_card_without_a_column_reads_no_files() {
        let facts = facts(json!({"general.architecture": "test"}));
        for (text, said) in [
            (CARD.replace("gguf: {}", "hf: {}"), "has no `gguf:` below `names:`"),
            (
                CARD.replace(&CARD[CARD.find("gguf:\n").unwrap_or(0)..CARD.find("wiring").unwrap_or(0)], ""),
                "has no `gguf:`,",
            ),
        ] {
            let spec = load_card("test", &library(&[("test.yaml", &text)])).unwrap_or_else(|e| panic!("{e}"));
            let error = gguf_config(&spec, &facts).expect_err("it reads none").to_string();
            assert!(error.contains(said), "{said} is not in {error}");
        }
    }
}
