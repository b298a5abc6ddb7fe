//! Places intermediate values in arenas so that values that live at the same time do not overlap.
//!
//! All values of an arena grow with the same number of rows, so offsets are in bytes per row and hold for every step size.

use xfc_runtime::artifact::manifest::Arena;

use crate::mlir::frame::RowSpace;

/// An intermediate value.
#[derive(Clone, Copy, Debug)]
pub struct Buffer {
    /// Its rows.
    pub space: RowSpace,
    /// Bytes of one row.
    pub bytes_per_row: u64,
    /// Bytes of one element.
    pub element_bytes: u64,
    /// Launch that writes it first.
    pub first: usize,
    /// Launch that reads it last.
    pub last: usize,
}

/// Where a buffer lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placed {
    /// Index into the arenas.
    pub arena: usize,
    /// Bytes per row before it.
    pub offset: u64,
}

/// Rows of an axis of which a sequence has a known number of elements begin at multiples of this, so that an arena has room for just as many.
const ALIGN: u64 = 64;

/// Places buffers, each at the lowest offset free of those already placed that live at the same time; the largest first. `known` says of an
/// axis that every sequence has the same number of its elements.
pub fn place(buffers: &[Buffer], known: &dyn Fn(usize) -> bool) -> (Vec<Arena>, Vec<Placed>) {
    let rounded = |b: &Buffer| {
        let align = if known(b.space.axis) { ALIGN } else { 1 };
        Buffer { bytes_per_row: b.bytes_per_row.next_multiple_of(align), ..*b }
    };
    let buffers: Vec<Buffer> = buffers.iter().map(rounded).collect();
    let mut arenas: Vec<Arena> = Vec::new();
    let mut placed: Vec<Option<Placed>> = vec![None; buffers.len()];
    let mut order: Vec<usize> = (0..buffers.len()).collect();
    order.sort_by_key(|i| (std::cmp::Reverse(buffers[*i].bytes_per_row), *i));
    for i in order {
        let buffer = buffers[i];
        let arena = arenas
            .iter()
            .position(|a| a.axis == buffer.space.axis && a.rows == buffer.space.selected)
            .unwrap_or_else(|| {
                arenas.push(Arena { axis: buffer.space.axis, rows: buffer.space.selected, bytes_per_row: 0 });
                arenas.len() - 1
            });
        let mut taken: Vec<(u64, u64)> = placed
            .iter()
            .zip(&buffers)
            .filter_map(|(p, b)| {
                p.filter(|p| p.arena == arena && b.first <= buffer.last && buffer.first <= b.last)
                    .map(|p| (p.offset, p.offset + b.bytes_per_row))
            })
            .collect();
        taken.sort_unstable();
        let mut offset = 0;
        for (begin, end) in taken {
            if offset + buffer.bytes_per_row <= begin {
                break;
            }
            offset = offset.max(end);
        }
        arenas[arena].bytes_per_row = arenas[arena].bytes_per_row.max(offset + buffer.bytes_per_row);
        placed[i] = Some(Placed { arena, offset });
    }
    (arenas, placed.into_iter().map(|p| p.unwrap_or(Placed { arena: 0, offset: 0 })).collect())
}

#[cfg(test)]
mod tests {
    use super::{Buffer, place};
    use crate::mlir::frame::RowSpace;

    #[test]
    fn live_values_never_overlap() {
        let space = RowSpace { axis: 0, selected: false };
        // A pseudo-random set of lifetimes and sizes, fixed by a linear congruence.
        let mut x = 12345_u64;
        let mut next = |n: u64| {
            x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (x >> 33) % n
        };
        let buffers: Vec<Buffer> = (0..200)
            .map(|_| {
                let first = next(100) as usize;
                Buffer {
                    space,
                    bytes_per_row: 4 + 4 * next(64),
                    element_bytes: 4,
                    first,
                    last: first + next(10) as usize,
                }
            })
            .collect();
        let (arenas, placed) = place(&buffers, &|_| false);
        for (a, pa) in buffers.iter().zip(&placed) {
            assert!(pa.offset + a.bytes_per_row <= arenas[pa.arena].bytes_per_row);
            for (b, pb) in buffers.iter().zip(&placed) {
                let together = a.first <= b.last && b.first <= a.last;
                let apart = pa.offset + a.bytes_per_row <= pb.offset || pb.offset + b.bytes_per_row <= pa.offset;
                assert!(std::ptr::eq(a, b) || !together || apart);
            }
        }
        let sum: u64 = buffers.iter().map(|b| b.bytes_per_row).sum();
        assert!(arenas[0].bytes_per_row < sum / 4, "memory is reused");
    }
}
