//! The interpreter against other implementations: what a card says is what the model computes.

use std::collections::{BTreeMap, BTreeSet};

use xfc_lang::arch::{ElaborateOptions, Numbers, elaborate, matches_pattern};
use xfc_lang::graph::verify::verify;
use xfc_lang::graph::{AxisId, Dim, NodeId, Program, ValueId};
use xfc_lang::ops::Core;
use xfc_lang::passes;
use xfc_lang::reference::{Float, Interpreter, State, Tensor};
use xfc_lang::spec::{Library, load_card};
use xfc_tests::Result;
use xfc_tests::case::{Case, Golden};
use xfc_tests::compare::{Precision, Tier, compare};
use xfc_tests::model::{self, Parameters};

use crate::cases::{decoders, every_case, largest};

fn interpreter<'p, F: Float>(program: &'p Program, parameters: &Parameters) -> Result<Interpreter<'p, F>> {
    let verified = verify(program).map_err(|violations| violations.to_string())?;
    let weights = |path: &str| parameters.get(path).cloned().ok_or_else(|| format!("there is no {path}").into());
    Ok(Interpreter::new(verified, &weights)?)
}

/// One step: the logits.
fn step<F: Float>(
    interpreter: &Interpreter<'_, F>,
    state: &mut State<F>,
    inputs: &BTreeMap<String, Tensor>,
) -> Result<Tensor> {
    interpreter.step(state, inputs)?.remove("logits").ok_or_else(|| "there is no output `logits`".into())
}

/// Tokens of a sequence that has its source, where it reads one.
fn tokens(case: &Case, ids: &[i64]) -> BTreeMap<String, Tensor> {
    BTreeMap::from([(case.token_input().to_owned(), Tensor::i64([ids.len()], ids.to_vec()))])
}

/// What a sequence is given once, before its tokens.
fn source(case: &Case) -> BTreeMap<String, Tensor> {
    let (mut inputs, source) = (inputs(case), case.source());
    inputs.retain(|name, _| source.contains_key(name));
    inputs
}

/// The case's inputs as those of one sequence.
fn inputs(case: &Case) -> BTreeMap<String, Tensor> {
    let ints = case.inputs.iter().map(|(name, ids)| (name.clone(), Tensor::i64([ids.len()], ids.clone())));
    let image = |x: &Golden| Tensor::f32([&[1], &x.shape[..]].concat(), x.values.clone());
    let floats = case.floats.iter().map(|(name, x)| (name.clone(), image(x)));
    ints.chain(floats).collect()
}

fn outputs_match<F: Float>(
    case: &Case,
    program: &Program,
    parameters: &Parameters,
    precision: Precision,
) -> Result<()> {
    let outputs = interpreter::<F>(program, parameters)?.step(&mut State::new(), &inputs(case))?;
    for (name, golden) in case.outputs()? {
        let got = outputs.get(&name).ok_or_else(|| format!("there is no output `{name}`"))?;
        // What there is one of in a sequence has a dimension of 1 for it.
        let one = got.dims.first() == Some(&1) && got.dims[1..] == golden.shape;
        if got.dims != golden.shape && !one {
            return Err(format!("{name} is {:?}, not {:?}", got.dims, golden.shape).into());
        }
        compare(&name, &golden.shape, &got.to_f64(), &golden.values, Tier::Model, precision)?;
    }
    Ok(())
}

#[test]
fn outputs_match_in_f64() {
    every_case(|case| {
        let model = model::expand(case)?;
        outputs_match::<f64>(case, &model.program, &model::parameters(case, &model)?, Precision::F64)
    });
}

/// What each layer returns, as another implementation has it, and so what flows into the first.
#[test]
fn hidden_states_match_in_f64() {
    every_case(|case| {
        let model = model::expand(case)?;
        let mut program = model.program.clone();
        let calls: Vec<_> = {
            let main = &program.graphs[0];
            let is_call = |n: &NodeId| matches!(main.op(*n).as_core(), Some(Core::Call { .. }));
            main.topological().into_iter().filter(is_call).collect()
        };
        let mut wanted = Vec::new();
        for node in calls {
            let main = &mut program.graphs[0];
            let Some(Core::Call { at, .. }) = main.op(node).as_core() else { continue };
            let index: usize = at.rsplit_once('.').ok_or_else(|| format!("a layer at {at}"))?.1.parse()?;
            let tokens = main.ty(main.operands(node)[0]).dims[0] == Dim::Axis(AxisId(0));
            let prefix = match (case.source().is_empty(), tokens) {
                (true, true) => "",
                (true, false) => continue,
                (false, true) => "decoder_",
                (false, false) => "encoder_",
            };
            // There may be several streams, all of one type.
            let streams = |values: Vec<ValueId>| {
                let first = main.ty(values[0]).clone();
                values.into_iter().take_while(|v| *main.ty(*v) == first).collect::<Vec<_>>()
            };
            let results = (0..main.types(node).len()).map(|port| ValueId { node, port }).collect();
            let states = [(index, streams(main.operands(node))), (index + 1, streams(results))];
            for (number, values) in states {
                // The last state of most implementations is taken behind the final norm, which is no layer.
                let names = case.golden_names()?;
                let next = names.contains(&format!("{prefix}hidden_states.{}", number + 1));
                let name = format!("{prefix}hidden_states.{number}");
                if names.contains(&name) && next && !wanted.contains(&name) {
                    for (stream, value) in values.into_iter().enumerate() {
                        main.add_output(format!("golden.{name}.{stream}"), value);
                    }
                    wanted.push(name);
                }
            }
        }
        if wanted.is_empty() {
            return Err("no hidden state is compared".into());
        }
        let parameters = model::parameters(case, &model)?;
        let outputs = interpreter::<f64>(&program, &parameters)?.step(&mut State::new(), &inputs(case))?;
        for name in wanted {
            let golden = case.golden(&name)?;
            let mut state = Vec::new();
            for stream in 0.. {
                match outputs.get(&format!("golden.{name}.{stream}")) {
                    Some(values) if state.len() < golden.values.len() => state.extend(values.to_f64()),
                    _ => break,
                }
            }
            compare(&name, &golden.shape, &state, &golden.values, Tier::Value, Precision::F64)?;
        }
        Ok(())
    });
}

#[test]
fn outputs_match_in_f32() {
    every_case(|case| {
        let model = model::expand(case)?;
        outputs_match::<f32>(case, &model.program, &model::parameters(case, &model)?, Precision::F32)
    });
}

#[test]
fn fused_programs_match_in_f64() {
    every_case(|case| {
        let mut model = model::expand(case)?;
        passes::run(&mut model.program, &mut passes::Options::default())?;
        outputs_match::<f64>(case, &model.program, &model::parameters(case, &model)?, Precision::F64)
    });
}

#[test]
fn every_optional_pass_may_be_skipped() {
    every_case(|case| {
        let model = model::expand(case)?;
        let parameters = model::parameters(case, &model)?;
        let optional: BTreeSet<_> = passes::pipeline().iter().filter(|p| !p.required()).map(|p| p.name()).collect();
        for pass in optional {
            let mut program = model.program.clone();
            let mut options = passes::Options { skip: vec![pass.to_owned()], ..passes::Options::default() };
            passes::run(&mut program, &mut options).map_err(|e| format!("without {pass}: {e}"))?;
            outputs_match::<f64>(case, &program, &parameters, Precision::F64)
                .map_err(|e| format!("without {pass}: {e}"))?;
        }
        Ok(())
    });
}

#[test]
fn greedy_tokens_are_identical_through_the_caches() {
    decoders(|case| {
        let model = model::expand(case)?;
        let parameters = model::parameters(case, &model)?;
        let interpreter = interpreter::<f32>(&model.program, &parameters)?;
        let (mut state, golden) = (State::new(), case.golden("greedy.logits")?);
        let vocabulary = golden.shape[1];
        let mut logits = step(&interpreter, &mut state, &inputs(case))?.to_f64();
        let (mut ids, mut rows) = (Vec::new(), Vec::new());
        while ids.len() < case.greedy_steps {
            let last = logits.split_off(logits.len() - vocabulary);
            ids.push(largest(&last));
            rows.extend(last);
            logits = step(&interpreter, &mut state, &tokens(case, &ids[ids.len() - 1..]))?.to_f64();
        }
        assert_eq!(ids, case.greedy_ids()?, "{}", case.name);
        Ok(compare("greedy.logits", &golden.shape, &rows, &golden.values, Tier::Model, Precision::F32)?)
    });
}

#[test]
fn a_prompt_in_pieces_is_the_whole_prompt() {
    decoders(|case| {
        let model = model::expand(case)?;
        let parameters = model::parameters(case, &model)?;
        let interpreter = interpreter::<f64>(&model.program, &parameters)?;
        let prompt = case.prompt()?;
        let whole = step(&interpreter, &mut State::new(), &inputs(case))?;
        for mut cuts in [vec![1], vec![prompt.len() - 1], vec![3, 4, 9, 17], (1..prompt.len()).collect()] {
            cuts.retain(|cut| *cut < prompt.len());
            let (mut state, mut pieces, mut from) = (State::new(), Vec::new(), 0);
            for to in cuts.iter().copied().chain([prompt.len()]) {
                let mut inputs = if from == 0 { source(case) } else { BTreeMap::new() };
                inputs.extend(tokens(case, &prompt[from..to]));
                pieces.extend(step(&interpreter, &mut state, &inputs)?.to_f64());
                from = to;
            }
            let tier = Tier::Accumulate(4096);
            compare(&format!("logits cut at {cuts:?}"), &whole.dims, &pieces, &whole.to_f64(), tier, Precision::F64)?;
        }
        Ok(())
    });
}

#[test]
fn bindings_name_every_tensor_of_the_checkpoint() {
    every_case(|case| {
        let model = model::expand(case)?;
        model::parameters(case, &model)?;
        let bound: BTreeSet<_> = model.bindings.iter().flat_map(|b| &b.names).collect();
        let ignored = |name: &str| model.ignore.iter().any(|pattern| matches_pattern(pattern, name));
        let left: Vec<_> = case.tensors.iter().map(|t| &t.name).filter(|n| !bound.contains(n) && !ignored(n)).collect();
        if left.is_empty() { Ok(()) } else { Err(format!("nothing reads {left:?}").into()) }
    });
}

#[test]
fn both_forms_of_a_config_mean_the_same() {
    every_case(|case| {
        let (ours, given) = (model::expand(case)?, model::expand_with(&case.config, &case.config_as_given)?);
        assert_eq!(ours.program.to_string(), given.program.to_string(), "{}", case.name);
        assert_eq!(ours.bindings, given.bindings, "{}", case.name);
        Ok(())
    });
}

#[test]
fn cards_have_the_published_numbers() {
    let library = Library::embedded();
    let mut explained = Vec::new();
    for name in library.cards() {
        let spec = load_card(name, &library).unwrap_or_else(|report| panic!("{name}: {}", report.to_json()));
        let model = elaborate(&spec, &ElaborateOptions::default());
        let model = model.unwrap_or_else(|report| panic!("{name}: {}", report.to_json()));
        let published = model.arch.published.as_ref().unwrap_or_else(|| panic!("{name} describes no released model"));
        let numbers = Numbers::of(&model.arch, &model.program);
        assert!(published.parameters.is_some() && published.cache_bytes_per_token.is_some(), "{name}");
        let differs = numbers.disagreements(published);
        assert!(differs.is_empty() || published.note.is_some(), "{name}: {differs:?}");
        explained.extend(differs.into_iter().map(|d| format!("{name}: {d}")));
    }
    // Each for the reason that its card's note gives.
    let known = [
        "dinov2: dinov2-base has 86580480 parameters, and the wiring has 86579712",
        "ernie4_5_moe: ERNIE-4.5-21B-A3B-Base-PT has about 21000000000 parameters, and the wiring has 21825437888",
        "gemma3n: gemma-3n-E4B has about 8000000000 parameters, and the wiring has 6835235568",
        "glm4_moe: GLM-4.5-Air has about 106000000000 parameters, and the wiring has 106852251264",
        "glm4_moe: GLM-4.5-Air has about 12000000000 active parameters, and the wiring has 12803372672",
        "granitemoe: granite-3.0-1b-a400m-base has about 400000000 active parameters, and the wiring has 428658688",
        "grok1: Grok-1 has about 314000000000 parameters, and the wiring has 315684820992",
        "marian: opus-mt-en-de has 74410496 parameters, and the wiring has 73944309",
        "mbart: mbart-large-cc25 has 610851840 parameters, and the wiring has 611101867",
        "minimax: MiniMax-Text-01 has about 45900000000 active parameters, and the wiring has 48403306496",
        "pegasus: pegasus-large has about 568000000 parameters, and the wiring has 568796007",
        "qwen3_moe: Qwen3-30B-A3B has about 3300000000 active parameters, and the wiring has 3353032704",
        "qwen3_next: Qwen3-Next-80B-A3B has about 3000000000 active parameters, and the wiring has 3874929408",
        "transformer: base has about 65000000 parameters, and the wiring has 63082496",
    ];
    assert_eq!(explained, known);
}
