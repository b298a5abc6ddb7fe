//! Cards that build on cards: `extends:` followed, and what it leads to merged.
//!
//! Given a card's text, gives the chain of cards from it to the one that extends nothing, and one tree of data in which the changed keys
//! are the card's and the others those of what it extends. The wiring is merged where it has been read: see [`merge_items`].

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Library;
use super::ast::{Binding, Item};
use super::library::cards_are;
use super::tree::{MAX_BYTES, Node, NodeKind, parse_yaml};
use crate::diagnostic::{Code, Diagnostic, SourceMap, did_you_mean};

/// Most cards one behind the other.
const MAX_CHAIN: usize = 16;

/// One card of a chain.
pub(super) struct Link {
    /// Its number among the sources.
    pub(super) source: u32,
    /// Its text, without a byte order mark.
    pub(super) text: Arc<str>,
    /// Its tree.
    pub(super) root: Node,
}

/// The card of `text` and what it extends, itself first. What cannot be followed is a diagnostic, and ends the chain.
pub(super) fn chain(
    name: &str,
    text: &str,
    file: Option<&Path>,
    library: &Library,
    sources: &mut SourceMap,
    diagnostics: &mut Vec<Diagnostic>,
) -> Vec<Link> {
    let mut links: Vec<Link> = Vec::new();
    let mut seen: Vec<String> = vec![identity(name, file)];
    let mut next = Some((name.to_string(), text.to_string(), file.map(Path::to_path_buf)));
    while let Some((name, text, file)) = next.take() {
        // A byte order mark is no text.
        let text: Arc<str> = text.strip_prefix('\u{feff}').unwrap_or(&text).into();
        let source = sources.add(name, text.clone());
        let Some(root) = parse_yaml(&text, source, diagnostics) else { return links };
        let extends = entry(&root, "extends").cloned();
        links.push(Link { source, text, root });
        let Some(node) = extends else { break };
        let NodeKind::Scalar { text: target, .. } = &node.kind else {
            let message = format!("`extends` must be a card's name or path, not {}", node.datum().kind());
            diagnostics.push(Diagnostic::new(Code::WrongKind, message, node.span).label("expected a string"));
            break;
        };
        match follow(target, file.as_deref(), library) {
            Err(problem) => {
                let d = Diagnostic::new(problem.code, problem.message, node.span).label("extended here");
                diagnostics.push(d.maybe_help(problem.help));
            }
            Ok((name, text, file)) => {
                let identity = identity(&name, file.as_deref());
                if seen.contains(&identity) {
                    let message = format!("the card `{name}` extends itself");
                    diagnostics.push(Diagnostic::new(Code::Cycle, message, node.span).label("leads back to it"));
                } else if links.len() >= MAX_CHAIN {
                    let message = format!("more than {MAX_CHAIN} cards one behind the other");
                    diagnostics.push(Diagnostic::new(Code::TooDeep, message, node.span).label("one too many"));
                } else {
                    seen.push(identity);
                    next = Some((name, text, file));
                }
            }
        }
    }
    links
}

/// What tells a card apart from others.
fn identity(name: &str, file: Option<&Path>) -> String {
    match file {
        Some(path) => path.canonicalize().unwrap_or_else(|_| path.to_path_buf()).display().to_string(),
        None => name.to_string(),
    }
}

/// What is wrong with a card that is to be read.
pub(super) struct Problem {
    pub(super) code: Code,
    pub(super) message: String,
    pub(super) help: Option<String>,
}

/// The name, text and file of the card that `extends` names: a path from the folder of the card, or a card of the library.
fn follow(target: &str, from: Option<&Path>, library: &Library) -> Result<(String, String, Option<PathBuf>), Problem> {
    if !is_path(target) {
        let Some(text) = library.card_text(target) else {
            let help = did_you_mean(target, library.cards()).unwrap_or_else(|| {
                format!("{}; a file is named by its path, as in ./{target}.yaml", cards_are(library))
            });
            return Err(Problem {
                code: Code::UnknownModel,
                message: format!("no card is named `{target}`"),
                help: Some(help),
            });
        };
        return Ok((card_name(target), text.to_string(), None));
    }
    let Some(from) = from else {
        // The cards of a library lie in one folder.
        let beside = target.strip_prefix("./").and_then(|t| t.strip_suffix(".yaml"));
        if let Some((name, text)) = beside.and_then(|name| Some((name, library.card_text(name)?))) {
            return Ok((card_name(name), text.to_string(), None));
        }
        return Err(Problem {
            code: Code::Unreadable,
            message: format!("cannot read {target}: this card is in no folder from which a path could lead"),
            help: Some("name a card of the library".to_string()),
        });
    };
    // Without the steps that lead nowhere: `./` in the middle.
    let path: PathBuf = from.parent().unwrap_or(Path::new("")).join(target).components().collect();
    let text = read_text(&path)?;
    Ok((path.display().to_string(), text, Some(path)))
}

/// Whether a text names a file rather than a card of the library.
pub(super) fn is_path(text: &str) -> bool {
    text.contains(['/', '\\']) || Path::new(text).extension().is_some()
}

/// How messages call a card of the library.
pub(super) fn card_name(name: &str) -> String {
    format!("models/{name}.yaml")
}

/// A card's text.
pub(super) fn read_text(path: &Path) -> Result<String, Problem> {
    let unreadable = |e: std::io::Error| Problem {
        code: Code::Unreadable,
        message: format!("cannot read {}: {e}", path.display()),
        help: None,
    };
    let size = std::fs::metadata(path).map_err(unreadable)?.len();
    if size > MAX_BYTES as u64 {
        let message = format!("{} has {size} bytes; a card has at most {MAX_BYTES}", path.display());
        return Err(Problem { code: Code::TooLarge, message, help: None });
    }
    std::fs::read_to_string(path).map_err(unreadable)
}

fn entry<'n>(node: &'n Node, key: &str) -> Option<&'n Node> {
    match &node.kind {
        NodeKind::Map(entries) => entries.iter().find(|(k, _)| &*k.text == key).map(|(_, n)| n),
        _ => None,
    }
}

/// What of another card is not said of the card that extends it: it is another model.
const OWN: &[&str] = &["xfc", "name", "published", "extends", "wiring"];

/// The data of a card over that of the card it extends.
pub(super) fn merge(card: &Node, base: &Node) -> Node {
    let (NodeKind::Map(own), NodeKind::Map(theirs)) = (&card.kind, &base.kind) else { return card.clone() };
    let mut entries = own.clone();
    for (key, node) in &mut entries {
        let depth = match &*key.text {
            "sizes" | "assumes" | "tiny" | "gguf" => 1,
            "names" => 2,
            _ => 0,
        };
        if let Some(base) = entry(base, &key.text) {
            *node = over(node, base, depth);
        }
    }
    for (key, node) in theirs {
        if OWN.contains(&&*key.text) || entry(card, &key.text).is_some() {
            continue;
        }
        let mut node = node.clone();
        // Where the sizes lie in a config is the same; which config it is for is not.
        if let (true, NodeKind::Map(entries)) = (&*key.text == "matches", &mut node.kind) {
            entries.retain(|(k, _)| !["model_type", "gguf", "gguf_keys"].contains(&&*k.text));
        }
        entries.push((key.clone(), node));
    }
    Node { kind: NodeKind::Map(entries), span: card.span }
}

/// One mapping over another, key by key, so many levels deep. The order is that of the base, new keys behind.
fn over(card: &Node, base: &Node, depth: usize) -> Node {
    let (NodeKind::Map(own), NodeKind::Map(theirs)) = (&card.kind, &base.kind) else { return card.clone() };
    if depth == 0 {
        return card.clone();
    }
    let find = |list: &[(super::Key, Node)], key: &str| list.iter().find(|(k, _)| &*k.text == key).cloned();
    let mut entries = Vec::new();
    for (key, node) in theirs {
        entries.push(match find(own, &key.text) {
            Some((own_key, own)) => (own_key, over(&own, node, depth - 1)),
            None => (key.clone(), node.clone()),
        });
    }
    entries.extend(own.iter().filter(|(k, _)| find(theirs, &k.text).is_none()).cloned());
    Node { kind: NodeKind::Map(entries), span: card.span }
}

/// The definitions of a card over those of what it extends: of the same name replaced, the others kept.
pub(super) fn merge_items(own: Vec<Item>, base: Vec<Item>) -> Vec<Item> {
    let names: Vec<Arc<str>> = own.iter().flat_map(Item::names).map(|n| n.name.clone()).collect();
    let mut items: Vec<Item> = base.into_iter().filter_map(|item| without(item, &names)).collect();
    items.extend(own);
    items
}

/// A definition without some of its names; `None` when none is left.
pub(super) fn without(item: Item, names: &[Arc<str>]) -> Option<Item> {
    let left: Vec<_> = item.names().into_iter().filter(|n| !names.contains(&n.name)).cloned().collect();
    match item {
        _ if left.is_empty() => None,
        Item::Binding(b) if left.len() < b.names.len() => {
            Some(Item::Binding(Arc::new(Binding { names: left, value: b.value.clone() })))
        }
        item => Some(item),
    }
}

#[cfg(test)]
mod tests;
