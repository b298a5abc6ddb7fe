//! Instance paths: how the paths of a body become absolute.

use super::{Graph, Program};
use crate::ops::Core;

/// `path` of a body that is called at the absolute path `at`. A leading `/` makes a path absolute already; an absolute path is
/// returned without it.
pub fn join(at: &str, path: &str) -> String {
    match path.strip_prefix('/') {
        Some(absolute) => absolute.to_string(),
        None if at.is_empty() => path.to_string(),
        None if path.is_empty() => at.to_string(),
        None => format!("{at}.{path}"),
    }
}

/// One use of a body: graph number `graph` of the program at the absolute path `at`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    /// Index into [`Program::graphs`].
    pub graph: usize,
    /// Absolute path; empty for the model itself.
    pub at: String,
}

/// Most instances that [`instances`] lists: far more than any model has layers.
pub const MAX_INSTANCES: usize = 100_000;

/// Every use of every graph, callers before callees, in the order of the calls; `None` when there are more than [`MAX_INSTANCES`],
/// or when a graph calls itself or an earlier one.
pub fn instances(program: &Program) -> Option<Vec<Instance>> {
    let calls: Vec<Vec<(usize, String)>> = program.graphs.iter().map(calls).collect();
    let mut list = vec![Instance { graph: 0, at: String::new() }];
    let mut next = 0;
    while let Some(Instance { graph, at }) = list.get(next).cloned() {
        for (callee, relative) in calls.get(graph)? {
            if *callee <= graph || list.len() >= MAX_INSTANCES {
                return None;
            }
            list.push(Instance { graph: *callee, at: join(&at, relative) });
        }
        next += 1;
    }
    Some(list)
}

fn calls(graph: &Graph) -> Vec<(usize, String)> {
    graph
        .topological()
        .into_iter()
        .filter_map(|node| match graph.op(node).as_core() {
            Some(Core::Call { graph, at }) => Some((*graph, at.clone())),
            _ => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::join;

    #[test]
    fn paths_join() {
        assert_eq!(join("", "a.b"), "a.b");
        assert_eq!(join("layers.3", "mlp.w"), "layers.3.mlp.w");
        assert_eq!(join("layers.3", "/shared.w"), "shared.w");
        assert_eq!(join("layers.3", ""), "layers.3");
    }
}
