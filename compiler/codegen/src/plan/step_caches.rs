//! Keys and values that nothing keeps still lie in pages, for the step: attention has one form of operand.

use xfc_lang::graph::{Dim, Graph, Program, Type, ValueId};
use xfc_lang::ops::Core;
use xfc_lang::ops::fused::Attention;

/// Ends the path of a cache that lasts for a step. No identifier of the language holds the character.
const SUFFIX: &str = "@step";

/// Whether a cache was added here, so that it lasts for a step whatever the mask.
pub fn is_for_step(path: &str) -> bool {
    path.ends_with(SUFFIX)
}

/// Puts a cache before every key and value of an attention that is not one.
///
/// before   k = rows .. ; y = attention q, k, v
/// after    k = rows .. ; k' = cache k ; y = attention q, k', v'
pub fn add(program: &Program) -> Program {
    let mut program = program.clone();
    for graph in &mut program.graphs {
        add_to(graph);
    }
    program
}

fn add_to(graph: &mut Graph) {
    let attentions: Vec<_> =
        graph.topological().into_iter().filter(|n| graph.op(*n).as_fused::<Attention>().is_some()).collect();
    let mut added = 0;
    for node in attentions {
        for operand in [1, 2] {
            let value = graph.operands(node)[operand];
            // A part of the keys lies where they do.
            if matches!(graph.op(value.node).as_core(), Some(Core::Cache { .. } | Core::Slice { .. })) {
                continue;
            }
            let ty = graph.ty(value);
            let Some(Dim::Axis(axis)) = ty.dims.first().copied() else { continue };
            let mut dims = ty.dims.clone();
            dims[0] = Dim::Visible(axis);
            let kept = Type::new(ty.dtype, dims);
            let origin = graph.origin(node).clone();
            let name = if operand == 1 { "k" } else { "v" };
            let path = format!("{}.{name}{added}{SUFFIX}", origin.path);
            added += 1;
            let cache: ValueId = graph.add(Core::Cache { path }, &[value], kept, origin);
            graph.set_operand(node, operand, cache);
        }
    }
}
