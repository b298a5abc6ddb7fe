//! Sums of products in Einstein notation.

use super::expand::{Eval, Expander};
use super::value::{Axis, AxisName, Tensor};
use crate::diagnostic::{Code, Diagnostic, Span};
use crate::graph::DType;
use crate::ops::Core;

impl Expander {
    /// A sum of products in Einstein notation; `...` stands for the axes that are not named.
    pub(super) fn einsum(&mut self, spec: &str, a: Tensor, b: Tensor, span: Span) -> Eval<Tensor> {
        let a = self.cast(a, DType::F32, span)?;
        let b = self.cast(b, DType::F32, span)?;
        let text: String = spec.chars().filter(|c| !c.is_whitespace()).collect();
        let Some([left, right, result]) = split_spec(&text) else {
            let d = Diagnostic::new(Code::WrongType, format!("'{spec}' is no einsum of two tensors"), span)
                .label("expected 'labels, labels -> labels'");
            return Err(self.report(d.help("labels are lowercase letters, one an axis; `...` stands for the others")));
        };
        let mut free = "nmpqrstuvwxyzabcdefghijkl".chars().filter(|c| !text.contains(*c));
        let mut ellipsis: Option<String> = None;
        let mut labelled: Vec<(char, Axis)> = Vec::new();
        let mut operands = Vec::new();
        let written = [Self::written(&a), Self::written(&b)];
        for (labels, tensor) in [left, right].into_iter().zip(&written) {
            let named = labels.replace("...", "").len();
            let rest = tensor.axes.len().checked_sub(named).filter(|r| labels.contains("...") || *r == 0);
            let Some(rest) = rest else {
                let shape = self.show_shape(&tensor.axes);
                return self.fail(
                    Code::AxisMismatch,
                    span,
                    format!("'{labels}' does not fit a tensor of shape {shape}"),
                    "another number of axes",
                );
            };
            if labels.contains("...") && ellipsis.is_none() {
                ellipsis = Some(free.by_ref().take(rest).collect());
            }
            let labels = labels.replace("...", ellipsis.as_deref().unwrap_or(""));
            if labels.len() != tensor.axes.len() {
                return self.fail(
                    Code::AxisMismatch,
                    span,
                    format!("`...` stands for different axes in '{spec}'"),
                    "another number of axes",
                );
            }
            for (label, axis) in labels.chars().zip(&tensor.axes) {
                match labelled.iter().find(|(l, _)| *l == label) {
                    Some((_, known)) if known.size != axis.size => {
                        let (x, y) = (self.show_dim(known.size), self.show_dim(axis.size));
                        return self.fail(
                            Code::AxisMismatch,
                            span,
                            format!("`{label}` is an axis of {x} and of {y}"),
                            "the sizes differ",
                        );
                    }
                    Some(_) => {}
                    None => labelled.push((label, *axis)),
                }
            }
            operands.push(labels);
        }
        let mut result = result.replace("...", ellipsis.as_deref().unwrap_or(""));
        let labels = free.next().zip(free.next());
        self.label_unwritten([&a, &b], labels, &mut operands, &mut result, &mut labelled, span)?;
        let everywhere = format!("{}{}{result}", operands[0], operands[1]);
        if let Some(lone) = everywhere.chars().find(|c| everywhere.matches(*c).count() == 1 && !result.contains(*c)) {
            let label = if text.contains(lone) { lone.to_string() } else { "...".to_string() };
            let message = format!("`{label}` of '{spec}' is in one tensor and not in the result");
            let d = Diagnostic::new(Code::WrongType, message, span).label("summed over one tensor alone");
            return Err(self.report(d.help("a sum over one tensor is `sum`")));
        }
        let mut axes = Vec::new();
        for label in result.chars() {
            match labelled.iter().find(|(l, _)| *l == label) {
                Some((_, axis)) => axes.push(*axis),
                None => {
                    return self.fail(
                        Code::WrongType,
                        span,
                        format!("`{label}` of the result is in no operand"),
                        "unknown label",
                    );
                }
            }
        }
        let last = axes.len().saturating_sub(1);
        for (i, label) in result.chars().enumerate() {
            // Rows that `...` stands for stay rows.
            let passed = axes[i].name == AxisName::Rows && ellipsis.as_ref().is_some_and(|e| e.contains(label));
            if i == last && matches!(axes[i].name, AxisName::Heads | AxisName::Rows | AxisName::Other(_)) {
                axes[i].name = AxisName::Width;
            } else if i != last && !passed && matches!(axes[i].name, AxisName::Width | AxisName::Rows) {
                // What was a width and is none now makes heads, or rows of each head.
                let free = [AxisName::Heads, AxisName::Rows].into_iter().find(|n| axes.iter().all(|a| a.name != *n));
                axes[i].name = free.unwrap_or_else(|| self.other_axis());
            }
        }
        let spec = format!("{},{}->{result}", operands[0], operands[1]);
        self.emit(Core::Contract { spec }, &[&a, &b], DType::F32, axes, span)
    }
}

fn split_spec(text: &str) -> Option<[&str; 3]> {
    let (operands, result) = text.split_once("->")?;
    let (left, right) = operands.split_once(',')?;
    let valid = |s: &str| {
        let letters = s.replacen("...", "", 1);
        let unique = letters.chars().all(|c| letters.matches(c).count() == 1);
        unique && letters.chars().all(|c| c.is_ascii_lowercase())
    };
    [left, right, result].into_iter().all(valid).then_some([left, right, result])
}

#[cfg(test)]
mod tests {
    use crate::arch::testing::{codes, model};
    use crate::diagnostic::Code;

    #[test]
    fn einsums() {
        let output = |call: &str| {
            let wiring = format!("model(x: f32[tokens, 8]) {{ m = param[3, 8] return {{y: {call}}} }}");
            model(&wiring).arch.outputs[0].1.clone()
        };
        assert_eq!(output("einsum('...i, oi -> ...o', x, m)"), "f32[tokens, 3]");
        assert_eq!(output("einsum('...i, ti -> ...t', split(x, 1), m)"), "f32[tokens, 1, 3]");
        assert_eq!(output("einsum('ni, oi -> noi', x, m)"), "f32[tokens, 3, 8]");
        let code = |call: &str| codes(&format!("model(x: f32[tokens, 8]) {{ m = param[3, 8] return {{y: {call}}} }}"));
        assert_eq!(code("einsum('ni, io -> no', x, m)"), [Code::AxisMismatch]);
        assert_eq!(code("einsum('n, oi -> no', x, m)"), [Code::AxisMismatch]);
        assert_eq!(code("einsum('ni, oi -> nz', x, m)"), [Code::WrongType]);
        assert_eq!(code("einsum('ni, oi', x, m)"), [Code::WrongType]);
        assert_eq!(code("einsum('ni, oi -> n', x, m)"), [Code::WrongType]);
        assert_eq!(code("einsum('...i, oi -> o', x, m)"), [Code::WrongType]);
        assert_eq!(code("einsum('NI, oi -> o', x, m)"), [Code::WrongType]);
    }
}
