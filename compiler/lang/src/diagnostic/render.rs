//! Diagnostics as text for people and as JSON for programs.
//!
//! ```text
//! error[E0201]: no name `rms_nrom`
//!   ┌ models/tiny.yaml:14:10
//! 14│   norm = rms_nrom(eps)
//!   │          ^^^^^^^^ not defined here, in the card or in the library
//!   = help: did you mean `rms_norm`?
//! ```

use std::fmt;

use serde_json::{Value, json};

use super::{Diagnostic, Label, Report, SourceMap};

pub(super) fn to_text(report: &Report, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    for (i, diagnostic) in report.diagnostics.iter().enumerate() {
        if i > 0 {
            writeln!(f)?;
        }
        one(&report.sources, diagnostic, f)?;
    }
    Ok(())
}

fn one(sources: &SourceMap, diagnostic: &Diagnostic, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    writeln!(f, "error[{}]: {}", diagnostic.code.id(), diagnostic.message)?;
    let labels: Vec<(&Label, char)> =
        diagnostic.primary.iter().map(|l| (l, '^')).chain(diagnostic.others.iter().map(|l| (l, '-'))).collect();
    let widest = labels.iter().map(|(l, _)| sources.line_column(l.span).0.to_string().len()).max().unwrap_or(1);
    let mut shown = None;
    for (label, mark) in labels {
        let Some(source) = sources.get(label.span.source) else { continue };
        let (line, column) = sources.line_column(label.span);
        if shown != Some(label.span.source) {
            writeln!(f, "{:widest$}┌ {}:{line}:{column}", "", source.name)?;
            shown = Some(label.span.source);
        }
        let text = source.text.lines().nth(line - 1).unwrap_or("");
        let (text, column) = excerpt(text, column);
        let length = sources.text(label.span).lines().next().unwrap_or("").chars().count();
        let room = text.chars().count().saturating_sub(column - 1);
        let marks: String = std::iter::repeat_n(mark, length.min(room).max(1)).collect();
        writeln!(f, "{line:>widest$}│ {text}")?;
        writeln!(
            f,
            "{:widest$}│ {:pad$}{marks}{}{}",
            "",
            "",
            if label.text.is_empty() { "" } else { " " },
            label.text,
            pad = column - 1
        )?;
    }
    if let Some(help) = &diagnostic.help {
        writeln!(f, "{:widest$}= help: {help}", "")?;
    }
    Ok(())
}

/// At most 160 characters of a line around the column, tabs and control characters as spaces.
fn excerpt(line: &str, column: usize) -> (String, usize) {
    const WIDTH: usize = 160;
    let skip = if column > WIDTH - 40 { column - 40 } else { 0 };
    let text: String = line.chars().skip(skip).take(WIDTH).map(|c| if c.is_control() { ' ' } else { c }).collect();
    (text.trim_end().to_string(), column - skip)
}

pub(super) fn to_json(report: &Report) -> Value {
    let place = |label: &Label| {
        let (line, column) = report.sources.line_column(label.span);
        let file = report.sources.get(label.span.source).map(|s| s.name.to_string());
        json!({"file": file, "line": line, "column": column, "text": label.text})
    };
    report
        .diagnostics
        .iter()
        .map(|d| {
            json!({
                "code": d.code.id(), "message": d.message, "help": d.help,
                "primary": d.primary.as_ref().map(place), "others": d.others.iter().map(place).collect::<Vec<_>>(),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::{Code, Span};
    use super::*;

    fn report() -> Report {
        let mut sources = SourceMap::default();
        let source = sources.add("card.yaml", "a: 1\nb: norm = rms_nrom(eps)\n");
        let diagnostic = Diagnostic::new(Code::UnknownName, "no name `rms_nrom`", Span { source, start: 15, end: 23 })
            .label("not defined")
            .help("did you mean `rms_norm`?");
        Report::new(sources, vec![diagnostic])
    }

    #[test]
    fn shows_the_line_and_the_place() {
        let text = report().to_string();
        assert!(text.contains("┌ card.yaml:2:11"), "{text}");
        assert!(text.contains("2│ b: norm = rms_nrom(eps)\n │           ^^^^^^^^ not defined\n"), "{text}");
    }

    #[test]
    fn json_has_the_position() {
        let json = report().to_json();
        assert_eq!(json[0]["primary"]["line"], 2);
        assert_eq!(json[0]["primary"]["column"], 11);
    }
}
