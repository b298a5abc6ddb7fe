//! Modules expanded, every layer explicit, every name bound: from a [`Spec`] and sizes to an [`Arch`] and a [`Program`].
//!
//! ```text
//! Spec + config + --set ──sizes──▶ sizes ──expand──▶ Program (graphs of core operations, f32)
//!                                             └────▶ Arch (instances, parameters, caches) ──names──▶ bindings
//! ```
//!
//! The program says everything in f32, positions in i64 and masks in bool; casts for other dtypes are a pass.

mod across;
mod arith;
mod binding;
mod build;
mod builtins;
mod calls;
mod check_names;
mod compose;
mod contract;
mod einsum;
mod elementwise;
mod expand;
mod inputs;
mod instances;
mod limits;
mod mix;
mod names;
mod nearest;
mod numbers;
mod patterns;
mod positions;
mod scan;
mod scope;
mod shaping;
mod sizes;
mod stored;
mod symbolic;
#[cfg(test)]
pub(crate) mod testing;
mod tiny;
mod value;
mod view;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

pub use self::binding::{Binding, Step};
pub use self::builtins::NAMES as FUNCTIONS;
pub use self::nearest::{Ignored, Near, Unserved, ignored, nearest};
pub use self::numbers::Numbers;
pub use self::patterns::matches_pattern;
pub use self::tiny::tiny;

use self::expand::{Eval, Expander, Failed};
use self::value::{Def, Entry, Frame, Instance, Place, Scope, Value};
use crate::diagnostic::{Code, Diagnostic, Report, Span};
use crate::graph::{AxisId, DType, Dim, Graph, InputDecl, Program, Type};
use crate::ops::Core;
use crate::spec::ast::{Expr, ExprKind, Item, Module};
use crate::spec::{Datum, Published, Spec};

/// What is chosen when a card is expanded.
#[derive(Clone, Debug, Default)]
pub struct ElaborateOptions {
    /// A config.json. Without it the sizes are the published model's.
    pub config: Option<serde_json::Value>,
    /// What messages call it, a path; `the config` when empty.
    pub config_name: String,
    /// `--set name=value`; the value is YAML. The last of a name wins.
    pub sets: Vec<(String, String)>,
    /// The checkpoint format whose names are bound; `hf` when empty.
    pub format: String,
}

/// A model, expanded.
#[derive(Clone, Debug)]
pub struct Model {
    /// For people and for `--emit arch`.
    pub arch: Arch,
    /// What it computes.
    pub program: Program,
    /// The checkpoint format that the bindings are of: `hf`, `gguf`.
    pub format: String,
    /// Where each parameter lies in a checkpoint, in the order of [`Arch::parameters`].
    pub bindings: Vec<Binding>,
    /// Patterns of checkpoint names that are no parameter: `*` one component, `**` any number (see [`matches_pattern`]).
    pub ignore: Vec<String>,
}

/// A model with every module expanded and every layer explicit.
#[derive(Clone, Debug, PartialEq)]
pub struct Arch {
    /// The card's name.
    pub name: String,
    /// The sizes in the card's order.
    pub sizes: Vec<(String, Datum)>,
    /// Inputs by name and type.
    pub inputs: Vec<(String, String)>,
    /// Outputs by name and type.
    pub outputs: Vec<(String, String)>,
    /// The instance tree; the root is the model.
    pub root: Node,
    /// Every parameter once, in the order of first use.
    pub parameters: Vec<Parameter>,
    /// Other paths under which a parameter appears: `(alias, path)`. Their tensors, if a checkpoint has them, are ignored.
    pub aliases: Vec<(String, String)>,
    /// Absolute paths of what is kept per token, each with the size of what is kept.
    pub caches: Vec<(String, Vec<u64>)>,
    /// What the card says of the released model.
    pub published: Option<Published>,
}

/// An instance.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// Absolute path; empty for the model.
    pub path: String,
    /// The module it is an instance of.
    pub module: String,
    /// Its options as resolved.
    pub options: Vec<(String, String)>,
    /// What its body binds.
    pub children: Vec<Node>,
}

/// A parameter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameter {
    /// Absolute instance path: `layers.0.self_attn.q_proj.weight`.
    pub path: String,
    /// Its shape as wired.
    pub shape: Vec<u64>,
    /// The path of all of its kind, where it is one expert's and each token meets those chosen for it: `experts.{0..8}.up_proj.weight`.
    pub stack: Option<Arc<str>>,
}

impl Arch {
    /// The number of parameters, each tensor counted once.
    pub fn parameter_count(&self) -> u64 {
        self.parameters.iter().map(|p| p.shape.iter().product::<u64>()).fold(0, u64::saturating_add)
    }
}

/// Expands a card.
///
/// # Errors
/// Everything that is wrong with the card's keys, the sizes, the wiring and the names.
pub fn elaborate(spec: &Spec, options: &ElaborateOptions) -> Result<Model, Report> {
    let mut diagnostics = spec.mistakes.clone();
    let sizes::Resolved { sizes, origins, below_one } = sizes::resolve(spec, options, &mut diagnostics);
    let fail = |diagnostics| Err(Report::new(spec.sources.clone(), diagnostics));
    // A size that is wrong is the published one from here on, so that mistakes in the wiring are found in the same run.
    let mut expander = Expander::new(spec.first_card);
    expander.origins = origins;
    expander.below_one = below_one;
    let root = expander.model(spec, &sizes);
    diagnostics.append(&mut expander.diagnostics);
    let root = match root {
        Ok(root) if diagnostics.is_empty() => root,
        _ => {
            diagnostics.extend(sizes::quoted(spec, &sizes));
            return fail(diagnostics);
        }
    };
    let mut parameters: Vec<_> = std::mem::take(&mut expander.params).into_iter().collect();
    parameters.sort_by_key(|(_, used)| used.order);
    let parameters: Vec<Parameter> =
        parameters.into_iter().map(|(path, used)| Parameter { path, shape: used.dims, stack: used.stack }).collect();
    let format = if options.format.is_empty() { "hf" } else { &options.format };
    let names = spec.names.iter().find(|(f, _)| **f == *format).map(|(_, n)| n.clone()).unwrap_or_default();
    let numbers: Vec<_> = root.numbers.into_iter().chain(sizes.iter().cloned()).collect();
    let bound = names::bind(&names, &numbers, &parameters, &expander.aliases, &mut diagnostics);
    if !diagnostics.is_empty() {
        return fail(diagnostics);
    }
    let Expander { builders, axes, extents, aliases, .. } = expander;
    let graphs = builders.program();
    let program = Program { name: spec.name.to_string(), axes, extents, inputs: root.inputs, graphs };
    let program = across::tokens_first(program);
    let show = |ty: &Type| show_type(ty, &program.axes);
    let main = &program.graphs[0];
    let arch = Arch {
        name: spec.name.to_string(),
        sizes: sizes.iter().map(|(k, v)| (k.to_string(), v.clone())).collect(),
        inputs: program.inputs.iter().map(|i| (i.name.clone(), show(&i.ty))).collect(),
        outputs: main.outputs().iter().map(|o| (o.name.clone(), show(main.ty(o.value)))).collect(),
        root: node(&root.instance),
        parameters,
        aliases,
        caches: caches(&program.graphs, 0, ""),
        published: spec.published.clone(),
    };
    let is_published = options.config.is_none() && options.sets.is_empty();
    if let Some(published) = arch.published.as_ref().filter(|p| is_published && p.note.is_none()) {
        let differs = Numbers::of(&arch, &program).disagreements(published).into_iter();
        let label = "other numbers than the wiring's";
        diagnostics
            .extend(differs.map(|d| Diagnostic::new(Code::ParameterCount, d, published.span).label(label).help(NOTE)));
    }
    if !diagnostics.is_empty() {
        return fail(diagnostics);
    }
    Ok(Model { arch, program, format: format.to_owned(), bindings: bound.bindings, ignore: bound.ignore })
}

const NOTE: &str = "correct the number, or say in a `note` why it is another than the wiring's";

/// The model's root, expanded.
struct Root {
    instance: Rc<Instance>,
    inputs: Vec<InputDecl>,
    /// The wiring's own whole numbers at the margin, which names may use as they use sizes.
    numbers: Vec<(Arc<str>, Datum)>,
}

impl Expander {
    /// Expands `model` of the card's wiring into the graph at the bottom of the stack.
    fn model(&mut self, spec: &Spec, sizes: &[(Arc<str>, Datum)]) -> Eval<Root> {
        let library = Scope::new(None);
        self.define(&spec.library, &library, true);
        let config = Scope::new(Some(library));
        for (name, value) in sizes {
            config.set(name.clone(), value.into());
        }
        let card = Scope::new(Some(config));
        self.define(&spec.wiring, &card, true);
        let model = spec.wiring.iter().find_map(|item| match item {
            Item::Module(m) if &*m.name.name == "model" => Some(m.clone()),
            _ => None,
        });
        let Some(model) = model else {
            let d = Diagnostic::new(Code::NoModel, "the wiring has no model", spec.wiring_span)
                .label("expected `model(input: i64[tokens]) { .. }`");
            return Err(self.report(d));
        };
        self.builders.push("model", "");
        let mut root = self.expand_model(&model, &card);
        self.check_unused(&spec.wiring, &card);
        if let Ok(root) = &mut root {
            root.numbers = numbers(&card);
        }
        if root.is_err() || !self.diagnostics.is_empty() {
            self.check_names(&spec.wiring, &card);
        }
        root
    }

    fn expand_model(&mut self, model: &Arc<Module>, card: &Rc<Scope>) -> Eval<Root> {
        if let Some(option) = model.options.first() {
            return self.fail(
                Code::NoModel,
                option.name.span,
                "the model has no options, only inputs",
                "unexpected option",
            );
        }
        let scope = Scope::new(Some(card.clone()));
        let def = Rc::new(Def { module: model.clone(), scope: card.clone(), given: Vec::new() });
        let instance = Rc::new(Instance {
            path: String::new(),
            def,
            children: RefCell::default(),
            options: RefCell::default(),
            applied: Cell::new(true),
            stands_for: RefCell::default(),
        });
        let mut inputs = Vec::new();
        let mut tokens = None;
        self.first_axis(model, card);
        for param in &model.inputs {
            let (tensor, decl) = self.input_decl(param, card)?;
            tokens = tokens.or_else(|| self.tokens_of(&tensor));
            scope.set(param.name.name.clone(), Value::Tensor(tensor));
            inputs.push(decl);
        }
        let frame = Rc::new(Frame::new(instance.clone(), tokens));
        let place = Place { scope, frame: Some(frame.clone()), binds: None };
        let result = self.body(model, &place, &frame)?;
        let span = model.result.span;
        let Value::Map(entries) = result else {
            return self.fail(
                Code::NoModel,
                span,
                format!("the model returns {}", result.kind()),
                "expected `{name: value}`",
            );
        };
        let mut n_outputs = 0;
        for (name, value) in entries.iter().filter(|(_, v)| !matches!(v, Value::None)) {
            let span = entry_span(&model.result, name);
            if !matches!(value, Value::Tensor(_) | Value::Param(_) | Value::Sym(_)) {
                let message = format!("the output `{name}` is {}, not a tensor", value.kind());
                let d = Diagnostic::new(Code::WrongType, message, span).label("expected a tensor");
                let help = value.is_module().then(|| "a module gives a tensor when it is applied: `m(x)`".to_string());
                return Err(self.report(d.maybe_help(help)));
            }
            let tensor = self.tensor(value.clone(), span, place.frame.as_deref())?;
            if !tensor.axes.first().is_some_and(|a| a.size.is_ragged()) {
                let shape = self.show_shape(&tensor.axes);
                let d = Diagnostic::new(
                    Code::AxisMismatch,
                    format!("the output `{name}` is {shape}, the same for every sequence"),
                    span,
                )
                .label("follows from no input");
                return Err(self.report(d.help("an output is a value of each token, or one a sequence")));
            }
            if tensor.axes.iter().any(|a| matches!(a.size, Dim::Visible(_))) {
                return self.misread_cache(format!("the output `{name}` would be a cache"), span);
            }
            if let Some(value) = self.builders.here(&tensor) {
                self.builders.top().graph.add_output(&**name, value);
                n_outputs += 1;
            }
        }
        if n_outputs == 0 {
            return self.fail(
                Code::NoModel,
                span,
                "the model returns nothing",
                "expected at least one output that is not none",
            );
        }
        Ok(Root { instance, inputs, numbers: Vec::new() })
    }

    /// Evaluates top-level bindings that the model did not need, for names that do not exist. Nothing else in them is a mistake: a
    /// size that is none here may be what keeps them from being used.
    fn check_unused(&mut self, items: &[Item], card: &Rc<Scope>) {
        let before = self.diagnostics.len();
        for item in items {
            let Item::Binding(binding) = item else { continue };
            for ident in &binding.names {
                let lazy = matches!(card.names.borrow().get(&ident.name), Some(Entry::Lazy(_)));
                if lazy {
                    let _: Result<Value, Failed> = self.lookup(&ident.name, ident.span, card);
                }
            }
        }
        let unused = self.diagnostics.split_off(before);
        self.diagnostics.extend(unused.into_iter().filter(|d| d.code == Code::UnknownName));
    }
}

/// The names of a scope that stand for whole numbers.
fn numbers(scope: &Scope) -> Vec<(Arc<str>, Datum)> {
    let whole = |entry: &Entry| match entry {
        Entry::Ready(Value::Int(n)) => Some(Datum::Int(*n)),
        _ => None,
    };
    scope.names.borrow().iter().filter_map(|(name, entry)| Some((name.clone(), whole(entry)?))).collect()
}

/// The place of an entry of a mapping as written; of the whole expression when it is something else.
fn entry_span(mapping: &Expr, name: &str) -> Span {
    match &*mapping.kind {
        ExprKind::Mapping(entries) => {
            entries.iter().find(|(key, _)| &*key.name == name).map_or(mapping.span, |(_, value)| value.span)
        }
        _ => mapping.span,
    }
}

/// The instance tree, without instances that were never applied.
fn node(instance: &Instance) -> Node {
    let mut node = node_of_first(instance);
    if let Some(path) = &*instance.stands_for.borrow() {
        rename(&mut node, &instance.path, path);
    }
    node
}

/// Equal experts are shown once, as all of them.
fn rename(node: &mut Node, first: &str, all: &str) {
    node.path = format!("{all}{}", node.path.strip_prefix(first).unwrap_or_default());
    node.children.iter_mut().for_each(|child| rename(child, first, all));
}

fn node_of_first(instance: &Instance) -> Node {
    let children = instance.children.borrow();
    Node {
        path: instance.path.clone(),
        module: instance.def.module.name.name.to_string(),
        options: instance.options.borrow().iter().map(|(k, v)| (k.to_string(), v.clone())).collect(),
        children: children
            .iter()
            .filter_map(|(_, child)| match child {
                Value::Instance(i) if i.applied.get() => Some(node(i)),
                _ => None,
            })
            .collect(),
    }
}

/// Caches of a graph and of the bodies it calls, by absolute path.
fn caches(graphs: &[Graph], graph: usize, at: &str) -> Vec<(String, Vec<u64>)> {
    let absolute = |path: &str| path.strip_prefix('/').map_or_else(|| instances::join(at, path), str::to_string);
    let mut found = Vec::new();
    let g = &graphs[graph];
    for node in g.nodes() {
        match g.op(node).as_core() {
            Some(Core::Cache { path }) => {
                let sizes =
                    g.types(node)[0].dims[1..].iter().map(|d| if let Dim::Fixed(n) = d { *n } else { 0 }).collect();
                found.push((absolute(path), sizes));
            }
            Some(Core::Call { graph, at }) => found.extend(caches(graphs, *graph, &absolute(at))),
            _ => {}
        }
    }
    found
}

/// `f32[tokens, 320]`.
fn show_type(ty: &Type, axes: &[String]) -> String {
    let name = |a: AxisId| axes.get(a.0).map_or("?", String::as_str);
    let dims: Vec<String> = ty
        .dims
        .iter()
        .map(|d| match d {
            Dim::Fixed(n) => n.to_string(),
            Dim::Axis(a) => name(*a).to_string(),
            Dim::Visible(a) => format!("visible({})", name(*a)),
            Dim::Rows(a) => format!("rows({})", name(*a)),
        })
        .collect();
    let dtype: DType = ty.dtype;
    format!("{dtype}[{}]", dims.join(", "))
}
