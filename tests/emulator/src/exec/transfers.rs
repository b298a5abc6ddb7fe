//! Asynchronous copies (PTX ISA, section 9.7.9.25): what was issued, what is in flight, and when it is there. Copies are late: a thread's own
//! are done when it waits for their group, those of the copy engine when nobody can go on without, in an order that a seed gives.
//!
//! `cp.async` writes as threads do; `cp.async.bulk` and `wgmma` go through the async proxy, which sees what threads wrote behind a `fence.proxy.async` of theirs or its own
//! (sections 9.7.9.25.2, "Async Proxy", and 8.5, "Proxies"); what they complete is seen by threads that see the completion.

use std::collections::VecDeque;
use std::ops::Range;

use super::block::Env;
use super::clocks::Time;
use super::fault::{FaultKind, LaneFault, by_lane};
use super::shared::{Kind, Toucher};
use super::warp::{Step, Wait, Warp};
use crate::decode::asynchronous::{Async, Place};
use crate::decode::lanes::{Reg, lanes};
use crate::decode::program::Pc;
use crate::ptx::ast::Space;

/// Bytes on their way into shared memory.
pub(crate) struct Piece {
    pub(crate) range: Range<usize>,
    pub(crate) data: Vec<u8>,
}

/// What the copy engine has in flight.
pub(crate) enum Transfer {
    Load {
        pieces: Vec<Piece>,
        bytes: u64,
        at: u64,
        line: u32,
    },
    Store {
        pieces: Vec<(Range<usize>, u64)>,
        thread: usize,
        group: u64,
        line: u32,
    },
    /// A thread's copies, which arrive at an mbarrier when they are done.
    Arrive {
        pieces: Vec<Piece>,
        thread: usize,
        at: u64,
        line: u32,
    },
}

/// What a thread has issued.
#[derive(Default)]
struct Issued {
    open: Vec<Piece>,
    groups: VecDeque<Vec<Piece>>,
    /// The number of the open group of bulk stores.
    bulk_group: u64,
}

/// All that is in flight in a block.
pub(crate) struct Transfers {
    random: u64,
    pub(crate) in_flight: Vec<Transfer>,
    threads: Vec<Issued>,
    /// Each thread's last `fence.proxy.async`.
    pub(crate) fenced: Vec<Time>,
    /// Each thread's last `fence.mbarrier_init`.
    pub(crate) init_fenced: Vec<Time>,
}

impl Transfers {
    pub(crate) fn new(seed: u64, threads: usize) -> Self {
        let issued = (0..threads).map(|_| Issued::default()).collect();
        Self {
            random: seed | 1,
            in_flight: Vec::new(),
            threads: issued,
            fenced: vec![0; threads],
            init_fenced: vec![0; threads],
        }
    }

    pub(crate) fn bulk_group(&self, thread: usize) -> u64 {
        self.threads[thread].bulk_group
    }

    /// Whether all but a thread's last groups of stores are done.
    fn stores_done(&self, thread: usize, pending: u64) -> bool {
        let open = self.threads[thread].bulk_group;
        !self.in_flight.iter().any(|t| {
            matches!(t, Transfer::Store { thread: of, group, .. } if *of == thread && *group < open.saturating_sub(pending))
        })
    }
}

impl Env<'_> {
    /// Completes one transfer, any of them. An error has the line that issued it.
    pub(crate) fn complete_one(&mut self) -> Result<bool, (Option<u32>, FaultKind)> {
        let transfers = &mut self.transfers;
        if transfers.in_flight.is_empty() {
            return Ok(false);
        }
        transfers.random =
            transfers.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let which = (transfers.random >> 33) as usize % transfers.in_flight.len();
        let time = self.clocks.tick();
        match transfers.in_flight.remove(which) {
            Transfer::Load { pieces, bytes, at, line } => {
                let agent = self.copy_agent(at).map_err(|kind| (Some(line), kind))?;
                for Piece { range, data } in pieces {
                    self.shared.finish_write(range, &data, agent, Kind::Async, time);
                }
                self.complete_bytes(at, bytes, time).map_err(|kind| (Some(line), kind))?;
            }
            Transfer::Store { pieces, line, .. } => {
                for (range, address) in pieces {
                    let written = self.memory.write(address, self.shared.bytes(range.clone()));
                    written.map_err(|kind| (Some(line), kind))?;
                    self.shared.finish_read(range);
                }
            }
            Transfer::Arrive { pieces, thread, at, line } => {
                self.apply(pieces, thread);
                let (warp, lane) = (thread / 32, thread % 32);
                self.arrive(warp, 1 << lane, at, 1, false).map_err(|kind| (Some(line), kind))?;
            }
        }
        self.clocks.tick();
        self.mbarriers.changed = true;
        Ok(true)
    }

    /// A thread's own copies are there.
    fn apply(&mut self, pieces: Vec<Piece>, thread: usize) {
        let time = self.clocks.now();
        for Piece { range, data } in pieces {
            self.shared.finish_write(range, &data, thread, Kind::Plain, time);
        }
    }
}

impl Warp {
    pub(crate) fn asynchronous(
        &mut self,
        env: &mut Env<'_>,
        operation: &Async,
        pc: Pc,
        mask: u32,
    ) -> Result<Step, LaneFault> {
        let line = env.program.code[pc as usize].line;
        match operation {
            Async::Mbarrier { kind, at } => return self.mbarrier(env, kind, *at, mask),
            Async::Fence => self.fence(env, mask),
            Async::ProxyFence | Async::InitFence => {
                let now = env.clocks.now();
                let Transfers { fenced, init_fenced, .. } = &mut env.transfers;
                let of = if matches!(operation, Async::ProxyFence) { fenced } else { init_fenced };
                for lane in lanes(mask) {
                    of[self.thread(lane)] = now;
                }
                env.clocks.tick();
            }
            Async::Copy { to, from, bytes, source_bytes, ignore } => {
                for lane in lanes(mask) {
                    self.copy(env, (*to, *from), *bytes, (*source_bytes, *ignore), lane).map_err(by_lane(lane))?;
                }
            }
            Async::CopyCommit => {
                for lane in lanes(mask) {
                    let issued = &mut env.transfers.threads[self.thread(lane)];
                    let group = std::mem::take(&mut issued.open);
                    issued.groups.push_back(group);
                }
            }
            Async::CopyWait(pending) => {
                for lane in lanes(mask) {
                    let thread = self.thread(lane);
                    let issued = &mut env.transfers.threads[thread];
                    let done = issued.groups.len().saturating_sub(pending.unwrap_or(0));
                    let mut pieces: Vec<Piece> = issued.groups.drain(..done).flatten().collect();
                    if pending.is_none() {
                        pieces.append(&mut issued.open);
                    }
                    env.apply(pieces, thread);
                }
                env.clocks.tick();
            }
            Async::CopyArrive { at, counted } => {
                for lane in lanes(mask) {
                    let thread = self.thread(lane);
                    let at = self.shared_address(lane, *at).map_err(by_lane(lane))?;
                    if *counted {
                        env.expect_arrival(at).map_err(by_lane(lane))?;
                    }
                    let issued = &mut env.transfers.threads[thread];
                    let mut pieces: Vec<Piece> = issued.groups.drain(..).flatten().collect();
                    pieces.append(&mut issued.open);
                    env.transfers.in_flight.push(Transfer::Arrive { pieces, thread, at, line });
                }
            }
            Async::BulkLoad { to, from, at } => {
                for lane in lanes(mask) {
                    self.bulk_load(env, *to, from, *at, (lane, line)).map_err(by_lane(lane))?;
                }
            }
            Async::BulkStore { to, from } => {
                for lane in lanes(mask) {
                    self.bulk_store(env, to, *from, (lane, line)).map_err(by_lane(lane))?;
                }
            }
            Async::Prefetch { from, bytes } => {
                for lane in lanes(mask) {
                    self.bulk_prefetch(env, *from, *bytes, lane).map_err(by_lane(lane))?;
                }
            }
            Async::GridWait => self.waited |= mask,
            Async::BulkCommit => {
                for lane in lanes(mask) {
                    env.transfers.threads[self.thread(lane)].bulk_group += 1;
                }
            }
            Async::BulkWait(pending) => {
                let waiting = lanes(mask)
                    .filter(|&lane| !env.transfers.stores_done(self.thread(lane), *pending as u64))
                    .fold(0u32, |m, l| m | 1 << l);
                if waiting != 0 {
                    return Ok(Step::Part(waiting, Wait::Stores(*pending as u32)));
                }
            }
        }
        Ok(Step::Next)
    }

    /// `cp.async`: reads now, writes when it is waited for.
    fn copy(
        &self,
        env: &mut Env<'_>,
        (to, from): (Place, Place),
        bytes: u32,
        (source_bytes, ignore): (Option<Reg>, Option<Reg>),
        lane: usize,
    ) -> Result<(), FaultKind> {
        let width = bytes as usize;
        let to = self.shared_address(lane, to)?;
        let (space, address) = self.at(lane, from.2, from.0, from.1);
        for (space, address) in [("shared", to), ("global", address)] {
            if !address.is_multiple_of(bytes.into()) {
                return Err(FaultKind::Misaligned { space, address, align: bytes.into() });
            }
        }
        if space != Space::Global {
            return Err(FaultKind::Operand("cp.async reads global memory".to_owned()));
        }
        let mut read = source_bytes.map_or(width, |reg| self.rows[reg as usize][lane] as u32 as usize);
        if read > width {
            return Err(FaultKind::Operand(format!("{read} bytes of the source are more than the {width} copied")));
        }
        if ignore.is_some_and(|reg| self.rows[reg as usize][lane] & 1 != 0) {
            read = 0;
        }
        let mut data = vec![0; width];
        if read > 0 {
            self.reads(env, lane, address, read)?;
            env.memory.read(address, &mut data[..read])?;
            env.stats.global_read_bytes += read as u64;
        }
        let by = Toucher { warp: self.index, lane };
        let range = env.shared.check_write(to, width, by, Kind::Plain, &env.clocks)?;
        env.shared.begin_write(range.clone());
        env.transfers.threads[self.thread(lane)].open.push(Piece { range, data });
        Ok(())
    }

    /// Lanes end: what others wait for need not wait for them; what they have in flight may not be left behind.
    pub(crate) fn exit(&mut self, env: &mut Env<'_>, mask: u32) -> Result<(), FaultKind> {
        for lane in lanes(mask) {
            if self.waited & 1 << lane == 0 {
                return Err(FaultKind::Early(
                    "a thread ends, and what comes next no longer waits for what came before".to_owned(),
                ));
            }
            if !env.transfers.stores_done(self.thread(lane), 0) {
                let what = "the thread ends before cp.async.bulk.wait_group says that its stores are done";
                return Err(FaultKind::InFlight(what.to_owned()));
            }
        }
        env.clocks.end(self.index, mask);
        env.alive[self.index] = self.alive;
        env.complete_barriers();
        Ok(())
    }
}
