//! Floating-point formats of at most 32 bits: exact reading, and writing with one rounding (PTX ISA, sections 5.2.3 and 9.7.9).

/// How a value between two neighbours is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rounding {
    Nearest,
    Zero,
    Down,
    Up,
    /// Halfway cases go away from zero (`cvt.rna.tf32`).
    NearestAway,
}

/// A binary format: sign, exponent, mantissa.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Format {
    exponent_bits: u32,
    mantissa_bits: u32,
    /// No infinities: the largest exponent holds numbers, all ones is NaN (e4m3).
    finite: bool,
}

pub(crate) const F16: Format = Format { exponent_bits: 5, mantissa_bits: 10, finite: false };
pub(crate) const BF16: Format = Format { exponent_bits: 8, mantissa_bits: 7, finite: false };
pub(crate) const F32: Format = Format { exponent_bits: 8, mantissa_bits: 23, finite: false };
pub(crate) const TF32: Format = Format { exponent_bits: 8, mantissa_bits: 10, finite: false };
pub(crate) const E4M3: Format = Format { exponent_bits: 4, mantissa_bits: 3, finite: true };
pub(crate) const E5M2: Format = Format { exponent_bits: 5, mantissa_bits: 2, finite: false };

/// 2^exponent, for normal exponents of f64.
fn power(exponent: i32) -> f64 {
    f64::from_bits(((exponent + 1023) as u64) << 52)
}

impl Format {
    fn bias(self) -> i32 {
        (1 << (self.exponent_bits - 1)) - 1
    }

    fn magnitude_bits(self) -> u32 {
        self.exponent_bits + self.mantissa_bits
    }

    /// The bits of infinity, or for finite formats of NaN.
    fn top(self) -> u32 {
        if self.finite {
            (1 << self.magnitude_bits()) - 1
        } else {
            ((1 << self.exponent_bits) - 1) << self.mantissa_bits
        }
    }

    /// The value of these bits, exactly.
    pub(crate) fn decode(self, bits: u32) -> f64 {
        let magnitude = bits & ((1 << self.magnitude_bits()) - 1);
        let sign = if bits >> self.magnitude_bits() & 1 != 0 { -1.0 } else { 1.0 };
        let exponent = (magnitude >> self.mantissa_bits) as i32;
        let mantissa = magnitude & ((1 << self.mantissa_bits) - 1);
        if magnitude >= self.top() {
            return if magnitude == self.top() && !self.finite { sign * f64::INFINITY } else { f64::NAN };
        }
        let (significand, exponent) =
            if exponent == 0 { (mantissa, 1) } else { (mantissa | 1 << self.mantissa_bits, exponent) };
        sign * f64::from(significand) * power(exponent - self.bias() - self.mantissa_bits as i32)
    }

    /// The bits of the value, rounded; what is too large saturates to the largest number if asked to, else overflows as IEEE 754 has it.
    pub(crate) fn encode(self, value: f64, rounding: Rounding, saturate: bool) -> u32 {
        if value.is_nan() {
            return self.nan();
        }
        let sign = u32::from(value.is_sign_negative()) << self.magnitude_bits();
        let magnitude = value.abs();
        let largest = self.top() - 1;
        if magnitude.is_infinite() {
            return sign | if saturate { largest } else { self.top() };
        }
        let least = 1 - self.bias();
        let exponent = (((magnitude.to_bits() >> 52) as i32) - 1023).max(least);
        // In units of the last place; at most 2^25, so that its fraction is exact.
        let scaled = magnitude * power(self.mantissa_bits as i32 - exponent);
        let whole = scaled.floor();
        let rest = scaled - whole;
        let up = match rounding {
            Rounding::Nearest => rest > 0.5 || (rest == 0.5 && whole % 2.0 != 0.0),
            Rounding::NearestAway => rest >= 0.5,
            Rounding::Zero => false,
            Rounding::Down => rest > 0.0 && sign != 0,
            Rounding::Up => rest > 0.0 && sign == 0,
        };
        let units = whole as u32 + u32::from(up);
        // A normal number has its leading one above the mantissa; a carry moves into the exponent by itself.
        let bits = (((exponent - least) as u64) << self.mantissa_bits) + u64::from(units);
        if bits < u64::from(self.top()) {
            return sign | bits as u32;
        }
        let toward_zero =
            matches!((rounding, sign != 0), (Rounding::Zero, _) | (Rounding::Down, false) | (Rounding::Up, true));
        sign | if saturate || toward_zero { largest } else { self.top() }
    }

    /// The NaN that the hardware writes: all bits but the sign, but for e5m2 and f16 the same.
    pub(crate) fn nan(self) -> u32 {
        (1 << self.magnitude_bits()) - 1
    }
}

/// A sum of two numbers, rounded to odd: rounding it once more, to a format of at most 50 bits, is right.
pub(crate) fn add_to_odd(a: f64, b: f64) -> f64 {
    let sum = a + b;
    if !sum.is_finite() {
        return sum;
    }
    let part = sum - a;
    let error = (a - (sum - part)) + (b - part);
    if error == 0.0 || sum.to_bits() & 1 == 1 {
        return sum;
    }
    // The neighbour on the side of the error, which is odd.
    let away = (error > 0.0) == (sum > 0.0);
    f64::from_bits(if away { sum.to_bits() + 1 } else { sum.to_bits() - 1 })
}

/// f32 to bf16, to nearest even.
#[inline(always)]
pub(crate) fn bf16_from_f32(value: f32) -> u16 {
    let bits = value.to_bits();
    if value.is_nan() {
        return 0x7fff;
    }
    ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16
}

/// f32 to f16, to nearest even.
#[inline(always)]
pub(crate) fn f16_from_f32(value: f32) -> u16 {
    if value.is_nan() { 0x7fff } else { half::f16::from_f32(value).to_bits() }
}

/// Subnormal numbers become zeros of their sign.
#[inline(always)]
pub(crate) fn flush(value: f32) -> f32 {
    if value.is_subnormal() { f32::from_bits(value.to_bits() & 0x8000_0000) } else { value }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pattern_survives() {
        for (format, bits) in [(F16, 16), (BF16, 16), (E4M3, 8), (E5M2, 8)] {
            for pattern in 0..1u32 << bits {
                let value = format.decode(pattern);
                if value.is_nan() {
                    assert!(format.decode(format.encode(value, Rounding::Nearest, false)).is_nan());
                } else {
                    assert_eq!(format.encode(value, Rounding::Nearest, false), pattern, "{format:?} {value}");
                }
            }
        }
        for pattern in 0..1u32 << 16 {
            let value = half::f16::from_bits(pattern as u16);
            assert!(value.is_nan() || value.to_f64() == F16.decode(pattern));
        }
    }

    #[test]
    fn rounding_agrees_with_native_conversions() {
        let mut state = 1u32;
        for _ in 0..200_000 {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let value = f32::from_bits(state);
            if value.is_nan() {
                continue;
            }
            let wide = f64::from(value);
            assert_eq!(F16.encode(wide, Rounding::Nearest, false) as u16, half::f16::from_f32(value).to_bits());
            assert_eq!(BF16.encode(wide, Rounding::Nearest, false) as u16, half::bf16::from_f32(value).to_bits());
            assert_eq!(bf16_from_f32(value), half::bf16::from_f32(value).to_bits());
            let square = wide * (1.0 + wide.abs().sqrt());
            assert_eq!(F32.encode(square, Rounding::Nearest, false), (square as f32).to_bits());
            let below = f32::from_bits(F32.encode(square, Rounding::Down, false));
            assert!(f64::from(below) <= square && f64::from(below.next_up()) > square);
        }
    }

    #[test]
    fn limits_of_eight_bits() {
        assert_eq!(E4M3.decode(0x7e), 448.0);
        assert!(E4M3.decode(0x7f).is_nan());
        assert_eq!(E5M2.decode(0x7b), 57344.0);
        assert_eq!(E4M3.encode(1e9, Rounding::Nearest, true), 0x7e);
        assert_eq!(E5M2.encode(-1e9, Rounding::Nearest, true), 0xfb);
    }

    #[test]
    fn a_sum_to_odd_rounds_once() {
        // 1 + 2^-11 is halfway between two f16 numbers; a little more is above.
        let sum = add_to_odd(1.0 + 2f64.powi(-11), 2f64.powi(-60));
        assert_eq!(F16.encode(sum, Rounding::Nearest, false), 0x3c01);
        assert_eq!(F16.encode(1.0 + 2f64.powi(-11), Rounding::Nearest, false), 0x3c00);
    }
}
