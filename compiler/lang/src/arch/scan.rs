//! `scan`: a step over one token at a time, whose states go from each token to the next.
//!
//! The step is expanded into a graph of its own, of one token. What it reads besides its inputs (parameters, constants of the body around it)
//! becomes a further operand of the scan, the same for all tokens.

use std::rc::Rc;
use std::sync::Arc;

use super::calls::Given;
use super::expand::{Eval, Expander};
use super::value::{Axis, AxisName, Place, Tensor, Value, dims};
use crate::diagnostic::{Code, Diagnostic, Span};
use crate::graph::{DType, Dim, Graph, NodeId, Origin, Type, ValueId};
use crate::ops::{Core, Op};

/// How a state begins.
enum Start {
    Tensor(Tensor),
    /// This in every element of whatever the step gives.
    Number(f64, DType),
}

/// A step expanded for states and values of some types.
struct Made {
    graph: Graph,
    /// Tensors around the step that are operands behind its values.
    captures: Vec<Tensor>,
    /// What the step gives: new states, then results.
    outputs: Vec<Tensor>,
    values: Vec<ValueId>,
}

impl Expander {
    /// `zeros(sizes..)`.
    pub(super) fn zeros(&mut self, given: Vec<Given>, span: Span) -> Eval<Tensor> {
        let sizes = given.iter().map(|g| self.size(&g.value, g.span)).collect::<Eval<Vec<u64>>>()?;
        self.check_elements(&sizes, span)?;
        let n = sizes.len();
        let named = |(i, size): (usize, &u64)| {
            let name = match (n - i, i) {
                (1, _) => AxisName::Width,
                (_, 0) => AxisName::Heads,
                (2, _) => AxisName::Rows,
                _ => AxisName::Other(i),
            };
            Axis::new(name, Dim::Fixed(*size))
        };
        let axes = sizes.iter().enumerate().map(named).collect();
        self.constant(vec![0.0], DType::F32, axes, span)
    }

    /// `scan(step, start, values..)`.
    pub(super) fn scan(&mut self, given: Vec<Given>, span: Span, place: &Place) -> Eval {
        let mut given = given.into_iter();
        let (Some(step), Some(start)) = (given.next(), given.next()) else {
            return self.fail(
                Code::MissingOption,
                span,
                "`scan` needs a step and a start",
                "expected `scan(step, start, x)`",
            );
        };
        let starts = match start.value {
            Value::List(items) => items.to_vec(),
            Value::Tuple(items) => items.to_vec(),
            one => vec![one],
        };
        let mut states = Vec::with_capacity(starts.len());
        for value in starts {
            states.push(match value {
                Value::Int(v) => Start::Number(v as f64, DType::I64),
                Value::Float(v) => Start::Number(v, DType::F32),
                other => Start::Tensor(self.tensor(other, start.span, place.frame.as_deref())?),
            });
        }
        let mut values = Vec::new();
        for g in given {
            values.push(self.tensor(g.value, g.span, place.frame.as_deref())?);
        }
        let tokens = self.tokens_of_values(&values, &states, span)?;
        // A state that begins with a number has the shape that the step gives it from the number alone.
        let mut types: Vec<(DType, Vec<Axis>)> = states
            .iter()
            .map(|s| match s {
                Start::Tensor(t) => (t.dtype, t.axes.clone()),
                Start::Number(_, dtype) => (*dtype, Vec::new()),
            })
            .collect();
        let mut made = self.step(&step, &types, &values, span, place)?;
        let inferred: Vec<(DType, Vec<Axis>)> = states
            .iter()
            .zip(&types)
            .zip(&made.outputs)
            .map(
                |((s, ty), new)| {
                    if matches!(s, Start::Number(..)) { (new.dtype, new.axes.clone()) } else { ty.clone() }
                },
            )
            .collect();
        if inferred != types {
            types = inferred;
            made = self.step(&step, &types, &values, span, place)?;
        }
        for ((dtype, axes), new) in types.iter().zip(&made.outputs) {
            if *dtype != new.dtype || dims(axes) != dims(&new.axes) {
                let shapes =
                    [(dtype, axes), (&new.dtype, &new.axes)].map(|(d, a)| format!("{d}{}", self.show_shape(a)));
                let message = format!("the step makes a state {} of one {}", shapes[1], shapes[0]);
                let d = Diagnostic::new(Code::AxisMismatch, message, step.span).label("the state changes its shape");
                return Err(self.report(d.help("`zeros(..)` as the start says which shape the state has")));
            }
        }
        let mut operands = Vec::new();
        for (start, (dtype, axes)) in states.into_iter().zip(&types) {
            operands.push(match start {
                Start::Tensor(t) => t,
                Start::Number(v, _) => self.constant(vec![v], *dtype, axes.clone(), span)?,
            });
        }
        let n_states = operands.len();
        operands.extend(values);
        let written = step.written.as_deref().unwrap_or("state");
        self.emit_scan(made, (n_states, tokens), operands, place.binds.as_deref().unwrap_or(written), span)
    }

    /// The axis of the values' tokens.
    fn tokens_of_values(&mut self, values: &[Tensor], states: &[Start], span: Span) -> Eval<Axis> {
        let ragged = |t: &Tensor| t.axes.iter().any(|a| a.size.is_ragged());
        for state in states {
            if let Start::Tensor(t) = state
                && ragged(t)
            {
                let shape = self.show_shape(&t.axes);
                return self.fail(
                    Code::AxisMismatch,
                    span,
                    format!("a state that begins with {shape}"),
                    "a state has no axis of tokens",
                );
            }
        }
        let first = values.iter().find(|t| ragged(t)).and_then(|t| t.axes.first()).copied();
        let Some(tokens @ Axis { name: AxisName::Ragged(_), .. }) = first else {
            return self.fail(
                Code::AxisMismatch,
                span,
                "a scan over no tokens",
                "expected a value whose first axis is of tokens",
            );
        };
        for value in values.iter().filter(|t| ragged(t)) {
            let fits = value.axes.first() == Some(&tokens) && value.axes[1..].iter().all(|a| !a.size.is_ragged());
            if !fits {
                let shape = self.show_shape(&value.axes);
                let message = format!("a value of shape {shape} in a scan over {}", self.show_dim(tokens.size));
                return self.fail(Code::AxisMismatch, span, message, "expected the same tokens first in all values");
            }
        }
        Ok(tokens)
    }

    /// The step, expanded for one token.
    fn step(
        &mut self,
        step: &Given,
        states: &[(DType, Vec<Axis>)],
        values: &[Tensor],
        span: Span,
        place: &Place,
    ) -> Eval<Made> {
        let base = self.builders.top().base.clone();
        self.builders.push("step", &base);
        let mut inner = Vec::new();
        for (i, (dtype, axes)) in states.iter().enumerate() {
            inner.push(self.builders.parameter(&format!("state{i}"), *dtype, axes.clone()));
        }
        for (i, value) in values.iter().enumerate() {
            let own = value.axes.iter().filter(|a| !a.size.is_ragged()).copied().collect();
            inner.push(self.builders.parameter(&format!("x{i}"), value.dtype, own));
        }
        let given = inner.into_iter().map(|t| Given::of(Value::Tensor(t), span)).collect();
        let around = (self.at, self.depth);
        let result = self.call(step.value.clone(), step.written.clone(), given, span, step.span, place);
        let result = result.and_then(|value| self.step_outputs(value, states.len(), step.span, place));
        (self.at, self.depth) = around;
        let (graph, captures) = self.builders.take();
        let (outputs, values) = result?;
        for capture in &captures {
            if capture.axes.iter().any(|a| a.size.is_ragged()) {
                let shape = self.show_shape(&capture.axes);
                let d = Diagnostic::new(
                    Code::Misplaced,
                    format!("a step reads {shape}, and it is of one token"),
                    step.span,
                )
                .label("reads what is around it");
                return Err(self
                    .report(d.help("give the tensor to `scan` behind the start: the step is given its token's part")));
            }
        }
        if let Some(op) = graph.nodes().map(|n| graph.op(n)).find(|op| !of_one_token(op)) {
            let message = format!("`{}` in the step of a scan", op.name());
            let d =
                Diagnostic::new(Code::Misplaced, message, step.span).label("a step sees one token and its state alone");
            return Err(self.report(d.help("compute it outside, and give it to `scan` behind the start")));
        }
        Ok(Made { graph, captures, outputs, values })
    }

    /// New states and results; the states where there are no others.
    fn step_outputs(
        &mut self,
        value: Value,
        n_states: usize,
        span: Span,
        place: &Place,
    ) -> Eval<(Vec<Tensor>, Vec<ValueId>)> {
        let items = match value {
            Value::Tuple(items) => items.to_vec(),
            one => vec![one],
        };
        let mut outputs =
            items.into_iter().map(|v| self.tensor(v, span, place.frame.as_deref())).collect::<Eval<Vec<_>>>()?;
        if outputs.len() < n_states {
            let message = format!("the step gives {} values for {n_states} states", outputs.len());
            return self.fail(Code::WrongType, span, message, "expected the new states first, then the results");
        }
        if outputs.len() == n_states {
            outputs.extend_from_within(..);
        }
        let values: Option<Vec<ValueId>> = outputs.iter().map(|t| self.builders.here(t)).collect();
        match values {
            Some(values) => Ok((outputs, values)),
            None => self.fail(Code::Misplaced, span, "a tensor of a body that is finished", "returned here"),
        }
    }

    fn emit_scan(
        &mut self,
        made: Made,
        (states, tokens): (usize, Axis),
        operands: Vec<Tensor>,
        label: &str,
        span: Span,
    ) -> Eval {
        self.count_operation(span)?;
        let (graph, weights) = closed(&made);
        let mut inputs: Vec<ValueId> =
            operands.iter().chain(&made.captures).filter_map(|t| self.builders.here(t)).collect();
        let at = self.at.or(Some(span));
        let origin = Origin { path: String::new(), span: at };
        for (path, ty) in weights {
            inputs.push(self.builders.top().graph.add(Core::Weight { path }, &[], ty, origin.clone()));
        }
        let path = self.kept_path(Some(label));
        let own = self.builders.relative(&self.path.clone());
        let own = own.trim_start_matches('/').to_string();
        let top = self.builders.top();
        let origin = Origin { path: if own == top.base { String::new() } else { own }, span: at };
        let results: Vec<Vec<Axis>> =
            made.outputs[states..].iter().map(|t| [&[tokens], &t.axes[..]].concat()).collect();
        let types =
            results.iter().zip(&made.outputs[states..]).map(|(axes, t)| Type::new(t.dtype, dims(axes))).collect();
        let node = top.graph.add_node(Core::Scan { path, states, step: Arc::new(graph) }, &inputs, types, origin);
        let id = top.id;
        let made = results
            .into_iter()
            .zip(&made.outputs[states..])
            .enumerate()
            .map(|(port, (axes, t))| Value::Tensor(Tensor::new(id, ValueId { node, port }, t.dtype, axes)));
        let made: Vec<Value> = made.collect();
        Ok(match <[Value; 1]>::try_from(made) {
            Ok([one]) => one,
            Err(several) => Value::Tuple(Rc::new(several)),
        })
    }
}

/// Whether an operation can be in a step: it knows of no other token and keeps nothing.
fn of_one_token(op: &Op) -> bool {
    !matches!(
        op.as_core(),
        Some(
            Core::Position
                | Core::Cache { .. }
                | Core::Scan { .. }
                | Core::SelectRows
                | Core::Regroup
                | Core::First
                | Core::Last
                | Core::Call { .. }
        )
    )
}

/// The step's graph without what nothing needs, and with the weights that it reads as further parameters: their paths and types.
fn closed(made: &Made) -> (Graph, Vec<(String, Type)>) {
    let source = &made.graph;
    let mut needed: std::collections::BTreeSet<NodeId> = made.values.iter().map(|v| v.node).collect();
    for node in source.topological().into_iter().rev() {
        if needed.contains(&node) {
            needed.extend(source.operands(node).iter().map(|v| v.node));
        }
    }
    let mut graph = Graph::new("step");
    let mut values: std::collections::HashMap<ValueId, ValueId> = source
        .params()
        .iter()
        .map(|p| (p.value, graph.add_param(p.name.clone(), source.ty(p.value).clone())))
        .collect();
    let mut weights: Vec<(String, Type)> = Vec::new();
    for node in source.topological() {
        let value = ValueId { node, port: 0 };
        if !needed.contains(&node) || values.contains_key(&value) {
            continue;
        }
        let copied = match source.op(node).as_core() {
            Some(Core::Weight { path }) => {
                weights.push((path.clone(), source.ty(value).clone()));
                graph.add_param(format!("weight{}", weights.len() - 1), source.ty(value).clone())
            }
            _ => {
                let operands: Vec<ValueId> =
                    source.operands(node).iter().filter_map(|v| values.get(v).copied()).collect();
                graph.add(source.op(node).clone(), &operands, source.ty(value).clone(), source.origin(node).clone())
            }
        };
        values.insert(value, copied);
    }
    for (i, value) in made.values.iter().enumerate() {
        if let Some(value) = values.get(value) {
            graph.add_output(format!("y{i}"), *value);
        }
    }
    (graph, weights)
}

#[cfg(test)]
mod tests {
    use crate::arch::testing::{codes, model};
    use crate::diagnostic::Code;
    use crate::graph::verify::verify;

    fn output(definitions: &str, body: &str) -> String {
        let made = model(&format!("{definitions}\nmodel(x: f32[tokens, 6], n: i64[tokens]) {{ {body} }}"));
        verify(&made.program).unwrap_or_else(|e| panic!("{e}"));
        let again: crate::graph::Program = made.program.to_string().parse().unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(again, made.program);
        made.arch.outputs[0].1.clone()
    }

    const PLUS: &str = "plus(s, x) = s + x\n";
    const LINEAR: &str = "linear_attention(s, q, k, v) { s' = s + einsum('hk, hv -> hkv', k, v) return s', einsum('hkv, hk -> hv', s', q) }\n";

    #[test]
    fn a_number_begins_a_state_of_any_shape() {
        assert_eq!(output(PLUS, "return {y: scan(plus, 0, x)}"), "f32[tokens, 6]");
        assert_eq!(output(PLUS, "return {y: scan(plus, 0, n)}"), "i64[tokens]");
        assert_eq!(output(PLUS, "return {y: scan(plus, 0.5, split(x, 2))}"), "f32[tokens, 2, 3]");
        assert_eq!(
            output(LINEAR, "q = split(x, 2) return {y: scan(linear_attention, 0.0, q, q, q)}"),
            "f32[tokens, 2, 3]"
        );
    }

    #[test]
    fn states_and_results() {
        let body = "q = split(x, 2) y = scan(linear_attention, zeros(2, 3, 3), q, q, q) return {y: merge(y)}";
        assert_eq!(output(LINEAR, body), "f32[tokens, 6]");
        let two = "two(a, b, x) { a' = a + x b' = max(b, sum(a')) return a', b', a' * b', b' }";
        assert_eq!(output(two, "y, z = scan(two, [zeros(6), 0], x) return {y: y, z: z}"), "f32[tokens, 6]");
        let recent =
            "recent(last, x) { w = join(last, split(x, 6)) _, kept = parts(w, [1, 2]) return kept, merge(sum(w)) }";
        assert_eq!(output(recent, "return {y: scan(recent, zeros(6, 2), x)}"), "f32[tokens, 6]");
    }

    #[test]
    fn parameters_of_a_step_are_read_around_it() {
        let wiring = "decay(n)(s, x) { weight = param[n] return s * sigmoid(weight) + x }\n\
                      layer(x) { slow = decay(6) bias = param[6] step(s, x) { return slow(s, x + bias) } start = param[6] return scan(step, start, x) }\n\
                      model(x: f32[tokens, 6]) { layers = [layer for i in 0..2] return {y: layers(x)} }";
        let made = model(wiring);
        verify(&made.program).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(made.program.graphs.len(), 2);
        let paths: Vec<&str> = made.arch.parameters.iter().map(|p| p.path.as_str()).collect();
        assert_eq!(paths[..3], ["layers.0.start", "layers.0.bias", "layers.0.slow.weight"]);
        assert_eq!(paths.len(), 6);
        let text = made.program.to_string();
        assert!(text.contains("scan") && text.contains("path = \"step\""), "{text}");
    }

    #[test]
    fn misuse_is_said() {
        let code = |e: &str| {
            codes(&format!(
                "{PLUS}two(s, t, x) = s + t + x\nkeep(s, x) {{ return s + sum(cache(x)) }}\nwide(s, x) {{ return join(s, x) }}\n\
                 model(x: f32[tokens, 6], z: f32[other, 6]) {{ around(s, y) {{ return s + x * y }} return {{y: {e}}} }}"
            ))
        };
        assert_eq!(code("scan(plus, 0)"), [Code::AxisMismatch]);
        assert_eq!(code("scan(plus)"), [Code::MissingOption]);
        assert_eq!(code("scan(plus, x, x)"), [Code::AxisMismatch]);
        assert_eq!(code("scan(plus, zeros(3), x)"), [Code::AxisMismatch]);
        assert_eq!(code("scan(plus, [0, 0], x)"), [Code::UnknownOption]);
        assert_eq!(code("scan(two, [0, 0], x)"), [Code::WrongType]);
        assert_eq!(code("scan(wide, zeros(6), x)"), [Code::AxisMismatch]);
        assert_eq!(code("scan(around, 0, x)"), [Code::Misplaced]);
        assert_eq!(code("scan(keep, 0, x)"), [Code::AxisMismatch]);
        assert_eq!(code("scan(plus, 0, cache(x))"), [Code::AxisMismatch]);
        assert_eq!(code("scan(3, 0, x)"), [Code::NotCallable]);
    }
}
