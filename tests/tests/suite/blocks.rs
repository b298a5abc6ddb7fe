//! Attention over more keys than a block holds, against the interpreter: head widths and groups that no tile divides, windows, several sequences in
//! a step, on every target that this machine has.

use serde_json::Value;
use xfc_tests::Result;
use xfc_tests::command::Shell;

/// Compares a card at these sizes with the interpreter: whole, in pieces, token by token, and three sequences together.
fn check(card: &str, tokens: u32, sizes: &[(&str, u32)], dtype: &str) -> Result<()> {
    let shell = Shell::new()?;
    let tokens = tokens.to_string();
    let mut arguments = vec!["verify", card, "--checkpoint", "random", "--dtype", dtype, "--tokens", &tokens, "--json"];
    let sets: Vec<String> = sizes.iter().map(|(name, value)| format!("{name}={value}")).collect();
    sets.iter().for_each(|set| arguments.extend(["--set", set]));
    let found: Value = serde_json::from_str(&shell.run("xfc", &arguments)?.success()?)?;
    assert_eq!(found["pass"], true, "{card} {sizes:?} {dtype}: {found:#}");
    Ok(())
}

#[test]
fn heads_of_every_width_and_group() -> Result<()> {
    for (heads, kv_heads, head_dim, dtype) in
        [(2, 2, 64, "f32"), (4, 2, 80, "bf16"), (3, 1, 96, "bf16"), (6, 2, 128, "f32"), (8, 1, 256, "bf16")]
    {
        let sizes = [
            ("vocab_size", 100),
            ("intermediate_size", 32),
            ("num_hidden_layers", 1),
            ("hidden_size", 64),
            ("num_attention_heads", heads),
            ("num_key_value_heads", kv_heads),
            ("head_dim", head_dim),
        ];
        check("llama", 150, &sizes, dtype)?;
    }
    Ok(())
}

#[test]
fn windows_that_cut_blocks() -> Result<()> {
    for (heads, kv_heads, head_dim, window, dtype) in
        [(5, 5, 18, 37, "f32"), (8, 1, 34, 70, "bf16"), (3, 3, 10, 64, "bf16"), (12, 1, 16, 1, "f32")]
    {
        let sizes = [
            ("vocab_size", 100),
            ("intermediate_size", 32),
            ("num_hidden_layers", 1),
            ("hidden_size", 60),
            ("num_attention_heads", heads),
            ("num_key_value_heads", kv_heads),
            ("head_dim", head_dim),
            ("sliding_window", window),
        ];
        check("mistral", 170, &sizes, dtype)?;
    }
    Ok(())
}

/// Pairs of bf16 need an even number of elements.
#[test]
fn heads_of_odd_width() -> Result<()> {
    let sizes =
        [("vocab_size", 100), ("n_layer", 1), ("n_embd", 21), ("n_head", 3), ("n_inner", 32), ("n_positions", 160)];
    check("gpt2", 150, &sizes, "bf16")
}
