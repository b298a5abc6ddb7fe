//! Loads, stores and atomics of a warp: each lane's address is resolved, checked for bounds and alignment, and counted.

use super::block::Env;
use super::collectives::put;
use super::fault::{FaultKind, LaneFault, by_lane};
use super::shared::{Kind, Toucher};
use super::warp::Warp;
use super::{spaces, stats};
use crate::decode::lanes::{LANES, lanes};
use crate::decode::memory::{Access, Atomic};
use crate::decode::program::Pc;
use crate::decode::types::{sign_extend, truncate};
use crate::ptx::ast::Space;

/// The bytes of the widest access.
const WIDEST: usize = 32;

fn named(space: Space) -> &'static str {
    match space {
        Space::Generic | Space::Global | Space::Const => "global",
        Space::Shared => "shared",
        Space::Local => "local",
        Space::Param => "param",
    }
}

fn aligned(space: Space, address: u64, align: u64) -> Result<(), FaultKind> {
    // Widths are powers of two; a division would take longer than the access.
    if address & (align - 1) == 0 { Ok(()) } else { Err(FaultKind::Misaligned { space: named(space), address, align }) }
}

/// The addresses that lanes access, for counts.
struct Touched {
    addresses: [u64; LANES],
    n: usize,
}

impl Touched {
    fn new() -> Self {
        Self { addresses: [0; LANES], n: 0 }
    }

    fn push(&mut self, address: u64) {
        self.addresses[self.n] = address;
        self.n += 1;
    }

    fn list(&self) -> &[u64] {
        &self.addresses[..self.n]
    }
}

impl Warp {
    pub(crate) fn at(&self, lane: usize, space: Space, address: u32, offset: i64) -> (Space, u64) {
        spaces::resolve(space, self.rows[address as usize][lane].wrapping_add_signed(offset))
    }

    fn toucher(&self, lane: usize) -> Toucher {
        Toucher { warp: self.index, lane }
    }

    pub(crate) fn load(&mut self, env: &mut Env<'_>, access: &Access, pc: Pc, mask: u32) -> Result<(), LaneFault> {
        let width = access.bytes as usize * access.elements.len();
        let (mut global, mut shared) = (Touched::new(), Touched::new());
        for lane in lanes(mask) {
            let (space, address) = self.at(lane, access.space, access.address, access.offset);
            aligned(space, address, width as u64).map_err(by_lane(lane))?;
            let bytes = match space {
                Space::Shared => {
                    shared.push(address);
                    let range = env.shared.check_read(address, width, self.toucher(lane), &env.clocks);
                    env.shared.bytes(range.map_err(by_lane(lane))?)
                }
                Space::Local => slice(&self.local[lane], space, address, width).map_err(by_lane(lane))?,
                Space::Param => slice(env.params, space, address, width).map_err(by_lane(lane))?,
                _ => {
                    global.push(address);
                    self.reads(env, lane, address, width).map_err(by_lane(lane))?;
                    if access.read_only {
                        env.memory.check_read_only(address, width).map_err(by_lane(lane))?;
                    }
                    env.memory.view(address, width).map_err(by_lane(lane))?
                }
            };
            for (part, &to) in bytes.chunks_exact(access.bytes as usize).zip(&access.elements) {
                let value = number(part);
                self.rows[to as usize][lane] = match access.extend {
                    Some(bits) => truncate(sign_extend(value, access.bytes * 8), bits),
                    None => value,
                };
            }
        }
        env.stats.global_read_bytes += (global.n * width) as u64;
        count(env, pc, &global, &shared, width as u32);
        Ok(())
    }

    pub(crate) fn store(&mut self, env: &mut Env<'_>, access: &Access, pc: Pc, mask: u32) -> Result<(), LaneFault> {
        let width = access.bytes as usize * access.elements.len();
        let (mut global, mut shared) = (Touched::new(), Touched::new());
        let mut ranges = Vec::new();
        for lane in lanes(mask) {
            let (space, address) = self.at(lane, access.space, access.address, access.offset);
            let mut buffer = [0u8; WIDEST];
            for (part, &from) in buffer.chunks_mut(access.bytes as usize).zip(&access.elements) {
                part.copy_from_slice(&self.rows[from as usize][lane].to_le_bytes()[..access.bytes as usize]);
            }
            let bytes = &buffer[..width];
            aligned(space, address, width as u64).map_err(by_lane(lane))?;
            match space {
                Space::Shared => {
                    let range = env.shared.check_write(address, width, self.toucher(lane), Kind::Plain, &env.clocks);
                    ranges.push((lane, range.map_err(by_lane(lane))?, buffer));
                    shared.push(address);
                }
                Space::Local => {
                    slice(&self.local[lane], space, address, width).map_err(by_lane(lane))?;
                    self.local[lane][address as usize..][..width].copy_from_slice(bytes);
                }
                Space::Param => return Err(by_lane(lane)(FaultKind::ReadOnly { address })),
                _ => {
                    self.writes(env, lane, address, bytes).map_err(by_lane(lane))?;
                    env.memory.write(address, bytes).map_err(by_lane(lane))?;
                    global.push(address);
                }
            }
        }
        if !ranges.is_empty() {
            // A time of its own tells lanes of this instruction from those of others.
            let time = env.clocks.tick();
            for (lane, range, buffer) in ranges {
                let by = self.toucher(lane);
                env.shared.write(range, &buffer[..width], by, Kind::Plain, time).map_err(by_lane(lane))?;
            }
            env.clocks.tick();
        }
        env.stats.global_written_bytes += (global.n * width) as u64;
        count(env, pc, &global, &shared, width as u32);
        Ok(())
    }

    pub(crate) fn atomic(&mut self, env: &mut Env<'_>, atomic: &Atomic, mask: u32) -> Result<(), LaneFault> {
        let bytes = atomic.bytes as usize;
        for lane in lanes(mask) {
            let (space, first) = self.at(lane, atomic.space, atomic.address, atomic.offset);
            aligned(space, first, (bytes * atomic.b.len()) as u64).map_err(by_lane(lane))?;
            for (index, (&b, &old)) in atomic.b.iter().zip(&atomic.old).enumerate() {
                let address = first + (index * bytes) as u64;
                let by = self.toucher(lane);
                let mut buffer = [0u8; 8];
                let cell = &mut buffer[..bytes];
                let range = match space {
                    Space::Shared => {
                        let checked = env.shared.check_write(address, bytes, by, Kind::Atomic, &env.clocks);
                        let range = checked.map_err(by_lane(lane))?;
                        env.shared.written(range.clone()).map_err(by_lane(lane))?;
                        cell.copy_from_slice(env.shared.bytes(range.clone()));
                        Some(range)
                    }
                    Space::Local | Space::Param => {
                        return Err(by_lane(lane)(FaultKind::Operand(
                            "atomics are of global and shared memory".into(),
                        )));
                    }
                    _ => {
                        self.changes(env, lane, (address, bytes), atomic.strength).map_err(by_lane(lane))?;
                        env.memory.read(address, cell).map_err(by_lane(lane))?;
                        None
                    }
                };
                let before = number(cell);
                let c = atomic.c.map_or(0, |c| self.rows[c as usize][lane]);
                let after = (atomic.apply)(before, self.rows[b as usize][lane], c).to_le_bytes();
                match range {
                    Some(range) => {
                        let time = env.clocks.now();
                        env.shared.write(range, &after[..bytes], by, Kind::Atomic, time).map_err(by_lane(lane))?;
                    }
                    None => env.memory.write(address, &after[..bytes]).map_err(by_lane(lane))?,
                }
                put(&mut self.rows, old, 1 << lane, |_| before);
            }
        }
        env.clocks.tick();
        Ok(())
    }
}

/// Up to eight bytes as a number; of fixed sizes, for the compiler.
#[inline(always)]
fn number(bytes: &[u8]) -> u64 {
    match *bytes {
        [a] => a.into(),
        [a, b] => u16::from_le_bytes([a, b]).into(),
        [a, b, c, d] => u32::from_le_bytes([a, b, c, d]).into(),
        [a, b, c, d, e, f, g, h] => u64::from_le_bytes([a, b, c, d, e, f, g, h]),
        _ => bytes.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte)),
    }
}

fn slice(memory: &[u8], space: Space, address: u64, bytes: usize) -> Result<&[u8], FaultKind> {
    let found = usize::try_from(address).ok().and_then(|a| memory.get(a..a.checked_add(bytes)?));
    found.ok_or(FaultKind::OutOfBounds { space: named(space), address, bytes: bytes as u64 })
}

fn count(env: &mut Env<'_>, pc: Pc, global: &Touched, shared: &Touched, width: u32) {
    let line = &mut env.lines[pc as usize];
    line.executions += 1;
    if shared.n > 0 {
        line.max_bank_ways = line.max_bank_ways.max(stats::bank_ways(shared.list(), width));
    }
    if global.n > 0 {
        line.sectors += stats::sectors(global.list(), width);
        line.least_sectors += (global.n as u64 * u64::from(width)).div_ceil(32);
    }
}
