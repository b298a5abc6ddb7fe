//! Instances: modules at paths, bound in bodies, applied by expanding their bodies.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use super::calls::Given;
use super::expand::{Eval, Expander, Failed};
use super::value::{Def, Entry, Frame, Instance, Made, ParamRef, Place, Scope, Value};
use crate::diagnostic::{Code, Diagnostic, Span};
use crate::graph::LabelKind;
use crate::spec::ast::{Binding, Ident, Item, Param};

/// Most instances of a model.
const MAX_INSTANCES: usize = 1 << 20;

impl Expander {
    /// The instance of the body that a definition applied unbound is, under its own name.
    pub(super) fn instance(&mut self, name: &Arc<str>, def: &Rc<Def>, span: Span, place: &Place) -> Eval<Rc<Instance>> {
        let Some(frame) = &place.frame else {
            return self.fail(Code::Misplaced, span, "a module applied outside every body", "no body here");
        };
        let frame = frame.clone();
        self.child(&frame, name, def, span)
    }

    /// The child of that name of the body that is expanded, made at the first time and the same at later applications of the body.
    fn child(&mut self, frame: &Rc<Frame>, name: &Arc<str>, def: &Rc<Def>, span: Span) -> Eval<Rc<Instance>> {
        let parent = &frame.instance;
        let before = frame.made.borrow().iter().find(|m| m.name == *name).cloned();
        if let Some(before) = before.filter(|m| !Rc::ptr_eq(&m.def, def)) {
            return match parent.child(name) {
                // What has no parameters is the same as often as it is made.
                Some(Value::Instance(known))
                    if is_same(&known.def, def) && known.applied.get() && !known.has_parameters() =>
                {
                    Ok(known)
                }
                _ => Err(self.second_instance(&before, span)),
            };
        }
        let led_here = self.expanding.last().map(|(_, at)| *at);
        frame.made.borrow_mut().push(Made { name: name.clone(), def: def.clone(), span, led_here });
        match parent.child(name) {
            Some(Value::Instance(instance)) if is_same(&instance.def, def) => return Ok(instance),
            Some(_) => {
                let message = format!("`{name}` would be another instance than when this body was applied before");
                return self.fail(Code::DuplicateName, span, message, "an instance with other options");
            }
            None => {}
        }
        self.n_instances += 1;
        if self.n_instances > MAX_INSTANCES {
            return self.fail(Code::TooDeep, span, format!("more than {MAX_INSTANCES} instances"), "one too many");
        }
        let instance = Rc::new(Instance {
            path: join(&parent.path, name),
            def: def.clone(),
            children: RefCell::default(),
            options: RefCell::default(),
            applied: Cell::new(false),
            stands_for: RefCell::default(),
        });
        parent.children.borrow_mut().push((name.clone(), Value::Instance(instance.clone())));
        Ok(instance)
    }

    /// Reports a module made anew whose instance would be one that the body has.
    fn second_instance(&mut self, before: &Made, span: Span) -> Failed {
        let name = &before.name;
        let d = Diagnostic::new(Code::DuplicateName, format!("two instances of one body would be `{name}`"), span);
        let led_here = self.expanding.last().map(|(_, at)| *at);
        let d = match (before.led_here, led_here) {
            (Some(first), Some(second)) if before.span == span && first != second => d
                .label("made at each of two calls")
                .other(first, "the first call")
                .other(second, "the second call")
                .help("bind an instance for each call and pass it, as in `first, second = m(option)` and `f(first, x)`; to share one, bind it once and pass it twice"),
            _ if before.span == span => d.label("made more than once here").help(
                "a module that is made and applied without a name has the module's: bind them, as in `ms = [m(option) for i in 0..3]`",
            ),
            _ => d.label("the second").other(before.span, "the first").help(
                "each module that is made in a body and applied without a name has the module's: bind them, as in `first = m(option)`",
            ),
        };
        self.report(d)
    }

    /// Binds the names of one binding in a body.
    fn bind(&mut self, binding: &Binding, place: &Place, frame: &Rc<Frame>) {
        let instance = &frame.instance;
        let binds = Some(binding.names[0].name.clone());
        let value = self.eval(&binding.value, &Place { binds, ..place.part() });
        let span = binding.value.span;
        let n = binding.names.len();
        let values: Vec<Eval> = match value {
            Ok(value) if n == 1 => vec![Ok(value)],
            Ok(Value::Tuple(items)) if items.len() == n => items.iter().cloned().map(Ok).collect(),
            Ok(value @ (Value::Def(_) | Value::Identity | Value::Func(_) | Value::Builtin(_) | Value::NewParam(_))) => {
                vec![Ok(value); n]
            }
            Ok(value) => {
                let found = match &value {
                    Value::Tuple(items) => format!("a tuple of {}", items.len()),
                    other => other.kind().to_string(),
                };
                let d = Diagnostic::new(Code::WrongType, format!("{n} names for {found}"), span)
                    .label(format!("expected a module, a parameter or a tuple of {n}"));
                vec![Err(self.report(d)); n]
            }
            Err(Failed) => vec![Err(Failed); n],
        };
        for (ident, value) in binding.names.iter().zip(values) {
            let named = value.and_then(|v| self.name_value(ident, v, span, frame));
            if let Ok(value) = &named {
                self.label(&join(&instance.path, &ident.name), LabelKind::Binding, value, span);
            }
            let entry = named.map_or(Entry::Failed, Entry::Ready);
            place.scope.names.borrow_mut().insert(ident.name.clone(), entry);
        }
    }

    /// A value bound to a name in a body: a module becomes an instance, a parameter gets its path.
    fn name_value(&mut self, ident: &Ident, value: Value, span: Span, frame: &Rc<Frame>) -> Eval {
        let name = &ident.name;
        let parent = &frame.instance;
        match value {
            Value::Def(def) => self.child(frame, name, &def, span).map(Value::Instance),
            Value::List(items) if items.iter().any(|item| matches!(item, Value::Instance(_))) => {
                let known =
                    items.iter().find_map(|i| if let Value::Instance(i) = i { Some(i.path.clone()) } else { None });
                let message = format!("`{}` would get a second name", known.unwrap_or_default());
                let d = Diagnostic::new(Code::SecondName, message, ident.span).label("the second name");
                Err(self.report(
                    d.help("a list of instances that have names is applied where it is written, as in `[a, b](x)`"),
                ))
            }
            Value::List(items) if items.iter().any(holds_instances) => {
                let mut named = Vec::with_capacity(items.len());
                for (i, item) in items.iter().enumerate() {
                    let ident = Ident { name: format!("{name}.{i}").into(), span: ident.span };
                    named.push(self.name_value(&ident, item.clone(), span, frame)?);
                }
                Ok(Value::List(Rc::new(named)))
            }
            Value::Instance(instance) => {
                let d = Diagnostic::new(
                    Code::SecondName,
                    format!("`{}` would get a second name", instance.path),
                    ident.span,
                )
                .label("the second name");
                Err(self.report(d.help("use the instance by its first name; applying it again shares it")))
            }
            Value::NewParam(dims) => {
                let path = join(&parent.path, name);
                let param = Value::Param(Rc::new(ParamRef { path, dims: dims.to_vec() }));
                self.set_child(parent, name, param.clone());
                Ok(param)
            }
            Value::Param(param) => {
                let alias = (join(&parent.path, name), param.path.clone());
                if alias.0 != alias.1 && !self.aliases.contains(&alias) {
                    self.aliases.push(alias);
                }
                self.set_child(parent, name, Value::Param(param.clone()));
                Ok(Value::Param(param))
            }
            other => Ok(other),
        }
    }

    fn set_child(&mut self, parent: &Rc<Instance>, name: &Arc<str>, value: Value) {
        let mut children = parent.children.borrow_mut();
        match children.iter_mut().find(|(n, _)| n == name) {
            Some(child) => child.1 = value,
            None => children.push((name.clone(), value)),
        }
    }

    /// An instance applied to arguments of the body around it.
    pub(super) fn apply_here(&mut self, instance: &Rc<Instance>, given: Vec<Given>, span: Span, place: &Place) -> Eval {
        let mut inputs = Vec::with_capacity(given.len());
        for g in given {
            let value = match g.value {
                Value::None => Value::None,
                // Over the positions of attention: it is placed there.
                Value::Sym(sym) if !sym.only_q_pos() => Value::Sym(sym),
                other => self.carried(other, g.span, place)?,
            };
            inputs.push(Given { value, ..g });
        }
        self.apply(instance, inputs, span)
    }

    /// An instance applied: its body expanded here.
    pub(super) fn apply(&mut self, instance: &Rc<Instance>, given: Vec<Given>, span: Span) -> Eval {
        let def = instance.def.clone();
        let module = def.module.clone();
        let scope = Scope::new(Some(def.scope.clone()));
        let mut place = Place { scope: scope.clone(), frame: None, binds: None };
        let options = def
            .given
            .iter()
            .map(|(n, v, s)| Given { name: Some(n.clone()), value: v.clone(), span: *s, written: None })
            .collect();
        self.bind_params(&module.name, &module.options, options, span, &place, "option")?;
        if !instance.applied.get() {
            let shown = |p: &Param| match scope.names.borrow().get(&p.name.name) {
                Some(Entry::Ready(v)) => (p.name.name.clone(), v.show()),
                _ => (p.name.name.clone(), String::new()),
            };
            *instance.options.borrow_mut() = module.options.iter().map(shown).collect();
        }
        self.bind_params(&module.name, &module.inputs, given, span, &place, "input")?;
        let first = module.inputs.first().and_then(|p| match scope.names.borrow().get(&p.name.name) {
            Some(Entry::Ready(value)) => value.first_tensor(),
            _ => None,
        });
        let tokens = first.and_then(|t| {
            let ragged = t.axes.iter().any(|a| a.size.is_ragged());
            self.tokens_of(&t).or_else(|| (t.axes.len() > 1 && !ragged).then(|| t.axes[0]))
        });
        let frame = Rc::new(Frame::new(instance.clone(), tokens));
        place.frame = Some(frame.clone());
        self.expanding.push((module.name.clone(), span));
        let result = self.body(&module, &place, &frame);
        self.expanding.pop();
        if let Ok(value) = &result {
            self.label(&instance.path, LabelKind::Instance, value, module.result.span);
        }
        result
    }

    /// Names what is computed after the instance that returns it, or after the name that it is bound to.
    pub(super) fn label(&mut self, path: &str, kind: LabelKind, value: &Value, span: Span) {
        match value {
            Value::Tensor(tensor) => {
                let path = self.stands_for(path);
                self.builders.label(&path, kind, tensor, span);
            }
            Value::Tuple(items) | Value::List(items) => {
                items
                    .iter()
                    .enumerate()
                    .for_each(|(i, item)| self.label(&join(path, &i.to_string()), kind, item, span));
            }
            Value::Map(entries) => {
                entries.iter().for_each(|(name, item)| self.label(&join(path, name), kind, item, span));
            }
            _ => {}
        }
    }

    /// The bindings of a body in order, and its result.
    pub(super) fn body(&mut self, module: &crate::spec::ast::Module, place: &Place, frame: &Rc<Frame>) -> Eval {
        let instance = &frame.instance;
        let path = std::mem::replace(&mut self.path, instance.path.clone());
        instance.applied.set(true);
        self.define(&module.items, &place.scope, false);
        for item in &module.items {
            if let Item::Binding(binding) = item {
                self.at = Some(binding.value.span);
                self.bind(binding, place, frame);
            }
        }
        self.at = Some(module.result.span);
        let result = self.eval(&module.result, place);
        let result = match result {
            Ok(Value::Sym(s)) if s.only_q_pos() => {
                self.tensor(Value::Sym(s), module.result.span, Some(&**frame)).map(Value::Tensor)
            }
            Ok(Value::Param(p)) => self.param(&p, module.result.span).map(Value::Tensor),
            other => other,
        };
        self.path = path;
        result
    }
}

/// Whether two definitions are the same module with the same options, given at the same places.
fn is_same(a: &Def, b: &Def) -> bool {
    let alike = a
        .given
        .iter()
        .zip(&b.given)
        .all(|((a_name, a, a_at), (b_name, b, b_at))| a_name == b_name && a_at == b_at && a.show() == b.show());
    Arc::ptr_eq(&a.module, &b.module) && a.given.len() == b.given.len() && alike
}

/// Whether a value is an instance, becomes one when it is bound, or is a list with such an element.
fn holds_instances(value: &Value) -> bool {
    match value {
        Value::Def(_) | Value::Instance(_) => true,
        Value::List(items) => items.iter().any(holds_instances),
        _ => false,
    }
}

/// A path and a name below it.
pub(super) fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_string() } else { format!("{path}.{name}") }
}

#[cfg(test)]
mod tests {
    use crate::arch::testing::{card, codes, expand, model};
    use crate::diagnostic::Code;

    const SCALE: &str = "scale(x) { weight = param[width(x)] return x * weight }\n";

    fn paths(wiring: &str) -> Vec<String> {
        model(&format!("{SCALE}{wiring}")).arch.parameters.into_iter().map(|p| p.path).collect()
    }

    #[test]
    fn instances_are_names() {
        let wiring = "block(x) { a, b = scale return b(a(x)) }\nmodel(x: f32[tokens, 4]) { one = block many = [scale for i in 0..2] return {y: many(one(x))} }";
        assert_eq!(paths(wiring), ["one.a.weight", "one.b.weight", "many.0.weight", "many.1.weight"]);
    }

    #[test]
    fn definitions_applied_unbound_have_their_own_name() {
        let wiring = "block(act)(x) { return act(scale(scale(x))) }\nmodel(x: f32[tokens, 4]) { b = block(scale) return {y: b(x)} }";
        assert_eq!(paths(wiring), ["b.scale.weight", "b.act.weight"]);
    }

    #[test]
    fn one_line_binds_several_parameters() {
        let wiring = "norm(x) { weight, bias = param[width(x)] return x * weight + bias }\nmodel(x: f32[tokens, 4]) { n = norm return {y: n(x)} }";
        assert_eq!(paths(wiring), ["n.weight", "n.bias"]);
    }

    #[test]
    fn functions_are_bound_as_modules_are() {
        let wiring =
            "twice(x) = 2 * x\nmodel(x: f32[tokens, 4]) { a, b = twice c, d = tanh return {y: d(c(b(a(x))))} }";
        assert_eq!(paths(wiring), Vec::<String>::new());
    }

    #[test]
    fn modules_made_where_they_are_applied_need_names_when_there_are_several() {
        let cut = "cut(n)(x) { return split(x, n) }\n";
        let code = |body: &str| codes(&format!("{cut}model(x: f32[tokens, 8]) {{ {body} }}"));
        assert_eq!(code("return {y: cut(2)(x), z: cut(4)(x)}"), [Code::DuplicateName]);
        assert_eq!(code("return {y: cut(2)(x), z: cut(2)(x * 2)}"), [Code::DuplicateName]);
        assert_eq!(code("all = [cut(n)(x) for n in [2, 4]] return {y: all[0]}"), [Code::DuplicateName]);
        assert_eq!(code("a = cut(2) b = cut(4) return {y: a(x), z: b(x), w: a(2 * x)}"), []);
    }

    /// A function is expanded where it is called: what it makes there is made at each call.
    #[test]
    fn a_function_called_twice_shares_nothing_by_the_way() {
        let wide = "wide(n)(x) { weight = param[n, width(x)] return einsum('...i, oi -> ...o', x, weight) }\n";
        let code = |functions: &str, body: &str| {
            codes(&format!("{SCALE}{wide}{functions}model(x: f32[tokens, 4]) {{ {body} }}"))
        };
        assert_eq!(code("f(x) = wide(4)(x)\n", "return {y: f(x)}"), []);
        assert_eq!(code("f(x) = wide(4)(x)\n", "return {y: f(f(x))}"), [Code::DuplicateName]);
        assert_eq!(code("f(m, x) = m(x)\n", "return {y: f(wide(4), x) + f(wide(4), x)}"), [Code::DuplicateName]);
        assert_eq!(
            code("f(m, x) = m(m(x))\ng(x) = f(wide(4), x)\n", "return {y: g(x) + g(2 * x)}"),
            [Code::DuplicateName]
        );
        assert_eq!(code("", "all = [wide(4)(i * x) for i in 1..3] return {y: all[0]}"), [Code::DuplicateName]);
        assert_eq!(code("", "return {y: [wide(4) for i in 0..2](x)}"), [Code::DuplicateName]);
        // Nothing is shared where there is nothing to share.
        assert_eq!(code("twice(n)(x) { return n * x }\nf(x) = twice(2)(x)\n", "return {y: f(f(x))}"), []);
        // Written as shared: one definition at the margin, one argument, one binding.
        assert_eq!(code("w = wide(4)\nf(x) = w(x)\n", "return {y: f(f(x))}"), []);
        assert_eq!(code("f(m, x) = m(m(x))\n", "return {y: f(wide(4), x)}"), []);
        assert_eq!(code("f(m, x) = m(x)\n", "w = wide(4) return {y: f(w, f(w, x))}"), []);
        // A body that is applied again is the same instance, and what is made in it too.
        assert_eq!(code("b(x) { return wide(4)(x) }\n", "one = b return {y: one(one(x))}"), []);
        assert_eq!(code("f(x) = wide(4)(x)\nb(x) { return f(x) }\n", "one, two = b return {y: one(two(one(x)))}"), []);
    }

    #[test]
    fn the_calls_that_would_share_are_shown() {
        let wiring = "f(x) = scale(x)\nmade(n)(x) { weight = param[n] return x * weight }\ng(x) = made(4)(x)\n\
                      model(x: f32[tokens, 4]) { return {y: g(g(f(f(x))))} }";
        let report =
            expand(&card("sizes: {}\n", &format!("{SCALE}{wiring}")), &Default::default()).expect_err("twice made");
        let [one] = report.diagnostics.as_slice() else { panic!("{report}") };
        assert_eq!(one.message, "two instances of one body would be `made`");
        let shown = report.to_string();
        assert!(shown.contains("the first call") && shown.contains("the second call"), "{shown}");
    }

    #[test]
    fn lists_of_lists_are_numbered_by_both() {
        let wiring = "model(x: f32[tokens, 4]) { g = [[scale for j in 0..2] for i in 0..2] return {y: [g[i // 2] for i in 0..4](x)} }";
        assert_eq!(paths(wiring), ["g.0.0.weight", "g.0.1.weight", "g.1.0.weight", "g.1.1.weight"]);
        let wiring = "model(x: f32[tokens, 4]) { g = [scale for j in 0..2] h = [g for i in 0..2] return {y: h(x)} }";
        assert!(codes(&format!("{SCALE}{wiring}")).contains(&Code::SecondName));
    }

    #[test]
    fn what_is_not_applied_does_not_exist() {
        let wiring = "model(x: f32[tokens, 4]) { a, b = scale c = if 1 < 2 then scale else nothing(a) return {y: c(a(x)), z: none} }";
        assert_eq!(paths(wiring), ["a.weight", "c.weight"]);
    }

    #[test]
    fn captured_instances_and_tensors_are_shared_by_equal_bodies() {
        let wiring = "model(x: f32[tokens, 4]) {\n  shared = scale\n  gate = x * 2\n  layer(h) { own = scale return own(shared(h)) * gate }\n\
                      \x20 layers = [layer for i in 0..3]\n  return {y: layers(shared(x))}\n}";
        let made = model(&format!("{SCALE}{wiring}"));
        assert_eq!(made.program.graphs.len(), 2);
        assert_eq!(made.program.graphs[1].params().len(), 2);
        let text = made.program.to_string();
        assert!(text.contains("\"/shared.weight\"") && text.contains("\"own.weight\""), "{text}");
        let paths: Vec<&str> = made.arch.parameters.iter().map(|p| p.path.as_str()).collect();
        assert_eq!(paths, ["shared.weight", "layers.0.own.weight", "layers.1.own.weight", "layers.2.own.weight"]);
    }

    #[test]
    fn bodies_that_differ_are_graphs_of_their_own() {
        let wiring = "layer(i)(x) { s = scale return if i % 2 == 0 then s(x) else s(x) * 2 }\n\
                      model(x: f32[tokens, 4]) { layers = [layer(i) for i in 0..6] return {y: layers(x)} }";
        let made = model(&format!("{SCALE}{wiring}"));
        assert_eq!(made.program.graphs.len(), 3);
    }

    #[test]
    fn bodies_call_later_graphs_only() {
        let wiring = "inner(x) { s = scale return s(x) }\nouter(x) { inners = [inner for i in 0..2] return inners(x) }\n\
                      model(x: f32[tokens, 4]) { a = [outer for i in 0..2] b = [inner for i in 0..1] return {y: b(a(x))} }";
        let made = model(&format!("{SCALE}{wiring}"));
        assert_eq!(
            made.program.graphs.iter().map(|g| g.name.as_str()).collect::<Vec<_>>(),
            ["model", "outer", "inner"]
        );
        crate::graph::verify::verify(&made.program).unwrap_or_else(|e| panic!("{e}"));
    }

    #[test]
    fn a_parameter_bound_again_is_an_alias() {
        let wiring = "tied(of)(x) { weight = of.weight return x * weight }\nmodel(x: f32[tokens, 4]) { a = scale b = tied(a) return {y: b(a(x))} }";
        let made = model(&format!("{SCALE}{wiring}"));
        assert_eq!(made.arch.aliases, [("b.weight".to_string(), "a.weight".to_string())]);
        assert_eq!(made.ignore, ["b.weight"]);
    }

    #[test]
    fn bodies_return_tuples() {
        let wiring = "two(x) { return x, x * 2 }\nmodel(x: f32[tokens, 4]) { layers = [two] a, b = layers(x) c, d = two(x) return {y: a + b + c + d} }";
        assert_eq!(paths(wiring), [""; 0]);
    }

    #[test]
    fn misuse_is_said() {
        let code = |body: &str| codes(&format!("{SCALE}model(x: f32[tokens, 4]) {{ {body} }}"));
        assert_eq!(code("a = scale b = a return {y: b(x)}"), [Code::SecondName]);
        assert_eq!(code("a = scale return {y: a.weight * x}"), [Code::UnknownName]);
        assert_eq!(code("a, b = x return {y: a}"), [Code::WrongType]);
        assert_eq!(code("return x"), [Code::NoModel]);
        assert_eq!(code("return {y: none}"), [Code::NoModel]);
        assert_eq!(code("return {y: 5}"), [Code::WrongType]);
        assert_eq!(code("return {y: cache(x)}"), [Code::AxisMismatch]);
        assert_eq!(code("return {y: x + cache(x)}"), [Code::AxisMismatch]);
        assert_eq!(code("return {y: [1.0, 2.0]}"), [Code::WrongType]);
        assert_eq!(codes("model(x) { return {y: x} }"), [Code::MissingOption]);
        assert_eq!(codes("model(n)(x: f32[4]) { return {y: x} }"), [Code::NoModel]);
    }
}
