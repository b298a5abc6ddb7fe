//! Requests that make no sense: what is said, and that it is said before anything is compiled.

use std::fs;

use xfc_tests::Result;
use xfc_tests::command::Shell;

/// Runs `xfc` with these words, which must fail with exit code 2 or 3 and the words `named`, and leave nothing compiled behind.
fn refused(shell: &Shell, code: i32, words: &str, named: &[&str]) -> Result<()> {
    let words: Vec<&str> = words.split_whitespace().collect();
    shell.run("xfc", &words)?.failure(code, named)?;
    assert!(!shell.folder().join(".cache").exists(), "{words:?}: something was compiled");
    Ok(())
}

#[test]
fn numbers_out_of_range_are_named() -> Result<()> {
    let shell = Shell::new()?;
    for (words, named) in [
        ("run llama --tiny --tokens 1 --temp -1", &["temperature is -1", "at least 0"][..]),
        ("run llama --tiny --tokens 1 --top-p -0.5", &["top-p is -0.5"]),
        ("run llama --tiny --tokens 1 -c 0", &["`-c`"]),
        ("run llama --tiny", &["--prompt", "--tokens"]),
        ("logits llama --tiny -o out", &["--inputs", "--tokens"]),
        ("bench llama --tiny -b 0", &["`-b`"]),
        ("bench llama --tiny --repeats 0", &["`--repeats`"]),
        ("bench llama --tiny -p 0 -n 0", &["nothing to time"]),
        ("verify llama --tiny --tokens 0", &["--tokens", "1..=65536"]),
        ("verify llama --tiny --tokens 99999999999", &["--tokens", "1..=65536"]),
        ("eval llama --tiny --token-file ids --chunks 0", &["--chunks"]),
        ("inspect llama --cache -c 0", &["--ctx-size", "1..="]),
        ("inspect llama --cache -c 18446744073709551615", &["--ctx-size"]),
        ("check llama --set", &["--set"]),
    ] {
        refused(&shell, 2, words, named)?;
    }
    Ok(())
}

#[test]
fn sizes_that_are_none_are_refused() -> Result<()> {
    let shell = Shell::new()?;
    let refused = |set: &str, named: &[&str]| -> Result<()> {
        let ran = shell.run("xfc", &["inspect", "llama", "--set", set])?;
        ran.failure(3, named).map(|_| ())
    };
    refused("hidden_size=99999999999999999999999", &["too large", "hidden_size"])?;
    refused("rms_norm_eps=.nan", &["rms_norm_eps", "a string"])?;
    refused("rms_norm_eps=1.0e999", &["rms_norm_eps"])?;
    let twice = ["inspect", "llama", "--set", "hidden_size=64", "--set", "hidden_size = 32"];
    shell.run("xfc", &twice)?.failure(2, &["`--set hidden_size` is given twice"])?;
    let line = "layer.h = x + self_attn(input_layernorm(x))";
    shell.run("xfc", &["inspect", "llama", "--set", line, "--set", line])?.failure(2, &["given twice"])?;
    Ok(())
}

#[test]
fn files_are_looked_at_before_anything_is_compiled() -> Result<()> {
    let shell = Shell::new()?;
    fs::write(shell.folder().join("ids"), "1 2 3")?;
    for (code, words, named) in [
        (1, "run llama --tiny --tokens 1 --tap model.norm -o none/out", &["none/out"][..]),
        (1, "verify llama --tiny --tap norm -o none/out", &["none/out"]),
        (1, "logits llama --tiny --tokens 1 -o none/out", &["none/out"]),
        (3, "logits llama --tiny --inputs none.json -o out", &["none.json"]),
        (3, "eval llama --tiny --token-file none", &["none"]),
        (1, "eval llama --tiny --token-file ids --save none/out", &["none/out"]),
        (1, "bench llama --tiny -o none/out", &["none/out"]),
        (3, "inspect /dev/null", &["neither a file nor a folder"]),
    ] {
        refused(&shell, code, words, named)?;
    }
    Ok(())
}

/// What follows from a source is computed for tokens; a source alone has no rows of outputs.
#[test]
fn a_source_without_tokens_has_no_logits() -> Result<()> {
    let shell = Shell::new()?;
    let words = ["logits", "t5", "--tiny", "--tokens", "input_ids=1,2,3", "-o", "out"];
    shell.run("xfc", &words)?.failure(2, &["no rows", "`decoder_input_ids`"])?;
    assert!(!shell.folder().join("out").exists());
    let words = ["run", "vit", "--tiny", "--tokens", "1"];
    shell.run("xfc", &words)?.failure(2, &["no input for tokens", "logits --inputs"])?;
    Ok(())
}

#[test]
fn a_checkpoint_that_is_not_there_is_named_first() -> Result<()> {
    let shell = Shell::new()?;
    for words in [
        "run llama --tiny -p Hello --checkpoint nowhere",
        "run llama --tiny -p Hello --checkpoint /nowhere",
        "verify llama --checkpoint nowhere",
        "bench llama --checkpoint nowhere",
        "eval llama --token-file ids --checkpoint nowhere",
    ] {
        fs::write(shell.folder().join("ids"), "1 2 3")?;
        refused(&shell, 3, words, &["nowhere: there is no such checkpoint"])?;
    }
    fs::write(shell.folder().join("README"), "text")?;
    refused(&shell, 3, "run llama --tiny -p Hello --checkpoint README", &["README: is not a whole safetensors file"])
}

#[test]
fn files_of_other_kinds_are_told_apart() -> Result<()> {
    let shell = Shell::new()?;
    let folder = shell.folder().join("dir");
    fs::create_dir(&folder)?;
    for (code, words, named) in [
        (2, "check dir", &["dir is a folder, not a card", "--models dir"][..]),
        (3, "run dir --tokens 1", &["config.json"]),
    ] {
        refused(&shell, code, words, named)?;
    }
    fs::write(folder.join("config.json"), "{}")?;
    for (words, named) in [
        ("check dir", &["a checkpoint's folder", "--config dir/config.json"][..]),
        ("check dir/config.json", &["is a JSON file, not a card", "--config dir/config.json"]),
        ("run dir/config.json --tokens 1", &["is a JSON file, not a model", "give its folder, `dir`"]),
        ("inspect dir/config.json", &["--config dir/config.json"]),
    ] {
        refused(&shell, 2, words, named)?;
    }
    let ran = shell.run("xfrun", &["run", "dir", "--tokens", "1"])?;
    ran.failure(3, &["dir: is a folder", "xfc compile dir"])?;
    let written = shell.run("xfc", &["inspect", "llama", "-o", "none/file"])?;
    written.failure(1, &["there is no folder none"])?;
    Ok(())
}

#[test]
fn options_that_would_change_nothing_are_refused() -> Result<()> {
    let shell = Shell::new()?;
    for words in [
        "inspect llama --cache --layer 2",
        "inspect llama --cache --emit fused",
        "inspect llama --cache --pass-limit 2",
        "inspect llama --names --format json",
        "inspect llama --values --format svg",
        "inspect llama --values --layer 1",
        "inspect llama --pass-limit 3 --emit arch",
    ] {
        refused(&shell, 2, words, &["error: "])?;
    }
    let artifact = ["compile", "llama", "--tiny", "-o", "small.xfm"];
    shell.run("xfc", &artifact)?.success()?;
    for options in [&["--tiny"][..], &["--cache", "--set", "hidden_size=8"], &["--format", "svg", "--tiny"]] {
        let ran = shell.run("xfc", &[&["inspect", "small.xfm"], options].concat())?;
        ran.failure(2, &["is compiled", "changes nothing any more"])?;
    }
    Ok(())
}

#[test]
fn changes_are_checked_and_compared() -> Result<()> {
    let shell = Shell::new()?;
    let said = shell.run("xfc", &["check", "llama", "--tiny", "--set", "num_hidden_layers=3"])?.success()?;
    assert!(said.contains("llama: ok"), "{said}");
    shell.run("xfc", &["check", "llama", "--set", "hidden_sise=3"])?.failure(3, &["did you mean `hidden_size`?"])?;
    shell
        .run("xfc", &["check", "llama", "--set", "rope.rope_theta=5"])?
        .failure(3, &["--set 'rope={rope_theta: 5}'"])?;
    let said =
        shell.run("xfc", &["compare", "llama", "mistral", "--tiny", "--set", "num_hidden_layers=2"])?.success()?;
    assert!(!said.contains("8,030,261,248"), "{said}");
    // A family that has no file of its own is found by what its config calls it.
    shell.run("xfc", &["check", "kimi_k2"])?.success()?;
    let said = shell.run("xfc", &["inspect", "llama", "--skip-pass", "foo"])?.failure(2, &["the passes are"])?;
    assert_eq!(said.matches("dead_code").count(), 1, "{said}");
    Ok(())
}

#[test]
fn a_plan_for_a_matrix_that_is_not_there_is_a_wrong_argument() -> Result<()> {
    let shell = Shell::new()?;
    let compile = |plan: &str| shell.run("xfc", &["compile", "llama", "--tiny", "--quant", plan, "-o", "out.xfm"]);
    compile("int4,foo=int8")?
        .failure(2, &["no matrix of a product is at 'foo'", "help: `xfc inspect MODEL --names`"])?;
    compile("int4,q_prj=int8")?.failure(2, &["did you mean `q_proj`?"])?;
    compile("int4,mlp.dwn_proj=int8")?.failure(2, &["did you mean `mlp.down_proj`?"])?;
    Ok(())
}

/// What is compiled runs where it cannot be kept, and that is said.
#[test]
fn a_cache_folder_is_no_condition() -> Result<()> {
    let shell = Shell::new()?;
    let words = ["run", "llama", "--tiny", "--tokens", "1", "-n", "2", "--json"];
    let ids = |text: &str| -> Result<serde_json::Value> {
        Ok(serde_json::from_str::<serde_json::Value>(text)?["ids"].clone())
    };
    // A file where the folder would be.
    fs::write(shell.folder().join(".cache"), "")?;
    let ran = shell.run("xfc", &words)?;
    let said = ["warning: the compiled model is not kept: ", "--no-cache", "compiled llama"];
    assert!(said.iter().all(|said| ran.stderr.contains(said)) && !ran.stderr.contains(", into"), "{}", ran.stderr);
    let found = ids(&ran.success()?)?;
    fs::remove_file(shell.folder().join(".cache"))?;
    let ran = shell.run("xfc", &words)?;
    assert!(ran.stderr.contains(", into"), "{}", ran.stderr);
    assert_eq!(ids(&ran.success()?)?, found);
    Ok(())
}

#[test]
fn a_model_is_said_to_be_what_the_command_takes() -> Result<()> {
    let shell = Shell::new()?;
    shell.run("xfc", &["compile", "llama", "--tiny", "-o", "small.xfm"])?.success()?;
    for (command, more) in [("compile", &[][..]), ("verify", &[]), ("quant", &["--bits", "5"]), ("inspect", &[])] {
        let help = shell.run("xfc", &[command, "--help"])?.success()?;
        let ran = shell.run("xfc", &[&[command, "small.xfm"], more].concat())?;
        let takes = ran.code == Some(0);
        assert_eq!(help.contains("or an artifact"), takes, "{command}:\n{help}{}", ran.stderr);
    }
    let other = if cfg!(target_arch = "aarch64") { "cpu:x86-64" } else { "cpu:aarch64" };
    let ran = shell.run("xfc", &["run", "llama", "--tiny", "--tokens", "1", "--target", other])?;
    ran.failure(4, &["error: llama: does not run"])?;
    Ok(())
}

/// A standard error that is closed takes nothing from the exit code.
#[cfg(unix)]
#[test]
fn a_closed_standard_error_is_no_panic() -> Result<()> {
    let shell = Shell::new()?;
    fs::write(shell.folder().join("bad.yaml"), "xfc: 1\n")?;
    let xfc = xfc_tests::command::path("xfc")?;
    for (arguments, code) in [("check bad.yaml", 3), ("inspect llama --emit nothing", 2), ("compile nowhere.xfm", 3)] {
        let line = format!("\"{}\" {arguments} 2>&-", xfc.display());
        let status = std::process::Command::new("sh").arg("-c").arg(line).current_dir(shell.folder()).status()?;
        assert_eq!(status.code(), Some(code), "{arguments}");
    }
    Ok(())
}

#[test]
fn what_a_run_leaves_out_is_said() -> Result<()> {
    let shell = Shell::new()?;
    let run =
        |options: &[&str]| shell.run("xfc", &[&["run", "llama", "--tiny", "--tokens", "1,2,3"], options].concat());
    let none = run(&["-n", "0"])?;
    assert!(none.stderr.contains("prompt: 3 tokens, not run") && !none.stderr.contains("a second"), "{}", none.stderr);
    let full = run(&["-c", "4", "-n", "20"])?;
    assert!(full.stderr.contains("the context of 4 positions is full, after 2 of 20 tokens"), "{}", full.stderr);
    // The first token has no rate of its own.
    let one = run(&["-n", "1"])?;
    assert!(one.stderr.contains("a second; then 1 token; weights"), "{}", one.stderr);
    Ok(())
}

/// A config with keys that another family would compute with is run as this family, and that is said.
#[test]
fn keys_that_are_not_computed_are_warned_of() -> Result<()> {
    let shell = Shell::new()?;
    let folder = shell.folder().join("model");
    fs::create_dir(&folder)?;
    let config = |more: &str| {
        format!(
            "{{\"model_type\": \"llama\", \"vocab_size\": 32, \"hidden_size\": 16, \"intermediate_size\": 32, \"num_hidden_layers\": 1, \
             \"num_attention_heads\": 2, \"max_position_embeddings\": 8{more}}}"
        )
    };
    fs::write(folder.join("config.json"), config(", \"sliding_window\": 64, \"logit_scale\": 0.5"))?;
    let ran = shell.run("xfc", &["inspect", "model"])?;
    let words = ["warning: model/config.json", "`sliding_window: 64`", "`logit_scale: 0.5`"];
    assert!(ran.code == Some(0) && words.iter().all(|w| ran.stderr.contains(w)), "{}", ran.stderr);
    fs::write(folder.join("config.json"), config(", \"sliding_window\": null"))?;
    let ran = shell.run("xfc", &["inspect", "model"])?;
    assert!(ran.code == Some(0) && ran.stderr.is_empty(), "{}", ran.stderr);
    fs::write(folder.join("config.json"), config("").replace("llama", "lamma"))?;
    shell.run("xfc", &["inspect", "model"])?.failure(3, &["did you mean `llama`?"])?;
    Ok(())
}
