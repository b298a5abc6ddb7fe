//! Moves products with what is kept out of keys and values, into the queries and the results, so that attention reads what is kept as it is.
//!
//! before   k = concat (reshape (contract c, w_k)), (repeat r) ; v = reshape (contract c, w_v) ; y = attention q, k, v
//! after    q' = concat (contract q_0, w_k), q_1 ; k' = cache (concat c, r) ; y' = attention q', k', (slice k') ; y = contract y', w_v
//!
//! `c` and `r` are kept and the same for all heads, the matrices are each head's. `q · (w c)` is `(wᵀ q) · c`, and a weighted sum of `w c` is `w` times
//! the sum of `c` (arXiv:2405.04434, 2.1.2). So no key or value of a head is ever kept; it is done where that keeps less.
//!
//! In 8 bits, each part of a row that is kept so stays a group of its own: the longest comes first, and the last may be shorter.
//!
//! A query and a key are then multiplied over more elements than before. Where all that a sequence sees comes in one step, keys and values of
//! heads are made for that step alone, if that multiplies less:
//!
//! after    z = attention q, k_step, v_step, y {from_start = true}

use std::collections::HashMap;

use super::Pass;
use super::keep_results::of_tokens;
use super::matching::{core, is_weight_expression, operand_if, remove_dead};
use crate::graph::blocks::Blocks;
use crate::graph::build::Builder;
use crate::graph::{DType, Dim, Graph, NodeId, Program, ValueId};
use crate::ops::Core;
use crate::ops::fused::Attention;
use crate::ops::shape::ContractSpec;

pub(super) struct Absorb;

impl Pass for Absorb {
    fn name(&self) -> &'static str {
        "absorb"
    }

    fn run(&self, program: &mut Program) -> bool {
        let mut changed = false;
        for graph in &mut program.graphs {
            for node in graph.topological() {
                changed |= graph.op(node).as_fused::<Attention>().is_some() && rewrite(graph, node).is_some();
            }
            remove_dead(graph);
        }
        changed
    }
}

/// Consecutive elements of the keys, or of the values, of all heads.
#[derive(Clone, Copy, Debug)]
struct Part {
    /// A cache of one row of numbers a token, for all heads.
    kept: ValueId,
    /// Elements of a head.
    width: u64,
    /// `[heads, width, elements of what is kept]`; nothing where a head's elements are what is kept.
    matrix: Option<ValueId>,
}

fn rewrite(graph: &mut Graph, node: NodeId) -> Option<()> {
    let attention = graph.op(node).as_fused::<Attention>()?.clone();
    let operands = graph.operands(node);
    let [q, k, v, ..] = operands[..] else { return None };
    let [_, Dim::Fixed(heads), Dim::Fixed(key_dim)] = graph.ty(q).dims[..] else { return None };
    let [_, Dim::Fixed(kv_heads), Dim::Fixed(value_dim)] = graph.ty(v).dims[..] else { return None };
    if heads != kv_heads || heads < 2 {
        return None;
    }
    let b = &mut Builder::like(graph, node);
    let keys = parts(b, k)?;
    let [value] = parts(b, v)?[..] else { return None };

    // What is kept once for all of it, each with what queries it is multiplied by.
    let mut kept: Vec<(ValueId, u64, ValueId)> = Vec::new();
    let query_dtype = b.graph.ty(q).dtype;
    let mut start = 0;
    for part in &keys {
        let query = columns(b, q, start, part.width)?; // [N, H, width]
        let query = match part.matrix {
            None => query,
            Some(matrix) => {
                // As what tokens bring to any product with a weight.
                let dtype = b.graph.ty(matrix).dtype;
                let query = b.cast(query, dtype).ok()?;
                let y = b.contract("nhd,hdr->nhr", query, matrix).ok()?; // [N, H, R]
                b.cast(y, query_dtype).ok()?
            }
        };
        start += part.width;
        match kept.iter_mut().find(|(known, ..)| *known == part.kept) {
            Some((.., sum)) => *sum = b.add(*sum, query).ok()?,
            None => kept.push((part.kept, elements(b.graph, part.kept)?, query)),
        }
    }
    if kept.iter().any(|(known, ..)| b.graph.ty(*known).dtype.blocks().is_some()) {
        // Whole groups come first.
        kept.sort_by_key(|(_, n, _)| std::cmp::Reverse(*n));
    }
    let shared = kept.iter().position(|(known, ..)| *known == value.kept);
    let value_elements = elements(b.graph, value.kept)?;
    let absorbed: u64 = kept.iter().map(|(_, n, _)| n).sum::<u64>() + if shared.is_some() { 0 } else { value_elements };
    if absorbed >= heads * (key_dim + value_dim) {
        return None;
    }

    let queries: Vec<ValueId> = kept.iter().map(|(.., query)| *query).collect();
    let queries = if let [one] = queries[..] { one } else { b.concat(2, &queries).ok()? };
    let caches: Vec<ValueId> = kept.iter().map(|(kept, ..)| *kept).collect();
    let k = merged(b, &caches)?;
    let v = match shared {
        Some(index) => {
            let first = keys_width(&kept[..index]);
            if kept.len() == 1 { k } else { b.slice(k, 2, first, value_elements).ok()? }
        }
        None => merged(b, &[value.kept])?,
    };
    let operands = [&[queries, k, v], &operands[3..]].concat();
    let y = b.fused1(attention, &operands).ok()?; // [N, H, R]
    let y = match value.matrix {
        None => y,
        Some(matrix) => {
            let dtype = b.graph.ty(matrix).dtype;
            let y = b.cast(y, dtype).ok()?;
            b.contract("nhr,hdr->nhd", y, matrix).ok()? // [N, H, Dv]
        }
    };
    let pair = keys_width(&kept) + value_elements;
    let y = if pair > key_dim + value_dim { at_the_start(b, node, y).unwrap_or(y) } else { y };
    graph.replace(ValueId { node, port: 0 }, y);
    Some(())
}

fn keys_width(kept: &[(ValueId, u64, ValueId)]) -> u64 {
    kept.iter().map(|(_, n, _)| n).sum()
}

/// The attention as it was, over keys and values of the step, for sequences that begin in it; `otherwise` for the others.
fn at_the_start(b: &mut Builder<'_>, node: NodeId, otherwise: ValueId) -> Option<ValueId> {
    let attention = b.graph.op(node).as_fused::<Attention>()?.clone();
    let operands = b.graph.operands(node);
    let [q, k, v, ..] = operands[..] else { return None };
    let Some(Dim::Visible(axis)) = b.graph.ty(k).dims.first().copied() else { return None };
    let is_kept = |v: &ValueId| b.graph.ty(*v).dims.iter().any(|d| matches!(d, Dim::Visible(_)));
    let own = b.graph.ty(q).dims.first() == Some(&Dim::Axis(axis));
    if attention.reach.future || !own || operands[3..].iter().any(is_kept) {
        return None;
    }
    let mut memo = HashMap::new();
    let (k, v) = (of_tokens(b.graph, k, axis, &mut memo)?, of_tokens(b.graph, v, axis, &mut memo)?);
    let operands = [&[q, k, v], &operands[3..], &[otherwise]].concat();
    b.fused1(Attention { from_start: true, ..attention }, &operands).ok()
}

/// The parts of keys or values `[visible, heads, width]` along their width, when all of them are kept or products of each head with what is kept.
fn parts(b: &mut Builder<'_>, value: ValueId) -> Option<Vec<Part>> {
    let [_, Dim::Fixed(heads), Dim::Fixed(width)] = b.graph.ty(value).dims[..] else { return None };
    let operands = b.graph.operands(value.node);
    let first = *operands.first()?;
    match core(b.graph, value)?.clone() {
        Core::Cast => parts(b, first),
        Core::Concat { dim: 2 } => {
            let each = operands.into_iter().map(|v| parts(b, v)).collect::<Option<Vec<_>>>()?;
            Some(each.concat())
        }
        Core::Slice { dim: 2, start } => {
            let whole = parts(b, first)?;
            cut(b, &whole, start, width)
        }
        Core::Repeat { dim: 1, .. } if b.graph.ty(first).dims.get(1) == Some(&Dim::Fixed(1)) => {
            Some(vec![Part { kept: cache(b.graph, first)?, width, matrix: None }])
        }
        Core::Reshape => {
            let (kept, matrix) = product(b, first)?;
            let [Dim::Fixed(rows), inputs] = b.graph.ty(matrix).dims[..] else { return None };
            if rows != heads * width {
                return None;
            }
            let matrix = b.reshape(matrix, [Dim::Fixed(heads), Dim::Fixed(width), inputs]).ok()?;
            Some(vec![Part { kept, width, matrix: Some(matrix) }])
        }
        Core::Contract { .. } => {
            let (kept, matrix) = product(b, value)?;
            (b.graph.ty(matrix).dims.len() == 3).then(|| vec![Part { kept, width, matrix: Some(matrix) }])
        }
        _ => None,
    }
}

/// Elements `start .. start + width` of parts; none where that would cut what is kept as it is.
fn cut(b: &mut Builder<'_>, whole: &[Part], start: u64, width: u64) -> Option<Vec<Part>> {
    let mut found = Vec::new();
    let mut at = 0;
    for part in whole {
        let (from, to) = (start.max(at), (start + width).min(at + part.width));
        if from < to {
            let matrix = match part.matrix {
                _ if to - from == part.width => part.matrix,
                Some(matrix) => Some(b.slice(matrix, 1, from - at, to - from).ok()?),
                None => return None,
            };
            found.push(Part { width: to - from, matrix, ..*part });
        }
        at += part.width;
    }
    Some(found)
}

/// What is kept and the matrix of a product of both: `[O, R]`, or `[H, D, R]` where each head has its own.
fn product(b: &mut Builder<'_>, value: ValueId) -> Option<(ValueId, ValueId)> {
    let Core::Contract { spec } = core(b.graph, value)? else { return None };
    let spec = ContractSpec::parse(spec).ok()?;
    let [a, w] = b.graph.operands(value.node)[..] else { return None };
    let (x, w, x_labels, w_labels) = match (is_weight_expression(b.graph, a), is_weight_expression(b.graph, w)) {
        (false, true) => (a, w, &spec.a, &spec.b),
        (true, false) => (w, a, &spec.b, &spec.a),
        _ => return None,
    };
    let [token, inner] = x_labels[..] else { return None };
    let wanted = [spec.out.strip_prefix(&[token])?, &[inner]].concat();
    let perm: Vec<usize> = wanted.iter().map(|c| w_labels.iter().position(|l| l == c)).collect::<Option<_>>()?;
    if perm.len() != w_labels.len() {
        return None;
    }
    let matrix = if perm.is_sorted() { w } else { b.transpose(w, perm).ok()? };
    Some((cache(b.graph, x)?, matrix))
}

/// The cache that a value is, perhaps cast.
fn cache(graph: &Graph, value: ValueId) -> Option<ValueId> {
    let mut value = value;
    while let Some(inner) = operand_if(graph, value, |op| *op == Core::Cast) {
        value = inner;
    }
    matches!(core(graph, value)?, Core::Cache { .. }).then_some(value)
}

/// What is kept of a token.
fn elements(graph: &Graph, kept: ValueId) -> Option<u64> {
    graph.ty(kept).dims.get(1..)?.iter().map(|d| d.fixed()).product()
}

/// Elements `start .. start + width` of each head, without joining them first where they were apart.
fn columns(b: &mut Builder<'_>, q: ValueId, start: u64, width: u64) -> Option<ValueId> {
    let dtype = b.graph.ty(q).dtype;
    let inner = operand_if(b.graph, q, |op| *op == Core::Cast).unwrap_or(q);
    if let Core::Concat { dim: 2 } = core(b.graph, inner)? {
        let mut at = 0;
        for part in b.graph.operands(inner.node) {
            let size = b.graph.ty(part).dims.get(2)?.fixed()?;
            if (at, size) == (start, width) {
                return b.cast(part, dtype).ok();
            }
            at += size;
        }
    }
    if b.graph.ty(q).dims.get(2) == Some(&Dim::Fixed(width)) {
        return Some(q);
    }
    b.slice(q, 2, start, width).ok()
}

/// One cache of what several keep, `[visible, 1, elements]`.
fn merged(b: &mut Builder<'_>, caches: &[ValueId]) -> Option<ValueId> {
    let mut path = String::new();
    let mut rows = Vec::new();
    for kept in caches {
        let Core::Cache { path: own } = core(b.graph, *kept)? else { return None };
        // No identifier of the language holds these characters.
        path = if path.is_empty() { own.clone() } else { format!("{path}+{}", own.rsplit('.').next().unwrap_or(own)) };
        let mut x = b.graph.operands(kept.node).first().copied()?;
        if b.graph.ty(x).dtype.blocks().is_some() {
            x = operand_if(b.graph, x, |op| *op == Core::Cast)?;
        }
        let width = elements(b.graph, *kept)?;
        let tokens = *b.graph.ty(x).dims.first()?;
        rows.push(b.reshape(x, [tokens, Dim::Fixed(1), Dim::Fixed(width)]).ok()?);
    }
    if caches.len() == 1 {
        path += "~";
    }
    let x = if let [one] = rows[..] { one } else { b.concat(2, &rows).ok()? };
    match group(b.graph, caches)? {
        None => b.cache(path, x).ok(),
        Some(blocks) => {
            let x = b.cast(x, DType::Blocks(blocks)).ok()?;
            b.cache(path, x).ok()
        }
    }
}

/// The blocks of what caches keep as one, none where they keep no blocks: each is whole groups or, the last one, a part of one.
fn group(graph: &Graph, caches: &[ValueId]) -> Option<Option<Blocks>> {
    let blocks: Vec<_> = caches.iter().map(|kept| graph.ty(*kept).dtype.blocks()).collect();
    if blocks.iter().all(Option::is_none) {
        return Some(None);
    }
    let (last, whole) = caches.split_last()?;
    let largest = blocks.iter().copied().collect::<Option<Vec<_>>>()?.into_iter().max_by_key(|b| b.group)?;
    // Each was rounded as one group, whatever its heads: they are one.
    let width =
        |kept: &ValueId| elements(graph, *kept).filter(|n| graph.ty(*kept).dims.last() == Some(&Dim::Fixed(*n)));
    let fits = blocks.iter().flatten().all(|b| b.form == largest.form)
        && whole.iter().all(|kept| width(kept) == Some(u64::from(largest.group)))
        && width(last)? <= u64::from(largest.group);
    fits.then_some(Some(largest))
}
