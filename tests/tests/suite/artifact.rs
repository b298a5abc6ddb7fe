//! Artifacts: the same bytes whatever the circumstances, and every damage is noticed.

use std::fs;
use std::sync::Arc;

use xfc_codegen::driver::Options;
use xfc_codegen::kernels::Known;
use xfc_runtime::artifact::Artifact;
use xfc_tests::case::Case;
use xfc_tests::compile::{TARGETS, artifact, fresh_artifact};
use xfc_tests::{Result, fuzz};

#[test]
fn bytes_do_not_depend_on_threads_or_folder() -> Result<()> {
    let case = Case::load("mistral")?;
    let one = fresh_artifact(&case, &TARGETS, &Options { threads: 1, ..Options::default() })?;
    for threads in [2, 3, 8] {
        let other = fresh_artifact(&case, &TARGETS, &Options { threads, ..Options::default() })?;
        assert!(one == other, "{threads} threads make another artifact");
    }
    let text = String::from_utf8_lossy(&one);
    for place in [env!("CARGO_MANIFEST_DIR"), "/tmp/", "/root", "/home"] {
        assert!(!text.contains(place), "the artifact names {place}");
    }
    Ok(())
}

#[test]
fn kernels_of_a_folder_make_the_same_bytes() -> Result<()> {
    let case = Case::load("llama3_2_tied")?;
    let folder = tempfile::tempdir()?;
    // Each as a process of its own would.
    let compiled = || {
        let known = Known::in_folder(folder.path().to_owned(), "this").map(Arc::new);
        assert!(known.is_some(), "the folder is of this build");
        fresh_artifact(&case, &["cpu"], &Options { known, ..Options::default() })
    };
    fs::write(folder.path().join(Known::BUILD), "this")?;
    let fresh = fresh_artifact(&case, &["cpu"], &Options::default())?;
    assert!(compiled()? == fresh, "writing them makes another artifact");
    assert!(compiled()? == fresh, "reading them makes another artifact");
    // What is no whole object is not taken, and written again.
    let files = fs::read_dir(folder.path())?.map(|file| Ok(file?.path())).collect::<Result<Vec<_>>>()?;
    assert!(files.len() > 3, "{files:?}");
    let written = files.iter().map(fs::read).collect::<std::result::Result<Vec<_>, _>>()?;
    for (file, bytes) in files.iter().zip(&written).filter(|(file, _)| !file.ends_with(Known::BUILD)) {
        fs::write(file, &bytes[..bytes.len() / 2])?;
    }
    assert!(compiled()? == fresh, "halves of objects are taken");
    for (file, bytes) in files.iter().zip(&written) {
        assert!(fs::read(file)? == *bytes, "{}", file.display());
    }
    assert!(Known::in_folder(folder.path().to_owned(), "another").is_none(), "kernels of another build are taken");
    Ok(())
}

#[test]
fn every_damaged_byte_is_noticed() -> Result<()> {
    let case = Case::load("llama3_2_tied")?;
    let bytes = artifact(&case, &["cpu"], &Options::default())?;
    Artifact::from_bytes(bytes.clone())?;
    let step = (bytes.len() / 3000).max(1);
    for at in (0..bytes.len()).step_by(step) {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x10;
        // Either refused, or what was damaged says nothing: then everything that is said is as before.
        if let Ok(read) = Artifact::from_bytes(damaged) {
            panic!("byte {at} of {} does not matter to {}", bytes.len(), read.card());
        }
        assert!(
            Artifact::from_bytes(bytes[..at].to_vec()).is_err(),
            "the first {at} bytes are taken for a whole artifact"
        );
    }
    Ok(())
}

#[test]
fn mutants_are_refused_or_hold() -> Result<()> {
    let case = Case::load("llama2")?;
    let bytes = artifact(&case, &TARGETS, &Options::default())?;
    let with_source = artifact(&Case::load("t5")?, &TARGETS[..1], &Options::default())?;
    let mut manifests = Vec::new();
    for artifact in [bytes.clone(), with_source] {
        for manifest in Artifact::from_bytes(artifact)?.manifests() {
            manifests.push(serde_json::to_vec(manifest)?);
        }
    }
    assert!(fuzz::drive("artifact", &[bytes], &["xfm", ".text", "\0\0\0\0"], fuzz::artifact) > 10);
    let words = ["-1", "0", "99999999999999999999", "null", "[]", "{}", "18446744073709551615", "\"x\""];
    assert!(fuzz::drive("manifest", &manifests, &words, fuzz::manifest) > 10);
    Ok(())
}
