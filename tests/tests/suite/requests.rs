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
