//! A block: its warps take turns until all end, or nobody can go on.

use super::barriers::{BARRIERS, Barrier};
use super::clocks::{Clocks, GROUP};
use super::early::Prefetched;
use super::fault::{Fault, FaultKind, LaneFault};
use super::mbarrier::Mbarriers;
use super::memory::Memory;
use super::registers::Registers;
use super::shared::Shared;
use super::speech::Speech;
use super::stats::{LineStats, Stats};
use super::transfers::{Transfer, Transfers};
use super::warp::{Wait, Warp};
use crate::decode::lanes::{LANES, Reg, Row, lanes};
use crate::decode::program::{Constant, Pc, Program, Special};

/// Lanes of a warp that a barrier let go, and what it has them write.
pub(crate) type Wake = (usize, u32, Option<(Reg, u64)>);

/// What all warps of a block share.
pub(crate) struct Env<'l> {
    pub(crate) program: &'l Program,
    pub(crate) params: &'l [u8],
    /// Global memory, while the block runs; between its turns another block has it.
    pub(crate) memory: Memory,
    pub(crate) shared: Shared,
    pub(crate) clocks: Clocks,
    pub(crate) barriers: Vec<Barrier>,
    pub(crate) mbarriers: Mbarriers,
    pub(crate) transfers: Transfers,
    pub(crate) speech: Speech,
    pub(crate) registers: Registers,
    /// Lanes alive, by warp.
    pub(crate) alive: Vec<u32>,
    pub(crate) wakes: Vec<Wake>,
    /// A poll of an mbarrier was in vain: others take their turn.
    pub(crate) polled: bool,
    pub(crate) executed: u64,
    pub(crate) thread_instructions: u64,
    pub(crate) stats: Stats,
    pub(crate) prefetched: Vec<Prefetched>,
    /// The numbers of the launch and of the block, where it is watched who touches global memory.
    pub(crate) marked: Option<(u32, u32)>,
    /// By instruction.
    pub(crate) lines: Vec<LineStats>,
}

/// A launch, as its blocks see it.
pub(crate) struct Grid<'l> {
    pub(crate) program: &'l Program,
    pub(crate) kernel: &'l str,
    pub(crate) grid: [u32; 3],
    pub(crate) block: [u32; 3],
    pub(crate) dynamic_shared: u32,
    pub(crate) params: &'l [u8],
    pub(crate) variables: &'l [u64],
    pub(crate) source: &'l [String],
    pub(crate) seed: u64,
    pub(crate) strict_stores: bool,
    pub(crate) overlaps: bool,
    /// Of a thread when it begins, where the kernel says so.
    pub(crate) registers: Option<u32>,
}

/// How a turn of a block ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    Finished,
    Unfinished,
}

/// A block that runs.
pub(crate) struct Block<'l> {
    grid: &'l Grid<'l>,
    index: [u32; 3],
    warps: Vec<Warp>,
    pub(crate) env: Env<'l>,
}

impl<'l> Block<'l> {
    pub(crate) fn new(grid: &'l Grid<'l>, index: [u32; 3], marked: Option<(u32, u32)>) -> Self {
        let program = grid.program;
        let threads = grid.block.iter().product::<u32>() as usize;
        let warps = threads.div_ceil(LANES);
        let start = program.dynamic_shared - super::shared::BASE;
        let shared = (start.max(program.shared_bytes) + grid.dynamic_shared) as usize;
        let launched = |warp: usize| u32::MAX >> (LANES - (threads - warp * LANES).min(LANES));
        let env = Env {
            program,
            params: grid.params,
            memory: Memory::default(),
            shared: Shared::new(shared, warps, grid.strict_stores),
            clocks: Clocks::new(threads),
            barriers: (0..BARRIERS + warps.div_ceil(GROUP)).map(|_| Barrier::default()).collect(),
            mbarriers: Mbarriers::default(),
            transfers: Transfers::new(grid.seed ^ u64::from(index[0]) << 20 ^ u64::from(index[1]), threads),
            speech: Speech::default(),
            registers: Registers::new(grid.registers, warps),
            alive: (0..warps).map(launched).collect(),
            wakes: Vec::new(),
            polled: false,
            executed: 0,
            thread_instructions: 0,
            stats: Stats::default(),
            prefetched: Vec::new(),
            marked,
            lines: vec![LineStats::default(); program.code.len()],
        };
        let mut block = Self { grid, index, warps: Vec::new(), env };
        for warp in 0..warps {
            // Zeroed by the system when touched: many registers are not.
            let mut rows = vec![[0; LANES]; program.rows];
            for &(reg, constant) in &program.constants {
                rows[reg as usize] = block.constant(constant, warp);
            }
            block.warps.push(Warp::new(warp, launched(warp), rows, program, grid.overlaps));
        }
        block
    }

    fn constant(&self, constant: Constant, warp: usize) -> Row {
        let grid = self.grid;
        let special = match constant {
            Constant::Bits(bits) => return [bits; LANES],
            Constant::Global(which, offset) => return [grid.variables[which].wrapping_add_signed(offset); LANES],
            Constant::DynamicShared(offset) => {
                return [u64::from(grid.program.dynamic_shared).wrapping_add_signed(offset); LANES];
            }
            Constant::Special(special) => special,
        };
        let [x, y, _] = grid.block;
        std::array::from_fn(|lane| {
            let thread = (warp * LANES + lane) as u32;
            let bit = 1u32 << lane;
            u64::from(match special {
                Special::Tid(axis) => [thread % x, thread / x % y, thread / x / y][axis],
                Special::Ntid(axis) => grid.block[axis],
                Special::Ctaid(axis) => self.index[axis],
                Special::Nctaid(axis) => grid.grid[axis],
                Special::LaneId => lane as u32,
                Special::WarpId => warp as u32,
                Special::NWarpId => 64,
                Special::SmId => 0,
                Special::NSmId => 132,
                Special::GridId => 1,
                Special::LanemaskEq => bit,
                Special::LanemaskLt => bit - 1,
                Special::LanemaskLe => bit | (bit - 1),
                Special::LanemaskGt => !(bit | (bit - 1)),
                Special::LanemaskGe => !(bit - 1),
                Special::DynamicSharedBytes => grid.dynamic_shared,
                Special::TotalSharedBytes => grid.program.shared_bytes + grid.dynamic_shared,
            })
        })
    }

    /// Runs until all threads end, or each warp had its time slice.
    pub(crate) fn turn(&mut self, limit: u64) -> Result<Turn, Box<Fault>> {
        let started = self.env.executed;
        loop {
            let before = self.env.executed;
            let mut polled = false;
            for at in 0..self.warps.len() {
                if self.warps[at].alive == 0 {
                    continue;
                }
                let done = self.warps[at].run(&mut self.env);
                done.map_err(|(pc, fault)| self.fault(at, pc, fault))?;
                self.wake();
                polled |= std::mem::take(&mut self.env.polled);
            }
            if self.env.alive.iter().all(|&mask| mask == 0) {
                return self.end().map(|()| Turn::Finished);
            }
            if self.env.executed > limit {
                return Err(self.at_line(self.anywhere(), None, FaultKind::Steps(limit)));
            }
            if self.env.executed == before && !self.advance()? {
                return Err(self.deadlock());
            }
            if polled {
                self.advance()?;
            }
            if self.env.executed - started > 64 * super::warp::SLICE {
                // Whoever polls may wait for what is in flight.
                self.advance()?;
                return Ok(Turn::Unfinished);
            }
        }
    }

    /// Completes one asynchronous operation, if there is one.
    fn advance(&mut self) -> Result<bool, Box<Fault>> {
        let line = self.anywhere();
        let advanced = self.env.complete_one().map_err(|(at, kind)| self.at_line(at.unwrap_or(line), None, kind))?;
        self.wake();
        Ok(advanced)
    }

    fn wake(&mut self) {
        for (warp, mask, write) in std::mem::take(&mut self.env.wakes) {
            let warp = &mut self.warps[warp];
            if let Some((reg, value)) = write {
                super::collectives::put(&mut warp.rows, reg, mask, |_| value);
            }
            warp.pass(mask);
        }
        if std::mem::take(&mut self.env.registers.changed) {
            for warp in &mut self.warps {
                warp.retry(|wait| matches!(wait, Wait::Registers(_)));
            }
        }
        if std::mem::take(&mut self.env.mbarriers.changed) {
            for warp in &mut self.warps {
                warp.retry(|wait| matches!(wait, Wait::Mbarrier { .. } | Wait::Stores(_)));
            }
        }
    }

    fn end(&self) -> Result<(), Box<Fault>> {
        if let Some(pc) = self.env.registers.parted() {
            let what = "not all warps of a team executed this".to_owned();
            return Err(self.at_line(self.env.program.code[pc as usize].line, None, FaultKind::Participation(what)));
        }
        // Waited for by nobody, or not long enough.
        match self.env.transfers.in_flight.first() {
            None => Ok(()),
            Some(Transfer::Load { line, .. } | Transfer::Store { line, .. } | Transfer::Arrive { line, .. }) => {
                let what = "all threads ended before this copy was done".to_owned();
                Err(self.at_line(*line, None, FaultKind::InFlight(what)))
            }
        }
    }

    /// The line that the first thread alive is at.
    fn anywhere(&self) -> u32 {
        let warp = self.warps.iter().find(|w| w.alive != 0);
        warp.map_or(0, |w| self.env.program.code[w.pcs[w.alive.trailing_zeros() as usize] as usize].line)
    }

    fn fault(&self, warp: usize, pc: Pc, fault: LaneFault) -> Box<Fault> {
        let thread = fault.lane.map(|lane| {
            let (thread, [x, y, _]) = ((warp * LANES + lane) as u32, self.grid.block);
            [thread % x, thread / x % y, thread / x / y]
        });
        self.at_line(self.env.program.code[pc as usize].line, thread, fault.kind)
    }

    fn at_line(&self, line: u32, thread: Option<[u32; 3]>, kind: FaultKind) -> Box<Fault> {
        let text = self.grid.source.get(line.saturating_sub(1) as usize).cloned().unwrap_or_default();
        Box::new(Fault { kernel: self.grid.kernel.to_owned(), block: self.index, thread, line, text, kind })
    }

    /// Where everyone waits. A part of a warp at an instruction for all of it is the cause, if there is one.
    fn deadlock(&self) -> Box<Fault> {
        let mut waits: Vec<(String, Vec<usize>)> = Vec::new();
        let mut partial = None;
        for warp in &self.warps {
            for lane in lanes(warp.alive) {
                let line = self.env.program.code[warp.pcs[lane] as usize].line;
                let what = match warp.waits[lane] {
                    Wait::Lanes(need) => {
                        partial.get_or_insert((
                            warp.index,
                            lane,
                            line,
                            need & warp.alive & !warp.waiting_at(warp.pcs[lane], Wait::Lanes(need)),
                        ));
                        format!("line {line} for lanes of the warp")
                    }
                    Wait::WarpBarrier(_) => format!("line {line} for lanes of the warp"),
                    Wait::Barrier(id) if id as usize >= BARRIERS => {
                        format!("line {line} for the other warps of a wgmma")
                    }
                    Wait::Barrier(id) => {
                        let Barrier { arrived, expected, .. } = &self.env.barriers[id as usize];
                        let expected = expected.map_or("all".to_owned(), |n| n.to_string());
                        format!("line {line} at barrier {id} ({arrived} of {expected} arrived)")
                    }
                    Wait::Mbarrier { address, parity } => {
                        format!(
                            "line {line} for phase {parity} of the mbarrier at {address:#x} ({})",
                            self.env.mbarriers.describe(address)
                        )
                    }
                    Wait::Registers(missing) => {
                        let free = self.env.registers.free();
                        format!("line {line} for {missing} more registers of each thread (a warp's could have {free})")
                    }
                    Wait::Stores(pending) => format!("line {line} for all but {pending} groups of stores"),
                    Wait::Nothing => format!("line {line}"),
                };
                let thread = warp.thread(lane);
                match waits.iter_mut().find(|(text, _)| *text == what) {
                    Some((_, threads)) => threads.push(thread),
                    None => waits.push((what, vec![thread])),
                }
            }
        }
        let list = |threads: &[usize]| match threads {
            [one] => format!("thread {one}"),
            [first, .., last] => format!("{} threads from {first} to {last}", threads.len()),
            [] => String::new(),
        };
        let text: Vec<_> = waits.iter().map(|(what, threads)| format!("{} wait in {what}", list(threads))).collect();
        let text = text.join("; ");
        match partial {
            Some((warp, lane, line, missing)) => {
                let what = format!("lanes {missing:#x} of warp {warp} never reach what others wait at; {text}");
                let thread = (warp * LANES + lane) as u32;
                let [x, y, _] = self.grid.block;
                self.at_line(line, Some([thread % x, thread / x % y, thread / x / y]), FaultKind::Participation(what))
            }
            None => self.at_line(self.anywhere(), None, FaultKind::Deadlock(text)),
        }
    }
}
