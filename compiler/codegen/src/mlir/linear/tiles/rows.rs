//! The rows of tiles: which of them a thread brings pieces of, and where these lie in a stage.

use super::{I32, PIECE, Tiles, low_bits};
use crate::error::CodegenError;
use crate::mlir::linear::Linear;
use crate::mlir::writer::{Cmp, Elem, Ty, Val, Writer};
use crate::plan::kernel::TokenRow;

/// A row that a thread brings parts of: where it lies, and whether it exists; otherwise nothing may be read there.
#[derive(Clone, Copy)]
pub(super) struct Source {
    at: Val,
    exists: Val,
}

/// What a thread brings stage after stage.
pub(super) struct Brought {
    /// The row of each of its pieces, which are so many apart as there are threads.
    pieces: Vec<Source>,
    /// Bytes from the row of a piece to that of the next, where rows follow one another.
    stride: Option<Val>,
    /// First byte of its first piece in the row's part of the stage, and where it goes.
    within: Val,
    to: Val,
    /// The row of its words, or another that exists.
    pub(super) words: Option<Val>,
    /// Whether all rows begin at multiples of a piece, where that is not known.
    aligned: Option<Val>,
}

impl Linear<'_> {
    /// Bytes of a row that are inputs.
    fn row_bytes(&self) -> u64 {
        match self.integers() {
            Some(blocks) => TokenRow::new(self.spec.inputs, blocks).scales_at,
            None => self.spec.inputs * self.input_bytes(),
        }
    }

    /// What a thread brings of the rows of a tile.
    pub(super) fn brought(&self, w: &mut Writer, tiles: &Tiles) -> Brought {
        let threads = tiles.bringing;
        let row = w.shr(tiles.thread, tiles.stage.pieces().ilog2());
        let piece = low_bits(w, tiles.thread, tiles.stage.pieces() - 1);
        let to = self.place_in_rows(w, tiles, row, piece);
        let to = w.widen_unsigned(to, Elem::I64);
        let within = w.shl(piece, PIECE.ilog2());
        let within = w.widen_unsigned(within, Elem::I64);
        let pieces = (0..tiles.rows * tiles.stage.pieces() / threads).map(|i| {
            let shift = w.int((i * threads / tiles.stage.pieces()) as i64, I32);
            let row = w.add(row, shift);
            let row = w.widen_unsigned(row, Elem::I64);
            let number = w.add(tiles.begin, row);
            let at = match tiles.list {
                None => self.row_of_number(w, tiles, number),
                Some(_) => self.nearest_row(w, tiles, number),
            };
            Source { at, exists: w.cmp(Cmp::Lt, number, tiles.end) }
        });
        let pieces = pieces.collect();
        let stride = tiles.list.is_none().then(|| {
            let bytes = threads / tiles.stage.pieces() * self.input_bytes();
            let bytes = w.i64(bytes as i64);
            w.mul(self.x.row_stride, bytes)
        });
        let words = (tiles.stage.words > 0).then(|| {
            let row = low_bits(w, tiles.thread, tiles.rows - 1);
            let row = w.widen_unsigned(row, Elem::I64);
            let number = w.add(tiles.begin, row);
            self.nearest_row(w, tiles, number)
        });
        // Views may begin anywhere; rows in blocks are aligned, and so are buffers.
        let aligned = self.integers().is_none().then(|| {
            let stride = w.shl(self.x.row_stride, 1);
            let address = w.address(self.x.data);
            let mut either = w.or(stride, address);
            if self.spec.experts.is_some_and(|experts| experts.by_choice) {
                let width = w.i64((self.width_of_x() * 2) as i64);
                either = w.or(either, width);
            }
            let odd = low_bits(w, either, PIECE - 1);
            let zero = w.i64(0);
            w.cmp(Cmp::Eq, odd, zero)
        });
        Brought { pieces, stride, within, to, words, aligned }
    }

    /// The last row of the tile, where it has not as many as this.
    fn nearest_row(&self, w: &mut Writer, tiles: &Tiles, number: Val) -> Val {
        let one = w.i64(1);
        let last = w.sub(tiles.end, one);
        let number = w.min(number, last);
        self.row_of_number(w, tiles, number)
    }

    fn row_of_number(&self, w: &mut Writer, tiles: &Tiles, number: Val) -> Val {
        match tiles.list {
            None => w.row(self.x, number, self.input_bytes()),
            Some((_, experts)) => {
                let place = tiles.place(w, number);
                self.x_at(w, place, experts)
            }
        }
    }

    /// Asks for the rows of a stage.
    pub(super) fn bring_rows(
        &self,
        w: &mut Writer,
        tiles: &Tiles,
        brought: &Brought,
        (stage, place): (Val, Val),
    ) -> Result<(), CodegenError> {
        let threads = tiles.bringing;
        let per_stage = w.i64(tiles.stage.row as i64);
        let before = w.mul(stage, per_stage);
        let first = w.add(before, brought.within);
        let (zero, piece) = (w.int(0, I32), w.int(PIECE as i64, I32));
        // Bytes of a row from here on, where the last stage has less than the others.
        let left = (!self.row_bytes().is_multiple_of(tiles.stage.row)).then(|| {
            let all = w.i64(self.row_bytes() as i64);
            let left = w.sub(all, first);
            let left = w.resize(left, Elem::I32);
            let left = w.max(left, zero);
            w.min(left, piece)
        });
        let base = w.add(place, brought.to);
        // Of piece `i`: where it goes, where it is, and how many bytes of it there are.
        let piece_of = |w: &mut Writer, i: usize| {
            // The rows of a thread are so many apart that their pieces change places alike.
            let shift = w.i64((i as u64 * threads * PIECE) as i64);
            let source = brought.pieces[i];
            let from = match brought.stride {
                None => w.offset(source.at, first),
                // Fewer registers than an address for each.
                Some(stride) => {
                    let n = w.i64(i as i64);
                    let rows = w.mul(stride, n);
                    let behind = w.add(rows, first);
                    w.offset(brought.pieces[0].at, behind)
                }
            };
            let bytes = w.select(source.exists, left.unwrap_or(piece), zero);
            (w.add(base, shift), from, bytes)
        };
        let copied = |w: &mut Writer| {
            for i in 0..brought.pieces.len() {
                let (to, from, bytes) = piece_of(w, i);
                w.copy_some(tiles.shared, to, from, bytes);
            }
            Ok(())
        };
        let Some(aligned) = brought.aligned else { return copied(w) };
        w.if_then(aligned, copied)?;
        let yes = w.int(1, aligned.ty);
        let is_other = w.xor(aligned, yes);
        w.if_then(is_other, |w| {
            for i in 0..brought.pieces.len() {
                let (to, from, bytes) = piece_of(w, i);
                let to = w.offset(tiles.shared, to);
                let (zero, end, two) = (w.i64(0), w.i64(PIECE as i64 / 2), w.i64(2));
                w.for_loop(zero, end, 1, &[], |w, k, _| {
                    let behind = w.mul(k, two);
                    let narrow = w.resize(behind, Elem::I32);
                    let is_there = w.cmp(Cmp::Lt, narrow, bytes);
                    let none = w.int(0, Ty::scalar(Elem::I16));
                    let x = w.if_else(is_there, &[none], |w| {
                        let at = w.offset(from, behind);
                        Ok(vec![w.load(Ty::scalar(Elem::I16), at)])
                    })?;
                    let at = w.offset(to, behind);
                    w.store_own(x[0], at);
                    Ok(vec![])
                })?;
            }
            Ok(())
        })
    }

    /// Where a piece of a row lies in a stage: eight rows on, they do so alike; and of two pieces more it is that with the bit of two pieces turned over.
    pub(super) fn place_in_rows(&self, w: &mut Writer, tiles: &Tiles, row: Val, piece: Val) -> Val {
        // A line of all banks holds a row of eight pieces, or two rows of four. The rows, or pairs of rows, take turns: the lowest bit of their number
        // moves a piece by two, so that pairs of pieces go apart first.
        let bits = tiles.stage.pieces().ilog2();
        let turn = if tiles.of.teams.is_some() {
            // As products of teams want it.
            low_bits(w, row, tiles.stage.pieces() - 1)
        } else {
            let lines = if bits == 3 { row } else { w.shr(row, 1) };
            let low = low_bits(w, lines, (1 << (bits - 1)) - 1);
            let low = w.shl(low, 1);
            let high = w.shr(lines, bits - 1);
            let high = low_bits(w, high, 1);
            w.or(low, high)
        };
        let piece = w.xor(piece, turn);
        let piece = w.shl(piece, PIECE.ilog2());
        let row = w.shl(row, tiles.stage.row.ilog2());
        w.add(row, piece)
    }
}
