//! The launch of a product with the matrices of chosen experts.

use xfc_lang::graph::{DType, Dim, Graph, NodeId, ValueId};
use xfc_lang::ops::fused::ExpertLinear;
use xfc_runtime::artifact::manifest::Pack;

use super::build::Planner;
use super::kernel::{Experts, Extra, KernelSpec, LinearSpec};
use super::launches::extra;
use super::place::{Operand, Place, row_type};
use crate::error::CodegenError;

impl Planner<'_> {
    pub(super) fn experts(
        &mut self,
        (graph_idx, graph, node): (usize, &Graph, NodeId),
        name: &str,
        product: &ExpertLinear,
        operands: Vec<Place>,
    ) -> Result<Place, CodegenError> {
        let values = graph.operands(node);
        let ty = |i: usize| graph.ty(values[i]);
        let result_ty = graph.ty(ValueId { node, port: 0 });
        let (space, out_dims) = row_type(result_ty)?;
        let index = 1 + product.parts;
        let (&[chosen, outputs], Some(Dim::Fixed(inputs)), Some(Dim::Fixed(count))) =
            (&out_dims[..], ty(0).dims.last(), ty(1).dims.first())
        else {
            return Err(CodegenError::unsupported(format!("a product of {} with {}", ty(0), ty(1)), name));
        };
        let experts = Experts { count: *count, chosen, by_choice: ExpertLinear::by_choice(ty(0), ty(index)) };
        let kernel = self.kernel((graph_idx, node), Vec::new(), |this| {
            let extras = values[1 + index..].iter().enumerate().map(|(i, v)| {
                if !product.stacked.contains(&i) {
                    return extra(graph.ty(*v), outputs, chosen, name);
                }
                match (&graph.ty(*v).dims[..], graph.ty(*v).dtype) {
                    (&[_, Dim::Fixed(n)], dtype @ (DType::F32 | DType::BF16)) if n == 1 || n == outputs => {
                        Ok(Extra { dtype, per_row: false, per_column: n == outputs, per_expert: true })
                    }
                    _ => Err(CodegenError::unsupported(format!("an epilogue with the stack {}", graph.ty(*v)), name)),
                }
            });
            Ok(KernelSpec::Linear(LinearSpec {
                space,
                times: 1,
                heads: 1,
                experts: Some(experts),
                inputs: *inputs,
                outputs,
                parts: product.parts,
                operand: ty(1).dtype.multiplied(),
                epilogue: product.epilogue.clone(),
                extras: extras.collect::<Result<_, _>>()?,
                result: result_ty.dtype,
                widened: this.is_widened(ty(1).dtype),
            }))
        })?;
        let pack = self.target.pack(ty(1).dtype);
        let mut list = Vec::new();
        for (i, place) in operands.into_iter().enumerate() {
            list.push(match place {
                Place::Weight(expr) => {
                    let layout = if (1..index).contains(&i) { pack } else { Pack::Plain };
                    Operand::Weight(self.weights.intern(&expr, ty(i).dtype, layout)?)
                }
                place => Operand::Place(self.dense(place, ty(i), name)?),
            });
        }
        let out = self.new_buffer(result_ty)?;
        list.push(Operand::Place(out.clone()));
        self.launch(name, space, kernel, list);
        Ok(out)
    }
}
