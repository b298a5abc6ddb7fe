//! The two commands as a user types them: the reference cases, real embeddings, and what is said about wrong arguments and damaged files.
//!
//! Exit codes are part of the contract: 2 wrong arguments, 3 an input that is missing, damaged or does not fit, 1 anything else.

use std::fs;
use std::path::Path;

use safetensors::SafeTensors;
use serde_json::{Value, json};
use xfc_tests::case::{Case, Layout};
use xfc_tests::command::Shell;
use xfc_tests::compare::{Precision, Tier, compare};
use xfc_tests::{Result, repository};

use crate::cases::one_of_each_kind;

/// A shell whose folder holds the case's checkpoint as `checkpoint` and its inputs as `inputs.json`.
pub(crate) fn shell(case: &Case) -> Result<Shell> {
    let shell = Shell::new()?;
    let checkpoint = shell.folder().join("checkpoint");
    fs::create_dir(&checkpoint)?;
    case.write_checkpoint(&checkpoint, Layout::Single)?;
    // As in the case: with a leading batch of 1.
    let mut inputs: Value = serde_json::from_slice(&fs::read(case.folder.join("inputs.json"))?)?;
    for (name, image) in &case.floats {
        let rows = image.shape.iter().skip(1).rev().fold(json!(image.values), |list, n| {
            let list = list.as_array().map(Vec::as_slice).unwrap_or_default();
            json!(list.chunks(*n).collect::<Vec<_>>())
        });
        inputs["forward"][name] = json!([rows]);
    }
    fs::write(shell.folder().join("inputs.json"), inputs["forward"].to_string())?;
    Ok(shell)
}

/// Compares the outputs in a file with the case's.
pub(crate) fn outputs_match(case: &Case, file: &Path, precision: Precision) -> Result<()> {
    let bytes = fs::read(file)?;
    let outputs = SafeTensors::deserialize(&bytes)?;
    for (name, golden) in case.outputs()? {
        let output = outputs.tensor(&name)?;
        let values: Vec<f32> = output.data().as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        let one = [&[1], &golden.shape[..]].concat();
        assert!(output.shape() == golden.shape || output.shape() == one, "{name}: {:?}", output.shape());
        compare(&name, &golden.shape, &values, &golden.values, Tier::Model, precision)?;
    }
    Ok(())
}

fn ids(json: &str) -> Result<Vec<i64>> {
    let json: Value = serde_json::from_str(json)?;
    Ok(serde_json::from_value(json["ids"].clone())?)
}

#[test]
fn logits_of_a_checkpoint_folder_and_of_an_artifact() {
    one_of_each_kind(|case| {
        let shell = shell(case)?;
        let arguments =
            ["logits", "checkpoint", "--checkpoint", "checkpoint", "--inputs", "inputs.json", "-o", "a.safetensors"];
        shell.run("xfc", &arguments)?.success()?;
        outputs_match(case, &shell.folder().join("a.safetensors"), Precision::F32)?;
        shell.run("xfc", &["compile", "checkpoint", "-o", "model.xfm"])?.success()?;
        let arguments =
            ["logits", "model.xfm", "--checkpoint", "checkpoint", "--inputs", "inputs.json", "-o", "b.safetensors"];
        shell.run("xfrun", &arguments)?.success()?;
        outputs_match(case, &shell.folder().join("b.safetensors"), Precision::F32)
    });
}

#[test]
fn generated_tokens_of_a_checkpoint_folder_and_of_an_artifact() {
    one_of_each_kind(|case| {
        if case.greedy_steps == 0 {
            return Ok(());
        }
        let shell = shell(case)?;
        let named = |(name, ids): (&String, &Vec<i64>)| {
            let ids: Vec<String> = ids.iter().map(i64::to_string).collect();
            format!("{name}={}", ids.join(","))
        };
        let tokens: Vec<String> = case.inputs.iter().map(named).collect();
        let n = case.greedy_steps.to_string();
        let mut rest = vec!["--checkpoint", "checkpoint", "-n", &n, "--temp", "0", "--json"];
        if !case.floats.is_empty() {
            // All but the tokens, which are given on the command line.
            let file = shell.folder().join("inputs.json");
            let mut inputs: Value = serde_json::from_slice(&fs::read(&file)?)?;
            inputs.as_object_mut().ok_or("inputs.json is no mapping")?.retain(|name, _| case.floats.contains_key(name));
            fs::write(file, inputs.to_string())?;
            rest.extend(["--inputs", "inputs.json"]);
        }
        tokens.iter().for_each(|tokens| rest.extend(["--tokens", tokens]));
        let ours = shell.run("xfc", &[&["run", "checkpoint"], &rest[..]].concat())?.success()?;
        assert_eq!(ids(&ours)?, case.greedy_ids()?, "{}: xfc run", case.name);
        shell.run("xfc", &["compile", "checkpoint", "-o", "model.xfm"])?.success()?;
        let ours = shell.run("xfrun", &[&["run", "model.xfm"], &rest[..]].concat())?.success()?;
        assert_eq!(ids(&ours)?, case.greedy_ids()?, "{}: xfrun run", case.name);
        Ok(())
    });
}

#[test]
fn what_is_compiled_takes_no_options_of_compiling() -> Result<()> {
    let shell = shell(&Case::load("llama3")?)?;
    shell.run("xfc", &["compile", "checkpoint", "-o", "model.xfm"])?.success()?;
    for (option, value) in
        [("--set", "hidden_size=3"), ("--config", "none.json"), ("--dtype", "bf16"), ("--models", "none")]
    {
        let arguments = ["run", "model.xfm", "--checkpoint", "checkpoint", "--tokens", "1", "-n", "1", option, value];
        shell.run("xfc", &arguments)?.failure(2, &["is compiled", option])?;
    }
    let arguments = ["run", "model.xfm", "--checkpoint", "checkpoint", "--tokens", "1", "-n", "1", "-t", "1000000"];
    shell.run("xfrun", &arguments)?.failure(2, &["too many", "4096"])?;
    Ok(())
}

#[test]
fn a_card_and_a_config_make_the_artifact_of_the_folder() -> Result<()> {
    let case = Case::load("llama3")?;
    let shell = shell(&case)?;
    shell.run("xfc", &["compile", "checkpoint", "-o", "a.xfm"])?.success()?;
    let card = repository().join("models/llama.yaml");
    let card = card.to_str().ok_or("the repository's path is not UTF-8")?;
    fs::create_dir(shell.folder().join("elsewhere"))?;
    shell
        .run("xfc", &["compile", card, "--config", "checkpoint/config.json", "-t", "1", "-o", "elsewhere/b.xfm"])?
        .success()?;
    let [a, b] = ["a.xfm", "elsewhere/b.xfm"].map(|file| fs::read(shell.folder().join(file)));
    assert!(a? == b?, "a card with --config and a checkpoint folder make different artifacts");
    Ok(())
}

#[test]
fn every_stage_can_be_looked_at() -> Result<()> {
    let case = Case::load("mistral")?;
    let shell = shell(&case)?;
    for stage in ["spec", "arch", "graph", "fused", "mlir", "llvm", "asm", "plan"] {
        let text = shell.run("xfc", &["inspect", "checkpoint", "--emit", stage])?.success()?;
        assert!(text.lines().count() > 10, "{stage}: {text}");
    }
    let dot = shell.run("xfc", &["inspect", "checkpoint", "--emit", "fused", "--format", "dot"])?.success()?;
    assert!(dot.starts_with("digraph"), "{dot}");
    let json = shell.run("xfc", &["inspect", "checkpoint", "--emit", "graph", "--format", "json"])?.success()?;
    serde_json::from_str::<Value>(&json)?;
    Ok(())
}

#[test]
fn a_summary_says_the_published_numbers() -> Result<()> {
    let shell = Shell::new()?;
    let text = shell.run("xfc", &["inspect", "qwen3"])?.success()?;
    for said in ["596,049,920", "28 in layers", "114,688 bytes", "input_ids: i64[tokens]", "the same numbers"] {
        assert!(text.contains(said), "`{said}` is not in:\n{text}");
    }
    let other = shell.run("xfc", &["inspect", "qwen3", "--set", "num_hidden_layers=2"])?.success()?;
    assert!(other.contains("2 in layers") && !other.contains("published"), "{other}");
    // Four bits and a scale of 16 for each 32; keys and values of 28 layers, 8 heads of 128 bytes with a scale of 16 bits.
    let narrow = ["inspect", "qwen3", "--dtype", "bf16", "--quant", "int4:g32", "--kv-cache-dtype", "int8"];
    let text = shell.run("xfc", &narrow)?.success()?;
    for said in ["4.50 bits a parameter", "58,240 bytes of caches a token"] {
        assert!(text.contains(said), "`{said}` is not in:\n{text}");
    }
    Ok(())
}

#[test]
fn cards_that_ship_are_right() -> Result<()> {
    let shell = Shell::new()?;
    shell.run("xfc", &["check"])?.success()?;
    Ok(())
}

#[test]
fn wrong_arguments_say_what_would_be_right() -> Result<()> {
    let case = Case::load("llama3")?;
    let shell = shell(&case)?;
    fs::create_dir(shell.folder().join("empty"))?;
    fs::write(shell.folder().join("broken.json"), "{\"hidden_size\": 64,")?;
    fs::write(shell.folder().join("other.json"), "{\"model_type\": \"no_such_family\"}")?;
    for (arguments, code, named) in [
        (&["compile", "no_such_card"][..], 3, &["no_such_card"][..]),
        (&["compile", "missing.xfm"], 3, &["missing.xfm"]),
        (&["compile", "empty"], 3, &["empty", "config.json"]),
        (&["compile", "checkpoint", "--config", "missing.json"], 3, &["missing.json"]),
        (&["compile", "llama", "--config", "broken.json"], 3, &["broken.json"]),
        (&["compile", "checkpoint", "--config", "other.json"], 3, &["no_such_family"]),
        (&["compile", "checkpoint", "--set", "hiden_size=64"], 3, &["hiden_size", "hidden_size"]),
        (&["compile", "checkpoint", "--set", "hidden_size"], 2, &["hidden_size"]),
        (&["compile", "checkpoint", "--target", "cpu:pdp11"], 2, &["pdp11"]),
        (&["compile", "checkpoint", "--skip-pass", "dead_cod"], 2, &["dead_cod", "dead_code"]),
        (&["compile", "checkpoint/model.safetensors"], 2, &["model.safetensors"]),
        (&["compile"], 2, &["MODEL"]),
        (&["logits", "checkpoint", "--checkpoint", "empty", "--inputs", "inputs.json", "-o", "x"], 3, &["empty"]),
        (
            &["logits", "checkpoint", "--checkpoint", "checkpoint", "--inputs", "missing.json", "-o", "x"],
            3,
            &["missing.json"],
        ),
        (
            &["logits", "checkpoint", "--checkpoint", "checkpoint", "--inputs", "broken.json", "-o", "x"],
            3,
            &["broken.json"],
        ),
    ] {
        shell.run("xfc", arguments)?.failure(code, named)?;
    }
    assert!(!shell.folder().join("x").exists());
    Ok(())
}

#[test]
fn outputs_that_cannot_be_written_are_named_and_left_alone() -> Result<()> {
    let case = Case::load("llama3")?;
    let shell = shell(&case)?;
    fs::create_dir(shell.folder().join("taken"))?;
    for output in ["no/such/folder/model.xfm", "taken", "/proc/model.xfm", "inputs.json/model.xfm"] {
        let ran = shell.run("xfc", &["compile", "checkpoint", "-o", output])?;
        let code = ran.code.ok_or("a signal ended it")?;
        assert!([1, 2, 3].contains(&code), "{output}: exit code {code}");
        ran.failure(code, &[output])?;
    }
    let mut left: Vec<_> = fs::read_dir(shell.folder())?
        .map(|e| Ok(e?.file_name().to_string_lossy().into_owned()))
        .collect::<Result<_>>()?;
    left.sort();
    left.retain(|name| name != ".cache");
    assert_eq!(left, ["checkpoint", "inputs.json", "taken"], "something was left behind");
    Ok(())
}

#[test]
fn damaged_files_are_named() -> Result<()> {
    let case = Case::load("llama3")?;
    let shell = shell(&case)?;
    shell.run("xfc", &["compile", "checkpoint", "-o", "good.xfm"])?.success()?;
    let path = |name: &str| shell.folder().join(name);
    let good = fs::read(path("good.xfm"))?;
    let logits = |artifact: &str, checkpoint: &str, named: &str| -> Result<()> {
        let rest = ["--checkpoint", checkpoint, "--inputs", "inputs.json", "-o", "out.safetensors"];
        for program in ["xfc", "xfrun"] {
            shell.run(program, &[&["logits", artifact], &rest[..]].concat())?.failure(3, &[named])?;
        }
        assert!(!path("out.safetensors").exists());
        Ok(())
    };
    for length in [0, 3, 64, good.len() / 2, good.len() - 1] {
        fs::write(path("short.xfm"), &good[..length])?;
        logits("short.xfm", "checkpoint", "short.xfm")?;
    }
    for at in [5, 200, good.len() / 3, good.len() - 9] {
        let mut bytes = good.clone();
        bytes[at] ^= 0x40;
        fs::write(path("damaged.xfm"), bytes)?;
        logits("damaged.xfm", "checkpoint", "damaged.xfm")?;
    }
    fs::write(path("text.xfm"), "not an artifact")?;
    logits("text.xfm", "checkpoint", "text.xfm")?;

    let weights = fs::read(path("checkpoint/model.safetensors"))?;
    fs::create_dir(path("torn"))?;
    for length in [0, 5, 8, 2000, weights.len() - 1] {
        fs::write(path("torn/model.safetensors"), &weights[..length])?;
        logits("good.xfm", "torn", "model.safetensors")?;
    }
    let mut bytes = weights.clone();
    bytes[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    fs::write(path("torn/model.safetensors"), bytes)?;
    logits("good.xfm", "torn", "model.safetensors")?;

    fs::create_dir(path("shards"))?;
    case.write_checkpoint(&path("shards"), Layout::Sharded(2))?;
    fs::remove_file(path("shards/model-00002-of-00002.safetensors"))?;
    logits("good.xfm", "shards", "model-00002-of-00002.safetensors")?;
    fs::write(path("shards/model.safetensors.index.json"), "{")?;
    logits("good.xfm", "shards", "model.safetensors.index.json")
}

#[test]
fn mistakes_in_a_card_are_all_shown_with_their_places() -> Result<()> {
    let shell = Shell::new()?;
    let card = fs::read_to_string(repository().join("models/llama.yaml"))?;
    let wrong = card
        .replace("hidden_size: 4096", "hidden_sise: 4096")
        .replace("mlp = gated_mlp(", "mlp = gated_mpl(")
        .replace("xfc: 1", "xfc: 1\nunheard_of: 3");
    assert_eq!(wrong.lines().count(), card.lines().count() + 1);
    fs::write(shell.folder().join("wrong.yaml"), &wrong)?;
    let line = |text: &str| wrong.lines().position(|l| l.contains(text)).map_or(0, |i| i + 1);
    let place = |text: &str| format!("wrong.yaml:{}", line(text));
    // What is wrong with the text of a card, all at once; then, where it can be read, what is wrong with what it says.
    let torn = wrong.replace("h = x + self_attn", "h = = x + self_attn").replace("source:", "sauce:");
    fs::write(shell.folder().join("wrong.yaml"), &torn)?;
    let places = [place("unheard_of"), place("source:"), place("h = x + self_attn")];
    shell.run("xfc", &["check", "wrong.yaml"])?.failure(3, &[&places[0], "sauce", &places[1], &places[2]])?;
    fs::write(shell.folder().join("wrong.yaml"), &wrong)?;
    let places = [place("unheard_of"), place("gated_mpl"), place("embedding(vocab_size, hidden_size)")];
    let named = ["gated_mlp", "hidden_sise", &places[0], &places[1], &places[2]];
    shell.run("xfc", &["check", "wrong.yaml"])?.failure(3, &named)?;
    fs::write(shell.folder().join("wrong.yaml"), [0xff, 0xfe, 0x00])?;
    shell.run("xfc", &["check", "wrong.yaml"])?.failure(3, &["wrong.yaml"])?;
    Ok(())
}
