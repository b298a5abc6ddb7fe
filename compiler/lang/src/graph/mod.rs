//! The graph: typed operations over symbolic dimensions, one graph a distinct body.
//!
//! A [`Program`] is a list of graphs. Graph 0 is the model; the others are bodies that it calls, one for each
//! *distinct* layer: 126 equal layers are one graph and 126 `call`s, and every stage after this one does its work once per body.
//! Paths of weights and caches in a body are relative to the instance path of the call.
//!
//! petgraph holds the nodes and edges; nothing outside this file names it. Edges carry ports: `{result, operand}`.

pub mod blocks;
pub mod build;
pub mod called;
pub mod e4m3;
pub mod named;
pub mod parse;
pub mod path;
pub mod print;
pub mod verify;

use std::fmt;

use petgraph::Direction;
use petgraph::stable_graph::{NodeIndex, StableDiGraph};
use petgraph::visit::EdgeRef;

use self::blocks::Blocks;
use crate::diagnostic::Span;
use crate::ops::Op;

/// Element type of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[expect(missing_docs, reason = "each is the type it is named after")]
pub enum DType {
    F32,
    F16,
    BF16,
    I64,
    I32,
    Bool,
    Blocks(Blocks),
}

/// A named ragged axis of the program's inputs (`tokens`, `source`), by index into [`Program::axes`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AxisId(pub usize);

/// The size of one dimension of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Dim {
    /// Known when compiling.
    Fixed(u64),
    /// Elements of the axis that this step adds.
    Axis(AxisId),
    /// Everything kept of the axis, this step's elements included.
    Visible(AxisId),
    /// The elements of the axis whose outputs were asked for.
    Rows(AxisId),
}

/// The type of a value.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Type {
    /// Element type.
    pub dtype: DType,
    /// Dimensions, outermost first.
    pub dims: Vec<Dim>,
}

impl Type {
    /// A type of `dtype` with `dims`.
    pub fn new(dtype: DType, dims: impl Into<Vec<Dim>>) -> Self {
        Type { dtype, dims: dims.into() }
    }

    /// A rank-0 type.
    pub fn scalar(dtype: DType) -> Self {
        Type { dtype, dims: Vec::new() }
    }
}

/// A node of a graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(NodeIndex);

/// Result `port` of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ValueId {
    /// The node that defines it.
    pub node: NodeId,
    /// Which of the node's results.
    pub port: usize,
}

/// Where a node came from: kept beside the graph, never part of its meaning or its text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// Instance path, relative to the body: `self_attn`.
    pub path: String,
    /// The equation.
    pub span: Option<Span>,
}

/// What people call a value: kept beside the graph as its origin is. Passes that replace a value pass its labels on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Label {
    /// Path of the instance whose result it is, or of a name bound in its body, relative to the body: `self_attn.q_proj`.
    pub path: String,
    /// The value.
    pub value: ValueId,
    /// The equation that gives it this name.
    pub span: Option<Span>,
    /// What the path is of.
    pub kind: LabelKind,
}

/// What gives a value its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LabelKind {
    /// An instance, whose result it is.
    Instance,
    /// A binding in a body.
    Binding,
}

#[derive(Clone, Debug)]
struct Node {
    op: Op,
    types: Vec<Type>,
    origin: Origin,
}

#[derive(Clone, Copy, Debug)]
struct Edge {
    result: usize,
    operand: usize,
}

/// A dataflow graph of one body.
#[derive(Clone, Debug, Default)]
pub struct Graph {
    /// For people: the definition the body came from (`layer`).
    pub name: String,
    nodes: StableDiGraph<Node, Edge>,
    params: Vec<Param>,
    outputs: Vec<Output>,
    labels: Vec<Label>,
}

/// A parameter of a graph.
#[derive(Clone, Debug, PartialEq)]
pub struct Param {
    /// Its name in the text form, and of the program's input in the main graph.
    pub name: String,
    /// The `arg` node that stands for it.
    pub value: ValueId,
}

/// A result of a graph.
#[derive(Clone, Debug, PartialEq)]
pub struct Output {
    /// Its name; of the program's output in the main graph.
    pub name: String,
    /// The value returned.
    pub value: ValueId,
}

impl Graph {
    /// An empty graph.
    pub fn new(name: impl Into<String>) -> Self {
        Graph { name: name.into(), ..Graph::default() }
    }

    /// Adds a parameter.
    pub fn add_param(&mut self, name: impl Into<String>, ty: Type) -> ValueId {
        let op = crate::ops::Core::Arg { index: self.params.len() };
        let value = self.add(op, &[], ty, Origin::default());
        self.params.push(Param { name: name.into(), value });
        value
    }

    /// Gives a parameter another name.
    pub fn rename_param(&mut self, index: usize, name: impl Into<String>) {
        if let Some(param) = self.params.get_mut(index) {
            param.name = name.into();
        }
    }

    /// Adds an output.
    pub fn add_output(&mut self, name: impl Into<String>, value: ValueId) {
        self.outputs.push(Output { name: name.into(), value });
    }

    /// Gives a value a name for people. A name that the instance's own body has for its result goes; its equation stays.
    pub fn add_label(&mut self, mut label: Label) {
        if label.kind == LabelKind::Instance {
            let own = |l: &Label| {
                let name = l.path.strip_prefix(&label.path).and_then(|rest| rest.strip_prefix('.'));
                l.kind == LabelKind::Binding && l.value == label.value && name.is_some_and(|name| !name.contains('.'))
            };
            if let Some(at) = self.labels.iter().rposition(own) {
                label.span = self.labels.remove(at).span;
            }
        }
        self.labels.push(label);
    }

    /// Adds a further result to a call whose body has got a further output.
    pub fn add_result(&mut self, node: NodeId, ty: Type) -> ValueId {
        let types = &mut self.nodes[node.0].types;
        types.push(ty);
        ValueId { node, port: types.len() - 1 }
    }

    /// Adds a node of one result.
    pub fn add(&mut self, op: impl Into<Op>, operands: &[ValueId], ty: Type, origin: Origin) -> ValueId {
        ValueId { node: self.add_node(op, operands, vec![ty], origin), port: 0 }
    }

    /// Adds a node.
    pub fn add_node(&mut self, op: impl Into<Op>, operands: &[ValueId], types: Vec<Type>, origin: Origin) -> NodeId {
        let node = self.nodes.add_node(Node { op: op.into(), types, origin });
        for (operand, value) in operands.iter().enumerate() {
            self.nodes.add_edge(value.node.0, node, Edge { result: value.port, operand });
        }
        NodeId(node)
    }

    /// The parameters in order.
    pub fn params(&self) -> &[Param] {
        &self.params
    }

    /// The outputs in order.
    pub fn outputs(&self) -> &[Output] {
        &self.outputs
    }

    /// The names of values, in the order they were given.
    pub fn labels(&self) -> &[Label] {
        &self.labels
    }

    /// The operation of a node.
    pub fn op(&self, node: NodeId) -> &Op {
        &self.nodes[node.0].op
    }

    /// The result types of a node.
    pub fn types(&self, node: NodeId) -> &[Type] {
        &self.nodes[node.0].types
    }

    /// The type of a value.
    pub fn ty(&self, value: ValueId) -> &Type {
        &self.nodes[value.node.0].types[value.port]
    }

    /// Where a node came from.
    pub fn origin(&self, node: NodeId) -> &Origin {
        &self.nodes[node.0].origin
    }

    /// The operands of a node in order.
    pub fn operands(&self, node: NodeId) -> Vec<ValueId> {
        let mut operands: Vec<_> = self
            .nodes
            .edges_directed(node.0, Direction::Incoming)
            .map(|e| (e.weight().operand, ValueId { node: NodeId(e.source()), port: e.weight().result }))
            .collect();
        operands.sort_unstable();
        operands.into_iter().map(|(_, value)| value).collect()
    }

    /// The uses of a value as `(user, operand index)`, in a fixed order. Outputs are not among them.
    pub fn uses(&self, value: ValueId) -> Vec<(NodeId, usize)> {
        let mut uses: Vec<_> = self
            .nodes
            .edges_directed(value.node.0, Direction::Outgoing)
            .filter(|e| e.weight().result == value.port)
            .map(|e| (NodeId(e.target()), e.weight().operand))
            .collect();
        uses.sort_unstable();
        uses
    }

    /// Whether a value is an output of the graph.
    pub fn is_output(&self, value: ValueId) -> bool {
        self.outputs.iter().any(|o| o.value == value)
    }

    /// Makes every use of `old`, outputs included, a use of `new`.
    pub fn replace(&mut self, old: ValueId, new: ValueId) {
        for (user, operand) in self.uses(old) {
            self.set_operand(user, operand, new);
        }
        for output in &mut self.outputs {
            if output.value == old {
                output.value = new;
            }
        }
        for label in &mut self.labels {
            if label.value == old {
                label.value = new;
            }
        }
    }

    /// Makes operand number `operand` of `node` the value `new`.
    pub fn set_operand(&mut self, node: NodeId, operand: usize, new: ValueId) {
        let old = self
            .nodes
            .edges_directed(node.0, Direction::Incoming)
            .find(|e| e.weight().operand == operand)
            .map(|e| e.id());
        if let Some(edge) = old {
            self.nodes.remove_edge(edge);
        }
        self.nodes.add_edge(new.node.0, node.0, Edge { result: new.port, operand });
    }

    /// Makes output number `index` the value `new`.
    pub fn set_output(&mut self, index: usize, new: ValueId) {
        self.outputs[index].value = new;
    }

    /// Replaces the operation of a node, whose operands and result types stay.
    pub fn set_op(&mut self, node: NodeId, op: impl Into<Op>) {
        self.nodes[node.0].op = op.into();
    }

    /// Replaces the type of a value.
    pub fn set_type(&mut self, value: ValueId, ty: Type) {
        self.nodes[value.node.0].types[value.port] = ty;
    }

    /// Removes a node that nothing uses.
    pub fn remove(&mut self, node: NodeId) {
        debug_assert!(self.nodes.edges_directed(node.0, Direction::Outgoing).next().is_none());
        self.nodes.remove_node(node.0);
        self.labels.retain(|label| label.value.node != node);
    }

    /// All nodes, in the order they were added.
    pub fn nodes(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.nodes.node_indices().map(NodeId)
    }

    /// The number of nodes.
    pub fn len(&self) -> usize {
        self.nodes.node_count()
    }

    /// Whether there is no node.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The nodes so that operands come before users; among ready nodes, the one added first comes first.
    /// Nodes on a cycle, which [`verify`] rejects, are left out.
    pub fn topological(&self) -> Vec<NodeId> {
        use std::cmp::Reverse;
        use std::collections::{BinaryHeap, HashMap};
        let mut waiting: HashMap<NodeIndex, usize> = HashMap::new();
        let mut ready = BinaryHeap::new();
        for node in self.nodes.node_indices() {
            let n = self.nodes.edges_directed(node, Direction::Incoming).count();
            if n == 0 {
                ready.push(Reverse(node));
            } else {
                waiting.insert(node, n);
            }
        }
        let mut order = Vec::with_capacity(self.len());
        while let Some(Reverse(node)) = ready.pop() {
            order.push(NodeId(node));
            for edge in self.nodes.edges_directed(node, Direction::Outgoing) {
                if let Some(n) = waiting.get_mut(&edge.target()) {
                    *n -= 1;
                    if *n == 0 {
                        ready.push(Reverse(edge.target()));
                    }
                }
            }
        }
        order
    }
}

/// What a user gives to, or gets from, a program.
#[derive(Clone, Debug, PartialEq)]
pub struct InputDecl {
    /// As in the card: `input_ids`.
    pub name: String,
    /// Its type.
    pub ty: Type,
    /// What it is when the user does not give it; `None` makes it required.
    pub default: Option<f64>,
}

/// A whole model: the main graph and the distinct bodies that it calls.
#[derive(Clone, Debug, Default)]
pub struct Program {
    /// Name of the model, for people.
    pub name: String,
    /// Names of the ragged axes.
    pub axes: Vec<String>,
    /// Elements that every sequence has of an axis, where that is known: 197 patches, 1 where there is one a sequence. Shorter than `axes`
    /// where nothing is known of the others.
    pub extents: Vec<Option<u64>>,
    /// Inputs, one per parameter of graph 0, in order.
    pub inputs: Vec<InputDecl>,
    /// Graph 0 is the model. A graph calls only later ones.
    pub graphs: Vec<Graph>,
}

impl Program {
    /// Elements that every sequence has of an axis, where that is known.
    pub fn extent(&self, axis: AxisId) -> Option<u64> {
        self.extents.get(axis.0).copied().flatten()
    }
}

impl fmt::Display for Dim {
    /// Axes by number; the text form prints their names.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Dim::Fixed(n) => write!(f, "{n}"),
            Dim::Axis(a) => write!(f, "axis{}", a.0),
            Dim::Visible(a) => write!(f, "visible(axis{})", a.0),
            Dim::Rows(a) => write!(f, "rows(axis{})", a.0),
        }
    }
}

impl Type {
    /// Dimensions as text, axes by number.
    pub fn show(dims: &[Dim]) -> String {
        let dims: Vec<_> = dims.iter().map(Dim::to_string).collect();
        format!("[{}]", dims.join(", "))
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.dtype)?;
        if self.dims.is_empty() { Ok(()) } else { f.write_str(&Type::show(&self.dims)) }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DType::Blocks(blocks) => return blocks.fmt(f),
            DType::F32 => "f32",
            DType::F16 => "f16",
            DType::BF16 => "bf16",
            DType::I64 => "i64",
            DType::I32 => "i32",
            DType::Bool => "bool",
        })
    }
}
