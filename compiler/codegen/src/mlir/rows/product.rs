//! Sums of products of two values of a row, such as the weighted sum of what several experts give.

use xfc_lang::graph::ValueId;
use xfc_lang::ops::shape::ContractSpec;

use super::view::View;
use super::{Body, has_row};
use crate::error::CodegenError;
use crate::mlir::expr::cast;
use crate::mlir::writer::{Elem, Val, Writer};

/// One operand: where it lies, and the label of each dimension.
struct Operand {
    view: View,
    labels: Vec<char>,
}

/// Given the coordinates that are summed over and a sum: the sum with what is there.
type SumFn<'f> = dyn FnMut(&mut Writer, &[Val], Val) -> Result<Val, CodegenError> + 'f;

impl Body<'_> {
    /// `spec` over a row of each operand, summed in f32.
    pub(super) fn contract(
        &mut self,
        w: &mut Writer,
        spec: &str,
        [a, b]: [ValueId; 2],
        value: ValueId,
        target: &View,
    ) -> Result<(), CodegenError> {
        let spec = ContractSpec::parse(spec).map_err(|e| CodegenError::bug("rows", e.to_string()))?;
        let own = |of: ValueId, labels: &[char]| labels[usize::from(has_row(self.graph.ty(of)))..].to_vec();
        let (labels, out) = ([own(a, &spec.a), own(b, &spec.b)], own(value, &spec.out));
        let [a_labels, b_labels] = labels;
        let a = Operand { view: self.view_of(w, a)?, labels: a_labels };
        let b = Operand { view: self.view_of(w, b)?, labels: b_labels };
        if [&a, &b].iter().any(|x| !matches!(x.view.elem, Elem::F32 | Elem::I16)) {
            return Err(self.unsupported(value.node, "a product of these values"));
        }
        let summed: Vec<char> =
            spec.summed().into_iter().filter(|c| a.labels.contains(c) || b.labels.contains(c)).collect();
        let size = |c: char| {
            let of = |x: &Operand| x.labels.iter().position(|l| *l == c).map(|d| x.view.dims[d]);
            of(&a).or_else(|| of(&b)).unwrap_or(1)
        };
        let sizes: Vec<u64> = summed.iter().map(|c| size(*c)).collect();
        // The last label of the result in vectors, where each operand has it last, or not at all; else the last label that is summed over.
        let lies = |c: char| {
            [&a, &b].iter().all(|x| !x.labels.contains(&c) || (x.labels.last() == Some(&c) && x.view.unit_last()))
        };
        let by_columns = out.last().is_some_and(|c| lies(*c)) && target.unit_last();
        let by_sums = !by_columns && summed.last().is_some_and(|c| lies(*c));
        let this = &*self;
        let product = |w: &mut Writer, at: &[(char, Val)], lanes: u32, mask: Option<Val>, along: Option<char>| {
            let mut factor = |x: &Operand| -> Result<Val, CodegenError> {
                let index: Vec<Val> =
                    x.labels.iter().filter_map(|c| at.iter().find(|(l, _)| l == c).map(|(_, i)| *i)).collect();
                let vector = along.is_some_and(|c| x.labels.contains(&c));
                let value = x.view.load(w, &index, if vector { lanes } else { 0 }, mask.filter(|_| vector));
                let value = cast(w, value, Elem::F32)?;
                Ok(w.splat(value, lanes))
            };
            Ok::<_, CodegenError>((factor(&a)?, factor(&b)?))
        };
        this.nest(w, &target.dims, by_columns, &mut |w, at, lanes, mask| {
            let place: Vec<(char, Val)> = out.iter().copied().zip(at.iter().copied()).collect();
            let zero = w.f32(0.0, lanes);
            let total = if by_sums {
                let (inner, outer) =
                    sizes.split_last().ok_or_else(|| CodegenError::bug("rows", "nothing is summed"))?;
                let width = if *inner > 1 { this.lanes } else { 0 };
                let zero = w.f32(0.0, width);
                let total = this.summed(w, outer, Vec::new(), zero, &mut |w, index, sum| {
                    let sum = this.last_dim(w, *inner, true, &[sum], &mut |w, i, l, tail, c| {
                        let index = index.iter().copied().chain([i]);
                        let place: Vec<_> = place.iter().copied().chain(summed.iter().copied().zip(index)).collect();
                        // Lanes behind the last element are loaded as zeros.
                        let (x, y) = product(w, &place, l, tail, summed.last().copied())?;
                        Ok(vec![w.fma(x, y, c[0])])
                    })?;
                    Ok(sum[0])
                })?;
                w.reduce_add(total)
            } else {
                this.summed(w, &sizes, Vec::new(), zero, &mut |w, index, sum| {
                    let place: Vec<_> =
                        place.iter().copied().chain(summed.iter().copied().zip(index.iter().copied())).collect();
                    let (x, y) = product(w, &place, lanes, mask, out.last().copied())?;
                    Ok(w.fma(x, y, sum))
                })?
            };
            target.store(w, total, at, mask);
            Ok(())
        })
    }

    /// Loops over `sizes` that carry a sum.
    fn summed(
        &self,
        w: &mut Writer,
        sizes: &[u64],
        at: Vec<Val>,
        sum: Val,
        inner: &mut SumFn<'_>,
    ) -> Result<Val, CodegenError> {
        let Some(n) = sizes.get(at.len()) else { return inner(w, &at, sum) };
        let (zero, end) = (w.i64(0), w.i64(*n as i64));
        let total = w.for_loop(zero, end, 1, &[sum], |w, i, c| {
            let next = at.iter().copied().chain([i]).collect();
            Ok(vec![self.summed(w, sizes, next, c[0], inner)?])
        })?;
        Ok(total[0])
    }
}
