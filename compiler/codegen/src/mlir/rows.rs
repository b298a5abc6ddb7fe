//! Token-wise operations: the body of the group, run once a row, every value either in registers or in a row of scratch.
//!
//! Elementwise chains are never stored: they are recomputed where they are read, in one loop nest per stored value or reduction. A value is stored
//! in scratch when it is worth more than reading it back: several uses, a broadcast, a view of it. Slices, reshapes and transpositions are
//! views; concatenations write their parts in place; outputs go straight to their buffer or page.
//!
//! Operands of the launch: the parameters, then one for each sink.

mod blocks;
mod choose;
mod kept;
mod nest;
mod packed;
mod product;
mod reduce;
pub mod scan;
mod store;
mod view;

use std::collections::HashMap;

use xfc_lang::graph::{DType, Dim, Graph, NodeId, Type, ValueId};
use xfc_lang::ops::{Core, Op, ReduceOp};
use xfc_runtime::artifact::abi::offsets as abi;

use self::view::View;
use super::expr::{constant, constant_of, elem_of, elementwise};
use super::frame::Buffer;
use super::machine::Machine;
use super::schedule::RowsSchedule;
use super::writer::{Elem, Val, Writer};
use crate::error::CodegenError;
use crate::plan::kernel::{RowParam, RowsSpec};

/// Writes the kernel; gives its text and the bytes of scratch it needs.
///
/// # Errors
/// An operation or element type without a lowering.
pub fn emit(
    symbol: &str,
    spec: &RowsSpec,
    machine: &Machine,
    schedule: &RowsSchedule,
) -> Result<(String, u64), CodegenError> {
    let (mut w, params) = Writer::kernel(symbol, machine);
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
            halves_alone: schedule.halves_alone,
            args,
            buffers: &buffers,
            axis: &axis,
            row,
            element,
            scratch: params.scratch,
            scratch_bytes: 0,
            values: HashMap::new(),
            given: Vec::new(),
        };
        for node in spec.body.topological() {
            body.node(w, node)?;
        }
        scratch_bytes = body.scratch_bytes;
        w.sync();
        Ok(vec![])
    })?;
    Ok(w.finish(scratch_bytes))
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
    /// See [`RowsSchedule`].
    halves_alone: bool,
    args: Val,
    buffers: &'a [Buffer],
    axis: &'a Axis,
    /// Row of the kernel, and the element of the axis it is.
    row: Val,
    element: Val,
    scratch: Val,
    scratch_bytes: u64,
    values: HashMap<ValueId, Row>,
    /// Where the outputs of [`Sink::Given`](crate::plan::kernel::Sink::Given) go, by sink.
    given: Vec<View>,
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

impl<'a> Body<'a> {
    /// The body for another run, which knows what this one has computed.
    pub(super) fn again(&self) -> Body<'a> {
        Body { values: self.values.clone(), given: self.given.clone(), ..*self }
    }
}

impl Body<'_> {
    pub(super) fn dims(&self, value: ValueId) -> Result<Vec<u64>, CodegenError> {
        row_dims(self.graph.ty(value))
    }

    pub(super) fn elem(&self, value: ValueId) -> Result<Elem, CodegenError> {
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
        match graph.ty(value).dtype.blocks() {
            Some(blocks) if !blocks.is_kept() => {
                let [x] = operands[..] else { return Err(CodegenError::bug("rows", "blocks of several values")) };
                return self.round_to_blocks(w, x, value, &sinks);
            }
            Some(_) if *op == Core::Cast => return self.round_to_keep(w, operands[0], value, &sinks),
            _ => {}
        }
        let mut in_place = false;
        let row = match op {
            // Gathers make what they read of it.
            Core::Arg { .. } if self.packed(value).is_some() => return Ok(()),
            Core::Arg { index } => match self.values.get(&value) {
                Some(given) => given.clone(),
                None => self.param(w, *index, value)?,
            },
            Core::Const { values } if values.len() == 1 => Row::Const(values[0], graph.ty(value).dtype),
            Core::Const { values } => {
                let table = match self.elem(value)? {
                    Elem::F32 => w.table_f32(values),
                    elem @ (Elem::I64 | Elem::I32) => w.table_int(values, elem),
                    _ => return Err(self.unsupported(node, &format!("a table of {}", graph.ty(value).dtype))),
                };
                Row::Memory(View::contiguous(table, self.elem(value)?, &dims))
            }
            Core::Position => {
                let p = w.load_u32(self.axis.positions, self.element);
                Row::Scalar(p)
            }
            // One element is 0 wherever it is repeated to.
            Core::Index if dims == [1] => Row::Const(0.0, graph.ty(value).dtype),
            Core::Index => Row::Index,
            Core::Unary(_) | Core::Binary(_) | Core::Select | Core::Cast => {
                if dims.iter().product::<u64>() == 1 {
                    let at = vec![w.i64(0); dims.len()];
                    Row::Scalar(self.compute(w, value, &at, 0, None)?)
                } else if self.worth_storing(value)? {
                    let target = self.target(w, value, &sinks, &dims)?;
                    self.fill(w, value, &target)?;
                    in_place = true;
                    Row::Memory(target)
                } else {
                    Row::Lazy
                }
            }
            Core::Reduce(ReduceOp::ArgMax) => self.arg_max(w, operands[0], value)?,
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
                in_place = true;
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
                in_place = true;
                Row::Memory(target)
            }
            Core::Broadcast => match self.values.get(&operands[0]) {
                Some(row @ (Row::Scalar(_) | Row::Const(..))) => row.clone(),
                _ => Row::Memory(self.view_of(w, operands[0])?.broadcast(&dims)),
            },
            Core::Windows { dim, size, stride } => {
                let view = self.view_of(w, operands[0])?;
                let dim = self.row_dim(node, operands[0], *dim)?;
                Row::Memory(view.windows(dim, *size, *stride))
            }
            Core::Gather if self.dims(operands[1])?.is_empty() && self.packed(operands[0]).is_none() => {
                Row::Memory(self.table_row(w, operands[0], operands[1])?)
            }
            Core::Gather | Core::Take | Core::TopK { .. } | Core::Softmax | Core::Contract { .. } => {
                let target = self.target(w, value, &sinks, &dims)?;
                match (op, &operands[..]) {
                    (Core::Gather, [table, indices]) => self.table_rows(w, *table, *indices, &target)?,
                    (Core::Take, [values, indices]) => self.take(w, *values, *indices, &target)?,
                    (Core::TopK { k }, [x]) => self.largest(w, *x, *k, &target)?,
                    (Core::Softmax, [scores, rest @ ..]) => {
                        self.softmax(w, *scores, rest.first().copied(), rest.get(1).copied(), &target)?;
                    }
                    (Core::Contract { spec }, [a, b]) => self.contract(w, spec, [*a, *b], value, &target)?,
                    _ => return Err(CodegenError::bug("rows", format!("{op:?} of {} operands", operands.len()))),
                }
                in_place = true;
                Row::Memory(target)
            }
            Core::SelectRows
            | Core::Regroup
            | Core::First
            | Core::Last
            | Core::Scan { .. }
            | Core::Cache { .. }
            | Core::Call { .. }
            | Core::Weight { .. } => {
                return Err(self.unsupported(node, &format!("{op:?} in a token-wise kernel")));
            }
        };
        self.values.insert(value, row);
        self.deliver(w, value, &sinks, in_place)
    }

    pub(super) fn unsupported(&self, node: NodeId, what: &str) -> CodegenError {
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
            RowParam::Shared | RowParam::Packed(_) => buffer.data,
            RowParam::PerRow => w.row(buffer, self.row, elem.bytes()),
            RowParam::Selected => w.row(buffer, self.element, elem.bytes()),
            RowParam::End { axis, last } => {
                let sequence = w.load_u32(self.axis.sequences, self.element);
                let offsets = w.axis_array(self.args, axis, abi::AXIS_OFFSETS);
                let row = if last {
                    let one = w.i64(1);
                    let next = w.add(sequence, one);
                    let end = w.load_u32(offsets, next);
                    let end = w.max(end, one);
                    w.sub(end, one)
                } else {
                    w.load_u32(offsets, sequence)
                };
                w.row(buffer, row, elem.bytes())
            }
        };
        if dims.is_empty() {
            return Ok(Row::Scalar(View::contiguous(base, elem, &dims).load(w, &[], 0, None)));
        }
        Ok(Row::Memory(View::contiguous(base, elem, &dims)))
    }

    /// A value as memory, stored in scratch if it is not there yet.
    pub(super) fn view_of(&mut self, w: &mut Writer, value: ValueId) -> Result<View, CodegenError> {
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
    pub(super) fn vectors(&self, value: ValueId) -> bool {
        match self.values.get(&value) {
            Some(Row::Memory(view)) => view.unit_last() || view.dims.last() == Some(&1),
            Some(Row::Lazy) | None => self.graph.operands(value.node).iter().all(|o| self.vectors(*o)),
            Some(Row::Scalar(_) | Row::Const(..) | Row::Index) => true,
        }
    }

    /// The element (or `lanes` elements along the last dimension) at `at`, given in the coordinates of a value that this one broadcasts to.
    pub(super) fn compute(
        &self,
        w: &mut Writer,
        value: ValueId,
        at: &Coordinates,
        lanes: u32,
        mask: Option<Val>,
    ) -> Result<Val, CodegenError> {
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
                let op = self
                    .graph
                    .op(value.node)
                    .as_core()
                    .ok_or_else(|| CodegenError::bug("rows", "a fused operation inside an expression"))?;
                let operands = self.graph.operands(value.node);
                let mut args = Vec::new();
                for operand in &operands {
                    args.push(self.compute(w, *operand, at, lanes, mask)?);
                }
                elementwise(
                    w,
                    op,
                    &args,
                    self.graph.ty(value).dtype,
                    constant_of(self.graph, operands.get(1)),
                    Elem::I64,
                )
            }
        }
    }
}
