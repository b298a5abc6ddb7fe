//! Models that write from a source, compiled, against the interpreter: sizes that no tile and no page divides, several sequences with sources of
//! other lengths in a step, sources before and with the first tokens, forks, ways back, and what is refused.

use std::collections::BTreeMap;

use xfc_lang::graph::DType;
use xfc_lang::passes::precision::CacheType;
use xfc_lang::reference::Tensor;
use xfc_runtime::cache::SequenceId;
use xfc_runtime::session::{Session, SessionOptions};
use xfc_runtime::step::{InputData, StepInput, Wanted};
use xfc_tests::Result;
use xfc_tests::case::Case;
use xfc_tests::compile::{Runner, load};
use xfc_tests::generated::{Sequence, both_ways, check_seeds};
use xfc_tests::synthetic::{Draw, source_config};

/// Elements of the source and tokens that each of three sequences is given in each step; nothing: not in the step.
type Round = &'static [[(u64, u64); 3]];

const ROUNDS: [Round; 3] = [
    &[[(1, 0), (15, 3), (33, 1)], [(0, 5), (0, 1), (0, 0)], [(0, 1), (0, 17), (0, 1)], [(0, 33), (0, 1), (0, 2)]],
    &[[(16, 1), (0, 0), (40, 23)], [(0, 1), (17, 2), (0, 1)], [(0, 0), (0, 1), (0, 16)]],
    &[[(31, 2), (32, 0), (64, 0)], [(0, 1), (0, 1), (0, 1)], [(0, 1), (0, 40), (0, 1)]],
];

fn check(seed: u64, dtype: DType, cache: impl Into<CacheType>) -> Result<()> {
    let config = source_config(&mut Draw::new(seed));
    let shown = config.to_string();
    let types = (dtype, cache.into());
    run(config, types).map_err(|e| format!("seed {seed}, {types:?}, {shown}: {e}").into())
}

fn run(config: serde_json::Value, types: (DType, CacheType)) -> Result<()> {
    let vocabulary = config["vocab_size"].as_u64().unwrap_or(1);
    both_ways(config, types, |truth, model| {
        let options = SessionOptions { max_sequences: 3, context_tokens: Some(96), ..SessionOptions::default() };
        let mut session = model.session(&options)?;
        let mut draw = Draw::new(7);
        for (number, round) in ROUNDS.iter().enumerate() {
            let sequences: Vec<SequenceId> =
                (0..3).map(|_| session.add_sequence()).collect::<std::result::Result<_, _>>()?;
            let mut interpreted: [Sequence; 3] = Default::default();
            for (at, step) in round.iter().enumerate() {
                let mut ids = |n: u64| -> Vec<i64> { (0..n).map(|_| draw.below(vocabulary) as i64).collect() };
                let given: Vec<(usize, BTreeMap<String, Vec<i64>>)> = (0..3)
                    .map(|s| {
                        let parts = [("input_ids", ids(step[s].0)), ("decoder_input_ids", ids(step[s].1))];
                        (
                            s,
                            parts
                                .into_iter()
                                .filter(|(_, ids)| !ids.is_empty())
                                .map(|(n, ids)| (n.to_owned(), ids))
                                .collect(),
                        )
                    })
                    .filter(|(_, inputs): &(usize, BTreeMap<_, _>)| !inputs.is_empty())
                    .collect();
                let inputs: Vec<StepInput> = given
                    .iter()
                    .map(|(s, inputs)| StepInput {
                        sequence: sequences[*s],
                        inputs: inputs.iter().map(|(name, ids)| (name.clone(), InputData::Ints(ids.clone()))).collect(),
                        wanted: Wanted::All,
                    })
                    .collect();
                let got = session.step(&inputs)?;
                for (index, (s, inputs)) in given.iter().enumerate() {
                    let tensors =
                        inputs.iter().map(|(name, ids)| (name.clone(), Tensor::i64([ids.len()], ids.clone())));
                    let target = &model.manifest().target.name;
                    let place = format!("sequence {s} in step {at} of round {number} on {target}");
                    truth.check(&mut interpreted[*s], &tensors.collect(), (&got, index), &place)?;
                }
            }
            for sequence in sequences {
                session.free(sequence)?;
            }
            assert_eq!(session.cache().live_bytes(), 0, "everything is given back");
        }
        Ok(())
    })
}

#[test]
fn generated_sizes_agree_in_f32() {
    check_seeds(0, 4, |seed| check(seed, DType::F32, DType::F32));
}

#[test]
fn generated_sizes_agree_in_bf16() {
    check_seeds(1000, 2, |seed| check(seed, DType::BF16, DType::BF16));
}

#[test]
fn generated_sizes_agree_with_caches_in_8_bits() {
    check_seeds(2000, 1, |seed| check(seed, DType::F32, CacheType::Int8));
    check_seeds(3000, 1, |seed| check(seed, DType::BF16, CacheType::Int8));
}

/// The logits of tokens of a sequence that has its source.
fn tokens(session: &mut Session, sequence: SequenceId, ids: &[i64]) -> Result<Vec<f32>> {
    let inputs = vec![("decoder_input_ids".to_owned(), InputData::Ints(ids.to_vec()))];
    let outputs = session.step(&[StepInput { sequence, inputs, wanted: Wanted::All }])?;
    Ok(outputs.get("logits").ok_or("no logits")?.data.clone())
}

#[test]
fn a_fork_shares_its_source_and_a_way_back_keeps_it() -> Result<()> {
    let case = Case::load("t5")?;
    let mut runner = Runner::of(&case, &load(&case, "cpu", 2)?, 3)?;
    let prompt = case.prompt()?;
    let first = runner.add()?;
    let bytes = runner.session.cache().live_bytes();
    assert!(bytes > 0);
    let second = runner.session.fork(first)?;
    assert_eq!(runner.session.cache().live_bytes(), bytes, "a source is shared");
    let want = tokens(&mut runner.session, first, prompt)?;
    runner.session.free(first)?;
    assert_eq!(tokens(&mut runner.session, second, prompt)?, want, "its second owner keeps it");
    runner.session.truncate(second, 0)?;
    assert_eq!(runner.session.lengths(second)?, [0, 24]);
    assert_eq!(tokens(&mut runner.session, second, prompt)?, want, "written again from the same source");
    runner.session.free(second)?;
    assert_eq!(runner.session.cache().live_bytes(), 0);
    Ok(())
}

#[test]
fn sources_that_do_not_fit_are_refused() -> Result<()> {
    let case = Case::load("bart")?;
    let mut runner = Runner::new(&load(&case, "cpu", 1)?, 2)?;
    let (bare, given) = (runner.session.add_sequence()?, runner.session.add_sequence()?);
    let ints = |name: &str, ids: &[i64]| (name.to_owned(), InputData::Ints(ids.to_vec()));
    let step = |sequence, inputs| StepInput { sequence, inputs, wanted: Wanted::All };
    runner.session.step(&[step(given, vec![ints("input_ids", &[5, 6, 7])])])?;
    for (sequence, inputs, named) in [
        (bare, vec![ints("decoder_input_ids", &[2])], "the sequence has no source yet"),
        (bare, vec![ints("input_ids", &[]), ints("decoder_input_ids", &[2])], "the sequence has no source yet"),
        (bare, vec![], "the sequence has no source yet"),
        (bare, vec![ints("input_ids", &[320]), ints("decoder_input_ids", &[2])], "input_ids[0] is 320"),
        (bare, vec![ints("input_ids", &[1; 65])], "65 source, there is room for 64"),
        (given, vec![ints("input_ids", &[5]), ints("decoder_input_ids", &[2])], "has its source already"),
        (given, vec![ints("decoder_input_ids", &[])], "without tokens"),
        (given, vec![], "is missing"),
    ] {
        let error = runner.session.step(&[step(sequence, inputs)]).unwrap_err();
        assert!(error.to_string().contains(named), "{named} is not in: {error}");
        assert!(error.help().is_some(), "{error}");
    }
    // None of it has changed anything.
    assert_eq!((runner.session.lengths(bare)?, runner.session.lengths(given)?), (vec![0, 0], vec![0, 3]));
    Ok(())
}

#[test]
fn a_text_is_written_from_a_source() -> Result<()> {
    use xfc_runtime::generate::GenerateOptions;
    let case = Case::load("marian")?;
    let model = load(&case, "cpu", 2)?;
    let ids = |name: &str| -> Vec<u32> { case.inputs[name].iter().map(|id| *id as u32).collect() };
    let options = |start: &[u32]| GenerateOptions {
        max_tokens: Some(case.greedy_steps as u64),
        start_ids: start.to_vec(),
        ..GenerateOptions::default()
    };
    let mut session = model.session(&SessionOptions::default())?;
    let sequence = session.add_sequence()?;
    let error = session.generate(sequence, &ids("input_ids"), options(&[])).unwrap_err().to_string();
    assert!(error.contains("decoder_input_ids"), "{error}");
    let made = session.generate(sequence, &ids("input_ids"), options(&ids("decoder_input_ids")))?;
    let made: Vec<u32> = made.collect::<std::result::Result<_, _>>()?;
    let want: Vec<u32> = case.greedy_ids()?.iter().map(|id| *id as u32).collect();
    assert_eq!(made, want);
    // A sequence that has its source is continued like any other.
    session.truncate(sequence, 0)?;
    let again = session.generate(sequence, &ids("decoder_input_ids"), options(&[]))?;
    assert_eq!(again.collect::<std::result::Result<Vec<u32>, _>>()?, want);
    Ok(())
}
