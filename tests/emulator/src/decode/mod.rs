//! The syntax tree to kernels that run: names resolved, calls inlined, every instruction and modifier understood or refused.

pub(crate) mod asynchronous;
pub(crate) mod bits;
pub(crate) mod collective;
pub(crate) mod compare;
pub(crate) mod context;
pub(crate) mod convert;
pub(crate) mod flatten;
pub(crate) mod float;
pub(crate) mod half;
pub(crate) mod instruction;
pub(crate) mod integer;
pub(crate) mod lanes;
pub(crate) mod memory;
pub(crate) mod modifiers;
pub(crate) mod moves;
pub(crate) mod program;
pub(crate) mod registers;
pub(crate) mod tensor;
pub(crate) mod types;

use asynchronous::Async;
use lanes::{LaneFn, Reg};
use program::Op;

/// An instruction with the registers that it writes and reads.
pub(crate) struct Decoded {
    pub(crate) op: Op,
    pub(crate) results: Vec<Reg>,
    pub(crate) sources: Vec<Reg>,
}

impl Decoded {
    pub(crate) fn lanes(run: LaneFn, results: Vec<Reg>, sources: Vec<Reg>) -> Self {
        Self { op: Op::Lanes(run), results, sources }
    }

    pub(crate) fn fence() -> Self {
        Self { op: Op::Async(Async::Fence), results: Vec::new(), sources: Vec::new() }
    }

    pub(crate) fn nothing() -> Self {
        Self { op: Op::Nop, results: Vec::new(), sources: Vec::new() }
    }
}
