//! The `names:` of a card as written: rules from paths to checkpoint names.
//!
//! A rule's key is a path pattern of whole components, or a sum of such; its value a name, names tried in order, or a mapping of rules
//! that hold inside what the key matched.

use std::sync::Arc;

use super::tree::{Datum, Node, NodeKind};
use crate::diagnostic::{Code, Diagnostic, Span, did_you_mean};

/// The rules of one checkpoint format.
#[derive(Clone, Debug, Default)]
pub struct Names {
    /// Put before every name, in the order in which a checkpoint is tried. Empty: nothing.
    pub prefixes: Vec<Arc<str>>,
    /// The rules, flattened.
    pub rules: Vec<NameRule>,
    /// Every pattern of the keys as written, those that hold other rules too.
    pub keys: Vec<NameKey>,
    /// Patterns of whole checkpoint names that are no parameter.
    pub ignore: Vec<(Arc<str>, Span)>,
}

/// A pattern of a key as written.
#[derive(Clone, Debug)]
pub struct NameKey {
    /// Patterns of the enclosing mappings, outermost first.
    pub within: Vec<Arc<str>>,
    /// The pattern.
    pub key: Arc<str>,
    /// The place of the whole key.
    pub span: Span,
}

/// One rule.
#[derive(Clone, Debug)]
pub struct NameRule {
    /// Patterns of the enclosing mappings, outermost first.
    pub within: Vec<Arc<str>>,
    /// The patterns of the key: one, or the summands of a stored tensor.
    pub keys: Vec<Arc<str>>,
    /// What replaces the match, tried in order.
    pub targets: Vec<Target>,
    /// The place of the key.
    pub span: Span,
}

/// What replaces a match.
#[derive(Clone, Debug, PartialEq)]
pub struct Target {
    /// The name.
    pub name: Arc<str>,
    /// A leading `/`: nothing stands before it, the prefix neither.
    pub absolute: bool,
    /// `[in, q | k | v]`: the stored tensor's dimensions.
    pub layout: Option<Vec<StoredDim>>,
    /// `- 1`: added to each stored number.
    pub offset: f64,
}

/// A dimension of a stored tensor as written: `in`, `in..`, `q | k | v`, `heads * (q | k | v)`, `heads * pairs(out)`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredDim {
    /// How many times the parts follow one another, each time a piece of each: a size, or a number.
    pub times: Option<Arc<str>>,
    /// A label, or the parts in the order in which they are stored.
    pub parts: Vec<Arc<str>>,
    /// `pairs(out)`: of each piece, an element of the first half and one of the second in turn.
    pub pairs: bool,
    /// `out..`: the stored tensor may have more elements of it, of which the first are taken.
    pub leading: bool,
}

/// Reads the rules of one format.
pub(super) fn parse_names(node: &Node, diagnostics: &mut Vec<Diagnostic>) -> Names {
    let mut names = Names::default();
    let NodeKind::Map(entries) = &node.kind else {
        diagnostics
            .push(Diagnostic::new(Code::WrongKind, "names must be a mapping", node.span).label("expected a mapping"));
        return names;
    };
    for (key, value) in entries {
        match &*key.text {
            "prefix" => names.prefixes = prefixes(value, diagnostics),
            "ignore" => names.ignore = strings(value, diagnostics),
            _ => rule(&[], &key.text, key.span, value, &mut names, diagnostics),
        }
    }
    names
}

fn prefixes(node: &Node, diagnostics: &mut Vec<Diagnostic>) -> Vec<Arc<str>> {
    let all = if let NodeKind::List(items) = &node.kind { items.as_slice() } else { std::slice::from_ref(node) };
    let mut prefixes = Vec::new();
    for one in all {
        match one.datum() {
            Datum::Str(prefix) => prefixes.push(prefix),
            other => diagnostics.push(
                Diagnostic::new(Code::WrongKind, format!("a prefix is a string, not {}", other.kind()), one.span)
                    .label("expected a string, or a list of strings"),
            ),
        }
    }
    prefixes
}

fn strings(node: &Node, diagnostics: &mut Vec<Diagnostic>) -> Vec<(Arc<str>, Span)> {
    match &node.kind {
        NodeKind::Scalar { text, .. } => vec![(text.clone(), node.span)],
        NodeKind::List(items) => items.iter().flat_map(|n| strings(n, diagnostics)).collect(),
        NodeKind::Map(_) => {
            diagnostics.push(
                Diagnostic::new(Code::WrongKind, "a mapping where a name or a list of names is needed", node.span)
                    .label("expected a string"),
            );
            Vec::new()
        }
    }
}

fn rule(
    within: &[Arc<str>],
    key: &str,
    span: Span,
    value: &Node,
    names: &mut Names,
    diagnostics: &mut Vec<Diagnostic>,
) {
    let keys: Vec<Arc<str>> = key.split('+').map(|k| Arc::from(k.trim())).collect();
    for pattern in &keys {
        if let Err(why) = check_pattern(pattern) {
            diagnostics.push(
                Diagnostic::new(Code::NamePattern, format!("the pattern `{pattern}` {why}"), span)
                    .label("not a path pattern"),
            );
            return;
        }
    }
    names.keys.extend(keys.iter().map(|k| NameKey { within: within.to_vec(), key: k.clone(), span }));
    if let NodeKind::Map(entries) = &value.kind {
        if keys.len() > 1 {
            diagnostics.push(
                Diagnostic::new(Code::NamePattern, "a sum of paths cannot hold other rules", span)
                    .label("expected one path"),
            );
            return;
        }
        let within: Vec<Arc<str>> = within.iter().cloned().chain(keys).collect();
        for (key, value) in entries {
            rule(&within, &key.text, key.span, value, names, diagnostics);
        }
        return;
    }
    if value.datum() == Datum::Null {
        diagnostics.push(
            Diagnostic::new(Code::WrongKind, format!("no name for `{key}`"), value.span).label("expected a name"),
        );
        return;
    }
    let mut targets = Vec::new();
    let stars = |pattern: &str| pattern.split('.').filter(|c| *c == "*").count();
    let n_stars = keys.iter().map(|k| stars(k)).min().unwrap_or(0);
    for (text, at) in strings(value, diagnostics) {
        match target(&text) {
            Ok(t) if t.name.matches('*').count() > n_stars => diagnostics.push(
                Diagnostic::new(Code::NamePattern, format!("the name `{text}` has more `*` than its key `{key}`"), at)
                    .label("nothing that this `*` stands for")
                    .other(span, "the key")
                    .help("`*` in a name is what the same `*` of its own key matched, the enclosing keys' left out"),
            ),
            Ok(t) => targets.push(t),
            Err(why) => {
                // What is no rule at the margin may be meant as one of the two other keys.
                let meant = did_you_mean(key, ["prefix", "ignore"]).filter(|_| within.is_empty());
                let d = Diagnostic::new(Code::NamePattern, format!("the name `{text}` {why}"), at).label("not a name");
                diagnostics.push(d.maybe_help(meant));
            }
        }
    }
    if targets.iter().any(|t: &Target| t.offset != targets[0].offset) {
        diagnostics.push(
            Diagnostic::new(Code::NamePattern, "names that are tried in order add different numbers", value.span)
                .label("expected the same behind each name"),
        );
    }
    names.rules.push(NameRule { within: within.to_vec(), keys, targets, span });
}

fn check_pattern(pattern: &str) -> Result<(), &'static str> {
    if pattern.is_empty() {
        return Err("is empty");
    }
    if pattern.matches('{').count() != pattern.matches('}').count() {
        return Err("has a brace without its partner");
    }
    if pattern.split('.').any(str::is_empty) {
        return Err("has an empty component");
    }
    if pattern.split('.').any(|c| c.contains('*') && c != "*" && c != "**") {
        return Err("has a `*` that is not a whole component");
    }
    Ok(())
}

/// `/name[a, b | c] - 1`.
fn target(text: &str) -> Result<Target, &'static str> {
    let (text, offset) = offset(text)?;
    let (name, layout) = match text.split_once('[') {
        Some((name, rest)) => {
            let inside = rest.trim_end().strip_suffix(']').ok_or("has a `[` without its `]`")?;
            (name.trim_end(), Some(inside.split(',').map(stored_dim).collect::<Result<Vec<_>, _>>()?))
        }
        None => (text, None),
    };
    let (name, absolute) = match name.strip_prefix('/') {
        Some(name) => (name, true),
        None => (name, false),
    };
    if name.split('.').any(str::is_empty) {
        return Err("has an empty component");
    }
    Ok(Target { name: name.into(), absolute, layout, offset })
}

/// What stands before ` + NUMBER` or ` - NUMBER`, and that number; 0 without.
fn offset(text: &str) -> Result<(&str, f64), &'static str> {
    let signs = [(" - ", -1.0), (" + ", 1.0)];
    let found = signs.iter().find_map(|(sign, factor)| Some((text.rsplit_once(sign)?, factor)));
    let Some(((name, number), factor)) = found else { return Ok((text, 0.0)) };
    let number = number.trim().parse::<f64>().ok().filter(|x| x.is_finite() && *x >= 0.0);
    let number = number.ok_or("has a `+` or `-` without a number behind it, as in `norm.weight - 1`")?;
    Ok((name.trim_end(), factor * number))
}

/// `a`, `a..`, `a | b`, `n * (a | b)`, `pairs(a)` or `n * pairs(a)`.
fn stored_dim(text: &str) -> Result<StoredDim, &'static str> {
    let (text, leading) = match text.trim_end().strip_suffix("..") {
        Some(label) => (label, true),
        None => (text, false),
    };
    if leading && (text.contains(['|', '*', '(']) || text.trim() == "1") {
        return Err("has `..` behind what is no label: the leading part is taken of a whole dimension, as in `out..`");
    }
    let (times, parts) = match text.split_once('*') {
        Some((times, rest)) => (Some(Arc::from(times.trim())), rest.trim()),
        None => (None, text.trim()),
    };
    let inside = |begin: &str| parts.strip_prefix(begin).and_then(|rest| rest.strip_suffix(')'));
    let (parts, pairs) = match (inside("pairs("), inside("("), &times) {
        (Some(inside), ..) => (inside, true),
        (None, Some(inside), Some(_)) => (inside, false),
        (None, None, Some(_)) => {
            return Err("has a `*` without parts in parentheses behind it, as in `n * (a | b)` or `n * pairs(a)`");
        }
        (None, _, None) => (parts, false),
    };
    let parts: Vec<Arc<str>> = parts.split('|').map(|p| Arc::from(p.trim())).collect();
    if pairs && parts.len() > 1 {
        return Err("has pairs of several parts, where one dimension is expected, as in `n * pairs(out)`");
    }
    if parts.iter().chain(&times).any(|p| p.is_empty()) {
        return Err("has a dimension without a label");
    }
    if parts.iter().chain(&times).any(|p| p.contains(['(', ')', '*'])) {
        return Err("has brackets or a `*` where a label is expected");
    }
    if parts.iter().chain(&times).any(|p| p.contains("..")) {
        return Err("has `..` where it is not the end of a dimension");
    }
    Ok(StoredDim { times, parts, pairs, leading })
}

#[cfg(test)]
mod tests {
    use super::super::tree::parse_yaml;
    use super::*;

    fn parse(text: &str) -> (Names, Vec<Diagnostic>) {
        let mut diagnostics = Vec::new();
        let node = parse_yaml(text, 0, &mut diagnostics).expect("it is YAML");
        (parse_names(&node, &mut diagnostics), diagnostics)
    }

    #[test]
    fn rules_are_flattened() {
        let (names, diagnostics) =
            parse("prefix: [a., b.]\nlm: [/lm, /x.lm]\nl.*:\n  q: c[in, q | k]\nignore: ['z.**']\n");
        assert_eq!(diagnostics, []);
        assert_eq!(names.prefixes.len(), 2);
        assert!(names.rules[0].targets[1].absolute);
        assert_eq!(names.rules[1].within, [Arc::from("l.*")]);
        assert_eq!(names.rules[1].targets[0].layout.as_ref().map(|l| l[1].parts.len()), Some(2));
        let (names, diagnostics) = parse("q: 'c[out .., in]'\n");
        assert_eq!(diagnostics, []);
        let layout = names.rules[0].targets[0].layout.as_ref().expect("it has a layout");
        assert_eq!(
            layout.iter().map(|d| (&*d.parts[0], d.leading)).collect::<Vec<_>>(),
            [("out", true), ("in", false)]
        );
        let (names, diagnostics) = parse("q + k: 'c[n * (q | k), in]'\n");
        assert_eq!(diagnostics, []);
        let dim = names.rules[0].targets[0].layout.as_ref().map(|l| l[0].clone()).expect("it has a layout");
        assert_eq!((dim.times.as_deref(), dim.parts.len(), dim.pairs), (Some("n"), 2, false));
        let (names, diagnostics) = parse("q: 'c[n * pairs(out), in] - 1'\nk: [a + 0.5, b-1 + 0.5]\n");
        assert_eq!(diagnostics, []);
        let target = &names.rules[0].targets[0];
        let dim = target.layout.as_ref().map(|l| l[0].clone()).expect("it has a layout");
        assert_eq!((dim.times.as_deref(), &*dim.parts[0], dim.pairs, target.offset), (Some("n"), "out", true, -1.0));
        let said: Vec<(&str, f64)> = names.rules[1].targets.iter().map(|t| (&*t.name, t.offset)).collect();
        assert_eq!(said, [("a", 0.5), ("b-1", 0.5)]);
    }

    #[test]
    fn malformed_rules_are_diagnostics() {
        let (_, diagnostics) = parse("'a..b': c\nd: 'e[in'\nf + g: {h: i}\nj:\n");
        assert_eq!(diagnostics.len(), 4);
        for (text, code) in [
            ("a: b.*", Code::NamePattern),
            ("'a.*': {b: c.*}", Code::NamePattern),
            ("'a*': b", Code::NamePattern),
            ("q + k: 'c[n * q | k]'", Code::NamePattern),
            ("q + k: 'c[* (q | k)]'", Code::NamePattern),
            ("q + k: 'c[n * (q | (k))]'", Code::NamePattern),
            ("q: 'c[n * pairs(a | b)]'", Code::NamePattern),
            ("q: 'c[pairs(out)..]'", Code::NamePattern),
            ("q: 'c[pairs()]'", Code::NamePattern),
            ("q: c - one", Code::NamePattern),
            ("q: c - -1", Code::NamePattern),
            ("q: [c - 1, d]", Code::NamePattern),
            ("q: 'c[..]'", Code::NamePattern),
            ("q: 'c[..out]'", Code::NamePattern),
            ("q: 'c[1.., out]'", Code::NamePattern),
            ("q + k: 'c[q | k..]'", Code::NamePattern),
            ("q + k: 'c[n * (q | k)..]'", Code::NamePattern),
            ("prefix: 5", Code::WrongKind),
            ("prefix: [a., {b: c}]", Code::WrongKind),
        ] {
            let codes: Vec<Code> = parse(text).1.iter().map(|d| d.code).collect();
            assert_eq!(codes, [code], "{text}");
        }
    }
}
