//! An [`Arch`] as canonical YAML.

use std::collections::BTreeMap;
use std::fmt;

use super::{Arch, Node};
use crate::spec::Datum;

impl fmt::Display for Arch {
    /// Canonical YAML: the same arch gives the same text.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "name: {}", quoted(&self.name))?;
        writeln!(f, "sizes:")?;
        for (name, value) in &self.sizes {
            writeln!(f, "  {name}: {}", datum(value))?;
        }
        for (title, entries) in [("inputs", &self.inputs), ("outputs", &self.outputs)] {
            writeln!(f, "{title}:")?;
            for (name, ty) in entries {
                writeln!(f, "  {name}: {}", quoted(ty))?;
            }
        }
        writeln!(f, "modules:")?;
        for child in &self.root.children {
            module(child, "", 1, f)?;
        }
        writeln!(f, "parameter_count: {}", self.parameter_count())?;
        writeln!(f, "parameters:")?;
        let mut stacks: BTreeMap<&str, u64> = BTreeMap::new();
        for stack in self.parameters.iter().filter_map(|p| p.stack.as_deref()) {
            *stacks.entry(stack).or_default() += 1;
        }
        for p in &self.parameters {
            // A stack is one line, at its first.
            let (path, stacked) = match p.stack.as_deref() {
                None => (p.path.as_str(), None),
                Some(stack) => match stacks.remove(stack) {
                    None => continue,
                    count => (stack, count),
                },
            };
            let dims: Vec<String> = stacked.iter().chain(&p.shape).map(u64::to_string).collect();
            writeln!(f, "  {path}: [{}]", dims.join(", "))?;
        }
        if !self.aliases.is_empty() {
            writeln!(f, "aliases:")?;
            for (alias, path) in &self.aliases {
                writeln!(f, "  {alias}: {path}")?;
            }
        }
        writeln!(f, "caches:{}", if self.caches.is_empty() { " {}" } else { "" })?;
        for (path, dims) in &self.caches {
            let dims: Vec<String> = dims.iter().map(u64::to_string).collect();
            writeln!(f, "  {path}: [{}]", dims.join(", "))?;
        }
        Ok(())
    }
}

fn module(node: &Node, parent: &str, depth: usize, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let name = node.path.strip_prefix(parent).map_or(node.path.as_str(), |n| n.trim_start_matches('.'));
    let indent = depth * 2;
    let options: Vec<String> = node.options.iter().map(|(k, v)| format!("{k}: {}", quoted(v))).collect();
    let options = if options.is_empty() { String::new() } else { format!("options: {{{}}}", options.join(", ")) };
    if node.children.is_empty() {
        let comma = if options.is_empty() { "" } else { ", " };
        return writeln!(f, "{:indent$}{name}: {{module: {}{comma}{options}}}", "", node.module);
    }
    writeln!(f, "{:indent$}{name}:", "")?;
    writeln!(f, "{:indent$}  module: {}", "", node.module)?;
    if !options.is_empty() {
        writeln!(f, "{:indent$}  {options}", "")?;
    }
    writeln!(f, "{:indent$}  modules:", "")?;
    node.children.iter().try_for_each(|child| module(child, &node.path, depth + 2, f))
}

/// Quoted where YAML would read something else.
fn quoted(text: &str) -> String {
    let plain = text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-' | ' '));
    let plain = plain && !text.starts_with(['-', '.', ' ']);
    if plain && !text.is_empty() && text.trim() == text {
        text.to_string()
    } else {
        format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
    }
}

fn datum(value: &Datum) -> String {
    match value {
        Datum::Str(s) => quoted(s),
        Datum::List(items) => format!("[{}]", items.iter().map(datum).collect::<Vec<_>>().join(", ")),
        Datum::Map(entries) => {
            format!("{{{}}}", entries.iter().map(|(k, v)| format!("{k}: {}", datum(v))).collect::<Vec<_>>().join(", "))
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use crate::arch::testing::model;
    use crate::spec::{NodeKind, parse_yaml};

    #[test]
    fn it_is_yaml() {
        let arch = model("inner(n: int)(x) { a = lin(n) return a(x) }\nlin(n: int)(x) { w = param[n, width(x)] return einsum('ni,oi->no', x, w) }\n\
                          model(x: f32[tokens, 4]) { b = inner(2) c = lin(3) return {y: c(b(x))} }").arch;
        let text = arch.to_string();
        let mut wrong = Vec::new();
        let node = parse_yaml(&text, 0, &mut wrong).unwrap_or_else(|| panic!("{wrong:?}\n{text}"));
        let NodeKind::Map(entries) = &node.kind else { panic!("{text}") };
        let get = |key: &str| entries.iter().find(|(k, _)| &*k.text == key).map(|(_, n)| n.datum().to_string());
        assert_eq!(get("parameters").as_deref(), Some("{b.a.w: [2, 4], c.w: [3, 2]}"));
        assert_eq!(get("parameter_count").as_deref(), Some("14"));
        assert_eq!(
            get("modules").as_deref(),
            Some(
                "{b: {module: inner, options: {n: 2}, modules: {a: {module: lin, options: {n: 2}}}}, c: {module: lin, options: {n: 3}}}"
            )
        );
    }
}
