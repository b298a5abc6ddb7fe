//! `--tap`: values of the compiled model are those of the interpreter, whatever was fused around them.

use std::collections::BTreeMap;
use std::fs;

use safetensors::SafeTensors;
use xfc_check::compare::{Precision, Tier, compare};
use xfc_check::subject::{Subject, run};
use xfc_codegen::driver::Options;
use xfc_codegen::target;
use xfc_lang::graph::DType;
use xfc_lang::graph::named::named_values;
use xfc_runtime::weights::Checkpoint;
use xfc_tests::Result;
use xfc_tests::case::{Case, Layout};
use xfc_tests::command::Shell;
use xfc_tests::compile::sharing;
use xfc_tests::model;

use crate::cases::one_of_each_kind;

#[test]
fn every_named_value_is_the_interpreters() {
    one_of_each_kind(|case| {
        let model = model::expand(case)?;
        let checkpoint = case.checkpoint(Layout::Single)?;
        let checkpoint = Checkpoint::open(checkpoint.path())?;
        let inputs = case.all_inputs();
        for (dtype, precision) in [(DType::F32, Precision::F32), (DType::BF16, Precision::BF16)] {
            let options = Options { dtype, ..sharing() };
            let subject =
                Subject { model: &model, checkpoint: &checkpoint, truth: None, options: &options, threads: Some(2) };
            let named = named_values(&model.program);
            let taps: Vec<_> = named.iter().filter(|n| n.is_per_element()).collect();
            assert!(taps.len() > 30, "{} has only {} values", case.name, taps.len());
            let program = subject.program(&taps);
            let want = subject.interpret::<f32>(&program, &[&inputs])?.remove(0);
            let compiled = subject.compile(&program, &*target::parse("cpu")?)?;
            let n = xfc_check::inputs::length(compiled.manifest(), &inputs, 0);
            let got = run(&compiled, &[&inputs], &vec![vec![n]])?.remove(0);
            for (name, want) in &want {
                let got = got.get(name).ok_or_else(|| format!("no output {name}"))?;
                compare(name, &want.dims, &got.values, &want.values, Tier::Value, precision)
                    .map_err(|e| format!("{dtype}: {e}"))?;
            }
        }
        Ok(())
    });
}

/// Shapes and f32 values by name.
type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

fn read(path: &std::path::Path) -> Result<Tensors> {
    let bytes = fs::read(path)?;
    let file = SafeTensors::deserialize(&bytes)?;
    let tensor = |(name, view): (String, safetensors::tensor::TensorView<'_>)| {
        let values = view.data().as_chunks().0.iter().map(|x| f32::from_le_bytes(*x)).collect();
        (name, (view.shape().to_vec(), values))
    };
    Ok(file.tensors().into_iter().map(tensor).collect())
}

#[test]
fn commands_write_tapped_values() -> Result<()> {
    let case = Case::load("llama3")?;
    let shell = Shell::new()?;
    let checkpoint = shell.folder().join("checkpoint");
    fs::create_dir(&checkpoint)?;
    case.write_checkpoint(&checkpoint, Layout::Single)?;
    let prompt = &case.prompt()?[..9];
    fs::write(shell.folder().join("inputs.json"), format!("{{\"input_ids\": {prompt:?}}}"))?;
    let tap = ["--tap", "layers.1.mlp", "--tap", "layers.*.self_attn.q_proj"];
    let logits = ["logits", "checkpoint", "--inputs", "inputs.json", "-o", "logits.safetensors"];
    shell.run("xfc", &[&logits[..], &tap].concat())?.success()?;
    let shown: Vec<String> = prompt.iter().map(i64::to_string).collect();
    let shown = shown.join(",");
    let run = ["run", "checkpoint", "--tokens", &shown, "-n", "4", "--json", "--tap-output", "run.safetensors"];
    shell.run("xfc", &[&run[..], &tap].concat())?.success()?;
    let (whole, made) =
        (read(&shell.folder().join("logits.safetensors"))?, read(&shell.folder().join("run.safetensors"))?);
    let names: Vec<&str> = made.keys().map(String::as_str).collect();
    assert_eq!(
        names,
        ["layers.0.self_attn.q_proj", "layers.1.mlp", "layers.1.self_attn.q_proj", "layers.2.self_attn.q_proj"]
    );
    assert!(whole.contains_key("logits") && whole.len() == 5);
    for (name, (shape, values)) in &made {
        // The prompt, and all that was made but the last token.
        assert_eq!(shape[0], 9 + 3, "{name}");
        let (_, want) = &whole[name];
        compare(name, &[9, shape[1]], &values[..want.len()], want, Tier::Value, Precision::F32)?;
    }
    // The same tokens without taps.
    let ids = |text: String| -> Result<serde_json::Value> {
        Ok(serde_json::from_str::<serde_json::Value>(&text)?["ids"].clone())
    };
    let (plain, tapped) = (&run[..7], [&run[..], &tap].concat());
    assert_eq!(ids(shell.run("xfc", plain)?.success()?)?, ids(shell.run("xfc", &tapped)?.success()?)?);
    shell
        .run("xfc", &["run", "checkpoint", "--tokens", "1", "--tap", "layers.1.mpl", "-o", "x"])?
        .failure(2, &["layers.1.mlp"])?;
    assert!(!shell.folder().join("x").exists());
    let listed = shell.run("xfc", &["inspect", "checkpoint", "--values"])?.success()?;
    assert!(listed.contains("layers.2.self_attn.q_proj") && listed.contains("f32[tokens, 64]"), "{listed}");
    Ok(())
}
