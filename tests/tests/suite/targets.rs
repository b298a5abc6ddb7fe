//! Every target: its code links without a loader, computes what the references say (natively where this machine can, else emulated), and is
//! never run by a processor that lacks what it needs.

use std::fs;

use xfc_codegen::driver::Options;
use xfc_codegen::target;
use xfc_lang::graph::DType;
use xfc_runtime::artifact::{Artifact, HostFeatures};
use xfc_runtime::model::{Model, ModelOptions};
use xfc_runtime::weights::Checkpoint;
use xfc_tests::Result;
use xfc_tests::case::{Case, Layout};
use xfc_tests::command::{Ran, Shell};
use xfc_tests::compare::{Precision, Tier, compare};
use xfc_tests::compile::{Runner, artifact};
use xfc_tests::emulate::{AARCH64_MAX, CORTEX_A53, Processor, X86_64};

use crate::commands::{outputs_match, shell};

/// One target for each way that code differs: vectors, fused multiply-add, rounding, products of bf16, tuning, tiles in registers, architecture. (x86-64-v3 and this
/// machine's own are compiled by every other suite.)
const ALL: [&str; 7] = [
    "cpu:x86-64",
    "cpu:x86-64-v2",
    "cpu:znver5",
    "cpu:x86-64-v4+amx-bf16",
    "cpu:aarch64",
    "cpu:aarch64+bf16+dotprod",
    "cpu:neoverse-v1",
];

/// What a machine has that runs `name` and no more.
fn machine(name: &str) -> Result<HostFeatures> {
    let target = target::parse(name)?.describe();
    Ok(HostFeatures { arch: target.arch, features: target.features.into_iter().collect(), gpu: None })
}

fn chosen(artifact: &Artifact, host: &str) -> Result<String> {
    Ok(artifact.select(&machine(host)?, None)?.manifest().target.name.clone())
}

#[test]
fn the_code_of_every_target_stands_alone() -> Result<()> {
    // Linking refuses undefined symbols and whatever a loader would have to do.
    for (case, dtype) in [("mistral", DType::BF16), ("bert", DType::F32)] {
        let case = Case::load(case)?;
        let bytes = artifact(&case, &ALL, &Options { dtype, ..Options::default() })?;
        assert_eq!(Artifact::from_bytes(bytes)?.manifests().len(), ALL.len());
    }
    Ok(())
}

#[test]
fn levels_below_the_machine_compute_the_same() -> Result<()> {
    for name in ["llama3", "gpt2", "bert"] {
        let case = Case::load(name)?;
        let host = HostFeatures::detect();
        let bytes = artifact(&case, &["cpu:x86-64", "cpu:x86-64-v2", "cpu:aarch64"], &Options::default())?;
        let artifact = Artifact::from_bytes(bytes)?;
        let folder = case.checkpoint(Layout::Single)?;
        let golden = case.golden("logits")?;
        let native = artifact.manifests().filter(|m| host.missing(&m.target).is_some_and(|missing| missing.is_empty()));
        let native: Vec<String> = native.map(|m| m.target.name.clone()).collect();
        assert!(!native.is_empty());
        for target in native {
            let options = ModelOptions { threads: Some(2), target: Some(target.clone()), ..ModelOptions::default() };
            let model = Model::load(&artifact, &Checkpoint::open(folder.path())?, &options)?;
            let mut runner = Runner::new(&model, 1)?;
            let sequence = runner.add()?;
            let got = runner.step_inputs(sequence, &case.inputs)?;
            let what = format!("{name} on {target}");
            compare(&what, &golden.shape, &got, &golden.values, Tier::Model, Precision::F32)?;
        }
    }
    Ok(())
}

#[test]
fn the_best_variant_that_runs_is_chosen() -> Result<()> {
    let case = Case::load("llama2")?;
    let given = ["cpu:x86-64", "cpu:aarch64", "cpu:znver5", "cpu:x86-64-v3", "cpu:aarch64+bf16"];
    let artifact = Artifact::from_bytes(artifact(&case, &given, &Options::default())?)?;
    for (host, wanted) in [
        ("cpu:x86-64", "cpu:x86-64"),
        ("cpu:x86-64-v2", "cpu:x86-64"),
        ("cpu:haswell", "cpu:x86-64-v3"),
        ("cpu:skylake-avx512", "cpu:x86-64-v3"),
        ("cpu:znver4", "cpu:znver5"),
        ("cpu:cortex-a53", "cpu:aarch64"),
        ("cpu:neoverse-v2", "cpu:aarch64+bf16"),
    ] {
        assert_eq!(chosen(&artifact, host)?, wanted, "on {host}");
    }
    Ok(())
}

#[test]
fn a_processor_without_the_features_is_told_what_it_lacks() -> Result<()> {
    let case = Case::load("llama2")?;
    let refusal = |targets: &[&str], host: &str| -> Result<String> {
        let artifact = Artifact::from_bytes(artifact(&case, targets, &Options::default())?)?;
        match artifact.select(&machine(host)?, None) {
            Ok(variant) => Err(format!("{host} runs {}", variant.manifest().target.name).into()),
            Err(error) => Ok(format!("{error}\n  help: {}", error.help().unwrap_or_default())),
        }
    };
    assert_eq!(
        refusal(&["cpu:x86-64-v4+avx512bf16", "cpu:x86-64-v3", "cpu:aarch64"], "cpu:x86-64-v2")?,
        "artifact in memory: does not run on this x86_64 machine: cpu:x86-64-v4+avx512bf16 needs avx, avx2, bmi, bmi2, f16c, fma, lzcnt, \
         movbe, avx512bw, avx512cd, avx512dq, avx512f, avx512vl, avx512bf16; cpu:x86-64-v3 needs avx, avx2, bmi, bmi2, f16c, fma, lzcnt, movbe; \
         cpu:aarch64 is for aarch64\n  help: compile the model on this machine, or for a target that it has, with `--target`"
    );
    assert_eq!(
        refusal(&["cpu:neoverse-v1"], "cpu:neoverse-n1")?,
        "artifact in memory: does not run on this aarch64 machine: cpu:neoverse-v1 needs bf16, i8mm, sve\n  \
         help: compile the model on this machine, or for a target that it has, with `--target`"
    );
    Ok(())
}

/// A shell with `model.xfm`, compiled for `targets`, beside the case's checkpoint and inputs.
fn compiled(case: &Case, targets: &[&str], dtype: DType) -> Result<Shell> {
    let shell = shell(case)?;
    let bytes = artifact(case, targets, &Options { dtype, ..Options::default() })?;
    fs::write(shell.folder().join("model.xfm"), bytes)?;
    Ok(shell)
}

/// `xfrun logits` on an emulated processor.
fn logits(shell: &Shell, on: &Processor) -> Result<Ran> {
    let checkpoint = ["--checkpoint", "checkpoint", "--inputs", "inputs.json", "-t", "2", "-o", "out.safetensors"];
    shell.run_emulated(on, &[&["logits", "model.xfm"], &checkpoint[..]].concat())
}

#[test]
fn emulated_processors_compute_the_same() -> Result<()> {
    let targets = ["cpu:x86-64", "cpu:x86-64-v3", "cpu:x86-64-v4", "cpu:aarch64", "cpu:aarch64+bf16+dotprod"];
    for name in ["llama3", "bert"] {
        let case = Case::load(name)?;
        let shell = compiled(&case, &targets, DType::F32)?;
        for processor in [X86_64, CORTEX_A53, AARCH64_MAX] {
            logits(&shell, &processor)?.success()?;
            let matched = outputs_match(&case, &shell.folder().join("out.safetensors"), Precision::F32);
            matched.map_err(|e| format!("{name} on {processor:?}: {e}"))?;
        }
    }
    Ok(())
}

#[test]
fn emulated_products_of_bf16_are_those_of_the_case() -> Result<()> {
    let case = Case::load("mistral")?;
    for (target, processor) in [
        ("cpu:x86-64", X86_64),
        ("cpu:aarch64", CORTEX_A53),
        ("cpu:aarch64+bf16", AARCH64_MAX),
        ("cpu:neoverse-v1", AARCH64_MAX),
    ] {
        let shell = compiled(&case, &[target], DType::BF16)?;
        logits(&shell, &processor)?.success()?;
        let matched = outputs_match(&case, &shell.folder().join("out.safetensors"), Precision::BF16);
        matched.map_err(|e| format!("{target} on {processor:?}: {e}"))?;
    }
    Ok(())
}

#[test]
fn code_for_another_processor_is_refused_before_it_runs() -> Result<()> {
    let case = Case::load("llama2")?;
    for (target, processor, named) in [
        ("cpu:x86-64-v3", X86_64, ["x86_64 machine: cpu:x86-64-v3 needs", " avx2,"]),
        ("cpu:x86-64", CORTEX_A53, ["aarch64 machine: cpu:x86-64 is for x86_64", "--target"]),
        ("cpu:aarch64+bf16", CORTEX_A53, ["aarch64 machine: cpu:aarch64+bf16 needs bf16", "--target"]),
        ("cpu:aarch64", X86_64, ["x86_64 machine: cpu:aarch64 is for aarch64", "--target"]),
    ] {
        let shell = compiled(&case, &[target], DType::F32)?;
        logits(&shell, &processor)?.failure(4, &named)?;
        assert!(!shell.folder().join("out.safetensors").exists());
    }
    Ok(())
}

#[test]
fn inspect_lists_what_an_artifact_holds() -> Result<()> {
    let case = Case::load("llama2")?;
    let shell = compiled(&case, &["cpu:x86-64", "cpu:aarch64", "cpu:graniterapids"], DType::F32)?;
    let text = shell.run("xfc", &["inspect", "model.xfm"])?.success()?;
    let names: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("  cpu:")).collect();
    assert_eq!(names, ["graniterapids", "x86-64", "aarch64"], "{text}");
    assert!(text.contains("needs sse, sse2"), "{text}");
    let json: serde_json::Value =
        serde_json::from_str(&shell.run("xfc", &["inspect", "model.xfm", "--format", "json"])?.success()?)?;
    assert_eq!(json["variants"].as_array().map(Vec::len), Some(3));
    assert_eq!(json["variants"][2]["arch"], "aarch64");
    shell.run("xfc", &["inspect", "model.xfm", "--format", "dot"])?.failure(2, &["text or json"])?;
    Ok(())
}
