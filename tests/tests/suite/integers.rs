//! Caches in 8 bits, integers and floats, with a scale for each token and head: compiled code against the interpreter, whose casts say what is kept.

use xfc_codegen::driver::Options;
use xfc_lang::graph::DType;
use xfc_lang::graph::parse::parse;
use xfc_lang::passes::precision::CacheType;
use xfc_lang::passes::quantise::{Plan, prepare};
use xfc_runtime::artifact::Artifact;
use xfc_runtime::artifact::manifest::{Keep, Manifest};
use xfc_runtime::model::{Model, ModelOptions};
use xfc_runtime::step::InputData::Floats;
use xfc_runtime::weights::Checkpoint;
use xfc_tests::Result;
use xfc_tests::case::{Case, Layout};
use xfc_tests::compare::{Precision, Tier, compare};
use xfc_tests::compile::{Runner, artifact};
use xfc_tests::program::{Given, agree, agree_in_turn, manifest, of_wiring};

use crate::programs::floats;

/// The wiring's program with caches in integers of 8 bits.
pub(crate) fn kept(wiring: &str, dtype: DType) -> String {
    kept_as(wiring, dtype, CacheType::Int8)
}

fn kept_as(wiring: &str, dtype: DType, cache: CacheType) -> String {
    let text = of_wiring(wiring).unwrap_or_else(|e| panic!("{e}\n{wiring}"));
    let mut program = parse(&text).unwrap_or_else(|e| panic!("{e}"));
    prepare(&mut program, dtype, cache, &Plan::default()).unwrap_or_else(|e| panic!("{e}"));
    program.to_string()
}

/// Steps of every regime, over more than a block of pages; the last but one of zeros alone.
pub(crate) fn steps(width: usize) -> Vec<Vec<Given<'static>>> {
    let mut steps: Vec<_> = [37, 1, 6, 1, 113, 1, 8].map(|n| vec![("x", Floats(floats(n * width)))]).into();
    steps.insert(5, vec![("x", Floats(vec![0.0; 2 * width]))]);
    steps
}

/// Bytes kept of a token from step to step.
fn token_bytes(manifest: &Manifest) -> u64 {
    let lasting = manifest.caches.iter().filter(|group| group.keep != Keep::Step);
    lasting.flat_map(|group| &group.slots).map(|slot| slot.token_bytes).sum()
}

/// What is kept is a part of what is given, so that both sides round the same numbers. Scales are small: sums of many products in f32 depend on their order,
/// and large scores would carry that into the results.
#[test]
fn heads_of_any_width_and_group() {
    let shapes = [(4, 2, 5, 7), (2, 2, 1, 3), (16, 2, 80, 80), (3, 1, 33, 16), (1, 1, 300, 257)];
    for (i, (heads, kv, key, value)) in shapes.into_iter().enumerate() {
        let width = heads * key + kv * (key + value);
        let wiring = format!(
            "model(x: f32[tokens, {width}]) {{\n\
             \x20 all, k, v = parts(x, [{}, {}, {}])\n\
             \x20 q = split(all, {heads})\n\
             \x20 keys = cache(split(k, {kv}))\n\
             \x20 values = cache(split(v, {kv}))\n\
             \x20 one = attend(q, keys, values, causal)\n\
             \x20 two = attend(q, keys, values, causal and q_pos - k_pos < 7, score * 0.5, sinks = 0.5)\n\
             \x20 three = attend(q, cache(split(k * 2, {kv})), values, causal, scale = 0.01, softmax = false)\n\
             \x20 four = attend(q, cache(split(k + 1, {kv})), cache(split(v * 3, {kv})), window(23), scale = 0.02)\n\
             \x20 return {{one: merge(one), two: merge(two), three: merge(three), four: merge(four)}}\n}}",
            heads * key,
            kv * key,
            kv * value
        );
        for (cache, turn) in [(CacheType::Int8, i), (CacheType::Fp8, i + 1)] {
            let text = kept_as(&wiring, if i % 2 == 0 { DType::F32 } else { DType::BF16 }, cache);
            let agreed = if i == 0 { agree(&text, &steps(width)) } else { agree_in_turn(turn, &text, &steps(width)) };
            agreed.unwrap_or_else(|e| panic!("{e}\n{text}"));
            let manifest = manifest(&text).unwrap_or_else(|e| panic!("{e}"));
            let pair = (key + 2 + value + 2) as u64;
            assert_eq!(token_bytes(&manifest), kv as u64 * (2 * pair + (key + 2) as u64), "{text}");
        }
    }
}

/// Keys that are values too lie token by token, and are gone over row by row.
#[test]
fn keys_that_are_values() {
    for (heads, kv, dim) in [(4, 2, 6), (2, 1, 33)] {
        let width = heads * dim + kv * dim;
        let wiring = format!(
            "model(x: f32[tokens, {width}]) {{\n\
             \x20 all, both = parts(x, [{}, {}])\n\
             \x20 q = split(all, {heads})\n\
             \x20 kept = cache(split(both, {kv}))\n\
             \x20 one = attend(q, kept, kept, causal)\n\
             \x20 two = attend(q * 2, kept, kept, causal and q_pos % 2 == k_pos % 2, sinks = 0.5)\n\
             \x20 return {{one: merge(one), two: merge(two)}}\n}}",
            heads * dim,
            kv * dim
        );
        let text = kept(&wiring, DType::F32);
        agree(&text, &steps(width)).unwrap_or_else(|e| panic!("{e}\n{text}"));
        let text = kept_as(&wiring, DType::F32, CacheType::Fp8);
        agree_in_turn(heads, &text, &steps(width)).unwrap_or_else(|e| panic!("{e}\n{text}"));
    }
}

/// Numbers of E4M3, what lies between two of them, on both sides of the middle, and what is no number: rounded as the interpreter rounds them.
#[test]
fn numbers_are_rounded_to_the_nearest_float_of_8_bits() {
    let of = |byte: u8| match (i32::from(byte >> 3), f32::from(byte & 7) / 8.0) {
        (0, fraction) => fraction * 2f32.powi(-6),
        (exponent, fraction) => (1.0 + fraction) * 2f32.powi(exponent - 7),
    };
    let mut numbers = Vec::new();
    for byte in 0..0x7eu8 {
        let middle = (of(byte) + of(byte + 1)) / 2.0;
        numbers.extend([of(byte), middle.next_down(), -middle, middle, -middle.next_up()]);
    }
    // The largest of a row is 448 times its scale, which is a power of two but in the last rows.
    let rows = numbers.chunks(20).map(|some| [some, &[448.0; 21][some.len()..]].concat());
    let mut rows: Vec<Vec<f32>> = rows.collect();
    rows.extend([1e-30, 1e-39, 3e30, 1.001, 0.0, f32::NAN].map(|of| {
        let mut row = rows[9].clone();
        row.iter_mut().for_each(|x| *x *= of);
        row
    }));
    let mut infinite = rows[9].clone();
    infinite[3] = f32::INFINITY;
    rows.push(infinite);
    let text = "program \"p\" axes [tokens]\n\ngraph 0 \"model\" (%0 x: f32[tokens, 21]) {\n\
        \x20 %1 = cast %0 : keptfp8g21[tokens, 21]\n\
        \x20 %2 = cast %1 : f32[tokens, 21]\n\
        \x20 return y = %2\n}\n";
    agree(text, &[vec![("x", Floats(rows.concat()))]]).unwrap_or_else(|e| panic!("{e}"));
}

/// What the heads' keys and values are made from is kept, each part with a scale of its own, and made wide for sequences that begin.
#[test]
fn latents_are_kept_with_a_scale_for_each_part() {
    let wiring = "norm = rms_norm(1.0e-6)\n\
        turn = rotary({rope_theta: 10000.0, rope_type: 'default'}, pairs = 'interleaved')\n\
        model(x: f32[tokens, 24]) {\n\
        \x20 a = mla(5, none, 13, 7, 6, 9, norm, turn)\n\
        \x20 b = mla(11, 11, 48, 8, 4, 8, norm, turn, mask = window(9), with_bias = true)\n\
        \x20 h = x + a(x)\n\
        \x20 return {y: h + b(h)}\n}";
    for dtype in [DType::F32, DType::BF16] {
        let text = kept(wiring, dtype);
        let manifest = manifest(&text).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(token_bytes(&manifest), (13 + 2) + (6 + 2) + (48 + 2) + (4 + 2));
        if dtype == DType::F32 {
            agree(&text, &[5, 1, 1, 37, 3, 1].map(|n| vec![("x", Floats(floats(n * 24)))]))
                .unwrap_or_else(|e| panic!("{e}\n{text}"));
        }
    }
}

/// What is done to what was kept is kept as the rest is, and so is what no product reads.
#[test]
fn what_is_made_of_what_is_kept_is_not_rounded_again() {
    let wiring = "model(x: f32[tokens, 24], pull: f32[tokens]) {\n\
        \x20 q, kv = parts(x, [8, 16])\n\
        \x20 k, v = parts(cache(split(kv, 1)), [8, 8])\n\
        \x20 return {y: merge(attend(split(q, 1), k, v * 2, causal, score + cache(pull)))}\n}";
    let text = kept(wiring, DType::F32);
    let steps = [37, 1, 6].map(|n| vec![("x", Floats(floats(n * 24))), ("pull", Floats(floats(n)))]);
    agree(&text, &steps).unwrap_or_else(|e| panic!("{e}\n{text}"));
    let manifest = manifest(&text).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(token_bytes(&manifest), 4 * (8 + 8 + 1), "{text}");
}

/// A fork shares pages until one of both writes, and goes on as the same tokens alone would.
#[test]
fn forks_go_on_by_themselves() -> Result<()> {
    for name in ["llama3", "gemma3", "deepseek_v2"] {
        let case = Case::load(name)?;
        let options = Options { cache: Some(CacheType::Int8), ..Options::default() };
        let artifact = Artifact::from_bytes(artifact(&case, &["cpu"], &options)?)?;
        let folder = case.checkpoint(Layout::Single)?;
        let threads = ModelOptions { threads: Some(2), ..ModelOptions::default() };
        let model = Model::load(&artifact, &Checkpoint::open(folder.path())?, &threads)?;
        let mut runner = Runner::of(&case, &model, 3)?;
        let ids: Vec<i64> = (0..30).map(|i| 3 + (i * 7) % 40).collect();
        let alone = runner.add()?;
        // In the same steps: what latents are is told from whether a sequence begins.
        let mut want = runner.step(&[(alone, &ids[..19])])?.remove(0);
        want.extend(runner.step(&[(alone, &ids[19..])])?.remove(0));
        let first = runner.add()?;
        let mut got = runner.step(&[(first, &ids[..19])])?.remove(0);
        let second = runner.session.fork(first)?;
        runner.step(&[(first, &ids[..5])])?;
        got.extend(runner.step(&[(second, &ids[19..])])?.remove(0));
        let want: Vec<f64> = want.into_iter().map(f64::from).collect();
        compare(&format!("a fork of {name}"), &[want.len()], &got, &want, Tier::Model, Precision::F32)?;
    }
    Ok(())
}
