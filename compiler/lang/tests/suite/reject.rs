//! Cards with one kind of mistake each: the code they are refused with, and the whole message.
//!
//! A fixture is `reject/E0000_what.yaml`; comments at its top give a config (`# config: {..}`), a `--set` (`# set: name=value`) or
//! `--tiny` (`# tiny: true`).

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use xfc_lang::diagnostic::{Code, Report};
use xfc_lang::spec::parse_card;
use xfc_lang::{ElaborateOptions, Library, elaborate, load_card, pick_card, tiny};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/reject")
}

fn library() -> Library {
    let text = std::fs::read_to_string(folder().join("base.xf")).unwrap();
    Library::build([(PathBuf::from("lib/base.xf"), text)].into_iter())
}

/// What is said of a fixture.
fn refuse(name: &str, text: &str) -> Report {
    let header = |key: &str| text.lines().find_map(|l| l.strip_prefix("# ")?.strip_prefix(key)).map(str::trim);
    let config = header("config:").map(|json| serde_json::from_str(json).unwrap());
    let sets = header("set:").and_then(|set| set.split_once('=')).map(|(k, v)| (k.to_string(), v.to_string()));
    let options = ElaborateOptions { config, sets: sets.into_iter().collect(), ..ElaborateOptions::default() };
    let expand = |spec| match header("tiny:") {
        Some(_) => tiny(&spec, &options).and_then(|options| elaborate(&spec, &options)),
        None => elaborate(&spec, &options),
    };
    match parse_card(name, text, &library()).and_then(expand) {
        Ok(_) => panic!("{name} is accepted"),
        Err(report) => report,
    }
}

#[test]
fn every_code_has_a_card_that_it_refuses() {
    let mut seen = BTreeSet::new();
    let mut files: Vec<_> = std::fs::read_dir(folder()).unwrap().map(|e| e.unwrap().path()).collect();
    files.sort();
    for path in files.into_iter().filter(|p| p.extension().is_some_and(|e| e == "yaml")) {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let report = refuse(&name, &std::fs::read_to_string(&path).unwrap());
        let code = name.split('_').next().unwrap().to_string();
        assert!(report.diagnostics.iter().any(|d| d.code.id() == code), "{name}: {report}");
        insta::with_settings!({ omit_expression => true }, { insta::assert_snapshot!(name.trim_end_matches(".yaml"), report.to_string()) });
        seen.insert(code);
    }
    // These are about files and names, not about a card's text.
    seen.extend(["E0001", "E0004"].map(str::to_string));
    let all: BTreeSet<String> = Code::ALL.iter().map(|c| c.id().to_string()).collect();
    assert_eq!(seen, all);
}

#[test]
fn files_and_families_that_do_not_exist() {
    let library = library();
    let code = |r: Result<_, Report>| r.err().map(|e| e.diagnostics[0].code);
    assert_eq!(code(load_card("no/such/card.yaml", &library)), Some(Code::Unreadable));
    assert_eq!(code(load_card("nothing", &library)), Some(Code::UnknownModel));
    assert_eq!(code(pick_card(&serde_json::json!({"model_type": "nothing"}), &library)), Some(Code::UnknownModel));
    assert_eq!(code(pick_card(&serde_json::json!([]), &library)), Some(Code::UnknownModel));
    assert!(Library::from_dir(Path::new("no/such/folder")).is_err());
}
