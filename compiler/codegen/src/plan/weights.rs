//! Constant expressions over checkpoint tensors, as bindings of packed weights.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use xfc_lang::graph::blocks::Blocks;
use xfc_lang::graph::path::Stack;
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
    /// Added to each stored number.
    pub offset: f64,
}

/// A constant expression: parts concatenated along dimension 0. Those of a stack have one element of it each.
#[derive(Clone, Debug, PartialEq)]
pub struct WeightExpr {
    parts: Vec<(Source, Vec<u64>)>,
    /// Before they are put into blocks.
    dtype: DType,
    /// What they are held in, also where they are widened again as they are read.
    blocks: Option<Blocks>,
}

fn fixed(ty: &Type) -> Option<Vec<u64>> {
    ty.dims.iter().map(|d| if let Dim::Fixed(n) = d { Some(*n) } else { None }).collect()
}

impl WeightExpr {
    /// The parameter at the absolute path, or those of its range stacked.
    ///
    /// # Errors
    /// No binding, or one of another shape.
    pub fn leaf(path: &str, ty: &Type, stored: &dyn Fn(&str) -> Option<Stored>) -> Result<Self, CodegenError> {
        let shape = fixed(ty).ok_or_else(|| CodegenError::bug("weights", format!("weight `{path}` of type {ty}")))?;
        let one = |path: String, step: Option<Step>, shape: Vec<u64>| -> Result<(Source, Vec<u64>), CodegenError> {
            let stored = stored(&path)
                .ok_or_else(|| CodegenError::bug("weights", format!("parameter `{path}` has no binding")))?;
            let steps = stored.steps.into_iter().chain(step).collect();
            Ok((Source { path, names: stored.names, shape: stored.shape, steps, offset: stored.offset }, shape))
        };
        let parts = match Stack::of(path).map_err(|wrong| CodegenError::bug("weights", wrong))? {
            None => vec![one(path.to_owned(), None, shape)?],
            Some(stack) => {
                let own: Vec<u64> = [&[1], shape.get(1..).unwrap_or_default()].concat();
                let element = |path| one(path, Some(Step::Reshape { shape: own.clone() }), own.clone());
                stack.paths().map(element).collect::<Result<_, CodegenError>>()?
            }
        };
        Ok(WeightExpr { parts, dtype: ty.dtype, blocks: None })
    }

    /// Applies an operation to constant operands; `to` is the type of the result.
    ///
    /// # Errors
    /// An operation that checkpoints cannot be bound through.
    pub fn apply(op: &Core, operands: &[&WeightExpr], to: &Type) -> Result<Self, CodegenError> {
        let result = fixed(to).ok_or_else(|| CodegenError::bug("weights", format!("a constant of type {to}")))?;
        let unsupported = || CodegenError::unsupported(format!("{op:?} of weights of several tensors"), "");
        match (op, operands) {
            (Core::Concat { dim: 0 }, [first, rest @ ..])
                if rest.iter().all(|o| (o.dtype, o.blocks) == (first.dtype, first.blocks)) =>
            {
                Ok(WeightExpr {
                    parts: operands.iter().flat_map(|o| o.parts.iter().cloned()).collect(),
                    ..(*first).clone()
                })
            }
            (Core::Cast, [x]) if to.dtype.blocks().is_some() => {
                Ok(WeightExpr { blocks: to.dtype.blocks(), ..(*x).clone() })
            }
            // Who reads it widens what it reads.
            (Core::Cast, [x]) if x.blocks.is_some() && to.dtype.is_float() => Ok((*x).clone()),
            // Groups are of neighbours as they lie.
            (_, [x]) if x.blocks.is_some() => Err(unsupported()),
            // Storage is converted when it is packed; a type that holds less has no way back.
            (Core::Cast, [x]) if to.dtype != DType::F32 || x.dtype == DType::F32 => {
                Ok(WeightExpr { dtype: to.dtype, ..(*x).clone() })
            }
            (_, [x]) => {
                // Of several parts each is changed by itself, where dimension 0 stays.
                let alone = x.parts.len() == 1;
                let step = |own: &[u64]| -> Result<(Step, Vec<u64>), CodegenError> {
                    let same_first =
                        || result.first().is_some_and(|n| *n == x.parts.iter().map(|(_, s)| s[0]).sum::<u64>());
                    Ok(match op {
                        Core::Transpose { perm } if alone || perm.first() == Some(&0) => {
                            (Step::Transpose { perm: perm.clone() }, perm.iter().map(|d| own[*d]).collect())
                        }
                        Core::Slice { dim, start } if alone || *dim > 0 => {
                            let mut shape = own.to_vec();
                            shape[*dim] = result[*dim];
                            (Step::Slice { dim: *dim, start: *start, len: result[*dim] }, shape)
                        }
                        Core::Reshape if alone => (Step::Reshape { shape: result.clone() }, result.clone()),
                        Core::Reshape if same_first() => {
                            let shape = [&own[..1], &result[1..]].concat();
                            (Step::Reshape { shape: shape.clone() }, shape)
                        }
                        _ => return Err(unsupported()),
                    })
                };
                let change = |(source, own): &(Source, Vec<u64>)| -> Result<(Source, Vec<u64>), CodegenError> {
                    let (step, shape) = step(own)?;
                    let steps = source.steps.iter().cloned().chain([step]).collect();
                    Ok((Source { steps, ..source.clone() }, shape))
                };
                let parts = x.parts.iter().map(change).collect::<Result<Vec<_>, CodegenError>>()?;
                Ok(WeightExpr { parts, dtype: to.dtype, blocks: None })
            }
            _ => Err(unsupported()),
        }
    }

    /// What it is held in.
    pub fn blocks(&self) -> Option<Blocks> {
        self.blocks
    }

    /// Says which numbers it is of, once they are of this type.
    fn numbers(&self, dtype: manifest::DType) -> String {
        format!("{dtype:?} {:?}", self.parts)
    }
}

/// How products lay out the matrices that are tables too, by the numbers in them.
pub type Tables = BTreeMap<String, Pack>;

/// The packed weights of a plan.
#[derive(Debug, Default)]
pub struct Weights {
    /// In the order of first use.
    pub list: Vec<Weight>,
    index: HashMap<String, WeightId>,
    /// What was known before of tables that are read out of matrices.
    tables: Tables,
    /// Tables that are row-major, and matrices in panels.
    plain: BTreeSet<String>,
    panels: Tables,
}

impl Weights {
    /// No weights yet, of a plan in which these tables are read out of matrices.
    pub fn new(tables: Tables) -> Self {
        Weights { tables, ..Weights::default() }
    }

    /// The layout of a table that rows are gathered from: that of a product's matrix of the same numbers where one is known.
    ///
    /// # Errors
    /// A dtype that weights cannot have.
    pub fn layout_of_table(&mut self, expr: &WeightExpr, dtype: DType) -> Result<Pack, CodegenError> {
        let numbers = expr.numbers(manifest_dtype(dtype)?);
        if let Some(pack) = self.tables.get(&numbers) {
            return Ok(*pack);
        }
        self.plain.insert(numbers);
        Ok(Pack::Plain)
    }

    /// The tables that are held twice, row-major and as a matrix, and how the matrix is laid out.
    pub fn held_twice(&self) -> Tables {
        self.panels.iter().filter(|(numbers, _)| self.plain.contains(*numbers)).map(|(n, p)| (n.clone(), *p)).collect()
    }

    /// The packed weight that holds `expr` in this dtype and layout; equal ones are one.
    ///
    /// # Errors
    /// A dtype that weights cannot have; integers of few bits that are not read as such.
    pub fn intern(&mut self, expr: &WeightExpr, dtype: DType, pack: Pack) -> Result<WeightId, CodegenError> {
        let names: Vec<&str> = expr.parts.iter().map(|(s, _)| s.path.as_str()).collect();
        if expr.blocks.is_some() != matches!(pack, Pack::Blocks(_)) {
            return Err(CodegenError::unsupported(
                "integers of few bits that are widened as a whole",
                names.join(" + "),
            ));
        }
        // Integers of few bits are made of numbers of the type that the graph says.
        let dtype = manifest_dtype(if expr.blocks.is_some() { expr.dtype } else { dtype })?;
        let numbers = expr.numbers(dtype);
        let key = format!("{pack:?} {numbers}");
        if let Some(id) = self.index.get(&key) {
            return Ok(*id);
        }
        let mut shape = expr.parts[0].1.clone();
        if let (Some(first), true) = (shape.first_mut(), expr.parts.len() > 1) {
            *first = expr.parts.iter().filter_map(|(_, s)| s.first()).sum();
        }
        if let (Pack::Panels { .. }, [_, _]) = (pack, &shape[..]) {
            self.panels.insert(numbers, pack);
        }
        self.list.push(Weight {
            name: names.join(" + "),
            dtype,
            shape,
            sources: expr.parts.iter().map(|(s, _)| s.clone()).collect(),
            pack,
            // Outputs of a product are independent of each other.
            split: (pack != Pack::Plain).then_some(0),
        });
        self.index.insert(key, self.list.len() - 1);
        Ok(self.list.len() - 1)
    }
}

/// The artifact's name of a dtype.
///
/// # Errors
/// Blocks: they are a layout of weights, and no type of a tensor.
pub fn manifest_dtype(dtype: DType) -> Result<manifest::DType, CodegenError> {
    Ok(match dtype {
        DType::F32 => manifest::DType::F32,
        DType::F16 => manifest::DType::F16,
        DType::BF16 => manifest::DType::BF16,
        DType::I64 => manifest::DType::I64,
        DType::I32 => manifest::DType::I32,
        DType::Bool => manifest::DType::Bool,
        DType::Blocks(_) => return Err(CodegenError::bug("plan", format!("a tensor of {dtype}"))),
    })
}
