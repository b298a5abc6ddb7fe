//! Sentence embeddings of a real checkpoint against PyTorch's, through the command and through the artifact.

use serde_json::Value;
use xfc_tests::Result;
use xfc_tests::command::Shell;
use xfc_tests::compare::{Precision, Tier, compare};
use xfc_tests::embeddings::{Sentence, checkpoint, load};

/// Compares what `embed --json` printed with the stored embeddings.
fn matches(sentences: &[Sentence], json: &str) -> Result<()> {
    let json: Value = serde_json::from_str(json)?;
    let rows: Vec<Vec<f32>> = serde_json::from_value(json["embeddings"].clone())?;
    let tokens: Vec<usize> = serde_json::from_value(json["tokens"].clone())?;
    assert_eq!(tokens, sentences.iter().map(|s| s.ids.len()).collect::<Vec<_>>(), "the texts are other tokens");
    let want: Vec<f32> = sentences.iter().flat_map(|s| s.embedding.iter().copied()).collect();
    let shape = [sentences.len(), sentences[0].embedding.len()];
    Ok(compare("embeddings", &shape, &rows.concat(), &want, Tier::Embedding, Precision::F32)?)
}

#[test]
fn embeddings_are_those_of_pytorch() -> Result<()> {
    let (sentences, checkpoint, shell) = (load()?, checkpoint()?, Shell::new()?);
    let checkpoint = checkpoint.to_str().ok_or("the checkpoint's path is not UTF-8")?;
    let texts: Vec<&str> = sentences.iter().flat_map(|s| ["-p", s.text.as_str()]).collect();
    let ours = shell.run("xfc", &[&["embed", checkpoint, "--json"], &texts[..]].concat())?.success()?;
    matches(&sentences, &ours)?;
    shell.run("xfc", &["compile", checkpoint, "-o", "model.xfm"])?.success()?;
    // The same weights, no compiler, one sentence a call: together and alone agree.
    for sentence in [&sentences[0], &sentences[8]] {
        let arguments = ["embed", "model.xfm", "--checkpoint", checkpoint, "--json", "-p", &sentence.text];
        let ours = shell.run("xfrun", &arguments)?.success()?;
        matches(std::slice::from_ref(sentence), &ours)?;
    }
    // The weights were packed once for the artifact of each command, and are packed anew where nothing may be kept.
    let kept = |command: &str| -> Result<usize> {
        let listed = shell.run(command, &["cache", "list"])?.success()?;
        Ok(listed.lines().filter(|line| line.contains(" weights ")).count())
    };
    assert_eq!((kept("xfc")?, kept("xfrun")?), (1, 1), "both artifacts want the same layout");
    let folder = shell.run("xfc", &["cache", "dir"])?.success()?;
    assert!(folder.trim().ends_with(".cache"), "{folder}");
    shell.run("xfc", &["cache", "clean", "--unused-for", "1"])?.success()?;
    assert_eq!(kept("xfc")?, 1, "used just now");
    let cleaned = shell.run("xfrun", &["cache", "clean"])?;
    assert!(cleaned.stderr.contains("removed"), "{}", cleaned.stderr);
    let alone = &sentences[..1];
    let ours = shell.run("xfc", &["embed", checkpoint, "--json", "--no-cache", "-p", &alone[0].text])?.success()?;
    matches(alone, &ours)?;
    assert!(shell.run("xfc", &["cache", "list"])?.success()?.is_empty());
    Ok(())
}
