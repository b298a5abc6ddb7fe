//! All rows and heads of a tile over the keys of their sequence, block by block of pages.
//!
//! What a row asks for one head is a query; those of a tile are numbered row by row. A block of keys is multiplied with a register tile of queries after
//! another, while it lies in the processor's caches: scores, one step of the softmax, weighted values. Where the bounds of the mask
//! leave a register tile all keys of a block, no lane of it is masked; where they leave none, the block is passed over. A tile's rows may be of several
//! sequences: each is gone over by itself.
//!
//! Of each query the worker's scratch holds the elements, as the products want them, the maximum that its weights are relative to, their sum lane by
//! lane, and the weighted sum of the values.

use super::super::expr::{cast, elem_of};
use super::super::machine::Machine;
use super::super::schedule::{AttentionSchedule, BlockSchedule};
use super::super::writer::{Cmp, Elem, Ty, Val, Writer};
use super::layout::{Form, Layout};
use super::{Attention, FAR, LOWEST, Query, Tile, combine};
use crate::error::CodegenError;
use crate::plan::kernel::{CombineSpec, PageLayout, page_bytes};
use xfc_lang::graph::DType;

/// Rows of one sequence.
#[derive(Clone, Copy)]
pub(super) struct Segment {
    pub(super) tile: Tile,
    /// First row.
    pub(super) from: Val,
    /// Queries.
    pub(super) n: Val,
    /// One past the last page that any of them sees.
    end_page: Val,
}

/// Pages of keys.
pub(super) struct Block {
    /// First page and first key, one past the last key.
    pub(super) page: Val,
    pub(super) first_key: Val,
    end_key: Val,
    /// Addresses of the keys of each page, and of the next block's.
    pub(super) keys: Vec<Val>,
    pub(super) next_keys: Vec<Val>,
}

/// A register tile of queries: the number of the first, and how many keys of the block it looks at.
#[derive(Clone, Copy)]
pub(super) struct Micro {
    pub(super) first: Val,
    pub(super) n_keys: Val,
}

pub(super) struct Blocks<'k> {
    pub(super) at: &'k Attention<'k>,
    pub(super) schedule: BlockSchedule,
    pub(super) keys: Form,
    pub(super) values: Form,
    pub(super) layout: Layout,
}

impl<'k> Blocks<'k> {
    pub(super) fn new(
        at: &'k Attention<'k>,
        schedule: &AttentionSchedule,
        machine: &Machine,
    ) -> Result<Self, CodegenError> {
        let spec = at.spec;
        let Some(blocks) = schedule.blocks else {
            return Err(CodegenError::bug("attention", "a schedule without blocks"));
        };
        if spec.value_in_key.is_some() || !matches!(spec.key_layout, PageLayout::TokensLast | PageLayout::DimPairs) {
            return Err(CodegenError::bug("attention", "blocks of keys that lie as values do"));
        }
        let keys = Form::of(spec.key_layout, PageLayout::DimPairs, spec.query == DType::BF16, machine);
        // Weights of values are not rounded.
        let values = Form::of(spec.value_layout, PageLayout::TokenPairs, false, machine);
        let heads = at.group().div_ceil(schedule.parts(at.group()));
        let layout = Layout::new(at, &blocks, schedule.rows_per_tile * heads, (keys, values));
        Ok(Blocks { at, schedule: blocks, keys, values, layout })
    }

    pub(super) fn scratch_bytes(&self) -> u64 {
        self.layout.bytes
    }

    /// Keys of a block.
    pub(super) fn block_keys(&self) -> u64 {
        u64::from(self.schedule.pages) * self.at.spec.page_tokens
    }

    /// Element `index` of an array in scratch.
    pub(super) fn cell(&self, w: &mut Writer, array: u64, index: Val, bytes: u64) -> Val {
        let array = w.offset_const(self.at.scratch, array);
        w.element(array, index, bytes)
    }

    /// A tile of the launch.
    pub(super) fn tile(&self, w: &mut Writer, tile: Tile) -> Result<(), CodegenError> {
        let one = w.i64(1);
        let last = w.sub(tile.end, one);
        let first_sequence = w.load_u32(self.at.sequences, tile.begin);
        let last_sequence = w.load_u32(self.at.sequences, last);
        let end_sequence = w.add(last_sequence, one);
        w.for_loop(first_sequence, end_sequence, 1, &[], |w, sequence, _| {
            let next = w.add(sequence, one);
            let from = w.load_u32(self.at.offsets, sequence);
            let from = w.max(from, tile.begin);
            let to = w.load_u32(self.at.offsets, next);
            let to = w.min(to, tile.end);
            // A sequence may have no rows.
            let some = w.cmp(Cmp::Lt, from, to);
            w.if_then(some, |w| match self.at.is_meant(w, from) {
                None => self.segment(w, tile, from, to),
                Some(meant) => w.if_then(meant, |w| self.segment(w, tile, from, to)),
            })?;
            Ok(vec![])
        })?;
        Ok(())
    }

    /// The row and the head of a query; those after the last repeat it.
    pub(super) fn locate(&self, w: &mut Writer, tile: Tile, from: Val, n: Val, query: Val) -> (Val, Val) {
        let one = w.i64(1);
        let last = w.sub(n, one);
        let query = w.min(query, last);
        let heads = w.i64(tile.heads as i64);
        let row = w.div_unsigned(query, heads);
        let row = w.add(from, row);
        let head = w.rem_unsigned(query, heads);
        let head = w.add(tile.first_head, head);
        let last_head = w.sub(tile.end_head, one);
        (row, w.min(head, last_head))
    }

    /// Rows `from .. to`, of one sequence.
    fn segment(&self, w: &mut Writer, tile: Tile, from: Val, to: Val) -> Result<(), CodegenError> {
        let heads = w.i64(tile.heads as i64);
        let rows = w.sub(to, from);
        let n = w.mul(rows, heads);
        let n_tiles = w.ceil_div(n, u64::from(self.schedule.queries));
        let per_tile = w.i64(i64::from(self.schedule.queries));
        let padded = w.mul(n_tiles, per_tile);
        let zero = w.i64(0);
        let far = w.i64(FAR);
        let reach = w.for_loop(zero, padded, 1, &[far, zero], |w, index, reach| {
            let (row, head) = self.locate(w, tile, from, n, index);
            let query = self.at.enter_row(w, row);
            self.enter(w, tile, &query, head, index)?;
            Ok(vec![w.min(reach[0], query.low), w.max(reach[1], query.high)])
        })?;
        w.for_loop(zero, n_tiles, 1, &[], |w, t, _| {
            self.bound(w, from, t);
            Ok(vec![])
        })?;
        let page_tokens = w.i64(self.at.spec.page_tokens as i64);
        let end_page = w.ceil_div(reach[1], self.at.spec.page_tokens);
        let first_page = w.div_unsigned(reach[0], page_tokens);
        let first_page = w.min(first_page, end_page);
        let n_pages = w.sub(end_page, first_page);
        let n_blocks = w.ceil_div(n_pages, u64::from(self.schedule.pages));
        let segment = Segment { tile, from, n, end_page };
        let (begin, end) = match tile.part {
            None => (zero, n_blocks),
            Some(part) => {
                let n_parts = w.i64(i64::from(self.schedule.key_parts));
                let one = w.i64(1);
                let next = w.add(part, one);
                let [begin, end] = [part, next].map(|part| {
                    let before = w.mul(part, n_blocks);
                    w.div_unsigned(before, n_parts)
                });
                (begin, end)
            }
        };
        w.for_loop(begin, end, 1, &[], |w, b, _| {
            let per_block = w.i64(i64::from(self.schedule.pages));
            let skipped = w.mul(b, per_block);
            let page = w.add(first_page, skipped);
            let block = self.block(w, &segment, page);
            w.for_loop(zero, n_tiles, 1, &[], |w, t, _| {
                self.register_tile(w, &segment, &block, t)?;
                Ok(vec![])
            })?;
            Ok(vec![])
        })?;
        w.for_loop(zero, n, 1, &[], |w, index, _| {
            let heads = w.i64(tile.heads as i64);
            let head = w.rem_unsigned(index, heads);
            let head = w.add(tile.first_head, head);
            let exists = w.cmp(Cmp::Lt, head, tile.end_head);
            w.if_then(exists, |w| self.leave(w, &segment, index))?;
            Ok(vec![])
        })?;
        Ok(())
    }

    /// Brings a query into scratch.
    fn enter(&self, w: &mut Writer, tile: Tile, query: &Query, head: Val, index: Val) -> Result<(), CodegenError> {
        let spec = self.at.spec;
        let lanes = self.at.lanes;
        for (array, value) in
            [(self.layout.positions, query.position), (self.layout.lows, query.low), (self.layout.highs, query.high)]
        {
            let at = self.cell(w, array, index, 8);
            w.store(value, at);
        }
        let (maximum, sum) = match &spec.sink {
            Some(sink) => {
                let sink = self.at.sink(w, query, sink, head)?;
                let log2e = w.f32(std::f64::consts::LOG2_E, 0);
                (w.mul(sink, log2e), w.f32(1.0, 0))
            }
            None => (w.f32(LOWEST, 0), w.f32(if spec.softmax { 0.0 } else { 1.0 }, 0)),
        };
        // What there is before any key is of the first part.
        let (maximum, sum) = match tile.part {
            None => (maximum, sum),
            Some(part) => {
                let first = w.i64(0);
                let is_first = w.cmp(Cmp::Eq, part, first);
                let [lowest, nothing] = [LOWEST, 0.0].map(|x| w.f32(x, 0));
                (w.select(is_first, maximum, lowest), w.select(is_first, sum, nothing))
            }
        };
        let at = self.cell(w, self.layout.maxima, index, 4);
        w.store(maximum, at);
        let zero = w.f32(0.0, lanes);
        let sums = self.cell(w, self.layout.sums, index, u64::from(lanes) * 4);
        w.store(zero, sums);
        w.store(sum, sums);
        let out = self.cell(w, self.layout.out, index, self.layout.out_bytes);
        for v in 0..spec.value_dim.div_ceil(u64::from(lanes)) {
            let at = w.offset_const(out, v * u64::from(lanes) * 4);
            w.store(zero, at);
        }
        // The elements: pairs as they are, others as f32.
        let stored = elem_of(spec.query, Elem::I64)?;
        let row = w.row(self.at.q, query.row, stored.bytes());
        let from = w.element(row, head, spec.key_dim * stored.bytes());
        let to = self.cell(w, self.layout.queries, index, self.layout.query_bytes);
        let mut element = 0;
        while element < spec.key_dim {
            let n = if spec.key_dim - element >= u64::from(lanes) { lanes } else { 0 };
            let at = w.offset_const(from, element * stored.bytes());
            let x = w.load(Ty::of(stored, n), at);
            let x = if self.keys.bytes() == 2 { x } else { cast(w, x, Elem::F32)? };
            let at = w.offset_const(to, element * self.keys.bytes());
            w.store(x, at);
            element += u64::from(n.max(1));
        }
        Ok(())
    }

    /// Of register tile `t`: which keys some of its queries see, and which all of them.
    fn bound(&self, w: &mut Writer, from: Val, t: Val) {
        let queries = w.i64(i64::from(self.schedule.queries));
        let first = w.mul(t, queries);
        let sequence = w.load_u32(self.at.sequences, from);
        let length = w.load_u32(self.at.cache.lengths, sequence);
        let zero = w.i64(0);
        let mut bounds: Option<[Val; 4]> = None;
        for i in 0..u64::from(self.schedule.queries) {
            let [position, low, high] = [self.layout.positions, self.layout.lows, self.layout.highs].map(|array| {
                let at = self.cell(w, array + i * 8, first, 8);
                w.load(Ty::scalar(Elem::I64), at)
            });
            // What the mask says of the age of a key, which is all that it says where it has no gaps.
            let age = |bound: Option<i128>| bound.and_then(|age| i64::try_from(age).ok()).filter(|age| age.abs() < FAR);
            let from = match (self.at.span.largest, age(self.at.span.largest)) {
                (None, _) => zero,
                (_, Some(largest)) => {
                    let largest = w.i64(largest);
                    let from = w.sub(position, largest);
                    w.max(from, zero)
                }
                _ => w.i64(FAR),
            };
            let to = match (self.at.span.least, age(self.at.span.least)) {
                (None, _) => length,
                (_, Some(least)) => {
                    let ahead = w.i64(1 - least);
                    let to = w.add(position, ahead);
                    w.min(to, length)
                }
                _ => zero,
            };
            bounds = Some(match bounds {
                None => [low, high, from, to],
                Some([l, h, f, t]) => [w.min(l, low), w.max(h, high), w.max(f, from), w.min(t, to)],
            });
        }
        let at = self.cell(w, self.layout.bounds, t, 32);
        for (i, bound) in bounds.into_iter().flatten().enumerate() {
            let at = w.offset_const(at, i as u64 * 8);
            w.store(bound, at);
        }
    }

    /// Finds the pages of a block.
    fn block(&self, w: &mut Writer, segment: &Segment, page: Val) -> Block {
        let spec = self.at.spec;
        let page_tokens = w.i64(spec.page_tokens as i64);
        let first_key = w.mul(page, page_tokens);
        let n_keys = w.i64(self.block_keys() as i64);
        let end_key = w.add(first_key, n_keys);
        let (keys, values) = self.pages(w, segment, page);
        let (mut next_keys, mut next_values) = (Vec::new(), Vec::new());
        if self.schedule.prefetch {
            let n_pages = w.i64(i64::from(self.schedule.pages));
            let next = w.add(page, n_pages);
            (next_keys, next_values) = self.pages(w, segment, next);
        }
        for (array, pages) in [(self.layout.pages, values), (self.layout.next_pages, next_values)] {
            for (p, at) in pages.into_iter().enumerate() {
                let cell = w.offset_const(self.at.scratch, array + p as u64 * 8);
                w.store(at, cell);
            }
        }
        Block { page, first_key, end_key, keys, next_keys }
    }

    /// Where keys and values of the block from `page` on lie; of pages that do not exist, those of the last that does.
    fn pages(&self, w: &mut Writer, segment: &Segment, page: Val) -> (Vec<Val>, Vec<Val>) {
        let spec = self.at.spec;
        let one = w.i64(1);
        let last = w.sub(segment.end_page, one);
        let sequence = w.load_u32(self.at.sequences, segment.from);
        let slots = [(self.at.k.data, spec.key_dim), (self.at.v.data, spec.value_dim)];
        let mut found = (Vec::new(), Vec::new());
        for p in 0..self.schedule.pages {
            let p = w.i64(i64::from(p));
            let number = w.add(page, p);
            let number = w.min(number, last);
            let id = w.page_id(self.at.cache, sequence, number);
            let [keys, values] = slots.map(|(data, dim)| {
                let at = w.element(data, id, page_bytes(spec.kv_heads, dim, spec.page_tokens, spec.kept));
                w.element(at, segment.tile.kv_head, dim * spec.page_tokens * self.at.kept_bytes())
            });
            found.0.push(keys);
            found.1.push(values);
        }
        found
    }

    /// Register tile `t` of queries and a block of keys.
    fn register_tile(&self, w: &mut Writer, segment: &Segment, block: &Block, t: Val) -> Result<(), CodegenError> {
        let at = self.cell(w, self.layout.bounds, t, 32);
        let [low, high, from, to] = [0, 8, 16, 24].map(|offset| {
            let at = w.offset_const(at, offset);
            w.load(Ty::scalar(Elem::I64), at)
        });
        let queries = w.i64(i64::from(self.schedule.queries));
        let first = w.mul(t, queries);
        let n_keys = w.i64(self.block_keys() as i64);
        let left = w.sub(high, block.first_key);
        let micro = Micro { first, n_keys: w.min(left, n_keys) };
        let begins = w.cmp(Cmp::Lt, block.first_key, high);
        let ends = w.cmp(Cmp::Gt, block.end_key, low);
        let seen = w.and(begins, ends);
        w.if_then(seen, |w| {
            if self.at.span.has_gaps {
                let any = self.any_visible(w, segment, block, micro)?;
                return w.if_then(any, |w| {
                    self.scores(w, block, micro)?;
                    self.shares(w, segment, block, micro, true)?;
                    self.weigh(w, micro)
                });
            }
            self.scores(w, block, micro)?;
            let after = w.cmp(Cmp::Ge, block.first_key, from);
            let before = w.cmp(Cmp::Le, block.end_key, to);
            let whole = w.and(after, before);
            w.if_then(whole, |w| self.shares(w, segment, block, micro, false))?;
            let one = w.int(1, Ty::scalar(Elem::I1));
            let cut = w.xor(whole, one);
            w.if_then(cut, |w| self.shares(w, segment, block, micro, true))?;
            self.weigh(w, micro)
        })
    }

    /// Stores the result of a query.
    fn leave(&self, w: &mut Writer, segment: &Segment, index: Val) -> Result<(), CodegenError> {
        let (row, head) = self.locate(w, segment.tile, segment.from, segment.n, index);
        let lanes = self.at.lanes;
        let sums = self.cell(w, self.layout.sums, index, u64::from(lanes) * 4);
        let sums = w.load(Ty::of(Elem::F32, lanes), sums);
        let sum = w.reduce_add(sums);
        let at = self.cell(w, self.layout.out, index, self.layout.out_bytes);
        let n = self.at.spec.value_dim.div_ceil(u64::from(lanes));
        let out: Vec<Val> = (0..n)
            .map(|v| {
                let at = w.offset_const(at, v * u64::from(lanes) * 4);
                w.load(Ty::of(Elem::F32, lanes), at)
            })
            .collect();
        let (Some(part), Some(buffer)) = (segment.tile.part, self.at.parts) else {
            return self.at.results.store(w, (row, head), sum, &out);
        };
        let dim = self.at.spec.value_dim;
        let at = combine::parts_of(w, buffer, (row, head), &CombineSpec::of(self.at.spec));
        let at = w.element(at, part, (dim + 2) * 4);
        self.at.results.store_vectors(w, at, &out);
        let maximum = self.cell(w, self.layout.maxima, index, 4);
        let maximum = w.load(Ty::scalar(Elem::F32), maximum);
        for (i, x) in [maximum, sum].into_iter().enumerate() {
            let at = w.offset_const(at, (dim + i as u64) * 4);
            w.store(x, at);
        }
        Ok(())
    }
}
