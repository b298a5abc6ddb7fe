//! `xfc inspect --cost`: what steps read and multiply at real sizes, without weights, and what fits a machine.

use std::fs;

use serde_json::Value;
use xfc_tests::command::Shell;
use xfc_tests::{Result, repository};

const LAYERS: f64 = 32.0;
/// Weights that a token meets, and bytes that it leaves in the caches, in bf16.
const MET: f64 = 7_504_924_672.0;
const KEPT: f64 = 131_072.0;

fn cost(arguments: &[&str]) -> Result<Value> {
    let machine = repository().join("examples/machines/h200.yaml");
    let machine = machine.to_str().ok_or("the path is not text")?;
    let all = [&["inspect", "llama", "--dtype", "bf16", "--cost", "--machine", machine, "--format", "json"], arguments];
    Ok(serde_json::from_str(&Shell::new()?.run("xfc", &all.concat())?.success()?)?)
}

fn number(json: &Value, keys: &[&str]) -> Result<f64> {
    let found = keys.iter().try_fold(json, |at, key| at.get(key)).and_then(Value::as_f64);
    found.ok_or_else(|| format!("no number {keys:?}").into())
}

fn close(what: &str, found: f64, expected: f64, within: f64) {
    assert!((found / expected - 1.0).abs() < within, "{what}: {found}, expected {expected}");
}

#[test]
fn a_token_reads_the_weights_and_what_is_kept() -> Result<()> {
    for (context, batch) in [(8192.0, 1.0), (2048.0, 16.0)] {
        let (c, b) = (format!("{context}"), format!("{batch}"));
        let json = cost(&["-c", &c, "-b", &b])?;
        close("bytes read", number(&json, &["read_bytes"])?, 2.0 * MET + batch * context * KEPT, 0.01);
        let attention = LAYERS * 4.0 * 4096.0 * context;
        close("operations", number(&json, &["flops"])?, batch * (2.0 * MET + attention), 0.01);
        let bytes = number(&json, &["read_bytes"])? + number(&json, &["written_bytes"])?;
        close("seconds", number(&json, &["seconds"])?, bytes / 4.8e12, 0.001);
        let parts = json["parts"].as_array().ok_or("no parts")?;
        let layers: Vec<usize> = parts.iter().map(|p| p["layers"].as_array().map_or(0, Vec::len)).collect();
        assert!(layers.contains(&32), "equal layers are told once: {layers:?}");
    }
    Ok(())
}

#[test]
fn a_prompt_is_bound_by_arithmetic() -> Result<()> {
    let json = cost(&["-c", "8192", "--prompt", "8192"])?;
    // The head is for the last token alone; half of the pairs are seen.
    let layers = MET - 128_256.0 * 4096.0;
    let attention = LAYERS * 4.0 * 4096.0 * 8192.0 / 2.0;
    close("operations", number(&json, &["flops"])?, 8192.0 * (2.0 * layers + attention), 0.01);
    let bound: Vec<&str> = json["parts"]
        .as_array()
        .into_iter()
        .flatten()
        .flat_map(|p| p["kernels"].as_array().into_iter().flatten())
        .filter(|k| k["flops"].as_f64().is_some_and(|f| f > 1e11))
        .filter_map(|k| k["bound_by"].as_str())
        .collect();
    assert!(bound.len() > 3 && bound.iter().all(|b| *b == "arithmetic"), "{bound:?}");
    Ok(())
}

#[test]
fn latents_take_one_form_in_a_step() -> Result<()> {
    let shell = Shell::new()?;
    let machine = repository().join("examples/machines/h200.yaml");
    let machine = machine.to_str().ok_or("the path is not text")?;
    let fixed = ["inspect", "deepseek_v3", "--set", "num_hidden_layers=4", "--cost", "--machine", machine, "-c", "512"];
    for (arguments, taken, other) in [(&["--prompt", "512"][..], "expanded", "absorbed"), (&[], "absorbed", "expanded")]
    {
        let all = [&fixed[..], arguments, &["--format", "json"]].concat();
        let json: Value = serde_json::from_str(&shell.run("xfc", &all)?.success()?)?;
        let parts = json["parts"].as_array().ok_or("no parts")?;
        let rows: Vec<&Value> = parts.iter().flat_map(|p| p["kernels"].as_array().into_iter().flatten()).collect();
        let of = |form: &str| rows.iter().filter(|r| r["form"] == form).count();
        // Nothing that does not run is told.
        assert!(of(taken) > 2 && of(other) == 0, "{taken}: {}, {other}: {}", of(taken), of(other));
        for row in &rows {
            let multiplies = matches!(row["kernel"].as_str(), Some("linear" | "attention"));
            assert!(!multiplies || number(row, &["flops"])? > 0.0, "{row}");
        }
        assert_eq!(json["forms"]["taken"], taken);
        let text = shell.run("xfc", &[&fixed[..], arguments].concat())?.success()?;
        assert!(text.contains(&format!("self_attn ({taken})")) && text.contains(&format!("\n({taken}): ")), "{text}");
        assert!(!text.contains(&format!("self_attn ({other})")), "{text}");
        // The other form of a prompt is told with its cost, which is why it is not taken.
        if taken == "expanded" {
            let [taken, other] =
                [&["forms", "seconds"][..], &["forms", "otherwise", "seconds"]].map(|k| number(&json, k));
            assert!(taken? < other?, "{}", json["forms"]);
        }
    }
    Ok(())
}

#[test]
fn any_number_of_sequences_is_counted_at_once() -> Result<()> {
    let [one, many] = ["1000", "100000000"].map(|batch| cost(&["-c", "64", "-b", batch]));
    let (one, many) = (one?, many?);
    // What is read beside the weights grows with them.
    close("operations", number(&many, &["flops"])?, 1e5 * number(&one, &["flops"])?, 1e-6);
    let written = |json: &Value| number(json, &["written_bytes"]);
    close("bytes written", written(&many)?, 1e5 * written(&one)?, 1e-6);
    assert_eq!(many["memory"]["fits"], false);
    let shell = Shell::new()?;
    shell
        .run("xfc", &["inspect", "llama", "--cost", "-c", "4096", "-b", "4000000000"])?
        .failure(2, &["2^32", "fewer sequences"])?;
    Ok(())
}

/// A line `..` of the page stands for lines that are left out.
#[test]
fn the_page_shows_what_is_printed() -> Result<()> {
    let page = std::fs::read_to_string(repository().join("docs/seeing.md"))?;
    let shown = page.split("```").find_map(|block| block.strip_prefix("text\nLlama, one token after "));
    let shown = format!("Llama, one token after {}", shown.ok_or("the page has no table of costs")?);
    let target = shown.lines().next().and_then(|line| line.split("kernels of ").nth(1)).ok_or("no target")?;
    let machine = repository().join("examples/machines/h200.yaml").display().to_string();
    let arguments =
        ["inspect", "llama", "--dtype", "bf16", "--cost", "--machine", &machine, "-c", "8192", "--target", target];
    let printed = Shell::new()?.run("xfc", &arguments)?.success()?;
    let mut lines = printed.lines();
    let mut skips = false;
    for line in shown.lines() {
        if line.trim() == ".." {
            skips = true;
            continue;
        }
        let found = if skips { lines.find(|printed| *printed == line) } else { lines.next() };
        assert_eq!(found, Some(line), "docs/seeing.md is not what is printed:\n{printed}");
        skips = false;
    }
    Ok(())
}

#[test]
fn the_largest_context_fills_the_memory() -> Result<()> {
    let json = cost(&["-c", "131072"])?;
    let memory = |key: &str| number(&json, &["memory", key]);
    assert_eq!(json["memory"]["fits"], true);
    close("weights", memory("weight_bytes")?, 2.0 * 8_030_261_248.0, 0.001);
    close("caches", memory("cache_bytes")?, 131_072.0 * KEPT, 0.01);
    let left = 141e9 - memory("weight_bytes")? - memory("value_bytes")? - memory("scratch_bytes")?;
    close("the context", memory("largest_context_tokens")?, left / KEPT, 0.001);
    Ok(())
}

#[test]
fn machines_are_measured_or_read() -> Result<()> {
    let shell = Shell::new()?;
    let path = shell.folder().join("small.yaml");
    let file = |memory: &str| {
        format!(
            "name: Small\nmemory_bytes: {memory}\nbytes_per_second: 50e9\nf32_flops_per_second: 1e11\nbf16_flops_per_second: 1e11\n"
        )
    };
    fs::write(&path, file("1e9"))?;
    let text = shell.run("xfc", &["inspect", "llama", "--cost", "--machine", "small.yaml"])?.success()?;
    for expected in [
        "on Small: 50.0 GB/s",
        "it does not fit",
        "the weights alone",
        "layers.0-31 (32 layers, each)",
        "bound by",
        "memory",
    ] {
        assert!(text.contains(expected), "no `{expected}` in:\n{text}");
    }
    fs::write(&path, file("-3"))?;
    shell
        .run("xfc", &["inspect", "llama", "--cost", "--machine", "small.yaml"])?
        .failure(3, &["memory_bytes", "-3"])?;
    fs::write(&path, "name: Small\n")?;
    shell
        .run("xfc", &["inspect", "llama", "--cost", "--machine", "small.yaml"])?
        .failure(3, &["small.yaml", "missing"])?;
    for (arguments, named) in [
        (&["--cost", "--machine", "nowhere.yaml"][..], &["nowhere.yaml", "h200.yaml"][..]),
        (&["--cost", "--prompt", "0"], &["at least one"]),
        (&["--cost", "--prompt", "9000"], &["does not fit", "4096"]),
        (&["--cost", "-b", "0"], &["batch"]),
        (&["--cost", "--format", "svg"], &["text or json"]),
        (&["--cost", "--cache"], &["cannot be used with"]),
        (&["-c", "100"], &["--cache"]),
        (&["--machine", "this"], &["--cost"]),
    ] {
        shell.run("xfc", &[&["inspect", "gpt_neox"], arguments].concat())?.failure(2, named)?;
    }
    shell.run("xfc", &["inspect", "gpt2", "--cost", "-c", "2048"])?.failure(2, &["the model has 1024"])?;
    // Measured here; every family has a plan to count on, also those that take whole sequences or a source.
    for model in ["bert", "t5", "vit"] {
        let text = shell.run("xfc", &["inspect", model, "--tiny", "--cost"])?.success()?;
        assert!(text.contains("measured now") && text.contains("it fits"), "{model}:\n{text}");
        // Of a source as much as was asked for; the context of what is written is looked for beside it.
        assert_eq!(text.contains("of `source`"), model == "t5", "{model}:\n{text}");
    }
    Ok(())
}
