//! The functions that the compiler knows: primitive operations on tensors, and functions of sizes.
//!
//! Everything else (norms, rotary embedding, attention modules, activations) is written over these in the library.

use std::sync::Arc;

use super::calls::Given;
use super::expand::{Eval, Expander};
use super::value::{Axis, Place, Tensor, Value};
use crate::diagnostic::{Code, Diagnostic, Span, did_you_mean};
use crate::graph::Dim;
use crate::ops::{BinaryOp, UnaryOp};
use crate::spec::ast::BinOp;

/// The names of the functions that the compiler knows; each has an example in the language reference.
pub const NAMES: &[&str] = &[
    "abs",
    "argmax",
    "attend",
    "cache",
    "ceil",
    "cos",
    "each",
    "einsum",
    "erf",
    "error",
    "exp",
    "first",
    "float",
    "floor",
    "gather",
    "index",
    "int",
    "join",
    "last",
    "len",
    "log",
    "max",
    "mean",
    "merge",
    "min",
    "mix",
    "normal_quantile",
    "parts",
    "repeat",
    "reduce",
    "rsqrt",
    "scan",
    "sequence",
    "sigmoid",
    "sin",
    "softmax",
    "softplus",
    "split",
    "sqrt",
    "stack",
    "sum",
    "take",
    "tanh",
    "top_k",
    "transpose",
    "unfold",
    "where",
    "width",
    "zeros",
];

/// The known function of that name.
pub(super) fn find(name: &str) -> Option<&'static str> {
    NAMES.iter().find(|n| **n == name).copied()
}

fn unary_op(name: &str) -> Option<UnaryOp> {
    Some(match name {
        "abs" => UnaryOp::Abs,
        "exp" => UnaryOp::Exp,
        "log" => UnaryOp::Log,
        "sqrt" => UnaryOp::Sqrt,
        "rsqrt" => UnaryOp::Rsqrt,
        "tanh" => UnaryOp::Tanh,
        "erf" => UnaryOp::Erf,
        "sigmoid" => UnaryOp::Sigmoid,
        "softplus" => UnaryOp::Softplus,
        "sin" => UnaryOp::Sin,
        "cos" => UnaryOp::Cos,
        "floor" => UnaryOp::Floor,
        _ => return None,
    })
}

/// The arguments of a known function: by position, or by the names it gives them.
pub(super) struct Args {
    pub(super) values: Vec<Option<Given>>,
    name: &'static str,
    names: &'static [&'static str],
    span: Span,
}

impl Expander {
    pub(super) fn args(
        &mut self,
        name: &'static str,
        names: &'static [&'static str],
        given: Vec<Given>,
        span: Span,
    ) -> Eval<Args> {
        let mut values: Vec<Option<Given>> = vec![None; names.len()];
        for arg in given {
            let index = match &arg.name {
                Some(n) => names.iter().position(|known| **known == **n),
                None => values.iter().position(Option::is_none),
            };
            match index {
                Some(i) if values[i].is_none() => values[i] = Some(arg),
                _ => {
                    let d = Diagnostic::new(
                        Code::UnknownOption,
                        format!("`{name}` takes ({})", names.join(", ")),
                        arg.span,
                    )
                    .label("unexpected");
                    let is_axis = names == ["x"] && (matches!(arg.value, Value::Int(_)) || arg.name.is_some());
                    return Err(self.report(d.maybe_help(is_axis.then(|| {
                        "no axis is given: it works element by element or over the last axis; `transpose` exchanges the last two".to_string()
                    }))));
                }
            }
        }
        Ok(Args { values, name, names, span })
    }

    pub(super) fn need(&mut self, args: &mut Args, i: usize) -> Eval<Given> {
        match args.values[i].take() {
            Some(given) => Ok(given),
            None => {
                let message = format!("`{}` needs its argument `{}`", args.name, args.names[i]);
                self.fail(Code::MissingOption, args.span, message, format!("`{}` is not given", args.names[i]))
            }
        }
    }

    pub(super) fn need_tensor(&mut self, args: &mut Args, i: usize, place: &Place) -> Eval<Tensor> {
        let given = self.need(args, i)?;
        self.tensor(given.value, given.span, place.frame.as_deref())
    }

    pub(super) fn need_size(&mut self, args: &mut Args, i: usize) -> Eval<u64> {
        let given = self.need(args, i)?;
        self.size(&given.value, given.span)
    }

    pub(super) fn last(&mut self, tensor: &Tensor, span: Span) -> Eval<(usize, u64)> {
        match tensor.axes.last() {
            Some(Axis { size: Dim::Fixed(n), .. }) => Ok((tensor.axes.len() - 1, *n)),
            _ => {
                let shape = self.show_shape(&tensor.axes);
                self.fail(
                    Code::AxisMismatch,
                    span,
                    format!("the last axis of {shape} has no fixed size"),
                    "expected a fixed last axis",
                )
            }
        }
    }

    /// A call of a known function.
    pub(super) fn builtin(&mut self, name: &'static str, mut given: Vec<Given>, span: Span, place: &Place) -> Eval {
        self.check_by_token(name, span)?;
        if let [Given { value: Value::List(items), span: at, .. }] = given.as_slice()
            && items.iter().any(Value::is_tensor_like)
        {
            let mut terms = items.iter().cloned();
            let first = terms.next().unwrap_or(Value::Int(0));
            match name {
                "sum" => return terms.try_fold(first, |sum, term| self.binary(BinOp::Add, sum, term, span, place)),
                "min" | "max" => {
                    let op = if name == "min" { BinaryOp::Min } else { BinaryOp::Max };
                    return terms.try_fold(first, |best, term| self.binary_values(op, best, term, span, place));
                }
                // A list stands for its elements.
                "join" | "stack" => {
                    given = items.iter().map(|value| Given::of(value.clone(), *at)).collect();
                }
                _ => {}
            }
        }
        if let (
            "sum" | "mean" | "min" | "max" | "abs" | "exp" | "log" | "sqrt" | "floor" | "ceil" | "sin" | "cos" | "tanh"
            | "int" | "float",
            false,
        ) = (name, given.iter().any(|g| g.value.is_tensor_like()))
        {
            return self.of_sizes(name, given, span);
        }
        match name {
            "normal_quantile" => return self.of_sizes(name, given, span),
            "each" => return self.each(given, span),
            _ => {}
        }
        if let Some(op) = unary_op(name) {
            let mut args = self.args(name, &["x"], given, span)?;
            let x = self.need(&mut args, 0)?;
            return self.unary(op, x.value, span, place);
        }
        match name {
            "min" | "max" => {
                let mut args = self.args(name, &["a", "b"], given, span)?;
                let (a, b) = (self.need(&mut args, 0)?, self.need(&mut args, 1)?);
                self.binary_values(
                    if name == "min" { BinaryOp::Min } else { BinaryOp::Max },
                    a.value,
                    b.value,
                    span,
                    place,
                )
            }
            "where" => {
                let mut args = self.args(name, &["condition", "a", "b"], given, span)?;
                let (c, a, b) = (self.need(&mut args, 0)?, self.need(&mut args, 1)?, self.need(&mut args, 2)?);
                self.select(c.value, a.value, b.value, span, place)
            }
            "error" => self.raised(given, span),
            "len" => {
                let mut args = self.args(name, &["list"], given, span)?;
                match self.need(&mut args, 0)?.value {
                    Value::List(items) => Ok(Value::Int(items.len() as i64)),
                    Value::Map(entries) => Ok(Value::Int(entries.len() as i64)),
                    other => self.fail(
                        Code::WrongType,
                        span,
                        format!("`len` of {}", other.kind()),
                        "expected a list or a mapping",
                    ),
                }
            }
            "width" => {
                let mut args = self.args(name, &["x"], given, span)?;
                match &args.values[0] {
                    Some(Given { value: Value::Sym(sym), .. }) if !sym.only_q_pos() => {
                        let message = "an expression over `k_pos`, `head` or `score` has no width";
                        let d = Diagnostic::new(Code::Misplaced, message, span).label("expected a tensor of tokens");
                        return Err(self.report(d.help(
                            "these mean something in a mask or a score alone, where they stand for one number",
                        )));
                    }
                    Some(Given { value: value @ (Value::Int(_) | Value::Float(_) | Value::Bool(_)), .. }) => {
                        let message = format!("{} has no width", value.kind());
                        return self.fail(Code::AxisMismatch, span, message, "expected a tensor");
                    }
                    _ => {}
                }
                let x = self.need_tensor(&mut args, 0, place)?;
                self.last(&x, span).map(|(_, n)| Value::Int(n as i64))
            }
            "attend" => {
                let mut args =
                    self.args(name, &["q", "k", "v", "mask", "scores", "scale", "sinks", "softmax"], given, span)?;
                let (q, k, v) = (
                    self.need_tensor(&mut args, 0, place)?,
                    self.need_tensor(&mut args, 1, place)?,
                    self.need_tensor(&mut args, 2, place)?,
                );
                let rest: Vec<Option<Value>> = args.values.into_iter().skip(3).map(|g| g.map(|g| g.value)).collect();
                self.attend(q, k, v, rest, span).map(Value::Tensor)
            }
            "mix" => self.mix(given, span, place),
            "scan" => self.scan(given, span, place),
            "zeros" => self.zeros(given, span).map(Value::Tensor),
            "unfold" | "stack" | "sequence" | "first" | "last" => self.across(name, given, span, place),
            _ => self.shaping(name, given, span, place),
        }
    }

    /// What the description itself calls an error: a message; the value that it is about, with the place that it comes from; what is
    /// known instead. What the library says is shown where the card led there.
    fn raised(&mut self, given: Vec<Given>, span: Span) -> Eval {
        let mut args = self.args("error", &["message", "value", "known"], given, span)?;
        let mut text = match self.need(&mut args, 0)?.value {
            Value::Str(s) => s.to_string(),
            other => other.show(),
        };
        let (value, known) = (args.values[1].take().map(|g| g.value), args.values[2].take().map(|g| g.value));
        if let Some(value) = &value {
            text = format!("{text}: {}", value.show());
        }
        if let Some(Value::Str(s)) = &value
            && let Some((_, origin)) = self.origins.iter().find(|(known, _)| Arc::ptr_eq(known, s))
        {
            text = format!("{text}, {origin}");
        }
        let known: Vec<String> = match &known {
            Some(Value::List(items)) => {
                let word = |v: &Value| if let Value::Str(s) = v { s.to_string() } else { v.show() };
                items.iter().map(word).collect()
            }
            _ => Vec::new(),
        };
        let close = match &value {
            Some(Value::Str(s)) => did_you_mean(s, known.iter().map(String::as_str)).map(|close| format!("{close} ")),
            _ => None,
        };
        let help = format!("{}known are {}", close.unwrap_or_default(), known.join(", "));
        let led_here = self.calls.iter().rev().find(|call| call.source >= self.first_card).copied();
        let d = match led_here.filter(|_| span.source < self.first_card) {
            Some(call) => {
                Diagnostic::new(Code::Raised, text, call).label("expanded from here").other(span, "raised here")
            }
            None => Diagnostic::new(Code::Raised, text, span).label("raised here"),
        };
        Err(self.report(d.maybe_help((!known.is_empty()).then_some(help))))
    }

    /// A list of sizes as it is, and a size so many times.
    fn each(&mut self, given: Vec<Given>, span: Span) -> Eval {
        let mut args = self.args("each", &["x", "n"], given, span)?;
        let x = self.need(&mut args, 0)?;
        let n = usize::try_from(self.need_size(&mut args, 1)?).unwrap_or(usize::MAX);
        match x.value {
            Value::List(items) if items.len() == n => Ok(Value::List(items)),
            Value::List(items) => {
                let message = format!("a list of {} where {n} are needed", items.len());
                self.fail(Code::WrongType, x.span, message, format!("expected one value, or {n}"))
            }
            one => {
                self.check_list(n, span)?;
                self.nested(Value::List(std::rc::Rc::new(vec![one; n])), span)
            }
        }
    }

    /// A function of sizes.
    fn of_sizes(&mut self, name: &'static str, given: Vec<Given>, span: Span) -> Eval {
        let values: Vec<Value> = match given.as_slice() {
            [Given { value: Value::List(items), .. }] if matches!(name, "sum" | "min" | "max" | "mean") => {
                items.to_vec()
            }
            _ => given.into_iter().map(|g| g.value).collect(),
        };
        let Some(numbers) = values.iter().map(super::arith::number).collect::<Option<Vec<f64>>>() else {
            let kinds: Vec<&str> = values.iter().map(Value::kind).collect();
            return self.fail(
                Code::WrongType,
                span,
                format!("`{name}` of {}", kinds.join(" and ")),
                "expected numbers or tensors",
            );
        };
        let integers = values.iter().all(|v| matches!(v, Value::Int(_)));
        let result = match (name, numbers.as_slice()) {
            ("sum", n) => n.iter().sum(),
            ("mean", n) if !n.is_empty() => return self.finite(n.iter().sum::<f64>() / n.len() as f64, span),
            ("min", n) if !n.is_empty() => n.iter().copied().fold(f64::INFINITY, f64::min),
            ("max", n) if !n.is_empty() => n.iter().copied().fold(f64::NEG_INFINITY, f64::max),
            ("abs", [x]) => x.abs(),
            ("floor", [x]) => return Ok(Value::Int(x.floor() as i64)),
            ("ceil", [x]) => return Ok(Value::Int(x.ceil() as i64)),
            ("int", [x]) => return Ok(Value::Int(*x as i64)),
            ("float", [x]) => return Ok(Value::Float(*x)),
            ("exp", [x]) => return self.finite(x.exp(), span),
            ("log", [x]) => return self.finite(x.ln(), span),
            ("sqrt", [x]) => return self.finite(x.sqrt(), span),
            ("sin", [x]) => return self.finite(x.sin(), span),
            ("cos", [x]) => return self.finite(x.cos(), span),
            ("tanh", [x]) => return self.finite(x.tanh(), span),
            ("normal_quantile", [p]) if *p > 0.0 && *p < 1.0 => return self.finite(normal_quantile(*p), span),
            ("normal_quantile", [p]) => {
                return self.fail(
                    Code::Arithmetic,
                    span,
                    format!("no quantile of {p}"),
                    "expected a share between 0 and 1",
                );
            }
            _ => {
                return self.fail(
                    Code::WrongType,
                    span,
                    format!("`{name}` of {} values", numbers.len()),
                    "expected another number of values",
                );
            }
        };
        if integers { Ok(Value::Int(result as i64)) } else { self.finite(result, span) }
    }

    fn finite(&mut self, value: f64, span: Span) -> Eval {
        if value.is_finite() {
            Ok(Value::Float(value))
        } else {
            self.fail(Code::Arithmetic, span, format!("the result is {value}"), "no result")
        }
    }
}

/// What a number drawn from the standard normal distribution is below with probability `p`, between 0 and 1.
fn normal_quantile(p: f64) -> f64 {
    // Bisection on the distribution's function, which is exact in its tails; 64 halvings of 80 are below the last bit.
    let (mut low, mut high) = (-40.0_f64, 40.0_f64);
    for _ in 0..64 {
        let middle = 0.5 * (low + high);
        let below = 0.5 * libm::erfc(-middle * std::f64::consts::FRAC_1_SQRT_2);
        if below < p {
            low = middle;
        } else {
            high = middle;
        }
    }
    0.5 * (low + high)
}

#[cfg(test)]
mod tests {
    use super::normal_quantile;
    use crate::arch::testing::{codes, model};
    use crate::diagnostic::Code;

    #[test]
    fn quantiles_of_the_normal_distribution() {
        // Abramowitz and Stegun, table 26.5.
        for (p, x) in [
            (0.5, 0.0),
            (0.95, 1.644_853_626_951_472_7),
            (0.975, 1.959_963_984_540_054),
            (1.0e-6, -4.753_424_308_822_899),
        ] {
            assert!((normal_quantile(p) - x).abs() < 1.0e-12, "{p}: {}", normal_quantile(p));
        }
        for p in ["0", "1.0", "-3", "2"] {
            assert_eq!(
                codes(&format!("a = normal_quantile({p})\nmodel(x: f32[tokens, 4]) {{ return {{y: a * x}} }}")),
                [Code::Arithmetic]
            );
        }
    }

    #[test]
    fn one_size_or_a_list_of_them() {
        let output = |size: &str| {
            let wiring = format!(
                "all = each({size}, 3)\nmodel(x: f32[tokens, 4]) {{ return {{y: join(x * all[1], x * index(all[2]))}} }}"
            );
            codes(&wiring)
        };
        assert_eq!(output("4"), []);
        assert_eq!(output("[1, 2, 4]"), []);
        assert_eq!(output("[1, 2]"), [Code::WrongType]);
        let made = model(
            "all = each('a', 2)\nmodel(x: f32[tokens, 4]) { return {y: if all == ['a', 'a'] then x else 2 * x} }",
        );
        assert_eq!(made.arch.outputs.len(), 1);
    }
}
