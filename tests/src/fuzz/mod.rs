//! Fuzzing of every reader: one function a format, which must return whatever bytes it is given.
//!
//! The same functions are driven in two ways: by [`drive`], a small deterministic mutator that runs for a few seconds in every
//! run of the tests, and by cargo-fuzz (`tests/fuzz`), which is guided by coverage and needs a nightly compiler. A target promises
//! nothing about its result; what it must not do is panic, overflow the stack, or take long.

mod mutate;
mod targets;

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::time::{Duration, Instant};

pub use self::mutate::Mutator;
pub use self::targets::*;

/// A reader under test.
pub type Target = fn(&[u8]);

/// The longest that a target may take for one input of the mutator, which are small.
pub const SLOW: Duration = Duration::from_secs(10);

/// How long [`drive`] runs: `XFC_FUZZ_SECONDS`, else a few seconds.
pub fn budget() -> Duration {
    let seconds = std::env::var("XFC_FUZZ_SECONDS").ok().and_then(|s| s.parse().ok()).unwrap_or(3.0);
    Duration::try_from_secs_f64(seconds).unwrap_or(Duration::from_secs(3))
}

/// Runs `target` on the corpus and then on mutants of it until the budget is used; returns how many inputs it ran.
///
/// The sequence of inputs depends on `name` and the corpus alone, so that a failure comes again.
/// The input being run is kept in a file, which stays where the target fails or takes the process with it.
///
/// # Panics
/// When the target panics or is slow, naming the file that holds the input.
pub fn drive(name: &str, corpus: &[Vec<u8>], dictionary: &[&str], target: Target) -> usize {
    let last = std::env::temp_dir().join(format!("xfc-fuzz-{name}-{}", std::process::id()));
    let end = Instant::now() + budget();
    let mut mutator = Mutator::new(name, corpus, dictionary);
    let mut inputs = 0;
    for seed in corpus {
        one(name, seed, target, &last);
        inputs += 1;
    }
    while Instant::now() < end {
        one(name, &mutator.next_input(), target, &last);
        inputs += 1;
    }
    // The file is only for failures; where it cannot be removed, nothing is lost.
    let _ = fs::remove_file(&last);
    inputs
}

fn one(name: &str, input: &[u8], target: Target, last: &PathBuf) {
    let kept = fs::write(last, input).is_ok();
    let place = if kept { format!("the input is in {}", last.display()) } else { format!("the input is {input:?}") };
    let start = Instant::now();
    let result = catch_unwind(AssertUnwindSafe(|| target(input)));
    let elapsed = start.elapsed();
    assert!(result.is_ok(), "fuzz target {name} panicked; {place}");
    assert!(elapsed < SLOW, "fuzz target {name} took {elapsed:?} for {} bytes; {place}", input.len());
}
