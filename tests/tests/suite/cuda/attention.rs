//! Attention on GPUs by tensor cores, against the interpreter.

use xfc_codegen::driver::Options;
use xfc_codegen::target;
use xfc_lang::graph::DType;
use xfc_lang::graph::parse::parse;
use xfc_lang::passes::precision::CacheType;
use xfc_lang::passes::quantise::{Plan, prepare};
use xfc_runtime::artifact::Artifact;
use xfc_runtime::session::SessionOptions;
use xfc_runtime::step::InputData::Floats;
use xfc_runtime::weights::Checkpoint;
use xfc_tests::Result;
use xfc_tests::case::{Case, Layout};
use xfc_tests::compare::{Precision, Tier};
use xfc_tests::compile::{Runner, artifact};
use xfc_tests::gpu;
use xfc_tests::program::{agree_to, agree_together, of_wiring};

use super::{TARGET, TEAMS};
use crate::programs::floats;

/// Query heads that fill no tile, or two; pages that are cut by the mask, or passed over; parts without keys; scores, sinks and values that are a part of the keys.
#[test]
fn tensor_cores_attend_in_any_shape() -> Result<()> {
    let heads = "model(x: f32[tokens, 240]) {\n\
        \x20 a, b, c = parts(x, [144, 48, 48])\n\
        \x20 q = split(a, 6)\n  k = cache(split(b, 2))\n  v = cache(split(c, 2))\n\
        \x20 all = attend(q, k, v, causal)\n\
        \x20 near = attend(q, k, v, causal and q_pos - k_pos < 40, sinks = 0.5)\n\
        \x20 some = attend(q, k, v, causal and (q_pos - k_pos) % 7 < 3, tanh(score) * 3, 0.4)\n\
        \x20 blocks = attend(q, k, v, causal and (q_pos // 32 - k_pos // 32) % 3 == 0)\n\
        \x20 slopes = attend(q, k, v, causal, score - (head + 1) * 0.1 * (q_pos - k_pos))\n\
        \x20 return {all: merge(all), near: merge(near), some: merge(some), blocks: merge(blocks), slopes: merge(slopes)}\n}";
    let many = "model(x: f32[tokens, 160]) {\n\
        \x20 a, b, c = parts(x, [144, 8, 8])\n\
        \x20 y = attend(split(a, 18), cache(split(b, 1)), cache(split(c, 1)), causal)\n\
        \x20 return {y: merge(y)}\n}";
    let wide = "model(x: f32[tokens, 512]) {\n\
        \x20 kept = cache(split(x, 1))\n\
        \x20 return {y: merge(attend(split(join(x, -x, x), 3), kept, kept, causal, score, 0.01))}\n}";
    // Two queries a thread, too long for its registers.
    let long_heads = "model(x: f32[tokens, 2400]) {\n\
        \x20 a, b, c = parts(x, [1920, 240, 240])\n\
        \x20 y = attend(split(join(a, b), 9), cache(split(b, 1)), cache(split(c, 1)), causal, score, 0.02)\n\
        \x20 return {y: merge(y)}\n}";
    // Too wide for registers, and for four warps.
    let odd = wide.replace("512", "320");
    let long = [70, 1, 3, 130, 1];
    for (wiring, width, steps) in [
        (heads, 240, &long[..]),
        (many, 160, &long),
        (wide, 512, &[5, 40, 1]),
        (&odd, 320, &[5, 40, 1]),
        (long_heads, 2400, &[40, 1]),
    ] {
        let mut program = parse(&of_wiring(wiring)?)?;
        prepare(&mut program, DType::BF16, CacheType::Float(DType::BF16), &Plan::default())?;
        let steps: Vec<_> = steps.iter().map(|n| vec![("x", Floats(floats(n * width)))]).collect();
        let bounds = (Tier::Value, Precision::BF16);
        agree_to(&program.to_string(), &steps, &[target::parse(TARGET)?], bounds)?;
    }
    Ok(())
}

/// Many rows by teams of warps: heads whose rows are parts of 128, 64 and 32 bytes, and values of other sizes; some that are no whole parts go the other way.
#[test]
fn teams_of_warps_attend_in_any_shape() -> Result<()> {
    let heads = "model(x: f32[tokens, 165]) {\n\
        \x20 odd, a, b, c = parts(x, [5, 96, 32, 32])\n\
        \x20 q = split(a, 6)\n  k = cache(split(b, 2))\n  v = cache(split(c, 2))\n\
        \x20 all = attend(q, k, v, causal)\n\
        \x20 near = attend(q, k, v, causal and q_pos - k_pos < 40, sinks = 0.5)\n\
        \x20 some = attend(q, k, v, causal and (q_pos - k_pos) % 7 < 3, tanh(score) * 3, 0.4)\n\
        \x20 return {odd: odd, all: merge(all), near: merge(near), some: merge(some)}\n}";
    let of = |[heads, kv_heads, key, value]: [usize; 4]| {
        let (q, k, v) = (heads * key, kv_heads * key, kv_heads * value);
        let wiring = format!(
            "model(x: f32[tokens, {}]) {{\n  a, b, c = parts(x, [{q}, {k}, {v}])\n\
             \x20 y = attend(split(a, {heads}), cache(split(b, {kv_heads})), cache(split(c, {kv_heads})), causal, score, 0.1)\n\
             \x20 return {{y: merge(y)}}\n}}",
            q + k + v
        );
        (wiring, q + k + v)
    };
    let mut all = vec![((heads.to_owned(), 165), vec![150, 1, 70])];
    let shapes = [[1, 1, 80, 48], [4, 1, 64, 16], [1, 1, 192, 128], [8, 1, 32, 96], [1, 1, 16, 256]];
    all.extend(shapes.map(|shape| (of(shape), vec![66, 65])));
    for ((wiring, width), steps) in all {
        let mut program = parse(&of_wiring(&wiring)?)?;
        prepare(&mut program, DType::BF16, CacheType::Float(DType::BF16), &Plan::default())?;
        let steps: Vec<_> = steps.iter().map(|n| vec![("x", Floats(floats(n * width)))]).collect();
        let bounds = (Tier::Value, Precision::BF16);
        agree_to(&program.to_string(), &steps, &[target::parse(TEAMS)?], bounds)
            .map_err(|e| format!("{e}\n{wiring}"))?;
    }
    Ok(())
}

/// Values that are a part of keys which many heads share: heads that fill tiles of 64 and that leave some empty, rows whose parts are of 128, 64 and 32 bytes, masks, scores and sinks; in steps
/// whose rows have several parts of the keys, some of them none, or one, and in long ones.
#[test]
fn teams_of_warps_attend_to_latents() -> Result<()> {
    let kept = "model(x: f32[tokens, 133]) {\n\
        \x20 odd, a = parts(x, [5, 128])\n\
        \x20 factors = param[64, 128]\n\
        \x20 kept = cache(split(a, 1))\n\
        \x20 q = repeat(split(a, 1), 64) * factors\n\
        \x20 all = attend(q, kept, kept, causal, score, 0.1)\n\
        \x20 near = attend(q, kept, kept, causal and q_pos - k_pos < 70, score, 0.1, sinks = 0.5)\n\
        \x20 some = attend(q, kept, kept, causal and (q_pos // 32 - k_pos) % 7 < 3, tanh(score) * 3 - head * 0.01, 0.1)\n\
        \x20 return {odd: odd, all: merge(all), near: merge(near), some: merge(some)}\n}";
    let of = |heads: usize, [latent, key]: [usize; 2]| {
        format!(
            "norm = rms_norm(1.0e-6)\nmodel(x: f32[tokens, 24]) {{\n\
             \x20 a = mla({heads}, none, {latent}, 16, {key}, 16, norm, identity)\n\
             \x20 return {{y: a(x)}}\n}}"
        )
    };
    let alone = |steps: &[usize]| steps.iter().map(|n| vec![Some(*n)]).collect::<Vec<_>>();
    let together = vec![
        vec![Some(100), Some(5), Some(34)],
        vec![Some(1), Some(1), Some(1)],
        vec![Some(3), None, Some(2)],
        vec![None, Some(40), Some(1)],
    ];
    for (wiring, width, steps) in [
        (kept.to_owned(), 133, alone(&[66, 3, 1])),
        (of(64, [128, 64]), 24, together),
        // Of so many values a team's are two products of different widths.
        (of(64, [384, 64]), 24, alone(&[70, 1])),
        (of(130, [64, 32]), 24, alone(&[70, 40, 2])),
        (of(40, [32, 16]), 24, alone(&[260, 66, 1])),
    ] {
        let mut program = parse(&of_wiring(&wiring)?)?;
        prepare(&mut program, DType::BF16, CacheType::Float(DType::BF16), &Plan::default())?;
        let given = |n: &Option<usize>| n.map(|n| vec![("x", Floats(floats(n * width)))]);
        let steps: Vec<Vec<_>> = steps.iter().map(|step| step.iter().map(given).collect()).collect();
        let bounds = (Tier::Value, Precision::BF16);
        agree_together(&program.to_string(), &steps, &[target::parse(TEAMS)?], bounds)
            .map_err(|e| format!("{e}\n{wiring}"))?;
    }
    Ok(())
}

/// Caches in 8 bits, integers and floats, of which few rows and many are multiplied alike: heads that are no whole chunks, masks, scores and sinks, and latents, whose rotary part has
/// scales of its own.
#[test]
fn tensor_cores_attend_to_bytes() -> Result<()> {
    let heads = "model(x: f32[tokens, 240]) {\n\
        \x20 a, b, c = parts(x, [144, 48, 48])\n\
        \x20 q = split(a, 6)\n  k = cache(split(b, 2))\n  v = cache(split(c, 2))\n\
        \x20 near = attend(q, k, v, causal and q_pos - k_pos < 40, sinks = 0.5)\n\
        \x20 some = attend(q, k, v, causal and (q_pos - k_pos) % 7 < 3, tanh(score) * 3, 0.4)\n\
        \x20 one, other = linear(24)\n\
        \x20 return {near: one(merge(near)), some: other(merge(some))}\n}";
    let many = "model(x: f32[tokens, 304]) {\n\
        \x20 a, b, c = parts(x, [144, 80, 80])\n\
        \x20 q = split(join(a, -a, a, -a, a, -a, a, -a, a, -a), 18)\n\
        \x20 y = attend(q, cache(split(b, 1)), cache(split(c, 1)), causal, score, 0.05)\n\
        \x20 out = linear(24)\n\
        \x20 return {y: out(merge(y))}\n}";
    let latents = "norm = rms_norm(1.0e-6)\nmodel(x: f32[tokens, 24]) {\n\
        \x20 a = mla(18, none, 64, 16, 24, 16, norm, identity)\n\
        \x20 return {y: a(x)}\n}";
    for (wiring, width, steps) in [(heads, 240, &[70, 1, 3][..]), (many, 304, &[40, 1]), (latents, 24, &[40, 35, 1])] {
        for cache in [CacheType::Int8, CacheType::Fp8] {
            let mut program = parse(&of_wiring(wiring)?)?;
            prepare(&mut program, DType::BF16, cache, &Plan::default())?;
            let steps: Vec<_> = steps.iter().map(|n| vec![("x", Floats(floats(n * width)))]).collect();
            let bounds = (Tier::Value, Precision::BF16);
            agree_to(&program.to_string(), &steps, &[target::parse(TARGET)?], bounds)
                .map_err(|e| format!("{e}, of {cache:?}\n{wiring}"))?;
        }
    }
    Ok(())
}

/// The last block of a row and its heads makes one of what others left, which nothing but the fences about its count lets it see; with rows that have one part and several, of
/// one sequence and of others, in steps that are repeated.
#[test]
fn the_last_part_makes_one_of_all() -> Result<()> {
    let wiring = "model(x: f32[tokens, 64]) {\n\
        \x20 a, b, c = parts(x, [32, 16, 16])\n\
        \x20 y = attend(split(a, 4), cache(split(b, 2)), cache(split(c, 2)), causal, score, 0.3)\n\
        \x20 return {y: merge(y)}\n}";
    let mut program = parse(&of_wiring(wiring)?)?;
    prepare(&mut program, DType::BF16, CacheType::Float(DType::BF16), &Plan::default())?;
    let given = |n: &Option<usize>| n.map(|n| vec![("x", Floats(floats(n * 64)))]);
    // Of 2 heads of keys and 4 warps: 64 parts of 128 tokens for one row, of several fewer.
    let steps = [
        [Some(300), Some(5)],
        [None, Some(1)],
        [Some(1), Some(1)],
        [Some(1), None],
        [Some(1), None],
        [Some(3), Some(130)],
    ];
    let steps: Vec<Vec<_>> = steps.iter().map(|step| step.iter().map(given).collect()).collect();
    for name in [TARGET, TEAMS] {
        agree_together(&program.to_string(), &steps, &[target::parse(name)?], (Tier::Value, Precision::BF16))?;
    }
    Ok(())
}

/// Without either fence the emulator finds that parts are read which nothing says are there.
#[test]
fn parts_that_are_told_of_without_a_fence_are_refused() -> Result<()> {
    let case = Case::load("llama3")?;
    let artifact = artifact(&case, &[TARGET], &Options { dtype: DType::BF16, ..Options::default() })?;
    let artifact = Artifact::from_bytes(artifact)?;
    let checkpoint = case.checkpoint(Layout::Single)?;
    let checkpoint = Checkpoint::open(checkpoint.path())?;
    // More than one part of 128 tokens.
    let prompt: Vec<i64> = case.prompt()?.iter().copied().cycle().take(150).collect();
    let options = SessionOptions { max_sequences: 1, context_tokens: Some(160), ..SessionOptions::default() };
    let count = "atom.relaxed.gpu.global.inc.u32";
    let fence = "fence.acq_rel.gpu;";
    let refused = |from: &str, to: &str| -> Result<Option<String>> {
        let change = |_: usize, text: &str| text.replace(from, to);
        let model = gpu::load_changed(&artifact, TARGET, &checkpoint, change)?;
        let mut runner = Runner::new(&model, 1)?;
        runner.session = model.session(&options)?;
        let sequence = runner.session.add_sequence()?;
        runner.step(&[(sequence, &prompt)])?;
        Ok(runner.step(&[(sequence, &prompt[..1])]).err().map(|error| error.to_string()))
    };
    assert_eq!(refused(count, count)?, None);
    for (from, to) in [(format!("{fence} {count}"), count), (format!("; {fence}"), ";")] {
        let error = refused(&from, to)?.ok_or("nothing is found wrong")?;
        assert!(error.contains("attention_bf16") && error.contains("race at global address"), "{error}");
    }
    Ok(())
}
