//! Where values of a row are stored: which are worth it, in scratch, in an output buffer or in a page.

use xfc_lang::graph::{DType, ValueId};
use xfc_lang::ops::{Core, UnaryOp};

use super::view::View;
use super::{Body, Row};
use crate::error::CodegenError;
use crate::mlir::writer::{Elem, Val, Writer};
use crate::plan::kernel::{PageLayout, Sink};

impl Body<'_> {
    pub(super) fn sinks_of(&self, value: ValueId) -> Vec<usize> {
        let outputs = self.graph.outputs();
        (0..self.spec.sinks.len()).filter(|s| outputs[self.spec.sinks[*s].0].value == value).collect()
    }

    /// Whether an elementwise value is stored rather than recomputed at each use.
    pub(super) fn worth_storing(&self, value: ValueId) -> Result<bool, CodegenError> {
        let uses = self.graph.uses(value);
        let elements: u64 = self.dims(value)?.iter().product();
        let mut broadcast = false;
        for (user, _) in &uses {
            let op = self.graph.op(*user).as_core();
            // Views and joins read memory; a larger result reads each element several times.
            let is_view = matches!(
                op,
                Some(
                    Core::Reshape
                        | Core::Slice { .. }
                        | Core::Transpose { .. }
                        | Core::Repeat { .. }
                        | Core::Broadcast
                        | Core::Windows { .. }
                )
            );
            if is_view {
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
    pub(super) fn cost(&self, value: ValueId) -> Result<u64, CodegenError> {
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
    pub(super) fn target(
        &mut self,
        w: &mut Writer,
        value: ValueId,
        sinks: &[usize],
        dims: &[u64],
    ) -> Result<View, CodegenError> {
        let elem = self.elem(value)?;
        for s in sinks {
            if matches!(self.spec.sinks[*s].1, Sink::Buffer | Sink::Given) {
                return self.sink_view(w, *s, elem, dims);
            }
        }
        Ok(self.scratch(w, elem, dims))
    }

    pub(super) fn scratch(&mut self, w: &mut Writer, elem: Elem, dims: &[u64]) -> View {
        let at = self.scratch_bytes;
        self.scratch_bytes = (at + dims.iter().product::<u64>() * elem.bytes()).next_multiple_of(64);
        let base = w.offset_const(self.scratch, at);
        View::contiguous(base, elem, dims)
    }

    /// Where the page of a cache begins that the row is kept in, and which of its tokens it is.
    pub(super) fn page_of(&self, w: &mut Writer, sink: usize) -> Result<(Val, Val), CodegenError> {
        let Sink::Cache { group, page_tokens, page_bytes, .. } = self.spec.sinks[sink].1 else {
            return Err(CodegenError::bug("rows", "a page that is no cache's"));
        };
        let cache = w.cache(self.args, group);
        let position = w.load_u32(self.axis.positions, self.element);
        let sequence = w.load_u32(self.axis.sequences, self.element);
        let size = w.i64(page_tokens as i64);
        let page = w.div_unsigned(position, size);
        let token = w.rem_unsigned(position, size);
        let id = w.page_id(cache, sequence, page);
        Ok((w.element(self.buffers[self.spec.params.len() + sink].data, id, page_bytes), token))
    }

    pub(super) fn sink_view(
        &self,
        w: &mut Writer,
        sink: usize,
        elem: Elem,
        dims: &[u64],
    ) -> Result<View, CodegenError> {
        match self.spec.sinks[sink].1 {
            Sink::Given => Ok(self.given[sink].clone()),
            Sink::Buffer => {
                let buffer = self.buffers[self.spec.params.len() + sink];
                let base = w.row(buffer, self.row, elem.bytes());
                Ok(View::contiguous(base, elem, dims))
            }
            Sink::Cache { layout, page_tokens, .. } => {
                let (base, token) = self.page_of(w, sink)?;
                let (heads, dim) = match dims {
                    [] => (1, 1),
                    [dim] => (1, *dim),
                    [heads, dim] => (*heads, *dim),
                    _ => return Err(CodegenError::unsupported(format!("a cached value of dimensions {dims:?}"), "")),
                };
                let (elem, dim, base, strides) = match layout {
                    PageLayout::TokensLast => {
                        (elem, dim, w.element(base, token, elem.bytes()), [dim * page_tokens, page_tokens])
                    }
                    PageLayout::TokensMiddle => {
                        (elem, dim, w.element(base, token, dim * elem.bytes()), [page_tokens * dim, 1])
                    }
                    // Pairs are moved as what they fill.
                    PageLayout::DimPairs => {
                        let base = w.element(base, token, 2 * elem.bytes());
                        (Elem::I32, dim / 2, base, [dim / 2 * page_tokens, page_tokens])
                    }
                    PageLayout::TokenPairs => {
                        let two = w.i64(2);
                        let pair = w.div_unsigned(token, two);
                        let half = w.rem_unsigned(token, two);
                        let base = w.element(base, pair, 2 * dim * elem.bytes());
                        (elem, dim, w.element(base, half, elem.bytes()), [page_tokens * dim, 2])
                    }
                };
                let view = View { base, elem, dims: vec![heads, dim], strides: strides.to_vec() };
                Ok((dims.len()..2).fold(view, |view, _| view.drop_first()))
            }
        }
    }

    /// Sends a value to the sinks that it was not computed into; `in_place`: it was computed into its [`target`](Self::target).
    pub(super) fn deliver(
        &mut self,
        w: &mut Writer,
        value: ValueId,
        sinks: &[usize],
        mut in_place: bool,
    ) -> Result<(), CodegenError> {
        let dims = self.dims(value)?;
        let elem = self.elem(value)?;
        for s in sinks {
            if in_place && matches!(self.spec.sinks[*s].1, Sink::Buffer | Sink::Given) {
                in_place = false;
                continue;
            }
            if let (Some(blocks), Sink::Cache { .. }) = (self.graph.ty(value).dtype.blocks(), self.spec.sinks[*s].1) {
                // Rounded already, which rounding again leaves as it is.
                let view = self.view_of(w, value)?;
                self.keep_in_blocks(w, &view, blocks, None, &[*s])?;
                continue;
            }
            let target = self.sink_view(w, *s, elem, &dims)?;
            if target.elem != elem {
                let copy = self.scratch(w, elem, &dims);
                self.fill(w, value, &copy)?;
                self.copy(w, &View::contiguous(copy.base, target.elem, &target.dims), &target)?;
            } else if target.unit_last() || matches!(self.values.get(&value), Some(Row::Memory(_))) {
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
}
