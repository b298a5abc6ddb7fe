//! Every reference case whose card is in `models` keeps its meaning through the pipeline, in f32 and in bf16.

use std::path::Path;

use xfc_lang::graph::verify::verify;
use xfc_lang::graph::{DType, Program};
use xfc_lang::passes::precision;
use xfc_lang::{ElaborateOptions, Library, elaborate, pick_card};

use crate::passes::fuse_checked;

/// Programs of the reference cases.
fn cases() -> Vec<Program> {
    let library = Library::embedded();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/reference/cases");
    let mut names: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    let mut cases = Vec::new();
    for name in names {
        let Ok(text) = std::fs::read_to_string(folder.join(&name).join("config.json")) else { continue };
        let config: serde_json::Value = serde_json::from_str(&text).unwrap();
        let Ok(spec) = pick_card(&config, &library) else { continue };
        let options = ElaborateOptions { config: Some(config), ..ElaborateOptions::default() };
        let model = elaborate(&spec, &options).unwrap_or_else(|e| panic!("{e:?}"));
        verify(&model.program).unwrap_or_else(|e| panic!("{e}"));
        cases.push(model.program);
    }
    assert!(!cases.is_empty());
    cases
}

#[test]
fn cases_keep_their_meaning() {
    for mut program in cases() {
        fuse_checked(&mut program, &[&[7]]);
    }
}

#[test]
fn cases_keep_their_meaning_in_bf16() {
    for mut program in cases() {
        precision::apply(&mut program, DType::BF16).unwrap();
        fuse_checked(&mut program, &[&[5]]);
    }
}
