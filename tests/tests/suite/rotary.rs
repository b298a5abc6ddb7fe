//! Rotary positions against another implementation's: every scaling of the frequencies, both kinds of pairs, beyond the length of training.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;
use xfc_lang::arch::{ElaborateOptions, elaborate};
use xfc_lang::graph::parse::parse;
use xfc_lang::graph::verify::verify;
use xfc_lang::reference::{Interpreter, State, Tensor};
use xfc_lang::spec::{Library, parse_card};
use xfc_runtime::step::InputData::Floats;
use xfc_tests::program::{agree, of_wiring};

#[derive(Deserialize)]
struct Golden {
    /// Those of the rows of each case.
    positions: Vec<usize>,
    /// What is turned, at every position.
    x: Vec<f32>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    rope: BTreeMap<String, Value>,
    pairs: String,
    width: usize,
    /// The context that is declared, where it is another than the mapping's.
    length: Option<usize>,
    rows: Vec<Vec<f64>>,
    attention_scale: f64,
}

impl Case {
    /// The mapping as the language writes it.
    fn rope(&self) -> String {
        let value = |v: &Value| v.to_string().replace('"', "'");
        let entries: Vec<String> = self.rope.iter().map(|(k, v)| format!("{k}: {}", value(v))).collect();
        format!("{{{}}}", entries.join(", "))
    }
}

fn golden() -> Golden {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/reference/rotary.json");
    serde_json::from_str(&std::fs::read_to_string(path).expect("the numbers are there")).expect("they are JSON")
}

/// A model that turns its input, as one head and as two, in every way of the golden numbers.
fn wiring(golden: &Golden) -> String {
    let mut lines = vec![format!("model(x: f32[tokens, {}]) {{", golden.x.len())];
    for case in &golden.cases {
        let length = case.length.map_or("none".to_owned(), |n| n.to_string());
        lines.push(format!("  {} = rotary({}, '{}', {length})", case.name, case.rope(), case.pairs));
    }
    let outputs = golden.cases.iter().map(|c| format!("{0}: {0}(x), {0}_heads: {0}(repeat(split(x, 1), 2))", c.name));
    lines.push(format!("  return {{{}}}\n}}", outputs.collect::<Vec<_>>().join(",\n    ")));
    lines.join("\n")
}

/// Radians of a frequency that is off by rounding grow with the position.
const TOLERANCE: f64 = 1e-4;

#[test]
fn rotary_positions_are_those_of_another_implementation() {
    let golden = golden();
    let text = of_wiring(&wiring(&golden)).unwrap_or_else(|e| panic!("{e}"));
    let program = parse(&text).unwrap();
    let n = golden.positions.iter().max().unwrap() + 1;
    let weights = |path: &str| Err(format!("there is no {path}").into());
    let interpreter = Interpreter::<f64>::new(verify(&program).unwrap(), &weights).unwrap();
    let x: Vec<f32> = std::iter::repeat_n(&golden.x, n).flatten().copied().collect();
    let inputs = BTreeMap::from([("x".to_owned(), Tensor::f32([n, golden.x.len()], x))]);
    let outputs = interpreter.step(&mut State::new(), &inputs).unwrap();
    for case in &golden.cases {
        for (name, heads) in [(case.name.clone(), 1), (format!("{}_heads", case.name), 2)] {
            let got = outputs[&name].to_f64();
            for (position, row) in golden.positions.iter().zip(&case.rows) {
                for head in 0..heads {
                    let at = (position * heads + head) * case.width;
                    for (i, (got, want)) in got[at..at + case.width].iter().zip(row).enumerate() {
                        assert!((got - want).abs() < TOLERANCE, "{name}, position {position}, {i}: {got}, not {want}");
                    }
                }
            }
        }
    }
}

#[test]
fn compiled_rotary_positions_are_the_interpreters() {
    let golden = golden();
    let text = of_wiring(&wiring(&golden)).unwrap_or_else(|e| panic!("{e}"));
    let step = |n: usize| {
        let x = std::iter::repeat_n(&golden.x, n).flatten().copied().collect();
        vec![("x", Floats(x))]
    };
    agree(&text, &[step(3), step(1), step(70)]).unwrap_or_else(|e| panic!("{e}"));
}

#[test]
fn scales_of_attention_are_those_of_another_implementation() {
    for case in golden().cases {
        let scale = format!("x * attention_scale({}, {})", case.rope(), case.width);
        let card = format!(
            "xfc: 1\nname: Test\nsizes: {{}}\nwiring: |\n  model(x: f32[tokens, 1]) {{\n    return {{y: {scale}}}\n  }}\n"
        );
        let spec = parse_card("test.yaml", &card, &Library::embedded()).unwrap();
        let model = elaborate(&spec, &ElaborateOptions::default()).unwrap_or_else(|e| panic!("{}: {e}", case.name));
        let weights = |path: &str| Err(format!("there is no {path}").into());
        let interpreter = Interpreter::<f64>::new(verify(&model.program).unwrap(), &weights).unwrap();
        let inputs = BTreeMap::from([("x".to_owned(), Tensor::f32([1, 1], vec![1.0]))]);
        let got = interpreter.step(&mut State::new(), &inputs).unwrap()["y"].to_f64()[0];
        assert!((got - case.attention_scale).abs() < 1e-7, "{}: {got}, not {}", case.name, case.attention_scale);
    }
}
