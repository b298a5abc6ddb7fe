//! Weights made up from names: the same name, shape and seed give the same numbers on every machine.
//!
//! Element `i` of a tensor is output `i + 1` of SplitMix64 seeded with `fnv1a64(name) ^ seed`, mapped to `x` in [-1, 1), then
//!
//! | tensor | value |
//! |---|---|
//! | two dimensions or more | `sqrt(3 / last dimension) * x`: products keep the variance of their input |
//! | one dimension, named `...weight` | `1 + 0.1 * x` |
//! | any other | `0.02 * x` |

/// A source of made-up weights.
#[derive(Clone, Copy, Debug)]
pub struct Random {
    /// Changes all of them.
    pub seed: u64,
}

/// One tensor of made-up numbers.
#[derive(Clone, Copy, Debug)]
pub struct RandomTensor {
    key: u64,
    offset: f64,
    scale: f64,
}

impl Random {
    /// The tensor called `name`.
    pub fn tensor(&self, name: &str, shape: &[u64]) -> RandomTensor {
        let (offset, scale) = match shape {
            [.., _, inputs] => (0.0, (3.0 / *inputs as f64).sqrt()),
            [_] if name.ends_with("weight") => (1.0, 0.1),
            _ => (0.0, 0.02),
        };
        RandomTensor { key: fnv1a64(name.as_bytes()) ^ self.seed, offset, scale }
    }
}

impl RandomTensor {
    /// Element `i`, in row-major order.
    pub fn value(&self, i: u64) -> f32 {
        let mut z = self.key.wrapping_add(i.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        let x = 2.0 * ((z >> 40) as f64 / f64::from(1u32 << 24)) - 1.0;
        (self.offset + self.scale * x) as f32
    }
}

fn fnv1a64(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn follows_from_the_name() {
        let matrix = Random { seed: 0 }.tensor("a.weight", &[4, 300]);
        assert_eq!(matrix.value(7), Random { seed: 0 }.tensor("a.weight", &[4, 300]).value(7));
        assert_ne!(matrix.value(7), Random { seed: 1 }.tensor("a.weight", &[4, 300]).value(7));
        let values: Vec<f32> = (0..1200).map(|i| matrix.value(i)).collect();
        assert!(values.iter().all(|v| v.abs() <= 0.1));
        assert!((values.iter().sum::<f32>() / 1200.0).abs() < 0.01);
        let gain = Random { seed: 0 }.tensor("norm.weight", &[4]);
        assert!((0..4).all(|i| (gain.value(i) - 1.0).abs() <= 0.1));
    }
}
