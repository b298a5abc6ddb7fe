//! Names that stand for nothing, in all that a card defines.
//!
//! Expansion finds them where it comes by. Where a mistake stops it, what lies behind is not expanded; so that its unknown names are said
//! in the same run, the definitions are then read through, given the scope of the card. Each name is said once. A card that expands is
//! never refused here.

use std::rc::Rc;

use super::expand::Expander;
use super::value::{Scope, Value};
use crate::spec::ast::{Expr, ExprKind, Item, Param};

impl Expander {
    /// Reports every name in the bodies of `items` that nothing defines.
    pub(super) fn check_names(&mut self, items: &[Item], scope: &Rc<Scope>) {
        for item in items {
            if self.gave_up {
                return;
            }
            match item {
                Item::Module(module) => {
                    let inner = Scope::new(Some(scope.clone()));
                    let params = module.options.iter().chain(&module.inputs);
                    let bound = module.items.iter().flat_map(|item| item.names());
                    for name in params.map(|p| &p.name).chain(bound) {
                        inner.set(name.name.clone(), Value::None);
                    }
                    self.check_defaults(&module.options, &inner);
                    self.check_defaults(&module.inputs, &inner);
                    self.check_names(&module.items, &inner);
                    self.check_expr(&module.result, &inner);
                }
                Item::Function(function) => {
                    let inner = Scope::new(Some(scope.clone()));
                    for param in &function.params {
                        inner.set(param.name.name.clone(), Value::None);
                    }
                    self.check_defaults(&function.params, &inner);
                    self.check_expr(&function.body, &inner);
                }
                Item::Binding(binding) => self.check_expr(&binding.value, scope),
            }
        }
    }

    fn check_defaults(&mut self, params: &[Param], scope: &Rc<Scope>) {
        for default in params.iter().filter_map(|p| p.default.as_ref()) {
            self.check_expr(default, scope);
        }
    }

    fn check_expr(&mut self, expr: &Expr, scope: &Rc<Scope>) {
        // Chains are walked without a deeper stack for each link.
        let mut expr = expr;
        loop {
            expr = match &*expr.kind {
                ExprKind::If { condition, then, otherwise } => {
                    self.check_expr(condition, scope);
                    self.check_expr(then, scope);
                    otherwise
                }
                ExprKind::Binary { left, right, .. } => {
                    self.check_expr(right, scope);
                    left
                }
                _ => break,
            };
        }
        match &*expr.kind {
            ExprKind::None | ExprKind::Bool(_) | ExprKind::Int(_) | ExprKind::Float(_) | ExprKind::Str(_) => {}
            ExprKind::Name(name) => {
                if !self.is_known(name, scope) && !self.is_reported_unknown(name) {
                    self.unknown(name, expr.span, scope);
                }
            }
            ExprKind::List(items) | ExprKind::Tuple(items) => items.iter().for_each(|e| self.check_expr(e, scope)),
            ExprKind::Mapping(entries) => entries.iter().for_each(|(_, e)| self.check_expr(e, scope)),
            ExprKind::Comprehension { body, variable, list } => {
                self.check_expr(list, scope);
                let inner = Scope::new(Some(scope.clone()));
                inner.set(variable.name.clone(), Value::None);
                self.check_expr(body, &inner);
            }
            ExprKind::If { .. } | ExprKind::Binary { .. } => {}
            ExprKind::Not(value) | ExprKind::Neg(value) | ExprKind::IsNone { value, .. } => {
                self.check_expr(value, scope)
            }
            ExprKind::Call { callee, args } => {
                self.check_expr(callee, scope);
                args.iter().for_each(|arg| self.check_expr(&arg.value, scope));
            }
            ExprKind::Index { base, indices } => {
                // `param[..]` is a form of its own, not a list.
                if !matches!(&*base.kind, ExprKind::Name(name) if &**name == "param") {
                    self.check_expr(base, scope);
                }
                indices.iter().for_each(|e| self.check_expr(e, scope));
            }
            ExprKind::Member { base, .. } => self.check_expr(base, scope),
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::arch::testing::{codes, model};
    use crate::diagnostic::Code;

    #[test]
    fn what_a_mistake_hides_is_read_too() {
        let wiring = "f(x) { y = frist(x) return y * secnod }\ng(n) = n + thrid\n\
                      model(x: f32[tokens, 8]) { y = f(nothing) return {y: y * g(2)} }";
        assert_eq!(codes(wiring), [Code::UnknownName; 4]);
    }

    #[test]
    fn a_name_is_said_once() {
        let wiring = "f(x) { return x * lost }\nmodel(x: f32[tokens, 8]) { y = f(lost) return {y: y + lost} }";
        assert_eq!(codes(wiring), [Code::UnknownName; 2], "twice where it was come by, and not again behind it");
    }

    #[test]
    fn what_is_defined_anywhere_around_is_known() {
        let wiring = "h(a, b = a)(x) { c = x inner(z) { return z + c * b } d = inner return d(x) }\n\
                      model(x: f32[tokens, 8]) { s = [i * 2 for i in 0..3] return {y: h(1)(x) * lost * s[0]} }";
        assert_eq!(codes(wiring), [Code::UnknownName]);
        model(&wiring.replace(" * lost", "").replace("h(1)(x)", "x"));
    }
}
