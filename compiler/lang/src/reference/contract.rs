//! Sums of products in Einstein notation, as batches of plain matrix products over contiguous rows.

use super::float::Float;
use super::tensor::Value;
use super::{InterpretError, Result};
use crate::ops::shape::ContractSpec;

pub(super) fn contract<F: Float>(spec: &str, a: &Value<F>, b: &Value<F>) -> Result<Value<F>> {
    let spec = ContractSpec::parse(spec).map_err(|e| InterpretError(e.0))?;
    let pick = |labels: &[char], f: &dyn Fn(char) -> bool| labels.iter().copied().filter(|c| f(*c)).collect::<Vec<_>>();
    let batch = pick(&spec.out, &|c| spec.a.contains(&c) && spec.b.contains(&c));
    let rows = pick(&spec.out, &|c| !spec.b.contains(&c));
    let columns = pick(&spec.out, &|c| !spec.a.contains(&c));
    let summed = spec.summed();

    let size = |c: &char| {
        let at = |labels: &[char], dims: &[usize]| labels.iter().position(|l| l == c).map(|i| dims[i]);
        at(&spec.a, &a.dims).or_else(|| at(&spec.b, &b.dims)).unwrap_or(1)
    };
    let product = |labels: &[char]| labels.iter().map(size).product::<usize>();
    let (nb, nr, nc, ns) = (product(&batch), product(&rows), product(&columns), product(&summed));

    let a = arranged(a, &spec.a, &[&batch[..], &rows, &summed].concat()); // [batch, rows, summed]
    let b = arranged(b, &spec.b, &[&batch[..], &columns, &summed].concat()); // [batch, columns, summed]
    let (x, w) = (a.floats(), b.floats());
    let mut out = Vec::with_capacity(nb * nr * nc);
    for i in 0..nb * nr {
        let row = &x[i * ns..(i + 1) * ns];
        let matrix = &w[i / nr.max(1) * nc * ns..][..nc * ns];
        if ns == 0 {
            out.resize(out.len() + nc, F::default());
            continue;
        }
        for column in matrix.chunks_exact(ns) {
            let mut sum = F::default();
            for (p, q) in row.iter().zip(column) {
                sum = sum + *p * *q;
            }
            out.push(sum);
        }
    }
    let labels = [&batch[..], &rows, &columns].concat();
    let dims = labels.iter().map(size).collect();
    Ok(arranged(&Value::float(dims, out), &labels, &spec.out))
}

/// The dimensions of `x`, named by `labels`, in the order of `order`.
fn arranged<F: Float>(x: &Value<F>, labels: &[char], order: &[char]) -> Value<F> {
    let perm: Vec<usize> = order.iter().filter_map(|c| labels.iter().position(|l| l == c)).collect();
    x.transpose(&perm)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_of_products() {
        let a = Value::<f64>::float(vec![2, 3], vec![1., 2., 3., 4., 5., 6.]);
        let b = Value::<f64>::float(vec![2, 3], vec![1., 0., 1., 0., 1., 0.]);
        assert_eq!(contract("ni,oi->no", &a, &b).unwrap().floats(), [4., 2., 10., 5.]);
        assert_eq!(contract("ni,oi->on", &a, &b).unwrap().floats(), [4., 10., 2., 5.]);
        assert_eq!(contract("ni,ni->n", &a, &b).unwrap().floats(), [4., 5.]);
        assert_eq!(contract("ni,ni->", &a, &b).unwrap().floats(), [9.]);
    }
}
