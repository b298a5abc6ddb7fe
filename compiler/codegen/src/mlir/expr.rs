//! The shared expression emitter: elementwise operations and scalar graphs (epilogues, masks, scores) on registers.
//!
//! All kernels of all targets go through [`elementwise`]. Values keep the register type of their dtype: f32 as itself, bf16 as its bits,
//! booleans as `i1`, integers as `ints` (i64, or i32 inside attention, where positions fit). A table that a graph of scalars gathers from is
//! its address.

use std::collections::HashMap;

use xfc_lang::graph::{DType, Dim, Graph, ValueId};
use xfc_lang::ops::{BinaryOp, Core, Op, UnaryOp};

use super::writer::{Cmp, Elem, Spread, Ty, Val, Writer};
use crate::error::CodegenError;

/// Register element type of a dtype.
pub fn elem_of(dtype: DType, ints: Elem) -> Result<Elem, CodegenError> {
    match dtype {
        DType::F32 => Ok(Elem::F32),
        // Outside of pages, what is rounded for them lies as f32.
        DType::Blocks(blocks) if blocks.is_kept() => Ok(Elem::F32),
        DType::BF16 => Ok(Elem::I16),
        DType::I64 => Ok(ints),
        DType::I32 => Ok(Elem::I32),
        DType::Bool => Ok(Elem::I1),
        DType::F16 | DType::Blocks(_) => Err(CodegenError::unsupported(format!("arithmetic on {dtype}"), "")),
    }
}

/// A constant scalar of `dtype`.
pub fn constant(w: &mut Writer, value: f64, dtype: DType, ints: Elem) -> Result<Val, CodegenError> {
    Ok(match elem_of(dtype, ints)? {
        Elem::F32 => w.f32(value, 0),
        Elem::I16 => w.int(i64::from(half::bf16::from_f32(value as f32).to_bits() as i16), Ty::scalar(Elem::I16)),
        Elem::I1 => w.int(i64::from(value != 0.0), Ty::scalar(Elem::I1)),
        elem => w.int(value as i64, Ty::scalar(elem)),
    })
}

/// Brings values to the same number of lanes.
fn same_lanes(w: &mut Writer, args: &[Val]) -> Vec<Val> {
    let lanes = args.iter().map(|a| a.ty.lanes).max().unwrap_or(0);
    args.iter().map(|a| w.splat(*a, lanes)).collect()
}

/// One elementwise core operation on registers. `to` is the result's dtype; `second` the value of a constant second operand.
pub fn elementwise(
    w: &mut Writer,
    op: &Core,
    args: &[Val],
    to: DType,
    second: Option<f64>,
    ints: Elem,
) -> Result<Val, CodegenError> {
    let args = same_lanes(w, args);
    match (op, &args[..]) {
        (Core::Unary(op), [a]) => unary(w, *op, *a),
        (Core::Binary(op), [a, b]) => binary(w, *op, *a, *b, second),
        (Core::Select, [c, a, b]) => Ok(w.select(*c, *a, *b)),
        (Core::Cast, [a]) => cast(w, *a, elem_of(to, ints)?),
        _ => Err(CodegenError::bug("expression", format!("{op:?} with {} operands is not elementwise", args.len()))),
    }
}

fn unary(w: &mut Writer, op: UnaryOp, a: Val) -> Result<Val, CodegenError> {
    let lanes = a.ty.lanes;
    if !a.ty.elem.is_float() {
        let zero = w.int(0, a.ty);
        return match op {
            UnaryOp::Neg => Ok(w.sub(zero, a)),
            UnaryOp::Abs => {
                let n = w.sub(zero, a);
                Ok(w.max(a, n))
            }
            UnaryOp::Floor => Ok(a),
            UnaryOp::Not if a.ty.elem == Elem::I1 => {
                let one = w.int(1, a.ty);
                Ok(w.xor(a, one))
            }
            _ => Err(CodegenError::bug("expression", format!("{op:?} of {:?}", a.ty.elem))),
        };
    }
    Ok(match op {
        UnaryOp::Neg => {
            // Through the sign bit, so that -0 comes out right.
            let bits = w.bitcast(a, a.ty.with(Elem::I32));
            let sign = w.int(i64::from(i32::MIN), bits.ty);
            let flipped = w.xor(bits, sign);
            w.bitcast(flipped, a.ty)
        }
        UnaryOp::Abs => w.fabs(a),
        UnaryOp::Exp => w.exp(a),
        UnaryOp::Log => w.log(a),
        UnaryOp::Sqrt => w.sqrt(a),
        UnaryOp::Rsqrt => {
            let one = w.f32(1.0, lanes);
            let s = w.sqrt(a);
            w.div(one, s)
        }
        UnaryOp::Tanh => w.tanh(a),
        UnaryOp::Erf => w.erf(a),
        UnaryOp::Sigmoid => w.sigmoid(a),
        UnaryOp::Softplus => w.softplus(a),
        UnaryOp::Sin => w.sin(a),
        UnaryOp::Cos => w.cos(a),
        UnaryOp::Floor => w.floor(a),
        UnaryOp::Not => return Err(CodegenError::bug("expression", "not of a float")),
    })
}

fn binary(w: &mut Writer, op: BinaryOp, a: Val, b: Val, second: Option<f64>) -> Result<Val, CodegenError> {
    if a.ty != b.ty {
        return Err(CodegenError::bug("expression", format!("{op:?} of {:?} and {:?}", a.ty, b.ty)));
    }
    let float = a.ty.elem.is_float();
    let comparison = |op| match op {
        BinaryOp::Eq => Some(Cmp::Eq),
        BinaryOp::Ne => Some(Cmp::Ne),
        BinaryOp::Lt => Some(Cmp::Lt),
        BinaryOp::Le => Some(Cmp::Le),
        BinaryOp::Gt => Some(Cmp::Gt),
        BinaryOp::Ge => Some(Cmp::Ge),
        _ => None,
    };
    if let Some(pred) = comparison(op) {
        return Ok(w.cmp(pred, a, b));
    }
    Ok(match op {
        BinaryOp::Add => w.add(a, b),
        BinaryOp::Sub => w.sub(a, b),
        BinaryOp::Mul => w.mul(a, b),
        BinaryOp::Div if float => w.div(a, b),
        BinaryOp::FloorDiv if float => {
            let q = w.div(a, b);
            w.floor(q)
        }
        BinaryOp::FloorDiv | BinaryOp::Mod if !float && second == Some(0.0) => {
            return Err(CodegenError::unsupported("division of integers by zero", ""));
        }
        BinaryOp::FloorDiv => w.floor_div(a, b, second.map(|e| e as i64)),
        BinaryOp::Mod => {
            let q = if float {
                let q = w.div(a, b);
                w.floor(q)
            } else {
                w.floor_div(a, b, second.map(|e| e as i64))
            };
            let p = w.mul(q, b);
            w.sub(a, p)
        }
        BinaryOp::Pow if float => w.pow(a, b, second),
        BinaryOp::Min => w.min(a, b),
        BinaryOp::Max => w.max(a, b),
        BinaryOp::And => w.and(a, b),
        BinaryOp::Or => w.or(a, b),
        _ => return Err(CodegenError::unsupported(format!("{op:?} of integers"), "")),
    })
}

/// A conversion between register types, as the interpreter's `Cast`.
pub fn cast(w: &mut Writer, a: Val, to: Elem) -> Result<Val, CodegenError> {
    Ok(match (a.ty.elem, to) {
        (from, to) if from == to => a,
        (Elem::F32, Elem::I16) => w.to_bf16(a),
        (Elem::I16, Elem::F32) => w.from_bf16(a),
        (Elem::F32, Elem::I1) => {
            let zero = w.f32(0.0, a.ty.lanes);
            w.cmp(Cmp::Ne, a, zero)
        }
        (Elem::F32, to) => w.to_int(a, to),
        (Elem::I16, to) => {
            let f = w.from_bf16(a);
            cast(w, f, to)?
        }
        (_, Elem::F32) => w.to_float(a),
        (_, Elem::I16) => {
            let f = w.to_float(a);
            w.to_bf16(f)
        }
        (Elem::I64 | Elem::I32 | Elem::I8, Elem::I1) => {
            let zero = w.int(0, a.ty);
            w.cmp(Cmp::Ne, a, zero)
        }
        _ => w.resize(a, to),
    })
}

/// Emits a graph of scalars on registers: `args` for its parameters, one value back for each output.
pub fn scalar_graph(w: &mut Writer, graph: &Graph, args: &[Val], ints: Elem) -> Result<Vec<Val>, CodegenError> {
    scalar_graph_with(w, graph, args, &[], ints)
}

/// The same, where parameters that are tables may lie spread.
pub fn scalar_graph_with(
    w: &mut Writer,
    graph: &Graph,
    args: &[Val],
    spread: &[Option<Spread>],
    ints: Elem,
) -> Result<Vec<Val>, CodegenError> {
    let mut values: HashMap<ValueId, Val> = HashMap::new();
    for node in graph.topological() {
        let op = match graph.op(node) {
            Op::Core(op) => op,
            Op::Fused(op) => {
                return Err(CodegenError::bug("expression", format!("`{}` in a graph of scalars", op.name())));
            }
        };
        let result = ValueId { node, port: 0 };
        let ty = graph.ty(result);
        let operands = graph.operands(node);
        let value = match op {
            Core::Arg { index } => *args
                .get(*index)
                .ok_or_else(|| CodegenError::bug("expression", format!("parameter {index} is not given")))?,
            Core::Const { values } => constant(w, values.first().copied().unwrap_or(0.0), ty.dtype, ints)?,
            Core::Gather => {
                let table = graph.ty(operands[0]);
                let [Dim::Fixed(n)] = table.dims[..] else {
                    return Err(CodegenError::bug("expression", format!("a gather from {table}")));
                };
                let stored = elem_of(table.dtype, Elem::I64)?;
                let (address, index) = (values[&operands[0]], values[&operands[1]]);
                let param = graph.params().iter().position(|p| p.value == operands[0]);
                let element = match param.and_then(|p| spread.get(p).copied().flatten()) {
                    None => w.gather(stored, address, index, n),
                    Some(spread) => w.gather_spread(stored, address, index, n, spread),
                };
                cast(w, element, elem_of(ty.dtype, ints)?)?
            }
            _ => {
                let args: Vec<Val> = operands.iter().map(|v| values[v]).collect();
                elementwise(w, op, &args, ty.dtype, constant_of(graph, operands.get(1)), ints)?
            }
        };
        values.insert(result, value);
    }
    Ok(graph.outputs().iter().map(|o| values[&o.value]).collect())
}

/// The value of a single-valued constant.
pub fn constant_of(graph: &Graph, value: Option<&ValueId>) -> Option<f64> {
    match graph.op(value?.node).as_core()? {
        Core::Const { values } if values.len() == 1 => Some(values[0]),
        _ => None,
    }
}
