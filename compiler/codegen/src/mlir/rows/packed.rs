//! Rows of a table that is packed as a product's matrix: gathered out of its panels, integers of few bits and floats of 8 widened.

use xfc_lang::graph::ValueId;
use xfc_lang::ops::Core;
use xfc_runtime::artifact::manifest::{Blocks, Pack};

use super::Body;
use super::choose::clamped;
use super::view::View;
use crate::error::CodegenError;
use crate::mlir::expr::cast;
use crate::mlir::frame::Buffer;
use crate::mlir::writer::{Elem, Ty, Val, Writer};
use crate::plan::kernel::RowParam;

impl Body<'_> {
    /// A table that is packed as a matrix, and how.
    pub(super) fn packed(&self, table: ValueId) -> Option<(Buffer, Pack)> {
        let Some(Core::Arg { index }) = self.graph.op(table.node).as_core() else { return None };
        match self.spec.params.get(*index) {
            Some(RowParam::Packed(pack)) => Some((self.buffers[*index], *pack)),
            _ => None,
        }
    }

    /// Rows of a packed table, one for each index, copied to `target`.
    pub(super) fn packed_rows(
        &self,
        w: &mut Writer,
        (table, pack): (Buffer, Pack),
        dims: &[u64],
        indices: ValueId,
        target: &View,
    ) -> Result<(), CodegenError> {
        let &[rows, inputs] = dims else {
            return Err(CodegenError::bug("rows", format!("a packed table of dimensions {dims:?}")));
        };
        let n = self.dims(indices)?;
        self.outer(w, &n, n.len(), Vec::new(), &mut |w, at| {
            let index = self.compute(w, indices, &at, 0, None)?;
            let index = clamped(w, index, rows);
            let to = at.iter().fold(target.clone(), |to, i| to.index(w, *i));
            match pack {
                Pack::Panels { columns, depth } => {
                    let bytes = columns * inputs.next_multiple_of(depth) * to.elem.bytes();
                    let (panel, column) = panel_of(w, table, index, columns, bytes);
                    of_numbers(w, panel, column, (columns, depth, inputs), &to)
                }
                Pack::Blocks(blocks) => {
                    let (panel, column) = panel_of(w, table, index, blocks.columns, blocks.panel_bytes(inputs));
                    of_groups(w, panel, column, blocks, inputs, &to)
                }
                Pack::Plain => Err(CodegenError::bug("rows", "a table that is not packed")),
            }
        })?;
        w.sync();
        Ok(())
    }
}

/// The panel of `bytes` bytes that a row is in, and which of its columns the row is.
fn panel_of(w: &mut Writer, table: Buffer, index: Val, columns: u64, bytes: u64) -> (Val, Val) {
    let columns = w.i64(columns as i64);
    let panel = w.div_unsigned(index, columns);
    let column = w.rem_unsigned(index, columns);
    (w.element(table.data, panel, bytes), column)
}

/// A column of a panel of numbers, in which `depth` inputs lie side by side.
fn of_numbers(
    w: &mut Writer,
    panel: Val,
    column: Val,
    (columns, depth, inputs): (u64, u64, u64),
    to: &View,
) -> Result<(), CodegenError> {
    let size = to.elem.bytes();
    let start = w.element(panel, column, depth * size);
    let group = |w: &mut Writer, group: Val, present: u64| {
        let from = w.element(start, group, columns * depth * size);
        let first = w.int(depth as i64, group.ty);
        let first = w.mul(group, first);
        for k in 0..present {
            let at = w.offset_const(from, k * size);
            let x = w.load(Ty::scalar(to.elem), at);
            let place = w.i64(k as i64);
            let place = w.add(first, place);
            to.store(w, x, &[place], None);
        }
    };
    let whole = w.i64((inputs / depth) as i64);
    let zero = w.i64(0);
    w.for_loop(zero, whole, 1, &[], |w, i, _| {
        group(w, i, depth);
        Ok(vec![])
    })?;
    group(w, whole, inputs % depth);
    Ok(())
}

/// A column of a panel of groups, widened.
fn of_groups(
    w: &mut Writer,
    panel: Val,
    column: Val,
    blocks: Blocks,
    inputs: u64,
    to: &View,
) -> Result<(), CodegenError> {
    let whole = inputs / blocks.group;
    let (zero, end) = (w.i64(0), w.i64(whole as i64));
    let of_group = if blocks.floats.is_some() { of_floats } else { of_integers };
    w.for_loop(zero, end, 1, &[], |w, group, _| {
        of_group(w, panel, (group, column), blocks, blocks.group, to)?;
        Ok(vec![])
    })?;
    match inputs % blocks.group {
        0 => Ok(()),
        rest => of_group(w, panel, (end, column), blocks, rest, to),
    }
}

/// One group of floats of a column, of which the first `present` elements exist.
fn of_floats(
    w: &mut Writer,
    panel: Val,
    (group, column): (Val, Val),
    blocks: Blocks,
    present: u64,
    to: &View,
) -> Result<(), CodegenError> {
    let depth = blocks.floats.unwrap_or(1);
    let start = w.element(panel, group, blocks.group_bytes());
    let at = w.element(start, column, 4);
    let scale = w.load(Ty::scalar(Elem::F32), at);
    let elements = w.offset_const(start, blocks.scales_bytes());
    let elements = w.element(elements, column, depth);
    let size = w.i64(blocks.group as i64);
    let first = w.mul(group, size);
    let run = |w: &mut Writer, run: Val, present: u64| -> Result<(), CodegenError> {
        let from = w.element(elements, run, blocks.columns * depth);
        let before = w.i64(depth as i64);
        let before = w.mul(run, before);
        let first = w.add(first, before);
        for k in 0..present {
            let at = w.offset_const(from, k);
            let byte = w.load(Ty::scalar(Elem::I8), at);
            let byte = w.widen_unsigned(byte, Elem::I32);
            let x = w.from_e4m3(byte, 0);
            let x = w.mul(x, scale);
            let x = cast(w, x, to.elem)?;
            let place = w.i64(k as i64);
            let place = w.add(first, place);
            to.store(w, x, &[place], None);
        }
        Ok(())
    };
    let (zero, whole) = (w.i64(0), w.i64((present / depth) as i64));
    w.for_loop(zero, whole, 1, &[], |w, i, _| {
        run(w, i, depth)?;
        Ok(vec![])
    })?;
    match present % depth {
        0 => Ok(()),
        rest => run(w, whole, rest),
    }
}

/// One group of integers of a column, of which the first `present` elements exist.
fn of_integers(
    w: &mut Writer,
    panel: Val,
    (group, column): (Val, Val),
    blocks: Blocks,
    present: u64,
    to: &View,
) -> Result<(), CodegenError> {
    let start = w.element(panel, group, blocks.group_bytes());
    let half = |w: &mut Writer, behind: u64| {
        let list = w.offset_const(start, behind);
        let at = w.element(list, column, 2);
        let bits = w.load(Ty::scalar(Elem::I16), at);
        w.from_half(bits)
    };
    let scale = half(w, 0);
    let minimum = blocks.minimum.then(|| half(w, blocks.scales_bytes()));
    let words = w.offset_const(start, blocks.integers_at());
    let words = w.element(words, column, 4);
    let size = w.i64(blocks.group as i64);
    let first = w.mul(group, size);
    let each = 32 / blocks.bits;
    let word = |w: &mut Writer, run: Val, present: u64| -> Result<(), CodegenError> {
        let at = w.element(words, run, blocks.columns * 4);
        let word = w.load(Ty::scalar(Elem::I32), at);
        let before = w.i64(each as i64);
        let before = w.mul(run, before);
        let first = w.add(first, before);
        for k in 0..present {
            // Bytes of a word are inputs in order; of halves of bytes, first all low ones, then the high ones.
            let down = k % 4 * 8 + k / 4 * blocks.bits;
            let moved = if down == 0 { word } else { w.shr(word, down as u32) };
            let mask = w.int((1 << blocks.bits) - 1, word.ty);
            let mut integer = w.and(moved, mask);
            if minimum.is_none() {
                let added = w.int(1 << (blocks.bits - 1), word.ty);
                integer = w.sub(integer, added);
            }
            let integer = w.to_float(integer);
            let mut x = w.mul(integer, scale);
            if let Some(minimum) = minimum {
                x = w.add(x, minimum);
            }
            let x = cast(w, x, to.elem)?;
            let place = w.i64(k as i64);
            let place = w.add(first, place);
            to.store(w, x, &[place], None);
        }
        Ok(())
    };
    let (zero, whole) = (w.i64(0), w.i64((present / each) as i64));
    w.for_loop(zero, whole, 1, &[], |w, run, _| {
        word(w, run, each)?;
        Ok(vec![])
    })?;
    match present % each {
        0 => Ok(()),
        rest => word(w, whole, rest),
    }
}
