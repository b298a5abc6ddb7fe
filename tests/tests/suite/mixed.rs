//! Plans with a format for each module: chosen as well as trying all would, written as `--quant` reads them, measured as `xfc eval` measures.

use std::fs;

use serde_json::{Value, json};
use xfc_check::allocate::{Way, allocate};
use xfc_check::mixed::Sensitivity;
use xfc_check::units::{Grain, plan, units};
use xfc_lang::graph::blocks::{BlockForm, Blocks};
use xfc_lang::passes::quantise::{Matrices, Plan};
use xfc_tests::Result;
use xfc_tests::case::{Case, Layout};
use xfc_tests::command::Shell;
use xfc_tests::synthetic::Draw;

use crate::verify::change;

/// The least sum of costs within a budget, by trying all.
fn least(things: &[Vec<Way>], budget: u64) -> Option<f64> {
    let Some((first, rest)) = things.split_first() else { return Some(0.0) };
    let with = |way: &Way| Some(way.cost + least(rest, budget.checked_sub(way.bits)?)?);
    first.iter().filter_map(with).min_by(f64::total_cmp)
}

fn sums(things: &[Vec<Way>], chosen: &[usize]) -> (u64, f64) {
    let ways = things.iter().zip(chosen).map(|(ways, w)| ways[*w]);
    (ways.clone().map(|way| way.bits).sum(), ways.map(|way| way.cost).sum())
}

fn ways(draw: &mut Draw, things: u64, most: u64) -> Vec<Vec<Way>> {
    let mut way = || Way { bits: draw.below(most), cost: draw.below(1000) as f64 / 7.0 };
    (0..things).map(|i| (0..1 + i % 4).map(|_| way()).collect()).collect()
}

#[test]
fn no_choice_within_the_bits_is_better() {
    let mut draw = Draw::new(3);
    for round in 0..400 {
        let n = draw.below(7);
        let things = ways(&mut draw, n, if round % 2 == 0 { 12 } else { 1_000_000 });
        let most: u64 = things.iter().flatten().map(|way| way.bits).sum();
        let budget = draw.below(most + 2);
        let (found, best) = (allocate(&things, budget), least(&things, budget));
        assert_eq!(found.is_some(), best.is_some(), "{things:?} {budget}");
        if let (Some(found), Some(best)) = (found, best) {
            let (bits, cost) = sums(&things, &found);
            assert!(
                bits <= budget && (cost - best).abs() < 1e-9,
                "{cost} in {bits} of {budget}, not {best}: {things:?}"
            );
        }
    }
    assert_eq!(allocate(&[Vec::new()], 10), None);
}

/// Of more things than can be tried: within the bits, and never worse than what is less by the part that may be lost.
#[test]
fn many_choices_stay_within_the_bits() {
    let mut draw = Draw::new(5);
    let things = ways(&mut draw, 300, 1 << 40);
    let most: u64 = things.iter().map(|ways| ways.iter().map(|way| way.bits).max().unwrap_or(0)).sum();
    let fewest: u64 = things.iter().map(|ways| ways.iter().map(|way| way.bits).min().unwrap_or(0)).sum();
    let mut before = f64::INFINITY;
    for part in 0..=10 {
        let budget = fewest + (most - fewest) / 10 * part;
        let (bits, cost) = sums(&things, &allocate(&things, budget).unwrap_or_default());
        assert!(bits <= budget, "{bits} of {budget}");
        assert!(cost <= before, "{cost} after {before}");
        before = cost;
    }
    assert!(allocate(&things, fewest - 1).is_none());
}

fn matrix(paths: &[&str], rows: u64, columns: u64) -> Matrices {
    Matrices { paths: paths.iter().map(|path| (*path).to_owned()).collect(), rows, columns }
}

fn names(matrices: &[Matrices], grain: Grain) -> Vec<String> {
    units(matrices, grain).into_iter().map(|unit| unit.name).collect()
}

#[test]
fn units_are_kinds_blocks_of_layers_and_modules() {
    let path = |layer: usize, name: &str| format!("layers.{layer}.{name}.weight");
    let mut matrices: Vec<Matrices> = (0..10).map(|l| matrix(&[&path(l, "mlp.up")], 4, 8)).collect();
    matrices.extend([3, 7].map(|l| matrix(&[&path(l, "experts.{0..4}.up"), &path(l, "experts.5.up")], 20, 8)));
    matrices.push(matrix(&["head.weight"], 16, 8));
    assert_eq!(names(&matrices, Grain::Kind), ["layers.*.mlp.up", "layers.*.experts.*.up", "head"]);
    let blocks = ["layers.{0..3}.mlp.up", "layers.{3..5}.mlp.up", "layers.{5..8}.mlp.up", "layers.{8..10}.mlp.up"];
    let experts = ["layers.3.experts.*.up", "layers.7.experts.*.up", "head"];
    assert_eq!(names(&matrices, Grain::Block), [&blocks[..], &experts].concat());
    assert_eq!(names(&matrices, Grain::Module).len(), 13);
    let all = units(&matrices, Grain::Kind);
    assert_eq!(all[0].weights(), 320);
    // Of rows of 8 elements a group has no more.
    let int4 = Blocks::weights(BlockForm::Int4, 32);
    assert_eq!((all[0].bits(Some(int4), 32), all[0].bits(None, 32)), (40 * (32 + 16), 320 * 32));
    // Matrices of one product are held in one way.
    let merged = [matrix(&["a.0.q", "a.0.k"], 4, 8), matrix(&["b"], 4, 8), matrix(&["a.0.k"], 2, 8)];
    assert_eq!(names(&merged, Grain::Kind), ["a.*.k + a.*.q", "b"]);
}

/// Whatever is held how, the plan says so, and reads back as the same.
#[test]
fn plans_hold_each_matrix_as_it_is_wanted() -> Result<()> {
    let mut draw = Draw::new(9);
    let formats = [None, Some(Blocks::weights(BlockForm::Int4, 32)), Some(Blocks::weights(BlockForm::Int8, 128))];
    // Paths that are parts of others, and one that ends where another goes on.
    let mut paths: Vec<String> =
        ["up", "up.weight", "0.up.weight", "a.up.weight", "up.a.weight"].map(String::from).into();
    for layer in 0..6 {
        for name in ["q.weight", "up.weight", "experts.{0..4}.up", "experts.7.up.weight"] {
            paths.push(format!("layers.{layer}.{name}"));
            paths.push(format!("vision.layers.{layer}.{name}"));
        }
    }
    let matrices: Vec<Matrices> = paths.iter().map(|path| matrix(&[path], 1 + draw.below(9), 8)).collect();
    for round in 0..60 {
        let units = units(&matrices, [Grain::Module, Grain::Block, Grain::Kind][round % 3]);
        let held: Vec<Option<Blocks>> = units.iter().map(|_| draw.of(&formats[..1 + round % 3])).collect();
        let plan = plan(&units, &held);
        let text = format!("# a plan\n{}\n", plan.to_string().replace(',', "\n"));
        assert_eq!(text.parse::<Plan>()?, plan);
        for (unit, held) in units.iter().zip(&held) {
            for path in unit.matrices.iter().flat_map(|m| &m.paths) {
                assert_eq!(plan.of(path), *held, "{path} by {plan}");
            }
        }
        if round % 3 == 0 {
            // One way for all needs one rule.
            assert_eq!(plan.to_string(), "none");
        }
    }
    Ok(())
}

#[test]
fn mixtures_keep_to_their_bits() -> Result<()> {
    let matrices: Vec<Matrices> = (0..5).map(|i| matrix(&[&format!("layers.{i}.up")], 8, 64 * (1 + i))).collect();
    let form = |form| Some(Blocks::weights(form, 32));
    let formats = vec![form(BlockForm::Int4), form(BlockForm::Uint4), form(BlockForm::Int8)];
    // What is lost by 4 bits falls from layer to layer.
    let costs = (0..5).map(|i| vec![1.0 / (1 + i) as f64, 0.9 / (1 + i) as f64, 0.01]).collect();
    let found = Sensitivity { units: units(&matrices, Grain::Module), formats, costs, plain_bits: 32 };
    assert_eq!(found.range(), (4.5, 8.5), "{found:?}");
    assert!(found.best(4.4999).is_none() && found.best_uniform(4.4999).is_none());
    for bits in [4.5, 4.6, 5.0, 6.7, 8.4, 8.5, 100.0] {
        let (best, uniform) = (found.best(bits).ok_or("nothing")?, found.best_uniform(bits).ok_or("nothing")?);
        assert!(
            best.bits <= bits && uniform.bits <= bits && best.cost <= uniform.cost + 1e-12,
            "{bits}: {best:?} {uniform:?}"
        );
    }
    let best = found.best(4.8).ok_or("nothing")?;
    assert_eq!((best.formats[0], found.best(4.5).map(|m| m.formats)), (2, Some(vec![0; 5])));
    Ok(())
}

/// A folder with a case's checkpoint and a text of token ids.
fn shell(case: &str) -> Result<Shell> {
    let case = Case::load(case)?;
    let shell = Shell::new()?;
    fs::create_dir(shell.folder().join("checkpoint"))?;
    case.write_checkpoint(&shell.folder().join("checkpoint"), Layout::Single)?;
    let ids: Vec<i64> = case.prompt()?.iter().cycle().take(96).copied().collect();
    fs::write(shell.folder().join("ids.txt"), format!("{ids:?}"))?;
    Ok(shell)
}

#[test]
fn modules_are_ranked_and_a_plan_is_what_it_was_measured_to_be() -> Result<()> {
    let shell = shell("llama3")?;
    let text = ["--token-file", "ids.txt", "-c", "48"];
    let quant = |rest: &[&str]| shell.run("xfc", &[&["quant", "checkpoint"], &text[..], rest].concat());
    let said = quant(&["--sensitivity", "--by", "kind", "--bits", "6", "-o", "plan.txt", "--json"])?.success()?;
    let said: Value = serde_json::from_str(&said)?;
    let modules = said["modules"].as_array().ok_or("no modules")?;
    // Seven kinds and the head, in five formats, what loses most first.
    assert_eq!((modules.len(), said["scored"].as_u64()), (40, Some(94)));
    let costs: Vec<f64> = modules.iter().filter_map(|m| m["cost"].as_f64()).collect();
    assert!(costs.len() == 40 && costs.is_sorted_by(|a, b| a >= b) && costs[39] > 0.0, "{costs:?}");
    let kl = |quant: &str| -> Result<f64> {
        let rest = ["--stride", "48", "--quant", quant, "--against", "checkpoint", "--json"];
        let said = shell.run("xfc", &[&["eval", "checkpoint"], &text[..], &rest].concat())?.success()?;
        Ok(serde_json::from_str::<Value>(&said)?["against"]["kl"]["mean"].as_f64().ok_or("no divergence")?)
    };
    let same = |a: f64, b: &Value| b.as_f64().is_some_and(|b| (a - b).abs() <= 1e-3 * b);
    for i in [0, 39] {
        let one = &modules[i];
        let (module, format) = (one["module"].as_str().ok_or("no name")?, one["format"].as_str().ok_or("no format")?);
        assert!(same(kl(&format!("none,{module}={format}"))?, &one["cost"]), "{one}");
    }
    let plan = &said["plan"];
    assert!(plan["bits"].as_f64().is_some_and(|bits| bits <= 6.0 && bits > 5.5), "{plan}");
    assert!(same(kl("@plan.txt")?, &plan["kl"]) && same(kl(plan["quant"].as_str().ok_or("no plan")?)?, &plan["kl"]));
    // It is no worse than one format for all, which is what it is held against.
    assert!(plan["uniform"].is_null() || plan["kl"].as_f64() <= plan["uniform"]["kl"].as_f64(), "{plan}");
    let written = fs::read_to_string(shell.folder().join("plan.txt"))?;
    assert!(written.starts_with("# ") && written.contains(" bits a weight, divergence "), "{written}");
    shell.run("xfc", &["inspect", "checkpoint", "--quant", &written])?.success()?;

    // As a table, of single modules; nothing but the plan is printed where only that is asked for.
    let table = quant(&["--sensitivity", "--by", "module", "--formats", "uint4"])?.success()?;
    assert!(
        table.contains("layers.1.mlp.down_proj") && table.contains("uint4:g32") && table.lines().count() == 23,
        "{table}"
    );
    let printed = shell.run("xfc", &["quant", "checkpoint", "--bits", "5", "--by", "kind"])?;
    assert!(printed.stderr.contains("by the rounding of the weights alone"), "{}", printed.stderr);
    assert!(printed.success()?.parse::<Plan>().is_ok());
    Ok(())
}

#[test]
fn commands_find_a_plan_for_so_many_bits() -> Result<()> {
    // Few kinds of matrices, so that little has to be measured.
    let shell = shell("gpt2")?;
    let run = |quant: &str| {
        shell.run("xfc", &["run", "checkpoint", "--tokens", "1,2,3", "-n", "3", "--json", "--quant", quant])
    };
    let first = run("auto:5bpw")?;
    assert!(
        first.stderr.contains("by the rounding of the weights") && first.stderr.contains("bits a weight"),
        "{}",
        first.stderr
    );
    // The next time it is known.
    let second = run("auto:5")?;
    assert!(!second.stderr.contains("bits a weight"), "{}", second.stderr);
    let listed = shell.run("xfc", &["cache", "list"])?.success()?;
    assert_eq!(listed.lines().filter(|line| line.contains("  plan  ")).count(), 1, "{listed}");
    assert!(!listed.contains(".lock"), "{listed}");
    let kept = listed.lines().find_map(|line| line.split_whitespace().find(|word| word.ends_with(".txt")));
    let by_file = run(&format!("@{}", kept.ok_or("no plan")?))?;
    let ids = |said: String| -> Result<Value> { Ok(serde_json::from_str::<Value>(&said)?["ids"].clone()) };
    assert_eq!(ids(first.success()?)?, ids(by_file.success()?)?);
    shell.run("xfc", &["compile", "checkpoint", "--quant", "auto:5bpw", "-o", "a.xfm"])?.success()?;
    shell
        .run("xfc", &["compile", "checkpoint", "--quant", &format!("@{}", kept.ok_or("no plan")?), "-o", "b.xfm"])?
        .success()?;
    assert!(fs::read(shell.folder().join("a.xfm"))? == fs::read(shell.folder().join("b.xfm"))?);

    // A text is measured on.
    let words: Vec<String> = (0..300).map(|i| format!("w{i}")).collect();
    let vocab: serde_json::Map<String, Value> = words.iter().enumerate().map(|(i, w)| (w.clone(), json!(i))).collect();
    let tokenizer = json!({"version": "1.0", "added_tokens": [], "pre_tokenizer": {"type": "WhitespaceSplit"},
                           "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "w0"}});
    fs::write(shell.folder().join("checkpoint/tokenizer.json"), tokenizer.to_string())?;
    fs::write(shell.folder().join("book.txt"), words[..64].join(" "))?;
    let arguments =
        ["eval", "checkpoint", "--text", "book.txt", "--quant", "auto:5bpw", "--calibration", "book.txt", "--json"];
    let measured = shell.run("xfc", &arguments)?;
    assert!(
        measured.stderr.contains("found on 64 tokens") && measured.stderr.contains("divergence"),
        "{}",
        measured.stderr
    );
    measured.success()?;
    Ok(())
}

#[test]
fn what_cannot_be_found_is_refused() -> Result<()> {
    let shell = shell("llama3")?;
    fs::write(shell.folder().join("one.txt"), "1")?;
    fs::write(shell.folder().join("far.txt"), "1 2 9999")?;
    fs::write(shell.folder().join("bad.txt"), "int5")?;
    let text = ["--token-file", "ids.txt"];
    for (arguments, code, named) in [
        (&[][..], 2, "--sensitivity"),
        (&["--sensitivity"], 2, "none was given"),
        (&["--sensitivity", "--token-file", "one.txt"], 2, "nothing to score"),
        (&["--sensitivity", "--token-file", "far.txt"], 2, "9999"),
        (&["--sensitivity", "--token-file", "missing.txt"], 3, "missing.txt"),
        (&["--sensitivity", text[0], text[1], "-c", "1"], 2, "windows of 1"),
        (&["--sensitivity", text[0], text[1], "--formats", "int5"], 2, "int5"),
        (&["--sensitivity", text[0], text[1], "--formats", "q_proj=int4"], 2, "q_proj=int4"),
        (&["--bits", "4"], 2, "int8:g128 give 4.2"),
        (&["--bits", "20"], 2, "20 bits a weight were asked for"),
        (&["--bits", "nan"], 2, "no number of bits"),
        (&["--bits", "5", "--quant", "int4"], 2, "is what this command finds"),
        (&["--bits", "5", "-o", "none/plan.txt"], 1, "none/plan.txt"),
        (&["--sensitivity", text[0], text[1], "-o", "plan.txt"], 2, "--bits"),
    ] {
        shell.run("xfc", &[&["quant", "checkpoint"], arguments].concat())?.failure(code, &[named])?;
    }
    shell.run("xfc", &["quant", "llama", "--bits", "5"])?.failure(2, &["no weights"])?;
    for (arguments, named) in [
        (&["compile", "llama", "--quant", "auto:4.5bpw"][..], "give a checkpoint folder"),
        (&["compile", "checkpoint", "--quant", "auto:4bpw"], "4 bits a weight were asked for"),
        (&["compile", "checkpoint", "--quant", "auto:many"], "'many' is no number of bits"),
        (&["compile", "checkpoint", "--quant", "@none.txt"], "none.txt: cannot read"),
        (&["compile", "checkpoint", "--quant", "@bad.txt"], "bad.txt: 'int5' is no format"),
        (&["compile", "checkpoint", "--quant", "int4", "--calibration", "ids.txt"], "--calibration"),
        (&["inspect", "checkpoint", "--quant", "auto:4.5bpw"], "xfc quant CHECKPOINT --bits 4.5"),
    ] {
        shell.run("xfc", arguments)?.failure(2, &[named])?;
    }
    // Rounding would make anything of what is no number.
    for (value, said) in
        [(|_| f32::NAN, "holds NaN"), (|_| f32::NEG_INFINITY, "holds -inf")] as [(fn(f32) -> f32, _); 2]
    {
        change(&shell.folder().join("checkpoint"), "model.layers.0.mlp.up_proj.weight", 3, value)?;
        let ran = shell.run("xfc", &["quant", "checkpoint", "--bits", "5"])?;
        ran.failure(3, &["checkpoint: `layers.0.mlp.up_proj.weight` ", said])?;
    }
    // A model without products.
    let card = "xfc: 1\nname: Plain\nsizes: {}\nwiring: |\n  model(x: f32[tokens, 8]) {\n    return {y: x * 2}\n  }\n";
    fs::write(shell.folder().join("plain.yaml"), card)?;
    let arguments = ["quant", "plain.yaml", "--checkpoint", "random", "--bits", "5"];
    shell.run("xfc", &arguments)?.failure(2, &["no matrices of products"])?;
    Ok(())
}
