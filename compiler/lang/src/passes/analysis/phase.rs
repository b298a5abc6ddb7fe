//! Which sequences of a step need a node: all, those that begin in it, or those that have earlier tokens.
//!
//! An attention [from the start](Attention::from_start) reads its keys and values for the former alone, and the result made in another way for the
//! latter. What leads to nothing else is done when a step has such sequences.

use std::collections::HashMap;

use crate::graph::{Graph, NodeId, ValueId};
use crate::ops::Core;
use crate::ops::fused::Attention;

/// For which sequences of a step something is needed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Need {
    /// Those whose first token is in the step.
    pub from_start: bool,
    /// Those that have earlier tokens.
    pub continued: bool,
}

impl Need {
    const ALL: Need = Need { from_start: true, continued: true };

    fn or(self, other: Need) -> Need {
        Need { from_start: self.from_start || other.from_start, continued: self.continued || other.continued }
    }

    fn and(self, other: Need) -> Need {
        Need { from_start: self.from_start && other.from_start, continued: self.continued && other.continued }
    }
}

/// For which sequences each node is needed.
pub fn needed(graph: &Graph) -> HashMap<NodeId, Need> {
    let mut needs: HashMap<NodeId, Need> = HashMap::new();
    let mut order = graph.topological();
    order.reverse();
    for node in order {
        let mut need = Need::default();
        for port in 0..graph.types(node).len() {
            let value = ValueId { node, port };
            if graph.is_output(value) {
                need = Need::ALL;
            }
            for (user, operand) in graph.uses(value) {
                need = need.or(of_operand(graph, user, operand, needs.get(&user).copied().unwrap_or(Need::ALL)));
            }
        }
        needs.insert(node, need);
    }
    needs
}

/// For whom an operand is needed by a user that is needed for `those`.
fn of_operand(graph: &Graph, user: NodeId, operand: usize, those: Need) -> Need {
    match graph.op(user) {
        // Later steps read what is kept of any sequence, unless only sequences that begin read it: then it is kept for nobody.
        op if matches!(op.as_core(), Some(Core::Cache { .. })) && those.continued => Need::ALL,
        op => match op.as_fused::<Attention>() {
            Some(attention) if attention.from_start => {
                let otherwise = operand + 1 == graph.operands(user).len();
                those.and(Need { from_start: !otherwise, continued: otherwise })
            }
            _ => those,
        },
    }
}
