//! Choices among a token's values, stacks of parameters, and products with the chosen ones, compiled and compared with the interpreter.

use xfc_runtime::cost::{AxisShape, StepShape};
use xfc_runtime::step::InputData::{self, Floats, Ints};
use xfc_tests::program::{Compared, Schedule, compare_with_interpreter, manifest, of_wiring};

use crate::programs::{check, floats};

/// Tables whose rows are parameters of their own: looked up, sliced and turned element by element.
#[test]
fn stacks_of_parameters() {
    let text = r#"program "p" axes [tokens]

graph 0 "model" (%0 ids: i64[tokens]) {
  %1 = weight {path = "e.{2..7}.bias"} : f32[5, 20]
  %2 = gather %1, %0 : f32[tokens, 20]
  %3 = weight {path = "e.{0..5}.weight"} : f32[5, 3, 2]
  %4 = transpose %3 {perm = [0, 2, 1]} : f32[5, 2, 3]
  %5 = slice %4 {dim = 1, start = 1} : f32[5, 1, 3]
  %6 = reshape %5 : f32[5, 3]
  %7 = gather %6, %0 : f32[tokens, 3]
  return y = %2, z = %7
}
"#;
    check(text, &[vec![("ids", Ints(vec![4, 0, 1, 1, 3, 2, 4]))]]);
}

/// Choices among a row's values, of sizes around a vector's and with ties, infinities and NaN.
#[test]
fn choices_among_the_values_of_a_token() {
    for (n, k) in [(1, 1), (5, 5), (16, 3), (70, 8), (512, 16)] {
        let text = format!(
            r#"program "p" axes [tokens]

graph 0 "model" (%0 x: f32[tokens, {n}], %1 seen: bool[tokens, {n}], %2 ints: i64[tokens, 2, {n}]) {{
  %3 = softmax %0 : f32[tokens, {n}]
  %4 = softmax %0, %1 : f32[tokens, {n}]
  %5 = top_k %0 {{k = {k}}} : i64[tokens, {k}]
  %6 = take %3, %5 : f32[tokens, {k}]
  %7 = arg_max %0 : i64[tokens, 1]
  %8 = arg_max %2 : i64[tokens, 2, 1]
  %9 = weight {{path = "t.{{0..{n}}}.rows"}} : f32[{n}, 3, 2]
  %10 = gather %9, %5 : f32[tokens, {k}, 3, 2]
  %11 = contract %10, %6 {{spec = "taij,ta->tij"}} : f32[tokens, 3, 2]
  %12 = contract %10, %10 {{spec = "taij,tbij->tab"}} : f32[tokens, {k}, {k}]
  %16 = const {{values = [0.25]}} : f32
  %17 = softmax %0, %1, %16 : f32[tokens, {n}]
  %13 = sin %0 : f32[tokens, {n}]
  %14 = reshape %13 : f32[tokens, 1, {n}]
  %15 = top_k %14 {{k = 1}} : i64[tokens, 1, 1]
  return soft = %3, masked = %4, best = %5, taken = %6, first = %7, ints = %8, rows = %10, sum = %11, pairs = %12, sine = %15, sunk = %17
}}
"#
        );
        let tokens = 7;
        let mut x: Vec<f32> = (0..tokens * n).map(|i| ((i * 37 % 23) as f32 - 11.0) / 4.0).collect();
        x[n..2 * n].fill(-0.0);
        x[n + n / 2] = 0.0;
        x[2 * n..3 * n].fill(f32::NEG_INFINITY);
        x[3 * n + n / 2] = f32::INFINITY;
        x[3 * n + n - 1] = f32::NAN;
        x[4 * n] = -f32::NAN;
        x[5 * n + n / 3] = f32::NEG_INFINITY;
        let seen = (0..tokens * n).map(|i| i64::from(i % 3 != 0 && i < 6 * n)).collect();
        let ints = (0..2 * tokens * n).map(|i| (i as i64 * 7919 % 101 - 50) << 40).collect();
        check(&text, &[vec![("x", Floats(x)), ("seen", Ints(seen)), ("ints", Ints(ints))]]);
    }
}

/// Products that no weight of the whole width has a part in: with a matrix for each head, and between heads.
#[test]
fn products_of_heads() {
    let wiring = r#"
per_head(x) {
  weight = param[3, 5, 8]
  return einsum('thi,hoi->tho', split(x, 3), weight)
}
turned(x) {
  weight = param[3, 8, 5]
  return einsum('thi,hio->tho', split(x, 3), weight)
}
model(x: f32[tokens, 24]) {
  a = per_head
  b = turned
  first = a(x)
  second = b(x)
  return {y: first, z: second, s: einsum('tho,tpo->thp', first, second), m: einsum('tho,tho->th', first, second)}
}"#;
    let text = of_wiring(wiring).unwrap_or_else(|e| panic!("{e}"));
    check(&text, &[vec![("x", Floats(floats(9 * 24)))], vec![("x", Floats(floats(24)))]]);
}

/// Sizes of a mixture: experts, how many a token has, and the widths outside and inside.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mixture {
    pub(crate) experts: usize,
    pub(crate) chosen: usize,
    pub(crate) width: usize,
    pub(crate) inner: usize,
}

impl Mixture {
    /// Gated experts, the inner products with biases, as `scores` choose them; `dtype` is of the products' operands. The outer products are
    /// of the inner ones, or of `hidden` in bf16, where a last bit of what is rounded before them would be seen.
    pub(crate) fn program(self, dtype: &str) -> String {
        let Mixture { experts: e, chosen: a, width: d, inner: f } = self;
        format!(
            r#"program "p" axes [tokens]

graph 0 "model" (%0 x: f32[tokens, {d}], %1 scores: f32[tokens, {e}], %24 hidden: f32[tokens, {a}, {f}]) {{
  %2 = softmax %1 : f32[tokens, {e}]
  %3 = top_k %2 {{k = {a}}} : i64[tokens, {a}]
  %4 = take %2, %3 : f32[tokens, {a}]
  %5 = cast %0 : {dtype}[tokens, {d}]
  %6 = weight {{path = "e.{{0..{e}}}.gate.weight"}} : {dtype}[{e}, {f}, {d}]
  %7 = gather %6, %3 : {dtype}[tokens, {a}, {f}, {d}]
  %8 = contract %5, %7 {{spec = "ti,taoi->tao"}} : f32[tokens, {a}, {f}]
  %9 = weight {{path = "e.{{0..{e}}}.gate.bias"}} : f32[{e}, {f}]
  %10 = gather %9, %3 : f32[tokens, {a}, {f}]
  %11 = add %8, %10 : f32[tokens, {a}, {f}]
  %12 = sigmoid %11 : f32[tokens, {a}, {f}]
  %13 = mul %11, %12 : f32[tokens, {a}, {f}]
  %14 = weight {{path = "e.{{0..{e}}}.up.weight"}} : {dtype}[{e}, {f}, {d}]
  %15 = gather %14, %3 : {dtype}[tokens, {a}, {f}, {d}]
  %16 = contract %5, %15 {{spec = "ti,taoi->tao"}} : f32[tokens, {a}, {f}]
  %17 = mul %13, %16 : f32[tokens, {a}, {f}]
  %18 = cast %24 : {dtype}[tokens, {a}, {f}]
  %19 = weight {{path = "e.{{0..{e}}}.down.weight"}} : {dtype}[{e}, {d}, {f}]
  %20 = gather %19, %3 : {dtype}[tokens, {a}, {d}, {f}]
  %21 = contract %18, %20 {{spec = "tai,taoi->tao"}} : f32[tokens, {a}, {d}]
  %22 = contract %21, %4 {{spec = "tao,ta->to"}} : f32[tokens, {d}]
  %23 = add %22, %0 : f32[tokens, {d}]
  return y = %23, inner = %17, chosen = %3
}}
"#
        )
        .replace("cast %0 : f32", "reshape %0 : f32")
        .replace("cast %24 : f32", "reshape %17 : f32")
    }

    /// Inputs of `n` tokens; `favourite` is chosen by all of them.
    pub(crate) fn step(self, n: usize, favourite: Option<usize>) -> Vec<(&'static str, InputData)> {
        let mut scores: Vec<f32> = (0..n * self.experts).map(|i| ((i * i + 7 * i) % 31) as f32 / 8.0).collect();
        if let Some(expert) = favourite {
            scores.chunks_exact_mut(self.experts).for_each(|row| row[expert] = 9.0);
        }
        let hidden = floats(n * self.chosen * self.inner);
        vec![("x", Floats(floats(n * self.width))), ("scores", Floats(scores)), ("hidden", Floats(hidden))]
    }
}

const SIZES: [Mixture; 4] = [
    Mixture { experts: 1, chosen: 1, width: 7, inner: 5 },
    Mixture { experts: 5, chosen: 5, width: 33, inner: 70 },
    Mixture { experts: 17, chosen: 3, width: 65, inner: 129 },
    Mixture { experts: 60, chosen: 1, width: 16, inner: 3 },
];

#[test]
fn experts_agree_with_the_interpreter() {
    for mixture in SIZES {
        for dtype in ["f32", "bf16"] {
            let steps = [1, 3, 70].map(|n| mixture.step(n, None));
            let all_to_one = [1, 8, 50].map(|n| mixture.step(n, Some(mixture.experts - 1)));
            check(&mixture.program(dtype), &[&steps[..], &all_to_one[..]].concat());
        }
    }
}

#[test]
fn experts_of_several_sequences() {
    let mixture = SIZES[2];
    let given = |n: usize| {
        let inputs = mixture.step(n, (n.is_multiple_of(2)).then_some(2)).into_iter();
        Some(inputs.map(|(name, data)| (name.to_owned(), data)).collect())
    };
    let schedule: Schedule = vec![
        vec![given(1), given(23), None],
        vec![given(1), given(1), given(37)],
        vec![None, given(2), given(1)],
        vec![given(1), None, None],
    ];
    for dtype in ["f32", "bf16"] {
        let compared =
            compare_with_interpreter(&mixture.program(dtype), &schedule, &["cpu", "cpu:x86-64-v3", "cpu:x86-64"]);
        assert_eq!(compared.unwrap_or_else(|e| panic!("{e}")), Compared::Same);
    }
}

/// A step reads the matrices of the experts that its tokens may have chosen, and no others.
#[test]
fn a_step_costs_the_chosen_experts() {
    let mixture = Mixture { experts: 16, chosen: 3, width: 32, inner: 48 };
    let of_expert = 3 * mixture.width * mixture.inner;
    for (dtype, size) in [("f32", 4), ("bf16", 2)] {
        let manifest = manifest(&mixture.program(dtype)).unwrap_or_else(|e| panic!("{e}"));
        let launches: Vec<&str> =
            manifest.launches.iter().map(|l| manifest.kernels[l.variants[0].kernel].name.as_str()).collect();
        assert_eq!(launches.iter().filter(|name| name.contains("_3of16_")).count(), 2, "{launches:?}");
        for (n, read) in [(1, 3), (4, 12), (70, 16)] {
            let axis = AxisShape { sequences: vec![(0, n)], selected: n };
            let work = StepShape { axes: vec![axis] }.work(&manifest);
            assert_eq!(
                work.weight_bytes,
                read * (of_expert * size + mixture.inner * 4) as u64,
                "{n} tokens in {dtype}"
            );
            assert_eq!(work.flops(), n * 2 * 3 * (of_expert + mixture.width) as u64);
        }
    }
}
