//! The readers, one function each: bytes in, nothing out.
//!
//! A target also holds its reader to what it promises about what it accepts: what was read prints, and reads again as the same.

use xfc_lang::graph::parse::parse;
use xfc_lang::graph::verify::verify;
use xfc_runtime::artifact::manifest::Manifest;
use xfc_runtime::artifact::{Artifact, validate};

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
