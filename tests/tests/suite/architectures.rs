//! The cards of the library: tied copies of tensors, layers that are one graph.

use std::collections::BTreeSet;

use serde_json::json;
use xfc_lang::arch::{ElaborateOptions, Node, elaborate, matches_pattern};
use xfc_lang::graph::verify::verify;
use xfc_lang::spec::{Library, load_card, pick_card};
use xfc_tests::case::Case;
use xfc_tests::model;

#[test]
fn copies_of_tied_tensors_are_ignored() {
    for name in Case::names().expect("the cases are there") {
        let case = Case::load(&name).expect("the case loads");
        let model = model::expand(&case).unwrap_or_else(|e| panic!("{name}: {e}"));
        for alias in case.tied.keys() {
            let ignored = model.ignore.iter().any(|p| matches_pattern(p, alias));
            assert!(ignored, "{name}: {alias} is not ignored by {:?}", model.ignore);
        }
        let stored: usize = case.tensors.iter().map(|t| t.shape.iter().product::<usize>()).sum();
        assert_eq!(model.arch.parameter_count(), stored as u64, "{name}");
    }
}

#[test]
fn other_models_of_a_family_have_their_published_parameters() {
    let library = Library::embedded();
    let t5 = |width: u64, inner: u64, layers: u64, heads: u64| json!({"model_type": "t5", "vocab_size": 32128, "d_model": width, "d_kv": 64, "d_ff": inner, "num_layers": layers, "num_heads": heads});
    let mut newer = t5(512, 1024, 8, 6);
    newer["feed_forward_proj"] = json!("gated-gelu");
    newer["tie_word_embeddings"] = json!(false);
    let bart = json!({
        "model_type": "bart", "architectures": ["BartModel"], "vocab_size": 50265, "d_model": 1024, "encoder_layers": 12, "decoder_layers": 12,
        "encoder_attention_heads": 16, "decoder_attention_heads": 16, "encoder_ffn_dim": 4096, "decoder_ffn_dim": 4096,
        "max_position_embeddings": 1024, "scale_embedding": false, "normalize_before": false, "static_position_embeddings": false,
    });
    let latent = |config: serde_json::Value| {
        let mut all = json!({
            "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "first_k_dense_replace": 1,
            "hidden_act": "silu", "attention_bias": false, "moe_layer_freq": 1, "rms_norm_eps": 1e-6, "tie_word_embeddings": false,
        });
        if let (Some(all), Some(own)) = (all.as_object_mut(), config.as_object()) {
            all.extend(own.clone());
        }
        all
    };
    let lite = latent(json!({
        "model_type": "deepseek_v2", "hidden_size": 2048, "intermediate_size": 10944, "moe_intermediate_size": 1408, "n_group": 1,
        "n_routed_experts": 64, "n_shared_experts": 2, "norm_topk_prob": false, "num_attention_heads": 16, "num_experts_per_tok": 6,
        "num_hidden_layers": 27, "routed_scaling_factor": 1.0, "rope_theta": 10000, "topk_group": 1, "topk_method": "greedy",
        "scoring_func": "softmax", "vocab_size": 102400,
        "rope_scaling": {"beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 0.707, "mscale_all_dim": 0.707, "original_max_position_embeddings": 4096, "type": "yarn"},
    }));
    let kimi = latent(json!({
        "model_type": "kimi_k2", "hidden_size": 7168, "intermediate_size": 18432, "moe_intermediate_size": 2048, "n_group": 1,
        "n_routed_experts": 384, "n_shared_experts": 1, "norm_topk_prob": true, "num_attention_heads": 64, "num_experts_per_tok": 8,
        "num_hidden_layers": 61, "q_lora_rank": 1536, "routed_scaling_factor": 2.827, "rope_theta": 50000.0, "topk_group": 1,
        "topk_method": "noaux_tc", "scoring_func": "sigmoid", "vocab_size": 163840,
        "rope_scaling": {"beta_fast": 1.0, "beta_slow": 1.0, "factor": 32.0, "mscale": 1.0, "mscale_all_dim": 1.0, "original_max_position_embeddings": 4096, "type": "yarn"},
    }));
    for (name, config, published) in [
        ("DeepSeek-V2-Lite", lite, 15_706_484_224),
        ("Kimi-K2-Instruct", kimi, 1_026_408_232_448),
        ("t5-base", t5(768, 3072, 12, 12), 222_903_552),
        ("t5-large", t5(1024, 4096, 24, 16), 737_668_096),
        ("t5-v1_1-small", newer, 76_961_152),
        ("bart-large", bart, 406_291_456),
    ] {
        let spec = pick_card(&config, &library).unwrap_or_else(|e| panic!("{name}: {e}"));
        let options = ElaborateOptions { config: Some(config), ..ElaborateOptions::default() };
        let model = elaborate(&spec, &options).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(model.arch.parameter_count(), published, "{name}");
    }
}

#[test]
fn equal_layers_are_one_graph() {
    let library = Library::embedded();
    for card in library.cards().map(str::to_string).collect::<Vec<_>>() {
        let spec = load_card(&card, &library).unwrap_or_else(|e| panic!("{e}"));
        let model = elaborate(&spec, &ElaborateOptions::default()).unwrap_or_else(|e| panic!("{e}"));
        verify(&model.program).unwrap_or_else(|e| panic!("{card}: {e}"));
        let mut kinds = BTreeSet::new();
        kinds_below(&model.arch.root, &mut kinds);
        assert_eq!(model.program.graphs.len(), 1 + kinds.len(), "{card}: {kinds:#?}");
    }
}

/// The kinds of element of each list of modules: two are of one kind when what they are made of has the same options.
fn kinds_below(node: &Node, kinds: &mut BTreeSet<(String, String)>) {
    for child in &node.children {
        match child.path.rsplit_once('.') {
            Some((list, index)) if index.bytes().all(|b| b.is_ascii_digit()) => {
                let parts: Vec<String> = child.children.iter().map(|part| described(part, child.path.len())).collect();
                kinds.insert((list.to_owned(), format!("{} {}", child.module, parts.join(", "))));
            }
            _ => kinds_below(child, kinds),
        }
    }
}

/// An instance and what is in it, with paths from `base` on.
fn described(node: &Node, base: usize) -> String {
    let parts: Vec<String> = node.children.iter().map(|part| described(part, base)).collect();
    format!("{} = {} {:?} [{}]", &node.path[base..], node.module, node.options, parts.join(", "))
}
