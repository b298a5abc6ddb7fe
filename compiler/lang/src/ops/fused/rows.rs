//! A group of operations that treat every token by itself, as one kernel.

use std::any::Any;

use super::{FusedOp, fail};
use crate::graph::{Graph, Type};
use crate::ops::attributes::{Attributes, quote};
use crate::ops::{Op, ShapeError};

/// Any core or fused operations whose results at a token depend on that token alone: norms, rotary embedding, gathers,
/// elementwise chains, slices and concatenations, and the writing of caches.
///
/// # Shapes
/// The body is a graph with the group's operands as parameters and its results as outputs; every dimension in it is
/// fixed, but for a leading `tokens` or `rows(tokens)`. An output that is fed to a `Cache` right behind the group is written into its
/// pages by this kernel.
///
/// # Source
/// Chen et al. 2018 (TVM), §3: fusion of injective operations and reductions.
#[derive(Clone, Debug)]
pub struct Rows {
    /// The operations of the group.
    pub body: Graph,
    /// Why the group ends where it does, for people.
    pub reason: String,
}

impl FusedOp for Rows {
    fn name(&self) -> &'static str {
        "rows"
    }

    fn attributes(&self) -> Vec<(&'static str, String)> {
        vec![("reason", quote(&self.reason))]
    }

    fn bodies(&self) -> Vec<(&'static str, &Graph)> {
        vec![("body", &self.body)]
    }

    fn decompose(&self, operands: &[Type]) -> Result<Graph, ShapeError> {
        let params = self.body.params();
        if params.len() != operands.len() {
            return fail(format!("{} operands for {} parameters", operands.len(), params.len()));
        }
        for (param, operand) in params.iter().zip(operands) {
            if self.body.ty(param.value) != operand {
                return fail(format!("'{}' is {}, not {operand}", param.name, self.body.ty(param.value)));
            }
        }
        Ok(self.body.clone())
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

pub(super) fn parse(a: &mut Attributes) -> Result<Op, String> {
    Ok(Op::from(Rows { body: a.body("body")?, reason: a.string("reason")? }))
}
