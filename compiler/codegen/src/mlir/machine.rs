//! What a target gives to the kernels: the vectors and the operations that its machine has.
//!
//! Kernels name no target. Whatever differs from one instruction set to the next is a field here, or a number of a
//! [`schedule`](super::schedule); the [`Writer`](super::writer::Writer) turns it into operations.

/// Operations that some machines have and others lack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Machine {
    /// f32 lanes of a vector.
    pub lanes: u32,
    /// Threads that hold a vector together, each its own lanes, and run a kernel as one worker; 1: vectors are registers.
    pub threads: u32,
    /// Groups of so many threads that run a kernel together, where they divide the terms of its sums.
    pub groups: u32,
    /// Blocks of threads that run side by side at least, so that each has no more registers than leave room for so many; 0: no matter.
    pub side_by_side: u32,
    /// There is an instruction for `a * b + c`; without it, products are rounded before they are added.
    pub fma: bool,
    /// There is an instruction that rounds to whole numbers.
    pub round: bool,
    /// Products of pairs of bf16.
    pub pair_dot: PairDot,
    /// Products of bytes.
    pub byte_dot: ByteDot,
    /// Products of pairs of 16-bit integers.
    pub word_dot: Option<WordDot>,
    /// There is an instruction that widens f16 to f32.
    pub half: bool,
    /// Products of tiles of bf16 by a warp.
    pub tile_dot: Option<TileDot>,
    /// Products of tiles of bytes by a warp.
    pub byte_tile_dot: Option<ByteTileDot>,
    /// Products of tiles of bf16 by four warps together.
    pub team_dot: Option<TeamDot>,
    /// Kernels begin before the launches before theirs have ended, and wait for those themselves (`ahead.rs`).
    pub overlaps: bool,
    /// Registers of a thread that hold tiles.
    pub tile_registers: Option<TileRegisters>,
}

/// Eight registers of 16 rows of 64 bytes: names of LLVM's intrinsics, in which registers are numbers of 8 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TileRegisters {
    /// `(sizes)` from memory; registers are empty then.
    pub configure: &'static str,
    /// `()`: nothing is in use any more.
    pub release: &'static str,
    /// `(register, memory, bytes from row to row)`.
    pub load: &'static str,
    /// The same the other way.
    pub store: &'static str,
    /// `(register)`: all of it is 0.
    pub zero: &'static str,
    /// `(sums, rows, columns)`: adds the products of 16 rows by 16 columns over 32 inputs of bf16, whose pairs lie side by side for each column, to sums of f32.
    pub halves: Option<&'static str>,
    /// The same of four bytes in place of each pair, of rows with a sign and of columns without, to sums of 32 bits.
    pub bytes: Option<&'static str>,
}

/// Products of 16 rows by 8 columns over 16 inputs of bf16, summed in f32: the name of LLVM's intrinsic on what each lane holds of rows, columns and
/// sums.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TileDot(pub &'static str);

/// Products of 16 rows of bytes with a sign by 8 columns of bytes without over 32 inputs, summed in 32 bits: the name of LLVM's intrinsic, as for
/// [`TileDot`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ByteTileDot(pub &'static str);

/// Products of 64 rows by some columns over 16 inputs of bf16, summed in f32 by four warps that read both from shared memory: what stands before and behind the
/// number of columns in the instruction's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TeamDot(pub &'static str, pub &'static str);

/// How `sum + a.low * b.low + a.high * b.high` is computed for each f32 lane of `sum` and the pairs of bf16 in the same 32 bits of `a` and `b`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PairDot {
    /// As f32: each half is widened, multiplied and added.
    Widened,
    /// By an instruction: the name of LLVM's intrinsic `(sum, a, b) -> sum` on vectors of `Machine::lanes`.
    Intrinsic(&'static str),
}

/// How the products of four bytes without a sign by four with one are added to each 32-bit lane of a sum.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ByteDot {
    /// As f32, byte after byte: a group's sum is below 2^24 and exact.
    Widened,
    /// By an instruction: the name of LLVM's intrinsic `(sum, unsigned, signed) -> sum` on vectors of `Machine::lanes` words.
    Intrinsic(&'static str),
    /// As 16-bit numbers: names of LLVM's intrinsics.
    Pairs {
        /// `(a, b) -> products of pairs` of 16-bit numbers in 32 bits, two of which are added to the sum.
        halves: &'static str,
        /// `(unsigned, signed) -> products of pairs` of bytes in 16 bits, which are exact where the unsigned ones have four bits.
        bytes: Option<&'static str>,
    },
}

/// How the products of two 16-bit integers with a sign by two are added to each 32-bit lane of a sum: names of LLVM's intrinsics on vectors of
/// `Machine::lanes` words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WordDot {
    /// `(sum, a, b) -> sum`.
    Whole(&'static str),
    /// `(a, b) -> sums of two products`, which are added.
    Pairs(&'static str),
}
