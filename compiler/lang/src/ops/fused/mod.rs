//! The fused operations: an open set, each in a file of its own, each defined by its decomposition.
//!
//! The decomposition is the meaning, the fallback lowering and the property test of a fused operation.
//! To add one: a file here, and one line in [`PARSERS`].

mod attention;
mod expert_linear;
mod head_linear;
mod linear;
mod norm;
mod rows;

use std::any::Any;
use std::fmt;

pub use self::attention::{Attention, Reach};
pub use self::expert_linear::ExpertLinear;
pub use self::head_linear::HeadLinear;
pub use self::linear::Linear;
pub use self::norm::{LayerNorm, RmsNorm};
pub use self::rows::Rows;

use super::attributes::Attributes;
use super::{Op, ShapeError};
use crate::graph::{Graph, Type};

/// Reads the operation of one name from its attributes.
pub type Parser = fn(&mut Attributes) -> Result<Op, String>;

/// Every fused operation, by its name in the text form.
pub const PARSERS: &[(&str, Parser)] = &[
    ("rms_norm", norm::parse_rms_norm),
    ("layer_norm", norm::parse_layer_norm),
    ("linear", linear::parse),
    ("expert_linear", expert_linear::parse),
    ("head_linear", head_linear::parse),
    ("attention", attention::parse),
    ("rows", rows::parse),
];

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

    /// A graph with the same parameters and results, of core operations or of fused ones that decompose further. The meaning of this operation.
    ///
    /// `operands` are the types of the operands; types that the operation does not take are an error.
    fn decompose(&self, operands: &[Type]) -> Result<Graph, ShapeError>;

    /// For downcasting to the concrete operation.
    fn as_any(&self) -> &dyn Any;
}

fn fail<T>(message: impl Into<String>) -> Result<T, ShapeError> {
    Err(ShapeError(message.into()))
}
