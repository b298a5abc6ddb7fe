//! The known functions that cross from one axis to another: windows of an image, its parts as the elements of a sequence, and one element
//! of a sequence for all of it.
//!
//! What there is one of in a sequence (an image, a label) has the axis `sequence`, of which every sequence has one element; a model's input without
//! a ragged axis has it. `sequence(x, 'patches')` makes the rows of such a value an axis of its own, whose number of elements is known.

use super::calls::Given;
use super::expand::{Eval, Expander};
use super::value::{Axis, AxisName, Place, Tensor, Value};
use crate::diagnostic::{Code, Diagnostic, Span};
use crate::graph::{AxisId, Dim, Program, Type, ValueId};
use crate::ops::Core;

/// The axis of what there is one of in a sequence.
const EACH: &str = "sequence";

impl Expander {
    pub(super) fn across(&mut self, name: &'static str, given: Vec<Given>, span: Span, place: &Place) -> Eval {
        match name {
            "unfold" => {
                let mut args = self.args(name, &["x", "kernel", "stride", "padding"], given, span)?;
                let x = self.need_tensor(&mut args, 0, place)?;
                let kernel = self.need(&mut args, 1)?;
                let kernel = self.sizes_of(&kernel, 1)?;
                let [stride, padding] = [(2, 1), (3, 0)].map(|(i, otherwise)| match args.values[i].take() {
                    Some(given) if !matches!(given.value, Value::None) => self.sizes_of(&given, otherwise),
                    _ => Ok(vec![otherwise; kernel.len()]),
                });
                self.unfold(x, &kernel, &stride?, &padding?, span).map(Value::Tensor)
            }
            "stack" => {
                let mut tensors = Vec::new();
                for g in given {
                    tensors.push(self.tensor(g.value, g.span, place.frame.as_deref())?);
                }
                self.stack(tensors, span).map(Value::Tensor)
            }
            "sequence" => {
                let mut args = self.args(name, &["x", "name"], given, span)?;
                let x = self.need_tensor(&mut args, 0, place)?;
                let named = match args.values[1].take().map(|g| (g.value, g.span)) {
                    None => ("tokens".to_string(), span),
                    Some((Value::Str(s), at)) => (s.to_string(), at),
                    Some((other, at)) => {
                        let message = format!("the name of an axis is a string, not {}", other.kind());
                        return self.fail(Code::WrongType, at, message, "expected a string");
                    }
                };
                self.sequence(x, named, span).map(Value::Tensor)
            }
            _ => {
                let mut args = self.args(name, &["x"], given, span)?;
                let x = self.need_tensor(&mut args, 0, place)?;
                let op = if name == "last" { Core::Last } else { Core::First };
                self.end(op, x, span).map(Value::Tensor)
            }
        }
    }

    /// A list of sizes, each at least `least`.
    fn sizes_of(&mut self, given: &Given, least: u64) -> Eval<Vec<u64>> {
        let Value::List(items) = &given.value else {
            let message = format!("sizes of windows are a list, not {}", given.value.kind());
            return self.fail(Code::WrongType, given.span, message, "expected a list, one size an axis");
        };
        items
            .iter()
            .map(|item| match item {
                Value::Int(0) if least == 0 => Ok(0),
                item => self.size(item, given.span),
            })
            .collect()
    }

    /// Windows over the last axes: `x [.., C, n..]` -> `[.., windows, C * kernel..]`, the last axis of windows fastest.
    fn unfold(&mut self, x: Tensor, kernel: &[u64], stride: &[u64], padding: &[u64], span: Span) -> Eval<Tensor> {
        let k = kernel.len();
        let shape = self.show_shape(&x.axes);
        let fits = k > 0 && stride.len() == k && padding.len() == k && x.axes.len() > k;
        let lead = x.axes.len().saturating_sub(k + 1);
        if !fits || x.axes[lead..].iter().any(|a| a.size.is_ragged()) {
            let d = Diagnostic::new(Code::AxisMismatch, format!("windows of {k} axes of {shape}"), span)
                .label("expected channels and as many fixed axes behind them as the kernel has sizes");
            return Err(self.report(d.help("strides and paddings have one size for each of the kernel's")));
        }
        let mut t = x;
        for (i, &pad) in padding.iter().enumerate().filter(|(_, pad)| **pad > 0) {
            t = self.pad(t, lead + 1 + i, pad, span)?;
        }
        let (axes, channels) = (t.axes[..lead].to_vec(), t.axes[lead]);
        let (mut windows, mut elements) = (Vec::new(), fixed(channels));
        for i in 0..k {
            let dim = lead + 1 + 2 * i;
            let n = fixed(t.axes[dim]);
            if kernel[i] > n {
                let message = format!("a window of {} elements of an axis of {n}", kernel[i]);
                return self.fail(Code::AxisMismatch, span, message, "larger than the axis");
            }
            windows.push((n - kernel[i]) / stride[i] + 1);
            elements = elements.saturating_mul(kernel[i]);
            let mut axes = t.axes.clone();
            axes[dim] = Axis::new(self.other_axis(), Dim::Fixed(windows[i]));
            axes.insert(dim + 1, Axis::new(self.other_axis(), Dim::Fixed(kernel[i])));
            let op = Core::Windows { dim, size: kernel[i], stride: stride[i] };
            t = self.emit(op, &[&t], t.dtype, axes, span)?;
        }
        let perm: Vec<usize> = (0..lead)
            .chain((0..k).map(|i| lead + 1 + 2 * i))
            .chain([lead])
            .chain((0..k).map(|i| lead + 2 + 2 * i))
            .collect();
        let permuted = perm.iter().map(|p| t.axes[*p]).collect();
        let t = self.emit(Core::Transpose { perm }, &[&t], t.dtype, permuted, span)?;
        let count = windows.iter().copied().fold(1, u64::saturating_mul);
        let result = [Axis::new(AxisName::Rows, Dim::Fixed(count)), Axis::new(AxisName::Width, Dim::Fixed(elements))];
        self.emit(Core::Reshape, &[&t], t.dtype, [axes, result.to_vec()].concat(), span)
    }

    /// Zeros on both sides of an axis.
    fn pad(&mut self, x: Tensor, dim: usize, n: u64, span: Span) -> Eval<Tensor> {
        let mut side = x.axes.clone();
        side[dim].size = Dim::Fixed(n);
        let zero = self.constant(vec![0.0], x.dtype, Vec::new(), span)?;
        let zeros = self.emit(Core::Broadcast, &[&zero], x.dtype, side, span)?;
        let mut axes = x.axes.clone();
        axes[dim].size = Dim::Fixed(fixed(x.axes[dim]).saturating_add(2 * n));
        self.emit(Core::Concat { dim }, &[&zeros, &x, &zeros], x.dtype, axes, span)
    }

    /// Rows one after another; what is the same for every sequence is repeated where another part is not.
    fn stack(&mut self, tensors: Vec<Tensor>, span: Span) -> Eval<Tensor> {
        let longest = tensors.iter().max_by_key(|t| t.axes.len()).cloned();
        let Some(longest) = longest.filter(|t| t.axes.len() >= 2) else {
            return self.fail(Code::AxisMismatch, span, "`stack` of what has no rows", "expected tensors of two axes");
        };
        let n = longest.axes.len();
        let lead = &longest.axes[..n - 2];
        let (mut rows, mut parts) = (0u64, Vec::new());
        for t in &tensors {
            let own = t.axes.len().saturating_sub(2);
            let fits = t.axes.len() >= 2
                && t.dtype == longest.dtype
                && t.axes[t.axes.len() - 1].size == longest.axes[n - 1].size
                && !t.axes[own].size.is_ragged()
                && lead.ends_with(&t.axes[..own]);
            if !fits {
                let shapes: Vec<String> = tensors.iter().map(|t| self.show_shape(&t.axes)).collect();
                let label = format!("the shapes are {}", shapes.join(" and "));
                return self.fail(Code::AxisMismatch, span, "`stack` needs the same axes but for the rows", label);
            }
            rows = rows.saturating_add(fixed(t.axes[own]));
            let axes = [lead, &[Axis::new(AxisName::Rows, t.axes[own].size), longest.axes[n - 1]]].concat();
            parts.push(if own == lead.len() {
                t.clone()
            } else {
                self.emit(Core::Broadcast, &[t], t.dtype, axes, span)?
            });
        }
        let axes = [lead, &[Axis::new(AxisName::Rows, Dim::Fixed(rows)), longest.axes[n - 1]]].concat();
        self.emit(Core::Concat { dim: n - 2 }, &parts.iter().collect::<Vec<_>>(), longest.dtype, axes, span)
    }

    /// The rows of what there is one of in a sequence, as the elements of an axis. What is the same for every sequence is repeated.
    fn sequence(&mut self, x: Tensor, (name, at): (String, Span), span: Span) -> Eval<Tensor> {
        let x = if x.axes.len() >= 2 && x.axes.iter().all(|a| !a.size.is_ragged()) {
            let axes = [&[self.each_sequence(span)?], &x.axes[..]].concat();
            self.emit(Core::Broadcast, &[&x], x.dtype, axes, span)?
        } else {
            x
        };
        let parts = match x.axes.as_slice() {
            [Axis { name: AxisName::Ragged(a), .. }, Axis { size: Dim::Fixed(n), .. }, rest @ ..] => {
                self.extents[*a].and_then(|extent| extent.checked_mul(*n)).map(|extent| (extent, rest.to_vec()))
            }
            _ => None,
        };
        let Some((extent, rest)) = parts else {
            let shape = self.show_shape(&x.axes);
            let d = Diagnostic::new(Code::AxisMismatch, format!("the rows of {shape} are no sequence"), span)
                .label("expected what there is one of in a sequence, with rows");
            return Err(self.report(d.help("an input without a ragged axis is such a value, and what is made of it")));
        };
        let id = self.axis_of(&name, extent, at)?;
        let axes = [vec![Axis::new(AxisName::Ragged(id), Dim::Axis(AxisId(id)))], rest].concat();
        self.emit(Core::Regroup, &[&x], x.dtype, axes, span)
    }

    /// The first or the last element of each sequence.
    fn end(&mut self, op: Core, x: Tensor, span: Span) -> Eval<Tensor> {
        if !matches!(x.axes.first(), Some(Axis { name: AxisName::Ragged(_), .. })) {
            let shape = self.show_shape(&x.axes);
            let message = format!("the {} of {shape}", op.name());
            return self.fail(Code::AxisMismatch, span, message, "expected a first axis of tokens");
        }
        let mut axes = x.axes.clone();
        axes[0] = self.each_sequence(span)?;
        self.emit(op, &[&x], x.dtype, axes, span)
    }

    /// The axis of what there is one of in a sequence.
    pub(super) fn each_sequence(&mut self, span: Span) -> Eval<Axis> {
        let id = self.axis_of(EACH, 1, span)?;
        Ok(Axis::new(AxisName::Ragged(id), Dim::Axis(AxisId(id))))
    }

    /// The axis of that name, of which every sequence has `extent` elements.
    fn axis_of(&mut self, name: &str, extent: u64, span: Span) -> Eval<usize> {
        match self.axes.iter().position(|a| a == name) {
            Some(id) if self.extents[id] == Some(extent) => Ok(id),
            Some(id) => {
                let known = self.extents[id].map_or("as many as a step gives".to_string(), |n| n.to_string());
                let message = format!("a sequence would have {extent} `{name}`, and it has {known}");
                self.fail(Code::AxisMismatch, span, message, "another number of elements for the same name")
            }
            None => Ok(self.ragged_axis(name, Some(extent))),
        }
    }

    /// A new ragged axis; `extent` where every sequence has that many elements.
    pub(super) fn ragged_axis(&mut self, name: &str, extent: Option<u64>) -> usize {
        self.axes.push(name.to_string());
        self.extents.push(extent);
        self.axes.len() - 1
    }

    /// The axis of a tensor's tokens: ragged, and of more than one element a sequence.
    pub(super) fn tokens_of(&self, tensor: &Tensor) -> Option<Axis> {
        let is_tokens = |a: &&Axis| match a.name {
            AxisName::Ragged(id) => self.extents[id] != Some(1),
            AxisName::Visible(_) => true,
            _ => false,
        };
        tensor.axes.iter().find(is_tokens).copied()
    }
}

fn fixed(axis: Axis) -> u64 {
    axis.size.fixed().unwrap_or(1)
}

/// The program with the axes of one element a sequence behind the others: the first axis is that of the tokens.
pub(super) fn tokens_first(mut program: Program) -> Program {
    let mut order: Vec<usize> = (0..program.axes.len()).collect();
    order.sort_by_key(|i| program.extent(AxisId(*i)) == Some(1));
    if order.is_sorted() {
        return program;
    }
    let moved = |a: AxisId| AxisId(order.iter().position(|o| *o == a.0).unwrap_or(a.0));
    let renamed = |ty: &Type| {
        let dims = ty.dims.iter().map(|d| match d {
            Dim::Fixed(n) => Dim::Fixed(*n),
            Dim::Axis(a) => Dim::Axis(moved(*a)),
            Dim::Visible(a) => Dim::Visible(moved(*a)),
            Dim::Rows(a) => Dim::Rows(moved(*a)),
        });
        Type::new(ty.dtype, dims.collect::<Vec<_>>())
    };
    for graph in &mut program.graphs {
        for node in graph.topological() {
            for port in 0..graph.types(node).len() {
                let value = ValueId { node, port };
                let ty = renamed(graph.ty(value));
                graph.set_type(value, ty);
            }
        }
    }
    for input in &mut program.inputs {
        input.ty = renamed(&input.ty);
    }
    program.extents = order.iter().map(|i| program.extents.get(*i).copied().flatten()).collect();
    program.axes = order.iter().map(|i| program.axes[*i].clone()).collect();
    program
}

#[cfg(test)]
mod tests {
    use crate::arch::testing::{codes, model};
    use crate::diagnostic::Code;
    use crate::graph::verify::verify;

    /// An image of 2 channels, 5 by 4.
    fn output(body: &str) -> String {
        let made = model(&format!("model(x: f32[2, 5, 4]) {{ {body} }}"));
        verify(&made.program).unwrap_or_else(|e| panic!("{e}"));
        made.arch.outputs[0].1.clone()
    }

    #[test]
    fn windows_of_an_image() {
        for (call, ty) in [
            ("unfold(x, [2, 2])", "f32[sequence, 12, 8]"),
            ("unfold(x, [2, 2], [2, 2])", "f32[sequence, 4, 8]"),
            ("unfold(x, [3, 1], [2, 3], [1, 0])", "f32[sequence, 6, 6]"),
            ("unfold(x, [4])", "f32[sequence, 2, 1, 20]"),
        ] {
            assert_eq!(output(&format!("return {{y: {call}}}")), ty, "{call}");
        }
    }

    #[test]
    fn rows_become_a_sequence() {
        let body =
            "c = param[1, 8] t = sequence(stack(c, unfold(x, [2, 2], [2, 2])), 'patches') return {y: t, z: first(t)}";
        let made = model(&format!("model(x: f32[2, 5, 4]) {{ {body} }}"));
        verify(&made.program).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(made.arch.outputs[0].1, "f32[patches, 8]");
        assert_eq!(made.arch.outputs[1].1, "f32[sequence, 8]");
        assert_eq!(made.program.axes, ["patches", "sequence"], "what there is one of comes last");
        assert_eq!(made.program.extents, [Some(5), Some(1)]);
    }

    #[test]
    fn axes_that_do_not_fit() {
        let code = |e: &str| codes(&format!("model(x: f32[2, 5, 4], t: f32[tokens, 4]) {{ return {{y: {e}}} }}"));
        for expression in [
            "x * t",
            "unfold(x, [6, 1])",
            "unfold(x, [1, 1], [1])",
            "unfold(t, [2])",
            "unfold(x, [])",
            "stack(x, t)",
            "stack(t, t)",
            "sequence(t)",
            "sequence(x)",
            "first(index(4))",
        ] {
            assert_eq!(code(expression), [Code::AxisMismatch], "{expression}");
        }
        for expression in ["unfold(x, 2)", "sequence(x, 3)"] {
            assert_eq!(code(expression), [Code::WrongType], "{expression}");
        }
    }

    #[test]
    fn a_parameter_has_the_same_rows_in_every_sequence() {
        let body = "probes = param[3, 4] return {y: sequence(probes, 'probes')}";
        let made = model(&format!("model(x: f32[tokens, 4]) {{ {body} }}"));
        verify(&made.program).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(made.arch.outputs[0].1, "f32[probes, 4]");
        assert_eq!(made.program.axes, ["tokens", "probes", "sequence"]);
        assert_eq!(made.program.extents, [None, Some(3), Some(1)]);
    }

    #[test]
    fn a_first_token_is_one_a_sequence() {
        let made = model("model(x: f32[tokens, 8]) { return {y: x, z: first(x)} }");
        assert_eq!(made.arch.outputs[1].1, "f32[sequence, 8]");
        assert!(made.program.to_string().contains("axes [tokens, sequence = 1]"), "{}", made.program);
    }
}
