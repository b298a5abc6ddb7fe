//! Instructions of tensor cores: all lanes of the warp must be there; the warp's lanes meet.

use super::block::Env;
use super::fault::{FaultKind, LaneFault};
use super::warp::{Step, Warp};
use crate::decode::program::Pc;
use crate::decode::tensor::Tensor;

impl Warp {
    pub(crate) fn tensor(&mut self, env: &mut Env<'_>, tensor: &Tensor, pc: Pc, mask: u32) -> Result<Step, LaneFault> {
        if self.alive != u32::MAX {
            let what = format!("only the lanes {:#x} of the warp are there, and it takes all 32", self.alive);
            return Err(FaultKind::Participation(what).into());
        }
        if self.together(pc, mask, u32::MAX).is_none() {
            return Ok(Step::Gather(u32::MAX));
        }
        env.clocks.meet(self.index);
        match tensor {
            Tensor::Mma(mma) => self.mma(mma),
            Tensor::LoadMatrix(matrices) => self.load_matrices(env, matrices, pc)?,
            Tensor::StoreMatrix(matrices) => self.store_matrices(env, matrices, pc)?,
            Tensor::MoveMatrix { d, a } => self.move_matrix(*d, *a),
            Tensor::Wgmma(wgmma) => self.wgmma(env, wgmma)?,
            Tensor::WgmmaFence => self.held.fence(),
            Tensor::WgmmaCommit => self.held.commit(),
            Tensor::WgmmaWait(pending) => return Ok(self.wait_for_products(env, *pending, pc)),
        }
        Ok(Step::Next)
    }
}
