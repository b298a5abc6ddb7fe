//! Where generated code runs: memory, and a list of launches.
//!
//! | device | file |
//! |---|---|
//! | `cpu` | [`cpu`]: a pool of threads that claim tiles |
//! | `cuda` | [`cuda`]: an NVIDIA GPU, through its driver |
//! | `null` | [`null`]: records launches, for tests without hardware |
//!
//! A new device is one file here and one line above; [`workspace`] lays out a model's memory on any of them, and [`launch`] a step's arguments in
//! the memory of those that have their own.

#![allow(unsafe_code, reason = "devices call generated code with addresses")]

pub mod cpu;
pub mod cuda;
pub mod launch;
pub mod null;
pub mod workspace;

use crate::artifact::abi::XfmBuffer;
use crate::artifact::manifest::When;
use crate::bench::limits::{Effort, Probe};
use crate::cache::BlockTable;
use crate::error::{Result, RuntimeError};
use crate::profile::Recorder;
use crate::weights::Progress;
use memmap2::{MmapMut, MmapOptions};
use std::fmt::Debug;
use std::ops::Range;
use std::sync::Arc;

/// Bytes of memory that large pages, often of 2 MB, are asked for.
#[cfg(target_os = "linux")]
const LEAST_HUGE: u64 = 4 << 20;

/// Memory of a device.
#[derive(Debug)]
pub enum Memory {
    /// The host's: page-aligned, zero until written, taken from the system when first touched.
    Host(MmapMut),
    /// A device's own.
    Device(DeviceMemory),
}

/// Memory that the host cannot address. Given back when it is dropped.
#[derive(Debug)]
pub struct DeviceMemory {
    /// First byte, as the device's code addresses it.
    pub address: u64,
    /// How many there are.
    pub bytes: u64,
    /// Gives it back when it is dropped.
    pub owner: Box<dyn Owner>,
}

/// What keeps a device's memory alive.
pub trait Owner: Debug + Send + Sync {}

impl Memory {
    /// Zeroed host memory.
    ///
    /// # Errors
    /// The system has none.
    pub fn host(bytes: u64) -> Result<Self> {
        let none = |problem: String| RuntimeError::Device {
            device: "cpu",
            problem: format!("no memory for {bytes} bytes: {problem}"),
        };
        let length = usize::try_from(bytes.max(1)).map_err(|error| none(error.to_string()))?;
        // Not reserved: a cache for a long context costs what is used of it.
        let map =
            MmapOptions::new().len(length).no_reserve_swap().map_anon().map_err(|error| none(error.to_string()))?;
        // Large pages make reading caches faster; where they are not to be had, nothing is lost. Of small memory too much of the last would stay unused.
        #[cfg(target_os = "linux")]
        if bytes >= LEAST_HUGE {
            let _ = map.advise(memmap2::Advice::HugePage);
        }
        Ok(Self::Host(map))
    }

    /// First byte.
    fn address(&mut self) -> *mut u8 {
        match self {
            Self::Host(map) => map.as_mut_ptr(),
            Self::Device(memory) => std::ptr::without_provenance_mut(memory.address as usize),
        }
    }

    /// First byte, of memory that is only read.
    fn read_address(&self) -> *const u8 {
        match self {
            Self::Host(map) => map.as_ptr(),
            Self::Device(memory) => std::ptr::without_provenance(memory.address as usize),
        }
    }

    /// The host's bytes.
    fn host_bytes(&self) -> Result<&MmapMut> {
        match self {
            Self::Host(map) => Ok(map),
            Self::Device(_) => Err(elsewhere()),
        }
    }

    /// The host's bytes, to be written.
    fn host_bytes_mut(&mut self) -> Result<&mut MmapMut> {
        match self {
            Self::Host(map) => Ok(map),
            Self::Device(_) => Err(elsewhere()),
        }
    }

    /// Where the bytes `at .. at + n` of a device's memory are.
    ///
    /// # Errors
    /// They lie outside of it, or it is the host's.
    pub fn device_address(&self, at: u64, n: u64) -> Result<u64> {
        match self {
            Self::Host(_) => Err(elsewhere()),
            Self::Device(memory) => {
                let length = usize::try_from(memory.bytes).unwrap_or(usize::MAX);
                range(length, at, n)?;
                Ok(memory.address + at)
            }
        }
    }
}

/// One launch of a step: which kernel, how many tiles, which of [`Step::buffers`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launch {
    /// Index into [`Manifest::launches`](crate::artifact::manifest::Manifest::launches).
    pub index: usize,
    /// Index into the entry table.
    pub kernel: usize,
    /// Number of tiles; at least one.
    pub tiles: u32,
    /// The operands.
    pub buffers: Range<usize>,
    /// What its tiles read in order.
    pub stream: Option<Stream>,
}

/// Packed matrices of which each tile of a launch reads the next equal part: who waits for the launch can fetch them already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stream {
    /// The matrices: the first of them in [`Step::buffers`], and how many.
    pub first: usize,
    /// How many they are.
    pub matrices: usize,
    /// Bytes of each that a tile reads.
    pub tile_bytes: u64,
}

/// A ragged axis in a step: [`XfmAxis`](crate::artifact::abi::XfmAxis) without the pointers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AxisStep {
    /// `offsets[s] .. offsets[s + 1]` are the elements of sequence `s`.
    pub offsets: Vec<u32>,
    /// Position of each element in its sequence.
    pub positions: Vec<u32>,
    /// Sequence of each element.
    pub sequences: Vec<u32>,
    /// Which elements the selected rows are, ascending.
    pub rows: Vec<u32>,
    /// For each sequence, elements that it had before the step.
    pub before: Vec<u32>,
}

impl AxisStep {
    /// Whether a sequence that gets elements is one of those meant.
    pub fn has(&self, when: When) -> bool {
        let given = self.offsets.windows(2).filter(|pair| pair[1] > pair[0]);
        given.filter_map(|pair| self.positions.get(pair[0] as usize)).any(|first| when.holds(u64::from(*first)))
    }
}

/// Everything that a device needs to run one step.
#[derive(Clone, Copy, Debug)]
pub struct Step<'a> {
    /// Whose memory it is about: steps of the same number have the same `buffers`.
    pub workspace: u64,
    /// In order; each sees what those before it wrote.
    pub launches: &'a [Launch],
    /// Operands of all launches.
    pub buffers: &'a [XfmBuffer],
    /// Elements and selected rows of each axis.
    pub sizes: &'a [u64],
    /// The axes.
    pub axes: &'a [AxisStep],
    /// Block tables of the cache groups.
    pub caches: &'a [BlockTable],
    /// Number of sequences.
    pub n_sequences: u32,
}

/// Memory of a device that is taken when it is asked for, and not when it is used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Room {
    /// For people: `GPU 0 (NVIDIA H200)`.
    pub device: String,
    /// Bytes that are free.
    pub free: u64,
    /// Bytes that it has, where that is known.
    pub total: Option<u64>,
    /// Bytes that all its workers need for themselves and do not have yet.
    pub scratch_bytes: u64,
    /// What is taken at a time is a multiple of so many bytes.
    pub granule_bytes: u64,
    /// Bytes of those that are free that stay so for what nobody plans: code, recorded steps.
    pub reserve_bytes: u64,
}

/// What a device did so far.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Counts {
    /// Seconds to make the code ready.
    pub code_seconds: f64,
    /// Kernels that were loaded for themselves; 0 where the code is one piece.
    pub kernels: u64,
    /// Those of them that an earlier start had compiled.
    pub kernels_kept: u64,
    /// Steps.
    pub steps: u64,
    /// Launches of all steps.
    pub launches: u64,
    /// Steps that were recorded to be replayed.
    pub captures: u64,
    /// Seconds that recording them took.
    pub capture_seconds: f64,
}

/// Rows in a device's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rows {
    /// First byte of the first.
    pub at: u64,
    /// Bytes from one row to the next.
    pub stride: u64,
    /// Bytes of a row.
    pub bytes: u64,
    /// How many there are.
    pub n: u64,
}

/// A device that has one model's code loaded.
pub trait Device: Debug + Send + Sync {
    /// `cpu`, `null`.
    fn name(&self) -> &'static str;

    /// Workers that share the tiles of a launch.
    fn n_workers(&self) -> usize;

    /// Threads of the host that may work on what was read of it.
    fn host_threads(&self) -> usize {
        self.n_workers()
    }

    /// Records the steps from now on, or stops doing so. A device that cannot record ignores it.
    fn record(&self, _recorder: Option<Arc<Recorder>>) {}

    /// What there is of memory that must be planned; `None` where memory is taken when it is used.
    ///
    /// # Errors
    /// The device does not say.
    fn room(&self) -> Result<Option<Room>> {
        Ok(None)
    }

    /// What it did so far; a device need not count.
    fn counts(&self) -> Counts {
        Counts::default()
    }

    /// What a user should know though it is no error.
    fn remarks(&self) -> Vec<String> {
        Vec::new()
    }

    /// Waits until everything that was asked for is done.
    ///
    /// # Errors
    /// The device failed.
    fn wait(&self) -> Result<()> {
        Ok(())
    }

    /// What it can do at most, measured again and again; `None`: as much as the host's threads.
    ///
    /// # Errors
    /// There is no memory to measure with, or the device refuses what measures.
    fn prober(&self, _effort: Effort) -> Result<Option<Box<dyn Probe>>> {
        Ok(None)
    }

    /// Takes packed weights over, into the device's memory; `progress` is told how many bytes are there, and of how many.
    ///
    /// # Errors
    /// The device has no memory left.
    fn adopt(&self, block: MmapMut, _progress: Option<Progress<'_>>) -> Result<Memory> {
        Ok(Memory::Host(block))
    }

    /// Zeroed memory, aligned to 64 bytes at least.
    ///
    /// # Errors
    /// The device has no memory left.
    fn allocate(&self, bytes: u64) -> Result<Memory> {
        Memory::host(bytes)
    }

    /// Writes `bytes` to `memory` at byte `at`.
    ///
    /// # Errors
    /// The range lies outside of the memory.
    fn upload(&self, memory: &mut Memory, at: u64, bytes: &[u8]) -> Result<()> {
        let map = memory.host_bytes_mut()?;
        let range = range(map.len(), at, bytes.len() as u64)?;
        map[range].copy_from_slice(bytes);
        Ok(())
    }

    /// Reads `out.len()` bytes of `memory` from byte `at` on.
    ///
    /// # Errors
    /// The range lies outside of the memory.
    fn download(&self, memory: &Memory, at: u64, out: &mut [u8]) -> Result<()> {
        let map = memory.host_bytes()?;
        out.copy_from_slice(&map[range(map.len(), at, out.len() as u64)?]);
        Ok(())
    }

    /// Shows `each` the bytes of `rows`, one after the other, from where they are: in pieces that begin and end with a row or, where rows lie side by
    /// side, at a multiple of 16 bytes from the first.
    ///
    /// # Errors
    /// A row lies outside of the memory.
    fn read_rows(&self, memory: &Memory, rows: Rows, each: &mut dyn FnMut(&[u8])) -> Result<()> {
        let Rows { at, stride, bytes, n } = rows;
        let (n, bytes) = if stride == bytes { (n.min(1), bytes * n) } else { (n, bytes) };
        let mut copied = Vec::new();
        for row in 0..n {
            let at = at + row * stride;
            match memory {
                Memory::Host(map) => each(&map[range(map.len(), at, bytes)?]),
                Memory::Device(_) => {
                    copied.resize(bytes as usize, 0);
                    self.download(memory, at, &mut copied)?;
                    each(&copied);
                }
            }
        }
        Ok(())
    }

    /// Copies `bytes` bytes within `memory`.
    ///
    /// # Errors
    /// A range lies outside of the memory.
    fn copy(&self, memory: &mut Memory, from: u64, to: u64, bytes: u64) -> Result<()> {
        let map = memory.host_bytes_mut()?;
        let from = range(map.len(), from, bytes)?;
        let to = range(map.len(), to, bytes)?;
        map.copy_within(from, to.start);
        Ok(())
    }

    /// Runs the launches in order. They are done when this returns, or else before anything that the device is asked for afterwards.
    ///
    /// # Errors
    /// A worker failed; what the step wrote is then undefined.
    ///
    /// # Safety
    /// The addresses in `step.buffers` are those of live memory of this device, as large as the kernels take them to be, and nothing else
    /// reads or writes what the kernels write meanwhile. Sizes, axes and block tables agree with one another and with that memory.
    unsafe fn run(&self, step: &Step<'_>) -> Result<()>;
}

/// Memory of another device was given to one.
fn elsewhere() -> RuntimeError {
    RuntimeError::Device { device: "cpu", problem: "the memory of another device was given".to_owned() }
}

fn range(length: usize, at: u64, bytes: u64) -> Result<Range<usize>> {
    let end = at.checked_add(bytes).filter(|&end| end <= length as u64);
    let end = end.ok_or_else(|| RuntimeError::Device {
        device: "cpu",
        problem: format!("bytes {at} + {bytes} lie outside of {length} bytes"),
    })?;
    Ok(at as usize..end as usize)
}
