//! What is kept per token, grouped by how long: derived from the masks of the attentions that read it. And the states of scans, one a sequence.
//!
//! What queries of another axis read (a decoder's of its encoder) is kept as long as the sequence, whatever their mask: their positions
//! say nothing of its age. Its axis is given once, so that it is complete when the first query comes.

use std::collections::HashMap;

use xfc_lang::graph::path::{Instance, instances, join};
use xfc_lang::graph::{AxisId, DType, Dim, Graph, NodeId, Program, ValueId};
use xfc_lang::ops::Core;
use xfc_lang::ops::core::scan::state_paths;
use xfc_lang::ops::fused::{Attention, Reach};
use xfc_lang::ops::shape::fixed_size;
use xfc_runtime::artifact::manifest::{CacheGroup, CacheSlot, Keep};

use super::kernel::{PageLayout, dtype_bytes, page_bytes};
use super::step_caches::is_for_step;
use crate::error::CodegenError;

/// A slot of the plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Cache group.
    pub group: usize,
    /// Slot in the group.
    pub slot: usize,
    /// Layout of its pages.
    pub layout: PageLayout,
    /// Bytes from one page to the next.
    pub page_bytes: u64,
}

/// All caches of a program.
#[derive(Debug, Default)]
pub struct Caches {
    /// Groups, in the order of first use.
    pub groups: Vec<CacheGroup>,
    /// By absolute path.
    pub slots: HashMap<String, Slot>,
    /// Some query of the first axis sees keys after itself.
    pub sees_ahead: bool,
}

/// What one body keeps.
struct Kept {
    path: String,
    axis: usize,
    heads: u64,
    dim: u64,
    dtype: DType,
    layout: PageLayout,
    reach: Reach,
    /// Queries of another axis read it.
    across: bool,
    /// Read for sequences alone that begin in the step.
    from_start: bool,
}

/// Derives groups and slots.
///
/// # Errors
/// A cache that something other than the attentions of its own body reads.
pub fn derive(program: &Program, page_tokens: u64) -> Result<Caches, CodegenError> {
    let list =
        instances(program).ok_or_else(|| CodegenError::bug("caches", "the program has no finite list of instances"))?;
    let bodies = program.graphs.iter().map(kept_by).collect::<Result<Vec<_>, _>>()?;
    let mut caches = Caches::default();
    for Instance { graph, at } in &list {
        // Bodies that call no other run one after another, so what one keeps for a step may lie where the previous one's lay.
        let is_leaf = calls_nothing(&program.graphs[*graph]);
        for (ordinal, kept) in bodies[*graph].iter().enumerate() {
            caches.add(at, is_leaf.then_some(ordinal), kept, page_tokens);
        }
        for (path, axis, bytes) in states_of(&program.graphs[*graph])? {
            caches.add_state(join(at, &path), axis, bytes);
        }
    }
    Ok(caches)
}

impl Caches {
    fn add(&mut self, at: &str, alias: Option<usize>, kept: &Kept, page_tokens: u64) {
        let (keep, name) = match kept.reach {
            _ if is_for_step(&kept.path) => (Keep::Step, "step".to_owned()),
            _ if kept.across => (Keep::Once, "once".to_owned()),
            Reach { future: true, .. } => (Keep::Step, "step".to_owned()),
            // A mask that shows nothing still needs a page to write to.
            Reach { window: Some(n), .. } => (Keep::Window(n.max(1)), format!("window {}", n.max(1))),
            Reach { window: None, .. } => (Keep::All, "full".to_owned()),
        };
        self.sees_ahead |= keep == Keep::Step && kept.axis == 0 && !kept.from_start;
        let group = self.groups.iter().position(|g| g.axis == kept.axis && g.keep == keep).unwrap_or_else(|| {
            self.groups.push(CacheGroup { name, axis: kept.axis, keep, page_tokens, slots: Vec::new() });
            self.groups.len() - 1
        });
        let bytes = page_bytes(kept.heads, kept.dim, page_tokens, kept.dtype);
        let path = join(at, &kept.path);
        let slot = Slot { group, slot: self.groups[group].slots.len(), layout: kept.layout, page_bytes: bytes };
        let alias = alias.filter(|_| keep == Keep::Step);
        self.groups[group].slots.push(CacheSlot {
            path: path.clone(),
            page_bytes: bytes,
            token_bytes: kept.heads * kept.dim * dtype_bytes(kept.dtype),
            alias,
        });
        self.slots.insert(path, slot);
    }

    fn add_state(&mut self, path: String, axis: usize, bytes: u64) {
        let known = self.groups.iter().position(|g| g.axis == axis && g.keep == Keep::State);
        let group = known.unwrap_or_else(|| {
            let (name, keep) = ("state".to_owned(), Keep::State);
            self.groups.push(CacheGroup { name, axis, keep, page_tokens: 1, slots: Vec::new() });
            self.groups.len() - 1
        });
        let page_bytes = bytes.next_multiple_of(64);
        let slot = Slot { group, slot: self.groups[group].slots.len(), layout: PageLayout::TokensMiddle, page_bytes };
        self.groups[group].slots.push(CacheSlot { path: path.clone(), page_bytes, token_bytes: bytes, alias: None });
        self.slots.insert(path, slot);
    }
}

/// The states of a body: path, axis of the tokens, bytes.
fn states_of(graph: &Graph) -> Result<Vec<(String, usize, u64)>, CodegenError> {
    let mut list = Vec::new();
    for node in graph.topological() {
        let Some(Core::Scan { path, states, .. }) = graph.op(node).as_core() else { continue };
        let Some(Dim::Axis(axis)) = graph.types(node).first().and_then(|ty| ty.dims.first()) else { continue };
        for (path, start) in state_paths(path, *states).zip(graph.operands(node)) {
            let ty = graph.ty(start);
            let bytes = fixed_size(&ty.dims).and_then(|n| n.checked_mul(dtype_bytes(ty.dtype)));
            let bytes =
                bytes.ok_or_else(|| CodegenError::unsupported(format!("a state of type {ty}"), path.clone()))?;
            list.push((path, axis.0, bytes));
        }
    }
    Ok(list)
}

fn calls_nothing(graph: &Graph) -> bool {
    graph.nodes().all(|n| !matches!(graph.op(n).as_core(), Some(Core::Call { .. })))
}

fn kept_by(graph: &Graph) -> Result<Vec<Kept>, CodegenError> {
    let mut list = Vec::new();
    for node in graph.topological() {
        let Some(Core::Cache { path }) = graph.op(node).as_core() else { continue };
        let value = ValueId { node, port: 0 };
        let ty = graph.ty(value);
        let unsupported = |what: String| CodegenError::unsupported(what, path.clone());
        let (axis, heads, dim) = match ty.dims[..] {
            [Dim::Visible(axis), Dim::Fixed(heads), Dim::Fixed(dim)] => (axis.0, heads, dim),
            // One number a token, for masks and scores.
            [Dim::Visible(axis)] => (axis.0, 1, 1),
            _ => return Err(unsupported(format!("a cache of type {ty}"))),
        };
        let mut layout = None;
        let mut reach: Option<Reach> = None;
        let mut across = false;
        let mut from_start = true;
        for (user, operand) in uses_and_those_of_parts(graph, value) {
            let kept = if ty.dims.len() == 1 { operand > 2 } else { operand == 1 || operand == 2 };
            let attention = graph.op(user).as_fused::<Attention>().filter(|_| kept);
            let attention =
                attention.ok_or_else(|| unsupported(format!("a cache read by `{}`", graph.op(user).name())))?;
            // What is read as values too lies as they do.
            let wanted = if operand == 2 { PageLayout::TokensMiddle } else { PageLayout::TokensLast };
            layout = Some(layout.map_or(wanted, |l: PageLayout| l.max(wanted)));
            reach = Some(reach.map_or(attention.reach, |r| widest(r, attention.reach)));
            from_start &= attention.from_start;
            let queries = graph.operands(user).first().and_then(|q| graph.ty(*q).dims.first().copied());
            across |= queries != Some(Dim::Axis(AxisId(axis)));
        }
        if graph.is_output(value) {
            return Err(unsupported("a cache read outside of its own body".into()));
        }
        let (Some(layout), Some(reach)) = (layout, reach) else { continue };
        if across && axis == 0 {
            return Err(unsupported("a cache of the first axis read by queries of another".into()));
        }
        list.push(Kept { path: path.clone(), axis, heads, dim, dtype: ty.dtype, layout, reach, across, from_start });
    }
    Ok(list)
}

/// Who reads a cache, or a part of each of its heads, and as which operand.
fn uses_and_those_of_parts(graph: &Graph, value: ValueId) -> Vec<(NodeId, usize)> {
    let mut uses = Vec::new();
    for (user, operand) in graph.uses(value) {
        match graph.op(user).as_core() {
            Some(Core::Slice { dim: 2, .. }) => uses.extend(graph.uses(ValueId { node: user, port: 0 })),
            _ => uses.push((user, operand)),
        }
    }
    uses
}

fn widest(a: Reach, b: Reach) -> Reach {
    Reach { window: a.window.zip(b.window).map(|(a, b)| a.max(b)), future: a.future || b.future }
}
