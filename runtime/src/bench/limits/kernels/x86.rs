//! The loops for x86-64: AVX-512, AVX2 and SSE2. Called through the parent alone, which asks the processor first.

use super::Streams;
use std::arch::asm;

/// A loop over memory; `$line` moves the 64 bytes at a register plus an offset, and may prefetch; `$end` tidies up: what is left in the upper
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
        concat!("prefetcht0 [", $p, " + ", $ahead, "]\n", plain_avx512!($p, $at, $ahead))
    };
}
macro_rules! plain_avx512 {
    ($p:literal, $at:literal, $ahead:literal) => {
        concat!("vmovups zmm0, [", $p, " + ", $at, "]")
    };
}
macro_rules! line_avx2 {
    ($p:literal, $at:literal, $ahead:literal) => {
        concat!("prefetcht0 [", $p, " + ", $ahead, "]\n", plain_avx2!($p, $at, $ahead))
    };
}
macro_rules! plain_avx2 {
    ($p:literal, $at:literal, $ahead:literal) => {
        concat!("vmovups ymm0, [", $p, " + ", $at, "]\nvmovups ymm1, [", $p, " + ", $at, " + 32]")
    };
}
macro_rules! line_sse2 {
    ($p:literal, $at:literal, $ahead:literal) => {
        concat!("prefetcht0 [", $p, " + ", $ahead, "]\n", plain_sse2!($p, $at, $ahead))
    };
}
#[rustfmt::skip]
macro_rules! plain_sse2 {
    ($p:literal, $at:literal, $ahead:literal) => {
        concat!(
            "movups xmm0, [", $p, " + ", $at, "]\nmovups xmm1, [", $p, " + ", $at, " + 16]\n",
            "movups xmm2, [", $p, " + ", $at, " + 32]\nmovups xmm3, [", $p, " + ", $at, " + 48]"
        )
    };
}
read!(read_avx512, "avx512f", line_avx512, "vzeroupper");
read!(read_avx512_plain, "avx512f", plain_avx512, "vzeroupper");
read!(read_avx2, "avx2", line_avx2, "vzeroupper");
read!(read_avx2_plain, "avx2", plain_avx2, "vzeroupper");
read!(read_sse2, "sse2", line_sse2, "");
read!(read_sse2_plain, "sse2", plain_sse2, "");

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
// Bytes of 1 and 2.
accumulate!(bytes_avx512, "avx512f,avx512vnni", "zmm", "vpdpbusd", 0x0101_0101, 0x0202_0202, "30", "31",
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

/// What tiles are configured with: one kind of them, bytes of a row in 16 bits from byte 16 on, rows from byte 48 on.
const WHOLE_TILES: [u8; 64] = {
    let mut sizes = [0; 64];
    sizes[0] = 1;
    let mut register = 0;
    while register < 8 {
        sizes[16 + 2 * register] = 64;
        sizes[48 + register] = 16;
        register += 1;
    }
    sizes
};

/// A loop of products of four pairs of tiles, each of 16 rows by 16 columns over 64 bytes of inputs, that are zero.
macro_rules! tiles {
    ($name:ident, $op:literal) => {
        /// # Safety
        /// The processor has the instructions and the system lets this process use them; `turns` is at least one.
        pub(super) unsafe fn $name(turns: u64) {
            // SAFETY: reads the sizes, touches registers that nothing else uses, and leaves them empty.
            unsafe {
                asm!(
                    "ldtilecfg [{sizes}]",
                    "2:",
                    concat!($op, " tmm0, tmm4, tmm6"),
                    concat!($op, " tmm1, tmm4, tmm7"),
                    concat!($op, " tmm2, tmm5, tmm6"),
                    concat!($op, " tmm3, tmm5, tmm7"),
                    "dec rcx",
                    "jnz 2b",
                    "tilerelease",
                    sizes = in(reg) WHOLE_TILES.as_ptr(),
                    inout("rcx") turns => _,
                    options(nostack, readonly)
                )
            }
        }
    };
}
tiles!(tiles_bf16, "tdpbf16ps");
tiles!(tiles_bytes, "tdpbsud");
