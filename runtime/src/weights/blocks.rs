//! Numbers in blocks of few bits with scales, as GGUF files store them.
//!
//! Given the bytes of whole blocks, promises each number as the format defines it, in f32 and bit for bit: every step of a definition is one
//! operation of f32.
//!
//! ```text
//! d, m are f16; q unsigned; elements 0..16 of a run of 32 are the lower halves of its 16 bytes, 16..32 the upper ones
//! Q4_0  32: d, 16 bytes                              (q - 8) d          Q4_1  32: d, m, 16 bytes                         q d + m
//! Q5_0  32: d, 32 fifth bits, 16 bytes              (q - 16) d          Q5_1  32: d, m, 32 fifth bits, 16 bytes          q d + m
//! Q8_0  32: d, 32 signed bytes                             q d
//! Q2_K 256: 16 (scale | min << 4), 64 bytes, d, m   q (d scale) - m min
//! Q3_K 256: 32 bytes of third bits, 64 bytes, 16 scales of 6 bits, d   (q - 4) (d (scale - 32))
//! Q4_K 256: d, m, 8 scales and 8 mins of 6 bits, 128 bytes             q (d scale) - m min
//! Q5_K 256: as Q4_K, 32 bytes of fifth bits before the 128
//! Q6_K 256: 128 bytes, 64 bytes of upper pairs of bits, 16 signed scales, d   (q - 32) (d scale)
//! ```

use super::convert::store;
use crate::artifact::manifest::DType;
use half::{bf16, f16};

/// Elements that are decoded together: a block holds one or several such groups.
pub const GROUP: usize = 32;

/// How numbers are stored in blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "each is the format it is named after")]
pub enum BlockFormat {
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
}

impl BlockFormat {
    /// Every format.
    pub const ALL: [BlockFormat; 10] = [
        BlockFormat::Q4_0,
        BlockFormat::Q4_1,
        BlockFormat::Q5_0,
        BlockFormat::Q5_1,
        BlockFormat::Q8_0,
        BlockFormat::Q2K,
        BlockFormat::Q3K,
        BlockFormat::Q4K,
        BlockFormat::Q5K,
        BlockFormat::Q6K,
    ];

    /// The format's own name.
    pub fn name(self) -> &'static str {
        match self {
            BlockFormat::Q4_0 => "Q4_0",
            BlockFormat::Q4_1 => "Q4_1",
            BlockFormat::Q5_0 => "Q5_0",
            BlockFormat::Q5_1 => "Q5_1",
            BlockFormat::Q8_0 => "Q8_0",
            BlockFormat::Q2K => "Q2_K",
            BlockFormat::Q3K => "Q3_K",
            BlockFormat::Q4K => "Q4_K",
            BlockFormat::Q5K => "Q5_K",
            BlockFormat::Q6K => "Q6_K",
        }
    }

    /// Elements of a block, a multiple of [`GROUP`]; neighbours in a row.
    pub fn elements(self) -> usize {
        match self {
            BlockFormat::Q4_0 | BlockFormat::Q4_1 | BlockFormat::Q5_0 | BlockFormat::Q5_1 | BlockFormat::Q8_0 => 32,
            BlockFormat::Q2K | BlockFormat::Q3K | BlockFormat::Q4K | BlockFormat::Q5K | BlockFormat::Q6K => 256,
        }
    }

    /// Bytes of a block.
    pub fn bytes(self) -> usize {
        match self {
            BlockFormat::Q4_0 => 18,
            BlockFormat::Q4_1 => 20,
            BlockFormat::Q5_0 => 22,
            BlockFormat::Q5_1 => 24,
            BlockFormat::Q8_0 => 34,
            BlockFormat::Q2K => 84,
            BlockFormat::Q3K => 110,
            BlockFormat::Q4K => 144,
            BlockFormat::Q5K => 176,
            BlockFormat::Q6K => 210,
        }
    }

    /// The integers of elements `group * 32 ..` of a block, which has exactly [`BlockFormat::bytes`], what they are multiplied by, and what is
    /// added; `None` of formats whose groups have fewer elements.
    pub(super) fn integers(self, block: &[u8], group: usize, out: &mut [i16; GROUP]) -> Option<(f32, Option<f32>)> {
        Some(match self {
            BlockFormat::Q4_0 => {
                halves(&block[2..18], out, |q, _| i16::from(q) - 8);
                (scale(block, 0), None)
            }
            BlockFormat::Q4_1 => {
                halves(&block[4..20], out, |q, _| i16::from(q));
                (scale(block, 0), Some(scale(block, 2)))
            }
            BlockFormat::Q5_0 => {
                let fifth = bits(block, 2);
                halves(&block[6..22], out, |q, i| i16::from(q | fifth_bit(fifth, i)) - 16);
                (scale(block, 0), None)
            }
            BlockFormat::Q5_1 => {
                let fifth = bits(block, 4);
                halves(&block[8..24], out, |q, i| i16::from(q | fifth_bit(fifth, i)));
                (scale(block, 0), Some(scale(block, 2)))
            }
            BlockFormat::Q8_0 => {
                out.iter_mut().zip(&block[2..34]).for_each(|(x, q)| *x = i16::from(q.cast_signed()));
                (scale(block, 0), None)
            }
            BlockFormat::Q4K => {
                let quants = &block[16 + 32 * (group / 2)..][..32];
                out.iter_mut().zip(quants).for_each(|(x, q)| *x = i16::from(q >> (4 * (group % 2)) & 15));
                let (d, m) = scale_and_min(block, group);
                (d, Some(-m))
            }
            BlockFormat::Q5K => {
                let (fifth, quants) = (&block[16..48], &block[48 + 32 * (group / 2)..][..32]);
                for ((x, q), fifth) in out.iter_mut().zip(quants).zip(fifth) {
                    *x = i16::from((q >> (4 * (group % 2)) & 15) | (fifth >> group & 1) << 4);
                }
                let (d, m) = scale_and_min(block, group);
                (d, Some(-m))
            }
            BlockFormat::Q2K | BlockFormat::Q3K | BlockFormat::Q6K => return None,
        })
    }

    /// Elements `group * 32 ..` of a block, which has exactly [`BlockFormat::bytes`].
    pub fn decode(self, block: &[u8], group: usize, out: &mut [f32; GROUP]) {
        let mut integers = [0; GROUP];
        if let Some((d, m)) = self.integers(block, group, &mut integers) {
            for (x, q) in out.iter_mut().zip(integers) {
                let product = d * f32::from(q);
                *x = m.map_or(product, |m| product + m);
            }
            return;
        }
        match self {
            BlockFormat::Q2K => {
                let (scales, quants) = (&block[..16], &block[16..80]);
                let (d, m) = (scale(block, 80), scale(block, 82));
                let (quants, shift) = quarter(quants, group);
                for (half, out) in out.chunks_exact_mut(16).enumerate() {
                    let packed = scales[2 * group + half];
                    let (d, m) = (d * f32::from(packed & 15), m * f32::from(packed >> 4));
                    for (x, q) in out.iter_mut().zip(&quants[16 * half..]) {
                        *x = d * f32::from(q >> shift & 3) - m;
                    }
                }
            }
            BlockFormat::Q3K => {
                let (third, quants, scales) = (&block[..32], &block[32..96], &block[96..108]);
                let d = scale(block, 108);
                let (quants, shift) = quarter(quants, group);
                for (half, out) in out.chunks_exact_mut(16).enumerate() {
                    let at = 2 * group + half;
                    // Lower four bits: of the first eight in lower halves of bytes, of the others in upper ones. Upper two: four a byte.
                    let low = scales[at % 8] >> (4 * (at / 8)) & 15;
                    let high = scales[8 + at % 4] >> (2 * (at / 4)) & 3;
                    let d = d * (f32::from(low | high << 4) - 32.0);
                    let (quants, third) = (&quants[16 * half..], &third[16 * half..]);
                    for ((x, q), third) in out.iter_mut().zip(quants).zip(third) {
                        *x = d * (f32::from((q >> shift & 3) | (third >> group & 1) << 2) - 4.0);
                    }
                }
            }
            BlockFormat::Q6K => {
                // A half of the block is 64 bytes of lower bits: two runs in their lower halves, then two in their upper ones.
                let (half, run) = (group / 4, group % 4);
                let low = &block[64 * half + 32 * (run % 2)..][..32];
                let high = &block[128 + 32 * half..][..32];
                let (scales, d) = (&block[192..208], scale(block, 208));
                for (i, (x, (low, high))) in out.iter_mut().zip(low.iter().zip(high)).enumerate() {
                    let d = d * f32::from(scales[2 * group + i / 16].cast_signed());
                    *x = d * (f32::from((low >> (4 * (run / 2)) & 15) | (high >> (2 * run) & 3) << 4) - 32.0);
                }
            }
            // Made of their integers above.
            BlockFormat::Q4_0
            | BlockFormat::Q4_1
            | BlockFormat::Q5_0
            | BlockFormat::Q5_1
            | BlockFormat::Q8_0
            | BlockFormat::Q4K
            | BlockFormat::Q5K => {}
        }
    }
}

/// An f16 at this byte.
fn scale(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// 32 bits at this byte.
fn bits(block: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]])
}

fn fifth_bit(fifth: u32, i: usize) -> u8 {
    ((fifth >> i & 1) << 4) as u8
}

/// 32 elements of 4 bits: the lower halves of 16 bytes, then the upper ones.
fn halves(bytes: &[u8], out: &mut [i16; GROUP], number: impl Fn(u8, usize) -> i16) {
    for (i, byte) in bytes.iter().enumerate() {
        out[i] = number(byte & 15, i);
        out[i + 16] = number(byte >> 4, i + 16);
    }
}

/// The 32 bytes that hold a group's pairs of bits, and the place of the pair: four groups share them.
fn quarter(quants: &[u8], group: usize) -> (&[u8], usize) {
    (&quants[32 * (group / 4)..][..32], 2 * (group % 4))
}

/// `d scale` and `m min` of a group: d, m, then eight scales and eight mins of 6 bits in 12 bytes. The first four of each have bytes of their
/// own, whose upper two bits are the upper bits of the last four.
fn scale_and_min(block: &[u8], group: usize) -> (f32, f32) {
    let (d, m, packed) = (scale(block, 0), scale(block, 2), &block[4..16]);
    let (scale, min) = if group < 4 {
        (packed[group] & 63, packed[group + 4] & 63)
    } else {
        let upper = |at: usize| (packed[at] >> 6) << 4;
        ((packed[group + 4] & 15) | upper(group - 4), (packed[group + 4] >> 4) | upper(group))
    };
    (d * f32::from(scale), m * f32::from(min))
}

/// A tensor in blocks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Blocks<'a> {
    format: BlockFormat,
    bytes: &'a [u8],
}

impl<'a> Blocks<'a> {
    /// Whole blocks, row after row.
    pub(super) fn new(format: BlockFormat, bytes: &'a [u8]) -> Self {
        Self { format, bytes }
    }

    /// Of what it is made.
    pub(super) fn format(&self) -> BlockFormat {
        self.format
    }

    /// The integers of the group that begins with element `position`, as [`BlockFormat::integers`].
    pub(super) fn integers(&self, position: usize, out: &mut [i16; GROUP]) -> Option<(f32, Option<f32>)> {
        let (elements, bytes) = (self.format.elements(), self.format.bytes());
        let block = self.bytes.get(position / elements * bytes..)?.get(..bytes)?;
        let begins = position.is_multiple_of(GROUP);
        if begins { self.format.integers(block, position % elements / GROUP, out) } else { None }
    }

    /// The group that element `position` is in, which is NaN where there is none.
    fn group(&self, position: usize) -> [f32; GROUP] {
        let (elements, bytes) = (self.format.elements(), self.format.bytes());
        let mut out = [f32::NAN; GROUP];
        if let Some(block) = self.bytes.get(position / elements * bytes..).and_then(|rest| rest.get(..bytes)) {
            self.format.decode(block, position % elements / GROUP, &mut out);
        }
        out
    }

    /// Converts elements `base`, `base + stride`, ... until `out` is full.
    pub(super) fn convert_run(&self, base: usize, stride: usize, to: DType, out: &mut [u8]) {
        let mut position = base;
        let mut rest = out.chunks_exact_mut(to.size_bytes()).peekable();
        while rest.peek().is_some() {
            let (values, first) = (self.group(position), position % GROUP);
            let n = (GROUP - first).div_ceil(stride.max(1));
            for (k, element) in rest.by_ref().take(n).enumerate() {
                let value = values[first + k * stride];
                match to {
                    DType::F32 => element.copy_from_slice(&value.to_le_bytes()),
                    DType::BF16 => element.copy_from_slice(&bf16::from_f32(value).to_le_bytes()),
                    _ => store(f64::from(value), to, element),
                }
            }
            position += n * stride.max(1);
        }
    }
}
