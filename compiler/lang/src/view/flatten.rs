//! A program as one flat list of what is drawn: bodies put in place of their calls, equal layers once, views and constants left out.
//!
//! Given a program, it returns [`Atom`]s in topological order, each with the modules it lies in. A run of calls of which each reads the one
//! before, with the same bodies again and again, is drawn once and says how often it is run. In the drawing of an architecture, what a
//! module does elementwise in one go is one atom.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::fold::{runs, slice_of_many, unread};
use super::scene::{Kind, Node, Repeat, Shape, Weight};
use super::units::{Pattern, Unit, call, equations, last_component, parent, units};
use super::{Subject, cost, describe, formula};
use crate::graph::path::{components, join};
use crate::graph::{Graph, NodeId, ValueId};
use crate::ops::Core;
use crate::passes::is_constant;

/// Most atoms of a drawing.
pub(super) const MAX_ATOMS: usize = 16_000;

/// Most operations of a body of a drawing.
const MAX_OPERATIONS: usize = 10_000;

/// One thing that is drawn.
#[derive(Debug)]
pub(super) struct Atom {
    pub(super) node: Node,
    /// The modules around it, outermost first.
    pub(super) modules: Vec<Module>,
    /// What it reads: the atom, its result, and the type as this one sees it.
    pub(super) reads: Vec<(usize, usize, String)>,
}

/// A module around an atom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Module {
    pub(super) name: String,
    /// Absolute; of the first of several layers.
    pub(super) path: String,
    pub(super) repeat: Option<Repeat>,
    /// See [`Frame`](super::scene::Frame).
    pub(super) slices: String,
}

impl Module {
    fn new(name: impl Into<String>, path: impl Into<String>) -> Module {
        Module { name: name.into(), path: path.into(), repeat: None, slices: String::new() }
    }
}

/// Result `1` of atom `0`.
type Source = (usize, usize);

/// A place in the program: which graph, at which path, in which modules.
#[derive(Clone, Debug)]
struct Place {
    graph: usize,
    at: String,
    modules: Vec<Module>,
}

/// More than [`MAX_ATOMS`].
#[derive(Clone, Copy, Debug)]
pub(super) struct TooLarge;

/// All atoms of a program; of the graphs in `only` alone when it names some, their parameters as inputs.
pub(super) fn flatten(subject: &Subject<'_>, only: Option<&[usize]>) -> Result<Vec<Atom>, TooLarge> {
    let mut flat = Flat { subject, atoms: Vec::new() };
    for graph in only.unwrap_or(&[0]) {
        let Some(body) = subject.program.graphs.get(*graph) else { continue };
        let modules = match only {
            Some(_) => vec![Module::new(&body.name, "")],
            None => Vec::new(),
        };
        let place = Place { graph: *graph, at: String::new(), modules };
        let mut inputs = Vec::new();
        for param in body.params() {
            inputs.push(Some((flat.add(&place, body, &[param.value.node], Vec::new())?, 0)));
        }
        let results = flat.graph(&place, inputs)?;
        for (output, source) in body.outputs().iter().zip(results) {
            let ty = body.ty(output.value).text(&subject.program.axes);
            let mut node = describe::node(body, output.value.node, &subject.program.axes);
            node = Node {
                kind: Kind::Output,
                shape: Shape::Pill,
                title: output.name.clone(),
                path: String::new(),
                lines: vec![ty.clone()],
                reason: String::new(),
                facts: Vec::new(),
                results: vec![ty.clone()],
                cost: Default::default(),
                ..node
            };
            let reads = source.map(|(atom, port)| (atom, port, ty)).into_iter().collect();
            flat.atoms.push(Atom { node, modules: place.modules.clone(), reads });
        }
    }
    Ok(flat.atoms)
}

struct Flat<'s> {
    subject: &'s Subject<'s>,
    atoms: Vec<Atom>,
}

impl<'s> Flat<'s> {
    /// Adds what a graph computes from `inputs`; where its outputs come from.
    fn graph(&mut self, place: &Place, inputs: Vec<Option<Source>>) -> Result<Vec<Option<Source>>, TooLarge> {
        let graph = &self.subject.program.graphs[place.graph];
        if graph.len() > MAX_OPERATIONS {
            return Err(TooLarge);
        }
        let order = graph.topological();
        let runs = runs(self.subject.program, graph, &order, self.subject.folded);
        let groups = if self.subject.stage == "arch" { equations(graph, &order) } else { HashMap::new() };
        let mut sources: HashMap<ValueId, Option<Source>> = HashMap::new();
        for (param, input) in graph.params().iter().zip(inputs) {
            sources.insert(param.value, input);
        }
        // What only layers read that are not drawn is not drawn either.
        let unread = unread(graph, &order, &runs);
        let ports = |n: &NodeId| (0..graph.types(*n).len()).map(|port| ValueId { node: *n, port }).collect::<Vec<_>>();
        sources.extend(unread.iter().flat_map(ports).map(|value| (value, None)));
        // A group is added with its last member, a run with its last call: what they read is there by then. What reads an earlier member waits.
        let mut waiting: Vec<Unit> = units(graph, &order, &runs, &groups);
        waiting.retain(|unit| !unit.nodes.iter().all(|n| unread.contains(n)));
        while !waiting.is_empty() {
            let before = waiting.len();
            let mut later = Vec::new();
            for unit in waiting {
                let ready = unit.reads(graph).iter().all(|v| sources.contains_key(v) || is_constant(graph, v.node));
                if ready {
                    self.unit(place, graph, &unit, &mut sources)?;
                } else {
                    later.push(unit);
                }
            }
            if later.len() == before {
                // Two groups that wait for each other are drawn operation by operation.
                let single = |unit: Unit| -> Vec<Unit> {
                    if unit.run.is_some() {
                        return vec![unit];
                    }
                    unit.nodes.into_iter().map(|n| Unit::of(vec![n])).collect()
                };
                later = later.into_iter().flat_map(single).collect();
                if later.len() == before {
                    break;
                }
            }
            waiting = later;
        }
        Ok(graph.outputs().iter().map(|o| sources.get(&o.value).copied().flatten()).collect())
    }

    fn unit(
        &mut self,
        place: &Place,
        graph: &'s Graph,
        unit: &Unit,
        sources: &mut HashMap<ValueId, Option<Source>>,
    ) -> Result<(), TooLarge> {
        let first = unit.nodes[0];
        if let Some(pattern) = &unit.run {
            return self.run(place, graph, (&unit.nodes, pattern), sources);
        }
        if let ([node], Some(Core::Reshape)) = (&unit.nodes[..], graph.op(first).as_core())
            && self.subject.stage != "graph"
        {
            let from = graph.operands(*node).first().and_then(|v| sources.get(v).copied().flatten());
            sources.insert(ValueId { node: *node, port: 0 }, from);
            return Ok(());
        }
        let mut reads = Vec::new();
        for value in unit.reads(graph) {
            if let Some((atom, port)) = sources.get(&value).copied().flatten() {
                reads.push((atom, port, graph.ty(value).text(&self.subject.program.axes)));
            }
        }
        let atom = self.add(place, graph, &unit.nodes, reads)?;
        for (port, value) in unit.results(graph).into_iter().enumerate() {
            sources.insert(value, Some((atom, port)));
        }
        Ok(())
    }

    /// Equal layers, once.
    fn run(
        &mut self,
        place: &Place,
        graph: &'s Graph,
        (nodes, pattern): (&[NodeId], &Pattern),
        sources: &mut HashMap<ValueId, Option<Source>>,
    ) -> Result<(), TooLarge> {
        let calls: Vec<(usize, String)> = nodes.iter().filter_map(|n| call(graph, *n)).collect();
        let period = pattern.period();
        let times = nodes.len() / period;
        // The same layer may be applied again: then it has its weights once.
        let instances = |calls: &mut dyn Iterator<Item = &(usize, String)>| {
            calls.map(|(_, at)| at.clone()).collect::<BTreeSet<_>>().len() as u64
        };
        let mut modules = place.modules.clone();
        let outer = parent(&calls[0].1);
        let mut at = place.at.clone();
        let components: Vec<&str> = outer.split('.').filter(|c| !c.is_empty()).collect();
        for (i, component) in components.iter().enumerate() {
            at = join(&at, component);
            // The innermost is the list of layers itself: a frame of its own for each run.
            let is_list = i + 1 == components.len() && (times > 1 || period > 1);
            let repeat = is_list.then(|| Repeat {
                times: times as u64,
                instances: instances(&mut calls.iter().step_by(period)),
                which: which(&calls),
            });
            let slices = if is_list { pattern.slices.clone() } else { String::new() };
            modules.push(Module { repeat, slices, ..Module::new(*component, &at) });
        }
        for (first, alike) in pattern.groups() {
            let (index, path) = &calls[first];
            let mut modules = modules.clone();
            if period > 1 || times == 1 {
                let each: Vec<_> = calls.chunks(period).flat_map(|c| c[first..first + alike].to_vec()).collect();
                let name = if each.len() > 1 { which(&each) } else { last_component(path).to_owned() };
                let repeat = (alike > 1).then(|| Repeat {
                    times: alike as u64,
                    instances: instances(&mut calls[first..first + alike].iter()),
                    which: name.clone(),
                });
                let slices = if times == 1 { pattern.slices.clone() } else { String::new() };
                modules.push(Module { repeat, slices, ..Module::new(name, join(&place.at, path)) });
            } else if let Some(list) = modules.last_mut() {
                list.path = join(&place.at, path);
            }
            let operands = graph.operands(nodes[first]);
            let inputs = operands.into_iter().map(|v| source(graph, nodes[first], v, sources)).collect();
            let inner = Place { graph: *index, at: join(&place.at, path), modules };
            let results = self.graph(&inner, inputs)?;
            for later in nodes.chunks(period).flat_map(|c| &c[first..first + alike]) {
                for (port, source) in results.iter().enumerate() {
                    sources.insert(ValueId { node: *later, port }, *source);
                }
            }
        }
        Ok(())
    }

    /// Adds an atom of one node, or of several that a module does in one go.
    fn add(
        &mut self,
        place: &Place,
        graph: &'s Graph,
        nodes: &[NodeId],
        reads: Vec<(usize, usize, String)>,
    ) -> Result<usize, TooLarge> {
        if self.atoms.len() >= MAX_ATOMS {
            return Err(TooLarge);
        }
        let axes = &self.subject.program.axes;
        let last = *nodes.last().expect("an atom has a node");
        let mut node = describe::node(graph, last, axes);
        if nodes.len() > 1 {
            self.equation((graph, &place.at), nodes, &mut node, &reads);
        }
        let operands: Vec<ValueId> = nodes.iter().flat_map(|n| graph.operands(*n)).collect();
        for (path, ty) in describe::weights(graph, &operands) {
            let elements = ty.dims.iter().filter_map(|d| d.fixed()).fold(1, u64::saturating_mul);
            node.weights.push(Weight {
                shared: path.starts_with('/'),
                path: join(&place.at, &path),
                ty: ty.text(axes),
                elements,
                bytes: cost::token_bytes(&ty),
            });
        }
        for (name, value) in &mut node.facts {
            if name == "cache" {
                *value = join(&place.at, value);
            }
        }
        let origin = graph.origin(last);
        node.equation = origin.span.and_then(|span| {
            let sources = self.subject.sources?;
            let (line, _) = sources.line_column(span);
            let name = &sources.get(span.source)?.name;
            let text: Vec<&str> = sources.text(span).lines().map(str::trim).collect();
            Some((format!("{name}:{line}"), text.join(" ")))
        });
        let mut modules = place.modules.clone();
        let mut at = place.at.clone();
        // What selects tokens belongs to the model, not to the layer whose result it takes.
        let own = if matches!(graph.op(last).as_core(), Some(Core::SelectRows)) { "" } else { &origin.path };
        for component in components(own).filter(|c| !c.is_empty()) {
            at = join(&at, component);
            modules.push(Module::new(component, &at));
        }
        node.path = at;
        self.atoms.push(Atom { node, modules, reads });
        Ok(self.atoms.len() - 1)
    }

    /// What several nodes are together.
    fn equation(
        &self,
        (graph, at): (&Graph, &str),
        nodes: &[NodeId],
        node: &mut Node,
        reads: &[(usize, usize, String)],
    ) {
        let unit = Unit::of(nodes.to_vec());
        let mut names = HashMap::new();
        let drawn: Vec<ValueId> = unit.reads(graph).into_iter().filter(|v| !is_constant(graph, v.node)).collect();
        for (value, (atom, ..)) in drawn.iter().zip(reads) {
            let from = &self.atoms[*atom].node;
            let own = join(at, &graph.origin(nodes[0]).path);
            let inside = if own.is_empty() { Some(from.path.as_str()) } else { from.path.strip_prefix(&own) };
            let inside = inside.filter(|rest| own.is_empty() || rest.is_empty() || rest.starts_with('.'));
            let inside = inside.map(|rest| components(rest.trim_start_matches('.')).next().unwrap_or_default());
            let name = match (graph.op(value.node).as_core(), inside) {
                (Some(Core::Arg { index }), _) => graph.params().get(*index).map(|p| p.name.clone()),
                // What the module itself made has no name; what lies in it is called after the part that it lies in.
                (_, Some("")) => None,
                (_, Some(part)) => Some(part.to_owned()),
                (_, None) => Some(last_component(&from.path).to_owned()),
            };
            let name = name.filter(|n| !names.values().any(|m| m == n));
            names.insert(*value, name.unwrap_or_else(|| char::from(b'a' + (names.len() % 26) as u8).to_string()));
        }
        let results = unit.results(graph);
        let formula = match &results[..] {
            [one] => formula::of(graph, *one, &names).filter(|f| f.len() <= 64),
            _ => None,
        };
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for n in nodes {
            *counts.entry(graph.op(*n).name()).or_default() += 1;
        }
        let list: Vec<String> =
            counts.iter().map(|(name, n)| if *n == 1 { (*name).to_owned() } else { format!("{n} {name}") }).collect();
        let product = nodes.iter().find(|n| matches!(graph.op(**n).as_core(), Some(Core::Contract { .. })));
        node.shape = Shape::Card;
        node.kind = if product.is_some() { Kind::Product } else { Kind::Rows };
        node.lines.clear();
        match formula {
            _ if product.is_some() => {
                node.title = list.join(", ");
                node.lines = product.map(|n| describe::sizes(graph, *n)).into_iter().flatten().collect();
            }
            Some(formula) => {
                if let ([Core::Binary(f)], true) = (&arithmetic(graph, nodes)[..], reads.len() == 2)
                    && let Some(sign) = describe::sign(*f)
                {
                    (node.title, node.shape) = (sign.to_owned(), Shape::Sign);
                    node.facts.push(("formula".into(), formula));
                    return self.total(graph, nodes, &results, node);
                }
                node.title = formula;
                node.facts.push(("operations".into(), list.join(", ")));
            }
            None => {
                node.title = "elementwise".into();
                node.lines = vec![list.join(", ")];
            }
        }
        self.total(graph, nodes, &results, node);
    }

    fn total(&self, graph: &Graph, nodes: &[NodeId], results: &[ValueId], node: &mut Node) {
        node.results = results.iter().map(|v| graph.ty(*v).text(&self.subject.program.axes)).collect();
        node.result_bytes = results.iter().map(|v| cost::token_bytes(graph.ty(*v))).fold(0, u64::saturating_add);
        node.cost = nodes.iter().fold(Default::default(), |sum, n| cost::of(graph, *n).plus(sum, 1.0));
    }
}

/// Where a value comes from that a call reads. Slices of which each layer reads one are drawn as one wire, that of the first.
fn source(graph: &Graph, reader: NodeId, value: ValueId, sources: &HashMap<ValueId, Option<Source>>) -> Option<Source> {
    let of = |v: &ValueId| sources.get(v).copied().flatten();
    let own = of(&value)?;
    let Some((all, _)) = slice_of_many(graph, reader, value) else { return Some(own) };
    all.iter().filter_map(of).filter(|(atom, _)| *atom == own.0).min()
}

/// The operations among nodes that are no views.
fn arithmetic<'g>(graph: &'g Graph, nodes: &[NodeId]) -> Vec<&'g Core> {
    let cores = nodes.iter().filter_map(|n| graph.op(*n).as_core());
    cores.filter(|op| !matches!(op, Core::Reshape | Core::Cast)).collect()
}

/// `0-31`, `0, 2, .. 30`, `0-4, 6-10, .. 24-28`, `3`.
fn which(calls: &[(usize, String)]) -> String {
    let mut names: Vec<&str> = Vec::new();
    for (_, at) in calls {
        let name = last_component(at);
        // One that is applied again is named once.
        if !names.contains(&name) {
            names.push(name);
        }
    }
    let Some(numbers) = names.iter().map(|n| n.parse().ok()).collect::<Option<Vec<u64>>>() else {
        return match &names[..] {
            [one] => (*one).to_owned(),
            names => format!("{} .. {}", names.first().unwrap_or(&""), names.last().unwrap_or(&"")),
        };
    };
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    for n in numbers {
        match ranges.last_mut() {
            Some((_, last)) if n == *last + 1 => *last = n,
            _ => ranges.push((n, n)),
        }
    }
    let shown = |(a, b): &(u64, u64)| if a == b { a.to_string() } else { format!("{a}-{b}") };
    match &ranges[..] {
        [first, second, .., last] if ranges.len() > 3 => {
            format!("{}, {}, .. {}", shown(first), shown(second), shown(last))
        }
        all => all.iter().map(shown).collect::<Vec<_>>().join(", "),
    }
}
