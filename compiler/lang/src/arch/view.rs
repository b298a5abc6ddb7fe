//! An [`Arch`] as canonical YAML.

use std::fmt::{self, Write as _};

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
        for p in &self.parameters {
            let dims: Vec<String> = p.shape.iter().map(u64::to_string).collect();
            writeln!(f, "  {}: [{}]", p.path, dims.join(", "))?;
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
    let mut line = format!("{:indent$}{}: {{module: {}", "", name, node.module, indent = depth * 2);
    for (option, value) in &node.options {
        write!(line, ", {option}: {}", quoted(value))?;
    }
    line.push('}');
    if node.children.is_empty() {
        return writeln!(f, "{line}");
    }
    line.pop();
    writeln!(f, "{line}, modules:")?;
    for child in &node.children {
        module(child, &node.path, depth + 1, f)?;
    }
    writeln!(f, "{:indent$}}}", "", indent = depth * 2)
}

/// Quoted where YAML would read something else.
fn quoted(text: &str) -> String {
    let plain = text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-' | ' '));
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
