//! Names: definitions entered into scopes, names looked up in them, top-level bindings evaluated at their first use.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use super::builtins;
use super::expand::{Eval, Expander, Failed};
use super::limits::MAX_SUGGESTIONS;
use super::symbolic::Sym;
use super::value::{Def, Entry, Func, Place, Scope, Value};
use crate::diagnostic::{Code, Diagnostic, Span, did_you_mean};
use crate::spec::ast::{Binding, Ident, Item, Param};

/// Names that are positions and scores; nothing may be bound to them.
const RESERVED: &[&str] = &["q_pos", "k_pos", "head", "score"];

impl Expander {
    /// Enters definitions and lazy bindings of one level into a scope.
    pub(super) fn define(&mut self, items: &[Item], scope: &Rc<Scope>, lazy_bindings: bool) {
        let mut places: BTreeMap<Arc<str>, Span> = BTreeMap::new();
        for item in items {
            let names = item.names();
            let mut params: BTreeMap<Arc<str>, Span> = BTreeMap::new();
            for Param { name, .. } in item_params(item) {
                self.check_bindable(name);
                if let Some(first) = params.insert(name.name.clone(), name.span) {
                    let d =
                        Diagnostic::new(Code::DuplicateName, format!("two parameters are `{}`", name.name), name.span);
                    self.report(d.label("the second").other(first, "first here"));
                }
            }
            for ident in &names {
                self.check_bindable(ident);
                if let Some(first) = places.insert(ident.name.clone(), ident.span) {
                    let d =
                        Diagnostic::new(Code::DuplicateName, format!("`{}` is bound twice", ident.name), ident.span)
                            .label("bound again")
                            .other(first, "first here");
                    self.report(d);
                }
            }
            let entry = match item {
                Item::Module(m) => Entry::Ready(Value::Def(Rc::new(Def {
                    module: m.clone(),
                    scope: scope.clone(),
                    given: Vec::new(),
                }))),
                Item::Function(f) if f.constant => {
                    let name = f.name.clone();
                    Entry::Lazy(Arc::new(Binding { names: vec![name], value: f.body.clone() }))
                }
                Item::Function(f) => {
                    Entry::Ready(Value::Func(Rc::new(Func { function: f.clone(), scope: scope.clone() })))
                }
                Item::Binding(b) if lazy_bindings => Entry::Lazy(b.clone()),
                Item::Binding(_) => continue,
            };
            for ident in names {
                scope.names.borrow_mut().insert(ident.name.clone(), entry.clone());
            }
        }
    }

    pub(super) fn check_bindable(&mut self, ident: &Ident) {
        if RESERVED.contains(&&*ident.name) {
            self.report(
                Diagnostic::new(Code::Reserved, format!("`{}` is reserved", ident.name), ident.span)
                    .label("cannot be bound")
                    .help("it is a position or a score inside attention; choose another name"),
            );
        }
    }

    /// What a name stands for.
    pub(super) fn lookup(&mut self, name: &Arc<str>, span: Span, scope: &Rc<Scope>) -> Eval {
        let mut at = Some(scope.clone());
        while let Some(scope) = at {
            let entry = scope.names.borrow().get(name).cloned();
            match entry {
                Some(Entry::Ready(value)) => return Ok(value),
                Some(Entry::Failed) => return Err(Failed),
                Some(Entry::Busy) => {
                    return self.fail(
                        Code::Cycle,
                        span,
                        format!("`{name}` needs itself"),
                        "used here while it is being defined",
                    );
                }
                Some(Entry::Lazy(binding)) => return self.force(name, &binding, &scope),
                None => at = scope.parent.clone(),
            }
        }
        let sym = match &**name {
            "q_pos" => Sym::QPos,
            "k_pos" => Sym::KPos(span),
            "head" => Sym::Head(span),
            "score" => Sym::Score(span),
            "identity" => return Ok(Value::Identity),
            "pi" => return Ok(Value::Float(std::f64::consts::PI)),
            other => match builtins::find(other) {
                Some(builtin) => return Ok(Value::Builtin(builtin)),
                None => return Err(self.unknown(name, span, scope)),
            },
        };
        Ok(Value::Sym(Rc::new(sym)))
    }

    /// Whether [`lookup`](Self::lookup) would find a name.
    pub(super) fn is_known(&self, name: &str, scope: &Rc<Scope>) -> bool {
        let mut at = Some(scope.clone());
        while let Some(scope) = at {
            if scope.names.borrow().contains_key(name) {
                return true;
            }
            at = scope.parent.clone();
        }
        RESERVED.contains(&name) || ["identity", "pi"].contains(&name) || builtins::find(name).is_some()
    }

    /// Whether a name was reported to stand for nothing.
    pub(super) fn is_reported_unknown(&self, name: &str) -> bool {
        let message = unknown_message(name);
        self.diagnostics.iter().any(|d| d.code == Code::UnknownName && d.message == message)
    }

    pub(super) fn unknown(&mut self, name: &str, span: Span, scope: &Rc<Scope>) -> Failed {
        let help = match elsewhere(name) {
            Some(here) => Some(format!("instead of `{name}`: {here}")),
            None if self.diagnostics.len() < MAX_SUGGESTIONS => similar(name, scope).or_else(|| {
                Some(
                    "what config.json says is listed under `sizes`; all else is bound in the wiring, `name = value`"
                        .to_string(),
                )
            }),
            None => None,
        };
        self.report(
            Diagnostic::new(Code::UnknownName, unknown_message(name), span)
                .label("not defined here, in the card or in the library")
                .maybe_help(help),
        )
    }

    /// Evaluates a top-level binding at its first use.
    fn force(&mut self, name: &Arc<str>, binding: &Arc<Binding>, scope: &Rc<Scope>) -> Eval {
        for ident in &binding.names {
            scope.names.borrow_mut().insert(ident.name.clone(), Entry::Busy);
        }
        let place = Place { scope: scope.clone(), frame: None, binds: None };
        let value = self.eval(&binding.value, &place);
        let entries: Vec<Entry> = match (value, binding.names.len()) {
            (Ok(Value::Tuple(items)), n) if items.len() == n && n > 1 => {
                items.iter().cloned().map(Entry::Ready).collect()
            }
            (Ok(value), n) => vec![Entry::Ready(value); n],
            (Err(Failed), n) => vec![Entry::Failed; n],
        };
        for (ident, entry) in binding.names.iter().zip(&entries) {
            scope.names.borrow_mut().insert(ident.name.clone(), entry.clone());
        }
        match binding.names.iter().zip(entries).find(|(ident, _)| ident.name == *name) {
            Some((_, Entry::Ready(value))) => Ok(value),
            _ => Err(Failed),
        }
    }
}

/// The advice that names the closest name of a scope.
fn similar(name: &str, scope: &Rc<Scope>) -> Option<String> {
    let mut names: Vec<Arc<str>> = Vec::new();
    let mut at = Some(scope.clone());
    while let Some(scope) = at {
        names.extend(scope.names.borrow().keys().cloned());
        at = scope.parent.clone();
    }
    names.sort();
    let all = names
        .iter()
        .map(|n| &**n)
        .chain(builtins::NAMES.iter().copied())
        .chain(RESERVED.iter().copied())
        .chain(["identity"]);
    did_you_mean(name, all)
}

/// The advice for a name that is called, stands for no module here, and hides one of the same name further out.
pub(super) fn hides(name: &str, scope: &Rc<Scope>) -> Option<String> {
    let mut entries = Vec::new();
    let mut at = Some(scope.clone());
    while let Some(scope) = at {
        entries.extend(scope.names.borrow().get(name).cloned());
        at = scope.parent.clone();
    }
    let callable = |entry: &Entry| matches!(entry, Entry::Ready(Value::Def(_) | Value::Func(_)));
    (entries.iter().skip(1).any(callable) || builtins::find(name).is_some()).then(|| {
        format!(
            "this `{name}` hides the module or function of that name; call one of them otherwise: a size is read under a name of your \
             own with `own_name: {{from: [{name}]}}`"
        )
    })
}

/// How what other notations have under a name is written here.
fn elsewhere(name: &str) -> Option<&'static str> {
    Some(match name {
        "matmul" | "bmm" | "dot" => "`linear` with weights, `einsum` otherwise",
        "concat" | "concatenate" | "cat" => "`join` over the last axis, `stack` for rows",
        "reshape" | "view" | "flatten" | "unflatten" => "`split` and `merge`",
        "permute" | "swapaxes" => "`transpose` of the last two axes",
        "clip" => "`clamp(x, low, high)`",
        "pow" => "`x ^ n`",
        "square" => "`x * x`",
        "range" | "arange" => "`0..n` as a list, `index(n)` as a tensor",
        "swish" => "`silu`",
        "var" | "variance" => "`mean((x - mean(x)) ^ 2)`",
        "repeat_interleave" => "`repeat`",
        "conv1d" | "conv2d" => "`conv`",
        "mha" | "attention" | "multi_head_attention" => "`gqa`, or `attend` for the core of it",
        "swiglu" | "geglu" => "`gated_mlp(size, silu)` or another activation",
        "rope" => "`rotary`",
        "dropout" => "nothing: models run as they were trained",
        "true_divide" => "`/`",
        "None" | "null" => "`none`",
        "True" => "`true`",
        "False" => "`false`",
        "F" | "nn" | "torch" | "np" | "jnp" | "jax" => "nothing: functions stand alone, as in `silu(x)`",
        "self" => "nothing: names are those of the body and around it",
        "len_seq" | "seq_len" | "sequence_length" | "batch_size" => {
            "nothing: a sequence has as many tokens as it is given, and operations treat each of them"
        }
        _ => return None,
    })
}

fn unknown_message(name: &str) -> String {
    format!("no name `{name}`")
}

/// The parameters of a definition.
fn item_params(item: &Item) -> Vec<&Param> {
    match item {
        Item::Module(m) => m.options.iter().chain(&m.inputs).collect(),
        Item::Function(f) => f.params.iter().collect(),
        Item::Binding(_) => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use crate::arch::ElaborateOptions;
    use crate::arch::testing::{card, codes, expand, model};
    use crate::diagnostic::Code;

    #[test]
    fn the_order_of_definitions_does_not_matter() {
        let wiring = "a = b * 2\nb = c(3)\nc(n) = n + 1\nmodel(x: f32[tokens, 8]) { return {y: split(x, a)} }";
        assert_eq!(model(wiring).arch.outputs[0].1, "f32[tokens, 8, 1]");
    }

    #[test]
    fn bodies_hide_outer_names() {
        let wiring =
            "n = 4\nf(x) { n = 2 return split(x, n) }\nmodel(x: f32[tokens, 8]) { return {y: f(x), z: split(x, n)} }";
        let outputs: Vec<String> = model(wiring).arch.outputs.into_iter().map(|(_, ty)| ty).collect();
        assert_eq!(outputs, ["f32[tokens, 2, 4]", "f32[tokens, 4, 2]"]);
    }

    #[test]
    fn scope_is_lexical() {
        let wiring = "n = 4\ncut(x) = split(x, n)\nf(x) { n = 2 return cut(x) * (n / 2) }\nmodel(x: f32[tokens, 8]) { return {y: f(x)} }";
        assert_eq!(model(wiring).arch.outputs[0].1, "f32[tokens, 4, 2]");
    }

    #[test]
    fn reserved_names_cannot_be_parameters() {
        assert_eq!(codes("f(head) = head\nmodel(x: f32[tokens, 8]) { return {y: x} }"), [Code::Reserved]);
        assert_eq!(codes("f(score = 1)(x) { return x }\nmodel(x: f32[tokens, 8]) { return {y: x} }"), [Code::Reserved]);
    }

    #[test]
    fn parameters_have_names_of_their_own() {
        assert_eq!(codes("model(x: f32[tokens, 8], x: f32[tokens, 8]) { return {y: x} }"), [Code::DuplicateName]);
        assert_eq!(codes("f(n)(n) { return n }\nmodel(x: f32[tokens, 8]) { return {y: x} }"), [Code::DuplicateName]);
    }

    #[test]
    fn a_size_that_hides_a_function_is_said_to() {
        let wiring = "model(x: f32[tokens, 8]) { return {y: tanh(x)} }";
        let report =
            expand(&card("sizes: {tanh: gelu}\n", wiring), &ElaborateOptions::default()).expect_err("a mistake");
        let help = report.diagnostics[0].help.clone().unwrap_or_default();
        assert!(help.contains("this `tanh` hides"), "{help}");
    }

    #[test]
    fn unused_bindings_may_be_wrong_but_not_in_their_names() {
        let tail = "\nmodel(x: f32[tokens, 8]) { return {y: x} }";
        assert_eq!(codes(&format!("a = none + 1{tail}")), []);
        assert_eq!(codes(&format!("a = nothing + 1{tail}")), [Code::UnknownName]);
    }
}
