//! mbarriers (PTX ISA, section 9.7.13.15): phases, arrivals, bytes that asynchronous copies owe.

use std::collections::BTreeMap;

use super::block::Env;
use super::clocks::{ASYNC_AGENTS, Known, Time};
use super::fault::{FaultKind, LaneFault, by_lane};
use super::transfers::Transfers;
use super::warp::{Step, Wait, Warp};
use crate::decode::asynchronous::{Mbarrier, Place};
use crate::decode::lanes::lanes;

/// The most bytes that a phase may wait for.
const MOST_BYTES: i64 = (1 << 20) - 1;

/// An mbarrier.
struct Phase {
    /// Arrivals of a phase, and those that are missing in this one.
    count: u32,
    missing: u32,
    /// Bytes that are missing.
    bytes: i64,
    number: u64,
    /// What those that arrived knew; and what those that wait for the last complete phase learn.
    gathering: Known,
    complete: Known,
    /// The copies that complete on it, as an agent.
    agent: usize,
    made: (usize, Time),
}

/// The mbarriers of a block, by address.
#[derive(Default)]
pub(crate) struct Mbarriers {
    phases: BTreeMap<u32, Phase>,
    made: usize,
    /// Something asynchronous is complete: those that wait look again.
    pub(crate) changed: bool,
}

impl Mbarriers {
    /// What is missing, for messages.
    pub(crate) fn describe(&self, address: u32) -> String {
        match self.phases.get(&address) {
            Some(p) => {
                format!("in phase {}, {} of {} arrivals and {} bytes missing", p.number, p.missing, p.count, p.bytes)
            }
            None => "gone".to_owned(),
        }
    }
}

impl Phase {
    fn advance(&mut self) -> bool {
        if self.missing > 0 || self.bytes != 0 {
            return false;
        }
        self.number += 1;
        self.missing = self.count;
        self.complete.clone_from(&self.gathering);
        true
    }
}

impl Env<'_> {
    fn phase(&mut self, address: u64) -> Result<&mut Phase, FaultKind> {
        let nothing = || FaultKind::Operand(format!("there is no mbarrier at {address:#x}"));
        self.mbarriers.phases.get_mut(&(address as u32)).ok_or_else(nothing)
    }

    /// Checks that copies see an mbarrier, which is made through the threads' view of memory: whoever made it has fenced (`fence.mbarrier_init`, or
    /// `fence.proxy.async`), or whoever copies has.
    pub(crate) fn shown_to_copies(&mut self, address: u64, by: usize) -> Result<(), FaultKind> {
        let (thread, time) = self.phase(address)?.made;
        let shown = |fenced: &[Time], thread: usize| fenced.get(thread).is_some_and(|&fence| fence >= time);
        let Transfers { fenced, init_fenced, .. } = &self.transfers;
        if shown(init_fenced, thread) || shown(fenced, thread) || shown(fenced, by) {
            return Ok(());
        }
        Err(FaultKind::Proxy { address, thread: thread as u32 })
    }

    /// The agent of copies that complete on an mbarrier.
    pub(crate) fn copy_agent(&mut self, address: u64) -> Result<usize, FaultKind> {
        Ok(self.phase(address)?.agent)
    }

    /// Bytes arrived by a copy, at a time.
    pub(crate) fn complete_bytes(&mut self, address: u64, bytes: u64, time: Time) -> Result<(), FaultKind> {
        let phase = self.phase(address)?;
        phase.bytes -= bytes as i64;
        if phase.bytes < -MOST_BYTES {
            return Err(FaultKind::Operand(format!(
                "more bytes arrived at the mbarrier at {address:#x} than it may count"
            )));
        }
        let agents = phase.agent + 1;
        phase.gathering.resize(phase.gathering.len().max(agents), 0);
        phase.gathering[agents - 1] = time;
        let changed = phase.advance();
        self.mbarriers.changed |= changed;
        Ok(())
    }

    /// Some arrivals by the lanes of a mask, each counting as many; the phase's number before.
    pub(crate) fn arrive(
        &mut self,
        warp: usize,
        mask: u32,
        address: u64,
        each: u32,
        drop: bool,
    ) -> Result<u64, FaultKind> {
        let mut gathering = std::mem::take(&mut self.phase(address)?.gathering);
        gathering.resize(gathering.len().max(self.clocks.threads() + ASYNC_AGENTS), 0);
        self.clocks.release(warp, mask, &mut gathering);
        let phase = self.phase(address)?;
        phase.gathering = gathering;
        let number = phase.number;
        let arrivals = each * mask.count_ones();
        let missing = phase.missing.checked_sub(arrivals);
        let most = phase.count;
        phase.missing = missing.ok_or_else(|| {
            FaultKind::Operand(format!(
                "{arrivals} more arrivals at the mbarrier at {address:#x} than its {most} allow"
            ))
        })?;
        if drop {
            phase.count -= arrivals;
        }
        let changed = phase.advance();
        self.mbarriers.changed |= changed;
        Ok(number)
    }

    /// One more arrival is missing in this phase: `cp.async.mbarrier.arrive` without `.noinc`.
    pub(crate) fn expect_arrival(&mut self, address: u64) -> Result<(), FaultKind> {
        self.phase(address)?.missing += 1;
        Ok(())
    }

    fn expect_bytes(&mut self, address: u64, bytes: u64) -> Result<(), FaultKind> {
        let phase = self.phase(address)?;
        phase.bytes += bytes as i64;
        if phase.bytes > MOST_BYTES {
            return Err(FaultKind::Operand(format!("{} bytes are more than an mbarrier counts", phase.bytes)));
        }
        Ok(())
    }
}

impl Warp {
    pub(crate) fn mbarrier(
        &mut self,
        env: &mut Env<'_>,
        kind: &Mbarrier,
        at: Place,
        mask: u32,
    ) -> Result<Step, LaneFault> {
        let mut waiting = 0;
        let mut wait = Wait::Nothing;
        for (group, address) in self.by_address(at, mask).map_err(|(lane, kind)| by_lane(lane)(kind))? {
            let first = group.trailing_zeros() as usize;
            let fault = by_lane(first);
            env.shared.range(address, 8).map_err(&fault)?;
            if !address.is_multiple_of(8) {
                return Err(fault(FaultKind::Misaligned { space: "shared", address, align: 8 }));
            }
            if !matches!(kind, Mbarrier::Init { .. }) {
                self.knows_mbarrier(env, address, first).map_err(&fault)?;
            }
            match kind {
                Mbarrier::Init { count } => self.init(env, address, first, *count).map_err(&fault)?,
                Mbarrier::Invalidate => {
                    env.mbarriers.phases.remove(&(address as u32));
                }
                Mbarrier::Expect { bytes } => {
                    for lane in lanes(group) {
                        env.expect_bytes(address, self.rows[*bytes as usize][lane]).map_err(&fault)?;
                    }
                }
                Mbarrier::Arrive { state, count, expect, drop } => {
                    for lane in lanes(group) {
                        let bytes = expect.map_or(0, |reg| self.rows[reg as usize][lane]);
                        env.expect_bytes(address, bytes).map_err(&fault)?;
                    }
                    let each = count.map_or(1, |reg| self.rows[reg as usize][first] as u32);
                    let number = env.arrive(self.index, group, address, each, *drop).map_err(&fault)?;
                    super::collectives::put(&mut self.rows, *state, group, |_| number);
                }
                Mbarrier::Wait { done, phase, parity, block } => {
                    let number = env.phase(address).map_err(&fault)?.number;
                    // Section 9.7.13.15.16: `mbarrier.try_wait` may give up before the phase is complete. It always does so once, when it waited.
                    let late = group & self.given_up;
                    self.given_up &= !late;
                    let complete = lanes(group & !late)
                        .filter(|&lane| {
                            let want = self.rows[*phase as usize][lane];
                            if *parity { number & 1 != want & 1 } else { number > want }
                        })
                        .fold(0u32, |m, l| m | 1 << l);
                    if complete != 0 {
                        let known = env.phase(address).map_err(&fault)?.complete.clone();
                        env.clocks.acquire(self.index, complete, self.alive, &known);
                    }
                    super::collectives::put(&mut self.rows, *done, group, |lane| u64::from(complete >> lane & 1));
                    env.polled |= !*block && group != complete;
                    if *block && group & !late != complete {
                        waiting |= group & !late & !complete;
                        self.given_up |= group & !late & !complete;
                        wait = Wait::Mbarrier { address: address as u32, parity: number as u32 & 1 };
                    }
                }
            }
        }
        Ok(if waiting == 0 { Step::Next } else { Step::Part(waiting, wait) })
    }

    /// Lanes by the address that they give; lanes that agree are one group.
    pub(crate) fn by_address(&self, at: Place, mask: u32) -> Result<Vec<(u32, u64)>, (usize, FaultKind)> {
        let mut groups: Vec<(u32, u64)> = Vec::new();
        for lane in lanes(mask) {
            let address = self.shared_address(lane, at).map_err(|kind| (lane, kind))?;
            match groups.iter_mut().find(|g| g.1 == address) {
                Some(group) => group.0 |= 1 << lane,
                None => groups.push((1 << lane, address)),
            }
        }
        Ok(groups)
    }

    /// An address that must be in shared memory.
    pub(crate) fn shared_address(&self, lane: usize, (reg, offset, space): Place) -> Result<u64, FaultKind> {
        match self.at(lane, space, reg, offset) {
            (crate::ptx::ast::Space::Shared, address) => Ok(address),
            (_, address) => Err(FaultKind::Operand(format!("{address:#x} is not an address in shared memory"))),
        }
    }

    fn init(&self, env: &mut Env<'_>, address: u64, lane: usize, count: u32) -> Result<(), FaultKind> {
        let count = self.rows[count as usize][lane] as u32;
        if count == 0 || count >= 1 << 20 {
            return Err(FaultKind::Operand(format!("an mbarrier does not count {count} arrivals")));
        }
        let agent = env.clocks.threads() + env.mbarriers.made % ASYNC_AGENTS;
        env.mbarriers.made += 1;
        let made = (self.thread(lane), env.clocks.now());
        env.clocks.tick();
        let known = Known::new();
        let phase = Phase {
            count,
            missing: count,
            bytes: 0,
            number: 0,
            gathering: known.clone(),
            complete: known,
            agent,
            made,
        };
        match env.mbarriers.phases.insert(address as u32, phase) {
            None => Ok(()),
            Some(_) => Err(FaultKind::Operand(format!("the mbarrier at {address:#x} is initialised again"))),
        }
    }

    /// Whoever uses an mbarrier knows that it was made.
    fn knows_mbarrier(&self, env: &mut Env<'_>, address: u64, lane: usize) -> Result<(), FaultKind> {
        let (thread, time) = env.phase(address)?.made;
        if env.clocks.knows(self.index, lane, thread, time) {
            return Ok(());
        }
        let what = format!(
            "thread {} uses an mbarrier that thread {thread} makes, and nothing orders them",
            self.thread(lane)
        );
        Err(FaultKind::Race { address, what })
    }
}
