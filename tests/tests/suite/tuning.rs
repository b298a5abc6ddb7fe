//! Schedules from profiles: whatever they set, results stay; `xfc tune` writes them, and compiling reads them. No speed is tested.

use std::fs;
use std::sync::Arc;

use serde_json::{Value, json};
use xfc_check::layers::{Heads, Layer, Mixture};
use xfc_codegen::target::profile::Profile;
use xfc_codegen::target::{self, Target};
use xfc_lang::graph::DType;
use xfc_lang::graph::blocks::{BlockForm, Blocks};
use xfc_lang::graph::parse::parse;
use xfc_lang::passes::precision::CacheType;
use xfc_lang::passes::quantise::{Plan, prepare};
use xfc_runtime::device::cpu::ThreadPool;
use xfc_runtime::step::InputData::Floats;
use xfc_tests::Result;
use xfc_tests::command::Shell;
use xfc_tests::program::{agree_with, of_wiring};

use crate::programs::floats;

/// One product, one of two parts, one that experts are chosen for, and an attention, on sizes that no tile divides.
const WIRING: &str = "model(x: f32[tokens, 70]) {\n\
    \x20 mlp = gated_mlp(131, silu)\n  wide = linear(72)\n  moe = moe(5, 2, gated_mlp(37, silu))\n  q_proj = linear(60)\n  k_proj, v_proj = linear(20)\n\
    \x20 h = x + mlp(x)\n\
    \x20 seen = attend(split(q_proj(h), 6), cache(split(k_proj(h), 2)), cache(split(v_proj(h), 2)), causal)\n\
    \x20 return {y: wide(h), seen: merge(seen), mixed: moe(x)}\n}";

/// A profile that sets the same for every family there is.
fn profile(target: &str, operand: &str, sets: [&Value; 3], attention: &Value) -> Result<Profile> {
    let regimes = ["one", "few", "many"];
    let products: Vec<Value> = [1, 2]
        .iter()
        .flat_map(|parts| {
            regimes
                .iter()
                .zip(sets)
                .map(move |(rows, set)| json!({"operand": operand, "parts": parts, "rows": rows, "set": set}))
        })
        .collect();
    let kinds = [("f32", "f32"), ("bf16", "bf16"), ("f32", "bf16"), ("f32", "int8"), ("bf16", "int8")];
    let attention: Vec<Value> = kinds
        .iter()
        .map(|(query, kept)| json!({"query": query, "kept": kept, "rows": "many", "set": attention}))
        .collect();
    let text = json!({
        "profile": 1, "xfc": "xfc 0", "target": target, "processor": "any", "threads": 1, "date": "", "products": products,
        "attention": attention,
    });
    Ok(Profile::parse(&text.to_string())?)
}

/// The least and the most that the generator can do, on 32 registers and on 16.
fn extremes(target: &str, operand: &str) -> Result<Vec<Profile>> {
    let in_blocks = operand.contains(':');
    let wide = target::parse(target)?.describe().features.iter().any(|feature| feature == "avx512f");
    let two = if wide { 2 } else { 1 };
    let with = |mut set: Value, more: Value| {
        if let (Some(set), Value::Object(more)) = (set.as_object_mut(), more)
            && !in_blocks
        {
            set.extend(more);
        }
        set
    };
    let least = json!({"micro_rows": 1, "vectors": 1, "rows_per_tile": 1, "prefetch": 0, "next_panel": true});
    let least = with(least, json!({"unroll": 1, "chains": 1}));
    let none = json!({"queries": 1, "pages_per_tile": 1, "pages": 1, "value_vectors": 1, "tile_queries": 1});
    let first = profile(target, operand, [&least, &least, &least], &none)?;
    let one = with(
        json!({"vectors": 1, "prefetch": 1 << 20, "next_panel": false, "rows_per_tile": 4096}),
        json!({"unroll": 32, "chains": 4}),
    );
    let few = with(json!({"micro_rows": 3, "vectors": two, "rows_per_tile": 3}), json!({"unroll": 16}));
    // Registers for two parts in blocks.
    let rows = match (wide, in_blocks) {
        (true, false) => 14,
        (true, true) => 7,
        (false, false) => 6,
        (false, true) => 3,
    };
    let many = json!({"micro_rows": rows, "vectors": 1, "rows_per_tile": 4096, "next_panel": true, "prefetch": 64});
    let many = with(many, json!({"unroll": 2, "chains": 1}));
    let most = if wide {
        json!({"queries": 14, "pages_per_tile": 1, "pages": 64, "value_vectors": 1, "tile_queries": 4096})
    } else {
        json!({"queries": 4, "pages_per_tile": 1, "pages": 64, "value_vectors": 1, "tile_queries": 4096})
    };
    let odd = json!({"queries": 3, "pages_per_tile": 1, "pages": 7, "value_vectors": 2, "tile_queries": 50});
    let third = with(json!({"micro_rows": 2, "vectors": two, "rows_per_tile": 37}), json!({"unroll": 6, "chains": 2}));
    Ok(vec![
        first,
        profile(target, operand, [&one, &few, &many], &most)?,
        profile(target, operand, [&third, &third, &third], &odd)?,
    ])
}

/// Compiles with every extreme and compares with the interpreter.
fn results_stay(dtype: DType, cache: CacheType, quant: &str, operand: &str) -> Result<()> {
    let mut program = parse(&of_wiring(WIRING)?)?;
    // Experts are left as they are.
    let plan: Plan = format!("{quant},moe=none").parse()?;
    prepare(&mut program, dtype, cache, &plan)?;
    let text = program.to_string();
    for name in ["cpu", "cpu:x86-64-v3"] {
        let plain = target::parse(name)?;
        let mut targets: Vec<Box<dyn Target>> = Vec::new();
        // All of them here, and one with half as many registers.
        let skipped = if name == "cpu" { 0 } else { 2 };
        for profile in extremes(plain.name(), operand)?.into_iter().skip(skipped) {
            targets.push(plain.with_profile(profile)?);
        }
        let steps = [37, 1, 5, 1, 70].map(|rows| vec![("x", Floats(floats(rows * 70)))]);
        agree_with(&text, &steps, &targets).map_err(|e| format!("{operand} on {name}: {e}\n{text}"))?;
    }
    Ok(())
}

#[test]
fn no_schedule_changes_results_in_f32() -> Result<()> {
    results_stay(DType::F32, CacheType::Float(DType::F32), "none", "f32")
}

#[test]
fn no_schedule_changes_results_in_blocks() -> Result<()> {
    results_stay(DType::F32, CacheType::Int8, "int4:g32", "int4:g32")
}

/// In bf16 it is the layers that `xfc tune` measures that are compared: with those of the default.
#[test]
fn no_schedule_changes_the_layers_that_are_measured() -> Result<()> {
    let pool = Arc::new(ThreadPool::new(2)?);
    let blocks = DType::Blocks(Blocks::weights(BlockForm::Uint8, 64));
    let layers = [
        (Layer::products(DType::BF16, 1, [70, 131], 2)?, "bf16", "linear"),
        (Layer::products(DType::BF16, 2, [70, 131], 6)?, "bf16", "linear"),
        (Layer::products(blocks, 2, [70, 131], 1)?, "uint8:g64", "linear"),
        (
            Layer::attention(DType::BF16, CacheType::Float(DType::BF16), Heads { heads: 6, kv_heads: 2, dim: 20 }, 2)?,
            "bf16",
            "attention",
        ),
        (Layer::experts(DType::BF16, Mixture { width: 70, inner: 36, experts: 6, chosen: 2 })?, "bf16", "linear"),
    ];
    let plain = target::parse("cpu")?;
    for (layer, operand, kind) in layers {
        let loaded = Arc::new(layer).load(&*plain, &pool)?;
        let of_rows = [1, 6, 50];
        let mut wanted = Vec::new();
        for rows in of_rows {
            let want = loaded.timed(rows, 3)?.run()?;
            assert!(want.seconds > 0.0 && want.seconds <= want.whole_seconds && want.work.flops() > 0, "{want:?}");
            wanted.push(want.outputs);
        }
        for profile in extremes(plain.name(), operand)? {
            let text = profile.to_text();
            let tuned = loaded.with_target(&*plain.with_profile(profile)?)?;
            for (rows, want) in of_rows.into_iter().zip(&wanted) {
                let got = tuned.timed(rows, 3)?.run()?.outputs;
                let size = (want.iter().map(|x| x * x).sum::<f32>() / want.len() as f32).sqrt();
                let apart = want.iter().zip(&got).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(size > 0.0 && apart < 0.03 * size, "{kind} {operand}, {rows} rows: {apart} of {size}\n{text}");
            }
        }
    }
    // Weights that lie otherwise are not shared.
    let loaded = Arc::new(Layer::products(DType::F32, 1, [8, 8], 1)?).load(&*plain, &pool)?;
    assert!(loaded.with_target(&*target::parse("cpu:x86-64")?).is_err());
    Ok(())
}

/// As many pairs as memory asks for: gates after gates neither vanish nor grow beyond bounds, so that outputs say something.
#[test]
fn outputs_of_many_layers_are_of_about_one() -> Result<()> {
    let pool = Arc::new(ThreadPool::new(2)?);
    let target = target::parse("cpu")?;
    let int4 = DType::Blocks(Blocks::weights(BlockForm::Int4, 32));
    for (operand, parts, pairs) in [(int4, 2, 24), (DType::BF16, 2, 6), (DType::F32, 1, 12)] {
        let layer = Layer::products(operand, parts, [128, 192], pairs)?;
        let outputs = Arc::new(layer).load(&*target, &pool)?.timed(3, 0)?.run()?.outputs;
        let size = (outputs.iter().map(|x| x * x).sum::<f32>() / outputs.len() as f32).sqrt();
        assert!((0.3..3.0).contains(&size), "{operand} x {parts}, {pairs} pairs: {size}");
    }
    Ok(())
}

const SMALL: [&str; 4] = ["llama", "--tiny", "--dtype", "bf16"];

/// Measuring writes a profile where compiling looks for it; another may be named, or none.
#[test]
fn what_is_measured_is_used() -> Result<()> {
    let shell = Shell::new()?;
    let said = shell
        .run("xfc", &["tune", "--quick", "--seconds", "0", "--only", "bf16,attention", "-t", "1", "--dry-run"])?
        .success()?;
    for family in ["bf16, 1 row", "bf16 x 2, many rows", "attention bf16 over int8, many rows", "nothing is written"] {
        assert!(said.contains(family), "no `{family}` in\n{said}");
    }
    assert!(!shell.folder().join(".tune").exists());
    shell.run("xfc", &["tune", "--quick", "--seconds", "0", "--only", "bf16", "-t", "1"])?.success()?;
    let files: Vec<_> = fs::read_dir(shell.folder().join(".tune"))?.collect::<std::io::Result<_>>()?;
    let [file] = &files[..] else { return Err(format!("{files:?}").into()) };
    // Something that departs for certain.
    let mut written: Value = serde_json::from_slice(&fs::read(file.path())?)?;
    written["products"] = json!([{"operand": "bf16", "parts": 1, "rows": "one", "set": {"unroll": 16}}]);
    fs::write(file.path(), written.to_string())?;
    let compile = |more: &[&str], name: &str| -> Result<(String, Vec<u8>)> {
        let arguments = [&["compile", "-v", "-o", name], &SMALL[..], more].concat();
        let said = shell.run("xfc", &arguments)?.success()?;
        Ok((said, fs::read(shell.folder().join(name))?))
    };
    let (said, tuned) = compile(&[], "tuned.xfm")?;
    assert!(said.contains("schedules of 1 family from"), "{said}");
    let (said, plain) = compile(&["--tuned", "none"], "plain.xfm")?;
    assert!(said.contains("no profile"), "{said}");
    assert!(tuned != plain, "the profile changes nothing");
    let path = file.path().display().to_string();
    assert_eq!(compile(&["--tuned", &path], "named.xfm")?.1, tuned);
    // What was compiled for one profile is not taken for another.
    let run = |more: &[&str]| -> Result<String> {
        let rest = ["--tokens", "1,2,3", "-n", "4", "--temp", "0"];
        let ran = shell.run("xfc", &[&["run"], &SMALL[..], &rest[..], more].concat())?;
        Ok(ran.stderr.clone() + &ran.success()?)
    };
    assert!(run(&[])?.contains("compiled llama"));
    assert!(run(&["--tuned", "none"])?.contains("compiled llama"));
    assert!(run(&[])?.contains("compiled before"));
    shell.run("xfc", &[&["verify"], &SMALL[..], &["--target", "cpu"]].concat())?.success()?;
    // Of another processor: let be with a remark. Something wrong: an error, with and without asking for it.
    written["processor"] = json!("another one");
    fs::write(file.path(), written.to_string())?;
    let ran = shell.run("xfc", &[&["compile", "-o", "other.xfm"], &SMALL[..]].concat())?;
    assert!(ran.stderr.contains("`another one`") && ran.stderr.contains("not used"), "{}", ran.stderr);
    ran.success()?;
    assert_eq!(fs::read(shell.folder().join("other.xfm"))?, plain);
    let other = [&["compile", "--target", "cpu:x86-64", "--tuned", &path], &SMALL[..]].concat();
    shell.run("xfc", &other)?.failure(3, &["is a profile of", "cpu:x86-64", "xfc tune"])?;
    written["products"][0]["set"]["vectors"] = json!(3);
    fs::write(shell.folder().join("wrong.json"), written.to_string())?;
    let named = ["wrong.json products[0].set.vectors is 3", "--tuned none"];
    shell.run("xfc", &[&["compile", "--tuned", "wrong.json"], &SMALL[..]].concat())?.failure(3, &named)?;
    shell
        .run("xfc", &[&["compile", "--tuned", "none.json"], &SMALL[..]].concat())?
        .failure(3, &["none.json", "cannot read"])?;
    shell.run("xfc", &["inspect", "plain.xfm", "--emit", "plan", "--tuned", "none"])?.failure(2, &["--tuned"])?;
    Ok(())
}

#[test]
fn what_cannot_be_measured_is_refused() -> Result<()> {
    let shell = Shell::new()?;
    for (arguments, code, named) in [
        (&["--only", "int5"][..], 2, &["`--only int5` is no family", "bf16"][..]),
        (&["--threads", "0"], 2, &["at least 1"]),
        (&["--seconds", "nan"], 2, &["--seconds"]),
        (&["--target", "cpu:nothing"], 2, &["unknown processor"]),
        (&["--target", if cfg!(target_arch = "x86_64") { "cpu:aarch64" } else { "cpu:x86-64" }], 2, &["does not run"]),
        (&["--only", "bf16", "-o", "no/such/folder/p.json"], 1, &["no/such/folder"]),
    ] {
        shell.run("xfc", &[&["tune"], arguments].concat())?.failure(code, named)?;
    }
    Ok(())
}
