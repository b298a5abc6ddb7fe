//! Compiled models of generated sizes against the interpreter: one token, sizes that no tile divides, several sequences in a step,
//! prompts in pieces, on every target that every machine has, in f32 and bf16, with caches of the same type and in 8 bits.
//!
//! The interpreter runs each sequence alone; the compiled model runs them together.

use std::collections::BTreeMap;

use serde_json::Value;
use xfc_lang::graph::DType;
use xfc_lang::passes::precision::CacheType;
use xfc_lang::reference::Tensor;
use xfc_runtime::session::SessionOptions;
use xfc_runtime::step::{InputData, StepInput, Wanted};
use xfc_tests::Result;
use xfc_tests::generated::{Sequence, both_ways, check_seeds};
use xfc_tests::synthetic::{Draw, config, sparse_config};

/// What each sequence is given in each step; empty: not in the step.
type Schedule = Vec<Vec<Vec<i64>>>;

/// Three sequences: together, apart, in pieces, token by token. Where sequences must be whole, each is one step.
fn schedule(draw: &mut Draw, vocabulary: u64, whole: bool) -> Schedule {
    let mut ids = |n: u64| -> Vec<i64> { (0..n).map(|_| draw.below(vocabulary) as i64).collect() };
    if whole {
        return vec![vec![ids(1), ids(23), ids(17)], vec![ids(40), vec![], ids(2)]];
    }
    vec![
        vec![ids(1), ids(23), vec![]],
        vec![ids(1), ids(1), ids(37)],
        vec![ids(1), ids(5), ids(1)],
        vec![vec![], ids(1), vec![]],
        vec![ids(16), ids(1), ids(9)],
    ]
}

fn check(seed: u64, dtype: DType, config: fn(&mut Draw, DType) -> Value) -> Result<()> {
    check_with(seed, (dtype, dtype.into()), config)
}

fn check_with(seed: u64, types: (DType, CacheType), config: fn(&mut Draw, DType) -> Value) -> Result<()> {
    let mut draw = Draw::new(seed);
    let config = config(&mut draw, types.0);
    let shown = config.to_string();
    run(config, types).map_err(|e| format!("seed {seed}, {types:?}, {shown}: {e}").into())
}

fn run(config: Value, types: (DType, CacheType)) -> Result<()> {
    let vocabulary = config["vocab_size"].as_u64().unwrap_or(1);
    both_ways(config, types, |truth, model| {
        let schedule = schedule(&mut Draw::new(7), vocabulary, model.manifest().whole_sequences);
        let mut session = model.session(&SessionOptions {
            max_sequences: 3,
            context_tokens: Some(96),
            ..SessionOptions::default()
        })?;
        let sequences: Vec<_> = (0..3).map(|_| session.add_sequence()).collect::<std::result::Result<_, _>>()?;
        let mut interpreted: [Sequence; 3] = Default::default();
        for (number, step) in schedule.iter().enumerate() {
            let present: Vec<usize> = (0..3).filter(|s| !step[*s].is_empty()).collect();
            let inputs: Vec<StepInput> = present
                .iter()
                .map(|&s| StepInput {
                    sequence: sequences[s],
                    inputs: vec![("input_ids".into(), InputData::Ints(step[s].clone()))],
                    wanted: Wanted::All,
                })
                .collect();
            let got = session.step(&inputs)?;
            for (index, &s) in present.iter().enumerate() {
                let mut tensors =
                    BTreeMap::from([("input_ids".to_owned(), Tensor::i64([step[s].len()], step[s].clone()))]);
                if truth.program.inputs.iter().any(|i| i.name == "token_type_ids") {
                    tensors.insert("token_type_ids".into(), Tensor::i64([step[s].len()], vec![0; step[s].len()]));
                }
                if model.manifest().whole_sequences {
                    interpreted[s] = Sequence::default();
                }
                let place = format!("sequence {s} in step {number} on {}", model.manifest().target.name);
                truth.check(&mut interpreted[s], &tensors, (&got, index), &place)?;
            }
        }
        Ok(())
    })
}

fn dense(draw: &mut Draw, _: DType) -> Value {
    config(draw)
}

/// In bf16 a choice between two that are nearly as good is one of last bits, which nothing promises: there every token has all experts.
fn sparse(draw: &mut Draw, dtype: DType) -> Value {
    sparse_config(draw, dtype == DType::BF16)
}

#[test]
fn generated_sizes_agree_in_f32() {
    check_seeds(0, 8, |seed| check(seed, DType::F32, dense));
}

#[test]
fn generated_sizes_agree_in_bf16() {
    check_seeds(1000, 4, |seed| check(seed, DType::BF16, dense));
}

#[test]
fn generated_sizes_agree_with_caches_in_8_bits() {
    for (first, dtype) in [(4000, DType::F32), (5000, DType::BF16)] {
        check_seeds(first, 4, |seed| check_with(seed, (dtype, CacheType::Int8), dense));
        check_seeds(first + 500, 1, |seed| check_with(seed, (dtype, CacheType::Fp8), dense));
    }
}

/// Rounding that a last bit decides moves a choice of experts as well as bf16 does.
#[test]
fn generated_mixtures_latents_and_states_agree_with_caches_in_8_bits() {
    let all_experts = |draw: &mut Draw, _: DType| sparse_config(draw, true);
    for (first, dtype) in [(6000, DType::F32), (7000, DType::BF16)] {
        check_seeds(first, 4, |seed| check_with(seed, (dtype, CacheType::Int8), all_experts));
    }
}

#[test]
fn generated_mixtures_latents_and_states_agree_in_f32() {
    check_seeds(2000, 8, |seed| check(seed, DType::F32, sparse));
}

#[test]
fn generated_mixtures_latents_and_states_agree_in_bf16() {
    check_seeds(3000, 4, |seed| check(seed, DType::BF16, sparse));
}
