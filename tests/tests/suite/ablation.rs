//! `--set` on lines of the wiring, as an experiment is made: a norm moved, a sublayer without its norm, one norm more.

use xfc_lang::spec::apply_sets;
use xfc_lang::{ElaborateOptions, Library, elaborate, load_card, tiny};
use xfc_runtime::step::InputData;
use xfc_tests::Result;
use xfc_tests::case::{Case, Layout};
use xfc_tests::command::Shell;
use xfc_tests::program::agree;

/// Norms after the residuals instead of before the sublayers.
const POST_NORM: [&str; 2] =
    ["layer.h = input_layernorm(x + self_attn(x))", "layer.return = post_attention_layernorm(h + mlp(h))"];

#[test]
fn a_norm_that_is_moved_is_compiled_as_it_is_interpreted() -> Result<()> {
    let library = Library::embedded();
    let program = |sets: &[&str]| -> Result<String> {
        let mut spec = load_card("llama", &library)?;
        let sets: Vec<String> = sets.iter().map(|s| (*s).to_owned()).collect();
        let sets = apply_sets(&mut spec, &sets)?;
        let options = tiny(&spec, &ElaborateOptions { sets, ..ElaborateOptions::default() })?;
        Ok(elaborate(&spec, &options)?.program.to_string())
    };
    let (before, after) = (program(&[])?, program(&POST_NORM)?);
    assert_ne!(before, after);
    let step = |ids: &[i64]| vec![("input_ids", InputData::Ints(ids.to_vec()))];
    agree(&after, &[step(&[5, 130, 0, 7, 7, 64, 3]), step(&[9]), step(&[1, 2])])
}

#[test]
fn an_experiment_is_a_command() -> Result<()> {
    let shell = Shell::new()?;
    let mut arguments = vec!["run", "llama", "--tiny", "--tokens", "1,2,3", "-n", "5", "--json"];
    let plain = shell.run("xfc", &arguments)?.success()?;
    POST_NORM.iter().for_each(|set| arguments.extend(["--set", set]));
    let moved = shell.run("xfc", &arguments)?.success()?;
    let ids = |text: &str| serde_json::from_str::<serde_json::Value>(text).map(|json| json["ids"].clone());
    assert_ne!(ids(&plain)?, ids(&moved)?);

    let arguments =
        ["compile", "llama", "--tiny", "-o", "a.xfm", "--set", "layer.h = x + self_attn(input_layrnorm(x))"];
    shell.run("xfc", &arguments)?.failure(3, &["--set:1:25", "did you mean `input_layernorm`?"])?;
    let arguments = ["compile", "llama", "--tiny", "-o", "a.xfm", "--set", "layer.g = x + self_attn(x)"];
    shell.run("xfc", &arguments)?.failure(3, &["`layer` binds no `g`"])?;
    assert!(!shell.folder().join("a.xfm").exists());
    Ok(())
}

#[test]
fn tensors_of_a_checkpoint_that_are_unused_or_missing_are_listed() -> Result<()> {
    let shell = Shell::new()?;
    Case::load("llama2")?.write_checkpoint(shell.folder(), Layout::Single)?;
    let run = |rest: &[&str]| shell.run("xfc", &[&["run", ".", "--tokens", "1,2", "-n", "1"], rest].concat());
    let without = run(&["--set", "layer.h = x + self_attn(x)"])?;
    assert!(without.stderr.contains("warning: nothing reads these tensors"), "{}", without.stderr);
    assert!(without.stderr.contains("`model.layers.0.input_layernorm.weight`"), "{}", without.stderr);
    without.success()?;

    let more = ["--set", "layer.extra = norm", "--set", "layer.h = x + extra(self_attn(input_layernorm(x)))"];
    run(&more)?.failure(3, &["`model.layers.0.extra.weight`: missing", "--allow-missing"])?;
    // Of commands that cannot make them up, and where nothing is missing, this is no advice.
    let said =
        shell.run("xfc", &[&["verify", ".", "--tokens", "2"], &more[..]].concat())?.failure(3, &["extra.weight"])?;
    assert!(!said.contains("--allow-missing") && said.contains("tensors do not fit"), "{said}");
    let said = run(&["--set", "intermediate_size=20"])?.failure(3, &["tensors do not fit", "mlp.up_proj.weight"])?;
    assert!(!said.contains("--allow-missing"), "{said}");
    let filled = run(&[&more[..], &["--allow-missing"]].concat())?;
    assert!(filled.stderr.contains("made up") && filled.stderr.contains("layers.1.extra.weight"), "{}", filled.stderr);
    filled.success()?;
    run(&[&more[..], &["--checkpoint", "random"]].concat())?.success()?;
    Ok(())
}
