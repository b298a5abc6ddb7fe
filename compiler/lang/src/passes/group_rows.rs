//! Gathers everything that is not a product, an attention or a call into groups that treat every token by itself.
//!
//! before   s = slice qkv ; r = reshape s ; k = mul r, cos ; ... ; c = cache k
//! after    k = rows qkv, cos {body = (..) { slice ; reshape ; mul ; return } } ; c = cache k
//!
//! Groups are as large as they can be without a group depending on itself through something outside. Two groups are joined when one
//! reads the other, when they feed the same attention (so that one writes all its caches), or when they read the same value. Constants
//! and positions are repeated in each group that needs them. A reshape on its own moves nothing and stays outside, as a view.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use super::Pass;
use super::analysis::phase::{Need, needed};
use super::analysis::token_wise::leading;
use super::keep_results::is_part_of;
use super::matching::{is_constant, is_weight_expression, remove_dead};
use super::product::is_product;
use crate::graph::path::components;
use crate::graph::{Dim, Graph, NodeId, Origin, Program, ValueId};
use crate::ops::fused::{Attention, Rows};
use crate::ops::{Core, Op};

pub(super) struct GroupRows;

impl Pass for GroupRows {
    fn name(&self) -> &'static str {
        "group_rows"
    }

    fn required(&self) -> bool {
        true
    }

    fn run(&self, program: &mut Program) -> bool {
        let mut changed = false;
        for graph in &mut program.graphs {
            changed |= group(graph);
        }
        changed
    }
}

fn group(graph: &mut Graph) -> bool {
    give_producers(graph);
    let mut groups = Groups::new(graph);
    groups.join_all(graph);
    let mut changed = false;
    for members in groups.members() {
        let only_views = members.iter().all(|n| is_view(graph, *n));
        let needed = members.iter().any(|n| is_kept(graph, *n) || reads_positions(graph, *n));
        if only_views && !needed {
            continue;
        }
        outline(graph, &members);
        changed = true;
    }
    // What groups repeat is left without a use.
    remove_dead(graph) || changed
}

/// Whether a node can be inside a group.
fn is_row(graph: &Graph, node: NodeId) -> bool {
    let op = graph.op(node);
    if is_product(op) || op.as_fused::<Rows>().is_some() || is_repeated(graph, node) {
        return false;
    }
    leading(graph, node).is_some()
}

/// What every group that needs it holds itself: constants and what is made of them and of weights, and positions. What is read as
/// elements of another axis has to be written.
fn is_repeated(graph: &Graph, node: NodeId) -> bool {
    let is_written = || {
        let of_elements = graph.types(node).iter().any(|t| t.dims.first().is_some_and(|d| d.is_ragged()));
        of_elements && users(graph, node).any(|user| matches!(graph.op(user).as_core(), Some(Core::Regroup)))
    };
    matches!(graph.op(node).as_core(), Some(Core::Position)) || is_constant(graph, node) && !is_written()
}

fn is_view(graph: &Graph, node: NodeId) -> bool {
    matches!(graph.op(node).as_core(), Some(Core::Reshape))
}

/// Whether a node feeds a cache, or an attention as keys or values: they are written by a group.
fn is_kept(graph: &Graph, node: NodeId) -> bool {
    let keeps = |(user, operand): (NodeId, usize)| match graph.op(user) {
        Op::Core(Core::Cache { .. }) => true,
        op => op.as_fused::<Attention>().is_some() && (operand == 1 || operand == 2),
    };
    (0..graph.types(node).len()).any(|port| graph.uses(ValueId { node, port }).into_iter().any(keeps))
}

fn reads_positions(graph: &Graph, node: NodeId) -> bool {
    graph.operands(node).iter().any(|v| matches!(graph.op(v.node).as_core(), Some(Core::Position)))
}

fn users(graph: &Graph, node: NodeId) -> impl Iterator<Item = NodeId> {
    let values = (0..graph.types(node).len()).map(|port| ValueId { node, port });
    values.flat_map(|v| graph.uses(v)).map(|(user, _)| user).collect::<BTreeSet<_>>().into_iter()
}

/// Puts a reshape to the same dimensions, which can be grouped, where a cache, keys, values or an output need a group to write them.
fn give_producers(graph: &mut Graph) {
    for node in graph.topological() {
        let kept = match graph.op(node) {
            Op::Core(Core::Cache { .. }) => 0..1,
            op if op.as_fused::<Attention>().is_some() => 1..3,
            _ => continue,
        };
        for index in kept {
            let Some(operand) = graph.operands(node).get(index).copied() else { continue };
            let op = graph.op(operand.node);
            // What another body keeps is passed in as it is; keys of this step that came in as an argument are written by a group here.
            let kept_elsewhere = matches!(op.as_core(), Some(Core::Arg { .. } | Core::Call { .. }))
                && matches!(graph.ty(operand).dims.first(), Some(Dim::Visible(_)));
            let part = index == 2 && is_part_of(graph, operand, graph.operands(node)[1]);
            let passed = index > 0 && (matches!(op.as_core(), Some(Core::Cache { .. })) || kept_elsewhere || part);
            if !passed && !is_row(graph, operand.node) && op.as_fused::<Rows>().is_none() {
                let view = identity(graph, operand);
                graph.set_operand(node, index, view);
            }
        }
    }
    // Positions that leave the graph, or go where they are not repeated.
    for node in graph.topological() {
        let value = ValueId { node, port: 0 };
        if !matches!(graph.op(node).as_core(), Some(Core::Position)) {
            continue;
        }
        let outside: Vec<_> = graph.uses(value).into_iter().filter(|(user, _)| !is_row(graph, *user)).collect();
        if outside.is_empty() && !graph.is_output(value) {
            continue;
        }
        let view = identity(graph, value);
        for (user, operand) in outside {
            graph.set_operand(user, operand, view);
        }
        for index in 0..graph.outputs().len() {
            if graph.outputs()[index].value == value {
                graph.set_output(index, view);
            }
        }
    }
}

fn identity(graph: &mut Graph, value: ValueId) -> ValueId {
    let (ty, origin) = (graph.ty(value).clone(), graph.origin(value.node).clone());
    graph.add(Core::Reshape, &[value], ty, origin)
}

/// Disjoint sets of nodes.
struct Groups {
    /// Number of its group, of every node that can be in one.
    of: HashMap<NodeId, usize>,
    /// Nodes of each group in topological order; empty once joined to another.
    nodes: Vec<Vec<NodeId>>,
    axis: Vec<Option<Dim>>,
    /// What is not needed for all sequences is no part of what is.
    need: Vec<Option<Need>>,
    order: HashMap<NodeId, usize>,
}

impl Groups {
    /// One group a node.
    fn new(graph: &Graph) -> Self {
        let mut groups =
            Groups { of: HashMap::new(), nodes: Vec::new(), axis: Vec::new(), need: Vec::new(), order: HashMap::new() };
        let needs = needed(graph);
        for (i, node) in graph.topological().into_iter().enumerate() {
            groups.order.insert(node, i);
            if is_row(graph, node) {
                groups.of.insert(node, groups.nodes.len());
                groups.nodes.push(vec![node]);
                groups.axis.push(leading(graph, node));
                groups.need.push(needs.get(&node).copied());
            }
        }
        groups
    }

    fn members(self) -> impl Iterator<Item = Vec<NodeId>> {
        self.nodes.into_iter().filter(|nodes| !nodes.is_empty())
    }

    fn join_all(&mut self, graph: &Graph) {
        let order = graph.topological();
        // One reads the other.
        for node in &order {
            for operand in graph.operands(*node) {
                self.join(graph, operand.node, *node);
            }
        }
        // Both feed one attention, through caches or not.
        for node in &order {
            if graph.op(*node).as_fused::<Attention>().is_none() {
                continue;
            }
            let made: Vec<NodeId> = graph.operands(*node).iter().map(|v| behind_cache(graph, v.node)).collect();
            for pair in made.windows(2).rev() {
                self.join(graph, pair[0], pair[1]);
            }
            if let [first, _, third, ..] = made[..] {
                self.join(graph, first, third);
            }
        }
        // Both read one value.
        for node in &order {
            if is_repeated(graph, *node) {
                continue;
            }
            let readers: Vec<NodeId> = users(graph, *node).filter(|user| self.of.contains_key(user)).collect();
            for (i, reader) in readers.iter().enumerate().skip(1) {
                for earlier in &readers[..i] {
                    self.join(graph, *earlier, *reader);
                }
            }
        }
    }

    /// Joins the groups of two nodes, unless one would then depend on itself.
    fn join(&mut self, graph: &Graph, a: NodeId, b: NodeId) {
        let (Some(&a), Some(&b)) = (self.of.get(&a), self.of.get(&b)) else { return };
        if a == b
            || self.axis[a] != self.axis[b]
            || self.need[a] != self.need[b]
            || self.reaches_around(graph, a, b)
            || self.reaches_around(graph, b, a)
        {
            return;
        }
        let (keep, gone) = (a.min(b), a.max(b));
        let moved = std::mem::take(&mut self.nodes[gone]);
        for node in &moved {
            self.of.insert(*node, keep);
        }
        self.nodes[keep].extend(moved);
        let order = &self.order;
        self.nodes[keep].sort_by_key(|n| order.get(n).copied());
    }

    /// Whether `to` depends on `from` through something that is in neither.
    fn reaches_around(&self, graph: &Graph, from: usize, to: usize) -> bool {
        let mut seen: BTreeSet<NodeId> = BTreeSet::new();
        let mut queue: VecDeque<NodeId> = VecDeque::new();
        let outside = |n: &NodeId| !matches!(self.of.get(n), Some(g) if *g == from || *g == to);
        for node in &self.nodes[from] {
            queue.extend(users(graph, *node).filter(outside));
        }
        while let Some(node) = queue.pop_front() {
            if !seen.insert(node) {
                continue;
            }
            // A group is entered anywhere and left everywhere.
            let whole = self.of.get(&node).map_or_else(|| vec![node], |g| self.nodes[*g].clone());
            for user in whole.iter().flat_map(|n| users(graph, *n)) {
                match self.of.get(&user) {
                    Some(g) if *g == to => return true,
                    Some(g) if *g == from => {}
                    _ => queue.push_back(user),
                }
            }
        }
        false
    }
}

fn behind_cache(graph: &Graph, node: NodeId) -> NodeId {
    match graph.op(node).as_core() {
        Some(Core::Slice { .. }) if !is_row(graph, node) => {
            graph.operands(node).first().map_or(node, |v| behind_cache(graph, v.node))
        }
        Some(Core::Cache { .. }) => graph.operands(node).first().map_or(node, |v| v.node),
        _ => node,
    }
}

/// Moves nodes, which are in topological order, into the body of one new node.
fn outline(graph: &mut Graph, members: &[NodeId]) {
    let inside: BTreeSet<NodeId> = members.iter().copied().collect();
    let mut outline = Outline { graph, body: Graph::new("rows"), operands: Vec::new(), values: BTreeMap::new() };
    let mut results = Vec::new();
    for &node in members {
        let operands: Vec<ValueId> = outline.graph.operands(node).into_iter().map(|v| outline.inside(v)).collect();
        let (op, types) = (outline.graph.op(node).clone(), outline.graph.types(node).to_vec());
        let copy = outline.body.add_node(op, &operands, types, outline.graph.origin(node).clone());
        for port in 0..outline.graph.types(node).len() {
            let value = ValueId { node, port };
            outline.values.insert(value, ValueId { node: copy, port });
            let leaves = outline.graph.uses(value).iter().any(|(user, _)| !inside.contains(user));
            if leaves || outline.graph.is_output(value) {
                results.push(value);
            }
        }
    }
    let Outline { mut body, operands, values, .. } = outline;
    for (i, result) in results.iter().enumerate() {
        body.add_output(format!("y{i}"), values[result]);
    }
    let types = results.iter().map(|v| graph.ty(*v).clone()).collect();
    let origin = common_origin(graph, members);
    let rows = Rows { reason: reason(graph, &results, &inside), body };
    let node = graph.add_node(Op::from(rows), &operands, types, origin);
    for (port, result) in results.iter().enumerate() {
        graph.replace(*result, ValueId { node, port });
    }
    for member in members.iter().rev() {
        graph.remove(*member);
    }
}

struct Outline<'g> {
    graph: &'g Graph,
    body: Graph,
    operands: Vec<ValueId>,
    /// What values outside are inside.
    values: BTreeMap<ValueId, ValueId>,
}

impl Outline<'_> {
    fn inside(&mut self, value: ValueId) -> ValueId {
        if let Some(known) = self.values.get(&value) {
            return *known;
        }
        let node = value.node;
        let copied = is_repeated(self.graph, node) && !is_weight_expression(self.graph, value);
        let inside = if copied {
            let operands: Vec<ValueId> = self.graph.operands(node).into_iter().map(|v| self.inside(v)).collect();
            let (op, types) = (self.graph.op(node).clone(), self.graph.types(node).to_vec());
            ValueId {
                node: self.body.add_node(op, &operands, types, self.graph.origin(node).clone()),
                port: value.port,
            }
        } else {
            let param = self.body.add_param(format!("x{}", self.operands.len()), self.graph.ty(value).clone());
            self.operands.push(value);
            param
        };
        self.values.insert(value, inside);
        inside
    }
}

/// The path that all members share, and the place of the first.
fn common_origin(graph: &Graph, members: &[NodeId]) -> Origin {
    let mut origin = members.first().map(|n| graph.origin(*n).clone()).unwrap_or_default();
    for member in members {
        let path = &graph.origin(*member).path;
        let shared = components(&origin.path).zip(components(path)).take_while(|(a, b)| a == b).count();
        origin.path = components(&origin.path).take(shared).collect::<Vec<_>>().join(".");
    }
    origin
}

/// What stands behind the group: why it goes no further.
fn reason(graph: &Graph, results: &[ValueId], inside: &BTreeSet<NodeId>) -> String {
    let mut ends = BTreeSet::new();
    for result in results {
        if graph.is_output(*result) {
            ends.insert("output");
        }
        for (user, _) in graph.uses(*result) {
            if inside.contains(&user) {
                continue;
            }
            ends.insert(match graph.op(user) {
                op if is_product(op) => "linear (a product)",
                op if op.as_fused::<Attention>().is_some() => "attention (mixes tokens)",
                Op::Core(Core::Cache { .. }) => "cache (kept for later tokens)",
                Op::Core(Core::Call { .. }) => "call (another body)",
                Op::Core(Core::SelectRows) => "select_rows (fewer tokens)",
                Op::Core(Core::Regroup | Core::First | Core::Last) => "another axis",
                Op::Core(Core::Scan { .. }) => "scan (token after token)",
                _ => "rows (that depend on something between)",
            });
        }
    }
    format!("ends at {}", ends.into_iter().collect::<Vec<_>>().join(", "))
}
