//! Expressions over positions: kept as they are until something says which positions, then operations.

use std::rc::Rc;

use super::expand::{Eval, Expander};
use super::symbolic::Sym;
use super::value::{Axis, Frame, Place, Tensor, Value};
use crate::diagnostic::{Code, Diagnostic, Span};
use crate::graph::{DType, Dim};
use crate::ops::Core;

impl Expander {
    /// A value as part of an expression over positions.
    pub(super) fn sym(&mut self, value: Value, span: Span, place: &Place) -> Eval<Rc<Sym>> {
        Ok(match value {
            Value::Sym(s) => s,
            Value::Int(v) => Rc::new(Sym::Int(v)),
            Value::Float(v) => Rc::new(Sym::Float(v)),
            Value::Bool(b) => Rc::new(Sym::Bool(b)),
            other => Rc::new(Sym::Tensor(self.tensor(other, span, place.frame.as_deref())?)),
        })
    }

    /// An expression over `q_pos` as a tensor over the tokens of the body's first input.
    pub(super) fn place_in_body(&mut self, sym: &Sym, span: Span, frame: Option<&Frame>) -> Eval<Tensor> {
        let Some(axis) = frame.and_then(|f| f.tokens) else {
            return self.fail(Code::Misplaced, span, "positions of no tokens", "no input here has a token axis");
        };
        self.place_sym(sym, span, &mut |this, leaf| match leaf {
            Sym::QPos => this.positions(axis, span),
            Sym::Tensor(t) => Ok(t.clone()),
            other => {
                if let Sym::Take(..) = other {
                    let d = Diagnostic::new(Code::Misplaced, "elements at positions outside a mask or a score", span);
                    return Err(this.report(d.help("give the expression to `attend`, as its mask or its scores")));
                }
                let at = if let Sym::KPos(at) | Sym::Head(at) | Sym::Score(at) = other { *at } else { span };
                let message = "`k_pos`, `head` and `score` mean something in attention only";
                let mut d = Diagnostic::new(Code::Misplaced, message, at).label("used outside a mask or a score");
                if at.to(span) != span {
                    d = d.other(span, "the value is needed here");
                }
                Err(this.report(d.help("give the expression to `attend`, as its mask or its scores")))
            }
        })
    }

    /// The position of each element of an axis.
    pub(super) fn positions(&mut self, axis: Axis, span: Span) -> Eval<Tensor> {
        let op = if matches!(axis.size, Dim::Fixed(_)) { Core::Index } else { Core::Position };
        self.emit(op, &[], DType::I64, vec![axis], span)
    }

    /// An expression over positions as operations; `leaf` gives the positions.
    pub(super) fn place_sym(
        &mut self,
        sym: &Sym,
        span: Span,
        leaf: &mut dyn FnMut(&mut Self, &Sym) -> Eval<Tensor>,
    ) -> Eval<Tensor> {
        match sym {
            Sym::Int(v) => self.constant(vec![*v as f64], DType::I64, Vec::new(), span),
            Sym::Float(v) => self.constant(vec![*v], DType::F32, Vec::new(), span),
            Sym::Bool(b) => self.constant(vec![f64::from(u8::from(*b))], DType::Bool, Vec::new(), span),
            Sym::Unary(op, a) => {
                let a = self.place_sym(a, span, leaf)?;
                self.unary_tensor(*op, a, span)
            }
            Sym::Cast(dtype, a) => {
                let a = self.place_sym(a, span, leaf)?;
                self.cast(a, *dtype, span)
            }
            Sym::Binary(op, a, b) => {
                let a = self.place_sym(a, span, leaf)?;
                let b = self.place_sym(b, span, leaf)?;
                self.binary_tensors(*op, a, b, span)
            }
            Sym::Select(c, a, b) => {
                let c = self.place_sym(c, span, leaf)?;
                let a = self.place_sym(a, span, leaf)?;
                let b = self.place_sym(b, span, leaf)?;
                self.select_tensors(c, a, b, span)
            }
            Sym::Gather(table, indices) => {
                let indices = indices.iter().map(|i| self.place_sym(i, span, leaf)).collect::<Eval<Vec<Tensor>>>()?;
                self.gather(table.clone(), indices, span)
            }
            Sym::Take(_, index) => {
                let index = self.place_sym(index, span, leaf)?;
                let values = leaf(self, sym)?;
                self.take_at(&values, index, span)
            }
            Sym::QPos | Sym::KPos(_) | Sym::Head(_) | Sym::Score(_) | Sym::Tensor(_) => leaf(self, sym),
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::arch::testing::{card, codes, expand, model};
    use crate::diagnostic::Code;

    #[test]
    fn q_pos_is_of_the_first_input() {
        let wiring =
            "far(m, x) { return m * q_pos }\nmodel(x: f32[tokens, 4], s: f32[source, 4]) { return {y: far(s, x)} }";
        assert_eq!(model(wiring).arch.outputs[0].1, "f32[source, 4]");
    }

    #[test]
    fn expressions_wait_for_their_place() {
        let wiring =
            "scale = 1 + 0.1 * log(1 + (q_pos + 1) // 4)\nmodel(x: f32[tokens, 4]) { return {y: scale * x, z: scale} }";
        let model = model(wiring);
        assert_eq!(model.arch.outputs[1].1, "f32[tokens]");
        assert_eq!(model.program.to_string().matches("position").count(), 1);
    }

    #[test]
    fn modules_take_expressions_and_give_them() {
        let wiring = "far(n)(d, h) { weight = param[n, 2] near = min(abs(d), n - 1) return gather(weight, near, h) }\n\
                      stack(x) {\n  bias = far(4)\n\
                      \x20 layer(x) {\n    q = split(x, 2)\n    k = cache(q)\n\
                      \x20   return merge(attend(q, k, k, k_pos <= q_pos, score + bias(k_pos - q_pos, head)))\n  }\n\
                      \x20 layers = [layer for i in 0..2]\n  return layers(x)\n}\n\
                      model(x: f32[tokens, 4]) { return {y: stack(x)} }";
        let model = model(wiring);
        assert_eq!(model.arch.parameters.iter().map(|p| p.path.as_str()).collect::<Vec<_>>(), ["stack.bias.weight"]);
        assert_eq!(model.program.graphs.len(), 2);
        let text = model.program.to_string();
        assert!(text.contains("gather") && text.contains("f32[2, 1, tokens, visible(tokens)]"), "{text}");
    }

    #[test]
    fn keys_and_scores_mean_something_in_attention_only() {
        for name in ["k_pos", "head", "score"] {
            assert_eq!(codes(&format!("model(x: f32[tokens, 4]) {{ return {{y: x + {name}}} }}")), [Code::Misplaced]);
        }
        assert_eq!(codes("model(x: f32[4]) { return {y: x * q_pos} }"), [Code::Misplaced]);
        let text = card("sizes: {}\n", "far = k_pos + 1\nmodel(x: f32[tokens, 4]) { return {y: x * far} }");
        let report = expand(&text, &Default::default()).expect_err("it is misplaced");
        let place = report.diagnostics[0].primary.as_ref().map(|p| report.sources.text(p.span));
        assert_eq!(place, Some("k_pos"));
    }
}
