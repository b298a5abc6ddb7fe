//! Moves the elementwise operations behind a product into its epilogue: bias, activation, residual, scale, cap, cast.
//!
//! before   a = linear x, w ; b = add a, bias ; g = tanh b ; y = add g, residual
//! after    y = linear x, w, bias, residual {epilogue = (acc, e0, e1) { b = add acc, e0 ; g = tanh b ; y = add g, e1 }}

use std::collections::HashMap;

use super::Pass;
use super::matching::remove_dead;
use super::product::Product;
use super::region::{Extent, Region};
use crate::graph::build::Builder;
use crate::graph::{DType, Graph, NodeId, Program, Type, ValueId};

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
    let mut product = Product::of(graph, node)?;
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
    for param in product.epilogue.params() {
        params.push(epilogue.add_param(param.name.clone(), product.epilogue.ty(param.value).clone()));
    }
    let mut scalars = HashMap::new();
    for extra in &region.extras {
        let number = product.extra(graph, &mut operands, *extra);
        let at = product.parts + number;
        if at == params.len() {
            params.push(epilogue.add_param(format!("extra{number}"), Type::scalar(graph.ty(*extra).dtype)));
        }
        scalars.insert(*extra, *params.get(at)?);
    }
    let old = product.epilogue.params().len();
    let accumulated = Builder::new(&mut epilogue).lift(&product.epilogue, &params[..old]).ok()?;
    scalars.insert(value, *accumulated.first()?);
    let y = region.scalars(graph, &mut epilogue, scalars)?;
    epilogue.add_output("y", y);

    product.epilogue = epilogue;
    let fused = product.add(&mut Builder::like(graph, node), &operands).ok()?;
    graph.replace(result, fused);
    remove_dead(graph);
    Some(())
}
