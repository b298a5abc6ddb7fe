//! Models of generated sizes: what no reference case and no tile size divides.
//!
//! Given a seed, [`config`] draws a family and sizes for it, and [`case`] gives the model weights by the rules of the reference cases. Nothing of
//! another implementation is there to compare with: the interpreter is the truth.

use serde_json::{Value, json};

use crate::Result;
use crate::case::{Case, TensorSpec};
use crate::fill::splitmix64;
use crate::model;

/// Numbers drawn from a seed.
#[derive(Clone, Copy, Debug)]
pub struct Draw {
    seed: u64,
    next: u64,
}

impl Draw {
    /// A sequence of draws.
    pub fn new(seed: u64) -> Self {
        Draw { seed, next: 0 }
    }

    /// A number in `0..n`.
    pub fn below(&mut self, n: u64) -> u64 {
        self.next += 1;
        splitmix64(self.seed, self.next) % n
    }

    /// One of a list.
    pub fn of<T: Copy>(&mut self, list: &[T]) -> T {
        list[self.below(list.len() as u64) as usize]
    }
}

/// A config.json of a family, with sizes that are mostly odd.
pub fn config(draw: &mut Draw) -> Value {
    let heads = draw.of(&[1, 2, 3, 4, 6]);
    let head_dim = draw.of(&[2, 6, 10, 16, 18, 34]);
    let width = heads * head_dim;
    let inner = 1 + draw.below(150);
    let vocab = 3 + draw.below(200);
    let layers = 1 + draw.below(2);
    let kv_heads = if heads % 2 == 0 { draw.of(&[1, heads / 2, heads]) } else { draw.of(&[1, heads]) };
    let mut rotary = json!({
        "vocab_size": vocab, "hidden_size": width, "intermediate_size": inner, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": head_dim, "hidden_act": "silu",
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": draw.below(2) == 0,
    });
    match draw.below(7) {
        0 => {
            rotary["model_type"] = json!("llama");
            rotary["attention_bias"] = json!(draw.below(2) == 0);
            rotary["mlp_bias"] = json!(draw.below(2) == 0);
            rotary
        }
        1 => {
            rotary["model_type"] = json!("mistral");
            rotary["sliding_window"] = json!(1 + draw.below(40));
            rotary["tie_word_embeddings"] = json!(false);
            rotary
        }
        2 => {
            rotary["model_type"] = json!("qwen3");
            rotary["attention_bias"] = json!(draw.below(2) == 0);
            rotary
        }
        3 => {
            rotary["model_type"] = json!("olmo2");
            rotary
        }
        4 => json!({
            "model_type": "gpt_neox", "vocab_size": vocab, "hidden_size": width, "intermediate_size": inner,
            "num_hidden_layers": layers, "num_attention_heads": heads, "hidden_act": draw.of(&["gelu", "gelu_fast"]),
            "layer_norm_eps": 1e-5, "use_parallel_residual": draw.below(2) == 0, "rotary_emb_base": 10000,
            "rotary_pct": draw.of(if head_dim % 4 == 0 { &[0.5, 1.0][..] } else { &[1.0][..] }),
        }),
        5 => json!({
            "model_type": "gpt2", "vocab_size": vocab, "n_positions": 96, "n_embd": width, "n_layer": layers, "n_head": heads,
            "n_inner": inner, "activation_function": draw.of(&["gelu_new", "gelu", "relu"]), "layer_norm_epsilon": 1e-5,
        }),
        _ => json!({
            "model_type": "bert", "architectures": [draw.of(&["BertForMaskedLM", "BertModel"])], "vocab_size": vocab,
            "hidden_size": width, "intermediate_size": inner, "num_hidden_layers": layers, "num_attention_heads": heads,
            "max_position_embeddings": 96, "type_vocab_size": 2, "hidden_act": draw.of(&["gelu", "relu"]),
            "layer_norm_eps": 1e-12,
        }),
    }
}

/// A config.json of a family whose layers choose experts, keep a latent, or keep a state, with sizes that are mostly odd. Experts are stored one by
/// one or in stacks. `all`: every token has every expert, so that no rounding moves a choice.
pub fn sparse_config(draw: &mut Draw, all: bool) -> Value {
    let heads = draw.of(&[1, 2, 3, 4, 6]);
    let head_dim = draw.of(&[2, 6, 10, 16, 18, 34]);
    let kv_heads = if heads % 2 == 0 { draw.of(&[1, heads / 2, heads]) } else { draw.of(&[1, heads]) };
    let layers = 1 + draw.below(2);
    let experts = 2 + draw.below(8);
    let chosen = if all { experts } else { 1 + draw.below(experts.min(4)) };
    let inner = 1 + draw.below(70);
    let mut config = json!({
        "vocab_size": 3 + draw.below(200), "hidden_size": heads * head_dim, "intermediate_size": inner, "moe_intermediate_size": inner,
        "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": head_dim,
        "hidden_act": "silu", "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": draw.below(2) == 0,
        "num_local_experts": experts, "num_experts": experts, "num_experts_per_tok": chosen, "norm_topk_prob": draw.below(2) == 0,
        "attention_bias": draw.below(2) == 0,
    });
    let mut set = |entries: Value| {
        if let (Some(config), Value::Object(entries)) = (config.as_object_mut(), entries) {
            config.extend(entries);
        }
    };
    match draw.below(8) {
        0 => set(json!({"model_type": "mixtral", "sliding_window": draw.of(&[1, 9, 40])})),
        1 => set(json!({"model_type": "qwen3_moe", "decoder_sparse_step": draw.of(&[1, 1, 2])})),
        2 => set(json!({
            "model_type": "qwen2_moe", "shared_expert_intermediate_size": 1 + draw.below(60), "qkv_bias": draw.below(2) == 0,
        })),
        // In stacks, with biases; attention has sinks.
        3 => set(json!({"model_type": "gpt_oss", "sliding_window": draw.of(&[1, 9, 40])})),
        // In stacks; the weight stands before the expert.
        4 => set(json!({
            "model_type": "llama4_text", "num_experts_per_tok": 1, "intermediate_size_mlp": 1 + draw.below(90),
            "num_local_experts": if all { 1 } else { experts }, "interleave_moe_layer_step": draw.of(&[1, 1, 2]),
            "attention_chunk_size": draw.of(&[1, 8, 24]), "no_rope_layer_interval": 2, "floor_scale": 8, "use_qk_norm": draw.below(2) == 0,
        })),
        // Latents are kept; the best groups are open to choice.
        5 => {
            let (groups, of_group) = (draw.of(&[1, 2, 3]), draw.of(&[2, 3, 4]));
            let open = if all { groups } else { 1 + draw.below(groups) };
            set(json!({
                "model_type": "deepseek_v3", "q_lora_rank": draw.of(&[None, Some(7), Some(20)]), "kv_lora_rank": 1 + draw.below(30),
                "qk_nope_head_dim": 1 + draw.below(12), "qk_rope_head_dim": 2 * (1 + draw.below(5)), "v_head_dim": 1 + draw.below(20),
                "n_routed_experts": groups * of_group, "n_shared_experts": 1 + draw.below(2), "n_group": groups, "topk_group": open,
                "num_experts_per_tok": if all { groups * of_group } else { 1 + draw.below(open * of_group) },
                "first_k_dense_replace": draw.below(2), "routed_scaling_factor": 1.5,
            }));
        }
        6 => set(json!({
            "model_type": "mamba", "state_size": 1 + draw.below(9), "conv_kernel": 2 + draw.below(4), "expand": 1 + draw.below(3),
            "time_step_rank": 1 + draw.below(4), "layer_norm_epsilon": 1e-5, "use_bias": draw.below(2) == 0,
        })),
        _ => set(json!({
            "model_type": "mamba2", "num_heads": heads, "state_size": 1 + draw.below(20), "n_groups": draw.of(&[1, heads]),
            "conv_kernel": 2 + draw.below(4), "expand": 1, "layer_norm_epsilon": 1e-5, "use_bias": draw.below(2) == 0,
        })),
    }
    config
}

/// A config.json of a family that writes from a source, with sizes that are mostly odd.
pub fn source_config(draw: &mut Draw) -> Value {
    let heads = draw.of(&[1, 2, 3, 4, 6]);
    let head_dim = draw.of(&[2, 6, 10, 16, 18, 34]);
    let width = heads * head_dim;
    let mut inner = || 1 + draw.below(150);
    let (encoder_inner, decoder_inner) = (inner(), inner());
    let vocab = 3 + draw.below(200);
    let (encoder_layers, decoder_layers) = (1 + draw.below(2), 1 + draw.below(2));
    let sides = json!({
        "vocab_size": vocab, "d_model": width, "encoder_layers": encoder_layers, "decoder_layers": decoder_layers,
        "encoder_attention_heads": heads, "decoder_attention_heads": if head_dim % 4 == 0 { 2 * heads } else { heads },
        "encoder_ffn_dim": encoder_inner, "decoder_ffn_dim": decoder_inner,
        "activation_function": draw.of(&["gelu", "relu", "swish"]), "scale_embedding": draw.below(2) == 0,
    });
    match draw.below(4) {
        0 => {
            let mut config = sides;
            config["model_type"] = json!("bart");
            config["max_position_embeddings"] = json!(96);
            config
        }
        1 => {
            let mut config = sides;
            config["model_type"] = json!("marian");
            config
        }
        2 => json!({
            "vocab_size": vocab, "d_model": width, "nhead": heads, "num_layers": encoder_layers, "d_ff": encoder_inner,
        }),
        _ => {
            let (buckets, far) = draw.of(&[(4, 7), (8, 16), (10, 21), (32, 128)]);
            json!({
                "model_type": "t5", "vocab_size": vocab, "d_model": 1 + draw.below(70), "d_kv": head_dim, "d_ff": encoder_inner,
                "num_layers": encoder_layers, "num_decoder_layers": decoder_layers, "num_heads": heads,
                "relative_attention_num_buckets": buckets, "relative_attention_max_distance": far,
                "feed_forward_proj": draw.of(&["relu", "gated-gelu"]), "tie_word_embeddings": draw.below(2) == 0,
            })
        }
    }
}

/// A model of that config, with weights.
pub fn case(name: &str, config: Value) -> Result<Case> {
    let model = model::expand_with(&config, &config)?;
    let mut tensors: Vec<TensorSpec> = Vec::new();
    for binding in &model.bindings {
        let name = &binding.names[0];
        if tensors.iter().any(|t| t.name == *name) {
            continue;
        }
        let shape: Vec<usize> = binding.shape.iter().map(|&n| n as usize).collect();
        let (offset, scale) = match shape[..] {
            [_] if name.ends_with("weight") => (1.0, 0.1),
            [.., fan_in] if shape.len() > 1 => (0.0, f64::from((3.0 / fan_in as f32).sqrt())),
            _ => (0.0, 0.1),
        };
        tensors.push(TensorSpec {
            name: name.clone(),
            shape,
            offset: f64::from(offset as f32),
            scale: f64::from(scale as f32),
        });
    }
    Ok(Case::generated(name, config, tensors))
}
