//! The slow interpreter of graphs: what the language means, and the truth in tests.
//!
//! Given a verified program, its weights and the inputs of one step of one sequence, it gives the outputs and what the sequence
//! keeps. Fused operations are run through their decompositions, so it reads programs before and after any pass.
//!
//! Values of every float type are held in the compute type `F`. With `f32`, every operation rounds as f32 does; with `f64`, nothing
//! rounds but casts to bf16 and f16.

mod contract;
mod elementwise;
mod eval;
mod float;
mod scan;
mod tensor;

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::error::Error;
use std::rc::Rc;

use thiserror::Error;

pub use self::float::Float;
pub use self::tensor::{Data, Tensor};

use self::eval::{Step, concat};
use self::tensor::Value;
use crate::graph::path::{Stack, instances, join};
use crate::graph::verify::Verified;
use crate::graph::{AxisId, Dim, Program, Type};
use crate::ops::Core;
use crate::ops::shape::fixed_size;

/// Weights or inputs that do not fit the program, or values that an operation does not take.
#[derive(Debug, Error)]
#[error("{0}")]
pub struct InterpretError(pub String);

type Result<T> = std::result::Result<T, InterpretError>;

fn fail<T>(message: impl Into<String>) -> Result<T> {
    Err(InterpretError(message.into()))
}

/// Gives the tensor of an absolute path, which names one parameter: of stacks the interpreter asks for each.
pub type Weights<'w> = &'w dyn Fn(&str) -> std::result::Result<Tensor, Box<dyn Error + Send + Sync>>;

/// Gives the value of an absolute path, of a parameter or a stack of them, which is of the type.
type ReadValue<'r, F> = &'r dyn Fn(&str, &Type) -> Result<Rc<Value<F>>>;

/// A program with its weights, computing in `F`.
#[derive(Debug)]
pub struct Interpreter<'p, F: Float> {
    program: &'p Program,
    weights: BTreeMap<String, Rc<Value<F>>>,
}

/// What one sequence keeps between steps.
#[derive(Clone, Debug, Default)]
pub struct State<F: Float> {
    /// Elements kept, by axis.
    past: Vec<usize>,
    /// Values by absolute path of the cache.
    caches: BTreeMap<String, Rc<Value<F>>>,
}

impl<F: Float> State<F> {
    /// A sequence that has seen nothing.
    pub fn new() -> Self {
        State { past: Vec::new(), caches: BTreeMap::new() }
    }

    /// The number of elements of an axis that earlier steps added.
    pub fn past(&self, axis: usize) -> usize {
        self.past.get(axis).copied().unwrap_or(0)
    }
}

/// The parameter of a path, or those of its range stacked.
fn read_weight<F: Float>(weights: Weights<'_>, path: &str, ty: &Type) -> Result<Value<F>> {
    let sizes: Option<Vec<usize>> = ty.dims.iter().map(|d| d.fixed().and_then(|n| usize::try_from(n).ok())).collect();
    let sizes = sizes.filter(|_| fixed_size(&ty.dims).is_some());
    let sizes = sizes.ok_or_else(|| InterpretError(format!("weight '{path}' is of no size, but {ty}")))?;
    let one = |path: &str, sizes: &[usize]| {
        let tensor = weights(path).map_err(|e| InterpretError(format!("weight '{path}': {e}")))?;
        if tensor.dims != sizes {
            return fail(format!("weight '{path}' is {:?}, not {sizes:?}", tensor.dims));
        }
        Value::from_tensor(&tensor, ty.dtype).map_err(|e| InterpretError(format!("weight '{path}': {e}")))
    };
    match (Stack::of(path).map_err(InterpretError)?, &sizes[..]) {
        (Some(stack), [_, own @ ..]) => {
            let elements: Vec<_> = stack.paths().map(|path| one(&path, own).map(Rc::new)).collect::<Result<_>>()?;
            Ok(concat(0, &elements, sizes))
        }
        _ => one(path, &sizes),
    }
}

impl<'p, F: Float> Interpreter<'p, F> {
    /// Reads every weight of the program once.
    ///
    /// # Errors
    /// A weight that cannot be read or whose shape is not the program's.
    pub fn new(program: Verified<'p>, weights: Weights<'_>) -> Result<Self> {
        Self::reading(program, &|path, ty| read_weight(weights, path, ty).map(Rc::new))
    }

    /// Another program on the same weights, which have the same types there.
    ///
    /// # Errors
    /// A weight that this one has not read.
    pub fn of<'q>(&self, program: Verified<'q>) -> Result<Interpreter<'q, F>> {
        Self::reading(program, &|path, _| match self.weights.get(path) {
            Some(value) => Ok(Rc::clone(value)),
            None => fail(format!("weight '{path}' was not read")),
        })
    }

    fn reading<'q>(program: Verified<'q>, read: ReadValue<'_, F>) -> Result<Interpreter<'q, F>> {
        let program = program.program();
        let mut weights = BTreeMap::new();
        for instance in instances(program).unwrap_or_default() {
            let graph = &program.graphs[instance.graph];
            for node in graph.nodes() {
                let Some(Core::Weight { path }) = graph.op(node).as_core() else { continue };
                let path = join(&instance.at, path);
                if let Entry::Vacant(place) = weights.entry(path) {
                    let value = read(place.key(), &graph.types(node)[0])?;
                    place.insert(value);
                }
            }
        }
        Ok(Interpreter { program, weights })
    }

    /// One step: outputs by name, for all tokens.
    ///
    /// # Errors
    /// Inputs that are missing, unknown or misshapen, and values that an operation does not take. The state is then as before.
    pub fn step(&self, state: &mut State<F>, inputs: &BTreeMap<String, Tensor>) -> Result<BTreeMap<String, Tensor>> {
        self.step_rows(state, inputs, &BTreeMap::new())
    }

    /// One step whose outputs were asked for at some tokens only: `rows` gives their indices among the step's, by axis; all for an
    /// axis that it does not hold.
    ///
    /// # Errors
    /// As [`step`](Self::step), and rows that do not exist.
    pub fn step_rows(
        &self,
        state: &mut State<F>,
        inputs: &BTreeMap<String, Tensor>,
        rows: &BTreeMap<String, Vec<usize>>,
    ) -> Result<BTreeMap<String, Tensor>> {
        let program = self.program;
        let added = self.axis_sizes(state, inputs)?;
        let all_rows = |i: usize| rows.get(&program.axes[i]).cloned().unwrap_or_else(|| (0..added[i]).collect());
        let step = Step {
            program,
            weights: &self.weights,
            past: (0..program.axes.len()).map(|i| state.past(i)).collect(),
            rows: (0..program.axes.len()).map(all_rows).collect(),
            old_caches: &state.caches,
            caches: Default::default(),
            added,
        };
        for (i, rows) in step.rows.iter().enumerate() {
            if rows.iter().any(|r| *r >= step.added[i]) {
                return fail(format!("rows {rows:?} of {} {}", step.added[i], program.axes[i]));
            }
        }
        let mut args = Vec::new();
        for input in &program.inputs {
            args.push(Rc::new(self.input(&step, input, inputs.get(&input.name))?));
        }
        let main = &program.graphs[0];
        let values = step.graph(main, &args, "")?;
        let outputs = main.outputs().iter().zip(values).map(|(o, v)| (o.name.clone(), v.to_tensor())).collect();
        let past = step.past.iter().zip(&step.added).map(|(p, a)| p + a).collect();
        let caches = step.caches.into_inner();
        state.caches.extend(caches);
        state.past = past;
        Ok(outputs)
    }

    fn input(&self, step: &Step<'_, F>, decl: &crate::graph::InputDecl, given: Option<&Tensor>) -> Result<Value<F>> {
        let dims = step.sizes(&decl.ty.dims);
        match (given, decl.default) {
            (Some(tensor), _) => {
                if tensor.dims != dims {
                    return fail(format!("input '{}' is {:?}, not {dims:?}", decl.name, tensor.dims));
                }
                Value::from_tensor(tensor, decl.ty.dtype)
                    .map_err(|e| InterpretError(format!("input '{}': {e}", decl.name)))
            }
            (None, Some(default)) => Ok(Value::filled(default, decl.ty.dtype, dims)),
            (None, None) if left_out(step, decl) => Ok(Value::filled(0.0, decl.ty.dtype, dims)),
            (None, None) => fail(format!("input '{}' is missing", decl.name)),
        }
    }

    /// Elements that this step adds to each axis, as the inputs say. Those of which a sequence has a known number come with its first step.
    fn axis_sizes(&self, state: &State<F>, inputs: &BTreeMap<String, Tensor>) -> Result<Vec<usize>> {
        let mut sizes: Vec<Option<usize>> = vec![None; self.program.axes.len()];
        for (name, tensor) in inputs {
            let Some(decl) = self.program.inputs.iter().find(|d| d.name == *name) else {
                let names: Vec<_> = self.program.inputs.iter().map(|d| d.name.as_str()).collect();
                return fail(format!("there is no input '{name}'; the inputs are {}", names.join(", ")));
            };
            if tensor.dims.len() != decl.ty.dims.len() {
                return fail(format!("input '{name}' is {:?}, not {}", tensor.dims, decl.ty.text(&self.program.axes)));
            }
            for (dim, size) in decl.ty.dims.iter().zip(&tensor.dims) {
                if let Dim::Axis(a) = dim {
                    if sizes[a.0].is_some_and(|s| s != *size) {
                        return fail(format!("the inputs disagree on the number of {}", self.program.axes[a.0]));
                    }
                    sizes[a.0] = Some(*size);
                }
            }
        }
        for (i, size) in sizes.iter_mut().enumerate() {
            let Some(extent) = self.program.extent(AxisId(i)).and_then(|n| usize::try_from(n).ok()) else { continue };
            if state.past(i) > 0 {
                if size.is_some() {
                    let axis = &self.program.axes[i];
                    return fail(format!("the sequence has its {axis} already: it is given whole, in one step"));
                }
                continue;
            }
            if size.is_some_and(|given| given != extent) {
                return fail(format!("a sequence has {extent} {}", self.program.axes[i]));
            }
            *size = Some(extent);
        }
        Ok(sizes.into_iter().map(|s| s.unwrap_or(0)).collect())
    }
}

/// Whether an input may be left out: its axis got its elements in an earlier step, or the step brings those of other axes first.
fn left_out<F>(step: &Step<'_, F>, decl: &crate::graph::InputDecl) -> bool {
    let Some(Dim::Axis(axis)) = decl.ty.dims.first() else { return false };
    let elsewhere = step.added.iter().any(|n| *n > 0);
    step.added[axis.0] == 0 && elsewhere && (axis.0 == 0 || step.past[axis.0] > 0)
}
