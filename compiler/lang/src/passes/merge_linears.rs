//! Makes products that share their input one product, its matrix their matrices one below the other.
//!
//! before   q = linear x, wq ; k = linear x, wk ; v = linear x, wv
//! after    w = concat wq, wk, wv ; y = linear x, w ; q = slice y ; k = slice y ; v = slice y
//!
//! Biases right behind them become one bias. A product whose result goes on elementwise keeps to itself: that is its epilogue's.

use super::Pass;
use super::matching::{binary, is_weight_expression, remove_dead};
use super::region::{Extent, Region};
use crate::graph::build::Builder;
use crate::graph::{DType, Dim, Graph, NodeId, Program, Type, ValueId};
use crate::ops::BinaryOp;
use crate::ops::fused::Linear;

pub(super) struct MergeLinears;

impl Pass for MergeLinears {
    fn name(&self) -> &'static str {
        "merge_linears"
    }

    fn run(&self, program: &mut Program) -> bool {
        let mut changed = false;
        for graph in &mut program.graphs {
            let mut groups: Vec<(ValueId, Vec<Product>)> = Vec::new();
            for node in graph.topological() {
                let Some((x, product)) = product(graph, node) else { continue };
                // Biases are merged too, and a product without one would need zeros for its.
                let alike = |of: &Product| of.inputs == product.inputs && of.bias.is_some() == product.bias.is_some();
                match groups.iter_mut().find(|(y, of)| *y == x && alike(&of[0])) {
                    Some((_, products)) => products.push(product),
                    None => groups.push((x, vec![product])),
                }
            }
            for (x, products) in groups.into_iter().filter(|(_, products)| products.len() > 1) {
                changed |= merge(graph, x, &products).is_some();
            }
            remove_dead(graph);
        }
        changed
    }
}

/// A product that may be merged.
#[derive(Debug)]
struct Product {
    matrix: ValueId,
    /// Rows of the matrix, and what it has in each: its dtype and width.
    size: u64,
    inputs: Type,
    bias: Option<ValueId>,
    /// The product, or its sum with the bias.
    result: ValueId,
}

fn product(graph: &Graph, node: NodeId) -> Option<(ValueId, Product)> {
    graph.op(node).as_fused::<Linear>().filter(|linear| linear.is_identity())?;
    let [x, matrix] = graph.operands(node)[..] else { return None };
    let Type { dtype, dims } = graph.ty(matrix).clone();
    let [Dim::Fixed(size), width] = dims[..] else { return None };
    let value = ValueId { node, port: 0 };
    let (result, bias) = match biased(graph, value, size) {
        Some((result, bias)) => (result, Some(bias)),
        None => (value, None),
    };
    if Region::find(graph, &[result], Extent::Largest).is_some() {
        return None;
    }
    Some((x, Product { matrix, size, inputs: Type::new(dtype, [width]), bias, result }))
}

fn biased(graph: &Graph, value: ValueId, size: u64) -> Option<(ValueId, ValueId)> {
    let [(user, operand)] = graph.uses(value)[..] else { return None };
    let result = ValueId { node: user, port: 0 };
    let bias = binary(graph, result, BinaryOp::Add)?[1 - operand];
    let is_bias = *graph.ty(bias) == Type::new(DType::F32, [Dim::Fixed(size)]) && is_weight_expression(graph, bias);
    (is_bias && !graph.is_output(value)).then_some((result, bias))
}

fn merge(graph: &mut Graph, x: ValueId, products: &[Product]) -> Option<()> {
    let first = products.first()?;
    let mut b = Builder::like(graph, first.result.node);
    let matrices: Vec<ValueId> = products.iter().map(|p| p.matrix).collect();
    let matrix = b.concat(0, &matrices).ok()?;
    let y = if products.iter().all(|p| p.bias.is_none()) {
        b.fused1(Linear::identity(), &[x, matrix]).ok()?
    } else {
        let biases = products.iter().map(|p| p.bias).collect::<Option<Vec<_>>>()?;
        let bias = b.concat(0, &biases).ok()?;
        let product = b.fused1(Linear::identity(), &[x, matrix]).ok()?;
        b.add(product, bias).ok()?
    };
    let last = b.graph.ty(y).dims.len() - 1;
    let mut start = 0;
    for p in products {
        let part = b.slice(y, last, start, p.size).ok()?;
        b.graph.replace(p.result, part);
        start += p.size;
    }
    Some(())
}
