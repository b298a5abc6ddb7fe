//! Moves arithmetic on weights and constants that a scan reads into its step, where a kernel computes it.
//!
//! before   a = neg (exp w) ; y = scan s, x, a {step = (s, x, a) { .. mul x, a .. }}
//! after    y = scan s, x, w {step = (s, x, w) { a = neg (exp w) ; .. mul x, a .. }}

use std::collections::HashMap;
use std::sync::Arc;

use super::Pass;
use super::matching::{is_constant, is_weight_expression};
use crate::graph::{Graph, NodeId, Program, ValueId};
use crate::ops::Core;

pub(super) struct ScanConstants;

impl Pass for ScanConstants {
    fn name(&self) -> &'static str {
        "scan_constants"
    }

    fn required(&self) -> bool {
        true
    }

    fn run(&self, program: &mut Program) -> bool {
        let mut changed = false;
        for graph in &mut program.graphs {
            for node in graph.topological() {
                changed |= absorb(graph, node);
            }
        }
        changed
    }
}

/// Whether an operand is computed from constants, and is neither one nor packed as it is.
fn is_arithmetic(graph: &Graph, value: ValueId) -> bool {
    let fixed = graph.ty(value).dims.iter().all(|d| !d.is_ragged());
    let given = matches!(graph.op(value.node).as_core(), Some(Core::Const { .. }));
    fixed && !given && is_constant(graph, value.node) && !is_weight_expression(graph, value)
}

fn absorb(graph: &mut Graph, node: NodeId) -> bool {
    let Some(Core::Scan { path, states, step }) = graph.op(node).as_core().cloned() else { return false };
    let operands = graph.operands(node);
    if !operands[states..].iter().any(|v| is_arithmetic(graph, *v)) {
        return false;
    }
    let mut made = Made { source: graph, step: Graph::new("step"), operands: Vec::new(), inside: HashMap::new() };
    let mut values: HashMap<ValueId, ValueId> = HashMap::new();
    for (i, (param, operand)) in step.params().iter().zip(&operands).enumerate() {
        if i < states || !is_arithmetic(made.source, *operand) {
            let name = param.name.clone();
            values.insert(param.value, made.param(name, *operand, step.ty(param.value).clone()));
        }
    }
    for (param, operand) in step.params().iter().zip(&operands) {
        values.entry(param.value).or_insert_with(|| made.computed(*operand));
    }
    let Made { step: mut body, operands, .. } = made;
    for node in step.topological() {
        let value = ValueId { node, port: 0 };
        if values.contains_key(&value) {
            continue;
        }
        let inputs: Vec<ValueId> = step.operands(node).iter().filter_map(|v| values.get(v).copied()).collect();
        let (op, ty, origin) = (step.op(node).clone(), step.ty(value).clone(), step.origin(node).clone());
        values.insert(value, body.add(op, &inputs, ty, origin));
    }
    for output in step.outputs() {
        if let Some(value) = values.get(&output.value) {
            body.add_output(output.name.clone(), *value);
        }
    }
    let (types, origin) = (graph.types(node).to_vec(), graph.origin(node).clone());
    let op = Core::Scan { path, states, step: Arc::new(body) };
    let new = graph.add_node(op, &operands, types, origin);
    for port in 0..graph.types(node).len() {
        graph.replace(ValueId { node, port }, ValueId { node: new, port });
    }
    graph.remove(node);
    super::matching::remove_dead(graph);
    true
}

/// A step under construction, and its operands.
struct Made<'g> {
    source: &'g Graph,
    step: Graph,
    operands: Vec<ValueId>,
    /// What values outside are inside.
    inside: HashMap<ValueId, ValueId>,
}

impl Made<'_> {
    fn param(&mut self, name: String, operand: ValueId, ty: crate::graph::Type) -> ValueId {
        self.operands.push(operand);
        self.step.add_param(name, ty)
    }

    /// A constant expression, on parameters for the weights that it reads.
    fn computed(&mut self, value: ValueId) -> ValueId {
        if let Some(known) = self.inside.get(&value) {
            return *known;
        }
        let source = self.source;
        let ty = source.ty(value).clone();
        let inside = if is_weight_expression(source, value) {
            let name = format!("weight_of{}", self.operands.len());
            self.param(name, value, ty)
        } else {
            let operands: Vec<ValueId> = source.operands(value.node).into_iter().map(|v| self.computed(v)).collect();
            self.step.add(source.op(value.node).clone(), &operands, ty, source.origin(value.node).clone())
        };
        self.inside.insert(value, inside);
        inside
    }
}
