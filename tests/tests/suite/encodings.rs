//! Checkpoints with tensors of 4 and 8 bits: what they stand for, loaded and interpreted, is what other implementations make of them.

use std::collections::BTreeMap;

use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use xfc_check::subject::{Subject, run};
use xfc_codegen::driver::Options;
use xfc_codegen::target;
use xfc_lang::graph::DType;
use xfc_lang::spec::{Library, parse_card};
use xfc_lang::{ElaborateOptions, elaborate};
use xfc_runtime::step::InputData;
use xfc_runtime::weights::Checkpoint;
use xfc_tests::compile::sharing;
use xfc_tests::{Result, repository};

/// A product with each tensor of `tests/reference/encodings`.
pub(crate) const CARD: &str = "xfc: 1
name: Encodings
sizes: {}
wiring: |
  model(x: f32[tokens, 136], z: f32[tokens, 64]) {
    blocks = linear(140)
    tensor, channel, exponents = linear(9)
    experts = [linear(8) for i in 0..3]
    return {blocks: blocks(x), tensor: tensor(x), channel: channel(x), exponents: exponents(x),
            first: experts[0](z), second: experts[1](z), third: experts[2](z)}
  }
names:
  hf:
    experts.*.weight: experts[expert, in, out]
";

/// Rows of a matrix that is one where row and column are equal.
pub(crate) fn one_hot(rows: usize, width: usize) -> InputData {
    InputData::Floats((0..rows * width).map(|i| f32::from(u8::from(i / width == i % width))).collect())
}

/// The nearest number of 8 bits of significand, the even one of two.
fn bf16(x: f32) -> f32 {
    f32::from_bits((x.to_bits() + 0x7fff + (x.to_bits() >> 16 & 1)) & 0xffff_0000)
}

#[test]
fn numbers_with_scales_are_loaded_exactly() -> Result<()> {
    let model = elaborate(&parse_card("test.yaml", CARD, &Library::embedded())?, &ElaborateOptions::default())?;
    let folder = repository().join("tests/reference/encodings");
    let checkpoint = Checkpoint::open(&folder)?;
    let bytes = std::fs::read(folder.join("expected.safetensors"))?;
    let expected = SafeTensors::deserialize(&bytes)?;
    let inputs = BTreeMap::from([("x".to_owned(), one_hot(136, 136)), ("z".to_owned(), one_hot(136, 64))]);
    for dtype in [DType::F32, DType::BF16] {
        let options = Options { dtype, ..sharing() };
        let subject =
            Subject { model: &model, checkpoint: &checkpoint, truth: None, options: &options, threads: Some(2) };
        let program = subject.program(&[]);
        let loaded = subject.compile(&program, &*target::parse("cpu")?)?;
        let compiled = run(&loaded, &[&inputs], &vec![vec![136]])?.remove(0);
        let interpreted = subject.interpret::<f32>(&program, &[&inputs])?.remove(0);
        for (output, name) in [
            ("blocks", "blocks"),
            ("tensor", "tensor"),
            ("channel", "channel"),
            ("exponents", "exponents"),
            ("first", "experts.0"),
            ("second", "experts.1"),
            ("third", "experts.2"),
        ] {
            let weight = expected.tensor(&format!("{name}.weight"))?;
            let [rows, columns] = *weight.shape() else { return Err("a matrix was expected".into()) };
            let weight: Vec<f32> = weight.data().as_chunks().0.iter().map(|x| f32::from_le_bytes(*x)).collect();
            for (what, got) in [("compiled", &compiled[output]), ("interpreted", &interpreted[output])] {
                for column in 0..columns {
                    for row in 0..rows {
                        let (got, want) = (got.values[column * rows + row], weight[row * columns + column]);
                        // In bf16 the product is rounded from its exact value, which may be the other side of a tie of the f32.
                        let close = (got - f64::from(want)).abs() <= f64::from(want.abs()) / 256.0;
                        let same = match dtype {
                            DType::F32 => got == f64::from(want),
                            _ => got == f64::from(bf16(want)) || (what == "compiled" && close),
                        };
                        assert!(same, "{what} {name}[{row}, {column}] in {dtype}: {got}, expected {want}");
                    }
                }
            }
        }
    }
    Ok(())
}

/// A product with each tensor of `tests/reference/packed`.
pub(crate) const PACKED: &str = "xfc: 1
name: Packed
sizes: {}
wiring: |
  model(x: f32[tokens, 128], z: f32[tokens, 256], odd: f32[tokens, 36]) {
    eight, shuffled, in_turn, rows, zeros, wide, bytes = linear(16)
    columns = linear(16)
    odds = linear(10)
    return {eight: eight(x), shuffled: shuffled(x), in_turn: in_turn(x), rows: rows(x), zeros: zeros(x), wide: wide(x), bytes: bytes(x),
            columns: columns(z), odd: odds(odd)}
  }
names:
  hf:
    odds: odd
";

#[test]
fn integers_in_words_are_loaded_exactly() -> Result<()> {
    let model = elaborate(&parse_card("test.yaml", PACKED, &Library::embedded())?, &ElaborateOptions::default())?;
    let folder = repository().join("tests/reference/packed");
    let checkpoint = Checkpoint::open(&folder)?;
    let bytes = std::fs::read(folder.join("expected.safetensors"))?;
    let expected = SafeTensors::deserialize(&bytes)?;
    let inputs = [("x", 128), ("z", 256), ("odd", 36)].map(|(name, width)| (name.to_owned(), one_hot(256, width)));
    let inputs = BTreeMap::from(inputs);
    let options = sharing();
    let subject = Subject { model: &model, checkpoint: &checkpoint, truth: None, options: &options, threads: Some(2) };
    let program = subject.program(&[]);
    let loaded = subject.compile(&program, &*target::parse("cpu")?)?;
    assert!(loaded.remarks().is_empty(), "{:?}", loaded.remarks());
    let compiled = run(&loaded, &[&inputs], &vec![vec![256]])?.remove(0);
    let interpreted = subject.interpret::<f32>(&program, &[&inputs])?.remove(0);
    assert_eq!(compiled.len(), expected.len());
    for (name, weight) in expected.iter() {
        let &[rows, columns] = weight.shape() else { return Err("a matrix was expected".into()) };
        let weight: Vec<f32> = weight.data().as_chunks().0.iter().map(|x| f32::from_le_bytes(*x)).collect();
        let output = name.trim_end_matches(".weight");
        for (what, got) in [("compiled", &compiled[output]), ("interpreted", &interpreted[output])] {
            for (at, want) in weight.iter().enumerate() {
                let got = got.values[at % columns * rows + at / columns];
                assert!(got == f64::from(*want), "{what} {name}[{at}]: {got}, expected {want}");
            }
        }
    }
    Ok(())
}

/// The same files under another config, or with a tensor that does not fit.
#[test]
fn zeros_are_read_as_the_config_says_and_misfits_are_told() -> Result<()> {
    let from = repository().join("tests/reference/packed/model.safetensors");
    let bytes = std::fs::read(from)?;
    let stored = SafeTensors::deserialize(&bytes)?;
    let card = "xfc: 1\nname: One\nsizes: {}\nwiring: |\n  model(x: f32[tokens, 256]) {\n    columns = linear(16)\n    return {y: columns(x)}\n  }\n";
    let model = elaborate(&parse_card("test.yaml", card, &Library::embedded())?, &ElaborateOptions::default())?;
    let inputs = BTreeMap::from([("x".to_owned(), one_hot(256, 256))]);
    let run_with = |config: &str, change: &dyn Fn(&str, &mut Vec<usize>)| -> Result<f64> {
        let folder = tempfile::tempdir()?;
        let views = stored.iter().filter(|(name, _)| name.starts_with("columns.")).map(|(name, view)| {
            let mut shape = view.shape().to_vec();
            change(name, &mut shape);
            (name, TensorView::new(view.dtype(), shape, view.data()))
        });
        let views = views.map(|(name, view)| Ok((name, view?))).collect::<Result<Vec<_>>>()?;
        std::fs::write(folder.path().join("model.safetensors"), safetensors::serialize(views, None)?)?;
        std::fs::write(folder.path().join("config.json"), config)?;
        let checkpoint = Checkpoint::open(folder.path())?;
        let options = sharing();
        let subject =
            Subject { model: &model, checkpoint: &checkpoint, truth: None, options: &options, threads: Some(1) };
        let loaded = subject.compile(&subject.program(&[]), &*target::parse("cpu")?)?;
        let compiled = run(&loaded, &[&inputs], &vec![vec![256]])?.remove(0);
        let interpreted = subject.interpret::<f32>(&subject.program(&[]), &[&inputs])?.remove(0);
        assert_eq!(compiled["y"].values, interpreted["y"].values);
        Ok(compiled["y"].values[0])
    };
    let keep: &dyn Fn(&str, &mut Vec<usize>) = &|_, _| {};
    let first = run_with("{}", keep)?;
    let scales = stored.tensor("columns.scales")?.data();
    let scale = half::f16::from_le_bytes([scales[0], scales[1]]).to_f64();
    let second = run_with(r#"{"quantization_config": {"checkpoint_format": "gptq_v2"}}"#, keep)?;
    assert_eq!(second - first, scale, "zeros that are stored as they are are one less");
    for (tensor, shape, expected) in [
        ("columns.scales", vec![1, 32], "`columns.qweight`: shape [32, 16] with scales [1, 32]"),
        ("columns.qzeros", vec![1, 4], "`columns.qzeros`: shape [1, 4], expected [2, 4]"),
        ("columns.g_idx", vec![2, 128], "`columns.g_idx`: I32 of shape [2, 128], expected I32 [256]"),
    ] {
        let change = |name: &str, of: &mut Vec<usize>| {
            if name == tensor {
                of.clone_from(&shape);
            }
        };
        let error = run_with("{}", &change).unwrap_err().to_string();
        assert!(error.contains(expected), "{tensor}: {error}");
    }
    Ok(())
}
