//! GGUF files load as they are: families by their metadata, tensors by the cards' names, blocks to the bit; what they compute is what other
//! implementations computed of the same weights.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use serde_json::{Value, json};
use tempfile::TempDir;
use xfc_check::gguf::facts;
use xfc_check::subject::{Subject, run};
use xfc_codegen::driver::Options;
use xfc_codegen::target;
use xfc_lang::graph::DType;
use xfc_lang::spec::{Library, load_card, parse_card};
use xfc_lang::{ElaborateOptions, Model, elaborate, gguf_config, pick_gguf_card};
use xfc_runtime::step::InputData;
use xfc_runtime::text::settings::stop_ids;
use xfc_runtime::text::tokenizer::{SpecialTokens, Tokenizer};
use xfc_runtime::weights::{BlockFormat, Checkpoint};
use xfc_tests::case::{Case, Layout};
use xfc_tests::command::Shell;
use xfc_tests::compare::{Precision, Tier, compare};
use xfc_tests::compile::{Runner, load_from, sharing};
use xfc_tests::gguf::{Kind, Writer, file, files};
use xfc_tests::model::card;
use xfc_tests::{Result, repository};

/// What a card is called that serves a case, where that is not its architecture's name.
const SERVED: [(&str, &str); 12] = [
    ("gemma2", "Gemma 2"),
    ("gemma3", "Gemma 3"),
    ("gpt2", "GPT-2"),
    ("llama2", "Llama"),
    ("llama3", "Llama"),
    ("llama3_2_tied", "Llama"),
    ("mixtral", "Mixtral"),
    ("phi3", "Phi-3"),
    ("phi3_longrope", "Phi-3"),
    ("qwen2", "Qwen2"),
    ("qwen3", "Qwen3"),
    ("qwen3_moe", "Qwen3 MoE"),
];

/// Sizes that the format has no key for, where the case's are not those of a released model.
fn unsaid(case: &Case) -> Vec<(String, String)> {
    let scalar = case.config.get("query_pre_attn_scalar");
    scalar.iter().map(|value| ("query_pre_attn_scalar".to_owned(), value.to_string())).collect()
}

/// The file of a case, in a folder that disappears with the first.
pub(crate) fn written(case: &Case, described: &Value, kind: impl Fn(&[usize]) -> Kind) -> Result<(TempDir, PathBuf)> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join(format!("{}.gguf", case.name));
    std::fs::write(&path, file(case, described, kind)?.bytes())?;
    Ok((folder, path))
}

/// The model that a file says it is.
pub(crate) fn expanded(path: &Path, sets: Vec<(String, String)>) -> Result<(Model, Checkpoint)> {
    let checkpoint = Checkpoint::open(path)?;
    let facts = facts(&checkpoint).ok_or("no GGUF file")?;
    let spec = pick_gguf_card(&facts, &Library::embedded())?;
    let config = Some(gguf_config(&spec, &facts)?);
    let options = ElaborateOptions { config, config_name: facts.name.clone(), sets, format: "gguf".to_owned() };
    drop(facts);
    Ok((elaborate(&spec, &options)?, checkpoint))
}

/// The logits of a case as compiled code computes them.
pub(crate) fn logits(subject: &Subject<'_>, case: &Case) -> Result<Vec<f32>> {
    let program = subject.program(&[]);
    let mut runner = Runner::new(&subject.compile(&program, &*target::parse("cpu")?)?, 1)?;
    let sequence = runner.session.add_sequence()?;
    runner.step_case(sequence, case)
}

#[test]
fn families_compute_what_another_implementation_does() -> Result<()> {
    let described = files()?;
    let cases = described.keys().map(String::as_str).filter(|name| *name != "demo");
    assert_eq!(cases.collect::<Vec<_>>(), SERVED.map(|(case, _)| case));
    for (name, card) in SERVED {
        let case = Case::load(name)?;
        let (_folder, path) = written(&case, &described[name], |_| Kind::F32)?;
        let (model, checkpoint) = expanded(&path, unsaid(&case)).map_err(|e| format!("{name}: {e}"))?;
        assert_eq!(model.arch.name, card, "{name}");
        let options = sharing();
        let subject =
            Subject { model: &model, checkpoint: &checkpoint, truth: None, options: &options, threads: Some(2) };
        let golden = case.golden("logits")?;
        let compiled = logits(&subject, &case).map_err(|e| format!("{name}: {e}"))?;
        let inputs: BTreeMap<String, InputData> = case.all_inputs();
        let interpreted = subject.interpret::<f32>(&subject.program(&[]), &[&inputs])?.remove(0);
        let interpreted: Vec<f32> = interpreted["logits"].values.iter().map(|x| *x as f32).collect();
        for (what, got) in [("compiled", &compiled), ("interpreted", &interpreted)] {
            compare("logits", &golden.shape, got, &golden.values, Tier::Model, Precision::F32)
                .map_err(|e| format!("{name}, {what}: {e}"))?;
        }
    }
    Ok(())
}

#[test]
fn plain_numbers_give_the_same_bits_as_safetensors() -> Result<()> {
    for name in ["llama2", "qwen3_moe"] {
        let case = Case::load(name)?;
        let (_folder, path) = written(&case, &files()?[name], |_| Kind::F32)?;
        let (model, checkpoint) = expanded(&path, Vec::new())?;
        let options = sharing();
        let subject =
            Subject { model: &model, checkpoint: &checkpoint, truth: None, options: &options, threads: Some(2) };
        let folder = case.checkpoint(Layout::Single)?;
        let mut runner = Runner::new(&load_from(&case, "cpu", 2, &Checkpoint::open(folder.path())?)?, 1)?;
        let sequence = runner.session.add_sequence()?;
        assert!(logits(&subject, &case)? == runner.step_case(sequence, &case)?, "{name}");
    }
    Ok(())
}

#[test]
fn narrow_numbers_are_run_as_they_are_interpreted() -> Result<()> {
    for (name, kind) in [("llama3", Kind::Q8_0), ("gemma3", Kind::BF16), ("mixtral", Kind::Q8_0), ("gpt2", Kind::F16)] {
        let case = Case::load(name)?;
        let narrow = |shape: &[usize]| {
            if kind != Kind::Q8_0 || shape.last().is_some_and(|n| n % 32 == 0) { kind } else { Kind::BF16 }
        };
        let (_folder, path) = written(&case, &files()?[name], narrow)?;
        let (model, checkpoint) = expanded(&path, unsaid(&case))?;
        for dtype in [DType::F32, DType::BF16] {
            let options = Options { dtype, ..sharing() };
            let subject =
                Subject { model: &model, checkpoint: &checkpoint, truth: None, options: &options, threads: Some(2) };
            let inputs: BTreeMap<String, InputData> = case.all_inputs();
            let truth = subject.interpret::<f32>(&subject.program(&[]), &[&inputs])?.remove(0);
            let want: Vec<f32> = truth["logits"].values.iter().map(|x| *x as f32).collect();
            let got = logits(&subject, &case)?;
            compare("logits", &truth["logits"].dims, &got, &want, Tier::Model, subject.precision())
                .map_err(|e| format!("{name} in {dtype}: {e}"))?;
        }
    }
    Ok(())
}

#[test]
fn every_column_names_every_parameter_of_the_released_model() -> Result<()> {
    let library = Library::embedded();
    let mut columns = 0;
    for name in library.cards() {
        let spec = load_card(name, &library)?;
        if spec.matches.gguf.is_empty() {
            continue;
        }
        assert!(spec.names.iter().any(|(format, _)| &**format == "gguf"), "{name} has no `gguf` below `names`");
        columns += 1;
        let options = ElaborateOptions { format: "gguf".to_owned(), ..ElaborateOptions::default() };
        let model = elaborate(&spec, &options).map_err(|e| format!("{name}: {e}"))?;
        let names = model.bindings.iter().flat_map(|binding| &binding.names);
        // A name with a component of the wiring is one that no rule renamed.
        let known = |n: &&String| n.starts_with("blk.") && n.split('.').count() <= 4 || n.split('.').count() == 2;
        let left: Vec<&String> = names.filter(|n| !known(n) || n.contains("proj")).collect();
        assert!(left.is_empty(), "{name}: {left:?}");
    }
    assert!(columns > 8, "{columns} columns");
    Ok(())
}

#[test]
fn pieces_are_cut_as_their_own_implementation_cuts_them() -> Result<()> {
    let made: Value = serde_json::from_slice(&std::fs::read(repository().join("tests/reference/gguf/pieces.json"))?)?;
    let mut writer = Writer::default();
    writer.value("tokenizer.ggml.model", &json!("llama"))?;
    for (key, list) in [("tokens", "tokens"), ("token_type", "types")] {
        writer.value(&format!("tokenizer.ggml.{key}"), &made[list])?;
    }
    // Scores of special tokens are whole numbers.
    let scores = made["scores"].as_array().ok_or("no scores")?.iter().filter_map(Value::as_f64);
    writer.floats("tokenizer.ggml.scores", &scores.map(|x| x as f32).collect::<Vec<_>>());
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("pieces.gguf");
    std::fs::write(&path, writer.bytes())?;
    let tokenizer = Tokenizer::open(&path)?;
    for case in made["texts"].as_array().ok_or("no texts")? {
        let text = case["text"].as_str().ok_or("no text")?;
        let ids = tokenizer.encode(text, SpecialTokens::AsWritten)?.ids;
        assert_eq!(json!(ids), case["ids"], "{text:?}");
        assert_eq!(tokenizer.decode(&ids)?, text);
    }
    Ok(())
}

/// The trained model of the repository as a GGUF file, tokenizer and all.
fn demo() -> Result<Writer> {
    demo_as(|_, _| Kind::BF16)
}

/// The same with its matrices stored as `kind` says of their names and shapes.
pub(crate) fn demo_as(kind: impl Fn(&str, &[usize]) -> Kind) -> Result<Writer> {
    let folder = repository().join("examples/demo/dense");
    let bytes = std::fs::read(folder.join("model.safetensors"))?;
    let (stored, described) = (SafeTensors::deserialize(&bytes)?, &files()?["demo"]);
    let words: Value = serde_json::from_slice(&std::fs::read(folder.join("tokenizer.json"))?)?;
    let vocabulary: BTreeMap<String, usize> = serde_json::from_value(words["model"]["vocab"].clone())?;
    let mut tokens = vec![String::new(); vocabulary.len()];
    vocabulary.into_iter().for_each(|(token, id)| tokens[id] = token);
    let special = words["added_tokens"].as_array().ok_or("no added tokens")?;
    let is_special = |token: &String| special.iter().any(|added| added["content"] == **token);
    let types: Vec<u32> = tokens.iter().map(|token| if is_special(token) { 3 } else { 1 }).collect();
    let merges = words["model"]["merges"].as_array().ok_or("no merges")?.iter().map(|merge| match merge {
        Value::Array(two) => two.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" "),
        one => one.as_str().unwrap_or_default().to_owned(),
    });
    let mut writer = Writer::default();
    for (key, value) in described["metadata"].as_object().ok_or("no metadata")? {
        writer.value(key, value)?;
    }
    for (key, value) in [
        ("model", json!("gpt2")),
        ("pre", json!("gpt-2")),
        ("merges", json!(merges.collect::<Vec<_>>())),
        ("token_type", json!(types)),
        ("tokens", json!(tokens)),
        ("eos_token_id", json!(0)),
    ] {
        writer.value(&format!("tokenizer.ggml.{key}"), &value)?;
    }
    for tensor in described["tensors"].as_array().ok_or("no tensors")? {
        let view = stored.tensor(tensor["from"][0].as_str().unwrap_or_default())?;
        let values: Vec<f32> =
            view.data().as_chunks().0.iter().map(|x| half::bf16::from_le_bytes(*x).to_f32()).collect();
        let name = tensor["name"].as_str().unwrap_or_default();
        let kind = if view.shape().len() > 1 { kind(name, view.shape()) } else { Kind::F32 };
        writer.reordered(tensor, view.shape(), kind, values)?;
    }
    Ok(writer)
}

#[test]
fn a_trained_model_is_the_same_in_both_formats() -> Result<()> {
    let folder = repository().join("examples/demo/dense");
    let written = tempfile::tempdir()?;
    let path = written.path().join("demo.gguf");
    std::fs::write(&path, demo()?.bytes())?;
    let (theirs, ours) = (Tokenizer::open(&folder)?, Tokenizer::open(&path)?);
    for text in ["def sorted_names(items):\n    return", "  x = 10000 # it's  fine\n\n", "é 漢 🦀<|end|>"] {
        let ids = ours.encode(text, SpecialTokens::Add)?;
        assert_eq!(ids, theirs.encode(text, SpecialTokens::Add)?, "{text:?}");
        assert_eq!(ours.decode(&ids.ids)?, theirs.decode(&ids.ids)?);
    }
    assert_eq!(stop_ids(&path)?, [0]);
    let (model, checkpoint) = expanded(&path, Vec::new())?;
    let spec = card(&serde_json::from_slice(&std::fs::read(folder.join("config.json"))?)?)?;
    let config = Some(serde_json::from_slice(&std::fs::read(folder.join("config.json"))?)?);
    let same = elaborate(&spec, &ElaborateOptions { config, ..ElaborateOptions::default() })?;
    let options = Options { dtype: DType::BF16, ..sharing() };
    let ids: Vec<i64> = ours.encode("def main(", SpecialTokens::Add)?.ids.iter().map(|id| i64::from(*id)).collect();
    let inputs = BTreeMap::from([("input_ids".to_owned(), InputData::Ints(ids.clone()))]);
    let mut results = Vec::new();
    for (model, checkpoint) in [(&model, &checkpoint), (&same, &Checkpoint::open(&folder)?)] {
        let subject = Subject { model, checkpoint, truth: None, options: &options, threads: Some(2) };
        let loaded = subject.compile(&subject.program(&[]), &*target::parse("cpu")?)?;
        assert!(loaded.remarks().is_empty(), "{:?}", loaded.remarks());
        results.push(run(&loaded, &[&inputs], &vec![vec![ids.len() as u64]])?.remove(0));
    }
    assert!(results[0] == results[1], "the logits differ");
    Ok(())
}

#[test]
fn commands_take_a_file_as_the_model_and_as_the_checkpoint() -> Result<()> {
    let shell = Shell::new()?;
    std::fs::write(shell.folder().join("demo.gguf"), demo()?.bytes())?;
    let folder = repository().join("examples/demo/dense");
    let run = |words: &[&str]| shell.run("xfc", &[words, &["-p", "def main(", "-n", "8"]].concat())?.success();
    let expected = run(&["run", &folder.display().to_string()])?;
    assert_eq!(run(&["run", "demo.gguf"])?, expected);
    assert_eq!(run(&["run", "llama", "--checkpoint", "demo.gguf"])?, expected);
    shell.run("xfc", &["compile", "demo.gguf", "-o", "demo.xfm"])?.success()?;
    let ran = shell.run("xfrun", &["run", "demo.xfm", "--checkpoint", "demo.gguf", "-p", "def main(", "-n", "8"])?;
    assert_eq!(ran.success()?, expected);
    let names = shell.run("xfc", &["inspect", "demo.gguf", "--names"])?.success()?;
    assert!(names.contains("blk.0.attn_q.weight"), "{names}");
    // Code for one format's names does not read the other's.
    let ran = shell.run("xfrun", &["run", "demo.xfm", "--checkpoint", &folder.display().to_string(), "-p", "x"])?;
    assert!(ran.code == Some(3) && ran.stderr.contains("names of `hf`"), "{ran:?}");
    std::fs::write(shell.folder().join("cut.gguf"), &demo()?.bytes()[..100])?;
    let ran = shell.run("xfc", &["run", "cut.gguf", "-p", "x"])?;
    assert!(ran.code == Some(3) && ran.stderr.contains("cut.gguf: byte 8: the number of tensors is"), "{ran:?}");
    let mut other = Writer::default();
    other.value("general.architecture", &json!("lama"))?;
    std::fs::write(shell.folder().join("other.gguf"), other.bytes())?;
    let ran = shell.run("xfc", &["run", "other.gguf", "-p", "x"])?;
    assert!(ran.code != Some(0) && ran.stderr.contains("did you mean `llama`"), "{ran:?}");
    Ok(())
}

/// A product with each tensor of `tests/reference/gguf/blocks.gguf`.
pub(crate) fn card_of_blocks() -> String {
    let names: Vec<String> = BlockFormat::ALL.iter().map(|format| format.name().to_lowercase()).collect();
    let outputs: Vec<String> = names.iter().map(|name| format!("{name}: {name}(x)")).collect();
    let columns: Vec<String> =
        BlockFormat::ALL.iter().map(|f| format!("    {}: {}\n", f.name().to_lowercase(), f.name())).collect();
    format!(
        "xfc: 1\nname: Blocks\nsizes: {{}}\nwiring: |\n  model(x: f32[tokens, 512]) {{\n    {} = linear(3)\n    return {{{}}}\n  }}\nnames:\n  gguf:\n{}    ignore: [\"*.expected\"]\n",
        names.join(", "),
        outputs.join(", "),
        columns.concat()
    )
}

#[test]
fn blocks_stand_for_what_the_format_says() -> Result<()> {
    let checkpoint = Checkpoint::open(&repository().join("tests/reference/gguf/blocks.gguf"))?;
    let options = ElaborateOptions { format: "gguf".to_owned(), ..ElaborateOptions::default() };
    let model = elaborate(&parse_card("test.yaml", &card_of_blocks(), &Library::embedded())?, &options)?;
    let Checkpoint::Stored(stored) = &checkpoint else { return Err("a file was expected".into()) };
    let x = InputData::Floats((0..512 * 512).map(|i| f32::from(u8::from(i / 512 == i % 512))).collect());
    let inputs = BTreeMap::from([("x".to_owned(), x)]);
    for dtype in [DType::F32, DType::BF16] {
        let options = Options { dtype, ..sharing() };
        let subject =
            Subject { model: &model, checkpoint: &checkpoint, truth: None, options: &options, threads: Some(2) };
        let program = subject.program(&[]);
        let loaded = subject.compile(&program, &*target::parse("cpu")?)?;
        assert!(loaded.remarks().is_empty(), "{:?}", loaded.remarks());
        let compiled = run(&loaded, &[&inputs], &vec![vec![512]])?.remove(0);
        let interpreted = subject.interpret::<f32>(&program, &[&inputs])?.remove(0);
        for format in BlockFormat::ALL {
            let name = format.name();
            let expected = stored.numbers(&format!("{name}.expected")).ok_or("no numbers to expect")?;
            let decoded = stored.numbers(&format!("{name}.weight")).ok_or("no blocks")?;
            // Not a bit departs, zeros' signs included.
            assert!(decoded.iter().map(|x| x.to_bits()).eq(expected.iter().map(|x| x.to_bits())), "{name}");
            for (what, got) in [("compiled", &compiled), ("interpreted", &interpreted)] {
                let got = &got[&name.to_lowercase()].values;
                for (i, want) in expected.iter().enumerate() {
                    let got = got[i % 512 * 3 + i / 512];
                    let want = if dtype == DType::BF16 { half::bf16::from_f32(*want).to_f32() } else { *want };
                    assert!(got == f64::from(want), "{what} {name}[{i}] in {dtype}: {got}, expected {want}");
                }
            }
        }
    }
    Ok(())
}
