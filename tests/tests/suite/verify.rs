//! `xfc verify`: what is right passes, and what was planted is found, by its module, its equation and its numbers.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;
use xfc_check::dump;
use xfc_check::locate::locate;
use xfc_check::subject::{Outputs, Rows, Subject, run};
use xfc_check::verify::{Extent, checks, sequences, verify};
use xfc_codegen::driver::{Options, fuse, outline};
use xfc_codegen::target;
use xfc_lang::graph::DType;
use xfc_lang::graph::named::named_values;
use xfc_runtime::artifact::manifest::Products;
use xfc_runtime::weights::Checkpoint;
use xfc_tests::Result;
use xfc_tests::case::{Case, Layout};
use xfc_tests::command::Shell;
use xfc_tests::compile::{compiled, known};
use xfc_tests::{gpu, model};

use crate::cases::{every_case, one_of_each_kind};

/// A checkpoint of the case with one number of one tensor changed.
fn spoil(folder: &Path, tensor: &str, element: usize) -> Result<()> {
    change(folder, tensor, element, |x| x + 0.5)
}

pub(crate) fn change(folder: &Path, tensor: &str, element: usize, by: fn(f32) -> f32) -> Result<()> {
    let path = folder.join("model.safetensors");
    let mut bytes = fs::read(&path)?;
    let (header, metadata) = SafeTensors::read_metadata(&bytes)?;
    let info = metadata.info(tensor).ok_or_else(|| format!("there is no {tensor}"))?;
    let at = 8 + header + info.data_offsets.0 + element * 4;
    let number: &mut [u8; 4] = (&mut bytes[at..at + 4]).try_into()?;
    *number = by(f32::from_le_bytes(*number)).to_le_bytes();
    Ok(fs::write(path, bytes)?)
}

/// Every value of the case, by the interpreter in f64, in a file that another implementation might have written.
fn dump_of(case: &Case, folder: &Path, rename: impl Fn(&str) -> Option<String>) -> Result<()> {
    let (model, options) = (model::expand(case)?, Options::default());
    let checkpoint = case.checkpoint(Layout::Single)?;
    let checkpoint = Checkpoint::open(checkpoint.path())?;
    let subject = Subject { model: &model, checkpoint: &checkpoint, truth: None, options: &options, threads: Some(2) };
    let named = named_values(&model.program);
    let taps: Vec<_> = named.iter().filter(|n| n.is_per_element() && n.is_float()).collect();
    let mut outputs = subject.interpret::<f64>(&subject.program(&taps), &[&case.all_inputs()])?.remove(0);
    outputs = outputs.into_iter().filter_map(|(name, rows)| Some((rename(&name)?, rows))).collect();
    Ok(dump::write(&folder.join("dump.safetensors"), &case.all_inputs(), &outputs)?)
}

/// A shell with the case's checkpoint.
fn shell(case: &Case) -> Result<Shell> {
    let shell = Shell::new()?;
    fs::create_dir(shell.folder().join("checkpoint"))?;
    case.write_checkpoint(&shell.folder().join("checkpoint"), Layout::Single)?;
    Ok(shell)
}

#[test]
fn cases_agree_with_the_interpreter() {
    one_of_each_kind(|case| {
        let shell = shell(case)?;
        let arguments = ["verify", "checkpoint", "--target", "cpu", "--tokens", "19", "--json"];
        let said: Value = serde_json::from_str(&shell.run("xfc", &arguments)?.success()?)?;
        assert_eq!(said["pass"], true, "{said}");
        let checks = said["checks"].as_array().ok_or("no checks")?;
        assert!(checks.len() >= if case.greedy_steps > 0 { 4 } else { 2 }, "{said}");
        Ok(())
    });
}

#[test]
fn checks_cover_every_token() -> Result<()> {
    for name in ["llama3", "bert"] {
        let artifact = compiled(&Case::load(name)?)?;
        let manifest = artifact.manifests().next().ok_or("no manifest")?;
        for tokens in 1..60 {
            let sequences = sequences(manifest, Extent { tokens, seed: 1 });
            let checks = checks(manifest, &sequences);
            assert!(checks.len() > usize::from(tokens > 1), "{name}: {checks:?}");
            for check in checks {
                for (sequence, cuts) in check.sequences.iter().zip(&check.cuts) {
                    let length = xfc_check::inputs::length(manifest, &sequences[*sequence], 0);
                    assert_eq!(cuts.iter().sum::<u64>(), length, "{name}, {tokens} tokens: {check:?}");
                }
            }
        }
    }
    Ok(())
}

/// Where registers hold tiles of bf16, programs in it multiply small groups so in steps of many rows, and each step of a check is held to its own arithmetic.
#[test]
fn each_phase_is_held_to_its_own_arithmetic() -> Result<()> {
    let both = "cpu:x86-64-v4+amx-bf16+amx-int8";
    let forms = |case: &str, dtype: DType, plan: &str, target: &str| -> Result<Vec<Vec<Option<Products>>>> {
        let (model, options) =
            (model::expand(&Case::load(case)?)?, Options { dtype, quant: plan.parse()?, ..Options::default() });
        let fused = fuse(&model, &options)?;
        let manifest = outline(&model, &fused.program, &*target::parse(target)?, &options)?.manifest;
        let of_bytes = manifest.launches.iter().filter(|l| l.cost.is_some_and(|c| c.products == Some(Products::Byte)));
        Ok(of_bytes.map(|launch| launch.variants.iter().map(|v| v.multiplies).collect()).collect())
    };
    for (dtype, plan, target, of_many) in [
        (DType::BF16, "int8:g32", both, Some(Products::Half)),
        (DType::BF16, "uint4:g64", both, Some(Products::Half)),
        (DType::BF16, "int8:g128", both, None),
        (DType::BF16, "int8:g128", "cpu:x86-64-v4+amx-bf16", Some(Products::Half)),
        (DType::BF16, "int8:g32", "cpu:x86-64-v4+amx-int8", None),
        (DType::BF16, "int8:g32", "cpu:aarch64", None),
        (DType::F32, "int8:g32", both, None),
    ] {
        let launches = forms("llama3", dtype, plan, target)?;
        assert!(!launches.is_empty(), "{plan}");
        assert!(
            launches.iter().all(|phases| *phases == [None, None, of_many]),
            "{dtype} {plan} {target}: {launches:?}"
        );
    }
    let target = target::parse(both)?;
    if !gpu::host().missing(&target.describe()).is_some_and(|missing| missing.is_empty()) {
        return Ok(());
    }
    for (name, plan) in [("qwen3", "int8:g32"), ("llama3", "uint4:g32,down_proj=int8:g128")] {
        let case = Case::load(name)?;
        let (model, checkpoint) = (model::expand(&case)?, case.checkpoint(Layout::Single)?);
        let options =
            Options { dtype: DType::BF16, quant: plan.parse()?, known: Some(known().clone()), ..Options::default() };
        let checkpoint = Checkpoint::open(checkpoint.path())?;
        let subject =
            Subject { model: &model, checkpoint: &checkpoint, truth: None, options: &options, threads: Some(2) };
        let targets = [target::parse(both)?];
        let found = verify(&subject, &targets, Extent { tokens: 40, seed: 0 }, &mut |_| {})?;
        assert!(found.failure().is_none(), "{name} {plan}: {:?}", found.failure());
        // Whole, in pieces of 1, 3, 7 and more, token by token, and several sequences.
        let halved: Vec<usize> = found.findings.iter().map(|f| f.halved_steps).collect();
        assert_eq!((halved[0], halved[2]), (1, 0), "{name}: {halved:?}");
        assert!(halved[1] > 0 && halved[3] > 0, "{name}: {halved:?}");
        // It is another arithmetic: that of the program as it is written is further away.
        let (check, compiled) = (&found.findings[0].check, subject.compile(&model.program, &*targets[0])?);
        let inputs = [&found.sequences[0]];
        let own = subject.interpret_as::<f32>(compiled.manifest(), &model.program, &inputs, &check.cuts)?;
        let own = own.ok_or("no step is of bf16")?.remove(0);
        let written = subject.interpret::<f32>(&model.program, &inputs)?.remove(0);
        let got = run(&compiled, &inputs, &check.cuts)?.remove(0);
        let apart = |want: &Outputs| -> f64 {
            let of = |name: &String| got[name].values.iter().zip(&want[name].values).map(|(a, b)| (a - b).powi(2));
            want.keys().flat_map(of).sum()
        };
        assert!(apart(&own) < apart(&written), "{name}: {} and {}", apart(&own), apart(&written));
    }
    // Experts: a small difference may not choose others.
    let arguments =
        ["verify", "qwen3_moe", "--tiny", "--dtype", "bf16", "--quant", "int4:g64", "--target", both, "--json"];
    let said: Value = serde_json::from_str(&Shell::new()?.run("xfc", &arguments)?.success()?)?;
    let steps: Vec<Option<u64>> =
        said["checks"].as_array().ok_or("no checks")?.iter().map(|check| check["bf16_steps"].as_u64()).collect();
    assert_eq!(steps, [Some(1), Some(1), Some(0), Some(2)], "{said}");
    Ok(())
}

#[test]
fn a_planted_weight_is_found_by_its_module() -> Result<()> {
    for (name, tensor, module, place) in [
        ("llama3", "model.layers.1.mlp.up_proj.weight", "layers.1.mlp.up_proj", "linear.xf"),
        ("llama3", "model.norm.weight", "final", "norm.xf"),
        ("mistral", "model.layers.2.self_attn.o_proj.weight", "layers.2.self_attn.o_proj", "linear.xf"),
        ("gpt2", "transformer.h.1.ln_2.bias", "h.1.ln_2", "norm.xf"),
        ("bert", "bert.encoder.layer.0.attention.self.query.weight", "layers.0.attention.q_proj", "linear.xf"),
    ] {
        let case = Case::load(name)?;
        let shell = shell(&case)?;
        dump_of(&case, shell.folder(), |path| Some(path.to_owned()))?;
        let arguments = ["verify", "checkpoint", "--reference", "dump.safetensors", "--target", "cpu", "--json"];
        shell.run("xfc", &arguments)?.success().map_err(|e| format!("{name} as it is: {e}"))?;
        spoil(&shell.folder().join("checkpoint"), tensor, 5)?;
        let ran = shell.run("xfc", &arguments)?;
        let said: Value = serde_json::from_str(&ran.stdout)?;
        ran.failure(1, &["is the first"])?;
        for side in said["sides"].as_array().ok_or("no sides")? {
            let first = &side["first"];
            assert_eq!(first["module"], module, "{name} by {}", side["by"]);
            assert!(first["equation"]["place"].as_str().is_some_and(|p| p.contains(place)), "{name}: {first}");
            assert!(first["parameters"].as_array().is_some_and(|p| p.contains(&tensor.into())), "{name}: {first}");
        }
    }
    Ok(())
}

#[test]
fn values_are_found_under_the_names_of_a_checkpoint() -> Result<()> {
    // What another implementation calls the modules; hidden_states.1 is the only name for a layer's result.
    for (name, tensor, module) in [
        ("llama3", "model.layers.0.self_attn.k_proj.weight", "layers.0.self_attn.k_proj"),
        ("bert", "bert.encoder.layer.1.output.dense.weight", "layers.1.mlp.fc2"),
    ] {
        let case = Case::load(name)?;
        let shell = shell(&case)?;
        let model = model::expand(&case)?;
        let names: BTreeMap<String, Vec<String>> = xfc_check::modules::of_checkpoint(&model).into_iter().collect();
        assert!(names.len() > 15, "{names:?}");
        dump_of(&case, shell.folder(), |path| match (names.get(path), path) {
            (_, "layers.0") => Some("hidden_states.1".to_owned()),
            (Some(names), _) => names.first().cloned(),
            (None, _) => (path == "logits").then(|| path.to_owned()),
        })?;
        spoil(&shell.folder().join("checkpoint"), tensor, 70)?;
        let arguments = ["verify", "checkpoint", "--reference", "dump.safetensors", "--target", "cpu"];
        let ran = shell.run("xfc", &arguments)?;
        ran.failure(1, &[&format!("`{module}` is the first")]).map_err(|e| format!("{name}: {e}"))?;
    }
    Ok(())
}

#[test]
fn hidden_states_of_another_implementation_agree() {
    every_case(|case| {
        let shell = shell(case)?;
        let golden = fs::read(case.folder.join("golden.safetensors"))?;
        let golden = SafeTensors::deserialize(&golden)?;
        let ints = case.inputs.iter().map(|(name, ids)| {
            let bytes = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
            (name.clone(), Dtype::I64, vec![1, ids.len()], bytes)
        });
        let floats = case.floats.iter().map(|(name, x)| {
            let bytes = x.values.iter().flat_map(|x| x.to_le_bytes()).collect();
            (name.clone(), Dtype::F32, [&[1], x.shape.as_slice()].concat(), bytes)
        });
        let given: Vec<(String, Dtype, Vec<usize>, Vec<u8>)> = ints.chain(floats).collect();
        let mut tensors: Vec<_> = golden.tensors();
        for (name, dtype, shape, bytes) in &given {
            tensors.push((name.clone(), TensorView::new(*dtype, shape.clone(), bytes)?));
        }
        fs::write(shell.folder().join("golden.safetensors"), safetensors::serialize(tensors, None)?)?;
        let arguments = ["verify", "checkpoint", "--reference", "golden.safetensors", "--target", "cpu", "--json"];
        let said: Value = serde_json::from_str(&shell.run("xfc", &arguments)?.success()?)?;
        // States of several streams are no one value of a model, nor are those after a layer that is applied several times.
        let has_streams = golden.tensor("hidden_states.1").is_ok_and(|t| t.shape().len() > 3);
        let is_shared = case.config.get("num_hidden_groups").is_some();
        let least = if has_streams || is_shared { 1 } else { 2 };
        for side in said["sides"].as_array().ok_or("no sides")? {
            let values = side["values"].as_array().ok_or("no values")?;
            assert!(values.iter().filter(|value| value["pass"] == true).count() >= least, "{said}");
        }
        Ok(())
    });
}

/// The weights of the compiled model are spoiled, those of the interpreter are not: as if one kernel were wrong.
#[test]
fn a_wrong_kernel_is_found_by_its_first_value() -> Result<()> {
    let case = Case::load("llama3")?;
    let (model, options) = (model::expand(&case)?, Options::default());
    let (right, wrong) = (case.checkpoint(Layout::Single)?, case.checkpoint(Layout::Single)?);
    spoil(wrong.path(), "model.layers.1.self_attn.v_proj.weight", 3)?;
    let (right, wrong) = (Checkpoint::open(right.path())?, Checkpoint::open(wrong.path())?);
    let subject =
        Subject { model: &model, checkpoint: &wrong, truth: Some(&right), options: &options, threads: Some(2) };
    let targets = vec![target::parse("cpu")?];
    let found = verify(&subject, &targets, Extent { tokens: 19, seed: 0 }, &mut |_| {})?;
    assert!(found.findings.iter().all(|f| !f.passed()));
    let check = &found.findings[2].check;
    let first = locate(&subject, &*targets[0], check, &found.sequences, &mut |_| {})?;
    let first = first.ok_or("nothing was found")?;
    assert_eq!(first.value.path, "layers.1.self_attn.v_proj");
    assert!(first.measure.first.is_some() && !first.alone);
    Ok(())
}

/// A case's own values in a dump, with the rows of some of them cut to fewer.
fn cut_dump(case: &Case, folder: &Path, keep: &[&str], rows: usize) -> Result<()> {
    dump_of(case, folder, |path| keep.contains(&path).then(|| path.to_owned()))?;
    let path = folder.join("dump.safetensors");
    let mut dump = dump::Dump::open(&path)?;
    dump.tensors.retain(|name, _| !name.starts_with("inputs."));
    for values in dump.tensors.values_mut() {
        let row = values.values.len() / values.dims[0];
        values.dims[0] = rows;
        values.values.truncate(rows * row);
    }
    Ok(dump::write(&path, &case.all_inputs(), &dump.tensors)?)
}

/// A module of another implementation may return more than ours of the same parameters, as long as what is made of it agrees.
#[test]
fn a_value_that_is_something_else_in_the_dump_is_said_and_passes() -> Result<()> {
    let case = Case::load("llama3")?;
    let shell = shell(&case)?;
    dump_of(&case, shell.folder(), |path| Some(path.to_owned()))?;
    let path = shell.folder().join("dump.safetensors");
    let mut dump = dump::Dump::open(&path)?;
    dump.tensors.retain(|name, _| !name.starts_with("inputs."));
    dump.tensors.get_mut("layers.1.mlp").ok_or("not in the dump")?.values.iter_mut().for_each(|x| *x += 1.0);
    dump::write(&path, &case.all_inputs(), &dump.tensors)?;
    let arguments = ["verify", "checkpoint", "--reference", "dump.safetensors", "--target", "cpu"];
    let said = shell.run("xfc", &arguments)?.success()?;
    assert!(said.contains("something else in the dump") && said.contains("layers.1.mlp"), "{said}");
    // Without an output that agrees it is a departure.
    dump.tensors.remove("logits");
    dump::write(&path, &case.all_inputs(), &dump.tensors)?;
    shell.run("xfc", &arguments)?.failure(1, &["`layers.1.mlp` is the first"])?;
    Ok(())
}

#[test]
fn a_comparison_of_nothing_does_not_pass() -> Result<()> {
    let case = Case::load("llama3")?;
    let shell = shell(&case)?;
    let arguments = ["verify", "checkpoint", "--reference", "dump.safetensors", "--target", "cpu"];
    cut_dump(&case, shell.folder(), &["layers.0"], 3)?;
    shell.run("xfc", &arguments)?.failure(3, &["dump.safetensors", "nothing was compared", "`layers.0`", "[3,"])?;
    cut_dump(&case, shell.folder(), &["layers.0", "logits"], 3)?;
    shell.run("xfc", &arguments)?.failure(3, &["dump.safetensors", "the output `logits`", "[3,"])?;
    Ok(())
}

#[test]
fn inputs_of_one_axis_are_equally_long() -> Result<()> {
    let case = Case::load("bert")?;
    let model = compiled(&case)?;
    let manifest = model.manifests().next().ok_or("no manifest")?;
    let ids = |n: usize| Rows { dims: vec![1, n], values: vec![1.0; n] };
    for (lengths, named) in
        [([10, 8], &["`token_type_ids` has 8", "`input_ids` has 10"][..]), ([0, 0], &["`input_ids` has no"])]
    {
        let mut dump = dump::Dump::default();
        for (name, n) in ["input_ids", "token_type_ids"].into_iter().zip(lengths) {
            dump.tensors.insert(name.to_owned(), ids(n));
        }
        let error = dump.inputs(manifest, Path::new("dump.safetensors")).unwrap_err().to_string();
        assert!(named.iter().all(|name| error.contains(name)), "{error}");
    }
    // Where an axis has as many elements in every sequence, so have its inputs.
    let model = compiled(&Case::load("vit")?)?;
    let mut manifest = model.manifests().next().ok_or("no manifest")?.clone();
    manifest.inputs.truncate(1);
    let input = &manifest.inputs[0];
    let extent = manifest.extents[input.axis].ok_or("no known extent")?;
    let dims: Vec<usize> = [extent + 1].iter().chain(&input.dims).map(|n| *n as usize).collect();
    let rows = Rows { values: vec![0.0; dims.iter().product()], dims };
    let dump = dump::Dump { tensors: BTreeMap::from([(input.name.clone(), rows)]) };
    let error = dump.inputs(&manifest, Path::new("dump.safetensors")).unwrap_err().to_string();
    assert!(error.contains(&format!("every sequence has {extent}")), "{error}");
    // Of one image, the batch may be all that is taken off.
    let dims: Vec<usize> = input.dims.iter().map(|n| *n as usize).collect();
    let rows = Rows { values: vec![0.5; dims.iter().product()], dims };
    let dump = dump::Dump { tensors: BTreeMap::from([(input.name.clone(), rows)]) };
    assert_eq!(extent, 1);
    assert!(dump.inputs(&manifest, Path::new("dump.safetensors")).is_ok_and(|inputs| inputs.contains_key(&input.name)));
    Ok(())
}

#[test]
fn values_that_are_not_finite_do_not_agree() -> Result<()> {
    let case = Case::load("llama3")?;
    let shell = shell(&case)?;
    dump_of(&case, shell.folder(), |path| Some(path.to_owned()))?;
    change(&shell.folder().join("checkpoint"), "model.norm.weight", 5, |_| f32::NAN)?;
    let arguments = ["verify", "checkpoint", "--target", "cpu", "--tokens", "5"];
    shell.run("xfc", &arguments)?.failure(1, &["4 of 4 checks failed", "`final` departs first"])?;
    // What computes with them says who finds them.
    let run = ["run", "checkpoint", "--tokens", "1,2", "-n", "1"];
    shell.run("xfc", &run)?.failure(1, &["error: the logit of token 0 is not a number", "`xfc verify`"])?;
    fs::write(shell.folder().join("ids"), "1 2 3")?;
    let eval = ["eval", "checkpoint", "--token-file", "ids"];
    shell.run("xfc", &eval)?.failure(1, &["error: this run predicts token 1", "`xfc verify`"])?;
    let logits = shell.run("xfc", &["logits", "checkpoint", "--tokens", "1,2", "-o", "out"])?;
    let said = "numbers of `logits` are not finite; `xfc verify`";
    assert!(logits.code == Some(0) && logits.stderr.contains(said), "{}", logits.stderr);
    // Nor where the dump has them too.
    let path = shell.folder().join("dump.safetensors");
    let mut dump = dump::Dump::open(&path)?;
    dump.tensors.retain(|name, _| !name.starts_with("inputs."));
    let last = dump.tensors.get_mut("final").ok_or("not in the dump")?;
    let width = last.dims[1];
    last.values.iter_mut().skip(5).step_by(width).for_each(|x| *x = f64::NAN);
    dump::write(&path, &case.all_inputs(), &dump.tensors)?;
    let arguments = ["verify", "checkpoint", "--reference", "dump.safetensors", "--target", "cpu"];
    shell.run("xfc", &arguments)?.failure(1, &["`final` is the first"])?;
    Ok(())
}

/// What is rounded besides the type decides what is allowed, and stands in the heading.
#[test]
fn the_heading_says_what_is_held_in_few_bits() -> Result<()> {
    let shell = Shell::new()?;
    let small = ["verify", "llama", "--tiny", "--tokens", "5", "--target", "cpu"];
    let said = shell.run("xfc", &small)?.success()?;
    assert!(said.contains(", f32: compiled"), "{said}");
    let narrow = [&small[..], &["--quant", "int4", "--kv-cache-dtype", "int8"]].concat();
    let said = shell.run("xfc", &narrow)?.success()?;
    assert!(said.contains(", f32, matrices in int4:g32, caches in int8: compiled"), "{said}");
    Ok(())
}

#[test]
fn a_model_without_outputs_is_refused() -> Result<()> {
    let case = Case::load("llama3")?;
    let (mut model, options) = (model::expand(&case)?, Options::default());
    model.program.graphs.clear();
    let checkpoint = case.checkpoint(Layout::Single)?;
    let checkpoint = Checkpoint::open(checkpoint.path())?;
    let subject = Subject { model: &model, checkpoint: &checkpoint, truth: None, options: &options, threads: Some(2) };
    let refused = verify(&subject, &[target::parse("cpu")?], Extent { tokens: 5, seed: 0 }, &mut |_| {});
    assert!(refused.is_err_and(|error| error.to_string().contains("computes no output")));
    Ok(())
}

/// The code is held to what bf16 allows, the description to what f32 does.
#[test]
fn a_description_is_held_to_a_dump_without_the_roundings_of_its_code() -> Result<()> {
    let case = Case::load("llama3")?;
    let shell = shell(&case)?;
    dump_of(&case, shell.folder(), |path| Some(path.to_owned()))?;
    let arguments =
        ["verify", "checkpoint", "--reference", "dump.safetensors", "--target", "cpu", "--dtype", "bf16", "--json"];
    let said: Value = serde_json::from_str(&shell.run("xfc", &arguments)?.success()?)?;
    let allowed = |side: usize| -> Result<BTreeMap<String, f64>> {
        let values = said["sides"][side]["values"].as_array().ok_or("no values")?;
        let of = |value: &Value| Some((value["path"].as_str()?.to_owned(), value["allowed"].as_f64()?));
        Ok(values.iter().filter_map(of).collect())
    };
    let (interpreter, code) = (allowed(0)?, allowed(1)?);
    let both: Vec<f64> = interpreter.iter().filter_map(|(path, allowed)| Some(code.get(path)? / allowed)).collect();
    assert!(both.len() > 10 && both.iter().all(|ratio| (ratio - 625.0).abs() < 0.1), "{both:?}");
    Ok(())
}

#[test]
fn what_cannot_be_checked_is_said() -> Result<()> {
    let case = Case::load("llama3")?;
    let shell = shell(&case)?;
    dump_of(&case, shell.folder(), |path| (path != "layers.0").then(|| format!("other.{path}")))?;
    shell.run("xfc", &["compile", "checkpoint", "-o", "model.xfm"])?.success()?;
    for (arguments, code, named) in [
        (&["verify", "model.xfm"][..], 2, &["model.xfm", "card or checkpoint folder"][..]),
        (&["verify", "checkpoint", "--reference", "missing.safetensors"], 3, &["missing.safetensors"]),
        (
            &["verify", "checkpoint", "--reference", "dump.safetensors"],
            3,
            &["dump.safetensors", "nothing that this model computes"],
        ),
        (&["verify", "checkpoint", "--tap", "layers.0.mpl", "-o", "x"], 2, &["layers.0.mpl", "layers.0.mlp"]),
        (&["verify", "checkpoint", "--tap", "layers.0.mlp"], 2, &["--tap-output"]),
    ] {
        shell.run("xfc", arguments)?.failure(code, named)?;
    }
    assert!(!shell.folder().join("x").exists());
    Ok(())
}
