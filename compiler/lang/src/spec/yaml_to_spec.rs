//! A card's tree to a [`Spec`].
//!
//! Given the text of a card, gives the spec as far as it can be read, and a diagnostic for every key that is unknown, missing or of
//! another kind.

use std::path::Path;
use std::sync::Arc;

use super::ast::Item;
use super::extends::{Link, chain, merge, merge_items};
use super::gguf;
use super::names::parse_names;
use super::tree::{Datum, Key, Node, NodeKind};
use super::xf_to_spec::{Origin, parse_items};
use super::{ActiveCounts, Count, Library, Matches, Place, Published, Size, Spec, paths};
use crate::diagnostic::{Code, Diagnostic, Report, Span, did_you_mean};

const KEYS: &[&str] = &[
    "xfc",
    "name",
    "extends",
    "source",
    "matches",
    "published",
    "sizes",
    "assumes",
    "gguf",
    "tiny",
    "wiring",
    "names",
];
const MATCHES_KEYS: &[&str] = &["model_type", "keys", "gguf", "gguf_keys", "under", "optional"];
const PUBLISHED_KEYS: &[&str] =
    &["model", "part", "parameters", "active", "active_counts", "cache_bytes_per_token", "note"];
const SIZE_KEYS: &[&str] = &["example", "default", "optional", "list", "from"];

/// Reads a card. `name` is how messages call it. What is wrong and leaves the card readable is in [`Spec::mistakes`].
/// It may extend cards of the library, and no files.
///
/// # Errors
/// Everything that is wrong with its YAML, its keys and its grammar, where something of it cannot be read.
pub fn parse_card(name: &str, text: &str, library: &Library) -> Result<Spec, Report> {
    parse_card_at(name, text, None, library)
}

/// [`parse_card`] of a file, which may extend others.
pub(super) fn parse_card_at(name: &str, text: &str, file: Option<&Path>, library: &Library) -> Result<Spec, Report> {
    let mut sources = library.sources().clone();
    let mut diagnostics = library.diagnostics().to_vec();
    let first_card = sources.len();
    let links = chain(name, text, file, library, &mut sources, &mut diagnostics);
    let spec = read(&links, library, &mut diagnostics);
    match spec {
        Some(mut spec) if diagnostics.iter().all(|d| matches!(d.code, Code::UnknownKey | Code::NamePath)) => {
            spec.mistakes = diagnostics;
            spec.sources = sources;
            spec.first_card = first_card;
            spec.library = library.items();
            Ok(spec)
        }
        _ => Err(Report::new(sources, diagnostics)),
    }
}

/// That a card is of another version than this compiler reads.
fn other_version(link: &Link) -> Option<Diagnostic> {
    let NodeKind::Map(entries) = &link.root.kind else { return None };
    let (_, node) = entry(entries, "xfc").filter(|(_, node)| node.datum() != Datum::Int(1))?;
    let d = Diagnostic::new(Code::WrongKind, "this compiler reads cards of version 1", node.span);
    Some(d.label("expected `xfc: 1`"))
}

/// The spec of a chain of cards, each over the next.
fn read(links: &[Link], library: &Library, diagnostics: &mut Vec<Diagnostic>) -> Option<Spec> {
    let card = links.first()?;
    // What another version means by the rest is not known here.
    if let Some(version) = links.iter().find_map(other_version) {
        diagnostics.push(version);
        return None;
    }
    let reader = |link: &Link| Reader { source: link.source, text: link.text.clone(), diagnostics: Vec::new() };
    let mut root = links.last()?.root.clone();
    let mut wiring: Option<(Vec<Item>, Span)> = None;
    let mut declared: Vec<(&Link, paths::Declared)> = Vec::new();
    for (i, link) in links.iter().enumerate().rev() {
        if i + 1 < links.len() {
            root = merge(&link.root, &root);
        }
        if let NodeKind::Map(entries) = &link.root.kind
            && let Some((_, node)) = entry(entries, "wiring")
        {
            let mut reader = reader(link);
            let items = reader.wiring(node);
            diagnostics.append(&mut reader.diagnostics);
            let below = wiring.take().map(|(items, _)| items).unwrap_or_default();
            wiring = Some((merge_items(items, below), node.span));
        }
        if let Some((items, _)) = &wiring {
            declared.push((link, paths::declared(items, &library.items())));
        }
    }
    let followed =
        links.last().is_some_and(|l| !matches!(&l.root.kind, NodeKind::Map(e) if entry(e, "extends").is_some()));
    let mut reader = reader(card);
    // Where equations cannot be read, they bind less than they say.
    let all_read = followed && diagnostics.is_empty();
    let spec = reader.card(&root, wiring, followed);
    diagnostics.append(&mut reader.diagnostics);
    if let Some(spec) = spec.as_ref().filter(|_| all_read) {
        for (link, declared) in &declared {
            for (_, names) in &spec.names {
                paths::check(names, link.source, &link.text, declared, diagnostics);
            }
        }
    }
    spec
}

struct Reader {
    source: u32,
    text: Arc<str>,
    diagnostics: Vec<Diagnostic>,
}

type Entries = [(Key, Node)];

fn entry<'a>(entries: &'a Entries, key: &str) -> Option<&'a (Key, Node)> {
    entries.iter().find(|(k, _)| &*k.text == key)
}

impl Reader {
    fn wrong(&mut self, span: Span, key: &str, expected: &str, found: &str) {
        let message = format!("`{key}` must be {expected}, not {found}");
        self.diagnostics.push(Diagnostic::new(Code::WrongKind, message, span).label(format!("expected {expected}")));
    }

    fn known(&mut self, entries: &Entries, keys: &[&str], of: &str) {
        for (key, _) in entries {
            if !keys.contains(&&*key.text) {
                let help = did_you_mean(&key.text, keys.iter().copied())
                    .unwrap_or_else(|| format!("the keys of {of} are {}", keys.join(", ")));
                self.diagnostics.push(
                    Diagnostic::new(Code::UnknownKey, format!("{of} has no key `{}`", key.text), key.span)
                        .label("unknown key")
                        .help(help),
                );
            }
        }
    }

    fn map<'n>(&mut self, node: &'n Node, key: &str) -> Option<&'n Entries> {
        match &node.kind {
            NodeKind::Map(entries) => Some(entries),
            _ => {
                self.wrong(node.span, key, "a mapping", node.datum().kind());
                None
            }
        }
    }

    fn string(&mut self, node: &Node, key: &str) -> Option<Arc<str>> {
        match &node.kind {
            NodeKind::Scalar { text, .. } if node.datum() != Datum::Null => Some(text.clone()),
            _ => {
                self.wrong(node.span, key, "a string", node.datum().kind());
                None
            }
        }
    }

    /// `followed`: what the card extends, if anything, was found.
    fn card(&mut self, root: &Node, wiring: Option<(Vec<Item>, Span)>, followed: bool) -> Option<Spec> {
        let entries = self.map(root, "a card")?;
        self.known(entries, KEYS, "a card");
        let required: &[&str] = if followed { &["xfc", "name", "sizes", "wiring"] } else { &["xfc", "name"] };
        for key in required {
            if entry(entries, key).is_none() && !(*key == "wiring" && wiring.is_some()) {
                let span = Span { end: root.span.start, ..root.span };
                self.diagnostics.push(
                    Diagnostic::new(Code::MissingKey, format!("the card has no `{key}`"), span)
                        .label("expected in this mapping"),
                );
            }
        }
        let name = entry(entries, "name").and_then(|(_, n)| self.string(n, "name"));
        let reference = entry(entries, "source").and_then(|(_, n)| self.string(n, "source"));
        let matches = entry(entries, "matches").map(|(_, n)| self.matches(n)).unwrap_or_default();
        let published = entry(entries, "published").and_then(|(_, n)| self.published(n));
        let sizes = entry(entries, "sizes").map(|(_, n)| self.sizes(n)).unwrap_or_default();
        let assumes = entry(entries, "assumes").map(|(_, n)| self.values(n, "assumes")).unwrap_or_default();
        let gguf = entry(entries, "gguf").map(|(_, n)| gguf::parse(n, &mut self.diagnostics)).unwrap_or_default();
        let tiny = entry(entries, "tiny").map(|(_, n)| self.values(n, "tiny")).unwrap_or_default();
        let names = entry(entries, "names").map(|(_, n)| self.names(n)).unwrap_or_default();
        let (wiring, wiring_span) = wiring?;
        Some(Spec {
            sources: Default::default(),
            source: self.source,
            first_card: 0,
            name: name?,
            reference,
            matches,
            published,
            sizes,
            assumes,
            gguf,
            tiny,
            wiring,
            wiring_span,
            names,
            library: Default::default(),
            mistakes: Vec::new(),
        })
    }

    fn matches(&mut self, node: &Node) -> Matches {
        let Some(entries) = self.map(node, "matches") else { return Matches::default() };
        self.known(entries, MATCHES_KEYS, "`matches`");
        Matches {
            model_type: self.strings(entries, "model_type"),
            keys: self.strings(entries, "keys"),
            gguf: self.strings(entries, "gguf"),
            gguf_keys: self.strings(entries, "gguf_keys"),
            under: entry(entries, "under").and_then(|(_, n)| self.string(n, "under")),
            optional: self.flag(entries, "optional"),
        }
    }

    /// One string, or a list of them.
    fn strings(&mut self, entries: &Entries, key: &str) -> Vec<Arc<str>> {
        match entry(entries, key).map(|(_, n)| n) {
            Some(Node { kind: NodeKind::List(items), .. }) => {
                items.iter().filter_map(|n| self.string(n, key)).collect()
            }
            Some(node) => self.string(node, key).into_iter().collect(),
            None => Vec::new(),
        }
    }

    fn flag(&mut self, entries: &Entries, key: &str) -> bool {
        match entry(entries, key).map(|(_, n)| (n.datum(), n.span)) {
            None => false,
            Some((Datum::Bool(b), _)) => b,
            Some((other, span)) => {
                self.wrong(span, key, "true or false", other.kind());
                false
            }
        }
    }

    fn published(&mut self, node: &Node) -> Option<Published> {
        let entries = self.map(node, "published")?;
        self.known(entries, PUBLISHED_KEYS, "`published`");
        let model = entry(entries, "model").and_then(|(_, n)| self.string(n, "model"))?;
        let mut text = |key: &str| entry(entries, key).and_then(|(_, n)| self.string(n, key));
        let (part, note, counts) = (text("part"), text("note"), text("active_counts"));
        let active_counts = match counts.as_deref().map(ActiveCounts::parse) {
            None => ActiveCounts::default(),
            Some(Some(counts)) => counts,
            Some(None) => {
                let span = entry(entries, "active_counts").map_or(node.span, |(_, n)| n.span);
                self.wrong(span, "active_counts", "`all` or `without_lookups`", "another word");
                ActiveCounts::default()
            }
        };
        let parameters = self.count(entries, "parameters");
        let active = self.count(entries, "active");
        let cache_bytes_per_token = self.count(entries, "cache_bytes_per_token").map(|c| c.value);
        let span = entry(entries, "parameters").map_or(node.span, |(_, n)| n.span);
        Some(Published { model, part, parameters, active, active_counts, cache_bytes_per_token, note, span })
    }

    /// A number as it was printed.
    fn count(&mut self, entries: &Entries, key: &str) -> Option<Count> {
        let (_, node) = entry(entries, key)?;
        match node.datum() {
            Datum::Int(v) if v >= 0 => Some(Count::exact(v as u64)),
            Datum::Str(text) if Count::parse(&text).is_some() => Count::parse(&text),
            other => {
                self.wrong(node.span, key, "a whole number, or one as printed: 8.03B", other.kind());
                None
            }
        }
    }

    fn sizes(&mut self, node: &Node) -> Vec<Size> {
        let Some(entries) = self.map(node, "sizes") else { return Vec::new() };
        entries.iter().map(|(key, node)| self.size(key, node)).collect()
    }

    fn size(&mut self, key: &Key, node: &Node) -> Size {
        let mut size = Size {
            name: key.text.clone(),
            span: key.span,
            example: None,
            default: None,
            optional: false,
            list: false,
            from: Vec::new(),
        };
        let valid = key.text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && key.text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        if !valid {
            self.diagnostics.push(
                Diagnostic::new(Code::WrongKind, format!("`{}` cannot be a size's name", key.text), key.span)
                    .label("expected letters, digits and `_`"),
            );
        }
        let NodeKind::Map(entries) = &node.kind else {
            size.example = Some(node.datum());
            if size.example == Some(Datum::Null) {
                self.wrong(node.span, &key.text, "a value", "null");
            }
            return size;
        };
        self.known(entries, SIZE_KEYS, "a size");
        size.example = entry(entries, "example").map(|(_, n)| n.datum());
        size.default = entry(entries, "default").map(|(_, n)| n.datum());
        size.optional = self.flag(entries, "optional");
        size.list = self.flag(entries, "list");
        if let Some((_, from)) = entry(entries, "from") {
            match &from.kind {
                NodeKind::List(items) => size.from = items.iter().filter_map(|n| self.place(n)).collect(),
                _ => size.from.extend(self.place(from)),
            }
        }
        if size.example.is_none() && size.default.is_none() && !size.optional {
            let d = Diagnostic::new(Code::MissingKey, format!("the size `{}` has no value", key.text), key.span)
                .label("expected `example`, `default` or `optional: true`");
            self.diagnostics.push(d);
        }
        size
    }

    fn place(&mut self, node: &Node) -> Option<Place> {
        match &node.kind {
            NodeKind::Map(entries) => {
                let mut places = Vec::new();
                for (key, node) in entries {
                    // Mappings to merge may be several, the first with a key before the others.
                    match &node.kind {
                        NodeKind::List(items) if &*key.text == "..." => {
                            places
                                .extend(items.iter().filter_map(|n| Some((key.text.clone(), self.string(n, "from")?))));
                        }
                        _ => places.extend(self.string(node, "from").map(|place| (key.text.clone(), place))),
                    }
                }
                Some(Place::Mapping(places))
            }
            _ => self.string(node, "from").map(Place::Key),
        }
    }

    fn values(&mut self, node: &Node, key: &str) -> Vec<(Key, Datum)> {
        let entries = self.map(node, key);
        entries.unwrap_or_default().iter().map(|(k, n)| (k.clone(), n.datum())).collect()
    }

    fn names(&mut self, node: &Node) -> Vec<(Arc<str>, super::Names)> {
        let Some(entries) = self.map(node, "names") else { return Vec::new() };
        self.known(entries, &["hf", "gguf"], "`names`");
        entries.iter().map(|(k, n)| (k.text.clone(), parse_names(n, &mut self.diagnostics))).collect()
    }

    fn wiring(&mut self, node: &Node) -> Vec<Item> {
        match &node.kind {
            NodeKind::Scalar { text, literal: true, .. } => {
                let origin = Origin { source: self.source, lines: self.block_lines(text, node.span) };
                parse_items(text, &origin, &mut self.diagnostics)
            }
            _ => {
                self.wrong(node.span, "wiring", "a literal block", node.datum().kind());
                if let Some(d) = self.diagnostics.last_mut() {
                    d.help = Some("write `wiring: |` and the equations on the lines below, indented".to_string());
                }
                Vec::new()
            }
        }
    }

    /// Where each line of a literal block lies in the file: a block's lines are the file's lines without their common indentation.
    fn block_lines(&self, block: &str, span: Span) -> Vec<(usize, usize)> {
        let mut lines = Vec::new();
        // The block's span may begin at the `|` or at its first line: its content begins on the line below the indicator.
        let from = (span.start as usize).min(self.text.len());
        let line_start = self.text[..from].rfind('\n').map_or(0, |i| i + 1);
        let header = self.text[line_start..].split('\n').next().unwrap_or("");
        let mut file = if header.contains('|') && header.trim_start().starts_with("wiring") {
            line_start + header.len() + 1
        } else {
            line_start
        };
        let mut at = 0;
        for line in block.split_inclusive('\n') {
            let content = line.trim_end_matches(['\n', '\r']);
            let raw = self.text.get(file..).unwrap_or("").split_inclusive('\n').next().unwrap_or("");
            let indent = raw.trim_end_matches(['\n', '\r']).len().saturating_sub(content.len());
            lines.push((at, file + indent));
            at += line.len();
            file += raw.len();
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::spec::ast::Item;

    fn read(text: &str) -> Result<Spec, Report> {
        parse_card("card.yaml", text, &Library::build(std::iter::empty::<(PathBuf, String)>()))
    }

    /// The text under the value of each binding of the wiring.
    fn values(text: &str) -> Vec<String> {
        let spec = read(text).unwrap_or_else(|e| panic!("{e}"));
        spec.wiring
            .iter()
            .filter_map(|item| {
                if let Item::Binding(b) = item { Some(spec.sources.text(b.value.span).to_string()) } else { None }
            })
            .collect()
    }

    #[test]
    fn positions_in_a_block_are_positions_in_the_file() {
        let expected = ["first + 1", "[second,\n         third]", "'é' + last"];
        let lines = "a = first + 1\n\n# a comment\nb = [second,\n     third]\nc = 'é' + last\n";
        for (indent, indicator, tail) in [
            ("  ", "|", "names: {}\n"),
            ("    ", "|2", "names: {}\n"),
            ("  ", "|-", ""),
            ("  ", "| # the equations", ""),
        ] {
            let indent_all = if indicator == "|2" { "  " } else { indent };
            let block: String = lines
                .lines()
                .map(|l| if l.is_empty() { "\n".to_string() } else { format!("{indent_all}{l}\n") })
                .collect();
            let text = format!("xfc: 1\nname: T\nsizes: {{}}\nwiring: {indicator}\n{block}{tail}");
            let got: Vec<String> =
                values(&text).iter().map(|v| v.replace(&format!("\n{indent_all}"), "\n    ")).collect();
            assert_eq!(got, expected, "{text}");
        }
    }

    #[test]
    fn lines_may_end_as_on_windows() {
        let text = "xfc: 1\r\nname: T\r\nsizes: {}\r\nwiring: |\r\n  a = b + 1\r\n  c = dd\r\n";
        assert_eq!(values(text), ["b + 1", "dd"]);
    }

    #[test]
    fn a_byte_order_mark_is_no_text() {
        assert_eq!(values("\u{feff}xfc: 1\nname: T\nsizes: {}\nwiring: |\n  a = b + 1\n"), ["b + 1"]);
    }

    #[test]
    fn whole_numbers_have_a_limit() {
        let report = read("xfc: 1\nname: T\nsizes: {a: 99999999999999999999}\nwiring: |\n  a = 99999999999999999999\n");
        let codes: Vec<Code> = report.expect_err("both are too large").diagnostics.iter().map(|d| d.code).collect();
        assert_eq!(codes, [Code::TooLarge; 2]);
    }

    #[test]
    fn everything_is_said_together() {
        let card = "xfc: 1\nname: T\nsizse: {}\nmatches: {model: x}\nwiring: |\n  a = )\n";
        let codes = |card: &str| -> Vec<Code> {
            read(card).expect_err("it is wrong").diagnostics.iter().map(|d| d.code).collect()
        };
        assert_eq!(codes(card), [Code::MissingKey, Code::UnknownKey, Code::UnknownKey, Code::Syntax]);
        assert_eq!(codes(&card.replace("xfc: 1", "xfc: 2")), [Code::WrongKind]);
    }
}
