//! Small programs that exercise one construct of the code generator each, against the interpreter.

use xfc_runtime::step::InputData::{Floats, Ints};
use xfc_tests::program::{Given, agree, manifest, of_wiring};

/// Pseudo-random floats in -2..2.
pub(crate) fn floats(n: usize) -> Vec<f32> {
    (0..n).map(|i| ((i as f32 * 12.9898).sin() * 43758.547).fract() * 2.0).collect()
}

pub(crate) fn check(text: &str, steps: &[Vec<Given<'_>>]) {
    if let Err(error) = agree(text, steps) {
        panic!("{error}");
    }
}

/// A main graph of one input `x: f32[tokens, D]`, run on 1, 5 and 33 tokens.
fn on_rows(width: usize, body: &str) {
    let text =
        format!("program \"p\" axes [tokens]\n\ngraph 0 \"model\" (%0 x: f32[tokens, {width}]) {{\n{body}\n}}\n");
    for n in [1, 5, 33] {
        check(&text, &[vec![("x", Floats(floats(n * width)))]]);
    }
}

#[test]
fn elementwise_functions() {
    on_rows(
        37,
        r#"  %1 = exp %0 : f32[tokens, 37]
  %2 = tanh %0 : f32[tokens, 37]
  %3 = erf %0 : f32[tokens, 37]
  %4 = sigmoid %0 : f32[tokens, 37]
  %5 = softplus %0 : f32[tokens, 37]
  %6 = sin %0 : f32[tokens, 37]
  %7 = cos %0 : f32[tokens, 37]
  %8 = abs %0 : f32[tokens, 37]
  %9 = log %8 : f32[tokens, 37]
  %10 = sqrt %8 : f32[tokens, 37]
  %11 = rsqrt %1 : f32[tokens, 37]
  %12 = floor %0 : f32[tokens, 37]
  %13 = neg %0 : f32[tokens, 37]
  return exp = %1, tanh = %2, erf = %3, sigmoid = %4, softplus = %5, sin = %6, cos = %7, log = %9, sqrt = %10, rsqrt = %11, floor = %12, neg = %13"#,
    );
}

#[test]
fn floats_to_integers_and_back() {
    let text = r#"program "p" axes [tokens]

graph 0 "model" (%0 x: f32[tokens, 21]) {
  %1 = cast %0 : i64[tokens, 21]
  %2 = const {values = [2]} : i64
  %3 = mod %1, %2 : i64[tokens, 21]
  %4 = add %1, %3 : i64[tokens, 21]
  %5 = cast %4 : f32[tokens, 21]
  return y = %5
}
"#;
    let x = floats(63).into_iter().map(|x| x * 1000.0).collect();
    check(text, &[vec![("x", Floats(x))]]);
}

#[test]
fn powers_of_negative_bases() {
    on_rows(
        5,
        r#"  %1 = const {values = [4]} : f32
  %2 = pow %0, %1 : f32[tokens, 5]
  %3 = const {values = [-3]} : f32
  %4 = pow %0, %3 : f32[tokens, 5]
  %5 = const {values = [0]} : f32
  %6 = pow %0, %5 : f32[tokens, 5]
  %7 = floor %0 : f32[tokens, 5]
  %8 = pow %0, %7 : f32[tokens, 5]
  return a = %2, c = %6, d = %8"#,
    );
}

#[test]
fn reductions_and_their_broadcast() {
    on_rows(
        19,
        r#"  %1 = reduce_sum %0 : f32[tokens, 1]
  %2 = reduce_max %0 : f32[tokens, 1]
  %3 = reduce_min %0 : f32[tokens, 1]
  %4 = reduce_mean %0 : f32[tokens, 1]
  %5 = sub %0, %2 : f32[tokens, 19]
  %6 = reduce_max %5 : f32[tokens, 1]
  %7 = mul %5, %4 : f32[tokens, 19]
  return sum = %1, max = %2, min = %3, mean = %4, shifted = %7, zero = %6"#,
    );
}

#[test]
fn maxima_keep_nan() {
    let text = r#"program "p" axes [tokens]

graph 0 "model" (%0 x: f32[tokens, 21]) {
  %1 = reduce_max %0 : f32[tokens, 1]
  %2 = const {values = [0]} : f32
  %3 = max %0, %2 : f32[tokens, 21]
  %4 = min %2, %0 : f32[tokens, 21]
  return max = %1, relu = %3, low = %4
}
"#;
    for at in [0, 7, 20] {
        let mut x = floats(42);
        x[at] = f32::NAN;
        check(text, &[vec![("x", Floats(x))]]);
    }
}

#[test]
fn views_of_views() {
    on_rows(
        24,
        r#"  %1 = reshape %0 : f32[tokens, 2, 3, 4]
  %2 = transpose %1 {perm = [0, 2, 1, 3]} : f32[tokens, 3, 2, 4]
  %3 = slice %2 {dim = 1, start = 1} : f32[tokens, 2, 2, 4]
  %4 = reshape %3 : f32[tokens, 2, 8]
  %5 = repeat %4 {dim = 1, times = 3} : f32[tokens, 6, 8]
  %6 = concat %5, %4 {dim = 1} : f32[tokens, 8, 8]
  %7 = mul %6, %6 : f32[tokens, 8, 8]
  return a = %7, b = %2"#,
    );
}

#[test]
fn an_index_of_one_element_and_integer_tables() {
    on_rows(
        6,
        r#"  %1 = index : i64[1]
  %2 = cast %1 : f32[1]
  %3 = add %0, %2 : f32[tokens, 6]
  %4 = const {values = [1, 0, 1, 2, 0, 5]} : i64[6]
  %5 = index : i64[6]
  %6 = add %4, %5 : i64[6]
  %7 = cast %6 : f32[6]
  %8 = mul %3, %7 : f32[tokens, 6]
  return y = %8"#,
    );
}

#[test]
fn a_weight_of_higher_rank_than_its_rows() {
    on_rows(
        40,
        r#"  %1 = weight {path = "w"} : f32[1, 40]
  %2 = add %0, %1 : f32[tokens, 40]
  return y = %2"#,
    );
}

#[test]
fn booleans_in_memory() {
    let text = r#"program "p" axes [tokens]

graph 0 "model" (%0 x: f32[tokens, 20], %1 keep: bool[tokens, 20]) {
  %2 = const {values = [0]} : f32
  %3 = gt %0, %2 : bool[tokens, 20]
  %4 = and %3, %1 : bool[tokens, 20]
  %5 = select %4, %0, %2 : f32[tokens, 20]
  return y = %5, kept = %4
}
"#;
    let keep = (0..60).map(|i| i64::from(i % 3 != 0)).collect();
    check(text, &[vec![("x", Floats(floats(60))), ("keep", Ints(keep))]]);
}

#[test]
fn integer_division_of_either_sign() {
    let text = r#"program "p" axes [tokens]

graph 0 "model" (%0 a: i64[tokens], %1 b: i64[tokens]) {
  %2 = floor_div %0, %1 : i64[tokens]
  %3 = mod %0, %1 : i64[tokens]
  %4 = const {values = [-3]} : i64
  %5 = floor_div %0, %4 : i64[tokens]
  %6 = mod %0, %4 : i64[tokens]
  return q = %2, r = %3, q3 = %5, r3 = %6
}
"#;
    let a = vec![7, -7, 7, -7, 0, 9, -9];
    let b = vec![2, 2, -2, -2, 5, -1, 1];
    check(text, &[vec![("a", Ints(a)), ("b", Ints(b))]]);
}

/// Products of which some have a bias; a mask in place of an epilogue; what follows the last attention reshaped.
#[test]
fn one_block_without_a_list_of_layers() {
    let text = r#"program "p" axes [tokens]

graph 0 "model" (%0 x: f32[tokens, 12]) {
  %1 = weight {path = "q.weight"} : f32[12, 12]
  %2 = contract %0, %1 {spec = "ni,oi->no"} : f32[tokens, 12]
  %3 = weight {path = "q.bias"} : f32[12]
  %4 = add %2, %3 : f32[tokens, 12]
  %5 = reshape %4 : f32[tokens, 2, 6]
  %6 = weight {path = "k.weight"} : f32[6, 12]
  %7 = contract %0, %6 {spec = "ni,oi->no"} : f32[tokens, 6]
  %8 = reshape %7 : f32[tokens, 1, 6]
  %9 = weight {path = "v.weight"} : f32[6, 12]
  %10 = contract %0, %9 {spec = "ni,oi->no"} : f32[tokens, 6]
  %11 = weight {path = "v.bias"} : f32[6]
  %12 = add %10, %11 : f32[tokens, 6]
  %13 = reshape %12 : f32[tokens, 1, 6]
  %14 = cache %8 {path = "k"} : f32[visible(tokens), 1, 6]
  %15 = cache %13 {path = "v"} : f32[visible(tokens), 1, 6]
  %16 = reshape %5 : f32[tokens, 1, 2, 6]
  %17 = contract %16, %14 {spec = "nkgd,vkd->kgnv"} : f32[1, 2, tokens, visible(tokens)]
  %18 = position : i64[tokens]
  %19 = reshape %18 : i64[tokens, 1]
  %20 = position : i64[visible(tokens)]
  %21 = le %20, %19 : bool[tokens, visible(tokens)]
  %22 = sub %19, %20 : i64[tokens, visible(tokens)]
  %23 = const {values = [9223372036854775807]} : i64
  %24 = lt %22, %23 : bool[tokens, visible(tokens)]
  %25 = and %21, %24 : bool[tokens, visible(tokens)]
  %26 = softmax %17, %25 : f32[1, 2, tokens, visible(tokens)]
  %27 = contract %26, %15 {spec = "kgnv,vkd->nkgd"} : f32[tokens, 1, 2, 6]
  %28 = reshape %27 : f32[tokens, 12]
  %29 = weight {path = "o.weight"} : f32[12, 12]
  %30 = contract %28, %29 {spec = "ni,oi->no"} : f32[tokens, 12]
  %31 = const {values = [0]} : f32
  %32 = gt %0, %31 : bool[tokens, 12]
  %33 = select %32, %30, %31 : f32[tokens, 12]
  return y = %33
}
"#;
    let x = floats(12 * 40);
    let step = |range: std::ops::Range<usize>| vec![("x", Floats(x[range.start * 12..range.end * 12].to_vec()))];
    check(text, &[step(0..17), step(17..18), step(18..40)]);
}

/// A slope for each head times the distance, and a mask that only some heads have.
#[test]
fn scores_and_masks_of_heads() {
    let text = r#"program "p" axes [tokens]

graph 0 "model" (%0 x: f32[tokens, 12]) {
  %1 = weight {path = "q.weight"} : f32[24, 12]
  %2 = contract %0, %1 {spec = "ni,oi->no"} : f32[tokens, 24]
  %3 = reshape %2 : f32[tokens, 2, 2, 6]
  %4 = weight {path = "k.weight"} : f32[12, 12]
  %5 = contract %0, %4 {spec = "ni,oi->no"} : f32[tokens, 12]
  %6 = reshape %5 : f32[tokens, 2, 6]
  %7 = tanh %6 : f32[tokens, 2, 6]
  %8 = cache %6 {path = "k"} : f32[visible(tokens), 2, 6]
  %9 = cache %7 {path = "v"} : f32[visible(tokens), 2, 6]
  %10 = contract %3, %8 {spec = "nkgd,vkd->kgnv"} : f32[2, 2, tokens, visible(tokens)]
  %11 = position : i64[tokens]
  %12 = reshape %11 : i64[tokens, 1]
  %13 = position : i64[visible(tokens)]
  %14 = sub %13, %12 : i64[tokens, visible(tokens)]
  %15 = cast %14 : f32[tokens, visible(tokens)]
  %16 = index : i64[4]
  %17 = reshape %16 : i64[2, 2, 1, 1]
  %18 = cast %17 : f32[2, 2, 1, 1]
  %19 = const {values = [-2]} : f32
  %20 = mul %18, %19 : f32[2, 2, 1, 1]
  %21 = const {values = [2]} : f32
  %22 = pow %21, %20 : f32[2, 2, 1, 1]
  %23 = mul %22, %15 : f32[2, 2, tokens, visible(tokens)]
  %24 = add %10, %23 : f32[2, 2, tokens, visible(tokens)]
  %25 = le %13, %12 : bool[tokens, visible(tokens)]
  %26 = const {values = [2]} : i64
  %27 = lt %17, %26 : bool[2, 2, 1, 1]
  %28 = const {values = [-5]} : i64
  %29 = gt %14, %28 : bool[tokens, visible(tokens)]
  %30 = or %27, %29 : bool[2, 2, tokens, visible(tokens)]
  %31 = and %25, %30 : bool[2, 2, tokens, visible(tokens)]
  %32 = softmax %24, %31 : f32[2, 2, tokens, visible(tokens)]
  %33 = contract %32, %9 {spec = "kgnv,vkd->nkgd"} : f32[tokens, 2, 2, 6]
  %34 = reshape %33 : f32[tokens, 24]
  return y = %34
}
"#;
    let x = floats(12 * 40);
    let step = |range: std::ops::Range<usize>| vec![("x", Floats(x[range.start * 12..range.end * 12].to_vec()))];
    check(text, &[step(0..17), step(17..18), step(18..40)]);
}

/// Keys made once in the model and attended to by every layer: they come in as an argument, and are nobody's cache.
#[test]
fn keys_that_are_an_argument() {
    let layer = r#"  %3 = reshape %0 : f32[tokens, 2, 1, 4]
  %4 = contract %3, %1 {spec = "nkgd,vkd->kgnv"} : f32[2, 1, tokens, tokens]
  %5 = softmax %4 : f32[2, 1, tokens, tokens]
  %6 = contract %5, %2 {spec = "kgnv,vkd->nkgd"} : f32[tokens, 2, 1, 4]
  %7 = reshape %6 : f32[tokens, 8]
  %8 = weight {path = "o.weight"} : f32[8, 8]
  %9 = contract %7, %8 {spec = "ni,oi->no"} : f32[tokens, 8]
  %10 = add %0, %9 : f32[tokens, 8]
  return y = %10"#;
    let text = format!(
        r#"program "p" axes [tokens]

graph 0 "model" (%0 x: f32[tokens, 8]) {{
  %1 = weight {{path = "k.weight"}} : f32[8, 8]
  %2 = contract %0, %1 {{spec = "ni,oi->no"}} : f32[tokens, 8]
  %3 = reshape %2 : f32[tokens, 2, 4]
  %4 = tanh %3 : f32[tokens, 2, 4]
  %5 = call %0, %3, %4 {{graph = 1, at = "layers.0"}} : f32[tokens, 8]
  %6 = call %5, %3, %4 {{graph = 1, at = "layers.1"}} : f32[tokens, 8]
  %7 = reshape %6 : f32[tokens, 2, 1, 4]
  %8 = contract %7, %4 {{spec = "nkgd,vkd->kgnv"}} : f32[2, 1, tokens, tokens]
  %9 = softmax %8 : f32[2, 1, tokens, tokens]
  %10 = contract %9, %3 {{spec = "kgnv,vkd->nkgd"}} : f32[tokens, 2, 1, 4]
  %11 = reshape %10 : f32[tokens, 8]
  return y = %11
}}

graph 1 "layer" (%0 h: f32[tokens, 8], %1 k: f32[tokens, 2, 4], %2 v: f32[tokens, 2, 4]) {{
{layer}
}}
"#
    );
    check(&text, &[vec![("x", Floats(floats(8 * 29)))], vec![("x", Floats(floats(8 * 3)))]]);
}

/// Masks and scores read tables at positions and heads, and what each query and each key brings.
#[test]
fn masks_and_scores_read_tensors() {
    let wiring = r#"far(n, h)(distance, of_head) {
  weight = param[n, h]
  small = [0.5, -0.25, 1]
  return gather(weight, min(abs(distance), n - 1), of_head) + gather(small, abs(distance) % 3)
}

model(x: f32[tokens, 24], kind: i64[tokens], pull: f32[tokens], loud: f32[tokens, 4]) {
  bias = far(9, 4)
  q = split(x, 4)
  seen = causal and (q_pos - k_pos < 5 or cache(kind) == 2 or kind == 3)
  scores = (score + bias(k_pos - q_pos, head)) * (1 + split(loud, 4)) + cache(pull) * (head + 1) - pull
  return {y: merge(attend(q, cache(q), cache(q * 2), seen, scores, 0.4))}
}"#;
    let text = of_wiring(wiring).expect("it expands");
    let (x, loud) = (floats(50 * 24), floats(50 * 4));
    let kind: Vec<i64> = (0..50).map(|i| i * i % 7 % 5 + (i64::from(i == 40) << 33)).collect();
    let step = |range: std::ops::Range<usize>| {
        let (from, to) = (range.start, range.end);
        vec![
            ("x", Floats(x[from * 24..to * 24].to_vec())),
            ("kind", Ints(kind[from..to].to_vec())),
            ("pull", Floats(floats(50)[from..to].to_vec())),
            ("loud", Floats(loud[from * 4..to * 4].to_vec())),
        ]
    };
    check(&text, &[step(0..1), step(1..17), step(17..18), step(18..50)]);
}

/// A number a head, learned or made of the query, or one for all; also where a query sees no key.
#[test]
fn sinks_of_attention() {
    let wiring = r#"mask causal = k_pos <= q_pos
mask late = k_pos <= q_pos and k_pos >= 3
mask nobody = k_pos < 0
model(x: f32[tokens, 24], loud: f32[tokens, 6]) {
  sinks = param[6]
  q = split(x, 6)
  k, v = parts(x, [8, 16])
  k' = cache(split(k, 2))
  v' = cache(split(v, 2))
  a = attend(q, k', v', causal, sinks = sinks)
  b = attend(q, k', v', late, score * 3, 0.4, 2 * sinks - loud)
  c = attend(q, k', v', late, sinks = (head - 2) * 0.1 * q_pos)
  d = attend(q, k', v', causal, sinks = [-40, -1, 0, 1, 2, 40])
  e = attend(q, k', v', nobody)
  f = attend(q, k', v', nobody, sinks = 1.5)
  return {a: merge(a), b: merge(b), c: merge(c), d: merge(d), e: merge(e), f: merge(f), g: merge(attend(q, q, q, sinks = sinks))}
}"#;
    let text = of_wiring(wiring).expect("it expands");
    let (x, loud) = (floats(50 * 24), floats(50 * 6));
    check(&text, &[vec![("x", Floats(x.clone())), ("loud", Floats(loud.clone()))]]);
    let text = of_wiring(&wiring.replace(", g: merge(attend(q, q, q, sinks = sinks))", "")).expect("it expands");
    let step = |range: std::ops::Range<usize>| {
        let (from, to) = (range.start, range.end);
        vec![("x", Floats(x[from * 24..to * 24].to_vec())), ("loud", Floats(loud[from * 6..to * 6].to_vec()))]
    };
    check(&text, &[step(0..1), step(1..18), step(18..19), step(19..50)]);
}

/// Keys and values that one layer keeps and others read, under other masks; streams that go through layers together.
#[test]
fn caches_that_layers_share() {
    let wiring = r#"attention(seen)(x, kept = none) {
  q = split(x, 2)
  k = if kept is none then cache(tanh(q)) else kept[0]
  v = if kept is none then cache(q * 2) else kept[1]
  return merge(attend(q, k, v, seen)), [k, v]
}

layer(i)(streams, kept) {
  own = attention(if i % 2 == 0 then window(5) else causal)
  y, mine = own(streams[0] - 0.5 * streams[1], if i < 2 then none else if i % 2 == 0 then kept.near else kept.all)
  return [streams[1] + tanh(y), streams[0] * 0.5], if i == 0 then {near: mine, all: none} else if i == 1 then {near: kept.near, all: mine} else kept
}

model(x: f32[tokens, 16], kind: i64[tokens]) {
  layers = [layer(i) for i in 0..6]
  kinds = cache(kind)
  marked(x) {
    q = split(x, 2)
    return x + merge(attend(q, cache(q), cache(q * 3), causal and kinds == 1))
  }
  more = [marked for i in 0..2]
  streams, kept = layers([x, tanh(x)], {near: none, all: none})
  return {y: more(streams[0]), z: streams[1]}
}"#;
    let text = of_wiring(wiring).expect("it expands");
    let x = floats(50 * 16);
    let kind: Vec<i64> = (0..50).map(|i| i64::from(i % 3 == 1)).collect();
    let step = |range: std::ops::Range<usize>| {
        let (from, to) = (range.start, range.end);
        vec![("x", Floats(x[from * 16..to * 16].to_vec())), ("kind", Ints(kind[from..to].to_vec()))]
    };
    check(&text, &[step(0..1), step(1..18), step(18..19), step(19..50)]);
    let slots = |manifest: &xfc_runtime::artifact::manifest::Manifest| -> Vec<(String, usize)> {
        manifest.caches.iter().map(|group| (group.name.clone(), group.slots.len())).collect()
    };
    let made = manifest(&text).expect("it compiles");
    let expected = [("window 5", 2), ("full", 7)].map(|(name, n)| (name.to_owned(), n));
    let mut found = slots(&made);
    found.sort_by_key(|(_, n)| *n);
    assert_eq!(found, expected, "two of two layers each, one for all, and two of two layers");
}

#[test]
fn softmax_with_a_sink() {
    on_rows(
        19,
        r#"  %1 = const {values = [0]} : f32
  %2 = gt %0, %1 : bool[tokens, 19]
  %3 = reduce_mean %0 : f32[tokens, 1]
  %4 = softmax %0, %2, %3 : f32[tokens, 19]
  %5 = const {values = [0]} : bool
  %6 = softmax %0, %5, %1 : f32[tokens, 19]
  return y = %4, nothing = %6"#,
    );
}

/// Ids behind an offset, and positions in a table, are limited by the table and not clamped in silence.
#[test]
fn tables_limit_what_indexes_them() {
    let text = r#"program "p" axes [tokens]

graph 0 "model" (%0 ids: i64[tokens]) {
  %1 = const {values = [2]} : i64
  %2 = add %0, %1 : i64[tokens]
  %3 = weight {path = "table"} : f32[10, 3]
  %4 = gather %3, %2 : f32[tokens, 3]
  return y = %4
}
"#;
    check(text, &[vec![("ids", Ints(vec![0, 7, 3]))]]);
    let manifest = manifest(text).expect("it compiles");
    assert_eq!(manifest.inputs[0].limit, Some(8));
}

/// One matrix for all heads of a token, with everything that an epilogue takes in.
#[test]
fn products_of_heads() {
    on_rows(
        15,
        r#"  %1 = reshape %0 : f32[tokens, 3, 5]
  %2 = weight {path = "w"} : f32[7, 5]
  %3 = contract %1, %2 {spec = "nhi,oi->nho"} : f32[tokens, 3, 7]
  %4 = weight {path = "b"} : f32[7]
  %5 = add %3, %4 : f32[tokens, 3, 7]
  %6 = tanh %5 : f32[tokens, 3, 7]
  %7 = weight {path = "by_head"} : f32[3, 7]
  %8 = mul %6, %7 : f32[tokens, 3, 7]
  %9 = weight {path = "back"} : f32[5, 7]
  %10 = contract %8, %9 {spec = "nho,io->nhi"} : f32[tokens, 3, 5]
  %11 = add %10, %1 : f32[tokens, 3, 5]
  %12 = reduce_mean %1 : f32[tokens, 3, 1]
  %13 = mul %11, %12 : f32[tokens, 3, 5]
  return y = %13, z = %8"#,
    );
}

/// The first of a sequence that is as long as it is given.
#[test]
fn the_first_token_of_a_sequence() {
    let text = r#"program "p" axes [tokens, sequence = 1]

graph 0 "model" (%0 x: f32[tokens, 6]) {
  %1 = tanh %0 : f32[tokens, 6]
  %2 = first %1 : f32[sequence, 6]
  %3 = exp %2 : f32[sequence, 6]
  %4 = first %0 : f32[sequence, 6]
  %5 = weight {path = "w"} : f32[5, 6]
  %6 = contract %4, %5 {spec = "ni,oi->no"} : f32[sequence, 5]
  return y = %3, z = %6, all = %1
}
"#;
    check(text, &[vec![("x", Floats(floats(6)))], vec![("x", Floats(floats(60)))]]);
}
