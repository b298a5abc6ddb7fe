//! A warp: 32 lanes with a program counter each (PTX ISA, section 3.1). The lanes at the lowest counter go first and together, so that
//! those that diverged meet again where their paths do; one instruction is dispatched once for all of them.

use super::block::Env;
use super::fault::{FaultKind, LaneFault};
use crate::decode::lanes::{LANES, Row, lanes};
use crate::decode::program::{Inst, Op, Pc, Program};

/// What a lane waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wait {
    Nothing,
    /// Other lanes of the warp, at the same instruction.
    Lanes(u32),
    /// Other lanes at any `bar.warp.sync` of this mask.
    WarpBarrier(u32),
    /// A barrier of the block.
    Barrier(u32),
    /// A phase of an mbarrier.
    Mbarrier {
        address: u32,
        parity: u32,
    },
    /// All but so many groups of bulk stores.
    Stores(u32),
    /// So many more registers of each thread.
    Registers(u32),
}

/// What an instruction leaves its lanes to do.
pub(crate) enum Step {
    Next,
    /// They stay at the instruction, for this.
    Wait(Wait),
    /// They stay until these lanes are with them.
    Gather(u32),
    /// Some of them stay, for this; the others go on.
    Part(u32, Wait),
}

/// Instructions that a warp may execute before others take their turn.
pub(crate) const SLICE: u64 = 20_000;

/// A warp's state.
pub(crate) struct Warp {
    pub(crate) index: usize,
    pub(crate) rows: Vec<Row>,
    /// The lanes that have not ended; the last warp of a block may lack some from the start.
    pub(crate) alive: u32,
    /// The lanes behind which all launches before this one have ended.
    pub(crate) waited: u32,
    pub(crate) blocked: u32,
    pub(crate) pcs: [Pc; LANES],
    pub(crate) waits: [Wait; LANES],
    /// Local memory of each lane.
    pub(crate) local: Vec<Vec<u8>>,
    /// What asynchronous instructions hold and owe.
    pub(crate) held: super::wgmma::Held,
    /// Lanes that waited for an mbarrier, and are told once that it took too long.
    pub(crate) given_up: u32,
    /// Takes the highest counter first, now and then, so that no lane starves behind another's loop.
    highest_first: bool,
}

impl Warp {
    pub(crate) fn new(index: usize, launched: u32, rows: Vec<Row>, program: &Program, overlaps: bool) -> Self {
        Self {
            index,
            rows,
            alive: launched,
            waited: if overlaps { 0 } else { u32::MAX },
            blocked: 0,
            pcs: [0; LANES],
            waits: [Wait::Nothing; LANES],
            local: vec![vec![0; program.local_bytes as usize]; LANES],
            held: super::wgmma::Held::default(),
            given_up: 0,
            highest_first: false,
        }
    }

    pub(crate) fn runnable(&self) -> u32 {
        self.alive & !self.blocked
    }

    /// Lanes go on after the instruction that they wait at.
    pub(crate) fn pass(&mut self, mask: u32) {
        for lane in lanes(mask & self.blocked) {
            self.pcs[lane] += 1;
            self.waits[lane] = Wait::Nothing;
        }
        self.blocked &= !mask;
    }

    /// Lanes that wait for this kind try again.
    pub(crate) fn retry(&mut self, which: impl Fn(Wait) -> bool) {
        for lane in lanes(self.blocked & self.alive) {
            if which(self.waits[lane]) {
                self.blocked &= !(1 << lane);
                self.waits[lane] = Wait::Nothing;
            }
        }
    }

    /// The lanes that run next, their counter, and the least counter of the others.
    fn pick(&self) -> Option<(u32, Pc, Pc)> {
        let runnable = self.runnable();
        let counters = || lanes(runnable).map(|lane| self.pcs[lane]);
        let pc = if self.highest_first { counters().max()? } else { counters().min()? };
        let active = lanes(runnable).filter(|&l| self.pcs[l] == pc).fold(0, |mask, l| mask | 1 << l);
        let other = if self.highest_first { Pc::MAX } else { counters().filter(|&c| c != pc).min().unwrap_or(Pc::MAX) };
        Some((active, pc, other))
    }

    /// When nobody can run, those that wait for lanes that ended may go on.
    fn revive(&mut self) -> bool {
        for lane in lanes(self.blocked & self.alive) {
            let group = |wait: Wait| {
                lanes(self.blocked & self.alive)
                    .filter(|&l| {
                        self.waits[l] == wait && (self.pcs[l] == self.pcs[lane] || matches!(wait, Wait::WarpBarrier(_)))
                    })
                    .fold(0u32, |mask, l| mask | 1 << l)
            };
            match self.waits[lane] {
                wait @ Wait::Lanes(need) => {
                    let here = group(wait);
                    if need & self.alive & !here == 0 {
                        self.blocked &= !here;
                        return true;
                    }
                }
                wait @ Wait::WarpBarrier(need) => {
                    let here = group(wait);
                    if need & self.alive & !here == 0 {
                        self.pass(here);
                        return true;
                    }
                }
                _ => {}
            }
        }
        false
    }

    /// Runs until nobody can, or the time slice is over.
    pub(crate) fn run(&mut self, env: &mut Env<'_>) -> Result<(), (Pc, LaneFault)> {
        let end = env.executed + SLICE;
        loop {
            let Some((active, pc, other)) = self.pick() else {
                if self.revive() {
                    continue;
                }
                return Ok(());
            };
            self.group(env, active, pc, other, end)?;
            if env.executed >= end || env.polled {
                self.highest_first = !self.highest_first && self.runnable().count_ones() > 1;
                return Ok(());
            }
        }
    }

    /// Runs the lanes of one counter until they part, stop, or meet others.
    fn group(
        &mut self,
        env: &mut Env<'_>,
        mut active: u32,
        mut pc: Pc,
        other: Pc,
        end: u64,
    ) -> Result<(), (Pc, LaneFault)> {
        let program = env.program;
        loop {
            let inst = &program.code[pc as usize];
            env.executed += 1;
            let mask = active & self.guard(inst);
            let mut next = pc + 1;
            if mask != 0 {
                env.thread_instructions += u64::from(mask.count_ones());
                if self.held.any() {
                    self.held.check(inst).map_err(|kind| (pc, kind.into()))?;
                }
                if !inst.dirties.is_empty() {
                    self.held.accessed(&inst.dirties);
                }
                match &inst.op {
                    Op::Lanes(run) => run(&mut self.rows, &inst.registers, mask),
                    Op::Branch(target) if mask == active => next = *target,
                    Op::Branch(target) => {
                        self.set(mask, *target);
                        self.set(active & !mask, next);
                        return Ok(());
                    }
                    Op::BranchIndexed(index, targets) => {
                        self.set(active & !mask, next);
                        for lane in lanes(mask) {
                            let index = self.rows[*index as usize][lane] as usize;
                            let Some(&target) = targets.get(index) else {
                                let kind = FaultKind::Operand(format!("there is no target {index}"));
                                return Err((pc, LaneFault { lane: Some(lane), kind }));
                            };
                            self.pcs[lane] = target;
                        }
                        return Ok(());
                    }
                    Op::Exit => {
                        self.alive &= !mask;
                        active &= !mask;
                        self.exit(env, mask).map_err(|kind| (pc, kind.into()))?;
                        if active == 0 {
                            return Ok(());
                        }
                    }
                    Op::Trap => {
                        let lane = mask.trailing_zeros() as usize;
                        return Err((pc, LaneFault { lane: Some(lane), kind: FaultKind::Trap }));
                    }
                    Op::Nop => {}
                    Op::Clock(to, shift) => {
                        for lane in lanes(mask) {
                            let width = env.executed >> shift;
                            self.rows[*to as usize][lane] = width;
                        }
                    }
                    _ => match self.special(env, inst, pc, mask).map_err(|fault| (pc, fault))? {
                        Step::Next => {}
                        step => {
                            self.set(active, next);
                            self.stay(mask, pc, step);
                            return Ok(());
                        }
                    },
                }
            }
            if env.executed >= end || env.polled || next >= other {
                self.set(active, next);
                // Collectives may have let others join.
                return Ok(());
            }
            pc = next;
        }
    }

    fn stay(&mut self, mask: u32, pc: Pc, step: Step) {
        let (mask, wait) = match step {
            Step::Wait(wait) => (mask, wait),
            Step::Gather(need) => (mask, Wait::Lanes(need)),
            Step::Part(part, wait) => (part, wait),
            Step::Next => return,
        };
        self.set(mask, pc);
        self.blocked |= mask;
        for lane in lanes(mask) {
            self.waits[lane] = wait;
        }
    }

    fn set(&mut self, mask: u32, pc: Pc) {
        for lane in lanes(mask) {
            self.pcs[lane] = pc;
        }
    }

    /// The lanes that an instruction's predicate lets through.
    fn guard(&self, inst: &Inst) -> u32 {
        let Some(guard) = inst.guard else { return u32::MAX };
        let row = &self.rows[guard.predicate as usize];
        let set = row.iter().enumerate().fold(0u32, |mask, (lane, &value)| mask | ((value & 1) as u32) << lane);
        if guard.negated { !set } else { set }
    }

    /// Instructions of several lanes, and of memory.
    fn special(&mut self, env: &mut Env<'_>, inst: &Inst, pc: Pc, mask: u32) -> Result<Step, LaneFault> {
        match &inst.op {
            Op::Load(access) => self.load(env, access, pc, mask)?,
            Op::Store(access) => self.store(env, access, pc, mask)?,
            Op::Atomic(atomic) => self.atomic(env, atomic, mask)?,
            Op::Collective(collective) => return self.collective(env, collective, pc, mask),
            Op::Tensor(tensor) => return self.tensor(env, tensor, pc, mask),
            Op::Async(operation) => return self.asynchronous(env, operation, pc, mask),
            Op::SetRegisters(set) => return self.set_registers(env, *set, pc, mask),
            _ => {}
        }
        Ok(Step::Next)
    }

    /// Lanes that wait at this instruction for the same, which may now go on.
    pub(crate) fn waiting_at(&self, pc: Pc, wait: Wait) -> u32 {
        lanes(self.blocked & self.alive)
            .filter(|&l| self.pcs[l] == pc && self.waits[l] == wait)
            .fold(0, |mask, l| mask | 1 << l)
    }

    /// Whether all lanes that an instruction needs are at it: those given, and those that wait, which then are woken and go on by
    /// themselves to the next instruction. `None` if some are not there yet.
    pub(crate) fn together(&mut self, pc: Pc, mask: u32, need: u32) -> Option<u32> {
        let waiting = self.waiting_at(pc, Wait::Lanes(need));
        let here = mask | waiting;
        if need & self.alive & !here != 0 {
            return None;
        }
        self.pass(waiting);
        Some(here)
    }

    /// The number of a lane's thread in the block.
    pub(crate) fn thread(&self, lane: usize) -> usize {
        self.index * LANES + lane
    }
}
