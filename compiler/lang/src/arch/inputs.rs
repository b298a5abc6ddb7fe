//! The model's inputs: their types, their axes and what is there when one is not given.

use std::rc::Rc;

use super::arith;
use super::expand::{Eval, Expander};
use super::value::{self, Axis, AxisName, Place, Scope, Value};
use crate::diagnostic::{Code, Diagnostic};
use crate::graph::{AxisId, Dim, InputDecl};
use crate::spec::ast::{Expr, ExprKind, Module, Param, TypeExpr};

const ONE_GROWS: &str = "sequences come one by one: write `f32[tokens, 8]`, without an axis for them; sizes may follow an axis that grows, not another such axis";

impl Expander {
    /// An input of the model: its tensor and its declaration.
    pub(super) fn input_decl(&mut self, param: &Param, card: &Rc<Scope>) -> Eval<(value::Tensor, InputDecl)> {
        let Some(TypeExpr::Tensor { dtype, dims }) = &param.ty else {
            return self.fail(
                Code::MissingOption,
                param.name.span,
                format!("the input `{}` has no type", param.name.name),
                "expected a type, as in `i64[tokens]`",
            );
        };
        let mut axes = Vec::new();
        for (i, dim) in dims.iter().enumerate() {
            axes.push(self.input_axis(dim, i + 1 == dims.len(), card)?);
        }
        if let Some(i) = (1..axes.len()).find(|i| axes[*i].size.is_ragged()) {
            let message =
                format!("the input `{}` has {} behind another axis", param.name.name, self.show_shape(&axes[i..=i]));
            let d = Diagnostic::new(Code::AxisMismatch, message, dims[i].span)
                .label("an axis that grows comes first, and alone");
            return Err(self.report(d.help(ONE_GROWS)));
        }
        // One a sequence.
        if axes.iter().all(|a| !a.size.is_ragged()) {
            let each = self.each_sequence(param.name.span)?;
            axes.insert(0, each);
        }
        let default = match &param.default {
            None => None,
            Some(expr) => {
                let place = Place { scope: card.clone(), frame: None, binds: None };
                match self.eval(expr, &place)? {
                    Value::Bool(b) => Some(f64::from(u8::from(b))),
                    value => match arith::number(&value) {
                        Some(v) => Some(v),
                        None => {
                            return self.fail(
                                Code::WrongType,
                                expr.span,
                                format!("the default of an input is a number, not {}", value.kind()),
                                "expected a number",
                            );
                        }
                    },
                }
            }
        };
        let tensor = self.builders.parameter(&param.name.name, *dtype, axes);
        let decl = InputDecl { name: param.name.name.to_string(), ty: tensor.ty(), default };
        Ok((tensor, decl))
    }

    /// Gives the axis `tokens` the first number, wherever it stands among the inputs: it is the one that a sequence grows by.
    pub(super) fn first_axis(&mut self, model: &Module, card: &Rc<Scope>) {
        let named_tokens = |e: &Expr| matches!(&*e.kind, ExprKind::Name(name) if &**name == "tokens");
        for param in &model.inputs {
            if let Some(TypeExpr::Tensor { dims, .. }) = &param.ty
                && dims.iter().any(named_tokens)
                && !is_known("tokens", card)
                && self.axes.is_empty()
            {
                self.ragged_axis("tokens", None);
            }
        }
    }

    /// A name that is no size is a ragged axis.
    fn input_axis(&mut self, dim: &Expr, last: bool, card: &Rc<Scope>) -> Eval<Axis> {
        if let ExprKind::Name(name) = &*dim.kind
            && !is_known(name, card)
        {
            let known = self.axes.iter().position(|a| **a == **name);
            let id = known.unwrap_or_else(|| self.ragged_axis(name, None));
            return Ok(Axis::new(AxisName::Ragged(id), Dim::Axis(AxisId(id))));
        }
        let place = Place { scope: card.clone(), frame: None, binds: None };
        let value = self.eval(dim, &place)?;
        let size = self.size(&value, dim.span)?;
        let name = if last { AxisName::Width } else { self.other_axis() };
        Ok(Axis::new(name, Dim::Fixed(size)))
    }
}

/// Whether a name means something at a place.
pub(super) fn is_known(name: &str, scope: &Rc<Scope>) -> bool {
    let mut at = Some(scope.clone());
    while let Some(scope) = at {
        if scope.names.borrow().contains_key(name) {
            return true;
        }
        at = scope.parent.clone();
    }
    false
}
