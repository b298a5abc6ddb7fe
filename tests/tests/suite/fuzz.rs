//! Every reader on mutants of real inputs, for a few seconds each (`XFC_FUZZ_SECONDS`).

use xfc_tests::Result;
use xfc_tests::fuzz::{self, Mutator};
use xfc_tests::source::files;

/// The texts of the files under a folder, as seeds.
fn corpus(folder: &str, ending: &str) -> Result<Vec<Vec<u8>>> {
    let files = files(folder, &[ending])?;
    assert!(!files.is_empty(), "no {ending} in {folder}");
    Ok(files.into_iter().map(|file| file.text.into_bytes()).collect())
}

const GRAPH_WORDS: &[&str] = &[
    "graph 1 \"g\" (",
    "return y = %1",
    "%1 = ",
    "{graph = 1, at = \"\"}",
    "{spec = \"ab,bc->ac\"}",
    "call %0 ",
    "rows %0 ",
    "attention ",
    "linear ",
    "rms_norm ",
    "reshape ",
    "concat ",
    "slice ",
    "gather ",
    "contract ",
    ": f32[tokens, 16]",
    "visible(tokens)",
    "rows(tokens)",
    ": i64",
    "[",
    "(",
    "{",
    "body = ({",
    "{values = [1e-5]}",
    "-",
    "18446744073709551615",
];

#[test]
fn graph_text() -> Result<()> {
    let corpus = corpus("compiler/lang/tests/fixtures", ".xg")?;
    let inputs = fuzz::drive("graph_text", &corpus, GRAPH_WORDS, fuzz::graph_text);
    assert!(inputs > 100, "only {inputs} inputs in {:?}", fuzz::budget());
    Ok(())
}

#[test]
fn the_sequence_of_mutants_repeats() {
    let corpus = [b"one two".to_vec(), b"three".to_vec()];
    let draw = || {
        let mut mutator = Mutator::new("x", &corpus, &["word"]);
        (0..500).map(|_| mutator.next_input()).collect::<Vec<_>>()
    };
    assert_eq!(draw(), draw());
    let mutants = draw();
    assert!(mutants.iter().filter(|m| !corpus.contains(m)).count() > 400);
}

#[test]
fn a_panic_names_the_input() {
    let target = |data: &[u8]| assert!(data.len() < 3, "too long");
    let corpus = [b"four".to_vec()];
    let panic = std::panic::catch_unwind(|| fuzz::drive("sample", &corpus, &[], target)).unwrap_err();
    let message = panic.downcast_ref::<String>().unwrap();
    let path = message.split("the input is in ").nth(1).unwrap();
    assert_eq!(std::fs::read(path).unwrap(), b"four");
    std::fs::remove_file(path).unwrap();
}
