//! Floats of 8 bits, as the interpreter rounds to them: a sign, 4 bits of exponent (bias 7) and 3 of fraction, no infinity and one NaN of each sign.
//!
//! Written from the definition, by arithmetic on f32: the runtime and compiled code go by bits.

/// The largest one.
pub const LARGEST: f32 = 448.0;

/// Exponent of the least normal number, whose neighbours are as far apart as those below it.
const LEAST_EXPONENT: i32 = -6;

/// The nearest one, of two the even one. What is larger than [`LARGEST`], infinities too, becomes that; NaN stays NaN.
pub fn round(x: f32) -> f32 {
    if x.is_nan() {
        return x;
    }
    let magnitude = x.abs().min(LARGEST);
    // Exponents of f32 below its normal numbers do not matter.
    let exponent = ((magnitude.to_bits() >> 23) as i32 - 127).max(LEAST_EXPONENT);
    let step = 2f32.powi(exponent - 3);
    ((magnitude / step).round_ties_even() * step).copysign(x)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All of them that are no NaN, from the definition.
    fn all() -> Vec<f32> {
        let of = |byte: u8| {
            let (exponent, fraction) = (i32::from(byte >> 3), f32::from(byte & 7) / 8.0);
            if exponent == 0 { fraction * 2f32.powi(-6) } else { (1.0 + fraction) * 2f32.powi(exponent - 7) }
        };
        (0..0x7f).map(of).collect()
    }

    #[test]
    fn numbers_stay_and_others_go_to_the_nearest() {
        let all = all();
        assert_eq!(all[0x7e], LARGEST);
        for (low, pair) in all.windows(2).enumerate() {
            let (a, b) = (pair[0], pair[1]);
            let middle = (a + b) / 2.0;
            let even = if low % 2 == 0 { a } else { b };
            for sign in [1.0, -1.0] {
                let rounded = |x: f32| round(sign * x) * sign;
                assert_eq!([rounded(a), rounded(b), rounded(middle)], [a, b, even]);
                assert_eq!([rounded(middle.next_down()), rounded(middle.next_up())], [a, b]);
            }
        }
        for large in [449.0, 464.0, 480.0, 1e9, f32::INFINITY] {
            assert_eq!([round(large), round(-large)], [LARGEST, -LARGEST]);
        }
        assert!(round(f32::NAN).is_nan());
        assert!(round(-1e-9).is_sign_negative() && round(f32::MIN_POSITIVE / 4.0) == 0.0);
    }
}
