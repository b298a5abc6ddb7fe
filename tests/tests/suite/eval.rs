//! `xfc eval`: perplexity equals what the logits say, a run is at no distance from itself, and bf16 is a little away from f32.

use std::fs;
use std::path::Path;

use safetensors::SafeTensors;
use serde_json::Value;
use xfc_check::eval::{Divergence, is_clear, windows};
use xfc_check::records::{Record, Recorder};
use xfc_tests::Result;
use xfc_tests::case::{Case, Layout};
use xfc_tests::command::Shell;
use xfc_tests::repository;

fn shell(case: &Case, tokens: usize) -> Result<(Shell, Vec<i64>)> {
    let shell = Shell::new()?;
    fs::create_dir(shell.folder().join("checkpoint"))?;
    case.write_checkpoint(&shell.folder().join("checkpoint"), Layout::Single)?;
    let prompt = case.prompt()?;
    let ids: Vec<i64> = prompt.iter().cycle().take(tokens).copied().collect();
    fs::write(shell.folder().join("ids.txt"), format!("{ids:?}"))?;
    Ok((shell, ids))
}

fn eval(shell: &Shell, rest: &[&str]) -> Result<Value> {
    let arguments = [&["eval", "checkpoint", "--token-file", "ids.txt", "--json"], rest].concat();
    Ok(serde_json::from_str(&shell.run("xfc", &arguments)?.success()?)?)
}

#[test]
fn perplexity_is_what_the_logits_say() -> Result<()> {
    let case = Case::load("llama3")?;
    let (shell, ids) = shell(&case, 24)?;
    let golden = case.golden("logits")?;
    let width = golden.shape[1];
    let loss = |t: usize| {
        let row = &golden.values[(t - 1) * width..t * width];
        let sum: f64 = row.iter().map(|x| f64::from(*x).exp()).sum();
        sum.ln() - f64::from(row[ids[t] as usize])
    };
    let expected = (1..24).map(loss).sum::<f64>() / 23.0;
    let said = eval(&shell, &[])?;
    assert_eq!((said["scored"].as_u64(), said["windows"].as_u64()), (Some(23), Some(1)), "{said}");
    assert!((said["nats"].as_f64().ok_or("no nats")? - expected).abs() < 1e-4, "{said}, not {expected}");
    // In windows, each of which begins anew.
    let said = eval(&shell, &["-c", "8", "--stride", "4"])?;
    assert_eq!((said["scored"].as_u64(), said["windows"].as_u64()), (Some(23), Some(5)), "{said}");
    let said = eval(&shell, &["-c", "8", "--stride", "8"])?;
    assert_eq!((said["scored"].as_u64(), said["windows"].as_u64()), (Some(21), Some(3)), "{said}");
    Ok(())
}

/// Of one token nobody knows how far another would be.
#[test]
fn one_token_has_no_error() -> Result<()> {
    let (shell, _) = shell(&Case::load("llama3")?, 2)?;
    let said = shell.run("xfc", &["eval", "checkpoint", "--token-file", "ids.txt"])?.success()?;
    assert!(said.contains(" over 1 token in 1 window of ") && !said.contains('±'), "{said}");
    assert!(eval(&shell, &[])?["perplexity_error"].is_null());
    Ok(())
}

#[test]
fn runs_are_compared_through_a_file_and_side_by_side() -> Result<()> {
    let case = Case::load("mistral")?;
    let (shell, _) = shell(&case, 100)?;
    let plain = eval(&shell, &["-c", "32", "--save", "f32.logits"])?;
    let same = eval(&shell, &["-c", "32", "--against", "f32.logits"])?;
    assert_eq!(same["perplexity"], plain["perplexity"]);
    assert_eq!((&same["against"]["top1"], same["against"]["kl"]["largest"].as_f64()), (&Value::from(1.0), Some(0.0)));
    let file = eval(&shell, &["-c", "32", "--dtype", "bf16", "--against", "f32.logits"])?;
    let model = eval(&shell, &["-c", "32", "--dtype", "bf16", "--against", "checkpoint"])?;
    assert_eq!(file["against"]["kl"], model["against"]["kl"]);
    let kl = file["against"]["kl"]["mean"].as_f64().ok_or("no divergence")?;
    assert!(kl > 0.0 && kl < 1e-2, "{file}");
    assert!(file["against"]["top1_clear"].as_f64().ok_or("no share")? > 0.98, "{file}");
    let arguments = ["eval", "checkpoint", "--token-file", "ids.txt", "-c", "16", "--against", "f32.logits"];
    shell.run("xfc", &arguments)?.failure(3, &["f32.logits", "other windows"])?;
    Ok(())
}

#[test]
fn texts_and_models_that_cannot_be_measured_are_refused() -> Result<()> {
    let case = Case::load("bert")?;
    let (whole, _) = shell(&case, 24)?;
    whole.run("xfc", &["eval", "checkpoint", "--token-file", "ids.txt"])?.failure(2, &["as a whole"])?;
    let case = Case::load("llama3")?;
    let (shell, _) = shell(&case, 1)?;
    fs::write(shell.folder().join("bad.txt"), "1 2 x")?;
    fs::write(shell.folder().join("far.txt"), "1 2 9999")?;
    for (arguments, code, named) in [
        (&["--token-file", "ids.txt"][..], 2, "nothing to score"),
        (&["--token-file", "bad.txt"], 3, "`x`"),
        (&["--token-file", "far.txt"], 2, "9999"),
        (&["--token-file", "missing.txt"], 3, "missing.txt"),
        (&["--text", "bad.txt"], 3, "tokenizer.json"),
        (&["--token-file", "far.txt", "-c", "1"], 2, "windows of 1"),
        (&["--token-file", "far.txt", "--stride", "0"], 2, "stride of 0"),
        (&[], 2, "--text"),
    ] {
        shell.run("xfc", &[&["eval", "checkpoint"], arguments].concat())?.failure(code, &[named])?;
    }
    Ok(())
}

#[test]
fn logits_that_are_not_finite_are_refused() -> Result<()> {
    let case = Case::load("llama3")?;
    let (shell, ids) = shell(&case, 24)?;
    let path = shell.folder().join("checkpoint/model.safetensors");
    let right = fs::read(&path)?;
    let (header, metadata) = SafeTensors::read_metadata(&right)?;
    let at = 8 + header + metadata.info("model.norm.weight").ok_or("no norm")?.data_offsets.0;
    let mut wrong = right.clone();
    wrong[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(&path, wrong)?;
    let arguments = ["eval", "checkpoint", "--token-file", "ids.txt"];
    let named = ["this run predicts token 1 of the text", "not finite: NaN"];
    shell.run("xfc", &[&arguments[..], &["--save", "bad.logits"]].concat())?.failure(1, &named)?;
    // Nothing is left of a file that was begun.
    let left: Vec<_> = fs::read_dir(shell.folder())?.flatten().map(|entry| entry.file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().contains("bad.logits")), "{left:?}");
    fs::write(&path, right)?;
    // Nor are those of another run.
    let windows = windows(ids.len(), ids.len(), ids.len());
    let width = case.golden("logits")?.shape[1];
    let file = shell.folder().join("other.logits");
    let mut recorder = Recorder::create(&file, &ids, &windows, width)?;
    recorder.add(&vec![f32::NAN; (ids.len() - 1) * width])?;
    recorder.finish()?;
    let arguments = [&arguments[..], &["-c", "24", "--stride", "24", "--against", "other.logits"]].concat();
    shell.run("xfc", &arguments)?.failure(1, &["the other run predicts token 1", "not finite"])?;
    Ok(())
}

#[cfg(unix)]
#[test]
fn files_of_logits_follow_links_and_leave_devices() -> Result<()> {
    let shell = Shell::new()?;
    let folder = shell.folder();
    let (tokens, windows) = ([1, 2, 3], windows(3, 3, 3));
    let save = |path: &Path| -> Result<()> {
        let mut recorder = Recorder::create(path, &tokens, &windows, 2)?;
        recorder.add(&[0.5; 4])?;
        Ok(recorder.finish()?)
    };
    fs::write(folder.join("file"), "old")?;
    std::os::unix::fs::symlink(folder.join("file"), folder.join("link"))?;
    save(&folder.join("link"))?;
    assert!(folder.join("link").is_symlink());
    assert_eq!(Record::open(&folder.join("file"), &tokens, &windows)?.rows(0, 2)?, [0.5; 4]);
    save(Path::new("/dev/null"))?;
    assert!(!fs::metadata("/dev/null")?.is_file());
    // A folder that is not there is said before anything is run; what is given up leaves what was there.
    let error = Recorder::create(&folder.join("none/file"), &tokens, &windows, 2).map(drop).unwrap_err();
    assert!(error.to_string().contains("none/file: cannot write"), "{error}");
    drop(Recorder::create(&folder.join("file"), &tokens, &windows, 2)?);
    assert_eq!(Record::open(&folder.join("file"), &tokens, &windows)?.width(), 2);
    assert_eq!(fs::read_dir(folder)?.count(), 2);
    Ok(())
}

#[test]
fn a_trained_model_predicts_text_in_either_precision() -> Result<()> {
    let shell = Shell::new()?;
    let [model, text] = ["examples/demo/dense", "tools/dump_embeddings.py"].map(|path| repository().join(path));
    let (model, text) = (model.to_string_lossy(), text.to_string_lossy());
    let arguments = ["eval", &model, "--text", &text, "-c", "128", "--dtype", "bf16", "--against", &model, "--json"];
    let said: Value = serde_json::from_str(&shell.run("xfc", &arguments)?.success()?)?;
    let perplexity = said["perplexity"].as_f64().ok_or("no perplexity")?;
    // A model that has learnt nothing is at the size of its vocabulary, in the thousands.
    assert!(perplexity < 200.0, "{said}");
    assert!(said["against"]["top1_clear"].as_f64().is_some_and(|share| share >= 0.99), "{said}");
    Ok(())
}

#[test]
fn windows_score_every_token_once() {
    for (tokens, context, stride) in [(100, 10, 5), (100, 10, 10), (7, 10, 5), (31, 8, 3), (2, 2, 1), (1, 8, 4)] {
        let windows = windows(tokens, context, stride);
        let scored: Vec<usize> = windows.iter().flat_map(|w| w.scored..w.end).collect();
        // With a stride of the whole context each window's first token has nothing before it.
        let expected = |t: &usize| if stride == context { !t.is_multiple_of(context) } else { *t != 0 };
        assert_eq!(scored, (0..tokens).filter(expected).collect::<Vec<_>>(), "{tokens} {context} {stride}");
        for w in &windows {
            assert!(w.end - w.start <= context && w.scored > w.start);
            assert!(w.start == 0 || w.scored - w.start >= context - stride);
        }
    }
}

#[test]
fn divergence_of_known_distributions() {
    let mut d = Divergence::default();
    let logits = |p: [f64; 3]| p.map(|p| p.ln() as f32 + 3.0);
    d.add(&logits([0.25, 0.25, 0.5]), &logits([0.5, 0.25, 0.25]), 0);
    d.add(&logits([0.25, 0.25, 0.5]), &logits([0.25, 0.25, 0.5]), 2);
    let expected = 0.5 * 2f64.ln() - 0.25 * 2f64.ln();
    assert!((d.divergences[0] - expected).abs() < 1e-6 && d.divergences[1] < 1e-6);
    assert_eq!((d.agree, d.clear, d.clear_agree), (1, 2, 1));
    assert!((d.other.mean() - 2f64.ln()).abs() < 1e-6);
    d.add(&[f32::NAN, 1.0], &[f32::NAN, 1.0], 1);
    assert!(d.divergences[2].is_nan() && d.mean().is_nan());
    assert!(!is_clear(&[1.0, 0.999, -1.0]) && is_clear(&[1.0, 0.5, -1.0]));
}
