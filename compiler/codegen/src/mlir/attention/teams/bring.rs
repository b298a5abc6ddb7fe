//! How queries and blocks of pages come to shared memory.

use super::{Barrier, I32, OF_TEAM, OWN, PIECE, Place, Rows, Segment, Slot, TEAM, Teams};
use crate::error::CodegenError;
use crate::mlir::attention::turned::QueryPlace;
use crate::mlir::writer::{Cmp, Elem, Val, Writer};

/// Pieces that the threads of a row bring side by side, and rows that all of them bring at a time.
const ABREAST: u64 = 8;
const AT_ONCE: u64 = TEAM / ABREAST;

/// Keys or values of a stage, as a thread brings them.
#[derive(Clone, Copy)]
struct Source {
    rows: Rows,
    /// The thread's first row of those that are brought at once, and its first piece of a row.
    row: Val,
    piece: Val,
    /// Bytes to them from a head's rows in a page; and to their place from a stage.
    from: Val,
    to: Val,
}

impl Teams<'_> {
    /// Brings the queries of a team to shared memory; those behind the last are zeros.
    pub(super) fn bring_queries(
        &self,
        w: &mut Writer,
        segment: &Segment,
        place: Place,
        team: Val,
    ) -> Result<(), CodegenError> {
        let last = w.int(TEAM as i64 - 1, I32);
        let thread = w.and(place.thread, last);
        let size = w.int(OF_TEAM as i64, I32);
        let before = w.mul(team, size);
        let size = w.int(self.layout.team_bytes as i64, I32);
        let at = w.mul(team, size);
        let point = w.int(OWN, I32);
        let point = w.add(point, team);
        let to = QueryPlace { rows: self.layout.keys, shared: self.shared, at, before, thread, point };
        self.at.bring_queries(w, segment, to)
    }

    fn source(&self, w: &mut Writer, place: Place, rows: Rows) -> Source {
        let [last, seven] = [TEAM as i64 - 1, ABREAST as i64 - 1].map(|n| w.int(n, I32));
        let thread = w.and(place.thread, last);
        let row = w.shr(thread, ABREAST.ilog2());
        let piece = w.and(thread, seven);
        let size = w.int(rows.bytes as i64, I32);
        let from = w.mul(row, size);
        let of_piece = w.shl(piece, PIECE.ilog2());
        let from = w.add(from, of_piece);
        let from = w.widen_unsigned(from, Elem::I64);
        let to = rows.place_of(w, self.schedule.keys, row, piece);
        let to = w.widen_unsigned(to, Elem::I64);
        Source { rows, row, piece, from, to }
    }

    /// Brings the keys and values of all blocks, by the warps that do nothing else.
    pub(super) fn bring_blocks(
        &self,
        w: &mut Writer,
        segment: &Segment,
        place: Place,
        n_blocks: Val,
    ) -> Result<(), CodegenError> {
        let spec = self.at.spec;
        let keys = self.source(w, place, self.layout.keys);
        let values = self.source(w, place, self.layout.values);
        let (of_keys, of_values) = (spec.keys(), spec.values());
        let of_head = |w: &mut Writer, data: Val, bytes: u64| w.element(data, segment.tile.kv_head, bytes);
        let key_data = of_head(w, self.at.k.data, of_keys.bytes());
        let value_data = of_head(w, self.at.v.data, of_values.bytes());
        let zero = w.int(0, I32);
        let own = w.cmp(Cmp::Eq, place.lane, zero);
        // What a thread brought is there, and may be read.
        let announce = |w: &mut Writer, which: Barrier, slot: Val, but: u64| {
            w.wait_for_copies(but);
            w.order_shared();
            w.sync_group();
            w.if_then(own, |w| {
                let at = self.barrier(w, which, slot);
                w.arrive(at);
                Ok(())
            })
        };
        let (begin, one) = (w.i64(0), w.int(1, I32));
        let none = w.i64(0);
        let some = w.cmp(Cmp::Gt, n_blocks, none);
        w.if_then(some, |w| {
            let entry = self.first_entry(w, segment);
            let last = w.sub(segment.end_page, segment.first_page);
            let last = w.resize(last, Elem::I32);
            let last = w.sub(last, one);
            let carried = w.for_loop(begin, n_blocks, 1, &[zero, one, zero, entry, last], |w, block, carried| {
                let (slot, before) = (Slot { number: carried[0], bit: carried[1] }, carried[2]);
                let (pages, entry) = self.pages(w, segment, carried[3], carried[4]);
                let of_block = w.int((self.schedule.keys / spec.page_tokens) as i64, I32);
                let last = w.sub(carried[4], of_block);
                let n = w.i64(self.schedule.keys as i64);
                let done = w.mul(block, n);
                let tokens = w.i64(spec.page_tokens as i64);
                let first_key = w.mul(segment.first_page, tokens);
                let first_key = w.add(first_key, done);
                let left = w.sub(segment.high, first_key);
                let left = w.min(left, n);
                let left = w.resize(left, Elem::I32);
                let number = w.widen_unsigned(slot.number, Elem::I64);
                let size = w.i64(self.layout.stage_bytes as i64);
                let stage = w.mul(number, size);
                let first = w.i64(self.layout.stages as i64);
                let stage = w.add(stage, first);
                self.wait_for(w, Barrier::KeysDone, slot);
                let places: Vec<Val> =
                    pages.iter().map(|id| w.element(key_data, *id, of_keys.page_bytes(spec.kv_heads))).collect();
                self.bring(w, keys, (stage, left), &places)?;
                w.end_copies();
                let is_later = w.cmp(Cmp::Gt, block, begin);
                w.if_then(is_later, |w| announce(w, Barrier::ValuesThere, before, 1))?;
                self.wait_for(w, Barrier::ValuesDone, slot);
                let behind = w.i64(self.layout.values_at as i64);
                let stage = w.add(stage, behind);
                let places: Vec<Val> =
                    pages.iter().map(|id| w.element(value_data, *id, of_values.page_bytes(spec.kv_heads))).collect();
                self.bring(w, values, (stage, left), &places)?;
                w.end_copies();
                announce(w, Barrier::KeysThere, slot.number, 1)?;
                let (next, turned) = w.next_slot(slot.number, slot.bit, self.schedule.stages);
                Ok(vec![next, turned, slot.number, entry, last])
            })?;
            announce(w, Barrier::ValuesThere, carried[2], 0)
        })
    }

    /// The entry of the first page in the table of its sequence.
    fn first_entry(&self, w: &mut Writer, segment: &Segment) -> Val {
        let entries = w.resize(self.at.cache.entries, Elem::I32);
        let page = w.resize(segment.first_page, Elem::I32);
        w.rem_unsigned(page, entries)
    }

    /// The pages of a block that begins with an entry, so many before the last, which stands for those behind it; and the next block's first entry.
    fn pages(&self, w: &mut Writer, segment: &Segment, entry: Val, before_last: Val) -> (Vec<Val>, Val) {
        let entries = w.resize(self.at.cache.entries, Elem::I32);
        let row = w.mul(segment.sequence, self.at.cache.entries);
        let (zero, one) = (w.int(0, I32), w.int(1, I32));
        let mut entry = entry;
        let mut ids = Vec::new();
        for page in 0..self.schedule.keys / self.at.spec.page_tokens {
            let wide = w.widen_unsigned(entry, Elem::I64);
            let index = w.add(row, wide);
            ids.push(w.load_u32(self.at.cache.table, index));
            let number = w.int(page as i64, I32);
            let is_before = w.cmp(Cmp::Lt, number, before_last);
            let next = w.add(entry, one);
            let is_end = w.cmp(Cmp::Eq, next, entries);
            let next = w.select(is_end, zero, next);
            entry = w.select(is_before, next, entry);
        }
        (ids, entry)
    }

    /// Asks for the rows of a block, whose heads' rows are in `places` of pages, of which the first `n` are there.
    fn bring(
        &self,
        w: &mut Writer,
        source: Source,
        (stage, n): (Val, Val),
        places: &[Val],
    ) -> Result<(), CodegenError> {
        let keys = self.schedule.keys;
        let tokens = self.at.spec.page_tokens;
        let first = w.add(stage, source.to);
        let whole = w.int(PIECE as i64, I32);
        let each = |w: &mut Writer, bytes: &dyn Fn(&mut Writer, u64) -> Val| {
            for (page, place) in (0..).zip(places) {
                let from = w.offset(*place, source.from);
                for row in (0..tokens).step_by(AT_ONCE as usize) {
                    let number = page * tokens + row;
                    let bytes = bytes(w, number);
                    for pieces in (0..source.rows.bytes / PIECE).step_by(ABREAST as usize) {
                        let copy = |w: &mut Writer| {
                            let behind = w.i64((number * source.rows.width + pieces * PIECE * keys) as i64);
                            let to = w.add(first, behind);
                            let from = w.offset_const(from, row * source.rows.bytes + pieces * PIECE);
                            w.copy_some(self.shared, to, from, bytes);
                        };
                        let left = source.rows.bytes / PIECE - pieces;
                        if left >= ABREAST {
                            copy(w);
                            continue;
                        }
                        let left = w.int(left as i64, I32);
                        let is_one = w.cmp(Cmp::Lt, source.piece, left);
                        w.if_then(is_one, |w| {
                            copy(w);
                            Ok(())
                        })?;
                    }
                }
            }
            Ok::<(), CodegenError>(())
        };
        let all = w.int(keys as i64, I32);
        let is_whole = w.cmp(Cmp::Ge, n, all);
        let of_cut = |w: &mut Writer, number: u64| {
            // What was never written may be anything, and no number times 0 is 0.
            let behind = w.int(number as i64, I32);
            let row = w.add(source.row, behind);
            let there = w.cmp(Cmp::Lt, row, n);
            let [whole, none] = [PIECE as i64, 0].map(|n| w.int(n, I32));
            w.select(there, whole, none)
        };
        w.if_either(is_whole, |w| each(w, &|_, _| whole), |w| each(w, &of_cut))
    }
}
