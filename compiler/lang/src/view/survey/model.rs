//! A whole model as a survey of architectures tells it: its stacks of layers, what comes before and after them, its numbers.
//!
//! Given a program with attentions and norms recognised, and the expanded card for its numbers, it returns a [`Survey`]. Everything is told
//! from what is computed: no name of a module, a size or a model decides anything.

use std::collections::BTreeSet;
use std::rc::Rc;

use super::body::{Body, Norm, size, width};
use super::layer::{Layer, Walk, call_stream, layer};
use super::scalar;
use super::work::Work;
use crate::arch::{Arch, Numbers};
use crate::graph::{NodeId, Program, ValueId};
use crate::ops::{Core, UnaryOp};
use crate::view::caches::{CacheFact, caches};

/// What is known of a model.
#[derive(Clone, Debug)]
pub struct Survey {
    /// As it was asked for.
    pub name: String,
    /// Its card, and the released model where these are its sizes.
    pub title: String,
    pub(super) stacks: Vec<Stack>,
    pub(super) head: Option<Head>,
    pub(super) numbers: Numbers,
    pub(super) caches: Vec<CacheFact>,
    pub(super) work: Work,
}

/// Layers one after another.
#[derive(Clone, Debug)]
pub(super) struct Stack {
    /// `layers`.
    pub(super) path: String,
    /// Elements of the stream.
    pub(super) width: u64,
    pub(super) layers: Vec<Rc<Layer>>,
    pub(super) entry: Entry,
    /// A norm of what comes out.
    pub(super) after: Option<Norm>,
}

/// What comes before layers.
#[derive(Clone, Debug, Default)]
pub(super) struct Entry {
    /// Tables in which rows are looked up: rows, and what by.
    pub(super) tables: Vec<(u64, By)>,
    pub(super) sinusoids: bool,
    /// What is multiplied with weights: images, sounds.
    pub(super) projected: Option<(u64, u64)>,
    /// What embeddings are multiplied by.
    pub(super) factor: f64,
    pub(super) norm: Option<Norm>,
}

/// What rows are looked up by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum By {
    /// What the user gives: words, kinds.
    Input,
    /// Where a token stands.
    Position,
}

/// What comes after layers.
#[derive(Clone, Debug)]
pub(super) struct Head {
    /// The output's name.
    pub(super) name: String,
    /// Elements of the output.
    pub(super) width: u64,
    /// The last product is with the table that words are looked up in.
    pub(super) tied: bool,
    /// There is a product.
    pub(super) product: bool,
    pub(super) bias: bool,
    /// The bound that outputs are held under.
    pub(super) cap: Option<f64>,
}

/// The survey of a program that is [`recognised`](crate::view::recognised), under the name by which it was asked for.
pub fn survey(program: &Program, arch: &Arch, name: &str, is_published: bool) -> Survey {
    let released = arch.published.as_ref().filter(|_| is_published).map(|p| match &p.part {
        Some(part) => format!("{}, {part}", p.model),
        None => p.model.to_string(),
    });
    let main = program.graphs.first().map(Body::new);
    let stacks = main.as_ref().map(|m| stacks(program, m)).unwrap_or_default();
    let facts = caches(program).unwrap_or_default();
    Survey {
        name: name.to_owned(),
        title: released.unwrap_or_else(|| arch.name.clone()),
        head: main.as_ref().and_then(head),
        stacks,
        numbers: Numbers::of(arch, program),
        caches: facts,
        work: Work::of(program),
    }
}

/// The stacks of the main graph: its calls by the list that they are elements of; the graph itself where it calls nothing.
fn stacks(program: &Program, main: &Body<'_>) -> Vec<Stack> {
    let mut lists: Vec<(String, Vec<NodeId>)> = Vec::new();
    for node in main.graph.topological() {
        let Some(Core::Call { at, .. }) = main.graph.op(node).as_core() else { continue };
        let list = at.rsplit_once('.').map_or(at.as_str(), |(list, _)| list);
        match lists.iter_mut().find(|(path, _)| path == list) {
            Some((_, calls)) => calls.push(node),
            None => lists.push((list.to_owned(), vec![node])),
        }
    }
    if lists.is_empty() {
        return inline(program, main).into_iter().collect();
    }
    let mut known: Vec<(usize, Rc<Layer>)> = Vec::new();
    let mut of = |graph: usize| match known.iter().find(|(g, _)| *g == graph) {
        Some((_, layer)) => Rc::clone(layer),
        None => {
            let made = Rc::new(layer(program, graph, 0));
            known.push((graph, Rc::clone(&made)));
            made
        }
    };
    let mut made = Vec::new();
    for (path, calls) in &lists {
        let layers = calls.iter().filter_map(|n| match main.graph.op(*n).as_core() {
            Some(Core::Call { graph, .. }) => Some(of(*graph)),
            _ => None,
        });
        let layers: Vec<Rc<Layer>> = layers.collect();
        let (Some(first), Some(last)) = (calls.first(), calls.last()) else { continue };
        let stream = call_stream(main.graph, *first);
        let out = ValueId { node: *last, port: 0 };
        let after = main.graph.uses(out).into_iter().find_map(|(user, _)| {
            let (norm, of) = main.norm(ValueId { node: user, port: 0 })?;
            (of == out).then_some(norm)
        });
        let width = main.graph.types(*last).first().map_or(0, width);
        let entry = stream.map(|s| entry(main, s)).unwrap_or_default();
        made.push(Stack { path: path.clone(), width, layers, entry, after });
    }
    made
}

/// A model whose layers are no list: what the main graph adds up is one.
fn inline(program: &Program, main: &Body<'_>) -> Option<Stack> {
    let output = main.graph.outputs().first()?;
    // Behind the head there is the stream; the head itself is a product.
    let mut value = main.behind(output.value).0;
    for _ in 0..4 {
        let (next, _) = main.without_bias(value);
        value = match main.product(next.node) {
            Some((x, _)) => main.behind(x).0,
            None => break,
        };
    }
    let (after, value) = match main.norm(value) {
        Some((norm, of)) => (Some(norm), of),
        None => (None, value),
    };
    let layer = Walk { program, body: main, stream: None, depth: 0 }.back(value);
    let width = width(main.graph.ty(value));
    let entry = entry(main, value);
    (!layer.stages.is_empty()).then(|| Stack {
        path: String::new(),
        width,
        layers: vec![Rc::new(layer)],
        entry: Entry { norm: None, ..entry },
        after,
    })
}

/// What a stack's stream is made of, as far as other stacks.
fn entry(main: &Body<'_>, stream: ValueId) -> Entry {
    let mut entry = Entry { factor: 1.0, ..Entry::default() };
    let (mut value, factor) = main.behind(stream);
    entry.factor = factor;
    if let Some((norm, of)) = main.norm(value) {
        entry.norm = Some(norm);
        value = main.behind(of).0;
    }
    let is_call = |n: NodeId| matches!(main.graph.op(n).as_core(), Some(Core::Call { .. }));
    let cone = main.cone(value, is_call);
    let mut positions = false;
    for node in &cone {
        let own = ValueId { node: *node, port: 0 };
        let operands = main.graph.operands(*node);
        match (main.graph.op(*node).as_core(), &operands[..]) {
            (Some(Core::Gather), [table, index]) if main.is_constant(*table) => {
                let above = main.above(index.node);
                let by_position = above.iter().any(|n| matches!(main.graph.op(*n).as_core(), Some(Core::Position)));
                let by = if by_position { By::Position } else { By::Input };
                entry.tables.push((size(main.graph.ty(*table), 0), by));
                // A factor of what is looked up, before anything is added.
                if by == By::Input {
                    entry.factor *= factor_of(main, own);
                }
            }
            (Some(Core::Unary(UnaryOp::Sin)), _) => {
                positions |=
                    main.above(*node).iter().any(|n| matches!(main.graph.op(*n).as_core(), Some(Core::Position)));
            }
            (Some(Core::Contract { .. }), _) => {
                if let Some((x, _)) = main.product(*node) {
                    entry.projected = Some((width(main.graph.ty(x)), width(main.graph.ty(own))));
                }
            }
            // A table of positions that is added as it is.
            (Some(Core::Binary(crate::ops::BinaryOp::Add)), [a, b]) => {
                for side in [a, b] {
                    let ty = main.graph.ty(*side);
                    let is_table = main.is_constant(*side) && ty.dims.len() == 2 && size(ty, 0) > 1;
                    if is_table {
                        entry.tables.push((size(ty, 0), By::Position));
                    }
                }
            }
            _ => {}
        }
    }
    entry.sinusoids = positions;
    entry.tables.sort_by_key(|(rows, by)| (*by == By::Position, std::cmp::Reverse(*rows)));
    entry
}

/// The factor by which the only reader of a value multiplies it.
fn factor_of(main: &Body<'_>, value: ValueId) -> f64 {
    let uses = main.graph.uses(value);
    let [(user, _)] = uses[..] else { return 1.0 };
    let (inner, factor) = main.behind(ValueId { node: user, port: 0 });
    // Only where sums follow: what `behind` sees from the stream is counted there.
    let summed = main
        .graph
        .uses(ValueId { node: user, port: 0 })
        .iter()
        .all(|(n, _)| matches!(main.graph.op(*n).as_core(), Some(Core::Binary(crate::ops::BinaryOp::Add))));
    if inner == value && summed { factor } else { 1.0 }
}

fn head(main: &Body<'_>) -> Option<Head> {
    let output = main.graph.outputs().first()?;
    let ty = main.graph.ty(output.value);
    let is_product = |n: NodeId| main.product(n).is_some();
    let is_end = |n: NodeId| is_product(n) || matches!(main.graph.op(n).as_core(), Some(Core::Call { .. }));
    let cone = main.cone(output.value, is_end);
    let products: Vec<NodeId> = cone.into_iter().filter(|n| is_product(*n)).collect();
    let last = match products[..] {
        [one] => Some(one),
        _ => None,
    };
    let tables: BTreeSet<NodeId> = main
        .graph
        .nodes()
        .filter(|n| matches!(main.graph.op(*n).as_core(), Some(Core::Gather)))
        .filter_map(|n| main.graph.operands(n).first().map(|t| t.node))
        .collect();
    let weights = last.and_then(|n| main.product(n)).map(|(_, w)| main.above(w.node));
    let tied = weights.is_some_and(|w| w.iter().any(|n| tables.contains(n)));
    let cap = last.and_then(|n| {
        let at = |x: f64| scalar::value(main.graph, output.value, &[(ValueId { node: n, port: 0 }, x)]);
        let (large, small) = (at(1e9)?, at(1e-3)?);
        (large < 1e6 && (small - 1e-3).abs() < 1e-6).then_some(large)
    });
    let bias = last.is_some_and(|n| super::attention::has_bias(main, n));
    Some(Head { name: output.name.clone(), width: width(ty), tied, product: last.is_some(), bias, cap })
}

impl Survey {
    /// The stack that the main output comes from: the last.
    pub(super) fn main(&self) -> Option<&Stack> {
        self.stacks.last()
    }
}
