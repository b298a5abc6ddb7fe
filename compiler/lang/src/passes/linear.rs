//! Turns every product with a weight matrix into a `linear`, its matrix as `[O, I]`.
//!
//! before   y = contract x, w {spec = "ni,io->no"}
//! after    t = transpose w {perm = [1, 0]} ; y = linear x, t {parts = 1, epilogue = (acc) { return acc }}
//!
//! Where each head has a matrix of its own it is a `head_linear`, the matrices as `[H, O, I]`.

use super::Pass;
use super::matching::{is_weight_expression, order, rewrite_nodes};
use crate::graph::build::Builder;
use crate::graph::{Graph, NodeId, Program, ValueId};
use crate::ops::Core;
use crate::ops::fused::{HeadLinear, Linear};
use crate::ops::shape::ContractSpec;

pub(super) struct ContractToLinear;

impl Pass for ContractToLinear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn required(&self) -> bool {
        true
    }

    fn run(&self, program: &mut Program) -> bool {
        rewrite_nodes(program, rewrite)
    }
}

fn rewrite(graph: &mut Graph, node: NodeId) -> Option<()> {
    let Core::Contract { spec } = graph.op(node).as_core()? else { return None };
    let spec = ContractSpec::parse(spec).ok()?;
    let [a, b] = graph.operands(node)[..] else { return None };
    let (x, w, x_labels, w_labels) = match (is_weight_expression(graph, a), is_weight_expression(graph, b)) {
        (false, true) => (a, b, &spec.a, &spec.b),
        (true, false) => (b, a, &spec.b, &spec.a),
        _ => return None,
    };
    if w_labels.len() == 3 {
        return by_head(graph, node, (x, x_labels), (w, w_labels), &spec.out);
    }
    // The matrix has one label summed over and one of the result; both are the last of the input and of the result.
    let [p, q] = w_labels[..] else { return None };
    let (o, i, perm) = if spec.out.contains(&p) { (p, q, vec![0, 1]) } else { (q, p, vec![1, 0]) };
    if !spec.out.contains(&o) || spec.out.contains(&i) || x_labels.contains(&o) {
        return None;
    }
    let x_perm = order(x_labels, &[batch(&spec.out, o), vec![i]].concat())?;

    let mut b = Builder::like(graph, node);
    let w = if perm == [0, 1] { w } else { b.transpose(w, perm).ok()? };
    let x = if x_perm.is_sorted() { x } else { b.transpose(x, x_perm).ok()? };
    let y = b.fused1(Linear::identity(), &[x, w]).ok()?;
    let made = [batch(&spec.out, o), vec![o]].concat();
    let out_perm = order(&made, &spec.out)?;
    let y = if out_perm.is_sorted() { y } else { b.transpose(y, out_perm).ok()? };
    graph.replace(ValueId { node, port: 0 }, y);
    Some(())
}

/// A product with a matrix for each head: the label that all three have.
fn by_head(
    graph: &mut Graph,
    node: NodeId,
    (x, x_labels): (ValueId, &[char]),
    (w, w_labels): (ValueId, &[char]),
    out: &[char],
) -> Option<()> {
    let one = |in_x: bool, in_out: bool| {
        let is = |l: &&char| x_labels.contains(l) == in_x && out.contains(l) == in_out;
        w_labels.iter().find(is).copied()
    };
    let (h, i, o) = (one(true, true)?, one(true, false)?, one(false, true)?);
    let w_perm = order(w_labels, &[h, o, i])?;
    let rows: Vec<char> = out.iter().copied().filter(|c| *c != o && *c != h).collect();
    let x_perm = order(x_labels, &[&rows[..], &[h, i]].concat())?;
    let out_perm = order(&[&rows[..], &[h, o]].concat(), out)?;

    let mut b = Builder::like(graph, node);
    let w = if w_perm.is_sorted() { w } else { b.transpose(w, w_perm).ok()? };
    let x = if x_perm.is_sorted() { x } else { b.transpose(x, x_perm).ok()? };
    let y = b.fused1(HeadLinear, &[x, w]).ok()?;
    let y = if out_perm.is_sorted() { y } else { b.transpose(y, out_perm).ok()? };
    graph.replace(ValueId { node, port: 0 }, y);
    Some(())
}

/// The labels of the result but for `o`.
fn batch(out: &[char], o: char) -> Vec<char> {
    out.iter().copied().filter(|c| *c != o).collect()
}
