//! A checkpoint of a family that no card serves: what is near, what nobody understands, and how to begin.

use std::fs;

use serde_json::{Value, json};
use xfc_tests::Result;
use xfc_tests::command::Shell;

fn config(model_type: &str) -> Value {
    json!({
        "architectures": ["NewForCausalLM"], "model_type": model_type, "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "hidden_act": "silu", "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "tie_word_embeddings": false, "bos_token_id": 1, "torch_dtype": "bfloat16", "use_cache": true,
        "residual_gain": 0.22, "strange_list": [1, 2, 3],
    })
}

/// A safetensors file of tensors that are all zero.
fn tensors(names: &[(&str, &[u64])]) -> Vec<u8> {
    let mut header = serde_json::Map::new();
    let mut at = 0;
    for (name, shape) in names {
        let end = at + 4 * shape.iter().product::<u64>();
        header.insert((*name).to_owned(), json!({"dtype": "F32", "shape": shape, "data_offsets": [at, end]}));
        at = end;
    }
    let header = Value::Object(header).to_string();
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + at as usize, 0);
    bytes
}

#[test]
fn an_unknown_family_is_told_what_is_near() -> Result<()> {
    let shell = Shell::new()?;
    let folder = shell.folder().join("new");
    fs::create_dir_all(&folder)?;
    fs::write(folder.join("config.json"), config("brandnew").to_string())?;
    let expected = [
        "no card serves model_type `brandnew`",
        "the nearest families are",
        "no family reads",
        "residual_gain: 0.22",
        "strange_list: [1, 2, 3]",
        "write brandnew.yaml",
        "extends: ",
    ];
    for command in [&["compile", "new"][..], &["inspect", "new"], &["run", "new", "--tokens", "1"], &["compare", "new"]]
    {
        let said = shell.run("xfc", command)?.failure(3, &expected)?;
        for absent in ["bos_token_id", "torch_dtype", "tensors"] {
            assert!(!said.contains(absent), "{absent} in:\n{said}");
        }
    }
    // With weights, names and shapes decide.
    let list: &[(&str, &[u64])] = &[
        ("model.embed_tokens.weight", &[96, 32]),
        ("model.layers.0.self_attn.q_norm.weight", &[8]),
        ("model.layers.0.self_attn.k_norm.weight", &[8]),
        ("model.layers.0.self_attn.q_proj.weight", &[32, 32]),
        ("model.unheard_of.weight", &[4]),
    ];
    fs::write(folder.join("model.safetensors"), tensors(list))?;
    let said = shell.run("xfc", &["compile", "new"])?.failure(3, &["of 5 tensors by name and shape"])?;
    assert!(said.contains("4 of 5 tensors"), "a family with norms of queries and keys is nearest:\n{said}");
    Ok(())
}

#[test]
fn the_card_that_is_shown_is_a_beginning() -> Result<()> {
    let shell = Shell::new()?;
    let folder = shell.folder().join("new");
    fs::create_dir_all(&folder)?;
    fs::write(folder.join("config.json"), config("brandnew").to_string())?;
    let said = shell.run("xfc", &["compile", "new"])?.failure(3, &["to start"])?;
    let shown = said.split("brandnew.yaml:\n").nth(1).ok_or("no card is shown")?;
    let card: Vec<&str> = shown.lines().map_while(|l| l.strip_prefix("      ")).collect();
    assert!(card.len() > 3, "{said}");
    fs::write(shell.folder().join("brandnew.yaml"), card.join("\n"))?;
    shell.run("xfc", &["check", "brandnew.yaml", "--config", "new/config.json"])?.success()?;
    let told =
        ["run", "brandnew.yaml", "--config", "new/config.json", "--checkpoint", "random", "--tokens", "1,2", "-n", "2"];
    shell.run("xfc", &told)?.success()?;
    Ok(())
}
