//! The cards of the library: tied copies of tensors, layers that are one graph.

use xfc_lang::arch::{ElaborateOptions, elaborate, matches_pattern};
use xfc_lang::graph::verify::verify;
use xfc_lang::spec::{Library, load_card};
use xfc_tests::case::Case;
use xfc_tests::model;

#[test]
fn copies_of_tied_tensors_are_ignored() {
    for name in Case::names().expect("the cases are there") {
        let case = Case::load(&name).expect("the case loads");
        let model = model::expand(&case).unwrap_or_else(|e| panic!("{name}: {e}"));
        for alias in case.tied.keys() {
            let ignored = model.ignore.iter().any(|p| matches_pattern(p, alias));
            assert!(ignored, "{name}: {alias} is not ignored by {:?}", model.ignore);
        }
        let stored: usize = case.tensors.iter().map(|t| t.shape.iter().product::<usize>()).sum();
        assert_eq!(model.arch.parameter_count(), stored as u64, "{name}");
    }
}

#[test]
fn equal_layers_are_one_graph() {
    let library = Library::embedded();
    for card in library.cards().map(str::to_string).collect::<Vec<_>>() {
        let spec = load_card(&card, &library).unwrap_or_else(|e| panic!("{e}"));
        let model = elaborate(&spec, &ElaborateOptions::default()).unwrap_or_else(|e| panic!("{e}"));
        verify(&model.program).unwrap_or_else(|e| panic!("{card}: {e}"));
        // One body for each stack of layers, whatever their number.
        let mut stacks: Vec<&str> =
            model.arch.parameters.iter().filter_map(|p| p.path.split_once(".0.").map(|(stack, _)| stack)).collect();
        stacks.dedup();
        assert_eq!(model.program.graphs.len(), 1 + stacks.len(), "{card}: {stacks:?}");
    }
}
