//! Computes what depends on constants alone, and drops operations that change nothing.
//!
//! before   %1 = const 10000 ; %2 = pow %1, [0, -0.5] ; %3 = mul %0, 1 ; %4 = mul %3, %2
//! after    %1 = const [1, 0.01] ; %2 = mul %0, %1

use std::collections::{BTreeMap, HashMap, HashSet};

use super::Pass;
use super::matching::{core, remove_dead, uniform};
use crate::graph::verify::verify;
use crate::graph::{DType, Graph, NodeId, Program, Type, ValueId};
use crate::ops::shape::fixed_size;
use crate::ops::{BinaryOp, Core, UnaryOp};
use crate::reference::{Interpreter, State};

/// Larger constants are left to be computed where they are used.
const MAX_ELEMENTS: u64 = 1 << 16;

pub(super) struct FoldConstants;

impl Pass for FoldConstants {
    fn name(&self) -> &'static str {
        "fold_constants"
    }

    fn run(&self, program: &mut Program) -> bool {
        let mut changed = false;
        for graph in &mut program.graphs {
            changed |= fold(graph);
            for node in graph.topological() {
                changed |= simplify(graph, node);
            }
            changed |= remove_dead(graph);
        }
        changed
    }
}

/// Replaces values that depend on constants alone by constants; whether there were any.
fn fold(graph: &mut Graph) -> bool {
    let mut known: HashSet<NodeId> = HashSet::new();
    let mut constants = Graph::new("constants");
    let mut copies: HashMap<ValueId, ValueId> = HashMap::new();
    let mut wanted: BTreeMap<String, ValueId> = BTreeMap::new();
    let order = graph.topological();
    for &node in &order {
        let value = ValueId { node, port: 0 };
        if !is_known(graph, node, &known) {
            continue;
        }
        let operands: Vec<ValueId> = graph.operands(node).iter().map(|v| copies[v]).collect();
        let (op, types) = (graph.op(node).clone(), graph.types(node).to_vec());
        copies.insert(value, ValueId { node: constants.add_node(op, &operands, types, Default::default()), port: 0 });
        known.insert(node);
    }
    for &node in &order {
        let value = ValueId { node, port: 0 };
        let needed = graph.is_output(value) || graph.uses(value).iter().any(|(user, _)| !known.contains(user));
        if known.contains(&node) && needed && !is_canonical(graph, value) {
            let name = format!("c{:08}", wanted.len());
            constants.add_output(name.clone(), copies[&value]);
            wanted.insert(name, value);
        }
    }
    if wanted.is_empty() {
        return false;
    }
    let Some(results) = evaluate(constants) else { return false };
    let mut changed = false;
    for (name, value) in wanted {
        let Some(values) = results.get(&name) else { continue };
        let ty = graph.ty(value).clone();
        if ty.dtype.is_int() && values.iter().any(|v| v.abs() >= (1u64 << 53) as f64) {
            continue;
        }
        let origin = graph.origin(value.node).clone();
        let constant = graph.add(Core::Const { values: shortest(values) }, &[], ty, origin);
        graph.replace(value, constant);
        changed = true;
    }
    changed
}

/// One value where all are equal.
fn shortest(values: &[f64]) -> Vec<f64> {
    match values.first() {
        Some(first) if values.iter().all(|v| v.to_bits() == first.to_bits()) => vec![*first],
        _ => values.to_vec(),
    }
}

fn is_known(graph: &Graph, node: NodeId, known: &HashSet<NodeId>) -> bool {
    let Some(op) = graph.op(node).as_core() else { return false };
    let pure = op.is_pure() || matches!(op, Core::Const { .. } | Core::Index);
    let small = fixed_size(&graph.types(node)[0].dims).is_some_and(|n| n <= MAX_ELEMENTS);
    pure && small && graph.operands(node).iter().all(|v| known.contains(&v.node))
}

/// What says more as it is: a constant, and an index under any dimensions, which later passes look for.
fn is_canonical(graph: &Graph, value: ValueId) -> bool {
    match core(graph, value) {
        Some(Core::Const { .. } | Core::Index) => true,
        Some(Core::Reshape) => graph.operands(value.node).iter().all(|v| is_canonical(graph, *v)),
        _ => false,
    }
}

fn evaluate(constants: Graph) -> Option<BTreeMap<String, Vec<f64>>> {
    let program = Program { graphs: vec![constants], ..Program::default() };
    let verified = verify(&program).ok()?;
    let interpreter = Interpreter::<f64>::new(verified, &|path| Err(format!("no weight {path}").into())).ok()?;
    let outputs = interpreter.step(&mut State::new(), &BTreeMap::new()).ok()?;
    Some(outputs.into_iter().map(|(name, tensor)| (name, tensor.to_f64())).collect())
}

/// Replaces a value that equals another; whether it did.
fn simplify(graph: &mut Graph, node: NodeId) -> bool {
    let [ty] = graph.types(node) else { return false };
    let ty = ty.clone();
    let value = ValueId { node, port: 0 };
    if let Some(x) = nested_view(graph, node) {
        graph.set_operand(node, 0, x);
        simplify(graph, node);
        return true;
    }
    let Some(same) = equal_to(graph, node, &ty) else { return false };
    if graph.uses(value).is_empty() && !graph.is_output(value) {
        return false;
    }
    graph.replace(value, same);
    true
}

/// The operand of a reshape whose operand is a reshape.
fn nested_view(graph: &Graph, node: NodeId) -> Option<ValueId> {
    let Core::Reshape = graph.op(node).as_core()? else { return None };
    let inner = *graph.operands(node).first()?;
    match core(graph, inner)? {
        Core::Reshape => graph.operands(inner.node).first().copied(),
        _ => None,
    }
}

fn equal_to(graph: &Graph, node: NodeId, ty: &Type) -> Option<ValueId> {
    let operands = graph.operands(node);
    let first = operands.first().copied();
    let same_type = |v: &ValueId| graph.ty(*v) == ty;
    let is = |v: ValueId, c: f64| uniform(graph, v) == Some(c);
    match (graph.op(node).as_core()?, &operands[..]) {
        (Core::Reshape | Core::Slice { .. } | Core::Repeat { times: 1, .. }, _) => first.filter(same_type),
        (Core::Concat { .. }, [_]) => first,
        (Core::Transpose { perm }, _) if perm.is_sorted() => first,
        (Core::Cast, [x]) if same_type(x) => first,
        // Widened and narrowed again: nothing was rounded.
        (Core::Cast, [x]) if graph.ty(*x).dtype == DType::F32 => {
            let inner = graph.operands(x.node).first().copied().filter(|_| core(graph, *x) == Some(&Core::Cast))?;
            (same_type(&inner) && ty.dtype.is_float()).then_some(inner)
        }
        (Core::Unary(UnaryOp::Not), [x]) if core(graph, *x) == Some(&Core::Unary(UnaryOp::Not)) => {
            graph.operands(x.node).first().copied()
        }
        (Core::Select, [c, a, b]) => match uniform(graph, *c)? {
            0.0 => Some(*b).filter(same_type),
            _ => Some(*a).filter(same_type),
        },
        (Core::Binary(f), [a, b]) => {
            let (left, right) = match f {
                BinaryOp::Add => (Some(0.0), Some(0.0)),
                BinaryOp::Sub => (None, Some(0.0)),
                BinaryOp::Mul => (Some(1.0), Some(1.0)),
                BinaryOp::Div | BinaryOp::Pow => (None, Some(1.0)),
                BinaryOp::And => (Some(1.0), Some(1.0)),
                BinaryOp::Or => (Some(0.0), Some(0.0)),
                _ => (None, None),
            };
            if right.is_some_and(|c| is(*b, c)) && same_type(a) {
                return Some(*a);
            }
            (left.is_some_and(|c| is(*a, c)) && same_type(b)).then_some(*b)
        }
        _ => None,
    }
}
