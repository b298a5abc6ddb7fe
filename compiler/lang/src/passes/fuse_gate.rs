//! Makes two products that share their input and meet elementwise into one `linear` of two parts.
//!
//! before   g = linear x, w0 ; u = linear x, w1 ; s = sigmoid g ; t = mul g, s ; y = mul t, u
//! after    y = linear x, w0, w1 {parts = 2, epilogue = (g, u) { s = sigmoid g ; t = mul g, s ; y = mul t, u }}

use std::collections::HashMap;

use super::Pass;
use super::matching::remove_dead;
use super::product::Product;
use super::region::{Extent, Region};
use crate::graph::build::Builder;
use crate::graph::{DType, Graph, NodeId, Program, Type, ValueId};

pub(super) struct FuseGate;

impl Pass for FuseGate {
    fn name(&self) -> &'static str {
        "fuse_gate"
    }

    fn run(&self, program: &mut Program) -> bool {
        let mut changed = false;
        for graph in &mut program.graphs {
            while first_pair(graph).is_some() {
                changed = true;
            }
            remove_dead(graph);
        }
        changed
    }
}

fn first_pair(graph: &mut Graph) -> Option<()> {
    let order = graph.topological();
    let is_plain = |n: &NodeId| Product::of(graph, *n).is_some_and(|product| product.is_identity());
    let plain: Vec<NodeId> = order.into_iter().filter(is_plain).collect();
    for (i, second) in plain.iter().enumerate() {
        for first in &plain[..i] {
            if rewrite(graph, *first, *second).is_some() {
                return Some(());
            }
        }
    }
    None
}

fn rewrite(graph: &mut Graph, first: NodeId, second: NodeId) -> Option<()> {
    let (one, two) = (graph.operands(first), graph.operands(second));
    let ([x, w0, index @ ..], [x1, w1, index1 @ ..]) = (&one[..], &two[..]) else { return None };
    if x != x1 || graph.ty(*w0) != graph.ty(*w1) || index != index1 {
        return None;
    }
    let accumulators = [ValueId { node: first, port: 0 }, ValueId { node: second, port: 0 }];
    let region = Region::find(graph, &accumulators, Extent::Smallest)?;
    let result = region.result()?;

    let mut epilogue = Graph::new("epilogue");
    let mut scalars = HashMap::new();
    for (i, v) in accumulators.iter().enumerate() {
        scalars.insert(*v, epilogue.add_param(format!("acc{i}"), Type::scalar(DType::F32)));
    }
    let mut product = Product::of(graph, first)?.like(2, Graph::new("epilogue"));
    let mut operands = [&[*x, *w0, *w1], index].concat();
    let mut extras = Vec::new();
    for v in &region.extras {
        let number = product.extra(graph, &mut operands, *v);
        if number == extras.len() {
            extras.push(epilogue.add_param(format!("extra{number}"), Type::scalar(graph.ty(*v).dtype)));
        }
        scalars.insert(*v, *extras.get(number)?);
    }
    let y = region.scalars(graph, &mut epilogue, scalars)?;
    epilogue.add_output("y", y);

    product.epilogue = epilogue;
    let fused = product.add(&mut Builder::like(graph, first), &operands).ok()?;
    graph.replace(result, fused);
    remove_dead(graph);
    Some(())
}
