//! Surveys as one page and as one drawing: block diagrams side by side, the table under them, what differs from the first model lit.
//!
//! The page is one file without a script that asks nothing of a network. Whatever stands in a card is escaped.

use std::fmt::Write;

use super::figure::figures;
use super::model::Survey;
use super::table::{Row, rows};
use crate::view::layout::{layout, measure};
use crate::view::magnitude;
use crate::view::scene::{Kind, Mark, Scene};
use crate::view::svg::{DARK, STYLE, drawing, escape};

const PAGE_STYLE: &str = include_str!("../page/survey.css");

/// A drawn block diagram.
struct Drawn {
    svg: String,
    width: f64,
    height: f64,
}

fn drawn(surveys: &[Survey]) -> (Vec<Drawn>, Vec<Mark>) {
    let scenes = figures(surveys);
    let marks = |mark: Mark| scenes.iter().any(|s: &Scene| s.nodes.iter().any(|n| n.mark == mark));
    let marks = [Mark::Removed, Mark::Added, Mark::Changed].into_iter().filter(|m| marks(*m)).collect();
    let one = |(i, scene): (usize, &Scene)| {
        let layout = layout(scene);
        let mut svg = String::new();
        drawing(scene, &layout, &mut svg);
        // Several drawings stand in one document, and nothing in them opens or closes. Quotes in texts are escaped.
        let svg = svg.replace(" id=\"", &format!(" id=\"m{i}-")).replace("▾ ", "").replace(" tabindex=\"0\"", "");
        let (width, height) = (layout.placed[0].width, layout.placed[0].height);
        Drawn { svg: svg.replace(" role=\"button\"", " role=\"img\""), width, height }
    };
    (scenes.iter().enumerate().map(one).collect(), marks)
}

/// What the colours of blocks mean.
const COLOURS: [(Kind, &str); 4] = [
    (Kind::Lookup, "embedding"),
    (Kind::Rows, "norm, sum"),
    (Kind::Attention, "attention"),
    (Kind::Product, "feed-forward, head"),
];

fn meaning(mark: Mark) -> &'static str {
    match mark {
        Mark::Removed => "only in the first",
        Mark::Added => "not in the first",
        Mark::Changed => "of another kind than in the first",
        Mark::Same => "the same",
    }
}

fn title(surveys: &[Survey]) -> String {
    surveys.iter().map(|s| s.name.clone()).collect::<Vec<_>>().join(", ")
}

/// The page.
pub fn survey_html(surveys: &[Survey], contexts: &[u64]) -> String {
    let rows = rows(surveys, contexts);
    let (figures, marks) = drawn(surveys);
    let mut legend = String::new();
    for (kind, words) in COLOURS {
        let _ = write!(legend, "<span><i class=\"key {}\"></i>{words}</span>", kind.name());
    }
    for mark in marks {
        let _ = write!(legend, "<span><i class=\"key mark-key {}\"></i>{}</span>", mark.name(), meaning(mark));
    }
    if surveys.len() > 1 {
        legend.push_str("<span><i class=\"key lit\"></i>in the table: other than the first</span>");
    }
    let mut head = String::new();
    for (survey, figure) in surveys.iter().zip(&figures) {
        let about = if survey.title == survey.name { String::new() } else { escape(&survey.title) };
        let _ = writeln!(
            head,
            "<th scope=\"col\" style=\"min-width: {}px\"><b>{}</b><span>{about}</span><em>{}</em></th>",
            figure.width.max(250.0) as u64 + 24,
            escape(&survey.name),
            magnitude::count(survey.numbers.parameters as f64)
        );
    }
    let mut drawings = String::new();
    for (figure, survey) in figures.iter().zip(surveys) {
        let _ = writeln!(
            drawings,
            "<td><svg class=\"drawing\" xmlns=\"http://www.w3.org/2000/svg\" width=\"{0}\" height=\"{1}\" viewBox=\"0 0 {0} {1}\" role=\"img\" \
             aria-label=\"Block diagram of {2}\">\n{3}</svg></td>",
            figure.width,
            figure.height,
            escape(&survey.name),
            figure.svg
        );
    }
    let mut body = String::new();
    let mut group = "";
    for row in &rows {
        let Some(first) = row.facts.first() else { continue };
        if group != first.group {
            group = first.group;
            let _ = writeln!(
                body,
                "<tr class=\"group\"><th scope=\"rowgroup\">{}</th><td colspan=\"{}\"></td></tr>",
                escape(group),
                surveys.len()
            );
        }
        let class = if row.differs() { "differs" } else { "same" };
        let _ = write!(body, "<tr class=\"{class}\"><th scope=\"row\">{}</th>", escape(&first.label));
        for i in 0..row.facts.len() {
            body.push_str(&cell(row, i));
        }
        body.push_str("</tr>\n");
    }
    let several = surveys.len() > 1;
    let only = "<label><input type=\"checkbox\" id=\"only\"> only what differs</label>";
    format!(
        r#"<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
{STYLE}
@media (prefers-color-scheme: dark) {{ .drawing {{
{DARK}}} }}
{PAGE_STYLE}
</style>
</head>
<body class="drawing">
<main>
<table>
<thead><tr><th class="corner"><h1>{what}</h1>{only}</th>
{head}</tr></thead>
<tbody>
<tr class="figures"><th scope="row"><div class="legend">{legend}</div></th>
{drawings}</tr>
{body}</tbody>
</table>
</main>
</body>
</html>
"#,
        title = escape(&title(surveys)),
        what = if several { "Compared" } else { "In short" },
        only = if several { only } else { "" },
    )
}

/// A cell; of a size, with a bar as long as it is large.
fn cell(row: &Row, i: usize) -> String {
    let (fact, first) = (&row.facts[i], &row.facts[0]);
    let lit = if fact.text != first.text && fact.number.is_none() { " class=\"lit\"" } else { "" };
    let text = if fact.text.is_empty() { "–".to_owned() } else { escape(&fact.text) };
    let largest = row.facts.iter().filter_map(|f| f.number).fold(0.0f64, f64::max);
    let bar = fact
        .number
        .filter(|n| row.facts.len() > 1 && largest > 0.0 && *n >= 0.0)
        .map_or_else(String::new, |n| format!("<i class=\"bar\" style=\"width: {:.1}%\"></i>", 100.0 * n / largest));
    format!("<td{lit}>{text}{bar}</td>")
}

/// Room to the left of the columns of a drawing, and around everything.
const LABELS: f64 = 190.0;
const EDGE: f64 = 16.0;
/// Height of a line of the table.
const LINE: f64 = 15.0;
/// Width of a character of the table, on the wide side.
const LETTER: f64 = 6.3;

/// The drawing.
pub fn survey_svg(surveys: &[Survey], contexts: &[u64]) -> String {
    let rows = rows(surveys, contexts);
    let (figures, marks) = drawn(surveys);
    let widths: Vec<f64> = figures.iter().map(|f| f.width.max(230.0) + 2.0 * EDGE).collect();
    let lefts: Vec<f64> = widths
        .iter()
        .scan(EDGE + LABELS, |x, w| {
            let left = *x;
            *x += w;
            Some(left)
        })
        .collect();
    let width = EDGE + LABELS + widths.iter().sum::<f64>() + EDGE;
    let tallest = figures.iter().map(|f| f.height).fold(0.0, f64::max);
    let mut out = String::new();
    let text = |out: &mut String, class: &str, (x, y): (f64, f64), words: &str| {
        let _ = writeln!(out, "<text class=\"{class}\" x=\"{x}\" y=\"{y}\">{}</text>", escape(words));
    };
    for (survey, left) in surveys.iter().zip(&lefts) {
        text(&mut out, "caption", (left + EDGE, 32.0), &measure::shorten(&survey.name, 28));
        let about = if survey.title == survey.name { String::new() } else { format!("{}, ", survey.title) };
        let about = format!("{about}{}", magnitude::count(survey.numbers.parameters as f64));
        text(&mut out, "caption-about", (left + EDGE, 50.0), &measure::shorten(&about, 48));
    }
    let top = 66.0;
    for ((figure, left), width) in figures.iter().zip(&lefts).zip(&widths) {
        let x = left + (width - figure.width) / 2.0;
        let _ = writeln!(out, "<g transform=\"translate({x} {top})\">\n{}</g>", figure.svg);
    }
    let mut y = top + 8.0;
    let keys = COLOURS.iter().map(|(k, words)| (k.name().to_owned(), *words));
    for (class, words) in keys.chain(marks.iter().map(|m| (format!("mark-{}", m.name()), meaning(*m)))) {
        let _ = writeln!(
            out,
            "<g class=\"{class}\"><rect class=\"face\" x=\"{EDGE}\" y=\"{y}\" width=\"11\" height=\"11\" rx=\"3\"/></g>"
        );
        text(&mut out, "line", (EDGE + 18.0, y + 9.5), words);
        y += 20.0;
    }
    let mut y = top + tallest + 26.0;
    let mut group = "";
    for row in &rows {
        let Some(first) = row.facts.first() else { continue };
        if group != first.group {
            group = first.group;
            y += 14.0;
            text(&mut out, "name", (EDGE, y + 11.0), group);
            y += 18.0;
            let _ = writeln!(out, "<path class=\"stack\" d=\"M{EDGE} {y}H{}\"/>", width - EDGE);
        }
        let cells: Vec<Vec<String>> = row
            .facts
            .iter()
            .zip(&widths)
            .map(|(f, w)| {
                measure::wrap_all(if f.text.is_empty() { "–" } else { &f.text }, ((w - EDGE) / LETTER) as usize)
            })
            .collect();
        let height = cells.iter().map(Vec::len).max().unwrap_or(1) as f64 * LINE + 5.0;
        text(&mut out, "line", (EDGE, y + 13.0), &first.label);
        for (i, cell) in cells.iter().enumerate() {
            let fact = &row.facts[i];
            if fact.number.is_none() && fact.text != first.text {
                let _ = writeln!(
                    out,
                    "<rect class=\"differs\" x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\" rx=\"4\"/>",
                    lefts[i] + EDGE / 2.0 - 2.0,
                    y + 1.5,
                    widths[i] - EDGE + 4.0,
                    height - 3.0
                );
            }
            for (n, line) in cell.iter().enumerate() {
                text(&mut out, "cell", (lefts[i] + EDGE, y + 13.0 + n as f64 * LINE), line);
            }
        }
        y += height;
    }
    let height = y + EDGE;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" class=\"drawing\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\" \
         role=\"img\" aria-label=\"{}\">\n<style>\n{STYLE}.drawing .cell {{ font-size: 11.5px; }}\n.drawing .differs {{ fill: var(--changed); \
         fill-opacity: 0.14; }}\n@media (prefers-color-scheme: dark) {{ .drawing {{\n{DARK}}} }}\n</style>\n\
         <rect width=\"{width}\" height=\"{height}\" fill=\"var(--paper)\"/>\n{out}</svg>\n",
        escape(&title(surveys))
    )
}
