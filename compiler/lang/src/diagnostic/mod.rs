//! Messages about the user's text: positions, the source map, one table of codes, rendering.
//!
//! A [`Diagnostic`] is data: a code, a message and labels over spans. It is collected, never thrown away at the first, and
//! turned into text only at the edge, by [`Report`]'s `Display` or [`Report::to_json`].

mod codes;
mod render;
mod suggest;

use std::fmt;
use std::sync::Arc;

pub use self::codes::Code;
pub use self::suggest::{all_closest, closest, did_you_mean};

/// A range of bytes in one source of the [`SourceMap`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Span {
    /// Which source.
    pub source: u32,
    /// First byte.
    pub start: u32,
    /// One past the last byte.
    pub end: u32,
}

impl Span {
    /// The smallest span that holds both; of `self` alone when they are of different sources.
    pub fn to(self, other: Span) -> Span {
        if self.source != other.source {
            return self;
        }
        Span { source: self.source, start: self.start.min(other.start), end: self.end.max(other.end) }
    }
}

/// One text that spans point into.
#[derive(Clone, Debug)]
pub struct Source {
    /// As shown to people: a path, or `lib/norm.xf`.
    pub name: Arc<str>,
    /// The whole text.
    pub text: Arc<str>,
}

/// The texts of one compilation, in the order they were added. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct SourceMap {
    sources: Vec<Source>,
}

impl SourceMap {
    /// Adds a text and returns the number that spans name it by.
    pub fn add(&mut self, name: impl Into<Arc<str>>, text: impl Into<Arc<str>>) -> u32 {
        self.sources.push(Source { name: name.into(), text: text.into() });
        (self.sources.len() - 1) as u32
    }

    /// How many there are: the number that the next one gets.
    pub fn len(&self) -> u32 {
        self.sources.len() as u32
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.sources.is_empty()
    }

    /// The source of that number.
    pub fn get(&self, source: u32) -> Option<&Source> {
        self.sources.get(source as usize)
    }

    /// The text under a span; empty when the span is not of this map.
    pub fn text(&self, span: Span) -> &str {
        self.get(span.source).and_then(|s| s.text.get(span.start as usize..span.end as usize)).unwrap_or("")
    }

    /// Line and column, both from 1, the column in characters.
    pub fn line_column(&self, span: Span) -> (usize, usize) {
        let Some(source) = self.get(span.source) else { return (1, 1) };
        let mut at = (span.start as usize).min(source.text.len());
        while !source.text.is_char_boundary(at) {
            at -= 1;
        }
        let before = &source.text[..at];
        let line_start = before.rfind('\n').map_or(0, |i| i + 1);
        (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
    }
}

/// A place and what is to be said about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Label {
    /// The place.
    pub span: Span,
    /// Makes sense alone: `expected an expression`. May be empty.
    pub text: String,
}

/// One thing that is wrong with the user's text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// Its row in the table of codes.
    pub code: Code,
    /// Lowercase, without a final full stop.
    pub message: String,
    /// Where; `None` for what has no place in a text (an option of the command line).
    pub primary: Option<Label>,
    /// Other places that explain it.
    pub others: Vec<Label>,
    /// What to do.
    pub help: Option<String>,
}

impl Diagnostic {
    /// A diagnostic at a place.
    pub fn new(code: Code, message: impl Into<String>, span: Span) -> Self {
        Diagnostic {
            code,
            message: message.into(),
            primary: Some(Label { span, text: String::new() }),
            others: Vec::new(),
            help: None,
        }
    }

    /// A diagnostic about something that is not in a text.
    pub fn unplaced(code: Code, message: impl Into<String>) -> Self {
        Diagnostic { code, message: message.into(), primary: None, others: Vec::new(), help: None }
    }

    /// Sets the text of the primary label.
    #[must_use]
    pub fn label(mut self, text: impl Into<String>) -> Self {
        if let Some(primary) = &mut self.primary {
            primary.text = text.into();
        }
        self
    }

    /// Adds another place.
    #[must_use]
    pub fn other(mut self, span: Span, text: impl Into<String>) -> Self {
        self.others.push(Label { span, text: text.into() });
        self
    }

    /// Sets the advice.
    #[must_use]
    pub fn help(mut self, text: impl Into<String>) -> Self {
        self.help = Some(text.into());
        self
    }

    /// Sets the advice, if there is any.
    #[must_use]
    pub fn maybe_help(mut self, text: Option<String>) -> Self {
        self.help = text.or(self.help);
        self
    }
}

/// Most diagnostics that a report holds, the last line about the others left out.
pub const MAX_SHOWN: usize = 100;

/// Diagnostics and the texts they speak of: the error type of everything that reads what a user wrote.
#[derive(Clone, Debug)]
pub struct Report {
    /// The texts.
    pub sources: SourceMap,
    /// At least one, in the order of their places.
    pub diagnostics: Vec<Diagnostic>,
}

impl Report {
    /// A report with the diagnostics sorted by place, each said once; the first [`MAX_SHOWN`] and that there are more.
    pub fn new(sources: SourceMap, mut diagnostics: Vec<Diagnostic>) -> Self {
        diagnostics.sort_by_key(|d| d.primary.as_ref().map(|p| p.span));
        diagnostics.dedup();
        if diagnostics.len() > MAX_SHOWN {
            diagnostics.truncate(MAX_SHOWN);
            let message = format!("there is more wrong than these {MAX_SHOWN}; the rest is not shown");
            diagnostics.push(Diagnostic::unplaced(Code::TooLarge, message));
        }
        Report { sources, diagnostics }
    }

    /// A report of one diagnostic without a place.
    pub fn unplaced(code: Code, message: impl Into<String>) -> Self {
        Report { sources: SourceMap::default(), diagnostics: vec![Diagnostic::unplaced(code, message)] }
    }

    /// The diagnostics for programs: an array of objects with `code`, `message`, `file`, `line`, `column`, `labels`, `help`.
    pub fn to_json(&self) -> serde_json::Value {
        render::to_json(self)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        render::to_text(self, f)
    }
}

impl std::error::Error for Report {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_count_characters() {
        let mut sources = SourceMap::default();
        let source = sources.add("a.xf", "é = 1\nyy = 2\n");
        assert_eq!(sources.line_column(Span { source, start: 3, end: 4 }), (1, 3));
        assert_eq!(sources.line_column(Span { source, start: 7, end: 9 }), (2, 1));
        assert_eq!(sources.text(Span { source, start: 7, end: 9 }), "yy");
    }

    #[test]
    fn the_same_thing_is_said_once() {
        let span = Span { source: 0, start: 0, end: 1 };
        let one = Diagnostic::new(Code::UnknownName, "no name `x`", span);
        let report = Report::new(SourceMap::default(), vec![one.clone(), one]);
        assert_eq!(report.diagnostics.len(), 1);
    }

    #[test]
    fn a_report_is_bounded() {
        let at = |start| Diagnostic::new(Code::UnknownName, "no name", Span { source: 0, start, end: start + 1 });
        let report = Report::new(SourceMap::default(), (0..5000).map(at).collect());
        assert_eq!(report.diagnostics.len(), MAX_SHOWN + 1);
        assert_eq!(report.diagnostics.last().map(|d| d.code), Some(Code::TooLarge));
    }
}
