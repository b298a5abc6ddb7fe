//! Warp-group products.
use super::block::Env;
use super::fault::{FaultKind, LaneFault};
use super::warp::{Step, Warp};
use crate::decode::asynchronous::Async;
use crate::decode::program::{Inst, Pc};
use crate::decode::tensor::Tensor;

#[derive(Default)]
pub(crate) struct Held {}
impl Held {
    pub(crate) fn any(&self) -> bool {
        false
    }
    pub(crate) fn check(&self, _: &Inst) -> Result<(), FaultKind> {
        Ok(())
    }
}
impl Warp {
    pub(crate) fn tensor(&mut self, _: &mut Env<'_>, t: &Tensor, _: &Inst, _: Pc, _: u32) -> Result<Step, LaneFault> {
        match *t {}
    }
    pub(crate) fn asynchronous(&mut self, _: &mut Env<'_>, t: &Async, _: Pc, _: u32) -> Result<Step, LaneFault> {
        match *t {}
    }
}
