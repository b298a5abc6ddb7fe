//! Programs that read images, compiled, against the interpreter: windows as a sequence, and tokens that look at them.

use xfc_runtime::step::InputData::{Floats, Ints};
use xfc_tests::program::{manifest, of_wiring};

use crate::programs::{check, floats};

/// Windows that overlap, of an image with zeros around it, as the elements of a sequence behind one that all images share.
#[test]
fn windows_of_an_image_as_a_sequence() {
    let text = r#"program "p" axes [patches = 13, sequence = 1]

graph 0 "model" (%0 x: f32[sequence, 2, 5, 7]) {
  %1 = const {values = [0]} : f32
  %2 = broadcast %1 : f32[sequence, 2, 1, 7]
  %3 = concat %2, %0, %2 {dim = 2} : f32[sequence, 2, 7, 7]
  %4 = windows %3 {dim = 2, size = 3, stride = 2} : f32[sequence, 2, 3, 3, 7]
  %5 = windows %4 {dim = 4, size = 4, stride = 1} : f32[sequence, 2, 3, 3, 4, 4]
  %6 = transpose %5 {perm = [0, 2, 4, 1, 3, 5]} : f32[sequence, 3, 4, 2, 3, 4]
  %7 = reshape %6 : f32[sequence, 12, 24]
  %8 = weight {path = "w"} : f32[6, 24]
  %9 = contract %7, %8 {spec = "npi,oi->npo"} : f32[sequence, 12, 6]
  %10 = weight {path = "b"} : f32[6]
  %11 = add %9, %10 : f32[sequence, 12, 6]
  %12 = weight {path = "start"} : f32[1, 6]
  %13 = broadcast %12 : f32[sequence, 1, 6]
  %14 = concat %13, %11 {dim = 1} : f32[sequence, 13, 6]
  %15 = weight {path = "places"} : f32[13, 6]
  %16 = add %14, %15 : f32[sequence, 13, 6]
  %17 = regroup %16 : f32[patches, 6]
  %18 = reshape %17 : f32[patches, 2, 3]
  %19 = reshape %18 : f32[patches, 2, 1, 3]
  %20 = contract %19, %18 {spec = "nkgd,vkd->kgnv"} : f32[2, 1, patches, patches]
  %21 = softmax %20 : f32[2, 1, patches, patches]
  %22 = contract %21, %18 {spec = "kgnv,vkd->nkgd"} : f32[patches, 2, 1, 3]
  %23 = reshape %22 : f32[patches, 6]
  %24 = first %23 : f32[sequence, 6]
  %25 = weight {path = "head"} : f32[9, 6]
  %26 = contract %24, %25 {spec = "ni,oi->no"} : f32[sequence, 9]
  return y = %26, all = %23
}
"#;
    let image = |seed: usize| floats(70 * (seed + 1)).split_off(70 * seed);
    check(text, &[vec![("x", Floats(image(0)))], vec![("x", Floats(image(3)))]]);
}

/// Tokens that look at an image, which comes with the first of them: what is kept of it is read by every later step.
#[test]
fn tokens_that_look_at_an_image() {
    let wiring = "model(pixels: f32[3, 4, 6], input_ids: i64[tokens]) {
  table = embedding(16, 8)
  project = linear(8)
  read = linear(8)
  decode = gqa(2, 2, 4, mask = causal)
  patches = project(sequence(unfold(pixels, [2, 2], [2, 2]), 'patches'))
  x = table(input_ids)
  seen = attend(split(x, 2), cache(split(patches, 2)), cache(split(patches * 2, 2)), all)
  return {y: decode(x + read(merge(seen)))}
}";
    let pixels = || ("pixels", Floats(floats(3 * 4 * 6)));
    let ids = |ids: &[i64]| ("input_ids", Ints(ids.to_vec()));
    let text = of_wiring(wiring).unwrap();
    check(&text, &[vec![pixels(), ids(&[3, 1, 15])], vec![ids(&[7, 2])], vec![ids(&[9])]]);
    assert!(!manifest(&text).unwrap().whole_sequences);
}

/// Tokens that look at an image of which nothing is kept: there is no later step.
#[test]
fn an_image_that_nothing_keeps() {
    let text = r#"program "p" axes [tokens, patches = 3]

graph 0 "model" (%0 x: f32[tokens, 6], %1 y: f32[patches, 6]) {
  %2 = reshape %0 : f32[tokens, 2, 1, 3]
  %3 = reshape %1 : f32[patches, 2, 3]
  %4 = contract %2, %3 {spec = "nkgd,vkd->kgnv"} : f32[2, 1, tokens, patches]
  %5 = softmax %4 : f32[2, 1, tokens, patches]
  %6 = contract %5, %3 {spec = "kgnv,vkd->nkgd"} : f32[tokens, 2, 1, 3]
  %7 = reshape %6 : f32[tokens, 6]
  return y = %7
}
"#;
    let step = |n: usize| vec![("x", Floats(floats(6 * n))), ("y", Floats(floats(18)))];
    check(text, &[step(4), step(1)]);
    assert!(manifest(text).unwrap().whole_sequences);
}
