//! Constant expressions over checkpoint tensors, as bindings of packed weights.

use std::collections::HashMap;

use xfc_lang::graph::{DType, Dim, Type};
use xfc_lang::ops::Core;
use xfc_runtime::artifact::manifest::{self, Pack, Source, Step, Weight, WeightId};

use crate::error::CodegenError;

/// How a parameter is stored in checkpoints: what the description's `names:` say.
#[derive(Clone, Debug, PartialEq)]
pub struct Stored {
    /// Names, tried in order.
    pub names: Vec<String>,
    /// Shape as stored.
    pub shape: Vec<u64>,
    /// From the stored tensor to the parameter.
    pub steps: Vec<Step>,
}

/// A constant expression: parts concatenated along dimension 0.
#[derive(Clone, Debug, PartialEq)]
pub struct WeightExpr {
    parts: Vec<(Source, Vec<u64>)>,
    dtype: DType,
}

fn fixed(ty: &Type) -> Option<Vec<u64>> {
    ty.dims.iter().map(|d| if let Dim::Fixed(n) = d { Some(*n) } else { None }).collect()
}

impl WeightExpr {
    /// The parameter at the absolute path.
    ///
    /// # Errors
    /// No binding, or one of another shape.
    pub fn leaf(path: &str, ty: &Type, stored: Option<Stored>) -> Result<Self, CodegenError> {
        let shape = fixed(ty).ok_or_else(|| CodegenError::bug("weights", format!("weight `{path}` of type {ty}")))?;
        let stored =
            stored.ok_or_else(|| CodegenError::bug("weights", format!("parameter `{path}` has no binding")))?;
        let source = Source { path: path.to_owned(), names: stored.names, shape: stored.shape, steps: stored.steps };
        Ok(WeightExpr { parts: vec![(source, shape)], dtype: ty.dtype })
    }

    /// Applies an operation to constant operands; `to` is the type of the result.
    ///
    /// # Errors
    /// An operation that checkpoints cannot be bound through.
    pub fn apply(op: &Core, operands: &[&WeightExpr], to: &Type) -> Result<Self, CodegenError> {
        let result = fixed(to).ok_or_else(|| CodegenError::bug("weights", format!("a constant of type {to}")))?;
        let unsupported = || CodegenError::unsupported(format!("{op:?} of weights of several tensors"), "");
        match (op, operands) {
            (Core::Concat { dim: 0 }, _) => Ok(WeightExpr {
                parts: operands.iter().flat_map(|o| o.parts.iter().cloned()).collect(),
                dtype: to.dtype,
            }),
            // Storage is converted when it is packed; a type that holds less has no way back.
            (Core::Cast, [x]) if to.dtype != DType::F32 || x.dtype == DType::F32 => {
                Ok(WeightExpr { dtype: to.dtype, ..(*x).clone() })
            }
            (_, [x]) => {
                let [(source, _)] = &x.parts[..] else { return Err(unsupported()) };
                let step = match op {
                    Core::Transpose { perm } => Step::Transpose { perm: perm.clone() },
                    Core::Slice { dim, start } => Step::Slice { dim: *dim, start: *start, len: result[*dim] },
                    Core::Reshape => Step::Reshape { shape: result.clone() },
                    _ => return Err(unsupported()),
                };
                let mut source = source.clone();
                source.steps.push(step);
                Ok(WeightExpr { parts: vec![(source, result)], dtype: to.dtype })
            }
            _ => Err(unsupported()),
        }
    }
}

/// The packed weights of a plan.
#[derive(Debug, Default)]
pub struct Weights {
    /// In the order of first use.
    pub list: Vec<Weight>,
    index: HashMap<String, WeightId>,
}

impl Weights {
    /// The packed weight that holds `expr` in this dtype and layout; equal ones are one.
    ///
    /// # Errors
    /// A dtype that weights cannot have.
    pub fn intern(&mut self, expr: &WeightExpr, dtype: DType, pack: Pack) -> Result<WeightId, CodegenError> {
        let dtype = manifest_dtype(dtype);
        let key = format!("{dtype:?} {pack:?} {:?}", expr.parts);
        if let Some(id) = self.index.get(&key) {
            return Ok(*id);
        }
        let names: Vec<&str> = expr.parts.iter().map(|(s, _)| s.path.as_str()).collect();
        let mut shape = expr.parts[0].1.clone();
        if let (Some(first), true) = (shape.first_mut(), expr.parts.len() > 1) {
            *first = expr.parts.iter().filter_map(|(_, s)| s.first()).sum();
        }
        self.list.push(Weight {
            name: names.join(" + "),
            dtype,
            shape,
            sources: expr.parts.iter().map(|(s, _)| s.clone()).collect(),
            pack,
            // Outputs of a product are independent of each other.
            split: matches!(pack, Pack::Panels { .. }).then_some(0),
        });
        self.index.insert(key, self.list.len() - 1);
        Ok(self.list.len() - 1)
    }
}

/// The artifact's name of a dtype.
pub fn manifest_dtype(dtype: DType) -> manifest::DType {
    match dtype {
        DType::F32 => manifest::DType::F32,
        DType::F16 => manifest::DType::F16,
        DType::BF16 => manifest::DType::BF16,
        DType::I64 => manifest::DType::I64,
        DType::I32 => manifest::DType::I32,
        DType::Bool => manifest::DType::Bool,
    }
}
