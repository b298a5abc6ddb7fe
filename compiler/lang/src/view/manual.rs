//! Pages about single things: what an error code means, what an operation or a module of the library does.
//!
//! Nothing is written twice: a page is cut from `docs/errors.md`, `docs/language.md`, the comments and definitions of the library, and the doc comments
//! of the fused operations, all of them built in.

use std::fmt::Write;

use crate::arch::FUNCTIONS;
use crate::diagnostic::{Code, closest};
use crate::ops::fused::PARSERS;
use crate::spec::Library;

const ERRORS: &str = include_str!("../../../../docs/errors.md");
const LANGUAGE: &str = include_str!("../../../../docs/language.md");
/// The files in which fused operations are defined.
const FUSED: &[&str] = &[
    include_str!("../ops/fused/attention.rs"),
    include_str!("../ops/fused/head_linear.rs"),
    include_str!("../ops/fused/expert_linear.rs"),
    include_str!("../ops/fused/linear.rs"),
    include_str!("../ops/fused/norm.rs"),
    include_str!("../ops/fused/rows.rs"),
];

/// The page of an error code: `E0201`, in any case, or `201`. `None` for what is no code.
pub fn explain(code: &str) -> Option<String> {
    let wanted = code.trim().to_uppercase();
    let digits = wanted.trim_start_matches('E');
    let code = Code::ALL.iter().find(|c| c.id().trim_start_matches('E') == format!("{digits:0>4}"))?;
    let title = format!("{}: {}", code.id(), code.title());
    Some(section(ERRORS, |heading| heading == title)?.text)
}

/// All codes with their titles, one a line.
pub fn codes() -> String {
    Code::ALL.iter().fold(String::new(), |mut out, code| {
        let _ = writeln!(out, "{}  {}", code.id(), code.title());
        out
    })
}

/// The page of an operation or of a definition of the library. The error names what is close.
///
/// # Errors
/// A name that nothing has: what is close to it, if anything is.
pub fn page(name: &str, library: &Library) -> Result<String, Option<String>> {
    let definition = library.definition(name);
    let told = section_of(name);
    let fused = fused(name);
    if definition.is_none() && fused.is_none() && !FUNCTIONS.contains(&name) {
        let names = names(library);
        return Err(closest(name, names.iter().map(String::as_str)).map(str::to_owned));
    }
    let mut out = String::new();
    if let Some((source, text)) = definition {
        let _ = writeln!(out, "{name}, of the library ({source})\n\n{}", indented(text.trim_end()));
    } else if FUNCTIONS.contains(&name) {
        let _ = writeln!(out, "{name}, known to the compiler\n");
    }
    if let Some(section) = told {
        let _ = writeln!(out, "{}", section.text.trim());
    }
    if let Some(doc) = fused {
        let gap = if out.is_empty() { "" } else { "\n" };
        let _ = writeln!(
            out,
            "{gap}{name}, a fused operation: what a kernel of that name in `--emit fused` computes\n\n{}",
            indented(&doc)
        );
    }
    Ok(out)
}

/// Everything that has a page, by kind.
pub fn contents(library: &Library) -> String {
    let mut out = String::from("Operations, known to the compiler:\n");
    for line in super::layout::measure::wrap_all(&FUNCTIONS.join(", "), 92) {
        let _ = writeln!(out, "  {line}");
    }
    out.push_str("\nThe library:\n");
    let mut of = String::new();
    for name in library.definitions() {
        let Some((source, text)) = library.definition(&name) else { continue };
        if source != of {
            let _ = writeln!(out, "  {source}");
            of = source;
        }
        let _ = writeln!(out, "    {name:<20} {}", about(&text));
    }
    out.push_str("\nFused operations, in `--emit fused`:\n");
    let fused: Vec<&str> = PARSERS.iter().map(|(name, _)| *name).collect();
    let _ = writeln!(out, "  {}", fused.join(", "));
    out
}

/// A definition in a line: its comment, or the beginning of what it says.
fn about(text: &str) -> String {
    let first = text.lines().next().unwrap_or_default();
    match first.strip_prefix("# ") {
        Some(comment) => comment.to_owned(),
        None => first.split(" # ").next().unwrap_or_default().trim_end().to_owned(),
    }
}

fn names(library: &Library) -> Vec<String> {
    let mut names: Vec<String> = FUNCTIONS.iter().map(|n| (*n).to_owned()).collect();
    names.extend(library.definitions());
    names.extend(PARSERS.iter().map(|(name, _)| (*name).to_owned()));
    names
}

/// A section of a page of documentation, without its heading.
#[derive(Clone, Debug)]
struct Section {
    text: String,
}

/// The first section of the third level whose heading is wanted.
fn section(page: &str, wanted: impl Fn(&str) -> bool) -> Option<Section> {
    let mut lines = page.lines();
    let heading = lines.by_ref().find_map(|l| l.strip_prefix("### ").filter(|h| wanted(h)))?;
    let mut text = format!("{heading}\n");
    let mut fenced = false;
    for line in lines {
        fenced ^= line.starts_with("```");
        if !fenced && (line.starts_with("## ") || line.starts_with("### ")) {
            break;
        }
        text.push_str(line);
        text.push('\n');
    }
    Some(Section { text: plain(text.trim_end()) })
}

/// The section of the language reference that is about a name: named in its heading, else the first that names it in code, else in words.
fn section_of(name: &str) -> Option<Section> {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let names = |text: &str| text.split(|c| !is_word(c)).any(|word| word == name);
    if let Some(section) = section(LANGUAGE, |heading| heading.split(", ").any(|h| h == name)) {
        return Some(section);
    }
    let headings: Vec<&str> = LANGUAGE.lines().filter_map(|l| l.strip_prefix("### ")).collect();
    let sections = || headings.iter().filter_map(|h| section(LANGUAGE, |heading| heading == *h));
    let in_code = |text: &str| text.split('`').skip(1).step_by(2).any(&names);
    let told = sections().find(|s| in_code(&s.text)).or_else(|| paragraph(LANGUAGE, names));
    told.or_else(|| sections().find(|s| names(&s.text)))
}

/// The first paragraph that names something in code, and the example behind it.
fn paragraph(page: &str, names: impl Fn(&str) -> bool) -> Option<Section> {
    let blocks: Vec<&str> = page.split("\n\n").collect();
    let in_code = |block: &str| block.split('`').skip(1).step_by(2).any(&names);
    let at = blocks.iter().position(|b| !b.starts_with("```") && in_code(b))?;
    let mut text = blocks[at].to_owned();
    if let Some(example) = blocks.get(at + 1).filter(|b| b.starts_with("```")) {
        text.push_str("\n\n");
        text.push_str(example);
    }
    Some(Section { text: plain(&text) })
}

/// Markdown as a terminal shows it: examples indented, fences and link targets gone.
fn plain(text: &str) -> String {
    let mut out = String::new();
    let mut fenced = false;
    for line in text.lines() {
        if let Some(kind) = line.strip_prefix("```") {
            if !fenced && kind.ends_with("wrong") {
                out.push_str("Refused:\n\n");
            } else if !fenced && out.contains("Refused:") {
                out.push_str("Right:\n\n");
            }
            fenced = !fenced;
            continue;
        }
        if fenced {
            out.push_str("    ");
            out.push_str(line);
        } else {
            out.push_str(&unlinked(line));
        }
        out.push('\n');
    }
    out
}

/// `[text](target)` as `text`.
fn unlinked(line: &str) -> String {
    let mut out = String::new();
    let mut rest = line;
    while let Some((before, after)) = rest.split_once("](") {
        let (Some(open), Some(close)) = (before.rfind('['), after.find(')')) else { break };
        out.push_str(&before[..open]);
        out.push_str(&before[open + 1..]);
        rest = &after[close + 1..];
    }
    out + rest
}

fn indented(text: &str) -> String {
    text.lines().map(|l| if l.is_empty() { "\n".to_owned() } else { format!("    {l}\n") }).collect()
}

/// The doc comment of a fused operation: the text above the type whose `name()` it is.
fn fused(name: &str) -> Option<String> {
    PARSERS.iter().find(|(n, _)| *n == name)?;
    for file in FUSED {
        let returned = format!("        \"{name}\"\n");
        let Some(at) = file.find(&returned) else { continue };
        let ty = file[..at].rsplit("impl FusedOp for ").next()?.split_whitespace().next()?;
        let end = file.find(&format!("pub struct {ty}"))?;
        let comment: Vec<&str> = file[..end]
            .lines()
            .rev()
            .skip_while(|l| l.starts_with("#["))
            .map_while(|l| l.strip_prefix("///"))
            .collect();
        return Some(comment.iter().rev().map(|l| format!("{}\n", l.strip_prefix(' ').unwrap_or(l))).collect());
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_found_however_they_are_written() {
        for code in ["E0201", "e0201", "201", "0201"] {
            assert!(explain(code).is_some_and(|page| page.starts_with("E0201: ")), "{code}");
        }
        for code in ["E9999", "", "rms_norm"] {
            assert_eq!(explain(code), None, "{code}");
        }
    }

    #[test]
    fn everything_known_has_a_page() {
        let library = Library::embedded();
        for name in names(&library) {
            let page = page(&name, &library).unwrap_or_else(|_| panic!("{name} has no page"));
            assert!(page.lines().count() > 3 && page.contains("    "), "{name}: {page}");
        }
        assert_eq!(page("rms_nrom", &library), Err(Some("rms_norm".into())));
    }

    #[test]
    fn links_are_text() {
        assert_eq!(unlinked("see [the page](a.md#b), and [c](d)."), "see the page, and c.");
    }
}
