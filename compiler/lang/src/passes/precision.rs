//! Makes the precision of a program explicit, as casts.
//!
//! For bf16 (or f16): matrices and tables of rows are held in it, operands of products are cast to it, and so is what a cache keeps. Sums of
//! products, norms, softmax, products of what a token brings alone, and what flows between layers stay f32. For f32 nothing changes.
//!
//! Caches may be of another type than the rest. Products of what they keep then take f32: a narrow cache is widened, which rounds nothing more.
//! In 8 bits, each head of what products read is rounded to integers or to floats with a scale; what is done to it on the way to a product is of `dtype`, as are
//! caches that no product reads and those of one number a token.

use std::collections::HashMap;
use std::fmt;

use crate::graph::blocks::Blocks;
use crate::graph::build::Builder;
use crate::graph::{DType, Dim, Graph, NodeId, Program, Type, ValueId};
use crate::ops::shape::ShapeError;
use crate::ops::{Core, Op};

use super::analysis::token_wise::leading;
use super::matching::is_weight_expression;

/// What caches keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheType {
    /// Floats of a type.
    Float(DType),
    /// Integers of 8 bits, with a scale for each token and head.
    Int8,
    /// Floats of 8 bits (E4M3), with a scale for each token and head.
    Fp8,
}

impl fmt::Display for CacheType {
    /// As `--kv-cache-dtype` takes it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CacheType::Float(dtype) => dtype.fmt(f),
            CacheType::Int8 => f.write_str("int8"),
            CacheType::Fp8 => f.write_str("fp8"),
        }
    }
}

impl From<DType> for CacheType {
    fn from(dtype: DType) -> Self {
        CacheType::Float(dtype)
    }
}

impl CacheType {
    /// The type of what is not rounded to 8 bits, where the rest is of `dtype`.
    fn float(self, dtype: DType) -> DType {
        match self {
            CacheType::Float(own) => own,
            CacheType::Int8 | CacheType::Fp8 => dtype,
        }
    }

    /// Whether heads are rounded to 8 bits.
    fn has_scales(self) -> bool {
        matches!(self, CacheType::Int8 | CacheType::Fp8)
    }

    /// The type that heads `[.., heads, elements]` are held in, where they are for products.
    fn held(self, ty: &Type, dtype: DType) -> Result<DType, ShapeError> {
        match (self, &ty.dims[..]) {
            (CacheType::Int8 | CacheType::Fp8, [_, .., Dim::Fixed(n)]) => match u16::try_from(*n) {
                Ok(n) if n > 0 && self == CacheType::Fp8 => Ok(DType::Blocks(Blocks::kept_floats(n))),
                Ok(n) if n > 0 => Ok(DType::Blocks(Blocks::kept(n))),
                _ => Err(ShapeError(format!(
                    "{n} elements of a head with one scale: caches in 8 bits take up to {}",
                    u16::MAX
                ))),
            },
            _ => Ok(self.float(dtype)),
        }
    }
}

/// Rewrites a program, fresh from the front end and all f32, for `dtype`, with caches in `cache`.
///
/// # Errors
/// Heads that are too long for a cache in 8 bits; operations that do not take what they are given, which a verified program has not.
pub fn apply(program: &mut Program, dtype: DType, cache: impl Into<CacheType>) -> Result<(), ShapeError> {
    let cache = cache.into();
    let float = cache.float(dtype);
    if !is_narrow(dtype) && !is_narrow(float) && !cache.has_scales() {
        return Ok(());
    }
    for graph in &mut program.graphs {
        for node in graph.topological() {
            rewrite(graph, node, dtype, cache)?;
        }
        if is_narrow(float) || cache.has_scales() {
            across_calls(graph, dtype, cache)?;
        }
        let [mut narrow, mut kept] = [dtype, float].map(|dtype| Narrow { dtype, memo: HashMap::new() });
        for node in graph.topological() {
            if !matches!(graph.op(node).as_core(), Some(Core::Contract { .. })) || of_values(graph, node) {
                continue;
            }
            if cache != CacheType::Float(dtype) && of_kept(graph, node) {
                if is_narrow(float) {
                    kept.kept(graph, node)?;
                }
            } else if is_narrow(dtype) {
                narrow.contract(graph, node)?;
            }
        }
        super::matching::remove_dead(graph);
    }
    Ok(())
}

fn is_narrow(dtype: DType) -> bool {
    matches!(dtype, DType::BF16 | DType::F16)
}

/// Whether a type holds less than f32 does.
fn is_rounded(dtype: DType) -> bool {
    is_narrow(dtype) || dtype.blocks().is_some()
}

/// Weights and tables are held in `dtype`, caches in `cache`, and widened where they are used.
fn rewrite(graph: &mut Graph, node: NodeId, dtype: DType, cache: CacheType) -> Result<(), ShapeError> {
    let value = ValueId { node, port: 0 };
    let Some(ty) = graph.types(node).first().filter(|t| t.dtype == DType::F32).cloned() else { return Ok(()) };
    let dtype = match graph.op(node).as_core() {
        Some(Core::Cache { .. }) if reaches_product(graph, value) => cache.held(&ty, dtype)?,
        Some(Core::Cache { .. }) => cache.float(dtype),
        _ => dtype,
    };
    if !is_rounded(dtype) {
        return Ok(());
    }
    match graph.op(node) {
        Op::Core(Core::Weight { path }) if has_rows(path, &ty) && is_matrix_or_table(graph, value) => {
            graph.set_type(value, Type::new(dtype, ty.dims));
            widen(graph, value)
        }
        Op::Core(Core::Cache { .. }) => {
            let Some(kept) = graph.operands(node).first().copied() else { return Ok(()) };
            let narrow = Builder::like(graph, node).cast(kept, dtype)?;
            graph.set_operand(node, 0, narrow);
            graph.set_type(value, Type::new(dtype, ty.dims));
            widen(graph, value)
        }
        // Rows of a table are widened, not the table.
        Op::Core(Core::Gather) => {
            let [table, _] = graph.operands(node)[..] else { return Ok(()) };
            let Some(held) = widened(graph, table, dtype) else { return Ok(()) };
            graph.set_operand(node, 0, held);
            graph.set_type(value, Type::new(dtype, ty.dims));
            widen(graph, value)
        }
        Op::Core(_) | Op::Fused(_) => Ok(()),
    }
}

/// Whether a parameter of this path and type, or each of its stack, is a matrix or a table and no list of numbers.
fn has_rows(path: &str, ty: &Type) -> bool {
    ty.dims.len() >= if path.contains('{') { 3 } else { 2 }
}

/// Whether what is kept is multiplied, perhaps moved, or may be in another body.
fn reaches_product(graph: &Graph, value: ValueId) -> bool {
    let is_read = |(user, _): (NodeId, usize)| match graph.op(user).as_core() {
        Some(Core::Contract { .. } | Core::Call { .. }) => true,
        Some(
            Core::Cast
            | Core::Reshape
            | Core::Transpose { .. }
            | Core::Slice { .. }
            | Core::Concat { .. }
            | Core::Repeat { .. }
            | Core::Broadcast,
        ) => reaches_product(graph, ValueId { node: user, port: 0 }),
        _ => false,
    };
    graph.is_output(value) || graph.uses(value).into_iter().any(is_read)
}

/// What is kept goes to other bodies as it is held.
fn across_calls(graph: &mut Graph, dtype: DType, cache: CacheType) -> Result<(), ShapeError> {
    let kept = |ty: &Type| ty.dtype == DType::F32 && matches!(ty.dims.first(), Some(Dim::Visible(_)));
    for node in graph.topological() {
        let is_call = matches!(graph.op(node).as_core(), Some(Core::Call { .. }));
        if !is_call && !matches!(graph.op(node).as_core(), Some(Core::Arg { .. })) {
            continue;
        }
        for (i, operand) in graph.operands(node).into_iter().enumerate() {
            if kept(graph.ty(operand)) {
                let held = narrowed(graph, operand, cache.held(graph.ty(operand), dtype)?)?;
                graph.set_operand(node, i, held);
            }
        }
        for port in 0..graph.types(node).len() {
            let value = ValueId { node, port };
            if kept(graph.ty(value)) {
                let held = cache.held(graph.ty(value), dtype)?;
                let ty = Type::new(held, graph.ty(value).dims.clone());
                graph.set_type(value, ty);
                if is_rounded(held) {
                    widen(graph, value)?;
                }
            }
        }
    }
    for index in 0..graph.outputs().len() {
        let value = graph.outputs()[index].value;
        if kept(graph.ty(value)) {
            let held = narrowed(graph, value, cache.held(graph.ty(value), dtype)?)?;
            graph.set_output(index, held);
        }
    }
    Ok(())
}

/// A value as it is held where it is the widening of that, else its cast.
fn narrowed(graph: &mut Graph, value: ValueId, dtype: DType) -> Result<ValueId, ShapeError> {
    match widened(graph, value, dtype) {
        Some(held) => Ok(held),
        None if dtype == graph.ty(value).dtype => Ok(value),
        None => Builder::like(graph, value.node).cast(value, dtype),
    }
}

/// Whether products or lookups of rows read a weight, perhaps moved: not what is added or multiplied as it is, nor a table of numbers.
fn is_matrix_or_table(graph: &Graph, value: ValueId) -> bool {
    graph.uses(value).into_iter().any(|(user, operand)| match graph.op(user) {
        Op::Core(Core::Contract { .. } | Core::Call { .. }) => true,
        Op::Core(Core::Gather) => operand == 0 && graph.ty(value).dims.len() >= 2,
        Op::Core(
            Core::Reshape | Core::Transpose { .. } | Core::Slice { .. } | Core::Concat { .. } | Core::Repeat { .. },
        ) => is_matrix_or_table(graph, ValueId { node: user, port: 0 }),
        _ => false,
    })
}

/// Whether a product is of what a token brings alone, such as a weighted sum of what experts give: then it stays f32.
fn of_values(graph: &Graph, node: NodeId) -> bool {
    let stored = |v: &ValueId| {
        let inner = if graph.op(v.node).as_core() == Some(&Core::Cast) { graph.operands(v.node)[0] } else { *v };
        let rows = matches!(graph.op(inner.node).as_core(), Some(Core::Gather));
        is_weight_expression(graph, if rows { graph.operands(inner.node)[0] } else { inner })
    };
    leading(graph, node).is_some() && !graph.operands(node).iter().any(stored)
}

/// Whether a product is of what is kept, and not with a weight.
fn of_kept(graph: &Graph, node: NodeId) -> bool {
    let operands = graph.operands(node);
    let is_kept = |v: &ValueId| matches!(graph.ty(*v).dims.first(), Some(Dim::Visible(_)));
    let is_held = |v: &ValueId| {
        let inner = if graph.op(v.node).as_core() == Some(&Core::Cast) { graph.operands(v.node)[0] } else { *v };
        is_weight_expression(graph, inner)
    };
    operands.iter().any(is_kept) && !operands.iter().any(is_held)
}

/// Makes every use of `value` a use of its cast to f32.
fn widen(graph: &mut Graph, value: ValueId) -> Result<(), ShapeError> {
    let uses = graph.uses(value);
    let outputs: Vec<usize> = (0..graph.outputs().len()).filter(|i| graph.outputs()[*i].value == value).collect();
    let wide = Builder::like(graph, value.node).cast(value, DType::F32)?;
    for (user, operand) in uses {
        graph.set_operand(user, operand, wide);
    }
    for output in outputs {
        graph.set_output(output, wide);
    }
    Ok(())
}

/// Whether a value is the widening of integers with a scale, which products read as they are kept.
fn is_of_integers(graph: &Graph, value: ValueId) -> bool {
    let inner = graph.operands(value.node).first().copied();
    graph.op(value.node).as_core() == Some(&Core::Cast)
        && inner.is_some_and(|inner| graph.ty(inner).dtype.blocks().is_some())
}

/// The value of type `dtype` that `value` is the widening of.
fn widened(graph: &Graph, value: ValueId, dtype: DType) -> Option<ValueId> {
    let inner = graph.operands(value.node).first().copied()?;
    (graph.op(value.node).as_core() == Some(&Core::Cast) && graph.ty(inner).dtype == dtype).then_some(inner)
}

struct Narrow {
    dtype: DType,
    memo: HashMap<ValueId, ValueId>,
}

impl Narrow {
    /// What is kept goes into a product as it is held, widened.
    fn kept(&mut self, graph: &mut Graph, node: NodeId) -> Result<(), ShapeError> {
        for (i, operand) in graph.operands(node).into_iter().enumerate() {
            let is_kept = matches!(graph.ty(operand).dims.first(), Some(Dim::Visible(_)));
            if graph.ty(operand).dtype == DType::F32 && is_kept && !is_of_integers(graph, operand) {
                let held = self.value(graph, operand)?;
                let wide = Builder::like(graph, node).cast(held, DType::F32)?;
                graph.set_operand(node, i, wide);
            }
        }
        Ok(())
    }

    fn contract(&mut self, graph: &mut Graph, node: NodeId) -> Result<(), ShapeError> {
        let [a, b] = graph.operands(node)[..] else { return Ok(()) };
        let probabilities = is_weight(graph, a) || is_weight(graph, b);
        for (i, operand) in [a, b].into_iter().enumerate() {
            if graph.ty(operand).dtype != DType::F32 || is_weight(graph, operand) {
                continue;
            }
            let mut narrow = self.value(graph, operand)?;
            if probabilities {
                // Probabilities stay f32; both operands of a product are of one dtype.
                narrow = Builder::like(graph, node).cast(narrow, DType::F32)?;
            }
            graph.set_operand(node, i, narrow);
        }
        Ok(())
    }

    /// `value` in the narrow dtype: moves of weights on the weights as held, a cast of anything else.
    fn value(&mut self, graph: &mut Graph, value: ValueId) -> Result<ValueId, ShapeError> {
        if let Some(known) = self.memo.get(&value) {
            return Ok(*known);
        }
        let made = if let Some(held) = widened(graph, value, self.dtype) {
            held
        } else if is_weight_expression(graph, value) && !graph.operands(value.node).is_empty() {
            let mut operands = Vec::new();
            for operand in graph.operands(value.node) {
                operands.push(self.value(graph, operand)?);
            }
            let ty = Type::new(self.dtype, graph.ty(value).dims.clone());
            let op = graph.op(value.node).clone();
            let origin = graph.origin(value.node).clone();
            graph.add(op, &operands, ty, origin)
        } else {
            Builder::like(graph, value.node).cast(value, self.dtype)?
        };
        self.memo.insert(value, made);
        Ok(made)
    }
}

/// Whether values are multiplied with it: an element for each query and key.
fn is_weight(graph: &Graph, value: ValueId) -> bool {
    graph.ty(value).dims.iter().filter(|d| d.is_ragged()).count() > 1
}
