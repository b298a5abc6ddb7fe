//! Recurrences in the interpreter: against the same sums written out, and a sequence in pieces against the whole.

use std::collections::BTreeMap;

use xfc_lang::graph::Program;
use xfc_lang::graph::verify::verify;
use xfc_lang::reference::{Interpreter, State, Tensor};
use xfc_lang::spec::parse_card;
use xfc_lang::{ElaborateOptions, Library, elaborate};

use crate::support::{numbers, weight_shapes};

fn program(wiring: &str) -> Program {
    let text = format!(
        "xfc: 1\nname: Test\nsizes: {{}}\nwiring: |\n{}",
        wiring.lines().map(|l| format!("  {l}\n")).collect::<String>()
    );
    let spec = parse_card("test.yaml", &text, &Library::embedded()).unwrap_or_else(|e| panic!("{e}"));
    elaborate(&spec, &ElaborateOptions::default()).unwrap_or_else(|e| panic!("{e}")).program
}

/// The output `y` of steps of so many tokens each, one after another, of inputs drawn by name; with what was drawn of the input `x`.
fn run(program: &Program, steps: &[usize]) -> (Vec<f64>, Vec<f64>) {
    let verified = verify(program).unwrap_or_else(|e| panic!("{e}\n{program}"));
    let shapes = weight_shapes(program);
    let weights = |path: &str| Ok(Tensor::f64(shapes[path].clone(), numbers(path, 3, shapes[path].iter().product())));
    let interpreter = Interpreter::<f64>::new(verified, &weights).unwrap();
    let n: usize = steps.iter().sum();
    let width =
        |ty: &xfc_lang::graph::Type| ty.dims[1..].iter().map(|d| d.fixed().unwrap() as usize).product::<usize>();
    let drawn: BTreeMap<&str, Vec<f64>> =
        program.inputs.iter().map(|i| (i.name.as_str(), numbers(&i.name, 5, n * width(&i.ty)))).collect();
    let (mut state, mut all, mut at) = (State::new(), Vec::new(), 0);
    for step in steps {
        let part = |i: &xfc_lang::graph::InputDecl| {
            let w = width(&i.ty);
            let dims: Vec<usize> =
                [*step].into_iter().chain(i.ty.dims[1..].iter().map(|d| d.fixed().unwrap() as usize)).collect();
            (i.name.clone(), Tensor::f64(dims, drawn[i.name.as_str()][at * w..(at + step) * w].to_vec()))
        };
        let inputs = program.inputs.iter().map(part).collect();
        all.extend(interpreter.step(&mut state, &inputs).unwrap()["y"].to_f64());
        at += step;
    }
    (all, drawn["x"].clone())
}

fn close(a: &[f64], b: &[f64]) {
    assert_eq!(a.len(), b.len());
    for (i, (x, y)) in a.iter().zip(b).enumerate() {
        assert!((x - y).abs() < 1e-12, "element {i}: {x} and {y}");
    }
}

const PIECES: [&[usize]; 4] = [&[7], &[1, 1, 1, 1, 1, 1, 1], &[3, 4], &[1, 5, 1]];

/// The whole in one step, which all ways of giving it in pieces agree with.
fn in_pieces(wiring: &str) -> (Vec<f64>, Vec<f64>) {
    let program = program(wiring);
    let whole = run(&program, PIECES[0]);
    for pieces in &PIECES[1..] {
        close(&run(&program, pieces).0, &whole.0);
    }
    whole
}

#[test]
fn sums_of_all_tokens_so_far() {
    let (y, x) = in_pieces("model(x: f32[tokens, 3]) { return {y: cumsum(x)} }");
    let expected: Vec<f64> = (0..21).map(|i| (0..=i / 3).map(|t| x[3 * t + i % 3]).sum()).collect();
    close(&y, &expected);
}

#[test]
fn convolutions_of_the_last_tokens() {
    let (y, x) = in_pieces("model(x: f32[tokens, 3]) { conv1d = causal_conv(4, true) return {y: conv1d(x)} }");
    let (w, b) = (numbers("conv1d.weight", 3, 12), numbers("conv1d.bias", 3, 3));
    let at = |t: usize, d: usize| {
        let tap = |k: usize| (t + k).checked_sub(3).map_or(0.0, |from| w[4 * d + k] * x[3 * from + d]);
        b[d] + (0..4).map(tap).sum::<f64>()
    };
    close(&y, &(0..21).map(|i| at(i / 3, i % 3)).collect::<Vec<_>>());
}

#[test]
fn linear_attention_is_attention_without_softmax() {
    let wiring = |y: &str| {
        format!(
            "model(x: f32[tokens, 6], k: f32[tokens, 6], v: f32[tokens, 4]) {{\n  q = split(x, 2)\n  k' = split(k, 2)\n  v' = split(v, 2)\n  return {{y: {y}}}\n}}"
        )
    };
    let (y, q) =
        in_pieces(&wiring("scan(linear_memory, 0.0, q, k', v', [[0.5]])").replace("[[0.5]]", "sum(q * 0) + 0.5"));
    let (k, v) = (numbers("k", 5, 42), numbers("v", 5, 28));
    let mut expected = Vec::new();
    for (t, h, e) in (0..7).flat_map(|t| (0..4).map(move |i| (t, i / 2, i % 2))) {
        let product = |s: usize| (0..3).map(|d| q[6 * t + 3 * h + d] * k[6 * s + 3 * h + d]).sum::<f64>();
        expected.push((0..=t).map(|s| 0.5f64.powi((t - s) as i32) * product(s) * v[4 * s + 2 * h + e]).sum());
    }
    close(&y, &expected);
}

#[test]
fn a_delta_rule_replaces_what_its_key_recalls() {
    // With one key of length one and the rate one, the memory holds the last value.
    let wiring = "model(x: f32[tokens, 8], v: f32[tokens, 6]) {\n  k = split(x * 0, 2) + [0.5, 0.5, 0.5, 0.5]\n\
                  \x20 one = sum(k * 0) + 1\n  return {y: merge(scan(delta_memory, zeros(2, 4, 3), k, k, split(v, 2), one, one))}\n}";
    let (y, _) = in_pieces(wiring);
    close(&y, &numbers("v", 5, 42));
}

#[test]
fn several_states_and_learned_starts() {
    let wiring = "mean_so_far(x) {\n  start = param[width(x)]\n\
                  \x20 step(total, n, x) { t = total + x\n    m = n + 1\n    return t, m, t / m }\n  return scan(step, [start, 0], x)\n}\n\
                  layer(x) { m = mean_so_far return x + m(x) }\n\
                  model(x: f32[tokens, 3]) { layers = [layer for i in 0..2] return {y: layers(x)} }";
    let (y, x) = in_pieces(wiring);
    let mut h = x;
    for layer in 0..2 {
        let start = numbers(&format!("layers.{layer}.m.start"), 3, 3);
        let mean = |t: usize, d: usize| (start[d] + (0..=t).map(|s| h[3 * s + d]).sum::<f64>()) / (t + 1) as f64;
        h = (0..21).map(|i| h[i] + mean(i / 3, i % 3)).collect();
    }
    close(&y, &h);
}

#[test]
fn one_vector_of_a_sequence() {
    let whole = |y: &str| {
        let wiring = format!(
            "model(x: f32[tokens, 3], mark: f32[tokens, 1]) {{\n  mean = mean_token\n  at = token_where\n  largest = token_of_largest\n\
             \x20 return {{y: {y}}}\n}}"
        );
        run(&program(&wiring), &[7])
    };
    let by = numbers("mark", 5, 7);
    let (y, x) = whole("last(x)");
    close(&y, &x[18..]);
    let (y, x) = whole("mean(x)");
    close(&y, &(0..3).map(|d| (0..7).map(|t| x[3 * t + d]).sum::<f64>() / 7.0).collect::<Vec<_>>());
    let positive: Vec<usize> = (0..7).filter(|t| by[*t] > 0.0).collect();
    let (y, x) = whole("mean(x, where(mark > 0, 1, 0))");
    let mean = |d: usize| positive.iter().map(|t| x[3 * t + d]).sum::<f64>() / positive.len() as f64;
    close(&y, &(0..3).map(mean).collect::<Vec<_>>());
    let (y, x) = whole("at(x, mark > 0)");
    close(&y, &x[3 * positive[0]..][..3]);
    let (y, x) = whole("largest(x, mark + 1)");
    let largest = (0..7).fold(0, |best, t| if by[t] > by[best] { t } else { best });
    close(&y, &x[3 * largest..][..3]);
}

#[test]
fn attention_without_a_softmax_is_the_scan_that_it_sums() {
    let wiring = |y: &str| {
        format!(
            "model(x: f32[tokens, 6], k: f32[tokens, 6], v: f32[tokens, 8]) {{\n  q = split(x, 2)\n  keys = split(k, 2)\n  values = split(v, 2)\n\
             \x20 return {{y: {y}}}\n}}"
        )
    };
    let summed = "attend(q, cache(keys), cache(values), causal, score * 0.75 ^ (q_pos - k_pos), softmax = false)";
    close(&in_pieces(&wiring(summed)).0, &in_pieces(&wiring("scan(linear_memory, 0.0, q, keys, values, 0.75)")).0);
}
