//! Makes two products that share their input and meet elementwise into one `linear` of two parts.
//!
//! before   g = linear x, w0 ; u = linear x, w1 ; s = sigmoid g ; t = mul g, s ; y = mul t, u
//! after    y = linear x, w0, w1 {parts = 2, epilogue = (g, u) { s = sigmoid g ; t = mul g, s ; y = mul t, u }}

use std::collections::HashMap;

use super::Pass;
use super::matching::remove_dead;
use super::region::{Extent, Region};
use crate::graph::build::Builder;
use crate::graph::{DType, Graph, NodeId, Program, Type, ValueId};
use crate::ops::fused::Linear;

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
    let plain: Vec<NodeId> =
        order.into_iter().filter(|n| graph.op(*n).as_fused::<Linear>().is_some_and(Linear::is_identity)).collect();
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
    let [x, w0] = graph.operands(first)[..] else { return None };
    let [x1, w1] = graph.operands(second)[..] else { return None };
    if x != x1 || graph.ty(w0) != graph.ty(w1) {
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
    for (i, v) in region.extras.iter().enumerate() {
        scalars.insert(*v, epilogue.add_param(format!("extra{i}"), Type::scalar(graph.ty(*v).dtype)));
    }
    let y = region.scalars(graph, &mut epilogue, scalars)?;
    epilogue.add_output("y", y);

    let operands = [&[x, w0, w1], &region.extras[..]].concat();
    let fused = Builder::like(graph, first).fused1(Linear { parts: 2, epilogue }, &operands).ok()?;
    graph.replace(result, fused);
    remove_dead(graph);
    Some(())
}
