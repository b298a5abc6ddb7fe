//! Every reader on mutants of real inputs, for a few seconds each (`XFC_FUZZ_SECONDS`).

use serde_json::json;
use xfc_tests::case::{Case, write_tensors};
use xfc_tests::fuzz::{self, Mutator};
use xfc_tests::gguf::{Kind, Writer, file, files as gguf_files};
use xfc_tests::source::files;
use xfc_tests::{Result, repository};

/// The texts of the files under a folder, as seeds.
fn corpus(folder: &str, ending: &str) -> Result<Vec<Vec<u8>>> {
    let files = files(folder, &[ending])?;
    assert!(!files.is_empty(), "no {ending} in {folder}");
    Ok(files.into_iter().map(|file| file.text.into_bytes()).collect())
}

const GRAPH_WORDS: &[&str] = &[
    "graph 1 \"g\" (",
    "return y = %1",
    "%1 = ",
    "{graph = 1, at = \"\"}",
    "{spec = \"ab,bc->ac\"}",
    "call %0 ",
    "rows %0 ",
    "attention ",
    "linear ",
    "rms_norm ",
    "reshape ",
    "concat ",
    "slice ",
    "gather ",
    "contract ",
    ": f32[tokens, 16]",
    "visible(tokens)",
    "rows(tokens)",
    ": i64",
    "[",
    "(",
    "{",
    "body = ({",
    "{values = [1e-5]}",
    "-",
    "18446744073709551615",
];

const CARD_WORDS: &[&str] = &[
    "sizes:\n",
    "wiring: |\n",
    "names:\n",
    "  x: {example: 1, default: 2}\n",
    "hidden_size",
    "num_hidden_layers",
    "1e308",
    "-1",
    "0",
    "99999999999",
    "if c then a else b",
    " ?? ",
    "none",
    "(",
    "[",
    "{",
    "not ",
    "-",
    " + ",
    "f(x) = f(x)\n",
    "m(x) { return m(x) }\n",
    "  a = m(a)\n",
    "[layer for i in 0..n]",
    "cache(",
    "attend(",
    "split(",
    "merge(",
    "q_pos",
    "k_pos",
    "&a ",
    "*a",
    "!!str ",
    "\t",
    "'",
    "\"",
    "# ",
    "tokens",
    "**",
    "..",
    "é",
];

#[test]
fn card() -> Result<()> {
    let inputs = fuzz::drive("card", &corpus("models", ".yaml")?, CARD_WORDS, fuzz::card);
    assert!(inputs > 20, "only {inputs} inputs in {:?}", fuzz::budget());
    Ok(())
}

#[test]
fn xf() -> Result<()> {
    let inputs = fuzz::drive("xf", &corpus("models/lib", ".xf")?, CARD_WORDS, fuzz::xf);
    assert!(inputs > 20, "only {inputs} inputs in {:?}", fuzz::budget());
    Ok(())
}

#[test]
fn config() -> Result<()> {
    let words = [
        "null",
        "true",
        "{}",
        "[]",
        "-1",
        "0",
        "1e400",
        "99999999999999999999",
        "\"rope_scaling\": {",
        "\"x\": ",
        "[",
        "{\"a\":",
    ];
    let mut corpus = Vec::new();
    for name in Case::names()? {
        let case = Case::load(&name)?;
        corpus.push(serde_json::to_vec(&case.config)?);
    }
    let inputs = fuzz::drive("config", &corpus, &words, fuzz::config);
    assert!(inputs > 20, "only {inputs} inputs in {:?}", fuzz::budget());
    Ok(())
}

#[test]
fn safetensors() -> Result<()> {
    let case = Case::load("mistral")?;
    let folder = tempfile::tempdir()?;
    let mut corpus = Vec::new();
    for (n, tensors) in [&case.tensors[5..6], &case.tensors[1..4], &[]].into_iter().enumerate() {
        let path = folder.path().join(n.to_string());
        write_tensors(&path, case.seed, tensors)?;
        corpus.push(std::fs::read(path)?);
    }
    let words = [
        "\"F32\"",
        "\"BF16\"",
        "\"I64\"",
        "\"shape\":[",
        "\"data_offsets\":[0,",
        "99999999999",
        "{",
        "[",
        "\"__metadata__\":{}",
    ];
    let inputs = fuzz::drive("safetensors", &corpus, &words, fuzz::safetensors);
    assert!(inputs > 100, "only {inputs} inputs in {:?}", fuzz::budget());
    Ok(())
}

#[test]
fn gguf() -> Result<()> {
    let mut small = Writer::default();
    small.value("general.architecture", &json!("llama"))?;
    small.value("llama.rope.freq_base", &json!(0.5))?;
    small.value("tokenizer.ggml.model", &json!("llama"))?;
    small.value("tokenizer.ggml.tokens", &json!(["<s>", "▁", "t", "▁t", "<u>"]))?;
    small.floats("tokenizer.ggml.scores", &[0.0, -1.0, -2.0, -3.0, 0.0]);
    small.value("tokenizer.ggml.token_type", &json!([3, 1, 1, 1, 4]))?;
    small.value("tokenizer.ggml.bos_token_id", &json!(0))?;
    small.value(
        "tokenizer.chat_template",
        &json!("{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}"),
    )?;
    let mut pairs = Writer::default();
    pairs.value("tokenizer.ggml.model", &json!("gpt2"))?;
    pairs.value("tokenizer.ggml.pre", &json!("llama-bpe"))?;
    pairs.value("tokenizer.ggml.tokens", &json!(["t", "o", "to", "Ġ", "<|im_end|>"]))?;
    pairs.value("tokenizer.ggml.merges", &json!(["t o", "Ġ to"]))?;
    small.tensor("token_embd.weight", &[2, 32], Kind::Q8_0, &[0.5; 64]);
    small.tensor("rope_freqs.weight", &[2], Kind::F32, &[1.0, 8.0]);
    let case = Case::load("llama2")?;
    let whole = file(&case, &gguf_files()?["llama2"], |_| Kind::F16)?;
    let mut blocks = std::fs::read(repository().join("tests/reference/gguf/blocks.gguf"))?;
    blocks.truncate(8192);
    let corpus = [small.bytes(), pairs.bytes(), whole.bytes()[..16 * 1024].to_vec(), blocks];
    let words = [
        "GGUF",
        "general.architecture",
        "general.alignment",
        "llama.block_count",
        "gemma2",
        "split.count",
        "token_embd.weight",
    ];
    let inputs = fuzz::drive("gguf", &corpus, &words, fuzz::gguf);
    assert!(inputs > 20, "only {inputs} inputs in {:?}", fuzz::budget());
    Ok(())
}

#[test]
fn set() -> Result<()> {
    let corpus = [
        "layer.attention = gqa(2, 2, 4, mask = causal)",
        "layer.return = norm_2(h + mlp(h))\nlayer.h = x",
        "layer.extra = norm\nlayer.h = extra(x)\nhidden_size=768",
        "norm(x) {\n  y = x\n  return y\n}",
        "mask all = true\nmodel.predictions.dense = linear(8)",
        "gqa.q = q_proj(x)",
    ];
    let corpus: Vec<Vec<u8>> = corpus.iter().map(|text| text.as_bytes().to_vec()).collect();
    let inputs = fuzz::drive("set", &corpus, CARD_WORDS, fuzz::set);
    assert!(inputs > 10, "only {inputs} inputs in {:?}", fuzz::budget());
    Ok(())
}

#[test]
fn tokenizer() -> Result<()> {
    let text = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [
            {"id": 0, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true}
        ],
        "normalizer": {"type": "NFC"}, "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "post_processor": null, "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null, "end_of_word_suffix": null,
                  "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
                  "vocab": {"<s>": 0, "t": 1, "o": 2, "to": 3, "b": 4, "e": 5, "be": 6}, "merges": [["t", "o"], ["b", "e"]]}
    });
    let words = ["null", "-1", "\"WordPiece\"", "\"Unigram\"", "99999999999", "{", "[", "\"\"", "true"];
    let inputs = fuzz::drive("tokenizer", &[serde_json::to_vec(&text)?], &words, fuzz::tokenizer);
    assert!(inputs > 10, "only {inputs} inputs in {:?}", fuzz::budget());
    Ok(())
}

#[test]
fn settings() -> Result<()> {
    let corpus = [
        r#"{"metadata": {"total_size": 8}, "weight_map": {"a": "a.safetensors", "b": "b.safetensors"}}"#,
        r#"{"eos_token_id": [1, 2], "chat_template": "{% for m in messages %}{{ m.content }}{% endfor %}", "eos_token": "</s>"}"#,
        r#"{"decoder_start_token_id": 2, "forced_bos_token_id": 0, "bad_words_ids": [[7], [1, 2]], "suppress_tokens": [4]}"#,
        r#"[{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}, {"idx": 1, "path": "1_Pooling"}]"#,
    ];
    let corpus: Vec<Vec<u8>> = corpus.iter().map(|text| text.as_bytes().to_vec()).collect();
    let words = ["null", "-1", "99999999999999999999", "{", "[", "\"../x\"", "{{", "{%", "true", "\"weight_map\": {"];
    let inputs = fuzz::drive("settings", &corpus, &words, fuzz::settings);
    assert!(inputs > 10, "only {inputs} inputs in {:?}", fuzz::budget());
    Ok(())
}

#[test]
fn graph_text() -> Result<()> {
    let corpus = corpus("compiler/lang/tests/fixtures", ".xg")?;
    let inputs = fuzz::drive("graph_text", &corpus, GRAPH_WORDS, fuzz::graph_text);
    assert!(inputs > 100, "only {inputs} inputs in {:?}", fuzz::budget());
    Ok(())
}

#[test]
fn the_sequence_of_mutants_repeats() {
    let corpus = [b"one two".to_vec(), b"three".to_vec()];
    let draw = || {
        let mut mutator = Mutator::new("x", &corpus, &["word"]);
        (0..500).map(|_| mutator.next_input()).collect::<Vec<_>>()
    };
    assert_eq!(draw(), draw());
    let mutants = draw();
    assert!(mutants.iter().filter(|m| !corpus.contains(m)).count() > 400);
}

#[test]
fn a_panic_names_the_input() {
    let target = |data: &[u8]| assert!(data.len() < 3, "too long");
    let corpus = [b"four".to_vec()];
    let panic = std::panic::catch_unwind(|| fuzz::drive("sample", &corpus, &[], target)).unwrap_err();
    let message = panic.downcast_ref::<String>().unwrap();
    let path = message.split("the input is in ").nth(1).unwrap();
    assert_eq!(std::fs::read(path).unwrap(), b"four");
    std::fs::remove_file(path).unwrap();
}
