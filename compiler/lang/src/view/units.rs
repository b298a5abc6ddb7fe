//! What of a graph becomes one atom: a node, what a module does elementwise in one go, or a run of equal layers.
//!
//! Given a graph and its nodes in topological order, [`units`] returns the groups in the order of their last members. No group depends on
//! itself through a node outside of it.

use std::collections::{BTreeSet, HashMap};

use crate::graph::parse::same_op;
use crate::graph::path::split_last;
use crate::graph::{Graph, NodeId, Program, ValueId};
use crate::ops::Core;
use crate::passes::is_constant;

/// What becomes one atom, or one run of calls.
#[derive(Debug)]
pub(super) struct Unit {
    pub(super) nodes: Vec<NodeId>,
    /// Of a run: so many calls, again and again.
    pub(super) period: usize,
    pub(super) is_run: bool,
}

impl Unit {
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
            units.push(Unit { nodes: run.nodes.clone(), period: run.period, is_run: true });
            continue;
        }
        if in_run.contains(node) {
            continue;
        }
        match groups.get(node).and_then(|g| members.get(g)) {
            Some(nodes) if nodes.last() == Some(node) => {
                units.push(Unit { nodes: nodes.clone(), period: 1, is_run: false });
            }
            Some(_) => {}
            None => units.push(Unit { nodes: vec![*node], period: 1, is_run: false }),
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

/// Runs of calls: each reads the one before, in the same list of modules, and a pattern of bodies repeats. Every call is in one run.
pub(super) fn runs(program: &Program, graph: &Graph, order: &[NodeId], folded: bool) -> Vec<Unit> {
    let mut bodies = Bodies { program, known: HashMap::new() };
    let calls: Vec<NodeId> = order.iter().copied().filter(|n| call(graph, *n).is_some()).collect();
    let mut runs = Vec::new();
    let mut start = 0;
    while start < calls.len() {
        // The longest chain from here.
        let mut end = start + 1;
        while end < calls.len() && follows(graph, calls[end - 1], calls[end]) {
            end += 1;
        }
        let chain = &calls[start..end];
        let mut best = (1, 1);
        for period in 1..=if folded { 8.min(chain.len()) } else { 0 } {
            let mut alike = |i: &usize| same_call(&mut bodies, graph, chain, *i, i - period);
            let n = period + (period..chain.len()).take_while(&mut alike).count();
            let times = n / period;
            // A longer pattern must cover more layers than what shorter ones do by themselves.
            if times > 1 && times * period > best.0 * best.1 {
                best = (period, times);
            }
        }
        let n = best.0 * best.1;
        runs.push(Unit { nodes: chain[..n].to_vec(), period: best.0, is_run: true });
        start += n;
    }
    runs
}

/// Whether `b` reads results of `a` that nothing else reads, and lies in the same list.
fn follows(graph: &Graph, a: NodeId, b: NodeId) -> bool {
    let (Some((_, at_a)), Some((_, at_b))) = (call(graph, a), call(graph, b)) else { return false };
    let mut uses = (0..graph.types(a).len()).flat_map(|port| {
        let value = ValueId { node: a, port };
        graph.uses(value).into_iter().map(|(user, _)| user).chain(graph.is_output(value).then_some(a))
    });
    parent(&at_a) == parent(&at_b) && graph.operands(b).iter().any(|v| v.node == a) && uses.all(|user| user == b)
}

/// Whether call `i` of a chain does what call `j` does: a body that is alike, and the same values but for what the chain hands on.
fn same_call(bodies: &mut Bodies<'_>, graph: &Graph, chain: &[NodeId], i: usize, j: usize) -> bool {
    let body = |i: usize| call(graph, chain[i]).map(|(g, _)| g);
    let (a, b) = (graph.operands(chain[i]), graph.operands(chain[j]));
    let handed = |i: usize, v: &ValueId| i > 0 && v.node == chain[i - 1];
    let alike = |(a, b): (&ValueId, &ValueId)| a == b || (handed(i, a) && (handed(j, b) || j == 0));
    let same = a.len() == b.len() && a.iter().zip(&b).all(alike);
    same && body(i).zip(body(j)).is_some_and(|(a, b)| bodies.alike(a, b))
}

/// Bodies of a program that were compared.
struct Bodies<'p> {
    program: &'p Program,
    known: HashMap<(usize, usize), bool>,
}

impl Bodies<'_> {
    /// Whether two bodies are the same but for the numbers in them: layers that only a constant tells apart are built alike.
    fn alike(&mut self, a: usize, b: usize) -> bool {
        if a == b {
            return true;
        }
        if let Some(known) = self.known.get(&(a, b)) {
            return *known;
        }
        // Bodies call only later ones, so that this ends.
        let alike = self.compare(a, b);
        self.known.insert((a, b), alike);
        alike
    }

    fn compare(&mut self, a: usize, b: usize) -> bool {
        let (Some(first), Some(second)) = (self.program.graphs.get(a), self.program.graphs.get(b)) else {
            return false;
        };
        let (of_a, of_b) = (first.topological(), second.topological());
        let outputs = |g: &Graph| g.outputs().iter().map(|o| o.value).collect::<Vec<_>>();
        if of_a.len() != of_b.len() || outputs(first).len() != outputs(second).len() {
            return false;
        }
        let place: HashMap<NodeId, NodeId> = of_a.iter().copied().zip(of_b.iter().copied()).collect();
        let same = |(a, b): (ValueId, ValueId)| a.port == b.port && place.get(&a.node) == Some(&b.node);
        let paired = |a: Vec<ValueId>, b: Vec<ValueId>| a.len() == b.len() && a.into_iter().zip(b).all(same);
        if !paired(outputs(first), outputs(second)) {
            return false;
        }
        of_a.iter().zip(&of_b).all(|(x, y)| {
            first.types(*x) == second.types(*y)
                && paired(first.operands(*x), second.operands(*y))
                && match (first.op(*x).as_core(), second.op(*y).as_core()) {
                    (Some(Core::Const { .. }), Some(Core::Const { .. })) => true,
                    (Some(Core::Call { graph: g, at }), Some(Core::Call { graph: h, at: other })) => {
                        at == other && self.alike(*g, *h)
                    }
                    _ => same_op(first.op(*x), second.op(*y)),
                }
        })
    }
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
