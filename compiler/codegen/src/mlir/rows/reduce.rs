//! Reductions over the last dimension of a row's value, fused with what computes it.

use xfc_lang::graph::ValueId;
use xfc_lang::ops::ReduceOp;

use super::{Body, Row};
use crate::error::CodegenError;
use crate::mlir::writer::{Elem, Ty, Val, Writer};

impl Body<'_> {
    pub(super) fn reduce(
        &mut self,
        w: &mut Writer,
        kind: ReduceOp,
        from: ValueId,
        to: ValueId,
    ) -> Result<Row, CodegenError> {
        let dims = self.dims(from)?;
        let elem = self.elem(from)?;
        let (Some(n), true) = (dims.last().copied(), matches!(elem, Elem::F32 | Elem::I64)) else {
            return Err(self.unsupported(to.node, "this reduction"));
        };
        let vectors = self.vectors(from);
        let lanes = if vectors && n > 1 { self.lanes } else { 0 };
        let single = dims[..dims.len() - 1].iter().all(|d| *d == 1);
        let target = if single { None } else { Some(self.scratch(w, elem, &self.dims(to)?)) };
        let mut scalar = None;
        let this = &*self;
        this.outer(w, &dims, dims.len() - 1, Vec::new(), &mut |w, outer| {
            let start = identity(w, kind, Ty::of(elem, lanes));
            let mut at = outer;
            at.push(start);
            let last = at.len() - 1;
            let total = this.last_dim(w, n, vectors, &[start], &mut |w, i, l, mask, c| {
                at[last] = i;
                let x = this.compute(w, from, &at, l, mask)?;
                let x = w.splat(x, l);
                let x = match mask {
                    Some(mask) => {
                        let none = identity(w, kind, x.ty);
                        w.select(mask, x, none)
                    }
                    None => x,
                };
                Ok(vec![combine(w, kind, c[0], x)])
            })?[0];
            let total = match kind {
                ReduceOp::Max => w.reduce_max(total),
                ReduceOp::Min => w.reduce_min(total),
                _ => w.reduce_add(total),
            };
            let total = if kind == ReduceOp::Mean {
                let n = w.f32(n as f64, 0);
                w.div(total, n)
            } else {
                total
            };
            match &target {
                Some(view) => {
                    at[last] = w.i64(0);
                    view.store(w, total, &at, None);
                }
                None => scalar = Some(total),
            }
            Ok(())
        })?;
        w.sync();
        match (target, scalar) {
            (Some(view), _) => Ok(Row::Memory(view)),
            (None, Some(v)) => Ok(Row::Scalar(v)),
            (None, None) => Err(CodegenError::bug("rows", "a reduction without a result")),
        }
    }
}

fn identity(w: &mut Writer, kind: ReduceOp, ty: Ty) -> Val {
    let float = match kind {
        ReduceOp::Max => f64::NEG_INFINITY,
        ReduceOp::Min => f64::INFINITY,
        _ => 0.0,
    };
    let int = match kind {
        ReduceOp::Max => i64::MIN,
        ReduceOp::Min => i64::MAX,
        _ => 0,
    };
    if ty.elem.is_float() { w.f32(float, ty.lanes) } else { w.int(int, ty) }
}

fn combine(w: &mut Writer, kind: ReduceOp, a: Val, b: Val) -> Val {
    match kind {
        ReduceOp::Max => w.max(a, b),
        ReduceOp::Min => w.min(a, b),
        _ => w.add(a, b),
    }
}
