//! Hand-written programs in the graph's text form: compiled, run, and compared with the interpreter on the program as written.
//!
//! Weights are the runtime's random ones, by path, so that both sides see the same numbers.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use xfc_check::inputs::{self, Inputs};
use xfc_check::truth;
use xfc_codegen::driver::write_artifact;
use xfc_codegen::kernels::{Built, Input, build_for};
use xfc_codegen::plan::Stored;
use xfc_codegen::target::{self, Keep, Target};
use xfc_lang::arch::{ElaborateOptions, elaborate};
use xfc_lang::graph::parse::parse;
use xfc_lang::graph::path::{Stack, instances, join, parameters};
use xfc_lang::graph::verify::verify;
use xfc_lang::graph::{DType, Dim, Program};
use xfc_lang::ops::Core;
use xfc_lang::passes;
use xfc_lang::reference::{Data, Interpreter, State, Tensor};
use xfc_lang::spec::{Library, parse_card};
use xfc_runtime::artifact::Artifact;
use xfc_runtime::artifact::abi::PTX;
use xfc_runtime::artifact::manifest::Manifest;
use xfc_runtime::cache::SequenceId;
use xfc_runtime::model::{Model, ModelOptions};
use xfc_runtime::session::{Session, SessionOptions};
use xfc_runtime::step::{InputData, StepInput, Wanted};
use xfc_runtime::weights::{Checkpoint, Random};

use crate::Result;
use crate::compare::{Precision, Tier, compare};
use crate::compile::{TARGETS, known};
use crate::fill::splitmix64;
use crate::gpu;

/// Targets that lack what the others have, or are of another architecture: run where the machine can, linked everywhere; and a GPU, which is emulated.
const LINKED: [&str; 3] = ["cpu:x86-64", "cpu:aarch64", "cuda:sm_80"];

/// An input of a step: name and values, row by row.
pub type Given<'a> = (&'a str, InputData);

/// Runs `steps` of one sequence through the compiled program and the interpreter, on every target that runs here, and compares every output.
pub fn agree(text: &str, steps: &[Vec<Given<'_>>]) -> Result<()> {
    agree_on(text, steps, &[&TARGETS[..], &LINKED].concat())
}

/// The same for one of many programs: on the first target and, every third, on one of the others in turn.
pub fn agree_in_turn(number: usize, text: &str, steps: &[Vec<Given<'_>>]) -> Result<()> {
    let others = [&TARGETS[1..], &LINKED].concat();
    let other = number.is_multiple_of(3).then(|| others[number / 3 % others.len()]);
    agree_on(text, steps, &std::iter::once(TARGETS[0]).chain(other).collect::<Vec<_>>())
}

/// The same on these targets.
pub fn agree_on(text: &str, steps: &[Vec<Given<'_>>], targets: &[&str]) -> Result<()> {
    let targets = targets.iter().map(|name| target::parse(name)).collect::<std::result::Result<Vec<_>, _>>()?;
    agree_with(text, steps, &targets)
}

/// The same on given targets.
pub fn agree_with(text: &str, steps: &[Vec<Given<'_>>], targets: &[Box<dyn Target>]) -> Result<()> {
    agree_to(text, steps, targets, (Tier::Model, Precision::F32))
}

/// The same to a given precision.
pub fn agree_to(
    text: &str,
    steps: &[Vec<Given<'_>>],
    targets: &[Box<dyn Target>],
    bounds: (Tier, Precision),
) -> Result<()> {
    let of_one: Vec<_> = steps.iter().map(|step| vec![Some(step.clone())]).collect();
    agree_together(text, &of_one, targets, bounds)
}

/// The same of several sequences: what each is given in each step, `None` where it has no part in it. Operands are of the type that the precision is named after, and what a plan
/// multiplies as bf16 in some steps the interpreter does too.
pub fn agree_together(
    text: &str,
    steps: &[Vec<Option<Vec<Given<'_>>>>],
    targets: &[Box<dyn Target>],
    (tier, precision): (Tier, Precision),
) -> Result<()> {
    let program = parse(text)?;
    let shapes = weight_shapes(&program);
    let fused = fuse(&program)?;
    let weights = made_up(&shapes);
    let interpreter = Interpreter::<f32>::new(verify(&program).map_err(|v| v.to_string())?, &weights)?;
    let dtype = if precision == Precision::BF16 { DType::BF16 } else { DType::F32 };
    // What the interpreter makes of each step, when a target that runs here asks for it first.
    let mut wanted = Vec::new();
    let host = gpu::host();
    for target in targets {
        let name = target.name();
        let artifact = Artifact::from_bytes(write_artifact("", &[built(&fused, &shapes, dtype, &**target)?])?)?;
        // Code that this machine cannot run is linked, which refuses calls of libraries, and no more.
        if artifact.manifests().any(|m| host.missing(&m.target).is_none_or(|missing| !missing.is_empty())) {
            continue;
        }
        let n = steps.first().map_or(0, Vec::len);
        let (model, mut session, sequences) = opened(&artifact, n as u32, SessionOptions::default())?;
        let departs = truth::departs(model.manifest());
        if wanted.is_empty() || departs {
            wanted.clear();
            let mut states: Vec<_> = (0..n).map(|_| State::new()).collect();
            for step in steps {
                let mut of_step = Vec::new();
                let program = as_planned(&program, model.manifest(), step)?;
                let interpreter = interpreter.of(verify(&program).map_err(|v| v.to_string())?)?;
                for (state, given) in states.iter_mut().zip(step) {
                    let Some(given) = given else { continue };
                    if model.manifest().whole_sequences {
                        *state = State::new();
                    }
                    of_step.push(interpreter.step(state, &tensors(&program, given)?)?);
                }
                wanted.push(of_step);
            }
        }
        for (number, (step, want)) in steps.iter().zip(&wanted).enumerate() {
            let given: Vec<StepInput> = (sequences.iter().zip(step))
                .filter_map(|(sequence, given)| Some((sequence, given.as_ref()?)))
                .map(|(sequence, given)| StepInput {
                    sequence: *sequence,
                    inputs: given.iter().map(|(name, data)| ((*name).to_owned(), data.clone())).collect(),
                    wanted: Wanted::All,
                })
                .collect();
            let got = session.step(&given)?;
            for (index, want) in want.iter().enumerate() {
                for (output, want) in want {
                    let got = got.get(output).and_then(|got| got.rows_of(index));
                    let got = got.ok_or_else(|| format!("no output {output}"))?;
                    let what = format!("{output} of sequence {index} in step {number} on {name}");
                    compare(&what, &want.dims, got, &want.to_f64(), tier, precision)?;
                }
            }
        }
        if departs {
            wanted.clear();
        }
    }
    Ok(())
}

/// The program in the arithmetic that a plan has for a step.
fn as_planned(program: &Program, manifest: &Manifest, step: &[Option<Vec<Given<'_>>>]) -> Result<Program> {
    let given =
        step.iter().flatten().map(|given| given.iter().map(|(name, x)| ((*name).to_owned(), x.clone())).collect());
    let given: Vec<Inputs> = given.collect();
    let added: Vec<u64> = (0..manifest.axes.len())
        .map(|axis| given.iter().map(|inputs| inputs::length(manifest, inputs, axis)).sum())
        .collect();
    Ok(truth::with_halves(program, &truth::halves_of(manifest, &added))?)
}

/// Runs the rows `x` of the only input through the compiled program, on every target that runs here: the last rows, `tail` in all, in one step, and in
/// another sequence in steps of so many each. Both must give the same, to rounding.
pub fn same_in_small_steps(text: &str, x: &[Vec<f32>], tail: &[usize]) -> Result<()> {
    const STEP: usize = 400;
    let program = parse(text)?;
    let shapes = weight_shapes(&program);
    let fused = fuse(&program)?;
    let host = gpu::host();
    let head = x.len() - tail.iter().sum::<usize>();
    // Rows are many here: an emulator takes minutes for them.
    for name in TARGETS.iter().chain(&LINKED).filter(|name| !name.starts_with("cuda")) {
        let artifact =
            Artifact::from_bytes(write_artifact("", &[built(&fused, &shapes, DType::F32, &*target::parse(name)?)?])?)?;
        if artifact.manifests().any(|m| host.missing(&m.target).is_none()) {
            continue;
        }
        let options = SessionOptions { context_tokens: Some(x.len() as u64), ..SessionOptions::default() };
        let (_, mut session, sequences) = opened(&artifact, 2, options)?;
        let mut run = |sequence: usize, rows: &[Vec<f32>]| {
            let inputs = [("x".to_owned(), InputData::Floats(rows.concat()))].into();
            session.step(&[StepInput { sequence: sequences[sequence], inputs, wanted: Wanted::All }])
        };
        for sequence in 0..2 {
            for rows in x[..head].chunks(STEP) {
                run(sequence, rows)?;
            }
        }
        let whole = run(0, &x[head..])?;
        let mut first = head;
        for n in tail {
            let part = run(1, &x[first..first + n])?;
            for (whole, part) in whole.outputs.iter().zip(&part.outputs) {
                let row = whole.data.len() / (x.len() - head);
                let from = (first - head) * row;
                let want: Vec<f64> = whole.data[from..from + n * row].iter().map(|v| f64::from(*v)).collect();
                let what = format!("{} on {name}", whole.name);
                compare(&what, &[*n, row], &part.data, &want, Tier::Model, Precision::F32)?;
            }
            first += n;
        }
    }
    Ok(())
}

/// An artifact loaded with the made-up weights, and `n` sequences of it.
fn opened(artifact: &Artifact, n: u32, options: SessionOptions) -> Result<(Arc<Model>, Session, Vec<SequenceId>)> {
    let threads = ModelOptions { threads: Some(2), ..ModelOptions::default() };
    let weights = Checkpoint::random(SEED);
    let gpu = artifact.manifests().find(|manifest| manifest.target.arch == PTX);
    let model = match gpu {
        Some(manifest) => gpu::load(artifact, &manifest.target.name, &weights)?,
        None => Model::load(artifact, &weights, &threads)?,
    };
    let mut session = model.session(&SessionOptions { max_sequences: n, ..options })?;
    let sequences = (0..n).map(|_| session.add_sequence()).collect::<std::result::Result<_, _>>()?;
    Ok((model, session, sequences))
}

/// Steps of several sequences: what each is given in each step, by input; `None` when it has no part in it.
pub type Schedule = Vec<Step>;

/// A step: what each sequence is given in it.
pub type Step = Vec<Option<Vec<(String, InputData)>>>;

/// How a comparison ended that found nothing wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compared {
    /// Every output agrees.
    Same,
    /// The interpreter itself has no digits in f32: nothing could be compared.
    IllConditioned,
}

/// Runs the steps through the compiled program and the interpreter in f64 on each target, and compares every output of every sequence as
/// closely as the interpreter's own error in f32 allows.
pub fn compare_with_interpreter(text: &str, schedule: &Schedule, targets: &[&str]) -> Result<Compared> {
    let program = parse(text)?;
    let shapes = weight_shapes(&program);
    let fused = fuse(&program)?;
    let weights = made_up(&shapes);
    let verified = || verify(&program).map_err(|v| v.to_string());
    let (exact, rounded) =
        (Interpreter::<f64>::new(verified()?, &weights)?, Interpreter::<f32>::new(verified()?, &weights)?);
    for name in targets {
        let artifact =
            Artifact::from_bytes(write_artifact("", &[built(&fused, &shapes, DType::F32, &*target::parse(name)?)?])?)?;
        let n = schedule.first().map_or(0, Vec::len);
        let options = SessionOptions { context_tokens: Some(96), ..SessionOptions::default() };
        let (model, mut session, ids) = opened(&artifact, n as u32, options)?;
        let mut states: Vec<(State<f64>, State<f32>)> = (0..n).map(|_| (State::new(), State::new())).collect();
        for (number, step) in schedule.iter().enumerate() {
            let present: Vec<usize> = (0..n).filter(|s| step[*s].is_some()).collect();
            let inputs = |s: &usize| step[*s].clone().unwrap_or_default();
            let given = |s: &usize| StepInput { sequence: ids[*s], inputs: inputs(s), wanted: Wanted::All };
            let got = session.step(&present.iter().map(given).collect::<Vec<_>>())?;
            for (index, s) in present.iter().enumerate() {
                if model.manifest().whole_sequences {
                    states[*s] = (State::new(), State::new());
                }
                let owned = inputs(s);
                let named: Vec<Given<'_>> = owned.iter().map(|(name, data)| (name.as_str(), data.clone())).collect();
                let tensors = tensors(&program, &named)?;
                let want = exact.step(&mut states[*s].0, &tensors)?;
                let near = rounded.step(&mut states[*s].1, &tensors)?;
                for (output, want) in &want {
                    let (values, rounded) = (want.to_f64(), near[output].to_f64());
                    let largest = values.iter().fold(1.0f64, |m, v| m.max(v.abs()));
                    let error = values.iter().zip(&rounded).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
                    if !(error < 1e-3 * largest && largest < 1e6) {
                        return Ok(Compared::IllConditioned);
                    }
                    let got =
                        got.get(output).and_then(|o| o.rows_of(index)).ok_or_else(|| format!("no output {output}"))?;
                    let what = format!("{output} of sequence {s} in step {number} on {name}");
                    let same = compare(&what, &want.dims, got, &values, Tier::Conditioned(error), Precision::F32);
                    if let Err(departure) = same {
                        let part = &schedule[..=number];
                        let leaps = leaps(&program, &shapes, part, model.manifest().whole_sequences)?;
                        return if leaps { Ok(Compared::IllConditioned) } else { Err(departure.into()) };
                    }
                }
            }
        }
    }
    Ok(Compared::Same)
}

/// Relative changes of weights under which an output that leaps says nothing of the code: some last bits of f32.
const SHAKEN: f32 = 1e-6;

/// Whether outputs leap when weights change in their last bits, as where two choices are equally good.
fn leaps(program: &Program, shapes: &HashMap<String, Vec<u64>>, schedule: &[Step], whole: bool) -> Result<bool> {
    let run = |seed: u64| -> Result<Vec<BTreeMap<String, Tensor>>> {
        let plain = made_up(shapes);
        let weights = |path: &str| {
            let mut tensor = plain(path)?;
            if let Data::F32(values) = &mut tensor.data {
                for (i, x) in values.iter_mut().enumerate() {
                    *x *= 1.0 + SHAKEN * (splitmix64(seed, i as u64) % 3) as f32 * f32::from(u8::from(seed > 0));
                }
            }
            Ok(tensor)
        };
        let interpreter = Interpreter::<f64>::new(verify(program).map_err(|v| v.to_string())?, &weights)?;
        let mut states: BTreeMap<usize, State<f64>> = BTreeMap::new();
        let mut outputs = Vec::new();
        for (s, inputs) in schedule.iter().flat_map(|step| step.iter().enumerate()) {
            let Some(inputs) = inputs else { continue };
            if whole {
                states.remove(&s);
            }
            let named: Vec<Given<'_>> = inputs.iter().map(|(name, data)| (name.as_str(), data.clone())).collect();
            outputs.push(interpreter.step(states.entry(s).or_default(), &tensors(program, &named)?)?);
        }
        Ok(outputs)
    };
    let plain = run(0)?;
    for seed in 1..=4 {
        for (a, b) in plain.iter().zip(run(seed)?) {
            for (name, a) in a {
                let (a, b) = (a.to_f64(), b[name].to_f64());
                let largest = a.iter().fold(1.0f64, |m, v| m.max(v.abs()));
                if a.iter().zip(&b).any(|(a, b)| (a - b).abs() > 1e-3 * largest) {
                    return Ok(true);
                }
            }
        }
    }
    Ok(false)
}

/// Seed of the made-up weights.
const SEED: u64 = 3;

/// The runtime's made-up weights, for the interpreter.
fn made_up(
    shapes: &HashMap<String, Vec<u64>>,
) -> impl Fn(&str) -> std::result::Result<Tensor, Box<dyn std::error::Error + Send + Sync>> {
    move |path: &str| {
        let shape = shapes.get(path).ok_or_else(|| format!("there is no {path}"))?;
        let tensor = Random { seed: SEED }.tensor(path, shape);
        let values: Vec<f32> = (0..shape.iter().product()).map(|i| tensor.value(i)).collect();
        Ok(Tensor::f32(shape.iter().map(|n| *n as usize).collect::<Vec<_>>(), values))
    }
}

/// The program of a card with this wiring, as text.
pub fn of_wiring(wiring: &str) -> Result<String> {
    let wiring: String = wiring.lines().map(|line| format!("  {line}\n")).collect();
    let spec = parse_card(
        "test.yaml",
        &format!("xfc: 1\nname: Test\nsizes: {{}}\nwiring: |\n{wiring}"),
        &Library::embedded(),
    )?;
    Ok(elaborate(&spec, &ElaborateOptions::default())?.program.to_string())
}

/// The artifact of a program for the first target.
pub fn artifact(text: &str) -> Result<Artifact> {
    let program = parse(text)?;
    let built = built(&fuse(&program)?, &weight_shapes(&program), DType::F32, &*target::parse(TARGETS[0])?)?;
    Ok(Artifact::from_bytes(write_artifact("", &[built])?)?)
}

/// The manifest of a program for the first target.
pub fn manifest(text: &str) -> Result<Manifest> {
    let program = parse(text)?;
    Ok(built(&fuse(&program)?, &weight_shapes(&program), DType::F32, &*target::parse(TARGETS[0])?)?.manifest)
}

fn fuse(program: &Program) -> Result<Program> {
    let mut fused = program.clone();
    passes::run(&mut fused, &mut passes::Options::default())?;
    Ok(fused)
}

fn built(fused: &Program, shapes: &HashMap<String, Vec<u64>>, dtype: DType, target: &dyn Target) -> Result<Built> {
    let stored = |path: &str| {
        shapes.get(path).map(|shape| Stored {
            names: vec![path.to_owned()],
            shape: shape.clone(),
            steps: Vec::new(),
            offset: 0.0,
        })
    };
    let input = Input { program: fused, dtype, stored: &stored, format: "hf", ignore: &[], parameters: 0 };
    Ok(build_for(&input, target, 2, Keep::default(), Some(known()))?)
}

fn weight_shapes(program: &Program) -> HashMap<String, Vec<u64>> {
    let mut shapes = HashMap::new();
    for instance in instances(program).unwrap_or_default() {
        let graph = &program.graphs[instance.graph];
        for node in graph.nodes() {
            if let Some(Core::Weight { path }) = graph.op(node).as_core() {
                let shape = graph.types(node)[0].dims.iter().filter_map(|d| match d {
                    Dim::Fixed(n) => Some(*n),
                    _ => None,
                });
                let (path, shape) = (join(&instance.at, path), shape.collect::<Vec<u64>>());
                let own = if matches!(Stack::of(&path), Ok(Some(_))) { &shape[1..] } else { &shape };
                shapes.extend(parameters(&path).into_iter().map(|path| (path, own.to_vec())));
            }
        }
    }
    shapes
}

/// The step's inputs as the interpreter takes them.
fn tensors(program: &Program, step: &[Given<'_>]) -> Result<BTreeMap<String, Tensor>> {
    let mut tensors = BTreeMap::new();
    for (name, data) in step {
        let input = program.inputs.iter().find(|i| i.name == *name).ok_or_else(|| format!("no input {name}"))?;
        let row: usize = input.ty.dims[1..].iter().filter_map(|d| d.fixed()).product::<u64>() as usize;
        let n = match data {
            InputData::Ints(v) => v.len(),
            InputData::Floats(v) => v.len(),
        };
        let mut dims = vec![n / row.max(1)];
        dims.extend(input.ty.dims[1..].iter().filter_map(|d| d.fixed()).map(|n| n as usize));
        let tensor = match (data, input.ty.dtype) {
            (InputData::Ints(v), DType::Bool) => Tensor { dims, data: Data::Bool(v.iter().map(|x| *x != 0).collect()) },
            (InputData::Ints(v), _) => Tensor::i64(dims, v.clone()),
            (InputData::Floats(v), _) => Tensor::f32(dims, v.clone()),
        };
        tensors.insert((*name).to_owned(), tensor);
    }
    Ok(tensors)
}
