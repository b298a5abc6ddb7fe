//! Moves what is the same for every call of a body to the caller: values made of positions, constants and inputs that are passed through.
//!
//! before   graph 1 (x) { p = position ; c = cos p ; y = mul x, c }              call x {graph = 1} ; call x' {graph = 1}
//! after    graph 1 (x, c) { y = mul x, c }          p = position ; c = cos p ; call x, c {graph = 1} ; call x', c {graph = 1}
//!
//! Common subexpressions in the caller then make one of the many.

use std::collections::{BTreeSet, HashMap};

use super::Pass;
use super::matching::remove_dead;
use crate::graph::{Graph, NodeId, Program, ValueId};
use crate::ops::Core;

pub(super) struct Hoist;

impl Pass for Hoist {
    fn name(&self) -> &'static str {
        "hoist"
    }

    fn run(&self, program: &mut Program) -> bool {
        let mut changed = false;
        // Callees come after callers: what leaves a body may leave its caller too.
        for body in (1..program.graphs.len()).rev() {
            changed |= hoist(program, body).is_some();
        }
        changed
    }
}

/// Where a body is called: the caller and its calls.
fn calls(program: &Program, body: usize) -> Vec<(usize, NodeId)> {
    let is_call = |graph: &Graph, node: &NodeId| matches!(graph.op(*node).as_core(), Some(Core::Call { graph, .. }) if *graph == body);
    let in_graph = |(i, g): (usize, &Graph)| {
        g.topological().into_iter().filter(|n| is_call(g, n)).map(|n| (i, n)).collect::<Vec<_>>()
    };
    program.graphs.iter().enumerate().flat_map(in_graph).collect()
}

fn hoist(program: &mut Program, body: usize) -> Option<()> {
    let calls = calls(program, body);
    let graph = &program.graphs[body];
    let shared: BTreeSet<usize> =
        (0..graph.params().len()).filter(|param| is_shared(program, &calls, *param)).collect();
    let movable = movable(graph, &shared);
    let wanted: Vec<ValueId> = graph
        .topological()
        .into_iter()
        .filter(|n| movable.contains(n) && is_work(graph, *n))
        .map(|node| ValueId { node, port: 0 })
        .filter(|v| graph.uses(*v).iter().any(|(user, _)| !movable.contains(user)) || graph.is_output(*v))
        .collect();
    if wanted.is_empty() || calls.is_empty() {
        return None;
    }
    let source = graph.clone();
    for (caller, call) in calls {
        let caller = &mut program.graphs[caller];
        let mut operands = caller.operands(call);
        let mut copies: HashMap<ValueId, ValueId> = HashMap::new();
        for (param, operand) in source.params().iter().zip(&operands) {
            copies.insert(param.value, *operand);
        }
        for value in &wanted {
            let moved = copy(&source, caller, &mut copies, *value);
            caller.set_operand(call, operands.len(), moved);
            operands.push(moved);
        }
    }
    let graph = &mut program.graphs[body];
    for value in wanted {
        let name = (0..).map(|i| format!("hoisted{i}")).find(|name| graph.params().iter().all(|p| p.name != *name))?;
        let param = graph.add_param(name, graph.ty(value).clone());
        graph.replace(value, param);
    }
    remove_dead(graph);
    Some(())
}

/// Whether all calls of each caller pass the same value, and one that depends on no weight.
fn is_shared(program: &Program, calls: &[(usize, NodeId)], param: usize) -> bool {
    let passed: Vec<(usize, Option<ValueId>)> = calls
        .iter()
        .map(|(caller, call)| (*caller, program.graphs[*caller].operands(*call).get(param).copied()))
        .collect();
    passed.iter().all(|(caller, value)| {
        let same = passed.iter().all(|(c, v)| c != caller || v == value);
        let params = (0..program.graphs[*caller].params().len()).collect();
        same && value.is_some_and(|v| movable(&program.graphs[*caller], &params).contains(&v.node))
    })
}

/// Nodes that depend on nothing but positions, constants and the parameters in `params`, and are of one token each.
fn movable(graph: &Graph, params: &BTreeSet<usize>) -> BTreeSet<NodeId> {
    let mut movable = BTreeSet::new();
    for node in graph.topological() {
        let pure = match graph.op(node).as_core() {
            Some(Core::Arg { index }) => params.contains(index),
            Some(op) => op.is_pure() || matches!(op, Core::Const { .. } | Core::Position | Core::Index),
            None => false,
        };
        // More than one ragged dimension, or everything kept, would be held in memory for all layers.
        let narrow = graph.types(node).iter().all(|t| {
            t.dims.iter().filter(|d| d.is_ragged()).count() <= 1
                && !t.dims.iter().any(|d| matches!(d, crate::graph::Dim::Visible(_)))
        });
        if pure && narrow && graph.operands(node).iter().all(|v| movable.contains(&v.node)) {
            movable.insert(node);
        }
    }
    movable
}

/// Whether computing a value once saves anything: it depends on the step, and is more than a view.
fn is_work(graph: &Graph, node: NodeId) -> bool {
    let ragged = graph.types(node).iter().any(|t| t.dims.iter().any(|d| d.is_ragged()));
    match graph.op(node).as_core() {
        Some(Core::Arg { .. } | Core::Position | Core::Index | Core::Const { .. }) => false,
        Some(Core::Reshape) => ragged && graph.operands(node).iter().all(|v| is_work(graph, v.node)),
        _ => ragged,
    }
}

fn copy(source: &Graph, target: &mut Graph, copies: &mut HashMap<ValueId, ValueId>, value: ValueId) -> ValueId {
    if let Some(known) = copies.get(&value) {
        return *known;
    }
    let operands: Vec<ValueId> =
        source.operands(value.node).into_iter().map(|v| copy(source, target, copies, v)).collect();
    let (op, types) = (source.op(value.node).clone(), source.types(value.node).to_vec());
    let node = target.add_node(op, &operands, types, source.origin(value.node).clone());
    let copied = ValueId { node, port: value.port };
    copies.insert(value, copied);
    copied
}
