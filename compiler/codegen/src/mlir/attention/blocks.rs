//! All rows and heads of a tile over the keys of their sequence, block by block of pages.
//!
//! What a row asks for one head is a query; those of a tile are numbered row by row, for each head of keys by itself. A block of keys is multiplied with a
//! register tile of queries after another, while it lies in the processor's caches: scores, one step of the softmax, weighted values. Where the bounds of
//! the mask leave a register tile all keys of a block, no lane of it is masked; where they leave none, the block is passed over. A tile's rows may be of
//! several sequences: each is gone over by itself.
//!
//! Memory is fast where it is read as it lies: each jump costs some hundred nanoseconds, in which kilobytes could have been read. Where queries are few, the
//! keys of all pages of a block are therefore gone over first, page by page, each for all heads; then the softmax of all queries; then the values.
//!
//! Of each query the worker's scratch holds the elements, as the products want them, the maximum that its weights are relative to, their sum lane by
//! lane, and the weighted sum of the values.

use super::super::machine::Machine;
use super::super::schedule::{AttentionSchedule, BlockSchedule};
use super::super::writer::{Cmp, Elem, Ty, Val, Writer};
use super::layout::{Form, Layout};
use super::{Attention, FAR, Tile};
use crate::error::CodegenError;
use crate::plan::kernel::PageLayout;
use xfc_lang::graph::DType;

/// Lines of memory that are asked for in a round of a loop, and bytes of one.
const LINES: u64 = 8;
pub(super) const CACHE_LINE: u64 = 64;

/// Rows of one sequence.
#[derive(Clone, Copy)]
pub(super) struct Segment {
    pub(super) tile: Tile,
    /// First row.
    pub(super) from: Val,
    /// Queries of a head of keys, their register tiles, and the queries that these have room for.
    pub(super) n: Val,
    n_tiles: Val,
    padded: Val,
    /// One past the last page that any of them sees.
    end_page: Val,
}

/// Pages of keys: the first page and key, one past the last key.
#[derive(Clone, Copy)]
pub(super) struct Block {
    pub(super) page: Val,
    pub(super) first_key: Val,
    end_key: Val,
}

/// A register tile of queries.
#[derive(Clone, Copy)]
pub(super) struct Micro {
    /// The tile, of one head of keys alone.
    pub(super) tile: Tile,
    /// Of heads that are read together, which it is.
    pub(super) kv: Option<Val>,
    /// Number of the register tile among those of its head of keys, and of all.
    pub(super) of_head: Val,
    pub(super) number: Val,
    /// First query, among those of its head of keys, of all, and of those whose scores there is room for.
    pub(super) first_of_head: Val,
    pub(super) first: Val,
    pub(super) place: Val,
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
        let [keys, values] = if blocks.tiles {
            [Form::Tiles; 2]
        } else {
            // Weights of values are not rounded to bf16.
            [
                Form::of(spec.kept, (spec.key_layout, PageLayout::DimPairs), spec.query == DType::BF16, machine)?,
                Form::of(spec.value_kept, (spec.value_layout, PageLayout::TokenPairs), false, machine)?,
            ]
        };
        let heads = at.group().div_ceil(schedule.parts(at.group()));
        let layout = Layout::new(at, &blocks, schedule.rows_per_tile * heads, keys);
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
        self.at.each_segment(w, tile, |w, from, to| self.segment(w, tile, from, to))
    }

    /// The row and the head of a query; those after the last repeat it.
    pub(super) fn locate(&self, w: &mut Writer, tile: Tile, from: Val, n: Val, query: Val) -> (Val, Val) {
        self.at.locate(w, tile, from, n, query)
    }

    /// Rows `from .. to`, of one sequence.
    pub(super) fn segment(&self, w: &mut Writer, tile: Tile, from: Val, to: Val) -> Result<(), CodegenError> {
        let heads = w.i64(tile.heads as i64);
        let rows = w.sub(to, from);
        let n = w.mul(rows, heads);
        let n_tiles = w.ceil_div(n, u64::from(self.schedule.queries));
        let per_tile = w.i64(i64::from(self.schedule.queries));
        let padded = w.mul(n_tiles, per_tile);
        let zero = w.i64(0);
        let far = w.i64(FAR);
        let reach = w.for_loop(from, to, 1, &[far, zero], |w, row, reach| {
            let query = self.at.enter_row(w, row);
            Ok(vec![w.min(reach[0], query.low), w.max(reach[1], query.high)])
        })?;
        let page_tokens = w.i64(self.at.spec.page_tokens as i64);
        let end_page = w.ceil_div(reach[1], self.at.spec.page_tokens);
        let first_page = w.div_unsigned(reach[0], page_tokens);
        let first_page = w.min(first_page, end_page);
        let n_pages = w.sub(end_page, first_page);
        let n_blocks = w.ceil_div(n_pages, u64::from(self.schedule.pages));
        let segment = Segment { tile, from, n, n_tiles, padded, end_page };
        let Some(part) = tile.part else {
            return self.blocks(w, &segment, first_page, (zero, n_blocks));
        };
        let n_parts = w.i64(i64::from(self.schedule.key_parts));
        let one = w.i64(1);
        let next = w.add(part, one);
        let [begin, end] = [part, next].map(|part| {
            let before = w.mul(part, n_blocks);
            w.div_unsigned(before, n_parts)
        });
        // The first part has what there is before any key.
        let has_keys = w.cmp(Cmp::Lt, begin, end);
        let is_first = w.cmp(Cmp::Eq, part, zero);
        let is_there = w.or(has_keys, is_first);
        w.if_then(is_there, |w| self.blocks(w, &segment, first_page, (begin, end)))?;
        let one = w.int(1, Ty::scalar(Elem::I1));
        let is_absent = w.xor(is_there, one);
        w.if_then(is_absent, |w| {
            self.each_query(w, &segment, n, |w, tile, of_head, _| {
                let place = self.locate(w, tile, from, n, of_head);
                self.absent(w, tile, place);
                Ok(())
            })
        })
    }

    /// Blocks `begin .. end` of a segment, which begin at a page.
    fn blocks(
        &self,
        w: &mut Writer,
        segment: &Segment,
        first_page: Val,
        (begin, end): (Val, Val),
    ) -> Result<(), CodegenError> {
        self.each_query(w, segment, segment.padded, |w, tile, of_head, index| {
            let (row, head) = self.locate(w, tile, segment.from, segment.n, of_head);
            let query = self.at.enter_row(w, row);
            self.enter(w, tile, &query, head, (of_head, index))
        })?;
        let zero = w.i64(0);
        w.for_loop(zero, segment.n_tiles, 1, &[], |w, t, _| {
            self.bound(w, segment.from, t);
            Ok(vec![])
        })?;
        w.for_loop(begin, end, 1, &[], |w, b, _| {
            let per_block = w.i64(i64::from(self.schedule.pages));
            let skipped = w.mul(b, per_block);
            let page = w.add(first_page, skipped);
            let block = self.block(w, segment, page)?;
            if self.schedule.by_page {
                self.by_page(w, segment, &block)?;
            } else {
                self.ask_for_next(w, segment, page)?;
                if self.schedule.tiles {
                    self.bring(w, segment, &block)?;
                }
                self.each_register_tile(w, segment, |w, micro| self.register_tile(w, segment, &block, micro))?;
            }
            Ok(vec![])
        })?;
        self.each_query(w, segment, segment.n, |w, tile, of_head, index| {
            let (row, head) = self.locate(w, tile, segment.from, segment.n, of_head);
            self.leave(w, tile, (row, head), index)
        })
    }

    /// A loop over the heads of keys that are read together: `body(the tile of one alone, which it is)`.
    fn each_head(
        &self,
        w: &mut Writer,
        tile: Tile,
        body: impl FnOnce(&mut Writer, Tile, Option<Val>) -> Result<(), CodegenError>,
    ) -> Result<(), CodegenError> {
        if self.schedule.kv_heads == 1 {
            return body(w, tile, None);
        }
        let (begin, end) = (w.i64(0), w.i64(self.schedule.kv_heads as i64));
        w.for_loop(begin, end, 1, &[], |w, kv, _| {
            let group = w.i64(self.at.group() as i64);
            let skipped = w.mul(kv, group);
            let tile = Tile {
                kv_head: w.add(tile.kv_head, kv),
                first_head: w.add(tile.first_head, skipped),
                end_head: w.add(tile.end_head, skipped),
                ..tile
            };
            body(w, tile, Some(kv))?;
            Ok(vec![])
        })?;
        Ok(())
    }

    /// A loop over the first `n` queries of each head of keys whose head exists: `body(tile of its head of keys, number among its queries, among all)`.
    fn each_query(
        &self,
        w: &mut Writer,
        segment: &Segment,
        n: Val,
        body: impl FnOnce(&mut Writer, Tile, Val, Val) -> Result<(), CodegenError>,
    ) -> Result<(), CodegenError> {
        self.each_head(w, segment.tile, |w, tile, kv| {
            let zero = w.i64(0);
            w.for_loop(zero, n, 1, &[], |w, of_head, _| {
                let index = match kv {
                    None => of_head,
                    Some(kv) => {
                        let before = w.mul(kv, segment.padded);
                        w.add(before, of_head)
                    }
                };
                body(w, tile, of_head, index)?;
                Ok(vec![])
            })?;
            Ok(())
        })
    }

    /// A loop over the register tiles.
    pub(super) fn each_register_tile(
        &self,
        w: &mut Writer,
        segment: &Segment,
        body: impl FnOnce(&mut Writer, Micro) -> Result<(), CodegenError>,
    ) -> Result<(), CodegenError> {
        self.each_head(w, segment.tile, |w, tile, kv| {
            let zero = w.i64(0);
            w.for_loop(zero, segment.n_tiles, 1, &[], |w, of_head, _| {
                let queries = w.i64(i64::from(self.schedule.queries));
                let first_of_head = w.mul(of_head, queries);
                let (number, first) = match kv {
                    None => (of_head, first_of_head),
                    Some(kv) => {
                        let before = w.mul(kv, segment.n_tiles);
                        let number = w.add(before, of_head);
                        (number, w.mul(number, queries))
                    }
                };
                let place = if self.schedule.by_page { first } else { zero };
                body(w, Micro { tile, kv, of_head, number, first_of_head, first, place })?;
                Ok(vec![])
            })?;
            Ok(())
        })
    }

    /// Finds the pages of a block, for the first head of the tile; of pages that do not exist, the last that does.
    fn block(&self, w: &mut Writer, segment: &Segment, page: Val) -> Result<Block, CodegenError> {
        let spec = self.at.spec;
        let page_tokens = w.i64(spec.page_tokens as i64);
        let first_key = w.mul(page, page_tokens);
        let n_keys = w.i64(self.block_keys() as i64);
        let end_key = w.add(first_key, n_keys);
        let one = w.i64(1);
        let last = w.sub(segment.end_page, one);
        let sequence = w.load_u32(self.at.rows.sequences, segment.from);
        let slots = [
            (self.at.k.data, spec.keys(), self.layout.key_pages),
            (self.at.v.data, spec.values(), self.layout.value_pages),
        ];
        let (begin, end) = (w.i64(0), w.i64(i64::from(self.schedule.pages)));
        w.for_loop(begin, end, 1, &[], |w, p, _| {
            let number = w.add(page, p);
            let number = w.min(number, last);
            let id = w.page_id(self.at.cache, sequence, number);
            for (data, head, array) in slots {
                let at = w.element(data, id, head.page_bytes(spec.kv_heads));
                let at = w.element(at, segment.tile.kv_head, head.bytes());
                let cell = self.cell(w, array, p, 8);
                w.store(at, cell);
            }
            Ok(vec![])
        })?;
        Ok(Block { page, first_key, end_key })
    }

    /// Asks memory for the pages of the block behind one, of the tile's head: they lie in pieces, each too short for a processor to ask by itself.
    fn ask_for_next(&self, w: &mut Writer, segment: &Segment, page: Val) -> Result<(), CodegenError> {
        let spec = self.at.spec;
        let n_pages = w.i64(i64::from(self.schedule.pages));
        let next = w.add(page, n_pages);
        let after = w.add(next, n_pages);
        let after = w.min(after, segment.end_page);
        let sequence = w.load_u32(self.at.rows.sequences, segment.from);
        w.for_loop(next, after, 1, &[], |w, number, _| {
            let id = w.page_id(self.at.cache, sequence, number);
            for (data, head) in [(self.at.k.data, spec.keys()), (self.at.v.data, spec.values())] {
                let at = w.element(data, id, head.page_bytes(spec.kv_heads));
                let at = w.element(at, segment.tile.kv_head, head.bytes());
                let (zero, end) = (w.i64(0), w.i64(head.bytes() as i64));
                w.for_loop(zero, end, (LINES * CACHE_LINE) as i64, &[], |w, offset, _| {
                    let at = w.offset(at, offset);
                    for line in 0..LINES {
                        let at = w.offset_const(at, line * CACHE_LINE);
                        w.prefetch(at, 2);
                    }
                    Ok(vec![])
                })?;
            }
            Ok(vec![])
        })?;
        Ok(())
    }

    /// Where the keys of a page of the block lie, or its values, for the head of a register tile: their scales first, where there are some.
    pub(super) fn page_of(&self, w: &mut Writer, micro: Micro, page: Val, values: bool) -> Val {
        let (array, head) = if values {
            (self.layout.value_pages, self.at.spec.values())
        } else {
            (self.layout.key_pages, self.at.spec.keys())
        };
        let cell = self.cell(w, array, page, 8);
        let at = w.load(Ty::scalar(Elem::Ptr), cell);
        match micro.kv {
            None => at,
            Some(kv) => w.element(at, kv, head.bytes()),
        }
    }

    /// How many keys of a block, from its first on, a register tile looks at: none when its queries see none. And whether they all see all of it.
    pub(super) fn look(
        &self,
        w: &mut Writer,
        segment: &Segment,
        block: &Block,
        micro: Micro,
    ) -> Result<(Val, Val), CodegenError> {
        let at = self.cell(w, self.layout.bounds, micro.of_head, 32);
        let [low, high, from, to] = [0, 8, 16, 24].map(|offset| {
            let at = w.offset_const(at, offset);
            w.load(Ty::scalar(Elem::I64), at)
        });
        let zero = w.i64(0);
        let n_keys = w.i64(self.block_keys() as i64);
        let left = w.sub(high, block.first_key);
        let left = w.min(left, n_keys);
        let begins = w.cmp(Cmp::Lt, block.first_key, high);
        let ends = w.cmp(Cmp::Gt, block.end_key, low);
        let seen = w.and(begins, ends);
        let n_keys = w.select(seen, left, zero);
        if self.at.span.has_gaps {
            let n_keys = w.if_else(seen, &[zero], |w| {
                let any = self.any_visible(w, segment, block, micro)?;
                Ok(vec![w.select(any, n_keys, zero)])
            })?;
            return Ok((n_keys[0], w.int(0, Ty::scalar(Elem::I1))));
        }
        let after = w.cmp(Cmp::Ge, block.first_key, from);
        let before = w.cmp(Cmp::Le, block.end_key, to);
        Ok((n_keys, w.and(after, before)))
    }

    /// Scores to weights, where some lanes are masked or none is.
    pub(super) fn shares_of(
        &self,
        w: &mut Writer,
        segment: &Segment,
        keys: (&Block, Val),
        micro: Micro,
        whole: Val,
    ) -> Result<(), CodegenError> {
        if !self.at.span.has_gaps {
            w.if_then(whole, |w| self.shares(w, segment, keys, micro, false))?;
        }
        let one = w.int(1, Ty::scalar(Elem::I1));
        let cut = w.xor(whole, one);
        w.if_then(cut, |w| self.shares(w, segment, keys, micro, true))
    }

    /// A register tile and a block of keys.
    fn register_tile(
        &self,
        w: &mut Writer,
        segment: &Segment,
        block: &Block,
        micro: Micro,
    ) -> Result<(), CodegenError> {
        let (n_keys, whole) = self.look(w, segment, block, micro)?;
        let zero = w.i64(0);
        let some = w.cmp(Cmp::Gt, n_keys, zero);
        w.if_then(some, |w| {
            if self.schedule.tiles {
                self.scores_by_tiles(w, micro, n_keys)?;
                self.shares_of(w, segment, (block, n_keys), micro, whole)?;
                return self.weigh_by_tiles(w, micro, n_keys);
            }
            self.scores(w, micro, n_keys)?;
            self.shares_of(w, segment, (block, n_keys), micro, whole)?;
            self.weigh(w, micro, n_keys, None)
        })
    }
}
