//! What launches say they cost, against the model: each parameter is read once, and multiplied as often as the formula says.

use std::collections::BTreeMap;

use serde_json::json;
use xfc_codegen::driver::{Options, build_kernels, fuse};
use xfc_codegen::target;
use xfc_lang::graph::path::instances;
use xfc_lang::graph::{DType, Dim, Graph, Type};
use xfc_lang::ops::Core;
use xfc_lang::passes::precision::CacheType;
use xfc_runtime::artifact::manifest::Manifest;
use xfc_runtime::cost::{AxisShape, StepShape, Work};
use xfc_tests::compile::compiled;
use xfc_tests::{Result, model};

use crate::cases::every_case;

const VOCABULARY: u64 = 96;
const WIDTH: u64 = 48;
const INNER: u64 = 80;
const LAYERS: u64 = 3;
const HEADS: u64 = 6;
const KV_HEADS: u64 = 2;
const HEAD: u64 = 8;

/// A decoder of the sizes above.
fn manifest(tied: bool, dtype: DType) -> Result<Manifest> {
    manifest_with(tied, dtype, dtype.into())
}

/// The same with such caches.
fn manifest_with(tied: bool, dtype: DType, cache: CacheType) -> Result<Manifest> {
    let config = json!({
        "model_type": "mistral", "vocab_size": VOCABULARY, "hidden_size": WIDTH, "intermediate_size": INNER, "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "head_dim": HEAD, "hidden_act": "silu", "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "sliding_window": 20, "tie_word_embeddings": tied,
    });
    let model = model::expand_with(&config, &config)?;
    let options = Options { dtype, cache: Some(cache), ..Options::default() };
    let fused = fuse(&model, &options)?;
    Ok(build_kernels(&model, &fused.program, &*target::parse("cpu")?, &options)?.manifest)
}

fn work(manifest: &Manifest, sequences: &[(u64, u64)]) -> Work {
    let axis = AxisShape { sequences: sequences.to_vec(), selected: sequences.len() as u64 };
    StepShape { axes: vec![axis] }.work(manifest)
}

/// Weights of the products of all layers.
fn matrices() -> u64 {
    let attention = WIDTH * HEAD * (2 * HEADS + 2 * KV_HEADS);
    LAYERS * (attention + 3 * WIDTH * INNER)
}

#[test]
fn every_weight_is_read_once() -> Result<()> {
    for (dtype, size) in [(DType::F32, 4), (DType::BF16, 2)] {
        let manifest = manifest(false, dtype)?;
        // Norms stay in f32; of the embedding a token reads its row, in whatever type the table is kept.
        let norms = (2 * LAYERS + 1) * WIDTH * 4;
        let head = VOCABULARY * WIDTH * size;
        let read = work(&manifest, &[(0, 1)]).weight_bytes;
        let table = manifest.weights.iter().find(|w| w.name.contains("embed")).ok_or("there is no embedding")?;
        assert_eq!(read, matrices() * size + norms + head + WIDTH * table.dtype.size_bytes() as u64, "{dtype:?}");
        assert_eq!(manifest.parameters * 4, (matrices() + 2 * VOCABULARY * WIDTH) * 4 + norms);
        // Seven tokens read seven rows, and everything else as often as one.
        let seven = work(&manifest, &[(0, 7)]).weight_bytes;
        assert_eq!(seven - read, 6 * WIDTH * table.dtype.size_bytes() as u64);
    }
    Ok(())
}

#[test]
fn operations_follow_the_formula() -> Result<()> {
    for dtype in [DType::F32, DType::BF16] {
        let manifest = manifest(true, dtype)?;
        let pairs_of = |pairs: u64| LAYERS * pairs * 4 * HEADS * HEAD;
        let head = 2 * VOCABULARY * WIDTH;
        for (sequences, tokens, pairs) in [
            (&[(0, 1)][..], 1, 1),
            (&[(0, 7)], 7, 28),
            // The window shows 20 keys.
            (&[(100, 3)], 3, 60),
            (&[(0, 25), (18, 2)], 27, 20 * 21 / 2 + 5 * 20 + 19 + 20),
        ] {
            let work = work(&manifest, sequences);
            let expected = 2 * matrices() * tokens + pairs_of(pairs) + head * sequences.len() as u64;
            assert_eq!(work.flops(), expected, "{sequences:?}");
            assert_eq!((work.f32_flops == 0, work.half_flops == 0), (dtype == DType::BF16, dtype == DType::F32));
        }
    }
    Ok(())
}

#[test]
fn caches_are_read_as_far_as_the_mask_reaches() -> Result<()> {
    let [f32, bf16] = [DType::F32, DType::BF16].map(|dtype| (dtype, CacheType::Float(dtype)));
    // Integers and a scale of two bytes.
    let integers = (DType::BF16, CacheType::Int8);
    for ((dtype, cache), bytes_of_head) in [(f32, HEAD * 4), (bf16, HEAD * 2), (integers, HEAD + 2)] {
        let manifest = manifest_with(true, dtype, cache)?;
        let kept: u64 = manifest.caches.iter().flat_map(|group| &group.slots).map(|slot| slot.token_bytes).sum();
        assert_eq!(kept, LAYERS * 2 * KV_HEADS * bytes_of_head);
        for (sequences, keys) in [(&[(0, 1)][..], 1), (&[(9, 4)], 13), (&[(100, 1)], 20), (&[(100, 3), (5, 1)], 22 + 6)]
        {
            assert_eq!(work(&manifest, sequences).cache_bytes, keys * kept, "{sequences:?}");
        }
    }
    Ok(())
}

/// Elements of a ragged axis in the step that is counted: one of the first, which may see only what is before, and several of a source, which sees
/// itself whole.
fn elements(axis: usize) -> u64 {
    if axis == 0 { 1 } else { 5 }
}

/// Operations of the products of a graph before any pass. A product without a sum is none.
fn products(graph: &Graph) -> u64 {
    let size = |dim: &Dim| match dim {
        Dim::Fixed(n) => *n,
        Dim::Axis(axis) | Dim::Visible(axis) | Dim::Rows(axis) => elements(axis.0),
    };
    let of = |spec: &str, types: &[&Type]| {
        let (inputs, output) = spec.split_once("->")?;
        let mut sizes = BTreeMap::new();
        for (labels, ty) in inputs.split(',').zip(types) {
            sizes.extend(labels.trim().chars().zip(ty.dims.iter().map(size)));
        }
        let sums = sizes.keys().any(|label| !output.contains(*label));
        Some(if sums { 2 * sizes.values().product::<u64>() } else { 0 })
    };
    graph
        .nodes()
        .filter_map(|node| match graph.op(node).as_core() {
            Some(Core::Contract { spec }) => {
                let types: Vec<&Type> = graph.operands(node).iter().map(|value| graph.ty(*value)).collect();
                of(spec, &types)
            }
            _ => None,
        })
        .sum()
}

#[test]
fn launches_multiply_as_often_as_the_equations() {
    every_case(|case| {
        let model = model::expand(case)?;
        let graph = fuse(&model, &Options::default())?.graph;
        let list = instances(&graph).ok_or("the program has no finite list of instances")?;
        let expected: u64 = list.iter().map(|instance| products(&graph.graphs[instance.graph])).sum();
        let artifact = compiled(case)?;
        let manifest = artifact.manifests().next().ok_or("there is no variant")?;
        let axis = |axis| AxisShape { sequences: vec![(0, elements(axis))], selected: elements(axis) };
        let axes = (0..manifest.axes.len()).map(axis).collect();
        let flops = StepShape { axes }.work(manifest).flops();
        if flops == expected {
            Ok(())
        } else {
            Err(format!("{flops} operations, the equations have {expected}").into())
        }
    });
}
