//! Smaller models nested in a checkpoint: read from the large one by an override of sizes, they are what their own checkpoint makes.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};
use tempfile::TempDir;
use xfc_check::subject::{Outputs, Subject, run};
use xfc_codegen::target;
use xfc_lang::arch::{ElaborateOptions, Model, elaborate};
use xfc_lang::spec::apply_sets;
use xfc_runtime::model::Model as Loaded;
use xfc_runtime::weights::Checkpoint;
use xfc_tests::Result;
use xfc_tests::case::{Case, Layout};
use xfc_tests::command::Shell;
use xfc_tests::compile::sharing;
use xfc_tests::model::card;

/// Layers of the case's checkpoint.
const LAYERS: usize = 10;

/// A tensor by name: its shape and its values.
type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// The case's model with `sets`.
fn model(config: &Value, sets: &[String]) -> Result<Model> {
    let mut spec = card(config)?;
    let sets = apply_sets(&mut spec, sets)?;
    Ok(elaborate(&spec, &ElaborateOptions { config: Some(config.clone()), sets, ..ElaborateOptions::default() })?)
}

/// What the interpreter and compiled code make of the case's tokens, with the model as it was loaded.
fn results(case: &Case, model: &Model, folder: &Path) -> Result<([Outputs; 2], Arc<Loaded>)> {
    let (checkpoint, options) = (Checkpoint::open(folder)?, sharing());
    let subject = Subject { model, checkpoint: &checkpoint, truth: None, options: &options, threads: Some(2) };
    let loaded = subject.compile(&model.program, &*target::parse("cpu")?)?;
    let inputs = case.all_inputs();
    let n = case.prompt()?.len() as u64;
    let compiled = run(&loaded, &[&inputs], &vec![vec![3, n - 4, 1]])?.remove(0);
    Ok(([subject.interpret::<f32>(&model.program, &[&inputs])?.remove(0), compiled], loaded))
}

/// The elements of dimension `dim` that are `kept`, in that order.
fn take(tensor: &mut (Vec<usize>, Vec<f32>), dim: usize, kept: &[usize]) {
    let (shape, values) = tensor;
    let inner: usize = shape[dim + 1..].iter().product();
    let outer: usize = shape[..dim].iter().product();
    let mut taken = Vec::with_capacity(outer * kept.len() * inner);
    for at in 0..outer {
        for element in kept {
            let start = (at * shape[dim] + element) * inner;
            taken.extend_from_slice(&values[start..start + inner]);
        }
    }
    (shape[dim], *values) = (kept.len(), taken);
}

/// The checkpoint of a nested model by itself: its feed-forwards cut to `widths`, its layers those that are not `skipped`, counted anew.
fn sliced(case: &Case, widths: &[usize], skipped: &[usize]) -> Result<(Value, TempDir)> {
    let kept: Vec<usize> = (0..LAYERS).filter(|layer| !skipped.contains(layer)).collect();
    let mut tensors = Tensors::new();
    for spec in &case.tensors {
        let mut tensor = (spec.shape.clone(), spec.values(case.seed));
        let mut name = spec.name.clone();
        let per_layer = case.config["hidden_size_per_layer_input"].as_u64().ok_or("no width")? as usize;
        let of_layers: Vec<usize> = kept.iter().flat_map(|layer| layer * per_layer..(layer + 1) * per_layer).collect();
        match name.as_str() {
            "model.embed_tokens_per_layer.weight" => take(&mut tensor, 1, &of_layers),
            "model.per_layer_model_projection.weight" => take(&mut tensor, 0, &of_layers),
            _ => {}
        }
        if let Some((number, rest)) = spec.name.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.')) {
            let layer: usize = number.parse()?;
            let Some(at) = kept.iter().position(|other| *other == layer) else { continue };
            let first: Vec<usize> = (0..widths[layer]).collect();
            match rest {
                "mlp.gate_proj.weight" | "mlp.up_proj.weight" => take(&mut tensor, 0, &first),
                "mlp.down_proj.weight" => take(&mut tensor, 1, &first),
                _ => {}
            }
            name = format!("model.layers.{at}.{rest}");
        }
        tensors.insert(name, tensor);
    }
    let mut config = case.config.clone();
    let of_kept = |key: &str| kept.iter().map(|layer| case.config[key][layer].clone()).collect::<Vec<_>>();
    let shared = case.config["num_kv_shared_layers"].as_u64().ok_or("no number")? as usize;
    config["num_hidden_layers"] = json!(kept.len());
    config["num_kv_shared_layers"] = json!(kept.iter().filter(|layer| **layer >= LAYERS - shared).count());
    config["intermediate_size"] = json!(kept.iter().map(|layer| widths[*layer]).collect::<Vec<_>>());
    for key in ["layer_types", "activation_sparsity_pattern"] {
        config[key] = json!(of_kept(key));
    }
    let folder = tempfile::tempdir()?;
    let bytes: BTreeMap<&String, Vec<u8>> = tensors
        .iter()
        .map(|(name, (_, values))| (name, values.iter().flat_map(|x| x.to_le_bytes()).collect()))
        .collect();
    let views =
        tensors.iter().map(|(name, (shape, _))| Ok((name, TensorView::new(Dtype::F32, shape.clone(), &bytes[name])?)));
    let views = views.collect::<Result<Vec<_>>>()?;
    safetensors::serialize_to_file(views, None, &folder.path().join("model.safetensors"))?;
    Ok((config, folder))
}

#[test]
fn a_nested_model_is_what_its_own_checkpoint_makes() -> Result<()> {
    let case = Case::load("gemma3n")?;
    let big = case.checkpoint(Layout::Single)?;
    let mixed: Vec<usize> = (0..LAYERS).map(|layer| [56, 112, 31][layer % 3]).collect();
    for (widths, skipped, sets) in [
        (vec![56; LAYERS], vec![], vec!["intermediate_size=56".to_owned()]),
        (mixed.clone(), vec![6, 7], vec![format!("intermediate_size={mixed:?}"), "skipped_layers=[6, 7]".to_owned()]),
        // The last layer that keeps keys and values of its kind, and the first of all.
        (vec![112; LAYERS], vec![0, 5], vec!["skipped_layers=[0, 5]".to_owned()]),
    ] {
        let (config, folder) = sliced(&case, &widths, &skipped)?;
        let ([own_interpreted, own_compiled], own) = results(&case, &model(&config, &[])?, folder.path())?;
        assert!(own.remarks().is_empty(), "{:?}", own.remarks());
        let nested = model(&case.config, &sets)?;
        let ([interpreted, compiled], loaded) = results(&case, &nested, big.path())?;
        assert_eq!(interpreted, own_interpreted, "interpreted, {sets:?}");
        assert_eq!(compiled, own_compiled, "compiled, {sets:?}");
        let has = |wanted: &str| loaded.remarks().iter().any(|remark| remark.contains(wanted));
        let in_part = has("only the leading part is read: `model.layers.0.mlp.down_proj.weight [64, 56] of [64, 112]`");
        assert_eq!(in_part, widths[0] == 56, "{:?}", loaded.remarks());
        assert_eq!(has("nothing reads these tensors"), !skipped.is_empty(), "{:?}", loaded.remarks());
    }
    Ok(())
}

#[test]
fn sizes_that_are_no_part_of_a_checkpoint_are_errors() -> Result<()> {
    let case = Case::load("gemma3n")?;
    let big = case.checkpoint(Layout::Single)?;
    for (set, expected) in [
        ("intermediate_size=113", "shape [112, 64], expected [113 or more, 64]"),
        ("hidden_size=32", "shape [112, 64], expected [112 or more, 32]"),
    ] {
        let model = model(&case.config, &[set.to_owned()])?;
        let error = match results(&case, &model, big.path()) {
            Ok(_) => return Err(format!("{set} was accepted").into()),
            Err(error) => error.to_string(),
        };
        assert!(error.contains(expected), "{expected} is not in: {error}");
    }
    Ok(())
}

#[test]
fn a_nested_model_is_a_command() -> Result<()> {
    let shell = Shell::new()?;
    Case::load("gemma3n")?.write_checkpoint(shell.folder(), Layout::Single)?;
    let sets = ["--set", "intermediate_size=56", "--set", "skipped_layers=[6, 7]"];
    let arguments = [&["run", ".", "--tokens", "1,2,3", "-n", "2"], &sets[..]].concat();
    let ran = shell.run("xfc", &arguments)?;
    assert!(
        ran.stderr.contains("warning: of these tensors of the checkpoint only the leading part is read"),
        "{}",
        ran.stderr
    );
    ran.success()?;
    let names = shell.run("xfc", &[&["inspect", ".", "--names"], &sets[..]].concat())?.success()?;
    assert!(names.contains("layers.0.mlp.up_proj.weight: the first 56 of dimension 0"), "{names}");
    Ok(())
}
