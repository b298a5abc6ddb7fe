//! The text form of graphs, `.xg`: what `--emit graph` prints, what snapshots hold and what [`parse`](super::parse) reads.
//!
//! Values are numbered densely in topological order, parameters first, so that removed nodes do not churn the text;
//! origins are not part of it. Two programs with equal text are equal. `axes [tokens, patches = 197]`: every sequence has 197 patches.
//!
//! ```text
//! program "toy" axes [tokens]
//!
//! graph 0 "model" (%0 input_ids: i64[tokens]) {
//!   %1 = weight {path = "embed.weight"} : f32[320, 64]
//!   %2 = gather %1, %0 : f32[tokens, 64]
//!   return hidden = %2
//! }
//! ```

use std::collections::HashMap;
use std::fmt::{self, Write};

use super::{Dim, Graph, InputDecl, Program, Type, ValueId};
use crate::ops::Core;
use crate::ops::attributes::{number, quote};

impl Dim {
    /// As text, axes by their names.
    pub fn text(self, axes: &[String]) -> String {
        let name = |a: super::AxisId| axes.get(a.0).map_or_else(|| format!("axis{}", a.0), |axis| name(axis));
        match self {
            Dim::Fixed(n) => n.to_string(),
            Dim::Axis(a) => name(a),
            Dim::Visible(a) => format!("visible({})", name(a)),
            Dim::Rows(a) => format!("rows({})", name(a)),
        }
    }
}

impl Type {
    /// As text, axes by their names: `f32[tokens, 64]`, `i64` for a scalar.
    pub fn text(&self, axes: &[String]) -> String {
        if self.dims.is_empty() {
            return self.dtype.to_string();
        }
        let dims: Vec<_> = self.dims.iter().map(|d| d.text(axes)).collect();
        format!("{}[{}]", self.dtype, dims.join(", "))
    }
}

/// A name as the text form writes it: bare when it looks like one.
pub(super) fn name(name: &str) -> String {
    let bare = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '.');
    if bare { name.to_string() } else { quote(name) }
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let axis = |(i, a): (usize, &String)| match self.extent(super::AxisId(i)) {
            Some(n) => format!("{} = {n}", name(a)),
            None => name(a),
        };
        let axes: Vec<_> = self.axes.iter().enumerate().map(axis).collect();
        writeln!(f, "program {} axes [{}]", quote(&self.name), axes.join(", "))?;
        for (index, graph) in self.graphs.iter().enumerate() {
            let inputs = if index == 0 { &self.inputs[..] } else { &[] };
            write!(f, "\ngraph {index} {} {}", quote(&graph.name), text(graph, &self.axes, inputs, 0))?;
            writeln!(f)?;
        }
        Ok(())
    }
}

impl Graph {
    /// The graph as text, axes by their names.
    pub fn text(&self, axes: &[String]) -> String {
        text(self, axes, &[], 0)
    }
}

/// `(params) { nodes; return outputs }`, nested at `depth`; `inputs` give the defaults of the parameters.
fn text(graph: &Graph, axes: &[String], inputs: &[InputDecl], depth: usize) -> String {
    let pad = "  ".repeat(depth);
    let mut numbers: HashMap<ValueId, usize> = HashMap::new();
    let mut out = String::new();
    let params: Vec<String> = graph
        .params()
        .iter()
        .enumerate()
        .map(|(i, param)| {
            numbers.insert(param.value, i);
            let default = inputs.get(i).and_then(|d| d.default).map_or(String::new(), |d| format!(" = {}", number(d)));
            format!("%{i} {}: {}{default}", name(&param.name), graph.ty(param.value).text(axes))
        })
        .collect();
    let mut next = params.len();
    let _ = writeln!(out, "({}) {{", params.join(", "));
    let show = |numbers: &HashMap<ValueId, usize>, v: &ValueId| {
        numbers.get(v).map_or_else(|| "%?".to_string(), |n| format!("%{n}"))
    };
    for node in graph.topological() {
        if numbers.contains_key(&ValueId { node, port: 0 })
            && matches!(graph.op(node).as_core(), Some(Core::Arg { .. }))
        {
            continue;
        }
        let op = graph.op(node);
        let operands: Vec<_> = graph.operands(node).iter().map(|v| show(&numbers, v)).collect();
        let mut attributes: Vec<_> = op.attributes().iter().map(|(k, v)| format!("{k} = {v}")).collect();
        attributes.extend(op.bodies().iter().map(|(k, body)| format!("{k} = {}", text(body, axes, &[], depth + 1))));
        let types: Vec<_> = graph.types(node).iter().map(|t| t.text(axes)).collect();
        let results: Vec<_> = (0..types.len())
            .map(|port| {
                numbers.insert(ValueId { node, port }, next);
                next += 1;
                format!("%{}", next - 1)
            })
            .collect();
        let _ = write!(out, "{pad}  {} = {}", results.join(", "), op.name());
        if !operands.is_empty() {
            let _ = write!(out, " {}", operands.join(", "));
        }
        if !attributes.is_empty() {
            let _ = write!(out, " {{{}}}", attributes.join(", "));
        }
        let _ = writeln!(out, " : {}", types.join(", "));
    }
    let outputs: Vec<_> =
        graph.outputs().iter().map(|o| format!("{} = {}", name(&o.name), show(&numbers, &o.value))).collect();
    let _ = write!(out, "{pad}  return {}\n{pad}}}", outputs.join(", "));
    out
}

#[cfg(test)]
mod tests {
    use super::name;

    #[test]
    fn names_are_quoted_when_they_must_be() {
        assert_eq!(name("last_hidden_state"), "last_hidden_state");
        assert_eq!(name("h'"), "\"h'\"");
        assert_eq!(name(""), "\"\"");
        assert_eq!(name("0.w"), "\"0.w\"");
    }
}
