//! Products of each row with the weight matrices of the experts chosen for it, and everything elementwise that follows.

use std::any::Any;

use super::{FusedOp, fail};
use crate::graph::build::Builder;
use crate::graph::{DType, Graph, Type};
use crate::ops::attributes::Attributes;
use crate::ops::{Op, ShapeError};

/// `y[t, a] = epilogue(x[t] · w_0[e]ᵀ, .., x[t] · w_{P-1}[e]ᵀ, extras..)` with `e = index[t, a]`.
///
/// # Shapes
/// Operands: `x [tokens, I]`, or `[tokens, A, I]` where each choice has a row of its own; `parts` stacks of matrices `w_j [E, O, I]` (all alike);
/// `index [tokens, A]` of i64, in `0 .. E`; then extras, each broadcastable to `[tokens, A, O]`, or, where `stacked` names it, a stack `[E, O]`
/// of which the row of the expert is read (a bias). Result `[tokens, A, O]`.
/// The epilogue is a graph of scalars (rank 0): parameters `0 .. parts` are the accumulators (f32), the rest the extras in order; its one
/// output is an element of the result.
///
/// A stack is a constant expression over weights, as a matrix of a [`Linear`](super::Linear) is.
///
/// # Precision
/// As of [`Linear`](super::Linear): products of operands of the stated dtypes (f32, or bf16 by bf16), accumulated in f32; the epilogue in f32.
///
/// # Source
/// Shazeer et al. 2017, §2; Gale et al. 2022 (MegaBlocks), §4: each expert's rows are one product.
#[derive(Clone, Debug)]
pub struct ExpertLinear {
    /// Number of stacks.
    pub parts: usize,
    /// Which extras are stacks, ascending.
    pub stacked: Vec<usize>,
    /// What is done with the accumulators.
    pub epilogue: Graph,
}

impl ExpertLinear {
    /// Whether each choice has a row of `x` of its own.
    pub fn by_choice(x: &Type, index: &Type) -> bool {
        x.dims.len() > index.dims.len()
    }
}

impl FusedOp for ExpertLinear {
    fn name(&self) -> &'static str {
        "expert_linear"
    }

    fn attributes(&self) -> Vec<(&'static str, String)> {
        vec![("parts", self.parts.to_string()), ("stacked", format!("{:?}", self.stacked))]
    }

    fn bodies(&self) -> Vec<(&'static str, &Graph)> {
        vec![("epilogue", &self.epilogue)]
    }

    fn decompose(&self, operands: &[Type]) -> Result<Graph, ShapeError> {
        let params = self.epilogue.params().len();
        if self.parts == 0 || params < self.parts || operands.len() != 2 + params {
            return fail(format!("{} operands for {} stacks and {params} scalars", operands.len(), self.parts));
        }
        let (x, w, index) = (&operands[0], &operands[1], &operands[1 + self.parts]);
        if operands[2..=self.parts].iter().any(|other| other != w) {
            return fail("the stacks are not alike");
        }
        if index.dtype != DType::I64 || index.dims.len() != 2 || !(2..=3).contains(&x.dims.len()) {
            return fail(format!("rows of {x} for the experts at {index}"));
        }
        let n_extras = params - self.parts;
        if !self.stacked.is_sorted_by(|a, b| a < b) || self.stacked.last().is_some_and(|i| *i >= n_extras) {
            return fail(format!("{:?} of {n_extras} extras are stacks", self.stacked));
        }
        let mut graph = Graph::new("expert_linear");
        let values: Vec<_> =
            operands.iter().enumerate().map(|(i, t)| graph.add_param(self.param_name(i), t.clone())).collect();
        let index_value = values[1 + self.parts];
        let spec = if Self::by_choice(x, index) { "tai,taoi->tao" } else { "ti,taoi->tao" };
        let mut b = Builder::new(&mut graph);
        let mut args = Vec::new();
        for w in &values[1..=self.parts] {
            let chosen = b.gather(*w, index_value)?; // [tokens, A, O, I]
            args.push(b.contract(spec, values[0], chosen)?); // [tokens, A, O]
        }
        let shape = b.graph.ty(args[0]).dims.clone();
        for (i, extra) in values[2 + self.parts..].iter().enumerate() {
            args.push(if self.stacked.contains(&i) { b.gather(*extra, index_value)? } else { *extra });
        }
        let outputs = b.lift(&self.epilogue, &args)?;
        let [y] = outputs[..] else {
            return fail("the epilogue has not one result");
        };
        if b.graph.ty(y).dims != shape {
            return fail(format!("the epilogue gives {}, not {}", b.graph.ty(y), Type::show(&shape)));
        }
        graph.add_output("y", y);
        Ok(graph)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl ExpertLinear {
    fn param_name(&self, operand: usize) -> String {
        match operand {
            0 => "x".into(),
            i if i <= self.parts => format!("w{}", i - 1),
            i if i == self.parts + 1 => "index".into(),
            i => format!("extra{}", i - 2 - self.parts),
        }
    }
}

pub(super) fn parse(a: &mut Attributes) -> Result<Op, String> {
    Ok(Op::from(ExpertLinear {
        parts: a.usize("parts")?,
        stacked: a.usizes("stacked")?,
        epilogue: a.body("epilogue")?,
    }))
}
