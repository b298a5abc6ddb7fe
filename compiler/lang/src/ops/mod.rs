//! What a node can be: a closed set of core operations and an open set of fused ones.
//!
//! A core operation means what [`crate::reference`] computes for it. A fused operation means its own
//! decomposition into core operations, so it needs no second definition anywhere.

pub mod core;
pub mod fused;

use std::sync::Arc;

pub use self::core::{BinaryOp, Core, ReduceOp, UnaryOp};
pub use self::fused::FusedOp;

/// The operation of a node.
#[derive(Clone, Debug)]
pub enum Op {
    /// One of the closed set.
    Core(Core),
    /// One of the open set, defined by its decomposition.
    Fused(Arc<dyn FusedOp>),
}

impl From<Core> for Op {
    fn from(op: Core) -> Self {
        Op::Core(op)
    }
}

impl Op {
    /// The core operation, if it is one.
    pub fn as_core(&self) -> Option<&Core> {
        match self {
            Op::Core(op) => Some(op),
            Op::Fused(_) => None,
        }
    }

    /// The fused operation of concrete type `T`, if it is one.
    pub fn as_fused<T: FusedOp>(&self) -> Option<&T> {
        match self {
            Op::Core(_) => None,
            Op::Fused(op) => op.as_any().downcast_ref::<T>(),
        }
    }
}
