//! One or two products with weight matrices that share their input, and everything elementwise that follows.

use std::any::Any;

use super::{FusedOp, fail};
use crate::graph::build::Builder;
use crate::graph::{DType, Graph, Type};
use crate::ops::attributes::Attributes;
use crate::ops::{Op, ShapeError};

/// `y = epilogue(x · w_0ᵀ, .., x · w_{P-1}ᵀ, extras..)`.
///
/// # Shapes
/// Operands: `x [.., I]`, `parts` matrices `w_j [O, I]` (all alike), then extras, each broadcastable to
/// `[.., O]` (a bias `[O]`, a residual `[.., O]`). Result `[.., O]`.
/// The epilogue is a graph of scalars (rank 0): parameters `0 .. parts` are the accumulators (f32), the rest
/// the extras in order; its one output is an element of the result.
///
/// A matrix operand is a constant expression over weights: `Weight`, or `Concat` along dimension 0,
/// `Transpose`, `Slice` and `Cast` of such. Linears that share an input are merged into one whose matrix is a `Concat`,
/// and whose result is sliced.
///
/// # Precision
/// Products of operands of the stated dtypes (f32, or bf16 by bf16), accumulated in f32; the epilogue in f32.
///
/// # Source
/// Kerr et al. 2017 (CUTLASS): what follows a product elementwise is done while its accumulators are in registers.
#[derive(Clone, Debug)]
pub struct Linear {
    /// Number of weight matrices.
    pub parts: usize,
    /// What is done with the accumulators.
    pub epilogue: Graph,
}

impl Linear {
    /// A product with one matrix and nothing after it.
    pub fn identity() -> Self {
        let mut epilogue = Graph::new("epilogue");
        let acc = epilogue.add_param("acc", Type::scalar(DType::F32));
        epilogue.add_output("y", acc);
        Linear { parts: 1, epilogue }
    }

    /// Whether the result is the accumulator of one matrix.
    pub fn is_identity(&self) -> bool {
        self.parts == 1
            && self.epilogue.outputs().first().map(|o| o.value) == self.epilogue.params().first().map(|p| p.value)
    }
}

impl FusedOp for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn attributes(&self) -> Vec<(&'static str, String)> {
        vec![("parts", self.parts.to_string())]
    }

    fn bodies(&self) -> Vec<(&'static str, &Graph)> {
        vec![("epilogue", &self.epilogue)]
    }

    fn decompose(&self, operands: &[Type]) -> Result<Graph, ShapeError> {
        let params = self.epilogue.params().len();
        if self.parts == 0 || params < self.parts || operands.len() != 1 + params {
            return fail(format!("{} operands for {} matrices and {params} scalars", operands.len(), self.parts));
        }
        let (x, w) = (&operands[0], &operands[1]);
        let Some((batch, labels)) =
            x.dims.len().checked_sub(1).zip("abcdefghklmnpqrstuvwxyz".get(..x.dims.len().saturating_sub(1)))
        else {
            return fail(format!("the last dimension of {x}"));
        };
        if operands[2..=self.parts].iter().any(|other| other != w) {
            return fail("the matrices are not alike");
        }
        let mut graph = Graph::new("linear");
        let values: Vec<_> =
            operands.iter().enumerate().map(|(i, t)| graph.add_param(self.param_name(i), t.clone())).collect();
        let mut b = Builder::new(&mut graph);
        let mut args = Vec::new();
        for j in 0..self.parts {
            args.push(b.contract(format!("{labels}i,oi->{labels}o"), values[0], values[1 + j])?); // [.., O]
        }
        args.extend(&values[1 + self.parts..]);
        let shape = b.graph.ty(args[0]).dims.clone();
        let outputs = b.lift(&self.epilogue, &args)?;
        let [y] = outputs[..] else {
            return fail("the epilogue has not one result");
        };
        if b.graph.ty(y).dims != shape {
            return fail(format!(
                "the epilogue gives {} in {batch} leading dimensions, not {}",
                b.graph.ty(y),
                Type::show(&shape)
            ));
        }
        graph.add_output("y", y);
        Ok(graph)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl Linear {
    fn param_name(&self, operand: usize) -> String {
        match operand {
            0 => "x".into(),
            i if i <= self.parts => format!("w{}", i - 1),
            i => format!("extra{}", i - 1 - self.parts),
        }
    }
}

pub(super) fn parse(a: &mut Attributes) -> Result<Op, String> {
    Ok(Op::from(Linear { parts: a.usize("parts")?, epilogue: a.body("epilogue")? }))
}
