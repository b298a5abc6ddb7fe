//! Products of numbers in blocks as targets make them where they multiply bf16: what tokens bring is not rounded to 8 bits.
//!
//! before   wq = cast w : int8g32[O, I] ; xq = cast x : token8g32[tokens, I] ; y = linear xq, wq
//! after    wb = cast wq : bf16[O, I] ; xb = cast x : bf16[tokens, I] ; y = linear xb, wb
//!
//! That tokens are rounded to 8 bits is for instructions that multiply bytes, and a target that has faster ones of bf16 says so of a product and a phase in its plan
//! (`Variant::multiplies`). Compiled code of such steps is held to the program that this makes.

use std::collections::{BTreeMap, HashMap};

use super::QuantiseError;
use crate::graph::blocks::BlockForm;
use crate::graph::build::Builder;
use crate::graph::path::{instances, join, parameters};
use crate::graph::{DType, Graph, NodeId, Program, ValueId};
use crate::ops::{Core, ShapeError};

/// Lets those products with matrices in blocks of integers multiply bf16 of whose parameters, by absolute path, `is_meant` holds. Instances of a body are alike.
///
/// # Errors
/// Instances of a body that are not; what a prepared program has not.
pub fn multiply_halves(program: &mut Program, is_meant: &dyn Fn(&str) -> bool) -> Result<(), QuantiseError> {
    let mut meant: BTreeMap<(usize, NodeId), bool> = BTreeMap::new();
    for instance in instances(program).unwrap_or_default() {
        let graph = &program.graphs[instance.graph];
        for node in graph.nodes() {
            let Some(paths) = parameters_of(graph, node) else { continue };
            let of: Vec<String> = paths.iter().flat_map(|path| parameters(&join(&instance.at, path))).collect();
            let is = of.iter().any(|path| is_meant(path));
            let alike = of.iter().all(|path| is_meant(path) == is);
            if !alike || *meant.entry((instance.graph, node)).or_insert(is) != is {
                let problem = format!("products with {} do not all multiply the same", of.join(", "));
                return Err(ShapeError(problem).into());
            }
        }
    }
    let mut known = HashMap::new();
    for ((number, node), _) in meant.into_iter().filter(|(_, is)| *is) {
        rewrite(&mut program.graphs[number], node, number, &mut known)?;
    }
    program.graphs.iter_mut().for_each(|graph| {
        super::super::matching::remove_dead(graph);
    });
    Ok(())
}

/// The form of the blocks that a value is in.
fn form(graph: &Graph, value: ValueId) -> Option<BlockForm> {
    graph.ty(value).dtype.blocks().map(|blocks| blocks.form)
}

/// Paths of the body of what the matrices of a product are made of to which tokens bring integers; `None` of anything else.
fn parameters_of(graph: &Graph, node: NodeId) -> Option<Vec<String>> {
    let operands = graph.operands(node);
    operands.iter().find(|value| form(graph, **value) == Some(BlockForm::Token8))?;
    let matrices = operands.into_iter().filter(|value| form(graph, *value).is_some_and(BlockForm::is_of_weights));
    Some(matrices.flat_map(|matrix| super::leaves(graph, matrix)).collect())
}

fn rewrite(
    graph: &mut Graph,
    node: NodeId,
    number: usize,
    known: &mut HashMap<(usize, ValueId), ValueId>,
) -> Result<(), ShapeError> {
    for (operand, value) in graph.operands(node).into_iter().enumerate() {
        let Some(form) = form(graph, value) else { continue };
        let brought = match graph.op(value.node).as_core() {
            Some(Core::Cast) => graph.operands(value.node)[0],
            _ => return Err(ShapeError(format!("{} that is no cast", graph.ty(value)))),
        };
        let wide = if form == BlockForm::Token8 { brought } else { value };
        let half = match known.get(&(number, wide)) {
            _ if graph.ty(wide).dtype == DType::BF16 => wide,
            Some(half) => *half,
            None => {
                let half = Builder::like(graph, node).cast(wide, DType::BF16)?;
                known.insert((number, wide), half);
                half
            }
        };
        graph.set_operand(node, operand, half);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::parse::parse;
    use crate::graph::verify::verify;

    const PROGRAM: &str = "program \"p\" axes [tokens]\n\ngraph 0 \"model\" (%0 x: f32[tokens, 64]) {\n\
         \x20 %1 = call %0 {graph = 1, at = \"a\"} : f32[tokens, 64]\n  %2 = call %1 {graph = 1, at = \"b\"} : f32[tokens, 64]\n  return y = %2\n}\n\n\
         graph 1 \"body\" (%0 x: f32[tokens, 64]) {\n\
         \x20 %1 = weight {path = \"w\"} : bf16[64, 64]\n  %2 = cast %1 : int8g32[64, 64]\n\
         \x20 %3 = weight {path = \"v\"} : bf16[64, 64]\n  %4 = cast %3 : int4g32[64, 64]\n\
         \x20 %5 = cast %0 : token8g32[tokens, 64]\n\
         \x20 %6 = contract %5, %2 {spec = \"ni,oi->no\"} : f32[tokens, 64]\n\
         \x20 %7 = contract %5, %4 {spec = \"ni,oi->no\"} : f32[tokens, 64]\n  %8 = add %6, %7 : f32[tokens, 64]\n  return y = %8\n}\n";

    #[test]
    fn what_tokens_bring_is_not_rounded_to_8_bits() {
        let of = |meant: &[&str]| {
            let mut program = parse(PROGRAM).unwrap();
            multiply_halves(&mut program, &|path| meant.iter().any(|end| path.ends_with(end)))
                .map_err(|e| e.to_string())
                .map(|()| {
                    verify(&program).unwrap();
                    program.to_string()
                })
        };
        let count = |text: &str, what: &str| text.matches(what).count();
        let plain = of(&[]).unwrap();
        assert_eq!([count(&plain, ": token8g32"), count(&plain, "= cast")], [1, 3]);
        // Each matrix is still rounded to its blocks, and both products share their inputs.
        let both = of(&["w", "v"]).unwrap();
        assert_eq!([count(&both, ": token8g32"), count(&both, ": int8g32"), count(&both, ": int4g32")], [0, 1, 1]);
        assert_eq!(count(&both, ": bf16[tokens, 64]"), 1, "{both}");
        let one = of(&["w"]).unwrap();
        assert_eq!([count(&one, ": token8g32"), count(&one, ": bf16[tokens, 64]")], [1, 1]);
        // The instances of a body are one graph.
        assert!(of(&["a.w"]).unwrap_err().contains("b.w"));
    }
}
