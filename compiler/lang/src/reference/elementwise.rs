//! Elementwise functions, reductions and softmax.

use std::rc::Rc;

use super::float::Float;
use super::tensor::{Elements, Value, in_blocks, map_elements, round};
use super::{Result, fail};
use crate::graph::DType;
use crate::ops::{BinaryOp, ReduceOp, UnaryOp};

pub(super) fn unary<F: Float>(f: UnaryOp, x: &Value<F>) -> Value<F> {
    let real = |f: fn(f64) -> f64| Elements::Float(x.floats().iter().map(|x| F::from_f64(f(x.to_f64()))).collect());
    let data = match (f, &x.data) {
        (UnaryOp::Neg, Elements::Int(v)) => Elements::Int(v.iter().map(|x| x.wrapping_neg()).collect()),
        (UnaryOp::Abs, Elements::Int(v)) => Elements::Int(v.iter().map(|x| x.wrapping_abs()).collect()),
        (UnaryOp::Not, _) => Elements::Bool(x.bools().iter().map(|x| !x).collect()),
        (UnaryOp::Neg, _) => real(|x| -x),
        (UnaryOp::Abs, _) => real(f64::abs),
        (UnaryOp::Exp, _) => real(f64::exp),
        (UnaryOp::Log, _) => real(f64::ln),
        (UnaryOp::Sqrt, _) => real(f64::sqrt),
        (UnaryOp::Rsqrt, _) => real(|x| 1.0 / x.sqrt()),
        (UnaryOp::Tanh, _) => real(f64::tanh),
        (UnaryOp::Erf, _) => real(libm::erf),
        (UnaryOp::Sigmoid, _) => real(|x| 1.0 / (1.0 + (-x).exp())),
        (UnaryOp::Softplus, _) => real(|x| x.max(0.0) + (-x.abs()).exp().ln_1p()),
        (UnaryOp::Sin, _) => real(f64::sin),
        (UnaryOp::Cos, _) => real(f64::cos),
        (UnaryOp::Floor, _) => real(f64::floor),
    };
    Value { dims: x.dims.clone(), data }
}

/// `dims` are the result's, to which both operands broadcast.
pub(super) fn binary<F: Float>(f: BinaryOp, a: &Value<F>, b: &Value<F>, dims: &[usize]) -> Result<Value<F>> {
    let (a, b) = (a.broadcast(dims), b.broadcast(dims));
    let data = match (&a.data, &b.data) {
        (Elements::Float(a), Elements::Float(b)) => floats(f, a, b),
        (Elements::Int(a), Elements::Int(b)) => ints(f, a, b)?,
        (Elements::Bool(a), Elements::Bool(b)) => {
            let f: fn(bool, bool) -> bool = match f {
                BinaryOp::And => |a, b| a && b,
                BinaryOp::Or => |a, b| a || b,
                BinaryOp::Eq => |a, b| a == b,
                BinaryOp::Ne => |a, b| a != b,
                other => return fail(format!("{} of booleans", other.name())),
            };
            Elements::Bool(a.iter().zip(b).map(|(a, b)| f(*a, *b)).collect())
        }
        _ => return fail(format!("{} of values of different kinds", f.name())),
    };
    Ok(Value { dims: dims.to_vec(), data })
}

fn floats<F: Float>(f: BinaryOp, a: &[F], b: &[F]) -> Elements<F> {
    let real = |f: fn(f64, f64) -> f64| {
        Elements::Float(a.iter().zip(b).map(|(a, b)| F::from_f64(f(a.to_f64(), b.to_f64()))).collect())
    };
    let test = |f: fn(&F, &F) -> bool| Elements::Bool(a.iter().zip(b).map(|(a, b)| f(a, b)).collect());
    let floored = |a: F, b: F| F::from_f64((a / b).to_f64().floor());
    match f {
        BinaryOp::Add => Elements::Float(a.iter().zip(b).map(|(a, b)| *a + *b).collect()),
        BinaryOp::Sub => Elements::Float(a.iter().zip(b).map(|(a, b)| *a - *b).collect()),
        BinaryOp::Mul => Elements::Float(a.iter().zip(b).map(|(a, b)| *a * *b).collect()),
        BinaryOp::Div => Elements::Float(a.iter().zip(b).map(|(a, b)| *a / *b).collect()),
        BinaryOp::FloorDiv => Elements::Float(a.iter().zip(b).map(|(a, b)| floored(*a, *b)).collect()),
        BinaryOp::Mod => Elements::Float(a.iter().zip(b).map(|(a, b)| *a - *b * floored(*a, *b)).collect()),
        BinaryOp::Pow => real(f64::powf),
        BinaryOp::Min => real(|a, b| if a.is_nan() || b.is_nan() { f64::NAN } else { a.min(b) }),
        BinaryOp::Max => real(|a, b| if a.is_nan() || b.is_nan() { f64::NAN } else { a.max(b) }),
        BinaryOp::Eq => test(|a, b| a == b),
        BinaryOp::Ne => test(|a, b| a != b),
        BinaryOp::Lt => test(|a, b| a < b),
        BinaryOp::Le => test(|a, b| a <= b),
        BinaryOp::Gt => test(|a, b| a > b),
        BinaryOp::Ge => test(|a, b| a >= b),
        BinaryOp::And => test(|a, b| a.to_f64() != 0.0 && b.to_f64() != 0.0),
        BinaryOp::Or => test(|a, b| a.to_f64() != 0.0 || b.to_f64() != 0.0),
    }
}

fn ints<F>(f: BinaryOp, a: &[i64], b: &[i64]) -> Result<Elements<F>> {
    let int = |f: fn(i64, i64) -> i64| Ok(Elements::Int(a.iter().zip(b).map(|(a, b)| f(*a, *b)).collect()));
    let test = |f: fn(&i64, &i64) -> bool| Ok(Elements::Bool(a.iter().zip(b).map(|(a, b)| f(a, b)).collect()));
    if matches!(f, BinaryOp::FloorDiv | BinaryOp::Mod) && b.contains(&0) {
        return fail(format!("{} by zero", f.name()));
    }
    match f {
        BinaryOp::Add => int(i64::wrapping_add),
        BinaryOp::Sub => int(i64::wrapping_sub),
        BinaryOp::Mul => int(i64::wrapping_mul),
        BinaryOp::FloorDiv => int(floor_div),
        BinaryOp::Mod => int(|a, b| a.wrapping_sub(b.wrapping_mul(floor_div(a, b)))),
        BinaryOp::Min => int(i64::min),
        BinaryOp::Max => int(i64::max),
        BinaryOp::Eq => test(|a, b| a == b),
        BinaryOp::Ne => test(|a, b| a != b),
        BinaryOp::Lt => test(|a, b| a < b),
        BinaryOp::Le => test(|a, b| a <= b),
        BinaryOp::Gt => test(|a, b| a > b),
        BinaryOp::Ge => test(|a, b| a >= b),
        BinaryOp::Div | BinaryOp::Pow | BinaryOp::And | BinaryOp::Or => fail(format!("{} of integers", f.name())),
    }
}

/// `b` is not 0.
fn floor_div(a: i64, b: i64) -> i64 {
    let q = a.wrapping_div(b);
    if a.wrapping_rem(b) != 0 && (a < 0) != (b < 0) { q - 1 } else { q }
}

pub(super) fn select<F: Float>(c: &Value<F>, a: &Value<F>, b: &Value<F>, dims: &[usize]) -> Result<Value<F>> {
    fn pick<T: Copy>(c: &[bool], a: &[T], b: &[T]) -> Vec<T> {
        c.iter().zip(a.iter().zip(b)).map(|(c, (a, b))| if *c { *a } else { *b }).collect()
    }
    let (c, a, b) = (c.broadcast(dims), a.broadcast(dims), b.broadcast(dims));
    let data = match (&a.data, &b.data) {
        (Elements::Float(a), Elements::Float(b)) => Elements::Float(pick(c.bools(), a, b)),
        (Elements::Int(a), Elements::Int(b)) => Elements::Int(pick(c.bools(), a, b)),
        (Elements::Bool(a), Elements::Bool(b)) => Elements::Bool(pick(c.bools(), a, b)),
        _ => return fail("select of values of different kinds"),
    };
    Ok(Value { dims: dims.to_vec(), data })
}

pub(super) fn cast<F: Float>(x: &Value<F>, dtype: DType) -> Value<F> {
    let narrow = |x: i64| if dtype == DType::I32 { i64::from(x as i32) } else { x };
    let data = match (&x.data, dtype) {
        (Elements::Float(v), DType::Blocks(blocks)) => {
            Elements::Float(in_blocks(v, x.dims.last().copied().unwrap_or(1), blocks))
        }
        // The verifier lets nothing else through.
        (Elements::Int(_) | Elements::Bool(_), DType::Blocks(_)) => x.data.clone(),
        (Elements::Float(v), DType::F32 | DType::F16 | DType::BF16) => {
            Elements::Float(v.iter().map(|x| round(*x, dtype)).collect())
        }
        (Elements::Float(v), DType::I64 | DType::I32) => {
            Elements::Int(v.iter().map(|x| narrow(x.to_f64() as i64)).collect())
        }
        (Elements::Float(v), DType::Bool) => Elements::Bool(v.iter().map(|x| x.to_f64() != 0.0).collect()),
        (Elements::Int(v), DType::F32 | DType::F16 | DType::BF16) => {
            Elements::Float(v.iter().map(|x| round(F::from_f64(*x as f64), dtype)).collect())
        }
        (Elements::Int(v), DType::I64 | DType::I32) => Elements::Int(v.iter().map(|x| narrow(*x)).collect()),
        (Elements::Int(v), DType::Bool) => Elements::Bool(v.iter().map(|x| *x != 0).collect()),
        (Elements::Bool(v), DType::F32 | DType::F16 | DType::BF16) => {
            Elements::Float(v.iter().map(|x| F::from_f64(f64::from(u8::from(*x)))).collect())
        }
        (Elements::Bool(v), DType::I64 | DType::I32) => Elements::Int(v.iter().map(|x| i64::from(*x)).collect()),
        (Elements::Bool(v), DType::Bool) => Elements::Bool(v.clone()),
    };
    Value { dims: x.dims.clone(), data }
}

/// Over the last dimension, which stays with size 1.
pub(super) fn reduce<F: Float>(f: ReduceOp, x: &Value<F>) -> Result<Value<F>> {
    let width = x.dims.last().copied().unwrap_or(1);
    if width == 0 {
        return fail(format!("{} of nothing", f.name()));
    }
    let mut dims = x.dims.clone();
    if let Some(last) = dims.last_mut() {
        *last = 1;
    }
    fn best<T: Copy>(row: &[T], better: impl Fn(T, T) -> bool) -> usize {
        (1..row.len()).fold(0, |best, i| if better(row[i], row[best]) { i } else { best })
    }
    let is_nan = |x: F| x.to_f64().is_nan();
    let n = F::from_f64(width as f64);
    let data = match (f, &x.data) {
        (ReduceOp::Sum, Elements::Float(v)) => {
            Elements::Float(v.chunks_exact(width).map(|row| row.iter().copied().sum()).collect())
        }
        (ReduceOp::Mean, Elements::Float(v)) => {
            Elements::Float(v.chunks_exact(width).map(|row| row.iter().copied().sum::<F>() / n).collect())
        }
        (ReduceOp::Max, Elements::Float(v)) => Elements::Float(
            v.chunks_exact(width).map(|row| row[best(row, |a, b| a > b || is_nan(a) && !is_nan(b))]).collect(),
        ),
        (ReduceOp::Min, Elements::Float(v)) => Elements::Float(
            v.chunks_exact(width).map(|row| row[best(row, |a, b| a < b || is_nan(a) && !is_nan(b))]).collect(),
        ),
        (ReduceOp::ArgMax, Elements::Float(v)) => Elements::Int(
            v.chunks_exact(width).map(|row| best(row, |a, b| a > b || is_nan(a) && !is_nan(b)) as i64).collect(),
        ),
        (ReduceOp::Sum, Elements::Int(v)) => {
            Elements::Int(v.chunks_exact(width).map(|row| row.iter().fold(0i64, |a, b| a.wrapping_add(*b))).collect())
        }
        (ReduceOp::Max, Elements::Int(v)) => {
            Elements::Int(v.chunks_exact(width).map(|row| row[best(row, |a, b| a > b)]).collect())
        }
        (ReduceOp::Min, Elements::Int(v)) => {
            Elements::Int(v.chunks_exact(width).map(|row| row[best(row, |a, b| a < b)]).collect())
        }
        (ReduceOp::ArgMax, Elements::Int(v)) => {
            Elements::Int(v.chunks_exact(width).map(|row| best(row, |a, b| a > b) as i64).collect())
        }
        (ReduceOp::Mean, _) | (_, Elements::Bool(_)) => return fail(format!("{} of these values", f.name())),
    };
    Ok(Value { dims, data })
}

/// Indices of the `k` largest of the last dimension, ties to the lower index.
pub(super) fn top_k<F: Float>(x: &Value<F>, k: usize) -> Value<F> {
    let width = x.dims.last().copied().unwrap_or(1).max(1);
    let mut dims = x.dims.clone();
    if let Some(last) = dims.last_mut() {
        *last = k;
    }
    let mut out = Vec::new();
    for row in x.floats().chunks_exact(width) {
        let mut order: Vec<usize> = (0..width).collect();
        // Descending, with NaN before all numbers.
        order.sort_by(|a, b| {
            let (a, b) = (row[*a].to_f64(), row[*b].to_f64());
            b.partial_cmp(&a).unwrap_or_else(|| b.is_nan().cmp(&a.is_nan()))
        });
        out.extend(order[..k].iter().map(|i| *i as i64));
    }
    Value::int(dims, out)
}

/// `exp(x - max) / sum` where the mask holds, 0 elsewhere.
pub(super) fn softmax<F: Float>(
    scores: &Value<F>,
    mask: Option<&Rc<Value<F>>>,
    sink: Option<&Rc<Value<F>>>,
) -> Value<F> {
    let width = scores.dims.last().copied().unwrap_or(1).max(1);
    let mask = mask.map(|m| m.broadcast(&scores.dims));
    // One element a row.
    let sink = sink.map(|s| {
        let mut dims = scores.dims.clone();
        dims.pop();
        s.broadcast(&[&dims[..], &[1]].concat())
    });
    let mut out = Vec::with_capacity(scores.floats().len());
    for (i, row) in scores.floats().chunks_exact(width).enumerate() {
        let visible = |j: usize| mask.as_ref().is_none_or(|m| m.bools()[i * width + j]);
        let sink = sink.as_ref().map(|s| s.floats()[i]);
        let seen = (0..width).filter(|j| visible(*j)).map(|j| row[j].to_f64()).chain(sink.map(Float::to_f64));
        let max = seen.fold(f64::NEG_INFINITY, |m, x| if x > m || x.is_nan() { x } else { m });
        let start = out.len();
        let mut sum = match sink {
            Some(sink) if max != f64::NEG_INFINITY => F::from_f64((sink - F::from_f64(max)).to_f64().exp()),
            _ => F::default(),
        };
        for (j, x) in row.iter().enumerate() {
            let e = if visible(j) && max != f64::NEG_INFINITY {
                F::from_f64((*x - F::from_f64(max)).to_f64().exp())
            } else {
                F::default()
            };
            sum = sum + e;
            out.push(e);
        }
        // A sum that is NaN makes all of them NaN.
        if sum != F::default() {
            for e in &mut out[start..] {
                *e = *e / sum;
            }
        }
    }
    Value::float(scores.dims.clone(), out)
}

/// `take_along_axis` on the last dimension.
pub(super) fn take<F: Float>(values: &Value<F>, indices: &Value<F>) -> Result<Value<F>> {
    let (width, k) = (values.dims.last().copied().unwrap_or(1), indices.dims.last().copied().unwrap_or(1));
    if let Some(i) = indices.ints().iter().find(|i| **i < 0 || **i as usize >= width) {
        return fail(format!("index {i} of {width}"));
    }
    let at = |n: usize| n / k.max(1) * width + indices.ints()[n] as usize;
    let data = map_elements!(&values.data, v => (0..indices.ints().len()).map(|n| v[at(n)]).collect());
    Ok(Value { dims: indices.dims.clone(), data })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sink_takes_a_share_that_nothing_is_given() {
        let scores = Value::<f64>::float(vec![2, 2], vec![0.0, 3.0f64.ln(), 1.0e4, 1.0e4]);
        let mask = Rc::new(Value { dims: vec![2, 2], data: Elements::Bool(vec![true, true, false, false]) });
        let sink = Rc::new(Value::float(vec![1, 1], vec![0.0]));
        let shares = softmax(&scores, Some(&mask), Some(&sink));
        for (share, wanted) in shares.floats().iter().zip([0.2, 0.6, 0.0, 0.0]) {
            assert!((share - wanted).abs() < 1.0e-12, "{:?}", shares.floats());
        }
    }
}
