//! The graphs under construction: a stack, the model below and the bodies being expanded above it.
//!
//! A tensor of a lower graph that is used in a higher one becomes a further parameter of each graph between. A finished body equal to an
//! earlier one is dropped: both are one graph, called twice.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use super::value::{Axis, Tensor, dims};
use crate::diagnostic::Span;
use crate::graph::called::name_params;
use crate::graph::{DType, Graph, Label, LabelKind, NodeId, Origin, Type, ValueId};
use crate::ops::{Core, Op};

/// Begins the names of parameters that stand for what a body captures, until the program is whole.
const CAPTURED: &str = "captured";

/// A graph under construction.
pub(super) struct Builder {
    pub(super) id: usize,
    pub(super) graph: Graph,
    /// Absolute path that weights and caches inside are relative to.
    pub(super) base: String,
    /// Tensors of the graph below, each with the parameter that stands for it here.
    captures: Vec<(Tensor, ValueId)>,
    /// Nodes by what they compute: the same operation on the same operands is one node.
    memo: HashMap<String, ValueId>,
}

/// The stack, and what is finished.
#[derive(Default)]
pub(super) struct Builders {
    pub(super) stack: Vec<Builder>,
    /// Distinct bodies, in the order they were finished.
    pub(super) bodies: Vec<Graph>,
    /// The bodies by fingerprint: equal ones are of one entry.
    alike: HashMap<u64, Vec<usize>>,
    next: usize,
}

impl Builders {
    /// Begins a graph.
    pub(super) fn push(&mut self, name: &str, base: &str) {
        let id = self.next;
        self.next += 1;
        self.stack.push(Builder {
            id,
            graph: Graph::new(name),
            base: base.to_string(),
            captures: Vec::new(),
            memo: HashMap::new(),
        });
    }

    /// The graph being built.
    pub(super) fn top(&mut self) -> &mut Builder {
        self.stack.last_mut().expect("expansion begins by pushing the model's graph")
    }

    /// An absolute path as the top graph says it.
    pub(super) fn relative(&mut self, path: &str) -> String {
        let base = &self.top().base;
        if base.is_empty() {
            return path.to_string();
        }
        match path.strip_prefix(base.as_str()).and_then(|rest| rest.strip_prefix('.')) {
            Some(rest) => rest.to_string(),
            None => format!("/{path}"),
        }
    }

    /// A parameter of the top graph as a tensor.
    pub(super) fn parameter(&mut self, name: &str, dtype: DType, axes: Vec<Axis>) -> Tensor {
        let top = self.top();
        let value = top.graph.add_param(name, Type::new(dtype, dims(&axes)));
        Tensor::new(top.id, value, dtype, axes)
    }

    /// The tensor's value in the top graph; `None` for a tensor of a graph that is finished.
    pub(super) fn here(&mut self, tensor: &Tensor) -> Option<ValueId> {
        let level = self.stack.iter().rposition(|b| b.id == tensor.graph)?;
        let mut current = tensor.clone();
        for builder in &mut self.stack[level + 1..] {
            let known = builder
                .captures
                .iter()
                .find(|(t, _)| t.graph == current.graph && t.value == current.value)
                .map(|(_, v)| *v);
            let value = known.unwrap_or_else(|| {
                // Equal bodies are one whatever they capture; see `program`.
                let name = format!("{CAPTURED}{}", builder.captures.len());
                let value = builder.graph.add_param(name, current.ty());
                builder.captures.push((current.clone(), value));
                value
            });
            current = Tensor { graph: builder.id, value, ..current };
        }
        Some(current.value)
    }

    /// Adds an operation to the top graph, or finds it there.
    pub(super) fn emit(
        &mut self,
        op: Core,
        operands: &[ValueId],
        dtype: DType,
        axes: Vec<Axis>,
        origin: Origin,
    ) -> Tensor {
        let ty = Type::new(dtype, dims(&axes));
        let top = self.top();
        // A reshape of a reshape is one, and one to the same shape is none.
        let mut operands = operands.to_vec();
        if op == Core::Reshape {
            if let Some(Core::Reshape) = top.graph.op(operands[0].node).as_core() {
                operands = top.graph.operands(operands[0].node);
            }
            if *top.graph.ty(operands[0]) == ty {
                return Tensor::new(top.id, operands[0], dtype, axes);
            }
        }
        let key = format!("{op:?} {operands:?} {ty:?}");
        let value = match top.memo.get(&key) {
            Some(value) => *value,
            None => {
                let value = top.graph.add(op, &operands, ty, origin);
                top.memo.insert(key, value);
                value
            }
        };
        Tensor::new(top.id, value, dtype, axes)
    }

    /// Names a tensor that the top graph computes after an absolute path. A body's own result is named by its caller.
    pub(super) fn label(&mut self, path: &str, kind: LabelKind, tensor: &Tensor, span: Span) {
        if path == self.top().base {
            return;
        }
        let path = self.relative(path);
        let top = self.top();
        let is_param = top.graph.params().iter().any(|p| p.value == tensor.value);
        let known = top.graph.labels().iter().any(|l| l.path == path && l.value == tensor.value);
        if tensor.graph == top.id && !is_param && !known {
            top.graph.add_label(Label { path, value: tensor.value, span: Some(span), kind });
        }
    }

    /// Takes the top graph off, with the captured tensors of the graph below: their parameters come behind all others.
    pub(super) fn take(&mut self) -> (Graph, Vec<Tensor>) {
        let builder = self.stack.pop().expect("a graph was pushed before");
        (builder.graph, builder.captures.into_iter().map(|(t, _)| t).collect())
    }

    /// Ends the top graph, a body with the given results. Gives the index of the body and the captured tensors of the graph below.
    pub(super) fn finish(&mut self, outputs: &[ValueId]) -> (usize, Vec<Tensor>) {
        let mut builder = self.stack.pop().expect("a body was pushed before");
        for (i, output) in outputs.iter().enumerate() {
            builder.graph.add_output(format!("result{i}"), *output);
        }
        sweep(&mut builder.graph);
        let captures = builder.captures.into_iter().map(|(t, _)| t).collect();
        let alike = self.alike.entry(fingerprint(&builder.graph)).or_default();
        let index = match alike.iter().copied().find(|b| equal(&self.bodies[*b], &builder.graph)) {
            Some(index) => index,
            None => {
                self.bodies.push(builder.graph);
                alike.push(self.bodies.len() - 1);
                self.bodies.len() - 1
            }
        };
        (index, captures)
    }

    /// Ends the model's graph: all graphs, numbered so that a graph calls only later ones.
    pub(super) fn program(mut self) -> Vec<Graph> {
        let mut main = self.stack.pop().expect("the model's graph is the first pushed").graph;
        sweep(&mut main);
        let mut order = Vec::new();
        let mut seen = vec![false; self.bodies.len()];
        visit(&main, &self.bodies, &mut seen, &mut order);
        order.reverse();
        let mut numbers = vec![0; self.bodies.len()];
        for (i, body) in order.iter().enumerate() {
            numbers[*body] = i + 1;
        }
        let mut graphs = vec![main];
        graphs.extend(order.iter().map(|&body| self.bodies[body].clone()));
        for graph in &mut graphs {
            for node in graph.nodes().collect::<Vec<_>>() {
                if let Op::Core(Core::Call { graph: body, at }) = graph.op(node) {
                    let call = Core::Call { graph: numbers[*body], at: at.clone() };
                    graph.set_op(node, call);
                }
            }
        }
        // A body is known, and people read what it captures by name.
        name_params(&mut graphs, CAPTURED);
        graphs
    }
}

/// Bodies in post-order, callees of a graph from its last call to its first.
fn visit(graph: &Graph, bodies: &[Graph], seen: &mut [bool], order: &mut Vec<usize>) {
    for node in graph.nodes().collect::<Vec<_>>().into_iter().rev() {
        if let Some(Core::Call { graph: body, .. }) = graph.op(node).as_core()
            && !std::mem::replace(&mut seen[*body], true)
        {
            visit(&bodies[*body], bodies, seen, order);
            order.push(*body);
        }
    }
}

/// Removes what no output needs. Operands were added before their users, so one pass from the end is enough.
fn sweep(graph: &mut Graph) {
    for node in graph.nodes().collect::<Vec<_>>().into_iter().rev() {
        let is_param = matches!(graph.op(node).as_core(), Some(Core::Arg { .. }));
        let value = |port| ValueId { node, port };
        let used = (0..graph.types(node).len())
            .any(|port| !graph.uses(value(port)).is_empty() || graph.is_output(value(port)));
        if !is_param && !used {
            graph.remove(node);
        }
    }
}

/// A number that equal bodies share and few others do.
fn fingerprint(graph: &Graph) -> u64 {
    let mut hasher = DefaultHasher::new();
    graph.name.hash(&mut hasher);
    for node in graph.nodes() {
        format!("{:?} {:?}", graph.op(node).as_core(), graph.operands(node)).hash(&mut hasher);
        graph.types(node).hash(&mut hasher);
    }
    hasher.finish()
}

/// Whether two bodies are the same node for node. Equal wiring is expanded in equal order, so equal bodies have equal ids.
fn equal(a: &Graph, b: &Graph) -> bool {
    let node = |g: &Graph, n: NodeId| (g.types(n).to_vec(), g.operands(n));
    a.len() == b.len()
        && a.name == b.name
        && a.params() == b.params()
        && a.outputs() == b.outputs()
        && a.nodes()
            .zip(b.nodes())
            .all(|(x, y)| x == y && a.op(x).as_core() == b.op(y).as_core() && node(a, x) == node(b, y))
}
