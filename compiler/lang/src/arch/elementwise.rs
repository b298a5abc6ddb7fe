//! Elementwise operations on tensors: axes aligned by name, element types made alike, values made tensors.

use std::rc::Rc;
use std::sync::Arc;

use super::arith::number;
use super::expand::{Eval, Expander, Used};
use super::value::{Axis, AxisName, Frame, ParamRef, Tensor, Value};
use crate::diagnostic::{Code, Diagnostic, Span};
use crate::graph::{DType, Dim};
use crate::ops::{BinaryOp, Core, UnaryOp};

impl Expander {
    pub(super) fn unary_tensor(&mut self, op: UnaryOp, tensor: Tensor, span: Span) -> Eval<Tensor> {
        let tensor = match op {
            UnaryOp::Not if tensor.dtype != DType::Bool => {
                return self.fail(Code::WrongType, span, "`not` of numbers", "expected a tensor of booleans");
            }
            UnaryOp::Not => tensor,
            _ if tensor.dtype == DType::Bool => {
                return self.fail(Code::WrongType, span, "arithmetic on booleans", "expected a tensor of numbers");
            }
            UnaryOp::Neg | UnaryOp::Abs | UnaryOp::Floor => tensor,
            _ => self.cast(tensor, DType::F32, span)?,
        };
        let (dtype, axes) = (tensor.dtype, tensor.axes.clone());
        self.emit(Core::Unary(op), &[&tensor], dtype, axes, span)
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
        let tensors = &rows_as_heads(tensors);
        let kept = |name| if let AxisName::Visible(axis) = name { Some(axis) } else { None };
        let all = || tensors.iter().flat_map(|t| t.axes.iter().map(|a| a.name));
        if all().filter_map(kept).any(|axis| all().any(|name| name == AxisName::Ragged(axis))) {
            let shapes: Vec<String> = tensors.iter().map(|t| self.show_shape(&t.axes)).collect();
            return self.misread_cache(format!("the shapes are {}", shapes.join(" and ")), span);
        }
        let each = |name| matches!(name, AxisName::Ragged(a) if self.extents[a] == Some(1));
        let tokens = |name| matches!(name, AxisName::Ragged(_)) && !each(name);
        if all().any(each) && all().any(tokens) {
            let shapes: Vec<String> = tensors.iter().map(|t| self.show_shape(&t.axes)).collect();
            let d = Diagnostic::new(Code::AxisMismatch, "what there is one of in a sequence meets its tokens", span)
                .label(format!("the shapes are {}", shapes.join(" and ")));
            return Err(
                self.report(d.help("`first(x)` is one token of a sequence, `sequence(x)` makes rows its tokens"))
            );
        }
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
                    let has_heads = |t: &Tensor| t.axis(AxisName::Heads).is_some();
                    let some = tensors.iter().any(has_heads) && !tensors.iter().all(has_heads);
                    let d = Diagnostic::new(Code::AxisMismatch, message, span)
                        .label(format!("the shapes are {}", shapes.join(" and ")));
                    return Err(self.report(d.maybe_help(some.then(|| {
                        "one of them has an axis of heads: `merge` makes one width of heads, `split(x, n)` makes heads".to_string()
                    }))));
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

    /// Reports what is kept of all tokens where the tokens of this step are needed.
    pub(super) fn misread_cache<T>(&mut self, label: impl Into<String>, span: Span) -> Eval<T> {
        let message = "what `cache` keeps is read by `attend` only";
        let d = Diagnostic::new(Code::AxisMismatch, message, span).label(label);
        Err(self.report(d.help("a cache holds every token so far, and a step computes its own tokens only")))
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
        let axes = param_axes(&p.dims);
        if let Some(stack) = self.stack_of(&p.path) {
            return self.chosen_param(&stack, &p.dims, axes, span);
        }
        self.use_param(&p.path, &p.dims, None, span)?;
        let path = self.builders.relative(&p.path);
        self.emit(Core::Weight { path }, &[], DType::F32, axes, span)
    }

    /// Makes a parameter one of the model's, at its first use.
    pub(super) fn use_param(&mut self, path: &str, dims: &[u64], stack: Option<&Arc<str>>, span: Span) -> Eval<()> {
        let order = self.params.len();
        match self.params.get_mut(path) {
            None => {
                let used = Used { dims: dims.to_vec(), order, stack: stack.cloned() };
                self.params.insert(path.to_owned(), used);
            }
            Some(used) if used.dims != dims => {
                let message = format!("`{path}` was {:?} at first and would be {dims:?} here", used.dims);
                let d = Diagnostic::new(Code::WidthChanged, message, span)
                    .label("applied to another width")
                    .help("an instance applied again shares its parameters; make a second instance for another width");
                return Err(self.report(d));
            }
            Some(used) => used.stack = used.stack.take().or_else(|| stack.cloned()),
        }
        Ok(())
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

/// The axes of a parameter: rows and a width last.
fn param_axes(dims: &[u64]) -> Vec<Axis> {
    let name = |i: usize| match dims.len() - i {
        1 => AxisName::Width,
        2 => AxisName::Rows,
        _ => AxisName::Other(i),
    };
    dims.iter().enumerate().map(|(i, d)| Axis::new(name(i), Dim::Fixed(*d))).collect()
}

/// The rows of a table that meets heads, and no rows, are one for each head.
fn rows_as_heads(tensors: &[Tensor]) -> Vec<Tensor> {
    let has = |t: &Tensor, name| t.axis(name).is_some();
    let only_heads = |t: &Tensor| has(t, AxisName::Heads) && !has(t, AxisName::Rows);
    let mut tensors = tensors.to_vec();
    if tensors.iter().any(only_heads) {
        for t in tensors.iter_mut().filter(|t| !has(t, AxisName::Heads)) {
            t.axes.iter_mut().filter(|a| a.name == AxisName::Rows).for_each(|a| a.name = AxisName::Heads);
        }
    }
    tensors
}

#[cfg(test)]
mod tests {
    use crate::arch::testing::{codes, model};
    use crate::diagnostic::Code;

    fn output(expression: &str) -> String {
        let wiring =
            format!("model(x: f32[tokens, 6], n: i64[tokens], s: f32[source, 6]) {{ return {{y: {expression}}} }}");
        model(&wiring).arch.outputs[0].1.clone()
    }

    #[test]
    fn axes_align_by_name() {
        for (expression, ty) in [
            ("x * n", "f32[tokens, 6]"),
            ("split(x, 2) * third(x)", "f32[tokens, 2, 3]"),
            ("split(x, 3) * n", "f32[tokens, 3, 2]"),
            ("n * split(x, 3)", "f32[tokens, 3, 2]"),
            ("x / sum(x)", "f32[tokens, 6]"),
            ("x + [1, 2, 3, 4, 5, 6]", "f32[tokens, 6]"),
            ("take(x, top_k(x, 2)) * x", "f32[tokens, 2, 6]"),
            ("n // 2", "i64[tokens]"),
            ("n / 2", "f32[tokens]"),
            ("n < 3 and not (x > 0)", "bool[tokens, 6]"),
            ("where(n == 1, x, 0)", "f32[tokens, 6]"),
            ("max(n, 3)", "i64[tokens]"),
            ("q_pos + n", "i64[tokens]"),
        ] {
            let wiring = format!(
                "third(t) {{ a, b = parts(t, [3, 3]) return a }}\n\
                 model(x: f32[tokens, 6], n: i64[tokens]) {{ return {{y: {expression}}} }}"
            );
            assert_eq!(model(&wiring).arch.outputs[0].1, ty, "{expression}");
        }
    }

    #[test]
    fn rows_of_a_table_meet_heads() {
        let of =
            |table: &str| format!("model(x: f32[tokens, 6]) {{ w = param[{table}] return {{y: split(x, 2) * w}} }}");
        assert_eq!(model(&of("2, 3")).arch.outputs[0].1, "f32[tokens, 2, 3]");
        assert_eq!(codes(&of("4, 3")), [Code::AxisMismatch]);
    }

    #[test]
    fn ragged_axes_of_two_names_make_a_product() {
        assert_eq!(output("sum(x) * sum(s)"), "f32[tokens, source, 1]");
    }

    #[test]
    fn axes_of_one_name_in_a_result_are_told_apart() {
        let wiring = "model(x: f32[tokens, 8]) { table = param[8, 8] return {y: x + gather(table, index(8))} }";
        assert_eq!(model(wiring).arch.outputs[0].1, "f32[tokens, 8, 8]");
    }

    #[test]
    fn axes_and_types_that_do_not_fit() {
        let code = |e: &str| codes(&format!("model(x: f32[tokens, 6], z: f32[tokens, 4]) {{ return {{y: {e}}} }}"));
        assert_eq!(code("x + z"), [Code::AxisMismatch]);
        assert_eq!(code("x and z"), [Code::WrongType]);
        assert_eq!(code("(x > 0) + 1"), [Code::WrongType]);
        assert_eq!(code("not x"), [Code::WrongType]);
        assert_eq!(code("-(x > 0)"), [Code::WrongType]);
        assert_eq!(code("exp(x > 0)"), [Code::WrongType]);
        assert_eq!(code("where(x, x, x)"), [Code::WrongType]);
        assert_eq!(code("x + 'a'"), [Code::WrongType]);
        assert_eq!(code("x * param[6]"), [Code::WrongType]);
    }
}
