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
        precision::apply(&mut program, DType::BF16, DType::BF16).unwrap();
        fuse_checked(&mut program, &[&[5]]);
    }
}

/// Steps are held between the numbers of `time_step_limit`, where these are any: what is no bound costs nothing.
#[test]
fn bounds_of_a_config_are_kept_where_they_are_numbers() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/reference/cases");
    let configs = std::fs::read_dir(folder).unwrap().filter_map(|case| {
        let text = std::fs::read_to_string(case.ok()?.path().join("config.json")).ok()?;
        text.contains("time_step_limit").then(|| serde_json::from_str::<serde_json::Value>(&text).unwrap())
    });
    let configs: Vec<serde_json::Value> = configs.collect();
    assert!(!configs.is_empty());
    for config in configs {
        let bounds = |limit: serde_json::Value| {
            let mut config = config.clone();
            config["time_step_limit"] = limit;
            let spec = pick_card(&config, &Library::embedded()).unwrap_or_else(|e| panic!("{e}"));
            let options = ElaborateOptions { config: Some(config), ..ElaborateOptions::default() };
            let program = elaborate(&spec, &options).unwrap_or_else(|e| panic!("{e}")).program;
            let has = |name: &str| program.graphs.iter().any(|g| g.nodes().any(|n| g.op(n).name() == name));
            (has("max"), has("min"))
        };
        assert_eq!(bounds(serde_json::json!([0.4, 0.9])), (true, true));
        assert_eq!(bounds(serde_json::json!([0.0, 0.9])), (false, true));
        assert_eq!(bounds(serde_json::json!([0.0, {"__float__": "Infinity"}])), (false, false));
        assert_eq!(bounds(serde_json::Value::Null), (false, false));
    }
}
