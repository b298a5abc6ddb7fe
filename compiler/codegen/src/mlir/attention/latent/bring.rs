//! How pages come to shared memory: each warp of a team brings those of a place.

use super::{Barrier, I32, KEYS, Latent, PAGES, PLACES, Work};
use crate::error::CodegenError;
use crate::mlir::attention::turned::PIECE;
use crate::mlir::writer::{Cmp, Elem, Val, Writer};

/// Pieces of a row that threads bring side by side, and rows that a warp brings at a time.
const ABREAST: u64 = 8;
const AT_ONCE: u64 = 4;

/// Rows after which pieces change places as before.
const PERIOD: u64 = 8;

impl Latent<'_> {
    /// Brings every fourth page, to the place of the warp.
    pub(super) fn bring(&self, w: &mut Writer, work: &Work, thread: Val) -> Result<(), CodegenError> {
        let [last, places] = [31, PLACES as i64 - 1].map(|n| w.int(n, I32));
        let lane = w.and(thread, last);
        let place = w.shr(thread, 5);
        let place = w.and(place, places);
        let spec = self.at.spec;
        let (segment, rows) = (&work.segment, self.layout.rows);
        let head = spec.keys();
        let data = w.element(self.at.k.data, segment.tile.kv_head, head.bytes());
        let [seven, zero, one] = [ABREAST as i64 - 1, 0, 1].map(|n| w.int(n, I32));
        let (row, piece) = (w.shr(lane, ABREAST.ilog2()), w.and(lane, seven));
        let size = w.int(rows.bytes as i64, I32);
        let from = w.mul(row, size);
        let of_piece = w.shl(piece, PIECE.ilog2());
        let from = w.add(from, of_piece);
        let from = w.widen_unsigned(from, Elem::I64);
        let of_place = self.page_at(w, place);
        let own: Vec<Val> = (0..PERIOD / AT_ONCE)
            .map(|behind| {
                let behind = w.int((behind * AT_ONCE) as i64, I32);
                let row = w.add(row, behind);
                let to = rows.place_of(w, KEYS, row, piece);
                let to = w.add(to, of_place);
                w.widen_unsigned(to, Elem::I64)
            })
            .collect();
        let is_first = w.cmp(Cmp::Eq, lane, zero);
        let entries = w.resize(self.at.cache.entries, Elem::I32);
        let before = w.mul(segment.sequence, self.at.cache.entries);
        let [first_page, end_page] = [segment.first_page, segment.end_page].map(|page| w.resize(page, Elem::I32));
        let last_page = w.sub(end_page, one);
        let high = w.resize(segment.high, Elem::I32);
        let pages = w.i64(PAGES as i64);
        let n = w.mul(work.n, pages);
        let first = w.widen_unsigned(place, Elem::I64);
        w.for_loop(first, n, PLACES as i64, &[zero], |w, number, round| {
            let round = round[0];
            let number = w.resize(number, Elem::I32);
            let page = w.add(first_page, number);
            // What is behind the last page is 0.
            let tokens = w.int(spec.page_tokens as i64, I32);
            let behind = w.mul(page, tokens);
            let left = w.sub(high, behind);
            let page = w.min(page, last_page);
            let slot = w.rem_unsigned(page, entries);
            let slot = w.widen_unsigned(slot, Elem::I64);
            let index = w.add(before, slot);
            let id = w.load_u32(self.at.cache.table, index);
            let at = w.element(data, id, head.page_bytes(spec.kv_heads));
            let at = w.offset(at, from);
            self.wait_for_last(w, (Barrier::PageDone, place), round);
            self.bring_page(w, (at, left), (row, piece), &own)?;
            w.end_copies();
            w.wait_for_copies(0);
            w.order_shared();
            w.sync_group();
            self.arrive(w, (Barrier::PageThere, place), is_first)?;
            Ok(vec![w.add(round, one)])
        })?;
        Ok(())
    }

    /// Asks for the rows of a page, of which the first `left` are there.
    fn bring_page(
        &self,
        w: &mut Writer,
        (at, left): (Val, Val),
        (own_row, piece): (Val, Val),
        own: &[Val],
    ) -> Result<(), CodegenError> {
        let rows = self.layout.rows;
        let tokens = self.at.spec.page_tokens;
        let whole = w.int(PIECE as i64, I32);
        let each = |w: &mut Writer, bytes: &dyn Fn(&mut Writer, u64) -> Val| {
            for row in (0..tokens).step_by(AT_ONCE as usize) {
                let bytes = bytes(w, row);
                let own = own[(row % PERIOD / AT_ONCE) as usize];
                for pieces in (0..rows.bytes / PIECE).step_by(ABREAST as usize) {
                    let copy = |w: &mut Writer| {
                        let before = row / PERIOD * PERIOD * rows.width;
                        let behind = w.i64((before + pieces * PIECE * KEYS) as i64);
                        let to = w.add(own, behind);
                        let from = w.offset_const(at, row * rows.bytes + pieces * PIECE);
                        w.copy_some(self.shared, to, from, bytes);
                    };
                    let left = rows.bytes / PIECE - pieces;
                    if left >= ABREAST {
                        copy(w);
                        continue;
                    }
                    let left = w.int(left as i64, I32);
                    let is_one = w.cmp(Cmp::Lt, piece, left);
                    w.if_then(is_one, |w| {
                        copy(w);
                        Ok(())
                    })?;
                }
            }
            Ok::<(), CodegenError>(())
        };
        let all = w.int(tokens as i64, I32);
        let is_whole = w.cmp(Cmp::Ge, left, all);
        let of_cut = |w: &mut Writer, number: u64| {
            // What was never written may be anything, and no number times 0 is 0.
            let behind = w.int(number as i64, I32);
            let row = w.add(own_row, behind);
            let there = w.cmp(Cmp::Lt, row, left);
            let [whole, none] = [PIECE as i64, 0].map(|n| w.int(n, I32));
            w.select(there, whole, none)
        };
        w.if_either(is_whole, |w| each(w, &|_, _| whole), |w| each(w, &of_cut))
    }
}
