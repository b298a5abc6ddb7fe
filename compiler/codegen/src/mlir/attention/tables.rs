//! What masks, scores and sinks of an attention read besides positions: constants, weights, what a query brings and what is kept of keys.

use xfc_lang::graph::DType;

use super::{Attention, Query};
use crate::error::CodegenError;
use crate::mlir::expr::{cast, constant, elem_of};
use crate::mlir::frame::{Buffer, CacheTable};
use crate::mlir::writer::{Elem, Ty, Val, Writer};
use crate::plan::kernel::Table;

/// How a parameter of mask, score and sink is read.
pub(super) enum Read<'a> {
    /// A constant, one for each head or one for all.
    Heads(DType, &'a [f64]),
    /// By its address.
    Whole(Val),
    /// Of the query's row.
    Query { buffer: Buffer, dtype: DType, by_head: bool },
    /// Of the keys of a page.
    Key { data: Val, table: CacheTable, dtype: DType, page_bytes: u64 },
}

/// Whether integers come from tensors, which may hold any.
pub(super) fn brings_integers(table: &Table) -> bool {
    matches!(
        table,
        Table::Query { dtype: DType::I64, .. }
            | Table::Key { dtype: DType::I64, .. }
            | Table::Constant { dtype: DType::I64, .. }
    )
}

/// Finds the tables among the operands of the launch, where they lie behind the result.
pub(super) fn open<'a>(w: &mut Writer, args: Val, tables: &'a [Table]) -> Vec<Read<'a>> {
    let mut operand = 4;
    let mut reads = Vec::with_capacity(tables.len());
    for table in tables {
        reads.push(match table {
            Table::Heads { dtype, values } => Read::Heads(*dtype, values),
            Table::Constant { dtype: DType::F32, values } => Read::Whole(w.table_f32(values)),
            Table::Constant { values, .. } => Read::Whole(w.table_int(values, Elem::I64)),
            Table::Weight { .. } | Table::Query { .. } | Table::Key { .. } => {
                operand += 1;
                let buffer = w.buffer(args, operand - 1);
                match table {
                    Table::Query { dtype, by_head } => Read::Query { buffer, dtype: *dtype, by_head: *by_head },
                    Table::Key { dtype, group, page_bytes } => {
                        let table = w.cache(args, *group);
                        Read::Key { data: buffer.data, table, dtype: *dtype, page_bytes: *page_bytes }
                    }
                    _ => Read::Whole(buffer.data),
                }
            }
        });
    }
    reads
}

/// Element type in memory: booleans are bytes.
fn in_memory(dtype: DType) -> Result<Elem, CodegenError> {
    let elem = elem_of(dtype, Elem::I64)?;
    Ok(if elem == Elem::I1 { Elem::I8 } else { elem })
}

impl Attention<'_> {
    /// What a table gives for a query and a head, whatever the key; nothing of use where that differs.
    pub(super) fn of_all_keys(
        &self,
        w: &mut Writer,
        table: &Read<'_>,
        query: &Query,
        head: Val,
    ) -> Result<Val, CodegenError> {
        match table {
            Read::Heads(dtype, values) => self.of_head(w, *dtype, values, head),
            Read::Whole(address) => Ok(*address),
            Read::Query { buffer, dtype, by_head } => self.of_query(w, *buffer, *dtype, query, by_head.then_some(head)),
            Read::Key { dtype, .. } => constant(w, 0.0, *dtype, self.ints),
        }
    }

    /// What a constant of the attention is for this head.
    fn of_head(&self, w: &mut Writer, dtype: DType, values: &[f64], head: Val) -> Result<Val, CodegenError> {
        let elem = elem_of(dtype, self.ints)?;
        if let [one] = values[..] {
            return constant(w, one, dtype, self.ints);
        }
        // Booleans are bytes in memory.
        let stored = if elem == Elem::I1 { Elem::I8 } else { elem };
        let all = if elem.is_float() { w.table_f32(values) } else { w.table_int(values, stored) };
        let at = w.element(all, head, stored.bytes());
        let value = w.load(Ty::scalar(stored), at);
        cast(w, value, elem)
    }

    /// What the query brings.
    fn of_query(
        &self,
        w: &mut Writer,
        buffer: Buffer,
        dtype: DType,
        query: &Query,
        head: Option<Val>,
    ) -> Result<Val, CodegenError> {
        let (stored, elem) = (in_memory(dtype)?, elem_of(dtype, self.ints)?);
        let mut at = w.row(buffer, query.row, stored.bytes());
        if let Some(head) = head {
            at = w.element(at, head, stored.bytes());
        }
        let value = w.load(Ty::scalar(stored), at);
        cast(w, value, elem)
    }

    /// What is kept of the keys of vector `v` of the page at `at`.
    pub(super) fn of_keys(&self, w: &mut Writer, at: Val, dtype: DType, v: usize) -> Result<Val, CodegenError> {
        let (stored, elem) = (in_memory(dtype)?, elem_of(dtype, self.ints)?);
        let at = w.offset_const(at, v as u64 * u64::from(self.lanes) * stored.bytes());
        let value = w.load(Ty::of(stored, self.lanes), at);
        cast(w, value, elem)
    }
}
