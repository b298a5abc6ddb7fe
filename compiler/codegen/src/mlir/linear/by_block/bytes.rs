//! Integers in groups by registers that hold tiles: of a block of groups the whole numbers of 16 rows by the columns of a panel are summed, one tile a group
//! and 16 columns, and go through memory; then they are scaled and added, group by group, to sums that vectors hold.
//!
//! Sums of a group begin as everywhere (`linear/blocks.rs`), so that what they end with is a float. Weights of 4 bits become bytes once for all rows of a
//! tile.

use xfc_lang::graph::blocks::Blocks;

use super::tiles::{SUMS, TILE_ROWS};
use super::{Linear, Places, Tile};
use crate::error::CodegenError;
use crate::mlir::linear::blocks::Groups;
use crate::mlir::tile_registers::REGISTER;
use crate::mlir::writer::{Elem, Ty, Val, Writer};
use crate::plan::kernel::TokenRow;

/// Rows whose sums vectors hold at a time, by columns of a panel.
const SCALED_ROWS: u64 = 4;

/// Bytes of the whole numbers of a group: 16 rows by the columns of a panel.
const GROUP_BYTES: u64 = TILE_ROWS * SUMS * REGISTER.1;

/// Bytes of what a register of sums begins at.
const BEGIN_BYTES: u64 = REGISTER.0 * REGISTER.1;

/// Bytes of a row of whole numbers.
const ROW_BYTES: u64 = SUMS * REGISTER.1;

/// Bytes of scratch behind the weights, for so many groups: what sums begin at, and whole numbers.
pub(super) fn integers_bytes(groups: u64) -> u64 {
    groups * (BEGIN_BYTES + GROUP_BYTES)
}

impl Linear<'_> {
    /// Adds the products of a block of groups to the sums of a part of the current columns, for all rows of a tile.
    pub(super) fn add_groups_of(
        &self,
        w: &mut Writer,
        (tile, part, blocks): (&Tile, usize, Blocks),
        places: &Places,
        sums: Val,
        (first, inputs): (Val, u64),
    ) -> Result<(), CodegenError> {
        let size = u64::from(blocks.group);
        let group_size = w.i64(size as i64);
        let groups = (w.div_unsigned(first, group_size), inputs / size);
        let panel = self.packed(blocks);
        let narrow = panel.bits == 4;
        if narrow {
            self.unpack(w, part, blocks, places, groups)?;
        }
        let n = w.sub(tile.rows.1, tile.rows.0);
        let (zero, step) = (w.i64(0), TILE_ROWS as i64);
        w.for_loop(zero, n, step, &[], |w, row, _| {
            self.sum_groups(w, (tile, part, blocks), places, row, (first, groups))?;
            let rows = w.i64(TILE_ROWS as i64);
            w.for_loop(zero, rows, SCALED_ROWS as i64, &[], |w, within, _| {
                let row = w.add(row, within);
                self.scale_groups(w, (tile, part, blocks), places, (row, within), sums, groups)?;
                Ok(vec![])
            })?;
            Ok(vec![])
        })?;
        Ok(())
    }

    /// The inputs of row `row` of a tile, or of its last.
    fn row_within(&self, w: &mut Writer, tile: &Tile, row: Val, behind: u64) -> Val {
        let behind = w.i64(behind as i64);
        let number = w.add(row, behind);
        let number = w.add(tile.rows.0, number);
        let one = w.i64(1);
        let last = w.sub(tile.rows.1, one);
        let number = w.min(number, last);
        self.row_of(w, tile, number).0
    }

    /// Lets the weights of a block be bytes: `[group][four inputs][column][input]`.
    fn unpack(
        &self,
        w: &mut Writer,
        part: usize,
        blocks: Blocks,
        places: &Places,
        (first, n): (Val, u64),
    ) -> Result<(), CodegenError> {
        let panel = self.packed(blocks);
        let runs = u64::from(blocks.group) / 8;
        let start = w.element(self.starts[part], first, panel.group_bytes());
        let word = Ty::of(Elem::I32, self.schedule.lanes);
        let (zero, end) = (w.i64(0), w.i64(n as i64));
        w.for_loop(zero, end, 1, &[], |w, group, _| {
            let from = w.element(start, group, panel.group_bytes());
            let from = w.offset_const(from, panel.integers_at());
            let to = w.element(places.weights, group, 2 * runs * ROW_BYTES);
            let mask = w.int(0x0F0F_0F0F, word);
            for run in 0..runs {
                for v in 0..SUMS {
                    let at = w.offset_const(from, run * ROW_BYTES + v * REGISTER.1);
                    let both = w.load(word, at);
                    let low = w.and(both, mask);
                    let high = w.shr(both, 4);
                    let high = w.and(high, mask);
                    for (plane, bytes) in [low, high].into_iter().enumerate() {
                        let to = w.offset_const(to, (2 * run + plane as u64) * ROW_BYTES + v * REGISTER.1);
                        w.store(bytes, to);
                    }
                }
            }
            Ok(vec![])
        })?;
        Ok(())
    }

    /// Sums whole numbers of the rows from `row` of a tile on, for each group of a block.
    fn sum_groups(
        &self,
        w: &mut Writer,
        (tile, part, blocks): (&Tile, usize, Blocks),
        places: &Places,
        row: Val,
        (first, (first_group, n)): (Val, (Val, u64)),
    ) -> Result<(), CodegenError> {
        let names = self.tile_registers(w)?;
        let bytes_dot = names.bytes.ok_or_else(|| CodegenError::bug("linear", "no products of tiles of bytes"))?;
        let (panel, token) = (self.packed(blocks), TokenRow::new(self.spec.inputs, blocks));
        let size = u64::from(blocks.group);
        let depth = size.min(REGISTER.1);
        let rows: Vec<Val> = (0..TILE_ROWS).map(|i| self.row_within(w, tile, row, i)).collect();
        let (x, stride) = self.rows_at(w, tile, places, (row, first));
        let (line, of_row) = (w.i64(REGISTER.1 as i64), w.i64(ROW_BYTES as i64));
        let (weights, group_bytes) = if panel.bits == 4 {
            (places.weights, size / 4 * ROW_BYTES)
        } else {
            let start = w.element(self.starts[part], first_group, panel.group_bytes());
            (w.offset_const(start, panel.integers_at()), panel.group_bytes())
        };
        let begins = places.integers;
        let sums = w.offset_const(begins, n * BEGIN_BYTES);
        let (zero, end) = (w.i64(0), w.i64(n as i64));
        // Of all groups first: what was just stored is no tile yet.
        w.for_loop(zero, end, 1, &[], |w, group, _| {
            let number = w.add(first_group, group);
            for (i, x) in rows.iter().enumerate() {
                let begin = if panel.minimum {
                    w.int(i64::from(TokenRow::WHOLE.to_bits()), Ty::scalar(Elem::I32))
                } else {
                    let at = w.offset_const(*x, token.starts_at[usize::from(panel.bits == 8)]);
                    let at = w.element(at, number, 4);
                    w.load(Ty::scalar(Elem::I32), at)
                };
                let begin = w.splat(begin, self.schedule.lanes);
                let to = w.element(begins, group, BEGIN_BYTES);
                let to = w.offset_const(to, i as u64 * REGISTER.1);
                w.store(begin, to);
            }
            Ok(vec![])
        })?;
        w.for_loop(zero, end, 1, &[], |w, group, _| {
            let begin = w.element(begins, group, BEGIN_BYTES);
            for column in 0..SUMS {
                let number = w.tile_register(column);
                w.command(names.load, &[number, begin, line]);
            }
            let x = w.element(x, group, size);
            let weights = w.element(weights, group, group_bytes);
            for step in 0..size / depth {
                let (of_rows, at) = (w.tile_register(SUMS), w.offset_const(x, step * depth));
                w.command(names.load, &[of_rows, at, stride]);
                for column in 0..SUMS {
                    let at = w.offset_const(weights, step * depth / 4 * ROW_BYTES + column * REGISTER.1);
                    let [sum, of_columns] = [column, SUMS + 1 + column % 2].map(|number| w.tile_register(number));
                    w.command(names.load, &[of_columns, at, of_row]);
                    w.command(bytes_dot, &[sum, of_rows, of_columns]);
                }
            }
            let sums = w.element(sums, group, GROUP_BYTES);
            for column in 0..SUMS {
                let (number, at) = (w.tile_register(column), w.offset_const(sums, column * REGISTER.1));
                w.command(names.store, &[number, at, of_row]);
            }
            Ok(vec![])
        })?;
        Ok(())
    }

    /// Scales the whole numbers of some rows and adds them to their sums. The first is number `row` of the tile, and `within` of those that were summed.
    fn scale_groups(
        &self,
        w: &mut Writer,
        (tile, part, blocks): (&Tile, usize, Blocks),
        places: &Places,
        (row, within): (Val, Val),
        sums: Val,
        (first_group, n): (Val, u64),
    ) -> Result<(), CodegenError> {
        let vector = Ty::of(Elem::F32, self.schedule.lanes);
        let panel = self.packed(blocks);
        let xs: Vec<Val> = (0..SCALED_ROWS).map(|i| self.row_within(w, tile, row, i)).collect();
        let of = Groups {
            xs: &xs,
            token: TokenRow::new(self.spec.inputs, blocks),
            panel,
            group: u64::from(blocks.group),
            whole: true,
        };
        let sums = w.element(sums, row, places.columns_bytes);
        let sums = w.offset_const(sums, part as u64 * ROW_BYTES);
        let place = |i: u64, row_bytes: u64| i / SUMS * row_bytes + i % SUMS * REGISTER.1;
        let mut values = Vec::new();
        for i in 0..SCALED_ROWS * SUMS {
            let at = w.offset_const(sums, place(i, places.columns_bytes));
            values.push(w.load(vector, at));
        }
        let whole = w.offset_const(places.integers, n * BEGIN_BYTES);
        let whole = w.element(whole, within, ROW_BYTES);
        let (zero, end) = (w.i64(0), w.i64(n as i64));
        let values = w.for_loop(zero, end, 1, &values, |w, group, values| {
            let number = w.add(first_group, group);
            let start = w.element(self.starts[part], number, of.panel.group_bytes());
            let whole = w.element(whole, group, GROUP_BYTES);
            let mut integers = Vec::new();
            for i in 0..SCALED_ROWS * SUMS {
                let at = w.offset_const(whole, place(i, ROW_BYTES));
                integers.push(w.load(vector, at));
            }
            let sums_of_tokens: Vec<Val> = if of.panel.minimum {
                xs.iter().map(|x| of.of_token(w, *x, of.token.sums_at, number, Elem::I32)).collect()
            } else {
                Vec::new()
            };
            Ok(self.scaled(w, &of, &[start], number, &sums_of_tokens, &integers, values))
        })?;
        for (i, value) in values.into_iter().enumerate() {
            let at = w.offset_const(sums, place(i as u64, places.columns_bytes));
            w.store(value, at);
        }
        Ok(())
    }
}
