//! Token-wise operations: the body of the group, run once a row, every value either in registers or in a row of scratch.
//!
//! Elementwise chains are never stored: they are recomputed where they are read, in one loop nest per stored value or reduction. A value is stored
//! in scratch when it is worth more than reading it back: several uses, a broadcast, a view of it. Slices, reshapes and transpositions are
//! views; concatenations write their parts in place; outputs go straight to their buffer or page.
//!
//! Operands of the launch: the parameters, then one for each sink.

mod view;

use std::collections::HashMap;

use xfc_lang::graph::{DType, Dim, Graph, NodeId, Type, ValueId};
use xfc_lang::ops::{Core, Op, ReduceOp, UnaryOp};
use xfc_runtime::artifact::abi::offsets as abi;

use self::view::View;
use super::expr::{constant, constant_of, elem_of, elementwise};
use super::frame::Buffer;
use super::writer::{Cmp, Elem, Ty, Val, Writer};
use crate::error::CodegenError;
use crate::plan::kernel::{PageLayout, RowParam, RowsSpec, Sink};
use crate::target::cpu::schedule::RowsSchedule;

/// Writes the kernel; gives its text and the bytes of scratch it needs.
///
/// # Errors
/// An operation or element type without a lowering.
pub fn emit(symbol: &str, spec: &RowsSpec, schedule: &RowsSchedule) -> Result<(String, u64), CodegenError> {
    let (mut w, params) = Writer::kernel(symbol);
    let args = params.args;
    let n_rows = w.n_rows(args, spec.space);
    let buffers: Vec<Buffer> = (0..spec.params.len() + spec.sinks.len()).map(|i| w.buffer(args, i)).collect();
    let axis = Axis {
        positions: w.axis_array(args, spec.space.axis, abi::AXIS_POSITIONS),
        sequences: w.axis_array(args, spec.space.axis, abi::AXIS_SEQUENCES),
        rows: w.axis_array(args, spec.space.axis, abi::AXIS_ROWS),
    };
    let size = w.i64(schedule.rows_per_tile as i64);
    let begin = w.mul(params.tile_begin, size);
    let end = w.mul(params.tile_end, size);
    let end = w.min(end, n_rows);
    let mut scratch_bytes = 0;
    w.for_loop(begin, end, 1, &[], |w, row, _| {
        let element = if spec.space.selected { w.load_u32(axis.rows, row) } else { row };
        let mut body = Body {
            spec,
            graph: &spec.body,
            lanes: schedule.lanes,
            args,
            buffers: &buffers,
            axis: &axis,
            row,
            element,
            scratch: params.scratch,
            scratch_bytes: 0,
            values: HashMap::new(),
        };
        for node in spec.body.topological() {
            body.node(w, node)?;
        }
        scratch_bytes = body.scratch_bytes;
        Ok(vec![])
    })?;
    Ok((w.finish(), scratch_bytes))
}

struct Axis {
    positions: Val,
    sequences: Val,
    rows: Val,
}

/// How a value of the current row can be read.
#[derive(Clone, Debug)]
enum Row {
    /// One element, in a register.
    Scalar(Val),
    /// A constant, written where it is used.
    Const(f64, DType),
    /// `0, 1, 2, ..` along the last dimension.
    Index,
    /// In memory.
    Memory(View),
    /// Computed where it is read.
    Lazy,
}

struct Body<'a> {
    spec: &'a RowsSpec,
    graph: &'a Graph,
    lanes: u32,
    args: Val,
    buffers: &'a [Buffer],
    axis: &'a Axis,
    /// Row of the kernel, and the element of the axis it is.
    row: Val,
    element: Val,
    scratch: Val,
    scratch_bytes: u64,
    values: HashMap<ValueId, Row>,
}

/// One coordinate of the element being computed.
type Coordinates = [Val];

/// Fixed dimensions of a value, without the leading ragged one.
fn row_dims(ty: &Type) -> Result<Vec<u64>, CodegenError> {
    let dims = if has_row(ty) { &ty.dims[1..] } else { &ty.dims[..] };
    dims.iter()
        .map(|d| match d {
            Dim::Fixed(n) => Ok(*n),
            _ => Err(CodegenError::unsupported(format!("a value of type {ty} in a token-wise kernel"), "")),
        })
        .collect()
}

fn has_row(ty: &Type) -> bool {
    matches!(ty.dims.first(), Some(Dim::Axis(_) | Dim::Rows(_)))
}

impl Body<'_> {
    fn dims(&self, value: ValueId) -> Result<Vec<u64>, CodegenError> {
        row_dims(self.graph.ty(value))
    }

    fn elem(&self, value: ValueId) -> Result<Elem, CodegenError> {
        elem_of(self.graph.ty(value).dtype, Elem::I64)
    }

    fn node(&mut self, w: &mut Writer, node: NodeId) -> Result<(), CodegenError> {
        let graph = self.graph;
        let op = match graph.op(node) {
            Op::Core(op) => op,
            Op::Fused(op) => return Err(CodegenError::bug("rows", format!("`{}` was not decomposed", op.name()))),
        };
        let value = ValueId { node, port: 0 };
        let operands = graph.operands(node);
        let dims = self.dims(value)?;
        let sinks = self.sinks_of(value);
        let row = match op {
            Core::Arg { index } => self.param(w, *index, value)?,
            Core::Const { values } if values.len() == 1 => Row::Const(values[0], graph.ty(value).dtype),
            Core::Const { values } => {
                if self.elem(value)? != Elem::F32 {
                    return Err(self.unsupported(node, "a table of integers"));
                }
                Row::Memory(View::contiguous(w.table_f32(values), Elem::F32, &dims))
            }
            Core::Position => {
                let p = w.load_u32(self.axis.positions, self.element);
                Row::Scalar(p)
            }
            Core::Index => Row::Index,
            Core::Unary(_) | Core::Binary(_) | Core::Select | Core::Cast => {
                if dims.iter().product::<u64>() == 1 {
                    let at = vec![w.i64(0); dims.len()];
                    Row::Scalar(self.compute(w, value, &at, 0, None)?)
                } else if self.worth_storing(value)? {
                    let target = self.target(w, value, &sinks, &dims)?;
                    self.fill(w, value, &target)?;
                    Row::Memory(target)
                } else {
                    Row::Lazy
                }
            }
            Core::Reduce(kind) => self.reduce(w, *kind, operands[0], value)?,
            Core::Reshape => {
                let view = self.view_of(w, operands[0])?;
                match view.reshape(&dims) {
                    Some(view) => Row::Memory(view),
                    None => {
                        let copy = self.scratch(w, view.elem, &view.dims);
                        self.copy(w, &view, &copy)?;
                        Row::Memory(View { dims: dims.clone(), strides: View::row_major(&dims), ..copy })
                    }
                }
            }
            Core::Slice { dim, start } => {
                let view = self.view_of(w, operands[0])?;
                let dim = self.row_dim(node, operands[0], *dim)?;
                Row::Memory(view.slice(w, dim, *start, dims[dim]))
            }
            Core::Transpose { perm } => {
                let view = self.view_of(w, operands[0])?;
                let perm: Vec<usize> = if has_row(graph.ty(operands[0])) {
                    if perm[0] != 0 {
                        return Err(self.unsupported(node, "a transposition of tokens"));
                    }
                    perm[1..].iter().map(|p| p - 1).collect()
                } else {
                    perm.clone()
                };
                Row::Memory(view.transpose(&perm))
            }
            Core::Repeat { dim, times } => {
                let view = self.view_of(w, operands[0])?;
                let dim = self.row_dim(node, operands[0], *dim)?;
                let target = self.target(w, value, &sinks, &dims)?;
                let (from, to) = (view.insert(dim + 1, 1), target.split(dim, *times));
                self.copy(w, &from, &to)?;
                Row::Memory(target)
            }
            Core::Concat { dim } => {
                let dim = self.row_dim(node, value, *dim)?;
                let target = self.target(w, value, &sinks, &dims)?;
                let mut start = 0;
                for part in &operands {
                    let len = self.dims(*part)?[dim];
                    let place = target.slice(w, dim, start, len);
                    self.fill(w, *part, &place)?;
                    start += len;
                }
                Row::Memory(target)
            }
            Core::Gather => {
                let table = self.view_of(w, operands[0])?;
                if !self.dims(operands[1])?.is_empty() {
                    return Err(self.unsupported(node, "a gather of several rows a token"));
                }
                let index = self.compute(w, operands[1], &[], 0, None)?;
                // The runtime checks ids; whatever reaches this point stays inside the table.
                let (zero, last) = (w.i64(0), w.i64(table.dims[0] as i64 - 1));
                let index = w.max(index, zero);
                let index = w.min(index, last);
                Row::Memory(table.index(w, index))
            }
            Core::Take | Core::TopK { .. } | Core::Softmax | Core::Contract { .. } | Core::SelectRows | Core::Cache { .. } | Core::Call { .. } | Core::Weight { .. } => {
                return Err(self.unsupported(node, &format!("{op:?} in a token-wise kernel")));
            }
        };
        let stored = matches!(&row, Row::Memory(_));
        self.values.insert(value, row);
        self.deliver(w, value, &sinks, stored)
    }

    fn unsupported(&self, node: NodeId, what: &str) -> CodegenError {
        CodegenError::unsupported(what, self.graph.origin(node).path.clone())
    }

    /// A dimension of a value's type as one of its row.
    fn row_dim(&self, node: NodeId, value: ValueId, dim: usize) -> Result<usize, CodegenError> {
        if has_row(self.graph.ty(value)) {
            dim.checked_sub(1).ok_or_else(|| self.unsupported(node, "cutting or joining along tokens"))
        } else {
            Ok(dim)
        }
    }

    fn param(&mut self, w: &mut Writer, index: usize, value: ValueId) -> Result<Row, CodegenError> {
        let dims = self.dims(value)?;
        let elem = self.elem(value)?;
        let buffer = self.buffers[index];
        let base = match self.spec.params[index] {
            RowParam::Shared => buffer.data,
            RowParam::PerRow => w.row(buffer, self.row, elem.bytes()),
            RowParam::Selected => w.row(buffer, self.element, elem.bytes()),
        };
        if dims.is_empty() {
            return Ok(Row::Scalar(w.load(Ty::scalar(elem), base)));
        }
        Ok(Row::Memory(View::contiguous(base, elem, &dims)))
    }

    fn sinks_of(&self, value: ValueId) -> Vec<usize> {
        let outputs = self.graph.outputs();
        (0..self.spec.sinks.len()).filter(|s| outputs[self.spec.sinks[*s].0].value == value).collect()
    }

    /// Whether an elementwise value is stored rather than recomputed at each use.
    fn worth_storing(&self, value: ValueId) -> Result<bool, CodegenError> {
        let uses = self.graph.uses(value);
        let elements: u64 = self.dims(value)?.iter().product();
        let mut broadcast = false;
        for (user, _) in &uses {
            let op = self.graph.op(*user).as_core();
            // Views and joins read memory; a larger result reads each element several times.
            if matches!(op, Some(Core::Reshape | Core::Slice { .. } | Core::Transpose { .. } | Core::Repeat { .. })) {
                return Ok(true);
            }
            if let Some(Core::Unary(_) | Core::Binary(_) | Core::Select | Core::Cast) = op {
                let to: u64 = self.dims(ValueId { node: *user, port: 0 })?.iter().product();
                broadcast |= to > elements;
            }
        }
        if broadcast {
            return Ok(true);
        }
        let reads = uses.len() + usize::from(self.graph.is_output(value));
        if self.graph.ty(value).dtype == DType::Bool {
            return Ok(false);
        }
        Ok(self.graph.is_output(value) || (reads > 1 && self.cost(value)? > 2))
    }

    /// Rough number of operations to compute an element.
    fn cost(&self, value: ValueId) -> Result<u64, CodegenError> {
        if !matches!(self.values.get(&value), None | Some(Row::Lazy)) {
            return Ok(0);
        }
        let own = match self.graph.op(value.node).as_core() {
            Some(Core::Unary(UnaryOp::Neg | UnaryOp::Abs | UnaryOp::Not | UnaryOp::Floor)) => 1,
            Some(Core::Unary(_)) => 10,
            Some(Core::Arg { .. } | Core::Const { .. }) => 0,
            _ => 1,
        };
        let mut sum = own;
        for operand in self.graph.operands(value.node) {
            sum += self.cost(operand)?;
            if sum > 100 {
                break;
            }
        }
        Ok(sum)
    }

    /// Where a stored value goes: its own buffer when it has one, else scratch.
    fn target(&mut self, w: &mut Writer, value: ValueId, sinks: &[usize], dims: &[u64]) -> Result<View, CodegenError> {
        let elem = self.elem(value)?;
        for s in sinks {
            if self.spec.sinks[*s].1 == Sink::Buffer {
                return self.sink_view(w, *s, elem, dims);
            }
        }
        Ok(self.scratch(w, elem, dims))
    }

    fn scratch(&mut self, w: &mut Writer, elem: Elem, dims: &[u64]) -> View {
        let at = self.scratch_bytes;
        self.scratch_bytes = (at + dims.iter().product::<u64>() * elem.bytes()).next_multiple_of(64);
        let base = w.offset_const(self.scratch, at);
        View::contiguous(base, elem, dims)
    }

    fn sink_view(&self, w: &mut Writer, sink: usize, elem: Elem, dims: &[u64]) -> Result<View, CodegenError> {
        let buffer = self.buffers[self.spec.params.len() + sink];
        match self.spec.sinks[sink].1 {
            Sink::Buffer => {
                let base = w.row(buffer, self.row, elem.bytes());
                Ok(View::contiguous(base, elem, dims))
            }
            Sink::Cache { group, layout, page_tokens, page_bytes } => {
                let cache = w.cache(self.args, group);
                let position = w.load_u32(self.axis.positions, self.element);
                let sequence = w.load_u32(self.axis.sequences, self.element);
                let size = w.i64(page_tokens as i64);
                let page = w.div_unsigned(position, size);
                let token = w.rem_unsigned(position, size);
                let id = w.page_id(cache, sequence, page);
                let base = w.element(buffer.data, id, page_bytes);
                let (heads, dim) = match dims {
                    [dim] => (1, *dim),
                    [heads, dim] => (*heads, *dim),
                    _ => return Err(CodegenError::unsupported(format!("a cached value of dimensions {dims:?}"), "")),
                };
                let (token_stride, strides) = match layout {
                    PageLayout::TokensLast => (1, [dim * page_tokens, page_tokens]),
                    PageLayout::TokensMiddle => (dim, [page_tokens * dim, 1]),
                };
                let base = w.element(base, token, token_stride * elem.bytes());
                let view = View { base, elem, dims: vec![heads, dim], strides: strides.to_vec() };
                Ok(if dims.len() == 1 { view.drop_first() } else { view })
            }
        }
    }

    /// Sends a value to the sinks that it was not computed into.
    fn deliver(&mut self, w: &mut Writer, value: ValueId, sinks: &[usize], stored: bool) -> Result<(), CodegenError> {
        let dims = self.dims(value)?;
        let elem = self.elem(value)?;
        let computed_here = |op: Option<&Core>| matches!(op, Some(Core::Unary(_) | Core::Binary(_) | Core::Select | Core::Cast | Core::Repeat { .. } | Core::Concat { .. }));
        let mut into_buffer = stored && computed_here(self.graph.op(value.node).as_core());
        for s in sinks {
            if into_buffer && self.spec.sinks[*s].1 == Sink::Buffer {
                into_buffer = false;
                continue;
            }
            let target = self.sink_view(w, *s, elem, &dims)?;
            if target.unit_last() || matches!(self.values.get(&value), Some(Row::Memory(_))) {
                self.fill(w, value, &target)?;
            } else {
                // Scattered: compute whole vectors first.
                let copy = self.scratch(w, elem, &dims);
                self.fill(w, value, &copy)?;
                self.copy(w, &copy, &target)?;
            }
        }
        Ok(())
    }

    /// A value as memory, stored in scratch if it is not there yet.
    fn view_of(&mut self, w: &mut Writer, value: ValueId) -> Result<View, CodegenError> {
        if let Some(Row::Memory(view)) = self.values.get(&value) {
            return Ok(view.clone());
        }
        let dims = self.dims(value)?;
        let elem = self.elem(value)?;
        let view = self.scratch(w, elem, &dims);
        self.fill(w, value, &view)?;
        self.values.insert(value, Row::Memory(view.clone()));
        Ok(view)
    }

    /// Whether the last dimension of a value can be computed in vectors.
    fn vectors(&self, value: ValueId) -> bool {
        match self.values.get(&value) {
            Some(Row::Memory(view)) => view.unit_last() || view.dims.last() == Some(&1),
            Some(Row::Lazy) | None => self.graph.operands(value.node).iter().all(|o| self.vectors(*o)),
            Some(Row::Scalar(_) | Row::Const(..) | Row::Index) => true,
        }
    }

    fn copy(&self, w: &mut Writer, from: &View, to: &View) -> Result<(), CodegenError> {
        let vectors = from.unit_last() && to.unit_last();
        self.nest(w, &to.dims, vectors, &mut |w, at, lanes, mask| {
            let x = from.load(w, at, lanes, mask);
            to.store(w, x, at, mask);
            Ok(())
        })
    }

    /// Computes all elements of a value into `target`.
    fn fill(&self, w: &mut Writer, value: ValueId, target: &View) -> Result<(), CodegenError> {
        let vectors = target.unit_last() && self.vectors(value);
        self.nest(w, &target.dims, vectors, &mut |w, at, lanes, mask| {
            let x = self.compute(w, value, at, lanes, mask)?;
            let x = w.splat(x, lanes);
            target.store(w, x, at, mask);
            Ok(())
        })
    }

    /// A loop nest over `dims`, the last in vectors where possible, with a masked tail.
    fn nest(
        &self,
        w: &mut Writer,
        dims: &[u64],
        vectors: bool,
        element: &mut dyn FnMut(&mut Writer, &Coordinates, u32, Option<Val>) -> Result<(), CodegenError>,
    ) -> Result<(), CodegenError> {
        self.outer(w, dims, dims.len().saturating_sub(1), Vec::new(), &mut |w, outer| {
            let Some(n) = dims.last() else { return element(w, &outer, 0, None) };
            let mut at = outer;
            at.push(w.i64(0));
            let last = at.len() - 1;
            self.last_dim(w, *n, vectors, &[], &mut |w, i, lanes, mask, _| {
                at[last] = i;
                element(w, &at, lanes, mask)?;
                Ok(vec![])
            })?;
            Ok(())
        })
    }

    fn outer(
        &self,
        w: &mut Writer,
        dims: &[u64],
        n_outer: usize,
        at: Vec<Val>,
        inner: &mut dyn FnMut(&mut Writer, Vec<Val>) -> Result<(), CodegenError>,
    ) -> Result<(), CodegenError> {
        if at.len() == n_outer {
            return inner(w, at);
        }
        let n = dims[at.len()];
        let zero = w.i64(0);
        if n == 1 {
            let mut next = at;
            next.push(zero);
            return self.outer(w, dims, n_outer, next, inner);
        }
        let end = w.i64(n as i64);
        w.for_loop(zero, end, 1, &[], |w, i, _| {
            let mut next = at;
            next.push(i);
            self.outer(w, dims, n_outer, next, inner)?;
            Ok(vec![])
        })?;
        Ok(())
    }

    /// A loop over `0..n` in vectors and a masked rest (or one by one), carrying values.
    fn last_dim(
        &self,
        w: &mut Writer,
        n: u64,
        vectors: bool,
        carried: &[Val],
        body: &mut dyn FnMut(&mut Writer, Val, u32, Option<Val>, &[Val]) -> Result<Vec<Val>, CodegenError>,
    ) -> Result<Vec<Val>, CodegenError> {
        let zero = w.i64(0);
        if n == 1 || !vectors {
            let end = w.i64(n as i64);
            if n == 1 {
                return body(w, zero, 0, None, carried);
            }
            return w.for_loop(zero, end, 1, carried, |w, i, c| body(w, i, 0, None, c));
        }
        let lanes = u64::from(self.lanes);
        let whole = n / lanes * lanes;
        let mut carried = carried.to_vec();
        if whole > 0 {
            let end = w.i64(whole as i64);
            carried = w.for_loop(zero, end, lanes as i64, &carried, |w, i, c| body(w, i, self.lanes, None, c))?;
        }
        if whole < n {
            let inside: Vec<i64> = (0..lanes).map(|l| i64::from(whole + l < n)).collect();
            let mask = w.lanes(&inside, Elem::I1);
            let at = w.i64(whole as i64);
            carried = body(w, at, self.lanes, Some(mask), &carried)?;
        }
        Ok(carried)
    }

    /// The element (or `lanes` elements along the last dimension) at `at`, given in the coordinates of a value that this one broadcasts to.
    fn compute(&self, w: &mut Writer, value: ValueId, at: &Coordinates, lanes: u32, mask: Option<Val>) -> Result<Val, CodegenError> {
        let dims = self.dims(value)?;
        let at = &at[at.len().saturating_sub(dims.len())..];
        match self.values.get(&value) {
            Some(Row::Scalar(v)) => Ok(*v),
            Some(Row::Const(c, dtype)) => constant(w, *c, *dtype, Elem::I64),
            Some(Row::Memory(view)) => Ok(view.load(w, at, lanes, mask)),
            Some(Row::Index) => {
                let i = at.last().copied().ok_or_else(|| CodegenError::bug("rows", "an index without a dimension"))?;
                if lanes == 0 {
                    return Ok(i);
                }
                let iota: Vec<i64> = (0..i64::from(lanes)).collect();
                let iota = w.lanes(&iota, Elem::I64);
                let i = w.splat(i, lanes);
                Ok(w.add(i, iota))
            }
            Some(Row::Lazy) | None => {
                let op = self.graph.op(value.node).as_core().ok_or_else(|| CodegenError::bug("rows", "a fused operation inside an expression"))?;
                let operands = self.graph.operands(value.node);
                let mut args = Vec::new();
                for operand in &operands {
                    args.push(self.compute(w, *operand, at, lanes, mask)?);
                }
                elementwise(w, op, &args, self.graph.ty(value).dtype, constant_of(self.graph, operands.get(1)), Elem::I64)
            }
        }
    }

    fn reduce(&mut self, w: &mut Writer, kind: ReduceOp, from: ValueId, to: ValueId) -> Result<Row, CodegenError> {
        let dims = self.dims(from)?;
        let elem = self.elem(from)?;
        let (Some(n), true) = (dims.last().copied(), matches!(elem, Elem::F32 | Elem::I64)) else {
            return Err(self.unsupported(to.node, "this reduction"));
        };
        if kind == ReduceOp::ArgMax {
            return Err(self.unsupported(to.node, "argmax"));
        }
        let vectors = self.vectors(from);
        let lanes = if vectors && n > 1 { self.lanes } else { 0 };
        let single = dims[..dims.len() - 1].iter().all(|d| *d == 1);
        let target = if single { None } else { Some(self.scratch(w, elem, &self.dims(to)?)) };
        let mut scalar = None;
        let this = &*self;
        this.outer(w, &dims, dims.len() - 1, Vec::new(), &mut |w, outer| {
            let start = identity(w, kind, Ty::of(elem, lanes));
            let mut at = outer;
            at.push(start);
            let last = at.len() - 1;
            let total = this.last_dim(w, n, vectors, &[start], &mut |w, i, l, mask, c| {
                at[last] = i;
                let x = this.compute(w, from, &at, l, mask)?;
                let x = w.splat(x, l);
                let x = match mask {
                    Some(mask) => {
                        let none = identity(w, kind, x.ty);
                        w.select(mask, x, none)
                    }
                    None => x,
                };
                Ok(vec![combine(w, kind, c[0], x)])
            })?[0];
            let total = match kind {
                ReduceOp::Max => w.reduce_max(total),
                ReduceOp::Min => w.reduce_min(total),
                _ => w.reduce_add(total),
            };
            let total = if kind == ReduceOp::Mean {
                let n = w.f32(n as f64, 0);
                w.div(total, n)
            } else {
                total
            };
            match &target {
                Some(view) => {
                    at[last] = w.i64(0);
                    view.store(w, total, &at, None);
                }
                None => scalar = Some(total),
            }
            Ok(())
        })?;
        match (target, scalar) {
            (Some(view), _) => Ok(Row::Memory(view)),
            (None, Some(v)) => Ok(Row::Scalar(v)),
            (None, None) => Err(CodegenError::bug("rows", "a reduction without a result")),
        }
    }
}

fn identity(w: &mut Writer, kind: ReduceOp, ty: Ty) -> Val {
    let float = match kind {
        ReduceOp::Max => f64::NEG_INFINITY,
        ReduceOp::Min => f64::INFINITY,
        _ => 0.0,
    };
    let int = match kind {
        ReduceOp::Max => i64::MIN,
        ReduceOp::Min => i64::MAX,
        _ => 0,
    };
    if ty.elem.is_float() { w.f32(float, ty.lanes) } else { w.int(int, ty) }
}

fn combine(w: &mut Writer, kind: ReduceOp, a: Val, b: Val) -> Val {
    match kind {
        ReduceOp::Max | ReduceOp::Min => {
            // Keeps NaN: `b` unless `a` is strictly on the better side.
            let better = w.cmp(if kind == ReduceOp::Max { Cmp::Gt } else { Cmp::Lt }, a, b);
            w.select(better, a, b)
        }
        _ => w.add(a, b),
    }
}
