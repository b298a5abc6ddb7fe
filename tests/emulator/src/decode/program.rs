//! A decoded kernel: instructions with register indices, calls inlined, addresses of shared and local variables fixed.

use super::lanes::{LaneFn, Reg};
use super::memory::{Access, Atomic};
use crate::decode::asynchronous::Async;
use crate::decode::collective::Collective;
use crate::decode::registers::SetRegisters;
use crate::decode::tensor::Tensor;
use crate::ptx::ast::Variable;

/// An index into `Program::code`.
pub(crate) type Pc = u32;

/// A kernel, ready to run.
pub(crate) struct Program {
    pub(crate) code: Vec<Inst>,
    /// What each row is filled with before the first instruction; registers start as zero.
    pub(crate) constants: Vec<(Reg, Constant)>,
    pub(crate) rows: usize,
    /// Shared bytes of variables of a fixed size, and where dynamic ones start.
    pub(crate) shared_bytes: u32,
    pub(crate) dynamic_shared: u32,
    /// Local bytes of a thread.
    pub(crate) local_bytes: u32,
    pub(crate) params: Vec<Variable>,
    pub(crate) param_offsets: Vec<u32>,
    pub(crate) param_bytes: u32,
    /// Its threads speak to each other by loads and stores of global memory that say how strong they are.
    pub(crate) speaks: bool,
    /// They change global memory by atomics: what they do may depend on the order of blocks.
    pub(crate) changes: bool,
}

/// What a row holds from the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Constant {
    Bits(u64),
    Special(Special),
    /// The address of a module's variable, plus an offset.
    Global(usize, i64),
    /// An offset from where dynamic shared memory starts.
    DynamicShared(i64),
}

/// Special registers that do not change while a thread runs (PTX ISA, section 10).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Special {
    Tid(usize),
    Ntid(usize),
    Ctaid(usize),
    Nctaid(usize),
    LaneId,
    WarpId,
    NWarpId,
    SmId,
    NSmId,
    GridId,
    LanemaskEq,
    LanemaskLe,
    LanemaskLt,
    LanemaskGe,
    LanemaskGt,
    DynamicSharedBytes,
    TotalSharedBytes,
}

/// An instruction.
pub(crate) struct Inst {
    pub(crate) guard: Option<Guard>,
    pub(crate) op: Op,
    /// The line in the text, counted from 1.
    pub(crate) line: u32,
    /// All registers that it names, results first; what `wgmma` has in flight must not be among them.
    pub(crate) registers: Box<[Reg]>,
    /// Of `registers`, how many are results.
    pub(crate) results: usize,
    /// Of them, those that `wgmma` uses somewhere, unless it is one itself.
    pub(crate) dirties: Box<[Reg]>,
}

/// Only lanes whose predicate is set (or, negated, is not) execute.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Guard {
    pub(crate) predicate: Reg,
    pub(crate) negated: bool,
}

/// What an instruction does.
pub(crate) enum Op {
    Lanes(LaneFn),
    Load(Access),
    Store(Access),
    Atomic(Atomic),
    Branch(Pc),
    BranchIndexed(Reg, Box<[Pc]>),
    Exit,
    Trap,
    Nop,
    /// Counts instructions: `%clock`, `%globaltimer`.
    Clock(Reg, u32),
    Collective(Collective),
    Tensor(Box<Tensor>),
    Async(Async),
    SetRegisters(SetRegisters),
}
