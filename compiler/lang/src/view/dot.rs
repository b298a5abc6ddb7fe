//! A program as a Graphviz drawing: one box a kernel, grouped by module path.
//!
//! Given any program, before or after fusion, it returns `dot` source. The same program gives the same text. Weights are named
//! inside the boxes that read them, constants are left out; views and caches are drawn small.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::describe;
use crate::graph::path::components;
use crate::graph::{Graph, NodeId, Program};
use crate::ops::fused::{Attention, ExpertLinear, HeadLinear, Linear, Rows};
use crate::ops::{Core, Op};
use crate::passes::is_constant;

/// Draws the chosen graphs of a program, by index.
pub fn dot(program: &Program, graphs: &[usize]) -> String {
    let mut out = String::new();
    let _ = writeln!(out, "digraph {} {{", quote(&program.name));
    out.push_str("  rankdir=TB; compound=true; newrank=true;\n");
    out.push_str("  node [shape=box, style=\"rounded,filled\", fillcolor=white, fontname=Helvetica, fontsize=10];\n");
    out.push_str("  edge [fontname=Helvetica, fontsize=8, color=gray40];\n");
    for (index, graph) in program.graphs.iter().enumerate() {
        if graphs.contains(&index) {
            Drawing { program, graph, index }.draw(&mut out);
        }
    }
    out.push_str("}\n");
    out
}

struct Drawing<'p> {
    program: &'p Program,
    graph: &'p Graph,
    index: usize,
}

/// Nodes of one module and the modules in it.
#[derive(Default)]
struct Module {
    nodes: Vec<NodeId>,
    children: BTreeMap<String, Module>,
}

impl Drawing<'_> {
    fn draw(&self, out: &mut String) {
        let order = self.graph.topological();
        let names: BTreeMap<NodeId, String> =
            order.iter().enumerate().map(|(i, n)| (*n, format!("g{}_{i}", self.index))).collect();
        let mut root = Module::default();
        for node in order.iter().filter(|n| self.is_drawn(**n)) {
            let mut module = &mut root;
            for part in components(&self.graph.origin(*node).path).filter(|p| !p.is_empty()) {
                module = module.children.entry(part.to_string()).or_default();
            }
            module.nodes.push(*node);
        }
        let title = format!("graph {} {}", self.index, self.graph.name);
        self.module(out, &root, &title, &format!("g{}", self.index), 1, &names);
        for node in order.iter().filter(|n| self.is_drawn(**n)) {
            for operand in self.graph.operands(*node) {
                if self.is_drawn(operand.node) {
                    let label = self.graph.ty(operand).text(&self.program.axes);
                    let _ = writeln!(out, "  {} -> {} [label={}];", names[&operand.node], names[node], quote(&label));
                }
            }
        }
        for (i, output) in self.graph.outputs().iter().enumerate() {
            let name = format!("g{}_out{i}", self.index);
            let _ = writeln!(out, "  {name} [label={}, shape=ellipse, fillcolor=gray90];", quote(&output.name));
            let label = self.graph.ty(output.value).text(&self.program.axes);
            let from = names.get(&output.value.node).filter(|_| self.is_drawn(output.value.node));
            if let Some(from) = from {
                let _ = writeln!(out, "  {from} -> {name} [label={}];", quote(&label));
            }
        }
    }

    /// Weights, and what is made of them and constants alone, are named in the boxes that read them.
    fn is_drawn(&self, node: NodeId) -> bool {
        !is_constant(self.graph, node)
    }

    fn module(
        &self,
        out: &mut String,
        module: &Module,
        title: &str,
        id: &str,
        depth: usize,
        names: &BTreeMap<NodeId, String>,
    ) {
        let pad = "  ".repeat(depth);
        let _ = writeln!(out, "{pad}subgraph cluster_{id} {{");
        let _ = writeln!(out, "{pad}  label={}; color=gray70; fontname=Helvetica; fontsize=11;", quote(title));
        for node in &module.nodes {
            let (shape, colour) = style(self.graph.op(*node));
            let label = quote(&self.label(*node));
            let _ = writeln!(out, "{pad}  {} [label={label}, shape={shape}, fillcolor=\"{colour}\"];", names[node]);
        }
        for (i, (name, child)) in module.children.iter().enumerate() {
            self.module(out, child, name, &format!("{id}_{i}"), depth + 1, names);
        }
        let _ = writeln!(out, "{pad}}}");
    }

    fn label(&self, node: NodeId) -> String {
        let op = self.graph.op(node);
        let mut lines = vec![op.name().to_string()];
        match op {
            Op::Core(Core::Arg { index }) => {
                lines = vec![self.graph.params().get(*index).map_or_else(String::new, |p| p.name.clone())];
            }
            Op::Core(Core::Call { graph, at }) => lines.push(format!("{at}: graph {graph}")),
            Op::Core(Core::Cache { path }) => lines.push(path.clone()),
            Op::Core(Core::Contract { spec }) => lines.push(spec.clone()),
            op => {
                if let Some(linear) = op.as_fused::<Linear>() {
                    if linear.parts > 1 {
                        lines.push(format!("{} matrices", linear.parts));
                    }
                    if !linear.is_identity() {
                        lines.push(format!("then {}", operations(&linear.epilogue)));
                    }
                } else if let Some(attention) = op.as_fused::<Attention>() {
                    let seen = attention.reach.window.map_or("any age".into(), |n| format!("the last {n}"));
                    lines.push(if attention.reach.future {
                        format!("sees {seen} and later")
                    } else {
                        format!("sees {seen}")
                    });
                    lines.push(format!("mask: {}", operations(&attention.mask)));
                    if !attention.score_is_identity() {
                        lines.push(format!("score: {}", operations(&attention.score)));
                    }
                    if let Some(sink) = &attention.sink {
                        lines.push(format!("sink: {}", operations(sink)));
                    }
                } else if let Some(rows) = op.as_fused::<Rows>() {
                    lines.push(operations(&rows.body));
                    lines.push(rows.reason.clone());
                } else {
                    let attributes = op.attributes();
                    lines.extend(attributes.iter().map(|(k, v)| format!("{k} = {v}")));
                }
            }
        }
        let weights = describe::weights(self.graph, &self.graph.operands(node));
        lines.extend(weights.iter().map(|(path, ty)| format!("{path} {}", ty.text(&self.program.axes))));
        lines.join("\n")
    }
}

/// The operations of a body with their numbers: `3 mul, add, rms_norm`.
fn operations(body: &Graph) -> String {
    let mut counts: Vec<(&str, usize)> = Vec::new();
    for node in body.topological() {
        let name = body.op(node).name();
        if matches!(body.op(node).as_core(), Some(Core::Arg { .. } | Core::Const { .. })) {
            continue;
        }
        match counts.iter_mut().find(|(n, _)| *n == name) {
            Some((_, count)) => *count += 1,
            None => counts.push((name, 1)),
        }
    }
    let show = |(name, count): &(&str, usize)| if *count == 1 { name.to_string() } else { format!("{count} {name}") };
    if counts.is_empty() { "nothing".into() } else { counts.iter().map(show).collect::<Vec<_>>().join(", ") }
}

fn style(op: &Op) -> (&'static str, &'static str) {
    match op {
        Op::Core(Core::Arg { .. }) => ("ellipse", "gray90"),
        Op::Core(Core::Call { .. }) => ("folder", "#fff2cc"),
        Op::Core(Core::Cache { .. }) => ("cylinder", "#e1d5e7"),
        Op::Core(_) => ("box", "white"),
        op if op.as_fused::<Linear>().is_some() || op.as_fused::<HeadLinear>().is_some() => ("box", "#dae8fc"),
        op if op.as_fused::<ExpertLinear>().is_some() => ("box", "#dae8fc"),
        op if op.as_fused::<Attention>().is_some() => ("box", "#d5e8d4"),
        Op::Fused(_) => ("box", "#ffe6cc"),
    }
}

/// A Graphviz string: lines end where they end here.
fn quote(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n"))
}
