//! Numbers by which people know a model: parameters, those at work for a token, what is kept of one, layers.
//!
//! Counted on the program, so that they are what is computed and not what is said; [`disagreements`] compares them with what the authors print.

use std::collections::{BTreeMap, BTreeSet};

use super::{Arch, Node};
use crate::graph::path::{Stack, instances, join};
use crate::graph::{Dim, Graph, Program, ValueId};
use crate::ops::Core;
use crate::ops::shape::fixed_size;
use crate::spec::{ActiveCounts, Published};
use crate::view;

/// The numbers of a model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Numbers {
    /// Parameters, each tensor counted once.
    pub parameters: u64,
    /// Those of tables that are only looked up: embeddings that are not the head too, learned positions.
    pub lookups: u64,
    /// Those that a token does not meet: of stacks that are only read by number, all but as many as a token gives numbers.
    pub idle: u64,
    /// Values kept between steps of each element of an axis, over all layers: `(axis, values)`.
    pub kept: Vec<(String, u64)>,
    /// Values of all states of a sequence, however long it is.
    pub state: u64,
    /// Lists of modules, by path: `(layers, 28)`.
    pub stacks: Vec<(String, usize)>,
}

impl Numbers {
    /// Counts.
    pub fn of(arch: &Arch, program: &Program) -> Self {
        let parameters = arch.parameter_count();
        let size = |path: &str| arch.parameters.iter().find(|p| p.path == path).map_or(0, |p| p.shape.iter().product());
        let mut stacks = Vec::new();
        stacks_of(&arch.root, &mut stacks);
        Numbers {
            parameters,
            lookups: looked_up(program).iter().map(|path| size(path)).sum(),
            idle: idle(program),
            kept: kept(program),
            state: state(program),
            stacks,
        }
    }

    /// Parameters that take part in computing one token.
    pub fn active(&self, counts: ActiveCounts) -> u64 {
        let all = self.parameters - self.idle;
        match counts {
            ActiveCounts::All => all,
            ActiveCounts::WithoutLookups => all.saturating_sub(self.lookups),
        }
    }

    /// Bytes kept of a token, in 16 bits, before any window ends: of the axis `tokens`.
    pub fn cache_bytes_per_token(&self) -> u64 {
        self.kept.iter().find(|(axis, _)| axis == "tokens").map_or(0, |(_, values)| 2 * values)
    }

    /// Where the published numbers are others than these: one sentence each.
    pub fn disagreements(&self, published: &Published) -> Vec<String> {
        let counts = [
            ("parameters", published.parameters, self.parameters),
            ("active parameters", published.active, self.active(published.active_counts)),
        ];
        let mut found: Vec<String> = counts
            .into_iter()
            .filter_map(|(what, stated, ours)| {
                let stated = stated.filter(|stated| !stated.is(ours))?;
                Some(format!("{} has {stated} {what}, and the wiring has {ours}", published.model))
            })
            .collect();
        if let Some(stated) = published.cache_bytes_per_token.filter(|stated| *stated != self.cache_bytes_per_token()) {
            found.push(format!(
                "{} keeps {stated} bytes of a token, and the wiring keeps {}",
                published.model,
                self.cache_bytes_per_token()
            ));
        }
        found
    }
}

/// Parameters of stacks that a token does not meet.
fn idle(program: &Program) -> u64 {
    let mut chosen: BTreeMap<String, (u64, u64, u64)> = BTreeMap::new();
    for instance in instances(program).unwrap_or_default() {
        let graph = &program.graphs[instance.graph];
        for node in graph.nodes() {
            let Some(Core::Weight { path }) = graph.op(node).as_core() else { continue };
            let path = join(&instance.at, path);
            let ([Dim::Fixed(n), own @ ..], Ok(Some(_))) = (&graph.types(node)[0].dims[..], Stack::of(&path)) else {
                continue;
            };
            let weight = ValueId { node, port: 0 };
            let met = if only_looked_up(graph, weight) {
                let numbers = |(user, _): (_, usize)| {
                    let indices = &graph.ty(graph.operands(user)[1]).dims;
                    indices.iter().filter_map(|d| d.fixed()).fold(1, u64::saturating_mul)
                };
                graph.uses(weight).into_iter().map(numbers).fold(0, u64::saturating_add)
            } else {
                *n
            };
            let own = own.iter().filter_map(|d| d.fixed()).fold(1, u64::saturating_mul);
            let entry = chosen.entry(path).or_insert((0, *n, own));
            entry.0 = entry.0.saturating_add(met);
        }
    }
    chosen.into_values().map(|(met, n, own)| n.saturating_sub(met).saturating_mul(own)).fold(0, u64::saturating_add)
}

/// Paths of the weights whose every use is that rows of them are looked up.
fn looked_up(program: &Program) -> BTreeSet<String> {
    let (mut tables, mut others) = (BTreeSet::new(), BTreeSet::new());
    for instance in instances(program).unwrap_or_default() {
        let graph = &program.graphs[instance.graph];
        for node in graph.nodes() {
            let Some(Core::Weight { path }) = graph.op(node).as_core() else { continue };
            let only = only_looked_up(graph, ValueId { node, port: 0 }) && !path.contains('{');
            if only { &mut tables } else { &mut others }.insert(join(&instance.at, path));
        }
    }
    tables.difference(&others).cloned().collect()
}

fn only_looked_up(graph: &Graph, weight: ValueId) -> bool {
    let uses = graph.uses(weight);
    let is_table = |(user, operand): &(_, usize)| *operand == 0 && graph.op(*user).as_core() == Some(&Core::Gather);
    !graph.is_output(weight) && !uses.is_empty() && uses.iter().all(is_table)
}

/// Values that all caches keep of each element, by axis; those that last for a step only are none.
fn kept(program: &Program) -> Vec<(String, u64)> {
    let mut kept: BTreeMap<usize, u64> = BTreeMap::new();
    let facts = view::caches(&view::recognised(program)).unwrap_or_default();
    let for_step: BTreeSet<&String> =
        facts.iter().filter(|f| f.keep == view::Keep::Step).flat_map(|f| &f.paths).collect();
    for instance in instances(program).unwrap_or_default() {
        let graph = &program.graphs[instance.graph];
        for node in graph.nodes() {
            let Some(Core::Cache { path }) = graph.op(node).as_core() else { continue };
            if for_step.contains(&join(&instance.at, path)) {
                continue;
            }
            let [Dim::Visible(axis), dims @ ..] = &graph.types(node)[0].dims[..] else { continue };
            *kept.entry(axis.0).or_default() += dims.iter().filter_map(|d| d.fixed()).product::<u64>();
        }
    }
    let name = |axis: usize| program.axes.get(axis).cloned().unwrap_or_default();
    kept.into_iter().map(|(axis, values)| (name(axis), values)).collect()
}

/// Values of all states of a sequence.
fn state(program: &Program) -> u64 {
    let of_node = |graph: &Graph, node| match graph.op(node).as_core() {
        Some(Core::Scan { states, .. }) => {
            let starts = graph.operands(node).into_iter().take(*states);
            starts.filter_map(|v| fixed_size(&graph.ty(v).dims)).sum()
        }
        _ => 0,
    };
    let of_graph = |graph: &Graph| graph.nodes().map(|node| of_node(graph, node)).sum::<u64>();
    instances(program).unwrap_or_default().iter().map(|i| of_graph(&program.graphs[i.graph])).sum()
}

/// Lists of instances: children `a.0`, `a.1`, ..
fn stacks_of(node: &Node, stacks: &mut Vec<(String, usize)>) {
    for child in &node.children {
        let list = child.path.rsplit_once('.').filter(|(_, index)| index.parse::<usize>().is_ok());
        match list {
            Some((list, _)) => match stacks.iter_mut().find(|(path, _)| path == list) {
                Some((_, n)) => *n += 1,
                None => stacks.push((list.to_owned(), 1)),
            },
            None => stacks_of(child, stacks),
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::arch::testing::model;
    use crate::graph::parse::parse;
    use crate::spec::{ActiveCounts, Count, Published};

    use super::Numbers;

    const WIRING: &str = "\
        table(x) { weight = param[16, 8] return gather(weight, x) }\n\
        lin(x) { weight = param[8, 8] return einsum('ni,oi->no', x, weight) }\n\
        keep(x) { f = lin k = split(f(x), 2) return merge(attend(k, cache(k), cache(k), k_pos <= q_pos)) }\n\
        model(ids: i64[tokens], kinds: i64[tokens]) { words, others = table stack = [keep for i in 0..3] \
        y = stack(words(ids) + others(kinds)) return {y: einsum('ni,oi->no', y, words.weight)} }";

    fn published(parameters: u64) -> Published {
        Published {
            model: "m".into(),
            part: None,
            parameters: Some(Count::exact(parameters)),
            active: None,
            active_counts: ActiveCounts::All,
            cache_bytes_per_token: None,
            note: None,
            span: crate::diagnostic::Span::default(),
        }
    }

    #[test]
    fn numbers_of_a_model() {
        let made = model(WIRING);
        let numbers = Numbers::of(&made.arch, &made.program);
        let expected = Numbers {
            parameters: 2 * 128 + 3 * 64,
            lookups: 128,
            idle: 0,
            kept: vec![("tokens".into(), 3 * 16)],
            state: 0,
            stacks: vec![("stack".into(), 3)],
        };
        assert_eq!(numbers, expected, "a table that is the head too is no lookup alone");
        assert_eq!(numbers.cache_bytes_per_token(), 96);
        assert_eq!(numbers.active(ActiveCounts::WithoutLookups), 320);
    }

    #[test]
    fn states_are_of_a_sequence() {
        let made = model(
            "plus(s, x) = s + x\nlayer(x) { return scan(plus, 0, x) }\n\
             model(x: f32[tokens, 8]) { layers = [layer for i in 0..3] return {y: layers(x)} }",
        );
        assert_eq!(Numbers::of(&made.arch, &made.program).state, 24);
    }

    #[test]
    fn what_is_published_is_compared() {
        let made = model(WIRING);
        let numbers = Numbers::of(&made.arch, &made.program);
        assert_eq!(numbers.disagreements(&published(448)), Vec::<String>::new());
        let other = Published { active: Count::parse("1K"), cache_bytes_per_token: Some(97), ..published(449) };
        assert_eq!(numbers.disagreements(&other).len(), 3, "{:?}", numbers.disagreements(&other));
    }

    #[test]
    fn what_a_token_does_not_meet_is_idle() {
        let program = parse(
            r#"program "p" axes [tokens]

graph 0 "model" (%0 chosen: i64[tokens, 2]) {
  %1 = weight {path = "e.{0..5}.w"} : f32[5, 3]
  %2 = gather %1, %0 : f32[tokens, 2, 3]
  %3 = weight {path = "b.{0..4}.w"} : f32[4, 3]
  %4 = reduce_sum %3 : f32[4, 1]
  return y = %2, z = %4
}
"#,
        );
        let program = program.unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(super::idle(&program), (5 - 2) * 3, "what is read as a whole is met");
        assert!(super::looked_up(&program).is_empty());
    }
}
