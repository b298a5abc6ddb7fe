//! Arithmetic: on sizes at once, on tensors as operations, on positions as expressions to be placed later.

use std::rc::Rc;

use super::expand::{Eval, Expander, Failed};
use super::symbolic::Sym;
use super::value::{Axis, AxisName, Place, Tensor, Value};
use crate::diagnostic::{Code, Diagnostic, Span};
use crate::graph::DType;
use crate::ops::{BinaryOp, UnaryOp};
use crate::spec::ast::BinOp;

/// Whether two sizes are equal; an integer equals the float of its value.
pub(super) fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::None, Value::None) => true,
        (Value::Bool(a), Value::Bool(b)) => a == b,
        (Value::Str(a), Value::Str(b)) => a == b,
        (Value::Int(a), Value::Int(b)) => a == b,
        (Value::List(a), Value::List(b)) => a.len() == b.len() && a.iter().zip(b.iter()).all(|(a, b)| same(a, b)),
        _ => match (number(a), number(b)) {
            (Some(a), Some(b)) => a == b,
            _ => false,
        },
    }
}

/// The number a size is.
pub(super) fn number(value: &Value) -> Option<f64> {
    match value {
        Value::Int(v) => Some(*v as f64),
        Value::Float(v) => Some(*v),
        _ => None,
    }
}

fn tensor_op(op: BinOp) -> Option<BinaryOp> {
    Some(match op {
        BinOp::Add => BinaryOp::Add,
        BinOp::Sub => BinaryOp::Sub,
        BinOp::Mul => BinaryOp::Mul,
        BinOp::Div => BinaryOp::Div,
        BinOp::FloorDiv => BinaryOp::FloorDiv,
        BinOp::Rem => BinaryOp::Mod,
        BinOp::Pow => BinaryOp::Pow,
        BinOp::Eq => BinaryOp::Eq,
        BinOp::Ne => BinaryOp::Ne,
        BinOp::Lt => BinaryOp::Lt,
        BinOp::Le => BinaryOp::Le,
        BinOp::Gt => BinaryOp::Gt,
        BinOp::Ge => BinaryOp::Ge,
        BinOp::And => BinaryOp::And,
        BinOp::Or => BinaryOp::Or,
        BinOp::Coalesce | BinOp::In | BinOp::Range => return None,
    })
}

impl Expander {
    pub(super) fn not(&mut self, value: Value, span: Span, place: &Place) -> Eval {
        match value {
            Value::Bool(b) => Ok(Value::Bool(!b)),
            other if other.is_tensor_like() => self.unary(UnaryOp::Not, other, span, place),
            other => self.fail(Code::WrongType, span, format!("`not` of {}", other.kind()), "expected a boolean"),
        }
    }

    pub(super) fn neg(&mut self, value: Value, span: Span, place: &Place) -> Eval {
        match value {
            Value::Int(v) => Ok(Value::Int(-v)),
            Value::Float(v) => Ok(Value::Float(-v)),
            other if other.is_tensor_like() => self.unary(UnaryOp::Neg, other, span, place),
            other => self.fail(Code::WrongType, span, format!("`-` of {}", other.kind()), "expected a number"),
        }
    }

    /// A function of one tensor, or of an expression over positions.
    pub(super) fn unary(&mut self, op: UnaryOp, value: Value, span: Span, place: &Place) -> Eval {
        if let Value::Sym(sym) = value {
            return self.positional(Sym::Unary(op, sym), span);
        }
        let tensor = self.tensor(value, span, place.frame.as_deref())?;
        self.unary_tensor(op, tensor, span).map(Value::Tensor)
    }

    /// A binary operator on any two values.
    pub(super) fn binary(&mut self, op: BinOp, a: Value, b: Value, span: Span, place: &Place) -> Eval {
        if a.is_tensor_like() || b.is_tensor_like() {
            let Some(op) = tensor_op(op) else {
                return self.fail(Code::WrongType, span, format!("`{}` of tensors", op.symbol()), "expected sizes");
            };
            return self.binary_values(op, a, b, span, place);
        }
        self.sizes(op, &a, &b, span)
    }

    /// A binary operation of which at least one operand is a tensor or over positions.
    pub(super) fn binary_values(&mut self, op: BinaryOp, a: Value, b: Value, span: Span, place: &Place) -> Eval {
        // What changes nothing is not computed: `1 * x`, `x + 0`, `true and m`.
        match (op, &a, &b) {
            (BinaryOp::Mul, one, x) | (BinaryOp::Mul | BinaryOp::Div | BinaryOp::Pow, x, one)
                if number(one) == Some(1.0) && x.is_tensor_like() =>
            {
                return Ok(x.clone());
            }
            (BinaryOp::Add, zero, x) | (BinaryOp::Add | BinaryOp::Sub, x, zero)
                if number(zero) == Some(0.0) && x.is_tensor_like() =>
            {
                return Ok(x.clone());
            }
            (BinaryOp::And, Value::Bool(true), x) | (BinaryOp::And, x, Value::Bool(true)) => return Ok(x.clone()),
            (BinaryOp::Or, Value::Bool(false), x) | (BinaryOp::Or, x, Value::Bool(false)) => return Ok(x.clone()),
            (BinaryOp::And, Value::Bool(false), _) | (BinaryOp::And, _, Value::Bool(false)) => {
                return Ok(Value::Bool(false));
            }
            (BinaryOp::Or, Value::Bool(true), _) | (BinaryOp::Or, _, Value::Bool(true)) => {
                return Ok(Value::Bool(true));
            }
            _ => {}
        }
        // What queries bring and what is kept of keys meet in attention only; a number kept of each key is for masks and scores.
        let apart = query_meets_key(&a, &b) || [&a, &b].into_iter().any(is_number_of_key);
        let over_positions = apart || [&a, &b].into_iter().any(|v| matches!(v, Value::Sym(_)));
        let has_tensor = [&a, &b].into_iter().any(|v| matches!(v, Value::Tensor(_) | Value::Param(_) | Value::List(_)));
        let placed = [&a, &b].into_iter().all(|v| !matches!(v, Value::Sym(s) if !s.only_q_pos()));
        if over_positions && (apart || !(has_tensor && placed && place.frame.is_some())) {
            let (a, b) = (self.sym(a, span, place)?, self.sym(b, span, place)?);
            return self.positional(Sym::Binary(op, a, b), span);
        }
        let integers = [&a, &b].into_iter().all(|v| match v {
            Value::Tensor(t) => t.dtype == DType::I64,
            Value::Sym(_) | Value::Int(_) => true,
            _ => false,
        });
        let a = self.operand(a, integers, span, place)?;
        let b = self.operand(b, integers, span, place)?;
        self.binary_tensors(op, a, b, span).map(Value::Tensor)
    }

    fn operand(&mut self, value: Value, integers: bool, span: Span, place: &Place) -> Eval<Tensor> {
        match value {
            Value::Int(v) if integers => self.constant(vec![v as f64], DType::I64, Vec::new(), span),
            other => self.tensor(other, span, place.frame.as_deref()),
        }
    }

    /// `where(condition, a, b)`.
    pub(super) fn select(&mut self, condition: Value, a: Value, b: Value, span: Span, place: &Place) -> Eval {
        if let Value::Bool(c) = condition {
            return Ok(if c { a } else { b });
        }
        if [&condition, &a, &b].into_iter().any(|v| matches!(v, Value::Sym(_))) {
            let (c, a, b) = (self.sym(condition, span, place)?, self.sym(a, span, place)?, self.sym(b, span, place)?);
            return self.positional(Sym::Select(c, a, b), span);
        }
        // An integer beside integers of a tensor is one of them: what is chosen is an index still.
        let integers = |v: &Value| matches!(v, Value::Tensor(t) if t.dtype == DType::I64);
        let integers = integers(&a) || integers(&b);
        let c = self.tensor(condition, span, place.frame.as_deref())?;
        let (a, b) = (self.operand(a, integers, span, place)?, self.operand(b, integers, span, place)?);
        self.select_tensors(c, a, b, span).map(Value::Tensor)
    }

    /// An operator on sizes.
    fn sizes(&mut self, op: BinOp, a: &Value, b: &Value, span: Span) -> Eval {
        if matches!(op, BinOp::Eq | BinOp::Ne) {
            let comparable = [a, b].into_iter().all(|v| {
                matches!(v, Value::Bool(_) | Value::Int(_) | Value::Float(_) | Value::Str(_) | Value::List(_))
            });
            if !comparable {
                let d = Diagnostic::new(
                    Code::WrongType,
                    format!("`{}` of {} and {}", op.symbol(), a.kind(), b.kind()),
                    span,
                )
                .label("expected sizes");
                return Err(self.report(d.help("an optional size is tested with `is none`, or replaced with `??`")));
            }
            return Ok(Value::Bool(same(a, b) == (op == BinOp::Eq)));
        }
        if let (Value::Bool(x), Value::Bool(y)) = (a, b) {
            match op {
                BinOp::And => return Ok(Value::Bool(*x && *y)),
                BinOp::Or => return Ok(Value::Bool(*x || *y)),
                _ => {}
            }
        }
        if let (BinOp::Add, Value::List(x), Value::List(y)) = (op, a, b) {
            self.check_list(x.len() + y.len(), span)?;
            return self.nested(Value::List(Rc::new(x.iter().chain(y.iter()).cloned().collect())), span);
        }
        let result = match (a, b) {
            (Value::Int(x), Value::Int(y)) => integers(op, *x, *y),
            _ => match (number(a), number(b)) {
                (Some(x), Some(y)) => floats(op, x, y),
                _ => {
                    let d = Diagnostic::new(
                        Code::WrongType,
                        format!("`{}` of {} and {}", op.symbol(), a.kind(), b.kind()),
                        span,
                    )
                    .label("expected numbers");
                    let optional = matches!(a, Value::None) || matches!(b, Value::None);
                    return Err(self
                        .report(d.maybe_help(optional.then(|| "an optional size is replaced with `??`".to_string()))));
                }
            },
        };
        result.map_err(|why| {
            self.fail::<()>(
                Code::Arithmetic,
                span,
                format!("{} {} {} {why}", a.show(), op.symbol(), b.show()),
                "no result",
            )
            .err()
            .unwrap_or(Failed)
        })
    }
}

/// Whether it is one number of each key: of everything kept of an axis.
fn is_number_of_key(v: &Value) -> bool {
    matches!(v, Value::Tensor(t) if matches!(t.axes[..], [Axis { name: AxisName::Visible(_), .. }]))
}

/// Whether one is of the new elements of an axis, and the other of everything kept of it.
fn query_meets_key(a: &Value, b: &Value) -> bool {
    let (Value::Tensor(a), Value::Tensor(b)) = (a, b) else { return false };
    let kept = |t: &Tensor, of: &Tensor| {
        let axis = |name| if let AxisName::Visible(axis) = name { Some(axis) } else { None };
        t.axes.iter().filter_map(|a| axis(a.name)).any(|axis| of.axis(AxisName::Ragged(axis)).is_some())
    };
    kept(a, b) || kept(b, a)
}

fn integers(op: BinOp, x: i64, y: i64) -> Result<Value, &'static str> {
    let checked = |v: Option<i64>| v.map(Value::Int).ok_or("is out of range");
    match op {
        BinOp::Add => checked(x.checked_add(y)),
        BinOp::Sub => checked(x.checked_sub(y)),
        BinOp::Mul => checked(x.checked_mul(y)),
        BinOp::Div | BinOp::FloorDiv | BinOp::Rem if y == 0 => Err("divides by zero"),
        BinOp::Div if x.checked_rem(y) != Some(0) => {
            Err("has a remainder: use `//` to round down, or a float to divide as real numbers")
        }
        BinOp::Div => checked(x.checked_div(y)),
        BinOp::FloorDiv => {
            checked(x.checked_div_euclid(y).map(|q| if y < 0 && x.rem_euclid(y) != 0 { q - 1 } else { q }))
        }
        BinOp::Rem => checked(x.checked_rem(y).map(|r| if r != 0 && (r < 0) != (y < 0) { r + y } else { r })),
        BinOp::Pow => match u32::try_from(y) {
            Ok(y) => checked(x.checked_pow(y)),
            Err(_) => floats(op, x as f64, y as f64),
        },
        BinOp::Lt => Ok(Value::Bool(x < y)),
        BinOp::Le => Ok(Value::Bool(x <= y)),
        BinOp::Gt => Ok(Value::Bool(x > y)),
        BinOp::Ge => Ok(Value::Bool(x >= y)),
        _ => Err("is no arithmetic"),
    }
}

fn floats(op: BinOp, x: f64, y: f64) -> Result<Value, &'static str> {
    let value = match op {
        BinOp::Add => x + y,
        BinOp::Sub => x - y,
        BinOp::Mul => x * y,
        BinOp::Div => x / y,
        BinOp::FloorDiv => (x / y).floor(),
        BinOp::Rem => x - y * (x / y).floor(),
        BinOp::Pow => x.powf(y),
        BinOp::Lt => return Ok(Value::Bool(x < y)),
        BinOp::Le => return Ok(Value::Bool(x <= y)),
        BinOp::Gt => return Ok(Value::Bool(x > y)),
        BinOp::Ge => return Ok(Value::Bool(x >= y)),
        _ => return Err("is no arithmetic"),
    };
    if value.is_finite() { Ok(Value::Float(value)) } else { Err("is not finite") }
}

#[cfg(test)]
mod tests {
    use crate::arch::testing::{codes, model};
    use crate::diagnostic::Code;

    /// The value of a size expression, as the shape of a parameter.
    fn size(expression: &str) -> u64 {
        let wiring = format!(
            "model(x: f32[tokens, 4]) {{ w = param[{expression}, 4] return {{y: einsum('ni,oi->no', x, w)}} }}"
        );
        model(&wiring).arch.parameters[0].shape[0]
    }

    #[test]
    fn sizes() {
        for (expression, value) in [
            ("7 // 2", 3),
            ("-7 // 2 + 10", 6),
            ("7 // -2 + 10", 6),
            ("-7 % 5", 3),
            ("12 / 4", 3),
            ("2 ^ 3 ^ 2", 512),
            ("int(4 ^ 0.5 + 0.5)", 2),
            ("int(7 / 2.0 * 2)", 7),
            ("none ?? 5", 5),
            ("if 1 == 1.0 and not ('a' == 'b') then 2 else 3", 2),
            ("if 3 in [1, 2, 3] then 2 else 3", 2),
            ("if [1, 2] == [1, 2] then 2 else 3", 2),
            ("len([1] + [2, 3])", 3),
            ("sum([i * i for i in 1..4])", 14),
            ("max([1, 9, 3]) - min(4, 5)", 5),
            ("[5, 6, 7][1]", 6),
            ("ceil(2.1) + floor(2.9)", 5),
        ] {
            assert_eq!(size(expression), value, "{expression}");
        }
    }

    #[test]
    fn sizes_without_a_value() {
        let code = |e: &str| codes(&format!("model(x: f32[tokens, 4]) {{ w = param[{e}, 4] return {{y: x * w}} }}"));
        for expression in
            ["7 / 2", "1 // 0", "9223372036854775807 + 1", "2 ^ 64", "log(0.0)", "[1, 2][2]", "len(0..-3)", "-3", "0"]
        {
            assert_eq!(code(expression), [Code::Arithmetic], "{expression}");
        }
        for expression in ["'a' + 1", "none + 1", "2.5", "len(3)", "if 1 then 2 else 3", "3 in 4", "not 3", "none == 1"]
        {
            assert_eq!(code(expression), [Code::WrongType], "{expression}");
        }
        assert_eq!(code("4611686018427387904"), [Code::Arithmetic]);
        assert_eq!(code("1099511627775, 1099511627775"), [Code::TooLarge]);
    }

    #[test]
    fn what_changes_nothing_is_not_computed() {
        let plain = model("model(x: f32[tokens, 4]) { return {y: x * 2} }").program.to_string();
        let same = model("model(x: f32[tokens, 4]) { return {y: 1 * ((x + 0) * 2) / 1.0 ^ 1} }").program.to_string();
        assert_eq!(plain, same);
    }
}
