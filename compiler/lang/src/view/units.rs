//! What of a graph becomes one atom: a node, what a module does elementwise in one go, or a run of equal layers.
//!
//! Given a graph and its nodes in topological order, [`units`] returns the groups in the order of their last members. No group depends on
//! itself through a node outside of it.

use std::collections::{BTreeSet, HashMap};

use crate::graph::path::split_last;
use crate::graph::{Graph, NodeId, ValueId};
use crate::ops::Core;
use crate::passes::is_constant;

/// What becomes one atom, or one run of calls.
#[derive(Clone, Debug)]
pub(super) struct Unit {
    pub(super) nodes: Vec<NodeId>,
    /// Of a run of calls.
    pub(super) run: Option<Pattern>,
}

/// What a run of calls does again and again.
#[derive(Clone, Debug)]
pub(super) struct Pattern {
    /// How many calls in a row are alike, group by group. Together they are the pattern.
    pub(super) groups: Vec<usize>,
    /// Which slices of one value the calls read. Empty where they read the same.
    pub(super) slices: String,
}

impl Pattern {
    /// Calls of the pattern.
    pub(super) fn period(&self) -> usize {
        self.groups.iter().sum()
    }

    /// The first call of each group, in the pattern, and how many there are.
    pub(super) fn groups(&self) -> impl Iterator<Item = (usize, usize)> {
        self.groups.iter().scan(0, |at, n| {
            *at += n;
            Some((*at - n, *n))
        })
    }
}

impl Unit {
    /// Operations that are one atom.
    pub(super) fn of(nodes: Vec<NodeId>) -> Unit {
        Unit { nodes, run: None }
    }

    /// Values from outside, each once.
    pub(super) fn reads(&self, graph: &Graph) -> Vec<ValueId> {
        let inside: BTreeSet<NodeId> = self.nodes.iter().copied().collect();
        let mut reads = Vec::new();
        for value in self.nodes.iter().flat_map(|n| graph.operands(*n)) {
            if !inside.contains(&value.node) && !reads.contains(&value) {
                reads.push(value);
            }
        }
        reads
    }

    /// Values that something outside reads, or that are outputs; of one node, all results.
    pub(super) fn results(&self, graph: &Graph) -> Vec<ValueId> {
        let ports = |n: &NodeId| (0..graph.types(*n).len()).map(|port| ValueId { node: *n, port }).collect::<Vec<_>>();
        if let [node] = &self.nodes[..] {
            return ports(node);
        }
        let inside: BTreeSet<NodeId> = self.nodes.iter().copied().collect();
        let leaves = |v: &ValueId| graph.is_output(*v) || graph.uses(*v).iter().any(|(user, _)| !inside.contains(user));
        self.nodes.iter().flat_map(ports).filter(leaves).collect()
    }
}

/// Everything that is drawn of a graph, in the order of last members.
pub(super) fn units(graph: &Graph, order: &[NodeId], runs: &[Unit], groups: &HashMap<NodeId, usize>) -> Vec<Unit> {
    let mut members: HashMap<usize, Vec<NodeId>> = HashMap::new();
    for node in order {
        if let Some(group) = groups.get(node) {
            members.entry(*group).or_default().push(*node);
        }
    }
    let in_run: BTreeSet<NodeId> = runs.iter().flat_map(|r| r.nodes.iter().copied()).collect();
    let mut units = Vec::new();
    for node in order {
        if is_constant(graph, *node) || matches!(graph.op(*node).as_core(), Some(Core::Arg { .. })) {
            continue;
        }
        if let Some(run) = runs.iter().find(|r| r.nodes.last() == Some(node)) {
            units.push(run.clone());
            continue;
        }
        if in_run.contains(node) {
            continue;
        }
        match groups.get(node).and_then(|g| members.get(g)) {
            Some(nodes) if nodes.last() == Some(node) => {
                units.push(Unit::of(nodes.clone()));
            }
            Some(_) => {}
            None => units.push(Unit::of(vec![*node])),
        }
    }
    units
}

pub(super) fn call(graph: &Graph, node: NodeId) -> Option<(usize, String)> {
    match graph.op(node).as_core() {
        Some(Core::Call { graph, at }) => Some((*graph, at.clone())),
        _ => None,
    }
}

pub(super) fn parent(path: &str) -> &str {
    split_last(path).0
}

pub(super) fn last_component(path: &str) -> &str {
    split_last(path).1
}

/// Groups what a module does elementwise in one go, and with it the product with weights before it: by node, the number of its group.
/// Groups do not depend on themselves.
pub(super) fn equations(graph: &Graph, order: &[NodeId]) -> HashMap<NodeId, usize> {
    let is_product = |n: NodeId| matches!(graph.op(n).as_core(), Some(Core::Contract { .. }));
    let with_weights = |n: NodeId| {
        is_product(n) && graph.operands(n).iter().any(|v| is_constant(graph, v.node) || is_of_experts(graph, v.node))
    };
    let may = |n: NodeId| {
        !is_constant(graph, n)
            && matches!(
                graph.op(n).as_core(),
                Some(
                    Core::Unary(_)
                        | Core::Binary(_)
                        | Core::Select
                        | Core::Cast
                        | Core::Reduce(_)
                        | Core::Slice { .. }
                        | Core::Concat { .. }
                        | Core::Transpose { .. }
                        | Core::Reshape
                        | Core::Repeat { .. }
                )
            )
            || with_weights(n)
            || is_of_experts(graph, n)
    };
    let mut of: HashMap<NodeId, usize> = HashMap::new();
    let mut members: Vec<BTreeSet<NodeId>> = Vec::new();
    for node in order.iter().copied().filter(|n| may(*n)) {
        let mut mine = members.len();
        members.push(BTreeSet::from([node]));
        of.insert(node, mine);
        for operand in graph.operands(node) {
            let Some(theirs) = of.get(&operand.node).copied().filter(|g| *g != mine) else { continue };
            let joins = !is_product(node) || is_of_experts(graph, operand.node);
            let same = graph.origin(operand.node).path == graph.origin(node).path && joins;
            let union: BTreeSet<NodeId> = members[mine].union(&members[theirs]).copied().collect();
            let one_product = union.iter().filter(|n| is_product(**n)).count() <= 1;
            if same && one_product && is_convex(graph, &union) {
                let (keep, gone) = (mine.min(theirs), mine.max(theirs));
                for n in &members[gone] {
                    of.insert(*n, keep);
                }
                members[gone].clear();
                members[keep] = union;
                mine = keep;
            }
        }
    }
    // Alone, a view stays a view and a sign stays a sign.
    of.retain(|_, group| members[*group].len() > 1);
    of
}

/// Whether a node takes the parameters of chosen experts from their stack.
pub(super) fn is_of_experts(graph: &Graph, node: NodeId) -> bool {
    let stack = graph.operands(node).first().and_then(|table| graph.op(table.node).as_core());
    matches!((graph.op(node).as_core(), stack), (Some(Core::Gather), Some(Core::Weight { path })) if path.contains('{'))
}

/// Whether no path leaves a set of nodes and comes back.
fn is_convex(graph: &Graph, set: &BTreeSet<NodeId>) -> bool {
    let mut seen = BTreeSet::new();
    let users = |n: NodeId| (0..graph.types(n).len()).flat_map(move |port| graph.uses(ValueId { node: n, port }));
    let mut stack: Vec<NodeId> =
        set.iter().flat_map(|n| users(*n)).map(|(u, _)| u).filter(|u| !set.contains(u)).collect();
    while let Some(node) = stack.pop() {
        if !seen.insert(node) {
            continue;
        }
        for (user, _) in users(node) {
            if set.contains(&user) {
                return false;
            }
            stack.push(user);
        }
    }
    true
}
