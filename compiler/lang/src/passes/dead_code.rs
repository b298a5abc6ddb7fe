//! Removes what no output needs: nodes, caches that nothing reads, bodies that nothing calls.
//!
//! before   %1 = exp %0 ; %2 = neg %0 ; return %2
//! after    %1 = neg %0 ; return %1

use super::Pass;
use super::matching::remove_dead;
use crate::graph::Program;
use crate::ops::Core;

pub(super) struct DeadCode;

impl Pass for DeadCode {
    fn name(&self) -> &'static str {
        "dead_code"
    }

    /// What nothing uses is in no kernel.
    fn required(&self) -> bool {
        true
    }

    fn run(&self, program: &mut Program) -> bool {
        let mut changed = false;
        for graph in &mut program.graphs {
            changed |= remove_dead(graph);
        }
        changed | remove_uncalled(program)
    }
}

fn remove_uncalled(program: &mut Program) -> bool {
    let mut called = vec![false; program.graphs.len()];
    if let Some(main) = called.first_mut() {
        *main = true;
    }
    // A graph calls only later ones, so one sweep finds all.
    for (i, graph) in program.graphs.iter().enumerate() {
        for node in graph.nodes().filter(|_| called[i]).collect::<Vec<_>>() {
            if let Some(Core::Call { graph, .. }) = graph.op(node).as_core() {
                called[*graph] = true;
            }
        }
    }
    if called.iter().all(|c| *c) {
        return false;
    }
    let number: Vec<usize> = called.iter().scan(0, |n, c| Some(std::mem::replace(n, *n + usize::from(*c)))).collect();
    let mut keep = called.iter();
    program.graphs.retain(|_| keep.next().copied().unwrap_or(false));
    for graph in &mut program.graphs {
        for node in graph.nodes().collect::<Vec<_>>() {
            if let Some(Core::Call { graph: callee, at }) = graph.op(node).as_core() {
                let call = Core::Call { graph: number[*callee], at: at.clone() };
                graph.set_op(node, call);
            }
        }
    }
    true
}
