//! Programs that read images, compiled, against the interpreter: windows as a sequence, and tokens that look at them. Images from files, prepared as
//! another implementation prepares them.

use std::fs;

use safetensors::SafeTensors;
use serde_json::json;
use xfc_runtime::images::Preprocessor;
use xfc_runtime::step::InputData::{Floats, Ints};
use xfc_tests::case::Case;
use xfc_tests::program::{manifest, of_wiring};
use xfc_tests::{Result, repository};

use crate::commands::shell;
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

#[test]
fn images_are_prepared_as_pillow_prepares_them() -> Result<()> {
    let folder = repository().join("tests/reference/images");
    for (config, deviation) in [("square", 0.5), ("cropped", 0.261), ("nearest", 1.0)] {
        let preprocessor = Preprocessor::open(&folder.join(config))?;
        let bytes = fs::read(folder.join(config).join("expected.safetensors"))?;
        let expected = SafeTensors::deserialize(&bytes)?;
        // A level of 8 bits where a sum lies between two; a few where decoders round by themselves.
        for (file, levels) in [("photo.png", 1.0), ("grey.png", 1.0), ("photo.jpg", 4.0)] {
            let tensor = expected.tensor(file)?;
            let &[channels, height, width] = tensor.shape() else { return Err("an image was expected".into()) };
            let got = preprocessor.read(&folder.join(file), [channels, height, width].map(|n| n as u64))?;
            let want: Vec<f32> = tensor.data().as_chunks().0.iter().map(|x| f32::from_le_bytes(*x)).collect();
            assert_eq!(got.len(), want.len());
            let off = got.iter().zip(&want).map(|(a, b)| f64::from((a - b).abs())).fold(0.0, f64::max);
            assert!(off * deviation * 255.0 <= levels + 1e-3, "{config} {file}: {} levels", off * deviation * 255.0);
            let exact = got.iter().zip(&want).filter(|(a, b)| (*a - *b).abs() < 1e-5).count();
            assert!(levels > 1.0 || exact * 100 > got.len() * 99, "{config} {file}: {exact} of {} equal", got.len());
        }
    }
    Ok(())
}

#[test]
fn images_that_cannot_be_prepared_are_refused() -> Result<()> {
    let folder = repository().join("tests/reference/images");
    let photo = folder.join("photo.png");
    let open = |config: serde_json::Value| -> Result<Preprocessor> {
        let own = tempfile::tempdir()?;
        fs::write(own.path().join("preprocessor_config.json"), config.to_string())?;
        Ok(Preprocessor::open(own.path())?)
    };
    let refused = |made: Result<Preprocessor>, named: &str| {
        let error = made.err().map(|error| error.to_string()).unwrap_or_default();
        assert!(error.contains(named), "{named} is not in: {error}");
    };
    refused(open(json!({"do_pad": true})), "do_pad");
    refused(open(json!({"resample": 9})), "resample: 9");
    refused(open(json!({"size": "large"})), "preprocessor_config.json");
    let square = Preprocessor::open(&folder.join("square"))?;
    let read = |path: &std::path::Path, dims| square.read(path, dims).unwrap_err().to_string();
    assert!(read(&photo, [3, 32, 32]).contains("24 by 24 pixels after"), "{}", read(&photo, [3, 32, 32]));
    assert!(read(&photo, [4, 24, 24]).contains("4 channels"));
    assert!(read(&folder.join("square/expected.safetensors"), [3, 24, 24]).contains("no image"));
    let huge = open(json!({"size": {"height": 4_000_000_000_u32, "width": 4_000_000_000_u32}}))?;
    assert!(huge.read(&photo, [3, 24, 24]).unwrap_err().to_string().contains("4000000000 by 4000000000"));
    assert!(square.read(&photo, [1, 24, 24])?.len() == 24 * 24);
    Ok(())
}

#[test]
fn logits_of_a_file_are_those_of_its_numbers() -> Result<()> {
    let case = Case::load("vit")?;
    let shell = shell(&case)?;
    let file = repository().join("tests/reference/images/photo.png");
    fs::copy(&file, shell.folder().join("photo.png"))?;
    let words = |given: &[&'static str], out: &'static str| [&["logits", "checkpoint"], given, &["-o", out]].concat();
    let image = words(&["--image", "photo.png"], "a.safetensors");
    shell.run("xfc", &image)?.failure(3, &["preprocessor_config.json"])?;
    let config = shell.folder().join("checkpoint/preprocessor_config.json");
    fs::write(config, json!({"size": {"height": 32, "width": 32}, "resample": 2}).to_string())?;
    shell.run("xfc", &image)?.success()?;
    let numbers = Preprocessor::open(&shell.folder().join("checkpoint"))?.read(&file, [3, 32, 32])?;
    let rows: Vec<&[f32]> = numbers.chunks(32).collect();
    let planes: Vec<&[&[f32]]> = rows.chunks(32).collect();
    fs::write(shell.folder().join("numbers.json"), json!({"pixel_values": planes}).to_string())?;
    shell.run("xfc", &words(&["--inputs", "numbers.json"], "b.safetensors"))?.success()?;
    assert_eq!(fs::read(shell.folder().join("a.safetensors"))?, fs::read(shell.folder().join("b.safetensors"))?);
    let none = ["logits", "llama", "--tiny", "--image", "photo.png", "-o", "out"];
    shell.run("xfc", &none)?.failure(2, &["no input for an image"])?;
    Ok(())
}
