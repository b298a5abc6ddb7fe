//! A product of each head with a weight matrix of its own.

use std::any::Any;

use super::{FusedOp, fail};
use crate::graph::build::Builder;
use crate::graph::{Graph, Type};
use crate::ops::attributes::Attributes;
use crate::ops::{Op, ShapeError};

/// `y_h = x_h · w_hᵀ` for every head `h`.
///
/// # Shapes
/// Operands: `x [.., H, I]` and matrices `w [H, O, I]` -> `[.., H, O]`. The matrices are a constant expression over weights, as those of
/// [`Linear`](super::Linear).
///
/// # Precision
/// Products of operands of the stated dtypes (f32, or bf16 by bf16), accumulated in f32; the result is f32.
///
/// # Source
/// arXiv:2405.04434, 2.1.2: projections of keys and values by head, moved to the queries and the results.
#[derive(Clone, Copy, Debug)]
pub struct HeadLinear;

impl FusedOp for HeadLinear {
    fn name(&self) -> &'static str {
        "head_linear"
    }

    fn attributes(&self) -> Vec<(&'static str, String)> {
        Vec::new()
    }

    fn decompose(&self, operands: &[Type]) -> Result<Graph, ShapeError> {
        let [x, w] = operands else { return fail(format!("takes 2 operands, not {}", operands.len())) };
        let Some(labels) = x.dims.len().checked_sub(2).and_then(|n| "abcdefgjklmnpqrstuvwxyz".get(..n)) else {
            return fail(format!("the heads of {x}"));
        };
        if w.dims.len() != 3 {
            return fail(format!("the matrices {w}"));
        }
        let mut graph = Graph::new("head_linear");
        let (x, w) = (graph.add_param("x", x.clone()), graph.add_param("w", w.clone()));
        let y = Builder::new(&mut graph).contract(format!("{labels}hi,hoi->{labels}ho"), x, w)?; // [.., H, O]
        graph.add_output("y", y);
        Ok(graph)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

pub(super) fn parse(_: &mut Attributes) -> Result<Op, String> {
    Ok(Op::from(HeadLinear))
}
