//! What every graph must be, checked after the front end and after every pass.
//!
//! - operands are numbered without gaps and name results that exist; there are no cycles;
//! - parameters are the `arg` nodes, in order; names of parameters, outputs, inputs and axes are distinct;
//! - every result has the type that the [shape rule](crate::ops::shape) gives, or the decomposition of a fused operation, whose bodies hold too;
//! - calls go to later graphs and match their parameters and outputs; inputs match the parameters of graph 0;
//! - weights of one absolute path have one type, a stack as many elements as its range, and one cache has one writer;
//! - nothing inside a fused operation names a path.
//!
//! All violations are collected. [`Verified`] is the proof that later stages ask for.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::ops::Deref;

use petgraph::Direction;
use petgraph::visit::EdgeRef;
use thiserror::Error;

use super::path::{MAX_INSTANCES, Stack, instances, join, parameters};
use super::{Dim, Graph, NodeId, Program, Type, ValueId};
use crate::ops::core::scan;
use crate::ops::shape::result_type;
use crate::ops::{Core, Op};

/// A program that [`verify`] found nothing wrong with.
#[derive(Clone, Copy, Debug)]
pub struct Verified<'p>(&'p Program);

impl Deref for Verified<'_> {
    type Target = Program;

    fn deref(&self) -> &Program {
        self.0
    }
}

impl<'p> Verified<'p> {
    /// The program, for as long as it is borrowed.
    pub fn program(self) -> &'p Program {
        self.0
    }
}

/// Something that must not be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Which graph: `graph 1 "layer"`, with `, linear epilogue` for a body of a fused operation.
    pub graph: String,
    /// The node, as the text form shows its operation and results.
    pub node: Option<String>,
    /// What is wrong.
    pub message: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.node {
            Some(node) => write!(f, "{}: {node}: {}", self.graph, self.message),
            None => write!(f, "{}: {}", self.graph, self.message),
        }
    }
}

/// Everything that is wrong with a program.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{}", .0.iter().map(Violation::to_string).collect::<Vec<_>>().join("\n"))]
pub struct Violations(pub Vec<Violation>);

/// Checks a program.
///
/// # Errors
/// All violations, in the order of the graphs and nodes.
pub fn verify(program: &Program) -> Result<Verified<'_>, Violations> {
    let mut v = Verifier { program, found: Vec::new() };
    for (index, graph) in program.graphs.iter().enumerate() {
        let name = format!("graph {index} \"{}\"", graph.name);
        v.graph(graph, &name, Some(index), 0);
    }
    v.inputs();
    if v.found.is_empty() {
        v.paths();
    }
    if v.found.is_empty() { Ok(Verified(program)) } else { Err(Violations(v.found)) }
}

struct Verifier<'p> {
    program: &'p Program,
    found: Vec<Violation>,
}

impl Verifier<'_> {
    fn report(&mut self, graph: &str, node: Option<String>, message: impl Into<String>) {
        self.found.push(Violation { graph: graph.to_string(), node, message: message.into() });
    }

    fn distinct<'n>(&mut self, graph: &str, what: &str, names: impl Iterator<Item = &'n String>) {
        let mut seen = HashSet::new();
        for name in names {
            if !seen.insert(name) {
                self.report(graph, None, format!("two {what} are named '{name}'"));
            }
        }
    }

    /// `index` is the graph's place in the program; a body of a fused operation has none.
    fn graph(&mut self, graph: &Graph, name: &str, index: Option<usize>, depth: usize) {
        self.distinct(name, "parameters", graph.params.iter().map(|p| &p.name));
        self.distinct(name, "outputs", graph.outputs.iter().map(|o| &o.name));
        let exists = |v: ValueId| graph.nodes.node_weight(v.node.0).is_some_and(|n| v.port < n.types.len());
        for (i, param) in graph.params.iter().enumerate() {
            if !exists(param.value) || graph.op(param.value.node).as_core() != Some(&Core::Arg { index: i }) {
                self.report(name, None, format!("parameter {i} '{}' is not argument {i}", param.name));
            }
        }
        for output in &graph.outputs {
            if !exists(output.value) {
                self.report(name, None, format!("output '{}' does not exist", output.name));
            }
        }
        if graph.topological().len() != graph.len() {
            self.report(name, None, "there is a cycle");
        }
        for node in graph.nodes() {
            if self.edges(graph, name, node) {
                self.node(graph, name, node, index, depth);
            }
        }
    }

    /// Whether the operands of `node` are numbered without gaps and exist.
    fn edges(&mut self, graph: &Graph, name: &str, node: NodeId) -> bool {
        let mut numbers = Vec::new();
        let mut ok = true;
        for edge in graph.nodes.edges_directed(node.0, Direction::Incoming) {
            numbers.push(edge.weight().operand);
            if edge.weight().result >= graph.nodes[edge.source()].types.len() {
                self.report(name, Some(show(graph, node, self.program)), "an operand is a result that does not exist");
                ok = false;
            }
        }
        numbers.sort_unstable();
        if numbers != (0..numbers.len()).collect::<Vec<_>>() {
            self.report(name, Some(show(graph, node, self.program)), format!("operands are numbered {numbers:?}"));
            ok = false;
        }
        ok
    }

    /// What an operation from one axis to another says of their numbers of elements.
    fn extents(&self, op: &Core, operands: &[Type], stated: &Type) -> Result<(), String> {
        let elements = |ty: &Type| {
            ty.dims.iter().try_fold(1u64, |n, d| match d {
                Dim::Fixed(size) => n.checked_mul(*size),
                Dim::Axis(a) => n.checked_mul(self.program.extent(*a)?),
                Dim::Visible(_) | Dim::Rows(_) => None,
            })
        };
        let one = |ty: &Type| matches!(ty.dims.first(), Some(Dim::Axis(a)) if self.program.extent(*a) == Some(1));
        match op {
            Core::Regroup if elements(&operands[0]).is_none() || elements(&operands[0]) != elements(stated) => {
                let axes = &self.program.axes;
                Err(format!("{} has not the elements of {}", operands[0].text(axes), stated.text(axes)))
            }
            Core::First | Core::Last if !one(stated) => Err("the result is not one a sequence".into()),
            _ => Ok(()),
        }
    }

    /// Whether the graphs that belong to an operation hold.
    fn bodies(&mut self, graph: &Graph, name: &str, node: NodeId, depth: usize) -> bool {
        let op = graph.op(node);
        let before = self.found.len();
        for (key, body) in op.bodies() {
            if depth > 4 {
                self.report(name, Some(show(graph, node, self.program)), "graphs nest too deep");
                return false;
            }
            self.graph(body, &format!("{name}, {} {key}", op.name()), None, depth + 1);
        }
        self.found.len() == before
    }

    fn node(&mut self, graph: &Graph, name: &str, node: NodeId, index: Option<usize>, depth: usize) {
        let stated = graph.types(node);
        let operands: Vec<Type> = graph.operands(node).iter().map(|v| graph.ty(*v).clone()).collect();
        let at = || Some(show(graph, node, self.program));
        let axes = self.program.axes.len();
        let unknown = stated.iter().flat_map(|t| &t.dims).any(|d| match d {
            Dim::Fixed(n) => *n == 0,
            Dim::Axis(a) | Dim::Visible(a) | Dim::Rows(a) => a.0 >= axes,
        });
        if unknown {
            self.report(name, at(), "a dimension is empty, or of an axis that is not declared");
            return;
        }
        let expected = match graph.op(node) {
            Op::Core(Core::Arg { index: i }) => {
                if graph.params.get(*i).is_none_or(|p| p.value.node != node) {
                    self.report(name, at(), format!("argument {i} is not a parameter"));
                }
                return;
            }
            Op::Core(Core::Call { graph: callee, .. }) => match (index, self.program.graphs.get(*callee)) {
                (Some(index), Some(body)) if *callee > index => {
                    let params: Vec<_> = body.params.iter().map(|p| body.ty(p.value).clone()).collect();
                    if params != operands {
                        let message = format!(
                            "takes {}, not {}",
                            list(&params, &self.program.axes),
                            list(&operands, &self.program.axes)
                        );
                        self.report(name, at(), message);
                    }
                    Ok(body.outputs.iter().map(|o| body.ty(o.value).clone()).collect::<Vec<_>>())
                }
                _ => Err(format!("graph {callee} cannot be called from here")),
            },
            Op::Core(op) => {
                let names_a_path = matches!(
                    op,
                    Core::Weight { .. }
                        | Core::Cache { .. }
                        | Core::Scan { .. }
                        | Core::SelectRows
                        | Core::Regroup
                        | Core::First
                        | Core::Last
                );
                if index.is_none() && names_a_path {
                    self.report(name, at(), "belongs outside a fused operation and a step");
                }
                if !self.bodies(graph, name, node, depth) {
                    return;
                }
                match (op, stated) {
                    (Core::Scan { states, step, .. }, _) => scan::results(*states, step, &operands).map_err(|e| e.0),

                    (_, [one]) => result_type(op, &operands, one)
                        .map_err(|e| e.0)
                        .and_then(|t| self.extents(op, &operands, one).map(|()| vec![t])),
                    _ => Err(format!("has {} results", stated.len())),
                }
            }
            Op::Fused(op) => {
                if !self.bodies(graph, name, node, depth) {
                    return;
                }
                match op.decompose(&operands) {
                    Ok(meaning) => Ok(meaning.outputs.iter().map(|o| meaning.ty(o.value).clone()).collect()),
                    Err(e) => Err(e.0),
                }
            }
        };
        match expected {
            Err(message) => self.report(name, at(), message),
            Ok(expected) if expected != stated => {
                let message = format!("gives {}", list(&expected, &self.program.axes));
                self.report(name, at(), message);
            }
            Ok(_) => {}
        }
    }

    fn inputs(&mut self) {
        let program = self.program;
        if program.extents.len() > program.axes.len() || program.extents.contains(&Some(0)) {
            self.report(
                "program",
                None,
                "an axis that is not declared, or of which a sequence has none, has a known size",
            );
        }
        self.distinct("program", "axes", program.axes.iter());
        let Some(main) = program.graphs.first() else {
            self.report("program", None, "there is no graph");
            return;
        };
        let params: Vec<_> = main
            .params
            .iter()
            .map(|p| (&p.name, main.nodes.node_weight(p.value.node.0).map(|n| &n.types[..])))
            .collect();
        let inputs: Vec<_> = program.inputs.iter().map(|i| (&i.name, Some(std::slice::from_ref(&i.ty)))).collect();
        if params != inputs {
            self.report("program", None, "the inputs are not the parameters of graph 0");
        }
    }

    fn paths(&mut self) {
        let Some(instances) = instances(self.program) else {
            self.report("program", None, format!("there are more than {MAX_INSTANCES} calls"));
            return;
        };
        let mut weights: BTreeMap<String, &Type> = BTreeMap::new();
        let mut shapes: BTreeMap<String, &[Dim]> = BTreeMap::new();
        let mut caches: HashSet<String> = HashSet::new();
        for instance in instances {
            let graph = &self.program.graphs[instance.graph];
            for node in graph.nodes() {
                match graph.op(node).as_core() {
                    Some(Core::Weight { path }) => {
                        let path = join(&instance.at, path);
                        let ty = &graph.types(node)[0];
                        let wrong = match weights.get(&path) {
                            Some(first) => (*first != ty).then(|| format!("weight '{path}' is {first} and {ty}")),
                            None => misshapen(&path, ty, &mut shapes),
                        };
                        weights.entry(path).or_insert(ty);
                        if let Some(message) = wrong {
                            self.report("program", Some(show(graph, node, self.program)), message);
                        }
                    }
                    Some(Core::Cache { path } | Core::Scan { path, .. }) => {
                        let path = join(&instance.at, path);
                        if !caches.insert(path.clone()) {
                            let message = format!("cache '{path}' is written twice");
                            self.report("program", Some(show(graph, node, self.program)), message);
                        }
                    }
                    _ => {}
                }
            }
        }
    }
}

/// What is wrong with a weight of this type, alone or a stack, given the dimensions of the parameters of others, to which its own are added.
fn misshapen<'t>(path: &str, ty: &'t Type, known: &mut BTreeMap<String, &'t [Dim]>) -> Option<String> {
    let own = match (Stack::of(path), &ty.dims[..]) {
        (Err(wrong), _) => return Some(wrong),
        (Ok(None), own) => own,
        (Ok(Some(stack)), [Dim::Fixed(n), own @ ..]) if *n == stack.end - stack.first => own,
        (Ok(Some(stack)), _) => return Some(format!("a stack of {} parameters is {ty}", stack.end - stack.first)),
    };
    parameters(path).into_iter().find_map(|path| {
        let other = *known.entry(path.clone()).or_insert(own);
        (other != own).then(|| format!("parameter '{path}' is {} and {}", Type::show(other), Type::show(own)))
    })
}

fn list(types: &[Type], axes: &[String]) -> String {
    let types: Vec<_> = types.iter().map(|t| t.text(axes)).collect();
    format!("({})", types.join(", "))
}

/// A node for people: its operation, attributes and types.
fn show(graph: &Graph, node: NodeId, program: &Program) -> String {
    let op = graph.op(node);
    let attributes: Vec<_> = op.attributes().iter().map(|(k, v)| format!("{k} = {v}")).collect();
    let mut text = op.name().to_string();
    if !attributes.is_empty() {
        let attributes = attributes.join(", ");
        let cut = attributes.char_indices().nth(80).map_or(attributes.len(), |(i, _)| i);
        text += &format!(" {{{}}}", &attributes[..cut]);
    }
    let operands: Vec<_> = graph
        .operands(node)
        .iter()
        .filter_map(|v| graph.types(v.node).get(v.port).map(|t| t.text(&program.axes)))
        .collect();
    let types: Vec<_> = graph.types(node).iter().map(|t| t.text(&program.axes)).collect();
    let path = &graph.origin(node).path;
    let from = if path.is_empty() { String::new() } else { format!(" at {path}") };
    format!("{text} ({}) -> {}{from}", operands.join(", "), types.join(", "))
}
