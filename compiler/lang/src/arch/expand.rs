//! Expands expressions: names to values, equations to operations.
//!
//! An expression that is wrong says so once and stops there; what does not depend on it goes on, so that all mistakes are found together.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use super::build::Builders;
use super::builtins;
use super::limits::{MAX_DIAGNOSTICS, MAX_SIZE};
use super::mix::Experts;
use super::value::{Place, Scope, Tensor, Value};
use crate::diagnostic::{Code, Diagnostic, Label, Span};
use crate::graph::{Dim, Origin};
use crate::ops::Core;
use crate::spec::ast::{Arg, BinOp, Expr, ExprKind, Ident};

/// Something wrong that is already among the diagnostics.
#[derive(Clone, Copy, Debug)]
pub(super) struct Failed;

pub(super) type Eval<T = Value> = Result<T, Failed>;

/// A parameter of the checkpoint that the model uses.
pub(super) struct Used {
    pub(super) dims: Vec<u64>,
    /// Its place in the order of first uses.
    pub(super) order: usize,
    /// The path of the stack of experts' parameters that it is one of.
    pub(super) stack: Option<Arc<str>>,
}

/// The state of an expansion.
pub(super) struct Expander {
    pub(super) diagnostics: Vec<Diagnostic>,
    pub(super) builders: Builders,
    /// Names of the ragged axes.
    pub(super) axes: Vec<String>,
    /// Elements that every sequence has of each of them, where that is known.
    pub(super) extents: Vec<Option<u64>>,
    pub(super) params: BTreeMap<String, Used>,
    /// Names under which tensors of other instances appear: `(alias, path)`.
    pub(super) aliases: Vec<(String, String)>,
    /// Paths of caches already taken.
    pub(super) caches: std::collections::BTreeSet<String>,
    pub(super) n_instances: usize,
    /// Expressions evaluated and values listed.
    pub(super) work: u64,
    /// Operations written out.
    pub(super) n_operations: u64,
    /// Whether a limit was met: nothing further is expanded.
    pub(super) gave_up: bool,
    pub(super) n_axes: usize,
    /// The experts that are being expanded.
    pub(super) experts: Option<Rc<Experts>>,
    pub(super) depth: usize,
    /// The equation being expanded, and the instance it belongs to.
    pub(super) at: Option<Span>,
    pub(super) path: String,
    /// The calls being expanded, outermost first.
    pub(super) calls: Vec<Span>,
    /// The modules and functions being expanded, outermost first, each with the place where it is applied.
    pub(super) expanding: Vec<(Ident, Span)>,
    /// The first source that is not of the library.
    pub(super) first_card: u32,
    /// The strings of the sizes, known by their address, and where each comes from.
    pub(super) origins: Vec<(Arc<str>, String)>,
    /// The sizes below 1: the number, and what is to be said of it where a dimension was expected.
    pub(super) below_one: Vec<(i64, Label)>,
}

/// What stands in the place of an index into a tensor.
const CUTTING: &str =
    "tensors are cut by `parts` and `split`, rows are read by `gather`, and `first` is the first token of a sequence";

impl Expander {
    pub(super) fn new(first_card: u32) -> Self {
        Expander {
            diagnostics: Vec::new(),
            builders: Builders::default(),
            axes: Vec::new(),
            extents: Vec::new(),
            params: BTreeMap::new(),
            aliases: Vec::new(),
            caches: Default::default(),
            n_instances: 0,
            work: 0,
            n_operations: 0,
            gave_up: false,
            n_axes: 0,
            experts: None,
            depth: 0,
            at: None,
            path: String::new(),
            calls: Vec::new(),
            expanding: Vec::new(),
            first_card,
            origins: Vec::new(),
            below_one: Vec::new(),
        }
    }

    /// Reports; the same thing at the same place only once, however many layers repeat it. What is wrong inside the library shows
    /// where the card led there too.
    pub(super) fn report(&mut self, mut diagnostic: Diagnostic) -> Failed {
        let place = diagnostic.primary.as_ref().map(|p| p.span);
        if place.is_some_and(|p| p.source < self.first_card)
            && let Some(call) = self.calls.iter().rev().find(|c| c.source >= self.first_card)
        {
            diagnostic = diagnostic.other(*call, "expanded from here");
        }
        let same = |d: &Diagnostic| {
            d.code == diagnostic.code
                && d.primary.as_ref().map(|p| p.span) == place
                && d.others.iter().map(|o| o.span).eq(diagnostic.others.iter().map(|o| o.span))
        };
        if self.diagnostics.len() < MAX_DIAGNOSTICS && !self.diagnostics.iter().any(same) {
            self.diagnostics.push(diagnostic);
        }
        self.gave_up |= self.diagnostics.len() >= MAX_DIAGNOSTICS;
        Failed
    }

    pub(super) fn fail<T>(
        &mut self,
        code: Code,
        span: Span,
        message: impl Into<String>,
        label: impl Into<String>,
    ) -> Eval<T> {
        Err(self.report(Diagnostic::new(code, message, span).label(label)))
    }

    /// Adds an operation to the graph being built.
    pub(super) fn emit(
        &mut self,
        op: Core,
        operands: &[&Tensor],
        dtype: crate::graph::DType,
        axes: Vec<super::value::Axis>,
        span: Span,
    ) -> Eval<Tensor> {
        self.count_operation(span)?;
        let fixed: Vec<u64> =
            axes.iter().filter_map(|a| if let Dim::Fixed(n) = a.size { Some(n) } else { None }).collect();
        self.check_elements(&fixed, span)?;
        // The last axis of a name keeps it, so that names tell axes apart.
        let mut axes = axes;
        for i in 0..axes.len() {
            if axes[i + 1..].iter().any(|a| a.name == axes[i].name) {
                axes[i].name = self.other_axis();
            }
        }
        let mut values = Vec::with_capacity(operands.len());
        for operand in operands {
            match self.builders.here(operand) {
                Some(value) => values.push(value),
                None => return self.fail(Code::Misplaced, span, "a tensor of a body that is finished", "used here"),
            }
        }
        let path = self.stands_for(&self.path);
        let path = self.builders.relative(&path);
        let path = path.trim_start_matches('/').to_string();
        let path = if path == self.builders.top().base { String::new() } else { path };
        let fixed = |t: &Tensor| t.axes.iter().all(|a| !a.size.is_ragged());
        let of_experts = operands.iter().any(|t| t.of_experts) && operands.iter().all(|t| t.of_experts || fixed(t));
        let made = self.builders.emit(op, &values, dtype, axes, Origin { path, span: self.at.or(Some(span)) });
        Ok(Tensor { of_experts, ..made })
    }

    /// The value of an expression.
    pub(super) fn eval(&mut self, expr: &Expr, place: &Place) -> Eval {
        let span = expr.span;
        self.spend(1, span)?;
        match &*expr.kind {
            ExprKind::None => Ok(Value::None),
            ExprKind::Bool(b) => Ok(Value::Bool(*b)),
            ExprKind::Int(v) => Ok(Value::Int(*v)),
            ExprKind::Float(v) => Ok(Value::Float(*v)),
            ExprKind::Str(s) => Ok(Value::Str(s.clone())),
            ExprKind::Name(name) => self.lookup(name, span, &place.scope),
            ExprKind::List(items) => {
                let items = self.eval_all(items, &place.part())?;
                self.nested(Value::List(Rc::new(items)), span)
            }
            ExprKind::Tuple(items) => Ok(Value::Tuple(Rc::new(self.eval_all(items, &place.part())?))),
            ExprKind::Mapping(entries) => {
                let values: Vec<Eval> = entries.iter().map(|(_, e)| self.eval(e, &place.part())).collect();
                let values = values.into_iter().collect::<Eval<Vec<_>>>()?;
                let entries = entries.iter().map(|(k, _)| k.name.clone()).zip(values).collect();
                self.nested(Value::Map(Rc::new(entries)), span)
            }
            ExprKind::Comprehension { body, variable, list } => self.comprehension(body, variable, list, place),
            ExprKind::If { .. } => self.eval_if(expr, place),
            ExprKind::Not(value) => {
                let value = self.eval(value, &place.part())?;
                self.not(value, span, place)
            }
            ExprKind::Neg(value) => {
                let value = self.eval(value, &place.part())?;
                self.neg(value, span, place)
            }
            ExprKind::Binary { .. } => self.eval_chain(expr, place),
            ExprKind::Call { callee, args } => self.eval_call(callee, args, span, place),
            ExprKind::Index { base, indices } => self.eval_index(base, indices, span, place),
            ExprKind::Member { base, name } => self.eval_member(base, name, place),
            ExprKind::IsNone { value, negated } => {
                let value = self.eval(value, &place.part())?;
                Ok(Value::Bool(matches!(value, Value::None) != *negated))
            }
        }
    }

    /// All of them, also behind one that is wrong.
    pub(super) fn eval_all(&mut self, exprs: &[Expr], place: &Place) -> Eval<Vec<Value>> {
        let values: Vec<Eval> = exprs.iter().map(|e| self.eval(e, place)).collect();
        values.into_iter().collect()
    }

    fn comprehension(&mut self, body: &Expr, variable: &Ident, list: &Expr, place: &Place) -> Eval {
        self.check_bindable(variable);
        let items = match self.eval(list, &place.part())? {
            Value::List(items) | Value::Tuple(items) => items,
            other => {
                return self.fail(
                    Code::WrongType,
                    list.span,
                    format!("`for` goes over a list, a tuple or a range, not {}", other.kind()),
                    "expected a list",
                );
            }
        };
        let mut values = Vec::with_capacity(items.len());
        let mut failed = false;
        for item in items.iter() {
            let scope = Scope::new(Some(place.scope.clone()));
            scope.set(variable.name.clone(), item.clone());
            match self.eval(body, &place.with(scope)) {
                Ok(value) => values.push(value),
                Err(Failed) => failed = true,
            }
        }
        if failed { Err(Failed) } else { self.nested(Value::List(Rc::new(values)), list.span) }
    }

    /// Choices one after another, without a deeper stack for each.
    fn eval_if(&mut self, expr: &Expr, place: &Place) -> Eval {
        let mut choice = expr;
        while let ExprKind::If { condition, then, otherwise } = &*choice.kind {
            match self.eval(condition, &place.part())? {
                Value::Bool(true) => return self.eval(then, place),
                Value::Bool(false) => choice = otherwise,
                other => {
                    let d = Diagnostic::new(
                        Code::WrongType,
                        format!("a condition must be true or false, not {}", other.kind()),
                        condition.span,
                    )
                    .label("expected a boolean of sizes");
                    let help = if other.is_tensor_like() {
                        "to choose element by element, use `where(condition, a, b)`"
                    } else {
                        "compare it, or test it with `is none`"
                    };
                    return Err(self.report(d.help(help)));
                }
            }
        }
        self.eval(choice, place)
    }

    /// Operators one after another, as in a sum, without a deeper stack for each.
    fn eval_chain(&mut self, expr: &Expr, place: &Place) -> Eval {
        let place = &place.part();
        let mut links = Vec::new();
        let mut first = expr;
        while let ExprKind::Binary { op, left, right } = &*first.kind {
            links.push((*op, right, first.span));
            first = left;
        }
        let mut value = self.eval(first, place);
        for (op, right, span) in links.into_iter().rev() {
            self.spend(1, span)?;
            value = self.eval_binary(op, value, right, span, place);
        }
        value
    }

    fn eval_binary(&mut self, op: BinOp, a: Eval, right: &Expr, span: Span, place: &Place) -> Eval {
        match (op, &a) {
            (BinOp::Coalesce, Ok(Value::None)) => return self.eval(right, place),
            (BinOp::Coalesce, _) => return a,
            (BinOp::And, Ok(Value::Bool(false))) => return a,
            (BinOp::Or, Ok(Value::Bool(true))) => return a,
            _ => {}
        }
        let b = self.eval(right, place);
        let (a, b) = (a?, b?);
        match op {
            BinOp::Range => self.range(&a, &b, span),
            BinOp::In => match &b {
                Value::List(items) => Ok(Value::Bool(items.iter().any(|item| super::arith::same(&a, item)))),
                other => self.fail(
                    Code::WrongType,
                    right.span,
                    format!("`in` needs a list, not {}", other.kind()),
                    "expected a list",
                ),
            },
            _ => self.binary(op, a, b, span, place),
        }
    }

    fn range(&mut self, a: &Value, b: &Value, span: Span) -> Eval {
        match (a, b) {
            (Value::Int(a), Value::Int(b)) if b < a => self.fail(
                Code::Arithmetic,
                span,
                format!("the range {a}..{b} goes down"),
                "expected an end that is not below the start",
            ),
            (Value::Int(a), Value::Int(b)) => {
                let len = usize::try_from(b.saturating_sub(*a)).unwrap_or(usize::MAX);
                self.check_list(len, span)?;
                Ok(Value::List(Rc::new((*a..*b).map(Value::Int).collect())))
            }
            _ => self.fail(
                Code::WrongType,
                span,
                format!("a range goes between integers, not {} and {}", a.kind(), b.kind()),
                "expected integers",
            ),
        }
    }

    fn eval_index(&mut self, base: &Expr, indices: &[Expr], span: Span, place: &Place) -> Eval {
        let place = &place.part();
        if matches!(&*base.kind, ExprKind::Name(n) if &**n == "param") {
            let dims = self.eval_all(indices, place)?;
            let mut sizes = Vec::new();
            for (dim, expr) in dims.iter().zip(indices) {
                sizes.push(self.size(dim, expr.span)?);
            }
            self.check_elements(&sizes, span)?;
            return Ok(Value::NewParam(Rc::new(sizes)));
        }
        let value = self.eval(base, place)?;
        let index = self.eval(&indices[0], place)?;
        if indices.len() > 1 {
            return self.fail(Code::WrongType, span, "a list has one index", "more than one index");
        }
        match (&value, &index) {
            (Value::List(items) | Value::Tuple(items), Value::Int(i)) => {
                match usize::try_from(*i).ok().and_then(|i| items.get(i)) {
                    Some(item) => Ok(item.clone()),
                    None => self.fail(
                        Code::Arithmetic,
                        span,
                        format!("index {i} of a list of {}", items.len()),
                        "outside the list",
                    ),
                }
            }
            _ => {
                let message = format!("{} cannot be indexed with {}", value.kind(), index.kind());
                let d = Diagnostic::new(Code::WrongType, message, span).label("expected a list and an integer");
                let help = value.is_tensor_like().then(|| CUTTING.to_string());
                Err(self.report(d.maybe_help(help)))
            }
        }
    }

    fn eval_member(&mut self, base: &Expr, name: &Ident, place: &Place) -> Eval {
        match self.eval(base, &place.part())? {
            // A key that a mapping lacks is none: `rope.factor ?? 1`.
            Value::Map(entries) => {
                Ok(entries.iter().find(|(k, _)| *k == name.name).map_or(Value::None, |(_, v)| v.clone()))
            }
            Value::Instance(instance) => match instance.child(&name.name) {
                Some(value) => Ok(value),
                None => {
                    let children: Vec<Arc<str>> = instance.children.borrow().iter().map(|(n, _)| n.clone()).collect();
                    let help = if !instance.applied.get() {
                        Some(format!(
                            "`{}` is not applied before this; its first application makes its parameters",
                            instance.path
                        ))
                    } else {
                        crate::diagnostic::did_you_mean(&name.name, children.iter().map(|c| &**c))
                    };
                    let d = Diagnostic::new(
                        Code::UnknownName,
                        format!("`{}` has no `{}`", instance.path, name.name),
                        name.span,
                    )
                    .label("not bound in its body");
                    Err(self.report(d.maybe_help(help)))
                }
            },
            other => {
                let message = format!("{} has no members", other.kind());
                let d = Diagnostic::new(Code::WrongType, message, base.span).label("expected a mapping or an instance");
                let help = (other.is_tensor_like() && builtins::find(&name.name).is_some())
                    .then(|| format!("operations are functions: `{}(x, ..)`", name.name));
                Err(self.report(d.maybe_help(help)))
            }
        }
    }

    /// A dimension: a positive integer.
    pub(super) fn size(&mut self, value: &Value, span: Span) -> Eval<u64> {
        match value {
            Value::Int(v) if (1..MAX_SIZE).contains(v) => Ok(*v as u64),
            Value::Int(v) if *v > 0 => {
                let message = format!("{v} is no size: at most {}", MAX_SIZE - 1);
                self.fail(Code::Arithmetic, span, message, "too large")
            }
            Value::Int(v) => {
                let mut d = Diagnostic::new(Code::Arithmetic, format!("{v} is no size"), span);
                d = d.label("expected a positive integer");
                d.others
                    .extend(self.below_one.iter().filter(|(number, _)| number == v).map(|(_, label)| label.clone()));
                Err(self.report(d))
            }
            other => self.fail(
                Code::WrongType,
                span,
                format!("a size must be an integer, not {}", other.kind()),
                "expected a positive integer",
            ),
        }
    }

    fn eval_call(&mut self, callee: &Expr, args: &[Arg], span: Span, place: &Place) -> Eval {
        let name = match &*callee.kind {
            ExprKind::Name(name) => Some(name.clone()),
            _ => None,
        };
        let function = self.eval(callee, &place.part());
        let mut given = Vec::with_capacity(args.len());
        let mut failed = false;
        for arg in args {
            match self.eval(&arg.value, &place.part()) {
                Ok(value) => {
                    let written = match &*arg.value.kind {
                        ExprKind::Name(n) => Some(n.clone()),
                        _ => None,
                    };
                    given.push(super::calls::Given {
                        name: arg.name.as_ref().map(|n| n.name.clone()),
                        value,
                        span: arg.value.span,
                        written,
                    });
                }
                Err(Failed) => failed = true,
            }
        }
        let function = function?;
        if failed {
            return Err(Failed);
        }
        let around = self.at.replace(span);
        self.calls.push(span);
        let result = self.call(function, name, given, span, callee.span, place);
        self.calls.pop();
        self.at = around;
        result
    }
}
