//! A model of generated sizes, both ways: interpreted in f32, and compiled for every target that every machine has.

use std::sync::Arc;

use xfc_codegen::driver::Options;
use xfc_lang::graph::verify::verify;
use xfc_lang::graph::{DType, Program};
use xfc_lang::passes::precision;
use xfc_lang::reference::Interpreter;
use xfc_runtime::artifact::Artifact;
use xfc_runtime::model::{Model, ModelOptions};
use xfc_runtime::weights::Checkpoint;

use crate::Result;
use crate::case::Layout;
use crate::compare::Precision;
use crate::compile::{TARGETS, artifact};
use crate::model::{expand, parameters};
use crate::synthetic::case;

/// Expands the model of `config` in `dtype`, and gives `check` its program, the interpreter of it, and it compiled for each target in turn.
pub fn both_ways(
    config: serde_json::Value,
    dtype: DType,
    check: impl Fn(&Program, &Interpreter<'_, f32>, &Arc<Model>, Precision) -> Result<()>,
) -> Result<()> {
    let case = case("generated", config)?;
    let expanded = expand(&case)?;
    let weights = parameters(&case, &expanded)?;
    let mut program = expanded.program.clone();
    precision::apply(&mut program, dtype)?;
    let weights = |path: &str| weights.get(path).cloned().ok_or_else(|| format!("there is no {path}").into());
    let truth = Interpreter::<f32>::new(verify(&program).map_err(|v| v.to_string())?, &weights)?;
    let precision = if dtype == DType::F32 { Precision::F32 } else { Precision::BF16 };
    let artifact = Artifact::from_bytes(artifact(&case, &TARGETS, &Options { dtype, ..Options::default() })?)?;
    let folder = case.checkpoint(Layout::Single)?;
    let checkpoint = Checkpoint::open(folder.path())?;
    for manifest in artifact.manifests() {
        let target = Some(manifest.target.name.clone());
        let model =
            Model::load(&artifact, &checkpoint, &ModelOptions { threads: Some(2), target, ..ModelOptions::default() })?;
        check(&program, &truth, &model, precision)?;
    }
    Ok(())
}
