//! The tiles of a launch: rows, heads, and parts of their keys.

use super::{Attention, Tile, combine};
use crate::error::CodegenError;
use crate::mlir::frame::RowSpace;
use crate::mlir::schedule::AttentionSchedule;
use crate::mlir::writer::{Cmp, KernelParams, Val, Writer};

impl Attention<'_> {
    /// A loop over the tiles of the launch.
    pub(super) fn tiles(
        &self,
        w: &mut Writer,
        params: &KernelParams,
        schedule: &AttentionSchedule,
        body: impl FnOnce(&mut Writer, Tile) -> Result<(), CodegenError>,
    ) -> Result<(), CodegenError> {
        let n_rows = w.n_rows(params.args, RowSpace { axis: self.spec.axis, selected: false });
        let blocks = w.ceil_div(n_rows, schedule.rows_per_tile);
        let group = self.group();
        let parts = schedule.parts(group);
        w.for_loop(params.tile_begin, params.tile_end, 1, &[], |w, tile, _| {
            // Those that share rows follow one another: the first alone has something to do for rows that are many, and threads claim runs of tiles.
            let (tile, share) = match schedule.shares() {
                1 => (tile, None),
                n => {
                    let n = w.i64(n as i64);
                    (w.div_unsigned(tile, n), Some(w.rem_unsigned(tile, n)))
                }
            };
            let (of_heads, begin, end, part) = if schedule.shares_parts(&self.spec.division) {
                // Tiles of the same keys follow one another: one finds in the caches what another brought.
                let n = w.i64((self.spec.kv_heads * parts) as i64);
                let (of_row, of_heads) = (w.div_unsigned(tile, n), w.rem_unsigned(tile, n));
                let most = combine::parts(w, &self.spec.division, n_rows);
                let (row, part) = (w.div_unsigned(of_row, most), w.rem_unsigned(of_row, most));
                // There may be more tiles than rows and parts.
                let one = w.i64(1);
                let end = w.add(row, one);
                (of_heads, row, w.min(end, n_rows), Some(part))
            } else {
                self.rows_of_tile(w, (tile, blocks), schedule, n_rows)
            };
            let n_parts = w.i64(parts as i64);
            let together = w.i64(schedule.kv_heads() as i64);
            let kv_head = w.div_unsigned(of_heads, n_parts);
            let kv_head = w.mul(kv_head, together);
            let of_group_part = w.rem_unsigned(of_heads, n_parts);
            let per_part = w.i64(group.div_ceil(parts) as i64);
            let of_group = w.i64(group as i64);
            let first = w.mul(kv_head, of_group);
            let end_head = w.add(first, of_group);
            let skipped = w.mul(of_group_part, per_part);
            let first_head = w.add(first, skipped);
            body(w, Tile { begin, end, kv_head, first_head, end_head, heads: group.div_ceil(parts), part, share })?;
            Ok(vec![])
        })?;
        Ok(())
    }

    /// Which heads a tile has, which rows, `begin .. end`, and which part of their keys, where each row has as many parts as any.
    fn rows_of_tile(
        &self,
        w: &mut Writer,
        (tile, blocks): (Val, Val),
        schedule: &AttentionSchedule,
        n_rows: Val,
    ) -> (Val, Val, Val, Option<Val>) {
        let of_heads = w.div_unsigned(tile, blocks);
        let block = w.rem_unsigned(tile, blocks);
        // Later rows see more keys: they come first, so that what is left at the end is short.
        let one = w.i64(1);
        let last = w.sub(blocks, one);
        let block = w.sub(last, block);
        let (begin, end) = w.rows_of_block(block, schedule.rows_per_tile, n_rows);
        match schedule.key_parts() {
            1 => (of_heads, begin, end, None),
            n => {
                let n = w.i64(n as i64);
                (w.div_unsigned(of_heads, n), begin, end, Some(w.rem_unsigned(of_heads, n)))
            }
        }
    }

    /// The rows of a tile that are of one sequence, and that are meant: `body(first, one past the last)`.
    pub(super) fn each_segment(
        &self,
        w: &mut Writer,
        tile: Tile,
        body: impl FnOnce(&mut Writer, Val, Val) -> Result<(), CodegenError>,
    ) -> Result<(), CodegenError> {
        let one = w.i64(1);
        let last = w.sub(tile.end, one);
        let first_sequence = w.load_u32(self.rows.sequences, tile.begin);
        let last_sequence = w.load_u32(self.rows.sequences, last);
        let end_sequence = w.add(last_sequence, one);
        w.for_loop(first_sequence, end_sequence, 1, &[], |w, sequence, _| {
            let next = w.add(sequence, one);
            let from = w.load_u32(self.rows.offsets, sequence);
            let from = w.max(from, tile.begin);
            let to = w.load_u32(self.rows.offsets, next);
            let to = w.min(to, tile.end);
            // A sequence may have no rows.
            let some = w.cmp(Cmp::Lt, from, to);
            w.if_then(some, |w| match self.is_meant(w, from) {
                None => body(w, from, to),
                Some(meant) => w.if_then(meant, |w| body(w, from, to)),
            })?;
            Ok(vec![])
        })?;
        Ok(())
    }

    /// The rows of a tile that are meant, one after another.
    pub(super) fn each_row(
        &self,
        w: &mut Writer,
        tile: Tile,
        body: impl FnOnce(&mut Writer, Val) -> Result<(), CodegenError>,
    ) -> Result<(), CodegenError> {
        w.for_loop(tile.begin, tile.end, 1, &[], |w, row, _| {
            match self.is_meant(w, row) {
                None => body(w, row)?,
                Some(meant) => w.if_then(meant, |w| body(w, row))?,
            }
            Ok(vec![])
        })?;
        Ok(())
    }
}
