//! Weights that a checkpoint stores in few bits are held so: their integers are taken over where they fit blocks of ours, and rounded again where
//! they do not; compiled code and the interpreter agree on both.

use std::collections::BTreeMap;

use half::f16;
use safetensors::SafeTensors;
use xfc_check::inputs::length;
use xfc_check::stored::{StoredWeights, stored};
use xfc_check::subject::{Subject, run};
use xfc_check::truth;
use xfc_codegen::driver::Options;
use xfc_codegen::target;
use xfc_lang::graph::DType;
use xfc_lang::passes::quantise::Plan;
use xfc_lang::spec::{Library, parse_card};
use xfc_lang::{ElaborateOptions, Model, elaborate};
use xfc_runtime::artifact::manifest::{Manifest, Pack};
use xfc_runtime::step::InputData;
use xfc_runtime::weights::{BlockFormat, Checkpoint};
use xfc_tests::case::Case;
use xfc_tests::command::Shell;
use xfc_tests::compare::{Tier, compare};
use xfc_tests::compile::sharing;
use xfc_tests::fill::splitmix64;
use xfc_tests::gguf::{Kind, Writer, files};
use xfc_tests::{Result, repository};

use crate::encodings::{CARD, PACKED, one_hot};
use crate::gguf::{card_of_blocks, demo_as, expanded, logits, written};

/// Of the largest magnitude of a group of 32: what multiplying in f32 loses, and what rounding scale and minimum to f16 does.
const EXACT: f64 = 2e-6;
const HALVES: f64 = 6.0 / 2048.0;
/// The same for numbers that are rounded to 8 bits with a sign, and to 4 with a minimum.
const EIGHT: f64 = 1.01 / 254.0;
const FOUR: f64 = 2.05 / 30.0;

/// What holds the parameter at `path`: `int4:g32`, with a `stored` behind it where integers are taken over.
fn held(manifest: &Manifest, path: &str) -> String {
    let of = manifest.weights.iter().find(|w| w.pack != Pack::Plain && w.sources.iter().any(|s| s.path == path));
    match of.map(|weight| weight.pack) {
        Some(Pack::Blocks(blocks)) => format!("{}{}", blocks.name(), if blocks.stored { " stored" } else { "" }),
        other => format!("{other:?}"),
    }
}

/// What a product's output is expected to be: its name, the matrix' path, what holds it, and how far off an element may be.
type Expected<'a> = (&'a str, &'a str, &'a str, f64);

/// The width of a matrix' rows and its numbers, by the name of its product's output.
type Numbers<'a> = &'a dyn Fn(&str) -> Result<(usize, Vec<f32>)>;

/// Products with so many one-hot rows, which are the columns of each matrix: held as `expected` says, and within what it allows of the numbers that
/// `numbers` gives with the width of their rows.
fn columns(
    (model, checkpoint): (&Model, &Checkpoint),
    (inputs, n): (&BTreeMap<String, InputData>, u64),
    expected: &[Expected<'_>],
    numbers: Numbers<'_>,
) -> Result<()> {
    let StoredWeights { forms, .. } = stored(model, checkpoint);
    for dtype in [DType::F32, DType::BF16] {
        let options = Options { dtype, quant: Plan::stored(forms.clone()), ..sharing() };
        let subject = Subject { model, checkpoint, truth: None, options: &options, threads: Some(2) };
        let program = subject.program(&[]);
        let loaded = subject.compile(&program, &*target::parse("cpu")?)?;
        assert!(loaded.remarks().is_empty(), "{:?}", loaded.remarks());
        let compiled = run(&loaded, &[inputs], &vec![vec![n]])?.remove(0);
        let interpreted = subject.interpret::<f32>(&program, &[inputs])?.remove(0);
        let halves = truth::departs(loaded.manifest());
        for &(output, path, blocks, allowed) in expected {
            assert_eq!(held(loaded.manifest(), path), blocks, "{path}");
            let (width, numbers) = numbers(output)?;
            let outputs = numbers.len() / width;
            for (what, got) in [("compiled", &compiled[output]), ("interpreted", &interpreted[output])] {
                // What is rounded again begins, in bf16, with numbers of bf16; and some targets multiply bf16.
                let is_rounded = !blocks.ends_with("stored") || (halves && what == "compiled");
                let narrow = if dtype == DType::BF16 && is_rounded { 1.0 / 128.0 } else { 0.0 };
                for (row, values) in numbers.chunks(width).enumerate() {
                    for (column, want) in values.iter().enumerate() {
                        let group = &values[column / 32 * 32..width.min(column / 32 * 32 + 32)];
                        let most = group.iter().fold(0.0f32, |most, x| most.max(x.abs()));
                        let got = got.values[column * outputs + row];
                        let off = (got - f64::from(*want)).abs() / f64::from(most).max(1e-30);
                        let place = format!("{what} {path}[{row}, {column}] in {dtype}");
                        assert!(off <= allowed + narrow, "{place}: {got}, expected {want}, {off:.2e} of {most}");
                    }
                }
            }
        }
    }
    Ok(())
}

#[test]
fn blocks_are_held_in_what_their_groups_fit() -> Result<()> {
    // Blocks of bits of no order, with scales that those of several of them have no larger ones than f16 holds.
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("blocks.gguf");
    let mut writer = Writer::default();
    let numbers = [2, 3, 6, 7, 8, 10, 11, 12, 13, 14];
    for (format, number) in BlockFormat::ALL.into_iter().zip(numbers) {
        let n = 3 * 512 / format.elements();
        let mut bytes: Vec<u8> = (0..n * format.bytes()).map(|i| (splitmix64(7, i as u64) >> 9) as u8).collect();
        let scales: &[usize] = match format {
            BlockFormat::Q2K => &[80, 82],
            BlockFormat::Q3K => &[108],
            BlockFormat::Q6K => &[208],
            _ => &[0, 2],
        };
        for (block, bytes) in bytes.chunks_mut(format.bytes()).enumerate() {
            for at in scales {
                let scale = f16::from_f32([-0.03, 0.02, 1e-3][(block + at) % 3]);
                bytes[*at..at + 2].copy_from_slice(&scale.to_le_bytes());
            }
        }
        writer.bytes_of(&format!("{}.weight", format.name()), &[3, 512], number, &bytes);
    }
    std::fs::write(&path, writer.bytes())?;
    let checkpoint = Checkpoint::open(&path)?;
    let options = ElaborateOptions { format: "gguf".to_owned(), ..ElaborateOptions::default() };
    let model = elaborate(&parse_card("test.yaml", &card_of_blocks(), &Library::embedded())?, &options)?;
    let Checkpoint::Stored(file) = &checkpoint else { return Err("a file was expected".into()) };
    let inputs = BTreeMap::from([("x".to_owned(), one_hot(512, 512))]);
    let expected = [
        ("q4_0", "q4_0.weight", "int4:g32 stored", EXACT),
        ("q4_1", "q4_1.weight", "uint4:g32 stored", EXACT),
        ("q5_0", "q5_0.weight", "int8:g32 stored", EXACT),
        ("q5_1", "q5_1.weight", "uint8:g32 stored", EXACT),
        ("q8_0", "q8_0.weight", "int8:g32 stored", EXACT),
        ("q4_k", "q4_k.weight", "uint4:g32 stored", HALVES),
        ("q5_k", "q5_k.weight", "uint8:g32 stored", HALVES),
        ("q2_k", "q2_k.weight", "uint4:g32", FOUR),
        ("q3_k", "q3_k.weight", "int8:g32", EIGHT),
        ("q6_k", "q6_k.weight", "int8:g32", EIGHT),
    ];
    let numbers = |output: &str| {
        let numbers = file.numbers(&format!("{}.weight", output.to_uppercase())).ok_or("no numbers to expect")?;
        Ok((512, numbers))
    };
    columns((&model, &checkpoint), (&inputs, 512), &expected, &numbers)
}

#[test]
fn integers_of_safetensors_are_held_in_what_their_groups_fit() -> Result<()> {
    let packed: &[Expected<'_>] = &[
        ("columns", "columns.weight", "int4:g128 stored", EXACT),
        ("eight", "eight.weight", "uint8:g64 stored", HALVES),
        ("shuffled", "shuffled.weight", "int8:g32", EIGHT),
        ("in_turn", "in_turn.weight", "uint4:g64 stored", HALVES),
        ("rows", "rows.weight", "int4:g32 stored", HALVES),
        ("zeros", "zeros.weight", "uint4:g64 stored", HALVES),
        ("odd", "odds.weight", "int4:g64 stored", HALVES),
        ("wide", "wide.weight", "int8:g128 stored", HALVES),
        ("bytes", "bytes.weight", "uint8:g128 stored", HALVES),
    ];
    let encodings: &[Expected<'_>] = &[
        ("blocks", "blocks.weight", "fp8:g128 stored", EXACT),
        ("tensor", "tensor.weight", "fp8:g128 stored", EXACT),
        ("channel", "channel.weight", "fp8:g128 stored", EXACT),
        ("exponents", "exponents.weight", "int8:g32", EIGHT),
        ("first", "experts.0.weight", "int8:g32 stored", EXACT),
        ("second", "experts.1.weight", "int8:g32 stored", EXACT),
        ("third", "experts.2.weight", "int8:g32 stored", EXACT),
    ];
    let inputs = |of: &[(&str, usize)], n: usize| {
        of.iter().map(|(name, width)| ((*name).to_owned(), one_hot(n, *width))).collect::<BTreeMap<_, _>>()
    };
    for (folder, card, expected, n, inputs) in [
        ("packed", PACKED, packed, 256, inputs(&[("x", 128), ("z", 256), ("odd", 36)], 256)),
        ("encodings", CARD, encodings, 136, inputs(&[("x", 136), ("z", 64)], 136)),
    ] {
        let model = elaborate(&parse_card("test.yaml", card, &Library::embedded())?, &ElaborateOptions::default())?;
        let folder = repository().join("tests/reference").join(folder);
        let checkpoint = Checkpoint::open(&folder)?;
        let bytes = std::fs::read(folder.join("expected.safetensors"))?;
        let stands_for = SafeTensors::deserialize(&bytes)?;
        let numbers = |output: &str| {
            let name = match output {
                "first" => "experts.0",
                "second" => "experts.1",
                "third" => "experts.2",
                other => other,
            };
            let tensor = stands_for.tensor(&format!("{name}.weight"))?;
            Ok((tensor.shape()[1], tensor.data().as_chunks().0.iter().map(|x| f32::from_le_bytes(*x)).collect()))
        };
        columns((&model, &checkpoint), (&inputs, n), expected, &numbers)?;
    }
    Ok(())
}

#[test]
fn models_run_as_they_are_interpreted() -> Result<()> {
    for (name, kind, blocks) in [
        ("llama3", Kind::Q8_0, "int8:g32 stored"),
        ("qwen2", Kind::Q4_1, "uint4:g32 stored"),
        ("mixtral", Kind::Q4_0, "int4:g32 stored"),
    ] {
        let case = Case::load(name)?;
        // Rows that are no whole blocks stay as they are.
        let narrow = |shape: &[usize]| if shape.last().is_some_and(|n| n % 32 == 0) { kind } else { Kind::BF16 };
        let (_folder, path) = written(&case, &files()?[name], narrow)?;
        let (model, checkpoint) = expanded(&path, Vec::new())?;
        let forms = stored(&model, &checkpoint).forms;
        for dtype in [DType::F32, DType::BF16] {
            let options = Options { dtype, quant: Plan::stored(forms.clone()), ..sharing() };
            let subject =
                Subject { model: &model, checkpoint: &checkpoint, truth: None, options: &options, threads: Some(2) };
            let loaded = subject.compile(&subject.program(&[]), &*target::parse("cpu")?)?;
            for path in ["layers.0.self_attn.q_proj.weight", "layers.1.self_attn.o_proj.weight"] {
                assert_eq!(held(loaded.manifest(), path), blocks, "{name}");
            }
            let (program, inputs) = (subject.program(&[]), case.all_inputs());
            let cuts = vec![vec![length(loaded.manifest(), &inputs, 0)]];
            let own = subject.interpret_as::<f32>(loaded.manifest(), &program, &[&inputs], &cuts)?;
            let truth = own.map_or_else(|| subject.interpret::<f32>(&program, &[&inputs]), Ok)?.remove(0);
            let want: Vec<f32> = truth["logits"].values.iter().map(|x| *x as f32).collect();
            let got = logits(&subject, &case)?;
            compare("logits", &truth["logits"].dims, &got, &want, Tier::Model, subject.precision())
                .map_err(|e| format!("{name} in {dtype}: {e}"))?;
            // What was rounded as blocks of ours are is found again by rounding it.
            if (kind, dtype) == (Kind::Q8_0, DType::F32) {
                let options = Options { quant: "int8,down_proj=none".parse()?, ..sharing() };
                let rounded = Subject { options: &options, ..subject };
                assert!(logits(&rounded, &case)? == got, "{name}");
            }
        }
    }
    Ok(())
}

/// Formats as published files mix them: those of 256 where rows are so long, another for values, another where rows are shorter.
fn mixed(name: &str, shape: &[usize]) -> Kind {
    match shape.last() {
        Some(256) if name.contains("attn_v") || name.contains("token_embd") => Kind::Q6K,
        Some(256) if name.contains("ffn_gate") => Kind::Q4_1,
        Some(256) => Kind::Q4K,
        _ => Kind::Q8_0,
    }
}

#[test]
fn formats_of_one_file_are_held_each_in_its_own_way() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("demo.gguf");
    std::fs::write(&path, demo_as(mixed)?.bytes())?;
    let (model, checkpoint) = expanded(&path, Vec::new())?;
    let options = Options { quant: Plan::stored(stored(&model, &checkpoint).forms), ..sharing() };
    let subject = Subject { model: &model, checkpoint: &checkpoint, truth: None, options: &options, threads: Some(2) };
    let program = subject.program(&[]);
    let loaded = subject.compile(&program, &*target::parse("cpu")?)?;
    assert!(loaded.remarks().is_empty(), "{:?}", loaded.remarks());
    for (path, blocks) in [
        ("layers.0.self_attn.q_proj.weight", "uint4:g32 stored"),
        ("layers.0.self_attn.v_proj.weight", "int8:g32"),
        ("layers.3.mlp.gate_proj.weight", "uint4:g32 stored"),
        ("layers.3.mlp.down_proj.weight", "int8:g32 stored"),
        ("embed_tokens.weight", "int8:g32"),
    ] {
        assert_eq!(held(loaded.manifest(), path), blocks, "{path}");
    }
    let ids: Vec<i64> = (0..9).map(|i| i * 391 % 4096).collect();
    let inputs = BTreeMap::from([("input_ids".to_owned(), InputData::Ints(ids))]);
    let got = run(&loaded, &[&inputs], &vec![vec![9]])?.remove(0);
    let want = subject.interpret::<f32>(&program, &[&inputs])?.remove(0);
    let values = |rows: &[f64]| rows.iter().map(|x| *x as f32).collect::<Vec<_>>();
    let (got, dims, want) = (values(&got["logits"].values), &want["logits"].dims, values(&want["logits"].values));
    // As `xfc verify` compares: of a trained model, rounding what tokens bring to the other side weighs more.
    compare("logits", dims, &got, &want, Tier::Value, subject.precision())?;
    Ok(())
}

#[test]
fn commands_hold_weights_as_they_are_stored_where_nothing_else_is_said() -> Result<()> {
    let shell = Shell::new()?;
    let write = |name: &str, kind: fn(&str, &[usize]) -> Kind| -> Result<()> {
        Ok(std::fs::write(shell.folder().join(name), demo_as(kind)?.bytes())?)
    };
    write("mixed.gguf", mixed)?;
    write("plain.gguf", |_, _| Kind::BF16)?;
    let run = |words: &[&str]| shell.run("xfc", &[words, &["-p", "def main(", "-n", "4"]].concat());
    let ran = run(&["run", "mixed.gguf"])?;
    let note = "mixed.gguf: matrices are held as they are stored: Q4_1 in uint4:g32, Q4_K in uint4:g32, Q6_K in int8:g32 (rounded again), \
                Q8_0 in int8:g32; `--quant none` multiplies them out";
    assert!(ran.code == Some(0) && ran.stderr.contains(note), "{ran:?}");
    for words in [
        &["run", "mixed.gguf", "--quant", "none"][..],
        &["run", "plain.gguf"],
        &["run", "mixed.gguf", "--quant", "int8"],
    ] {
        let ran = run(words)?;
        assert!(ran.code == Some(0) && !ran.stderr.contains("as they are stored"), "{ran:?}");
    }
    let fused =
        |words: &[&str]| shell.run("xfc", &[&["inspect", "mixed.gguf", "--emit", "fused"], words].concat())?.success();
    assert!(fused(&[])?.contains("uint4g32stored") && !fused(&["--quant", "none"])?.contains("g32"));
    let some = fused(&["--quant", "none,down_proj=stored,layers.0.*.o_proj=int4:g64"])?;
    assert!(some.contains("int8g32stored") && some.contains("int4g64") && !some.contains("uint4"), "{some}");
    // What the artifact expects in blocks is rounded where a file holds it otherwise.
    shell.run("xfc", &["compile", "mixed.gguf", "-o", "mixed.xfm"])?.success()?;
    for file in ["mixed.gguf", "plain.gguf"] {
        let ran = shell.run("xfrun", &["run", "mixed.xfm", "--checkpoint", file, "-p", "def main(", "-n", "4"])?;
        ran.success()?;
    }
    for (words, says) in [
        (&["run", "plain.gguf", "--quant", "stored"][..], "plain.gguf stores no weights in few bits"),
        (&["run", "llama", "--tiny", "--quant", "stored"], "and none is given"),
        (&["run", "llama", "--checkpoint", "none.gguf", "--quant", "stored"], "none.gguf"),
        (&["run", "mixed.gguf", "--quant", "stored,nothing=int8"], "no matrix of a product is at 'nothing'"),
    ] {
        let ran = run(words)?;
        assert!(ran.code != Some(0) && ran.stderr.contains(says), "{says}: {ran:?}");
    }
    Ok(())
}
