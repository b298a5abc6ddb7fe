//! What masks, scores and sinks of an attention read besides positions: constants, weights, what a query brings and what is kept of keys.

use xfc_lang::graph::{DType, Graph};
use xfc_lang::ops::Core;

use super::{Attention, Query};
use crate::error::CodegenError;
use crate::mlir::expr::{cast, constant, elem_of};
use crate::mlir::frame::{Buffer, CacheTable};
use crate::mlir::writer::{Elem, Spread, Ty, Val, Writer};
use crate::plan::kernel::{KeyRow, PageLayout, Table};

/// How a parameter of mask, score and sink is read.
pub(super) enum Read<'a> {
    /// A constant, one for each head or one for all.
    Heads(DType, &'a [f64]),
    /// By its address.
    Whole(Val),
    /// Of the query's row.
    Query { buffer: Buffer, dtype: DType, by_head: bool, row: Option<u64> },
    /// Of the keys of a page.
    Key { data: Val, table: CacheTable, dtype: DType, page_bytes: u64, row: Option<KeyRow> },
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

/// Operands of the launch that tables are.
pub(super) fn operands(tables: &[Table]) -> usize {
    let is_operand = |table: &&Table| matches!(table, Table::Weight { .. } | Table::Query { .. } | Table::Key { .. });
    tables.iter().filter(is_operand).count()
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
                    Table::Query { dtype, by_head, row } => {
                        Read::Query { buffer, dtype: *dtype, by_head: *by_head, row: *row }
                    }
                    Table::Key { dtype, group, page_bytes, row } => {
                        let table = w.cache(args, *group);
                        Read::Key { data: buffer.data, table, dtype: *dtype, page_bytes: *page_bytes, row: *row }
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
            Read::Query { buffer, dtype, by_head, row: Some(n) } => {
                let bytes = in_memory(*dtype)?.bytes();
                let at = w.row(*buffer, query.row, bytes);
                Ok(if *by_head { w.element(at, head, n * bytes) } else { at })
            }
            Read::Query { buffer, dtype, by_head, row: None } => {
                self.of_query(w, *buffer, *dtype, query, by_head.then_some(head))
            }
            // A sink reads nothing of keys, and so no row of them.
            Read::Key { data, row: Some(_), .. } => Ok(*data),
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

    /// Where the rows of a head lie in the page at `at`, and how those of the keys of vector `v` lie there.
    pub(super) fn rows_of_keys(
        &self,
        w: &mut Writer,
        (at, dtype, row): (Val, DType, KeyRow),
        head: Val,
        v: usize,
    ) -> Result<(Val, Spread), CodegenError> {
        let tokens = self.spec.page_tokens;
        let at = if row.by_head { w.element(at, head, row.size * tokens * in_memory(dtype)?.bytes()) } else { at };
        let (stride, apart) = match row.layout {
            PageLayout::TokensLast => (tokens, 1),
            PageLayout::TokensMiddle => (1, row.size),
            PageLayout::DimPairs | PageLayout::TokenPairs => {
                return Err(CodegenError::bug("attention", "pairs that are gathered from"));
            }
        };
        let first: Vec<i64> = (0..self.lanes).map(|l| (i64::from(v as u32 * self.lanes + l)) * apart as i64).collect();
        Ok((at, Spread { stride, first: w.lanes(&first, self.ints) }))
    }

    /// What is kept of the keys of vector `v` of the page at `at`.
    pub(super) fn of_keys(&self, w: &mut Writer, at: Val, dtype: DType, v: usize) -> Result<Val, CodegenError> {
        let (stored, elem) = (in_memory(dtype)?, elem_of(dtype, self.ints)?);
        let at = w.offset_const(at, v as u64 * u64::from(self.lanes) * stored.bytes());
        let value = w.load(Ty::of(stored, self.lanes), at);
        cast(w, value, elem)
    }
}

/// Whether every integer of a graph of scalars is a 32-bit one.
pub(super) fn fits_i32(graph: &Graph) -> bool {
    graph.nodes().all(|node| match graph.op(node).as_core() {
        Some(Core::Const { values }) if graph.types(node)[0].dtype == DType::I64 => {
            values.iter().all(|v| v.abs() < f64::from(i32::MAX))
        }
        _ => true,
    })
}
