//! Barriers of a block (PTX ISA, section 9.7.13.1): `bar.sync`, `bar.arrive`, `bar.red`, by number and count of threads.

use super::block::Env;
use super::clocks::{GROUP, Known, Time, join};
use super::fault::{FaultKind, LaneFault};
use super::warp::{Step, Wait, Warp};
use crate::decode::collective::{BarrierKind, CLUSTER_BARRIER, Reduce};
use crate::decode::lanes::{LANES, Reg, lanes};
use crate::decode::program::Pc;

/// Barriers that programs can name.
const NAMED: u32 = 16;

/// These, and the one that `barrier.cluster` stands for. After them each four warps have one, where they wait for each other's `wgmma`s.
pub(crate) const BARRIERS: usize = NAMED as usize + 1;

/// A barrier that some threads have reached.
#[derive(Default)]
pub(crate) struct Barrier {
    /// Threads that arrived; a whole warp counts 32 even if it has fewer.
    pub(crate) arrived: u32,
    /// Threads that are to arrive; none if all that are alive.
    pub(crate) expected: Option<u32>,
    waiting: Vec<(usize, u32, Option<Reg>)>,
    known: Known,
    reduced: Option<Reduction>,
    /// Of four warps: up to which time the `wgmma`s of each are done.
    done: Vec<(usize, Time)>,
}

#[derive(Clone, Copy)]
struct Reduction {
    op: Reduce,
    set: u32,
    all: u32,
}

impl Warp {
    pub(crate) fn barrier(
        &mut self,
        env: &mut Env<'_>,
        kind: BarrierKind,
        aligned: bool,
        (id, count): (Reg, Option<Reg>),
        pc: Pc,
        mask: u32,
    ) -> Result<Step, LaneFault> {
        let mask = if aligned {
            match self.together(pc, mask, u32::MAX) {
                Some(here) => here,
                None => return Ok(Step::Gather(u32::MAX)),
            }
        } else {
            mask
        };
        let lane = mask.trailing_zeros() as usize;
        let wrong = |what: String| LaneFault { lane: Some(lane), kind: FaultKind::Operand(what) };
        let id = match self.rows[id as usize][lane] {
            CLUSTER_BARRIER => NAMED,
            id if id < NAMED.into() => id as u32,
            id => return Err(wrong(format!("there is no barrier {id}"))),
        };
        let count = count.map(|c| self.rows[c as usize][lane] as u32);
        if let Some(count) = count.filter(|c| c % 32 != 0 || *c == 0) {
            return Err(wrong(format!("{count} threads are not whole warps")));
        }
        env.clocks.meet(self.index);
        let barrier = &mut env.barriers[id as usize];
        if barrier.arrived != 0 && barrier.expected != count {
            return Err(wrong(format!(
                "barrier {id} is reached with different counts: {:?} and {count:?}",
                barrier.expected
            )));
        }
        barrier.expected = count;
        barrier.arrived += if aligned { LANES as u32 } else { mask.count_ones() };
        env.clocks.release(self.index, mask, &mut barrier.known);
        match kind {
            BarrierKind::Arrive => {}
            BarrierKind::Sync => barrier.waiting.push((self.index, mask, None)),
            BarrierKind::Reduce { op, d, p, negated } => {
                let row = &self.rows[p as usize];
                let set = lanes(mask).filter(|&l| (row[l] & 1 != 0) ^ negated).count() as u32;
                let sum = barrier.reduced.get_or_insert(Reduction { op, set: 0, all: 0 });
                sum.set += set;
                sum.all += mask.count_ones();
                barrier.waiting.push((self.index, mask, Some(d)));
            }
        }
        env.complete_barriers();
        if let BarrierKind::Arrive = kind {
            return Ok(Step::Next);
        }
        // All wait, the last one too: it is woken with the others. Lanes that came earlier are not in the group that executes this.
        self.blocked |= mask;
        for lane in lanes(mask) {
            self.pcs[lane] = pc;
            self.waits[lane] = Wait::Barrier(id);
        }
        Ok(Step::Wait(Wait::Barrier(id)))
    }
}

impl Warp {
    /// The warp's `wgmma`s are done but for those issued from a time on; it waits for those of its neighbours, for all four make one product.
    /// Nobody learns anything else of the others.
    pub(crate) fn meet_group(&mut self, env: &mut Env<'_>, unfinished: Option<Time>, pc: Pc) -> Step {
        let id = BARRIERS + self.index / GROUP;
        let barrier = &mut env.barriers[id];
        barrier.expected = Some((GROUP * LANES) as u32);
        barrier.arrived += LANES as u32;
        barrier.done.push((self.index, unfinished.map_or(env.clocks.now(), |time| time - 1)));
        barrier.waiting.push((self.index, u32::MAX, None));
        env.complete_barriers();
        // Also those lanes that came earlier.
        let wait = Wait::Barrier(id as u32);
        self.blocked = u32::MAX;
        self.pcs = [pc; LANES];
        self.waits = [wait; LANES];
        Step::Wait(wait)
    }
}

impl Env<'_> {
    /// Opens the barriers that all have reached.
    pub(crate) fn complete_barriers(&mut self) {
        for id in 0..self.barriers.len() {
            let barrier = &self.barriers[id];
            let complete = barrier.expected.map_or_else(|| !self.missing(barrier), |n| barrier.arrived >= n);
            if barrier.arrived == 0 || !complete {
                continue;
            }
            let mut done = std::mem::take(&mut self.barriers[id]);
            if id < BARRIERS {
                join(&mut done.known, self.clocks.ended());
                // Who waits did nothing since it arrived: all that it did until now is known.
                for &(warp, mask, _) in &done.waiting {
                    lanes(mask).for_each(|lane| done.known[warp * LANES + lane] = self.clocks.now());
                }
            }
            let value = done.reduced.map(|r| match r.op {
                Reduce::And => u64::from(r.set == r.all),
                Reduce::Or => u64::from(r.set != 0),
                _ => r.set.into(),
            });
            let now = self.clocks.now();
            for (warp, mask, result) in done.waiting {
                self.clocks.acquire(warp, mask, self.alive[warp] | mask, &done.known);
                if id < BARRIERS && mask == self.alive[warp] {
                    self.clocks.met_at(warp, now);
                }
                if id >= BARRIERS {
                    for &(of, time) in &done.done {
                        let agent = self.clocks.reading_agent(of);
                        self.clocks.learn(warp, agent, time);
                    }
                }
                self.wakes.push((warp, mask, result.zip(value)));
            }
            self.clocks.tick();
        }
    }

    /// Whether a thread that is alive is not at this barrier, which is for all.
    fn missing(&self, barrier: &Barrier) -> bool {
        self.alive.iter().enumerate().any(|(warp, &alive)| {
            let here = barrier.waiting.iter().filter(|w| w.0 == warp).fold(0, |mask, w| mask | w.1);
            alive & !here != 0
        })
    }
}
