//! What is kept per token, grouped by how long: derived from the masks of the attentions that read it. And the states of scans, one a sequence.
//!
//! What queries of another axis read (a decoder's of its encoder) is kept as long as the sequence, whatever their mask: their positions
//! say nothing of its age. Its axis is given once, so that it is complete when the first query comes. Of the first axis it is kept for the
//! step: the sequence comes whole.

use std::collections::HashMap;

use xfc_lang::graph::path::{Instance, instances, join};
use xfc_lang::graph::{AxisId, DType, Dim, Graph, NodeId, Program, Type, ValueId};
use xfc_lang::ops::Core;
use xfc_lang::ops::core::scan::state_paths;
use xfc_lang::ops::fused::{Attention, Reach};
use xfc_lang::ops::shape::fixed_size;
use xfc_runtime::artifact::manifest::{CacheGroup, CacheSlot, Keep};

use super::kernel::{HeadPage, PageLayout, dtype_bytes};
use super::step_caches::is_for_step;
use crate::error::CodegenError;
use crate::target::Target;

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

/// One cache, and what its readers say of it.
struct Kept {
    /// Absolute.
    path: String,
    axis: usize,
    /// One number a token, for masks and scores.
    lone: bool,
    heads: u64,
    dim: u64,
    dtype: DType,
    /// Read as keys, as values, and as rows that masks or scores gather from.
    roles: [bool; 3],
    reach: Option<Reach>,
    /// Queries of another axis read it.
    across: bool,
    /// Some attention's scores are weights without a softmax: they may cancel, and what is rounded relative to the largest of them counts for more.
    may_cancel: bool,
    /// Read for sequences alone that begin in the step.
    from_start: bool,
    /// Among the caches of bodies that call no other: these run one after another, so what one keeps for a step may lie where the previous one's lay.
    alias: Option<usize>,
}

/// Derives groups and slots, with pages as a target likes them.
///
/// # Errors
/// A cache that something other than attentions reads.
pub fn derive(program: &Program, target: &dyn Target) -> Result<Caches, CodegenError> {
    let list =
        instances(program).ok_or_else(|| CodegenError::bug("caches", "the program has no finite list of instances"))?;
    let mut found = Vec::new();
    let results = follow(program, 0, "", &[], &mut found)?;
    if let Some(kept) = results.into_iter().flatten().next() {
        return Err(CodegenError::unsupported("a cache that the model returns", found[kept].path.clone()));
    }
    let mut caches = Caches::default();
    for kept in &found {
        caches.add(kept, target)?;
    }
    for Instance { graph, at } in &list {
        for (path, axis, bytes) in states_of(&program.graphs[*graph])? {
            caches.add_state(join(at, &path), axis, bytes);
        }
    }
    Ok(caches)
}

impl Caches {
    fn add(&mut self, kept: &Kept, target: &dyn Target) -> Result<(), CodegenError> {
        let Some(reach) = kept.reach else { return Ok(()) };
        let page_tokens = target.page_tokens();
        let layout = if target.pages_of_rows() { PageLayout::TokensMiddle } else { kept.layout(target.paired_bytes()) };
        let (keep, name) = match reach {
            _ if is_for_step(&kept.path) => (Keep::Step, "step".to_owned()),
            // All of the first axis is there when queries of another look at it: a sequence is given whole.
            _ if kept.across && kept.axis == 0 => (Keep::Step, "step".to_owned()),
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
        let head = HeadPage { dim: kept.dim, tokens: page_tokens, dtype: kept.dtype };
        let bytes = head.page_bytes(kept.heads);
        let slot = Slot { group, slot: self.groups[group].slots.len(), layout, page_bytes: bytes };
        let alias = kept.alias.filter(|_| keep == Keep::Step);
        self.groups[group].slots.push(CacheSlot {
            path: kept.path.clone(),
            page_bytes: bytes,
            token_bytes: kept.heads * head.token_bytes(),
            alias,
        });
        self.slots.insert(kept.path.clone(), slot);
        Ok(())
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

/// Follows what is kept through one instance of a body and the bodies that it calls. Gives which of `found` each of its results is.
fn follow(
    program: &Program,
    index: usize,
    at: &str,
    args: &[Option<usize>],
    found: &mut Vec<Kept>,
) -> Result<Vec<Option<usize>>, CodegenError> {
    let graph = &program.graphs[index];
    let is_leaf = calls_nothing(graph);
    let mut ordinal = 0;
    let mut values: HashMap<ValueId, usize> = HashMap::new();
    for node in graph.topological() {
        let operands: Vec<Option<usize>> = graph.operands(node).iter().map(|v| values.get(v).copied()).collect();
        let value = ValueId { node, port: 0 };
        match graph.op(node).as_core() {
            Some(Core::Arg { index }) => {
                values.extend(args.get(*index).copied().flatten().map(|kept| (value, kept)));
            }
            Some(Core::Cache { path }) => {
                values.insert(value, found.len());
                let stays = is_leaf && !graph.is_output(value);
                found.push(kept_as(graph.ty(value), join(at, path), stays.then_some(ordinal))?);
                ordinal += usize::from(stays);
            }
            Some(Core::Call { graph: callee, at: relative }) => {
                let results = follow(program, *callee, &join(at, relative), &operands, found)?;
                let results = results.into_iter().enumerate();
                values.extend(results.filter_map(|(port, kept)| Some((ValueId { node, port }, kept?))));
            }
            // A part of each head is read as what it is a part of.
            Some(Core::Slice { dim: 2, .. }) => {
                values.extend(operands.into_iter().flatten().map(|kept| (value, kept)));
            }
            _ => {
                for (operand, kept) in operands.into_iter().enumerate() {
                    if let Some(kept) = kept {
                        found[kept].read(graph, node, operand)?;
                    }
                }
            }
        }
    }
    Ok(graph.outputs().iter().map(|o| values.get(&o.value).copied()).collect())
}

fn kept_as(ty: &Type, path: String, alias: Option<usize>) -> Result<Kept, CodegenError> {
    let (axis, lone, heads, dim) = match ty.dims[..] {
        [Dim::Visible(axis), Dim::Fixed(heads), Dim::Fixed(dim)] => (axis.0, false, heads, dim),
        [Dim::Visible(axis)] => (axis.0, true, 1, 1),
        _ => return Err(CodegenError::unsupported(format!("a cache of type {ty}"), path)),
    };
    Ok(Kept {
        path,
        axis,
        lone,
        heads,
        dim,
        dtype: ty.dtype,
        roles: [false; 3],
        reach: None,
        across: false,
        may_cancel: false,
        from_start: true,
        alias,
    })
}

impl Kept {
    /// How its pages are laid out: as whoever reads it likes best, and as values where these are among several. `paired_bytes`: integers of 8 bits are
    /// multiplied by pairs, with factors that are rounded to 16 bits.
    fn layout(&self, paired_bytes: bool) -> PageLayout {
        let paired_bytes = paired_bytes && !self.may_cancel;
        let bytes = self.dtype.blocks().filter(|blocks| paired_bytes && !blocks.form.is_float());
        let paired = self.dtype == DType::BF16 || bytes.is_some();
        // Both of a pair have one scale.
        let even = |n: u64| n.is_multiple_of(2);
        let whole = even(self.dim) && bytes.is_none_or(|b| even(b.group.into()) || u64::from(b.group) >= self.dim);
        match self.roles {
            [true, false, false] if paired && whole => PageLayout::DimPairs,
            [false, true, false] if paired => PageLayout::TokenPairs,
            [_, true, _] => PageLayout::TokensMiddle,
            _ => PageLayout::TokensLast,
        }
    }

    /// Notes that a node reads it.
    fn read(&mut self, graph: &Graph, user: NodeId, operand: usize) -> Result<(), CodegenError> {
        let unsupported = |what: String| CodegenError::unsupported(what, self.path.clone());
        let kept = |attention: &&Attention| match operand.checked_sub(3) {
            // One number of each key is read as it is, of several one is gathered.
            Some(extra) => self.lone != attention.gathers(extra),
            None => !self.lone && operand > 0,
        };
        let attention = graph.op(user).as_fused::<Attention>().filter(kept);
        let attention = attention.ok_or_else(|| unsupported(format!("a cache read by `{}`", graph.op(user).name())))?;
        self.roles[operand.saturating_sub(1).min(2)] = true;
        self.reach = Some(self.reach.map_or(attention.reach, |r| widest(r, attention.reach)));
        let queries = graph.operands(user).first().and_then(|q| graph.ty(*q).dims.first().copied());
        self.may_cancel |= !attention.softmax;
        self.from_start &= attention.from_start;
        self.across |= queries != Some(Dim::Axis(AxisId(self.axis)));
        Ok(())
    }
}

fn widest(a: Reach, b: Reach) -> Reach {
    Reach { window: a.window.zip(b.window).map(|(a, b)| a.max(b)), future: a.future || b.future }
}
