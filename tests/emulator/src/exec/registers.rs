//! Registers that warps give back for others to take (PTX ISA, section 9.7.19, `setmaxnreg`).
//!
//! A block has what its warps were launched with, and no more: who asks for more waits until others have given as many back. All four warps of a team execute the
//! same instructions of this kind, and meet before the next. What the section calls undefined is refused, and so is a kernel that does not say with how many registers
//! it is launched, of which the instruction may do nothing. Registers of warps that ended come back to nobody: nothing says that they do.

use super::block::Env;
use super::clocks::{GROUP, Time};
use super::fault::{FaultKind, LaneFault};
use super::warp::{Step, Wait, Warp};
use crate::decode::lanes::LANES;
use crate::decode::program::Pc;
use crate::decode::registers::SetRegisters;

/// The registers of a block.
pub(crate) struct Registers {
    /// Of each thread of a warp; `None` where nobody knows.
    of_warp: Option<Vec<u32>>,
    /// Given back: of the threads of one warp.
    free: u32,
    /// By teams of four warps: the instructions that some of them have executed, and when each did.
    done: Vec<Vec<(Pc, [Option<Time>; GROUP])>>,
    /// Some were given back: those that wait look again.
    pub(crate) changed: bool,
}

impl Registers {
    pub(crate) fn new(launched: Option<u32>, warps: usize) -> Self {
        let done = (0..warps.div_ceil(GROUP)).map(|_| Vec::new()).collect();
        Self { of_warp: launched.map(|n| vec![n; warps]), free: 0, done, changed: false }
    }

    /// What is free, for messages: of the threads of one warp.
    pub(crate) fn free(&self) -> u32 {
        self.free
    }

    /// Of an instruction that not all warps of a team have executed.
    pub(crate) fn parted(&self) -> Option<Pc> {
        let parted = |(_, times): &&(Pc, [Option<Time>; GROUP])| times.iter().any(Option::is_none);
        self.done.iter().flatten().find(parted).map(|(pc, _)| *pc)
    }
}

fn wrong(what: String) -> LaneFault {
    FaultKind::Operand(what).into()
}

impl Warp {
    pub(crate) fn set_registers(
        &mut self,
        env: &mut Env<'_>,
        set: SetRegisters,
        pc: Pc,
        mask: u32,
    ) -> Result<Step, LaneFault> {
        let SetRegisters { more, count } = set;
        if self.alive != u32::MAX || (self.index / GROUP + 1) * GROUP * LANES > env.clocks.threads() {
            return Err(FaultKind::Participation(
                "setmaxnreg takes four whole warps, from one whose number is a multiple of four".to_owned(),
            )
            .into());
        }
        if self.together(pc, mask, u32::MAX).is_none() {
            return Ok(Step::Gather(u32::MAX));
        }
        env.clocks.meet(self.index);
        let number = self.follows(env, pc)?;
        let registers = &mut env.registers;
        let Some(of_warp) = &mut registers.of_warp else {
            let what = "the kernel does not say with how many registers it is launched (.maxnreg, or .reqntid or .maxntid), without which this may do nothing";
            return Err(wrong(what.to_owned()));
        };
        let had = of_warp[self.index];
        match (more, count.checked_sub(had)) {
            (true, Some(missing)) if missing > registers.free => {
                // Also those lanes that came earlier.
                self.blocked = u32::MAX;
                self.pcs = [pc; LANES];
                self.waits = [Wait::Registers(missing); LANES];
                return Ok(Step::Wait(Wait::Registers(missing)));
            }
            (true, Some(missing)) => registers.free -= missing,
            (false, None | Some(0)) => registers.free += had - count,
            (true, None) => {
                return Err(wrong(format!("{count} registers are asked for as more, and the warp has {had}")));
            }
            (false, Some(_)) => return Err(wrong(format!("{count} registers are to be kept, and the warp has {had}"))),
        }
        of_warp[self.index] = count;
        registers.changed |= !more;
        let done = &mut registers.done[self.index / GROUP];
        if done.len() == number {
            done.push((pc, [None; GROUP]));
        }
        done[number].1[self.index % GROUP] = Some(env.clocks.now());
        env.clocks.tick();
        Ok(Step::Next)
    }

    /// The number of an instruction among those of the team; the same as that of the others, who have executed the one before, which this warp knows.
    fn follows(&self, env: &Env<'_>, pc: Pc) -> Result<usize, LaneFault> {
        let (first, own) = (self.index / GROUP * GROUP, self.index % GROUP);
        let done = &env.registers.done[self.index / GROUP];
        let number = done.iter().take_while(|(_, times)| times[own].is_some()).count();
        if done.get(number).is_some_and(|(of_others, _)| *of_others != pc) {
            let what = "the warps of a team execute different setmaxnreg".to_owned();
            return Err(FaultKind::Participation(what).into());
        }
        let Some((_, before)) = number.checked_sub(1).map(|before| &done[before]) else { return Ok(number) };
        let knows = |other: usize| {
            other == own
                || before[other].is_some_and(|time| env.clocks.knows(self.index, 0, (first + other) * LANES, time))
        };
        if !(0..GROUP).all(knows) {
            let what = "the warps of a team have not met since the last setmaxnreg".to_owned();
            return Err(FaultKind::Participation(what).into());
        }
        Ok(number)
    }
}
