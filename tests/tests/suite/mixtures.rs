//! Choices among a token's values, stacks of parameters, and products with the chosen ones, compiled and compared with the interpreter.

use xfc_runtime::step::InputData::{Floats, Ints};
use xfc_tests::program::of_wiring;

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
  %13 = sin %0 : f32[tokens, {n}]
  %14 = reshape %13 : f32[tokens, 1, {n}]
  %15 = top_k %14 {{k = 1}} : i64[tokens, 1, 1]
  return soft = %3, masked = %4, best = %5, taken = %6, first = %7, ints = %8, rows = %10, sum = %11, pairs = %12, sine = %15
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
