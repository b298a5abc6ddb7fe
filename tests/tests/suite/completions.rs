//! Text in, text out: the demo's checkpoints, their tokenizers and their weights, against what transformers writes from them.

use std::fs;

use serde::Deserialize;
use serde_json::Value;
use xfc_tests::command::Shell;
use xfc_tests::{Result, repository};

/// What follows a prompt by the largest logit.
#[derive(Deserialize)]
struct Completion {
    prompt: String,
    ids: Vec<i64>,
    text: String,
}

/// Runs a command on each prompt and holds its tokens and its text to the stored ones.
fn completes(shell: &Shell, program: &str, model: &str, checkpoint: &str, wanted: &[Completion]) -> Result<()> {
    for Completion { prompt, ids, text } in wanted {
        let n = ids.len().to_string();
        let arguments = ["run", model, "--checkpoint", checkpoint, "-p", prompt, "-n", &n, "--temp", "0"];
        let json: Value =
            serde_json::from_str(&shell.run(program, &[&arguments[..], &["--json"]].concat())?.success()?)?;
        assert_eq!(serde_json::from_value::<Vec<i64>>(json["ids"].clone())?, *ids, "{program}: after {prompt:?}");
        let printed = shell.run(program, &arguments)?.success()?;
        assert!(printed.contains(text.trim_end()), "{program}: after {prompt:?}\n{printed}\nlacks\n{text}");
    }
    Ok(())
}

/// The demo's models: each compiled, and run by the same `xfrun`.
#[test]
fn the_demo_completes_python() -> Result<()> {
    for model in ["dense", "windowed"] {
        let checkpoint = repository().join("examples/demo").join(model);
        let checkpoint = checkpoint.to_str().ok_or("the checkpoint's path is not UTF-8")?;
        let goldens = repository().join("tests/reference/demo").join(model).with_extension("json");
        let wanted: Vec<Completion> = serde_json::from_slice(&fs::read(goldens)?)?;
        let shell = Shell::new()?;
        completes(&shell, "xfc", checkpoint, checkpoint, &wanted[..1])?;
        shell.run("xfc", &["compile", checkpoint, "-o", "model.xfm"])?.success()?;
        completes(&shell, "xfrun", "model.xfm", checkpoint, &wanted)?;
    }
    Ok(())
}
