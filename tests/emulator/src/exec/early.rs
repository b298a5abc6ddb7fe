//! What a launch does before those before it have ended (PTX ISA, section 9.7.13.13, `griddepcontrol`): which accesses need no wait, and what was asked for.

use std::ops::Range;

use super::block::Env;
use super::clocks::{Clocks, Time};
use super::fault::FaultKind;
use super::marks::Toucher;
use super::speech::Speech;
use super::warp::Warp;

/// Bytes that a block asked for, and which of them it has read.
pub(crate) struct Prefetched {
    range: Range<u64>,
    read: Vec<bool>,
}

impl Prefetched {
    pub(crate) fn new(address: u64, bytes: usize) -> Self {
        Self { range: address..address + bytes as u64, read: vec![false; bytes] }
    }

    fn reads(&mut self, address: u64, bytes: usize) {
        let (first, last) = (address.max(self.range.start), (address + bytes as u64).min(self.range.end));
        if first < last {
            let at = |address: u64| (address - self.range.start) as usize;
            self.read[at(first)..at(last)].fill(true);
        }
    }

    /// How many were asked for in vain.
    pub(crate) fn unread(&self) -> u64 {
        self.read.iter().filter(|read| !**read).count() as u64
    }
}

impl Warp {
    /// A lane reads global memory.
    pub(crate) fn reads(&self, env: &mut Env<'_>, lane: usize, address: u64, bytes: usize) -> Result<(), FaultKind> {
        for asked in &mut env.prefetched {
            asked.reads(address, bytes);
        }
        if self.waited & 1 << lane == 0 {
            env.memory.check_early(address, bytes)?;
        }
        let Some((by, knows)) = self.marks(env.marked, (&env.clocks, &env.speech), lane) else { return Ok(()) };
        env.memory.note_read((address, bytes), by, &knows)
    }

    /// A lane as one that touches global memory, and what it knows of others; `None` where that is not watched.
    pub(crate) fn marks<'c>(
        &self,
        marked: Option<(u32, u32)>,
        (clocks, speech): (&'c Clocks, &'c Speech),
        lane: usize,
    ) -> Option<(Toucher, impl Fn(u32, usize, Time) -> bool + use<'c>)> {
        let (launch, block) = marked?;
        let (warp, by) = (self.index, Toucher { launch, block, thread: self.thread(lane), time: clocks.now() });
        let knows = move |of: u32, thread: usize, time: Time| match of == block {
            true => clocks.knows(warp, lane, thread, time),
            false => speech.knows(clocks, (warp, lane), (of, thread, time)),
        };
        Some((by, knows))
    }

    /// A lane writes global memory.
    pub(crate) fn writes(&self, env: &mut Env<'_>, lane: usize, address: u64, bytes: &[u8]) -> Result<(), FaultKind> {
        if self.waited & 1 << lane != 0 {
            let Some((by, knows)) = self.marks(env.marked, (&env.clocks, &env.speech), lane) else { return Ok(()) };
            return env.memory.note_write((address, bytes), by, &knows);
        }
        Err(FaultKind::Early(format!("{address:#x} is written, which launches that may not have ended use")))
    }
}
