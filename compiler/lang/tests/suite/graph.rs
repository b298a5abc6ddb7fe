//! The text form, the verifier and the interpreter.

use xfc_lang::graph::parse::parse;
use xfc_lang::graph::verify::verify;

use crate::support::{DENSE, ENCODER, difference, program, run};

#[test]
fn text_reads_back() {
    for text in [DENSE, ENCODER] {
        let once = program(text).to_string();
        let twice = program(&once).to_string();
        assert_eq!(once, twice);
    }
}

#[test]
fn pieces_give_what_the_whole_gives() {
    let program = program(DENSE);
    let whole = run(&program, &[9], 1);
    assert_eq!(whole[0]["logits"].dims, [9, 32]);
    assert!(whole[0]["logits"].to_f64().iter().all(|x| x.is_finite()));
}

#[test]
fn nine_steps_give_what_one_gives() {
    use std::collections::BTreeMap;
    use xfc_lang::reference::{Interpreter, State, Tensor};
    let program = program(DENSE);
    let shapes = crate::support::weight_shapes(&program);
    let weights = |path: &str| {
        let dims: &Vec<usize> = &shapes[path];
        Ok(Tensor::f64(dims.clone(), crate::support::numbers(path, 3, dims.iter().product())))
    };
    let interpreter = Interpreter::<f64>::new(verify(&program).unwrap(), &weights).unwrap();
    let step = |state: &mut State<f64>, ids: &[i64]| {
        let inputs = BTreeMap::from([("input_ids".to_string(), Tensor::i64([ids.len()], ids.to_vec()))]);
        interpreter.step(state, &inputs).unwrap()["logits"].to_f64()
    };
    let ids = [3, 1, 4, 1, 5, 9, 2, 6, 5];
    let whole = step(&mut State::new(), &ids);
    let mut state = State::new();
    let mut pieces = step(&mut state, &ids[..4]);
    for id in &ids[4..] {
        pieces.extend(step(&mut state, &[*id]));
    }
    assert_eq!(state.past(0), 9);
    assert_eq!(whole.len(), pieces.len());
    for (a, b) in whole.iter().zip(&pieces) {
        assert!((a - b).abs() < 1e-12);
    }
}

#[test]
fn runs_repeat() {
    let program = program(ENCODER);
    assert_eq!(difference(&run(&program, &[7], 5), &run(&program, &[7], 5)), 0.0);
}

#[test]
fn errors_of_text_have_their_place() {
    let error = |text: &str| parse(text).unwrap_err().to_string();
    insta::assert_snapshot!(error("program \"x\" axes [n]\ngraph 0 \"m\" (%0 a: f32[m]) {"), @"2:24: 'm' is not an axis of this program");
    insta::assert_snapshot!(error("program \"x\" axes [n]\ngraph 0 \"m\" () {\n  %0 = frob : f32\n"), @"3:8: 'frob' is not an operation");
    insta::assert_snapshot!(error("program \"x\" axes [n]\ngraph 0 \"m\" () {\n  %0 = neg %1 : f32\n"), @"3:13: %1 is not defined before its use");
    insta::assert_snapshot!(error("program \"x\" axes [n]\ngraph 0 \"m\" () {\n  %0 = const {value = [1]} : f32\n"), @"3:8: 'values' is missing");
    insta::assert_snapshot!(error("program \"x"), @"1:9: a string without an end");
}

#[test]
fn every_prefix_is_read_or_refused() {
    for text in [DENSE, ENCODER] {
        for end in (0..text.len()).step_by(7) {
            if let Ok(program) = parse(&text[..end]) {
                let _ = verify(&program);
            }
        }
    }
}

#[test]
fn violations_are_collected() {
    let text = r#"program "x" axes [n]
graph 0 "m" (%0 a: f32[n, 4], %1 b: f32[n, 3]) {
  %2 = add %0, %1 : f32[n, 4]
  %3 = neg %0 : f32[n, 5]
  %4 = call %0 {graph = 0, at = "x"} : f32[n, 4]
  %5 = rms_norm %0, %1 {eps = 1e-5, gain = true} : f32[n, 4]
  %6 = linear %0, %0 {parts = 1, epilogue = (%0 acc: f32) {
    %1 = weight {path = "w"} : f32
    return y = %1
  }} : f32[n, 4]
  return a = %2, a = %3
}"#;
    let program = parse(text).unwrap();
    insta::assert_snapshot!(verify(&program).unwrap_err().to_string());
}

#[test]
fn odd_names_read_back() {
    let text = "program \"a \\\"b\\\"\" axes [\"the tokens\", visible]\n\ngraph 0 \"m\" (%0 \"h'\": f32[\"the tokens\", 2], %1 rows: f32[rows(visible)]) {\n  return \"y'\" = %0\n}\n";
    assert_eq!(parse(text).unwrap().to_string(), text);
}

/// Two experts a token, products of the chosen matrices, one shared with the sum after them.
const EXPERTS: &str = r#"program "experts" axes [tokens]

graph 0 "model" (%0 x: f32[tokens, 3], %1 chosen: i64[tokens, 2]) {
  %2 = call %0, %1 {graph = 1, at = "layers.0"} : f32[tokens, 2, 4]
  return y = %2
}

graph 1 "layer" (%0 x: f32[tokens, 3], %1 chosen: i64[tokens, 2]) {
  %2 = weight {path = "experts.{0..2}.up.weight"} : f32[2, 4, 3]
  %3 = gather %2, %1 : f32[tokens, 2, 4, 3]
  %4 = contract %0, %3 {spec = "ti,taoi->tao"} : f32[tokens, 2, 4]
  %5 = weight {path = "experts.1.up.bias"} : f32[4]
  %6 = add %4, %5 : f32[tokens, 2, 4]
  return y = %6
}
"#;

#[test]
fn a_range_stacks_parameters() {
    use std::collections::BTreeMap;
    use xfc_lang::reference::{Interpreter, State, Tensor};
    let program = program(EXPERTS);
    assert_eq!(program.to_string(), EXPERTS);
    let weights = |path: &str| {
        Ok(match path {
            "layers.0.experts.0.up.weight" => Tensor::f64([4, 3], (0..12).map(f64::from).collect()),
            "layers.0.experts.1.up.weight" => Tensor::f64([4, 3], vec![1.0; 12]),
            "layers.0.experts.1.up.bias" => Tensor::f64([4], vec![0.5; 4]),
            _ => return Err(format!("no weight {path}").into()),
        })
    };
    let interpreter = Interpreter::<f64>::new(verify(&program).unwrap(), &weights).unwrap();
    let inputs = BTreeMap::from([
        ("x".to_string(), Tensor::f64([1, 3], vec![1.0, 2.0, 3.0])),
        ("chosen".to_string(), Tensor::i64([1, 2], vec![1, 0])),
    ]);
    let y = interpreter.step(&mut State::new(), &inputs).unwrap()["y"].to_f64();
    assert_eq!(y, [6.5, 6.5, 6.5, 6.5, 8.5, 26.5, 44.5, 62.5]);
    let short = |path: &str| Ok(Tensor::f64([4, if path.contains("experts.1") { 2 } else { 3 }], vec![0.0; 12]));
    let error = Interpreter::<f64>::new(verify(&program).unwrap(), &short).unwrap_err().to_string();
    assert_eq!(error, "weight 'layers.0.experts.1.up.weight' is [4, 2], not [4, 3]");
}

#[test]
fn stacks_agree_with_their_ranges_and_parameters() {
    let error = |from: &str, to: &str| {
        let program = parse(&EXPERTS.replace(from, to)).unwrap();
        verify(&program).unwrap_err().0.iter().map(|v| v.message.clone()).collect::<Vec<_>>().join("\n")
    };
    assert_eq!(error("{0..2}", "{0..3}"), "a stack of 3 parameters is f32[2, 4, 3]");
    assert!(
        error("{0..2}", "{2..0}").starts_with("'layers.0.experts.{2..0}.up.weight' has braces that are not one range")
    );
    assert_eq!(
        error("experts.1.up.bias", "experts.1.up.weight"),
        "parameter 'layers.0.experts.1.up.weight' is [4, 3] and [4]"
    );
}
