//! What a node can be: a closed set of core operations and an open set of fused ones.
//!
//! A core operation means what [`crate::reference`] computes for it. A fused operation means its own
//! decomposition into core operations, so it needs no second definition anywhere.

pub mod attributes;
pub mod core;
pub mod fused;
pub mod shape;

use std::sync::Arc;

pub use self::core::{BinaryOp, Core, ReduceOp, UnaryOp};
pub use self::fused::FusedOp;
pub use self::shape::ShapeError;

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

impl<T: FusedOp> From<T> for Op {
    fn from(op: T) -> Self {
        Op::Fused(Arc::new(op))
    }
}

impl Op {
    /// As in the text form.
    pub fn name(&self) -> &'static str {
        match self {
            Op::Core(op) => op.name(),
            Op::Fused(op) => op.name(),
        }
    }

    /// Attributes in the order of the text form, rendered.
    pub fn attributes(&self) -> Vec<(&'static str, String)> {
        match self {
            Op::Core(op) => op.attributes(),
            Op::Fused(op) => op.attributes(),
        }
    }

    /// Graphs that belong to the operation, by attribute name.
    pub fn bodies(&self) -> Vec<(&'static str, &crate::graph::Graph)> {
        match self {
            Op::Core(Core::Scan { step, .. }) => vec![("step", step)],
            Op::Core(_) => Vec::new(),
            Op::Fused(op) => op.bodies(),
        }
    }

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
