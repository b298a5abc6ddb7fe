//! Lays out one piece of one weight as kernels read it: row-major, or in panels, of numbers or of integers of few bits.
//!
//! Pieces are independent, so that any number of threads pack one checkpoint.

use half::bf16;

use super::convert::{Numbers, fill};
use super::lens::Lens;
use super::quantise::{pack_bytes, pack_floats, pack_group, pack_integers};
use super::stored::{stored_bytes, stored_integers};
use crate::artifact::manifest::{Blocks, DType, Pack, Weight};

/// Bytes of a piece of work, about.
const PIECE_BYTES: u64 = 1 << 20;
/// Inputs of a panel that are converted at a time.
const BLOCK: usize = 64;

/// A source of a weight, found.
#[derive(Debug)]
pub(super) struct Found<'a> {
    pub(super) numbers: Numbers<'a>,
    pub(super) lens: Lens,
    /// Added to each number.
    pub(super) offset: f64,
    /// Its name and its shape, where it is the leading part of a larger tensor.
    pub(super) larger: Option<(String, Vec<u64>)>,
}

/// A weight with its sources.
#[derive(Debug)]
pub(super) struct Job<'a> {
    pub(super) weight: &'a Weight,
    pub(super) sources: Vec<Found<'a>>,
}

/// Units (elements, or whole panels) that are packed together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) first: u64,
    pub(super) bytes: u64,
}

impl Job<'_> {
    /// Bytes of one unit of work: a panel, or an element.
    fn unit_bytes(&self) -> u64 {
        let size = self.weight.dtype.size_bytes() as u64;
        match (self.weight.pack, self.weight.shape.as_slice()) {
            (Pack::Panels { columns, depth }, [.., _, inputs]) => columns * inputs.next_multiple_of(depth) * size,
            (Pack::Blocks(blocks), [.., inputs]) => blocks.panel_bytes(*inputs),
            _ => size,
        }
    }

    /// The pieces, in order of memory; their bytes add up to `bytes`.
    pub(super) fn pieces(&self, bytes: u64) -> Vec<Piece> {
        let unit_bytes = self.unit_bytes();
        let units = (PIECE_BYTES / unit_bytes).max(1);
        (0..bytes.div_ceil(unit_bytes))
            .step_by(units as usize)
            .map(|first| Piece { first, bytes: (units * unit_bytes).min(bytes - first * unit_bytes) })
            .collect()
    }

    /// Packs one piece into `out`, which is zeroed and has the piece's bytes.
    pub(super) fn pack(&self, piece: Piece, out: &mut [u8]) {
        let (columns, &[.., outputs, inputs]) = (
            match self.weight.pack {
                Pack::Plain => return self.pack_plain(piece.first, out),
                Pack::Panels { columns, .. } | Pack::Blocks(Blocks { columns, .. }) => columns,
            },
            self.weight.shape.as_slice(),
        ) else {
            return;
        };
        let panels = outputs.div_ceil(columns);
        for (panel, out) in out.chunks_exact_mut(self.unit_bytes() as usize).enumerate() {
            // Rows of all matrices, one below the other; a panel holds rows of one.
            let panel = piece.first + panel as u64;
            let matrix = panel / panels * outputs;
            let first = panel % panels * columns;
            let rows = matrix + first..matrix + outputs.min(first + columns);
            match self.weight.pack {
                Pack::Blocks(blocks) => self.pack_blocks(rows, inputs as usize, blocks, out),
                Pack::Panels { depth, .. } => {
                    self.pack_panel(rows, inputs as usize, columns as usize, depth as usize, out);
                }
                Pack::Plain => {}
            }
        }
    }

    /// One panel of groups: rows `outputs` of the joined matrix.
    fn pack_blocks(&self, outputs: std::ops::Range<u64>, inputs: usize, blocks: Blocks, out: &mut [u8]) {
        let group = blocks.group as usize;
        let (mut integers, mut bytes, mut row) = (vec![0; group], vec![0; group], Vec::new());
        for (column, output) in outputs.enumerate() {
            let Some((source, at)) = self.source_of_row(output) else { continue };
            row.clear();
            for (from, out) in (0..inputs).step_by(group).zip(out.chunks_exact_mut(blocks.group_bytes() as usize)) {
                let n = group.min(inputs - from);
                let first = (at * inputs as u64) + from as u64;
                let (integers, bytes) = (&mut integers[..n], &mut bytes[..n]);
                if let Some(scale) = stored_bytes(source, first, blocks, bytes) {
                    pack_bytes(bytes, scale, blocks, column, out);
                    continue;
                }
                if let Some(of) = stored_integers(source, first, blocks, integers) {
                    pack_integers(integers, of, blocks, column, out);
                    continue;
                }
                if row.is_empty() {
                    row = self.row(source, at, inputs);
                }
                match blocks.floats {
                    Some(_) => pack_floats(&row[from..from + n], blocks, column, out),
                    None => pack_group(&row[from..from + n], blocks, column, out),
                }
            }
        }
    }

    /// A row of a source as numbers of the weight's type.
    fn row(&self, source: &Found<'_>, at: u64, inputs: usize) -> Vec<f32> {
        let dtype = self.weight.dtype;
        let mut stored = vec![0u8; inputs * dtype.size_bytes()];
        fill(source, at * inputs as u64, dtype, &mut stored);
        match dtype {
            DType::BF16 => stored.as_chunks().0.iter().map(|bytes| bf16::from_le_bytes(*bytes).to_f32()).collect(),
            _ => stored.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect(),
        }
    }

    /// Elements of the joined tensor from `first` on.
    fn pack_plain(&self, first: u64, mut out: &mut [u8]) {
        let size = self.weight.dtype.size_bytes();
        let mut begin = 0;
        let mut at = first;
        for source in &self.sources {
            let end = begin + source.lens.shape().iter().product::<u64>();
            if at < end && !out.is_empty() {
                let n = ((end - at) as usize).min(out.len() / size);
                let (part, rest) = out.split_at_mut(n * size);
                fill(source, at - begin, self.weight.dtype, part);
                at += n as u64;
                out = rest;
            }
            begin = end;
        }
    }

    /// One panel: rows `outputs` of the joined matrix.
    fn pack_panel(&self, outputs: std::ops::Range<u64>, inputs: usize, columns: usize, depth: usize, out: &mut [u8]) {
        let size = self.weight.dtype.size_bytes();
        let mut block = [0u8; BLOCK * 8];
        for from in (0..inputs).step_by(BLOCK) {
            let n = BLOCK.min(inputs - from);
            for (column, output) in outputs.clone().enumerate() {
                let Some((source, row)) = self.source_of_row(output) else { continue };
                let block = &mut block[..n * size];
                fill(source, row * inputs as u64 + from as u64, self.weight.dtype, block);
                let first = from / depth * columns + column;
                match size * depth {
                    // Blocks begin where groups begin, so that whole groups are moved; how many bytes they have must be known here to be fast.
                    2 => scatter::<2>(block, first, columns, out),
                    4 => scatter::<4>(block, first, columns, out),
                    8 => scatter::<8>(block, first, columns, out),
                    16 => scatter::<16>(block, first, columns, out),
                    _ => {
                        for (k, element) in block.chunks_exact(size).enumerate() {
                            let place = (((from + k) / depth) * columns + column) * depth + (from + k) % depth;
                            out[place * size..(place + 1) * size].copy_from_slice(element);
                        }
                    }
                }
            }
        }
    }

    /// The source of a row of the joined matrix or stack of matrices, and the row's index in it.
    fn source_of_row(&self, row: u64) -> Option<(&Found<'_>, u64)> {
        let rows = |source: &Found<'_>| source.lens.shape().split_last().map(|(_, rows)| rows.iter().product::<u64>());
        // Of a stack, a source is mostly one matrix.
        if self.weight.shape.len() > 2 && self.weight.shape.first() == Some(&(self.sources.len() as u64)) {
            let each = rows(self.sources.first()?)?.max(1);
            return Some((self.sources.get(usize::try_from(row / each).ok()?)?, row % each));
        }
        let mut begin = 0;
        for source in &self.sources {
            let end = begin + rows(source)?;
            if row < end {
                return Some((source, row - begin));
            }
            begin = end;
        }
        None
    }
}

/// Writes groups of `G` bytes to the groups `first`, `first + columns`, ... of `out`; the last one may be shorter.
fn scatter<const G: usize>(block: &[u8], first: usize, columns: usize, out: &mut [u8]) {
    let (groups, rest) = block.as_chunks::<G>();
    let places = out.as_chunks_mut::<G>().0;
    for (group, place) in groups.iter().zip(places.iter_mut().skip(first).step_by(columns)) {
        *place = *group;
    }
    if let Some(place) = places.get_mut(first + groups.len() * columns).filter(|_| !rest.is_empty()) {
        place[..rest.len()].copy_from_slice(rest);
    }
}
