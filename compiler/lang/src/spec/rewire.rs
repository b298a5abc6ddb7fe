//! `--set`: sizes taken apart from definitions, and definitions put into the wiring.
//!
//! ```text
//! hidden_size=64                       a size: left for the sizes
//! norm = layer_norm(1.0e-5)            a definition of the card, replaced
//! layer.h = norm_1(x + attn(x))        a line of a module
//! layer.return = norm_2(h + mlp(h))    what it returns
//! encoder.layer(x) { .. }              a module in a module
//! ```
//!
//! A name that the module does not bind is a new line at its beginning, and must be used there. A module of the library is copied into the card, which
//! alone sees the change. Positions are those of the text given: each is a source of its own.

use std::sync::Arc;

use super::ast::{Expr, Ident, Item, Module};
use super::extends::without;
use super::xf_to_spec::{Origin, parse_items};
use super::{Datum, Spec};
use crate::diagnostic::{Code, Diagnostic, Report, Span, did_you_mean};

/// Applies what `--set` says, in order: changes the wiring, and returns what sets sizes, name and value.
///
/// # Errors
/// Everything that is wrong with the texts, each with its place in it.
pub fn apply_sets(spec: &mut Spec, sets: &[String]) -> Result<Vec<(String, String)>, Report> {
    let (mut sizes, mut diagnostics, mut added) = (Vec::new(), Vec::new(), Vec::new());
    let first_set = spec.sources.len();
    for text in sets {
        let path = path(text);
        if path.is_empty() || (path.len() == 1 && !is_wiring(spec, text, path[0])) {
            match text.split_once('=') {
                Some((name, _)) if name.trim().is_empty() => {
                    let message = format!("`--set {text}` names nothing");
                    diagnostics.push(Diagnostic::unplaced(Code::Syntax, message).help(FORMS));
                }
                Some((name, value)) => sizes.push((name.trim().to_string(), value.trim().to_string())),
                None => {
                    let message = format!("`--set {text}` has no value");
                    diagnostics.push(Diagnostic::unplaced(Code::Syntax, message).help(FORMS));
                }
            }
            continue;
        }
        if let Some(d) = part_of_size(spec, text, &path) {
            diagnostics.push(d);
            continue;
        }
        let source = spec.sources.add("--set", text.as_str());
        let Some((item, is_result)) = read(text, &path, source, &mut diagnostics) else { continue };
        // Another model than the published one.
        spec.published = None;
        let (modules, _) = path.split_at(path.len() - 1);
        let mut edit = Edit { text, source, first_set, is_result, new: Vec::new(), diagnostics: &mut diagnostics };
        if let Some(&first) = modules.first()
            && find(&spec.wiring, first).is_none()
            && let Some(Item::Module(m)) = find(&spec.library, first)
        {
            spec.wiring.push(Item::Module(m.clone()));
        }
        if modules.is_empty() {
            let names: Vec<Arc<str>> = item.names().iter().map(|n| n.name.clone()).collect();
            let kept = std::mem::take(&mut spec.wiring).into_iter().filter_map(|item| without(item, &names));
            spec.wiring = kept.chain([item]).collect();
        } else if let Some(items) = edit.items(&spec.wiring, modules, &item) {
            let new = std::mem::take(&mut edit.new);
            spec.wiring = items;
            added.push((modules.iter().map(|m| (*m).to_string()).collect::<Vec<_>>(), new));
        }
    }
    for (modules, names) in added {
        diagnostics.extend(names.iter().filter_map(|name| unused(spec, &modules, name)));
    }
    if diagnostics.is_empty() { Ok(sizes) } else { Err(Report::new(spec.sources.clone(), diagnostics)) }
}

const FORMS: &str = "write `SIZE=VALUE`, or a line of the wiring as in `layer.h = x + attn(x)`";

/// What is wrong with a text that sets a part of a size: a size is set as a whole.
fn part_of_size(spec: &Spec, text: &str, path: &[&str]) -> Option<Diagnostic> {
    let (first, rest) = path.split_first()?;
    let size = spec.sizes.iter().find(|s| *s.name == **first)?;
    if find(&spec.wiring, first).is_some() || find(&spec.library, first).is_some() {
        return None;
    }
    let value = text.split_once('=').map_or("..", |(_, value)| value.trim());
    let (kind, help) = match size.example.as_ref().or(size.default.as_ref()) {
        Some(Datum::Map(_)) => (
            "a mapping, which is set as a whole",
            format!("write `--set '{first}={{{}: {value}}}'`, with all keys that it is to have", rest.join(".")),
        ),
        _ => ("a size without parts", format!("write `--set {first}={value}`")),
    };
    Some(Diagnostic::unplaced(Code::UnknownSize, format!("`--set {text}`: `{first}` is {kind}")).help(help))
}

/// The names with dots at the beginning of a text.
fn path(text: &str) -> Vec<&str> {
    let end = text.find(|c: char| !c.is_ascii_alphanumeric() && !matches!(c, '_' | '.' | '\'')).unwrap_or(text.len());
    let path: Vec<&str> = text[..end].split('.').collect();
    let is_name = |n: &&str| n.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    if path.iter().all(is_name) { path } else { Vec::new() }
}

/// Whether a text of one name is a definition: of a module or function, or of a name that the wiring binds and that is no size.
fn is_wiring(spec: &Spec, text: &str, name: &str) -> bool {
    let rest = text[name.len()..].trim_start();
    let is_size = spec.sizes.iter().any(|s| *s.name == *name);
    !is_size
        && (rest.starts_with(['(', ',']) || find(&spec.wiring, name).is_some() || find(&spec.library, name).is_some())
}

fn find<'i>(items: &'i [Item], name: &str) -> Option<&'i Item> {
    items.iter().find(|item| item.names().iter().any(|n| *n.name == *name))
}

/// The one definition of a text behind the path to it; whether it is what a module returns.
fn read(text: &str, path: &[&str], source: u32, diagnostics: &mut Vec<Diagnostic>) -> Option<(Item, bool)> {
    let last = path.last()?;
    let start: usize = path.iter().map(|p| p.len() + 1).sum::<usize>() - last.len() - 1;
    let is_result = *last == "return";
    // A name of the same length, so that positions stay.
    let definition =
        if is_result { format!("result{}", &text[start + last.len()..]) } else { text[start..].to_string() };
    let before = diagnostics.len();
    let mut items = parse_items(&definition, &Origin { source, lines: vec![(0, start)] }, diagnostics);
    if diagnostics.len() > before {
        return None;
    }
    let span = Span { source, start: start as u32, end: text.len() as u32 };
    let mut refuse = |message: &str, help: &str| {
        diagnostics.push(Diagnostic::new(Code::Syntax, message, span).label("this text").help(help));
        None
    };
    match (items.pop(), items.is_empty()) {
        (Some(item), true) if is_result && !matches!(&item, Item::Binding(b) if b.names.len() == 1) => {
            drop(item);
            refuse("what a module returns is an expression", "write it as in `layer.return = x + h`")
        }
        (Some(item), true) => Some((item, is_result)),
        _ => refuse("`--set` takes one definition", "give `--set` once for each"),
    }
}

/// One definition on its way into a module.
struct Edit<'a> {
    text: &'a str,
    source: u32,
    first_set: u32,
    is_result: bool,
    /// Names that the module did not bind.
    new: Vec<Ident>,
    diagnostics: &'a mut Vec<Diagnostic>,
}

impl Edit<'_> {
    /// The items with `item` put into the module that `modules` leads to.
    fn items(&mut self, items: &[Item], modules: &[&str], item: &Item) -> Option<Vec<Item>> {
        let (name, rest) = modules.split_first()?;
        let Some(at) = items.iter().position(|i| matches!(i, Item::Module(m) if *m.name.name == **name)) else {
            self.no_module(items, name);
            return None;
        };
        let Item::Module(module) = &items[at] else { return None };
        let mut module = Module::clone(module);
        match (rest.is_empty(), self.is_result, item) {
            (true, true, Item::Binding(b)) => module.result = b.value.clone(),
            (true, _, item) => {
                let items = &module.items;
                let bound = |n: &&Ident| items.iter().any(|i| i.names().iter().any(|b| b.name == n.name));
                let names = item.names();
                let at = items.iter().position(|i| i.names().iter().any(|b| names.iter().any(|n| n.name == b.name)));
                // Behind the new ones at the beginning.
                let is_new = |i: &&Item| i.names().iter().all(|n| n.span.source >= self.first_set);
                let at = at.unwrap_or_else(|| items.iter().take_while(is_new).count());
                self.new.extend(names.iter().filter(|n| !bound(n)).map(|n| (*n).clone()));
                module.items = put(items, item, at);
            }
            (false, ..) => module.items = self.items(&module.items, rest, item)?,
        }
        let mut items = items.to_vec();
        items[at] = Item::Module(Arc::new(module));
        Some(items)
    }

    fn no_module(&mut self, items: &[Item], name: &str) {
        let start = self.text.find(name).unwrap_or(0) as u32;
        let span = Span { source: self.source, start, end: start + name.len() as u32 };
        let modules: Vec<&str> =
            items.iter().filter_map(|i| if let Item::Module(m) = i { Some(&*m.name.name) } else { None }).collect();
        let help = did_you_mean(name, modules.iter().copied())
            .or_else(|| (!modules.is_empty()).then(|| format!("the modules here are {}", modules.join(", "))));
        let d = Diagnostic::new(Code::UnknownName, format!("no module `{name}`"), span);
        self.diagnostics.push(d.label("not defined there").maybe_help(help));
    }
}

/// The body with a definition in place of the one of the same name.
fn put(items: &[Item], item: &Item, at: usize) -> Vec<Item> {
    let names: Vec<Arc<str>> = item.names().iter().map(|n| n.name.clone()).collect();
    let mut out = items[..at].to_vec();
    out.push(item.clone());
    out.extend(items[at..].iter().filter_map(|old| without(old.clone(), &names)));
    out
}

/// What is wrong with a new line that nothing of its module uses: it would change nothing, as a mistyped name does.
fn unused(spec: &Spec, modules: &[String], name: &Ident) -> Option<Diagnostic> {
    let mut items = &spec.wiring;
    let mut module = None;
    for step in modules {
        let Item::Module(m) = find(items, step)? else { return None };
        (items, module) = (&m.items, Some(m));
    }
    let module = module?;
    if uses(spec, &module.result, &name.name) || items.iter().any(|i| item_uses(spec, i, &name.name)) {
        return None;
    }
    let bound = items.iter().flat_map(Item::names).map(|n| &*n.name).filter(|n| **n != *name.name);
    let help = did_you_mean(&name.name, bound)
        .unwrap_or_else(|| "a new line must be used by another; `--set` may repeat".to_string());
    let message = format!("`{}` binds no `{}`, and nothing in it uses that name", modules.join("."), name.name);
    Some(Diagnostic::new(Code::UnknownName, message, name.span).label("this would change nothing").help(help))
}

fn item_uses(spec: &Spec, item: &Item, name: &str) -> bool {
    match item {
        Item::Module(m) => uses(spec, &m.result, name) || m.items.iter().any(|i| item_uses(spec, i, name)),
        Item::Function(f) => uses(spec, &f.body, name),
        Item::Binding(b) => uses(spec, &b.value, name),
    }
}

/// Whether a name stands in the text of an expression.
fn uses(spec: &Spec, expr: &Expr, name: &str) -> bool {
    let text = spec.sources.text(expr.span);
    let part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '\'');
    text.match_indices(name).any(|(at, _)| !text[..at].ends_with(part) && !text[at + name.len()..].starts_with(part))
}

#[cfg(test)]
mod tests;
