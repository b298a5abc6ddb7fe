//! Running a check over the reference cases, so that one failure hides no other.

use xfc_tests::Result;
use xfc_tests::case::Case;

/// Runs `check` on every case, or on those that `XFC_CASES` begins the names of, and reports all failures.
pub(crate) fn every_case(check: impl Fn(&Case) -> Result<()>) {
    let mut names = Case::names().expect("the cases are there");
    if let Ok(wanted) = std::env::var("XFC_CASES") {
        names.retain(|name| wanted.split(',').any(|w| name.starts_with(w)));
        assert!(!names.is_empty(), "XFC_CASES={wanted} names no case");
    }
    let failed: Vec<String> = names
        .iter()
        .filter_map(|name| Case::load(name).and_then(|case| check(&case)).err().map(|e| format!("{name}: {e}")))
        .collect();
    assert!(failed.is_empty(), "{} of {} cases:\n{}", failed.len(), names.len(), failed.join("\n"));
}

/// The same for the cases that generate.
pub(crate) fn decoders(check: impl Fn(&Case) -> Result<()>) {
    every_case(|case| if case.greedy_steps > 0 { check(case) } else { Ok(()) });
}

/// The index of the largest logit, the lowest of equals.
pub(crate) fn largest<T: Copy + PartialOrd>(logits: &[T]) -> i64 {
    let better = |best: usize, i: usize| if logits[i] > logits[best] { i } else { best };
    (0..logits.len()).reduce(better).map_or(-1, |i| i as i64)
}
