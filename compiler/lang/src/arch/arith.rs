//! Arithmetic: on sizes at once, on tensors as operations, on positions as expressions to be placed later.

use std::rc::Rc;

use super::expand::{Eval, Expander, Failed};
use super::value::{Axis, AxisName, Frame, ParamRef, Place, Sym, Tensor, Value};
use crate::diagnostic::{Code, Diagnostic, Span};
use crate::graph::{DType, Dim};
use crate::ops::{BinaryOp, Core, UnaryOp};
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
            return Ok(Value::Sym(Rc::new(Sym::Unary(op, sym))));
        }
        let tensor = self.tensor(value, span, place.frame.as_deref())?;
        self.unary_tensor(op, tensor, span).map(Value::Tensor)
    }

    pub(super) fn unary_tensor(&mut self, op: UnaryOp, tensor: Tensor, span: Span) -> Eval<Tensor> {
        let tensor = match op {
            UnaryOp::Not if tensor.dtype != DType::Bool => {
                return self.fail(Code::WrongType, span, "`not` of numbers", "expected a tensor of booleans");
            }
            UnaryOp::Not | UnaryOp::Neg | UnaryOp::Abs | UnaryOp::Floor => tensor,
            _ => self.cast(tensor, DType::F32, span)?,
        };
        let (dtype, axes) = (tensor.dtype, tensor.axes.clone());
        self.emit(Core::Unary(op), &[&tensor], dtype, axes, span)
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
        let over_positions = [&a, &b].into_iter().any(|v| matches!(v, Value::Sym(_)));
        let has_tensor = [&a, &b].into_iter().any(|v| matches!(v, Value::Tensor(_) | Value::Param(_) | Value::List(_)));
        let placed = [&a, &b].into_iter().all(|v| !matches!(v, Value::Sym(s) if !s.only_q_pos()));
        if over_positions && !(has_tensor && placed && place.frame.is_some()) {
            let (a, b) = (self.sym(a, span, place)?, self.sym(b, span, place)?);
            return Ok(Value::Sym(Rc::new(Sym::Binary(op, a, b))));
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

    /// A binary operation on tensors: axes aligned by name, dtypes made alike.
    pub(super) fn binary_tensors(&mut self, op: BinaryOp, a: Tensor, b: Tensor, span: Span) -> Eval<Tensor> {
        use BinaryOp as B;
        let both = |t: DType| a.dtype == t && b.dtype == t;
        let (operands, result) = match op {
            B::And | B::Or if both(DType::Bool) => (DType::Bool, DType::Bool),
            B::And | B::Or => {
                return self.fail(
                    Code::WrongType,
                    span,
                    format!("`{}` of numbers", if op == B::And { "and" } else { "or" }),
                    "expected booleans",
                );
            }
            B::Eq | B::Ne if both(DType::Bool) => (DType::Bool, DType::Bool),
            _ if a.dtype == DType::Bool || b.dtype == DType::Bool => {
                let d = Diagnostic::new(Code::WrongType, "arithmetic on booleans", span)
                    .label("expected numbers")
                    .help("choose numbers with `where(condition, a, b)`");
                return Err(self.report(d));
            }
            B::Eq | B::Ne | B::Lt | B::Le | B::Gt | B::Ge => {
                (if both(DType::I64) { DType::I64 } else { DType::F32 }, DType::Bool)
            }
            B::Div | B::Pow => (DType::F32, DType::F32),
            _ if both(DType::I64) => (DType::I64, DType::I64),
            _ => (DType::F32, DType::F32),
        };
        let a = self.cast(a, operands, span)?;
        let b = self.cast(b, operands, span)?;
        let (tensors, axes) = self.align(&[a, b], span)?;
        self.emit(Core::Binary(op), &[&tensors[0], &tensors[1]], result, axes, span)
    }

    /// `where(condition, a, b)`.
    pub(super) fn select(&mut self, condition: Value, a: Value, b: Value, span: Span, place: &Place) -> Eval {
        if let Value::Bool(c) = condition {
            return Ok(if c { a } else { b });
        }
        if [&condition, &a, &b].into_iter().any(|v| matches!(v, Value::Sym(_))) {
            let (c, a, b) = (self.sym(condition, span, place)?, self.sym(a, span, place)?, self.sym(b, span, place)?);
            return Ok(Value::Sym(Rc::new(Sym::Select(c, a, b))));
        }
        let frame = place.frame.as_deref();
        let (c, a, b) =
            (self.tensor(condition, span, frame)?, self.tensor(a, span, frame)?, self.tensor(b, span, frame)?);
        self.select_tensors(c, a, b, span).map(Value::Tensor)
    }

    pub(super) fn select_tensors(&mut self, c: Tensor, a: Tensor, b: Tensor, span: Span) -> Eval<Tensor> {
        if c.dtype != DType::Bool {
            return self.fail(Code::WrongType, span, "a condition of numbers", "expected booleans");
        }
        let dtype = if a.dtype == b.dtype { a.dtype } else { DType::F32 };
        let (a, b) = (self.cast(a, dtype, span)?, self.cast(b, dtype, span)?);
        let (t, axes) = self.align(&[c, a, b], span)?;
        self.emit(Core::Select, &[&t[0], &t[1], &t[2]], dtype, axes, span)
    }

    /// The tensors with dimensions inserted and ordered so that broadcasting by position does what names say, and the axes of the result.
    pub(super) fn align(&mut self, tensors: &[Tensor], span: Span) -> Eval<(Vec<Tensor>, Vec<Axis>)> {
        let longest = tensors.iter().max_by_key(|t| t.axes.len()).map(|t| t.axes.clone()).unwrap_or_default();
        let mut axes = longest;
        for axis in tensors.iter().flat_map(|t| t.axes.iter().copied()) {
            match axes.iter_mut().find(|a| a.name == axis.name) {
                Some(known) if known.size == axis.size || axis.is_one() => {}
                Some(known) if known.is_one() => known.size = axis.size,
                Some(known) => {
                    let message =
                        format!("an axis of {} meets one of {}", self.show_dim(known.size), self.show_dim(axis.size));
                    let shapes: Vec<String> = tensors.iter().map(|t| self.show_shape(&t.axes)).collect();
                    return self.fail(
                        Code::AxisMismatch,
                        span,
                        message,
                        format!("the shapes are {}", shapes.join(" and ")),
                    );
                }
                None => {
                    let at = axes.iter().position(|a| a.name > axis.name).unwrap_or(axes.len());
                    axes.insert(at, axis);
                }
            }
        }
        let aligned = tensors.iter().map(|t| self.place_axes(t, &axes, span)).collect::<Eval<Vec<_>>>()?;
        Ok((aligned, axes))
    }

    /// The tensor with its axes in the order of `axes`, and a dimension of 1 for each that it lacks behind its first.
    pub(super) fn place_axes(&mut self, tensor: &Tensor, axes: &[Axis], span: Span) -> Eval<Tensor> {
        let order: Vec<usize> = axes.iter().filter_map(|a| tensor.axes.iter().position(|t| t.name == a.name)).collect();
        let mut tensor = tensor.clone();
        if order.windows(2).any(|w| w[0] > w[1]) {
            let permuted = order.iter().map(|&i| tensor.axes[i]).collect();
            let dtype = tensor.dtype;
            tensor = self.emit(Core::Transpose { perm: order }, &[&tensor], dtype, permuted, span)?;
        }
        let first = axes.iter().position(|a| tensor.axis(a.name).is_some()).unwrap_or(axes.len());
        let wanted: Vec<Axis> =
            axes[first..].iter().map(|a| tensor.axis(a.name).unwrap_or(Axis::new(a.name, Dim::Fixed(1)))).collect();
        if wanted.len() == tensor.axes.len() {
            return Ok(tensor);
        }
        let dtype = tensor.dtype;
        self.emit(Core::Reshape, &[&tensor], dtype, wanted, span)
    }

    pub(super) fn cast(&mut self, tensor: Tensor, dtype: DType, span: Span) -> Eval<Tensor> {
        if tensor.dtype == dtype {
            return Ok(tensor);
        }
        let axes = tensor.axes.clone();
        self.emit(Core::Cast, &[&tensor], dtype, axes, span)
    }

    pub(super) fn constant(&mut self, values: Vec<f64>, dtype: DType, axes: Vec<Axis>, span: Span) -> Eval<Tensor> {
        self.emit(Core::Const { values }, &[], dtype, axes, span)
    }

    /// Any value as a tensor of the graph being built. A list of numbers is a constant, rounded to f32.
    pub(super) fn tensor(&mut self, value: Value, span: Span, frame: Option<&Frame>) -> Eval<Tensor> {
        match value {
            Value::Tensor(t) => Ok(t),
            Value::Param(p) => self.param(&p, span),
            Value::Int(v) => self.constant(vec![v as f64], DType::F32, Vec::new(), span),
            Value::Float(v) => self.constant(vec![v], DType::F32, Vec::new(), span),
            Value::Bool(b) => self.constant(vec![f64::from(u8::from(b))], DType::Bool, Vec::new(), span),
            Value::List(items) if !items.is_empty() && items.iter().all(|i| number(i).is_some()) => {
                let values: Vec<f64> = items.iter().filter_map(number).map(|v| f64::from(v as f32)).collect();
                let axis = Axis::new(AxisName::Width, Dim::Fixed(values.len() as u64));
                self.constant(values, DType::F32, vec![axis], span)
            }
            Value::Sym(sym) => self.place_in_body(&sym, span, frame),
            Value::NewParam(_) => {
                let d = Diagnostic::new(Code::WrongType, "a parameter without a name", span)
                    .label("used here")
                    .help("bind it first: `weight = param[..]`; its name is its path");
                Err(self.report(d))
            }
            other => self.fail(
                Code::WrongType,
                span,
                format!("a tensor is needed, not {}", other.kind()),
                "expected a tensor",
            ),
        }
    }

    /// A parameter as a tensor; its first use makes it one of the model's.
    pub(super) fn param(&mut self, p: &Rc<ParamRef>, span: Span) -> Eval<Tensor> {
        let order = self.params.len();
        match self.params.get(&p.path) {
            None => {
                self.params.insert(p.path.clone(), super::expand::Used { dims: p.dims.clone(), owner: p.owner, order });
            }
            Some(used) if used.owner != p.owner => {
                return self.fail(
                    Code::DuplicateParameter,
                    span,
                    format!("two instances have a parameter `{}`", p.path),
                    "used here",
                );
            }
            Some(used) if used.dims != p.dims => {
                let message = format!("`{}` was {:?} at first and would be {:?} here", p.path, used.dims, p.dims);
                let d = Diagnostic::new(Code::WidthChanged, message, span)
                    .label("applied to another width")
                    .help("an instance applied again shares its parameters; make a second instance for another width");
                return Err(self.report(d));
            }
            Some(_) => {}
        }
        let n = p.dims.len();
        let axes = p
            .dims
            .iter()
            .enumerate()
            .map(|(i, d)| {
                let name = if i + 1 == n {
                    AxisName::Width
                } else if i + 2 == n {
                    AxisName::Rows
                } else {
                    AxisName::Other(i)
                };
                Axis::new(name, Dim::Fixed(*d))
            })
            .collect();
        let path = self.builders.relative(&p.path);
        self.emit(Core::Weight { path }, &[], DType::F32, axes, span)
    }

    /// A value as part of an expression over positions.
    pub(super) fn sym(&mut self, value: Value, span: Span, place: &Place) -> Eval<Rc<Sym>> {
        Ok(match value {
            Value::Sym(s) => s,
            Value::Int(v) => Rc::new(Sym::Int(v)),
            Value::Float(v) => Rc::new(Sym::Float(v)),
            Value::Bool(b) => Rc::new(Sym::Bool(b)),
            other => Rc::new(Sym::Tensor(self.tensor(other, span, place.frame.as_deref())?)),
        })
    }

    /// An expression over `q_pos` as a tensor over the tokens of the body's first input.
    fn place_in_body(&mut self, sym: &Sym, span: Span, frame: Option<&Frame>) -> Eval<Tensor> {
        let Some(axis) = frame.and_then(|f| f.tokens) else {
            return self.fail(Code::Misplaced, span, "positions of no tokens", "no input here has a token axis");
        };
        self.place_sym(sym, span, &mut |this, leaf| match leaf {
            Sym::QPos => this.positions(axis, span),
            Sym::Tensor(t) => Ok(t.clone()),
            _ => {
                let d = Diagnostic::new(
                    Code::Misplaced,
                    "`k_pos`, `head` and `score` mean something in attention only",
                    span,
                )
                .label("used outside a mask or a score");
                Err(this.report(d.help("give the expression to `attend`, as its mask or its scores")))
            }
        })
    }

    /// The position of each element of an axis.
    pub(super) fn positions(&mut self, axis: Axis, span: Span) -> Eval<Tensor> {
        let op = if matches!(axis.size, Dim::Fixed(_)) { Core::Index } else { Core::Position };
        self.emit(op, &[], DType::I64, vec![axis], span)
    }

    /// An expression over positions as operations; `leaf` gives the positions.
    pub(super) fn place_sym(
        &mut self,
        sym: &Sym,
        span: Span,
        leaf: &mut dyn FnMut(&mut Self, &Sym) -> Eval<Tensor>,
    ) -> Eval<Tensor> {
        match sym {
            Sym::Int(v) => self.constant(vec![*v as f64], DType::I64, Vec::new(), span),
            Sym::Float(v) => self.constant(vec![*v], DType::F32, Vec::new(), span),
            Sym::Bool(b) => self.constant(vec![f64::from(u8::from(*b))], DType::Bool, Vec::new(), span),
            Sym::Unary(op, a) => {
                let a = self.place_sym(a, span, leaf)?;
                self.unary_tensor(*op, a, span)
            }
            Sym::Binary(op, a, b) => {
                let a = self.place_sym(a, span, leaf)?;
                let b = self.place_sym(b, span, leaf)?;
                self.binary_tensors(*op, a, b, span)
            }
            Sym::Select(c, a, b) => {
                let c = self.place_sym(c, span, leaf)?;
                let a = self.place_sym(a, span, leaf)?;
                let b = self.place_sym(b, span, leaf)?;
                self.select_tensors(c, a, b, span)
            }
            Sym::QPos | Sym::KPos | Sym::Head | Sym::Score | Sym::Tensor(_) => leaf(self, sym),
        }
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
            return Ok(Value::List(Rc::new(x.iter().chain(y.iter()).cloned().collect())));
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

    pub(super) fn show_dim(&self, dim: Dim) -> String {
        let name = |axis: crate::graph::AxisId| self.axes.get(axis.0).map_or("?", String::as_str);
        match dim {
            Dim::Fixed(n) => n.to_string(),
            Dim::Axis(a) => name(a).to_string(),
            Dim::Visible(a) => format!("visible({})", name(a)),
            Dim::Rows(a) => format!("rows({})", name(a)),
        }
    }

    pub(super) fn show_shape(&self, axes: &[Axis]) -> String {
        let shown: Vec<String> = axes.iter().map(|a| self.show_dim(a.size)).collect();
        format!("[{}]", shown.join(", "))
    }
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
