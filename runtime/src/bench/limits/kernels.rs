//! The loops that the machine's limits are measured with: reading memory, multiplying.
//!
//! Assembly, so that they are what they are however the crate was built. Given an instruction set and memory, promises to touch each byte once,
//! or to do exactly the operations that it returns. This is the only file of measuring that is `unsafe`.

#![allow(
    unsafe_code,
    reason = "the loops are assembly; each is called only after the processor was asked for its instructions"
)]

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

/// What is multiplied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Products {
    /// f32.
    Single,
    /// bf16, summed in f32, by an instruction of its own.
    Half,
}

/// In what order memory is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Streams {
    /// From the first byte to the last, prefetching 8 KB ahead.
    One,
    /// Four quarters side by side, each prefetching 2 KB ahead.
    Four,
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

    /// Whether this processor has an instruction for [`Products::Half`].
    pub fn has_half(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => self.is_here() && std::is_x86_feature_detected!("avx512bf16"),
            #[cfg(target_arch = "aarch64")]
            Self::Neon => std::arch::is_aarch64_feature_detected!("bf16"),
            _ => false,
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
pub(super) fn read(isa: Isa, streams: Streams, bytes: &[u8]) {
    debug_assert_eq!(bytes.len() % READ_UNIT, 0);
    let units = bytes.len() / READ_UNIT;
    if units == 0 || !isa.is_here() {
        return;
    }
    match isa {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the processor has the instructions, asked above; `units` units lie inside `bytes`, and prefetching beyond them is no access.
        Isa::Avx512 => unsafe { x86::read_avx512(bytes.as_ptr(), units, streams) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Isa::Avx2 => unsafe { x86::read_avx2(bytes.as_ptr(), units, streams) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Isa::Sse2 => unsafe { x86::read_sse2(bytes.as_ptr(), units, streams) },
        #[cfg(target_arch = "aarch64")]
        // SAFETY: as above.
        Isa::Neon => unsafe { arm::read_neon(bytes.as_ptr(), units, streams) },
        _ => {
            std::hint::black_box(bytes.as_chunks::<8>().0.iter().fold(0, |sum, x| sum ^ u64::from_ne_bytes(*x)));
        }
    }
}

/// Multiplies and adds in registers, `turns` times round a loop. Returns the floating-point operations done: 0 where there is no loop for it.
pub(super) fn multiply(isa: Isa, products: Products, turns: u32) -> u64 {
    if turns == 0 || !isa.is_here() || (products == Products::Half && !isa.has_half()) {
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

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::Streams;
    use std::arch::asm;

    /// A loop over memory; `$line` moves the 64 bytes at a register plus an offset, and prefetches; `$end` tidies up: what is left in the upper
    /// halves of registers slows later instructions down that know only the lower ones.
    macro_rules! read {
        ($name:ident, $feature:literal, $line:ident, $end:literal) => {
            /// # Safety
            /// The processor has the feature; `units` (at least one) units of 4096 bytes can be read at `at`.
            #[target_feature(enable = $feature)]
            pub(super) unsafe fn $name(at: *const u8, units: usize, streams: Streams) {
                match streams {
                    // SAFETY: reads `units * 8` blocks of 512 bytes, one after another.
                    Streams::One => unsafe {
                        asm!(
                            "2:",
                            $line!("rsi", "0", "8192"), $line!("rsi", "64", "8256"),
                            $line!("rsi", "128", "8320"), $line!("rsi", "192", "8384"),
                            $line!("rsi", "256", "8448"), $line!("rsi", "320", "8512"),
                            $line!("rsi", "384", "8576"), $line!("rsi", "448", "8640"),
                            "add rsi, 512",
                            "dec rcx",
                            "jnz 2b",
                            $end,
                            inout("rsi") at => _,
                            inout("rcx") units * 8 => _,
                            clobber_abi("sysv64"),
                            options(nostack, readonly)
                        )
                    },
                    // SAFETY: a quarter is `units * 4` blocks of 256 bytes; the four of them are all of the memory.
                    Streams::Four => unsafe {
                        asm!(
                            "2:",
                            $line!("rsi", "0", "2048"), $line!("rdi", "0", "2048"), $line!("r8", "0", "2048"), $line!("r9", "0", "2048"),
                            $line!("rsi", "64", "2112"), $line!("rdi", "64", "2112"), $line!("r8", "64", "2112"), $line!("r9", "64", "2112"),
                            $line!("rsi", "128", "2176"), $line!("rdi", "128", "2176"), $line!("r8", "128", "2176"), $line!("r9", "128", "2176"),
                            $line!("rsi", "192", "2240"), $line!("rdi", "192", "2240"), $line!("r8", "192", "2240"), $line!("r9", "192", "2240"),
                            "add rsi, 256", "add rdi, 256", "add r8, 256", "add r9, 256",
                            "dec rcx",
                            "jnz 2b",
                            $end,
                            inout("rsi") at => _,
                            inout("rdi") at.wrapping_add(units * 1024) => _,
                            inout("r8") at.wrapping_add(units * 2048) => _,
                            inout("r9") at.wrapping_add(units * 3072) => _,
                            inout("rcx") units * 4 => _,
                            clobber_abi("sysv64"),
                            options(nostack, readonly)
                        )
                    },
                }
            }
        };
    }
    macro_rules! line_avx512 {
        ($p:literal, $at:literal, $ahead:literal) => {
            concat!("prefetcht0 [", $p, " + ", $ahead, "]\nvmovups zmm0, [", $p, " + ", $at, "]")
        };
    }
    macro_rules! line_avx2 {
        ($p:literal, $at:literal, $ahead:literal) => {
            concat!(
                "prefetcht0 [",
                $p,
                " + ",
                $ahead,
                "]\nvmovups ymm0, [",
                $p,
                " + ",
                $at,
                "]\nvmovups ymm1, [",
                $p,
                " + ",
                $at,
                " + 32]"
            )
        };
    }
    macro_rules! line_sse2 {
        ($p:literal, $at:literal, $ahead:literal) => {
            concat!(
                "prefetcht0 [",
                $p,
                " + ",
                $ahead,
                "]\nmovups xmm0, [",
                $p,
                " + ",
                $at,
                "]\nmovups xmm1, [",
                $p,
                " + ",
                $at,
                " + 16]\nmovups xmm2, [",
                $p,
                " + ",
                $at,
                " + 32]\nmovups xmm3, [",
                $p,
                " + ",
                $at,
                " + 48]"
            )
        };
    }
    read!(read_avx512, "avx512f", line_avx512, "vzeroupper");
    read!(read_avx2, "avx2", line_avx2, "vzeroupper");
    read!(read_sse2, "sse2", line_sse2, "");

    /// A loop of one instruction on many accumulators, none of which waits for another. `$first` and `$second` fill the registers `$a`
    /// and `$b`; accumulators begin at zero.
    macro_rules! accumulate {
        ($name:ident, $feature:literal, $width:literal, $op:literal, $first:expr, $second:expr, $a:literal, $b:literal, [$($acc:literal)*]) => {
            /// # Safety
            /// The processor has the feature; `turns` is at least one.
            #[target_feature(enable = $feature)]
            pub(super) unsafe fn $name(turns: u64) {
                let (first, second): (u32, u32) = ($first, $second);
                // SAFETY: touches registers only, and says which.
                unsafe {
                    asm!(
                        concat!("vmovd xmm0, eax\nvbroadcastss ", $width, $a, ", xmm0"),
                        concat!("vmovd xmm0, edx\nvbroadcastss ", $width, $b, ", xmm0"),
                        $(concat!("vsubps ", $width, $acc, ", ", $width, $a, ", ", $width, $a),)*
                        "2:",
                        $(concat!($op, " ", $width, $acc, ", ", $width, $a, ", ", $width, $b),)*
                        "dec rcx",
                        "jnz 2b",
                        "vzeroupper",
                        inout("rcx") turns => _,
                        inout("eax") first => _,
                        inout("edx") second => _,
                        clobber_abi("sysv64"),
                        options(nostack, nomem)
                    )
                }
            }
        };
    }
    accumulate!(fma_avx512, "avx512f", "zmm", "vfmadd213ps", 1.000_000_1_f32.to_bits(), 1e-9_f32.to_bits(), "30", "31",
        ["0" "1" "2" "3" "4" "5" "6" "7" "8" "9" "10" "11" "12" "13" "14" "15" "16" "17" "18" "19" "20" "21" "22" "23"]);
    // Pairs of 2^-7 and about as much.
    accumulate!(bf16_avx512, "avx512f,avx512bf16", "zmm", "vdpbf16ps", 0x3c00_3c00, 0x3c01_3c01, "30", "31",
        ["0" "1" "2" "3" "4" "5" "6" "7" "8" "9" "10" "11" "12" "13" "14" "15" "16" "17" "18" "19" "20" "21" "22" "23"]);
    accumulate!(fma_avx2, "avx2,fma", "ymm", "vfmadd213ps", 1.000_000_1_f32.to_bits(), 1e-9_f32.to_bits(), "14", "15",
        ["0" "1" "2" "3" "4" "5" "6" "7" "8" "9" "10" "11"]);

    /// Six products and six sums a turn: without fused instructions they are separate.
    ///
    /// # Safety
    /// `turns` is at least one.
    pub(super) unsafe fn multiply_add_sse2(turns: u64) {
        // SAFETY: touches registers only, and says which; every x86-64 processor has the instructions.
        unsafe {
            asm!(
                "movd xmm14, eax", "shufps xmm14, xmm14, 0",
                "movaps xmm0, xmm14", "movaps xmm1, xmm14", "movaps xmm2, xmm14", "movaps xmm3, xmm14", "movaps xmm4, xmm14", "movaps xmm5, xmm14",
                "movaps xmm6, xmm14", "movaps xmm7, xmm14", "movaps xmm8, xmm14", "movaps xmm9, xmm14", "movaps xmm10, xmm14", "movaps xmm11, xmm14",
                "2:",
                "mulps xmm0, xmm14", "addps xmm6, xmm14", "mulps xmm1, xmm14", "addps xmm7, xmm14", "mulps xmm2, xmm14", "addps xmm8, xmm14",
                "mulps xmm3, xmm14", "addps xmm9, xmm14", "mulps xmm4, xmm14", "addps xmm10, xmm14", "mulps xmm5, xmm14", "addps xmm11, xmm14",
                "dec rcx",
                "jnz 2b",
                inout("rcx") turns => _,
                inout("eax") 1.0_f32.to_bits() => _,
                clobber_abi("sysv64"),
                options(nostack, nomem)
            )
        }
    }
}

#[cfg(target_arch = "aarch64")]
mod arm {
    use super::Streams;
    use std::arch::asm;

    /// 64 bytes at a register plus an offset.
    macro_rules! line {
        ($p:literal, $at:literal, $more:literal, $ahead:literal) => {
            concat!(
                "prfm pldl1keep, [",
                $p,
                ", #",
                $ahead,
                "]\nldp q0, q1, [",
                $p,
                ", #",
                $at,
                "]\nldp q2, q3, [",
                $p,
                ", #",
                $more,
                "]"
            )
        };
    }

    /// # Safety
    /// `units` (at least one) units of 4096 bytes can be read at `at`.
    pub(super) unsafe fn read_neon(at: *const u8, units: usize, streams: Streams) {
        match streams {
            // SAFETY: reads `units * 16` blocks of 256 bytes, one after another.
            Streams::One => unsafe {
                asm!(
                    "2:",
                    line!("x9", "0", "32", "8192"), line!("x9", "64", "96", "8256"),
                    line!("x9", "128", "160", "8320"), line!("x9", "192", "224", "8384"),
                    "add x9, x9, #256",
                    "subs x10, x10, #1",
                    "b.ne 2b",
                    inout("x9") at => _,
                    inout("x10") units * 16 => _,
                    clobber_abi("C"),
                    options(nostack, readonly)
                )
            },
            // SAFETY: a quarter is `units * 8` blocks of 128 bytes; the four of them are all of the memory.
            Streams::Four => unsafe {
                asm!(
                    "2:",
                    line!("x9", "0", "32", "2048"), line!("x11", "0", "32", "2048"), line!("x12", "0", "32", "2048"), line!("x13", "0", "32", "2048"),
                    line!("x9", "64", "96", "2112"), line!("x11", "64", "96", "2112"), line!("x12", "64", "96", "2112"), line!("x13", "64", "96", "2112"),
                    "add x9, x9, #128", "add x11, x11, #128", "add x12, x12, #128", "add x13, x13, #128",
                    "subs x10, x10, #1",
                    "b.ne 2b",
                    inout("x9") at => _,
                    inout("x11") at.wrapping_add(units * 1024) => _,
                    inout("x12") at.wrapping_add(units * 2048) => _,
                    inout("x13") at.wrapping_add(units * 3072) => _,
                    inout("x10") units * 8 => _,
                    clobber_abi("C"),
                    options(nostack, readonly)
                )
            },
        }
    }

    /// One instruction on each of the accumulators, none of which waits for another.
    macro_rules! accumulate {
        ($op:literal, $lanes:literal, $($acc:literal)*) => {
            concat!($($op, " v", $acc, ".4s, v30.", $lanes, ", v31.", $lanes, "\n"),*)
        };
    }

    /// # Safety
    /// `turns` is at least one.
    pub(super) unsafe fn fma_neon(turns: u64) {
        // SAFETY: touches registers only, and says which; every AArch64 processor that Rust's targets mean has the instructions. What the
        // accumulators begin with does not matter.
        unsafe {
            asm!(
                "fmov v30.4s, #1.0",
                "fmov v31.4s, #1.0",
                "2:",
                accumulate!("fmla", "4s", "0" "1" "2" "3" "4" "5" "6" "7" "8" "9" "10" "11" "12" "13" "14" "15" "16" "17" "18" "19" "20" "21" "22" "23"),
                "subs x9, x9, #1",
                "b.ne 2b",
                inout("x9") turns => _,
                clobber_abi("C"),
                options(nostack, nomem)
            )
        }
    }

    /// # Safety
    /// The processor has the instruction (`bf16`); `turns` is at least one.
    pub(super) unsafe fn bfdot_neon(turns: u64) {
        // SAFETY: touches registers only, and says which.
        unsafe {
            asm!(
                ".arch_extension bf16",
                "movi v30.8h, #0x3c, lsl #8",
                "movi v31.8h, #0x3c, lsl #8",
                "2:",
                accumulate!("bfdot", "8h", "0" "1" "2" "3" "4" "5" "6" "7" "8" "9" "10" "11" "12" "13" "14" "15" "16" "17" "18" "19" "20" "21" "22" "23"),
                "subs x9, x9, #1",
                "b.ne 2b",
                ".arch_extension nobf16",
                inout("x9") turns => _,
                clobber_abi("C"),
                options(nostack, nomem)
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loops_end_and_count() {
        let bytes = vec![1u8; 3 * READ_UNIT];
        for isa in [Isa::Avx512, Isa::Avx2, Isa::Sse2, Isa::Neon, Isa::Plain] {
            for streams in [Streams::One, Streams::Four] {
                read(isa, streams, &bytes);
                read(isa, streams, &[]);
            }
            assert_eq!(multiply(isa, Products::Single, 0), 0);
            let flops = multiply(isa, Products::Single, 10);
            assert_eq!(flops > 0, isa.is_here() && isa != Isa::Plain, "{isa:?}");
            assert_eq!(multiply(isa, Products::Half, 10) > 0, isa.has_half(), "{isa:?}");
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
