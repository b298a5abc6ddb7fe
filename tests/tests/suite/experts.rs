//! Whole models with experts: what each token chooses is what another implementation chooses, and experts published in 4 bits are those of the
//! numbers that they stand for.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::json;
use xfc_check::compare::{Precision, Tier, compare};
use xfc_check::subject::{Outputs, Rows, Subject, run};
use xfc_codegen::driver::Options;
use xfc_codegen::target;
use xfc_lang::graph::Program;
use xfc_lang::graph::named::{Named, named_values};
use xfc_runtime::step::InputData;
use xfc_runtime::weights::Checkpoint;
use xfc_tests::Result;
use xfc_tests::case::{Case, Layout, TensorSpec};
use xfc_tests::compile::TARGETS;
use xfc_tests::model;

use crate::cases::every_case;

/// A case's inputs, compiled for each target: the outputs by target.
fn compiled(
    subject: &Subject<'_>,
    program: &Program,
    inputs: &BTreeMap<String, InputData>,
) -> Result<Vec<(&'static str, Outputs)>> {
    let on = |name| -> Result<(&'static str, Outputs)> {
        let loaded = subject.compile(program, &*target::parse(name)?)?;
        let n = xfc_check::inputs::length(loaded.manifest(), inputs, 0);
        Ok((name, run(&loaded, &[inputs], &vec![vec![n]])?.remove(0)))
    };
    TARGETS.into_iter().map(on).collect()
}

/// The chosen of each token, in order of their numbers: which of them is the better is no matter.
fn sorted(rows: impl Iterator<Item = Vec<i64>>) -> Vec<Vec<i64>> {
    rows.map(|mut row| {
        row.sort_unstable();
        row
    })
    .collect()
}

fn choices(values: &Rows) -> Vec<Vec<i64>> {
    let k = *values.dims.last().unwrap_or(&1);
    sorted(values.values.chunks_exact(k).map(|row| row.iter().map(|x| *x as i64).collect()))
}

#[test]
fn chosen_experts_are_those_of_another_implementation() {
    let compared = std::cell::Cell::new(0);
    every_case(|case| {
        let names = case.golden_names()?;
        let n_choices = names.iter().filter(|name| name.starts_with("topk.")).count();
        if n_choices == 0 {
            return Ok(());
        }
        let chosen = ["num_experts_per_tok", "num_selected_experts"].iter().find_map(|k| case.config[k].as_u64());
        let chosen = chosen.ok_or("the config does not say how many experts a token chooses")? as usize;
        // Choices of groups are narrower: of these only what they leave to choose is compared.
        let all: Vec<_> =
            (0..n_choices).map(|i| case.golden_choices(&format!("topk.{i}"))).collect::<Result<Vec<_>>>()?;
        let golden: Vec<_> = all.into_iter().filter(|rows| rows[0].len() == chosen).collect();

        let model = model::expand(case)?;
        let checkpoint = case.checkpoint(Layout::Single)?;
        let checkpoint = Checkpoint::open(checkpoint.path())?;
        let options = Options::default();
        let subject =
            Subject { model: &model, checkpoint: &checkpoint, truth: None, options: &options, threads: Some(2) };
        let named = named_values(&model.program);
        let taps: Vec<&Named> = named.iter().filter(|n| n.path.ends_with(".chosen")).collect();
        if taps.len() != golden.len() {
            return Err(format!("{} layers choose experts, and {} did elsewhere", taps.len(), golden.len()).into());
        }
        let program = subject.program(&taps);
        let inputs = case.all_inputs();
        let mut ways = compiled(&subject, &program, &inputs)?;
        ways.push(("the interpreter", subject.interpret::<f64>(&program, &[&inputs])?.remove(0)));
        for (way, got) in &ways {
            for (tap, golden) in taps.iter().zip(&golden) {
                let got = choices(got.get(&tap.path).ok_or_else(|| format!("no output {}", tap.path))?);
                let want = sorted(golden.iter().cloned());
                if let Some(token) = (0..want.len().max(got.len())).find(|i| got.get(*i) != want.get(*i)) {
                    let (got, want) = (got.get(token), want.get(token));
                    return Err(format!("{}: token {token} chooses {got:?} and not {want:?} on {way}", tap.path).into());
                }
                compared.set(compared.get() + want.len());
            }
        }
        Ok(())
    });
    assert!(compared.get() > 0 || std::env::var("XFC_CASES").is_ok(), "no case has choices");
}

/// What the four bits of E2M1 stand for, but for the sign, which is the highest.
const E2M1: [f32; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
/// Numbers of a block.
const BLOCK: usize = 32;

/// The nearest number in 4 bits.
fn nearest(x: f32) -> u8 {
    let distance = |code: &usize| (x.abs() - E2M1[*code]).abs();
    let code = (0..E2M1.len()).min_by(|a, b| distance(a).total_cmp(&distance(b))).unwrap_or(0);
    code as u8 | if x < 0.0 { 8 } else { 0 }
}

/// A stack of matrices `[E, in, out]` as published: `[E, out, in / 32, 16]` pairs of numbers, `[E, out, in / 32]` exponents; and what they stand for.
struct Quantised {
    blocks: Vec<u8>,
    scales: Vec<u8>,
    values: Vec<f32>,
}

fn quantise(shape: &[usize], values: &[f32]) -> Quantised {
    let [experts, rows, columns] = *shape else { panic!("a stack of matrices, not {shape:?}") };
    let mut made = Quantised { blocks: Vec::new(), scales: Vec::new(), values: vec![0.0; values.len()] };
    for (e, out, group) in
        (0..experts).flat_map(|e| (0..columns).flat_map(move |o| (0..rows / BLOCK).map(move |g| (e, o, g))))
    {
        let at = |i: usize| (e * rows + group * BLOCK + i) * columns + out;
        let largest = (0..BLOCK).map(|i| values[at(i)].abs()).fold(0.0, f32::max);
        // The largest number of 4 bits has the exponent 2.
        let exponent = largest.log2().floor() as i32 - 2;
        let scale = 2f32.powi(exponent);
        made.scales.push((exponent + 127) as u8);
        let codes: Vec<u8> = (0..BLOCK).map(|i| nearest(values[at(i)] / scale)).collect();
        made.blocks.extend(codes.as_chunks().0.iter().map(|[low, high]: &[u8; 2]| low | high << 4));
        for (i, code) in codes.iter().enumerate() {
            let sign = if code & 8 == 0 { 1.0 } else { -1.0 };
            made.values[at(i)] = sign * E2M1[usize::from(code & 7)] * scale;
        }
    }
    made
}

/// Writes a checkpoint whose experts are in 4 bits, or are the numbers that these stand for.
fn write(case: &Case, folder: &Path, in_four_bits: bool) -> Result<()> {
    let mut config = case.config.clone();
    let mut tensors: Vec<(String, Dtype, Vec<usize>, Vec<u8>)> = Vec::new();
    for tensor in &case.tensors {
        let TensorSpec { name, shape, .. } = tensor;
        let values = tensor.values(case.seed);
        let bytes = |values: &[f32]| values.iter().flat_map(|x| x.to_le_bytes()).collect();
        let is_stack = name.contains("experts") && shape.len() == 3;
        if !is_stack {
            tensors.push((name.clone(), Dtype::F32, shape.clone(), bytes(&values)));
            continue;
        }
        let made = quantise(shape, &values);
        if in_four_bits {
            let grid = vec![shape[0], shape[2], shape[1] / BLOCK];
            let pairs = [&grid[..], &[BLOCK / 2]].concat();
            tensors.push((format!("{name}_blocks"), Dtype::U8, pairs, made.blocks));
            tensors.push((format!("{name}_scales"), Dtype::U8, grid, made.scales));
        } else {
            tensors.push((name.clone(), Dtype::F32, shape.clone(), bytes(&made.values)));
        }
    }
    if in_four_bits {
        let others = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"];
        config["quantization_config"] = json!({"quant_method": "mxfp4", "modules_to_not_convert": others});
    }
    fs::write(folder.join("config.json"), config.to_string())?;
    let views = tensors
        .iter()
        .map(|(name, dtype, shape, bytes)| Ok((name.as_str(), TensorView::new(*dtype, shape.clone(), bytes)?)));
    let views = views.collect::<Result<Vec<_>>>()?;
    Ok(safetensors::serialize_to_file(views, None, &folder.join("model.safetensors"))?)
}

/// Pairs of 4 bits with a scale for each 32 numbers, as the released weights of these experts are.
#[test]
fn experts_in_four_bits_are_those_of_their_values() -> Result<()> {
    let mut case = Case::load("gpt_oss")?;
    // Blocks are of 32 numbers, which the case's width inside is no multiple of.
    let (old, inner) = (case.config["intermediate_size"].as_u64().unwrap_or(0) as usize, 96);
    case.config["intermediate_size"] = json!(inner);
    for tensor in case.tensors.iter_mut().filter(|tensor| tensor.name.contains("experts")) {
        for n in &mut tensor.shape {
            *n = if *n == old {
                inner
            } else if *n == 2 * old {
                2 * inner
            } else {
                *n
            };
        }
    }
    let model = model::expand(&case)?;
    let inputs = case.all_inputs();
    let options = Options::default();
    let mut results = Vec::new();
    for in_four_bits in [true, false] {
        let folder = tempfile::tempdir()?;
        write(&case, folder.path(), in_four_bits)?;
        let checkpoint = Checkpoint::open(folder.path())?;
        let subject =
            Subject { model: &model, checkpoint: &checkpoint, truth: None, options: &options, threads: Some(2) };
        let program = subject.program(&[]);
        let mut ways = compiled(&subject, &program, &inputs)?;
        ways.push(("the interpreter", subject.interpret::<f32>(&program, &[&inputs])?.remove(0)));
        results.push(ways);
    }
    for ((way, four), (_, whole)) in results[0].iter().zip(&results[1]) {
        let (four, whole) = (&four["logits"], &whole["logits"]);
        assert!(four.values.iter().all(|x| x.is_finite()) && four.values.iter().any(|x| x.abs() > 0.1), "{way}");
        // Whatever the code does, it does it to the same numbers.
        assert!(four == whole, "{way}: experts in 4 bits give other logits than the numbers that they stand for");
    }
    for (way, outputs) in &results[0][..TARGETS.len()] {
        let (got, want) = (&outputs["logits"], &results[0][TARGETS.len()].1["logits"]);
        compare(way, &want.dims, &got.values, &want.values, Tier::Model, Precision::F32)?;
    }
    Ok(())
}
