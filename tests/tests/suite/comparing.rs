//! `xfc compare`: the table that surveys draw by hand, held to what papers and model cards say, and the page in a browser.

use std::fs;

use serde_json::Value;
use xfc_tests::Result;
use xfc_tests::command::Shell;

use crate::seeing::{browser, dom};

/// The comparison of some models as JSON.
fn compared(names: &[&str]) -> Result<Value> {
    let arguments = [&["compare"], names, &["--format", "json"]].concat();
    Ok(serde_json::from_str(&Shell::new()?.run("xfc", &arguments)?.success()?)?)
}

#[test]
fn facts_are_what_papers_say() -> Result<()> {
    let expected: &[(&str, &[(&str, &str)])] = &[
        (
            "llama",
            &[
                ("norm_placement", "before sublayers (pre-norm)"),
                ("norm_kind", "RMSNorm"),
                ("attention", "grouped-query (GQA)"),
                ("heads", "32, 8 of keys and values"),
                ("positions", "RoPE θ 500,000, slow turns ×8"),
                ("activation", "SwiGLU"),
                ("biases", "none"),
                ("head", "its own matrix"),
                ("sight", "all before it"),
                ("cache_bytes_per_token", "131.07 KB"),
            ],
        ),
        (
            "gemma3",
            &[
                ("norm_placement", "before and after sublayers (sandwich)"),
                ("norm_kind", "RMSNorm (1 + w)"),
                ("attention", "multi-query (MQA)"),
                ("qk_norm", "RMSNorm (1 + w), each head"),
                ("positions", "RoPE θ 10,000 (5 of 6 layers), RoPE θ 1,000,000 (1 of 6 layers)"),
                ("sight", "the last 512 (5 of 6 layers), all before it (1 of 6 layers)"),
                ("activation", "GeGLU (tanh)"),
                ("head", "tied to the embedding"),
                ("parameters", "1.00 B"),
            ],
        ),
        (
            "gemma2",
            &[
                ("attention_more", "scores held under 50"),
                ("head", "tied to the embedding, held under 30"),
                ("embedding", "× 48"),
            ],
        ),
        (
            "olmo2",
            &[
                ("norm_placement", "after sublayers, before the sum"),
                ("qk_norm", "RMSNorm, all heads together"),
                ("attention", "multi-head (MHA)"),
            ],
        ),
        ("olmo3", &[("sight", "the last 4,096 (3 of 4 layers), all before it (1 of 4 layers)")]),
        ("smollm3", &[("positions", "RoPE θ 5,000,000 (3 of 4 layers), none (1 of 4 layers)")]),
        ("qwen2", &[("biases", "queries, keys, values")]),
        (
            "gpt_neox",
            &[
                ("residual", "in parallel"),
                ("positions", "RoPE θ 10,000, 24 of 96 elements"),
                ("norm_kind", "LayerNorm"),
            ],
        ),
        (
            "gpt2",
            &[
                ("positions", "learned, 1,024 places"),
                ("activation", "GELU (tanh)"),
                ("cache_bytes_4096", "past its 1,024 places"),
            ],
        ),
        (
            "bert",
            &[
                ("norm_placement", "after the residual sum (post-norm)"),
                ("sight", "everything"),
                ("activation", "GELU"),
                ("layers", "12"),
            ],
        ),
        (
            "t5",
            &[
                ("positions", "bias learned, by distance"),
                ("sight", "encoder: everything; decoder: all before it"),
                ("cross_attention", "decoder: multi-head (MHA), 8"),
                ("attention_more", "scores as they are"),
                ("layers", "6 encoder + 6 decoder"),
            ],
        ),
        (
            "transformer",
            &[
                ("positions", "sinusoids"),
                ("activation", "ReLU"),
                ("norm_placement", "after the residual sum (post-norm)"),
            ],
        ),
        ("mixtral", &[("mixture", "8 of 14,336, 2 chosen (softmax)"), ("active", "12.9 B (28 %)")]),
        ("qwen2_moe", &[("mixture", "60 of 1,408, 4 chosen (softmax), gated shared of 5,632")]),
        ("qwen3_moe", &[("mixture", "128 of 768, 8 chosen (softmax)"), ("qk_norm", "RMSNorm, each head")]),
        (
            "deepseek_v3",
            &[
                ("heads", "128; keys and values made of 576 kept a token; queries made of 1,536"),
                ("head_width", "192 of queries and keys, 128 of values"),
                ("inner_width", "18,432 (layers 0-2), 2,048 of each expert (layers 3-60)"),
            ],
        ),
        ("gpt_oss", &[("activation", "SwiGLU (σ(1.702 x)), clamped, up + 1"), ("inner_width", "2,880 of each expert")]),
        // States are held in f32 whatever the dtype.
        (
            "mamba2",
            &[
                ("attention", "recurrence (scan)"),
                ("mixer", "state 24 × 128 × 64"),
                ("activation", ""),
                ("cache_bytes_per_token", "none"),
                ("state_bytes", "19.39 MB"),
                ("cache_bytes_4096", "19.39 MB"),
            ],
        ),
        (
            "jamba",
            &[
                ("attention", "recurrence (scan) (7 of 8 layers), grouped-query (GQA) (1 of 8 layers)"),
                ("activation", "SwiGLU"),
            ],
        ),
        (
            "rwkv",
            &[
                ("attention", "recurrence (scan)"),
                ("mixer", "3 states of 768"),
                ("attention_more", "mixed with the token before (token shift)"),
                ("activation", "ReLU²"),
                ("inner_width", "3,072"),
                ("feed_more", "output gated by a sigmoid, mixed with the token before (token shift)"),
            ],
        ),
        // AltUp: arXiv:2301.13310; LAuReL: arXiv:2411.07501; statistical top-k: arXiv:2506.06644.
        (
            "gemma3n",
            &[
                ("norm_placement", "before and after sublayers (sandwich)"),
                (
                    "residual",
                    "one after another, beside one low-rank product, on one of 4 streams, all predicted and corrected (AltUp), \
                     gated input of 256 of each layer's own",
                ),
                ("low_rank", "2,048 → 64 → 2,048, what it reads added (LAuReL)"),
                (
                    "activation",
                    "GeGLU (tanh) of gates beyond mean + 1.64485 σ (statistical top-k) (layers 0-9), GeGLU (tanh) (layers 10-34)",
                ),
                ("inner_width", "16,384"),
            ],
        ),
        // What makes scores by position of its queries and keys is no attention to another sequence.
        (
            "deberta_v2",
            &[
                ("attention", "multi-head (MHA)"),
                ("heads", "12"),
                ("positions", "bias learned, by distance"),
                ("attention_more", "scores × 0.0721688"),
                ("cross_attention", ""),
            ],
        ),
        // The first layer has no norm before attention: embeddings are normed.
        (
            "modernbert",
            &[("norm_placement", "before sublayers (pre-norm)"), ("embedding", "then LayerNorm without bias")],
        ),
        ("minimax", &[("norm_placement", "after the residual sum (post-norm)"), ("residual", "one after another")]),
        ("apertus", &[("activation", "4 mul, min, exp, 2 sub, gt, select, add")]),
        ("beit", &[("residual", "one after another, scaled by learned weights"), ("activation", "GELU")]),
        ("longformer", &[("sight", "attention_mask == 1 and (abs(q_pos - k_pos) <= 256 or chosen == 1)")]),
        ("vit", &[("embedding", "projected 768 → 768"), ("positions", "learned, 197 places")]),
    ];
    let names: Vec<&str> = expected.iter().map(|(name, _)| *name).collect();
    let json = compared(&names)?;
    let mut wrong = Vec::new();
    for (i, (name, facts)) in expected.iter().enumerate() {
        for (key, text) in *facts {
            let found = json["models"][i]["facts"][*key]["text"].as_str().unwrap_or_default();
            if found != *text {
                wrong.push(format!("{name}: {key} is `{found}`, not `{text}`"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    // Every layer of every family is understood.
    for model in json["models"].as_array().into_iter().flatten() {
        assert_eq!(model["facts"]["other"]["text"].as_str().unwrap_or_default(), "", "{}", model["name"]);
    }
    Ok(())
}

#[test]
fn two_attentions_of_a_branch_have_the_heads_of_both() -> Result<()> {
    let shell = Shell::new()?;
    let card = "\
xfc: 1
name: Two
sizes: {n: 32}
wiring: |
  layer(x) {
    norm = rms_norm(1e-5)
    a, b, k, l, v, o_proj = linear(n)
    h = norm(x)
    kept = cache(split(v(h), 4))
    one = attend(split(a(h), 4), cache(split(k(h), 4)), kept, causal)
    two = attend(split(b(h), 4), cache(split(l(h), 4)), kept, causal)
    return x + o_proj(merge(one - 0.5 * two))
  }
  model(ids: i64[tokens]) {
    table = embedding(16, n)
    layers = [layer for i in 0..4]
    return {y: layers(table(ids))}
  }
";
    fs::write(shell.folder().join("two.yaml"), card)?;
    let text = shell.run("xfc", &["compare", "two.yaml", "--format", "json"])?.success()?;
    let json: Value = serde_json::from_str(&text)?;
    assert_eq!(json["models"][0]["facts"]["heads"]["text"], "8");
    Ok(())
}

#[test]
fn arithmetic_is_that_of_the_parameters() -> Result<()> {
    let json = compared(&["llama"])?;
    let facts = &json["models"][0]["facts"];
    let number = |key: &str| facts[key]["value"].as_f64().unwrap_or_default();
    // Two operations for each parameter but the table's, and for each key 32 layers of 4 · 4096 operations and the softmax.
    let matrices = 2.0 * 7_504_924_672.0;
    let slope = (number("decode_flops_131072") - number("decode_flops_4096")) / (131_072.0 - 4096.0);
    let keys = 32.0 * 4.0 * 4096.0;
    assert!((slope / keys - 1.0).abs() < 0.02, "{slope} for a key, not {keys}");
    let fixed = number("decode_flops_4096") - 4096.0 * slope;
    assert!((fixed / matrices - 1.0).abs() < 0.01, "{fixed} for a token, not {matrices}");
    assert_eq!(number("weight_bytes_bf16"), 2.0 * 8_030_261_248.0);
    assert_eq!(number("cache_bytes_32768"), 32_768.0 * 131_072.0);
    Ok(())
}

#[test]
fn pages_and_drawings_are_whole() -> Result<()> {
    let shell = Shell::new()?;
    let svg = shell.run("xfc", &["compare", "gpt2", "gpt_neox", "--format", "svg"])?.success()?;
    assert!(svg.starts_with("<svg xmlns") && svg.trim_end().ends_with("</svg>") && svg.contains("in parallel"));
    shell.run("xfc", &["compare", "llama", "gemma2", "t5", "--format", "html", "-o", "page.html"])?.success()?;
    let written = fs::read_to_string(shell.folder().join("page.html"))?;
    assert!(!written.contains("<script") && written.contains("Content-Security-Policy"));
    shell.run("xfc", &["compare"])?.failure(2, &["MODEL"])?;
    shell.run("xfc", &["compare", "llama", "no_such_card"])?.failure(3, &["no_such_card"])?;
    shell.run("xfc", &["compare", "llama", "-c", "0"])?.failure(2, &["ctx-size"])?;
    let Some(browser) = browser()? else { return Ok(()) };
    let dom = dom(&browser, &shell.folder().join("page.html"), "")?;
    let count = |text: &str, what: &str| text.matches(what).count();
    for part in ["class=\"node ", "<tr class=\"differs\"", "class=\"lit\"", "<svg class=\"drawing\""] {
        assert!(count(&dom, part) > 0, "no {part}");
        assert_eq!(count(&dom, part), count(&written, part), "{part}");
    }
    Ok(())
}
