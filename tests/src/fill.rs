//! Weights as a function of their names, so that a reference case needs none on disk.
//!
//! Given a tensor's checkpoint name, the seed of its case, an offset and a scale, [`fill`] promises the same bits on every machine:
//! integer arithmetic modulo 2^64, then one multiplication and one addition in f64, then one rounding to f32.
//! The generator is SplitMix64 keyed with the FNV-1a hash of the name; `tests/reference/README.md` states it in full.

const GOLDEN_GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

/// 64-bit FNV-1a of the UTF-8 bytes of `text`.
pub fn fnv1a64(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

/// Output number `index + 1` of standard SplitMix64 seeded with `key`.
pub fn splitmix64(key: u64, index: u64) -> u64 {
    let z = key.wrapping_add(index.wrapping_add(1).wrapping_mul(GOLDEN_GAMMA));
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The first `count` values of the tensor `name`, in row-major order: `f32(offset + scale * x)` with `x` in [-1, 1).
pub fn fill(name: &str, seed: u64, count: usize, offset: f64, scale: f64) -> Vec<f32> {
    let key = fnv1a64(name) ^ seed;
    (0..count as u64)
        .map(|index| {
            let unit = (splitmix64(key, index) >> 40) as f64 / f64::from(1u32 << 24);
            (offset + scale * (2.0 * unit - 1.0)) as f32
        })
        .collect()
}
