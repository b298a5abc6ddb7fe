//! The cards and the module library: embedded in the binary, or a folder that replaces them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use include_dir::{Dir, include_dir};

use super::ast::Item;
use super::extends::{card_name, is_path, read_text};
use super::tree::{NodeKind, parse_yaml};
use super::xf_to_spec::{Origin, parse_items};
use super::yaml_to_spec::parse_card_at;
use super::{Spec, parse_card};
use crate::diagnostic::{Code, Diagnostic, Report, SourceMap, did_you_mean};

static EMBEDDED: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/../../models");

/// Cards by name, and the items of all library files.
#[derive(Clone, Debug)]
pub struct Library {
    cards: BTreeMap<String, String>,
    /// The cards that are asked first which config.json they serve.
    first: Vec<String>,
    sources: SourceMap,
    items: Arc<Vec<Item>>,
    diagnostics: Vec<Diagnostic>,
}

impl Library {
    /// What ships with the compiler.
    pub fn embedded() -> Self {
        Library::build(embedded_files())
    }

    /// A folder's cards, `*.yaml`, before those that ship, and its `lib/*.xf` instead of the library that ships, where it has any.
    ///
    /// # Errors
    /// A folder or file that cannot be read.
    pub fn from_dir(dir: &Path) -> Result<Self, Report> {
        let unreadable = |path: &Path, e: std::io::Error| {
            Report::unplaced(Code::Unreadable, format!("cannot read {}: {e}", path.display()))
        };
        let mut files = Vec::new();
        for (folder, prefix) in [(dir.to_path_buf(), ""), (dir.join("lib"), "lib")] {
            if !prefix.is_empty() && !folder.is_dir() {
                continue;
            }
            for entry in std::fs::read_dir(&folder).map_err(|e| unreadable(&folder, e))? {
                let path = entry.map_err(|e| unreadable(&folder, e))?.path();
                if path.is_file() && path.extension().is_some_and(|e| e == "yaml" || e == "xf") {
                    let text = std::fs::read_to_string(&path).map_err(|e| unreadable(&path, e))?;
                    files.push((Path::new(prefix).join(path.file_name().unwrap_or_default()), text));
                }
            }
        }
        let is_card = |path: &Path| path.extension().is_some_and(|e| e == "yaml");
        let mut first: Vec<String> =
            files.iter().filter(|(path, _)| is_card(path)).map(|(path, _)| stem(path)).collect();
        first.sort();
        let has_library = files.iter().any(|(path, _)| !is_card(path));
        let shipped: Vec<_> = embedded_files().filter(|(path, _)| is_card(path) || !has_library).collect();
        Ok(Library { first, ..Library::build(shipped.into_iter().chain(files)) })
    }

    /// A library of the given files, by path: `x.yaml`, `lib/x.xf`.
    pub fn build(files: impl Iterator<Item = (PathBuf, String)>) -> Self {
        let files: BTreeMap<PathBuf, String> = files.collect();
        let (mut cards, mut sources, mut items, mut diagnostics) =
            (BTreeMap::new(), SourceMap::default(), Vec::new(), Vec::new());
        for (path, text) in files {
            match path.extension().and_then(|e| e.to_str()) {
                Some("yaml") => {
                    cards.insert(stem(&path), text);
                }
                Some("xf") => {
                    // A byte order mark is no text.
                    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
                    let source = sources.add(path.to_string_lossy().replace('\\', "/"), text);
                    items.extend(parse_items(text, &Origin { source, lines: Vec::new() }, &mut diagnostics));
                }
                _ => {}
            }
        }
        Library { cards, first: Vec::new(), sources, items: Arc::new(items), diagnostics }
    }

    /// The names of the cards, sorted.
    pub fn cards(&self) -> impl Iterator<Item = &str> {
        self.cards.keys().map(String::as_str)
    }

    /// The names of the cards of the folder that the library was made of; of what ships, all.
    pub fn own_cards(&self) -> Vec<&str> {
        if self.first.is_empty() { self.cards().collect() } else { self.first.iter().map(String::as_str).collect() }
    }

    /// The names of the cards, those of the library's own folder first.
    pub(super) fn in_order(&self) -> impl Iterator<Item = &str> {
        let rest = self.cards().filter(|name| !self.first.iter().any(|first| first == name));
        self.first.iter().map(String::as_str).chain(rest)
    }

    /// Every `model_type` that a card serves, with the card; those of the folder first that the library was made of.
    pub fn served(&self) -> Vec<(String, &str)> {
        let types = |name| model_types(self.card_text(name).unwrap_or_default()).into_iter().map(move |t| (t, name));
        self.in_order().flat_map(types).collect()
    }

    /// The card that serves a `model_type`.
    pub fn card_of(&self, model_type: &str) -> Option<&str> {
        self.served().into_iter().find(|(served, _)| served == model_type).map(|(_, name)| name)
    }

    /// The text of a card.
    pub fn card_text(&self, name: &str) -> Option<&str> {
        self.cards.get(name).map(String::as_str)
    }

    /// The library's texts.
    pub fn sources(&self) -> &SourceMap {
        &self.sources
    }

    /// The names of the library's definitions, in the order of its files.
    pub fn definitions(&self) -> Vec<String> {
        self.items
            .iter()
            .flat_map(|item| match item {
                Item::Module(m) => vec![m.name.name.to_string()],
                Item::Function(f) => vec![f.name.name.to_string()],
                Item::Binding(b) => b.names.iter().map(|n| n.name.to_string()).collect(),
            })
            .collect()
    }

    /// The definition of a name with the comment above it, and the file that it is in.
    pub fn definition(&self, name: &str) -> Option<(String, String)> {
        let of = |item: &&Item| item.names().iter().any(|n| &*n.name == name);
        let item = self.items.iter().find(of)?;
        let span = item.names().first()?.span;
        let source = self.sources.get(span.source)?;
        let begin = source.text[..span.start as usize].rfind('\n').map_or(0, |i| i + 1);
        let comment: Vec<&str> = source.text[..begin].lines().rev().take_while(|l| l.starts_with('#')).collect();
        // The comment at the top of a file is about the file, unless a definition follows at once.
        let mut lines: Vec<&str> = comment.into_iter().rev().collect();
        let rest = source.text[begin..].lines();
        // A definition begins at the margin, and what continues it is indented or closes it.
        let goes_on = |l: &&str| l.is_empty() || l.starts_with([' ', '}', '\t']);
        lines.extend(rest.clone().take(1).chain(rest.skip(1).take_while(goes_on)));
        let text = lines.join("\n").trim_end().to_owned();
        Some((source.name.to_string(), text))
    }

    pub(super) fn items(&self) -> Arc<Vec<Item>> {
        self.items.clone()
    }

    pub(super) fn diagnostics(&self) -> &[Diagnostic] {
        &self.diagnostics
    }
}

/// The cards and the library that ship, by path.
fn embedded_files() -> impl Iterator<Item = (PathBuf, String)> {
    let text = |path: &Path| EMBEDDED.get_file(path).and_then(|f| f.contents_utf8()).map(str::to_string);
    let names = |dir: &Dir<'_>| dir.files().map(|f| f.path().to_path_buf()).collect::<Vec<_>>();
    let lib = EMBEDDED.get_dir("lib").map(names).unwrap_or_default();
    names(&EMBEDDED).into_iter().chain(lib).filter_map(move |p| text(&p).map(|t| (p, t)))
}

fn stem(path: &Path) -> String {
    path.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default()
}

/// Reads a card, and those that it extends: the path of a file, the name of a card of the library, or a `model_type` that one serves.
///
/// # Errors
/// A file that cannot be read, a name that no card has, and everything that is wrong with the card.
pub fn load_card(name_or_path: &str, library: &Library) -> Result<Spec, Report> {
    if let Some(text) = library.card_text(name_or_path) {
        return parse_card(&card_name(name_or_path), text, library);
    }
    let path = Path::new(name_or_path);
    if !is_path(name_or_path) && !path.is_file() {
        // A config's name of the family.
        if let Some(name) = library.card_of(name_or_path) {
            return load_card(name, library);
        }
        let message = format!("no card is named `{name_or_path}`");
        let help = did_you_mean(name_or_path, library.cards()).unwrap_or_else(|| cards_are(library));
        let mut report = Report::unplaced(Code::UnknownModel, message);
        report.diagnostics[0].help = Some(help);
        return Err(report);
    }
    let text = read_text(path).map_err(|p| Report::unplaced(p.code, p.message))?;
    parse_card_at(name_or_path, &text, Some(path), library)
}

/// Advice that names every card.
pub(super) fn cards_are(library: &Library) -> String {
    let cards: Vec<&str> = library.cards().collect();
    if cards.is_empty() {
        return "there are no cards in this library: a card is a file NAME.yaml in its folder".to_string();
    }
    format!("the cards are {}", cards.join(", "))
}

/// The card that serves a config.json, by its `model_type`; where it has none, by the keys that it has.
///
/// # Errors
/// A config that no card serves, and everything that is wrong with the card.
pub fn pick_card(config: &serde_json::Value, library: &Library) -> Result<Spec, Report> {
    let Some(model_type) = config.get("model_type").and_then(serde_json::Value::as_str) else {
        // The card that asks for most: what is served by another's keys and more is of its own family.
        let served = library.cards().map(|name| (match_keys(library.card_text(name).unwrap_or_default()), name));
        let served = served.filter(|(keys, _)| !keys.is_empty() && keys.iter().all(|key| config.get(key).is_some()));
        if let Some((_, name)) = served.max_by_key(|(keys, _)| keys.len()) {
            return load_card(name, library);
        }
        return Err(Report::unplaced(
            Code::UnknownModel,
            "the config has no `model_type`, so that its family is unknown",
        ));
    };
    if let Some(name) = library.card_of(model_type) {
        return load_card(name, library);
    }
    let served: Vec<String> = library.served().into_iter().map(|(model_type, _)| model_type).collect();
    let mut report = Report::unplaced(Code::UnknownModel, format!("no card serves model_type `{model_type}`"));
    let help = did_you_mean(model_type, served.iter().map(String::as_str));
    report.diagnostics[0].help =
        Some(help.unwrap_or_else(|| {
            format!("the cards serve {}; write a card for it and name it instead", served.join(", "))
        }));
    Err(report)
}

/// The `matches: {model_type: ..}` of a card; empty when the card cannot be read, which loading it reports.
fn model_types(text: &str) -> Vec<String> {
    matched(text, "model_type")
}

/// The `matches: {keys: ..}` of a card.
fn match_keys(text: &str) -> Vec<String> {
    matched(text, "keys")
}

/// What a card's `matches` has under a key: one, or a list.
pub(super) fn matched(text: &str, key: &str) -> Vec<String> {
    let Some(root) = parse_yaml(text, 0, &mut Vec::new()) else { return Vec::new() };
    let NodeKind::Map(entries) = &root.kind else { return Vec::new() };
    let matches = entries.iter().find(|(k, _)| &*k.text == "matches").map(|(_, n)| n.datum());
    match matches.as_ref().and_then(|m| m.get(key)) {
        Some(super::Datum::List(items)) => items.iter().map(ToString::to_string).collect(),
        Some(one) => vec![one.to_string()],
        None => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_embedded_is_the_folder() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models");
        let (a, b) = (Library::embedded(), Library::from_dir(&folder).expect("the folder can be read"));
        assert!(a.cards().eq(b.cards()));
        assert_eq!(a.definitions(), b.definitions());
        assert!(a.diagnostics().is_empty());
        assert!(a.cards().count() > 0);
    }

    #[test]
    fn a_folder_of_cards_goes_before_what_ships() {
        let folder = std::env::temp_dir().join(format!("xfc-library-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a temporary folder");
        let card = "xfc: 1\nname: Own\nmatches: {model_type: MODEL}\nextends: NAME\n";
        let shipped = Library::embedded();
        let (name, model_type) = shipped
            .cards()
            .find_map(|name| Some((name.to_owned(), model_types(shipped.card_text(name)?).first()?.clone())))
            .expect("a card that serves a family");
        std::fs::write(folder.join("zz.yaml"), card.replace("NAME", &name).replace("MODEL", &model_type))
            .expect("it is written");
        let library = Library::from_dir(&folder).expect("the folder can be read");
        std::fs::remove_dir_all(&folder).expect("it is removed");
        assert_eq!(library.own_cards(), ["zz"]);
        assert_eq!(library.definitions(), shipped.definitions());
        let picked =
            pick_card(&serde_json::json!({ "model_type": model_type }), &library).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(&*picked.name, "Own");
    }

    #[test]
    fn each_family_is_picked_by_what_it_matches() {
        let library = Library::embedded();
        for name in library.cards() {
            let spec = load_card(name, &library).unwrap_or_else(|e| panic!("{e}"));
            for model_type in &spec.matches.model_type {
                let config = serde_json::json!({ "model_type": &**model_type });
                let picked = pick_card(&config, &library).unwrap_or_else(|e| panic!("{e}"));
                assert_eq!(picked.name, spec.name, "{model_type}");
            }
        }
    }

    #[test]
    fn a_config_without_a_type_is_known_by_its_keys() {
        let card = |keys: &str| {
            format!(
                "xfc: 1\nname: {keys}\nmatches: {{keys: [{keys}]}}\nsizes: {{}}\nwiring: |\n  model(x: f32[tokens, 1]) {{ return {{y: x}} }}\n"
            )
        };
        let files = [("a.yaml", card("n")), ("b.yaml", card("n, m"))];
        let library = Library::build(files.into_iter().map(|(p, t)| (PathBuf::from(p), t)));
        let picked = |config: serde_json::Value| pick_card(&config, &library).map(|spec| spec.name.to_string()).ok();
        assert_eq!(picked(serde_json::json!({"n": 1, "k": 2})).as_deref(), Some("n"));
        assert_eq!(picked(serde_json::json!({"n": 1, "m": 2})).as_deref(), Some("n, m"));
        assert_eq!(picked(serde_json::json!({"m": 2})), None);
        assert_eq!(picked(serde_json::json!({"n": 1, "model_type": "x"})), None);
    }

    #[test]
    fn mistakes_of_the_library_are_said_with_a_card() {
        let files = [("lib/a.xf", "f(x) = )\n"), ("c.yaml", "xfc: 1\nname: C\nsizes: {}\nwiring: |\n  a = 1\n")];
        let library = Library::build(files.into_iter().map(|(p, t)| (PathBuf::from(p), t.to_string())));
        let report = load_card("c", &library).expect_err("the library is wrong");
        assert!(report.to_string().contains("lib/a.xf:1:8"), "{report}");
    }
}
