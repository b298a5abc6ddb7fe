//! What a size does to a model: two expansions of one card compared, node by node.
//!
//! Nothing here goes by the names of sizes. A size is what its change changes: how many bodies are called, the rows of a table, heads,
//! the width of a head, another width, a constant of positions.

use std::collections::BTreeSet;

use crate::arch::Model;
use crate::graph::{DType, Dim, Graph, NodeId};
use crate::ops::Core;

/// The operations of a body without their sizes and constants, each once: what tells kinds of layer apart. First what is computed of floats,
/// in order and with what it reads; then what is computed of positions, by name alone, because equal constants make equal operations one there.
pub(super) type Kind = (Vec<String>, BTreeSet<String>);

/// The kinds of body that a model calls.
pub(super) fn kinds(model: &Model) -> BTreeSet<Kind> {
    model.program.graphs.iter().skip(1).map(kind).collect()
}

fn kind(graph: &Graph) -> Kind {
    let (mut seen, mut floats, mut positions) = (BTreeSet::new(), Vec::new(), BTreeSet::new());
    for node in graph.nodes() {
        let types = graph.types(node);
        let ranks: Vec<String> = types.iter().map(|t| format!("{}:{}", t.dtype, t.dims.len())).collect();
        let text = format!("{} {}", graph.op(node).name(), ranks.join(" "));
        if types.iter().all(|t| !t.dtype.is_float()) {
            positions.insert(text);
            continue;
        }
        let operands: Vec<&str> = graph.operands(node).into_iter().map(|v| graph.op(v.node).name()).collect();
        let text = format!("{text} ({})", operands.join(" "));
        if seen.insert(text.clone()) {
            floats.push(text);
        }
    }
    (floats, positions)
}

/// How often bodies are called, and how many parameters there are.
pub(super) fn counts(model: &Model) -> (usize, usize) {
    let calls = |g: &Graph| g.nodes().filter(|n| matches!(g.op(*n).as_core(), Some(Core::Call { .. }))).count();
    (model.program.graphs.iter().map(calls).sum(), model.arch.parameters.len())
}

/// What became another size between two expansions that have the same operations.
#[derive(Debug, Default)]
pub(super) struct Changes {
    /// A dimension of an input.
    pub(super) input: bool,
    /// The number of rows of a table that is read by row.
    pub(super) rows: bool,
    /// An inner dimension, in or against the ratio of the two values: heads, or heads of a group.
    pub(super) inner: bool,
    /// An inner dimension from the one value to the other: that of heads, not of the pairs of elements that a head is cut into.
    pub(super) inner_exact: bool,
    /// The width of something that has inner dimensions, from the one value to the other.
    pub(super) head_width: bool,
    /// The width that a body is given, from the one value to the other: the model's own.
    pub(super) stream: bool,
    /// How many other widths.
    pub(super) widths: usize,
    /// An integer constant.
    pub(super) position: bool,
    /// Where inner dimensions changed: graph and node.
    pub(super) places: BTreeSet<(usize, NodeId)>,
}

/// Compares two expansions in which a size is `was` and `is`; `None` when they have other operations.
pub(super) fn changes(before: &Model, after: &Model, was: i64, is: i64) -> Option<Changes> {
    let (a, b) = (&before.program.graphs, &after.program.graphs);
    if a.len() != b.len() || a.iter().zip(b).any(|(a, b)| a.len() != b.len()) {
        return None;
    }
    let mut changes = Changes::default();
    for (index, (a, b)) in a.iter().zip(b).enumerate() {
        let in_experts = in_experts(a);
        for (x, y) in a.nodes().zip(b.nodes()) {
            if a.op(x).name() != b.op(y).name() || a.types(x).len() != b.types(y).len() {
                return None;
            }
            let exact = |from: Dim, to: Dim| from == Dim::Fixed(was as u64) && to == Dim::Fixed(is as u64);
            let in_ratio = |from: Dim, to: Dim| match (from, to) {
                (Dim::Fixed(from), Dim::Fixed(to)) => {
                    let [from, to, was, is] = [from.into(), to.into(), was as u128, is as u128];
                    from * is == to * was || from * was == to * is
                }
                _ => false,
            };
            let op = a.op(x).as_core();
            if let (Some(Core::Const { values: v }), Some(Core::Const { values: w })) = (op, b.op(y).as_core()) {
                changes.position |= v != w && a.types(x)[0].dtype == DType::I64;
                continue;
            }
            for (from, to) in a.types(x).iter().zip(b.types(y)) {
                if from.dims.len() != to.dims.len() {
                    return None;
                }
                if from.dims == to.dims {
                    continue;
                }
                let last = from.dims.len() - 1;
                match op {
                    Some(Core::Arg { .. }) if index == 0 => changes.input = true,
                    Some(Core::Arg { .. }) => {
                        changes.stream |= last <= 1 && exact(from.dims[last], to.dims[last]);
                        changes.widths += 1;
                    }
                    // The elements of a stack are parameters of their own.
                    Some(Core::Weight { path }) if path.contains('{') => {}
                    Some(Core::Gather) if is_of_stack(a, x) => {}
                    Some(Core::Weight { .. }) => changes.rows |= from.dims[0] != to.dims[0] && is_table(a, x),
                    _ => {
                        // In experts, what each token chose is no inner dimension.
                        let chosen = in_experts.contains(&x).then_some(1);
                        let dims = from.dims.iter().zip(&to.dims).enumerate().filter(|(d, _)| Some(*d) != chosen);
                        for (d, (from, to)) in dims.filter(|(_, (f, t))| f != t) {
                            let d = d - usize::from(chosen.is_some_and(|c| c < d));
                            let last = last - usize::from(chosen.is_some());
                            if d < last {
                                changes.inner |= in_ratio(*from, *to);
                                changes.inner_exact |= exact(*from, *to);
                                changes.places.insert((index, x));
                            } else if d >= 2 && exact(*from, *to) {
                                changes.head_width = true;
                            } else {
                                changes.widths += 1;
                            }
                        }
                    }
                }
            }
        }
    }
    Some(changes)
}

/// Whether a node takes elements of a stack.
fn is_of_stack(graph: &Graph, node: NodeId) -> bool {
    let table = graph.operands(node).first().and_then(|table| graph.op(table.node).as_core());
    matches!((graph.op(node).as_core(), table), (Some(Core::Gather), Some(Core::Weight { path })) if path.contains('{'))
}

/// What is computed in experts, with a dimension for what each token chose behind that of the tokens: their products, and what is done element
/// by element before and behind them.
fn in_experts(graph: &Graph) -> BTreeSet<NodeId> {
    let rank = |n: NodeId| graph.types(n).first().map_or(0, |t| t.dims.len());
    let mut found = BTreeSet::new();
    let mut open: Vec<NodeId> = Vec::new();
    for node in graph.nodes().filter(|n| matches!(graph.op(*n).as_core(), Some(Core::Contract { .. }))) {
        let operands = graph.operands(node);
        if operands.iter().any(|v| is_of_stack(graph, v.node)) {
            open.push(node);
            open.extend(operands.iter().map(|v| v.node).filter(|n| rank(*n) == 3 && !is_of_stack(graph, *n)));
        }
    }
    while let Some(node) = open.pop() {
        if !found.insert(node) {
            continue;
        }
        let by_element = |n: NodeId| {
            let other = matches!(
                graph.op(n).as_core(),
                Some(Core::Contract { .. } | Core::Gather | Core::Reshape | Core::Call { .. } | Core::Arg { .. })
            );
            !other && rank(n) == rank(node)
        };
        let value = crate::graph::ValueId { node, port: 0 };
        open.extend(graph.uses(value).into_iter().map(|(user, _)| user).filter(|user| by_element(*user)));
        if by_element(node) {
            open.extend(graph.operands(node).iter().map(|v| v.node).filter(|n| rank(*n) == rank(node)));
        }
    }
    found
}

/// Whether a weight is read by row.
fn is_table(graph: &Graph, weight: NodeId) -> bool {
    let value = crate::graph::ValueId { node: weight, port: 0 };
    graph
        .uses(value)
        .iter()
        .any(|(user, operand)| *operand == 0 && matches!(graph.op(*user).as_core(), Some(Core::Gather)))
}

/// Whether a dimension became 1 that was more: then something of the model would no longer show.
pub(super) fn vanishes(before: &Model, after: &Model) -> bool {
    let pairs = before.program.graphs.iter().zip(&after.program.graphs);
    pairs.flat_map(|(a, b)| a.nodes().map(move |n| a.types(n)).zip(b.nodes().map(move |n| b.types(n)))).any(|(a, b)| {
        let dims = a.iter().zip(b).flat_map(|(a, b)| a.dims.iter().zip(&b.dims));
        dims.into_iter().any(|(a, b)| *b == Dim::Fixed(1) && matches!(a, Dim::Fixed(n) if *n > 1))
    })
}
