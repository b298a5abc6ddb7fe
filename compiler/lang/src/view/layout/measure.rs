//! How much room text takes, and so how large a node is.
//!
//! Fonts are the reader's, so widths are estimates on the wide side; the same text always measures the same.

use crate::graph::path::split_last;
use crate::view::magnitude;
use crate::view::scene::{Frame, Kind, Node, Repeat, Shape, Weight};

/// Width of a character of the proportional font, in thousandths of the font's size.
fn advance(c: char) -> u32 {
    match c {
        'i' | 'j' | 'l' | '.' | ',' | ':' | ';' | '|' | '\'' | '!' => 300,
        'f' | 't' | 'r' | '(' | ')' | '[' | ']' | '/' | ' ' | '-' | '"' => 390,
        'm' | 'w' | 'M' | 'W' | '@' | '%' => 920,
        '0'..='9' => 620,
        'A'..='Z' | '+' | '=' | '<' | '>' | '_' | '~' => 700,
        c if c.is_ascii() => 600,
        // Signs and letters of other scripts: as wide as they come.
        _ => 1000,
    }
}

/// Width of proportional text.
pub(super) fn text(text: &str, size: f64) -> f64 {
    f64::from(text.chars().map(advance).sum::<u32>()) * size / 1000.0
}

/// Width of monospaced text.
pub(in crate::view) fn mono(text: &str, size: f64) -> f64 {
    text.chars().map(|c| if c.is_ascii() || "−×÷≤≥≠→·…".contains(c) { 0.61 } else { 1.0 }).sum::<f64>() * size
}

/// What a line of a node is, which decides its font.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::view) enum Style {
    /// The first.
    Title,
    /// What it does.
    Line,
    /// Why it ends.
    Reason,
    /// A weight.
    Weight,
}

impl Style {
    /// As a class of the stylesheet.
    pub(in crate::view) fn name(self) -> &'static str {
        match self {
            Style::Title => "title",
            Style::Line => "line",
            Style::Reason => "reason",
            Style::Weight => "weight",
        }
    }

    fn height(self) -> f64 {
        match self {
            Style::Title => 18.0,
            Style::Line => 15.0,
            Style::Reason => 14.0,
            Style::Weight => 17.0,
        }
    }

    fn width(self, line: &str) -> f64 {
        match self {
            Style::Title => text(line, 13.0) * 1.06,
            Style::Line => text(line, 11.0),
            Style::Reason => text(line, 10.5),
            Style::Weight => mono(line, 10.0) + 18.0,
        }
    }
}

/// A line of text at the baseline `y` from the top of its node.
#[derive(Clone, Debug)]
pub(in crate::view) struct Line {
    pub(in crate::view) style: Style,
    pub(in crate::view) text: String,
    pub(in crate::view) y: f64,
}

/// The lines of a box and its size.
#[derive(Clone, Debug, Default)]
pub(in crate::view) struct Block {
    pub(in crate::view) lines: Vec<Line>,
    pub(in crate::view) width: f64,
    pub(in crate::view) height: f64,
}

impl Block {
    fn push(&mut self, style: Style, text: &str) {
        self.height += style.height();
        self.width = self.width.max(style.width(text) + 24.0);
        self.lines.push(Line { style, text: text.to_owned(), y: self.height - 4.0 });
    }
}

/// Height of a frame's header.
pub(super) const HEADER: f64 = 26.0;

/// A node as lines.
pub(in crate::view) fn node(node: &Node) -> Block {
    let mut block = Block { height: 6.0, ..Block::default() };
    match node.shape {
        Shape::Sign => {
            let width = if node.title.chars().count() > 1 { 34.0 } else { 24.0 };
            let line = Line { style: Style::Title, text: node.title.clone(), y: 16.5 };
            return Block { lines: vec![line], width, height: 24.0 };
        }
        Shape::Pill => {
            let title = shorten(&node.title, 44);
            let lines = vec![Line { style: Style::Title, text: title.clone(), y: 17.5 }];
            let weights = node.weights.len();
            if weights == 0 || matches!(node.kind, Kind::Input | Kind::Output) {
                return Block { lines, width: text(&title, 12.0) * 1.06 + 26.0, height: 26.0 };
            }
            block.push(Style::Title, &title);
        }
        Shape::Card | Shape::Drum => block.push(Style::Title, &shorten(&node.title, 64)),
    }
    if node.shape == Shape::Drum {
        block.height += 8.0;
        block.lines[0].y += 8.0;
    }
    for line in &node.lines {
        for part in wrap(line, 50) {
            block.push(Style::Line, &part);
        }
    }
    const SHOWN: usize = 6;
    for weight in node.weights.iter().take(SHOWN) {
        block.push(Style::Weight, &self::weight(weight, node));
    }
    if node.weights.len() > SHOWN {
        block.push(Style::Line, &format!("and {} more weights", node.weights.len() - SHOWN));
    }
    for part in wrap(&node.reason, 46).into_iter().filter(|p| !p.is_empty()) {
        block.push(Style::Reason, &part);
    }
    block.height += 8.0;
    block
}

/// A weight on one line: the last of its path, as much as the node's title does not say, and its type.
fn weight(weight: &Weight, node: &Node) -> String {
    let (module, own) = split_last(&weight.path);
    let owner = split_last(module).1;
    let name = if owner.is_empty() || owner == node.title { own.to_owned() } else { format!("{owner}.{own}") };
    format!("{} {}", shorten(&name, 40), weight.ty)
}

/// A closed frame as lines.
pub(in crate::view) fn closed(frame: &Frame, n_nodes: usize) -> Block {
    let mut block = Block { height: 6.0, ..Block::default() };
    block.push(Style::Title, &format!("{} ▸", shorten(&title(frame), 50)));
    let module = frame.module.split('(').next().unwrap_or_default();
    let inside = if n_nodes == 1 { "1 node".to_owned() } else { format!("{n_nodes} nodes") };
    let about = match (module, frame.parameters) {
        ("", 0) => inside,
        ("", _) => format!("{inside}, {}", count(frame.parameters)),
        (module, 0) => shorten(module, 40),
        (module, _) => format!("{}, {}", shorten(module, 40), count(frame.parameters)),
    };
    block.push(Style::Line, &about);
    block.height += 8.0;
    block
}

/// A frame's name with what it stands for: `layers × 32`.
pub(in crate::view) fn title(frame: &Frame) -> String {
    format!("{}{}", frame.name, frame.repeat.as_ref().map(Repeat::text).unwrap_or_default())
}

/// A number of parameters in words.
pub(in crate::view) fn count(parameters: u64) -> String {
    if parameters == 1 { "1 parameter".into() } else { format!("{} parameters", magnitude::count(parameters as f64)) }
}

/// What stands at the right of a frame's header.
pub(in crate::view) fn about(frame: &Frame) -> String {
    if frame.parameters == 0 { String::new() } else { magnitude::count(frame.parameters as f64) }
}

/// Least width of an open frame: that of its header.
pub(super) fn header(frame: &Frame) -> f64 {
    let module = frame.module.split('(').next().unwrap_or_default();
    let slices = frame.slices.as_str();
    let slices = if slices.is_empty() { 0.0 } else { text(slices, 11.0) + 14.0 };
    text(&shorten(&title(frame), 50), 12.0) * 1.06
        + text(&shorten(module, 30), 11.0)
        + slices
        + text(&about(frame), 11.0)
        + 64.0
}

/// At most `n` characters.
pub(in crate::view) fn shorten(text: &str, n: usize) -> String {
    if text.chars().count() <= n {
        return text.to_owned();
    }
    let mut short: String = text.chars().take(n.saturating_sub(1)).collect();
    short.push('…');
    short
}

/// Words in at most five lines of about `n` characters; a longer word is cut.
pub(in crate::view) fn wrap(text: &str, n: usize) -> Vec<String> {
    let mut lines = wrap_all(text, n);
    if lines.len() > 5 {
        lines.truncate(5);
        lines[4].push_str(" …");
    }
    lines
}

/// Words in as many lines as they need.
pub(in crate::view) fn wrap_all(text: &str, n: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let line = lines.last_mut().expect("there is a line");
        if !line.is_empty() && line.chars().count() + 1 + word.chars().count() > n {
            lines.push(shorten(word, n));
        } else {
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(&shorten(word, n));
        }
    }
    lines
}
