//! Recurrences, compiled and compared with the interpreter: several sequences in a step, prompts in pieces, one token at a time.

use xfc_codegen::driver::{Options, compile};
use xfc_codegen::target;
use xfc_lang::graph::DType;
use xfc_lang::spec::parse_card;
use xfc_lang::{ElaborateOptions, Library, elaborate};
use xfc_runtime::artifact::Artifact;
use xfc_runtime::model::{Model, ModelOptions};
use xfc_runtime::session::SessionOptions;
use xfc_runtime::step::InputData::{self, Floats, Ints};
use xfc_runtime::step::{StepInput, Wanted};
use xfc_tests::Result;
use xfc_tests::compile::{TARGETS, sharing};
use xfc_tests::program::{Compared, Schedule, compare_with_interpreter, of_wiring};

use crate::programs::floats;

/// What is new in each step for each of three sequences: a prompt in pieces, one that comes later, one whose prompt is a token, then token by token.
const TOKENS: [[usize; 3]; 5] = [[5, 0, 1], [2, 4, 0], [1, 1, 1], [1, 1, 1], [0, 3, 1]];

/// Steps over inputs `(name, width)` of floats; of width 0, of integers below 3.
fn schedule(inputs: &[(&str, usize)]) -> Schedule {
    let mut seed = 0;
    let mut given = |(name, width): &(&str, usize), n: usize| {
        seed += 7;
        let data = match width {
            0 => Ints((0..n).map(|i| ((i * 5 + seed) % 3) as i64).collect()),
            width => Floats(floats(seed + n * width)[seed..].to_vec()),
        };
        ((*name).to_owned(), data)
    };
    let mut of = |n: usize| (n > 0).then(|| inputs.iter().map(|i| given(i, n)).collect::<Vec<(String, InputData)>>());
    TOKENS.iter().map(|step| step.iter().map(|n| of(*n)).collect()).collect()
}

fn agree(wiring: &str, inputs: &[(&str, usize)]) -> Result<()> {
    let compared = compare_with_interpreter(&of_wiring(wiring)?, &schedule(inputs), &TARGETS)?;
    assert_eq!(compared, Compared::Same);
    Ok(())
}

#[test]
fn memories_of_heads() -> Result<()> {
    // Five heads are parts; one head is one part; of a width of one; with vectors and a rest.
    for (heads, keys, values) in [(5, 3, 7), (1, 8, 19), (3, 1, 1), (2, 17, 32)] {
        let [k, v] = [heads * keys, heads * values];
        agree(
            &format!(
                "model(x: f32[tokens, {k}], k: f32[tokens, {k}], v: f32[tokens, {v}]) {{\n\
                 \x20 q = split(x, {heads})\n  k' = split(k, {heads}) * 0.3\n  v' = split(v, {heads})\n\
                 \x20 rate = sigmoid(sum(q))\n  decay = rows(sigmoid(k'))\n\
                 \x20 a = scan(linear_memory, 0.0, q, k', v', decay)\n\
                 \x20 b = scan(delta_memory, zeros({heads}, {keys}, {values}), q, k', v', 0.9 * rate, rate)\n\
                 \x20 return {{a: a, b: merge(b)}}\n}}"
            ),
            &[("x", k), ("k", k), ("v", v)],
        )?;
    }
    Ok(())
}

#[test]
fn convolutions_and_sums() -> Result<()> {
    for (width, kernel) in [(37, 4), (6, 2), (130, 3)] {
        agree(
            &format!(
                "model(x: f32[tokens, {width}], ids: i64[tokens]) {{\n  conv1d = causal_conv({kernel}, true)\n  is_token = where(ids == 1, 0, 1)\n\
                 \x20 count = cumsum(is_token) * is_token + 1\n  table = param[40, {width}]\n\
                 \x20 return {{y: conv1d(x) + gather(table, int(count)), sums: cumsum(x)}}\n}}"
            ),
            &[("x", width), ("ids", 0)],
        )?;
    }
    Ok(())
}

/// A selective state space: decays computed from weights in the step, channels with a state each, several layers that are one body.
#[test]
fn selective_states_in_layers() -> Result<()> {
    agree(
        "selective(states: int)(x, b, c) {\n  A_log = param[width(x), states]\n  D = param[width(x)]\n  rate = -exp(A_log)\n\
         \x20 step(s, x, b, c) {\n    dt = softplus(x)\n    s' = exp(einsum('d, dn -> dn', dt, rate)) * s + einsum('d, n -> dn', dt * x, b)\n\
         \x20   return s', einsum('dn, n -> d', s', c) + D * x\n  }\n  return scan(step, zeros(width(x), states), x, b, c)\n}\n\
         layer(x) {\n  mixer = selective(16)\n  proj = linear(32)\n  b, c = parts(tanh(0.1 * proj(x)), [16, 16])\n  return x + 0.1 * mixer(tanh(x), b, c)\n}\n\
         model(x: f32[tokens, 42]) {\n  layers = [layer for i in 0..2]\n  return {y: layers(x)}\n}",
        &[("x", 42)],
    )
}

/// States that all depend on one another, learned starts, several results, and steps that mix all of a state.
#[test]
fn several_states_that_mix() -> Result<()> {
    agree(
        "model(x: f32[tokens, 12]) {\n  start = param[12]\n\
         \x20 step(a, n, m, x) {\n    a' = 0.5 * a + x * sigmoid(sum(a))\n    n' = n + 1\n    m' = 0.5 * (transpose(m) + split(x, 1))\n\
         \x20   return a', n', m', a' / n', sum(merge(m')), x\n  }\n\
         \x20 y, z, same = scan(step, [start, 0, zeros(12, 12)], x)\n  return {y: y, z: z, same: same}\n}",
        &[("x", 12)],
    )
}

/// A forked sequence goes on by itself, and a sequence goes back to where the last step began, and no further.
#[test]
fn forks_and_steps_taken_back() -> Result<()> {
    let text = of_wiring("model(x: f32[tokens, 6]) { return {y: cumsum(x)} }")?;
    let artifact = xfc_tests::program::artifact(&text)?;
    let model = Model::load(&artifact, &xfc_runtime::weights::Checkpoint::random(3), &ModelOptions::default())?;
    let mut session = model.session(&SessionOptions { max_sequences: 2, ..SessionOptions::default() })?;
    let step = |sequence, x: f32| xfc_runtime::step::StepInput {
        sequence,
        inputs: vec![("x".to_owned(), Floats(vec![x; 6]))],
        wanted: xfc_runtime::step::Wanted::All,
    };
    let one = session.add_sequence()?;
    let last = |session: &mut xfc_runtime::session::Session, s, x| -> Result<f32> {
        let outputs = session.step(&[step(s, x)])?;
        Ok(outputs.get("y").and_then(|o| o.data.last().copied()).unwrap_or(f32::NAN))
    };
    assert_eq!(last(&mut session, one, 1.0)?, 1.0);
    assert_eq!(last(&mut session, one, 2.0)?, 3.0);
    let two = session.fork(one)?;
    assert_eq!((last(&mut session, two, 10.0)?, last(&mut session, one, 4.0)?), (13.0, 7.0));
    session.truncate(one, 2)?;
    assert_eq!(last(&mut session, one, 5.0)?, 8.0);
    let error = session.truncate(one, 1).expect_err("the state is gone").to_string();
    assert!(error.contains("beginning of the last step, position 2"), "{error}");
    session.truncate(one, 0)?;
    assert_eq!((last(&mut session, one, 1.5)?, last(&mut session, two, 1.0)?), (1.5, 14.0));
    Ok(())
}

/// Weights of bf16 leave states in f32: 300 ones add up, in pieces too, where bf16 would stay at 256.
#[test]
fn states_stay_in_f32_among_narrow_weights() -> Result<()> {
    let card = "xfc: 1\nname: Test\nsizes: {}\nwiring: |\n  model(x: f32[tokens, 6]) {\n    proj = linear(6)\n    sums = cumsum(x)\n    return {sums: sums, y: proj(sums)}\n  }\n";
    let model = elaborate(&parse_card("test.yaml", card, &Library::embedded())?, &ElaborateOptions::default())?;
    let options = Options { dtype: DType::BF16, ..sharing() };
    let artifact = Artifact::from_bytes(compile(&model, "sums", &[target::parse("cpu")?], &options)?.bytes)?;
    let model = Model::load(&artifact, &xfc_runtime::weights::Checkpoint::random(3), &ModelOptions::default())?;
    let mut session = model.session(&SessionOptions { context_tokens: Some(300), ..SessionOptions::default() })?;
    let sequence = session.add_sequence()?;
    let mut last = Vec::new();
    for n in [200, 99, 1] {
        let inputs = vec![("x".to_owned(), Floats(vec![1.0; 6 * n]))];
        let outputs = session.step(&[StepInput { sequence, inputs, wanted: Wanted::All }])?;
        let sums = &outputs.get("sums").ok_or("there is no output `sums`")?.data;
        last.push(sums[sums.len() - 1]);
    }
    assert_eq!(last, [200.0, 299.0, 300.0]);
    Ok(())
}

/// One vector a sequence of whole sequences, several in a step.
#[test]
fn pooled_tokens() -> Result<()> {
    let text = of_wiring(
        "model(x: f32[tokens, 19], ids: i64[tokens]) {\n  mean = mean_token\n  at = token_where\n  largest = token_of_largest\n\
         \x20 return {mean: mean(x, where(ids == 0, 0, 1) + 0.5), end: at(x, ids == 2), largest: largest(x, ids), last: last(x * 2)}\n}",
    )?;
    let whole = vec![schedule(&[("x", 19), ("ids", 0)])[1].clone(), schedule(&[("x", 19), ("ids", 0)])[2].clone()];
    assert_eq!(compare_with_interpreter(&text, &whole, &TARGETS)?, Compared::Same);
    Ok(())
}

/// Scores that are the weights of values: decayed, through a sigmoid, seen through a window, of groups of heads.
#[test]
fn attention_without_a_softmax() -> Result<()> {
    agree(
        "model(x: f32[tokens, 24], k: f32[tokens, 12], v: f32[tokens, 10]) {\n  q = split(x, 4)\n  keys = cache(split(k, 2))\n  values = cache(split(v, 2))\n\
         \x20 a = attend(q, keys, values, causal, score * 0.75 ^ (q_pos - k_pos), softmax = false)\n\
         \x20 b = attend(q, keys, values, window(3), sigmoid(score - log(q_pos + 1.0)), scale = 0.5, softmax = false)\n\
         \x20 return {a: a, b: b}\n}",
        &[("x", 24), ("k", 12), ("v", 10)],
    )
}
