//! How queries and pages come to shared memory.

use super::{I32, PIECE, Place, Rows, Segment, Staged};
use crate::error::CodegenError;
use crate::mlir::writer::{Cmp, Elem, Val, Writer};

impl Staged<'_> {
    /// Brings the queries to shared memory; those behind the last are zeros.
    pub(super) fn bring_queries(&self, w: &mut Writer, segment: &Segment, place: Place) -> Result<(), CodegenError> {
        let spec = self.at.spec;
        let pieces = self.layout.keys.pieces;
        let threads = u64::from(w.machine().threads * w.machine().groups);
        let first = w.widen_unsigned(place.thread, Elem::I64);
        let end = w.i64((self.schedule.queries() * pieces) as i64);
        w.for_loop(first, end, threads as i64, &[], |w, index, _| {
            let n = w.i64(pieces as i64);
            let (query, piece) = (w.div_unsigned(index, n), w.rem_unsigned(index, n));
            let (row, head) = self.at.locate(w, segment.tile, segment.from, segment.n, query);
            let mut there = w.cmp(Cmp::Lt, query, segment.n);
            if pieces > self.layout.keys.there {
                let n = w.i64(self.layout.keys.there as i64);
                let is_piece = w.cmp(Cmp::Lt, piece, n);
                there = w.and(there, is_piece);
            }
            let row = w.row(self.at.q, row, 2);
            let from = w.element(row, head, spec.key_dim * 2);
            let from = w.element(from, piece, PIECE);
            let words = w.load_eight(from, there);
            let to = w.element(self.shared, query, self.layout.query_stride);
            let to = w.element(to, piece, PIECE);
            w.store_four(words, to);
            Ok(vec![])
        })?;
        Ok(())
    }

    /// First byte of the stage of a page: those whose number is even have the first.
    pub(super) fn stage_of(&self, w: &mut Writer, page: Val) -> Val {
        let one = w.i64(1);
        let number = w.and(page, one);
        let size = w.i64(self.layout.stage_bytes as i64);
        let before = w.mul(number, size);
        let first = w.i64(self.layout.stages as i64);
        w.add(first, before)
    }

    /// Asks for a page; nothing is copied of those behind the last.
    pub(super) fn bring(&self, w: &mut Writer, segment: &Segment, place: Place, page: Val) -> Result<(), CodegenError> {
        let spec = self.at.spec;
        let exists = w.cmp(Cmp::Lt, page, segment.end_page);
        w.if_then(exists, |w| {
            // Each thread's part of a page is found for each page: known ahead, it would take registers from the products.
            let place = Place { thread: w.anew(place.thread), ..place };
            let stage = self.stage_of(w, page);
            let id = w.page_id(self.at.cache, segment.sequence, page);
            let tokens = w.i64(spec.page_tokens as i64);
            let first_key = w.mul(page, tokens);
            // What was never written may be anything, and no number times 0 is 0.
            let n_keys = w.sub(segment.high, first_key);
            let head = spec.keys();
            let keys = w.element(self.at.k.data, id, head.page_bytes(spec.kv_heads));
            let keys = w.element(keys, segment.tile.kv_head, head.bytes());
            self.bring_rows(w, place, (stage, keys, n_keys), (self.layout.keys, spec.key_dim * 2))?;
            if spec.value_in_key.is_none() {
                let head = spec.values();
                let values = w.element(self.at.v.data, id, head.page_bytes(spec.kv_heads));
                let values = w.element(values, segment.tile.kv_head, head.bytes());
                let at = w.i64(self.layout.values_at as i64);
                let stage = w.add(stage, at);
                self.bring_rows(w, place, (stage, values, n_keys), (self.layout.values, spec.value_dim * 2))?;
            }
            Ok(())
        })?;
        w.end_copies();
        Ok(())
    }

    /// Asks for the rows of a page, of which the first `n` are there.
    fn bring_rows(
        &self,
        w: &mut Writer,
        place: Place,
        (stage, data, n): (Val, Val, Val),
        (rows, row_bytes): (Rows, u64),
    ) -> Result<(), CodegenError> {
        let threads = u64::from(w.machine().threads * w.machine().groups);
        let all = self.at.spec.page_tokens * rows.pieces;
        for first in (0..all).step_by(threads as usize) {
            let shift = w.int(first as i64, I32);
            let index = w.add(place.thread, shift);
            let copy = |w: &mut Writer| {
                let pieces = w.int(rows.pieces as i64, I32);
                let (row, piece) = (w.div_unsigned(index, pieces), w.rem_unsigned(index, pieces));
                let [row, piece] = [row, piece].map(|x| w.widen_unsigned(x, Elem::I64));
                let mut there = w.cmp(Cmp::Lt, row, n);
                if rows.pieces > rows.there {
                    let n = w.i64(rows.there as i64);
                    let is_piece = w.cmp(Cmp::Lt, piece, n);
                    there = w.and(there, is_piece);
                }
                let size = w.i64(rows.stride as i64);
                let [whole, none] = [PIECE as i64, 0].map(|n| w.int(n, I32));
                let bytes = w.select(there, whole, none);
                let from = w.element(data, row, row_bytes);
                let from = w.element(from, piece, PIECE);
                let behind = w.mul(row, size);
                let within = w.shl(piece, PIECE.ilog2());
                let to = w.add(stage, behind);
                let to = w.add(to, within);
                w.copy_piece(self.shared, to, from, bytes, data);
            };
            if first + threads <= all {
                copy(w);
            } else {
                let end = w.int(all as i64, I32);
                let is_one = w.cmp(Cmp::Lt, index, end);
                w.if_then(is_one, |w| {
                    copy(w);
                    Ok(())
                })?;
            }
        }
        Ok(())
    }
}
