//! A layer as its reader thinks of it: what is added to the stream, in which order, and where norms stand.
//!
//! Given a graph whose first operand of the result's type is the stream, it goes back from the result: a norm of the stream stands behind a
//! sum, a sum has one term that all others depend on (the stream), and each other term is a branch. What does not look like this is a stage
//! without a sum, and told as such.

use std::collections::BTreeSet;

use super::attention::{self, Attention};
use super::body::{Body, Norm};
use super::feed::{self, Feed};
use super::mixer::{self, Mixer};
use super::streams::{self, Streams};
use crate::graph::{Graph, NodeId, Program, Type, ValueId};
use crate::ops::fused;
use crate::ops::{BinaryOp, Core};

/// A layer from its input to its output.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Layer {
    pub(super) stages: Vec<Stage>,
    /// Of a layer with several streams: what it does with them.
    pub(super) streams: Option<Streams>,
}

/// One sum, or what stands for one.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Stage {
    /// What is computed; several branches are computed of the same stream.
    pub(super) branches: Vec<Branch>,
    /// Whether the stream is added.
    pub(super) residual: bool,
    /// A norm of the sum, which the stream goes on as.
    pub(super) after: Option<Norm>,
}

/// What is computed of a stream and added to it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Branch {
    /// A norm of the stream that it reads.
    pub(super) before: Option<Norm>,
    pub(super) what: What,
    /// A norm of its result, before the sum.
    pub(super) after: Option<Norm>,
    /// What its result is multiplied by.
    pub(super) factor: f64,
    /// Whether its result is multiplied by a learned number for each element.
    pub(super) scaled: bool,
}

/// What a branch does.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum What {
    Attention(Box<Attention>),
    Feed(Box<Feed>),
    /// Tokens are mixed without attention.
    Mixer(Box<Mixer>),
    /// Two products with few elements between them, and nothing else.
    LowRank(LowRank),
    /// Neither is recognised: the operations that mix or multiply.
    Other(String),
}

/// A product through few elements.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct LowRank {
    /// These elements.
    pub(super) rank: u64,
    /// What it reads is added to its result.
    pub(super) residual: bool,
}

/// What a branch does whose result is what it reads.
const NOTHING: &str = "what it reads";

/// Deepest nesting of layers in layers.
const DEEPEST: usize = 8;

/// The layer that graph number `graph` is; layers in it are put in its place.
pub(super) fn layer(program: &Program, graph: usize, depth: usize) -> Layer {
    let Some(body) = program.graphs.get(graph).filter(|_| depth < DEEPEST) else { return Layer::default() };
    let Some(output) = body.outputs().first() else { return Layer::default() };
    let body = Body::new(body);
    if let Some(layer) = streams::layer(program, &body, depth) {
        return layer;
    }
    let stream = stream(body.graph, body.graph.ty(output.value));
    Walk { program, body: &body, stream, depth }.back(output.value)
}

/// The parameter that has the type of the result.
fn stream(graph: &Graph, ty: &Type) -> Option<ValueId> {
    graph.params().iter().map(|p| p.value).find(|p| graph.ty(*p) == ty)
}

/// What a call's stream is: the first operand of the type of its result.
pub(super) fn call_stream(graph: &Graph, call: NodeId) -> Option<ValueId> {
    let ty = graph.types(call).first()?;
    graph.operands(call).into_iter().find(|v| graph.ty(*v) == ty)
}

/// A way back along a stream.
pub(super) struct Walk<'w, 'g> {
    pub(super) program: &'w Program,
    pub(super) body: &'w Body<'g>,
    /// Where it begins; none: where nothing is added any more.
    pub(super) stream: Option<ValueId>,
    pub(super) depth: usize,
}

impl Walk<'_, '_> {
    /// The stages before a value, first to last.
    pub(super) fn back(&self, mut value: ValueId) -> Layer {
        let mut stages: Vec<Stage> = Vec::new();
        let mut after: Option<Norm> = None;
        loop {
            let (inner, _) = self.body.behind(value);
            value = inner;
            if Some(value) == self.stream || stages.len() > 64 {
                break;
            }
            if let Some((norm, of)) = self.body.norm(value) {
                // A norm of the stream: behind a sum, or of what comes in.
                let (sum, _) = self.body.behind(of);
                if self.terms(sum).is_some() {
                    after = Some(norm);
                    value = of;
                    continue;
                }
                // What comes in is normed before anything reads it: that is a norm of the last layer's sum, where this layer has no others.
                if Some(sum) == self.stream {
                    if let Some(last) = stages.first_mut().filter(|s| s.branches.iter().all(|b| b.before.is_none())) {
                        last.after = last.after.take().or(Some(norm));
                    }
                    break;
                }
            }
            if let Some(Core::Call { graph, .. }) = self.body.core(value) {
                let inner = layer(self.program, *graph, self.depth + 1);
                stages.extend(inner.stages.into_iter().rev());
                let Some(next) = call_stream(self.body.graph, value.node) else { break };
                value = next;
                continue;
            }
            match self.terms(value) {
                Some((base, terms)) => {
                    stages.push(Stage { branches: self.branches(base, terms), residual: true, after: after.take() });
                    value = base;
                }
                None => {
                    // No sum: everything from where the stream came in.
                    if self.stream.is_some() || !stages.is_empty() {
                        let branches = self.stream.map_or_else(Vec::new, |s| vec![self.branch(s, value)]);
                        stages.extend((!branches.is_empty()).then_some(Stage { branches, residual: false, after }));
                    }
                    break;
                }
            }
        }
        stages.reverse();
        Layer { stages, streams: None }
    }

    /// The stream and the branches of a sum: the term that all others depend on, and these.
    fn terms(&self, value: ValueId) -> Option<(ValueId, Vec<ValueId>)> {
        let mut terms = Vec::new();
        self.flatten(value, &mut terms, 0);
        if terms.len() < 2 {
            return None;
        }
        let behind: Vec<ValueId> = terms.iter().map(|t| self.body.behind(*t).0).collect();
        let is_base = |i: &usize| {
            let others = (0..terms.len()).filter(|j| j != i);
            others
                .clone()
                .all(|j| behind[j] != behind[*i] && self.body.above(behind[j].node).contains(&behind[*i].node))
        };
        let base = (0..terms.len()).find(is_base)?;
        let others = (0..terms.len()).filter(|j| *j != base).map(|j| terms[j]).collect();
        Some((behind[base], others))
    }

    /// The terms of a sum of sums that nothing else reads.
    fn flatten(&self, value: ValueId, terms: &mut Vec<ValueId>, depth: usize) {
        let parts = self.body.binary(value, BinaryOp::Add).filter(|parts| {
            let alike = |v: &ValueId| self.body.graph.ty(*v) == self.body.graph.ty(value) && !self.body.is_constant(*v);
            parts.iter().all(alike) && depth < 64
        });
        let Some(parts) = parts else { return terms.push(value) };
        for part in parts {
            let own = self.body.graph.uses(part).len() == 1 && !self.body.graph.is_output(part);
            if own { self.flatten(part, terms, depth + 1) } else { terms.push(part) }
        }
    }

    /// Terms as branches: those that are feed-forward layers of the same value are one.
    fn branches(&self, base: ValueId, terms: Vec<ValueId>) -> Vec<Branch> {
        let mut branches: Vec<Branch> = Vec::new();
        let mut feeds: Vec<(BTreeSet<NodeId>, usize)> = Vec::new();
        for term in terms {
            let branch = self.branch(base, term);
            if let What::Feed(own) = &branch.what {
                let entry = self.entry(base, term);
                let known = feeds.iter().find(|(e, _)| *e == entry).map(|(_, at)| *at);
                if let Some(at) = known
                    && let Some(Branch { what: What::Feed(first), .. }) = branches.get_mut(at)
                {
                    first.join((**own).clone());
                    continue;
                }
                feeds.push((entry, branches.len()));
            }
            branches.push(branch);
        }
        Self::join_low_rank(&mut branches);
        branches
    }

    /// A norm of the stream that is added as it is, beside a product of low rank of the same norm, is a part of that branch.
    fn join_low_rank(branches: &mut Vec<Branch>) {
        let plain = |b: &Branch| matches!(&b.what, What::Other(text) if text == NOTHING) && !b.scaled;
        let Some(at) = branches.iter().position(|b| plain(b) && b.after.is_some()) else { return };
        let norm = branches[at].after.clone();
        let low = branches.iter_mut().find(|b| matches!(b.what, What::LowRank(_)) && b.before == norm);
        if let Some(Branch { what: What::LowRank(low), .. }) = low {
            low.residual = true;
            branches.remove(at);
        }
    }

    /// What a branch reads of the stream: the norms of it, or the stream.
    fn entry(&self, base: ValueId, term: ValueId) -> BTreeSet<NodeId> {
        let inside = self.inside(base, term);
        let readers = inside.iter().filter(|n| self.body.graph.operands(**n).contains(&base));
        let norms: BTreeSet<NodeId> =
            readers.copied().filter(|n| self.body.norm(ValueId { node: *n, port: 0 }).is_some()).collect();
        if norms.is_empty() { BTreeSet::from([base.node]) } else { norms }
    }

    /// What is computed between the stream and a term.
    fn inside(&self, base: ValueId, term: ValueId) -> Vec<NodeId> {
        let outside = self.body.above(base.node);
        let mut inside = self.body.cone(term, |n| outside.contains(&n));
        inside.retain(|n| !outside.contains(n));
        inside
    }

    fn branch(&self, base: ValueId, term: ValueId) -> Branch {
        let (mut value, mut factor) = self.body.behind(term);
        let mut scaled = false;
        if self.body.norm(value).is_none()
            && let Some((inner, n)) = self.body.without_gain(value)
        {
            (value, factor, scaled) = (inner, factor * n, true);
        }
        let after = self.body.norm(value).map(|(norm, of)| {
            let (inner, n) = self.body.behind(of);
            value = inner;
            factor *= n;
            norm
        });
        let inside = self.inside(base, value);
        let norms = inside.iter().filter_map(|n| self.body.norm(ValueId { node: *n, port: 0 }));
        let of_base = norms.filter(|(_, of)| self.body.behind(*of).0 == self.body.behind(base).0).map(|(n, _)| n);
        // Of one norm that is told in steps, the whole.
        let before = of_base.max_by_key(|n| (n.gain, n.bias));
        let is_attention = |n: &&NodeId| self.body.graph.op(**n).as_fused::<fused::Attention>().is_some();
        let all: Vec<NodeId> = inside.iter().filter(is_attention).copied().collect();
        // What makes scores for another, as products with positions do, is a part of that one.
        let feeds_another = |n: &NodeId| all.iter().any(|m| m != n && self.body.above(*m).contains(n));
        let mut attentions =
            all.iter().filter(|n| !feeds_another(n)).map(|n| attention::attention(self.body, *n, value));
        let what = if let Some(mut attention) = attentions.next() {
            attentions.for_each(|other| attention.join(&other));
            What::Attention(Box::new(attention))
        } else if let Some(mixer) = mixer::recurrence(self.body, &inside) {
            What::Mixer(Box::new(mixer))
        } else if let Some(mixer) = mixer::convolution(self.body, &inside) {
            What::Mixer(Box::new(mixer))
        } else if let Some(feed) = feed::feed(self.body, &inside, value) {
            What::Feed(Box::new(feed))
        } else if inside.is_empty() {
            What::Other(NOTHING.to_owned())
        } else if let Some(rank) = feed::low_rank(self.body, &inside, value) {
            What::LowRank(LowRank { rank, residual: false })
        } else {
            What::Other(self.named(&inside))
        };
        Branch { before, what, after, factor, scaled }
    }

    /// Operations that are neither elementwise nor views, with their numbers.
    fn named(&self, nodes: &[NodeId]) -> String {
        let mut counts: Vec<(String, usize)> = Vec::new();
        for node in nodes {
            let op = self.body.graph.op(*node);
            let plain = matches!(
                op.as_core(),
                Some(
                    Core::Unary(_)
                        | Core::Binary(_)
                        | Core::Select
                        | Core::Cast
                        | Core::Reshape
                        | Core::Transpose { .. }
                        | Core::Slice { .. }
                        | Core::Concat { .. }
                        | Core::Broadcast
                        | Core::Repeat { .. }
                        | Core::Position
                        | Core::Index
                        | Core::Arg { .. }
                )
            );
            if plain {
                continue;
            }
            match counts.iter_mut().find(|(name, _)| name == op.name()) {
                Some((_, n)) => *n += 1,
                None => counts.push((op.name().to_owned(), 1)),
            }
        }
        let told: Vec<String> =
            counts.into_iter().map(|(name, n)| if n == 1 { name } else { format!("{n} {name}") }).collect();
        if told.is_empty() { "elementwise".to_owned() } else { told.join(", ") }
    }
}

impl Layer {
    /// Its attentions, in order.
    pub(super) fn attentions(&self) -> impl Iterator<Item = &Attention> {
        self.branches().filter_map(|b| if let What::Attention(a) = &b.what { Some(&**a) } else { None })
    }

    /// What mixes tokens in it without attention, in order.
    pub(super) fn mixers(&self) -> impl Iterator<Item = &Mixer> {
        self.branches().filter_map(|b| if let What::Mixer(m) = &b.what { Some(&**m) } else { None })
    }

    /// Its feed-forward layers, in order.
    pub(super) fn feeds(&self) -> impl Iterator<Item = &Feed> {
        self.branches().filter_map(|b| if let What::Feed(f) = &b.what { Some(&**f) } else { None })
    }

    /// Its products of low rank, in order.
    pub(super) fn low_ranks(&self) -> impl Iterator<Item = &LowRank> {
        self.branches().filter_map(|b| if let What::LowRank(low) = &b.what { Some(low) } else { None })
    }

    pub(super) fn branches(&self) -> impl Iterator<Item = &Branch> {
        self.stages.iter().flat_map(|s| &s.branches)
    }
}
