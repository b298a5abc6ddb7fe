//! Patterns over dotted names: `*` one component, `**` any number, `{a,b}` either, `{size}` its value.

use std::sync::Arc;

use crate::graph::path::components;
use crate::spec::Datum;

/// Whether a pattern of components (`*` one, `**` any number) matches a whole name.
pub fn matches_pattern(pattern: &str, name: &str) -> bool {
    let pattern: Vec<&str> = components(pattern).collect();
    let name: Vec<&str> = components(name).collect();
    prefix_lengths(&pattern, &name).iter().any(|(n, _)| *n == name.len())
}

/// The numbers of leading components that a pattern can match, each with what `*` stood for.
pub(super) fn prefix_lengths(pattern: &[&str], name: &[&str]) -> Vec<(usize, Vec<String>)> {
    let Some((first, rest)) = pattern.split_first() else { return vec![(0, Vec::new())] };
    if *first == "**" {
        return (0..=name.len())
            .flat_map(|skip| prefix_lengths(rest, &name[skip..]).into_iter().map(move |(n, w)| (n + skip, w)))
            .collect();
    }
    match name.split_first() {
        Some((component, others)) if *first == "*" || first == component => prefix_lengths(rest, others)
            .into_iter()
            .map(|(n, mut wildcards)| {
                if *first == "*" {
                    wildcards.insert(0, (*component).to_string());
                }
                (n + 1, wildcards)
            })
            .collect(),
        _ => Vec::new(),
    }
}

/// `{a,b}` as each of its words, `{size}` as its value.
pub(super) fn braces(pattern: &str, sizes: &[(Arc<str>, Datum)]) -> Vec<String> {
    let (Some(open), Some(close)) = (pattern.find('{'), pattern.find('}')) else { return vec![pattern.to_string()] };
    if close < open {
        return vec![pattern.to_string()];
    }
    let inside = &pattern[open + 1..close];
    let words: Vec<String> = match sizes.iter().find(|(name, _)| **name == *inside) {
        Some((_, value)) => vec![value.to_string()],
        None => inside.split(',').map(|w| w.trim().to_string()).collect(),
    };
    let rest = braces(&pattern[close + 1..], sizes);
    words.iter().flat_map(|word| rest.iter().map(move |r| format!("{}{word}{r}", &pattern[..open]))).collect()
}

/// The first `{size}` of a pattern that names no size.
pub(super) fn unknown_size<'a>(pattern: &'a str, sizes: &[(Arc<str>, Datum)]) -> Option<&'a str> {
    pattern
        .split('{')
        .skip(1)
        .filter_map(|group| group.split_once('}'))
        .map(|(inside, _)| inside.trim())
        .find(|inside| !inside.contains(',') && !sizes.iter().any(|(name, _)| **name == **inside))
}

/// At least the number of patterns that [`braces`] makes of one.
pub(super) fn n_choices(pattern: &str) -> usize {
    pattern
        .split('{')
        .skip(1)
        .map(|group| group.split('}').next().unwrap_or("").matches(',').count() + 1)
        .fold(1, usize::saturating_mul)
}

/// Where what lies inside the enclosing patterns begins, with the number of components they matched.
pub(super) fn inside(within: &[Arc<str>], path: &[&str]) -> Vec<(usize, usize)> {
    let mut places = vec![(0, 0)];
    for pattern in within {
        let pattern: Vec<&str> = pattern.split('.').collect();
        let mut next: Vec<(usize, usize)> = Vec::new();
        for (from, matched) in places {
            for start in from..path.len() {
                for (length, _) in prefix_lengths(&pattern, &path[start..]) {
                    let place = (start + length, matched + length);
                    if length > 0 && !next.contains(&place) {
                        next.push(place);
                    }
                }
            }
        }
        places = next;
    }
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        for (pattern, name, matches) in [
            ("a.b", "a.b", true),
            ("a.*", "a.b", true),
            ("a.*", "a.b.c", false),
            ("a.**", "a.b.c", true),
            ("**.c", "a.b.c", true),
            ("**.c", "c", true),
            ("**", "a.b", true),
            ("a.**.c", "a.c", true),
            ("a.b", "a.bc", false),
        ] {
            assert_eq!(matches_pattern(pattern, name), matches, "{pattern} {name}");
        }
    }

    #[test]
    fn braces_choose() {
        let sizes = [(Arc::from("n"), Datum::Int(3))];
        assert_eq!(braces("a.{b,c}.{n}", &sizes), ["a.b.3", "a.c.3"]);
        assert_eq!(braces("}a{", &sizes), ["}a{"]);
    }
}
