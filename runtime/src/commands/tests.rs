//! The commands as they are typed, on a checkpoint folder and the artifact of the crate's tests.

#![cfg(target_arch = "x86_64")]

use super::*;
use crate::error::{EXIT_INPUT, EXIT_USAGE};
use crate::tests::{artifact, expected};
use crate::text::tokenizer::tests::bytes_json;
use clap::Parser;
use std::path::Path;

#[derive(Parser)]
enum Command {
    Run(RunArgs),
    Logits(LogitsArgs),
    Embed(EmbedArgs),
    Bench(BenchArgs),
}

/// What a command wrote to its two writers.
fn execute(arguments: &[&str]) -> Result<(String, String)> {
    let command = Command::try_parse_from([&["test"], arguments].concat()).unwrap_or_else(|error| panic!("{error}"));
    let (mut out, mut notes) = (Vec::new(), Vec::new());
    let mut output = Output { out: &mut out, notes: &mut notes };
    match command {
        Command::Run(args) => run::run(&artifact(), &args, &mut output)?,
        Command::Logits(args) => logits::run(&artifact(), &args, &mut output)?,
        Command::Embed(args) => embed::run(&artifact(), &args, &mut output)?,
        Command::Bench(args) => bench::run(&artifact(), &args, &mut output)?,
    }
    Ok((String::from_utf8(out).unwrap(), String::from_utf8(notes).unwrap()))
}

/// A folder with weights, a tokenizer whose ids 0 to 9 are the characters `!` to `*`, and a chat template.
fn checkpoint() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    crate::weights::tests::write(
        &folder.path().join("model.safetensors"),
        &[("a.weight", &[2, 3], 0.0), ("b.weight", &[2, 3], 10.0)],
    );
    std::fs::write(folder.path().join("tokenizer.json"), bytes_json()).unwrap();
    std::fs::write(folder.path().join("chat_template.jinja"), "{{ messages[0].content }}").unwrap();
    folder
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// The first `n` tokens after `ids`.
fn continuation(mut ids: Vec<i64>, n: usize) -> Vec<i64> {
    for _ in 0..n {
        ids.push(expected(&ids));
    }
    ids.split_off(ids.len() - n)
}

#[test]
fn run_with_tokens_and_with_text() {
    let folder = checkpoint();
    let ids = continuation(vec![3, 1, 4], 6);
    let base = ["run", "--checkpoint", text(folder.path()), "-n", "6", "-t", "2"];
    let (json, notes) = execute(&[&base[..], &["--tokens", "3,1,4", "--json"]].concat()).unwrap();
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(
        (json["ids"].clone(), json["finish"].as_str(), notes.as_str()),
        (ids.clone().into(), Some("length"), "")
    );
    assert!(json.get("text").is_none());

    let (out, notes) = execute(&[&base[..], &["--tokens", "3,1,4"]].concat()).unwrap();
    assert_eq!(out, format!("{}\n", ids.iter().map(i64::to_string).collect::<Vec<_>>().join(",")));
    assert!(notes.contains("prompt: 3 tokens"), "{notes}");

    let said: String = ids.iter().map(|&id| char::from(b'!' + id as u8)).collect();
    let (out, _) = execute(&[&base[..], &["-p", "$\"%", "--chat"]].concat()).unwrap();
    assert_eq!(out, format!("{said}\n"));
    let (json, _) = execute(&[&base[..], &["-p", "$\"%", "--chat", "--json"]].concat()).unwrap();
    assert_eq!(serde_json::from_str::<serde_json::Value>(&json).unwrap()["text"], said);

    std::fs::write(folder.path().join("generation_config.json"), format!("{{\"eos_token_id\": {}}}", ids[2])).unwrap();
    let (json, _) = execute(&[&base[..], &["-p", "$\"%", "--chat", "--json"]].concat()).unwrap();
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let stop = ids.iter().position(|id| *id == ids[2]).unwrap();
    assert_eq!((json["finish"].as_str(), json["ids"].clone()), (Some("stop"), ids[..stop].to_vec().into()));
}

#[test]
fn run_refuses_what_cannot_be() {
    let folder = checkpoint();
    let checkpoint = text(folder.path());
    for (arguments, problem, code) in [
        (vec!["run", "--tokens", "1"], "no checkpoint", EXIT_USAGE),
        (vec!["run", "--checkpoint", "random", "-p", "x"], "there is no tokenizer", EXIT_USAGE),
        (vec!["run", "--checkpoint", "random", "--tokens", "1,10"], "input_ids[1] is 10", EXIT_USAGE),
        (vec!["run", "--checkpoint", "random", "--tokens", "1", "-c", "99"], "the model has 40", EXIT_USAGE),
        (vec!["run", "--checkpoint", "random", "--tokens", "1", "-t", "0"], "0 threads", EXIT_USAGE),
        (vec!["run", "--checkpoint", "random", "--tokens", "1", "--temp=-1"], "temperature", EXIT_USAGE),
        (vec!["run", "--checkpoint", "/none", "--tokens", "1"], "/none: there is no such checkpoint", EXIT_INPUT),
        // The tokenizer's special token is none of the model's ten.
        (vec!["run", "--checkpoint", checkpoint, "-p", "!"], "input_ids[1] is 256, expected 0 to 9", EXIT_USAGE),
        (vec!["embed", "--checkpoint", checkpoint, "-p", "!"], "no modules.json", EXIT_USAGE),
        (
            vec!["embed", "--checkpoint", checkpoint, "--pool", "mean", "-p", "!"],
            "no output `last_hidden_state`",
            EXIT_USAGE,
        ),
    ] {
        let error = execute(&arguments).unwrap_err();
        assert!(error.to_string().contains(problem), "{error}");
        assert_eq!(error.exit_code(), code, "{error}");
        assert!(error.help().is_some_and(|help| !help.is_empty()), "{error}");
    }
    assert!(Command::try_parse_from(["test", "run", "--checkpoint", "random"]).is_err());
    assert!(Command::try_parse_from(["test", "run", "--tokens", "1", "-p", "x"]).is_err());
}

#[test]
fn logits_at_every_position() {
    let folder = checkpoint();
    let (inputs, output) = (folder.path().join("inputs.json"), folder.path().join("out.safetensors"));
    let ids: Vec<i64> = (0..30).map(|i| i * i % 10).collect();
    std::fs::write(&inputs, serde_json::json!({"forward": {"input_ids": [ids]}}).to_string()).unwrap();
    let arguments = ["logits", "--checkpoint", "random", "--inputs", text(&inputs), "-o", text(&output)];
    let (out, notes) = execute(&arguments).unwrap();
    assert!(out.is_empty() && notes.starts_with("logits [30, 10]\n"), "{notes}");
    let bytes = std::fs::read(&output).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let logits = tensors.tensor("logits").unwrap();
    assert_eq!((logits.shape(), logits.dtype()), ([30, 10].as_slice(), safetensors::Dtype::F32));
    for (i, row) in logits.data().chunks(40).enumerate() {
        let best = row.as_chunks::<4>().0.iter().position(|x| f32::from_le_bytes(*x) == 1.0);
        assert_eq!(best, Some(expected(&ids[..=i]) as usize));
    }
    let (json, _) = execute(&[&arguments[..], &["--json"]].concat()).unwrap();
    assert_eq!(
        serde_json::from_str::<serde_json::Value>(&json).unwrap()["shapes"]["logits"],
        serde_json::json!([30, 10])
    );

    // The same ids on the command line, with and without the name of their input.
    let list = ids.iter().map(i64::to_string).collect::<Vec<_>>().join(",");
    for tokens in [list.clone(), format!("input_ids={list}")] {
        execute(&["logits", "--checkpoint", "random", "--tokens", &tokens, "-o", text(&output)]).unwrap();
        assert_eq!(std::fs::read(&output).unwrap(), bytes);
    }
    for (tokens, problem) in [(["1", "input_ids=2"], "given twice"), (["1", "ids=2"], "no input `ids`")] {
        let arguments = ["logits", "--checkpoint", "random", "--tokens", tokens[0], "--tokens", tokens[1], "-o"];
        let error = execute(&[&arguments[..], &[text(&output)]].concat()).unwrap_err();
        assert!(error.to_string().contains(problem), "{error}");
    }

    let unwritable =
        execute(&["logits", "--checkpoint", "random", "--inputs", text(&inputs), "-o", "/none/out.safetensors"])
            .unwrap_err();
    assert!(unwritable.to_string().contains("/none/out.safetensors: cannot write"), "{unwritable}");
}

#[test]
fn bench_writes_tables_json_and_recordings() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name);
    let (trace, chart, result) = (file("trace.json"), file("chart.html"), file("result.json"));
    let base = ["bench", "-p", "4", "-n", "3", "-b", "2", "-t", "2", "-r", "1", "--attempts", "1"];
    let (out, notes) =
        execute(&[&base[..], &["--profile-out", text(&trace), "--profile-out", text(&chart)]].concat()).unwrap();
    assert!(out.contains("| sample f32 | 2 | 2 | pp4 |") && out.contains("| sample f32 | 2 | 2 | tg3 |"), "{out}");
    assert!(out.contains("| keep | keep |") && out.contains("(between launches)"), "{out}");
    assert!(out.contains("does not say what its launches cost"), "{out}");
    assert!(notes.contains("tg3, batch 2, 2 threads: run 1 of 1"), "{notes}");
    let trace: serde_json::Value = serde_json::from_slice(&std::fs::read(&trace).unwrap()).unwrap();
    // One step of the prompt and three of generation.
    let steps = trace["traceEvents"].as_array().unwrap().iter().filter(|e| e["cat"] == "step").count();
    assert_eq!(steps, 4);
    assert!(std::fs::read_to_string(&chart).unwrap().starts_with("<!doctype html>"));

    let (out, notes) = execute(&[&base[..], &["--format", "json", "-o", text(&result)]].concat()).unwrap();
    assert!(out.is_empty() && notes.contains("written to"), "{out}{notes}");
    let result: serde_json::Value = serde_json::from_slice(&std::fs::read(&result).unwrap()).unwrap();
    assert_eq!(result["rows"].as_array().unwrap().len(), 2);
    assert_eq!(
        (result["model"]["weights"].as_str(), result["model"]["has_costs"].as_bool()),
        (Some("random weights"), Some(false))
    );

    for (arguments, problem) in [
        (vec!["bench", "-p", "0", "-n", "0"], "nothing to time"),
        (vec!["bench", "-t", "0"], "0 threads"),
        (vec!["bench", "-p", "100"], "the model has 40"),
        (vec!["bench", "--profile-out", "x.txt"], "x.txt"),
    ] {
        let error = execute(&arguments).unwrap_err();
        assert!(error.to_string().contains(problem) && error.exit_code() == EXIT_USAGE, "{error}");
    }
}

#[test]
fn run_says_where_the_time_went() {
    let folder = tempfile::tempdir().unwrap();
    let trace = folder.path().join("trace.json");
    let arguments = [
        "run",
        "--checkpoint",
        "random",
        "--tokens",
        "1,2",
        "-n",
        "3",
        "-t",
        "1",
        "--profile",
        "--profile-out",
        text(&trace),
    ];
    let (out, notes) = execute(&arguments).unwrap();
    assert_eq!(out.trim().split(',').count(), 3);
    assert!(notes.contains("3 steps; limits afterwards") && notes.contains("| sum | sum | 3 |"), "{notes}");
    assert!(notes.contains("3 recorded steps written to") && trace.is_file(), "{notes}");
}

#[test]
fn one_of_something_is_not_many() {
    assert_eq!([0, 1, 2].map(|n| super::counted(n, "token")), ["0 tokens", "1 token", "2 tokens"]);
}
