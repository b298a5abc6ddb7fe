//! Runs of calls that are drawn once: equal layers, patterns of layers, and layers that only numbers tell apart.
//!
//! Given a graph and its nodes in topological order, [`runs`] returns every call in one run. In a run each call reads the one before; a
//! pattern of bodies repeats, and each body reads the same values every time, but for what the chain hands on and for slices of one value
//! that move on by the same step.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::units::{Pattern, Unit, call, parent};
use crate::graph::parse::same_op;
use crate::graph::{Dim, Graph, NodeId, Program, ValueId};
use crate::ops::Core;
use crate::ops::fused::Rows;
use crate::passes::is_constant;

/// Longest pattern.
const MAX_PERIOD: usize = 8;
/// Most operations behind a slice that are followed.
const MAX_STEPS: usize = 16;

/// Runs of calls in the same list of modules. Where nothing is folded, each call is a run.
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
        for period in 1..=if folded { MAX_PERIOD.min(chain.len()) } else { 0 } {
            let mut steps = BTreeMap::new();
            let mut alike = |i: &usize| same_call(&mut bodies, graph, chain, (*i, *i - period), &mut steps);
            let n = period + (period..chain.len()).take_while(&mut alike).count();
            let times = n / period;
            // A longer pattern must cover more layers than what shorter ones do by themselves.
            if times > 1 && times * period > best.0 * best.1 {
                best = (period, times);
            }
        }
        let n = best.0 * best.1;
        let mut groups = vec![1];
        for i in 1..best.0 {
            // Beside calls that a longer pattern repeats, those that are alike are one group.
            if same_call(&mut bodies, graph, chain, (i, i - 1), &mut BTreeMap::new()) {
                *groups.last_mut().expect("there is a group") += 1;
            } else {
                groups.push(1);
            }
        }
        let slices = slices(graph, &chain[..n]);
        runs.push(Unit { nodes: chain[..n].to_vec(), run: Some(Pattern { groups, slices }) });
        start += n;
    }
    runs
}

/// Nodes that only calls read of which another is drawn, themselves or through others of these.
pub(super) fn unread(graph: &Graph, order: &[NodeId], runs: &[Unit]) -> BTreeSet<NodeId> {
    let mut gone: BTreeSet<NodeId> = BTreeSet::new();
    for Unit { nodes, run } in runs {
        let Some(pattern) = run else { continue };
        let drawn: BTreeSet<usize> = pattern.groups().map(|(first, _)| first).collect();
        gone.extend(nodes.iter().enumerate().filter(|(i, _)| !drawn.contains(i)).map(|(_, n)| *n));
    }
    let mut unread = BTreeSet::new();
    for node in order.iter().rev().filter(|n| call(graph, **n).is_none()) {
        if is_constant(graph, *node) || matches!(graph.op(*node).as_core(), Some(Core::Arg { .. })) {
            continue;
        }
        let values: Vec<ValueId> = (0..graph.types(*node).len()).map(|port| ValueId { node: *node, port }).collect();
        let mut users = values.iter().flat_map(|v| graph.uses(*v)).map(|(user, _)| user).peekable();
        let is_read = users.peek().is_some() && !values.iter().any(|v| graph.is_output(*v));
        if is_read && users.all(|user| gone.contains(&user)) {
            gone.insert(*node);
            unread.insert(*node);
        }
    }
    unread
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

/// Whether call `i` of a chain does what call `j` does: a body that is alike, and the same values but for what the chain hands on and for
/// slices that move on by the same `steps`, kept by operand.
fn same_call(
    bodies: &mut Bodies<'_>,
    graph: &Graph,
    chain: &[NodeId],
    (i, j): (usize, usize),
    steps: &mut BTreeMap<usize, i64>,
) -> bool {
    let body = |i: usize| call(graph, chain[i]).map(|(g, _)| g);
    let (a, b) = (graph.operands(chain[i]), graph.operands(chain[j]));
    let handed = |i: usize, v: &ValueId| i > 0 && v.node == chain[i - 1];
    let mut alike = |(operand, (a, b)): (usize, (&ValueId, &ValueId))| {
        a == b
            || (handed(i, a) && (handed(j, b) || j == 0))
            || moved(graph, *b, *a, MAX_STEPS).is_some_and(|(_, step)| step == *steps.entry(operand).or_insert(step))
    };
    let same = a.len() == b.len() && a.iter().zip(&b).enumerate().all(&mut alike);
    same && body(i).zip(body(j)).is_some_and(|(a, b)| bodies.alike(a, b))
}

/// So many elements of a dimension of so many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Slice {
    start: u64,
    size: u64,
    whole: u64,
}

/// The slice that `a` is made of, and how much further the one begins that `b` is made of: two values that are made of slices of one value by
/// the same operations. `None` where they differ otherwise.
fn moved(graph: &Graph, a: ValueId, b: ValueId, most: usize) -> Option<(Slice, i64)> {
    if most == 0 || graph.ty(a) != graph.ty(b) {
        return None;
    }
    if a.node == b.node {
        // Two results of a kernel.
        let body = &graph.op(a.node).as_fused::<Rows>()?.body;
        return moved(body, body.outputs().get(a.port)?.value, body.outputs().get(b.port)?.value, most - 1);
    }
    let (of_a, of_b) = (graph.operands(a.node), graph.operands(b.node));
    if a.port != b.port || of_a.len() != of_b.len() {
        return None;
    }
    let slices = (graph.op(a.node).as_core(), graph.op(b.node).as_core());
    if let (Some(Core::Slice { dim, start }), Some(Core::Slice { dim: other, start: next })) = slices
        && dim == other
        && of_a == of_b
    {
        let Some(Dim::Fixed(whole)) = graph.ty(*of_a.first()?).dims.get(*dim).cloned() else { return None };
        let Some(Dim::Fixed(size)) = graph.ty(a).dims.get(*dim).cloned() else { return None };
        let step = i64::try_from(*next).ok()? - i64::try_from(*start).ok()?;
        return Some((Slice { start: *start, size, whole }, step));
    }
    if !same_op(graph.op(a.node), graph.op(b.node)) || call(graph, a.node).is_some() {
        return None;
    }
    let mut differing = of_a.iter().zip(&of_b).filter(|(a, b)| a != b);
    let (x, y) = differing.next()?;
    if differing.next().is_some() { None } else { moved(graph, *x, *y, most - 1) }
}

/// What a call reads where it is one of several slices of a value that other calls read the others of: all of them, and where this one lies.
pub(super) fn slice_of_many(graph: &Graph, reader: NodeId, value: ValueId) -> Option<(Vec<ValueId>, Slice)> {
    let others: Vec<ValueId> = match graph.op(value.node).as_core() {
        Some(Core::Slice { .. }) => {
            let whole = *graph.operands(value.node).first()?;
            graph.uses(whole).into_iter().map(|(node, _)| ValueId { node, port: 0 }).collect()
        }
        _ => (0..graph.types(value.node).len()).map(|port| ValueId { node: value.node, port }).collect(),
    };
    let by_others =
        |v: &ValueId| graph.uses(*v).iter().any(|(user, _)| *user != reader && call(graph, *user).is_some());
    let found: Vec<(ValueId, Slice)> = others
        .into_iter()
        .filter(|v| *v != value && by_others(v))
        .filter_map(|v| Some((v, moved(graph, value, v, MAX_STEPS)?.0)))
        .collect();
    let slice = found.first()?.1;
    Some((found.into_iter().map(|(v, _)| v).chain([value]).collect(), slice))
}

/// Which slices the calls of a run read, where each reads one of its own: `slices 0-9 of 35, one each`.
fn slices(graph: &Graph, chain: &[NodeId]) -> String {
    let mut found: Vec<Slice> = Vec::new();
    for node in chain {
        let of = |v: ValueId| slice_of_many(graph, *node, v).map(|(_, slice)| slice);
        let ours: Vec<Slice> = graph.operands(*node).into_iter().filter_map(of).collect();
        let [one] = ours[..] else { return String::new() };
        found.push(one);
    }
    let Some((first, last)) = found.first().zip(found.last()) else { return String::new() };
    let (size, whole) = (first.size, first.whole);
    let even = found.windows(2).all(|w| w[1] == Slice { start: w[0].start + size, size, whole });
    let whole_slices = size > 0 && first.start % size == 0 && whole % size == 0;
    match &found[..] {
        [_] if whole_slices => format!("slice {} of {}", first.start / size, whole / size),
        [_, ..] if whole_slices && even => {
            format!("slices {}-{} of {}, one each", first.start / size, last.start / size, whole / size)
        }
        [_] => format!("{size} of {whole} from {}", first.start),
        _ => format!("{size} of {whole} each, from {} to {}", first.start, last.start),
    }
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
