//! Normalisation over the last dimension, recognised by `passes/fuse_norm.rs`.

use std::any::Any;

use super::{FusedOp, fail};
use crate::graph::build::Builder;
use crate::graph::{DType, Dim, Graph, Type};
use crate::ops::attributes::{Attributes, number};
use crate::ops::{Op, ReduceOp, ShapeError, UnaryOp};

/// `x * rsqrt(mean(x²) + eps) * w`.
///
/// # Shapes
/// `x [.., D]`, optional `w [D]` -> `[.., D]`.
///
/// # Precision
/// Computed in f32.
///
/// # Source
/// Zhang and Sennrich 2019, eq. 4.
#[derive(Clone, Debug, PartialEq)]
pub struct RmsNorm {
    /// Added to the mean square.
    pub eps: f64,
    /// Whether `w` is an operand.
    pub gain: bool,
}

/// `(x - mean(x)) * rsqrt(mean((x - mean(x))²) + eps) * w + b`.
///
/// # Shapes
/// `x [.., D]`, optional `w [D]`, optional `b [D]` -> `[.., D]`.
///
/// # Precision
/// Computed in f32.
///
/// # Source
/// Ba, Kiros and Hinton 2016, eq. 4.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerNorm {
    /// Added to the variance.
    pub eps: f64,
    /// Whether `w` is an operand.
    pub gain: bool,
    /// Whether `b` is an operand.
    pub bias: bool,
}

impl FusedOp for RmsNorm {
    fn name(&self) -> &'static str {
        "rms_norm"
    }

    fn attributes(&self) -> Vec<(&'static str, String)> {
        vec![("eps", number(self.eps)), ("gain", self.gain.to_string())]
    }

    fn decompose(&self, operands: &[Type]) -> Result<Graph, ShapeError> {
        check_operands(operands, usize::from(self.gain))?;
        let mut graph = Graph::new("rms_norm");
        let x = graph.add_param("x", operands[0].clone());
        let w = self.gain.then(|| graph.add_param("w", operands[1].clone()));
        let mut b = Builder::new(&mut graph);
        let square = b.mul(x, x)?; // [.., D]
        let mean = b.reduce(ReduceOp::Mean, square)?; // [.., 1]
        let eps = b.scalar(self.eps);
        let shifted = b.add(mean, eps)?; // [.., 1]
        let scale = b.unary(UnaryOp::Rsqrt, shifted)?; // [.., 1]
        let mut y = b.mul(x, scale)?; // [.., D]
        if let Some(w) = w {
            y = b.mul(y, w)?; // [.., D]
        }
        graph.add_output("y", y);
        Ok(graph)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl FusedOp for LayerNorm {
    fn name(&self) -> &'static str {
        "layer_norm"
    }

    fn attributes(&self) -> Vec<(&'static str, String)> {
        vec![("eps", number(self.eps)), ("gain", self.gain.to_string()), ("bias", self.bias.to_string())]
    }

    fn decompose(&self, operands: &[Type]) -> Result<Graph, ShapeError> {
        check_operands(operands, usize::from(self.gain) + usize::from(self.bias))?;
        let mut graph = Graph::new("layer_norm");
        let x = graph.add_param("x", operands[0].clone());
        let w = self.gain.then(|| graph.add_param("w", operands[1].clone()));
        let bias = self.bias.then(|| graph.add_param("b", operands[operands.len() - 1].clone()));
        let mut b = Builder::new(&mut graph);
        let mean = b.reduce(ReduceOp::Mean, x)?; // [.., 1]
        let centred = b.sub(x, mean)?; // [.., D]
        let square = b.mul(centred, centred)?; // [.., D]
        let variance = b.reduce(ReduceOp::Mean, square)?; // [.., 1]
        let eps = b.scalar(self.eps);
        let shifted = b.add(variance, eps)?; // [.., 1]
        let scale = b.unary(UnaryOp::Rsqrt, shifted)?; // [.., 1]
        let mut y = b.mul(centred, scale)?; // [.., D]
        if let Some(w) = w {
            y = b.mul(y, w)?; // [.., D]
        }
        if let Some(bias) = bias {
            y = b.add(y, bias)?; // [.., D]
        }
        graph.add_output("y", y);
        Ok(graph)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// `x [.., D]` in f32 and `vectors` operands `[D]`.
fn check_operands(operands: &[Type], vectors: usize) -> Result<(), ShapeError> {
    let Some((x, rest)) = operands.split_first().filter(|(_, rest)| rest.len() == vectors) else {
        return fail(format!("takes {} operands, not {}", 1 + vectors, operands.len()));
    };
    let Some(Dim::Fixed(width)) = x.dims.last().filter(|_| x.dtype == DType::F32) else {
        return fail(format!("normalises the last dimension of {x}"));
    };
    match rest.iter().find(|v| **v != Type::new(DType::F32, [Dim::Fixed(*width)])) {
        Some(v) => fail(format!("{v} is not one f32 for each of {width}")),
        None => Ok(()),
    }
}

pub(super) fn parse_rms_norm(a: &mut Attributes) -> Result<Op, String> {
    Ok(Op::from(RmsNorm { eps: a.f64("eps")?, gain: a.bool("gain")? }))
}

pub(super) fn parse_layer_norm(a: &mut Attributes) -> Result<Op, String> {
    Ok(Op::from(LayerNorm { eps: a.f64("eps")?, gain: a.bool("gain")?, bias: a.bool("bias")? }))
}
