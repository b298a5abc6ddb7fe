//! Attention over what keys and values are made of: products moved to queries and results, everything else done before it is kept.

use xfc_runtime::artifact::manifest::{Keep, Manifest, When};
use xfc_runtime::step::InputData::Floats;
use xfc_tests::compile::TARGETS;
use xfc_tests::program::{Compared, agree, compare_with_interpreter, manifest, of_wiring};

/// Pseudo-random floats in -2..2.
fn floats(n: usize) -> Vec<f32> {
    (0..n).map(|i| ((i as f32 * 12.9898).sin() * 43758.547).fract() * 2.0).collect()
}

/// Compiled code against the interpreter over steps of so many tokens of width `width`; the manifest.
fn check(wiring: &str, width: usize, steps: &[usize]) -> Manifest {
    let text = of_wiring(wiring).unwrap_or_else(|e| panic!("{e}"));
    let steps: Vec<_> = steps.iter().map(|n| vec![("x", Floats(floats(n * width)))]).collect();
    agree(&text, &steps).unwrap_or_else(|e| panic!("{e}\n{text}"));
    manifest(&text).unwrap_or_else(|e| panic!("{e}"))
}

/// Bytes kept of a token from step to step.
fn kept(manifest: &Manifest) -> u64 {
    let lasting = manifest.caches.iter().filter(|group| group.keep != Keep::Step);
    lasting.flat_map(|group| &group.slots).map(|slot| slot.token_bytes).sum()
}

#[test]
fn latents_and_a_rotary_key_are_all_that_is_kept() {
    let wiring = "norm = rms_norm(1.0e-6)\n\
        turn = rotary({rope_theta: 10000.0, rope_type: 'default'}, pairs = 'interleaved')\n\
        model(x: f32[tokens, 24]) {\n\
        \x20 a = mla(5, none, 13, 7, 6, 9, norm, turn)\n\
        \x20 b = mla(3, 11, 19, 8, 4, 8, norm, turn, mask = window(9), with_bias = true)\n\
        \x20 h = x + a(x)\n\
        \x20 return {y: h + b(h)}\n}";
    let manifest = check(wiring, 24, &[5, 1, 1, 37, 3, 1]);
    assert_eq!(kept(&manifest), 4 * (13 + 6 + 19 + 4));
    assert!(!manifest.whole_sequences);
}

/// Sequences that begin in a step see keys and values of their heads, others the latents; both may be in one step.
#[test]
fn sequences_that_begin_and_that_go_on_share_steps() {
    let wiring = "norm = rms_norm(1.0e-6)\n\
        turn = rotary({rope_theta: 10000.0, rope_type: 'default'}, pairs = 'interleaved')\n\
        model(x: f32[tokens, 24]) {\n\
        \x20 layer(x) {\n    attn = mla(11, none, 13, 7, 6, 9, norm, turn)\n    return x + attn(x)\n  }\n\
        \x20 layers = [layer for i in 0..2]\n\
        \x20 return {y: layers(x)}\n}";
    let text = of_wiring(wiring).unwrap_or_else(|e| panic!("{e}"));
    let given = |n: usize| (n > 0).then(|| vec![("x".to_owned(), Floats(floats(n * 24)))]);
    let steps = [[5, 0, 0], [1, 19, 0], [3, 1, 1], [1, 1, 33], [0, 2, 1], [20, 0, 17]];
    let schedule = steps.iter().map(|step| step.iter().map(|n| given(*n)).collect()).collect();
    let compared = compare_with_interpreter(&text, &schedule, &TARGETS).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(compared, Compared::Same);
    let manifest = manifest(&text).unwrap_or_else(|e| panic!("{e}"));
    for when in [When::FromStart, When::Continued] {
        let n = manifest.launches.iter().filter(|launch| launch.when == Some(when)).count();
        assert!(n >= 2 * 3, "{n} launches are {when:?}");
    }
}

/// A latent that is narrower than keys and values multiplies less too: there is one way.
#[test]
fn narrow_latents_are_read_as_they_are_in_every_step() {
    let wiring = "norm = rms_norm(1.0e-6)\n\
        model(x: f32[tokens, 24]) {\n\
        \x20 a = mla(5, none, 5, 7, 6, 9, norm, identity)\n\
        \x20 return {y: a(x)}\n}";
    let manifest = check(wiring, 24, &[5, 1, 1, 37]);
    assert!(manifest.launches.iter().all(|launch| launch.when.is_none()));
}

#[test]
fn heads_may_have_a_matrix_each() {
    let wiring = "model(x: f32[tokens, 21]) {\n\
        \x20 w = param[3, 5, 7]\n\
        \x20 return {y: einsum('thi, hoi -> tho', split(x, 3), w)}\n}";
    check(wiring, 21, &[1, 5, 33, 70]);
    let swapped = "model(x: f32[tokens, 24]) {\n\
        \x20 w = param[4, 6, 70]\n\
        \x20 return {y: merge(einsum('thi, hio -> tho', split(x, 4), w))}\n}";
    check(swapped, 24, &[1, 33]);
}

/// One of several caches as keys and as values, alone or as a part.
#[test]
fn values_may_be_the_keys() {
    let wiring = "model(x: f32[tokens, 24]) {\n\
        \x20 kept = cache(split(x, 1))\n\
        \x20 q = split(x, 6)\n\
        \x20 wide = join(q, q, q, q, q, q)\n\
        \x20 return {y: merge(attend(wide, kept, kept, causal))}\n}";
    let manifest = check(wiring, 24, &[5, 1, 20]);
    assert_eq!(kept(&manifest), 4 * 24);
}

#[test]
fn what_all_heads_share_is_kept_once() {
    let wiring = "model(x: f32[tokens, 12]) {\n\
        \x20 k_proj, v_proj = linear(6)\n\
        \x20 k = repeat(cache(split(k_proj(x), 1)), 4)\n\
        \x20 v = repeat(cache(split(v_proj(x), 1)), 4)\n\
        \x20 q = split(join(x, x), 4)\n\
        \x20 return {y: merge(attend(q, k, v, causal))}\n}";
    assert_eq!(kept(&check(wiring, 12, &[5, 1, 20])), 4 * 12);
}

/// A bias, a norm and positions cannot be moved out: keys and values are made before they are kept.
#[test]
fn anything_else_is_done_before_it_is_kept() {
    let wiring = "norm = rms_norm(1.0e-6)\n\
        model(x: f32[tokens, 12]) {\n\
        \x20 latent = cache(x)\n\
        \x20 k_proj, v_proj = linear(8, true)\n\
        \x20 k_norm = norm\n\
        \x20 k = k_norm(split(k_proj(latent), 2))\n\
        \x20 v = split(tanh(v_proj(latent)), 2)\n\
        \x20 q = split(parts(x, [8, 4])[0], 2)\n\
        \x20 return {y: merge(attend(q, k, v, causal))}\n}";
    assert_eq!(kept(&check(wiring, 12, &[5, 1, 20])), 4 * 16);
}

/// Where heads are few and the latent is wide, keys and values are less.
#[test]
fn the_smaller_is_kept() {
    let wiring = "model(x: f32[tokens, 40]) {\n\
        \x20 latent = cache(x)\n\
        \x20 k_proj, v_proj = linear(8)\n\
        \x20 q = split(parts(x, [8, 32])[0], 2)\n\
        \x20 k = split(k_proj(latent), 2)\n\
        \x20 v = split(v_proj(latent), 2)\n\
        \x20 return {y: merge(attend(q, k, v, causal))}\n}";
    assert_eq!(kept(&check(wiring, 40, &[5, 1, 20])), 4 * 16);
}
