//! Keeps what attention reads: operations on what is kept are done once, before it is kept.
//!
//! before   c = cache x ; k = f c ; y = attention q, k, v
//! after    k = cache (f x) ; y = attention q, k, v
//!
//! What is done to a kept value depends on its token alone, so that it may be done when the token comes. Values that another body keeps are
//! out of reach, and stay as they are.

use std::collections::HashMap;

use super::Pass;
use super::analysis::token_wise::leading;
use super::matching::{core, remove_dead};
use crate::graph::path::join;
use crate::graph::{AxisId, Dim, Graph, NodeId, Program, Type, ValueId};
use crate::ops::fused::Attention;
use crate::ops::{Core, Op};

pub(super) struct KeepResults;

impl Pass for KeepResults {
    fn name(&self) -> &'static str {
        "keep_results"
    }

    fn required(&self) -> bool {
        true
    }

    fn run(&self, program: &mut Program) -> bool {
        let mut changed = false;
        for graph in &mut program.graphs {
            let mut kept: HashMap<ValueId, ValueId> = HashMap::new();
            for node in graph.topological() {
                if graph.op(node).as_fused::<Attention>().is_some() {
                    changed |= rewrite(graph, node, &mut kept);
                }
            }
            remove_dead(graph);
        }
        changed
    }
}

fn rewrite(graph: &mut Graph, node: NodeId, kept: &mut HashMap<ValueId, ValueId>) -> bool {
    let mut changed = false;
    let operands = graph.operands(node);
    for (index, operand) in operands.iter().copied().enumerate().skip(1) {
        let Some(Dim::Visible(axis)) = graph.ty(operand).dims.first().copied() else { continue };
        if matches!(core(graph, operand), Some(Core::Cache { .. } | Core::Arg { .. }))
            || index == 2 && is_part_of(graph, operand, operands[1])
        {
            continue;
        }
        let cache = match kept.get(&operand) {
            Some(known) => *known,
            None => {
                let Some(x) = of_tokens(graph, operand, axis, &mut HashMap::new()) else { continue };
                let name = match index {
                    1 => "k".to_owned(),
                    2 => "v".to_owned(),
                    _ => format!("extra{}", index - 3),
                };
                let path = unused(graph, &join(&graph.origin(node).path, &name));
                let (ty, origin) = (graph.ty(operand).clone(), graph.origin(operand.node).clone());
                graph.add(Core::Cache { path }, &[x], ty, origin)
            }
        };
        kept.insert(operand, cache);
        graph.set_operand(node, index, cache);
        changed = true;
    }
    changed
}

/// Whether values are a part of each token's keys, which are kept.
pub(super) fn is_part_of(graph: &Graph, values: ValueId, keys: ValueId) -> bool {
    matches!(core(graph, values), Some(Core::Slice { dim: 2, .. }))
        && graph.operands(values.node) == [keys]
        && matches!(core(graph, keys), Some(Core::Cache { .. }))
}

/// A path that no cache of the graph has. No identifier of the language holds what is added.
fn unused(graph: &Graph, path: &str) -> String {
    let is_used = |wanted: &str| {
        graph.nodes().any(|n| matches!(graph.op(n).as_core(), Some(Core::Cache { path }) if path == wanted))
    };
    let mut path = format!("{path}~");
    while is_used(&path) {
        path.push('~');
    }
    path
}

/// A value of everything kept as one of the tokens of the step: the same operations on what the caches are given.
pub(super) fn of_tokens(
    graph: &mut Graph,
    value: ValueId,
    axis: AxisId,
    memo: &mut HashMap<ValueId, ValueId>,
) -> Option<ValueId> {
    if let Some(known) = memo.get(&value) {
        return Some(*known);
    }
    let node = value.node;
    let operands = graph.operands(node);
    let made = if graph.types(node).iter().all(|t| t.dims.iter().all(|d| !d.is_ragged())) {
        value
    } else if let Some(Core::Cache { .. }) = graph.op(node).as_core() {
        *operands.first()?
    } else {
        if let Op::Core(Core::Arg { .. } | Core::Call { .. } | Core::SelectRows | Core::Regroup | Core::First) =
            graph.op(node)
        {
            return None;
        }
        let mut given = Vec::new();
        for operand in operands {
            given.push(of_tokens(graph, operand, axis, memo)?);
        }
        let of_step = |d: &Dim| if *d == Dim::Visible(axis) { Dim::Axis(axis) } else { *d };
        let types: Vec<Type> = graph
            .types(node)
            .iter()
            .map(|t| Type::new(t.dtype, t.dims.iter().map(of_step).collect::<Vec<_>>()))
            .collect();
        let (op, origin) = (graph.op(node).clone(), graph.origin(node).clone());
        let copy = graph.add_node(op, &given, types, origin);
        if leading(graph, copy) != Some(Dim::Axis(axis)) {
            graph.remove(copy);
            return None;
        }
        ValueId { node: copy, port: value.port }
    };
    memo.insert(value, made);
    Some(made)
}
