//! What passes ask of a graph again and again.

use std::collections::BTreeSet;

use crate::graph::{Graph, NodeId, Program, ValueId};
use crate::ops::{BinaryOp, Core, Op};

/// The core operation that defines a value.
pub(super) fn core(graph: &Graph, value: ValueId) -> Option<&Core> {
    graph.op(value.node).as_core()
}

/// The number that every element of a constant is.
pub(super) fn uniform(graph: &Graph, value: ValueId) -> Option<f64> {
    match core(graph, value)? {
        Core::Const { values } => {
            let first = *values.first()?;
            values.iter().all(|v| *v == first).then_some(first)
        }
        _ => None,
    }
}

/// The permutation that brings dimensions labelled `from` into the order `to`.
pub(super) fn order(from: &[char], to: &[char]) -> Option<Vec<usize>> {
    (from.len() == to.len()).then(|| to.iter().map(|c| from.iter().position(|f| f == c)).collect())?
}

/// The operands of a value that is `f` of two.
pub(super) fn binary(graph: &Graph, value: ValueId, f: BinaryOp) -> Option<[ValueId; 2]> {
    match core(graph, value)? {
        Core::Binary(g) if *g == f => graph.operands(value.node).try_into().ok(),
        _ => None,
    }
}

/// The operand of a value that `is` of one.
pub(super) fn operand_if(graph: &Graph, value: ValueId, is: impl Fn(&Core) -> bool) -> Option<ValueId> {
    is(core(graph, value)?).then(|| graph.operands(value.node).first().copied()).flatten()
}

/// Elementwise core operations of one result.
pub(super) fn is_elementwise(op: &Op) -> bool {
    matches!(op, Op::Core(Core::Unary(_) | Core::Binary(_) | Core::Select | Core::Cast))
}

/// `Weight`, or moves and casts of weights and constants: what the runtime packs once.
pub(super) fn is_weight_expression(graph: &Graph, value: ValueId) -> bool {
    let moved = |op: &Op| {
        matches!(
            op,
            Op::Core(
                Core::Weight { .. }
                    | Core::Const { .. }
                    | Core::Concat { .. }
                    | Core::Transpose { .. }
                    | Core::Slice { .. }
                    | Core::Cast
                    | Core::Reshape
            )
        )
    };
    !matches!(core(graph, value), Some(Core::Const { .. })) && made_of(graph, value.node, moved)
}

/// Whether nothing a value is made from is known only at run time: weights, constants and operations on them.
pub(crate) fn is_constant(graph: &Graph, node: NodeId) -> bool {
    made_of(graph, node, |op| {
        !matches!(
            op,
            Op::Core(
                Core::Arg { .. }
                    | Core::Position
                    | Core::Cache { .. }
                    | Core::Call { .. }
                    | Core::SelectRows
                    | Core::Regroup
                    | Core::First
                    | Core::Last
                    | Core::Scan { .. }
            )
        )
    })
}

/// Whether a node and everything that it depends on `is` of some kind.
fn made_of(graph: &Graph, node: NodeId, is: impl Fn(&Op) -> bool) -> bool {
    let mut seen = BTreeSet::new();
    let mut stack = vec![node];
    while let Some(node) = stack.pop() {
        if !is(graph.op(node)) {
            return false;
        }
        if seen.insert(node) {
            stack.extend(graph.operands(node).iter().map(|v| v.node));
        }
    }
    true
}

/// Rewrites nodes of all graphs, each in the order of what it reads, and removes what nothing uses then; whether any was rewritten.
pub(super) fn rewrite_nodes(program: &mut Program, rewrite: impl Fn(&mut Graph, NodeId) -> Option<()>) -> bool {
    let mut changed = false;
    for graph in &mut program.graphs {
        for node in graph.topological() {
            changed |= rewrite(graph, node).is_some();
        }
        remove_dead(graph);
    }
    changed
}

/// Removes nodes that nothing uses, but for parameters; whether there were any.
pub(super) fn remove_dead(graph: &mut Graph) -> bool {
    let mut changed = false;
    let mut order = graph.topological();
    order.reverse();
    for node in order {
        let dead = !matches!(graph.op(node).as_core(), Some(Core::Arg { .. }))
            && (0..graph.types(node).len()).all(|port| {
                let value = ValueId { node, port };
                graph.uses(value).is_empty() && !graph.is_output(value)
            });
        if dead {
            graph.remove(node);
            changed = true;
        }
    }
    changed
}
