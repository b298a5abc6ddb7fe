//! Calls: options make a more special module, tensors apply it; functions are expanded in place; a list of modules is their composition.

use std::rc::Rc;
use std::sync::Arc;

use super::expand::{Eval, Expander, Failed};
use super::inputs::is_known;
use super::scope::hides;
use super::value::{Def, Func, Place, Scope, Value};
use crate::diagnostic::{Code, Diagnostic, Span, did_you_mean};
use crate::spec::ast::{Ident, Param, TypeExpr};

/// Deepest nesting of bodies and functions.
const MAX_DEPTH: usize = 48;

/// The library's function from a word of config.json to a module.
const ACTIVATION: &str = "activation";

/// An argument as evaluated.
#[derive(Clone)]
pub(super) struct Given {
    pub(super) name: Option<Arc<str>>,
    pub(super) value: Value,
    pub(super) span: Span,
    /// The name it was written as, when it was one.
    pub(super) written: Option<Arc<str>>,
}

impl Given {
    /// A value by position, made at a place rather than written as a name.
    pub(super) fn of(value: Value, span: Span) -> Self {
        Given { name: None, value, span, written: None }
    }

    fn applies(&self) -> bool {
        match &self.value {
            Value::Tensor(_) | Value::Param(_) => true,
            structure => structure.first_tensor().is_some(),
        }
    }
}

impl Expander {
    /// A call of anything.
    pub(super) fn call(
        &mut self,
        function: Value,
        name: Option<Arc<str>>,
        given: Vec<Given>,
        span: Span,
        callee: Span,
        place: &Place,
    ) -> Eval {
        self.depth += 1;
        let result = if self.depth > MAX_DEPTH {
            Err(self.too_deep(callee))
        } else {
            self.call_inner(function, name, given, span, callee, place)
        };
        self.depth -= 1;
        result
    }

    /// Reports nesting that is too deep, at the place where the definition that is there most often is expanded again.
    fn too_deep(&mut self, callee: Span) -> Failed {
        let times = |name: &Ident| self.expanding.iter().filter(|(n, _)| n.span == name.span).count();
        let most = self.expanding.iter().map(|(name, _)| times(name)).max().unwrap_or(0);
        let repeated = self.expanding.iter().find(|(name, _)| most > 2 && times(name) == most).map(|(name, _)| name);
        let again = repeated.and_then(|name| {
            self.expanding.iter().filter(|(n, _)| n.span == name.span).nth(1).map(|(n, span)| (n.clone(), *span))
        });
        let deep = format!("modules and functions nested deeper than {MAX_DEPTH}");
        let d = match again {
            Some((name, span)) => {
                Diagnostic::new(Code::TooDeep, format!("`{}` applies itself: {deep}", name.name), span)
                    .label("expanded again here")
                    .other(name.span, "defined here")
            }
            None => Diagnostic::new(Code::TooDeep, deep, callee).label("one level too many"),
        };
        self.report(d)
    }

    fn call_inner(
        &mut self,
        function: Value,
        name: Option<Arc<str>>,
        given: Vec<Given>,
        span: Span,
        callee: Span,
        place: &Place,
    ) -> Eval {
        match function {
            Value::Def(def) => {
                if !given.iter().any(Given::applies) {
                    return self.specialise(&def, given, span).map(|d| Value::Def(Rc::new(d)));
                }
                if let Some(option) =
                    given.iter().find(|g| !g.applies() && !matches!(g.value, Value::None | Value::Sym(_)))
                {
                    let d =
                        Diagnostic::new(Code::MixedCall, "a call takes options or tensors, never both", option.span)
                            .label(format!("{} among tensors", option.value.kind()));
                    return Err(self.report(d.help("give the options first and apply what that makes: `m(option)(x)`")));
                }
                let is_option = |g: &&Given| {
                    let named = |o: &Param| g.name.as_ref().is_some_and(|name| o.name.name == *name);
                    def.module.options.iter().any(named)
                };
                if let Some(tensor) = given.iter().find(is_option) {
                    let message =
                        format!("`{}` is an option, not an input", tensor.name.as_deref().unwrap_or_default());
                    let d = Diagnostic::new(Code::MixedCall, message, tensor.span).label("a tensor for an option");
                    return Err(self.report(d.other(def.module.name.span, "defined here").help(
                        "options hold no tensors; a mask or scores that read one are an expression over positions or `score`, as in `score + cache(t)`",
                    )));
                }
                let name = name.unwrap_or_else(|| def.module.name.name.clone());
                let instance = self.instance(&name, &def, span, place)?;
                self.apply_here(&instance, given, span, place)
            }
            Value::Instance(instance) => self.apply_here(&instance, given, span, place),
            Value::Func(func) => self.expand(&func, given, span, place),
            Value::Builtin(builtin) => self.builtin(builtin, given, span, place),
            Value::Mixture(mixture) => self.apply_mixture(&mixture, given, span, place),
            Value::Identity => match <[Given; 1]>::try_from(given) {
                Ok([one]) => Ok(one.value),
                Err(_) => self.fail(Code::WrongType, span, "`identity` is applied to one value", "expected one value"),
            },
            Value::List(items) if items.iter().all(|v| v.is_module() || matches!(v, Value::Func(_))) => {
                self.compose(&items, name.as_ref(), given, span, place)
            }
            other => {
                let d = Diagnostic::new(Code::NotCallable, format!("{} cannot be called", other.kind()), callee)
                    .label("expected a module or a function")
                    .maybe_help(name.as_ref().and_then(|name| hides(name, &place.scope)));
                Err(self.report(d))
            }
        }
    }

    /// The module with more of its options given.
    fn specialise(&mut self, def: &Rc<Def>, given: Vec<Given>, span: Span) -> Eval<Def> {
        let mut made = Def { module: def.module.clone(), scope: def.scope.clone(), given: def.given.clone() };
        let options = &def.module.options;
        let mut failed = false;
        for arg in given {
            let name = match &arg.name {
                Some(name) => name.clone(),
                // Options without names fill the first ones that are not given yet.
                None => match options.iter().find(|o| !made.given.iter().any(|(n, ..)| *n == o.name.name)) {
                    Some(option) => option.name.name.clone(),
                    None => {
                        let d = Diagnostic::new(
                            Code::UnknownOption,
                            format!("`{}` has {} options", def.module.name.name, options.len()),
                            arg.span,
                        )
                        .label("one too many");
                        self.report(d.other(def.module.name.span, "defined here"));
                        failed = true;
                        continue;
                    }
                },
            };
            if !options.iter().any(|o| o.name.name == name) {
                let inputs = def.module.inputs.iter().any(|i| i.name.name == name);
                let help = did_you_mean(&name, options.iter().map(|o| &*o.name.name)).or_else(|| {
                    inputs.then(|| format!("`{name}` is an input: options and inputs are given in separate calls"))
                });
                let all = || {
                    format!("its options are {}", options.iter().map(|o| &*o.name.name).collect::<Vec<_>>().join(", "))
                };
                let help = help.or_else(|| (!options.is_empty()).then(all));
                let d = Diagnostic::new(
                    Code::UnknownOption,
                    format!("`{}` has no option `{name}`", def.module.name.name),
                    arg.span,
                )
                .label("unknown option");
                self.report(d.other(def.module.name.span, "defined here").maybe_help(help));
                failed = true;
                continue;
            }
            if let Some((_, _, first)) = made.given.iter().find(|(n, ..)| *n == name) {
                let d = Diagnostic::new(Code::RepeatedOption, format!("the option `{name}` is given twice"), arg.span)
                    .label("given again")
                    .other(*first, "first here");
                self.report(d);
                failed = true;
                continue;
            }
            made.given.push((name, arg.value, arg.span));
        }
        let _ = span;
        if failed { Err(Failed) } else { Ok(made) }
    }

    /// A function, in place: its own names, the caller's body.
    fn expand(&mut self, func: &Rc<Func>, given: Vec<Given>, span: Span, place: &Place) -> Eval {
        let function = &func.function;
        let scope = Scope::new(Some(func.scope.clone()));
        let place = place.with(scope.clone());
        self.bind_params(&function.name, &function.params, given, span, &place, "parameter")?;
        let around = self.at;
        self.expanding.push((function.name.clone(), span));
        let value = self.eval(&function.body, &place);
        self.expanding.pop();
        self.at = around;
        value
    }

    /// Binds parameters to arguments, by position or by name; defaults see the parameters before them.
    pub(super) fn bind_params(
        &mut self,
        of: &Ident,
        params: &[Param],
        given: Vec<Given>,
        span: Span,
        place: &Place,
        what: &str,
    ) -> Eval<()> {
        let mut values: Vec<Option<Given>> = vec![None; params.len()];
        for arg in given {
            let index = match &arg.name {
                Some(name) => params.iter().position(|p| p.name.name == *name),
                None => values.iter().position(Option::is_none),
            };
            match index {
                Some(i) if values[i].is_none() => values[i] = Some(arg),
                Some(_) => {
                    let d = Diagnostic::new(
                        Code::RepeatedOption,
                        format!("a {what} of `{}` is given twice", of.name),
                        arg.span,
                    )
                    .label("given again");
                    return Err(self.report(d));
                }
                None => {
                    let message = match &arg.name {
                        Some(name) => format!("`{}` has no {what} `{name}`", of.name),
                        None => format!("`{}` has {} {what}s", of.name, params.len()),
                    };
                    let help = arg.name.as_ref().and_then(|n| did_you_mean(n, params.iter().map(|p| &*p.name.name)));
                    let d = Diagnostic::new(Code::UnknownOption, message, arg.span)
                        .label("unexpected")
                        .other(of.span, "defined here")
                        .maybe_help(help);
                    return Err(self.report(d));
                }
            }
        }
        for (param, value) in params.iter().zip(values) {
            let (value, at) = match (value, &param.default) {
                (Some(given), _) => (given.value, given.span),
                (None, Some(default)) => (self.eval(default, &place.part())?, span),
                (None, None) => {
                    let d = Diagnostic::new(
                        Code::MissingOption,
                        format!("`{}` needs its {what} `{}`", of.name, param.name.name),
                        span,
                    )
                    .label(format!("`{}` is not given", param.name.name));
                    return Err(self.report(d.other(param.name.span, "has no default")));
                }
            };
            self.check_type(&param.name, param.ty.as_ref(), &value, at, place)?;
            place.scope.set(param.name.name.clone(), value);
        }
        Ok(())
    }

    fn check_type(&mut self, name: &Ident, ty: Option<&TypeExpr>, value: &Value, at: Span, place: &Place) -> Eval<()> {
        let (fits, expected) = match ty {
            None | Some(TypeExpr::Tensor { .. }) => return Ok(()),
            Some(TypeExpr::Choice { options, optional }) => {
                let fits = match value {
                    Value::Str(s) => options.contains(s),
                    Value::None => *optional,
                    _ => false,
                };
                (fits, options.iter().map(|o| format!("'{o}'")).collect::<Vec<_>>().join(" or "))
            }
            Some(TypeExpr::Named { name, optional }) => {
                let fits = match (&*name.name, value) {
                    (_, Value::None) => *optional,
                    ("int", Value::Int(_))
                    | ("float", Value::Int(_) | Value::Float(_))
                    | ("bool", Value::Bool(_))
                    | ("string", Value::Str(_)) => true,
                    ("list", Value::List(_)) | ("mapping", Value::Map(_)) => true,
                    ("module", v) => v.is_module() || matches!(v, Value::Func(_) | Value::Builtin(_)),
                    _ => false,
                };
                (fits, format!("{}{}", name.name, if *optional { " or none" } else { "" }))
            }
        };
        if fits {
            return Ok(());
        }
        let shown = if let Value::Str(s) = value { format!("'{s}'") } else { value.kind().to_string() };
        let d = Diagnostic::new(Code::WrongType, format!("`{}` must be {expected}, not {shown}", name.name), at)
            .label(format!("expected {expected}"));
        // What config.json calls an activation is a word, and the library has the module of it.
        let word =
            matches!(value, Value::Str(_)) && expected.starts_with("module") && is_known(ACTIVATION, &place.scope);
        let help =
            word.then(|| format!("the module that a word of config.json stands for is `{ACTIVATION}(..)` of it"));
        Err(self.report(d.other(name.span, "declared here").maybe_help(help)))
    }
}

#[cfg(test)]
mod tests {
    use crate::arch::testing::{card, codes, expand, model};
    use crate::diagnostic::Code;

    const CUT: &str = "cut(n: int, twice: bool = false, how: {'a', 'b'}? = none, more = n)(x, z = x) { return split(x + z, if twice then 2 * n else more) }\n";

    fn output(call: &str) -> String {
        let wiring = format!("{CUT}model(x: f32[tokens, 8]) {{ return {{y: {call}}} }}");
        model(&wiring).arch.outputs[0].1.clone()
    }

    #[test]
    fn options_and_inputs() {
        for (call, ty) in [
            ("cut(2)(x)", "f32[tokens, 2, 4]"),
            ("cut(2)(true)(x)", "f32[tokens, 4, 2]"),
            ("cut(twice = true)(2)(x, x)", "f32[tokens, 4, 2]"),
            ("cut(2, how = 'b', more = 8)(z = x, x = x)", "f32[tokens, 8, 1]"),
            ("identity(x)", "f32[tokens, 8]"),
        ] {
            assert_eq!(output(call), ty, "{call}");
        }
    }

    #[test]
    fn misuse_is_said() {
        let code = |call: &str| codes(&format!("{CUT}model(x: f32[tokens, 8]) {{ return {{y: {call}}} }}"));
        for (call, expected) in [
            ("cut(x)", Code::MissingOption),
            ("cut(2, 3)(x)", Code::WrongType),
            ("cut(2, how = 'c')(x)", Code::WrongType),
            ("cut(2, hwo = 'a')(x)", Code::UnknownOption),
            ("cut(2)(n = 3)(x)", Code::RepeatedOption),
            ("cut(2)(x, x, x)", Code::UnknownOption),
            ("cut(n = x)", Code::MixedCall),
            ("cut(x, 2)", Code::MixedCall),
            ("cut(2)(x, x = x)", Code::RepeatedOption),
            ("3(x)", Code::NotCallable),
            ("split(x)", Code::MissingOption),
            ("split(x, 2, 3)", Code::UnknownOption),
            ("identity(x, x)", Code::WrongType),
        ] {
            assert_eq!(code(call), [expected], "{call}");
        }
    }

    #[test]
    fn recursion_is_refused() {
        let wiring =
            "g(x) { y = f(x) return y }\nf(x) { y = g(x) return y }\nmodel(x: f32[tokens, 8]) { return {y: f(x)} }";
        let report = expand(&card("sizes: {}\n", wiring), &Default::default()).expect_err("it applies itself");
        assert!(report.diagnostics[0].message.starts_with("`f` applies itself"), "{report}");
        assert_eq!(codes("f(n) = f(n + 1)\na = f(1)\nmodel(x: f32[tokens, 8]) { return {y: x * a} }"), [Code::TooDeep]);
    }
}
