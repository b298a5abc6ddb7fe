//! Shared memory of a block and its shadow: of each byte who wrote it last, who read it, and what asynchronous operations have in flight.

use super::clocks::{Clocks, Time};
use super::fault::FaultKind;
use crate::decode::lanes::LANES;

/// Shared addresses start here, as on devices that keep the first kilobyte to themselves.
pub(crate) const BASE: u32 = 1024;
/// A reader that stands for several lanes of its warp.
const SEVERAL: u8 = 0xff;

/// Who wrote a byte last: time 0 is nobody.
#[derive(Clone, Copy, Default)]
struct Writer {
    time: Time,
    agent: u16,
    kind: Kind,
}

/// How a byte was written.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Kind {
    #[default]
    Plain,
    Atomic,
    /// By an asynchronous copy: not through the threads' view of memory.
    Async,
}

/// The last read of a byte by a warp.
#[derive(Clone, Copy, Default)]
struct Reader {
    time: Time,
    lane: u8,
}

/// A thread that touches memory.
#[derive(Clone, Copy)]
pub(crate) struct Toucher {
    pub(crate) warp: usize,
    pub(crate) lane: usize,
}

impl Toucher {
    fn thread(self) -> usize {
        self.warp * LANES + self.lane
    }
}

/// The memory and its shadow.
pub(crate) struct Shared {
    /// Lanes may not write one value to one byte at once.
    strict: bool,
    data: Vec<u8>,
    writers: Vec<Writer>,
    last_read: Vec<Time>,
    /// By warp, and after these by the warps whose `wgmma`s read; empty until they do.
    readers: Vec<Vec<Reader>>,
    warps: usize,
    /// How many asynchronous operations will write, and how many will read, each byte.
    writes_in_flight: Vec<u8>,
    reads_in_flight: Vec<u16>,
}

impl Shared {
    pub(crate) fn new(bytes: usize, warps: usize, strict: bool) -> Self {
        Self {
            strict,
            data: vec![0; bytes],
            writers: vec![Writer::default(); bytes],
            last_read: vec![0; bytes],
            readers: vec![Vec::new(); 2 * warps],
            warps,
            writes_in_flight: vec![0; bytes],
            reads_in_flight: vec![0; bytes],
        }
    }

    /// Where in the memory an access lies.
    pub(crate) fn range(&self, address: u64, bytes: usize) -> Result<std::ops::Range<usize>, FaultKind> {
        let start = address.wrapping_sub(BASE.into()) as usize;
        match start.checked_add(bytes) {
            Some(end) if end <= self.data.len() && address >= BASE.into() => Ok(start..end),
            _ => Err(FaultKind::OutOfBounds { space: "shared", address, bytes: bytes as u64 }),
        }
    }

    fn race(&self, at: usize, by: Toucher, does: &str, other: usize, did: &str) -> FaultKind {
        let other = match other.checked_sub(self.warps * LANES) {
            None => format!("thread {other}"),
            Some(past) if past < (self.readers.len() - self.warps) * LANES => "a wgmma".to_owned(),
            Some(_) => "an asynchronous copy".to_owned(),
        };
        let what = format!("thread {} {does}, {other} {did}, and nothing orders them", by.thread());
        FaultKind::Race { address: at as u64 + u64::from(BASE), what }
    }

    fn async_agent(&self, agent: u16, clocks: &Clocks) -> bool {
        usize::from(agent) >= clocks.threads()
    }

    /// Whether all bytes were written, by the thread itself or so long ago that all its warp knows: what is checked fast.
    fn plainly_known(&self, range: std::ops::Range<usize>, by: Toucher, floor: Time, clocks: &Clocks) -> bool {
        let (own, threads) = (by.thread() as u16, clocks.threads() as u16);
        self.writers[range].iter().all(|w| w.time != 0 && (w.agent == own || (w.time <= floor && w.agent < threads)))
    }

    /// Checks the last writer of a byte against who touches it.
    fn check_writer(&self, at: usize, by: Toucher, does: &str, kind: Kind, clocks: &Clocks) -> Result<(), FaultKind> {
        let writer = self.writers[at];
        let known = writer.time <= clocks.floor(by.warp) && !self.async_agent(writer.agent, clocks);
        if known || (kind == Kind::Atomic && writer.kind == Kind::Atomic) {
            return Ok(());
        }
        if clocks.knows(by.warp, by.lane, writer.agent.into(), writer.time) {
            return Ok(());
        }
        let other = if self.async_agent(writer.agent, clocks) { usize::MAX } else { writer.agent.into() };
        Err(self.race(at, by, does, other, "wrote"))
    }

    /// Checks and notes a read by a thread.
    pub(crate) fn check_read(
        &mut self,
        address: u64,
        bytes: usize,
        by: Toucher,
        clocks: &Clocks,
    ) -> Result<std::ops::Range<usize>, FaultKind> {
        self.check_read_for(by.warp, address, bytes, by, clocks)
    }

    /// Checks a read by the tensor core for a `wgmma` of this thread's warp.
    pub(crate) fn check_group_read(
        &mut self,
        address: u64,
        bytes: usize,
        by: Toucher,
        clocks: &Clocks,
    ) -> Result<std::ops::Range<usize>, FaultKind> {
        self.check_read_for(self.warps + by.warp, address, bytes, by, clocks)
    }

    fn check_read_for(
        &mut self,
        reader: usize,
        address: u64,
        bytes: usize,
        by: Toucher,
        clocks: &Clocks,
    ) -> Result<std::ops::Range<usize>, FaultKind> {
        let range = self.range(address, bytes)?;
        let floor = clocks.floor(by.warp);
        if !self.plainly_known(range.clone(), by, floor, clocks)
            || self.writes_in_flight[range.clone()].iter().any(|&n| n != 0)
        {
            for at in range.clone() {
                if self.writes_in_flight[at] != 0 {
                    return Err(self.pending(at, "read"));
                }
                if self.writers[at].time == 0 {
                    return Err(FaultKind::Unwritten { space: "shared", address: at as u64 + u64::from(BASE) });
                }
                self.check_writer(at, by, "reads", Kind::Plain, clocks)?;
            }
        }
        let now = clocks.now();
        if self.readers[reader].is_empty() {
            self.readers[reader] = vec![Reader::default(); self.data.len()];
        }
        // Who knows of this read knows of those that its lanes knew of when they last met.
        let met = clocks.met(by.warp);
        for reader in &mut self.readers[reader][range.clone()] {
            let alone = reader.lane == by.lane as u8 || reader.time <= met;
            *reader = Reader { time: now, lane: if alone { by.lane as u8 } else { SEVERAL } };
        }
        self.last_read[range.clone()].fill(now);
        Ok(range)
    }

    fn pending(&self, at: usize, does: &str) -> FaultKind {
        FaultKind::InFlight(format!(
            "shared address {:#x} is {does} while an asynchronous operation has it",
            at + BASE as usize
        ))
    }

    /// Checks a write by a thread; it is noted apart, when all lanes are checked.
    pub(crate) fn check_write(
        &self,
        address: u64,
        bytes: usize,
        by: Toucher,
        kind: Kind,
        clocks: &Clocks,
    ) -> Result<std::ops::Range<usize>, FaultKind> {
        let range = self.range(address, bytes)?;
        let floor = clocks.floor(by.warp);
        let in_flight = |at: usize| self.writes_in_flight[at] != 0 || self.reads_in_flight[at] != 0;
        if let Some(at) = range.clone().find(|&at| in_flight(at)) {
            return Err(self.pending(at, "written"));
        }
        if !self.plainly_known(range.clone(), by, floor, clocks) {
            for at in range.clone() {
                self.check_writer(at, by, "writes", kind, clocks)?;
            }
        }
        for at in range.clone() {
            if self.last_read[at] > floor {
                self.check_readers(at, by, clocks)?;
            }
        }
        Ok(range)
    }

    fn check_readers(&self, at: usize, by: Toucher, clocks: &Clocks) -> Result<(), FaultKind> {
        for (warp, readers) in self.readers.iter().enumerate() {
            let Some(&Reader { time, lane }) = readers.get(at) else { continue };
            if time == 0 {
                continue;
            }
            if warp >= self.warps {
                let agent = clocks.reading_agent(warp - self.warps);
                if !clocks.knows(by.warp, by.lane, agent, time) {
                    return Err(self.race(at, by, "writes", warp * LANES, "read"));
                }
                continue;
            }
            let known = |lane: usize| clocks.knows(by.warp, by.lane, warp * LANES + lane, time);
            let unknown = if lane == SEVERAL {
                (0..LANES.min(clocks.threads() - warp * LANES)).find(|&lane| {
                    // One of several lanes of this warp is another one.
                    if warp == by.warp { lane != by.lane && !known(lane) } else { !known(lane) }
                })
            } else {
                Some(usize::from(lane)).filter(|&lane| !known(lane))
            };
            if let Some(lane) = unknown {
                return Err(self.race(at, by, "writes", warp * LANES + lane, "read"));
            }
        }
        Ok(())
    }

    /// Checks that something wrote all of these bytes.
    pub(crate) fn written(&self, mut range: std::ops::Range<usize>) -> Result<(), FaultKind> {
        match range.find(|&at| self.writers[at].time == 0) {
            None => Ok(()),
            Some(at) => Err(FaultKind::Unwritten { space: "shared", address: at as u64 + u64::from(BASE) }),
        }
    }

    pub(crate) fn bytes(&self, range: std::ops::Range<usize>) -> &[u8] {
        &self.data[range]
    }

    /// Writes bytes and notes who did. Lanes that write one byte at one time must write one value.
    pub(crate) fn write(
        &mut self,
        range: std::ops::Range<usize>,
        bytes: &[u8],
        by: Toucher,
        kind: Kind,
        time: Time,
    ) -> Result<(), FaultKind> {
        let agent = by.thread() as u16;
        for (at, &byte) in range.zip(bytes) {
            let writer = &mut self.writers[at];
            let differs = self.strict || self.data[at] != byte;
            if kind == Kind::Plain && writer.time == time && writer.agent != agent && differs {
                let other = writer.agent.into();
                return Err(self.race(at, by, "writes", other, "writes it in the same instruction"));
            }
            *writer = Writer { time, agent, kind };
            self.data[at] = byte;
        }
        Ok(())
    }

    /// An asynchronous operation will write these bytes.
    pub(crate) fn begin_write(&mut self, range: std::ops::Range<usize>) {
        self.writes_in_flight[range].iter_mut().for_each(|n| *n = n.saturating_add(1));
    }

    /// It wrote them: as an agent of its own, or for the thread that waited for it.
    pub(crate) fn finish_write(
        &mut self,
        range: std::ops::Range<usize>,
        bytes: &[u8],
        agent: usize,
        kind: Kind,
        time: Time,
    ) {
        self.writes_in_flight[range.clone()].iter_mut().for_each(|n| *n = n.saturating_sub(1));
        self.data[range.clone()].copy_from_slice(bytes);
        self.writers[range].fill(Writer { time, agent: agent as u16, kind });
    }

    /// An asynchronous operation will read these bytes, until `finish_read`.
    pub(crate) fn begin_read(&mut self, range: std::ops::Range<usize>) {
        self.reads_in_flight[range].iter_mut().for_each(|n| *n = n.saturating_add(1));
    }

    pub(crate) fn finish_read(&mut self, range: std::ops::Range<usize>) {
        self.reads_in_flight[range].iter_mut().for_each(|n| *n = n.saturating_sub(1));
    }

    /// Checks that what threads wrote is there for an asynchronous read, and not behind an asynchronous write: `fenced` gives each thread's last
    /// `fence.proxy.async`.
    pub(crate) fn check_proxy(
        &self,
        range: std::ops::Range<usize>,
        fenced: &[Time],
        own: Time,
    ) -> Result<(), FaultKind> {
        for at in range {
            let Writer { time, agent, kind } = self.writers[at];
            if kind == Kind::Async {
                continue;
            }
            if fenced.get(usize::from(agent)).is_none_or(|&fence| fence < time) && own < time {
                return Err(FaultKind::Proxy { address: at as u64 + u64::from(BASE), thread: agent.into() });
            }
        }
        Ok(())
    }
}
