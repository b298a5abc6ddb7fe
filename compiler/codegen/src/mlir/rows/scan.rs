//! Scans: the step of one part of the states, for each token of each sequence in order.
//!
//! A tile is a part. For each sequence it begins with the state that the last step left (or the start), reads the state of the token before and
//! writes the next one into one of two places in turn, so that nothing is read after it is written over; the last lands in the page to be kept.
//! What depends on neither tokens nor states is computed once a tile.
//!
//! Operands of the launch: the parameters that are not constants, the pages of each state, the results.

use std::collections::{BTreeSet, HashMap};

use xfc_lang::graph::{DType, Graph, NodeId, ValueId};
use xfc_lang::ops::{Core, Op};
use xfc_runtime::artifact::abi::offsets as abi;

use super::view::View;
use super::{Axis, Body, Row};
use crate::error::CodegenError;
use crate::mlir::expr::constant;
use crate::mlir::frame::{Buffer, RowSpace};
use crate::mlir::machine::Machine;
use crate::mlir::schedule::RowsSchedule;
use crate::mlir::writer::{Cmp, Elem, Val, Writer};
use crate::plan::kernel::{RowParam, RowsSpec, ScanOperand, ScanSpec, Sink};

/// Rough number of operations from which on a value is computed once a tile, not where it is read.
const WORTH_KEEPING: u64 = 4;

/// A place for each of the states.
type Places = Vec<View>;

/// Writes the kernel; gives its text and the bytes of scratch it needs.
///
/// # Errors
/// An operation or element type without a lowering.
pub fn emit(
    symbol: &str,
    spec: &ScanSpec,
    machine: &Machine,
    schedule: &RowsSchedule,
) -> Result<(String, u64), CodegenError> {
    let (mut w, params) = Writer::kernel(symbol, machine);
    let args = params.args;
    let step = &spec.step;
    let n_outputs = step.outputs().len();
    let rows = RowsSpec {
        label: "scan".to_owned(),
        space: RowSpace { axis: spec.axis, selected: false },
        body: step.clone(),
        params: vec![RowParam::Shared; step.params().len()],
        sinks: (0..n_outputs).map(|output| (output, Sink::Given)).collect(),
        widened: 0,
    };
    let scan = Scan::new(&mut w, spec, args);
    let axis = Axis {
        positions: w.axis_array(args, spec.axis, abi::AXIS_POSITIONS),
        sequences: w.axis_array(args, spec.axis, abi::AXIS_SEQUENCES),
        rows: w.axis_array(args, spec.axis, abi::AXIS_ROWS),
    };
    let offsets = w.axis_array(args, spec.axis, abi::AXIS_OFFSETS);
    let n_sequences = w.n_sequences(args);
    let parts = w.i64(spec.parts as i64);
    let end = w.min(params.tile_end, parts);
    let zero = w.i64(0);
    let mut scratch_bytes = 0;
    w.for_loop(params.tile_begin, end, 1, &[], |w, part, _| {
        let mut body = Body {
            spec: &rows,
            graph: &rows.body,
            lanes: schedule.lanes,
            halves_alone: schedule.halves_alone,
            args,
            buffers: &[],
            axis: &axis,
            row: zero,
            element: zero,
            scratch: params.scratch,
            scratch_bytes: 0,
            values: HashMap::new(),
            given: Vec::new(),
        };
        let known = scan.before_tokens(w, &mut body, part)?;
        let temporary = scan.places(w, &mut body)?;
        let begun = scan.places(w, &mut body)?;
        scratch_bytes = body.scratch_bytes;
        w.for_loop(zero, n_sequences, 1, &[], |w, sequence, _| {
            let first = w.load_u32(offsets, sequence);
            let one = w.i64(1);
            let next = w.add(sequence, one);
            let last = w.load_u32(offsets, next);
            let any = w.cmp(Cmp::Lt, first, last);
            w.if_then(any, |w| {
                let carried = scan.begin(w, &body, (&temporary, &begun), (part, sequence), (first, last))?;
                w.for_loop(first, last, 1, &carried, |w, token, carried| {
                    let n = spec.states;
                    let mut body = body.again();
                    scan.token(w, &mut body, &known, (part, token), &carried[..2 * n])?;
                    scratch_bytes = scratch_bytes.max(body.scratch_bytes);
                    w.sync();
                    Ok([&carried[n..2 * n], &carried[2 * n..], &carried[n..2 * n]].concat())
                })?;
                Ok(())
            })?;
            Ok(vec![])
        })?;
        Ok(vec![])
    })?;
    Ok(w.finish(scratch_bytes))
}

/// The kernel's operands.
struct Scan<'a> {
    spec: &'a ScanSpec,
    step: &'a Graph,
    args: Val,
    positions: Val,
    /// Of each parameter, where it is not a constant.
    params: Vec<Option<Buffer>>,
    pages: Vec<Buffer>,
    results: Vec<Buffer>,
}

impl<'a> Scan<'a> {
    fn new(w: &mut Writer, spec: &'a ScanSpec, args: Val) -> Self {
        let mut next = 0;
        let mut operand = |w: &mut Writer| {
            next += 1;
            w.buffer(args, next - 1)
        };
        let given = |p: &(ScanOperand, Option<usize>)| !matches!(p.0, ScanOperand::Constant(_));
        let params = spec.params.iter().map(|p| given(p).then(|| operand(w))).collect();
        let pages = (0..spec.states).map(|_| operand(w)).collect();
        let results = (spec.states..spec.outputs.len()).map(|_| operand(w)).collect();
        let positions = w.axis_array(args, spec.axis, abi::AXIS_POSITIONS);
        Scan { spec, step: &spec.step, args, positions, params, pages, results }
    }

    fn param(&self, index: usize) -> ValueId {
        self.step.params()[index].value
    }

    fn output(&self, index: usize) -> ValueId {
        self.step.outputs()[index].value
    }

    /// The part of a value at `base`, whose dimension `divided` is that of all parts.
    fn part(
        &self,
        w: &mut Writer,
        body: &Body<'_>,
        value: ValueId,
        (base, divided, part): (Val, Option<usize>, Val),
    ) -> Result<View, CodegenError> {
        let (elem, dims) = (body.elem(value)?, body.dims(value)?);
        let mut whole = dims.clone();
        if let Some(d) = divided {
            whole[d] *= self.spec.parts;
        }
        let strides = View::row_major(&whole);
        let base = match divided {
            Some(d) => w.element(base, part, dims[d] * strides[d] * elem.bytes()),
            None => base,
        };
        Ok(View { base, elem, dims, strides })
    }

    /// A parameter that is the same for all tokens.
    fn shared(&self, w: &mut Writer, body: &Body<'_>, index: usize, part: Val) -> Result<Row, CodegenError> {
        let value = self.param(index);
        let dtype = self.step.ty(value).dtype;
        let (operand, divided) = &self.spec.params[index];
        let base = match (operand, self.params[index]) {
            (ScanOperand::Constant(values), _) if values.len() == 1 => return Ok(Row::Const(values[0], dtype)),
            (ScanOperand::Constant(values), _) => match body.elem(value)? {
                Elem::F32 => w.table_f32(values),
                elem @ (Elem::I64 | Elem::I32) => w.table_int(values, elem),
                _ => return Err(CodegenError::unsupported(format!("a table of {dtype} in a scan"), "")),
            },
            (_, Some(buffer)) => buffer.data,
            (_, None) => return Err(CodegenError::bug("scan", "an operand without a buffer")),
        };
        let view = self.part(w, body, value, (base, *divided, part))?;
        Ok(in_memory(w, view))
    }

    /// Computes what depends on no token and no state; gives the nodes that need not be computed for each token.
    fn before_tokens(&self, w: &mut Writer, body: &mut Body<'_>, part: Val) -> Result<BTreeSet<NodeId>, CodegenError> {
        let graph = self.step;
        let mut known = BTreeSet::new();
        for (index, (operand, _)) in self.spec.params.iter().enumerate().skip(self.spec.states) {
            if !matches!(operand, ScanOperand::Token) {
                let row = self.shared(w, body, index, part)?;
                body.values.insert(self.param(index), row);
                known.insert(self.param(index).node);
            }
        }
        for node in graph.topological() {
            let value = ValueId { node, port: 0 };
            let is_param = matches!(graph.op(node), Op::Core(Core::Arg { .. }));
            if !is_param && !graph.is_output(value) && graph.operands(node).iter().all(|v| known.contains(&v.node)) {
                body.node(w, node)?;
                known.insert(node);
            }
        }
        for node in &known {
            let value = ValueId { node: *node, port: 0 };
            let read = graph.uses(value).iter().any(|(user, _)| !known.contains(user));
            let lazy = matches!(body.values.get(&value), Some(Row::Lazy)) && graph.ty(value).dtype != DType::Bool;
            if read && lazy && body.cost(value)? >= WORTH_KEEPING {
                body.view_of(w, value)?;
            }
        }
        // A parameter that is returned as it is goes to its place for each token.
        known.retain(|node| !graph.is_output(ValueId { node: *node, port: 0 }));
        Ok(known)
    }

    fn places(&self, w: &mut Writer, body: &mut Body<'_>) -> Result<Places, CodegenError> {
        let place = |i| {
            let value = self.param(i);
            let (elem, dims) = (body.elem(value)?, body.dims(value)?);
            Ok(body.scratch(w, elem, &dims))
        };
        (0..self.spec.states).map(place).collect()
    }

    /// The addresses that the first token reads its states at, those that it writes the next at, and the others.
    fn begin(
        &self,
        w: &mut Writer,
        body: &Body<'_>,
        (temporary, begun): (&Places, &Places),
        (part, sequence): (Val, Val),
        (first, last): (Val, Val),
    ) -> Result<Vec<Val>, CodegenError> {
        let (zero, one) = (w.i64(0), w.i64(1));
        let position = w.load_u32(self.positions, first);
        let is_start = w.cmp(Cmp::Eq, position, zero);
        w.if_then(is_start, |w| {
            for (i, to) in begun.iter().enumerate() {
                match self.shared(w, body, i, part)? {
                    Row::Memory(from) => body.copy(w, &from, to)?,
                    Row::Scalar(x) => {
                        to.store(w, x, &[], None);
                        w.sync();
                    }
                    Row::Const(x, dtype) => body.nest(w, &to.dims, true, &mut |w, at, lanes, mask| {
                        let x = constant(w, x, dtype, Elem::I64)?;
                        let x = w.splat(x, lanes);
                        to.store(w, x, at, mask);
                        Ok(())
                    })?,
                    Row::Index | Row::Lazy => return Err(CodegenError::bug("scan", "a start that is not given")),
                }
            }
            Ok(())
        })?;
        let n = w.sub(last, first);
        let odd = w.and(n, one);
        let is_odd = w.cmp(Cmp::Ne, odd, zero);
        let cache = w.cache(self.args, self.spec.group);
        let (before, after) = (w.page_id(cache, sequence, zero), w.page_id(cache, sequence, one));
        let (mut read, mut write, mut other) = (Vec::new(), Vec::new(), Vec::new());
        for (i, pages) in self.pages.iter().enumerate() {
            let page = |w: &mut Writer, id| {
                let base = w.element(pages.data, id, self.spec.page_bytes[i]);
                self.part(w, body, self.param(i), (base, self.spec.params[i].1, part)).map(|view| view.base)
            };
            let (before, after) = (page(w, before)?, page(w, after)?);
            read.push(w.select(is_start, begun[i].base, before));
            write.push(w.select(is_odd, after, temporary[i].base));
            other.push(w.select(is_odd, temporary[i].base, after));
        }
        Ok([read, write, other].concat())
    }

    /// One token: `addresses` are those of its states, then those of the next.
    fn token(
        &self,
        w: &mut Writer,
        body: &mut Body<'_>,
        known: &BTreeSet<NodeId>,
        (part, token): (Val, Val),
        addresses: &[Val],
    ) -> Result<(), CodegenError> {
        let n = self.spec.states;
        for i in 0..n {
            let state = self.param(i);
            let view = View::contiguous(addresses[i], body.elem(state)?, &body.dims(state)?);
            let row = in_memory(w, view);
            body.values.insert(state, row);
            let next = self.output(i);
            body.given.push(View::contiguous(addresses[n + i], body.elem(next)?, &body.dims(next)?));
        }
        for (index, (operand, divided)) in self.spec.params.iter().enumerate() {
            if let (ScanOperand::Token, Some(buffer)) = (operand, self.params[index]) {
                let value = self.param(index);
                let base = w.row(buffer, token, body.elem(value)?.bytes());
                let view = self.part(w, body, value, (base, *divided, part))?;
                let row = in_memory(w, view);
                body.values.insert(value, row);
            }
        }
        for (i, buffer) in self.results.iter().enumerate() {
            let value = self.output(n + i);
            let base = w.row(*buffer, token, body.elem(value)?.bytes());
            let view = self.part(w, body, value, (base, self.spec.outputs[n + i], part))?;
            body.given.push(view);
        }
        for node in self.step.topological() {
            if !known.contains(&node) {
                body.node(w, node)?;
            }
        }
        Ok(())
    }
}

/// A value in memory, or in a register where it is one element.
fn in_memory(w: &mut Writer, view: View) -> Row {
    if view.dims.is_empty() { Row::Scalar(view.load(w, &[], 0, None)) } else { Row::Memory(view) }
}
