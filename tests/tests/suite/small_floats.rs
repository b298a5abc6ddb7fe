//! Weights in floats of 8 bits: every byte as a checkpoint stores it, and blocks of published checkpoints, on processors and on a GPU against the
//! interpreter. What numbers are rounded to is in `quantised`, `tied` and `cuda`, with the other forms.

use std::collections::BTreeMap;
use std::sync::Arc;

use safetensors::Dtype;
use safetensors::tensor::TensorView;
use xfc_check::stored::stored;
use xfc_check::subject::{Subject, run};
use xfc_codegen::driver::{Options, compile};
use xfc_codegen::target;
use xfc_lang::graph::DType;
use xfc_lang::passes::quantise::Plan;
use xfc_lang::spec::{Library, parse_card};
use xfc_lang::{ElaborateOptions, Model, elaborate};
use xfc_runtime::artifact::Artifact;
use xfc_runtime::artifact::manifest::Pack;
use xfc_runtime::model::{Model as Loaded, ModelOptions};
use xfc_runtime::weights::Checkpoint;
use xfc_tests::compile::sharing;
use xfc_tests::{Result, gpu};

use crate::encodings::one_hot;

/// Instruction sets that widen in ways of their own, and a GPU.
const TARGETS: [&str; 4] = ["cpu", "cpu:x86-64-v2", "cpu:x86-64-v3", "cuda:sm_80"];

/// A model of one product with `rows` rows of `columns` weights.
fn model(rows: usize, columns: usize) -> Result<Model> {
    let card = format!(
        "xfc: 1\nname: One\nsizes: {{}}\nwiring: |\n  model(x: f32[tokens, {columns}]) {{\n    w = linear({rows})\n    return {{y: w(x)}}\n  }}\n"
    );
    Ok(elaborate(&parse_card("test.yaml", &card, &Library::embedded())?, &ElaborateOptions::default())?)
}

/// A checkpoint of these bytes, with scales of a shape.
fn checkpoint(
    folder: &std::path::Path,
    shape: [usize; 2],
    bytes: &[u8],
    (of, scales): ([usize; 2], &[f32]),
) -> Result<Checkpoint> {
    let scales: Vec<u8> = scales.iter().flat_map(|x| x.to_le_bytes()).collect();
    let views = [
        ("w.weight", TensorView::new(Dtype::F8_E4M3, shape.to_vec(), bytes)?),
        ("w.weight_scale_inv", TensorView::new(Dtype::F32, of.to_vec(), &scales)?),
    ];
    std::fs::write(folder.join("model.safetensors"), safetensors::serialize(views, None)?)?;
    Ok(Checkpoint::open(folder)?)
}

/// The model compiled for a target, which holds the matrix as it is stored.
fn loaded(target: &str, subject: &Subject<'_>) -> Result<Arc<Loaded>> {
    let targets = [target::parse(target)?];
    let artifact = Artifact::from_bytes(compile(subject.model, "one", &targets, subject.options)?.bytes)?;
    let manifest = artifact.manifests().next().ok_or("no manifest")?;
    let held = manifest.weights.first().map(|weight| weight.pack);
    assert!(matches!(held, Some(Pack::Blocks(blocks)) if blocks.floats.is_some() && blocks.stored), "{held:?}");
    if target.starts_with("cuda") {
        return gpu::load(&artifact, target, subject.checkpoint);
    }
    let options = ModelOptions { threads: Some(2), ..ModelOptions::default() };
    Ok(Loaded::load(&artifact, subject.checkpoint, &options)?)
}

/// The outputs of steps of one row, few and many, which are columns of the matrix, are `want`, bit for bit.
fn check_columns(
    (model, checkpoint): (&Model, &Checkpoint),
    dtype: DType,
    columns: usize,
    want: &dyn Fn(usize, usize) -> f32,
) -> Result<()> {
    let options = Options { dtype, quant: Plan::stored(stored(model, checkpoint).forms), ..sharing() };
    let subject = Subject { model, checkpoint, truth: None, options: &options, threads: Some(2) };
    let inputs = [1, 5, columns].map(|n| (n, BTreeMap::from([("x".to_owned(), one_hot(n, columns))])));
    let check = |what: &str, n: usize, y: &[f64]| {
        let rows = y.len() / n;
        for (i, y) in y.iter().enumerate() {
            let want = f64::from(want(i % rows, i / rows));
            assert!(*y == want || y.is_nan() && want.is_nan(), "{what}, {n} rows: {y} at {i}, expected {want}");
        }
    };
    let program = subject.program(&[]);
    for (n, inputs) in &inputs {
        check("the interpreter", *n, &subject.interpret::<f32>(&program, &[inputs])?[0]["y"].values);
    }
    for target in TARGETS {
        let loaded = loaded(target, &subject)?;
        for (n, inputs) in &inputs {
            check(target, *n, &run(&loaded, &[inputs], &vec![vec![*n as u64]])?[0]["y"].values);
        }
    }
    Ok(())
}

/// A byte's number, from the definition.
fn number(byte: u8) -> f32 {
    let (sign, exponent) = (if byte < 128 { 1.0 } else { -1.0 }, i32::from(byte >> 3 & 15));
    match (exponent, f32::from(byte & 7) / 8.0) {
        (15, 0.875) => f32::NAN,
        (0, fraction) => sign * fraction * 2f32.powi(-6),
        (_, fraction) => sign * (1.0 + fraction) * 2f32.powi(exponent - 7),
    }
}

#[test]
fn every_byte_is_the_number_that_it_stands_for() -> Result<()> {
    // Sixteen to a row; the two that are no numbers have rows of their own, all of which they make none.
    let mut bytes: Vec<u8> = (0..=255).collect();
    bytes[0x7f] = 0;
    bytes[0xff] = 0;
    bytes.extend([0x38; 32]);
    bytes[256 + 5] = 0x7f;
    bytes[272 + 10] = 0xff;
    let model = model(18, 16)?;
    let folder = tempfile::tempdir()?;
    for (scale, dtype) in [(0.3, DType::F32), (3e-38, DType::BF16)] {
        let checkpoint = checkpoint(folder.path(), [18, 16], &bytes, ([1, 1], &[scale]))?;
        check_columns((&model, &checkpoint), dtype, 16, &|row, column| match row {
            16 | 17 => f32::NAN,
            _ => (f64::from(number(bytes[row * 16 + column])) * f64::from(scale)) as f32,
        })?;
    }
    Ok(())
}

/// Blocks of 128 by 128 whose last ones are smaller, and scales of rows: columns on both sides of where blocks meet.
#[test]
fn blocks_of_checkpoints_are_taken_over() -> Result<()> {
    let (rows, columns) = (133, 200);
    let bytes: Vec<u8> = (0..rows * columns).map(|i| ((i * 2_654_435_761) >> 9) as u8 & 0xf7).collect();
    let model = model(rows, columns)?;
    let folder = tempfile::tempdir()?;
    let blocks = [0.011, 0.5, 0.07, 3.0];
    let channels: Vec<f32> = (0..rows).map(|row| 0.001 * (row + 1) as f32).collect();
    for (of, scales, dtype) in [([2, 2], &blocks[..], DType::BF16), ([rows, 1], &channels, DType::F32)] {
        let checkpoint = checkpoint(folder.path(), [rows, columns], &bytes, (of, scales))?;
        let forms = stored(&model, &checkpoint).forms;
        assert_eq!(forms["w.weight"].blocks.to_string(), "fp8g128stored");
        check_columns((&model, &checkpoint), dtype, columns, &|row, column| {
            let scale = if of[1] == 1 { scales[row] } else { scales[row / 128 * 2 + column / 128] };
            (f64::from(number(bytes[row * columns + column])) * f64::from(scale)) as f32
        })?;
    }
    // Groups of 48 inputs are none of ours.
    let checkpoint = checkpoint(folder.path(), [rows, 192], &bytes[..rows * 192], ([rows, 4], &[1.0; 133 * 4]))?;
    let forms = stored(&self::model(rows, 192)?, &checkpoint).forms;
    assert_eq!(forms["w.weight"].blocks.to_string(), "int8g32");
    Ok(())
}
