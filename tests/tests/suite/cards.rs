//! Drawn cards: what is compiled of them means what is interpreted, and what is refused is refused in words.
//!
//! A quick run draws a few; `XFC_SEEDS` asks for more, `XFC_FIRST_SEED` for others. A card that fails is made smaller and printed.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use xfc_tests::cards::{Outcome, card, check};
use xfc_tests::choices::{Choices, shrink};
use xfc_tests::compile::TARGETS;
use xfc_tests::generated::seeds;

/// A card and its run from one list of choices, in which a panic is a failure like any other.
fn run(mut choices: Choices, targets: &[&str]) -> (Choices, Result<Outcome, String>, String) {
    let text = card(&mut choices);
    let outcome = catch_unwind(AssertUnwindSafe(|| check(&text, &mut choices, targets)));
    let outcome = match outcome {
        Ok(Ok(outcome)) => Ok(outcome),
        Ok(Err(error)) => Err(error.to_string()),
        Err(panic) => {
            let said = panic.downcast_ref::<String>().cloned();
            Err(format!(
                "panicked: {}",
                said.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned())).unwrap_or_default()
            ))
        }
    };
    (choices, outcome, text)
}

/// What drawn cards have found: an equation on `x`, of width 6, in a layer.
const FOUND: &[&str] = &[
    // A product times arithmetic on a weight.
    "up = linear(4)\n    gain = param[4]\n    down = linear(6)\n    return x + down(up(x) * (1 + gain))",
    // The sink of a single head, and one number for the scores of all heads.
    "attn = gqa(1, 1, 6, with_sinks = true)\n    return x + attn(x)",
    "gain = param[1]\n    attn = gqa(4, 2, 2, scores = score * (1 + gain))\n    return x + attn(x)",
];

#[test]
fn cards_that_failed_once() {
    for body in FOUND {
        let text = format!(
            "xfc: 1\nname: Found\nsizes: {{}}\nwiring: |\n  layer(x) {{\n    {body}\n  }}\n  model(x0: f32[tokens, 6]) {{\n    layers = [layer for i in 0..2]\n    return {{y: layers(x0)}}\n  }}\n"
        );
        for choice in 0..4 {
            let outcome = check(&text, &mut Choices::of_list(vec![choice]), &TARGETS[..1]);
            assert!(matches!(outcome, Ok(Outcome::Agrees)), "{outcome:?}\n{text}");
        }
    }
}

/// What a card has, by what its text says.
const PARTS: [(&str, &str); 4] =
    [("experts", "mix("), ("scans", "scan("), ("latents", "mla("), ("sinks", "with_sinks")];

/// Prints what became of how many under `--nocapture`.
#[test]
#[expect(clippy::print_stdout, reason = "a count for people, hidden unless asked for")]
fn drawn_cards_mean_the_same_compiled_and_interpreted() {
    let seeds = seeds(0, 12);
    let n = seeds.end - seeds.start;
    let last = std::env::temp_dir().join(format!("xfc-card-{}", std::process::id()));
    let (mut agree, mut failed) = (0, Vec::new());
    let mut counts = std::collections::BTreeMap::new();
    for seed in seeds {
        // One that takes the process with it stays in the file.
        let targets = &TARGETS[..1 + usize::from(seed % 4 == 0)];
        let choices = Choices::of_seed(seed);
        let written = format!("# seed {seed}\n{}", card(&mut choices.clone()));
        std::fs::write(&last, written).expect("the folder for temporary files can be written");
        let (drawn, outcome, text) = run(choices, targets);
        match outcome {
            Ok(outcome) => {
                agree += u64::from(outcome == Outcome::Agrees);
                let parts = PARTS.iter().filter(|(_, word)| text.contains(word)).map(|(part, _)| *part);
                for part in parts.chain(["all"]) {
                    *counts.entry(format!("{part}: {outcome:?}")).or_insert(0) += 1;
                }
            }
            Err(error) => {
                let small = shrink(drawn.drawn().to_vec(), Duration::from_secs(90), |list| {
                    run(Choices::of_list(list.to_vec()), targets).1.is_err()
                });
                let (_, outcome, small) = run(Choices::of_list(small), targets);
                let smaller = outcome.err().unwrap_or_default();
                failed.push(format!("seed {seed}: {error}\n{text}\nmade smaller: {smaller}\n{small}"));
            }
        }
    }
    // The file is only for failures; where it cannot be removed, nothing is lost.
    let _ = std::fs::remove_file(&last);
    println!("{counts:?}");
    assert!(failed.is_empty(), "{} of {n} cards fail\n{}", failed.len(), failed.join("\n\n"));
    assert!(agree * 2 >= n, "only {agree} of {n} cards were compared: {counts:?}");
}
