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
    let lines = told_once(sizes, lines);
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
    for line in &lines {
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
    let lines = told_once(sizes, lines);
    let or_null = |v: &str| if v.is_empty() { Value::Null } else { json!(v) };
    json!({
        "before": names[0], "after": names[1],
        "sizes": sizes.iter().map(|(n, a, b)| json!({"name": n, "before": or_null(a), "after": or_null(b)})).collect::<Vec<_>>(),
        "lines": lines.iter().map(|l| json!({"mark": l.mark.name(), "depth": l.depth, "text": l.text})).collect::<Vec<_>>(),
    })
}

/// Lines without the options that say again what a size or another line says, and without modules of which nothing is left to say.
fn told_once(sizes: &[(String, String, String)], lines: &[DiffLine]) -> Vec<DiffLine> {
    let plain = |text: &str| text.chars().filter(|c| !c.is_whitespace() && !"'()".contains(*c)).collect::<String>();
    // Numbers alone may be equal by chance.
    let whole = |(_, a, b): &&(String, String, String)| a.starts_with(['{', '[']) && b.starts_with(['{', '[']);
    let sizes: Vec<(String, String)> = sizes.iter().filter(whole).map(|(_, a, b)| (plain(a), plain(b))).collect();
    let option = |line: &DiffLine| {
        let (name, change) = line.text.split_once("option ")?.1.split_once(' ')?;
        let (before, after) = change.split_once(" -> ")?;
        (line.mark == Mark::Changed).then(|| (name.to_owned(), plain(before), plain(after)))
    };
    let others: Vec<String> = lines.iter().filter(|l| option(l).is_none()).map(|l| plain(&l.text)).collect();
    let again = |line: &DiffLine| {
        option(line).is_some_and(|(name, before, after)| {
            sizes.iter().any(|(a, b)| before.replace(a.as_str(), b) == after)
                || others.iter().any(|other| other.contains(&format!("{name}{before}->{name}{after}")))
        })
    };
    let mut kept: Vec<bool> = lines.iter().map(|line| !again(line)).collect();
    for i in (0..lines.len()).rev().filter(|i| lines[*i].mark == Mark::Same) {
        let mut below = (i + 1..lines.len()).take_while(|j| lines[*j].depth > lines[i].depth).peekable();
        kept[i] = below.peek().is_none() || below.any(|j| kept[j]);
    }
    lines.iter().zip(kept).filter(|(_, kept)| *kept).map(|(line, _)| line.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_size_or_a_formula_says_is_told_once() {
        let line = |mark, depth, text: &str| DiffLine { mark, depth, text: text.to_owned() };
        let lines = [
            line(Mark::Same, 0, "self_attn"),
            line(Mark::Changed, 1, "option rotate rotary(rope = {kind: 'a', n: 8}) -> rotary(rope = {kind: 'b'})"),
            line(Mark::Changed, 1, "option mask (k <= q) -> ((k <= q) and (q - k < 4))"),
            line(Mark::Changed, 1, "option heads 4 -> 8"),
            line(Mark::Same, 1, "rotate"),
            line(Mark::Changed, 2, "option rope {kind: 'a', n: 8} -> {kind: 'b'}"),
            line(Mark::Changed, 1, "attention: mask k <= q -> mask k <= q and q - k < 4"),
            line(Mark::Same, 0, "layers 1-2: the same"),
        ];
        let sizes = [("rope".to_owned(), "{kind: a, n: 8}".to_owned(), "{kind: b}".to_owned())];
        let told: Vec<String> = told_once(&sizes, &lines).into_iter().map(|l| l.text).collect();
        let expected = [
            "self_attn",
            "option heads 4 -> 8",
            "attention: mask k <= q -> mask k <= q and q - k < 4",
            "layers 1-2: the same",
        ];
        assert_eq!(told, expected);
        assert_eq!(told_once(&[], &lines).len(), lines.len() - 1);
    }
}
