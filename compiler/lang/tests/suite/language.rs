//! The language reference: every example expands, results have the types that comments say, nothing known is left out.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use xfc_lang::arch::FUNCTIONS;
use xfc_lang::graph::Graph;
use xfc_lang::graph::verify::verify;
use xfc_lang::ops::Core;
use xfc_lang::spec::parse_card;
use xfc_lang::{ElaborateOptions, Library, Model, elaborate};

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn reference() -> String {
    std::fs::read_to_string(repository().join("docs/language.md")).unwrap()
}

/// The fenced blocks of a kind, each with the line it starts at.
pub(crate) fn blocks(text: &str, kind: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut open: Option<(usize, String, bool)> = None;
    for (number, line) in text.lines().enumerate() {
        match (&mut open, line.strip_prefix("```")) {
            (None, Some(lang)) => open = Some((number + 2, String::new(), lang == kind)),
            (Some(_), Some(_)) => found.extend(open.take().filter(|b| b.2).map(|(at, text, _)| (at, text))),
            (Some((_, block, _)), None) => *block += &format!("{line}\n"),
            (None, None) => {}
        }
    }
    found
}

fn expand(at: usize, card: &str) -> Model {
    let spec = parse_card(&format!("docs/language.md:{at}"), card, &Library::embedded());
    let model = spec.and_then(|spec| elaborate(&spec, &ElaborateOptions::default())).unwrap_or_else(|e| panic!("{e}"));
    verify(&model.program).unwrap_or_else(|e| panic!("docs/language.md:{at}: {e}"));
    model
}

fn indented(text: &str) -> String {
    text.lines().map(|l| format!("  {l}\n")).collect()
}

const SMALLEST: &str = "model(x: f32[tokens, 8]) {\n  return {y: x}\n}\n";

/// What examples of checkpoint names speak of.
const NAMED: &str = "layer(x) {\n  norm_1, norm_2, scale_norm, final = rms_norm(1.0e-5)\n  q_proj, k_proj, v_proj, o_proj, lm_head = linear(8, true)\n  mlp = mlp(8, silu)\n\
    \x20 experts = [gated_mlp(8, silu) for i in 0..2]\n  embed_tokens = embedding(4, 8)\n  return x\n}\n";

/// A card around the equations of an example: a whole wiring, the body of a module of `x` and `ids`, or definitions alone.
pub(crate) fn card_of(example: &str) -> String {
    let wiring = if example.contains("model(") {
        example.to_string()
    } else if example.lines().any(|l| l.starts_with("return ")) {
        let body = indented(example);
        format!(
            "example(x, ids) {{\n{body}}}\nmodel(x: f32[tokens, 8], ids: i64[tokens]) {{\n  return {{y: example(x, ids)}}\n}}\n"
        )
    } else {
        format!("{example}\n{SMALLEST}")
    };
    format!("xfc: 1\nname: Example\nsizes: {{}}\nwiring: |\n{}", indented(&wiring))
}

#[test]
fn every_example_expands() {
    for (at, example) in blocks(&reference(), "xf") {
        let model = expand(at, &card_of(&example));
        let stated = example.lines().find_map(|l| l.strip_prefix("return ")?.split_once("# ").map(|(_, ty)| ty.trim()));
        if let Some(stated) = stated {
            assert_eq!(model.arch.outputs[0].1, stated, "docs/language.md:{at}");
        }
    }
}

#[test]
fn every_card_expands() {
    let mut n_whole = 0;
    for (at, text) in blocks(&reference(), "yaml") {
        if text.contains("xfc: 1") {
            let model = expand(at, &text);
            if let Some(stated) = model.arch.published.as_ref().and_then(|p| p.parameters) {
                assert!(stated.is(model.arch.parameter_count()), "docs/language.md:{at}");
                n_whole += 1;
            }
        } else if text.starts_with("sizes:") {
            expand(at, &format!("xfc: 1\nname: Example\n{text}wiring: |\n{}", indented(SMALLEST)));
        } else {
            let wiring = indented(&format!("{NAMED}{SMALLEST}"));
            expand(at, &format!("xfc: 1\nname: Example\nsizes: {{num_layers: 2}}\nwiring: |\n{wiring}{text}"));
        }
    }
    assert_eq!(n_whole, 1);
}

#[test]
fn everything_known_is_in_an_example_or_a_list() {
    let text = reference();
    let examples: String = blocks(&text, "xf").into_iter().map(|(_, b)| b).collect();
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let has = |text: &str, name: &str| text.split(|c| !is_word(c)).any(|w| w == name);
    for name in FUNCTIONS {
        assert!(has(&examples, name), "no example uses `{name}`");
    }
    for name in Library::embedded().definitions() {
        assert!(has(&text, &name), "the reference says nothing of `{name}`");
    }
}

#[test]
fn the_grammar_is_the_compilers() {
    let grammar = std::fs::read_to_string(repository().join("compiler/lang/src/spec/xf.pest")).unwrap();
    let shown = blocks(&reference(), "pest");
    assert_eq!(shown.len(), 1);
    assert!(shown[0].1.trim() == grammar.trim(), "docs/language.md shows another grammar than src/spec/xf.pest");
}

/// Every operation that a graph can hold is made by some example. What passes alone make is no part of the language.
#[test]
fn every_core_operation_is_in_an_example() {
    let source = std::fs::read_to_string(repository().join("compiler/lang/src/ops/core/text.rs")).unwrap();
    let (table, _) = source.split_once("/// Attributes in the order of the text form").unwrap();
    let is_name = |s: &&str| !s.is_empty() && s.chars().all(|c| c.is_ascii_lowercase() || c == '_');
    let known: Vec<&str> = table.split('"').skip(1).step_by(2).filter(is_name).collect();
    assert!(known.len() > 50 && ["neg", "arg_max", "scan"].iter().all(|n| known.contains(n)), "{known:?}");
    let mut made: BTreeSet<&str> = BTreeSet::new();
    for (at, example) in blocks(&reference(), "xf") {
        let program = expand(at, &card_of(&example)).program;
        program.graphs.iter().for_each(|graph| names_of(graph, &mut made));
    }
    let missing: Vec<&&str> = known.iter().filter(|n| !made.contains(**n) && **n != "select_rows").collect();
    assert!(missing.is_empty(), "no example of docs/language.md has the operations {missing:?}");
}

fn names_of(graph: &Graph, names: &mut BTreeSet<&'static str>) {
    for node in graph.nodes() {
        names.insert(graph.op(node).name());
        if let Some(Core::Scan { step, .. }) = graph.op(node).as_core() {
            names_of(step, names);
        }
    }
}

/// Each operation and each module has a section with an example; an operation's says the shapes, the library's definitions are each named where
/// the library is told.
#[test]
fn every_section_has_an_example_and_its_shapes() {
    let text = reference();
    let part =
        |from: &str, to: &str| text.split_once(from).and_then(|(_, rest)| rest.split_once(to)).unwrap().0.to_owned();
    let (operations, library) =
        (part("\n## Operations\n", "\n## The library\n"), part("\n## The library\n", "\n## Checkpoint names\n"));
    for section in operations.split("\n### ").skip(1).chain(library.split("\n### ").skip(1)) {
        assert!(section.contains("\n```xf\n"), "no example: {section}");
    }
    for section in operations.split("\n### ").skip(1) {
        assert!(section.contains('['), "no shapes: {section}");
    }
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    for name in Library::embedded().definitions() {
        assert!(library.split(|c| !is_word(c)).any(|w| w == name), "the part on the library says nothing of `{name}`");
    }
}
