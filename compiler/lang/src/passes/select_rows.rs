//! Computes outputs only for the tokens that they were asked for: behind the last operation that mixes tokens, `tokens` becomes `rows(tokens)`.
//!
//! before   h = call x : f32[tokens, D] ; n = rms_norm h, w : f32[tokens, D] ; y = linear n, m : f32[tokens, V] ; return y
//! after    h = call x : f32[tokens, D] ; r = select_rows h : f32[rows(tokens), D] ; n = rms_norm r, w : f32[rows(tokens), D] ; ...

use std::collections::{BTreeMap, BTreeSet};

use super::Pass;
use super::analysis::token_wise::leading;
use crate::graph::build::Builder;
use crate::graph::{AxisId, Dim, Graph, NodeId, Program, Type, ValueId};
use crate::ops::Core;

pub(super) struct SelectRows;

impl Pass for SelectRows {
    fn name(&self) -> &'static str {
        "select_rows"
    }

    fn required(&self) -> bool {
        true
    }

    fn run(&self, program: &mut Program) -> bool {
        let known: Vec<bool> = (0..program.axes.len()).map(|a| program.extent(AxisId(a)).is_some()).collect();
        program.graphs.first_mut().is_some_and(|main| select(main, &known).is_some_and(|changed| changed))
    }
}

/// Of an axis whose number of elements is `known` all are computed.
fn select(graph: &mut Graph, known: &[bool]) -> Option<bool> {
    let tail = tail(graph, known);
    let axis = |ty: &Type| axis(ty).filter(|_| !is_known(ty.dims.first(), known));
    let mut selected: BTreeMap<ValueId, ValueId> = BTreeMap::new();
    for node in graph.topological().into_iter().filter(|n| tail.contains(n)) {
        for (i, operand) in graph.operands(node).into_iter().enumerate() {
            if !tail.contains(&operand.node) && axis(graph.ty(operand)).is_some() {
                let rows = rows_of(graph, &mut selected, operand)?;
                graph.set_operand(node, i, rows);
            }
        }
        for port in 0..graph.types(node).len() {
            let value = ValueId { node, port };
            if let Some(ty) = axis(graph.ty(value)) {
                graph.set_type(value, ty);
            }
        }
    }
    for index in 0..graph.outputs().len() {
        let value = graph.outputs()[index].value;
        if !tail.contains(&value.node) && axis(graph.ty(value)).is_some() {
            let rows = rows_of(graph, &mut selected, value)?;
            graph.set_output(index, rows);
        }
    }
    Some(!selected.is_empty())
}

/// Nodes that treat each token by itself and that only outputs need.
fn tail(graph: &Graph, known: &[bool]) -> BTreeSet<NodeId> {
    let mut tail = BTreeSet::new();
    let mut order = graph.topological();
    order.reverse();
    for node in order {
        let dim = leading(graph, node);
        let movable = matches!(dim, Some(Dim::Axis(_)))
            && !is_known(dim.as_ref(), known)
            && !matches!(graph.op(node).as_core(), Some(Core::Position));
        let needed = |v: ValueId| graph.uses(v).iter().all(|(user, _)| tail.contains(user));
        if movable && (0..graph.types(node).len()).all(|port| needed(ValueId { node, port })) {
            tail.insert(node);
        }
    }
    tail
}

fn is_known(dim: Option<&Dim>, known: &[bool]) -> bool {
    matches!(dim, Some(Dim::Axis(a)) if known.get(a.0).is_some_and(|known| *known))
}

/// The type of the selected rows of a value whose one ragged dimension leads.
fn axis(ty: &Type) -> Option<Type> {
    let (Dim::Axis(axis), rest) = ty.dims.split_first()? else { return None };
    let fixed = rest.iter().all(|d| !d.is_ragged());
    fixed.then(|| Type::new(ty.dtype, [&[Dim::Rows(*axis)], rest].concat()))
}

fn rows_of(graph: &mut Graph, selected: &mut BTreeMap<ValueId, ValueId>, value: ValueId) -> Option<ValueId> {
    if let Some(known) = selected.get(&value) {
        return Some(*known);
    }
    let rows = match graph.ty(value).dtype.blocks() {
        // Rows are taken of numbers and then put into blocks, since blocks are nothing but operands of products.
        Some(_) if matches!(graph.op(value.node).as_core(), Some(Core::Cast)) => {
            let of_numbers = rows_of(graph, selected, graph.operands(value.node)[0])?;
            let dtype = graph.ty(value).dtype;
            Builder::like(graph, value.node).cast(of_numbers, dtype).ok()?
        }
        _ => Builder::like(graph, value.node).select_rows(value).ok()?,
    };
    selected.insert(value, rows);
    Some(rows)
}
