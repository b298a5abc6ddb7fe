//! Every card made tiny, compiled, and run as the interpreter runs it: a prompt longer than any window, then tokens one by one.

use xfc_lang::arch::Model;
use xfc_lang::graph::{AxisId, DType, Dim, InputDecl};
use xfc_lang::{ElaborateOptions, Library, elaborate, load_card, tiny};
use xfc_runtime::step::InputData;
use xfc_tests::Result;
use xfc_tests::command::Shell;
use xfc_tests::program::{Given, agree_in_turn};
use xfc_tests::synthetic::Draw;

/// Values of an input for so many elements of its axis.
fn values(draw: &mut Draw, input: &InputDecl, elements: usize) -> InputData {
    let row: u64 = input.ty.dims.iter().map(|d| if let Dim::Fixed(n) = d { *n } else { 1 }).product();
    let n = elements as u64 * row;
    match input.ty.dtype {
        DType::F32 => InputData::Floats((0..n).map(|_| draw.below(2001) as f32 / 1000.0 - 1.0).collect()),
        DType::Bool => InputData::Ints((0..n).map(|_| draw.below(2) as i64).collect()),
        // Rows of the smallest table that `--tiny` makes of a large one.
        _ => InputData::Ints((0..n).map(|_| draw.below(131) as i64).collect()),
    }
}

fn steps(model: &Model) -> Vec<Vec<Given<'_>>> {
    let mut draw = Draw::new(11);
    let needed: Vec<&InputDecl> = model.program.inputs.iter().filter(|i| i.default.is_none()).collect();
    // What is of another axis than the tokens is given once.
    let grows = |i: &InputDecl| i.ty.dims.first() == Some(&Dim::Axis(AxisId(0)));
    let extent = |i: &InputDecl| match i.ty.dims.first() {
        Some(Dim::Axis(axis)) => model.program.extent(*axis),
        _ => None,
    };
    let mut step = |n, first: bool| {
        let given = needed.iter().filter(|i| first || grows(i));
        given.map(|i| (i.name.as_str(), values(&mut draw, i, extent(i).map_or(n, |e| e as usize)))).collect()
    };
    if model.program.extent(AxisId(0)).is_some() {
        // A sequence of known length is given whole.
        return vec![step(21, true)];
    }
    vec![step(21, true), step(1, false), step(1, false), step(5, false)]
}

/// Every second card, so that two tests share the work.
fn cards_are_compiled_as_they_are_interpreted(first: usize) {
    let library = Library::embedded();
    let one = |number: usize, name: &str| -> Result<()> {
        let spec = load_card(name, &library)?;
        let model = elaborate(&spec, &tiny(&spec, &ElaborateOptions::default())?)?;
        agree_in_turn(number, &model.program.to_string(), &steps(&model))
    };
    let cards = library.cards().skip(first).step_by(2).enumerate();
    let failed: Vec<String> = cards.filter_map(|(i, c)| one(i, c).err().map(|e| format!("{c}: {e}"))).collect();
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[test]
fn every_card_is_compiled_as_it_is_interpreted() {
    cards_are_compiled_as_they_are_interpreted(0);
}

#[test]
fn every_other_card_is_compiled_as_it_is_interpreted() {
    cards_are_compiled_as_they_are_interpreted(1);
}

#[test]
fn the_commands_take_it() -> Result<()> {
    let shell = Shell::new()?;
    let text = shell.run("xfc", &["inspect", "llama", "--tiny", "--emit", "arch"])?.success()?;
    assert!(text.contains("num_key_value_heads: 2"), "{text}");
    let ids = || -> Result<serde_json::Value> {
        let ran = shell.run("xfc", &["run", "llama", "--tiny", "--tokens", "1,2,3", "-n", "4", "--json"])?.success()?;
        Ok(serde_json::from_str::<serde_json::Value>(&ran)?["ids"].clone())
    };
    assert_eq!(ids()?, ids()?);
    shell.run("xfc", &["compile", "llama", "--tiny", "-o", "t.xfm"])?.success()?;
    shell.run("xfc", &["run", "t.xfm", "--tiny", "--tokens", "1"])?.failure(2, &["t.xfm", "--tiny"])?;
    shell.run("xfrun", &["run", "t.xfm", "--checkpoint", "random", "--tokens", "1,2", "-n", "2"])?.success()?;
    let checked = shell.run("xfc", &["check", "llama", "--tiny"])?.success()?;
    assert!(checked.contains("llama: ok"), "{checked}");
    Ok(())
}
