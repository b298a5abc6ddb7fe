//! A launch: its checks, its blocks, its counts.

use std::collections::VecDeque;

use super::block::{Block, Grid, Turn};
use super::fault::{Fault, FaultKind};
use super::memory::Memory;
use super::stats::Stats;
use crate::module::{Kernel, Module};

/// Shared memory that a block may have at most, static and dynamic.
pub const SHARED_LIMIT: u32 = 227 * 1024;
/// The same on every GPU that a target's code runs on (CUDA C++ Programming Guide, "Technical Specifications per Compute Capability"): code that does not end in a
/// letter runs on later ones too, of which 8.6, 8.9 and 12.0 have the least.
fn shared_limit(target: &str) -> u32 {
    match target.strip_prefix("sm_").and_then(|name| name.strip_suffix('a')) {
        Some(number) if !number.starts_with("12") => SHARED_LIMIT,
        _ => 99 * 1024,
    }
}
/// Blocks that are resident at once, when each waits for others.
const RESIDENT: usize = 132;

/// How a kernel is launched.
#[derive(Debug, Clone)]
pub struct Launch<'a> {
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: [u32; 3],
    /// Blocks of a cluster; only one is supported.
    pub cluster: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub dynamic_shared: u32,
    /// The parameters as the kernel lays them out.
    pub params: &'a [u8],
    /// Instructions of whole warps that the launch may take, per block.
    pub step_limit: u64,
    /// Orders the completion of asynchronous operations.
    pub seed: u64,
    /// Also forbids lanes of a warp to store one value to one place in one instruction.
    pub strict_stores: bool,
    /// The launch may begin before those before it have ended: a programmatic one. Until a thread has executed `griddepcontrol.wait`, it may write no
    /// global memory, and read none of an allocation that a launch wrote since the last one which began behind all others; and none may end before.
    pub overlaps: bool,
}

impl<'a> Launch<'a> {
    /// A launch without dynamic shared memory.
    #[must_use]
    pub fn new(grid: [u32; 3], block: [u32; 3], params: &'a [u8]) -> Self {
        Self {
            grid,
            block,
            cluster: [1, 1, 1],
            dynamic_shared: 0,
            params,
            step_limit: 1 << 26,
            seed: 1,
            strict_stores: false,
            overlaps: false,
        }
    }

    /// With dynamic shared memory.
    #[must_use]
    pub fn with_shared(self, bytes: u32) -> Self {
        Self { dynamic_shared: bytes, ..self }
    }

    fn check(&self, kernel: &Kernel, target: &str) -> Result<(), String> {
        let threads = self.block.iter().map(|&n| u64::from(n)).product::<u64>();
        if threads == 0 || threads > 1024 || self.block[2] > 64 {
            return Err(format!("{:?} threads are not between 1 and 1024", self.block));
        }
        if self.grid.contains(&0) || self.grid[1] > 65535 || self.grid[2] > 65535 {
            return Err(format!("a grid of {:?} blocks", self.grid));
        }
        if self.cluster != [1, 1, 1] {
            return Err("clusters of several blocks are not supported".to_owned());
        }
        if let Some(required) = kernel.reqntid.filter(|r| *r != self.block) {
            return Err(format!("the kernel requires blocks of {required:?} threads, not {:?}", self.block));
        }
        if let Some(most) = kernel.maxntid.filter(|m| m.iter().map(|&n| u64::from(n)).product::<u64>() < threads) {
            return Err(format!("the kernel allows blocks of {most:?} threads, not {:?}", self.block));
        }
        let shared = u64::from(kernel.shared_bytes) + u64::from(self.dynamic_shared);
        let limit = shared_limit(target);
        if shared > limit.into() {
            return Err(format!("{shared} bytes of shared memory are more than {limit}"));
        }
        let bytes = kernel.program.param_bytes as usize;
        if self.params.len() != bytes {
            return Err(format!("the parameters are {bytes} bytes, and {} are given", self.params.len()));
        }
        Ok(())
    }
}

/// Runs a kernel to its end.
///
/// # Errors
/// What the launch or the kernel does wrong. Memory then holds what was written until then.
pub fn launch(module: &Module, kernel: &str, memory: &mut Memory, launch: &Launch<'_>) -> Result<Stats, Box<Fault>> {
    let refuse = |what: String| {
        Box::new(Fault {
            kernel: kernel.to_owned(),
            block: [0; 3],
            thread: None,
            line: 0,
            text: String::new(),
            kind: FaultKind::Launch(what),
        })
    };
    let found = module.kernel(kernel).ok_or_else(|| refuse(format!("the module has no kernel {kernel}")))?;
    launch.check(found, module.target()).map_err(refuse)?;
    let variables = module.place(memory).map_err(|kind| refuse(kind.to_string()))?;
    let grid = Grid {
        program: &found.program,
        kernel,
        grid: launch.grid,
        block: launch.block,
        dynamic_shared: launch.dynamic_shared,
        params: launch.params,
        variables: &variables,
        source: module.source(),
        seed: launch.seed,
        strict_stores: launch.strict_stores,
        overlaps: launch.overlaps,
        registers: found.registers,
    };
    memory.begin_launch(launch.overlaps);
    let ran = run(&grid, memory, launch.step_limit);
    memory.end_launch();
    ran
}

fn run(grid: &Grid<'_>, memory: &mut Memory, limit: u64) -> Result<Stats, Box<Fault>> {
    let [gx, gy, gz] = grid.grid;
    let mut indices: Vec<[u32; 3]> =
        (0..gz).flat_map(|z| (0..gy).flat_map(move |y| (0..gx).map(move |x| [x, y, z]))).collect();
    if grid.program.changes {
        // What depends on an order must be right in each: every launch has another.
        let mut state = grid.seed ^ u64::from(memory.number()).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        for last in (1..indices.len()).rev() {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            indices.swap(last, (state >> 33) as usize % (last + 1));
        }
    }
    let mut indices = indices.into_iter();
    let mut resident = VecDeque::new();
    let of_launch = (!grid.program.speaks).then(|| memory.number());
    let mut stats = Stats::default();
    loop {
        // A block that takes long may wait for others, which then start.
        let next = if resident.len() < RESIDENT { indices.next() } else { None };
        let mut block = match (next, resident.pop_front()) {
            (Some(index), waiting) => {
                resident.extend(waiting);
                Block::new(grid, index, of_launch.map(|launch| (launch, memory.number())))
            }
            (None, Some(block)) => block,
            (None, None) => return Ok(stats),
        };
        std::mem::swap(memory, &mut block.env.memory);
        let turn = block.turn(limit);
        std::mem::swap(memory, &mut block.env.memory);
        match turn? {
            Turn::Unfinished => resident.push_back(block),
            Turn::Finished => add(&mut stats, &block, grid),
        }
    }
}

fn add(stats: &mut Stats, block: &Block<'_>, grid: &Grid<'_>) {
    let env = &block.env;
    stats.warp_instructions += env.executed;
    stats.thread_instructions += env.thread_instructions;
    stats.global_read_bytes += env.stats.global_read_bytes;
    stats.global_written_bytes += env.stats.global_written_bytes;
    stats.prefetched_bytes += env.stats.prefetched_bytes;
    stats.prefetched_in_vain += env.prefetched.iter().map(|asked| asked.unread()).sum::<u64>();
    for (inst, counts) in grid.program.code.iter().zip(&env.lines).filter(|(_, counts)| counts.executions > 0) {
        let line = stats.lines.entry(inst.line).or_default();
        line.executions += counts.executions;
        line.max_bank_ways = line.max_bank_ways.max(counts.max_bank_ways);
        line.sectors += counts.sectors;
        line.least_sectors += counts.least_sectors;
    }
}
