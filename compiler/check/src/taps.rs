//! Which values `--tap` means: a path, or a pattern with `*` for one component and `**` for any number.

use xfc_lang::arch::matches_pattern;
use xfc_lang::diagnostic::{SourceMap, Span, closest};
use xfc_lang::graph::named::Named;
use xfc_runtime::error::RuntimeError;

/// Most names that a message suggests.
const MOST_SUGGESTIONS: usize = 8;

/// The values that the patterns name, in the order they are computed, each once.
///
/// # Errors
/// A pattern that names nothing, or a value that compiled code never holds: a constant, or everything kept of a sequence.
pub fn choose<'n>(named: &'n [Named], patterns: &[String]) -> Result<Vec<&'n Named>, RuntimeError> {
    for pattern in patterns {
        let matching: Vec<&Named> = named.iter().filter(|n| matches_pattern(pattern, &n.path)).collect();
        if matching.iter().any(|n| n.is_per_element()) {
            continue;
        }
        return Err(match matching.first() {
            Some(value) => RuntimeError::request(
                format!("`{}` is no value of each token, so no kernel gives it out", value.path),
                "name a value that is computed token by token, such as what it is made from",
            ),
            None => unknown(named, pattern),
        });
    }
    let chosen = |n: &&Named| n.is_per_element() && patterns.iter().any(|p| matches_pattern(p, &n.path));
    Ok(named.iter().filter(chosen).collect())
}

fn unknown(named: &[Named], pattern: &str) -> RuntimeError {
    let paths: Vec<&str> = named.iter().filter(|n| n.is_per_element()).map(|n| n.path.as_str()).collect();
    let last = pattern.rsplit('.').next().unwrap_or(pattern);
    let ends_alike = |path: &&&str| path.rsplit('.').next() == Some(last);
    let below = |path: &&&str| path.strip_prefix(pattern).is_some_and(|rest| rest.starts_with('.'));
    let mut close: Vec<&str> = closest(pattern, paths.iter().copied()).into_iter().collect();
    close.extend(paths.iter().filter(below));
    close.extend(paths.iter().filter(ends_alike));
    let mut seen = Vec::new();
    close.retain(|path| {
        !seen.contains(path) && {
            seen.push(*path);
            true
        }
    });
    let help = match &close[..] {
        [] => "`xfc inspect MODEL --values` lists all names".to_owned(),
        close => {
            let shown: Vec<String> = close.iter().take(MOST_SUGGESTIONS).map(|path| format!("`{path}`")).collect();
            format!("did you mean {}? `xfc inspect MODEL --values` lists all names", shown.join(", "))
        }
    };
    RuntimeError::request(format!("no value is named `{pattern}`"), help)
}

/// An equation as people find it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Equation {
    /// `card.yaml:42` or `lib/norm.xf:6`: the file and the line from 1.
    pub place: String,
    /// The line's text.
    pub text: String,
}

/// The equation at a span; its first line.
pub fn equation(sources: &SourceMap, span: Option<Span>) -> Option<Equation> {
    let span = span?;
    let source = sources.get(span.source)?;
    let (line, _) = sources.line_column(span);
    let text = source.text.lines().nth(line - 1).unwrap_or_default().trim();
    Some(Equation { place: format!("{}:{line}", source.name), text: text.to_owned() })
}
