//! Numbers in blocks of few bits, for the interpreter: each element by itself, written from the definitions of the formats, and not with the
//! runtime's code.

use half::f16;
use xfc_lang::graph::blocks::Blocks;
use xfc_runtime::weights::BlockFormat;

use crate::weights::held_in;

/// The numbers of whole blocks; `None` where the bytes are none.
pub(crate) fn floats(format: BlockFormat, bytes: &[u8], held: Option<Blocks>) -> Option<Vec<f64>> {
    let blocks = bytes.chunks_exact(format.bytes());
    let whole = blocks.remainder().is_empty();
    let all = blocks.flat_map(|block| (0..format.elements()).map(move |i| f64::from(element(format, block, i, held))));
    whole.then(|| all.collect())
}

/// Element `i` of a block.
fn element(format: BlockFormat, block: &[u8], i: usize, held: Option<Blocks>) -> f32 {
    let narrow = |x: f32| held_in(held, f64::from(x)) as f32;
    let half = |at: usize| f16::from_le_bytes([block[at], block[at + 1]]).to_f32();
    let bit = |at: usize, i: usize| u32::from(block[at + i / 8] >> (i % 8) & 1);
    // Of 32 elements the second 16 are in the upper halves of the bytes of the first.
    let nibble = |at: usize| u32::from(block[at + i % 16] >> (i / 16 * 4) & 15);
    match format {
        BlockFormat::Q4_0 => (nibble(2) as f32 - 8.0) * half(0),
        BlockFormat::Q4_1 => nibble(4) as f32 * half(0) + half(2),
        BlockFormat::Q5_0 => ((nibble(6) + 16 * bit(2, i)) as f32 - 16.0) * half(0),
        BlockFormat::Q5_1 => (nibble(8) + 16 * bit(4, i)) as f32 * half(0) + half(2),
        BlockFormat::Q8_0 => f32::from(block[2 + i].cast_signed()) * half(0),
        BlockFormat::Q2K => {
            let scales = block[i / 16];
            let quant = block[16 + i / 128 * 32 + i % 32] >> (i / 32 % 4 * 2) & 3;
            (half(80) * f32::from(scales % 16)) * f32::from(quant) - half(82) * f32::from(scales / 16)
        }
        BlockFormat::Q3K => {
            let which = i / 16;
            let low = block[96 + which % 8] >> (which / 8 * 4) & 15;
            let high = block[104 + which % 4] >> (which / 4 * 2) & 3;
            let scale = i32::from(low + 16 * high) - 32;
            let pair = i32::from(block[32 + i / 128 * 32 + i % 32] >> (i / 32 % 4 * 2) & 3);
            let third = i32::from(block[i % 32] >> (i / 32) & 1);
            (half(108) * scale as f32) * (pair - 4 * (1 - third)) as f32
        }
        BlockFormat::Q4K => {
            let quant = block[16 + i / 64 * 32 + i % 32] >> (i / 32 % 2 * 4) & 15;
            let (scale, min) = six_bits(&block[4..16], i / 32);
            narrow(half(0) * scale) * f32::from(quant) - narrow(half(2) * min)
        }
        BlockFormat::Q5K => {
            let quant = block[48 + i / 64 * 32 + i % 32] >> (i / 32 % 2 * 4) & 15;
            let fifth = block[16 + i % 32] >> (i / 32) & 1;
            let (scale, min) = six_bits(&block[4..16], i / 32);
            narrow(half(0) * scale) * f32::from(quant + 16 * fifth) - narrow(half(2) * min)
        }
        BlockFormat::Q6K => {
            let (part, within) = (i / 128, i % 128);
            let low = block[part * 64 + within % 64] >> (within / 64 * 4) & 15;
            let high = block[128 + part * 32 + within % 32] >> (within / 32 * 2) & 3;
            let scale = block[192 + i / 16].cast_signed();
            (half(208) * f32::from(scale)) * (f32::from(low + 16 * high) - 32.0)
        }
    }
}

/// Scale and min `j` of eight each, of 6 bits, in 12 bytes.
///
/// ```text
/// bytes 0..4   scales 0..4, above them the upper bits of scales 4..8        bytes 4..8   mins 0..4, above them the upper bits of mins 4..8
/// bytes 8..12  the lower halves of scales 4..8 and, above them, of mins 4..8
/// ```
fn six_bits(bytes: &[u8], j: usize) -> (f32, f32) {
    let (scale, min) = if j < 4 {
        (bytes[j] % 64, bytes[j + 4] % 64)
    } else {
        (bytes[j + 4] % 16 + bytes[j - 4] / 64 * 16, bytes[j + 4] / 16 + bytes[j] / 64 * 16)
    };
    (f32::from(scale), f32::from(min))
}
