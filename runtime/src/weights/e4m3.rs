//! Floats of 8 bits: a sign, 4 bits of exponent (bias 7), 3 of fraction; no infinity, and NaN where all but the sign are set.

/// The largest one.
pub(super) const LARGEST: f32 = 448.0;

/// What it is.
pub(super) fn decode(byte: u8) -> f32 {
    VALUES[usize::from(byte)]
}

/// Whether it is no number.
pub(super) fn is_nan(byte: u8) -> bool {
    byte & 0x7f == 0x7f
}

/// The nearest to a number, of two the even one; [`LARGEST`] for what is larger. NaN stays NaN.
pub(super) fn encode(x: f32) -> u8 {
    let sign = if x.is_sign_negative() { 0x80 } else { 0 };
    let magnitude = x.abs();
    if magnitude.is_nan() {
        return sign | 0x7f;
    }
    let magnitude = magnitude.min(LARGEST);
    // Below the least normal number: what is left in the last bits of a number whose neighbours are as far apart as here.
    if magnitude < 1.0 / 64.0 {
        return sign | ((magnitude + 16384.0).to_bits() - 16384f32.to_bits()) as u8;
    }
    let bits = magnitude.to_bits();
    let rounded = (bits + 0x7_ffff + (bits >> 20 & 1)) >> 20;
    sign | (rounded - (120 << 3)) as u8
}

const VALUES: [f32; 256] = {
    let mut values = [0.0; 256];
    let mut byte = 0;
    while byte < 256 {
        let (sign, exponent, fraction) = ((byte as u32 >> 7) << 31, byte as u32 >> 3 & 15, byte as u32 & 7);
        let magnitude = match (exponent, fraction) {
            (15, 7) => f32::NAN,
            (0, _) => fraction as f32 / 512.0,
            _ => f32::from_bits((exponent + 127 - 7) << 23 | fraction << 20),
        };
        values[byte] = f32::from_bits(magnitude.to_bits() | sign);
        byte += 1;
    }
    values
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_back_and_what_is_between_goes_to_the_nearest() {
        for byte in 0..=255u8 {
            assert_eq!(is_nan(byte), decode(byte).is_nan());
            assert_eq!(encode(decode(byte)), byte);
        }
        for byte in 0..0x7eu8 {
            let (a, b) = (decode(byte), decode(byte + 1));
            let middle = (a + b) / 2.0;
            let even = if byte % 2 == 0 { byte } else { byte + 1 };
            assert_eq!([encode(middle.next_down()), encode(middle), encode(middle.next_up())], [byte, even, byte + 1]);
            assert_eq!(encode(-middle.next_up()), 0x80 | (byte + 1));
        }
        for large in [449.0, 464.0, 1e30, f32::INFINITY] {
            assert_eq!([encode(large), encode(-large)], [0x7e, 0xfe]);
        }
        assert_eq!([encode(1e-30), encode(-1e-30)], [0, 0x80]);
    }
}
