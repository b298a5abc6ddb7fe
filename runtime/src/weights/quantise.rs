//! Rounds groups of weights to integers of few bits, or to floats of 8, with a scale, in the layout of [`Pack::Blocks`](crate::artifact::manifest::Pack::Blocks).
//!
//! The rule is that of the compiler's interpreter, in f32 throughout: with a sign, 8 bits reach from -127 to 127 times the scale and 4 bits from -8
//! to 7, where the element of largest magnitude is -8; with a minimum, from the least element to the greatest. Scale and minimum of integers are rounded to f16
//! first, so that integers are the nearest for what is kept. A NaN makes its whole group NaN.

use half::f16;

use super::e4m3;
use crate::artifact::manifest::Blocks;

/// Writes a group of one output's weights to its column in the group of a panel. Weights that are missing at the end are zeros of no effect.
pub(super) fn pack_group(group: &[f32], blocks: Blocks, column: usize, out: &mut [u8]) {
    let (scale, minimum) = scale_of(group, blocks);
    let (wide, low) = (scale.to_f32(), minimum.to_f32());
    let inverse = if wide == 0.0 { 0.0 } else { 1.0 / wide };
    let (least, most) = range(blocks);
    let code = |x: &f32| {
        let integer = ((x - low) * inverse).round_ties_even().clamp(least, most);
        // A NaN becomes 0 here; its group's scale is one.
        (integer - stored_zero(blocks)) as u8
    };
    write(group, code, (scale, minimum), blocks, column, out);
}

/// The same of integers that are taken over, which are in the [range](fits) of the blocks.
pub(super) fn pack_integers(group: &[i16], of: (f16, f16), blocks: Blocks, column: usize, out: &mut [u8]) {
    let zero = stored_zero(blocks) as i16;
    write(group, |x| (x - zero) as u8, of, blocks, column, out);
}

/// Whether blocks hold these integers: of 8 bits with a sign one more than what numbers are rounded to.
pub(super) fn fits(group: &[i16], blocks: Blocks) -> bool {
    let zero = stored_zero(blocks) as i16;
    group.iter().all(|x| (0..1 << blocks.bits).contains(&(x - zero)))
}

/// Writes a group of one output's weights as floats of 8 bits, of which the largest magnitude is [`e4m3::LARGEST`].
pub(super) fn pack_floats(group: &[f32], blocks: Blocks, column: usize, out: &mut [u8]) {
    // A NaN is larger than all.
    let most = group.iter().fold(0.0, |most: f32, x| if x.is_nan() || x.abs() > most { x.abs() } else { most });
    let scale = most / e4m3::LARGEST;
    // What has no inverse is 0, and so are the elements.
    let scale = match scale {
        tiny if tiny < f32::MIN_POSITIVE => 0.0,
        // An infinity leaves no number of its group, as in integers.
        large if large.is_infinite() => f32::NAN,
        scale => scale,
    };
    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    write_floats(group, |x| e4m3::encode(x * inverse), scale, blocks, column, out);
}

/// The same of floats of 8 bits that are taken over.
pub(super) fn pack_bytes(group: &[u8], scale: f32, blocks: Blocks, column: usize, out: &mut [u8]) {
    let scale = if group.iter().any(|byte| e4m3::is_nan(*byte)) { f32::NAN } else { scale };
    write_floats(group, |byte| *byte, scale, blocks, column, out);
}

fn write_floats<T>(group: &[T], code: impl Fn(&T) -> u8, scale: f32, blocks: Blocks, column: usize, out: &mut [u8]) {
    let (scales, elements) = out.split_at_mut(blocks.scales_bytes() as usize);
    scales[4 * column..4 * column + 4].copy_from_slice(&scale.to_le_bytes());
    let depth = blocks.floats.unwrap_or(1) as usize;
    let columns = blocks.columns as usize;
    for (run, inputs) in group.chunks(depth).enumerate() {
        let place = &mut elements[(run * columns + column) * depth..][..inputs.len()];
        place.iter_mut().zip(inputs).for_each(|(byte, x)| *byte = code(x));
    }
}

/// Writes what is stored of each element, with scale and minimum.
fn write<T>(
    group: &[T],
    code: impl Fn(&T) -> u8,
    (scale, minimum): (f16, f16),
    blocks: Blocks,
    column: usize,
    out: &mut [u8],
) {
    let scales = blocks.scales_bytes() as usize;
    out[2 * column..2 * column + 2].copy_from_slice(&scale.to_le_bytes());
    if blocks.minimum {
        out[scales + 2 * column..scales + 2 * column + 2].copy_from_slice(&minimum.to_le_bytes());
    }
    let words = &mut out[blocks.integers_at() as usize..];
    let at = |word: usize, byte: usize| (word * blocks.columns as usize + column) * 4 + byte;
    if blocks.bits == 8 {
        for (word, inputs) in group.chunks(4).enumerate() {
            for (byte, x) in inputs.iter().enumerate() {
                words[at(word, byte)] = code(x);
            }
        }
    } else {
        for (word, inputs) in group.chunks(8).enumerate() {
            for (byte, x) in inputs.iter().take(4).enumerate() {
                words[at(word, byte)] = code(x) | inputs.get(byte + 4).map_or(0, &code) << 4;
            }
        }
    }
}

/// Scale and minimum of a group.
fn scale_of(group: &[f32], blocks: Blocks) -> (f16, f16) {
    // The first element for which no other is better; a NaN is better than all.
    let best = |better: fn(f32, f32) -> bool| {
        group.iter().copied().reduce(|best, x| if x.is_nan() || better(x, best) { x } else { best }).unwrap_or(0.0)
    };
    if blocks.minimum {
        let (low, high) = (best(|x, best| x < best), best(|x, best| x > best));
        return (f16::from_f32((high - low) / range(blocks).1), f16::from_f32(low));
    }
    let extreme = best(|x, best| x.abs() > best.abs());
    let scale = if blocks.bits == 8 { extreme.abs() / 127.0 } else { extreme / -8.0 };
    (f16::from_f32(scale), f16::ZERO)
}

/// Least and greatest integer.
fn range(blocks: Blocks) -> (f32, f32) {
    match (blocks.bits, blocks.minimum) {
        (4, false) => (-8.0, 7.0),
        (4, true) => (0.0, 15.0),
        (_, false) => (-127.0, 127.0),
        (_, true) => (0.0, 255.0),
    }
}

/// The integer that is stored as 0.
fn stored_zero(blocks: Blocks) -> f32 {
    match (blocks.bits, blocks.minimum) {
        (_, true) => 0.0,
        (4, false) => -8.0,
        (_, false) => -128.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Packs a group as column 1 of 2 and reads it back.
    fn through(values: &[f32], bits: u64, minimum: bool) -> Vec<f32> {
        let blocks = Blocks { columns: 2, bits, group: 16, minimum, stored: false, floats: None };
        let mut out = vec![0; blocks.group_bytes() as usize];
        pack_group(values, blocks, 1, &mut out);
        let half = |at: usize| f16::from_le_bytes([out[at], out[at + 1]]).to_f32();
        let (scale, low) = (half(2), if minimum { half(6) } else { 0.0 });
        let words = &out[blocks.integers_at() as usize..];
        assert!(out[..2].iter().all(|b| *b == 0), "column 0 is untouched");
        (0..values.len())
            .map(|i| {
                let code = match bits {
                    8 => words[(i / 4 * 2 + 1) * 4 + i % 4],
                    _ => words[(i / 8 * 2 + 1) * 4 + i % 4] >> (i % 8 / 4 * 4) & 15,
                };
                (f32::from(code) + stored_zero(blocks)) * scale + low
            })
            .collect()
    }

    #[test]
    fn groups_come_back_as_the_nearest_of_their_levels() {
        let values = [-8.0, 7.0, 0.4, 3.5, -2.5, 6.0, 1.0, -1.0, 2.0, 5.0, -3.0];
        assert_eq!(through(&values, 4, false), [-8.0, 7.0, 0.0, 4.0, -2.0, 6.0, 1.0, -1.0, 2.0, 5.0, -3.0]);
        assert_eq!(through(&[127.0, -126.6, 0.5, 1.5, -64.0], 8, false), [127.0, -127.0, 0.0, 2.0, -64.0]);
        assert_eq!(through(&[2.0, 17.0, 9.4], 4, true), [2.0, 17.0, 9.0]);
        assert_eq!(through(&[-55.0, 200.0, 0.25], 8, true), [-55.0, 200.0, 0.0]);
    }

    /// The same of floats of 8 bits, with bytes that are taken over where `scale` is given.
    fn through_floats(values: &[f32], bytes: Option<(&[u8], f32)>, depth: u64) -> Vec<f32> {
        let blocks = Blocks { columns: 2, bits: 8, group: 16, minimum: false, stored: false, floats: Some(depth) };
        let mut out = vec![0; blocks.group_bytes() as usize];
        match bytes {
            Some((bytes, scale)) => pack_bytes(bytes, scale, blocks, 1, &mut out),
            None => pack_floats(values, blocks, 1, &mut out),
        }
        let scale = f32::from_le_bytes([out[4], out[5], out[6], out[7]]);
        assert!(out[..4].iter().all(|b| *b == 0), "column 0 is untouched");
        let depth = depth as usize;
        let n = bytes.map_or(values.len(), |(bytes, _)| bytes.len());
        (0..n).map(|i| e4m3::decode(out[8 + (i / depth * 2 + 1) * depth + i % depth]) * scale).collect()
    }

    #[test]
    fn floats_come_back_as_the_nearest() {
        for depth in [4, 16] {
            let of = |values: &[f32]| through_floats(values, None, depth);
            assert_eq!(of(&[-448.0, 17.0, 19.0, 0.0029, -1e-4]), [-448.0, 16.0, 20.0, 1.0 / 512.0, 0.0]);
            assert_eq!(of(&[224.0, -8.5, 0.0, 3.0, 100.0, 7.0]), [224.0, -8.0, 0.0, 3.0, 96.0, 7.0]);
            assert_eq!(of(&[1e-36, -1e-37]), [0.0, 0.0]);
            assert_eq!(of(&[0.0; 3]), [0.0; 3]);
            for none in [f32::NAN, f32::NEG_INFINITY] {
                assert!(of(&[1.0, none]).iter().all(|x| x.is_nan()));
            }
            assert_eq!(through_floats(&[], Some((&[0x7e, 0x81, 0x38], 0.3)), depth), [448.0 * 0.3, -0.3 / 512.0, 0.3]);
            assert!(through_floats(&[], Some((&[0x38, 0xff], 0.3)), depth).iter().all(|x| x.is_nan()));
        }
    }

    #[test]
    fn degenerate_groups() {
        for (bits, minimum) in [(4, false), (4, true), (8, false), (8, true)] {
            assert_eq!(through(&[0.0, -0.0, 0.0], bits, minimum), [0.0; 3]);
            assert!(through(&[1.0, f32::NAN], bits, minimum).iter().all(|x| x.is_nan()));
            assert!((through(&[0.5; 16], bits, minimum)[3] - 0.5).abs() < 1e-4);
        }
    }
}
