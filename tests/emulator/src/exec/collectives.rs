//! Shuffles, votes, reductions over lanes (PTX ISA, sections 9.7.9.6 and 9.7.13).

use super::block::Env;
use super::fault::{FaultKind, LaneFault, by_lane};
use super::warp::{Step, Wait, Warp};
use crate::decode::collective::{Collective, Reduce, Shuffle, Vote};
use crate::decode::context::SINK;
use crate::decode::lanes::{LANES, Reg, Row, lanes};
use crate::decode::program::Pc;

impl Warp {
    /// Executes a collective for the lanes that are at it, once all are.
    pub(crate) fn collective(
        &mut self,
        env: &mut Env<'_>,
        collective: &Collective,
        pc: Pc,
        mask: u32,
    ) -> Result<Step, LaneFault> {
        let members = match collective {
            Collective::Barrier { kind, aligned, id, count } => {
                return self.barrier(env, *kind, *aligned, (*id, *count), pc, mask);
            }
            Collective::ActiveMask { d } => {
                put(&mut self.rows, *d, mask, |_| mask.into());
                return Ok(Step::Next);
            }
            Collective::WarpBarrier { mask }
            | Collective::Shuffle { mask, .. }
            | Collective::Vote { mask, .. }
            | Collective::Match { mask, .. }
            | Collective::Reduce { mask, .. }
            | Collective::Elect { mask, .. } => *mask,
        };
        let members = self.members(members, mask)?;
        if let Collective::WarpBarrier { .. } = collective {
            return Ok(self.warp_barrier(env, members, mask));
        }
        let Some(here) = self.together(pc, mask, members) else { return Ok(Step::Gather(members)) };
        env.clocks.meet(self.index);
        self.exchange(collective, here);
        Ok(Step::Next)
    }

    /// The mask that lanes give: one for all of them, with each of them in it.
    fn members(&self, reg: Reg, mask: u32) -> Result<u32, LaneFault> {
        let row = &self.rows[reg as usize];
        let members = row[mask.trailing_zeros() as usize] as u32;
        for lane in lanes(mask) {
            if row[lane] as u32 != members || members >> lane & 1 == 0 {
                let what = format!(
                    "lane {lane} executes it with the mask {:#x}, which must have it and be the same for all",
                    row[lane]
                );
                return Err(by_lane(lane)(FaultKind::Participation(what)));
            }
        }
        Ok(members)
    }

    fn warp_barrier(&mut self, env: &mut Env<'_>, members: u32, mask: u32) -> Step {
        let wait = Wait::WarpBarrier(members);
        let waiting = lanes(self.blocked & self.alive).filter(|&l| self.waits[l] == wait).fold(0, |m, l| m | 1 << l);
        if members & self.alive & !(mask | waiting) != 0 {
            return Step::Wait(wait);
        }
        self.pass(waiting);
        env.clocks.meet(self.index);
        Step::Next
    }

    fn exchange(&mut self, collective: &Collective, here: u32) {
        let rows = &mut self.rows;
        match *collective {
            Collective::Shuffle { mode, d, valid, a, b, c, .. } => {
                let [a, b, c] = [a, b, c].map(|r| rows[r as usize]);
                let (mut out, mut inside) = ([0; LANES], [0; LANES]);
                for lane in lanes(here) {
                    let (from, valid) = source(mode, lane as u32, b[lane] as u32, c[lane] as u32);
                    out[lane] = a[from as usize];
                    inside[lane] = u64::from(valid);
                }
                put(rows, d, here, |lane| out[lane]);
                put(rows, valid, here, |lane| inside[lane]);
            }
            Collective::Vote { mode, d, p, negated, .. } => {
                let row = rows[p as usize];
                let set = lanes(here).filter(|&l| (row[l] & 1 != 0) ^ negated).fold(0u32, |m, l| m | 1 << l);
                let value = match mode {
                    Vote::All => u64::from(set == here),
                    Vote::Any => u64::from(set != 0),
                    Vote::Uniform => u64::from(set == here || set == 0),
                    Vote::Ballot => set.into(),
                };
                put(rows, d, here, |_| value);
            }
            Collective::Match { all, d, p, a, .. } => {
                let row = rows[a as usize];
                let like = |lane: usize| lanes(here).filter(|&l| row[l] == row[lane]).fold(0u32, |m, l| m | 1 << l);
                let first = here.trailing_zeros() as usize;
                if all {
                    let same = like(first) == here;
                    put(rows, d, here, |_| if same { here.into() } else { 0 });
                    put(rows, p, here, |_| same.into());
                } else {
                    put(rows, d, here, |lane| like(lane).into());
                }
            }
            Collective::Reduce { op, signed, d, a, .. } => {
                let row = rows[a as usize];
                let value = reduce(op, signed, lanes(here).map(|l| row[l] as u32));
                put(rows, d, here, |_| value.into());
            }
            Collective::Elect { d, p, .. } => {
                let leader = here.trailing_zeros();
                put(rows, d, here, |_| leader.into());
                put(rows, p, here, |lane| u64::from(lane as u32 == leader));
            }
            Collective::Barrier { .. } | Collective::WarpBarrier { .. } | Collective::ActiveMask { .. } => {}
        }
    }
}

/// Writes a row's lanes, unless nobody wants them.
pub(crate) fn put(rows: &mut [Row], to: Reg, mask: u32, value: impl Fn(usize) -> u64) {
    if to != SINK {
        for lane in lanes(mask) {
            rows[to as usize][lane] = value(lane);
        }
    }
}

/// The lane that a shuffle reads, and whether that is in its segment (section 9.7.9.6).
fn source(mode: Shuffle, lane: u32, b: u32, c: u32) -> (u32, bool) {
    let (b, clamp, segments) = (b & 31, c & 31, c >> 8 & 31);
    let most = (lane & segments) | (clamp & !segments);
    let least = lane & segments;
    let (from, valid) = match mode {
        Shuffle::Up => (lane.wrapping_sub(b), lane as i32 - b as i32 >= most as i32),
        Shuffle::Down => (lane + b, lane + b <= most),
        Shuffle::Butterfly => (lane ^ b, lane ^ b <= most),
        Shuffle::Index => {
            let from = least | (b & !segments);
            (from, from <= most)
        }
    };
    if valid { (from, true) } else { (lane, false) }
}

fn reduce(op: Reduce, signed: bool, values: impl Iterator<Item = u32>) -> u32 {
    let merge = |a: u32, b: u32| match op {
        Reduce::Add | Reduce::Count => a.wrapping_add(b),
        Reduce::Min if signed => (a as i32).min(b as i32) as u32,
        Reduce::Max if signed => (a as i32).max(b as i32) as u32,
        Reduce::Min => a.min(b),
        Reduce::Max => a.max(b),
        Reduce::And => a & b,
        Reduce::Or => a | b,
        Reduce::Xor => a ^ b,
    };
    values.reduce(merge).unwrap_or(0)
}
