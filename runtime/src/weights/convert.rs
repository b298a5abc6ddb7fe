//! Numbers on their way from a checkpoint to a packed weight: found through a [`Lens`], converted with one rounding to nearest even.

use super::blocks::Blocks;
use super::checkpoint::{Stored, Tensor};
use super::lens::Lens;
use super::pack::Found;
use super::packed::Packed;
use super::random::RandomTensor;
use super::scaled::Scaled;
use crate::artifact::manifest::DType;
use crate::gguf::Encoding;
use half::{bf16, f16};
use safetensors::Dtype;

/// The elements of one stored (or made-up) tensor.
#[derive(Clone, Copy, Debug)]
pub(super) enum Numbers<'a> {
    /// Little-endian bytes of a type for which [`is_supported`] holds.
    Stored(Dtype, &'a [u8]),
    /// Of few bits, with scales.
    Scaled(Scaled<'a>),
    /// Of few bits, in blocks with scales of their own.
    Blocks(Blocks<'a>),
    /// Integers in words, with scales and zeros beside them.
    Packed(Packed<'a>),
    /// Made up.
    Random(RandomTensor),
}

/// Whether tensors stored as `dtype` are plain numbers that can be read.
pub(super) fn is_supported(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F64 | Dtype::F32 | Dtype::F16 | Dtype::BF16 | Dtype::I64 | Dtype::I32)
}

/// The numbers of a tensor in f32; `None` where it is stored in a way that is not read.
pub(super) fn numbers(stored: &Stored, tensor: &Tensor) -> Option<Vec<f32>> {
    let bytes = stored.bytes(tensor);
    let numbers = match tensor.encoding {
        Encoding::Plain(dtype) if is_supported(dtype) => Numbers::Stored(dtype, bytes),
        Encoding::Blocks(format) => Numbers::Blocks(Blocks::new(format, bytes)),
        Encoding::Plain(_) | Encoding::Unread(_) => return None,
    };
    // Of a tensor that lies in a file there is memory for all its numbers, or for as many as it has bytes times a few.
    let n = usize::try_from(tensor.shape.iter().product::<u64>()).ok()?;
    let mut out = vec![0; n.checked_mul(size_of::<f32>())?];
    convert_run(numbers, 0, 1, DType::F32, &mut out);
    Some(out.as_chunks().0.iter().map(|x| f32::from_le_bytes(*x)).collect())
}

/// Bytes of numbers that something is added to, at a time.
const WIDE: usize = 1024;

/// Writes the elements `first .. first + n` of what was found to `out` as `dtype`; `out` has exactly `n` elements.
pub(super) fn fill(found: &Found<'_>, first: u64, dtype: DType, out: &mut [u8]) {
    if found.offset == 0.0 {
        return fill_plain(found.numbers, &found.lens, first, dtype, out);
    }
    let mut wide = [0; WIDE];
    let n = WIDE / size_of::<f32>();
    for (piece, out) in out.chunks_mut(n * dtype.size_bytes()).enumerate() {
        let count = out.len() / dtype.size_bytes();
        let wide = &mut wide[..count * size_of::<f32>()];
        fill_plain(found.numbers, &found.lens, first + (piece * n) as u64, DType::F32, wide);
        for (x, out) in wide.as_chunks().0.iter().zip(out.chunks_exact_mut(dtype.size_bytes())) {
            store(f64::from(f32::from_le_bytes(*x)) + found.offset, dtype, out);
        }
    }
}

/// The same, of numbers that are taken as they are.
fn fill_plain(numbers: Numbers<'_>, lens: &Lens, first: u64, dtype: DType, out: &mut [u8]) {
    let size = dtype.size_bytes();
    let mut index = first;
    let mut rest = out;
    while !rest.is_empty() {
        let (position, n, stride) = lens.run(index);
        let n = n.min((rest.len() / size) as u64);
        let (run, after) = rest.split_at_mut(n as usize * size);
        convert_run(numbers, position as usize, stride as usize, dtype, run);
        index += n;
        rest = after;
    }
}

/// Converts elements `base`, `base + stride`, ... until `out` is full.
fn convert_run(numbers: Numbers<'_>, base: usize, stride: usize, to: DType, out: &mut [u8]) {
    let (from, bytes) = match numbers {
        Numbers::Stored(from, bytes) => (from, bytes),
        Numbers::Scaled(scaled) => return scaled.convert_run(base, stride, to, out),
        Numbers::Blocks(blocks) => return blocks.convert_run(base, stride, to, out),
        Numbers::Packed(packed) => return packed.convert_run(base, stride, to, out),
        Numbers::Random(random) => {
            let value = |k: usize| random.value((base + k * stride) as u64);
            // The two that large models have, without a call an element; the value is an f32, so that one rounding is all there is.
            match to {
                DType::F32 => {
                    let out = out.as_chunks_mut::<4>().0;
                    out.iter_mut().enumerate().for_each(|(k, element)| *element = value(k).to_le_bytes());
                }
                DType::BF16 => {
                    let out = out.as_chunks_mut::<2>().0;
                    out.iter_mut()
                        .enumerate()
                        .for_each(|(k, element)| *element = bf16::from_f32(value(k)).to_le_bytes());
                }
                DType::F16 | DType::I64 | DType::I32 | DType::Bool => {
                    let out = out.chunks_exact_mut(to.size_bytes()).enumerate();
                    out.for_each(|(k, element)| store(f64::from(value(k)), to, element));
                }
            }
            return;
        }
    };
    let at = Run { bytes, base, stride };
    match (from, to) {
        (Dtype::F32, DType::F32) | (Dtype::I32, DType::I32) => at.map(out, |x: [u8; 4]| x),
        (Dtype::F16, DType::F16) | (Dtype::BF16, DType::BF16) => at.map(out, |x: [u8; 2]| x),
        (Dtype::I64, DType::I64) => at.map(out, |x: [u8; 8]| x),
        (Dtype::F32, DType::BF16) => at.map(out, |x| bf16::from_f32(f32::from_le_bytes(x)).to_le_bytes()),
        (Dtype::F32, DType::F16) => at.map(out, |x| f16::from_f32(f32::from_le_bytes(x)).to_le_bytes()),
        (Dtype::BF16, DType::F32) => at.map(out, |x| bf16::from_le_bytes(x).to_f32().to_le_bytes()),
        (Dtype::F16, DType::F32) => at.map(out, |x| f16::from_le_bytes(x).to_f32().to_le_bytes()),
        (Dtype::F64, _) => at.each(out, to, f64::from_le_bytes),
        (Dtype::F32, _) => at.each(out, to, |x| f64::from(f32::from_le_bytes(x))),
        (Dtype::F16, _) => at.each(out, to, |x| f16::from_le_bytes(x).to_f64()),
        (Dtype::BF16, _) => at.each(out, to, |x| bf16::from_le_bytes(x).to_f64()),
        (Dtype::I64, _) => at.each(out, to, |x| i64::from_le_bytes(x) as f64),
        (Dtype::I32, _) => at.each(out, to, |x| f64::from(i32::from_le_bytes(x))),
        // Refused by `is_supported` before any conversion.
        _ => {}
    }
}

/// A strided run of stored elements.
struct Run<'a> {
    bytes: &'a [u8],
    base: usize,
    stride: usize,
}

impl Run<'_> {
    /// Applies `convert` to each element.
    fn map<const S: usize, const D: usize>(&self, out: &mut [u8], convert: impl Fn([u8; S]) -> [u8; D]) {
        let out = out.as_chunks_mut::<D>().0;
        let stored = self.bytes.as_chunks::<S>().0;
        let stored = stored.get(self.base..).unwrap_or_default();
        if self.stride == 1 {
            for (to, from) in out.iter_mut().zip(stored) {
                *to = convert(*from);
            }
        } else {
            for (to, from) in out.iter_mut().zip(stored.iter().step_by(self.stride.max(1))) {
                *to = convert(*from);
            }
        }
    }

    /// The general case, through f64.
    fn each<const S: usize>(&self, out: &mut [u8], to: DType, load: impl Fn([u8; S]) -> f64) {
        let stored = self.bytes.as_chunks::<S>().0.get(self.base..).unwrap_or_default();
        for (element, from) in out.chunks_exact_mut(to.size_bytes()).zip(stored.iter().step_by(self.stride.max(1))) {
            store(load(*from), to, element);
        }
    }
}

/// Writes `value` as `to`; `out` has the size of one element.
pub(crate) fn store(value: f64, to: DType, out: &mut [u8]) {
    match to {
        DType::F32 => out.copy_from_slice(&(value as f32).to_le_bytes()),
        DType::F16 => out.copy_from_slice(&f16::from_f32(to_odd(value)).to_le_bytes()),
        DType::BF16 => out.copy_from_slice(&bf16::from_f32(to_odd(value)).to_le_bytes()),
        DType::I64 => out.copy_from_slice(&(value as i64).to_le_bytes()),
        DType::I32 => out.copy_from_slice(&(value as i32).to_le_bytes()),
        DType::Bool => out.copy_from_slice(&[u8::from(value != 0.0)]),
    }
}

/// f64 to f32, rounding to odd: a following rounding to fewer bits then gives what rounding once would.
fn to_odd(value: f64) -> f32 {
    let nearest = value as f32;
    if nearest.is_nan() || f64::from(nearest) == value {
        return nearest;
    }
    let truncated = if f64::from(nearest).abs() > value.abs() { nearest.to_bits() - 1 } else { nearest.to_bits() };
    f32::from_bits(truncated | 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found<'a>(numbers: Numbers<'a>, lens: &Lens) -> Found<'a> {
        Found { numbers, lens: lens.clone(), offset: 0.0, larger: None }
    }

    #[test]
    fn what_is_added_is_rounded_with_the_sum() {
        let stored: Vec<u8> = (0..700i16).flat_map(|i| f32::from(i).to_le_bytes()).collect();
        let lens = Lens::new(&[700], &[]).unwrap();
        let shifted = Found { offset: -1.0, ..found(Numbers::Stored(Dtype::F32, &stored), &lens) };
        for to in [DType::F32, DType::BF16, DType::I32] {
            let size = to.size_bytes();
            let (mut out, mut expected) = (vec![0; 690 * size], vec![0; 690 * size]);
            fill(&shifted, 7, to, &mut out);
            (6i16..).zip(expected.chunks_mut(size)).for_each(|(value, element)| store(value.into(), to, element));
            assert_eq!(out, expected);
        }
    }

    #[test]
    fn rounds_once() {
        // One plus half a unit of bf16 plus a little: nearest f32 is the tie, which would go down to 1.0.
        let value = 1.0 + 2f64.powi(-8) + 2f64.powi(-40);
        let mut out = [0; 2];
        store(value, DType::BF16, &mut out);
        assert_eq!(bf16::from_le_bytes(out).to_f64(), 1.0 + 2f64.powi(-7));
        store(-value, DType::BF16, &mut out);
        assert_eq!(bf16::from_le_bytes(out).to_f64(), -1.0 - 2f64.powi(-7));
        store(1e300, DType::F16, &mut out);
        assert!(f16::from_le_bytes(out).is_infinite());
        store(f64::NAN, DType::F16, &mut out);
        assert!(f16::from_le_bytes(out).is_nan());
    }

    #[test]
    fn made_up_numbers_are_rounded_as_stored_ones() {
        let random = super::super::Random { seed: 3 }.tensor("a.weight", &[4, 300]);
        let lens = Lens::new(&[4, 300], &[]).unwrap();
        for to in [DType::F32, DType::F16, DType::BF16] {
            let size = to.size_bytes();
            let (mut out, mut expected) = (vec![0; 500 * size], vec![0; 500 * size]);
            fill(&found(Numbers::Random(random), &lens), 200, to, &mut out);
            for (k, element) in expected.chunks_mut(size).enumerate() {
                store(f64::from(random.value(200 + k as u64)), to, element);
            }
            assert_eq!(out, expected);
            assert!(out.chunks(size).all(|element| element.iter().any(|byte| *byte != 0)));
        }
    }

    #[test]
    fn all_pairs_agree_on_small_integers() {
        let stored: [(Dtype, Vec<u8>); 6] = [
            (Dtype::F64, (0..6).flat_map(|i| f64::from(i).to_le_bytes()).collect()),
            (Dtype::F32, (0..6u8).flat_map(|i| f32::from(i).to_le_bytes()).collect()),
            (Dtype::F16, (0..6u8).flat_map(|i| f16::from_f32(i.into()).to_le_bytes()).collect()),
            (Dtype::BF16, (0..6u8).flat_map(|i| bf16::from_f32(i.into()).to_le_bytes()).collect()),
            (Dtype::I64, (0..6i64).flat_map(i64::to_le_bytes).collect()),
            (Dtype::I32, (0..6i32).flat_map(i32::to_le_bytes).collect()),
        ];
        let transpose = Lens::new(&[2, 3], &[crate::artifact::manifest::Step::Transpose { perm: vec![1, 0] }]).unwrap();
        for (from, bytes) in &stored {
            for to in [DType::F32, DType::F16, DType::BF16, DType::I64, DType::I32] {
                let mut out = vec![0; 4 * to.size_bytes()];
                fill(&found(Numbers::Stored(*from, bytes), &transpose), 1, to, &mut out);
                let mut expected = vec![0; 4 * to.size_bytes()];
                for (value, element) in [3.0, 1.0, 4.0, 2.0].into_iter().zip(expected.chunks_mut(to.size_bytes())) {
                    store(value, to, element);
                }
                assert_eq!(out, expected, "{from:?} to {to:?}");
            }
        }
    }
}
