//! What a kernel did wrong, and where.

use std::fmt;

/// A kernel that may not go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The kernel's name.
    pub kernel: String,
    /// `%ctaid`.
    pub block: [u32; 3],
    /// `%tid`; none where no single thread is to blame.
    pub thread: Option<[u32; 3]>,
    /// The line in the PTX text, counted from 1; 0 where the launch itself is wrong.
    pub line: u32,
    /// That line.
    pub text: String,
    /// What happened.
    pub kind: FaultKind,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FaultKind {
    /// An access outside of what was allocated.
    #[error("{bytes} bytes at {space} address {address:#x} are out of bounds")]
    OutOfBounds {
        /// The state space.
        space: &'static str,
        /// The address in it.
        address: u64,
        /// The width of the access.
        bytes: u64,
    },
    /// An address that is not a multiple of the width.
    #[error("{space} address {address:#x} is not a multiple of {align}")]
    Misaligned {
        /// The state space.
        space: &'static str,
        /// The address in it.
        address: u64,
        /// The multiple that it must be.
        align: u64,
    },
    /// A read of what nothing wrote.
    #[error("the byte at {space} address {address:#x} is read, and nothing wrote it")]
    Unwritten {
        /// The state space.
        space: &'static str,
        /// The address in it.
        address: u64,
    },
    /// A write to constant memory.
    #[error("address {address:#x} is read-only")]
    ReadOnly {
        /// The generic address.
        address: u64,
    },
    /// Two threads touch a byte, one writes, and nothing orders them.
    #[error("race at shared address {address:#x}: {what}")]
    Race {
        /// The address.
        address: u64,
        /// Who else, and what both do.
        what: String,
    },
    /// The same of global memory, also between blocks of a launch.
    #[error("race at global address {address:#x}: {what}")]
    GlobalRace {
        /// The address.
        address: u64,
        /// Who else, and what both do.
        what: String,
    },
    /// What an asynchronous operation has in flight is touched.
    #[error("in flight: {0}")]
    InFlight(String),
    /// A write by threads is read asynchronously without `fence.proxy.async` between.
    #[error(
        "shared address {address:#x} was written by thread {thread}, without fence.proxy.async before it is read or written asynchronously"
    )]
    Proxy {
        /// The address.
        address: u64,
        /// The thread's number in the block.
        thread: u32,
    },
    /// A launch that may begin before those before it have ended does what needs their end.
    #[error("before griddepcontrol.wait: {0}")]
    Early(String),
    /// Nobody can proceed.
    #[error("deadlock: {0}")]
    Deadlock(String),
    /// An instruction of a whole warp, executed by a part of it.
    #[error("participation: {0}")]
    Participation(String),
    /// `trap`.
    #[error("trap")]
    Trap,
    /// More instructions than the launch allows.
    #[error("more than {0} instructions were executed")]
    Steps(u64),
    /// Operands that the instruction does not allow.
    #[error("{0}")]
    Operand(String),
    /// A launch that the kernel or the device does not allow.
    #[error("launch: {0}")]
    Launch(String),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [x, y, z] = self.block;
        write!(f, "kernel {}, block ({x}, {y}, {z})", self.kernel)?;
        if let Some([x, y, z]) = self.thread {
            write!(f, ", thread ({x}, {y}, {z})")?;
        }
        write!(f, ", line {}: `{}`: {}", self.line, self.text, self.kind)
    }
}

impl std::error::Error for Fault {}

/// A fault inside a warp: the lane, if one is to blame.
#[derive(Debug)]
pub(crate) struct LaneFault {
    pub(crate) lane: Option<usize>,
    pub(crate) kind: FaultKind,
}

impl From<FaultKind> for LaneFault {
    fn from(kind: FaultKind) -> Self {
        Self { lane: None, kind }
    }
}

/// Blames a lane.
pub(crate) fn by_lane(lane: usize) -> impl Fn(FaultKind) -> LaneFault {
    move |kind| LaneFault { lane: Some(lane), kind }
}
