//! Attention under masks that leave out whole pages of keys: against the interpreter, and that such pages are passed over.

use xfc_runtime::step::InputData::{Floats, Ints};
use xfc_tests::Result;
use xfc_tests::command::Shell;
use xfc_tests::program::{of_wiring, same_in_small_steps};

use crate::programs::{check, floats};

/// Masks that leave out whole pages of keys, for reasons that lie in the keys, the query, the positions or the head.
#[test]
fn pages_that_a_mask_leaves_out() {
    let wiring = r#"model(x: f32[tokens, 24], chosen: i64[tokens]) {
  q = split(x, 4)
  k = cache(q)
  v = cache(q * 2)
  is_chosen = cache(chosen) == 1
  near = attend(q, k, v, around(7))
  local = attend(q, k, v, around(3) or is_chosen, score + k_pos % 5, 0.4)
  global = attend(q, k, v, chosen == 1)
  both = attend(q, k, v, is_chosen and chosen == 1, sinks = 0.5)
  spread = attend(q, k, v, (q_pos // 16 - k_pos // 16) % (head + 2) == 0)
  wide = attend(q, k, v, (q_pos - k_pos) % 37 == 0 or k_pos // 20 == q_pos // 20)
  return {near: merge(near), local: merge(local), global: merge(global), both: merge(both), spread: merge(spread), wide: merge(wide)}
}"#;
    let text = of_wiring(wiring).expect("it expands");
    let x = floats(150 * 24);
    let step = |n: usize, chosen: &dyn Fn(usize) -> bool| {
        vec![("x", Floats(x[..n * 24].to_vec())), ("chosen", Ints((0..n).map(|i| i64::from(chosen(i))).collect()))]
    };
    check(
        &text,
        &[step(150, &|i| i == 0 || i == 77), step(129, &|_| false), step(64, &|i| i > 47), step(1, &|_| true)],
    );

    // Through caches, where some steps have one query.
    let wiring = r#"model(x: f32[tokens, 24], chosen: i64[tokens]) {
  q = split(x, 4)
  k, v = parts(x, [12, 12])
  a = attend(q, cache(split(k, 2)), cache(split(v, 2)), causal and (q_pos - k_pos < 5 or cache(chosen) == 1))
  b = attend(q, cache(split(v, 2)), cache(split(k, 2)), causal and (q_pos // 16 - k_pos // 16) % 3 == 0)
  c = attend(q, cache(split(v, 2)), cache(split(v, 2)), causal and q_pos - k_pos < 60 and chosen == 1)
  return {a: merge(a), b: merge(b), c: merge(c)}
}"#;
    let text = of_wiring(wiring).expect("it expands");
    let chosen: Vec<i64> = (0..150).map(|i| i64::from(i == 3 || i % 70 == 69)).collect();
    let step = |range: std::ops::Range<usize>| {
        let (from, to) = (range.start, range.end);
        vec![("x", Floats(x[from * 24..to * 24].to_vec())), ("chosen", Ints(chosen[from..to].to_vec()))]
    };
    check(&text, &[step(0..69), step(69..70), step(70..71), step(71..150)]);
}

/// Steps of few rows divide the keys into parts of blocks, of which the first rows have few and later ones several.
#[test]
fn parts_of_many_keys() -> Result<()> {
    let wiring = r#"model(x: f32[tokens, 24]) {
  q = split(x, 4)
  k, v = parts(x, [12, 12])
  all = attend(q, cache(split(k, 2)), cache(split(v, 2)), causal)
  near = attend(q, cache(split(v, 2)), cache(split(k, 2)), causal and q_pos - k_pos < 700, sinks = 0.5)
  some = attend(q, cache(split(k, 2)), cache(split(k, 2)), causal and (q_pos - k_pos) % 71 < 20)
  return {all: merge(all), near: merge(near), some: merge(some)}
}"#;
    let text = of_wiring(wiring)?;
    let rows: Vec<Vec<f32>> = floats(4400 * 24).chunks(24).map(<[f32]>::to_vec).collect();
    same_in_small_steps(&text, &rows, &[1, 1, 8, 3])?;
    same_in_small_steps(&text, &rows[..530], &[2, 8, 1])?;

    // The same against the interpreter, where a part has one block at most.
    let step = |range: std::ops::Range<usize>| vec![("x", Floats(rows[range].concat()))];
    check(&text, &[step(0..300), step(300..301), step(301..306), step(306..307)]);
    Ok(())
}

/// The mask is evaluated before the products where it may leave out a page, and only there.
#[test]
fn pages_are_tested_where_bounds_do_not_say_all() -> Result<()> {
    let shell = Shell::new()?;
    for (model, sets, tested) in [
        ("longformer", vec![], true),
        ("mistral", vec![], false),
        ("mistral", vec!["--set", "window(n) = causal and (q_pos - k_pos < n or k_pos == 0)"], true),
    ] {
        let arguments = [&["inspect", model, "--tiny", "--emit", "mlir"], &sets[..]].concat();
        let kernels = shell.run("xfc", &arguments)?.success()?;
        assert!(kernels.contains("vector.reduction <maximumf>"), "{model} {sets:?} has no attention");
        // A loop that carries whether any key is seen.
        assert_eq!(kernels.contains(" -> (i1) : i64 {"), tested, "{model} {sets:?}");
    }
    Ok(())
}
