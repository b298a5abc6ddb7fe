//! Reads what a kernel is called with: buffers, sizes, positions and block tables, at the offsets of the ABI.

use xfc_runtime::artifact::abi::offsets as abi;

use super::writer::{Elem, Ty, Val, Writer};

const PTR: Ty = Ty::scalar(Elem::Ptr);
const I64: Ty = Ty::scalar(Elem::I64);
const I32: Ty = Ty::scalar(Elem::I32);

/// An operand of the launch.
#[derive(Clone, Copy, Debug)]
pub struct Buffer {
    /// First byte.
    pub data: Val,
    /// Elements from one row to the next.
    pub row_stride: Val,
}

/// Which elements of a ragged axis a kernel goes over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RowSpace {
    /// The axis.
    pub axis: usize,
    /// Only those selected.
    pub selected: bool,
}

impl Writer {
    /// Operand `index` of the launch.
    pub fn buffer(&mut self, args: Val, index: usize) -> Buffer {
        if self.is_block() {
            self.n_buffers = self.n_buffers.max(index + 1);
            let base = abi::LAUNCH_BUFFERS + index * abi::OPERAND_SIZE;
            let at = self.offset_const(args, (base + abi::OPERAND_DATA) as u64);
            let data = self.load(PTR, at);
            let at = self.offset_const(args, (base + abi::OPERAND_ROW_STRIDE) as u64);
            return Buffer { data, row_stride: self.load(I64, at) };
        }
        let at = self.offset_const(args, abi::ARGS_BUFFERS as u64);
        let table = self.load(PTR, at);
        let base = (index * abi::BUFFER_SIZE) as u64;
        let at = self.offset_const(table, base + abi::BUFFER_DATA as u64);
        let data = self.load(PTR, at);
        let at = self.offset_const(table, base + abi::BUFFER_ROW_STRIDE as u64);
        let row_stride = self.load(I64, at);
        Buffer { data, row_stride }
    }

    /// A list of the arguments: its address is at `field`, or in a block's launch the list itself at `place`.
    fn list(&mut self, args: Val, field: usize, place: usize) -> Val {
        if self.is_block() {
            return self.offset_const(args, place as u64);
        }
        let at = self.offset_const(args, field as u64);
        self.load(PTR, at)
    }

    /// How many rows the step has.
    pub fn n_rows(&mut self, args: Val, space: RowSpace) -> Val {
        let sizes = self.list(args, abi::ARGS_SIZES, abi::LAUNCH_SIZES);
        let at = self.offset_const(sizes, 8 * (2 * space.axis + usize::from(space.selected)) as u64);
        self.load(I64, at)
    }

    /// The rows of a block of so many, of a step of `n_rows`: the first, and one past the last.
    pub fn rows_of_block(&mut self, block: Val, rows: u64, n_rows: Val) -> (Val, Val) {
        let size = self.i64(rows as i64);
        let begin = self.mul(block, size);
        let end = self.add(begin, size);
        (begin, self.min(end, n_rows))
    }

    /// How many sequences the step has.
    pub fn n_sequences(&mut self, args: Val) -> Val {
        let field = if self.is_block() { abi::LAUNCH_N_SEQUENCES } else { abi::ARGS_N_SEQUENCES };
        let at = self.offset_const(args, field as u64);
        let n = self.load(I32, at);
        self.widen_unsigned(n, Elem::I64)
    }

    /// One of the arrays of an axis, by the offset of its field.
    pub fn axis_array(&mut self, args: Val, axis: usize, field: usize) -> Val {
        let axes = self.list(args, abi::ARGS_AXES, abi::LAUNCH_AXES);
        let at = self.offset_const(axes, (axis * abi::AXIS_SIZE + field) as u64);
        self.load(PTR, at)
    }

    /// `array[index]` of u32, as i64.
    pub fn load_u32(&mut self, array: Val, index: Val) -> Val {
        let bytes = self.shl(index, 2);
        let at = self.offset(array, bytes);
        let v = self.load(I32, at);
        self.widen_unsigned(v, Elem::I64)
    }

    /// `data + index * bytes` for a constant element size.
    pub fn element(&mut self, data: Val, index: Val, bytes: u64) -> Val {
        let size = self.i64(bytes as i64);
        let at = self.mul(index, size);
        self.offset(data, at)
    }

    /// First byte of a row.
    pub fn row(&mut self, buffer: Buffer, row: Val, elem_bytes: u64) -> Val {
        let index = self.mul(row, buffer.row_stride);
        self.element(buffer.data, index, elem_bytes)
    }

    /// `ceil(a / b)` for a constant `b`.
    pub fn ceil_div(&mut self, a: Val, b: u64) -> Val {
        let up = self.i64(b as i64 - 1);
        let sum = self.add(a, up);
        let b = self.i64(b as i64);
        self.div_unsigned(sum, b)
    }
}

/// A cache group as kernels see it.
#[derive(Clone, Copy, Debug)]
pub struct CacheTable {
    /// Page ids.
    pub table: Val,
    /// Visible positions of each sequence.
    pub lengths: Val,
    /// Table entries per sequence.
    pub entries: Val,
}

impl Writer {
    /// Cache group `group`.
    pub fn cache(&mut self, args: Val, group: usize) -> CacheTable {
        let caches = self.list(args, abi::ARGS_CACHES, abi::LAUNCH_CACHES);
        let base = group * abi::CACHE_SIZE;
        let at = self.offset_const(caches, (base + abi::CACHE_TABLE) as u64);
        let table = self.load(PTR, at);
        let at = self.offset_const(caches, (base + abi::CACHE_LENGTHS) as u64);
        let lengths = self.load(PTR, at);
        let at = self.offset_const(caches, (base + abi::CACHE_ENTRIES) as u64);
        let entries = self.load(I32, at);
        let entries = self.widen_unsigned(entries, Elem::I64);
        CacheTable { table, lengths, entries }
    }

    /// The page id that holds page number `page` of `sequence`.
    pub fn page_id(&mut self, cache: CacheTable, sequence: Val, page: Val) -> Val {
        let slot = self.rem_unsigned(page, cache.entries);
        let row = self.mul(sequence, cache.entries);
        let index = self.add(row, slot);
        self.load_u32(cache.table, index)
    }
}
