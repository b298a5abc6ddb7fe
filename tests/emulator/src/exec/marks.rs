//! Who touched global memory in a launch: of each byte the thread that wrote it last, and the block that read it (PTX ISA, chapter 8, "Memory Consistency Model").
//!
//! Nothing orders the blocks of a launch, however they happen to take turns here, but what they tell each other by atomics between fences (`speech`): what one writes no other may
//! touch that was not told of it, and what one read no other may write. Within a block the clocks say who knows of whom. A write of what is there already harms nobody, and so do
//! atomics among each other. Only memory that a launch has written is watched, from its first write on; and no launch whose threads speak to each other by loads and stores of
//! global memory that say how strong they are.

use super::clocks::Time;
use super::fault::FaultKind;

/// What atomics do.
const CHANGES: &str = "changes by an atomic";

/// Who wrote a byte: the block, counted over all launches, the thread in it, and when.
#[derive(Clone, Copy, Default)]
struct Writer {
    block: u32,
    time: Time,
    thread: u16,
    /// By an atomic.
    is_atomic: bool,
}

/// A thread that touches memory.
#[derive(Clone, Copy)]
pub(crate) struct Toucher {
    /// The first number of its launch, which stands for several blocks; and the number of its block, which is larger.
    pub(crate) launch: u32,
    pub(crate) block: u32,
    pub(crate) thread: usize,
    pub(crate) time: Time,
}

/// Of each byte of an allocation.
pub(crate) struct Marks {
    writers: Vec<Writer>,
    readers: Vec<u32>,
}

impl Marks {
    pub(crate) fn new(bytes: usize) -> Self {
        Self { writers: vec![Writer::default(); bytes], readers: vec![0; bytes] }
    }

    /// Checks who wrote some bytes; `knows` says whether the thread knows of what another one of its block did.
    fn check_writers(
        &self,
        range: std::ops::Range<usize>,
        by: Toucher,
        knows: &dyn Fn(u32, usize, Time) -> bool,
        (address, does): (u64, &str),
    ) -> Result<(), FaultKind> {
        for (writer, at) in self.writers[range].iter().zip(address..) {
            if writer.block < by.launch || (writer.is_atomic && does == CHANGES) {
                continue;
            }
            let thread = usize::from(writer.thread);
            let is_own = writer.block == by.block && thread == by.thread;
            if is_own || knows(writer.block, thread, writer.time) {
                continue;
            }
            let who = match writer.block == by.block {
                true => format!("thread {thread}"),
                false => "a thread of another block".to_owned(),
            };
            let what = format!("thread {} {does} what {who} writes in this launch, and nothing orders them", by.thread);
            return Err(FaultKind::GlobalRace { address: at, what });
        }
        Ok(())
    }

    pub(crate) fn read(
        &mut self,
        range: std::ops::Range<usize>,
        by: Toucher,
        knows: &dyn Fn(u32, usize, Time) -> bool,
        address: u64,
    ) -> Result<(), FaultKind> {
        self.check_writers(range.clone(), by, knows, (address, "reads"))?;
        for reader in &mut self.readers[range] {
            if *reader < by.launch {
                *reader = by.block;
            } else if *reader != by.block {
                *reader = by.launch;
            }
        }
        Ok(())
    }

    pub(crate) fn write(
        &mut self,
        range: std::ops::Range<usize>,
        by: Toucher,
        knows: &dyn Fn(u32, usize, Time) -> bool,
        address: u64,
    ) -> Result<(), FaultKind> {
        self.put(range, by, knows, (address, "writes"))
    }

    /// The same by an atomic.
    pub(crate) fn change(
        &mut self,
        range: std::ops::Range<usize>,
        by: Toucher,
        knows: &dyn Fn(u32, usize, Time) -> bool,
        address: u64,
    ) -> Result<(), FaultKind> {
        self.put(range, by, knows, (address, CHANGES))
    }

    fn put(
        &mut self,
        range: std::ops::Range<usize>,
        by: Toucher,
        knows: &dyn Fn(u32, usize, Time) -> bool,
        (address, does): (u64, &str),
    ) -> Result<(), FaultKind> {
        self.check_writers(range.clone(), by, knows, (address, does))?;
        let reader = self.readers[range.clone()].iter().position(|&reader| reader >= by.launch && reader != by.block);
        if let Some(at) = reader {
            let what =
                format!("thread {} {does} what another block reads in this launch, and nothing orders them", by.thread);
            return Err(FaultKind::GlobalRace { address: address + at as u64, what });
        }
        self.writers[range].fill(Writer {
            block: by.block,
            time: by.time,
            thread: by.thread as u16,
            is_atomic: does == CHANGES,
        });
        Ok(())
    }
}
