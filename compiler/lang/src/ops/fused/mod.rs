//! The fused operations: an open set, each in a file of its own, each defined by its decomposition.
//!
//! The decomposition is the meaning, the fallback lowering and the property test of a fused operation.
//! To add one: a file here, and one line in [`PARSERS`].

mod attention;
mod linear;
mod norm;
mod rows;

use std::any::Any;
use std::fmt;

pub use self::attention::Attention;
pub use self::linear::Linear;
pub use self::norm::{LayerNorm, RmsNorm};
pub use self::rows::Rows;

use crate::graph::Graph;

/// A fused operation.
pub trait FusedOp: fmt::Debug + Send + Sync + 'static {
    /// As in the text form: `rms_norm`.
    fn name(&self) -> &'static str;

    /// Attributes of the text form in a fixed order, as `key = value` pairs already rendered.
    fn attributes(&self) -> Vec<(&'static str, String)>;

    /// Scalar or tensor graphs that belong to the operation (an epilogue, a mask), by attribute name.
    fn bodies(&self) -> Vec<(&'static str, &Graph)> {
        Vec::new()
    }

    /// A graph of core operations with the same parameters and results. The meaning of this operation.
    ///
    /// `operands` are the types of the operands.
    fn decompose(&self, operands: &[crate::graph::Type]) -> Graph;

    /// For downcasting to the concrete operation.
    fn as_any(&self) -> &dyn Any;
}
