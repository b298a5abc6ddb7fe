//! Global memory of the emulated device: allocations with bounds, gaps between them, and optionally a mark on each byte that was written.

use std::collections::HashMap;

use super::clocks::Time;
use super::fault::FaultKind;
use super::marks::{Marks, Toucher};
use super::speech::Told;

/// Addresses of the first allocation; real devices have such.
const BASE: u64 = 0x7f00_0000_0000;
/// What lies between allocations at least.
const GAP: u64 = 4096;

struct Allocation {
    base: u64,
    data: Vec<u8>,
    /// Of each byte whether it was written, where that is tracked.
    written: Option<Vec<bool>>,
    read_only: bool,
    freed: bool,
    /// The run of launches in which one wrote to it last.
    wrote: u64,
    /// Who touched it, once a launch has written to it.
    marks: Option<Marks>,
}

/// Global memory. Keeps what kernels and the host write, between launches.
#[derive(Default)]
pub struct Memory {
    /// Ordered by address.
    allocations: Vec<Allocation>,
    next: u64,
    /// The allocation that was touched last.
    last: usize,
    /// Launches that may overlap are one run: its number, counted from 1.
    run: u64,
    /// A launch is running: what is written is written by it.
    launched: bool,
    /// Numbers of blocks, and of launches before those of theirs, that were given.
    numbers: u32,
    /// By the address of a word that atomics changed in this launch: what they told.
    pub(crate) told: HashMap<u64, Told>,
    /// Addresses of each module's variables.
    pub(crate) variables: HashMap<u64, Vec<u64>>,
}

impl Memory {
    /// Memory without allocations.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn place(&mut self, bytes: u64, align: u64, written: Option<Vec<bool>>) -> u64 {
        let align = align.max(1);
        // Odd multiples: nothing is aligned more than was asked for.
        let start = (self.next.max(BASE) + GAP).next_multiple_of(align);
        let base = if (start / align).is_multiple_of(2) { start + align } else { start };
        self.next = base + bytes;
        let data = vec![0; bytes as usize];
        self.allocations.push(Allocation {
            base,
            data,
            written,
            read_only: false,
            freed: false,
            wrote: 0,
            marks: None,
        });
        base
    }

    /// Allocates zeroed bytes at an address that is a multiple of `align`, and of no more.
    pub fn alloc(&mut self, bytes: u64, align: u64) -> u64 {
        self.place(bytes, align, None)
    }

    /// Allocates bytes that are not to be read before they are written.
    pub fn alloc_uninit(&mut self, bytes: u64, align: u64) -> u64 {
        self.place(bytes, align, Some(vec![false; bytes as usize]))
    }

    /// Frees an allocation: accesses to it are faults from now on.
    ///
    /// # Errors
    /// If no allocation starts there.
    pub fn free(&mut self, address: u64) -> Result<(), FaultKind> {
        let found = self.allocations.iter_mut().find(|a| a.base == address && !a.freed);
        let allocation = found.ok_or(FaultKind::OutOfBounds { space: "global", address, bytes: 0 })?;
        allocation.freed = true;
        allocation.data = Vec::new();
        allocation.marks = None;
        Ok(())
    }

    /// A launch begins: behind all others, or before they have ended.
    pub(crate) fn begin_launch(&mut self, overlaps: bool) {
        self.run += u64::from(!overlaps || self.run == 0);
        self.launched = true;
        self.told.clear();
    }

    /// A number for a launch, or for one of its blocks: larger than all before.
    pub(crate) fn number(&mut self) -> u32 {
        self.numbers += 1;
        self.numbers
    }

    /// A thread reads bytes.
    pub(crate) fn note_read(
        &mut self,
        (address, bytes): (u64, usize),
        by: Toucher,
        knows: &dyn Fn(u32, usize, Time) -> bool,
    ) -> Result<(), FaultKind> {
        let (which, at) = self.find(address, bytes)?;
        match &mut self.allocations[which].marks {
            Some(marks) => marks.read(at..at + bytes, by, knows, address),
            None => Ok(()),
        }
    }

    /// A thread is about to write bytes.
    pub(crate) fn note_write(
        &mut self,
        (address, bytes): (u64, &[u8]),
        by: Toucher,
        knows: &dyn Fn(u32, usize, Time) -> bool,
    ) -> Result<(), FaultKind> {
        let (which, at) = self.find(address, bytes.len())?;
        let Allocation { data, marks, .. } = &mut self.allocations[which];
        let marks = marks.get_or_insert_with(|| Marks::new(data.len()));
        if data[at..at + bytes.len()] == *bytes {
            return Ok(());
        }
        marks.write(at..at + bytes.len(), by, knows, address)
    }

    /// A thread is about to change bytes by an atomic.
    pub(crate) fn note_change(
        &mut self,
        (address, bytes): (u64, usize),
        by: Toucher,
        knows: &dyn Fn(u32, usize, Time) -> bool,
    ) -> Result<(), FaultKind> {
        let (which, at) = self.find(address, bytes)?;
        let Allocation { data, marks, .. } = &mut self.allocations[which];
        let marks = marks.get_or_insert_with(|| Marks::new(data.len()));
        marks.change(at..at + bytes, by, knows, address)
    }

    pub(crate) fn end_launch(&mut self) {
        self.launched = false;
    }

    /// Refuses bytes that launches may still be writing.
    pub(crate) fn check_early(&mut self, address: u64, bytes: usize) -> Result<(), FaultKind> {
        let (which, _) = self.find(address, bytes)?;
        if self.allocations[which].wrote < self.run {
            return Ok(());
        }
        Err(FaultKind::Early(format!("{address:#x} is read, of memory that launches which may not have ended write")))
    }

    /// Refuses bytes of memory that this launch writes, or one that may not have ended when it began: what `ld.global.nc` reads is read-only while the kernel lives (section
    /// 9.7.9.9, `ld.global.nc`).
    pub(crate) fn check_read_only(&mut self, address: u64, bytes: usize) -> Result<(), FaultKind> {
        let (which, _) = self.find(address, bytes)?;
        if self.allocations[which].wrote < self.run {
            return Ok(());
        }
        Err(FaultKind::Operand(format!(
            "ld.global.nc reads {address:#x}, of memory that is written while the kernel runs"
        )))
    }

    pub(crate) fn protect(&mut self, address: u64) {
        if let Some(allocation) = self.allocations.iter_mut().find(|a| a.base == address) {
            allocation.read_only = true;
        }
    }

    /// The allocation that holds these bytes, and where in it they start.
    fn find(&mut self, address: u64, bytes: usize) -> Result<(usize, usize), FaultKind> {
        let holds = |a: &Allocation| address >= a.base && address - a.base + bytes as u64 <= a.data.len() as u64;
        if !self.allocations.get(self.last).is_some_and(holds) {
            let after = self.allocations.partition_point(|a| a.base <= address);
            let found = after.checked_sub(1).filter(|&at| holds(&self.allocations[at]) && !self.allocations[at].freed);
            self.last = found.ok_or(FaultKind::OutOfBounds { space: "global", address, bytes: bytes as u64 })?;
        }
        Ok((self.last, (address - self.allocations[self.last].base) as usize))
    }

    /// Whether bytes are allocated.
    pub(crate) fn check(&mut self, address: u64, bytes: usize) -> Result<(), FaultKind> {
        self.find(address, bytes).map(drop)
    }

    /// Bytes, if all are there to be read.
    pub(crate) fn view(&mut self, address: u64, bytes: usize) -> Result<&[u8], FaultKind> {
        let (which, at) = self.find(address, bytes)?;
        let allocation = &self.allocations[which];
        if let Some(written) = &allocation.written
            && let Some(hole) = written[at..at + bytes].iter().position(|w| !w)
        {
            return Err(FaultKind::Unwritten { space: "global", address: address + hole as u64 });
        }
        Ok(&allocation.data[at..at + bytes])
    }

    /// Copies bytes out.
    ///
    /// # Errors
    /// If some are out of bounds, or tracked and not yet written.
    pub fn read(&mut self, address: u64, out: &mut [u8]) -> Result<(), FaultKind> {
        out.copy_from_slice(self.view(address, out.len())?);
        Ok(())
    }

    /// Copies bytes in.
    ///
    /// # Errors
    /// If some are out of bounds or read-only.
    pub fn write(&mut self, address: u64, bytes: &[u8]) -> Result<(), FaultKind> {
        let (which, at) = self.find(address, bytes.len())?;
        let allocation = &mut self.allocations[which];
        if allocation.read_only {
            return Err(FaultKind::ReadOnly { address });
        }
        if self.launched {
            allocation.wrote = self.run;
        }
        allocation.data[at..at + bytes.len()].copy_from_slice(bytes);
        if let Some(written) = &mut allocation.written {
            written[at..at + bytes.len()].fill(true);
        }
        Ok(())
    }

    /// Fills bytes with a value.
    ///
    /// # Errors
    /// If some are out of bounds or read-only.
    pub fn fill(&mut self, address: u64, bytes: u64, value: u8) -> Result<(), FaultKind> {
        self.write(address, &vec![value; bytes as usize])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn allocations_are_apart_and_bounded() {
        let mut memory = Memory::new();
        let (a, b) = (memory.alloc(100, 256), memory.alloc(16, 16));
        assert_eq!(a % 256, 0);
        assert_ne!(a % 512, 0);
        assert!(b >= a + 100 + GAP);
        memory.write(a + 96, &[1, 2, 3, 4]).unwrap();
        let mut out = [0; 4];
        memory.read(a + 96, &mut out).unwrap();
        assert_eq!(out, [1, 2, 3, 4]);
        assert_eq!(
            memory.read(a + 97, &mut out),
            Err(FaultKind::OutOfBounds { space: "global", address: a + 97, bytes: 4 })
        );
        assert!(memory.read(a - 1, &mut out).is_err());
        memory.free(a).unwrap();
        assert!(memory.read(a, &mut out).is_err());
        assert!(memory.free(a).is_err());
    }

    #[test]
    fn bytes_are_tracked_if_asked() {
        let mut memory = Memory::new();
        let a = memory.alloc_uninit(8, 4);
        let mut out = [0; 4];
        memory.write(a, &[0; 2]).unwrap();
        assert_eq!(memory.read(a, &mut out), Err(FaultKind::Unwritten { space: "global", address: a + 2 }));
        memory.fill(a, 8, 7).unwrap();
        memory.read(a + 4, &mut out).unwrap();
        assert_eq!(out, [7; 4]);
    }
}
