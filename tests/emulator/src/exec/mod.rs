//! Runs decoded kernels: memory and its checks, warps, blocks, launches.

pub(crate) mod access;
pub(crate) mod barriers;
pub(crate) mod block;
pub(crate) mod clocks;
pub(crate) mod collectives;
pub(crate) mod fault;
pub(crate) mod launch;
pub(crate) mod memory;
pub(crate) mod shared;
pub(crate) mod spaces;
pub(crate) mod stats;
pub(crate) mod warp;
pub(crate) mod mbarrier;
pub(crate) mod transfers;
pub(crate) mod wgmma;
