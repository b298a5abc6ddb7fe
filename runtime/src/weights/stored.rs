//! Integers of few bits, and floats of 8, that are taken over from a checkpoint as it stores them, where they fit blocks of ours.
//!
//! Given a tensor, says which blocks its groups fit; given a run of its elements, promises their integers, and scale and minimum rounded to f16
//! once, or their bytes, and the scale rounded to f32, where all of the run is in one group.

use super::blocks::{BlockFormat, GROUP};
use super::checkpoint::Stored;
use super::convert::Numbers;
use super::encoded;
use super::pack::Found;
use super::quantise::fits;
use super::scaled::Code;
use crate::artifact::manifest::{Blocks, Source};
use half::f16;

/// Groups that blocks may have.
const GROUPS: [u64; 3] = [32, 64, 128];

/// How a tensor of few bits is stored, and which blocks its numbers are held in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredAs {
    /// Its encoding, for messages: `Q4_K`.
    pub encoding: String,
    /// Bits of an integer of the blocks.
    pub bits: u64,
    /// Whether groups have a minimum.
    pub minimum: bool,
    /// Whether elements are floats of 8 bits, and no integers.
    pub floats: bool,
    /// Elements of a group.
    pub group: u64,
    /// The dimension of the parameter whose neighbours share scales, where elements are taken over; `None`: numbers are rounded again.
    pub along: Option<usize>,
}

impl Stored {
    /// How the tensor of a parameter is stored; `None` where it is not there, or not of few bits.
    pub fn stored_as(&self, source: &Source) -> Option<StoredAs> {
        let found = encoded::take(self, source)?.ok()?;
        let (encoding, bits, minimum, group) = form(&found.numbers)?;
        let along = found.lens.rows().filter(|_| found.offset == 0.0);
        let floats = false;
        Some(match (group, along) {
            (Some(group), Some(_)) => {
                StoredAs { encoding, bits, minimum, floats: is_of_floats(&found.numbers), group, along }
            }
            // Of two bits, four hold nearly all; of more, 8 with a scale hold more than was there.
            (None, _) if bits == 4 => StoredAs { encoding, bits, minimum, floats, group: GROUPS[0], along: None },
            _ => StoredAs { encoding, bits: 8, minimum: false, floats, group: GROUPS[0], along: None },
        })
    }
}

/// Whether elements are floats that blocks hold.
fn is_of_floats(numbers: &Numbers<'_>) -> bool {
    matches!(numbers, Numbers::Scaled(scaled) if scaled.code() == Code::E4M3)
}

/// The encoding's name, bits and minimum of the blocks that it fits, and elements of their groups; without, numbers are rounded again.
fn form(numbers: &Numbers<'_>) -> Option<(String, u64, bool, Option<u64>)> {
    Some(match numbers {
        Numbers::Blocks(blocks) => {
            let format = blocks.format();
            let (bits, minimum, whole) = match format {
                BlockFormat::Q4_0 => (4, false, true),
                BlockFormat::Q4_1 | BlockFormat::Q4K => (4, true, true),
                BlockFormat::Q5_0 | BlockFormat::Q8_0 => (8, false, true),
                BlockFormat::Q5_1 | BlockFormat::Q5K => (8, true, true),
                BlockFormat::Q2K => (4, true, false),
                BlockFormat::Q3K | BlockFormat::Q6K => (8, false, false),
            };
            (format.name().to_owned(), bits, minimum, whole.then_some(GROUP as u64))
        }
        Numbers::Scaled(scaled) => {
            let (block, row) = scaled.block();
            let (name, whole) = match scaled.code() {
                Code::E4M3 => ("F8_E4M3", true),
                Code::E5M2 => ("F8_E5M2", false),
                Code::E2M1 => ("pairs of E2M1", true),
                Code::I8 => ("I8", true),
            };
            (name.to_owned(), 8, false, group_of(block, row).filter(|_| whole))
        }
        Numbers::Packed(packed) => {
            let row = packed.inputs as u64;
            let (half, group) = (1 << (packed.bits - 1), packed.group_size());
            let half = if packed.has_signs() { 0 } else { half };
            let bits = if packed.bits > 4 { 8 } else { 4 };
            let name = match group {
                Some(group) if group < row => format!("int{} in groups of {group}", packed.bits),
                Some(_) => format!("int{} in rows", packed.bits),
                None => format!("int{} in groups of any inputs", packed.bits),
            };
            match group.and_then(|group| group_of(group, row)) {
                Some(group) => (name, bits, packed.one_zero() != Some(half), Some(group)),
                None => (name, 8, false, None),
            }
        }
        Numbers::Stored(..) | Numbers::Random(_) => return None,
    })
}

/// The largest group of which stored groups, of so many neighbours in rows of so many, are made.
fn group_of(stored: u64, row: u64) -> Option<u64> {
    let [.., most] = GROUPS;
    if stored >= row {
        return Some(GROUPS.into_iter().find(|group| *group >= row).unwrap_or(most));
    }
    GROUPS.into_iter().rev().find(|group| stored.is_multiple_of(*group))
}

/// The bytes of the elements of `found` from `first` on, with their scale, where blocks take floats over and these share it.
pub(super) fn stored_bytes(found: &Found<'_>, first: u64, blocks: Blocks, out: &mut [u8]) -> Option<f32> {
    let position = stored_at(found, first, blocks, out.len()).filter(|_| blocks.floats.is_some())?;
    match found.numbers {
        Numbers::Scaled(stored) => Some(stored.bytes(position, out)? as f32),
        Numbers::Stored(..) | Numbers::Random(_) | Numbers::Blocks(_) | Numbers::Packed(_) => None,
    }
}

/// Where `n` elements from `first` on lie side by side, where blocks take elements over.
fn stored_at(found: &Found<'_>, first: u64, blocks: Blocks, n: usize) -> Option<usize> {
    if !blocks.stored || found.offset != 0.0 {
        return None;
    }
    let (position, there, stride) = found.lens.run(first);
    if there < n as u64 || stride != 1 && n > 1 {
        return None;
    }
    usize::try_from(position).ok()
}

/// The integers of the elements of `found` from `first` on, with their scale and minimum, where blocks take them over and they share both.
pub(super) fn stored_integers(found: &Found<'_>, first: u64, blocks: Blocks, out: &mut [i16]) -> Option<(f16, f16)> {
    let position = stored_at(found, first, blocks, out.len()).filter(|_| blocks.floats.is_none())?;
    let (scale, minimum) = match found.numbers {
        Numbers::Blocks(stored) => {
            let mut all = [0; GROUP];
            let (scale, minimum) = stored.integers(position, &mut all)?;
            out.copy_from_slice(all.get(..out.len())?);
            (f64::from(scale), minimum.map(f64::from))
        }
        Numbers::Scaled(stored) => (stored.integers(position, out)?, None),
        Numbers::Packed(stored) => {
            let (scale, zero) = stored.integers(position, out)?;
            // A byte with a sign and a zero is one without, of another zero.
            let (shift, zero) = if stored.has_signs() { (128, zero + 128) } else { (0, zero) };
            if blocks.minimum {
                out.iter_mut().for_each(|x| *x += shift);
                (scale, Some(f64::from(-zero) * scale))
            } else {
                let zero = i16::try_from(zero).ok()? - shift;
                out.iter_mut().for_each(|x| *x -= zero);
                (scale, None)
            }
        }
        Numbers::Stored(..) | Numbers::Random(_) => return None,
    };
    (fits(out, blocks) && minimum.is_some() == blocks.minimum)
        .then(|| (f16::from_f64(scale), f16::from_f64(minimum.unwrap_or(0.0))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artifact::manifest::Step;
    use crate::weights::blocks;
    use crate::weights::lens::Lens;

    /// Blocks of bits of no order, with scales that are numbers.
    fn made(format: BlockFormat, n: usize) -> Vec<u8> {
        let mut bytes: Vec<u8> = (0..n * format.bytes()).map(|i| ((i * 2_654_435_761) >> 7) as u8).collect();
        for (block, bytes) in bytes.chunks_mut(format.bytes()).enumerate() {
            for at in [0, 2] {
                let scale = f16::from_f32(0.01 * (block + at + 1) as f32);
                bytes[at..at + 2].copy_from_slice(&scale.to_le_bytes());
            }
        }
        bytes
    }

    #[test]
    fn integers_with_their_scales_are_the_numbers() {
        for format in BlockFormat::ALL {
            let bytes = made(format, 4);
            let width = format.elements() as u64 * 2;
            let numbers = Numbers::Blocks(blocks::Blocks::new(format, &bytes));
            let lens = Lens::new(&[2, width], &[]).unwrap();
            let found = Found { numbers, lens, offset: 0.0, larger: None };
            let (_, bits, minimum, group) = form(&found.numbers).unwrap();
            let blocks = Blocks { columns: 8, bits, group: 32, minimum, stored: true, floats: None };
            for first in (0..2 * width).step_by(GROUP) {
                let mut integers = [0; GROUP];
                let of = stored_integers(&found, first, blocks, &mut integers);
                assert_eq!(of.is_some(), group.is_some(), "{format:?}");
                let Some((scale, least)) = of else { continue };
                let (mut decoded, at) = ([0.0; GROUP], first as usize);
                let block = &bytes[at / format.elements() * format.bytes()..][..format.bytes()];
                format.decode(block, at % format.elements() / GROUP, &mut decoded);
                for (q, x) in integers.iter().zip(decoded) {
                    let (product, least) = (f32::from(*q) * scale.to_f32(), least.to_f32());
                    let wide = matches!(format, BlockFormat::Q4K | BlockFormat::Q5K);
                    let allowed = if wide { (product.abs() + least.abs()) / 2000.0 } else { 0.0 };
                    assert!((product + least - x).abs() <= allowed, "{format:?}: {} for {x}", product + least);
                }
            }
        }
    }

    #[test]
    fn what_is_not_one_group_is_left_to_rounding() {
        let bytes = made(BlockFormat::Q8_0, 8);
        let found = |steps: &[Step], offset| Found {
            numbers: Numbers::Blocks(blocks::Blocks::new(BlockFormat::Q8_0, &bytes)),
            lens: Lens::new(&[4, 64], steps).unwrap(),
            offset,
            larger: None,
        };
        let blocks = Blocks { columns: 8, bits: 8, group: 32, minimum: false, stored: true, floats: None };
        let taken = |found: &Found<'_>, first, blocks, n: usize| {
            stored_integers(found, first, blocks, &mut vec![0; n]).is_some()
        };
        let plain = found(&[], 0.0);
        assert!(taken(&plain, 32, blocks, 32) && taken(&plain, 96, blocks, 7));
        assert!(!taken(&plain, 32, Blocks { stored: false, ..blocks }, 32));
        assert!(!taken(&plain, 32, Blocks { minimum: true, ..blocks }, 32));
        assert!(!taken(&plain, 32, Blocks { bits: 4, ..blocks }, 32), "integers of 8 bits");
        assert!(!taken(&plain, 16, blocks, 32) && !taken(&plain, 0, Blocks { group: 64, ..blocks }, 64));
        assert!(!taken(&found(&[], 1.0), 32, blocks, 32));
        assert!(!taken(&found(&[Step::Transpose { perm: vec![1, 0] }], 0.0), 0, blocks, 4));
        let rows = [
            Step::Reshape { shape: vec![2, 2, 64] },
            Step::Transpose { perm: vec![1, 0, 2] },
            Step::Reshape { shape: vec![4, 64] },
        ];
        assert!(taken(&found(&rows, 0.0), 64, blocks, 32), "whole rows in another order");
        let cut = |start| found(&[Step::Slice { dim: 1, start, len: 32 }], 0.0);
        assert!(taken(&cut(32), 0, blocks, 32) && !taken(&cut(16), 0, blocks, 32));
    }

    #[test]
    fn groups_are_the_largest_that_stored_ones_are_made_of() {
        let of = |stored, row| group_of(stored, row);
        assert_eq!([of(32, 64), of(64, 640), of(128, 256), of(256, 512)], [32, 64, 128, 128].map(Some));
        assert_eq!([of(96, 192), of(640, 640), of(36, 36), of(20, 20)], [32, 128, 64, 32].map(Some));
        assert_eq!([of(16, 64), of(48, 96)], [None, None]);
    }
}
