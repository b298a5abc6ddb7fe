//! Few rows by tensor cores, or more where values are too wide for `staged`: the query heads of one row that read the same keys, up to 16, are the rows of a tile. The pages of their keys are divided among
//! groups of threads, and among tiles where there are parts; wide values are divided among groups, each of which then computes all scores.
//!
//! Keys and values go from memory to registers as they lie, 16 bytes a thread: a sum of products does not mind the order of its terms, so that a thread's
//! eight elements of a key are those of two products, with the queries in the same order; and eight columns of values are one of each of eight tiles.

mod join;
mod kept;
mod together;

use xfc_lang::graph::DType;

use super::tensors::{Asked, Four, Held, KEYS, QUERIES};
use super::{ABSENT, Attention, Query, Tile, combine};
use crate::error::CodegenError;
use crate::mlir::machine::TileDot;
use crate::mlir::schedule::DividedSchedule;
use crate::mlir::writer::{Cmp, Elem, Ty, Val, Writer};
use crate::plan::kernel::{AttentionSpec, dtype_bytes};

/// Elements of a key that four threads load together.
const CHUNK: u64 = 32;

/// Columns of values that eight threads load together: one of each of eight tiles.
const COLUMNS: u64 = 64;

/// Chunks of queries that a thread holds; more lie in shared memory.
const HELD_CHUNKS: u64 = 8;

/// f32 behind the results of a query: its maximum, the sum of its weights, and room so that rows begin in different banks.
const BEHIND: u64 = 4;

const F32: Ty = Ty::scalar(Elem::F32);

/// Bytes of shared memory that a block needs.
pub(super) fn shared_bytes(spec: &AttentionSpec, schedule: &DividedSchedule, heads: u64) -> u64 {
    Layout::of(spec, schedule, heads).bytes
}

/// Where things lie in shared memory.
#[derive(Clone, Copy)]
struct Layout {
    /// Queries that a thread has scores of: one, or two that are eight apart.
    queries: u64,
    /// Chunks of a query.
    chunks: u64,
    /// Columns of values of a group of threads, and those that there is room for.
    columns: u64,
    padded: u64,
    /// Bytes of the results of a query, and of a group.
    row_bytes: u64,
    group_bytes: u64,
    /// First byte of the queries: results come first.
    asked: u64,
    bytes: u64,
}

impl Layout {
    fn of(spec: &AttentionSpec, schedule: &DividedSchedule, heads: u64) -> Self {
        let queries = if heads > KEYS { 2 } else { 1 };
        let chunks = spec.key_dim.div_ceil(CHUNK);
        let columns = spec.value_dim / u64::from(schedule.value_groups);
        let padded = columns.next_multiple_of(COLUMNS);
        let row_bytes = (padded + BEHIND) * 4;
        let group_bytes = row_bytes * KEYS * queries;
        let asked = group_bytes * u64::from(schedule.key_groups * schedule.value_groups);
        let bytes = asked + if chunks * queries > HELD_CHUNKS { chunks * queries * 32 * 16 } else { 0 };
        Layout { queries, chunks, columns, padded, row_bytes, group_bytes, asked, bytes }
    }
}

/// A thread's place among those of its group.
#[derive(Clone, Copy)]
struct Place {
    lane: Val,
    /// Of eight: its queries, keys and columns of loaded tiles.
    eighth: Val,
    /// Of four.
    quarter: Val,
    group: Val,
    /// Which pages and which columns of values are its group's.
    of_keys: Val,
    of_values: Val,
}

pub(super) struct Divided<'k> {
    pub(super) at: &'k Attention<'k>,
    schedule: DividedSchedule,
    dot: TileDot,
    layout: Layout,
    /// Rows of the step.
    n_rows: Val,
    shared: Val,
}

impl<'k> Divided<'k> {
    pub(super) fn new(
        w: &mut Writer,
        at: &'k Attention<'k>,
        schedule: DividedSchedule,
        heads: u64,
        n_rows: Val,
    ) -> Result<Self, CodegenError> {
        let Some(dot) = w.machine().tile_dot else {
            return Err(CodegenError::bug("attention", "a schedule for tensor cores"));
        };
        let groups = schedule.key_groups * schedule.value_groups;
        let is_whole = (at.spec.value_dim / u64::from(schedule.value_groups)).is_multiple_of(COLUMNS);
        if heads > QUERIES || groups != w.machine().groups || (schedule.value_groups > 1 && !is_whole) {
            return Err(CodegenError::bug("attention", "tiles that tensor cores do not have"));
        }
        let shared = w.shared_of_launch();
        Ok(Divided { at, schedule, dot, layout: Layout::of(at.spec, &schedule, heads), n_rows, shared })
    }

    fn place(&self, w: &mut Writer) -> Place {
        let thread = w.thread();
        let thread = w.widen_unsigned(thread, Elem::I64);
        let group = w.group();
        let [last, three] = [31, 3].map(|n| w.i64(n));
        let lane = w.and(thread, last);
        let n = w.i64(i64::from(self.schedule.key_groups));
        Place {
            lane,
            eighth: w.shr(lane, 2),
            quarter: w.and(lane, three),
            group,
            of_keys: w.rem_unsigned(group, n),
            of_values: w.div_unsigned(group, n),
        }
    }

    /// A tile of the launch.
    pub(super) fn tile(&self, w: &mut Writer, tile: Tile) -> Result<(), CodegenError> {
        self.at.each_row(w, tile, |w, row| self.row(w, tile, row))
    }

    /// One row, over the part of its keys that is the tile's.
    fn row(&self, w: &mut Writer, tile: Tile, row: Val) -> Result<(), CodegenError> {
        let query = self.at.enter_row(w, row);
        let page_tokens = w.i64(self.at.spec.page_tokens as i64);
        let end_page = w.ceil_div(query.high, self.at.spec.page_tokens);
        let first_page = w.div_unsigned(query.low, page_tokens);
        let first_page = w.min(first_page, end_page);
        let heads = w.i64(tile.heads as i64);
        let left = w.sub(tile.end_head, tile.first_head);
        let n_heads = w.min(heads, left);
        let Some(part) = tile.part else {
            return self.pages(w, (tile, n_heads), query, (first_page, end_page), None);
        };
        // Pages for all groups of each part.
        let spec = self.at.spec;
        let n_pages = w.sub(end_page, first_page);
        let most = combine::parts(w, &spec.division, self.n_rows);
        let of_pages = w.ceil_div(n_pages, u64::from(self.schedule.key_groups));
        let one = w.i64(1);
        let n_parts = w.min(of_pages, most);
        let n_parts = w.max(n_parts, one);
        let there = w.cmp(Cmp::Lt, part, n_parts);
        w.if_then(there, |w| {
            let next = w.add(part, one);
            let bounds = [part, next].map(|part| {
                let before = w.mul(part, n_pages);
                let before = w.div_unsigned(before, n_parts);
                w.add(first_page, before)
            });
            self.pages(w, (tile, n_heads), query, (bounds[0], bounds[1]), Some((part, n_parts)))
        })?;
        if self.at.counters.is_some() {
            return Ok(());
        }
        let is_behind = w.cmp(Cmp::Ge, part, n_parts);
        let is_part = w.cmp(Cmp::Lt, part, most);
        let is_absent = w.and(is_behind, is_part);
        w.if_then(is_absent, |w| {
            let place = self.place(w);
            let head = w.add(tile.first_head, place.lane);
            let is_first = w.i64(0);
            let is_first = w.cmp(Cmp::Eq, place.group, is_first);
            let is_head = w.cmp(Cmp::Lt, place.lane, n_heads);
            let both = w.and(is_first, is_head);
            w.if_then(both, |w| {
                if let Some(at) = self.at.part_of(w, self.n_rows, (row, head), part) {
                    let at = w.offset_const(at, spec.value_dim * 4);
                    let absent = w.f32(ABSENT, 0);
                    w.store_own(absent, at);
                }
                Ok(())
            })
        })
    }

    /// The heads of a row over some pages, which are all, or those of a part of so many.
    fn pages(
        &self,
        w: &mut Writer,
        (tile, n_heads): (Tile, Val),
        query: Query,
        (begin, end): (Val, Val),
        part: Option<(Val, Val)>,
    ) -> Result<(), CodegenError> {
        let place = self.place(w);
        let row = query.row;
        let asked: Vec<Asked> = (0..self.layout.queries)
            .map(|i| {
                let head = self.head_of(w, tile, n_heads, place, i);
                self.at.asked(w, query, head)
            })
            .collect();
        let queries = self.queries(w, &asked, place, n_heads)?;
        let zero = w.i64(0);
        let is_first = w.or(place.quarter, place.of_keys);
        let is_first = match part {
            None => is_first,
            Some((part, _)) => w.or(is_first, part),
        };
        let is_first = w.cmp(Cmp::Eq, is_first, zero);
        let held = self.at.held(w, &asked, is_first, self.layout.padded / KEYS)?;
        let n_queries = asked.len();
        let first = w.add(begin, place.of_keys);
        let step = i64::from(self.schedule.key_groups);
        let list = w.for_loop(first, end, step, &held.list(), |w, page, list| {
            let held = Held::of(list, n_queries);
            let tokens = w.i64(self.at.spec.page_tokens as i64);
            let first_key = w.mul(page, tokens);
            let two = w.i64(2);
            let own = w.mul(place.quarter, two);
            let own_key = w.add(first_key, own);
            let seen = self.at.seen(w, &asked, own_key, self.at.spec.page_tokens / KEYS)?;
            let one_page = |w: &mut Writer| {
                let place = (tile, place, page);
                Ok(self.page(w, place, &asked, &queries, (own_key, &seen), held.clone())?.list())
            };
            if !self.at.span.has_gaps {
                return one_page(w);
            }
            let all: Vec<Val> = seen.iter().flat_map(|four| four[..2 * n_queries].to_vec()).collect();
            let any = all[1..].iter().fold(all[0], |any, one| w.or(any, *one));
            let any = w.splat(any, 32);
            let any = w.reduce_or(any);
            w.if_else(any, list, one_page)
        })?;
        let held = Held::of(&list, n_queries);
        self.leave(w, place, held);
        w.sync();
        self.together(w, (tile, n_heads), place, row, part)?;
        w.sync();
        let Some((_, n_parts)) = part.filter(|_| self.at.counters.is_some()) else { return Ok(()) };
        let one = w.i64(1);
        let has_others = w.cmp(Cmp::Gt, n_parts, one);
        w.if_then(has_others, |w| self.join(w, (tile, n_heads), (row, n_parts)))
    }

    /// The head of a thread's query; those behind the last repeat it.
    fn head_of(&self, w: &mut Writer, tile: Tile, n_heads: Val, place: Place, i: u64) -> Val {
        let (one, behind) = (w.i64(1), w.i64((i * KEYS) as i64));
        let last = w.sub(n_heads, one);
        let number = w.add(place.eighth, behind);
        let number = w.min(number, last);
        w.add(tile.first_head, number)
    }

    /// What a thread has of its queries: of each chunk and query four words. Empty where they lie in shared memory.
    fn queries(
        &self,
        w: &mut Writer,
        asked: &[Asked],
        place: Place,
        n_heads: Val,
    ) -> Result<Vec<[Val; 4]>, CodegenError> {
        let spec = self.at.spec;
        let load = |w: &mut Writer, chunk: u64, i: usize| {
            let behind = w.i64((i as u64 * KEYS) as i64);
            let number = w.add(place.eighth, behind);
            let mut there = w.cmp(Cmp::Lt, number, n_heads);
            let (first, within) = (w.i64((chunk * CHUNK) as i64), w.shl(place.quarter, 3));
            let element = w.add(first, within);
            if (chunk + 1) * CHUNK > spec.key_dim {
                let end = w.i64(spec.key_dim as i64);
                let is_element = w.cmp(Cmp::Lt, element, end);
                there = w.and(there, is_element);
            }
            let bytes = dtype_bytes(spec.query);
            let row = w.row(self.at.q, asked[i].query.row, bytes);
            let head = w.element(row, asked[i].head, spec.key_dim * bytes);
            let at = w.element(head, element, bytes);
            if spec.query == DType::BF16 { w.load_eight(at, there) } else { eight_rounded(w, (head, at), there) }
        };
        if self.layout.chunks * self.layout.queries <= HELD_CHUNKS {
            let all = (0..self.layout.chunks).flat_map(|chunk| (0..asked.len()).map(move |i| (chunk, i)));
            return Ok(all.map(|(chunk, i)| load(w, chunk, i)).collect());
        }
        let groups = u64::from(w.machine().groups);
        for chunk in 0..self.layout.chunks {
            let turn = w.i64((chunk % groups) as i64);
            let mine = w.cmp(Cmp::Eq, place.group, turn);
            w.if_then(mine, |w| {
                for i in 0..asked.len() {
                    let words = load(w, chunk, i);
                    let at = self.place_of(w, place, chunk, i);
                    w.store_four(words, at);
                }
                Ok(())
            })?;
        }
        w.sync();
        Ok(Vec::new())
    }

    /// Where a thread's words of a query lie.
    fn place_of(&self, w: &mut Writer, place: Place, chunk: u64, i: usize) -> Val {
        let first = self.layout.asked + (chunk * self.layout.queries + i as u64) * 32 * 16;
        let at = w.offset_const(self.shared, first);
        w.element(at, place.lane, 16)
    }

    /// One page.
    fn page(
        &self,
        w: &mut Writer,
        (tile, place, page): (Tile, Place, Val),
        asked: &[Asked],
        queries: &[[Val; 4]],
        (own_key, seen): (Val, &[Four]),
        held: Held,
    ) -> Result<Held, CodegenError> {
        let spec = self.at.spec;
        let id = w.page_id(self.at.cache, asked[0].query.sequence, page);
        let head = spec.keys();
        let keys = w.element(self.at.k.data, id, head.page_bytes(spec.kv_heads));
        let keys = w.element(keys, tile.kv_head, head.bytes());
        let products = self.products(w, place, keys, queries, asked.len())?;
        let scores = self.at.scored(w, asked, (own_key, products))?;
        let scores = self.at.hide(w, &scores, seen, asked.len());
        let (values, first) = match spec.value_in_key {
            Some(first) => (keys, first),
            None => {
                let head = spec.values();
                let values = w.element(self.at.v.data, id, head.page_bytes(spec.kv_heads));
                (w.element(values, tile.kv_head, head.bytes()), 0)
            }
        };
        let tokens = w.i64(spec.page_tokens as i64);
        let first_key = w.mul(page, tokens);
        // What was never written may be anything, and no number times 0 is 0.
        let n_keys = w.sub(asked[0].query.high, first_key);
        let head = self.at.values();
        let scales = kept::group_of(head, first).map(|group| {
            let scales = w.offset_const(values, group * head.group_bytes());
            self.scales(w, place, scales, Some(n_keys))
        });
        let (weights, mut held) = self.at.weights(w, &scores, held, scales.as_deref());
        let values = w.offset_const(values, head.scale_bytes() + first * head.element_bytes());
        let values = w.element(values, place.of_values, self.layout.columns * head.element_bytes());
        for (step, weights) in weights.iter().enumerate() {
            for chunk in 0..self.layout.padded / COLUMNS {
                let columns = self.columns(w, place, (values, n_keys), (step as u64, chunk));
                for (columns, out) in columns.iter().zip(&mut held.out[(chunk * 8) as usize..]) {
                    *out = w.tile_dot(self.dot, *weights, *columns, *out);
                }
            }
        }
        Ok(held)
    }
}

/// Eight numbers of f32 at an address, or zeros unless `there`, where another may be read; rounded to bf16, as four words.
fn eight_rounded(w: &mut Writer, (other, at): (Val, Val), there: Val) -> [Val; 4] {
    let at = w.select(there, at, other);
    let none = w.int(0, Ty::scalar(Elem::I32));
    [0, 1, 2, 3].map(|pair| {
        let [low, high] = [0, 1].map(|i| {
            let at = w.offset_const(at, (2 * pair + i) * 4);
            w.load(F32, at)
        });
        let pair = w.narrow_pair(low, high);
        w.select(there, pair, none)
    })
}
