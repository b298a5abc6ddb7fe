//! Rows in shared memory as products of teams read them.
//!
//! ```text
//! [part][row][bytes]      a part is 128 bytes of a row, or 64 or 32 where that leaves no rest; its pieces of 16 bytes
//!                         change places by the row's number, as products find them without two in the same banks
//! ```

use super::Attention;
use super::segment::Segment;
use crate::error::CodegenError;
use crate::mlir::teams::Layout as Lines;
use crate::mlir::writer::{Cmp, Elem, Ty, Val, Writer};

/// Bytes that are moved at a time: eight elements.
pub(super) const PIECE: u64 = 16;

/// Queries of a team.
pub(super) const OF_TEAM: u64 = 64;

/// Bytes of a row that an instruction multiplies, and rows of values.
pub(super) const STEP: u64 = 32;
pub(super) const STEP_ROWS: u64 = 16;

/// What the places of rows are multiples of.
pub(super) const ALIGNMENT: u64 = 1024;

/// Threads of a team.
pub(super) const TEAM: u64 = 128;

const I32: Ty = Ty::scalar(Elem::I32);

/// Whether rows of so many elements are whole parts.
pub fn fits(dim: u64) -> bool {
    dim > 0 && (dim * 2).is_multiple_of(STEP)
}

/// How rows lie.
#[derive(Clone, Copy)]
pub(super) struct Rows {
    /// Bytes of a row.
    pub(super) bytes: u64,
    /// Of a part.
    pub(super) width: u64,
}

impl Rows {
    pub(super) fn of(dim: u64) -> Self {
        let bytes = dim * 2;
        let width = [128, 64, 32].into_iter().find(|width| bytes.is_multiple_of(*width)).unwrap_or(STEP);
        Rows { bytes, width }
    }

    /// Pieces of a part.
    pub(super) fn pieces(self) -> u64 {
        self.width / PIECE
    }

    pub(super) fn lines(self) -> Lines {
        match self.width {
            128 => Lines::Turned,
            64 => Lines::TurnedHalves,
            _ => Lines::TurnedQuarters,
        }
    }

    /// First byte of a step of inputs, in a block of so many rows.
    pub(super) fn step(self, step: u64, rows: u64) -> u64 {
        let byte = step * STEP;
        byte / self.width * rows * self.width + byte % self.width
    }

    /// The piece of a part that is in the place of another in a row: 32-bit numbers.
    pub(super) fn turned(self, w: &mut Writer, piece: Val, row: Val) -> Val {
        let row = match self.width {
            128 => row,
            64 => w.shr(row, 1),
            _ => w.shr(row, 2),
        };
        let last = w.int(self.pieces() as i64 - 1, I32);
        let by = w.and(row, last);
        w.xor(piece, by)
    }

    /// The first byte of a piece, in a block of `n` rows.
    pub(super) fn place_of(self, w: &mut Writer, n: u64, row: Val, piece: Val) -> Val {
        let pieces = w.int(self.pieces() as i64, I32);
        let (part, within) = (w.div_unsigned(piece, pieces), w.rem_unsigned(piece, pieces));
        let within = self.turned(w, within, row);
        let within = w.shl(within, PIECE.ilog2());
        let size = w.int((n * self.width) as i64, I32);
        let part = w.mul(part, size);
        let size = w.int(self.width as i64, I32);
        let row = w.mul(row, size);
        let at = w.add(part, row);
        w.add(at, within)
    }
}

/// Where the queries of a team go.
#[derive(Clone, Copy)]
pub(super) struct QueryPlace {
    pub(super) rows: Rows,
    /// Shared memory, and bytes from there: a 32-bit number.
    pub(super) shared: Val,
    pub(super) at: Val,
    /// How many queries are before them.
    pub(super) before: Val,
    /// A thread's number in the team, and where its threads meet.
    pub(super) thread: Val,
    pub(super) point: Val,
}

impl Attention<'_> {
    /// Brings the queries of a team to shared memory; those behind the last are zeros.
    pub(super) fn bring_queries(
        &self,
        w: &mut Writer,
        segment: &Segment,
        place: QueryPlace,
    ) -> Result<(), CodegenError> {
        let rows = place.rows;
        let n_pieces = rows.bytes / PIECE;
        // Rows of other products may begin anywhere.
        let start = w.address(self.q.data);
        let two = w.i64(2);
        let stride = w.mul(self.q.row_stride, two);
        let both = w.or(start, stride);
        let [within, none] = [PIECE as i64 - 1, 0].map(|n| w.i64(n));
        let odd = w.and(both, within);
        let is_even = w.cmp(Cmp::Eq, odd, none);
        let first = w.widen_unsigned(place.thread, Elem::I64);
        let end = w.i64((OF_TEAM * n_pieces) as i64);
        let bring = |w: &mut Writer, copies: bool| {
            w.for_loop(first, end, TEAM as i64, &[], |w, index, _| {
                let index = w.resize(index, Elem::I32);
                let n = w.int(n_pieces as i64, I32);
                let (of_team_row, piece) = (w.div_unsigned(index, n), w.rem_unsigned(index, n));
                let number = w.add(place.before, of_team_row);
                let number = w.widen_unsigned(number, Elem::I64);
                let (row, head) = self.locate(w, segment.tile, segment.from, segment.n, number);
                let there = w.cmp(Cmp::Lt, number, segment.n);
                let row = w.row(self.q, row, 2);
                let from = w.element(row, head, rows.bytes);
                let wide = w.widen_unsigned(piece, Elem::I64);
                let from = w.element(from, wide, PIECE);
                let to = rows.place_of(w, OF_TEAM, of_team_row, piece);
                let to = w.add(to, place.at);
                let to = w.widen_unsigned(to, Elem::I64);
                if copies {
                    let [whole, none] = [PIECE as i64, 0].map(|n| w.int(n, I32));
                    let bytes = w.select(there, whole, none);
                    w.copy_some(place.shared, to, from, bytes);
                } else {
                    let words = w.load_eight(from, there);
                    let to = w.offset(place.shared, to);
                    w.store_four(words, to);
                }
                Ok(vec![])
            })?;
            Ok::<(), CodegenError>(())
        };
        w.if_either(is_even, |w| bring(w, true), |w| bring(w, false))?;
        w.end_copies();
        w.wait_for_copies(0);
        w.order_shared();
        let threads = w.int(TEAM as i64, I32);
        w.meet(place.point, threads);
        Ok(())
    }
}
