//! Instance paths: how the paths of a body become absolute, and how one path names a stack of parameters.

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

/// Most parameters in a stack: as many as a list of a card may have.
pub const MAX_STACK: u64 = 16_384;

/// Parameters of equal shapes that a weight's path names together, stacked along a new dimension 0: `experts.{0..64}.up.weight` is
/// `experts.0.up.weight` to `experts.63.up.weight`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stack<'p> {
    /// What stands before the number, up to its dot.
    pub before: &'p str,
    /// The first number.
    pub first: u64,
    /// One more than the last number.
    pub end: u64,
    /// What stands behind the number, from its dot on.
    pub after: &'p str,
}

impl<'p> Stack<'p> {
    /// The stack that a path names; `None` when it names one parameter.
    ///
    /// # Errors
    /// In words: braces that are not one range of at most [`MAX_STACK`] numbers as a whole component of the path.
    pub fn of(path: &'p str) -> Result<Option<Self>, String> {
        if !path.contains(['{', '}']) {
            return Ok(None);
        }
        let stack = path.split_once('{').and_then(|(before, rest)| {
            let (range, after) = rest.split_once('}')?;
            let (first, end) = range.split_once("..")?;
            let number = |text: &str| text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten();
            let whole = (before.is_empty() || before.ends_with(['.', '/']))
                && (after.is_empty() || after.starts_with('.'))
                && !after.contains(['{', '}']);
            let stack = Stack { before, first: number(first)?, end: number(end)?, after };
            (whole && stack.first < stack.end && stack.end - stack.first <= MAX_STACK).then_some(stack)
        });
        stack.map(Some).ok_or_else(|| {
            format!("'{path}' has braces that are not one range of 1 to {MAX_STACK} numbers, as in 'experts.{{0..64}}.weight'")
        })
    }

    /// The paths of its parameters, in order.
    pub fn paths(self) -> impl Iterator<Item = String> {
        (self.first..self.end).map(move |i| format!("{}{i}{}", self.before, self.after))
    }
}

/// The parameters that a weight's path names, in order: those of its stack, else itself.
pub fn parameters(path: &str) -> Vec<String> {
    match Stack::of(path) {
        Ok(Some(stack)) => stack.paths().collect(),
        Ok(None) | Err(_) => vec![path.to_owned()],
    }
}

/// The components of a path, between its dots: the dots of a range are none.
pub fn components(path: &str) -> impl Iterator<Item = &str> {
    let mut depth = 0usize;
    path.split(move |c| {
        match c {
            '{' => depth += 1,
            '}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        c == '.' && depth == 0
    })
}

/// A path without its last component, and that component.
pub fn split_last(path: &str) -> (&str, &str) {
    let last = components(path).last().unwrap_or(path);
    (path[..path.len() - last.len()].trim_end_matches('.'), last)
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
    use super::{Stack, join, parameters};

    #[test]
    fn paths_join() {
        assert_eq!(join("", "a.b"), "a.b");
        assert_eq!(join("layers.3", "mlp.w"), "layers.3.mlp.w");
        assert_eq!(join("layers.3", "/shared.w"), "shared.w");
        assert_eq!(join("layers.3", ""), "layers.3");
    }

    #[test]
    fn a_range_names_a_stack() {
        assert_eq!(parameters("a.{9..11}.w"), ["a.9.w", "a.10.w"]);
        assert_eq!(parameters(&join("layers.3", "{0..1}")), ["layers.3.0"]);
        assert_eq!(parameters("/{2..3}.w"), ["/2.w"]);
        assert_eq!(parameters("a.w"), ["a.w"]);
        assert_eq!(Stack::of("a.{0..64}.w").unwrap().map(|s| (s.first, s.end)), Some((0, 64)));
        let wrong = [
            "a.{0..0}",
            "a.{2..1}",
            "a.{0..}",
            "a.{..2}",
            "a.{0..2",
            "a.0..2}",
            "a.b{0..2}",
            "a.{0..2}b",
            "a.{0..2}.{0..2}",
            "a.{+0..2}",
            "a.{0..99999}",
            "a.{0...2}",
            "}a{",
            "a.{0..99999999999999999999}",
        ];
        for path in wrong {
            assert!(Stack::of(path).is_err(), "{path}");
        }
    }
}
