//! Mixtures: experts of which each token meets those that were chosen for it.
//!
//! ```text
//! mix(experts, chosen, weight)(x)  ──▶  y [tokens, A, O] = the expert's body, once for all equal experts   ──▶  sum over A of weight * y
//!                                        a parameter in it ──▶ gather(weight "experts.{0..8}.up.weight" [8, O, I], chosen) [tokens, A, O, I]
//! ```
//!
//! Experts that are equal but for their number, one after another, are a class. Where there are several, the weight is 0 where another class was
//! chosen, and the index is clamped into the class. A class of one has parameters of its own, which every token meets.

use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;

use super::calls::Given;
use super::expand::{Eval, Expander};
use super::value::{Axis, AxisName, Def, Instance, Mixture, Place, Tensor, Value};
use crate::diagnostic::{Code, Diagnostic, Span};
use crate::graph::{DType, Dim};
use crate::ops::{BinaryOp, Core, ReduceOp};

/// Most classes of experts in a mixture.
const MAX_CLASSES: usize = 64;

/// Functions that do more than treat each token by itself.
const NOT_BY_TOKEN: &[&str] = &["attend", "cache", "first", "last", "scan", "sequence", "stack", "unfold", "mix"];

/// The experts that are being expanded.
pub(super) struct Experts {
    /// Of several, what stands for all of them; one has its own parameters.
    stack: Option<Stack>,
}

struct Stack {
    /// The path of the first, whose body is expanded: `mlp.experts.0`.
    first: String,
    /// The list that they are elements of: `mlp.experts`.
    list: String,
    numbers: Range<u64>,
    /// Which of them: `i64[tokens, A]`.
    index: Tensor,
}

/// The path of a parameter among those of the other experts.
pub(super) struct StackedParam {
    /// `mlp.experts`
    list: String,
    numbers: Range<u64>,
    /// `.up_proj.weight`
    rest: String,
    index: Tensor,
}

impl Stack {
    /// What stands behind the path of the first.
    fn rest<'p>(&self, path: &'p str) -> Option<&'p str> {
        path.strip_prefix(self.first.as_str()).filter(|rest| rest.is_empty() || rest.starts_with('.'))
    }

    fn path(&self, rest: &str) -> String {
        format!("{}.{{{}..{}}}{rest}", self.list, self.numbers.start, self.numbers.end)
    }
}

impl Expander {
    /// `mix(experts, chosen, weight = 1)`, to be applied.
    pub(super) fn mix(&mut self, given: Vec<Given>, span: Span, place: &Place) -> Eval {
        let mut args = self.args("mix", &["experts", "chosen", "weight"], given, span)?;
        let (experts, chosen) = (self.need(&mut args, 0)?, self.need(&mut args, 1)?);
        let weight = args.values[2].take().map_or((Value::Int(1), span), |g| (g.value, g.span));
        let at = experts.span;
        let experts = match experts.value {
            Value::List(items) if !items.is_empty() => items,
            other => {
                let shown = if let Value::List(_) = other { "an empty list" } else { other.kind() };
                let d = Diagnostic::new(Code::WrongType, format!("experts are a list of modules, not {shown}"), at)
                    .label("expected a list of modules");
                return Err(self.report(d.help("bind one: `experts = [gated_mlp(size, silu) for e in 0..n]`")));
            }
        };
        for expert in experts.iter() {
            let help = match expert {
                Value::Instance(_) | Value::Identity | Value::Func(_) => continue,
                Value::Def(_) => "bind the list to a name, which its parameters are called after: `experts = [..]`",
                _ => "an expert is a module that is applied to one tensor",
            };
            let d = Diagnostic::new(Code::WrongType, format!("an expert is {} without a name", expert.kind()), at)
                .label("expected modules that are bound to a name");
            return Err(self.report(d.help(help)));
        }
        let at_chosen = chosen.span;
        let chosen = self.tensor(chosen.value, at_chosen, place.frame.as_deref())?;
        let by_token =
            matches!(chosen.axes[..], [Axis { name: AxisName::Ragged(_), .. }, Axis { size: Dim::Fixed(_), .. }]);
        if chosen.dtype != DType::I64 || !by_token {
            let shape = self.show_shape(&chosen.axes);
            let message = format!("what is chosen is {}{shape}", chosen.dtype);
            let d = Diagnostic::new(Code::AxisMismatch, message, at_chosen).label("expected `i64[tokens, n]`");
            return Err(self.report(d.help("the numbers of each token's experts, as `top_k(scores, n)` gives them")));
        }
        let (weight, at_weight) = weight;
        let weight = self.tensor(weight, at_weight, place.frame.as_deref())?;
        let weight = self.cast(weight, DType::F32, at_weight)?;
        let sizes = |t: &Tensor| t.axes.iter().map(|a| a.size).collect::<Vec<_>>();
        if !weight.axes.is_empty() && sizes(&weight) != sizes(&chosen) {
            let (ours, theirs) = (self.show_shape(&weight.axes), self.show_shape(&chosen.axes));
            let message = format!("the weights have shape {ours}, and what is chosen {theirs}");
            return self.fail(
                Code::AxisMismatch,
                at_weight,
                message,
                "expected a number, or one for each that is chosen",
            );
        }
        let over = vec![chosen.axes[0], Axis::new(AxisName::Experts, chosen.axes[1].size)];
        let chosen = Tensor { axes: over.clone(), ..chosen };
        let weight = if weight.axes.is_empty() { weight } else { Tensor { axes: over, ..weight } };
        Ok(Value::Mixture(Rc::new(Mixture { experts, chosen, weight, span: at })))
    }

    /// The weighted sum of what the chosen experts make of each token.
    pub(super) fn apply_mixture(&mut self, m: &Rc<Mixture>, given: Vec<Given>, span: Span, place: &Place) -> Eval {
        let Ok([Given { value, span: at, .. }]) = <[Given; 1]>::try_from(given) else {
            return self.fail(Code::WrongType, span, "a mixture is applied to one tensor", "expected one tensor");
        };
        let x = self.tensor(value, at, place.frame.as_deref())?;
        let own = |a: &Axis| Axis { name: AxisName::Experts, ..*a };
        let axes = match &x.axes[..] {
            [tokens, width] if *tokens == m.chosen.axes[0] && !width.size.is_ragged() => vec![*tokens, *width],
            [tokens, each, width] if [*tokens, own(each)] == m.chosen.axes[..] && !width.size.is_ragged() => {
                vec![*tokens, own(each), *width]
            }
            axes => {
                let (shape, chosen) = (self.show_shape(axes), self.show_shape(&m.chosen.axes));
                let message = format!("a mixture applied to {shape}, where what is chosen is {chosen}");
                let d = Diagnostic::new(Code::AxisMismatch, message, at).label("the axes do not fit");
                return Err(self.report(
                    d.help("expected `[tokens, width]`, or a row for each that is chosen: `[tokens, n, width]`"),
                ));
            }
        };
        let x = Tensor { axes, ..x };
        let classes = classes(&m.experts);
        if classes.len() > MAX_CLASSES {
            let message = format!("{} kinds of experts; at most {MAX_CLASSES} are mixed", classes.len());
            let d = Diagnostic::new(Code::TooLarge, message, m.span).label("too many");
            return Err(self.report(d.help("experts are of one kind when they are elements of one list, made by the same module with equal options")));
        }
        let mut sum: Option<Tensor> = None;
        for class in classes {
            let y = self.class(m, &class, &x, span, place)?;
            sum = Some(match sum {
                None => y,
                Some(sum) if sum.axes != y.axes => {
                    let (first, other) = (self.show_shape(&sum.axes), self.show_shape(&y.axes));
                    let message = format!("some experts give {first}, others {other}");
                    return self.fail(Code::AxisMismatch, m.span, message, "the results are added");
                }
                Some(sum) => self.binary_tensors(BinaryOp::Add, sum, y, span)?,
            });
        }
        match sum {
            Some(sum) => Ok(Value::Tensor(sum)),
            None => self.fail(Code::WrongType, m.span, "a mixture of no experts", "expected a list of modules"),
        }
    }

    /// The part of a mixture that one class of experts has: `f32[tokens, O]`.
    fn class(&mut self, m: &Mixture, class: &Range<usize>, x: &Tensor, span: Span, place: &Place) -> Eval<Tensor> {
        let n = class.len();
        let (mut index, mut weight) = (m.chosen.clone(), m.weight.clone());
        if n < m.experts.len() {
            let number = |this: &mut Self, i: usize| this.constant(vec![i as f64], DType::I64, Vec::new(), span);
            let (first, last, none) = (number(self, class.start)?, number(self, n - 1)?, number(self, 0)?);
            index = self.binary_tensors(BinaryOp::Sub, index, first, span)?;
            let reached = self.binary_tensors(BinaryOp::Ge, index.clone(), none.clone(), span)?;
            let not_passed = self.binary_tensors(BinaryOp::Le, index.clone(), last.clone(), span)?;
            let inside = self.binary_tensors(BinaryOp::And, reached, not_passed, span)?;
            let zero = self.constant(vec![0.0], DType::F32, Vec::new(), span)?;
            weight = self.select_tensors(inside, weight, zero, span)?;
            index = self.binary_tensors(BinaryOp::Max, index, none, span)?;
            index = self.binary_tensors(BinaryOp::Min, index, last, span)?;
        }
        let expert = m.experts[class.start].clone();
        let stack = match &expert {
            Value::Instance(first) if n > 1 => numbered(first).map(|(list, number)| Stack {
                first: first.path.clone(),
                list: list.to_owned(),
                numbers: number..number + n as u64,
                index,
            }),
            _ => None,
        };
        if let (Value::Instance(first), Some(stack)) = (&expert, &stack) {
            *first.stands_for.borrow_mut() = Some(stack.path(""));
        }
        self.experts = Some(Rc::new(Experts { stack }));
        let given = Given::of(Value::Tensor(x.clone()), span);
        let value = match &expert {
            Value::Instance(first) => self.apply(first, vec![given], span),
            other => self.call(other.clone(), None, vec![given], span, m.span, place),
        };
        let value = value.and_then(|y| self.tensor(y, m.span, None));
        self.experts = None;
        let y = self.cast(value?, DType::F32, span)?;
        self.weighed(m, y, weight, span)
    }

    /// `y [tokens, A, O]` or, where every expert gives the same, `[tokens, O]`, times the weights and summed: `[tokens, O]`.
    fn weighed(&mut self, m: &Mixture, y: Tensor, weight: Tensor, span: Span) -> Eval<Tensor> {
        let over = m.chosen.axes.clone();
        let (tokens, each) = (over[0], over[1]);
        let rest: Vec<Axis> = y.axes.iter().filter(|a| ![tokens.name, each.name].contains(&a.name)).copied().collect();
        let [Axis { size: size @ Dim::Fixed(_), name }] = rest[..] else {
            let shown: Vec<Axis> = y.axes.iter().filter(|a| a.name != each.name).copied().collect();
            let shape = self.show_shape(&shown);
            return self.fail(
                Code::AxisMismatch,
                m.span,
                format!("an expert gives {shape}"),
                "expected `[tokens, width]`",
            );
        };
        let result = vec![tokens, Axis::new(AxisName::Width, size)];
        let own = Axis::new(name, size);
        match (y.axis(each.name).is_some(), weight.axes.is_empty()) {
            (true, false) => {
                let y = self.place_axes(&y, &[tokens, each, own], span)?;
                self.emit(Core::Contract { spec: "tao,ta->to".into() }, &[&y, &weight], DType::F32, result, span)
            }
            (true, true) => {
                let y = self.place_axes(&y, &[tokens, each, own], span)?;
                let sum = self.sum_of_chosen(&y, &result, span)?;
                self.binary_tensors(BinaryOp::Mul, sum, weight, span)
            }
            (false, by_number) => {
                let all = if by_number {
                    let n = each.size.fixed().unwrap_or(1) as f64;
                    let n = self.constant(vec![n], DType::F32, Vec::new(), span)?;
                    self.binary_tensors(BinaryOp::Mul, weight, n, span)?
                } else {
                    let once = vec![tokens, Axis::new(AxisName::Width, Dim::Fixed(1))];
                    self.emit(Core::Reduce(ReduceOp::Sum), &[&weight], DType::F32, once, span)?
                };
                let y = self.place_axes(&y, &[tokens, own], span)?;
                self.binary_tensors(BinaryOp::Mul, Tensor { axes: result, ..y }, all, span)
            }
        }
    }

    /// `[tokens, A, O]` summed over what was chosen: `[tokens, O]`.
    fn sum_of_chosen(&mut self, y: &Tensor, result: &[Axis], span: Span) -> Eval<Tensor> {
        let n = y.axes[1].size.fixed().unwrap_or(1);
        let mut sum: Option<Tensor> = None;
        for start in 0..n {
            self.spend(1, span)?;
            let mut axes = y.axes.clone();
            axes[1].size = Dim::Fixed(1);
            let one =
                if n == 1 { y.clone() } else { self.emit(Core::Slice { dim: 1, start }, &[y], y.dtype, axes, span)? };
            let one = self.emit(Core::Reshape, &[&one], y.dtype, result.to_vec(), span)?;
            sum = Some(match sum {
                None => one,
                Some(sum) => self.binary_tensors(BinaryOp::Add, sum, one, span)?,
            });
        }
        sum.map_or_else(|| self.fail(Code::AxisMismatch, span, "nothing is chosen", "expected at least one"), Ok)
    }

    /// Refuses what more than treats each token by itself, where an expert is expanded.
    pub(super) fn check_by_token(&mut self, name: &str, span: Span) -> Eval<()> {
        if self.experts.is_none() || !NOT_BY_TOKEN.contains(&name) {
            return Ok(());
        }
        let d = Diagnostic::new(Code::Misplaced, format!("`{name}` in an expert"), span)
            .label("an expert meets some tokens only")
            .help(
                "an expert treats each token by itself: it attends to no other, keeps nothing and chooses no experts",
            );
        Err(self.report(d))
    }

    /// A path as it is named: those of the first of equal experts are of all of them.
    pub(super) fn stands_for(&self, path: &str) -> String {
        let stack = self.experts.as_ref().and_then(|e| e.stack.as_ref());
        stack.and_then(|s| Some(s.path(s.rest(path)?))).unwrap_or_else(|| path.to_owned())
    }

    /// The stack that a parameter is one of, where the experts that it belongs to are expanded.
    pub(super) fn stack_of(&self, path: &str) -> Option<StackedParam> {
        let stack = self.experts.as_ref()?.stack.as_ref()?;
        let rest = stack.rest(path)?.to_owned();
        let Stack { list, numbers, index, .. } = stack;
        Some(StackedParam { list: list.clone(), numbers: numbers.clone(), rest, index: index.clone() })
    }

    /// The chosen experts' parameter of these dimensions: `[tokens, A, dims..]`.
    pub(super) fn chosen_param(&mut self, of: &StackedParam, dims: &[u64], own: Vec<Axis>, span: Span) -> Eval<Tensor> {
        let StackedParam { list, numbers, rest, index } = of;
        let stack: Arc<str> = format!("{list}.{{{}..{}}}{rest}", numbers.start, numbers.end).into();
        for i in numbers.clone() {
            self.spend(1, span)?;
            self.use_param(&format!("{list}.{i}{rest}"), dims, Some(&stack), span)?;
        }
        let path = self.builders.relative(&stack);
        let rows = Axis::new(self.other_axis(), Dim::Fixed(numbers.end - numbers.start));
        let axes = std::iter::once(rows).chain(own.iter().copied()).collect();
        let table = self.emit(Core::Weight { path }, &[], DType::F32, axes, span)?;
        let axes = index.axes.iter().chain(&own).copied().collect();
        let chosen = self.emit(Core::Gather, &[&table, index], DType::F32, axes, span)?;
        Ok(Tensor { of_experts: true, ..chosen })
    }

    /// The dimensions that an expert's wiring does not write: what was chosen, and the tokens of parameters.
    fn unwritten(t: &Tensor) -> Vec<usize> {
        let is_unwritten = |i: &usize| t.axes[*i].name == AxisName::Experts || t.of_experts && *i == 0;
        (0..t.axes.len()).filter(is_unwritten).collect()
    }

    /// The tensor as an expert's wiring sees it: without what was chosen, and a parameter without tokens.
    pub(super) fn written(t: &Tensor) -> Tensor {
        let unwritten = Self::unwritten(t);
        let axes = t.axes.iter().enumerate().filter(|(i, _)| !unwritten.contains(i)).map(|(_, a)| *a).collect();
        Tensor { axes, ..t.clone() }
    }

    /// Adds labels for the dimensions of an einsum that an expert's wiring does not write: each token, and each expert chosen for it, has a sum
    /// of its own. `free` are two letters that are not used.
    pub(super) fn label_unwritten(
        &mut self,
        tensors: [&Tensor; 2],
        free: Option<(char, char)>,
        operands: &mut [String],
        result: &mut String,
        labelled: &mut Vec<(char, Axis)>,
        span: Span,
    ) -> Eval<()> {
        let unwritten = tensors.map(Self::unwritten);
        let Some(experts) = tensors.iter().find_map(|t| t.axis(AxisName::Experts)) else { return Ok(()) };
        let Some((token, expert)) = free else {
            return self.fail(Code::TooLarge, span, "an einsum of too many axes", "no letter is left");
        };
        let known = labelled.iter().find(|(_, a)| matches!(a.name, AxisName::Ragged(_))).map(|(label, _)| *label);
        let of_tokens = tensors.iter().find(|t| t.of_experts).and_then(|t| t.axes.first().copied());
        if known.is_none() {
            labelled.extend(of_tokens.map(|axis| (token, axis)));
        }
        labelled.push((expert, experts));
        let token = known.unwrap_or(token);
        for (i, t) in tensors.iter().enumerate() {
            for &dim in &unwritten[i] {
                operands[i].insert(dim, if t.axes[dim].name == AxisName::Experts { expert } else { token });
            }
        }
        match (known, result.find(token)) {
            (Some(_), None) => {
                let message = "a sum over tokens in an expert";
                return self.fail(Code::Misplaced, span, message, "an expert treats each token by itself");
            }
            (_, Some(at)) => result.insert(at + 1, expert),
            (None, None) => *result = format!("{token}{expert}{result}"),
        }
        Ok(())
    }
}

/// The list and the number of an element of one: `mlp.experts` and 3.
fn numbered(instance: &Instance) -> Option<(&str, u64)> {
    let (list, number) = instance.path.rsplit_once('.')?;
    Some((list, number.parse().ok()?))
}

/// Experts that are the same but for their numbers, one after another.
fn classes(experts: &[Value]) -> Vec<Range<usize>> {
    let mut classes: Vec<Range<usize>> = Vec::new();
    for (i, expert) in experts.iter().enumerate() {
        match classes.last_mut() {
            Some(class) if follows(&experts[i - 1], expert) => class.end = i + 1,
            _ => classes.push(i..i + 1),
        }
    }
    classes
}

/// Whether an expert is the next of the same class.
fn follows(before: &Value, next: &Value) -> bool {
    match (before, next) {
        (Value::Identity, Value::Identity) => true,
        (Value::Func(_), Value::Func(_)) => equal(before, next),
        (Value::Instance(a), Value::Instance(b)) => {
            let apart = numbered(a).zip(numbered(b)).is_some_and(|((x, i), (y, j))| x == y && j == i + 1);
            apart && equal_definitions(&a.def, &b.def)
        }
        _ => false,
    }
}

fn equal_definitions(a: &Rc<Def>, b: &Rc<Def>) -> bool {
    Rc::ptr_eq(a, b)
        || Arc::ptr_eq(&a.module, &b.module)
            && Rc::ptr_eq(&a.scope, &b.scope)
            && a.given.len() == b.given.len()
            && a.given.iter().zip(&b.given).all(|((n, v, _), (m, w, _))| n == m && equal(v, w))
}

/// Whether two options are the same, as far as can be told.
fn equal(a: &Value, b: &Value) -> bool {
    let all = |a: &[Value], b: &[Value]| a.len() == b.len() && a.iter().zip(b).all(|(a, b)| equal(a, b));
    match (a, b) {
        (Value::List(a), Value::List(b)) | (Value::Tuple(a), Value::Tuple(b)) => all(a, b),
        (Value::Map(a), Value::Map(b)) => {
            a.len() == b.len() && a.iter().zip(b.iter()).all(|((j, v), (k, w))| j == k && equal(v, w))
        }
        (Value::Def(a), Value::Def(b)) => equal_definitions(a, b),
        (Value::Func(a), Value::Func(b)) => Arc::ptr_eq(&a.function, &b.function) && Rc::ptr_eq(&a.scope, &b.scope),
        (Value::Instance(a), Value::Instance(b)) => Rc::ptr_eq(a, b),
        (Value::Tensor(a), Value::Tensor(b)) => a.graph == b.graph && a.value == b.value,
        (Value::Param(a), Value::Param(b)) => a.path == b.path,
        (Value::Sym(a), Value::Sym(b)) => Rc::ptr_eq(a, b),
        (Value::Builtin(a), Value::Builtin(b)) => a == b,
        (Value::Identity, Value::Identity) => true,
        _ => super::arith::same(a, b),
    }
}

#[cfg(test)]
mod tests;
