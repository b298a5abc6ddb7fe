//! How `wgmma` finds a matrix in shared memory: its descriptor and layouts (PTX ISA, sections 9.7.15.5.1 and 9.7.15.5.2).
//!
//! With chunks of 16 bytes and a swizzle over `w` bytes (32, 64 or 128), a K-major matrix has element byte `x` of row `r` at
//! `start + (r % 8) w + (r / 8) stride + x`; without swizzle, eight rows of one chunk lie together, and the next chunk is `leading` away. An
//! M- or N-major matrix has, of row `k`, byte `x` at `start + (x / w) leading + (k % 8) w + (k / 8) stride + x % w`; without swizzle `stride`
//! is from chunk to chunk and `leading` from eight `k` to the next. Swizzling then exchanges chunks by the bits of the address above. CUTLASS has the same layouts (`mma_traits_sm90_gmma.hpp`).

use super::fault::FaultKind;

/// A decoded descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Descriptor {
    start: u64,
    leading: u64,
    stride: u64,
    /// Bytes that chunks are exchanged in; 16 is no swizzle.
    width: u64,
}

impl Descriptor {
    pub(crate) fn decode(bits: u64) -> Result<Self, FaultKind> {
        let field = |at: u32| (bits >> at & 0x3fff) << 4;
        if bits >> 49 & 7 != 0 {
            return Err(FaultKind::Operand("a descriptor with a base offset is not supported".to_owned()));
        }
        if bits & 0x3ff1_c000_c000_c000 != 0 {
            return Err(FaultKind::Operand(format!("{bits:#x} is not a descriptor: bits that must be zero are set")));
        }
        let width = [16, 128, 64, 32][(bits >> 62) as usize];
        Ok(Self { start: field(0), leading: field(16), stride: field(32), width })
    }

    /// The address of a chunk: the one with byte `x` of line `r`. Lines are rows of A and columns of B, bytes go along K; or, transposed,
    /// lines go along K.
    pub(crate) fn chunk(self, r: u64, x: u64, transposed: bool) -> u64 {
        let Self { start, leading, stride, width } = self;
        let linear = match (transposed, width) {
            (false, 16) => start + r % 8 * 16 + r / 8 * stride + x / 16 * leading,
            (false, _) => start + r % 8 * width + r / 8 * stride + x,
            (true, 16) => start + r % 8 * 16 + r / 8 * leading + x / 16 * stride,
            (true, _) => start + r % 8 * width + r / 8 * stride + x / width * leading + x % width,
        };
        swizzle(linear, width)
    }
}

/// Exchanges chunks of 16 bytes within `width` bytes, by the address bits from the seventh up.
pub(crate) fn swizzle(address: u64, width: u64) -> u64 {
    let chunks = width / 16 - 1;
    address ^ (address >> 7 & chunks) << 4
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields() {
        let bits = 0x400 >> 4 | (0x100 >> 4) << 16 | (0x800u64 >> 4) << 32 | 1 << 62;
        let expected = Descriptor { start: 0x400, leading: 0x100, stride: 0x800, width: 128 };
        assert_eq!(Descriptor::decode(bits), Ok(expected));
        assert!(Descriptor::decode(bits | 1 << 49).is_err());
        assert!(Descriptor::decode(bits | 1 << 14).is_err());
    }

    #[test]
    fn swizzles_exchange_within_their_width() {
        for width in [16, 32, 64, 128] {
            let mut seen: Vec<u64> = (0..64).map(|i| swizzle(i * 16, width)).collect();
            assert!(seen.iter().enumerate().all(|(i, a)| a / width == i as u64 * 16 / width));
            seen.sort_unstable();
            assert_eq!(seen, (0..64).map(|i| i * 16).collect::<Vec<_>>());
        }
        // Row 3 of a tile with rows of 128 bytes: chunk 1 is where chunk 2 would be.
        assert_eq!(swizzle(3 * 128 + 16, 128), 3 * 128 + 2 * 16);
        assert_eq!(swizzle(128 + 16, 32), 128);
    }
}
