//! A model against values computed elsewhere: every value that both have, in the order in which it is computed.

use std::path::Path;

use xfc_codegen::driver::Options;
use xfc_codegen::target::Target;
use xfc_lang::graph::DType;
use xfc_lang::graph::named::{Named, named_values};
use xfc_runtime::artifact::manifest::Manifest;
use xfc_runtime::error::RuntimeError;

use crate::compare::{Measure, Precision, Tier, measure_unless};
use crate::dump::Dump;
use crate::error::Result;
use crate::inputs::{self, Inputs};
use crate::modules;
use crate::subject::{Outputs, Subject, run};

/// Multiplications up to which the interpreter runs too: about a minute.
const MOST_INTERPRETED: u64 = 5_000_000_000;

/// A value that both have.
#[derive(Clone, Debug)]
pub struct Pair {
    /// Ours; `None` for an output of the model.
    pub value: Option<Named>,
    /// Our path, or the output's name.
    pub path: String,
    /// Its name in the dump.
    pub dumped: String,
}

/// One value compared.
#[derive(Clone, Debug)]
pub struct Compared {
    /// Which.
    pub pair: Pair,
    /// Our shape.
    pub dims: Vec<usize>,
    /// How it differs; `None` where the shapes do not fit each other.
    pub measure: Option<Measure>,
    /// Whether it is something else in the dump: it departs, and what is made of it, the outputs, agrees.
    pub elsewhere: bool,
}

impl Compared {
    /// Whether an element is further off than allowed.
    pub fn departs(&self) -> bool {
        self.measure.is_some_and(|m| m.first.is_some())
    }
}

/// What one way of computing came to.
#[derive(Clone, Debug)]
pub struct Side {
    /// `interpreter (f64)`, or a target's name.
    pub by: String,
    /// Every value, in the order in which it is computed.
    pub values: Vec<Compared>,
}

impl Side {
    /// The first value that departs, unless it is something else in the dump.
    pub fn first(&self) -> Option<&Compared> {
        self.values.iter().find(|v| v.departs() && !v.elsewhere)
    }

    /// The values that depart although every output agrees: a module there returns something else than ours, such as its result with
    /// the residual added. Nothing where no output was compared.
    fn elsewhere(&self) -> Vec<String> {
        let outputs = || self.values.iter().filter(|v| v.pair.value.is_none());
        if outputs().next().is_none() || outputs().any(|v| v.measure.is_none() || v.departs()) {
            return Vec::new();
        }
        let apart = |v: &&Compared| v.departs() && v.measure.is_some_and(|m| m.largest().is_finite());
        self.values.iter().filter(apart).map(|v| v.pair.path.clone()).collect()
    }

    /// The furthest departure, as a share of what is allowed.
    pub fn worst(&self) -> Option<&Compared> {
        let share = |v: &&Compared| v.measure.and_then(|m| m.furthest).map_or(0.0, |e| e.difference / e.allowed);
        self.values.iter().filter(|v| !v.elsewhere).max_by(|a, b| share(a).total_cmp(&share(b)))
    }
}

/// Everything compared.
#[derive(Clone, Debug, Default)]
pub struct Comparison {
    /// The interpreter first, unless the model is too large for it, then each target.
    pub sides: Vec<Side>,
    /// Whether the interpreter was left out.
    pub too_large: bool,
    /// Tensors of the dump that are compared with nothing.
    pub unmatched: Vec<String>,
    /// The inputs.
    pub inputs: Inputs,
}

/// The pairs of our values and a dump's, in the order in which ours are computed, and what of the dump is left.
pub fn pairs(subject: &Subject<'_>, dump: &Dump, is_input: impl Fn(&str) -> bool) -> (Vec<Pair>, Vec<String>) {
    let program = &subject.model.program;
    let named: Vec<Named> = named_values(program).into_iter().filter(|n| n.is_per_element() && n.is_float()).collect();
    let modules = modules::of_checkpoint(subject.model);
    let stacks = stacks(named.iter().filter(|n| n.is_call(program)));
    let dumped_name = |value: &Named| -> Option<String> {
        if dump.tensors.contains_key(&value.path) {
            return Some(value.path.clone());
        }
        // Which of several results of one module is which, names do not say.
        let again = |name: &str| dump.tensors.contains_key(&format!("{name}@2"));
        let ours_again = named.iter().any(|n| n.path.strip_prefix(&value.path) == Some("@2"));
        let of_module = modules.iter().find(|(path, _)| *path == value.path && !ours_again);
        if let Some(name) =
            of_module.and_then(|(_, names)| names.iter().find(|n| dump.tensors.contains_key(*n) && !again(n)))
        {
            return Some(name.clone());
        }
        // What goes into layer N is what layer N - 1 returns; what the last returns has no such name.
        let index_in = |stack: &Vec<&Named>| stack.iter().position(|layer| *layer == value);
        let (at, stack) = stacks.iter().enumerate().find(|(_, stack)| index_in(stack).is_some())?;
        let index = index_in(stack)? + 1;
        let states = match (stacks.len(), at) {
            (1, _) => "hidden_states",
            (2, 0) => "encoder_hidden_states",
            (2, _) => "decoder_hidden_states",
            _ => return None,
        };
        let name = format!("{states}.{index}");
        (index < stack.len() && dump.tensors.contains_key(&name)).then_some(name)
    };
    let mut pairs: Vec<Pair> = named
        .iter()
        .filter_map(|value| {
            Some(Pair { dumped: dumped_name(value)?, path: value.path.clone(), value: Some(value.clone()) })
        })
        .collect();
    for output in program.graphs.first().map(|g| g.outputs()).unwrap_or_default() {
        if dump.tensors.contains_key(&output.name) {
            pairs.push(Pair { value: None, path: output.name.clone(), dumped: output.name.clone() });
        }
    }
    let matched = |name: &String| is_input(name) || pairs.iter().any(|p| p.dumped == *name);
    let unmatched = dump.tensors.keys().filter(|name| !matched(name)).cloned().collect();
    (pairs, unmatched)
}

/// Layers by the list that holds them, in the order in which the lists are first computed.
fn stacks<'n>(layers: impl Iterator<Item = &'n Named>) -> Vec<Vec<&'n Named>> {
    let list = |layer: &Named| layer.path.rsplit_once('.').map(|(list, _)| list.to_owned());
    let mut stacks: Vec<Vec<&Named>> = Vec::new();
    for layer in layers {
        // What is made of a list's last layer has further names for the same value.
        if stacks.iter().flatten().any(|known| known.is_same_value(layer)) {
            continue;
        }
        match stacks.iter_mut().find(|stack| list(stack[0]) == list(layer)) {
            Some(stack) => stack.push(layer),
            None => stacks.push(vec![layer]),
        }
    }
    stacks
}

/// Compares a model with a dump: interpreted in f64 where it is small enough, and compiled for each target.
///
/// # Errors
/// The dump does not hold the inputs, holds nothing that can be compared or an output of another shape; the model cannot be compiled or run.
pub fn compare_with(
    subject: &Subject<'_>,
    targets: &[Box<dyn Target>],
    dump: &Dump,
    path: &Path,
    progress: &mut dyn FnMut(&str),
) -> Result<Comparison> {
    let is_input = |name: &str| {
        let name = name.strip_prefix("inputs.").unwrap_or(name);
        subject.model.program.inputs.iter().any(|i| i.name == name) || name == "attention_mask"
    };
    let (pairs, unmatched) = pairs(subject, dump, is_input);
    if pairs.is_empty() {
        let some: Vec<&str> = unmatched.iter().take(5).map(String::as_str).collect();
        return Err(RuntimeError::input(
            path.display().to_string(),
            format!("holds nothing that this model computes: it has {}", some.join(", ")),
            "name values by the checkpoint's modules, by our paths (`xfc inspect MODEL --values`) or by outputs",
        )
        .into());
    }
    let taps: Vec<&Named> = pairs.iter().filter_map(|p| p.value.as_ref()).collect();
    let program = subject.program(&taps);
    let mut done = Comparison { unmatched, ..Comparison::default() };
    for target in targets {
        progress(&format!("compiling for {}", target.name()));
        let model = subject.compile(&program, &**target)?;
        if done.sides.is_empty() {
            done.inputs = dump.inputs(model.manifest(), path)?;
            let tokens = tokens(model.manifest(), &done.inputs);
            done.too_large = subject.model.arch.parameter_count().saturating_mul(tokens) > MOST_INTERPRETED;
            if !done.too_large {
                progress("interpreting");
                // Whatever the code is compiled in: the description is held to the dump without its roundings.
                let options = Options { dtype: DType::F32, cache: None, ..subject.options.clone() };
                let exact = Subject { options: &options, ..*subject };
                let outputs = exact.interpret::<f64>(&program, &[&done.inputs])?.remove(0);
                let by = "interpreter (f64)".to_owned();
                let values = compare_all(&pairs, dump, &outputs, exact.precision());
                fitting(&values, dump, path)?;
                done.sides.push(Side { by, values });
            }
        }
        progress(&format!("running on {}", target.name()));
        let whole = vec![vec![tokens(model.manifest(), &done.inputs)]];
        let outputs = run(&model, &[&done.inputs], &whole)?.remove(0);
        let values = compare_all(&pairs, dump, &outputs, subject.precision());
        fitting(&values, dump, path)?;
        done.sides.push(Side { by: target.name().to_owned(), values });
    }
    // What the description means is settled by the first side; code that departs elsewhere is wrong.
    let elsewhere = done.sides.first().map(Side::elsewhere).unwrap_or_default();
    for value in done.sides.iter_mut().flat_map(|side| &mut side.values) {
        value.elsewhere = value.pair.value.is_some() && elsewhere.contains(&value.pair.path);
    }
    Ok(done)
}

fn tokens(manifest: &Manifest, inputs: &Inputs) -> u64 {
    inputs::length(manifest, inputs, 0)
}

/// Refuses a comparison that says nothing: an output of another shape, or no value at all that fits.
fn fitting(values: &[Compared], dump: &Dump, path: &Path) -> Result<()> {
    let shapes = |value: &Compared| {
        let theirs = dump.tensors.get(&value.pair.dumped).map(|rows| rows.dims.clone()).unwrap_or_default();
        format!("`{}` has the shape {theirs:?}, the model computes {:?}", value.pair.dumped, value.dims)
    };
    let refuse =
        |problem: String, help: &str| Err(RuntimeError::input(path.display().to_string(), problem, help).into());
    if let Some(output) = values.iter().find(|v| v.pair.value.is_none() && v.measure.is_none()) {
        return refuse(
            format!("the output {}", shapes(output)),
            "store what the output is for these inputs, whole and of one sequence",
        );
    }
    if values.iter().any(|v| v.measure.is_some() && v.dims.iter().all(|d| *d > 0)) {
        return Ok(());
    }
    let misfits: Vec<String> = values.iter().take(3).map(shapes).collect();
    refuse(
        format!("nothing was compared, for no shape fits: {}", misfits.join("; ")),
        "store a row for each token of the inputs",
    )
}

/// NaN is never agreement. Also what the interpreter computes in f64 is held to f32: another implementation's tables of positions often are.
fn compare_all(pairs: &[Pair], dump: &Dump, outputs: &Outputs, precision: Precision) -> Vec<Compared> {
    let compare = |pair: &Pair| {
        let want = dump.tensors.get(&pair.dumped)?;
        let Some(got) = outputs.get(&pair.path) else {
            let measure = Some(Measure::missing(want.values.len()));
            return Compared { pair: pair.clone(), dims: want.dims.clone(), measure, elsewhere: false }.into();
        };
        // Heads may be one dimension or two, and a batch of 1 may lead.
        let rows = |dims: &[usize]| dims.iter().copied().find(|d| *d != 1);
        let alike = got.values.len() == want.values.len() && rows(&got.dims) == rows(&want.dims);
        let measure = alike.then(|| measure_unless(&got.values, &want.values, Tier::Value, precision, f64::is_nan));
        Some(Compared { pair: pair.clone(), dims: got.dims.clone(), measure, elsewhere: false })
    };
    pairs.iter().filter_map(compare).collect()
}
