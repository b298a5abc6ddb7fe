//! The known functions that give tensors another shape, or pick, reduce or keep their elements.

use std::rc::Rc;

use super::calls::Given;
use super::expand::{Eval, Expander};
use super::instances;
use super::symbolic::Sym;
use super::value::{Axis, AxisName, Place, Tensor, Value};
use crate::diagnostic::{Code, Diagnostic, Span};
use crate::graph::{AxisId, DType, Dim};
use crate::ops::{BinaryOp, Core, ReduceOp};

impl Expander {
    pub(super) fn shaping(&mut self, name: &'static str, given: Vec<Given>, span: Span, place: &Place) -> Eval {
        match name {
            "join" => {
                let mut tensors = Vec::new();
                for g in given {
                    tensors.push(self.tensor(g.value, g.span, place.frame.as_deref())?);
                }
                self.join_last(tensors, span).map(Value::Tensor)
            }
            "einsum" => {
                let mut args = self.args(name, &["spec", "a", "b"], given, span)?;
                let spec = self.need(&mut args, 0)?;
                let (a, b) = (self.need_tensor(&mut args, 1, place)?, self.need_tensor(&mut args, 2, place)?);
                match spec.value {
                    Value::Str(s) => self.einsum(&s, a, b, spec.span).map(Value::Tensor),
                    other => self.fail(
                        Code::WrongType,
                        spec.span,
                        format!("an einsum is written as a string, not {}", other.kind()),
                        "expected a string",
                    ),
                }
            }
            "cache" => {
                let mut args = self.args(name, &["x"], given, span)?;
                let given = self.need(&mut args, 0)?;
                let label = given.written.clone().or_else(|| place.binds.clone());
                let x = self.tensor(given.value, given.span, place.frame.as_deref())?;
                self.cache(x, label.as_deref(), span).map(Value::Tensor)
            }
            "split" => {
                let mut args = self.args(name, &["x", "heads"], given, span)?;
                let (x, n) = (self.need_tensor(&mut args, 0, place)?, self.need_size(&mut args, 1)?);
                let (last, width) = self.last(&x, span)?;
                if width % n != 0 {
                    return self.fail(
                        Code::AxisMismatch,
                        span,
                        format!("a width of {width} cannot be split into {n}"),
                        "not divisible",
                    );
                }
                let mut axes = x.axes.clone();
                let free = [AxisName::Heads, AxisName::Rows].into_iter().find(|name| x.axis(*name).is_none());
                let heads = free.unwrap_or_else(|| self.other_axis());
                axes[last] = Axis::new(heads, Dim::Fixed(n));
                axes.push(Axis::new(AxisName::Width, Dim::Fixed(width / n)));
                let dtype = x.dtype;
                self.emit(Core::Reshape, &[&x], dtype, axes, span).map(Value::Tensor)
            }
            "merge" => {
                let mut args = self.args(name, &["x"], given, span)?;
                let x = self.need_tensor(&mut args, 0, place)?;
                match x.axes.as_slice() {
                    [rest @ .., Axis { size: Dim::Fixed(a), name }, Axis { size: Dim::Fixed(b), .. }]
                        if *name != AxisName::Experts =>
                    {
                        let mut axes = rest.to_vec();
                        axes.push(Axis::new(AxisName::Width, Dim::Fixed(a * b)));
                        self.emit(Core::Reshape, &[&x], x.dtype, axes, span).map(Value::Tensor)
                    }
                    axes => {
                        let shape = self.show_shape(axes);
                        self.fail(
                            Code::AxisMismatch,
                            span,
                            format!("the last two axes of {shape} cannot be merged"),
                            "expected two fixed axes",
                        )
                    }
                }
            }
            "parts" => {
                let mut args = self.args(name, &["x", "widths"], given, span)?;
                let x = self.need_tensor(&mut args, 0, place)?;
                let widths = self.need(&mut args, 1)?;
                self.parts(&x, &widths, span)
            }
            "repeat" => {
                let mut args = self.args(name, &["x", "times"], given, span)?;
                let (x, times) = (self.need_tensor(&mut args, 0, place)?, self.need_size(&mut args, 1)?);
                let Some(dim) = x.axes.iter().position(|a| a.name == AxisName::Heads) else {
                    return self.fail(
                        Code::AxisMismatch,
                        span,
                        "`repeat` acts on heads, and there are none",
                        "expected the result of `split`",
                    );
                };
                let mut axes = x.axes.clone();
                if let Dim::Fixed(n) = &mut axes[dim].size {
                    *n = n.saturating_mul(times);
                }
                self.emit(Core::Repeat { dim, times }, &[&x], x.dtype, axes, span).map(Value::Tensor)
            }
            "gather" => {
                let mut args = self.args(name, &["table", "indices", "second", "third"], given, span)?;
                let table = self.need_tensor(&mut args, 0, place)?;
                let first = self.need(&mut args, 1)?;
                let indices = std::iter::once(first).chain(args.values.drain(2..).flatten()).collect();
                self.gather_at(table, indices, span, place)
            }
            "take" => {
                let mut args = self.args(name, &["x", "indices"], given, span)?;
                let x = self.need_tensor(&mut args, 0, place)?;
                let indices = self.need(&mut args, 1)?;
                let kept = x.axes.iter().any(|a| matches!(a.name, AxisName::Visible(_)));
                let waits = match &indices.value {
                    Value::Sym(sym) => kept || !sym.only_q_pos(),
                    Value::Int(_) => kept,
                    _ => false,
                };
                if waits {
                    let index = self.sym(indices.value, indices.span, place)?;
                    return self.positional(Sym::Take(x, index), span);
                }
                let indices = self.tensor(indices.value, indices.span, place.frame.as_deref())?;
                let (a, b) = (x.axes.split_last(), indices.axes.split_last());
                match (a, b) {
                    (Some((_, a)), Some((_, b))) if a == b && indices.dtype == DType::I64 => {
                        let axes = indices.axes.clone();
                        self.emit(Core::Take, &[&x, &indices], x.dtype, axes, span).map(Value::Tensor)
                    }
                    _ => {
                        let (a, b) = (self.show_shape(&x.axes), self.show_shape(&indices.axes));
                        self.fail(
                            Code::AxisMismatch,
                            span,
                            format!("`take` from {a} at {b}"),
                            "expected integer indices with the same leading axes",
                        )
                    }
                }
            }
            "top_k" => {
                let mut args = self.args(name, &["x", "k"], given, span)?;
                let (x, k) = (self.need_tensor(&mut args, 0, place)?, self.need_size(&mut args, 1)?);
                let (last, width) = self.last(&x, span)?;
                if k > width {
                    return self.fail(
                        Code::AxisMismatch,
                        span,
                        format!("the {k} largest of {width}"),
                        "more than there are",
                    );
                }
                let mut axes = x.axes.clone();
                axes[last] = Axis::new(AxisName::Chosen, Dim::Fixed(k));
                self.emit(Core::TopK { k }, &[&x], DType::I64, axes, span).map(Value::Tensor)
            }
            "softmax" => {
                let mut args = self.args(name, &["x"], given, span)?;
                let x = self.need_tensor(&mut args, 0, place)?;
                let x = self.cast(x, DType::F32, span)?;
                let axes = x.axes.clone();
                self.emit(Core::Softmax, &[&x], DType::F32, axes, span).map(Value::Tensor)
            }
            "index" => {
                let mut args = self.args(name, &["n"], given, span)?;
                let n = self.need_size(&mut args, 0)?;
                self.positions(Axis::new(AxisName::Width, Dim::Fixed(n)), span).map(Value::Tensor)
            }
            "transpose" => {
                let mut args = self.args(name, &["x"], given, span)?;
                let x = self.need_tensor(&mut args, 0, place)?;
                let n = x.axes.len();
                let fixed = |a: &Axis| matches!(a.size, Dim::Fixed(_)) && a.name != AxisName::Experts;
                if n < 2 || !x.axes[n - 2..].iter().all(fixed) {
                    let shape = self.show_shape(&x.axes);
                    return self.fail(
                        Code::AxisMismatch,
                        span,
                        format!("the last two axes of {shape} cannot be exchanged"),
                        "expected two fixed axes",
                    );
                }
                let mut axes = x.axes.clone();
                (axes[n - 2].size, axes[n - 1].size) = (axes[n - 1].size, axes[n - 2].size);
                let perm = (0..n - 2).chain([n - 1, n - 2]).collect();
                self.emit(Core::Transpose { perm }, &[&x], x.dtype, axes, span).map(Value::Tensor)
            }
            "int" | "float" => {
                let mut args = self.args(name, &["x"], given, span)?;
                let x = self.need(&mut args, 0)?;
                let dtype = if name == "int" { DType::I64 } else { DType::F32 };
                if let Value::Sym(sym) = &x.value
                    && !sym.only_q_pos()
                {
                    return self.positional(Sym::Cast(dtype, Rc::clone(sym)), span);
                }
                let x = self.tensor(x.value, x.span, place.frame.as_deref())?;
                self.cast(x, dtype, span).map(Value::Tensor)
            }
            "reduce" | "sum" | "mean" | "argmax" => {
                let names: &[&str] = if name == "reduce" { &["x", "how"] } else { &["x"] };
                let mut args = self.args(name, names, given, span)?;
                let x = self.need_tensor(&mut args, 0, place)?;
                let how = match (name, args.values.get_mut(1).and_then(Option::take)) {
                    ("reduce", Some(Given { value: Value::Str(s), .. })) => s.to_string(),
                    (_, None) if name != "reduce" => name.to_string(),
                    _ => {
                        return self.fail(
                            Code::WrongType,
                            span,
                            "`reduce` needs to know how",
                            "expected 'sum', 'mean', 'max', 'min' or 'argmax'",
                        );
                    }
                };
                self.reduce(&how, x, span).map(Value::Tensor)
            }
            _ => self.fail(Code::WrongType, span, format!("`{name}` of these values"), "expected other arguments"),
        }
    }

    fn reduce(&mut self, how: &str, x: Tensor, span: Span) -> Eval<Tensor> {
        let op = match how {
            "sum" => ReduceOp::Sum,
            "mean" => ReduceOp::Mean,
            "max" => ReduceOp::Max,
            "min" => ReduceOp::Min,
            "argmax" => ReduceOp::ArgMax,
            other => {
                return self.fail(
                    Code::WrongType,
                    span,
                    format!("no reduction '{other}'"),
                    "expected 'sum', 'mean', 'max', 'min' or 'argmax'",
                );
            }
        };
        let (last, _) = self.last(&x, span)?;
        if matches!(x.axes[last].size, Dim::Visible(_)) {
            return self.misread_cache("reduced over all tokens kept", span);
        }
        let x = if op == ReduceOp::Mean { self.cast(x, DType::F32, span)? } else { x };
        let mut axes = x.axes.clone();
        axes[last].size = Dim::Fixed(1);
        let dtype = if op == ReduceOp::ArgMax { DType::I64 } else { x.dtype };
        self.emit(Core::Reduce(op), &[&x], dtype, axes, span)
    }

    /// `gather` as written: over the positions of attention it waits for its place.
    fn gather_at(&mut self, table: Tensor, indices: Vec<Given>, span: Span, place: &Place) -> Eval {
        if indices.iter().any(|i| matches!(&i.value, Value::Sym(sym) if !sym.only_q_pos())) {
            let fixed = table.axes.iter().all(|a| matches!(a.size, Dim::Fixed(_)));
            if !fixed || indices.len() != table.axes.len() {
                let shape = self.show_shape(&table.axes);
                return self.fail(
                    Code::AxisMismatch,
                    span,
                    format!("{} indices over positions for a table of shape {shape}", indices.len()),
                    "expected fixed axes and an index for each",
                );
            }
            let indices = indices.into_iter().map(|i| self.sym(i.value, i.span, place)).collect::<Eval<_>>()?;
            return self.positional(Sym::Gather(table, indices), span);
        }
        let mut placed = Vec::with_capacity(indices.len());
        for index in indices {
            placed.push(match index.value {
                Value::Int(i) => self.constant(vec![i as f64], DType::I64, Vec::new(), index.span)?,
                other => self.tensor(other, index.span, place.frame.as_deref())?,
            });
        }
        self.gather(table, placed, span).map(Value::Tensor)
    }

    /// What lies in a table at indices, one for each of its first axes.
    pub(super) fn gather(&mut self, table: Tensor, indices: Vec<Tensor>, span: Span) -> Eval<Tensor> {
        let n = indices.len();
        let sizes = table.axes.get(..n).map(|axes| axes.iter().map(|a| a.size.fixed()).collect::<Vec<_>>());
        let Some(sizes) = sizes.filter(|s| n == 1 || s.iter().all(Option::is_some)) else {
            let shape = self.show_shape(&table.axes);
            return self.fail(
                Code::AxisMismatch,
                span,
                format!("{n} indices of a table of shape {shape}"),
                "expected one for each of its first axes, which are fixed",
            );
        };
        if table.of_experts {
            let d =
                Diagnostic::new(Code::Misplaced, "a table of an expert", span).label("each token would read another");
            return Err(self.report(d.help("look up before the experts, in a table that they share")));
        }
        if indices.iter().any(|i| i.dtype != DType::I64) {
            return self.fail(Code::WrongType, span, "`gather` needs a table and integers", "expected i64 indices");
        }
        let mut indices = indices.into_iter();
        let Some(mut index) = indices.next() else {
            return self.fail(Code::WrongType, span, "`gather` without an index", "expected i64 indices");
        };
        let mut rows = table.clone();
        if n > 1 {
            for (next, size) in indices.zip(sizes.iter().flatten().skip(1)) {
                let size = self.constant(vec![*size as f64], DType::I64, Vec::new(), span)?;
                index = self.binary_tensors(BinaryOp::Mul, index, size, span)?;
                index = self.binary_tensors(BinaryOp::Add, index, next, span)?;
            }
            let all = sizes.iter().flatten().product();
            let axes =
                std::iter::once(Axis::new(AxisName::Rows, Dim::Fixed(all))).chain(table.axes[n..].iter().copied());
            rows = self.emit(Core::Reshape, &[&table], table.dtype, axes.collect(), span)?;
        }
        let axes = index.axes.iter().chain(&rows.axes[1..]).copied().collect();
        self.emit(Core::Gather, &[&rows, &index], rows.dtype, axes, span)
    }

    fn parts(&mut self, x: &Tensor, widths: &Given, span: Span) -> Eval {
        let (dim, width) = self.last(x, span)?;
        let Value::List(items) = &widths.value else {
            return self.fail(
                Code::WrongType,
                widths.span,
                format!("widths are a list, not {}", widths.value.kind()),
                "expected a list",
            );
        };
        let sizes = items.iter().map(|i| self.size(i, widths.span)).collect::<Eval<Vec<_>>>()?;
        let total: u64 = sizes.iter().sum();
        if total != width {
            return self.fail(
                Code::AxisMismatch,
                span,
                format!("parts of {sizes:?} make {total}, and the width is {width}"),
                "not the whole",
            );
        }
        let mut start = 0;
        let mut parts = Vec::new();
        for size in sizes {
            let mut axes = x.axes.clone();
            axes[dim].size = Dim::Fixed(size);
            let part = if size == width {
                x.clone()
            } else {
                self.emit(Core::Slice { dim, start }, &[x], x.dtype, axes, span)?
            };
            parts.push(Value::Tensor(part));
            start += size;
        }
        Ok(Value::Tuple(Rc::new(parts)))
    }

    fn join_last(&mut self, tensors: Vec<Tensor>, span: Span) -> Eval<Tensor> {
        let Some(first) = tensors.first() else {
            return self.fail(Code::WrongType, span, "`join` of nothing", "expected tensors");
        };
        let (dim, _) = self.last(first, span)?;
        let mut width = 0;
        for tensor in &tensors {
            if tensor.axes.len() != first.axes.len()
                || tensor.axes[..dim] != first.axes[..dim]
                || tensor.dtype != first.dtype
            {
                let shapes: Vec<String> = tensors.iter().map(|t| self.show_shape(&t.axes)).collect();
                return self.fail(
                    Code::AxisMismatch,
                    span,
                    "`join` needs the same axes but for the last",
                    format!("the shapes are {}", shapes.join(" and ")),
                );
            }
            width += self.last(tensor, span)?.1;
        }
        let mut axes = first.axes.clone();
        axes[dim] = Axis::new(AxisName::Width, Dim::Fixed(width));
        let dtype = first.dtype;
        self.emit(Core::Concat { dim }, &tensors.iter().collect::<Vec<_>>(), dtype, axes, span)
    }

    /// What is kept of each token, under a path of its own.
    fn cache(&mut self, x: Tensor, label: Option<&str>, span: Span) -> Eval<Tensor> {
        let Some(Axis { name: AxisName::Ragged(axis), .. }) = x.axes.first().copied() else {
            let shape = self.show_shape(&x.axes);
            return self.fail(
                Code::AxisMismatch,
                span,
                format!("`cache` keeps values per token, not {shape}"),
                "expected a first axis of tokens",
            );
        };
        let path = self.kept_path(label);
        let mut axes = x.axes.clone();
        axes[0] = Axis::new(AxisName::Visible(axis), Dim::Visible(AxisId(axis)));
        let kept = self.emit(Core::Cache { path }, &[&x], x.dtype, axes, span)?;
        Ok(Tensor { uncached: Some(Rc::new(x)), ..kept })
    }

    /// The path of something kept under a name, as the top graph says it: each is another.
    pub(super) fn kept_path(&mut self, label: Option<&str>) -> String {
        // What is kept belongs to where it is used: an instance shared by several bodies keeps values for each of them.
        let body = self.builders.top().base.clone();
        let inside = self.path == body || self.path.starts_with(&format!("{body}.")) || body.is_empty();
        let owner = if inside { self.path.clone() } else { instances::join(&body, &self.path) };
        let base = instances::join(&owner, label.unwrap_or("cache"));
        let path = (0..)
            .map(|i| if i == 0 { base.clone() } else { format!("{base}~{i}") })
            .find(|p| !self.caches.contains(p))
            .unwrap_or(base);
        self.caches.insert(path.clone());
        self.builders.relative(&path)
    }

    pub(super) fn other_axis(&mut self) -> AxisName {
        self.n_axes += 1;
        AxisName::Other(self.n_axes)
    }
}

#[cfg(test)]
mod tests {
    use crate::arch::testing::{codes, model};
    use crate::diagnostic::Code;

    #[test]
    fn caches_are_named_after_what_they_keep() {
        let wiring = "keep(x) {\n  k = split(x, 2)\n  kept = cache(k * 2)\n  return merge(attend(k, cache(k), kept, k_pos <= q_pos))\n}\n\
                      model(x: f32[tokens, 8]) {\n  layers = [keep for i in 0..2]\n  return {y: layers(keep(x))}\n}";
        let paths: Vec<String> = model(wiring).arch.caches.into_iter().map(|(p, _)| p).collect();
        assert_eq!(paths, ["keep.kept", "keep.k", "layers.0.kept", "layers.0.k", "layers.1.kept", "layers.1.k"]);
    }

    #[test]
    fn a_shared_instance_keeps_values_for_each_body() {
        let wiring = "keep(x) { k = split(x, 2) return merge(attend(k, cache(k), cache(k), k_pos <= q_pos)) }\n\
                      model(x: f32[tokens, 8]) { shared = keep layer(x) { return shared(x) } layers = [layer for i in 0..2] return {y: layers(x)} }";
        let made = model(wiring);
        let paths: Vec<&str> = made.arch.caches.iter().map(|(p, _)| p.as_str()).collect();
        assert_eq!(paths, ["layers.0.shared.k", "layers.0.shared.k~1", "layers.1.shared.k", "layers.1.shared.k~1"]);
        assert_eq!(made.program.graphs.len(), 2);
    }

    #[test]
    fn shapes_that_do_not_fit() {
        let code = |e: &str| codes(&format!("model(x: f32[tokens, 6], n: i64[tokens]) {{ return {{y: {e}}} }}"));
        for expression in [
            "split(x, 4)",
            "merge(x)",
            "merge(n)",
            "width(n)",
            "parts(x, [1, 2])",
            "join(x, split(x, 2))",
            "repeat(x, 2)",
            "transpose(x)",
            "top_k(x, 7)",
            "take(x, n)",
            "cache(index(4))",
        ] {
            assert_eq!(code(expression), [Code::AxisMismatch], "{expression}");
        }
        assert_eq!(code("gather(index(4), n, n)"), [Code::AxisMismatch]);
        for expression in ["gather(x, x)", "reduce(x, 'most')", "reduce(x)", "join()", "parts(x, 3)"] {
            assert_eq!(code(expression), [Code::WrongType], "{expression}");
        }
        assert_eq!(code("repeat(repeat(split(x, 2), 1099511627775), 1099511627775)"), [Code::TooLarge]);
    }
}
