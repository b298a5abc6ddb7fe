//! Who knows of whose accesses: vector clocks over the threads of a block (Flanagan and Freund 2009, "FastTrack"), kept by warp.
//!
//! Time is one count for the whole block. What a thread did up to a time is known to those that synchronised with it since: through a
//! barrier, an mbarrier, or within the warp. A warp's lanes share what they know, until a few of them wait for something alone: that they
//! keep to themselves until the warp meets again.

use crate::decode::lanes::{LANES, lanes};

/// A time; 0 is before everything.
pub(crate) type Time = u32;
/// What is known: of each agent the time up to which its accesses are.
pub(crate) type Known = Vec<Time>;

/// Agents besides threads: asynchronous copies, by the mbarrier that they complete on; and after them what reads for each warp's `wgmma`s.
pub(crate) const ASYNC_AGENTS: usize = 64;
/// Warps of a `wgmma`.
pub(crate) const GROUP: usize = 4;

struct WarpClock {
    known: Known,
    /// What single lanes know besides.
    private: [Option<Known>; LANES],
    /// Lanes know of each other's accesses up to here.
    met: Time,
    /// The least that is known of any thread of other warps.
    floor: Time,
}

/// The clocks of a block.
pub(crate) struct Clocks {
    now: Time,
    warps: Vec<WarpClock>,
    threads: usize,
    /// What threads that ended did.
    ended: Known,
}

/// The later of each.
pub(crate) fn join(into: &mut Known, other: &[Time]) {
    into.resize(into.len().max(other.len()), 0);
    for (a, &b) in into.iter_mut().zip(other) {
        *a = (*a).max(b);
    }
}

impl Clocks {
    pub(crate) fn new(threads: usize) -> Self {
        let agents = threads + ASYNC_AGENTS + threads.div_ceil(LANES);
        let warp = || WarpClock { known: vec![0; agents], private: [const { None }; LANES], met: 0, floor: 0 };
        let warps = (0..threads.div_ceil(LANES)).map(|_| warp()).collect();
        Self { now: 1, warps, threads, ended: vec![0; agents] }
    }

    pub(crate) fn now(&self) -> Time {
        self.now
    }

    /// What happens from now on is later than all before.
    pub(crate) fn tick(&mut self) -> Time {
        self.now += 1;
        self.now
    }

    pub(crate) fn threads(&self) -> usize {
        self.threads
    }

    /// Up to here a warp knows of all that threads did.
    pub(crate) fn floor(&self, warp: usize) -> Time {
        self.warps[warp].floor.min(self.warps[warp].met)
    }

    /// Up to here the lanes of a warp know of each other's accesses.
    pub(crate) fn met(&self, warp: usize) -> Time {
        self.warps[warp].met
    }

    /// Whether a lane knows of what an agent did at a time.
    pub(crate) fn knows(&self, warp: usize, lane: usize, agent: usize, time: Time) -> bool {
        let clock = &self.warps[warp];
        if agent / LANES == warp && agent < self.threads {
            return agent % LANES == lane || time <= clock.met;
        }
        let private = clock.private[lane].as_ref().and_then(|known| known.get(agent));
        time <= clock.known[agent] || private.is_some_and(|&known| time <= known)
    }

    /// The agent that reads for the `wgmma`s of a warp.
    pub(crate) fn reading_agent(&self, warp: usize) -> usize {
        self.threads + ASYNC_AGENTS + warp
    }

    /// All of a warp learn what one agent did, up to a time.
    pub(crate) fn learn(&mut self, warp: usize, agent: usize, time: Time) {
        let known = &mut self.warps[warp].known[agent];
        *known = (*known).max(time);
    }

    /// Lanes of a warp met: they know what each other knew.
    pub(crate) fn meet(&mut self, warp: usize) {
        let clock = &mut self.warps[warp];
        clock.met = self.now;
        self.now += 1;
        let mut joined = false;
        for private in &mut clock.private {
            if let Some(private) = private.take() {
                join(&mut clock.known, &private);
                joined = true;
            }
        }
        if joined {
            self.lift(warp);
        }
    }

    /// Lanes of a warp met at a time that is over.
    pub(crate) fn met_at(&mut self, warp: usize, time: Time) {
        self.warps[warp].met = time;
    }

    fn lift(&mut self, warp: usize) {
        let own = warp * LANES..(warp + 1) * LANES;
        let known = &self.warps[warp].known[..self.threads];
        let others = known.iter().enumerate().filter(|(thread, _)| !own.contains(thread));
        self.warps[warp].floor = others.map(|(_, &time)| time).min().unwrap_or(Time::MAX);
    }

    /// Adds what the lanes know and did to `into`; what they do from now on is later.
    pub(crate) fn release(&mut self, warp: usize, mask: u32, into: &mut Known) {
        let clock = &self.warps[warp];
        join(into, &clock.known);
        let first = warp * LANES;
        for time in &mut into[first..(first + LANES).min(self.threads)] {
            *time = (*time).max(clock.met);
        }
        for lane in lanes(mask) {
            into[first + lane] = self.now;
            if let Some(private) = &clock.private[lane] {
                join(into, private);
            }
        }
        self.now += 1;
    }

    /// The lanes learn what `from` says; all lanes of the warp that are alive, or a few.
    pub(crate) fn acquire(&mut self, warp: usize, mask: u32, alive: u32, from: &[Time]) {
        if mask == alive {
            join(&mut self.warps[warp].known, from);
            self.lift(warp);
            return;
        }
        for lane in lanes(mask) {
            join(self.warps[warp].private[lane].get_or_insert_default(), from);
        }
    }

    /// Lanes ended: all that meet in a barrier from now on know of it.
    pub(crate) fn end(&mut self, warp: usize, mask: u32) {
        let mut ended = std::mem::take(&mut self.ended);
        self.release(warp, mask, &mut ended);
        self.ended = ended;
    }

    pub(crate) fn ended(&self) -> &[Time] {
        &self.ended
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_barrier_tells_all() {
        let mut clocks = Clocks::new(64);
        let before = clocks.now();
        assert!(!clocks.knows(1, 0, 3, before));
        let mut joined = Known::new();
        clocks.release(0, u32::MAX, &mut joined);
        clocks.release(1, u32::MAX, &mut joined);
        clocks.acquire(1, u32::MAX, u32::MAX, &joined);
        assert!(clocks.knows(1, 0, 3, before));
        assert!(!clocks.knows(1, 0, 3, clocks.now()));
        assert!(!clocks.knows(0, 0, 40, before));
    }

    #[test]
    fn a_lane_alone_keeps_it_until_the_warp_meets() {
        let mut clocks = Clocks::new(64);
        let before = clocks.now();
        let mut released = Known::new();
        clocks.release(0, 1, &mut released);
        clocks.acquire(1, 1, u32::MAX, &released);
        assert!(clocks.knows(1, 0, 0, before) && !clocks.knows(1, 1, 0, before));
        clocks.meet(1);
        assert!(clocks.knows(1, 1, 0, before));
    }

    #[test]
    fn lanes_know_each_other_after_meeting() {
        let mut clocks = Clocks::new(32);
        let before = clocks.now();
        assert!(clocks.knows(0, 5, 5, before) && !clocks.knows(0, 5, 6, before));
        clocks.meet(0);
        assert!(clocks.knows(0, 5, 6, before) && !clocks.knows(0, 5, 6, clocks.now()));
        // An arrival of one lane speaks for what it did itself since, and for all before.
        let later = clocks.now();
        let mut released = Known::new();
        clocks.release(0, 1, &mut released);
        assert!(released[0] >= later && released[1] >= before && released[1] < later);
    }
}
