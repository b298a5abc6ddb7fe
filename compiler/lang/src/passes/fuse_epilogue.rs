//! Moves the elementwise operations behind a product into its epilogue: bias, activation, residual, scale, cap, cast.
//!
//! before   a = linear x, w ; b = add a, bias ; g = tanh b ; y = add g, residual
//! after    y = linear x, w, bias, residual {epilogue = (acc, e0, e1) { b = add acc, e0 ; g = tanh b ; y = add g, e1 }}

use std::collections::HashMap;

use super::Pass;
use super::matching::remove_dead;
use super::region::{Extent, Region};
use crate::graph::build::Builder;
use crate::graph::{DType, Graph, NodeId, Program, Type, ValueId};
use crate::ops::fused::Linear;

pub(super) struct FuseEpilogue;

impl Pass for FuseEpilogue {
    fn name(&self) -> &'static str {
        "fuse_epilogue"
    }

    fn run(&self, program: &mut Program) -> bool {
        let mut changed = false;
        for graph in &mut program.graphs {
            // A rewrite removes nodes, so the order is taken anew after each.
            while graph.topological().into_iter().any(|node| rewrite(graph, node).is_some()) {
                changed = true;
            }
        }
        changed
    }
}

fn rewrite(graph: &mut Graph, node: NodeId) -> Option<()> {
    let linear = graph.op(node).as_fused::<Linear>()?.clone();
    let value = ValueId { node, port: 0 };
    if graph.ty(value).dtype != DType::F32 {
        return None;
    }
    let region = Region::find(graph, &[value], Extent::Largest)?;
    let result = region.result()?;

    // The old epilogue, then the region; operands of both, each once.
    let mut operands = graph.operands(node);
    let mut epilogue = Graph::new("epilogue");
    let mut params = Vec::new();
    for param in linear.epilogue.params() {
        params.push(epilogue.add_param(param.name.clone(), linear.epilogue.ty(param.value).clone()));
    }
    let mut scalars = HashMap::new();
    for extra in &region.extras {
        let known = operands.iter().skip(1 + linear.parts).position(|v| v == extra);
        let param = match known {
            Some(i) => params[linear.parts + i],
            None => {
                let name = format!("extra{}", operands.len() - 1 - linear.parts);
                operands.push(*extra);
                let param = epilogue.add_param(name, Type::scalar(graph.ty(*extra).dtype));
                params.push(param);
                param
            }
        };
        scalars.insert(*extra, param);
    }
    let old = linear.epilogue.params().len();
    let accumulated = Builder::new(&mut epilogue).lift(&linear.epilogue, &params[..old]).ok()?;
    scalars.insert(value, *accumulated.first()?);
    let y = region.scalars(graph, &mut epilogue, scalars)?;
    epilogue.add_output("y", y);

    let fused = Linear { parts: linear.parts, epilogue };
    let fused = Builder::like(graph, node).fused1(fused, &operands).ok()?;
    graph.replace(result, fused);
    remove_dead(graph);
    Some(())
}
