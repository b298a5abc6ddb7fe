//! Shape rules: the type of a core operation's result, from the operation and the types of its operands.
//!
//! The one place that knows them: [`Builder`](crate::graph::build::Builder) infers with it and
//! [`verify`](crate::graph::verify) checks with it. What operands do not determine (the dtype of a cast, the dimensions of a reshape,
//! the size of a slice, the whole type of a weight) is taken from the stated type.

use thiserror::Error;

use super::core::{BinaryOp, Core, ReduceOp, UnaryOp};
use crate::graph::blocks::Blocks;
use crate::graph::{DType, Dim, Type};

/// Operands that an operation does not take. The message is lowercase, without the name of the operation.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{0}")]
pub struct ShapeError(pub String);

type Result<T> = std::result::Result<T, ShapeError>;

fn fail<T>(message: impl Into<String>) -> Result<T> {
    Err(ShapeError(message.into()))
}

impl DType {
    /// Whether it holds real numbers.
    pub fn is_float(self) -> bool {
        matches!(self, DType::F32 | DType::F16 | DType::BF16)
    }

    /// Whether it holds integers.
    pub fn is_int(self) -> bool {
        matches!(self, DType::I64 | DType::I32)
    }

    /// Bytes of one element in memory.
    pub fn size_bytes(self) -> u64 {
        match self {
            DType::I64 => 8,
            DType::F32 | DType::I32 => 4,
            DType::F16 | DType::BF16 => 2,
            // Less, of weights of 4 bits, and scales are not counted: what blocks take is theirs to say.
            DType::Bool | DType::Blocks(_) => 1,
        }
    }

    /// The blocks that elements are held in.
    pub fn blocks(self) -> Option<Blocks> {
        if let DType::Blocks(blocks) = self { Some(blocks) } else { None }
    }

    /// The type as products know it: of blocks, not where their integers are from.
    pub fn multiplied(self) -> Self {
        if let DType::Blocks(blocks) = self { DType::Blocks(blocks.multiplied()) } else { self }
    }
}

impl Dim {
    /// The size, when known.
    pub fn fixed(self) -> Option<u64> {
        match self {
            Dim::Fixed(n) => Some(n),
            Dim::Axis(_) | Dim::Visible(_) | Dim::Rows(_) => None,
        }
    }

    /// Whether the size is known only at run time.
    pub fn is_ragged(self) -> bool {
        self.fixed().is_none()
    }
}

/// The dimensions that `a` and `b` broadcast to: aligned at the last one, where a missing or 1-sized dimension repeats.
pub fn broadcast(a: &[Dim], b: &[Dim]) -> Result<Vec<Dim>> {
    let rank = a.len().max(b.len());
    let one = Dim::Fixed(1);
    let at = |dims: &[Dim], i: usize| (i + dims.len()).checked_sub(rank).map_or(one, |j| dims[j]);
    (0..rank)
        .map(|i| match (at(a, i), at(b, i)) {
            (x, y) if x == y => Ok(x),
            (x, y) if y == one => Ok(x),
            (x, y) if x == one => Ok(y),
            (x, y) => fail(format!("{x} and {y} do not broadcast, in {} and {}", Type::show(a), Type::show(b))),
        })
        .collect()
}

/// Whether `from` broadcasts to exactly `to`.
pub fn broadcasts_to(from: &[Dim], to: &[Dim]) -> bool {
    broadcast(from, to).is_ok_and(|dims| dims == to)
}

/// The labels of `"nkgd,vkd->nkgv"`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContractSpec {
    /// Labels of the first operand.
    pub a: Vec<char>,
    /// Labels of the second operand.
    pub b: Vec<char>,
    /// Labels of the result.
    pub out: Vec<char>,
}

impl ContractSpec {
    /// Reads `labels,labels->labels`. A label is in two of the three, or in all.
    pub fn parse(spec: &str) -> Result<Self> {
        let Some((a, b, out)) = spec.split_once("->").and_then(|(i, o)| i.split_once(',').map(|(a, b)| (a, b, o)))
        else {
            return fail(format!("'{spec}' is not of the form labels,labels->labels"));
        };
        let labels = |s: &str| -> Result<Vec<char>> {
            let labels: Vec<char> = s.chars().collect();
            for (i, c) in labels.iter().enumerate() {
                if !c.is_ascii_lowercase() {
                    return fail(format!("label '{c}' of '{spec}' is not a lowercase letter"));
                }
                if labels[..i].contains(c) {
                    return fail(format!("label '{c}' is twice in '{s}'"));
                }
            }
            Ok(labels)
        };
        let spec = ContractSpec { a: labels(a)?, b: labels(b)?, out: labels(out)? };
        for c in spec.a.iter().chain(&spec.b).chain(&spec.out) {
            let n = [&spec.a, &spec.b, &spec.out].iter().filter(|l| l.contains(c)).count();
            if n < 2 {
                return fail(format!("label '{c}' is in one place only"));
            }
        }
        Ok(spec)
    }

    /// Labels that are summed over, in the order of the first operand.
    pub fn summed(&self) -> Vec<char> {
        self.a.iter().copied().filter(|c| !self.out.contains(c)).collect()
    }
}

/// The type of the one result of `op` on `operands`; `stated` gives what they do not determine.
///
/// A call's results are its body's outputs, which the [verifier](crate::graph::verify) compares: it has no rule here.
pub fn result_type(op: &Core, operands: &[Type], stated: &Type) -> Result<Type> {
    let arity = |n: usize| {
        if operands.len() == n { Ok(()) } else { fail(format!("takes {n} operands, not {}", operands.len())) }
    };
    match op {
        Core::Arg { .. } | Core::Weight { .. } => arity(0).map(|()| stated.clone()),
        Core::Const { values } => {
            arity(0)?;
            let Some(size) = fixed_size(&stated.dims) else {
                return fail("a constant of a ragged type");
            };
            if values.len() != 1 && values.len() as u64 != size {
                return fail(format!("{} values for {size} elements", values.len()));
            }
            Ok(stated.clone())
        }
        Core::Position => {
            arity(0)?;
            match (stated.dtype, stated.dims.as_slice()) {
                (DType::I64, [d]) if d.is_ragged() => Ok(stated.clone()),
                _ => fail(format!("positions are i64 of one ragged dimension, not {stated}")),
            }
        }
        Core::Index => {
            arity(0)?;
            match (stated.dtype, stated.dims.as_slice()) {
                (DType::I64, [d]) if !d.is_ragged() => Ok(stated.clone()),
                _ => fail(format!("indices are i64 of one fixed dimension, not {stated}")),
            }
        }
        Core::Unary(f) => arity(1).and_then(|()| unary(*f, &operands[0])),
        Core::Binary(f) => arity(2).and_then(|()| binary(*f, &operands[0], &operands[1])),
        Core::Select => {
            arity(3)?;
            let (c, a, b) = (&operands[0], &operands[1], &operands[2]);
            if c.dtype != DType::Bool {
                return fail(format!("the condition is {}, not bool", c.dtype));
            }
            same_dtype(a, b)?;
            Ok(Type::new(a.dtype, broadcast(&c.dims, &broadcast(&a.dims, &b.dims)?)?))
        }
        Core::Cast => arity(1).and_then(|()| {
            let x = &operands[0];
            let grouped = x.dtype.is_float() && matches!(x.dims.last(), Some(Dim::Fixed(_)));
            // What is kept is widened again, and so are weights; what tokens bring is read by products alone.
            let read = x.dtype.blocks().is_none_or(|b| (b.is_kept() || b.is_weights()) && stated.dtype.is_float());
            if !read || stated.dtype.blocks().is_some() && !grouped {
                return fail(format!("{x} as {}", stated.dtype));
            }
            Ok(Type::new(stated.dtype, x.dims.clone()))
        }),
        Core::Reshape => {
            arity(1)?;
            if !same_elements(&operands[0].dims, &stated.dims) {
                return fail(format!("{} has not the elements of {}", operands[0], Type::show(&stated.dims)));
            }
            if operands[0].dtype.blocks().is_some() && operands[0].dims.last() != stated.dims.last() {
                return fail(format!("groups of {} in {}", operands[0], Type::show(&stated.dims)));
            }
            Ok(Type::new(operands[0].dtype, stated.dims.clone()))
        }
        Core::Transpose { perm } => {
            arity(1)?;
            let dims = &operands[0].dims;
            let mut sorted = perm.clone();
            sorted.sort_unstable();
            if sorted != (0..dims.len()).collect::<Vec<_>>() {
                return fail(format!("{perm:?} does not permute the dimensions of {}", operands[0]));
            }
            Ok(Type::new(operands[0].dtype, perm.iter().map(|&p| dims[p]).collect::<Vec<_>>()))
        }
        Core::Slice { dim, start } => {
            arity(1)?;
            let size = stated.dims.get(*dim).and_then(|d| d.fixed());
            let (Some(Dim::Fixed(n)), Some(size)) = (operands[0].dims.get(*dim), size) else {
                return fail(format!("dimension {dim} of {} and its slice are not fixed", operands[0]));
            };
            if size == 0 || start.checked_add(size).is_none_or(|end| end > *n) {
                return fail(format!("elements {start}..{start}+{size} of {n}"));
            }
            let in_groups = operands[0].dtype.blocks().filter(|_| *dim + 1 == operands[0].dims.len());
            if in_groups.is_some_and(|blocks| start % u64::from(blocks.group) != 0) {
                return fail(format!("elements from {start} on of {}, inside a group", operands[0]));
            }
            let mut dims = operands[0].dims.clone();
            dims[*dim] = Dim::Fixed(size);
            Ok(Type::new(operands[0].dtype, dims))
        }
        Core::Concat { dim } => concat(*dim, operands),
        Core::Repeat { dim, times } => {
            arity(1)?;
            let Some(Dim::Fixed(n)) = operands[0].dims.get(*dim) else {
                return fail(format!("dimension {dim} of {} is not fixed", operands[0]));
            };
            let Some(size) = n.checked_mul(*times).filter(|_| *times > 0) else {
                return fail(format!("{n} elements {times} times"));
            };
            let mut dims = operands[0].dims.clone();
            dims[*dim] = Dim::Fixed(size);
            Ok(Type::new(operands[0].dtype, dims))
        }
        Core::Broadcast => {
            arity(1)?;
            if !broadcasts_to(&operands[0].dims, &stated.dims) {
                return fail(format!("{} does not broadcast to {}", operands[0], Type::show(&stated.dims)));
            }
            Ok(Type::new(operands[0].dtype, stated.dims.clone()))
        }
        Core::Windows { dim, size, stride } => {
            arity(1)?;
            let Some(Dim::Fixed(n)) = operands[0].dims.get(*dim) else {
                return fail(format!("dimension {dim} of {} is not fixed", operands[0]));
            };
            if *size == 0 || *stride == 0 || size > n {
                return fail(format!("windows of {size} elements, {stride} apart, of {n}"));
            }
            let mut dims = operands[0].dims.clone();
            dims[*dim] = Dim::Fixed((n - size) / stride + 1);
            dims.insert(dim + 1, Dim::Fixed(*size));
            Ok(Type::new(operands[0].dtype, dims))
        }
        Core::Gather => {
            arity(2)?;
            let (table, indices) = (&operands[0], &operands[1]);
            if table.dims.is_empty() || !indices.dtype.is_int() {
                return fail(format!("rows of {table} at {indices}"));
            }
            Ok(Type::new(table.dtype, [indices.dims.as_slice(), &table.dims[1..]].concat()))
        }
        Core::Take => {
            arity(2)?;
            let (values, indices) = (&operands[0], &operands[1]);
            match (values.dims.split_last(), indices.dims.split_last()) {
                (Some((_, a)), Some((_, b))) if a == b && indices.dtype.is_int() => {
                    Ok(Type::new(values.dtype, indices.dims.clone()))
                }
                _ => fail(format!("elements of {values} at {indices}")),
            }
        }
        Core::Reduce(f) => arity(1).and_then(|()| reduce(*f, &operands[0])),
        Core::TopK { k } => {
            arity(1)?;
            let x = &operands[0];
            match x.dims.split_last() {
                Some((Dim::Fixed(n), rest)) if *k >= 1 && k <= n && x.dtype == DType::F32 => {
                    Ok(Type::new(DType::I64, [rest, &[Dim::Fixed(*k)]].concat()))
                }
                _ => fail(format!("the {k} largest of {x}")),
            }
        }
        Core::Softmax => {
            let (scores, mask, sink) = match operands {
                [scores] => (scores, None, None),
                [scores, mask] => (scores, Some(mask), None),
                [scores, mask, sink] => (scores, Some(mask), Some(sink)),
                _ => return fail(format!("takes 1 to 3 operands, not {}", operands.len())),
            };
            if scores.dtype != DType::F32 || scores.dims.is_empty() {
                return fail(format!("the scores are {scores}"));
            }
            if mask.is_some_and(|m| m.dtype != DType::Bool || !broadcasts_to(&m.dims, &scores.dims)) {
                return fail(format!("the mask {} of {scores}", operands[1]));
            }
            let once = |s: &Type| matches!(s.dims.last(), None | Some(Dim::Fixed(1)));
            if sink.is_some_and(|s| s.dtype != DType::F32 || !once(s) || !broadcasts_to(&s.dims, &scores.dims)) {
                return fail(format!("the sink {} of {scores}", operands[2]));
            }
            Ok(scores.clone())
        }
        Core::Contract { spec } => arity(2).and_then(|()| contract(spec, &operands[0], &operands[1])),
        Core::Cache { .. } => arity(1).and_then(|()| leading(&operands[0], Dim::Visible)),
        Core::SelectRows => arity(1).and_then(|()| leading(&operands[0], Dim::Rows)),
        Core::Regroup => arity(1).and_then(|()| match (&operands[0].dims[..], &stated.dims[..]) {
            ([Dim::Axis(_), a @ ..], [Dim::Axis(_), b @ ..]) if a.iter().chain(b).all(|d| !d.is_ragged()) => {
                Ok(Type::new(operands[0].dtype, stated.dims.clone()))
            }
            _ => fail(format!("{} under the axes of {}", operands[0], Type::show(&stated.dims))),
        }),
        Core::First | Core::Last => arity(1).and_then(|()| match (&operands[0].dims[..], &stated.dims[..]) {
            ([Dim::Axis(_), a @ ..], [Dim::Axis(to), ..]) if a.iter().all(|d| !d.is_ragged()) => {
                Ok(Type::new(operands[0].dtype, [&[Dim::Axis(*to)], a].concat()))
            }
            _ => fail(format!("one element of {}", operands[0])),
        }),
        Core::Scan { states, step, .. } => match &super::core::scan::results(*states, step, operands)?[..] {
            [one] => Ok(one.clone()),
            several => fail(format!("a scan of {} results", several.len())),
        },
        Core::Call { .. } => fail("a call has the types of its body's outputs"),
    }
}

/// The number of elements, when every dimension is fixed and it fits.
pub fn fixed_size(dims: &[Dim]) -> Option<u64> {
    dims.iter().try_fold(1u64, |n, d| n.checked_mul(d.fixed()?))
}

/// Ragged dimensions in the same order, with as many elements before, between and after them.
fn same_elements(a: &[Dim], b: &[Dim]) -> bool {
    let parts = |dims: &[Dim]| -> Option<(Vec<Dim>, Vec<u64>)> {
        let (mut ragged, mut sizes) = (Vec::new(), vec![1u64]);
        for d in dims {
            match (d.fixed(), sizes.last_mut()) {
                (Some(n), Some(last)) => *last = last.checked_mul(n)?,
                _ => {
                    ragged.push(*d);
                    sizes.push(1);
                }
            }
        }
        Some((ragged, sizes))
    };
    parts(a).is_some() && parts(a) == parts(b)
}

fn same_dtype(a: &Type, b: &Type) -> Result<()> {
    if a.dtype == b.dtype { Ok(()) } else { fail(format!("{} and {} differ", a.dtype, b.dtype)) }
}

fn unary(f: UnaryOp, x: &Type) -> Result<Type> {
    let ok = match f {
        UnaryOp::Not => x.dtype == DType::Bool,
        UnaryOp::Neg | UnaryOp::Abs => x.dtype == DType::F32 || x.dtype.is_int(),
        UnaryOp::Exp
        | UnaryOp::Log
        | UnaryOp::Sqrt
        | UnaryOp::Rsqrt
        | UnaryOp::Tanh
        | UnaryOp::Erf
        | UnaryOp::Sigmoid
        | UnaryOp::Softplus
        | UnaryOp::Sin
        | UnaryOp::Cos
        | UnaryOp::Floor => x.dtype == DType::F32,
    };
    if ok { Ok(x.clone()) } else { fail(format!("not defined on {}", x.dtype)) }
}

fn binary(f: BinaryOp, a: &Type, b: &Type) -> Result<Type> {
    same_dtype(a, b)?;
    let numeric = a.dtype == DType::F32 || a.dtype.is_int();
    let (ok, dtype) = match f {
        BinaryOp::Add
        | BinaryOp::Sub
        | BinaryOp::Mul
        | BinaryOp::FloorDiv
        | BinaryOp::Mod
        | BinaryOp::Min
        | BinaryOp::Max => (numeric, a.dtype),
        BinaryOp::Div | BinaryOp::Pow => (a.dtype == DType::F32, a.dtype),
        BinaryOp::Eq | BinaryOp::Ne => (numeric || a.dtype == DType::Bool, DType::Bool),
        BinaryOp::Lt | BinaryOp::Le | BinaryOp::Gt | BinaryOp::Ge => (numeric, DType::Bool),
        BinaryOp::And | BinaryOp::Or => (a.dtype == DType::Bool, DType::Bool),
    };
    if !ok {
        return fail(format!("not defined on {}", a.dtype));
    }
    Ok(Type::new(dtype, broadcast(&a.dims, &b.dims)?))
}

fn reduce(f: ReduceOp, x: &Type) -> Result<Type> {
    let Some((_, rest)) = x.dims.split_last() else {
        return fail("a scalar has no last dimension");
    };
    let (ok, dtype) = match f {
        ReduceOp::Mean => (x.dtype == DType::F32, x.dtype),
        ReduceOp::Sum | ReduceOp::Max | ReduceOp::Min => (x.dtype == DType::F32 || x.dtype.is_int(), x.dtype),
        ReduceOp::ArgMax => (x.dtype == DType::F32 || x.dtype.is_int(), DType::I64),
    };
    if !ok {
        return fail(format!("not defined on {}", x.dtype));
    }
    Ok(Type::new(dtype, [rest, &[Dim::Fixed(1)]].concat()))
}

fn concat(dim: usize, operands: &[Type]) -> Result<Type> {
    let Some(first) = operands.first() else {
        return fail("takes at least one operand");
    };
    let mut total = 0u64;
    for x in operands {
        same_dtype(first, x)?;
        let Some(Dim::Fixed(n)) = x.dims.get(dim) else {
            return fail(format!("dimension {dim} of {x} is not fixed"));
        };
        let alike = x.dims.len() == first.dims.len()
            && x.dims.iter().zip(&first.dims).enumerate().all(|(i, (a, b))| i == dim || a == b);
        if !alike {
            return fail(format!("{first} and {x} differ outside dimension {dim}"));
        }
        if x.dtype.blocks().is_some() && dim + 1 == x.dims.len() {
            return fail(format!("groups of {first} and {x} as one"));
        }
        let Some(sum) = total.checked_add(*n) else {
            return fail("more elements than can be counted");
        };
        total = sum;
    }
    let mut dims = first.dims.clone();
    dims[dim] = Dim::Fixed(total);
    Ok(Type::new(first.dtype, dims))
}

fn contract(spec: &str, a: &Type, b: &Type) -> Result<Type> {
    let spec = ContractSpec::parse(spec)?;
    let in_blocks = match b.dtype.blocks() {
        // What tokens bring, and weights in groups: of the last elements of both, which are summed over.
        Some(w) => {
            let same = (spec.a.last() == spec.b.last()).then(|| spec.summed());
            w.is_weights()
                && a.dtype == w.of_tokens()
                && same.is_some_and(|c| c.len() == 1 && spec.a.last() == c.first())
        }
        None => false,
    };
    let alike = a.dtype.is_float() && a.dtype == b.dtype;
    if !alike && !in_blocks {
        return fail(format!("products of {} by {}", a.dtype, b.dtype));
    }
    if spec.a.len() != a.dims.len() || spec.b.len() != b.dims.len() {
        return fail(format!("{} and {} labels for {a} and {b}", spec.a.len(), spec.b.len()));
    }
    let size = |labels: &[char], dims: &[Dim], c: char| labels.iter().position(|l| *l == c).map(|i| dims[i]);
    let mut dims = Vec::with_capacity(spec.out.len());
    for &c in spec.a.iter().chain(&spec.b) {
        if let (Some(x), Some(y)) = (size(&spec.a, &a.dims, c), size(&spec.b, &b.dims, c))
            && x != y
        {
            return fail(format!("label '{c}' is {x} and {y}"));
        }
    }
    for &c in &spec.out {
        dims.extend(size(&spec.a, &a.dims, c).or_else(|| size(&spec.b, &b.dims, c)));
    }
    Ok(Type::new(DType::F32, dims))
}

/// Dimension 0, which must be the new elements of an axis, becomes `to` of that axis.
fn leading(x: &Type, to: fn(crate::graph::AxisId) -> Dim) -> Result<Type> {
    match x.dims.split_first() {
        Some((Dim::Axis(axis), rest)) => Ok(Type::new(x.dtype, [&[to(*axis)], rest].concat())),
        _ => fail(format!("dimension 0 of {x} is not a ragged axis")),
    }
}
