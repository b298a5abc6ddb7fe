//! The loops for AArch64: NEON. Called through the parent alone, which asks the processor first.

use super::Streams;
use std::arch::asm;

/// 64 bytes at a register plus an offset, with a prefetch.
macro_rules! line {
    ($p:literal, $at:literal, $more:literal, $ahead:literal) => {
        concat!("prfm pldl1keep, [", $p, ", #", $ahead, "]\n", plain!($p, $at, $more, $ahead))
    };
}
macro_rules! plain {
    ($p:literal, $at:literal, $more:literal, $ahead:literal) => {
        concat!("ldp q0, q1, [", $p, ", #", $at, "]\nldp q2, q3, [", $p, ", #", $more, "]")
    };
}

/// A loop over memory; `$line` moves 64 bytes.
macro_rules! read {
    ($name:ident, $line:ident) => {
        /// # Safety
        /// `units` (at least one) units of 4096 bytes can be read at `at`.
        pub(super) unsafe fn $name(at: *const u8, units: usize, streams: Streams) {
            match streams {
                // SAFETY: reads `units * 16` blocks of 256 bytes, one after another.
                Streams::One => unsafe {
                    asm!(
                        "2:",
                        $line!("x9", "0", "32", "8192"), $line!("x9", "64", "96", "8256"),
                        $line!("x9", "128", "160", "8320"), $line!("x9", "192", "224", "8384"),
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
                        $line!("x9", "0", "32", "2048"), $line!("x11", "0", "32", "2048"), $line!("x12", "0", "32", "2048"), $line!("x13", "0", "32", "2048"),
                        $line!("x9", "64", "96", "2112"), $line!("x11", "64", "96", "2112"), $line!("x12", "64", "96", "2112"), $line!("x13", "64", "96", "2112"),
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
    };
}
read!(read_neon, line);
read!(read_neon_plain, plain);

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
