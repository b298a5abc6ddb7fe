//! The loops that the machine's limits are measured with: reading memory, multiplying.
//!
//! Assembly, so that they are what they are however the crate was built. Given an instruction set and memory, promises to touch each byte once,
//! or to do exactly the operations that it returns. Only this file and its two parts, of all measuring, are `unsafe`.

#![allow(
    unsafe_code,
    reason = "the loops are assembly; each is called only after the processor was asked for its instructions"
)]

#[cfg(target_arch = "aarch64")]
mod arm;
#[cfg(target_arch = "x86_64")]
mod x86;

use crate::artifact::features::HostFeatures;
use crate::artifact::manifest::Products;
use std::sync::OnceLock;

/// Vector instructions that loops exist for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is the extension it is named after")]
pub enum Isa {
    Avx512,
    Avx2,
    Sse2,
    Neon,
    /// None: plain Rust.
    Plain,
}

/// In what order memory is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Streams {
    /// From the first byte to the last; prefetches are 8 KB ahead.
    One,
    /// Four quarters side by side; prefetches are 2 KB ahead in each.
    Four,
}

/// How memory is read: which of them is the fastest differs from processor to processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reading {
    /// The order.
    pub(super) streams: Streams,
    /// With prefetches, or with those alone that the processor makes by itself.
    pub(super) prefetch: bool,
}

impl Reading {
    /// All ways.
    pub(super) const ALL: [Self; 4] = [
        Self { streams: Streams::One, prefetch: true },
        Self { streams: Streams::One, prefetch: false },
        Self { streams: Streams::Four, prefetch: true },
        Self { streams: Streams::Four, prefetch: false },
    ];
}

/// [`read`] takes multiples of this many bytes.
pub(super) const READ_UNIT: usize = 4096;

impl Isa {
    /// The widest that this processor has.
    pub fn host() -> Self {
        [Self::Avx512, Self::Avx2, Self::Sse2, Self::Neon].into_iter().find(|isa| isa.is_here()).unwrap_or(Self::Plain)
    }

    /// The widest that code for a target with these features (LLVM's names) uses.
    pub fn of(arch: &str, features: &[String]) -> Self {
        let has = |name: &str| features.iter().any(|feature| feature == name);
        match arch {
            "x86_64" if has("avx512f") => Self::Avx512,
            "x86_64" if has("avx2") && has("fma") => Self::Avx2,
            "x86_64" => Self::Sse2,
            "aarch64" => Self::Neon,
            _ => Self::Plain,
        }
    }

    /// Whether this processor has it.
    #[cfg(target_arch = "x86_64")]
    pub fn is_here(self) -> bool {
        match self {
            Self::Avx512 => std::is_x86_feature_detected!("avx512f"),
            Self::Avx2 => std::is_x86_feature_detected!("avx2") && std::is_x86_feature_detected!("fma"),
            Self::Sse2 | Self::Plain => true,
            Self::Neon => false,
        }
    }

    /// Whether this processor has it.
    #[cfg(not(target_arch = "x86_64"))]
    pub fn is_here(self) -> bool {
        match self {
            Self::Neon => cfg!(target_arch = "aarch64"),
            Self::Plain => true,
            Self::Avx512 | Self::Avx2 | Self::Sse2 => false,
        }
    }

    /// Whether this processor has an instruction for products of 16-bit numbers.
    pub fn has_half(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => self.is_here() && std::is_x86_feature_detected!("avx512bf16"),
            #[cfg(target_arch = "aarch64")]
            Self::Neon => std::arch::is_aarch64_feature_detected!("bf16"),
            _ => false,
        }
    }

    /// Whether this processor has an instruction for sums of products of bytes.
    pub fn has_bytes(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => self.is_here() && std::is_x86_feature_detected!("avx512vnni"),
            _ => false,
        }
    }

    /// Whether this processor has registers that hold tiles of such numbers, which this process may use.
    pub fn has_tiles(self, products: Products) -> bool {
        let name = match products {
            Products::Single => return false,
            Products::Half => "amx-bf16",
            Products::Byte => "amx-int8",
        };
        /// Asked once: asking takes longer than some loops.
        static HOST: OnceLock<HostFeatures> = OnceLock::new();
        self == Self::Avx512 && self.is_here() && HOST.get_or_init(HostFeatures::detect).features.contains(name)
    }

    /// Whether it has an instruction for these.
    fn has(self, products: Products) -> bool {
        match products {
            Products::Single => true,
            Products::Half => self.has_half(),
            Products::Byte => self.has_bytes(),
        }
    }

    /// As in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Avx512 => "avx512",
            Self::Avx2 => "avx2",
            Self::Sse2 => "sse2",
            Self::Neon => "neon",
            Self::Plain => "plain",
        }
    }
}

/// Reads every byte of `bytes`, whose length is a multiple of [`READ_UNIT`], and keeps nothing.
pub(super) fn read(isa: Isa, reading: Reading, bytes: &[u8]) {
    let Reading { streams, prefetch } = reading;
    debug_assert_eq!(bytes.len() % READ_UNIT, 0);
    let units = bytes.len() / READ_UNIT;
    if units == 0 || !isa.is_here() {
        return;
    }
    match isa {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the processor has the instructions, asked above; `units` units lie inside `bytes`, and prefetching beyond them is no access.
        Isa::Avx512 if prefetch => unsafe { x86::read_avx512(bytes.as_ptr(), units, streams) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Isa::Avx512 => unsafe { x86::read_avx512_plain(bytes.as_ptr(), units, streams) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Isa::Avx2 if prefetch => unsafe { x86::read_avx2(bytes.as_ptr(), units, streams) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Isa::Avx2 => unsafe { x86::read_avx2_plain(bytes.as_ptr(), units, streams) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Isa::Sse2 if prefetch => unsafe { x86::read_sse2(bytes.as_ptr(), units, streams) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Isa::Sse2 => unsafe { x86::read_sse2_plain(bytes.as_ptr(), units, streams) },
        #[cfg(target_arch = "aarch64")]
        // SAFETY: as above.
        Isa::Neon if prefetch => unsafe { arm::read_neon(bytes.as_ptr(), units, streams) },
        #[cfg(target_arch = "aarch64")]
        // SAFETY: as above.
        Isa::Neon => unsafe { arm::read_neon_plain(bytes.as_ptr(), units, streams) },
        _ => {
            std::hint::black_box(bytes.as_chunks::<8>().0.iter().fold(0, |sum, x| sum ^ u64::from_ne_bytes(*x)));
        }
    }
}

/// Multiplies and adds in registers, `turns` times round a loop. Returns the floating-point operations done: 0 where there is no loop for it.
pub(super) fn multiply(isa: Isa, products: Products, turns: u32) -> u64 {
    if turns == 0 || !isa.is_here() || !isa.has(products) {
        return 0;
    }
    let turns = u64::from(turns);
    match (isa, products) {
        #[cfg(target_arch = "x86_64")]
        (Isa::Avx512, Products::Single) => {
            // SAFETY: the processor has the instructions, asked above; the loop touches registers only.
            unsafe { x86::fma_avx512(turns) };
            turns * 24 * 16 * 2
        }
        #[cfg(target_arch = "x86_64")]
        (Isa::Avx512, Products::Half) => {
            // SAFETY: as above.
            unsafe { x86::bf16_avx512(turns) };
            turns * 24 * 32 * 2
        }
        #[cfg(target_arch = "x86_64")]
        (Isa::Avx512, Products::Byte) => {
            // SAFETY: as above.
            unsafe { x86::bytes_avx512(turns) };
            turns * 24 * 64 * 2
        }
        #[cfg(target_arch = "x86_64")]
        (Isa::Avx2, Products::Single) => {
            // SAFETY: as above.
            unsafe { x86::fma_avx2(turns) };
            turns * 12 * 8 * 2
        }
        #[cfg(target_arch = "x86_64")]
        (Isa::Sse2, Products::Single) => {
            // SAFETY: as above.
            unsafe { x86::multiply_add_sse2(turns) };
            turns * 12 * 4
        }
        #[cfg(target_arch = "aarch64")]
        (Isa::Neon, Products::Single) => {
            // SAFETY: as above.
            unsafe { arm::fma_neon(turns) };
            turns * 24 * 4 * 2
        }
        #[cfg(target_arch = "aarch64")]
        (Isa::Neon, Products::Half) => {
            // SAFETY: as above.
            unsafe { arm::bfdot_neon(turns) };
            turns * 24 * 8 * 2
        }
        _ => 0,
    }
}

/// Multiplies and adds tiles of narrow numbers, `turns` times round a loop. Returns the operations done: 0 where there are no tiles.
pub(super) fn multiply_tiles(isa: Isa, products: Products, turns: u32) -> u64 {
    if turns == 0 || !isa.has_tiles(products) {
        return 0;
    }
    #[cfg(target_arch = "x86_64")]
    let tile = 16 * 16 * 32 * 2;
    match products {
        #[cfg(target_arch = "x86_64")]
        Products::Half => {
            // SAFETY: the processor has the instructions and the process may use them, asked above; no other code uses the registers meanwhile.
            unsafe { x86::tiles_bf16(turns.into()) };
            u64::from(turns) * 4 * tile
        }
        #[cfg(target_arch = "x86_64")]
        Products::Byte => {
            // SAFETY: as above.
            unsafe { x86::tiles_bytes(turns.into()) };
            u64::from(turns) * 4 * 2 * tile
        }
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loops_end_and_count() {
        let bytes = vec![1u8; 3 * READ_UNIT];
        for isa in [Isa::Avx512, Isa::Avx2, Isa::Sse2, Isa::Neon, Isa::Plain] {
            for reading in Reading::ALL {
                read(isa, reading, &bytes);
                read(isa, reading, &[]);
            }
            assert_eq!(multiply(isa, Products::Single, 0), 0);
            let flops = multiply(isa, Products::Single, 10);
            assert_eq!(flops > 0, isa.is_here() && isa != Isa::Plain, "{isa:?}");
            assert_eq!(multiply(isa, Products::Half, 10) > 0, isa.has_half(), "{isa:?}");
            assert_eq!(multiply(isa, Products::Byte, 10) > 0, isa.has_bytes(), "{isa:?}");
            for products in [Products::Single, Products::Half, Products::Byte] {
                assert_eq!(multiply_tiles(isa, products, 10) > 0, isa.has_tiles(products), "{isa:?} {products:?}");
            }
        }
        assert!(Isa::host().is_here());
        // What multiplies twice as wide does twice as much a turn.
        if Isa::Avx512.has_half() {
            assert_eq!(multiply(Isa::Avx512, Products::Half, 7), 2 * multiply(Isa::Avx512, Products::Single, 7));
        }
    }

    #[test]
    fn a_target_names_its_instructions() {
        let features = |list: &[&str]| list.iter().map(|f| (*f).to_owned()).collect::<Vec<_>>();
        assert_eq!(Isa::of("x86_64", &features(&["avx2", "fma", "avx512f"])), Isa::Avx512);
        assert_eq!(Isa::of("x86_64", &features(&["avx2", "fma"])), Isa::Avx2);
        assert_eq!(Isa::of("x86_64", &features(&["avx2"])), Isa::Sse2);
        assert_eq!(Isa::of("aarch64", &[]), Isa::Neon);
        assert_eq!(Isa::of("riscv64", &[]), Isa::Plain);
    }
}
