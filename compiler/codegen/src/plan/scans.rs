//! The launch of a scan: its states in the pages of their sequences, its values in buffers, its constants in the kernel.

use xfc_lang::graph::path::join;
use xfc_lang::graph::{Graph, NodeId, ValueId};
use xfc_lang::ops::Core;
use xfc_lang::ops::core::scan::{Given, operands as given, state_paths};
use xfc_runtime::artifact::manifest::Pack;

use super::build::Planner;
use super::divide::divide;
use super::kernel::{KernelSpec, ScanOperand, ScanSpec};
use super::place::{Operand, Place, row_type};
use crate::error::CodegenError;

impl Planner<'_> {
    pub(super) fn scan(
        &mut self,
        (graph, node): (&Graph, NodeId),
        at: &str,
        operands: Vec<Place>,
    ) -> Result<Vec<Place>, CodegenError> {
        let Some(Core::Scan { path, states, step }) = graph.op(node).as_core() else {
            return Err(CodegenError::bug("plan", "not a scan"));
        };
        let (states, path, name) = (*states, join(at, path), &join(at, &graph.origin(node).path));
        let values = graph.operands(node);
        let types: Vec<_> = values.iter().map(|v| graph.ty(*v).clone()).collect();
        let first = graph.types(node).first().ok_or_else(|| CodegenError::bug("plan", "a scan without results"))?;
        let (space, _) = row_type(first)?;
        let (mut params, mut list) = (Vec::new(), Vec::new());
        for ((place, how), ty) in operands.into_iter().zip(given(states, &types)).zip(&types) {
            params.push(match (how, place) {
                (Given::Token, place) => {
                    list.push(Operand::Place(self.dense(place, ty, name)?));
                    ScanOperand::Token
                }
                (_, Place::Constant { values, .. }) => ScanOperand::Constant(values.to_vec()),
                (_, Place::Weight(expr)) => {
                    list.push(Operand::Weight(self.weights.intern(&expr, ty.dtype, Pack::Plain)?));
                    ScanOperand::Shared
                }
                _ => {
                    return Err(CodegenError::unsupported(
                        format!("a scan that reads {ty}, computed for all tokens"),
                        name,
                    ));
                }
            });
        }
        let (mut group, mut page_bytes) = (0, Vec::new());
        for path in state_paths(&path, states) {
            let slot = self.caches.slots.get(&path).copied();
            let slot = slot.ok_or_else(|| CodegenError::bug("plan", format!("no slot for state `{path}`")))?;
            group = slot.group;
            page_bytes.push(slot.page_bytes);
            list.push(Operand::Cache { group, slot: slot.slot });
        }
        let divided = divide(step, states);
        let kernel = self.intern_kernel(KernelSpec::Scan(ScanSpec {
            axis: space.axis,
            parts: divided.parts,
            states,
            step: divided.step,
            params: params.into_iter().zip(divided.params).collect(),
            outputs: divided.outputs,
            group,
            page_bytes,
        }));
        let mut results = Vec::new();
        for port in 0..graph.types(node).len() {
            let place = self.new_buffer(graph.ty(ValueId { node, port }))?;
            list.push(Operand::Place(place.clone()));
            results.push(place);
        }
        self.launch(name, space, kernel, list);
        Ok(results)
    }
}
