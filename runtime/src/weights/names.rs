//! Tensor names: glob patterns, and the closest names to one that is missing.

/// Whether `name` matches `pattern`. Both are split at dots: `**` stands for any number of components (none too), `*` for any run of characters
/// inside a component.
pub(super) fn matches(pattern: &str, name: &str) -> bool {
    let pattern: Vec<&str> = pattern.split('.').collect();
    let name: Vec<&str> = name.split('.').collect();
    wildcard(&pattern, &name, |p| *p == "**", |p, n| component(p, n))
}

fn component(pattern: &str, name: &str) -> bool {
    wildcard(pattern.as_bytes(), name.as_bytes(), |&p| p == b'*', |p, n| p == n)
}

/// Greedy matching with one place to go back to: time is the product of the lengths at most.
fn wildcard<P, N>(pattern: &[P], name: &[N], any: impl Fn(&P) -> bool, same: impl Fn(&P, &N) -> bool) -> bool {
    let (mut p, mut n) = (0, 0);
    let mut back: Option<(usize, usize)> = None;
    while n < name.len() {
        if p < pattern.len() && any(&pattern[p]) {
            back = Some((p + 1, n));
            p += 1;
        } else if p < pattern.len() && same(&pattern[p], &name[n]) {
            (p, n) = (p + 1, n + 1);
        } else if let Some((after, from)) = back {
            (p, n) = (after, from + 1);
            back = Some((after, from + 1));
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(any)
}

/// Up to three of `candidates` that resemble `name` most, best first.
pub(super) fn closest<'a>(name: &str, candidates: &[&'a str]) -> Vec<&'a str> {
    let mut scored: Vec<(f64, &str)> = candidates
        .iter()
        .map(|candidate| (strsim::normalized_levenshtein(name, candidate) + suffix(name, candidate), *candidate))
        .filter(|(score, _)| *score > 0.7)
        .collect();
    scored.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(b.1)));
    scored.into_iter().take(3).map(|(_, candidate)| candidate).collect()
}

/// The share of components, counted from the end, that are equal: prefixes differ more often than names.
fn suffix(a: &str, b: &str) -> f64 {
    let equal = a.rsplit('.').zip(b.rsplit('.')).take_while(|(a, b)| a == b).count();
    equal as f64 / a.split('.').count().max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        assert!(matches("**.inv_freq", "layers.3.rotary.inv_freq"));
        assert!(matches("**.inv_freq", "inv_freq"));
        assert!(matches("layers.*.bias", "layers.3.bias"));
        assert!(!matches("layers.*.bias", "layers.3.attn.bias"));
        assert!(matches("a.**.b.**", "a.x.b.y.b"));
        assert!(matches("*_ids", "position_ids"));
        assert!(!matches("a", "a.b"));
        assert!(!matches("a.b", "a"));
        let long = "a.".repeat(2000);
        assert!(!matches(&"**.a.".repeat(50), &format!("{long}b")));
    }

    #[test]
    fn suggestions() {
        let names = ["model.layers.0.q_proj.weight", "model.layers.0.k_proj.weight", "model.norm.weight"];
        assert_eq!(closest("layers.0.q_proj.weight", &names)[0], names[0]);
        assert!(closest("xyz", &names).is_empty());
    }
}
