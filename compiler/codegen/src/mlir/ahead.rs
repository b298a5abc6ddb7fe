//! What a kernel does before the launches before it have ended, on machines where launches overlap ([`Machine::overlaps`](super::machine::Machine)).
//!
//! A launch may begin when every block of the one before it has let it, which each does with its first instruction; by then that one may itself wait for
//! the one before it, and so on, back to the first launch of a step, which begins behind all that came before. A wait ends when the launch before has ended
//! and what it wrote can be read: since every thread of every launch waits before it ends, all launches before that one have ended too. So
//!
//! - before the wait a kernel writes nothing, and reads nothing that a launch of the step writes. Its arguments are there; weights are, and the arrays of the
//!   step. Shared memory and registers are its own;
//! - behind it everything is as if launches followed one another: nothing else in a kernel knows of overlapping.
//!
//! Both stand at the head of every kernel, in [`Writer::kernel_ahead`], and nowhere else.

use super::machine::Machine;
use super::writer::{Elem, KernelParams, Ty, Val, Writer};

/// Bytes that the caches of all blocks bring at a time.
pub(super) const LINE: u64 = 128;

impl Writer {
    /// Starts the function `symbol` with the ABI of `machine`.
    pub fn kernel(symbol: &str, machine: &Machine) -> (Self, KernelParams) {
        Self::kernel_ahead(symbol, machine, |_, _, _| {})
    }

    /// The same; where launches overlap, `ahead` writes what is done before those before this one have ended, of the arguments and a block's first tile.
    pub fn kernel_ahead(
        symbol: &str,
        machine: &Machine,
        ahead: impl FnOnce(&mut Self, Val, Val),
    ) -> (Self, KernelParams) {
        let mut w = Writer::new(symbol, machine);
        let params = if w.is_block() { w.enter_block(ahead) } else { w.enter_function() };
        (w, params)
    }

    /// Lets the launch behind this one begin, and waits for those before it; `ahead` is written between.
    pub(super) fn overlap(&mut self, ahead: impl FnOnce(&mut Self)) {
        self.assembly("griddepcontrol.launch_dependents;", &[]);
        ahead(self);
        self.assembly("griddepcontrol.wait;", &[]);
    }

    /// Where `condition` holds, has so many bytes from `at` on brought to the caches that all blocks share, once for the block. Both are multiples of 16.
    pub fn ask_ahead(&mut self, condition: Val, at: Val, bytes: u64) {
        let thread = self.thread();
        let nobody = self.int(-1, thread.ty);
        let thread = self.select(condition, thread, nobody);
        let global = self.fresh(Ty::scalar(Elem::I64));
        self.line(&format!("{global}_1 = llvm.addrspacecast {at} : !llvm.ptr to !llvm.ptr<1>"));
        self.line(&format!("{global} = llvm.ptrtoint {global}_1 : !llvm.ptr<1> to i64"));
        // No way of its own for the first thread: what is kept for both ways would take registers.
        let text =
            format!("{{ .reg .pred p; setp.eq.u32 p, $1, 0; @p cp.async.bulk.prefetch.L2.global [$0], {bytes}; }}");
        self.assembly(&text, &[global, thread]);
    }
}
