//! Running a check over the reference cases, so that one failure hides no other.

use std::cell::RefCell;
use std::collections::BTreeSet;

use xfc_tests::Result;
use xfc_tests::case::Case;

/// Runs `check` on every case, or on those that `XFC_CASES` begins the names of, and reports all failures.
pub(crate) fn every_case(check: impl Fn(&Case) -> Result<()>) {
    cases(|_| true, check);
}

/// The same for a case of each kind that a command can tell: what it is given, what it makes, and whether it generates. A long run
/// (`XFC_SEEDS`) takes all.
pub(crate) fn one_of_each_kind(check: impl Fn(&Case) -> Result<()>) {
    let met = RefCell::new(BTreeSet::new());
    let is_new = |case: &Case| {
        let given = case.inputs.keys().chain(case.floats.keys()).cloned().collect::<Vec<_>>();
        let made = case.outputs().map(|o| o.into_keys().collect::<Vec<_>>()).unwrap_or_default();
        met.borrow_mut().insert((given, made, case.greedy_steps > 0))
    };
    cases(|case| is_new(case) || std::env::var_os("XFC_SEEDS").is_some(), check);
}

fn cases(takes: impl Fn(&Case) -> bool, check: impl Fn(&Case) -> Result<()>) {
    let mut names = Case::names().expect("the cases are there");
    if let Ok(wanted) = std::env::var("XFC_CASES") {
        names.retain(|name| wanted.split(',').any(|w| name.starts_with(w)));
        assert!(!names.is_empty(), "XFC_CASES={wanted} names no case");
    }
    let failed: Vec<String> = names
        .iter()
        .filter_map(|name| {
            let checked = Case::load(name).and_then(|case| if takes(&case) { check(&case) } else { Ok(()) });
            checked.err().map(|e| format!("{name}: {e}"))
        })
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
