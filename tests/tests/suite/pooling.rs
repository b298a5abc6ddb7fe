//! Queries of an axis of their own that look at all of a sequence's first axis: one probe, several, and what is pooled by masks and scores.

use xfc_runtime::step::InputData::{Floats, Ints};
use xfc_tests::compile::TARGETS;
use xfc_tests::program::{Compared, Schedule, compare_with_interpreter, manifest, of_wiring};

use crate::programs::floats;

/// Compares the wiring's program on sequences of so many tokens, several in a step, each whole.
fn check(wiring: &str, width: usize, with_ids: bool, steps: &[[usize; 3]]) {
    let text = of_wiring(wiring).unwrap_or_else(|e| panic!("{e}"));
    let given = |n: usize| {
        let ids = (0..n as i64).map(|i| (i * 7 + n as i64) % 13).collect();
        let mut inputs = vec![("x".to_owned(), Floats(floats(n * width)))];
        inputs.extend(with_ids.then(|| ("ids".to_owned(), Ints(ids))));
        (n > 0).then_some(inputs)
    };
    let schedule: Schedule = steps.iter().map(|step| step.iter().map(|n| given(*n)).collect()).collect();
    let compared = compare_with_interpreter(&text, &schedule, &TARGETS).unwrap_or_else(|e| panic!("{e}\n{text}"));
    assert_eq!(compared, Compared::Same);
    assert!(manifest(&text).unwrap_or_else(|e| panic!("{e}")).whole_sequences);
}

#[test]
fn probes_look_at_all_tokens() {
    let wiring = "model(x: f32[tokens, 10]) {\n\
        \x20 probe = param[1, 10]\n  latents = param[3, 10]\n\
        \x20 one = gqa(5, 5, 2, true, mask = all)\n  three = gqa(4, 2, 3, mask = all)\n\
        \x20 norm = layer_norm(1.0e-6)\n\
        \x20 y = x + norm(x)\n\
        \x20 a = one(sequence(probe, 'probes'), y)\n\
        \x20 b = three(sequence(latents, 'latents'), y)\n\
        \x20 return {a: first(a + norm(a)), b: b, y: y}\n}";
    check(wiring, 10, false, &[[1, 0, 0], [2, 17, 33], [0, 1, 16], [15, 40, 1]]);
}

/// The mean, one row, and the row of the largest id, of each sequence.
#[test]
fn masks_and_scores_pool() {
    let wiring = "model(x: f32[tokens, 7], ids: i64[tokens]) {\n\
        \x20 nothing = param[1, 7]\n\
        \x20 q = split(sequence(0 * nothing, 'pooled'), 1)\n\
        \x20 k = cache(split(x, 1))\n\
        \x20 mean_of = attend(q, k, k)\n\
        \x20 third = attend(q, k, k, k_pos == 2)\n\
        \x20 largest = attend(q, k, k, scores = score + 1000 * cache(float(ids)))\n\
        \x20 return {mean: first(merge(mean_of)), third: first(merge(third)), largest: first(merge(largest))}\n}";
    check(wiring, 7, true, &[[3, 5, 0], [21, 1, 2], [0, 16, 17]]);
}

/// What is asked may stand before what is looked at, and what is looked at may be the same number of elements in every sequence.
#[test]
fn probes_look_at_patches() {
    for order in
        ["q = ask(sequence(probe, 'probes')) y = see(patches)", "y = see(patches) q = ask(sequence(probe, 'probes'))"]
    {
        let wiring = format!(
            "model(pixels: f32[3, 4, 6]) {{\n\
             \x20 probe = param[2, 6]\n  see, ask = linear(6)\n  cut = conv(6, 3, [2, 2], stride = [2, 2])\n\
             \x20 attn = gqa(3, 3, 2, mask = all)\n  patches = sequence(cut(pixels), 'patches')\n  {order}\n\
             \x20 return {{y: attn(q, y)}}\n}}"
        );
        let text = of_wiring(&wiring).unwrap_or_else(|e| panic!("{e}"));
        let image = |i: usize| Some(vec![("pixels".to_owned(), Floats(floats(72 * (i + 1)).split_off(72 * i)))]);
        let schedule: Schedule = vec![vec![image(0), None, image(1)], vec![image(1), image(2), image(0)]];
        let compared = compare_with_interpreter(&text, &schedule, &TARGETS).unwrap_or_else(|e| panic!("{e}\n{text}"));
        assert_eq!(compared, Compared::Same);
    }
}
