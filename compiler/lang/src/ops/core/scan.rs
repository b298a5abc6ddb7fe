//! The types of a scan: what its step is given and gives, one token at a time.

use crate::graph::{Dim, Graph, Type};
use crate::ops::Core;
use crate::ops::shape::ShapeError;

type Result<T> = std::result::Result<T, ShapeError>;

fn fail<T>(message: impl Into<String>) -> Result<T> {
    Err(ShapeError(message.into()))
}

/// How the step of a scan gets an operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Given {
    /// The start of a state; the step is given the state.
    Start,
    /// A value for each token; the step is given that of its token.
    Token,
    /// The same for all tokens.
    Shared,
}

/// The path of each of `states` states of a scan at `path`.
pub fn state_paths(path: &str, states: usize) -> impl Iterator<Item = String> + '_ {
    (0..states).map(move |i| if states == 1 { path.to_string() } else { format!("{path}.{i}") })
}

/// How each operand of a scan is given to its step.
pub fn operands(states: usize, operands: &[Type]) -> Vec<Given> {
    let given = |(i, ty): (usize, &Type)| match ty.dims.first() {
        _ if i < states => Given::Start,
        Some(Dim::Axis(_)) => Given::Token,
        _ => Given::Shared,
    };
    operands.iter().enumerate().map(given).collect()
}

/// The types of a scan's results.
///
/// # Errors
/// A step that does not fit the operands, or that is no step of one token.
pub fn results(states: usize, step: &Graph, given: &[Type]) -> Result<Vec<Type>> {
    let params = step.params();
    if states == 0 || states > given.len() || params.len() != given.len() {
        return fail(format!("{states} states and {} operands for {} parameters", given.len(), params.len()));
    }
    let mut axis = None;
    for ((how, operand), param) in operands(states, given).into_iter().zip(given).zip(params) {
        let expected = match (how, operand.dims.first()) {
            (Given::Token, Some(dim)) => {
                if *axis.get_or_insert(*dim) != *dim {
                    return fail(format!("{operand} has other tokens than the values before it"));
                }
                Type::new(operand.dtype, &operand.dims[1..])
            }
            _ => operand.clone(),
        };
        if *step.ty(param.value) != expected {
            return fail(format!("'{}' is {}, not {expected}", param.name, step.ty(param.value)));
        }
    }
    let Some(axis) = axis else { return fail("no operand has tokens") };
    for node in step.nodes() {
        if step.types(node).iter().any(|t| t.dims.iter().any(|d| d.is_ragged())) {
            return fail(format!("{} in the step is of more than one token", step.op(node).name()));
        }
        if matches!(step.op(node).as_core(), Some(Core::Position | Core::Call { .. } | Core::Scan { .. })) {
            return fail(format!("{} in a step", step.op(node).name()));
        }
    }
    let outputs = step.outputs();
    if outputs.len() <= states {
        return fail(format!("{} outputs of a step of {states} states", outputs.len()));
    }
    for (param, output) in params.iter().zip(outputs).take(states) {
        let (before, after) = (step.ty(param.value), step.ty(output.value));
        if before != after {
            return fail(format!("the state '{}' is {before} before a token and {after} after it", param.name));
        }
    }
    let result = |ty: &Type| Type::new(ty.dtype, [&[axis], &ty.dims[..]].concat());
    Ok(outputs[states..].iter().map(|o| result(step.ty(o.value))).collect())
}
