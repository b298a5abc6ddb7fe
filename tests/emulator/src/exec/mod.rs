//! Runs decoded kernels: memory and its checks, warps, blocks, launches.

pub(crate) mod launch;
pub(crate) mod block;
pub(crate) mod warp;
pub(crate) mod access;
pub(crate) mod barriers;
pub(crate) mod collectives;
pub(crate) mod tensor;
pub(crate) mod mma;
pub(crate) mod matrices;
pub(crate) mod wgmma;
pub(crate) mod registers;
pub(crate) mod descriptor;
pub(crate) mod transfers;
pub(crate) mod bulk;
pub(crate) mod early;
pub(crate) mod mbarrier;
pub(crate) mod clocks;
pub(crate) mod shared;
pub(crate) mod memory;
pub(crate) mod marks;
pub(crate) mod speech;
pub(crate) mod spaces;
pub(crate) mod stats;
pub(crate) mod fault;
