//! Checkpoints with tensors of 4 and 8 bits: what they stand for, loaded and interpreted, is what other implementations make of them.

use std::collections::BTreeMap;

use safetensors::SafeTensors;
use xfc_check::subject::{Subject, run};
use xfc_codegen::driver::Options;
use xfc_codegen::target;
use xfc_lang::graph::DType;
use xfc_lang::spec::{Library, parse_card};
use xfc_lang::{ElaborateOptions, elaborate};
use xfc_runtime::step::InputData;
use xfc_runtime::weights::Checkpoint;
use xfc_tests::{Result, repository};

/// A product with each tensor of `tests/reference/encodings`.
const CARD: &str = "xfc: 1
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
fn one_hot(rows: usize, width: usize) -> InputData {
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
        let options = Options { dtype, ..Options::default() };
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
