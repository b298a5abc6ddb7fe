//! Numbers stored in 4 or 8 bits, each times the scale of its block.
//!
//! Given the bytes of elements and scales, promises each product as f64, where it is exact for scales of at most 32 bits, and so one rounding on
//! the way to a packed weight.
//!
//! ```text
//! E4M3  sign, 4 bits of exponent (bias 7), 3 of fraction; no infinity, NaN where all are set     E5M2  as the upper half of an f16
//! E2M1  sign, 2 bits of exponent (bias 1), 1 of fraction; two a byte, the lower bits first       E8M0  2^(n - 127), NaN for 255
//! ```

use super::convert::store;
use super::e4m3;
use crate::artifact::manifest::DType;
use half::{bf16, f16};
use safetensors::Dtype;

/// Most dimensions of a tensor with scales.
pub(super) const MAX_RANK: usize = 4;

/// How elements are encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Code {
    E4M3,
    E5M2,
    E2M1,
    I8,
}

impl Code {
    /// The encoding of a tensor stored as `dtype`, where that has scales.
    pub(super) fn of(dtype: Dtype) -> Option<Self> {
        match dtype {
            Dtype::F8_E4M3 => Some(Self::E4M3),
            Dtype::F8_E5M2 => Some(Self::E5M2),
            Dtype::I8 => Some(Self::I8),
            _ => None,
        }
    }
}

/// How scales are encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ScaleCode {
    F64,
    F32,
    F16,
    BF16,
    E8M0,
}

impl ScaleCode {
    /// The encoding of scales stored as `dtype`. Bytes are exponents.
    pub(super) fn of(dtype: Dtype) -> Option<Self> {
        match dtype {
            Dtype::F64 => Some(Self::F64),
            Dtype::F32 => Some(Self::F32),
            Dtype::F16 => Some(Self::F16),
            Dtype::BF16 => Some(Self::BF16),
            Dtype::F8_E8M0 | Dtype::U8 => Some(Self::E8M0),
            _ => None,
        }
    }

    /// The scale at this index.
    pub(super) fn value(self, scales: &[u8], at: usize) -> f64 {
        match self {
            Self::F64 => load(scales, at, f64::from_le_bytes),
            Self::F32 => load(scales, at, |x| f64::from(f32::from_le_bytes(x))),
            Self::F16 => load(scales, at, |x| f16::from_le_bytes(x).to_f64()),
            Self::BF16 => load(scales, at, |x| bf16::from_le_bytes(x).to_f64()),
            Self::E8M0 => load(scales, at, |[x]: [u8; 1]| power_of_two(x)),
        }
    }
}

/// One dimension of the elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Blocks {
    /// Elements.
    pub(super) size: u64,
    /// Neighbours with one scale; the last block may be smaller.
    pub(super) block: u64,
}

impl Blocks {
    /// Scales.
    pub(super) fn scales(self) -> u64 {
        self.size.div_ceil(self.block)
    }
}

/// A tensor with scales.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scaled<'a> {
    code: Code,
    elements: &'a [u8],
    scale_code: ScaleCode,
    scales: &'a [u8],
    /// Dimensions, behind as many of one element as are lacking.
    dims: [Blocks; MAX_RANK],
}

impl<'a> Scaled<'a> {
    /// A tensor of these dimensions, at most [`MAX_RANK`]; `None` for more. Elements and scales are row-major, a scale for each block.
    pub(super) fn new(
        (code, elements): (Code, &'a [u8]),
        (scale_code, scales): (ScaleCode, &'a [u8]),
        of: &[Blocks],
    ) -> Option<Self> {
        let mut dims = [Blocks { size: 1, block: 1 }; MAX_RANK];
        let start = MAX_RANK.checked_sub(of.len())?;
        dims[start..].copy_from_slice(of);
        Some(Self { code, elements, scale_code, scales, dims })
    }

    /// Element `position`, without its scale.
    fn element(&self, position: usize) -> f64 {
        let byte = |at: usize| self.elements.get(at).copied().unwrap_or_default();
        f64::from(match self.code {
            Code::E4M3 => e4m3::decode(byte(position)),
            Code::E5M2 => f16::from_bits(u16::from(byte(position)) << 8).to_f32(),
            Code::E2M1 => E2M1[usize::from(byte(position / 2) >> (4 * (position % 2)) & 15)],
            Code::I8 => f32::from(byte(position).cast_signed()),
        })
    }

    /// The scale of element `position`.
    fn scale(&self, position: usize) -> f64 {
        let (mut rest, mut index, mut step) = (position as u64, 0, 1);
        for dim in self.dims.iter().rev() {
            index += rest % dim.size / dim.block * step;
            rest /= dim.size;
            step *= dim.scales();
        }
        self.scale_code.value(self.scales, index as usize)
    }

    /// Neighbours in a row that share a scale, and elements of a row.
    pub(super) fn block(&self) -> (u64, u64) {
        let [.., last] = self.dims;
        (last.block, last.size)
    }

    /// How elements are encoded.
    pub(super) fn code(&self) -> Code {
        self.code
    }

    /// The elements from `position` on as integers, and what they are multiplied by; `None` where they do not share a scale or are none.
    pub(super) fn integers(&self, position: usize, out: &mut [i16]) -> Option<f64> {
        let (block, row) = self.block();
        let (column, n) = (position as u64 % row, out.len() as u64);
        // The elements of a pair are halves.
        let unit = match self.code {
            Code::I8 => 1.0,
            Code::E2M1 => 0.5,
            Code::E4M3 | Code::E5M2 => return None,
        };
        if column % block + n > block || column + n > row {
            return None;
        }
        out.iter_mut().enumerate().for_each(|(k, x)| *x = (self.element(position + k) / unit) as i16);
        Some(self.scale(position) * unit)
    }

    /// The elements from `position` on as they are stored, floats of 8 bits of the wider fraction, and their scale; `None` where they do not share one
    /// or are none.
    pub(super) fn bytes(&self, position: usize, out: &mut [u8]) -> Option<f64> {
        let (block, row) = self.block();
        let (column, n) = (position as u64 % row, out.len() as u64);
        if self.code != Code::E4M3 || column % block + n > block || column + n > row {
            return None;
        }
        out.copy_from_slice(self.elements.get(position..position.checked_add(out.len())?)?);
        Some(self.scale(position))
    }

    /// Converts elements `base`, `base + stride`, ... until `out` is full.
    pub(super) fn convert_run(&self, base: usize, stride: usize, to: DType, out: &mut [u8]) {
        let [.., last] = self.dims;
        let (row, block) = (last.size as usize, last.block as usize);
        let mut position = base;
        let mut rest = out.chunks_exact_mut(to.size_bytes()).peekable();
        while rest.peek().is_some() {
            let scale = self.scale(position);
            // Neighbours of a block share its scale.
            let column = position % row;
            let n = if stride == 1 { (block - column % block).min(row - column) } else { 1 };
            for (k, element) in rest.by_ref().take(n).enumerate() {
                store(self.element(position + k) * scale, to, element);
            }
            position += n * stride;
        }
    }
}

fn load<const N: usize>(bytes: &[u8], at: usize, convert: impl Fn([u8; N]) -> f64) -> f64 {
    bytes.as_chunks().0.get(at).map_or(f64::NAN, |bytes| convert(*bytes))
}

/// `2^(exponent - 127)`.
fn power_of_two(exponent: u8) -> f64 {
    match exponent {
        u8::MAX => f64::NAN,
        exponent => f64::from_bits((u64::from(exponent) + 1023 - 127) << 52),
    }
}

const E2M1: [f32; 16] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];

#[cfg(test)]
mod tests {
    use super::*;

    fn floats(scaled: &Scaled<'_>, base: usize, stride: usize, n: usize) -> Vec<f32> {
        let mut out = vec![0; 4 * n];
        scaled.convert_run(base, stride, DType::F32, &mut out);
        out.as_chunks().0.iter().map(|x| f32::from_le_bytes(*x)).collect()
    }

    #[test]
    fn elements_have_the_values_of_their_definitions() {
        let eight: Vec<u8> = (0..=255).collect();
        let one = 1f32.to_le_bytes();
        let plain = |code, elements| {
            let dims = [Blocks { size: 256, block: 256 }];
            Scaled::new((code, elements), (ScaleCode::F32, &one), &dims).unwrap()
        };
        let e4m3 = floats(&plain(Code::E4M3, &eight), 0, 1, 256);
        let e5m2 = floats(&plain(Code::E5M2, &eight), 0, 1, 256);
        for (byte, (a, b)) in e4m3.iter().zip(&e5m2).enumerate() {
            let sign = if byte < 128 { 1.0 } else { -1.0 };
            let (e, m) = (byte as i32 >> 3 & 15, (byte & 7) as f32);
            let expected = if e == 0 { m * 2f32.powi(-9) } else { (1.0 + m / 8.0) * 2f32.powi(e - 7) };
            assert!(*a == sign * expected || (byte & 127 == 127 && a.is_nan()), "E4M3 {byte}: {a}");
            let (e, m) = (byte as i32 >> 2 & 31, (byte & 3) as f32);
            let expected = if e == 0 { m * 2f32.powi(-16) } else { (1.0 + m / 4.0) * 2f32.powi(e - 15) };
            let special = e == 31 && if m == 0.0 { b.is_infinite() } else { b.is_nan() };
            assert!(special || (e < 31 && *b == sign * expected), "E5M2 {byte}: {b}");
        }
        assert_eq!(e4m3[0x7e], 448.0);
        let four: Vec<u8> = (0..8).map(|i| (2 * i) | ((2 * i + 1) << 4)).collect();
        let four = Scaled::new((Code::E2M1, &four), (ScaleCode::F32, &one), &[Blocks { size: 16, block: 16 }]);
        assert_eq!(floats(&four.unwrap(), 0, 1, 16), E2M1);
        assert_eq!(floats(&plain(Code::I8, &eight), 126, 1, 4), [126.0, 127.0, -128.0, -127.0]);
        assert_eq!((power_of_two(127), power_of_two(0), power_of_two(130)), (1.0, 2f64.powi(-127), 8.0));
        assert!(power_of_two(255).is_nan());
    }

    #[test]
    fn blocks_have_their_scales_however_they_are_read() {
        // 5 rows of 7 in blocks of 2 by 3, the last of each smaller.
        let elements = [0x38; 35];
        let scales: Vec<u8> = (0..9u8).flat_map(|i| f32::from(i + 1).to_le_bytes()).collect();
        let dims = [Blocks { size: 5, block: 2 }, Blocks { size: 7, block: 3 }];
        let scaled = Scaled::new((Code::E4M3, &elements), (ScaleCode::F32, &scales), &dims).unwrap();
        let expected = |p: usize| (p / 7 / 2 * 3 + p % 7 / 3 + 1) as f32;
        for (base, stride) in [(0, 1), (5, 1), (3, 7), (1, 2), (2, 8)] {
            let n = (35usize - base).div_ceil(stride);
            let want: Vec<f32> = (0..n).map(|k| expected(base + k * stride)).collect();
            assert_eq!(floats(&scaled, base, stride, n), want, "{base} {stride}");
        }
        assert!(Scaled::new((Code::I8, &[]), (ScaleCode::F32, &[]), &[dims[0]; 5]).is_none());
    }

    #[test]
    fn products_are_rounded_once() {
        // The product is just above a tie of bf16, and f32 rounds it to the tie.
        let (element, scale) = (0x39u8, 1.0f32 + 2f32.powi(-23));
        let bytes = scale.to_le_bytes();
        let one = [Blocks { size: 1, block: 1 }];
        let scaled = Scaled::new((Code::E4M3, std::slice::from_ref(&element)), (ScaleCode::F32, &bytes), &one).unwrap();
        let exact = 1.125 * f64::from(scale);
        assert_eq!(floats(&scaled, 0, 1, 1), [exact as f32]);
        let (mut ours, mut once) = ([0; 2], [0; 2]);
        scaled.convert_run(0, 1, DType::BF16, &mut ours);
        store(exact, DType::BF16, &mut once);
        assert_eq!(ours, once);
    }
}
