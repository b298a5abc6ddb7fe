//! "Did you mean": the candidate at the smallest edit distance, if it is close enough to be what was meant.

/// The candidate closest to `word`: at most a third of the letters, or 2 (of up to 4 letters 1), differ; else one that `word` begins, or that begins
/// `word`.
///
/// Of equally close ones it is one that begins with the same letter, then the first of the alphabet.
pub fn closest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    all_closest(word, candidates).first().copied()
}

/// All candidates that are as close as the closest, in the order of [`closest`].
pub fn all_closest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    let letters = word.chars().count();
    let limit = (letters / 3).max(if letters > 4 { 2 } else { 1 });
    let begins = |a: &str, b: &str| a.len() >= 4 && b.starts_with(a);
    let first = |word: &str| word.chars().next().map(|c| c.to_ascii_lowercase());
    let mut found: Vec<(usize, bool, &str)> = candidates
        .into_iter()
        .filter_map(|candidate| match distance(word, candidate) {
            d if d <= limit && d < candidate.chars().count() => Some((d, first(candidate) != first(word), candidate)),
            d if begins(word, candidate) || begins(candidate, word) => {
                Some((limit + d, first(candidate) != first(word), candidate))
            }
            _ => None,
        })
        .collect();
    found.sort_unstable();
    found.dedup();
    let best = found.first().map(|(d, ..)| *d);
    found.into_iter().filter(|(d, ..)| Some(*d) == best).map(|(.., candidate)| candidate).collect()
}

/// The advice that names the closest candidate.
pub fn did_you_mean<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<String> {
    closest(word, candidates).map(|candidate| format!("did you mean `{candidate}`?"))
}

/// Edit distance with insertions, deletions, substitutions and swaps of neighbours, each of cost 1; case costs nothing.
fn distance(a: &str, b: &str) -> usize {
    let a: Vec<char> = a.to_lowercase().chars().collect();
    let b: Vec<char> = b.to_lowercase().chars().collect();
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    for i in 0..=a.len() {
        for j in 0..=b.len() {
            rows[i][j] = if i == 0 || j == 0 {
                i + j
            } else {
                let substituted = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
                let mut best = substituted.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
                if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                    best = best.min(rows[i - 2][j - 2] + 1);
                }
                best
            };
        }
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_what_was_meant() {
        let sizes = ["hidden_size", "vocab_size", "head_dim"];
        assert_eq!(closest("hiden_size", sizes), Some("hidden_size"));
        assert_eq!(closest("haed_dim", sizes), Some("head_dim"));
        assert_eq!(closest("vocab", sizes), Some("vocab_size"));
        assert_eq!(closest("rope", sizes), None);
        assert_eq!(closest("rank", ["tanh", "conv"]), None);
        assert_eq!(closest("rnak", ["rank"]), Some("rank"));
        assert_eq!(closest("water", ["later", "wafer"]), Some("wafer"));
        assert_eq!(all_closest("water", ["later", "wafer", "hater", "waiter2"]), ["wafer", "hater", "later"]);
    }

    #[test]
    fn counts_swaps_once() {
        assert_eq!(distance("form", "from"), 1);
        assert_eq!(distance("", "abc"), 3);
    }
}
