//! Blocks of a launch that wait for nobody: the last of some that are done goes on with what all of them left in memory.
//!
//! What a block left is seen by the last one: all its threads meet, one of them fences and counts (PTX ISA, chapter 8: a release), and the one that counts
//! last has found the counts of the others and fences then (an acquire), before its block meets again.

use super::writer::{Cmp, Elem, Ty, Val, Writer};
use crate::error::CodegenError;

const I32: Ty = Ty::scalar(Elem::I32);

impl Writer {
    /// Counts a block in a counter that is 0 before the first of `n` blocks, and again behind the last; whether this one is the last. All threads of the block
    /// come here.
    ///
    /// # Errors
    /// None of its own.
    pub fn is_last_of(&mut self, counter: Val, n: Val) -> Result<Val, CodegenError> {
        let found = self.shared("found", 4);
        let thread = self.thread();
        let zero = self.int(0, I32);
        let is_first = self.cmp(Cmp::Eq, thread, zero);
        let one = self.i64(1);
        let last = self.sub(n, one);
        let last = self.resize(last, Elem::I32);
        self.sync();
        self.if_then(is_first, |w| {
            let before = w.count(counter, last);
            w.store_own(before, found);
            Ok(())
        })?;
        self.sync();
        let before = self.load(I32, found);
        Ok(self.cmp(Cmp::Eq, before, last))
    }

    /// Adds one to a counter, or makes it 0 where it is `last`, between two fences; what it was.
    fn count(&mut self, counter: Val, last: Val) -> Val {
        let global = self.fresh(Ty::scalar(Elem::I64));
        self.line(&format!("{global}_1 = llvm.addrspacecast {counter} : !llvm.ptr to !llvm.ptr<1>"));
        self.line(&format!("{global} = llvm.ptrtoint {global}_1 : !llvm.ptr<1> to i64"));
        let text = "fence.acq_rel.gpu; atom.relaxed.gpu.global.inc.u32 $0, [$1], $2; fence.acq_rel.gpu;";
        self.op(
            I32,
            &format!(
                "llvm.inline_asm has_side_effects asm_dialect = att \"{text}\", \"=r,l,r,~{{memory}}\" {global}, {last} : (i64, i32) -> i32"
            ),
        )
    }
}
