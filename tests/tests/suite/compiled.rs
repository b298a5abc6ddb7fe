//! Compiled models against other implementations, and against themselves: in pieces, together, forked, on any number of threads.

use std::collections::BTreeMap;

use xfc_runtime::weights::Checkpoint;
use xfc_tests::Result;
use xfc_tests::case::{Case, Layout};
use xfc_tests::compare::{Precision, Tier, compare, measure};
use xfc_tests::compile::{Runner, TARGETS, load, load_from};

use crate::cases::{decoders, every_case, largest};

/// Two ways to compute the same f32 logits: sums of at most a few hundred products a layer, in another order.
const SAME: Tier = Tier::Accumulate(1024);

/// Compares the logits of two ways to compute them.
fn same(what: &str, vocabulary: usize, got: &[f32], want: &[f32]) -> Result<()> {
    Ok(compare(what, &[want.len() / vocabulary, vocabulary], got, want, SAME, Precision::F32)?)
}

/// Width of the logits of a case.
fn vocabulary(case: &Case) -> Result<usize> {
    Ok(*case.golden("logits")?.shape.last().ok_or("logits without a shape")?)
}

/// The logits of one sequence computed alone, in one step.
fn alone(runner: &mut Runner, ids: &[i64]) -> Result<Vec<f32>> {
    let sequence = runner.add()?;
    let logits = runner.step(&[(sequence, ids)])?.remove(0);
    runner.session.free(sequence)?;
    Ok(logits)
}

/// Prints each case's largest difference under `--nocapture`: the table of `bench/RESULTS.md`.
#[test]
#[expect(clippy::print_stdout, reason = "a measurement for people, hidden unless asked for")]
fn outputs_match() {
    every_case(|case| {
        for target in TARGETS {
            let mut runner = Runner::new(&load(case, target, 2)?, 1)?;
            let sequence = runner.session.add_sequence()?;
            let outputs = runner.outputs_of(sequence, case)?;
            for (name, golden) in case.outputs()? {
                let got = outputs.get(&name).ok_or_else(|| format!("there is no output `{name}`"))?;
                compare(&name, &golden.shape, got, &golden.values, Tier::Model, Precision::F32)
                    .map_err(|e| format!("{target}: {e}"))?;
                let furthest = measure(got, &golden.values, Tier::Model, Precision::F32).largest();
                println!("{}, {target}: {furthest:.1e} in {name}", case.name);
            }
        }
        Ok(())
    });
}

#[test]
fn greedy_tokens_are_identical_through_the_caches() {
    decoders(|case| {
        let golden = case.golden("greedy.logits")?;
        let vocabulary = golden.shape[1];
        for target in TARGETS {
            let mut runner = Runner::new(&load(case, target, 2)?, 1)?;
            let sequence = runner.session.add_sequence()?;
            let mut logits = runner.step_case(sequence, case)?;
            let (mut ids, mut rows) = (Vec::new(), Vec::new());
            while ids.len() < case.greedy_steps {
                let last = logits.split_off(logits.len() - vocabulary);
                ids.push(largest(&last));
                rows.extend(last);
                logits = runner.step(&[(sequence, &ids[ids.len() - 1..])])?.remove(0);
            }
            if ids != case.greedy_ids()? {
                return Err(format!("{target}: generated {ids:?}, expected {:?}", case.greedy_ids()?).into());
            }
            compare("greedy.logits", &golden.shape, &rows, &golden.values, Tier::Model, Precision::F32)
                .map_err(|e| format!("{target}: {e}"))?;
        }
        Ok(())
    });
}

#[test]
fn a_prompt_in_pieces_is_the_whole_prompt() {
    decoders(|case| {
        let (prompt, vocabulary) = (case.prompt()?, vocabulary(case)?);
        let mut runner = Runner::of(case, &load(case, "cpu", 2)?, 1)?;
        let whole = alone(&mut runner, prompt)?;
        for mut cuts in [vec![1], vec![prompt.len() - 1], vec![3, 4, 9, 17], (1..prompt.len()).collect()] {
            cuts.retain(|cut| *cut < prompt.len());
            let (sequence, mut pieces, mut from) = (runner.add()?, Vec::new(), 0);
            for to in cuts.iter().copied().chain([prompt.len()]) {
                pieces.extend(runner.step(&[(sequence, &prompt[from..to])])?.remove(0));
                from = to;
            }
            same(&format!("logits cut at {cuts:?}"), vocabulary, &pieces, &whole)?;
            runner.session.free(sequence)?;
        }
        Ok(())
    });
}

#[test]
fn sequences_in_one_step_are_each_alone() {
    decoders(|case| {
        let (prompt, vocabulary) = (case.prompt()?, vocabulary(case)?);
        let reversed: Vec<i64> = prompt.iter().rev().copied().collect();
        let texts = [prompt, &reversed[..1], &reversed, &prompt[5..prompt.len().min(16)], &reversed[2..9]];
        let mut runner = Runner::of(case, &load(case, "cpu", 2)?, texts.len() as u32 + 1)?;
        let want = texts.iter().map(|ids| alone(&mut runner, ids)).collect::<Result<Vec<_>>>()?;
        // All at once; then each in pieces of its own length, so that prompts and single tokens share steps.
        for piece in [[99; 5], [3, 1, 24, 2, 7], [1; 5]] {
            let sequences = texts.iter().map(|_| runner.add()).collect::<Result<Vec<_>>>()?;
            let mut got = vec![Vec::new(); texts.len()];
            let mut done = [0; 5];
            while (0..texts.len()).any(|i| done[i] < texts[i].len()) {
                let active: Vec<usize> = (0..texts.len()).filter(|&i| done[i] < texts[i].len()).collect();
                let end = |i: usize| texts[i].len().min(done[i] + piece[i]);
                let ends: Vec<_> = active.iter().map(|&i| (i, end(i))).collect();
                let parts: Vec<_> = active.iter().map(|&i| (sequences[i], &texts[i][done[i]..end(i)])).collect();
                for (&i, logits) in active.iter().zip(runner.step(&parts)?) {
                    got[i].extend(logits);
                }
                ends.into_iter().for_each(|(i, end)| done[i] = end);
            }
            for i in 0..texts.len() {
                same(&format!("logits of sequence {i} in pieces of {piece:?}"), vocabulary, &got[i], &want[i])?;
                runner.session.free(sequences[i])?;
            }
        }
        Ok(())
    });
}

#[test]
fn images_in_one_step_are_each_alone() -> Result<()> {
    let case = Case::load("vit")?;
    let mut other = case.clone();
    for image in other.floats.values_mut() {
        image.values.reverse();
    }
    let mut runner = Runner::new(&load(&case, "cpu", 2)?, 5)?;
    let mut want = Vec::new();
    for case in [&case, &other] {
        let sequence = runner.add()?;
        want.push(runner.step_case(sequence, case)?);
        runner.session.free(sequence)?;
    }
    let sequences = (0..5).map(|_| runner.add()).collect::<Result<Vec<_>>>()?;
    let parts: Vec<_> = sequences.iter().zip([&case, &other, &other, &case, &other]).map(|(s, c)| (*s, c)).collect();
    for (i, (logits, which)) in runner.step_cases(&parts)?.into_iter().zip([0, 1, 1, 0, 1]).enumerate() {
        same(&format!("logits of image {i}"), vocabulary(&case)?, &logits, &want[which])?;
    }
    let mut wrong = case.clone();
    wrong.floats.values_mut().for_each(|image| image.values.truncate(3 * 32));
    let error = runner.step_case(sequences[0], &wrong).unwrap_err().to_string();
    assert!(error.contains("pixel_values"), "{error}");
    Ok(())
}

#[test]
fn a_fork_continues_by_itself() {
    decoders(|case| {
        let (prompt, vocabulary) = (case.prompt()?, vocabulary(case)?);
        let mut runner = Runner::of(case, &load(case, "cpu", 2)?, 4)?;
        for shared in [1, 7, 16, 17].into_iter().filter(|shared| shared + 4 <= prompt.len()) {
            let (left, right) = (&prompt[shared..], prompt[shared..].iter().rev().copied().collect::<Vec<_>>());
            let joined: Vec<i64> = prompt[..shared].iter().chain(&right).copied().collect();
            let (want_left, want_right) = (alone(&mut runner, prompt)?, alone(&mut runner, &joined)?);
            let first = runner.add()?;
            runner.step(&[(first, &prompt[..shared])])?;
            let second = runner.session.fork(first)?;
            // Both write behind the shared part, in turns and then together.
            let mut got = [Vec::new(), Vec::new()];
            got[0].extend(runner.step(&[(first, &left[..2])])?.remove(0));
            got[1].extend(runner.step(&[(second, &right[..3])])?.remove(0));
            for (got, logits) in got.iter_mut().zip(runner.step(&[(first, &left[2..]), (second, &right[3..])])?) {
                got.extend(logits);
            }
            same(&format!("left of a fork at {shared}"), vocabulary, &got[0], &want_left[shared * vocabulary..])?;
            same(&format!("right of a fork at {shared}"), vocabulary, &got[1], &want_right[shared * vocabulary..])?;
            runner.session.free(first)?;
            runner.session.free(second)?;
        }
        Ok(())
    });
}

#[test]
fn a_truncated_sequence_continues_from_there() {
    decoders(|case| {
        let (prompt, vocabulary) = (case.prompt()?, vocabulary(case)?);
        let mut runner = Runner::of(case, &load(case, "cpu", 2)?, 2)?;
        let want = alone(&mut runner, prompt)?;
        // Short ways back, which a window that has moved on still holds.
        for (keep, wrong) in [(4, 3), (9, 2), (20, 1)].into_iter().filter(|(keep, _)| *keep < prompt.len()) {
            let sequence = runner.add()?;
            runner.step(&[(sequence, &prompt[..keep])])?;
            runner.step(&[(sequence, &vec![7; wrong])])?;
            runner.session.truncate(sequence, keep as u64)?;
            assert_eq!(runner.session.length(sequence)?, keep as u64);
            let got = runner.step(&[(sequence, &prompt[keep..])])?.remove(0);
            same(&format!("logits after going back to {keep}"), vocabulary, &got, &want[keep * vocabulary..])?;
            runner.session.free(sequence)?;
        }
        Ok(())
    });
}

#[test]
fn threads_and_shards_change_no_bit() {
    every_case(|case| {
        let outputs = |threads, layout| -> Result<BTreeMap<String, Vec<f32>>> {
            let folder = case.checkpoint(layout)?;
            let model = load_from(case, "cpu", threads, &Checkpoint::open(folder.path())?)?;
            let mut runner = Runner::new(&model, 1)?;
            let sequence = runner.session.add_sequence()?;
            runner.outputs_of(sequence, case)
        };
        let want = outputs(1, Layout::Single)?;
        for (threads, layout) in [(2, Layout::Single), (3, Layout::Sharded(3)), (1, Layout::Sharded(7))] {
            if outputs(threads, layout)? != want {
                return Err(format!("{threads} threads and {layout:?} give other outputs").into());
            }
        }
        Ok(())
    });
}

#[test]
fn a_checkpoint_that_does_not_fit_is_described_in_full() -> Result<()> {
    let case = Case::load("mistral")?;
    let mut wrong = case.clone();
    let missing = wrong.tensors.remove(3).name;
    wrong.tensors[5].shape.push(2);
    let misshapen = wrong.tensors[5].name.clone();
    wrong.tensors[9].name = "model.layers.0.unheard_of.weight".to_owned();
    let folder = wrong.checkpoint(Layout::Single)?;
    let error = load_from(&case, "cpu", 1, &Checkpoint::open(folder.path())?).unwrap_err().to_string();
    for name in [missing.as_str(), &misshapen, "unheard_of", &case.tensors[10].name] {
        assert!(error.contains(name), "{name} is not named in: {error}");
    }
    assert!(error.contains(&folder.path().display().to_string()), "the folder is not named in: {error}");
    Ok(())
}

#[test]
fn inputs_that_do_not_fit_are_refused() -> Result<()> {
    let case = Case::load("llama3")?;
    let mut runner = Runner::new(&load(&case, "cpu", 1)?, 1)?;
    let sequence = runner.add()?;
    let inputs = |name: &str, ids: Vec<i64>| BTreeMap::from([(name.to_owned(), ids)]);
    for (inputs, named) in [
        (inputs("input_ids", vec![3, 320]), "320"),
        (inputs("input_ids", vec![-1]), "-1"),
        (inputs("input_ids", vec![]), "token"),
        (inputs("inputs", vec![1]), "inputs"),
        (BTreeMap::new(), "input_ids"),
    ] {
        let error = runner.step_inputs(sequence, &inputs).unwrap_err().to_string();
        assert!(error.contains(named), "{named} is not in: {error}");
        assert_eq!(runner.session.length(sequence)?, 0);
    }
    let error = runner.step(&[(sequence, &[1; 65])]).unwrap_err().to_string();
    assert!(error.contains("64"), "{error}");
    // None of it has changed anything.
    let prompt = case.prompt()?;
    let logits = runner.step(&[(sequence, prompt)])?.remove(0);
    same("logits", vocabulary(&case)?, &logits, &case.golden("logits")?.values)
}
