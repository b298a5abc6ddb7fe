//! Adds operations to a graph and infers the types of their results.
//!
//! Given operands that an operation does not take, it returns the [`ShapeError`] that the verifier would report.

use std::collections::HashMap;

use super::{DType, Dim, Graph, NodeId, Origin, Type, ValueId};
use crate::ops::shape::{self, ShapeError};
use crate::ops::{BinaryOp, Core, FusedOp, Op, ReduceOp, UnaryOp};

type Result<T> = std::result::Result<T, ShapeError>;

/// Adds nodes of one origin to a graph.
#[derive(Debug)]
pub struct Builder<'g> {
    /// The graph that is added to.
    pub graph: &'g mut Graph,
    /// Where the nodes added from now on come from.
    pub origin: Origin,
}

impl<'g> Builder<'g> {
    /// A builder of nodes without an origin.
    pub fn new(graph: &'g mut Graph) -> Self {
        Builder { graph, origin: Origin::default() }
    }

    /// A builder of nodes that come from where `node` came from.
    pub fn like(graph: &'g mut Graph, node: NodeId) -> Self {
        let origin = graph.origin(node).clone();
        Builder { graph, origin }
    }

    fn types(&self, operands: &[ValueId]) -> Vec<Type> {
        operands.iter().map(|v| self.graph.ty(*v).clone()).collect()
    }

    /// Adds a core operation whose result takes what operands do not determine from `stated`.
    pub fn core(&mut self, op: Core, operands: &[ValueId], stated: Type) -> Result<ValueId> {
        let ty = shape::result_type(&op, &self.types(operands), &stated)?;
        Ok(self.graph.add(op, operands, ty, self.origin.clone()))
    }

    fn inferred(&mut self, op: Core, operands: &[ValueId]) -> Result<ValueId> {
        self.core(op, operands, Type::scalar(DType::F32))
    }

    /// Adds a fused operation; its results have the types of its decomposition's outputs.
    pub fn fused(&mut self, op: impl FusedOp, operands: &[ValueId]) -> Result<NodeId> {
        let meaning = op.decompose(&self.types(operands))?;
        let types = meaning.outputs().iter().map(|o| meaning.ty(o.value).clone()).collect();
        Ok(self.graph.add_node(Op::from(op), operands, types, self.origin.clone()))
    }

    /// Adds a fused operation of one result.
    pub fn fused1(&mut self, op: impl FusedOp, operands: &[ValueId]) -> Result<ValueId> {
        self.fused(op, operands).map(|node| ValueId { node, port: 0 })
    }

    /// A tensor of the checkpoint.
    pub fn weight(&mut self, path: impl Into<String>, ty: Type) -> ValueId {
        self.graph.add(Core::Weight { path: path.into() }, &[], ty, self.origin.clone())
    }

    /// A constant; one value fills the type.
    pub fn constant(&mut self, values: Vec<f64>, ty: Type) -> Result<ValueId> {
        self.core(Core::Const { values }, &[], ty)
    }

    /// A rank-0 f32 constant.
    pub fn scalar(&mut self, value: f64) -> ValueId {
        self.scalar_of(value, DType::F32)
    }

    /// A rank-0 constant of `dtype`.
    pub fn scalar_of(&mut self, value: f64, dtype: DType) -> ValueId {
        self.graph.add(Core::Const { values: vec![value] }, &[], Type::scalar(dtype), self.origin.clone())
    }

    /// The positions of the elements of a ragged dimension: `i64[dim]`.
    pub fn position(&mut self, dim: Dim) -> Result<ValueId> {
        self.core(Core::Position, &[], Type::new(DType::I64, [dim]))
    }

    /// `0 .. n`: `i64[n]`.
    pub fn index(&mut self, n: u64) -> Result<ValueId> {
        self.core(Core::Index, &[], Type::new(DType::I64, [Dim::Fixed(n)]))
    }

    /// An elementwise function.
    pub fn unary(&mut self, f: UnaryOp, x: ValueId) -> Result<ValueId> {
        self.inferred(Core::Unary(f), &[x])
    }

    /// An elementwise function of two operands, which broadcast.
    pub fn binary(&mut self, f: BinaryOp, a: ValueId, b: ValueId) -> Result<ValueId> {
        self.inferred(Core::Binary(f), &[a, b])
    }

    /// `a + b`.
    pub fn add(&mut self, a: ValueId, b: ValueId) -> Result<ValueId> {
        self.binary(BinaryOp::Add, a, b)
    }

    /// `a - b`.
    pub fn sub(&mut self, a: ValueId, b: ValueId) -> Result<ValueId> {
        self.binary(BinaryOp::Sub, a, b)
    }

    /// `a * b`.
    pub fn mul(&mut self, a: ValueId, b: ValueId) -> Result<ValueId> {
        self.binary(BinaryOp::Mul, a, b)
    }

    /// `a` where `condition` holds, else `b`.
    pub fn select(&mut self, condition: ValueId, a: ValueId, b: ValueId) -> Result<ValueId> {
        self.inferred(Core::Select, &[condition, a, b])
    }

    /// To `dtype`; the value itself when it has it.
    pub fn cast(&mut self, x: ValueId, dtype: DType) -> Result<ValueId> {
        if self.graph.ty(x).dtype == dtype {
            return Ok(x);
        }
        self.core(Core::Cast, &[x], Type::scalar(dtype))
    }

    /// Under other dimensions; the value itself when it has them.
    pub fn reshape(&mut self, x: ValueId, dims: impl Into<Vec<Dim>>) -> Result<ValueId> {
        let ty = Type::new(self.graph.ty(x).dtype, dims);
        if *self.graph.ty(x) == ty {
            return Ok(x);
        }
        self.core(Core::Reshape, &[x], ty)
    }

    /// Dimension `d` of the result is dimension `perm[d]` of `x`.
    pub fn transpose(&mut self, x: ValueId, perm: Vec<usize>) -> Result<ValueId> {
        self.inferred(Core::Transpose { perm }, &[x])
    }

    /// Elements `start .. start + size` of dimension `dim`.
    pub fn slice(&mut self, x: ValueId, dim: usize, start: u64, size: u64) -> Result<ValueId> {
        let mut ty = self.graph.ty(x).clone();
        if let Some(d) = ty.dims.get_mut(dim) {
            *d = Dim::Fixed(size);
        }
        self.core(Core::Slice { dim, start }, &[x], ty)
    }

    /// One after another along `dim`.
    pub fn concat(&mut self, dim: usize, operands: &[ValueId]) -> Result<ValueId> {
        self.inferred(Core::Concat { dim }, operands)
    }

    /// Each element along `dim`, `times` times in a row.
    pub fn repeat(&mut self, x: ValueId, dim: usize, times: u64) -> Result<ValueId> {
        self.inferred(Core::Repeat { dim, times }, &[x])
    }

    /// Rows of `table` at `indices`.
    pub fn gather(&mut self, table: ValueId, indices: ValueId) -> Result<ValueId> {
        self.inferred(Core::Gather, &[table, indices])
    }

    /// Elements of the last dimension of `values` at `indices`.
    pub fn take(&mut self, values: ValueId, indices: ValueId) -> Result<ValueId> {
        self.inferred(Core::Take, &[values, indices])
    }

    /// Over the last dimension, which stays with size 1.
    pub fn reduce(&mut self, f: ReduceOp, x: ValueId) -> Result<ValueId> {
        self.inferred(Core::Reduce(f), &[x])
    }

    /// Indices of the `k` largest of the last dimension.
    pub fn top_k(&mut self, x: ValueId, k: u64) -> Result<ValueId> {
        self.inferred(Core::TopK { k }, &[x])
    }

    /// Softmax over the last dimension where `mask` holds; `sink` is one score more of each row, without a share.
    pub fn softmax(&mut self, scores: ValueId, mask: Option<ValueId>, sink: Option<ValueId>) -> Result<ValueId> {
        let mask = mask.or_else(|| sink.map(|_| self.scalar_of(1.0, DType::Bool)));
        let operands: Vec<_> = [Some(scores), mask, sink].into_iter().flatten().collect();
        self.inferred(Core::Softmax, &operands)
    }

    /// A sum of products in Einstein notation.
    pub fn contract(&mut self, spec: impl Into<String>, a: ValueId, b: ValueId) -> Result<ValueId> {
        self.inferred(Core::Contract { spec: spec.into() }, &[a, b])
    }

    /// What is kept of each token.
    pub fn cache(&mut self, path: impl Into<String>, x: ValueId) -> Result<ValueId> {
        self.inferred(Core::Cache { path: path.into() }, &[x])
    }

    /// The tokens whose outputs were asked for.
    pub fn select_rows(&mut self, x: ValueId) -> Result<ValueId> {
        self.inferred(Core::SelectRows, &[x])
    }

    /// A call of `body`, which is graph number `graph` of the program.
    pub fn call(&mut self, graph: usize, body: &Graph, at: impl Into<String>, operands: &[ValueId]) -> NodeId {
        let types = body.outputs().iter().map(|o| body.ty(o.value).clone()).collect();
        self.graph.add_node(Core::Call { graph, at: at.into() }, operands, types, self.origin.clone())
    }

    /// Copies `body` into the graph with `args` for its parameters, types as they are; returns its outputs.
    /// Copied nodes keep their own origins.
    pub fn inline(&mut self, body: &Graph, args: &[ValueId]) -> Result<Vec<ValueId>> {
        self.copy(body, args, |this, op, operands, types, origin| {
            Ok(this.graph.add_node(op, operands, types.to_vec(), origin))
        })
    }

    /// Applies a graph of scalars to tensors, elementwise and broadcasting; returns its outputs. A table that it gathers from is given as it is.
    pub fn lift(&mut self, body: &Graph, args: &[ValueId]) -> Result<Vec<ValueId>> {
        self.lift_with(body, args, &mut |this, table, index| this.gather(table, index))
    }

    /// The same, where `gather` says what an element of a table at an index is.
    pub fn lift_with(
        &mut self,
        body: &Graph,
        args: &[ValueId],
        gather: &mut dyn FnMut(&mut Self, ValueId, ValueId) -> Result<ValueId>,
    ) -> Result<Vec<ValueId>> {
        self.copy(body, args, |this, op, operands, types, _| match op {
            Op::Core(Core::Gather) => match *operands {
                [table, index] => gather(this, table, index).map(|v| v.node),
                _ => Err(ShapeError(format!("gather of {} operands", operands.len()))),
            },
            Op::Core(op @ (Core::Const { .. } | Core::Unary(_) | Core::Binary(_) | Core::Select | Core::Cast)) => {
                this.core(op, operands, types[0].clone()).map(|v| v.node)
            }
            op => Err(ShapeError(format!("{} is not elementwise", op.name()))),
        })
    }

    fn copy(
        &mut self,
        body: &Graph,
        args: &[ValueId],
        mut add: impl FnMut(&mut Self, Op, &[ValueId], &[Type], Origin) -> Result<NodeId>,
    ) -> Result<Vec<ValueId>> {
        if args.len() != body.params().len() {
            return Err(ShapeError(format!("{} arguments for {} parameters", args.len(), body.params().len())));
        }
        let mut nodes: HashMap<NodeId, NodeId> = HashMap::new();
        let mut values: HashMap<ValueId, ValueId> = HashMap::new();
        for (param, arg) in body.params().iter().zip(args) {
            values.insert(param.value, *arg);
        }
        let find = |values: &HashMap<_, _>, nodes: &HashMap<_, _>, v: ValueId| {
            values
                .get(&v)
                .copied()
                .or_else(|| nodes.get(&v.node).map(|n| ValueId { node: *n, port: v.port }))
                .ok_or_else(|| ShapeError("a body that is not in topological order".into()))
        };
        for node in body.topological() {
            if values.contains_key(&ValueId { node, port: 0 }) {
                continue;
            }
            let operands =
                body.operands(node).into_iter().map(|v| find(&values, &nodes, v)).collect::<Result<Vec<_>>>()?;
            let op = body.op(node).clone();
            let copied = add(self, op, &operands, body.types(node), body.origin(node).clone())?;
            nodes.insert(node, copied);
        }
        body.outputs().iter().map(|o| find(&values, &nodes, o.value)).collect()
    }
}
