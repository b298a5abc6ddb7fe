//! The lines of a comparison for people and for programs.

use std::fmt::Write;

use serde_json::{Value, json};

use super::compare::DiffLine;
use super::scene::Mark;

/// Lines for people, under the names of both sides and the sizes that differ.
pub fn diff_text(names: [&str; 2], sizes: &[(String, String, String)], lines: &[DiffLine]) -> String {
    let mut out = format!("--- {}\n+++ {}\n", names[0], names[1]);
    if sizes.is_empty() && lines.is_empty() {
        out.push_str("no difference\n");
        return out;
    }
    if !sizes.is_empty() {
        out.push_str("  sizes\n");
    }
    for (name, before, after) in sizes {
        let _ = match (before.as_str(), after.as_str()) {
            ("", after) => writeln!(out, "+   {name}: {after}"),
            (before, "") => writeln!(out, "-   {name}: {before}"),
            (before, after) => writeln!(out, "~   {name}: {before} -> {after}"),
        };
    }
    for line in lines {
        let sign = match line.mark {
            Mark::Same => ' ',
            Mark::Added => '+',
            Mark::Removed => '-',
            Mark::Changed => '~',
        };
        let _ = writeln!(out, "{sign} {:indent$}{}", "", line.text, indent = line.depth * 2);
    }
    out
}

/// The same for programs.
pub fn diff_json(names: [&str; 2], sizes: &[(String, String, String)], lines: &[DiffLine]) -> Value {
    let or_null = |v: &str| if v.is_empty() { Value::Null } else { json!(v) };
    json!({
        "before": names[0], "after": names[1],
        "sizes": sizes.iter().map(|(n, a, b)| json!({"name": n, "before": or_null(a), "after": or_null(b)})).collect::<Vec<_>>(),
        "lines": lines.iter().map(|l| json!({"mark": l.mark.name(), "depth": l.depth, "text": l.text})).collect::<Vec<_>>(),
    })
}
