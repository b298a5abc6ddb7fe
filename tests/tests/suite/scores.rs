//! Scores and masks that take one of several numbers that a query brings, or that are kept of a key.

use xfc_runtime::step::InputData::Floats;
use xfc_tests::compile::TARGETS;
use xfc_tests::program::{Compared, Schedule, compare_with_interpreter, manifest, of_wiring};

use crate::programs::floats;

/// Compares the wiring's program, whose input is `x: f32[tokens, 12]`, in steps of three sequences; whether it takes whole sequences.
fn check(wiring: &str, steps: &[[usize; 3]]) -> bool {
    let wiring = format!("near(d) = max(min(d, 5), -5) + 5\nmodel(x: f32[tokens, 12]) {{\n{wiring}\n}}");
    let text = of_wiring(&wiring).unwrap_or_else(|e| panic!("{e}"));
    let given = |n: usize| (n > 0).then(|| vec![("x".to_owned(), Floats(floats(n * 12)))]);
    let schedule: Schedule = steps.iter().map(|step| step.iter().map(|n| given(*n)).collect()).collect();
    let compared = compare_with_interpreter(&text, &schedule, &TARGETS).unwrap_or_else(|e| panic!("{e}\n{text}"));
    assert_eq!(compared, Compared::Same);
    manifest(&text).unwrap_or_else(|e| panic!("{e}")).whole_sequences
}

const GROWING: [[usize; 3]; 5] = [[5, 0, 0], [1, 19, 0], [3, 1, 1], [1, 1, 33], [20, 2, 17]];
const WHOLE: [[usize; 3]; 3] = [[1, 0, 2], [17, 33, 0], [5, 16, 40]];

/// Every head has its own numbers, by distances either way.
#[test]
fn rows_of_queries_and_of_keys() {
    let body = "  a, b = linear(12)\n  of_query, of_key = linear(33)\n\
        \x20 q = split(a(x), 3)\n  k = cache(split(b(x), 3))\n  v = cache(split(x, 3))\n\
        \x20 s = score + take(split(of_query(x), 3), near(q_pos - k_pos)) + take(cache(split(of_key(x), 3)), near(k_pos - q_pos))\n";
    assert!(!check(&format!("{body}  return {{y: merge(attend(q, k, v, causal, s))}}"), &GROWING));
    assert!(!check(&format!("{body}  return {{y: merge(attend(q, k, v, window(9), s))}}"), &GROWING));
    assert!(check(&format!("{body}  return {{y: merge(attend(q, k, v, scores = s))}}"), &WHOLE));
}

/// Numbers that all heads share, more query heads than key heads, and one number of several whatever the distance.
#[test]
fn rows_that_heads_share() {
    let body = "  a = linear(24)\n  of_key = linear(7)\n\
        \x20 q = split(a(x), 6)\n  k = cache(split(x, 3))\n  few = cache(of_key(x))\n\
        \x20 s = score * take(few, near(q_pos - k_pos) % 7) + take(x, int(min(1.5 * k_pos, 11.9))) - take(few, 6)\n\
        \x20 return {y: merge(attend(q, k, k, causal, s))}";
    assert!(!check(body, &GROWING));
}

/// Numbers that are keys and values too, and a mask that reads rows of both.
#[test]
fn rows_that_are_keys_and_values() {
    let body = "  a, of_query = linear(12)\n\
        \x20 q = split(a(x), 6)\n  kv = cache(split(x, 6))\n\
        \x20 m = causal and take(of_query(x), k_pos % 12) < take(kv, head % 2) + 2\n\
        \x20 t = score + take(kv, (q_pos + k_pos) % 2)\n\
        \x20 return {y: merge(attend(q, kv, kv, m, t, softmax = false))}";
    assert!(!check(body, &GROWING));
}

/// What one layer keeps of each key, read by the scores of others.
#[test]
fn rows_that_another_body_keeps() {
    let body = "  of_key = linear(22)\n  kept = cache(split(of_key(x), 2))\n\
        \x20 layer(x) {\n    p = linear(12)\n    h = split(p(x), 2)\n    k = cache(h)\n\
        \x20   return x + merge(attend(h, k, k, causal, score + take(kept, near(q_pos - k_pos))))\n  }\n\
        \x20 layers = [layer for i in 0..2]\n  return {y: layers(x)}";
    assert!(!check(body, &GROWING));
}
