//! The readers, one function each: bytes in, nothing out.
//!
//! A target also holds its reader to what it promises about what it accepts: what was read prints, and reads again as the same.

use std::sync::OnceLock;

use xfc_check::gguf::facts;
use xfc_lang::arch::{ElaborateOptions, elaborate};
use xfc_lang::graph::parse::parse;
use xfc_lang::graph::verify::verify;
use xfc_lang::spec::{
    Library, Origin, Spec, apply_sets, gguf_config, load_card, parse_card, parse_items, pick_card, pick_gguf_card,
};
use xfc_runtime::artifact::manifest::Manifest;
use xfc_runtime::artifact::{Artifact, validate};
use xfc_runtime::text::chat::ChatTemplate;
use xfc_runtime::text::settings::{embed_settings, start_ids, stop_ids, suppressed_ids};
use xfc_runtime::text::tokenizer::{SpecialTokens, Tokenizer};
use xfc_runtime::weights::Checkpoint;

fn library() -> &'static Library {
    static LIBRARY: OnceLock<Library> = OnceLock::new();
    LIBRARY.get_or_init(Library::embedded)
}

/// Expands a card; what is refused must be said in words, what is accepted must verify.
fn expand(spec: &Spec, options: &ElaborateOptions) {
    match elaborate(spec, options) {
        Ok(model) => {
            verify(&model.program).expect("the program of an accepted card is valid");
        }
        Err(report) => said(&report),
    }
}

/// A refusal shows as text and as JSON.
fn said(report: &xfc_lang::diagnostic::Report) {
    assert!(!report.diagnostics.is_empty(), "a refusal without a reason");
    assert!(!report.to_string().is_empty() && report.to_json().is_array());
}

/// A card with the library as it ships: read, and expanded at its published sizes.
pub fn card(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match parse_card("card.yaml", text, library()) {
        Ok(spec) => expand(&spec, &ElaborateOptions::default()),
        Err(report) => said(&report),
    }
}

/// What `--set` says, one text a line, over a card as it ships.
///
/// # Panics
/// When the library lacks its first card.
pub fn set(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let first = library().cards().next().expect("the library has cards");
    let mut spec = load_card(first, library()).expect("the card is right");
    let sets: Vec<String> = text.lines().take(8).map(str::to_owned).collect();
    match apply_sets(&mut spec, &sets) {
        // Full sizes take long, and what is set is about the wiring.
        Ok(mut sets) => {
            sets.extend(
                spec.sizes.iter().filter(|s| s.name.contains("layers")).map(|s| (s.name.to_string(), "2".to_owned())),
            );
            expand(&spec, &ElaborateOptions { sets, ..ElaborateOptions::default() });
        }
        Err(report) => said(&report),
    }
}

/// A tokenizer.json: read, and used on a text.
pub fn tokenizer(data: &[u8]) {
    match Tokenizer::from_bytes(data, "tokenizer.json".to_owned()) {
        Ok(tokenizer) => {
            if let Ok(encoded) = tokenizer.encode("to be, or not to be: é", SpecialTokens::Add) {
                let _ = tokenizer.decode(&encoded.ids);
            }
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// The small JSON files of a checkpoint's folder, each with these bytes: the index of its parts, its ends of text, its chat template.
pub fn settings(data: &[u8]) {
    let Ok(folder) = tempfile::tempdir() else { return };
    for name in [
        "model.safetensors.index.json",
        "generation_config.json",
        "config.json",
        "tokenizer_config.json",
        "modules.json",
    ] {
        if std::fs::write(folder.path().join(name), data).is_err() {
            return;
        }
    }
    // Whatever they say, it is an answer or a refusal.
    let _ = Checkpoint::open(folder.path()).map_err(|error| assert!(!error.to_string().is_empty()));
    let _ = stop_ids(folder.path()).map_err(|error| assert!(!error.to_string().is_empty()));
    let _ = start_ids(folder.path()).map_err(|error| assert!(!error.to_string().is_empty()));
    let _ = suppressed_ids(folder.path()).map_err(|error| assert!(!error.to_string().is_empty()));
    let _ = embed_settings(folder.path()).map_err(|error| assert!(!error.to_string().is_empty()));
    let _ = ChatTemplate::open(folder.path()).map_err(|error| assert!(!error.to_string().is_empty()));
}

/// A file of the module library.
pub fn xf(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let mut diagnostics = Vec::new();
    parse_items(text, &Origin { source: 0, lines: Vec::new() }, &mut diagnostics);
}

/// A config.json, with the card of its family as it ships.
pub fn config(data: &[u8]) {
    let Ok(config) = serde_json::from_slice(data) else { return };
    match pick_card(&config, library()) {
        Ok(spec) => expand(&spec, &ElaborateOptions { config: Some(config), ..ElaborateOptions::default() }),
        Err(report) => said(&report),
    }
}

/// A safetensors file: opened, and every byte of every tensor looked at.
pub fn safetensors(data: &[u8]) {
    let Ok(file) = tempfile::Builder::new().suffix(".safetensors").tempfile() else { return };
    if std::fs::write(file.path(), data).is_err() {
        return;
    }
    match Checkpoint::open(file.path()) {
        Ok(Checkpoint::Stored(stored)) => {
            let bytes = stored.tensors().flat_map(|(_, tensor)| stored.bytes(tensor));
            std::hint::black_box(bytes.fold(0u8, |sum, byte| sum.wrapping_add(*byte)));
        }
        Ok(Checkpoint::Random(_)) => panic!("a file was taken for random weights"),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// A GGUF file: opened, every tensor decoded, and all that it says of the model read by the cards; its tokenizer and its template.
pub fn gguf(data: &[u8]) {
    let Ok(file) = tempfile::Builder::new().suffix(".gguf").tempfile() else { return };
    if std::fs::write(file.path(), data).is_err() {
        return;
    }
    match Tokenizer::open(file.path()) {
        Ok(tokenizer) => {
            let _ = tokenizer.encode("to be, or not to be: é", SpecialTokens::Add).map(|e| tokenizer.decode(&e.ids));
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    let _ = ChatTemplate::open(file.path()).map_err(|error| assert!(!error.to_string().is_empty()));
    let _ = stop_ids(file.path()).map_err(|error| assert!(!error.to_string().is_empty()));
    match Checkpoint::open(file.path()) {
        Ok(checkpoint @ Checkpoint::Stored(_)) => {
            let Checkpoint::Stored(stored) = &checkpoint else { return };
            let numbers = stored.tensors().filter_map(|(name, _)| stored.numbers(name));
            std::hint::black_box(numbers.flatten().fold(0.0, |sum: f32, x| sum + x));
            if let Some((header, file)) = stored.header() {
                header.metadata.values().for_each(|value| assert!(!value.shown(file).is_empty()));
            }
            let Some(facts) = facts(&checkpoint) else { return };
            match pick_gguf_card(&facts, library()).and_then(|spec| Ok((gguf_config(&spec, &facts)?, spec))) {
                Ok((config, spec)) => {
                    // Full sizes take long, and what is read here is the metadata.
                    let sets = spec.sizes.iter().filter(|s| s.name.contains("layer"));
                    let sets = sets.map(|s| (s.name.to_string(), "1".to_owned())).collect();
                    let format = "gguf".to_owned();
                    expand(
                        &spec,
                        &ElaborateOptions { config: Some(config), sets, format, ..ElaborateOptions::default() },
                    );
                }
                Err(report) => said(&report),
            }
        }
        Ok(Checkpoint::Random(_)) => panic!("a file was taken for random weights"),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// The text form of graphs; and the verifier, for what is read.
///
/// # Panics
/// When a program that was read prints as text that means another one.
pub fn graph_text(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(program) = parse(text) else { return };
    // The violations are the caller's to show: showing must hold too.
    if let Err(violations) = verify(&program) {
        assert!(!violations.to_string().is_empty(), "a violation that says nothing");
        return;
    }
    let printed = program.to_string();
    let again = parse(&printed).map(|program| program.to_string());
    assert_eq!(again.as_deref(), Ok(printed.as_str()), "the printed program reads as another");
}

/// An artifact in memory. Nothing of it is executed.
pub fn artifact(data: &[u8]) {
    if let Ok(artifact) = Artifact::from_bytes(data.to_vec()) {
        for manifest in artifact.manifests() {
            validate::check(manifest).expect("an artifact that was read has a manifest that holds");
        }
    }
}

/// The manifest of an artifact, whose checksum hides it from mutants of the whole file.
pub fn manifest(data: &[u8]) {
    if let Ok(manifest) = serde_json::from_slice::<Manifest>(data) {
        // Whether it holds is the reader's business; here it only must be decided.
        let _ = validate::check(&manifest);
    }
}
