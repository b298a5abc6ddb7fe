//! Bytes between the host and a GPU, through memory that it copies from by itself.
//!
//! What a step is given goes through a [`Ring`]: the host writes it there and goes on, while the device copies it when its turn comes. Weights go
//! through two large stages, one of which is filled while the other is copied.

use super::context::{Allocation, Context, Event, Pinned, failed, problem};
use crate::device::Rows;
use crate::error::Result;
use crate::weights::Progress;
use cudarc::driver::result;
use std::sync::Arc;

/// Bytes that are copied at a time while the next ones are brought together.
pub(super) const STAGE_BYTES: usize = 32 << 20;
/// Bytes of one half of a ring, at least.
const HALF_BYTES: usize = 1 << 20;
/// Copies begin at multiples of this.
const ALIGN: usize = 64;
/// Most threads that bring a stage together: one alone is slower than the bus.
const MOST_THREADS: usize = 8;

/// Gives a copy to the stream. `bytes` must stay as they are until it is done.
fn send(context: &Context, address: u64, bytes: &[u8]) -> Result<()> {
    // SAFETY: the caller's range lies in memory of this device, and `bytes` stays as it is, as the caller promises.
    unsafe { result::memcpy_htod_async(address, bytes, context.stream) }.map_err(|e| failed("a copy to the GPU", e))
}

/// Pinned memory in two halves: one is written while the device copies from the other.
#[derive(Debug)]
pub(super) struct Ring {
    context: Arc<Context>,
    halves: [Half; 2],
    current: usize,
}

#[derive(Debug)]
struct Half {
    memory: Pinned,
    used: usize,
    /// Behind the last copy from it, once it is full.
    copied: Event,
}

impl Half {
    fn new(context: &Arc<Context>, bytes: usize) -> Result<Self> {
        Ok(Self { memory: Pinned::new(context, bytes)?, used: 0, copied: Event::new(context)? })
    }
}

impl Ring {
    pub(super) fn new(context: &Arc<Context>) -> Result<Self> {
        let halves = [Half::new(context, HALF_BYTES)?, Half::new(context, HALF_BYTES)?];
        Ok(Self { context: Arc::clone(context), halves, current: 0 })
    }

    /// Copies `bytes` to `address`, in the calling thread's context and in order with everything else. They may change at once. The host waits only where more than a half is
    /// still to be copied.
    pub(super) fn send(&mut self, address: u64, bytes: &[u8]) -> Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        let half = &mut self.halves[self.current];
        if half.used + bytes.len() > half.memory.len() {
            half.copied.record()?;
            self.current = 1 - self.current;
            let half = &mut self.halves[self.current];
            half.copied.wait()?;
            half.used = 0;
            if bytes.len() > half.memory.len() {
                half.memory = Pinned::new(&self.context, bytes.len().next_power_of_two())?;
            }
        }
        let half = &mut self.halves[self.current];
        let stage = &mut half.memory.bytes_mut()[half.used..half.used + bytes.len()];
        stage.copy_from_slice(bytes);
        half.used = (half.used + bytes.len()).next_multiple_of(ALIGN);
        send(&self.context, address, stage)
    }
}

/// Copies weights to the device; `progress` is told how many bytes are there, and of how many.
pub(super) fn upload(
    context: &Arc<Context>,
    memory: &Allocation,
    block: &[u8],
    progress: Option<Progress<'_>>,
) -> Result<()> {
    let room = STAGE_BYTES.min(block.len());
    let mut stages = [Half::new(context, room)?, Half::new(context, room)?];
    for (i, part) in block.chunks(STAGE_BYTES).enumerate() {
        let stage = &mut stages[i % 2];
        stage.copied.wait()?;
        let staged = &mut stage.memory.bytes_mut()[..part.len()];
        gather(part, staged);
        send(context, memory.address + (i * STAGE_BYTES) as u64, staged)?;
        stage.copied.record()?;
        if let Some(progress) = progress {
            progress((i * STAGE_BYTES + part.len()) as u64, block.len() as u64);
        }
    }
    // The stages are given back.
    context.wait()
}

/// Copies on several threads: pages of a file are read on the way.
fn gather(from: &[u8], to: &mut [u8]) {
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(MOST_THREADS);
    let part = from.len().div_ceil(threads).max(1 << 20);
    if from.len() <= part {
        return to.copy_from_slice(from);
    }
    std::thread::scope(|scope| {
        for (from, to) in from.chunks(part).zip(to.chunks_mut(part)) {
            scope.spawn(|| to.copy_from_slice(from));
        }
    });
}

/// Pinned memory that outputs are copied to.
#[derive(Debug)]
pub(super) struct Receiver {
    context: Arc<Context>,
    memory: Option<Pinned>,
}

impl Receiver {
    pub(super) fn new(context: &Arc<Context>) -> Self {
        Self { context: Arc::clone(context), memory: None }
    }

    /// Copies, in the calling thread's context, rows from an address on to the host and shows them to `each`, where they arrived: as many at a time as
    /// fit into a stage, for which it waits once.
    pub(super) fn receive(&mut self, rows: Rows, each: &mut dyn FnMut(&[u8])) -> Result<()> {
        let context = Arc::clone(&self.context);
        // Rows that lie side by side may be cut anywhere.
        let Rows { at, stride, bytes, n } =
            if rows.stride == rows.bytes { Rows { stride: 1, bytes: 1, n: rows.n * rows.bytes, ..rows } } else { rows };
        // A row that is longer than a stage comes by itself.
        let most = (STAGE_BYTES as u64 / bytes).max(1);
        let mut first = 0;
        while first < n {
            let rows = most.min(n - first);
            let length = usize::try_from(rows * bytes).map_err(|e| problem(e.to_string()))?;
            let stage = &mut self.room(length)?.bytes_mut()[..length];
            let copied = if stride == bytes { length } else { bytes as usize };
            for (row, stage) in stage.chunks_mut(copied).enumerate() {
                let from = at + (first + row as u64) * stride;
                // SAFETY: the caller's rows lie in memory of this device; the pinned bytes are not touched until the copy is done.
                unsafe { result::memcpy_dtoh_async(stage, from, context.stream) }
                    .map_err(|e| failed("a copy from the GPU", e))?;
            }
            context.wait()?;
            each(&self.room(length)?.bytes_mut()[..length]);
            first += rows;
        }
        Ok(())
    }

    /// Memory of at least so many bytes.
    fn room(&mut self, bytes: usize) -> Result<&mut Pinned> {
        let memory = match self.memory.take() {
            Some(memory) if memory.len() >= bytes => memory,
            _ => Pinned::new(&self.context, bytes.next_power_of_two())?,
        };
        Ok(self.memory.insert(memory))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_brought_together() {
        for n in [0, 1, (1 << 20) - 1, (1 << 20) + 1, (9 << 20) + 5] {
            let from: Vec<u8> = (0..n).map(|i| (i % 251) as u8).collect();
            let mut to = vec![0; n];
            gather(&from, &mut to);
            assert!(from == to, "{n} bytes");
        }
    }
}
