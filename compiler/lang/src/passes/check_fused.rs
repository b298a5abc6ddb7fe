//! What a fused program is: the one form that code generation takes.
//!
//! - Kernels are `linear`, `head_linear`, `expert_linear`, `attention`, `rows` and `scan`; besides them there are only arguments, constants, weights and weight expressions, calls,
//!   `select_rows`, `regroup`, `first`, caches, and reshapes, which are views of contiguous values.
//! - Matrices of products, and stacks of them, are weight expressions.
//! - What a scan begins with is a constant or a weight expression; so is what it reads besides values of tokens.
//! - Values of an attention may be a part of each of its keys. Otherwise keys and values, and what a cache keeps, are written by `rows` (or come as an argument).
//! - In the body of a `rows`, every dimension is fixed but for a leading one, and every operation treats each element of it by itself.

use super::analysis::token_wise::leading;
use super::keep_results::is_part_of;
use super::matching::{is_constant, is_weight_expression};
use crate::graph::verify::{Violation, Violations};
use crate::graph::{Dim, Graph, NodeId, Program, ValueId};
use crate::ops::fused::{Attention, ExpertLinear, HeadLinear, LayerNorm, Linear, RmsNorm, Rows};
use crate::ops::{Core, Op};

/// Checks that a verified program is fused.
///
/// # Errors
/// Every node that is not.
pub fn check_fused(program: &Program) -> Result<(), Violations> {
    let mut found = Vec::new();
    for (index, graph) in program.graphs.iter().enumerate() {
        for node in graph.topological() {
            if let Err(message) = check(graph, node) {
                found.push(violation(program, index, graph, node, message));
            }
        }
    }
    if found.is_empty() { Ok(()) } else { Err(Violations(found)) }
}

fn violation(program: &Program, index: usize, graph: &Graph, node: NodeId, message: String) -> Violation {
    let types: Vec<_> = graph.types(node).iter().map(|t| t.text(&program.axes)).collect();
    let path = &graph.origin(node).path;
    let from = if path.is_empty() { String::new() } else { format!(" at {path}") };
    Violation {
        graph: format!("graph {index} \"{}\"", graph.name),
        node: Some(format!("{} -> {}{from}", graph.op(node).name(), types.join(", "))),
        message,
    }
}

fn check(graph: &Graph, node: NodeId) -> Result<(), String> {
    let operands = graph.operands(node);
    let by_rows = |v: &ValueId| graph.op(v.node).as_fused::<Rows>().is_some();
    match graph.op(node) {
        Op::Core(op) => match op {
            Core::Arg { .. }
            | Core::Const { .. }
            | Core::Weight { .. }
            | Core::Call { .. }
            | Core::SelectRows
            | Core::Regroup
            | Core::First
            | Core::Last => Ok(()),
            Core::Scan { .. } => {
                let fixed = operands.iter().filter(|v| graph.ty(**v).dims.iter().all(|d| !d.is_ragged()));
                let given = |v: &ValueId| {
                    let op = graph.op(v.node).as_core();
                    let plain = matches!(op, Some(Core::Arg { .. } | Core::Const { .. } | Core::Reshape));
                    plain || is_weight_expression(graph, *v)
                };
                if fixed.into_iter().all(given) {
                    Ok(())
                } else {
                    Err("a scan begins with, or reads, arithmetic on weights".into())
                }
            }
            Core::Cache { .. } => {
                if operands.iter().all(by_rows) {
                    Ok(())
                } else {
                    Err("what is kept is not written by rows".into())
                }
            }
            _ if is_weight_expression(graph, ValueId { node, port: 0 }) => Ok(()),
            Core::Reshape => Ok(()),
            // Read where it is kept by the attentions whose keys it is a part of, which say so.
            Core::Slice { .. } if is_values_of_keys(graph, node) => Ok(()),
            _ if graph.types(node).iter().any(|t| t.dims.iter().any(|d| matches!(d, Dim::Visible(_)))) => {
                Err("what another body keeps is read as it is kept, by attention alone; keep the result of this with `cache` instead".into())
            }
            _ if is_constant(graph, node) => Err("arithmetic on weights has no compiled form here".into()),
            _ => Err("has no compiled form".into()),
        },
        op => {
            if let Some(linear) = op.as_fused::<Linear>() {
                let matrices = operands.iter().skip(1).take(linear.parts);
                let ok = matrices.clone().all(|w| is_weight_expression(graph, *w));
                return if ok { Ok(()) } else { Err("a matrix is not made of weights alone".into()) };
            }
            if op.as_fused::<HeadLinear>().is_some() {
                let ok = operands.get(1).is_some_and(|w| is_weight_expression(graph, *w));
                return if ok { Ok(()) } else { Err("a matrix is not made of weights alone".into()) };
            }
            if let Some(experts) = op.as_fused::<ExpertLinear>() {
                let extras = operands.iter().skip(2 + experts.parts).enumerate();
                let stacked = extras.filter(|(i, _)| experts.stacked.contains(i)).map(|(_, v)| v);
                let ok = operands.iter().skip(1).take(experts.parts).chain(stacked);
                let ok = ok.into_iter().all(|w| is_weight_expression(graph, *w));
                return if ok { Ok(()) } else { Err("a stack is not made of weights alone".into()) };
            }
            if op.as_fused::<Attention>().is_some() {
                let part = operands.len() > 2 && is_part_of(graph, operands[2], operands[1]);
                let kept = |v: &ValueId| {
                    by_rows(v) || matches!(graph.op(v.node).as_core(), Some(Core::Cache { .. } | Core::Arg { .. }))
                };
                let ok = operands.iter().skip(1).take(if part { 1 } else { 2 }).all(kept);
                return if ok { Ok(()) } else { Err("keys or values are neither kept nor written by rows".into()) };
            }
            match op.as_fused::<Rows>() {
                Some(rows) => rows.body.topological().into_iter().try_for_each(|n| check_row(&rows.body, n)),
                None => Err("has no compiled form".into()),
            }
        }
    }
}

fn is_values_of_keys(graph: &Graph, node: NodeId) -> bool {
    let uses = graph.uses(ValueId { node, port: 0 });
    let keys = |(user, operand): &(NodeId, usize)| {
        let keys = graph.operands(*user).get(1).copied();
        let attention = *operand == 2 && graph.op(*user).as_fused::<Attention>().is_some();
        attention && keys.is_some_and(|keys| is_part_of(graph, ValueId { node, port: 0 }, keys))
    };
    !uses.is_empty() && uses.iter().all(keys)
}

fn check_row(body: &Graph, node: NodeId) -> Result<(), String> {
    let op = body.op(node);
    let fixed = body.types(node).iter().all(|t| t.dims.iter().all(|d| !d.is_ragged()));
    let ok = match op {
        Op::Core(Core::Arg { .. }) => body.types(node).iter().all(|t| t.dims.iter().skip(1).all(|d| !d.is_ragged())),
        Op::Core(
            Core::Cache { .. }
            | Core::Call { .. }
            | Core::Weight { .. }
            | Core::SelectRows
            | Core::Regroup
            | Core::First
            | Core::Last,
        ) => false,
        Op::Core(_) => fixed || leading(body, node).is_some(),
        _ if op.as_fused::<RmsNorm>().is_some() || op.as_fused::<LayerNorm>().is_some() => {
            fixed || leading(body, node).is_some()
        }
        Op::Fused(_) => false,
    };
    if ok { Ok(()) } else { Err(format!("{} cannot be in a group of rows", op.name())) }
}
