//! What is kept of a sequence, in bytes: of each token what the sizes of config.json say, and in all that in whole pages.

use serde_json::Value;
use xfc_codegen::driver::{Options, fuse, outline};
use xfc_codegen::target;
use xfc_lang::graph::DType;
use xfc_lang::graph::parse::parse;
use xfc_lang::passes::precision::CacheType;
use xfc_lang::passes::quantise::{Plan, prepare};
use xfc_runtime::artifact::manifest::{CacheGroup, Keep};
use xfc_runtime::step::InputData::Floats;
use xfc_tests::Result;
use xfc_tests::case::Case;
use xfc_tests::compile::{Runner, load};
use xfc_tests::model;
use xfc_tests::program::of_wiring;

use crate::cases::{decoders, every_case};
use crate::programs::{check, floats};

/// Caches narrower and wider than the rest are read as the interpreter reads them, in steps of any number of rows.
#[test]
fn caches_have_a_type_of_their_own() {
    let wiring = r#"model(x: f32[tokens, 24]) {
  q = split(x, 4)
  k, v = parts(x, [12, 12])
  kept = cache(split(k, 2))
  one = attend(q, kept, cache(split(v, 2)), causal)
  two = attend(q, cache(split(x, 4)), cache(split(x * 2, 4)), causal and q_pos - k_pos < 7, score * 0.5)
  three = attend(q, kept, kept, causal, sinks = 0.5)
  return {one: merge(one), two: merge(two), three: merge(three)}
}"#;
    for (dtype, cache) in [(DType::F32, DType::BF16), (DType::BF16, DType::F32)] {
        let text = of_wiring(wiring).unwrap_or_else(|e| panic!("{e}"));
        let mut program = parse(&text).unwrap_or_else(|e| panic!("{e}"));
        prepare(&mut program, dtype, cache, &Plan::default()).unwrap_or_else(|e| panic!("{e}"));
        let step = |n: usize| vec![("x", Floats(floats(n * 24)))];
        check(&program.to_string(), &[step(37), step(1), step(6), step(1), step(13)]);
    }
}

/// `--kv-cache-dtype` decides what a token is kept in, whatever the rest is computed in.
#[test]
fn bytes_of_a_token_follow_the_type_of_caches() -> Result<()> {
    // The sizes that say how many scales a layer keeps of a token in 8 bits: of keys and of values of each head, or of two parts for all heads.
    let scales = [
        ("llama3", &["num_hidden_layers", "num_key_value_heads"][..]),
        ("gemma3", &["num_hidden_layers", "num_key_value_heads"]),
        ("deepseek_v2", &["num_hidden_layers"]),
        ("whisper", &["decoder_layers", "decoder_attention_heads"]),
    ];
    for (name, sizes) in scales {
        let case = Case::load(name)?;
        let model = model::expand(&case)?;
        let bytes = |dtype: DType, cache: Option<CacheType>| -> Result<Vec<u64>> {
            let options = Options { dtype, cache, ..Options::default() };
            let fused = fuse(&model, &options)?;
            let manifest = outline(&model, &fused.program, &*target::parse("cpu")?, &options)?.manifest;
            let of_group = |group: &CacheGroup| group.slots.iter().map(|slot| slot.token_bytes).sum();
            // What a step makes for itself alone is not kept.
            let kept = manifest.caches.iter().filter(|group| group.keep != Keep::Step);
            let mut bytes: Vec<u64> = kept.map(of_group).collect();
            bytes.sort_unstable();
            Ok(bytes)
        };
        let wide = bytes(DType::F32, None)?;
        let narrow: Vec<u64> = wide.iter().map(|bytes| bytes / 2).collect();
        assert_eq!(bytes(DType::F32, Some(DType::BF16.into()))?, narrow, "{name}");
        assert_eq!(bytes(DType::BF16, Some(DType::F32.into()))?, wide, "{name}");
        assert_eq!(bytes(DType::BF16, None)?, narrow, "{name}");
        let per_size = |key: &&str| case.config[*key].as_u64().ok_or_else(|| format!("{name} has no {key}"));
        let scales: u64 = sizes.iter().map(per_size).product::<std::result::Result<u64, String>>()? * 2;
        // Of a source as much is kept as of what is made from it.
        let of_all = if name == "whisper" { 2 } else { 1 } * scales * 2;
        let integers: u64 = bytes(DType::BF16, Some(CacheType::Int8))?.iter().sum();
        assert_eq!(integers, wide.iter().sum::<u64>() / 4 + of_all, "{name}");
        // Floats of 8 bits are as large, and are what is kept, also where a pass makes one cache of several.
        let floats = fuse(&model, &Options { cache: Some(CacheType::Fp8), ..Options::default() })?.program.to_string();
        let kept = floats.lines().filter(|line| line.contains("= cache "));
        let integers = kept.filter(|line| line.contains("kept8g")).count();
        assert!(floats.contains("keptfp8g") && integers == 0, "{name}: {integers} caches are of integers");
    }
    Ok(())
}

const PAGE: u64 = 16;
/// Bytes of an element in f32.
const ELEMENT: u64 = 4;

/// The first of several keys that a config has.
fn size(config: &Value, keys: &[&str]) -> Option<u64> {
    keys.iter().find_map(|key| config.get(key)?.as_u64())
}

/// Bytes kept of a token by how long they are kept, as the papers count them; nothing for what sees its whole sequence at once.
fn analytic(config: &Value) -> Result<Vec<(Keep, u64)>> {
    let need = |keys: &[&str]| size(config, keys).ok_or_else(|| format!("the config has none of {keys:?}"));
    let hidden = need(&["hidden_size", "n_embd", "d_model", "emb_size"])?;
    // The first Transformer's config says nothing of its kind.
    let is_first = config.get("model_type").is_none();
    let decoder = if is_first { &["num_layers"][..] } else { &["decoder_layers", "num_decoder_layers"] };
    if let Some(layers) = size(config, decoder) {
        let width = match size(config, &["d_kv"]) {
            Some(dim) => dim * need(&["num_heads"])?,
            None => hidden,
        };
        let bytes = 2 * width * layers * ELEMENT;
        return Ok(vec![(Keep::All, bytes), (Keep::Once, bytes)]);
    }
    let layers = need(&["num_hidden_layers", "n_layer", "num_layers"])?;
    if let Some(state) = size(config, &["state_size"]) {
        // Of all tokens a state, and the last ones that the convolution sees: of its channels, and of keys and queries where it makes them too.
        let inner = need(&["expand"])? * hidden;
        let channels = inner + 2 * state * size(config, &["n_groups"]).unwrap_or(0);
        let of_layer = (need(&["conv_kernel"])? - 1) * channels + state * inner;
        return Ok(vec![(Keep::State, layers * of_layer * ELEMENT)]);
    }
    if config["use_mean_pooling"] == true {
        // An encoder that keeps the sum of the tokens so far.
        return Ok(vec![(Keep::State, hidden * ELEMENT)]);
    }
    let heads = need(&["num_attention_heads", "n_head", "num_q_heads"])?;
    let head = size(config, &["head_dim", "key_size"]).unwrap_or(hidden / heads);
    let of_layer = match size(config, &["kv_lora_rank"]) {
        // What keys and values are made from, and the part of keys that turns.
        Some(rank) => (rank + need(&["qk_rope_head_dim"])?) * ELEMENT,
        // One key and value for all heads.
        None if config["multi_query"] == true && config["new_decoder_architecture"] == false => 2 * head * ELEMENT,
        None => 2 * size(config, &["num_key_value_heads", "num_kv_heads"]).unwrap_or(heads) * head * ELEMENT,
    };
    // Layers at the end may read what others keep; those that keep a state see no token again.
    let is_recurrent = |kind: &&Value| *kind == "linear_attention" || *kind == "conv";
    let kinds = config.get("layer_types").and_then(Value::as_array);
    let recurrent = kinds.map_or(0, |kinds| kinds.iter().filter(is_recurrent).count() as u64);
    let own = layers - recurrent - size(config, &["num_kv_shared_layers"]).unwrap_or(0);
    let window = size(config, &["sliding_window", "attention_chunk_size"]);
    let is_near = |kind: &&Value| *kind == "sliding_attention" || *kind == "chunked_attention";
    let near = match (config.get("layer_types").and_then(Value::as_array), window) {
        (Some(types), Some(_)) => types.iter().take(own as usize).filter(is_near).count() as u64,
        (None, Some(_)) if config["model_type"] == "mistral" || config["model_type"] == "phi3" => own,
        _ => 0,
    };
    let window = Keep::Window(window.unwrap_or(0));
    let states = if recurrent > 0 { recurrent * state_of_layer(config)? * ELEMENT } else { 0 };
    let kept = [(Keep::All, (own - near) * of_layer), (window, near * of_layer), (Keep::State, states)];
    Ok(kept.into_iter().filter(|(_, bytes)| *bytes > 0).collect())
}

/// Elements of the state of a layer that stands among layers that attend: the last tokens of its convolution, and a matrix a head.
fn state_of_layer(config: &Value) -> Result<u64> {
    let need = |key: &str| size(config, &[key]).ok_or_else(|| format!("the config has no {key}"));
    if let Some(tokens) = size(config, &["conv_L_cache"]) {
        return Ok((tokens - 1) * need("hidden_size")?);
    }
    if let Some(heads) = size(config, &["linear_num_value_heads"]) {
        let (key, value) = (need("linear_key_head_dim")?, need("linear_value_head_dim")?);
        let channels = 2 * need("linear_num_key_heads")? * key + heads * value;
        return Ok((need("linear_conv_kernel_dim")? - 1) * channels + heads * key * value);
    }
    let (inner, state) = (need("mamba_expand")? * need("hidden_size")?, need("mamba_d_state")?);
    let channels = inner + 2 * state * need("mamba_n_groups")?;
    Ok((need("mamba_d_conv")? - 1) * channels + state * inner)
}

/// Tokens of a page; a state is one page, whatever it has seen.
fn page_tokens(group: &CacheGroup) -> u64 {
    if group.keep == Keep::State { 1 } else { PAGE }
}

/// Bytes of a token and of a page in a group.
fn of_group(group: &CacheGroup) -> (u64, u64) {
    let token = group.slots.iter().map(|slot| slot.token_bytes).sum();
    (token, group.slots.iter().map(|slot| (slot.token_bytes * page_tokens(group)).next_multiple_of(64)).sum())
}

fn order(keep: &Keep) -> u64 {
    match keep {
        Keep::All => 0,
        Keep::Once => 1,
        Keep::Window(n) => 1 + n,
        Keep::State => u64::MAX - 1,
        Keep::Step => u64::MAX,
    }
}

/// Those that see whole sequences keep nothing of a token between steps.
const WHOLE: [&str; 7] = ["albert", "bert", "deberta_v2", "longformer", "modernbert", "siglip", "vit"];

#[test]
fn bytes_of_a_token_are_those_of_the_config() {
    every_case(|case: &Case| {
        let model = load(case, "cpu", 1)?;
        let whole = WHOLE.contains(&case.name.as_str());
        let mut found: Vec<(Keep, u64)> = Vec::new();
        for group in model.manifest().caches.iter().filter(|group| group.keep != Keep::Step) {
            // Rows made of weights alone are no tokens.
            if !whole || group.axis == 0 {
                found.push((group.keep, of_group(group).0));
            }
            let tokens = page_tokens(group);
            let padded =
                group.slots.iter().all(|slot| slot.page_bytes == (slot.token_bytes * tokens).next_multiple_of(64));
            if group.page_tokens != tokens || !padded {
                return Err(format!("pages of `{}` are not {tokens} tokens, rounded to 64 bytes", group.name).into());
            }
        }
        let mut expected = if whole { Vec::new() } else { analytic(&case.config)? };
        found.sort_by_key(|(keep, _)| order(keep));
        expected.sort_by_key(|(keep, _)| order(keep));
        if found == expected {
            Ok(())
        } else {
            Err(format!("keeps {found:?} bytes of a token, and the config says {expected:?}").into())
        }
    });
}

/// A sequence that grows owns whole pages: all of its positions, or a ring of the window and a step.
#[test]
fn live_bytes_are_whole_pages() {
    decoders(|case| {
        let model = load(case, "cpu", 1)?;
        if model.manifest().caches.iter().any(|group| group.keep == Keep::Once) {
            return Ok(());
        }
        let mut runner = Runner::new(&model, 1)?;
        let sequence = runner.session.add_sequence()?;
        let step_tokens = runner.session.step_tokens();
        let mut length = 0;
        for (number, n) in [1, 15, 1, 20, 3, 1].into_iter().enumerate() {
            let ids: Vec<i64> = (0..n).map(|i| 3 + i % 40).collect();
            runner.step(&[(sequence, &ids)])?;
            length += ids.len() as u64;
            // A state is written anew from what was before the step; that is given back when the next step has its page.
            let step = number as u64 + 1;
            let pages = |group: &CacheGroup, of_state: u64| match group.keep {
                Keep::All | Keep::Once => length.div_ceil(PAGE),
                Keep::Window(window) => length.div_ceil(PAGE).min((window + step_tokens).div_ceil(PAGE) + 1),
                Keep::State => step.min(of_state),
                Keep::Step => 0,
            };
            let groups = || model.manifest().caches.iter();
            let bytes = |of_state| groups().map(|group| pages(group, of_state) * of_group(group).1).sum::<u64>();
            let (live, allocated) = (bytes(2), bytes(3));
            let cache = runner.session.cache();
            // What lives for a step has its pages from the start.
            let lasting = groups().all(|group| group.keep != Keep::Step);
            if cache.live_bytes() != live || lasting && cache.allocated_bytes() != allocated {
                let found = (cache.live_bytes(), cache.allocated_bytes());
                let expected = (live, allocated);
                return Err(
                    format!("{found:?} bytes live and allocated after {length} tokens, not {expected:?}").into()
                );
            }
        }
        Ok(())
    });
}
