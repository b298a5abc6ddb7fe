//! Tensors: what callers give and get, and the interpreter's own values.

use super::float::Float;
use crate::graph::DType;
use crate::graph::blocks::Blocks;

/// Elements in row-major order.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "each is the type it is named after")]
pub enum Data {
    F32(Vec<f32>),
    F64(Vec<f64>),
    I64(Vec<i64>),
    Bool(Vec<bool>),
}

/// A tensor that callers give or get.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    /// Sizes, outermost first.
    pub dims: Vec<usize>,
    /// As many elements as the sizes say.
    pub data: Data,
}

impl Tensor {
    /// An f32 tensor.
    pub fn f32(dims: impl Into<Vec<usize>>, data: Vec<f32>) -> Self {
        Tensor { dims: dims.into(), data: Data::F32(data) }
    }

    /// An f64 tensor.
    pub fn f64(dims: impl Into<Vec<usize>>, data: Vec<f64>) -> Self {
        Tensor { dims: dims.into(), data: Data::F64(data) }
    }

    /// An i64 tensor.
    pub fn i64(dims: impl Into<Vec<usize>>, data: Vec<i64>) -> Self {
        Tensor { dims: dims.into(), data: Data::I64(data) }
    }

    /// The number of elements held.
    pub fn len(&self) -> usize {
        match &self.data {
            Data::F32(v) => v.len(),
            Data::F64(v) => v.len(),
            Data::I64(v) => v.len(),
            Data::Bool(v) => v.len(),
        }
    }

    /// Whether no element is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The elements as f64, whatever their type; booleans as 0 and 1.
    pub fn to_f64(&self) -> Vec<f64> {
        match &self.data {
            Data::F32(v) => v.iter().map(|x| f64::from(*x)).collect(),
            Data::F64(v) => v.clone(),
            Data::I64(v) => v.iter().map(|x| *x as f64).collect(),
            Data::Bool(v) => v.iter().map(|x| f64::from(u8::from(*x))).collect(),
        }
    }
}

/// Elements of a value in the compute type.
#[derive(Clone, Debug)]
pub(super) enum Elements<F> {
    Float(Vec<F>),
    Int(Vec<i64>),
    Bool(Vec<bool>),
}

/// A value of the interpreter.
#[derive(Clone, Debug)]
pub(super) struct Value<F> {
    pub(super) dims: Vec<usize>,
    pub(super) data: Elements<F>,
}

/// Runs `$body` on the elements of `$data`, whatever their type, and rebuilds the same variant.
macro_rules! map_elements {
    ($data:expr, $v:ident => $body:expr) => {
        match $data {
            $crate::reference::tensor::Elements::Float($v) => $crate::reference::tensor::Elements::Float($body),
            $crate::reference::tensor::Elements::Int($v) => $crate::reference::tensor::Elements::Int($body),
            $crate::reference::tensor::Elements::Bool($v) => $crate::reference::tensor::Elements::Bool($body),
        }
    };
}
pub(super) use map_elements;

impl<F: Float> Value<F> {
    pub(super) fn float(dims: Vec<usize>, data: Vec<F>) -> Self {
        Value { dims, data: Elements::Float(data) }
    }

    pub(super) fn int(dims: Vec<usize>, data: Vec<i64>) -> Self {
        Value { dims, data: Elements::Int(data) }
    }

    /// `x` in every element.
    pub(super) fn filled(x: f64, dtype: DType, dims: Vec<usize>) -> Self {
        let n = dims.iter().product();
        Self::from_f64(&vec![x; n], dtype, dims)
    }

    /// Numbers as elements of `dtype`.
    pub(super) fn from_f64(values: &[f64], dtype: DType, dims: Vec<usize>) -> Self {
        let data = match dtype {
            DType::F32 | DType::F16 | DType::BF16 | DType::Blocks(_) => {
                Elements::Float(values.iter().map(|x| round(F::from_f64(*x), dtype)).collect())
            }
            DType::I64 | DType::I32 => Elements::Int(values.iter().map(|x| *x as i64).collect()),
            DType::Bool => Elements::Bool(values.iter().map(|x| *x != 0.0).collect()),
        };
        Value { dims, data }
    }

    /// A caller's tensor as a value of `dtype`, which must be of the same kind.
    pub(super) fn from_tensor(tensor: &Tensor, dtype: DType) -> Result<Self, String> {
        if tensor.len() != tensor.dims.iter().product::<usize>() {
            return Err(format!("{} elements for {:?}", tensor.len(), tensor.dims));
        }
        let data = match (&tensor.data, dtype) {
            (Data::F32(_) | Data::F64(_), DType::F32 | DType::F16 | DType::BF16) => {
                Elements::Float(tensor.to_f64().into_iter().map(|x| round(F::from_f64(x), dtype)).collect())
            }
            (Data::I64(v), DType::I64 | DType::I32) => Elements::Int(v.clone()),
            (Data::I64(v), DType::Bool) => Elements::Bool(v.iter().map(|x| *x != 0).collect()),
            (Data::Bool(v), DType::Bool) => Elements::Bool(v.clone()),
            (Data::Bool(v), DType::I64 | DType::I32) => Elements::Int(v.iter().map(|x| i64::from(*x)).collect()),
            _ => return Err(format!("its elements are not {dtype}")),
        };
        Ok(Value { dims: tensor.dims.clone(), data })
    }

    /// For the caller: floats in the compute type.
    pub(super) fn to_tensor(&self) -> Tensor {
        let data = match &self.data {
            Elements::Float(v) if size_of::<F>() == 4 => Data::F32(v.iter().map(|x| x.to_f64() as f32).collect()),
            Elements::Float(v) => Data::F64(v.iter().map(|x| x.to_f64()).collect()),
            Elements::Int(v) => Data::I64(v.clone()),
            Elements::Bool(v) => Data::Bool(v.clone()),
        };
        Tensor { dims: self.dims.clone(), data }
    }

    /// The floats, of a value that the verifier says holds them.
    pub(super) fn floats(&self) -> &[F] {
        match &self.data {
            Elements::Float(v) => v,
            Elements::Int(_) | Elements::Bool(_) => &[],
        }
    }

    /// The integers, of a value that the verifier says holds them.
    pub(super) fn ints(&self) -> &[i64] {
        match &self.data {
            Elements::Int(v) => v,
            Elements::Float(_) | Elements::Bool(_) => &[],
        }
    }

    /// The booleans, of a value that the verifier says holds them.
    pub(super) fn bools(&self) -> &[bool] {
        match &self.data {
            Elements::Bool(v) => v,
            Elements::Float(_) | Elements::Int(_) => &[],
        }
    }

    /// Element `sum(index[i] * strides[i]) + offset` for each index under `dims`.
    pub(super) fn strided(&self, dims: Vec<usize>, strides: &[usize], offset: usize) -> Self {
        let data = map_elements!(&self.data, v => strided(v, &dims, strides, offset));
        Value { dims, data }
    }

    /// Repeated to `dims`, to which it must broadcast.
    pub(super) fn broadcast(&self, dims: &[usize]) -> Self {
        if self.dims == dims {
            return self.clone();
        }
        let own = strides(&self.dims);
        let missing = dims.len() - self.dims.len();
        let strides: Vec<usize> = (0..dims.len())
            .map(|i| if i < missing || self.dims[i - missing] == 1 { 0 } else { own[i - missing] })
            .collect();
        self.strided(dims.to_vec(), &strides, 0)
    }

    /// Dimension `d` of the result is dimension `perm[d]`.
    pub(super) fn transpose(&self, perm: &[usize]) -> Self {
        if perm.iter().enumerate().all(|(i, p)| i == *p) {
            return self.clone();
        }
        let own = strides(&self.dims);
        let dims = perm.iter().map(|p| self.dims[*p]).collect();
        let strides: Vec<usize> = perm.iter().map(|p| own[*p]).collect();
        self.strided(dims, &strides, 0)
    }
}

/// Row-major strides.
pub(super) fn strides(dims: &[usize]) -> Vec<usize> {
    let mut strides = vec![1; dims.len()];
    for i in (1..dims.len()).rev() {
        strides[i - 1] = strides[i] * dims[i];
    }
    strides
}

fn strided<T: Copy>(data: &[T], dims: &[usize], strides: &[usize], offset: usize) -> Vec<T> {
    let n: usize = dims.iter().product();
    let mut out = Vec::with_capacity(n);
    let Some((&inner, outer)) = dims.split_last() else {
        return vec![data[offset]];
    };
    if n == 0 {
        return out;
    }
    let step = strides[outer.len()];
    let mut index = vec![0; outer.len()];
    let mut base = offset;
    loop {
        if step == 1 {
            out.extend_from_slice(&data[base..base + inner]);
        } else {
            for i in 0..inner {
                out.push(data[base + i * step]);
            }
        }
        let mut d = outer.len();
        loop {
            if d == 0 {
                return out;
            }
            d -= 1;
            index[d] += 1;
            base += strides[d];
            if index[d] < outer[d] {
                break;
            }
            base -= strides[d] * outer[d];
            index[d] = 0;
        }
    }
}

/// Rounds the elements of rows of `width` to what blocks hold, group by group, as numbers of f32.
pub(super) fn in_blocks<F: Float>(elements: &[F], width: usize, blocks: Blocks) -> Vec<F> {
    let mut out = Vec::with_capacity(elements.len());
    for group in elements.chunks(width.max(1)).flat_map(|row| row.chunks(usize::from(blocks.group))) {
        let mut narrow: Vec<f32> = group.iter().map(|x| x.to_f64() as f32).collect();
        blocks.round(&mut narrow);
        out.extend(narrow.into_iter().map(|x| F::from_f64(f64::from(x))));
    }
    out
}

/// Rounds to nearest even to what `dtype` holds; to blocks, which are of many elements, with [`in_blocks`].
pub(super) fn round<F: Float>(x: F, dtype: DType) -> F {
    match dtype {
        DType::BF16 => F::from_f64(half::bf16::from_f32(to_odd(x.to_f64())).to_f64()),
        DType::F16 => F::from_f64(half::f16::from_f32(to_odd(x.to_f64())).to_f64()),
        DType::F32 | DType::I64 | DType::I32 | DType::Bool | DType::Blocks(_) => x,
    }
}

/// `x` as f32, its last bit set where anything was cut off: rounded on to fewer bits, it gives what `x` itself would.
fn to_odd(x: f64) -> f32 {
    let near = x as f32;
    if f64::from(near) == x || x.is_nan() {
        return near;
    }
    let beyond = f64::from(near).abs() > x.abs();
    f32::from_bits((near.to_bits() - u32::from(beyond)) | 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strided_views() {
        let x = Value::<f64>::float(vec![2, 3], (0..6).map(f64::from).collect());
        assert_eq!(x.transpose(&[1, 0]).floats(), [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
        let row = Value::<f64>::float(vec![1, 3], vec![1.0, 2.0, 3.0]);
        assert_eq!(row.broadcast(&[2, 3]).floats(), [1.0, 2.0, 3.0, 1.0, 2.0, 3.0]);
        let one = Value::<f64>::float(vec![], vec![7.0]);
        assert_eq!(one.broadcast(&[2]).floats(), [7.0, 7.0]);
    }

    #[test]
    fn rounding_to_bf16_is_to_nearest_even() {
        assert_eq!(round(1.003_906_3_f32, DType::BF16), 1.0);
        assert_eq!(round(1.011_718_8_f32, DType::BF16), 1.015625);
        // Just above the middle, by the last bit of f32 and of f64.
        let (even, odd) = (1.0, 1.007_812_5);
        let middle: f64 = (even + odd) / 2.0;
        assert_eq!(round(middle, DType::BF16), even);
        assert_eq!(round(f32::from_bits((middle as f32).to_bits() + 1), DType::BF16), odd as f32);
        assert_eq!(round(f64::from_bits(middle.to_bits() + 1), DType::BF16), odd);
        assert_eq!(round(-f64::from_bits(middle.to_bits() + 1), DType::BF16), -odd);
        assert_eq!(round(f64::from_bits((65519.999_f64).to_bits()), DType::F16), 65504.0);
        assert_eq!([round(1e39, DType::BF16), round(f64::MIN, DType::F16)], [f64::INFINITY, f64::NEG_INFINITY]);
    }
}
