//! What people would call a value that has no name of its own where it is read: the name of what it is made of, or a part of.

use std::collections::BTreeSet;

use super::{Graph, ValueId};
use crate::ops::Core;

/// Most operations that are looked through.
const FAR: usize = 16;

/// The name of a value: its own, or of what it is behind views, casts and caches; none where several things make it and nobody named it.
pub fn called(graph: &Graph, mut value: ValueId) -> Option<String> {
    let last = |path: &str| path.rsplit('.').next().filter(|name| !name.is_empty()).map(str::to_owned);
    for _ in 0..FAR {
        let op = graph.op(value.node).as_core();
        match op {
            Some(Core::Arg { index }) => return graph.params().get(*index).map(|p| p.name.clone()),
            Some(Core::Weight { path }) => return last(path),
            _ => {}
        }
        if let Some(label) = graph.labels().iter().find(|label| label.value == value) {
            return last(&label.path);
        }
        let looked_through = matches!(
            op,
            Some(Core::Cast | Core::Reshape | Core::Cache { .. } | Core::Transpose { .. } | Core::Broadcast)
        );
        value = *graph.operands(value.node).first().filter(|_| looked_through)?;
    }
    None
}

/// Names of values, each once: the second of a name is numbered.
pub fn distinct(names: impl IntoIterator<Item = String>) -> Vec<String> {
    let mut used = BTreeSet::new();
    let mut distinct = |name: String| {
        let numbered = (2..).map(|n| format!("{name}{n}"));
        let free = std::iter::once(name.clone()).chain(numbered).find(|name| !used.contains(name)).unwrap_or(name);
        used.insert(free.clone());
        free
    };
    names.into_iter().map(&mut distinct).collect()
}

/// Calls parameters whose names begin with `prefix` after what the first call of their graph gives them, callers before what they call.
pub fn name_params(graphs: &mut [Graph], prefix: &str) {
    let mut named = BTreeSet::new();
    for caller in 0..graphs.len() {
        for node in graphs[caller].topological() {
            let Some(Core::Call { graph: callee, .. }) = graphs[caller].op(node).as_core() else { continue };
            let callee = *callee;
            if callee <= caller || !named.insert(callee) {
                continue;
            }
            let operands = graphs[caller].operands(node);
            let names: Vec<String> = graphs[callee]
                .params()
                .iter()
                .zip(operands)
                .map(|(param, operand)| match called(&graphs[caller], operand) {
                    Some(name) if param.name.starts_with(prefix) => name,
                    _ => param.name.clone(),
                })
                .collect();
            for (i, name) in distinct(names).into_iter().enumerate() {
                graphs[callee].rename_param(i, name);
            }
        }
    }
}
