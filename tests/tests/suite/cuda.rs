//! Code for GPUs: the PTX of the artifacts, run by an emulator, against other implementations.

mod attention;

use xfc_codegen::driver::Options;
use xfc_lang::graph::DType;
use xfc_lang::graph::parse::parse;
use xfc_lang::passes::precision::CacheType;
use xfc_lang::passes::quantise::{Plan, prepare};
use xfc_runtime::artifact::Artifact;
use xfc_runtime::model::{Model, ModelOptions};
use xfc_runtime::step::InputData::Floats;
use xfc_runtime::weights::Checkpoint;
use xfc_tests::Result;
use xfc_tests::case::{Case, Layout};
use xfc_tests::compare::{Precision, Tier, compare, measure};
use xfc_tests::compile::{Runner, artifact};
use xfc_tests::gpu;
use xfc_tests::program::{agree_on, of_wiring};

use crate::cases::{every_case, largest};
use crate::mixtures::Mixture;
use crate::programs::floats;
use crate::quantised::{all_blocks, held, product};

/// What every GPU that code is generated for runs.
const TARGET: &str = "cuda:sm_80";

/// Where four warps multiply together out of shared memory.
const TEAMS: &str = "cuda:sm_90a";

/// Cases of attention with windows, latents, sinks and experts, of scans, and of a decoder that looks at an encoder.
const KINDS: [&str; 7] = ["llama3", "gemma3", "deepseek_v3", "gpt_oss", "mamba2", "qwen3_next", "t5"];

/// Prints each case's largest difference under `--nocapture`.
#[test]
#[expect(clippy::print_stdout, reason = "a measurement for people, hidden unless asked for")]
fn outputs_and_greedy_tokens_match() {
    every_case(|case| {
        let mut runner = Runner::new(&gpu::load_case(case, TARGET, &Options::default())?, 1)?;
        let sequence = runner.session.add_sequence()?;
        let outputs = runner.outputs_of(sequence, case)?;
        for (name, golden) in case.outputs()? {
            let got = outputs.get(&name).ok_or_else(|| format!("there is no output `{name}`"))?;
            compare(&name, &golden.shape, got, &golden.values, Tier::Model, Precision::F32)?;
            let furthest = measure(got, &golden.values, Tier::Model, Precision::F32).largest();
            println!("{}: {furthest:.1e} in {name}", case.name);
        }
        if case.greedy_steps == 0 {
            return Ok(());
        }
        let golden = case.golden("greedy.logits")?;
        let vocabulary = golden.shape[1];
        let mut logits = outputs.get("logits").ok_or("there are no logits")?.clone();
        let mut ids = Vec::new();
        // Some tokens one by one: all of them take an emulator minutes.
        for want in golden.values.chunks(vocabulary).take(4) {
            let last = logits.split_off(logits.len() - vocabulary);
            compare("greedy.logits", &[1, vocabulary], &last, want, Tier::Model, Precision::F32)?;
            ids.push(largest(&last));
            logits = runner.step(&[(sequence, &ids[ids.len() - 1..])])?.remove(0);
        }
        if case.greedy_ids()?[..ids.len()] != ids {
            return Err(format!("generated {ids:?}, expected {:?}", case.greedy_ids()?).into());
        }
        Ok(())
    });
}

/// Code for architectures that others do not run, for which LLVM has instructions of its own and launches overlap: as the case says, and as far from what every GPU
/// runs in bf16 as the order of sums explains.
#[test]
fn other_architectures_compute_the_same() -> Result<()> {
    for (name, target) in [("llama3", "cuda:sm_89"), ("deepseek_v3", "cuda:sm_100"), ("gemma3", "cuda:sm_100")] {
        let case = Case::load(name)?;
        let outputs = |target: &str, options: &Options| -> Result<_> {
            let mut runner = Runner::new(&gpu::load_case(&case, target, options)?, 1)?;
            let sequence = runner.session.add_sequence()?;
            runner.outputs_of(sequence, &case)
        };
        let (exact, bf16) = (Options::default(), Options { dtype: DType::BF16, ..Options::default() });
        let got = outputs(target, &exact)?;
        for (output, golden) in case.outputs()? {
            let got = got.get(&output).ok_or_else(|| format!("there is no output `{output}`"))?;
            compare(&output, &golden.shape, got, &golden.values, Tier::Model, Precision::F32)?;
        }
        let (got, want) = (outputs(target, &bf16)?, outputs(TARGET, &bf16)?);
        let (got, want) = (&got["logits"], &want["logits"]);
        compare(name, &[want.len()], got, want, Tier::Accumulate(1024), Precision::F32)?;
    }
    Ok(())
}

#[test]
fn pieces_of_several_sequences_are_the_whole_of_each() -> Result<()> {
    for name in KINDS {
        let case = Case::load(name)?;
        let prompt = case.prompt()?;
        let n = prompt.len().min(14);
        let prompt = &prompt[..n];
        let reversed: Vec<i64> = prompt.iter().rev().copied().collect();
        let texts = [prompt, &reversed];
        let mut runner = Runner::of(&case, &gpu::load_case(&case, TARGET, &Options::default())?, 3)?;
        let mut want = Vec::new();
        for text in texts {
            let sequence = runner.add()?;
            want.push(runner.step(&[(sequence, text)])?.remove(0));
            runner.session.free(sequence)?;
        }
        let sequences = [runner.add()?, runner.add()?];
        let mut got = [Vec::new(), Vec::new()];
        // The second is given more than the first, and is done sooner.
        let cuts: [&[usize]; 2] = [&[0, 1, 4, n - 1, n], &[0, n - 3, n]];
        for step in 0..4 {
            let part = |s: usize| Some(&texts[s][*cuts[s].get(step)?..*cuts[s].get(step + 1)?]);
            let parts: Vec<_> = (0..2).filter_map(|s| Some((s, part(s)?))).collect();
            let given: Vec<_> = parts.iter().map(|(s, ids)| (sequences[*s], *ids)).collect();
            for ((s, _), logits) in parts.iter().zip(runner.step(&given)?) {
                got[*s].extend(logits);
            }
        }
        for s in 0..2 {
            let what = format!("{name}: logits of sequence {s}");
            compare(&what, &[got[s].len()], &got[s], &want[s], Tier::Accumulate(1024), Precision::F32)?;
        }
    }
    Ok(())
}

/// Types of fewer bits: as far from the same model on a processor as another order of sums explains.
#[test]
fn narrow_types_are_those_of_a_processor() -> Result<()> {
    let bf16 = Options { dtype: DType::BF16, ..Options::default() };
    let quantised = |plan: &str| -> Result<Options> { Ok(Options { quant: plan.parse()?, ..bf16.clone() }) };
    let all = [
        ("bf16", bf16.clone()),
        ("int8", quantised("int8:g32")?),
        ("uint4", quantised("uint4:g64")?),
        ("fp8", quantised("fp8")?),
        ("int8 caches", Options { cache: Some(CacheType::Int8), ..bf16.clone() }),
        ("fp8 caches", Options { cache: Some(CacheType::Fp8), ..bf16.clone() }),
    ];
    for name in ["llama3", "deepseek_v3", "mixtral"] {
        let case = Case::load(name)?;
        let checkpoint = case.checkpoint(Layout::Single)?;
        let checkpoint = Checkpoint::open(checkpoint.path())?;
        let is_long = std::env::var_os("XFC_SEEDS").is_some();
        for (what, options) in &all {
            // A quick run takes all forms of one model, those of weights of a mixture, and few of latents, which are the slowest to emulate.
            let is_taken = match name {
                "llama3" => true,
                "mixtral" => is_long || ["bf16", "int8", "fp8"].contains(what),
                _ => ["bf16", "int8 caches"].contains(what) || (is_long && !what.starts_with("fp8")),
            };
            if !is_taken {
                continue;
            }
            let both = Artifact::from_bytes(artifact(&case, &["cpu:x86-64-v3", TARGET], options)?)?;
            let of = |target: &str| ModelOptions { target: Some(target.to_owned()), ..ModelOptions::default() };
            let models =
                [Model::load(&both, &checkpoint, &of("cpu:x86-64-v3"))?, gpu::load(&both, TARGET, &checkpoint)?];
            let mut logits = Vec::new();
            for model in &models {
                let mut runner = Runner::new(model, 1)?;
                let sequence = runner.session.add_sequence()?;
                let (first, rest) = case.prompt()?.split_at(9);
                let mut of_model = runner.step(&[(sequence, first)])?.remove(0);
                of_model.extend(runner.step(&[(sequence, &rest[..1])])?.remove(0));
                logits.push(of_model);
            }
            // A token whose experts are nearly tied may be given others: one may be of another opinion.
            let mut ties = usize::from(name == "mixtral");
            let vocabulary = logits[0].len() / 10;
            for (token, (got, want)) in logits[1].chunks(vocabulary).zip(logits[0].chunks(vocabulary)).enumerate() {
                let what = format!("token {token} of {name} in {what}");
                let agree = compare(&what, &[vocabulary], got, want, Tier::Model, Precision::BF16);
                if agree.is_err() && ties > 0 {
                    ties -= 1;
                    continue;
                }
                agree?;
            }
        }
    }
    Ok(())
}

/// Rows and columns that fill no tile, inputs that fill no piece of 16 bytes or begin between two, and products that share their inputs.
#[test]
fn tensor_cores_multiply_any_shape() -> Result<()> {
    let wiring = "model(x: f32[tokens, 83]) {\n\
        \x20 a, b, c = parts(x, [40, 5, 38])\n\
        \x20 wide = linear(100)\n  odd = linear(33)\n  gate = linear(37)\n  up = linear(37)\n\
        \x20 q = linear(34)\n  k = linear(34)\n  v = linear(34)\n  back = linear(3)\n\
        \x20 return {wide: wide(a), odd: odd(b), gated: silu(gate(c)) * up(c), all: q(x) + k(x) * v(x), back: back(wide(a)) + 1}\n}";
    let mut program = parse(&of_wiring(wiring)?)?;
    prepare(&mut program, DType::BF16, CacheType::Float(DType::BF16), &Plan::default())?;
    let steps: Vec<_> = [9, 131, 8, 1, 64].map(|n| vec![("x", Floats(floats(n * 83)))]).into();
    agree_on(&program.to_string(), &steps, &[TARGET])
}

/// The same by teams of warps: rows that leave a team without any, stages that are not whole, and more of them than there are places.
#[test]
fn teams_of_warps_multiply_any_shape() -> Result<()> {
    let wiring = "model(x: f32[tokens, 683]) {\n\
        \x20 a, b, c, d = parts(x, [40, 5, 38, 600])\n\
        \x20 wide = linear(100)\n  odd = linear(33)\n  gate = linear(37)\n  up = linear(37)\n\
        \x20 q = linear(34)\n  k = linear(34)\n  v = linear(34)\n  back = linear(3)\n  long = linear(70, true)\n\
        \x20 return {wide: wide(a), odd: odd(b), gated: silu(gate(c)) * up(c), all: q(x) + k(x) * v(x), back: back(wide(a)) + 1, long: long(d)}\n}";
    let mut program = parse(&of_wiring(wiring)?)?;
    prepare(&mut program, DType::BF16, CacheType::Float(DType::BF16), &Plan::default())?;
    let steps: Vec<_> = [131, 65, 192].map(|n| vec![("x", Floats(floats(n * 683)))]).into();
    agree_on(&program.to_string(), &steps, &[TEAMS])
}

/// Tiles of 256 columns, of one matrix and of two.
#[test]
fn teams_of_warps_multiply_many_columns() -> Result<()> {
    let wiring = "model(x: f32[tokens, 70]) {\n  wide = linear(8200)\n  gate = linear(4100)\n  up = linear(4100)\n\
        \x20 return {wide: wide(x), gated: silu(gate(x)) * up(x)}\n}";
    let mut program = parse(&of_wiring(wiring)?)?;
    prepare(&mut program, DType::BF16, CacheType::Float(DType::BF16), &Plan::default())?;
    agree_on(&program.to_string(), &[vec![("x", Floats(floats(66 * 70)))]], &[TEAMS])
}

/// Experts that no token chose, some, or all of them: a team without rows, and several tiles of one block of threads.
#[test]
fn teams_of_warps_multiply_rows_of_experts() -> Result<()> {
    let mixture = Mixture { experts: 5, chosen: 2, width: 40, inner: 70 };
    let steps = [mixture.step(90, None), mixture.step(150, Some(4))];
    agree_on(&mixture.program("bf16"), &steps, &[TEAMS])
}

/// Prompts that together are long enough for teams of warps: as far from a processor as another order of sums explains.
#[test]
fn long_prompts_are_those_of_a_processor() -> Result<()> {
    let bf16 = Options { dtype: DType::BF16, ..Options::default() };
    for name in ["llama3", "mixtral"] {
        let case = Case::load(name)?;
        let checkpoint = case.checkpoint(Layout::Single)?;
        let checkpoint = Checkpoint::open(checkpoint.path())?;
        let both = Artifact::from_bytes(artifact(&case, &["cpu:x86-64-v3", TEAMS], &bf16)?)?;
        let of = |target: &str| ModelOptions { target: Some(target.to_owned()), ..ModelOptions::default() };
        let models = [Model::load(&both, &checkpoint, &of("cpu:x86-64-v3"))?, gpu::load(&both, TEAMS, &checkpoint)?];
        let prompt: Vec<i64> = case.prompt()?.iter().copied().cycle().take(80).collect();
        let mut logits = Vec::new();
        for model in &models {
            let mut runner = Runner::new(model, 2)?;
            let sequences = [runner.session.add_sequence()?, runner.session.add_sequence()?];
            let (first, second) = prompt.split_at(37);
            logits.push(runner.step(&[(sequences[0], first), (sequences[1], second)])?.concat());
        }
        compare(name, &[logits[0].len()], &logits[1], &logits[0], Tier::Model, Precision::BF16)?;
    }
    Ok(())
}

/// Weights in blocks of every form and group, with groups that are not whole, and in the second size fewer inputs than one group has.
#[test]
fn tensor_cores_multiply_bytes() -> Result<()> {
    for (i, blocks) in all_blocks().enumerate() {
        let (inputs, outputs) = [(203, 70), (7, 33), (256, 5)][i % 3];
        let rows = if i % 3 == 0 { &[9, 17, 65, 130][..] } else { &[17, 130] };
        let steps: Vec<_> = rows.iter().map(|n| vec![("x", Floats(floats(n * inputs)))]).collect();
        let text = product(blocks, inputs, outputs);
        agree_on(&text, &steps, &[TARGET]).map_err(|e| format!("{e}\n{text}"))?;
    }
    Ok(())
}

/// Products of one, two and three matrices with what follows them, of weights in blocks.
#[test]
fn tensor_cores_multiply_bytes_of_several_matrices() -> Result<()> {
    // No product of what another gives: its last bit may round to another integer.
    let wiring = "model(x: f32[tokens, 72]) {\n\
        \x20 gate = linear(150)\n  up = linear(150)\n  q = linear(34, true)\n  k = linear(34, true)\n  v = linear(34, true)\n  narrow = linear(24)\n\
        \x20 return {gated: silu(gate(x)) * up(x) + 1, all: q(x) + k(x) * v(x), heads: merge(narrow(split(x, 3)))}\n}";
    let steps: Vec<_> = [65, 9, 130].map(|n| vec![("x", Floats(floats(n * 72)))]).into();
    for plan in ["int8:g64", "uint8:g128", "int4:g128", "uint4:g32,narrow=int8:g128,k=none", "fp8,narrow=fp8:g32"] {
        let text = held(wiring, DType::F32, plan);
        agree_on(&text, &steps, &[TARGET]).map_err(|e| format!("{e}\n{text}"))?;
    }
    Ok(())
}

/// Experts that no token chose, one, or all of them, in bf16 and in blocks: more choices than a block of threads looks at in one go, and fewer.
#[test]
fn tensor_cores_multiply_rows_of_experts() -> Result<()> {
    let mixtures = [
        (Mixture { experts: 5, chosen: 2, width: 40, inner: 70 }, [9, 150]),
        (Mixture { experts: 40, chosen: 3, width: 65, inner: 37 }, [17, 350]),
    ];
    for (i, (mixture, rows)) in mixtures.into_iter().enumerate() {
        let spread = rows.map(|n| mixture.step(n, None));
        let all_to_one = rows.map(|n| mixture.step(n, Some(mixture.experts - 1)));
        let steps = [&spread[..], &all_to_one[..]].concat();
        agree_on(&mixture.program("bf16"), &steps, &[TARGET])?;
        for plan in [["int8:g32", "uint4:g64", "fp8"], ["int4:g32", "uint8:g128", "fp8:g32"]][i] {
            let mut program = parse(&mixture.program("f32"))?;
            prepare(&mut program, DType::F32, CacheType::Float(DType::F32), &plan.parse()?)?;
            let text = program.to_string();
            assert!(text.contains(if plan.starts_with("fp8") { ": fp8" } else { ": token8" }), "{text}");
            agree_on(&text, &steps, &[TARGET]).map_err(|e| format!("{plan}: {e}\n{text}"))?;
        }
    }
    Ok(())
}

/// Steps of few rows, whose kernels for GPUs where launches overlap are those of others but for what they do before they wait: to the last bit the same.
#[test]
fn launches_that_overlap_compute_the_same() -> Result<()> {
    let bf16 = Options { dtype: DType::BF16, ..Options::default() };
    let quantised = |plan: &str| -> Result<Options> { Ok(Options { quant: plan.parse()?, ..bf16.clone() }) };
    let all = [
        ("llama3", bf16.clone()),
        ("llama3", quantised("int4:g32")?),
        ("llama3", quantised("fp8")?),
        ("mixtral", bf16.clone()),
        ("qwen3_next", Options::default()),
    ];
    for (name, options) in all {
        let case = Case::load(name)?;
        let mut logits = Vec::new();
        for target in [TARGET, TEAMS] {
            let mut runner = Runner::new(&gpu::load_case(&case, target, &options)?, 1)?;
            let sequence = runner.session.add_sequence()?;
            let (first, rest) = case.prompt()?.split_at(9);
            let steps = [first, &rest[..2], &rest[2..3]];
            logits.push(steps.map(|ids| runner.step(&[(sequence, ids)])));
        }
        let [plain, overlapping] =
            [0, 1].map(|i| logits[i].iter().map(|step| step.as_ref().map_err(ToString::to_string)));
        for (step, (plain, overlapping)) in plain.zip(overlapping).enumerate() {
            assert!(plain? == overlapping?, "{name}, step {step}");
        }
    }
    Ok(())
}

/// A kernel that does not wait for the launches before it is found out, whichever it is.
#[test]
fn a_kernel_that_does_not_wait_is_refused() -> Result<()> {
    let case = Case::load("llama3")?;
    let options = Options { dtype: DType::BF16, ..Options::default() };
    let artifact = Artifact::from_bytes(artifact(&case, &[TEAMS], &options)?)?;
    let checkpoint = case.checkpoint(Layout::Single)?;
    let checkpoint = Checkpoint::open(checkpoint.path())?;
    let refused = |changed: Option<usize>, to: &str| -> Result<Option<String>> {
        let change = |number: usize, text: &str| match changed == Some(number) {
            true => text.replace("griddepcontrol.wait;", to),
            false => text.to_owned(),
        };
        let model = gpu::load_changed(&artifact, TEAMS, &checkpoint, change)?;
        let mut runner = Runner::new(&model, 1)?;
        let sequence = runner.session.add_sequence()?;
        Ok(runner.step(&[(sequence, &case.prompt()?[..1])]).err().map(|error| error.to_string()))
    };
    assert_eq!(refused(None, "")?, None);
    let variant = artifact.select(&gpu::host(), Some(TEAMS))?;
    let mut found = 0;
    for (number, kernel) in variant.manifest().kernels.iter().enumerate() {
        assert!(kernel.waits, "{}", kernel.name);
        // Of those that a step of one row has; the first launch has none to wait for.
        if let Some(error) = refused(Some(number), "")? {
            assert!(error.contains(&kernel.name) && error.contains("before griddepcontrol.wait"), "{error}");
            found += 1;
        }
    }
    let manifest = variant.manifest();
    let used = manifest
        .launches
        .iter()
        .skip(1)
        .map(|launch| launch.variants[0].kernel)
        .collect::<std::collections::BTreeSet<_>>();
    assert_eq!(found, used.len());
    Ok(())
}
