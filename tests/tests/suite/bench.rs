//! `bench` as it is typed, on a small model made up from a card: what it counts must follow from the model's sizes. No speed is tested.

use std::fs;

use serde_json::Value;
use xfc_tests::Result;
use xfc_tests::command::Shell;

/// Sizes of a small decoder with a tied head.
const SIZES: [&str; 7] = [
    "vocab_size=200",
    "hidden_size=64",
    "intermediate_size=96",
    "num_hidden_layers=2",
    "num_attention_heads=4",
    "num_key_value_heads=2",
    "head_dim=16",
];

fn sizes() -> Vec<&'static str> {
    SIZES.iter().chain(&["tie_word_embeddings=true"]).flat_map(|size| ["--set", size]).collect()
}

#[test]
fn a_card_is_measured_without_a_checkpoint() -> Result<()> {
    let shell = Shell::new()?;
    let rest = [
        "--dtype",
        "bf16",
        "-p",
        "20",
        "-n",
        "4",
        "-b",
        "1,3",
        "-t",
        "1",
        "-r",
        "1",
        "--attempts",
        "1",
        "--format",
        "json",
        "-o",
        "out.json",
    ];
    let said = shell.run("xfc", &[&["bench", "llama"], &sizes()[..], &rest[..]].concat())?.success()?;
    assert_eq!(said, "");
    let result: Value = serde_json::from_slice(&fs::read(shell.folder().join("out.json"))?)?;
    let rows = result["rows"].as_array().ok_or("there are no rows")?;
    let names: Vec<_> =
        rows.iter().map(|row| (row["test"].as_str().unwrap_or_default(), row["batch"].as_u64())).collect();
    assert_eq!(names, [("pp20", Some(1)), ("tg4", Some(1)), ("pp20", Some(3)), ("tg4", Some(3))]);

    let matrices = 2 * (64 * 16 * (4 + 2 + 2 + 4) + 3 * 64 * 96);
    let (head, norms) = (200 * 64, 5 * 64);
    let number = |row: usize, key: &str| rows[row][key].as_u64().ok_or(format!("row {row} has no {key}"));
    for (row, sequences) in [(0, 1), (2, 3)] {
        let pairs = sequences * 20 * 21 / 2;
        let flops = 2 * matrices * 20 * sequences + 2 * head * sequences + 2 * pairs * 4 * 4 * 16;
        assert_eq!(number(row, "f32_flops")? + number(row, "half_flops")?, flops);
        // The table is read a row a token, in the type that it is kept in.
        let once = 2 * (matrices + head) + 4 * norms;
        let rows_of_table = number(row, "weight_bytes")? - once;
        assert!(
            rows_of_table == 20 * sequences * 64 * 2 || rows_of_table == 20 * sequences * 64 * 4,
            "{rows_of_table}"
        );
        assert_eq!(number(row, "cache_bytes")?, sequences * 20 * 2 * 2 * 2 * 16 * 2);
    }
    // Four tokens: everything four times, with 1 to 4 keys.
    assert!(number(1, "weight_bytes")? > 4 * (2 * (matrices + head) + 4 * norms));
    assert_eq!(number(3, "cache_bytes")?, 3 * (1 + 2 + 3 + 4) * 2 * 2 * 2 * 16 * 2);
    for row in rows {
        let run = &row["runs"][0];
        assert!(
            row["tokens_per_second"]["mean"].as_f64() > Some(0.0)
                && run["before"]["read_bytes_per_second"].as_f64() > Some(0.0),
            "{row}"
        );
        assert!(run["settled"].is_boolean() && run["attempts"].as_u64() >= Some(1), "{row}");
    }
    assert_eq!(result["model"]["dtype"], "bf16");
    Ok(())
}

#[test]
fn an_artifact_is_measured_and_profiled() -> Result<()> {
    let shell = Shell::new()?;
    shell.run("xfc", &[&["compile", "llama"], &sizes()[..], &["-o", "model.xfm"]].concat())?.success()?;
    let rest = [
        "-p",
        "8",
        "-n",
        "0",
        "-d",
        "3",
        "-t",
        "2",
        "-r",
        "1",
        "--profile",
        "--profile-out",
        "trace.json",
        "--profile-out",
        "chart.html",
    ];
    let text = shell.run("xfrun", &[&["bench", "model.xfm"], &rest[..]].concat())?.success()?;
    assert!(text.contains("| 2 | 1 | pp8 @ d3 |"), "{text}");
    // Every layer runs the same kernels.
    assert!(
        text.contains("| layers.*.mlp.down_proj | 2 |") && text.contains("| layers.*.self_attn.q_proj | 2 |"),
        "{text}"
    );
    let trace: Value = serde_json::from_slice(&fs::read(shell.folder().join("trace.json"))?)?;
    let events = trace["traceEvents"].as_array().ok_or("there are no events")?;
    assert!(events.iter().any(|event| event["name"] == "layers.1.mlp.down_proj"));
    assert!(fs::read_to_string(shell.folder().join("chart.html"))?.contains("layers.1.mlp.down_proj"));
    Ok(())
}

#[test]
fn what_cannot_be_measured_is_refused_at_once() -> Result<()> {
    let shell = Shell::new()?;
    // Terabytes in f32.
    let huge = [
        "bench",
        "llama",
        "--set",
        "num_hidden_layers=126",
        "--set",
        "hidden_size=32768",
        "--set",
        "intermediate_size=131072",
    ];
    shell
        .run("xfc", &[&huge[..], &["-r", "1"]].concat())?
        .failure(2, &["does not fit into this machine's memory: weights", "are available"])?;
    shell
        .run("xfc", &[&["bench", "llama"], &sizes()[..], &["-p", "0", "-n", "0"]].concat())?
        .failure(2, &["nothing to time"])?;
    shell
        .run("xfc", &[&["bench", "llama"], &sizes()[..], &["--profile-out", "x.svg"]].concat())?
        .failure(2, &["x.svg", ".html"])?;
    shell
        .run("xfc", &[&["bench", "llama"], &sizes()[..], &["--checkpoint", "no/such"]].concat())?
        .failure(3, &["no/such"])?;
    Ok(())
}
