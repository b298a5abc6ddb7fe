//! What an expression of the wiring can be while it is expanded.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use super::expand::Eval;
use super::symbolic::Sym;
use crate::diagnostic::Span;
use crate::graph::{DType, Dim, Type, ValueId};
use crate::spec::Datum;
use crate::spec::ast;

/// A value.
#[derive(Clone)]
pub(super) enum Value {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Str(Arc<str>),
    List(Rc<Vec<Value>>),
    Map(Rc<Vec<(Arc<str>, Value)>>),
    Tensor(Tensor),
    Tuple(Rc<Vec<Value>>),
    /// A scalar expression over positions, not yet at any place.
    Sym(Rc<Sym>),
    /// A parameter, named.
    Param(Rc<ParamRef>),
    /// `param[..]`, not yet named.
    NewParam(Rc<Vec<u64>>),
    Def(Rc<Def>),
    Func(Rc<Func>),
    Instance(Rc<Instance>),
    /// A function that the compiler knows.
    Builtin(&'static str),
    Mixture(Rc<Mixture>),
    /// The module that does nothing.
    Identity,
}

/// The name of an axis; its order is the order of axes in a result of several.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum AxisName {
    /// The elements of a ragged axis that this step adds.
    Ragged(usize),
    /// Everything kept of a ragged axis.
    Visible(usize),
    /// What each token chose, inside an expert.
    Experts,
    /// Any other, by number.
    Other(usize),
    /// Rows of a table or of a matrix.
    Rows,
    /// Heads.
    Heads,
    /// What `top_k` chose.
    Chosen,
    /// The last axis of everything.
    Width,
    // Inside attention.
    KvHeads,
    Group,
    Query,
    Keys,
}

/// An axis of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Axis {
    pub(super) name: AxisName,
    pub(super) size: Dim,
}

impl Axis {
    pub(super) fn new(name: AxisName, size: Dim) -> Self {
        Axis { name, size }
    }

    pub(super) fn is_one(self) -> bool {
        self.size == Dim::Fixed(1)
    }
}

/// A value of a graph, with named axes.
#[derive(Clone, Debug)]
pub(super) struct Tensor {
    /// The number of the builder that holds it.
    pub(super) graph: usize,
    pub(super) value: ValueId,
    pub(super) dtype: DType,
    pub(super) axes: Vec<Axis>,
    /// For the result of `cache`: what was cached.
    pub(super) uncached: Option<Rc<Tensor>>,
    /// Made of parameters of the chosen experts alone: its first two axes, tokens and what each chose, are not written.
    pub(super) of_experts: bool,
}

impl Tensor {
    /// A value of a graph that is neither what was cached nor of experts alone.
    pub(super) fn new(graph: usize, value: ValueId, dtype: DType, axes: Vec<Axis>) -> Self {
        Tensor { graph, value, dtype, axes, uncached: None, of_experts: false }
    }

    pub(super) fn ty(&self) -> Type {
        Type::new(self.dtype, dims(&self.axes))
    }

    pub(super) fn axis(&self, name: AxisName) -> Option<Axis> {
        self.axes.iter().copied().find(|a| a.name == name)
    }
}

pub(super) fn dims(axes: &[Axis]) -> Vec<Dim> {
    axes.iter().map(|a| a.size).collect()
}

/// A parameter of the checkpoint.
pub(super) struct ParamRef {
    /// Absolute.
    pub(super) path: String,
    pub(super) dims: Vec<u64>,
}

/// A module with some of its options given.
pub(super) struct Def {
    pub(super) module: Arc<ast::Module>,
    pub(super) scope: Rc<Scope>,
    /// Name of the option, value, place.
    pub(super) given: Vec<(Arc<str>, Value, Span)>,
}

/// A function with the scope it was written in.
pub(super) struct Func {
    pub(super) function: Arc<ast::Function>,
    pub(super) scope: Rc<Scope>,
}

/// A module at a path.
pub(super) struct Instance {
    /// Absolute; empty for the model.
    pub(super) path: String,
    pub(super) def: Rc<Def>,
    /// Instances and parameters bound in the body, in the order they were made.
    pub(super) children: RefCell<Vec<(Arc<str>, Value)>>,
    /// Options as resolved at the first application, for people.
    pub(super) options: RefCell<Vec<(Arc<str>, String)>>,
    pub(super) applied: Cell<bool>,
    /// The path of all the experts that it stands for, where it is the first of equal ones: `experts.{0..8}`.
    pub(super) stands_for: RefCell<Option<String>>,
}

impl Instance {
    /// Whether it, or what is bound in it, has a parameter.
    pub(super) fn has_parameters(&self) -> bool {
        self.children.borrow().iter().any(|(_, value)| match value {
            Value::Param(_) => true,
            Value::Instance(inner) => inner.has_parameters(),
            _ => false,
        })
    }

    pub(super) fn child(&self, name: &str) -> Option<Value> {
        self.children.borrow().iter().find(|(n, _)| &**n == name).map(|(_, v)| v.clone())
    }
}

/// Experts, and which of them each token chose: what `mix` makes, to be applied.
pub(super) struct Mixture {
    pub(super) experts: Rc<Vec<Value>>,
    /// `i64[tokens, A]`
    pub(super) chosen: Tensor,
    /// Of each that was chosen: a number, or `f32[tokens, A]`.
    pub(super) weight: Tensor,
    /// Where the experts are given.
    pub(super) span: Span,
}

/// The names of one place, and the place around it.
pub(super) struct Scope {
    pub(super) parent: Option<Rc<Scope>>,
    pub(super) names: RefCell<HashMap<Arc<str>, Entry>>,
}

/// What a name stands for.
#[derive(Clone)]
pub(super) enum Entry {
    Ready(Value),
    /// Evaluated at its first use, so that the order of definitions does not matter.
    Lazy(Arc<ast::Binding>),
    /// Being evaluated.
    Busy,
    /// Said to be wrong already.
    Failed,
}

impl Scope {
    pub(super) fn new(parent: Option<Rc<Scope>>) -> Rc<Self> {
        Rc::new(Scope { parent, names: RefCell::default() })
    }

    pub(super) fn set(&self, name: Arc<str>, value: Value) {
        self.names.borrow_mut().insert(name, Entry::Ready(value));
    }
}

/// Where an expression is expanded: its names, and the body it belongs to.
#[derive(Clone)]
pub(super) struct Place {
    pub(super) scope: Rc<Scope>,
    pub(super) frame: Option<Rc<Frame>>,
    /// The name that the value will be bound to, for what needs one.
    pub(super) binds: Option<Arc<str>>,
}

impl Place {
    /// The same place with other names.
    pub(super) fn with(&self, scope: Rc<Scope>) -> Place {
        Place { scope, frame: self.frame.clone(), binds: None }
    }

    /// The same place, for a part of the expression that a name is bound to.
    pub(super) fn part(&self) -> Place {
        Place { scope: self.scope.clone(), frame: self.frame.clone(), binds: None }
    }
}

/// A body being expanded.
pub(super) struct Frame {
    pub(super) instance: Rc<Instance>,
    /// The token axis of the first input.
    pub(super) tokens: Option<Axis>,
    /// The instances that this application of the body was given or made, by name.
    pub(super) made: RefCell<Vec<Made>>,
}

/// An instance that a body needs, where it is needed.
#[derive(Clone)]
pub(super) struct Made {
    pub(super) name: Arc<str>,
    pub(super) def: Rc<Def>,
    pub(super) span: Span,
    /// The innermost call that is expanded there.
    pub(super) led_here: Option<Span>,
}

impl Frame {
    pub(super) fn new(instance: Rc<Instance>, tokens: Option<Axis>) -> Self {
        Frame { instance, tokens, made: RefCell::default() }
    }
}

impl Value {
    /// What it is, for messages.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Value::None => "none",
            Value::Bool(_) => "a boolean",
            Value::Int(_) => "an integer",
            Value::Float(_) => "a number",
            Value::Str(_) => "a string",
            Value::List(_) => "a list",
            Value::Map(_) => "a mapping",
            Value::Tensor(_) => "a tensor",
            Value::Tuple(_) => "a tuple",
            Value::Sym(_) => "an expression over positions",
            Value::Param(_) | Value::NewParam(_) => "a parameter",
            Value::Def(_) | Value::Identity => "a module",
            Value::Func(_) | Value::Builtin(_) => "a function",
            Value::Instance(_) => "an instance of a module",
            Value::Mixture(_) => "a mixture of experts",
        }
    }

    /// Whether it is, or stands for, numbers at run time.
    pub(super) fn is_tensor_like(&self) -> bool {
        matches!(self, Value::Tensor(_) | Value::Sym(_) | Value::Param(_))
    }

    /// Whether it is made of values that are tensors, or may be: no list of numbers, which is a tensor.
    pub(super) fn is_structure(&self) -> bool {
        match self {
            Value::Tuple(_) | Value::Map(_) => true,
            Value::List(items) => {
                items.is_empty()
                    || items.iter().any(|v| v.is_tensor_like() || matches!(v, Value::None) || v.is_structure())
            }
            _ => false,
        }
    }

    /// Whether lists, tuples and mappings lie more than so many deep in it.
    pub(super) fn is_deeper_than(&self, depth: usize) -> bool {
        let below = |part: &Value| depth == 0 || part.is_deeper_than(depth - 1);
        match self {
            Value::Tuple(items) | Value::List(items) => items.iter().any(below),
            Value::Map(entries) => entries.iter().any(|(_, v)| below(v)),
            _ => false,
        }
    }

    /// The first tensor in it.
    pub(super) fn first_tensor(&self) -> Option<Tensor> {
        match self {
            Value::Tensor(tensor) => Some(tensor.clone()),
            Value::Tuple(items) | Value::List(items) => items.iter().find_map(Value::first_tensor),
            Value::Map(entries) => entries.iter().find_map(|(_, v)| v.first_tensor()),
            _ => None,
        }
    }

    /// The same structure of other leaves: what is no list, tuple or mapping, in order.
    pub(super) fn map_tensors(self, leaf: &mut dyn FnMut(Value) -> Eval) -> Eval {
        let mut all = |items: &[Value]| items.iter().map(|v| v.clone().map_tensors(leaf)).collect::<Eval<Vec<_>>>();
        Ok(match self {
            Value::Tuple(items) => Value::Tuple(Rc::new(all(&items)?)),
            Value::List(items) => Value::List(Rc::new(all(&items)?)),
            Value::Map(entries) => {
                let values = all(&entries.iter().map(|(_, v)| v.clone()).collect::<Vec<_>>())?;
                Value::Map(Rc::new(entries.iter().map(|(k, _)| k.clone()).zip(values).collect()))
            }
            other => return leaf(other),
        })
    }

    pub(super) fn is_module(&self) -> bool {
        match self {
            Value::Def(_) | Value::Instance(_) | Value::Identity => true,
            Value::List(items) => !items.is_empty() && items.iter().all(Value::is_module),
            _ => false,
        }
    }

    /// As shown in the arch.
    pub(super) fn show(&self) -> String {
        self.show_within(6)
    }

    /// Values nested deeper than that are left out.
    fn show_within(&self, depth: usize) -> String {
        let Some(depth) = depth.checked_sub(1) else { return "..".into() };
        match self {
            Value::None => "none".into(),
            Value::Bool(b) => b.to_string(),
            Value::Int(v) => v.to_string(),
            Value::Float(v) => format!("{v:?}"),
            Value::Str(s) => format!("'{s}'"),
            Value::List(items) if items.len() > 8 => format!("[{} values]", items.len()),
            Value::List(items) => {
                format!("[{}]", items.iter().map(|v| v.show_within(depth)).collect::<Vec<_>>().join(", "))
            }
            Value::Map(entries) => format!(
                "{{{}}}",
                entries.iter().map(|(k, v)| format!("{k}: {}", v.show_within(depth))).collect::<Vec<_>>().join(", ")
            ),
            Value::Tuple(items) => {
                format!("({})", items.iter().map(|v| v.show_within(depth)).collect::<Vec<_>>().join(", "))
            }
            Value::Tensor(_) => "tensor".into(),
            Value::Param(p) => p.path.clone(),
            Value::NewParam(_) => "param".into(),
            Value::Sym(s) => s.show(),
            Value::Def(d) => match d.given.as_slice() {
                [] => d.module.name.name.to_string(),
                given => format!(
                    "{}({})",
                    d.module.name.name,
                    given
                        .iter()
                        .map(|(k, v, _)| format!("{k} = {}", v.show_within(depth)))
                        .collect::<Vec<_>>()
                        .join(", ")
                ),
            },
            Value::Func(f) => f.function.name.name.to_string(),
            Value::Instance(i) => i.path.clone(),
            Value::Builtin(name) => (*name).to_string(),
            Value::Identity => "identity".into(),
            Value::Mixture(m) => format!("mix({} experts)", m.experts.len()),
        }
    }

    /// The number of values in it, shared ones counted each time; `None` when it is above the limit.
    pub(super) fn size_within(&self, limit: usize) -> Option<usize> {
        let add = |n: usize, part: &Value| Some(n + part.size_within(limit.checked_sub(n)?)?);
        match self {
            Value::List(items) | Value::Tuple(items) => items.iter().try_fold(1, add),
            Value::Map(entries) => entries.iter().map(|(_, v)| v).try_fold(1, add),
            _ => Some(1),
        }
        .filter(|n| *n <= limit)
    }
}

impl From<&Datum> for Value {
    fn from(datum: &Datum) -> Self {
        match datum {
            Datum::Null => Value::None,
            Datum::Bool(b) => Value::Bool(*b),
            Datum::Int(v) => Value::Int(*v),
            Datum::Float(v) => Value::Float(*v),
            Datum::Str(s) => Value::Str(s.clone()),
            Datum::List(items) => Value::List(Rc::new(items.iter().map(Value::from).collect())),
            Datum::Map(entries) => Value::Map(Rc::new(entries.iter().map(|(k, v)| (k.clone(), v.into())).collect())),
        }
    }
}
