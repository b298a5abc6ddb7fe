//! Pairs of bf16 by registers that hold tiles: 16 rows by 32 inputs, 32 inputs by 16 columns as they lie in a panel, and 16 by 16 sums.
//!
//! Rows are read where they lie; the last ones, if they are fewer than a register tile has, and rows that are listed are brought to scratch before.
//! Of few rows a tile's registers are as short as it has rows, so that of rows only listed ones are brought; what bounds them is memory, of which weights are asked
//! for ahead.

use xfc_lang::graph::DType;

use super::{Linear, Places, Rows, Tile};
use crate::error::CodegenError;
use crate::mlir::linear::CACHE_LINE;
use crate::mlir::linear::blocks::{are_whole, packed};
use crate::mlir::machine::{Machine, TileRegisters};
use crate::mlir::tile_registers::REGISTER;
use crate::mlir::writer::{Cmp, Elem, Ty, Val, Writer};
use crate::plan::kernel::{LinearSpec, TokenRow};

/// Inputs that a register holds of a row.
pub const TILE_INPUTS: u64 = 32;

/// Bytes of a pair of inputs of a column.
const PAIR: u64 = 4;

/// Rows of a register tile: one register, by columns of a panel.
pub const TILE_ROWS: u64 = REGISTER.0;

/// Registers of sums: the columns of a panel. Behind them are one of rows and two of columns.
pub const SUMS: u64 = 4;

/// Instructions that do nothing behind each request for weights of few rows: of 0, 4, 8 and 12 the third reads most (14.7, 17.7, 18.9 and 18 GB/s on one thread of
/// an Intel server, where reading alone reaches 19).
const BETWEEN_REQUESTS: usize = 8;

/// Whether a product can be by such registers, with panels of so many columns.
pub fn multiplies(machine: &Machine, spec: &LinearSpec, columns: u64) -> bool {
    let Some(names) = machine.tile_registers.filter(|_| columns == SUMS * REGISTER.1 / 4) else { return false };
    match spec.operand.blocks() {
        None => names.halves.is_some() && spec.operand == DType::BF16 && spec.inputs.is_multiple_of(TILE_INPUTS),
        Some(blocks) if blocks.form.is_float() => false,
        Some(_) if spec.widened => names.halves.is_some(),
        Some(blocks) => {
            let (panel, group) = (packed(blocks, columns, 1), u64::from(blocks.group));
            let in_registers = group.is_multiple_of(REGISTER.1) || REGISTER.1.is_multiple_of(group);
            names.bytes.is_some() && in_registers && are_whole(machine, &panel, group)
        }
    }
}

impl Linear<'_> {
    pub(super) fn tile_registers(&self, w: &Writer) -> Result<TileRegisters, CodegenError> {
        w.machine().tile_registers.ok_or_else(|| CodegenError::bug("linear", "no registers that hold tiles"))
    }

    /// Whether tiles may be so few rows that registers are as short as they: of bf16, whose sums stay in registers.
    pub(super) fn may_be_short(&self) -> bool {
        self.in_tiles() && self.blocks().is_none()
    }

    /// Says how large the registers are that hold tiles: of so many rows, or all that they can.
    pub(super) fn enter_tiles(&self, w: &mut Writer, rows: Option<Val>, scratch: Val) -> Result<(), CodegenError> {
        let names = self.tile_registers(w)?;
        // Of groups that are smaller than a register rows are as long as a group.
        let of_bytes = self.blocks().filter(|_| !self.in_widened_tiles());
        let length = of_bytes.map_or(REGISTER.1, |blocks| REGISTER.1.min(blocks.group.into()));
        let mut sizes = [REGISTER; 8];
        sizes[SUMS as usize].1 = length;
        for size in &mut sizes[SUMS as usize + 1..][..2] {
            size.0 = length / 4;
        }
        // Sums, and what of the rows is multiplied.
        let short = rows.map(|rows| (rows, SUMS + 1));
        w.configure_tiles(names, sizes, short, scratch);
        Ok(())
    }

    /// Leaves registers empty, so that nothing has to keep them.
    pub(in crate::mlir::linear) fn leave_tiles(&self, w: &mut Writer) -> Result<(), CodegenError> {
        let names = self.tile_registers(w)?;
        w.release_tiles(names);
        Ok(())
    }

    /// Brings to scratch those inputs of a tile's rows that are not read where they lie.
    pub(super) fn bring_inputs(
        &self,
        w: &mut Writer,
        tile: &Tile,
        places: &Places,
        (first, inputs): (Val, u64),
    ) -> Result<(), CodegenError> {
        let bytes = self.tile_bytes();
        let begin = match tile.of {
            Rows::Listed(..) => tile.rows.0,
            Rows::OfStep if tile.short => return Ok(()),
            Rows::OfStep => {
                let whole = self.whole_rows(w, tile);
                w.add(tile.rows.0, whole)
            }
        };
        let line = Ty::of(Elem::I8, REGISTER.1 as u32);
        w.for_loop(begin, tile.rows.1, 1, &[], |w, row, _| {
            let (x, _) = self.row_of(w, tile, row);
            let x = self.tile_inputs(w, x, first);
            let number = w.sub(row, tile.rows.0);
            let to = w.element(places.xs, number, places.x_bytes);
            let (zero, end) = (w.i64(0), w.i64((inputs * bytes) as i64));
            w.for_loop(zero, end, REGISTER.1 as i64, &[], |w, at, _| {
                let from = w.offset(x, at);
                let values = w.load(line, from);
                let to = w.offset(to, at);
                w.store(values, to);
                Ok(vec![])
            })?;
            Ok(vec![])
        })?;
        Ok(())
    }

    /// What tiles are multiplied with of the row at `x`, from an input on.
    fn tile_inputs(&self, w: &mut Writer, x: Val, first: Val) -> Val {
        let widened = self.blocks().filter(|_| self.in_widened_tiles());
        let widened = widened.and_then(|blocks| TokenRow::new(self.spec.inputs, blocks).widened().widened_at);
        let x = w.offset_const(x, widened.unwrap_or(0));
        w.element(x, first, self.tile_bytes())
    }

    /// Rows of a tile in whole register tiles.
    fn whole_rows(&self, w: &mut Writer, tile: &Tile) -> Val {
        let n = w.sub(tile.rows.1, tile.rows.0);
        let size = w.i64(self.schedule.micro_rows.into());
        let rest = w.rem_unsigned(n, size);
        w.sub(n, rest)
    }

    /// Adds the products of a register's rows, the first of them number `row` of the tile, and the current columns of a part.
    pub(super) fn add_tiles(
        &self,
        w: &mut Writer,
        (tile, part): (&Tile, usize),
        places: &Places,
        (row, sums): (Val, Val),
        (first, inputs): (Val, u64),
    ) -> Result<(), CodegenError> {
        let names = self.tile_registers(w)?;
        let dot = names.halves.ok_or_else(|| CodegenError::bug("linear", "no products of tiles of bf16"))?;
        let columns = u64::from(self.schedule.vectors);
        let (x, stride) = self.rows_at(w, tile, places, (row, first));
        let sums = w.offset_const(sums, part as u64 * columns * REGISTER.1);
        // Widened weights lie as those of bf16 do.
        let pair_bytes = self.schedule.panel_columns * PAIR;
        let (sums_stride, columns_stride) = (w.i64(places.columns_bytes as i64), w.i64(pair_bytes as i64));
        for column in 0..columns {
            let (number, at) = (w.tile_register(column), w.offset_const(sums, column * REGISTER.1));
            if tile.short {
                w.command(names.zero, &[number]);
            } else {
                w.command(names.load, &[number, at, sums_stride]);
            }
        }
        let start = if self.in_widened_tiles() {
            places.weights
        } else {
            let pairs = w.shr(first, 1);
            w.element(self.starts[part], pairs, pair_bytes)
        };
        let (zero, end) = (w.i64(0), w.i64((inputs / TILE_INPUTS) as i64));
        w.for_loop(zero, end, 1, &[], |w, k, _| {
            let x = w.element(x, k, REGISTER.1);
            let rows = w.tile_register(SUMS);
            w.command(names.load, &[rows, x, stride]);
            let bytes = TILE_INPUTS / 2 * pair_bytes;
            let start = w.element(start, k, bytes);
            for column in 0..columns {
                if tile.short {
                    let part = w.offset_const(start, column * bytes / columns);
                    self.ask_in_time(w, part, bytes / columns);
                }
                let at = w.offset_const(start, column * REGISTER.1);
                let [sum, of_columns] = [column, SUMS + 1 + column % 2].map(|number| w.tile_register(number));
                w.command(names.load, &[of_columns, at, columns_stride]);
                w.command(dot, &[sum, rows, of_columns]);
            }
            Ok(vec![])
        })?;
        for column in 0..columns {
            let (number, at) = (w.tile_register(column), w.offset_const(sums, column * REGISTER.1));
            w.command(names.store, &[number, at, sums_stride]);
        }
        Ok(())
    }

    /// Asks for so many bytes of weights ahead of `start`.
    ///
    /// Each request gets time of its own: processors that ask ahead read a third less where nothing lies between requests.
    fn ask_in_time(&self, w: &mut Writer, start: Val, bytes: u64) {
        for shift in (0..bytes).step_by(CACHE_LINE as usize) {
            let at = w.offset_const(start, shift);
            self.prefetch(w, at, 0);
            if self.schedule.prefetch > 0 {
                w.do_nothing(BETWEEN_REQUESTS);
            }
        }
    }

    /// Where the inputs of a register tile of rows begin, and bytes from one row to the next.
    pub(super) fn rows_at(&self, w: &mut Writer, tile: &Tile, places: &Places, (row, first): (Val, Val)) -> (Val, Val) {
        let brought = (w.element(places.xs, row, places.x_bytes), w.i64(places.x_bytes as i64));
        if let Rows::Listed(..) = tile.of {
            return brought;
        }
        let number = w.add(tile.rows.0, row);
        let x = self.inputs_of_row(w, number);
        let x = self.tile_inputs(w, x, first);
        let size = w.i64(self.input_bytes() as i64);
        let stride = w.mul(self.x.row_stride, size);
        if tile.short {
            return (x, stride);
        }
        let whole = self.whole_rows(w, tile);
        let lies = w.cmp(Cmp::Lt, row, whole);
        (w.select(lies, x, brought.0), w.select(lies, stride, brought.1))
    }
}
