//! Attention over paged keys and values as one online-softmax loop: scores of one page at a time, never a row of them.
//!
//! A tile is a block of query rows by one key/value head, and by some of the query heads that read it where they are many. Keys lie `[dim][token]` in a page, so that the scores of a page's tokens are a sum
//! over consecutive lanes; values lie `[token][dim]`. Keys that values are a part of lie as values do: then the score of a token is a sum over the
//! lanes of its elements. Pages outside what the mask can reach are not visited; inside, the mask decides lane by lane. Where it may leave out keys within
//! its reach (a window or tokens chosen by what is kept of them, every second block, no key for this query), it is evaluated first, and of a page
//! of which it leaves out all keys neither keys nor values are read.
//!
//! Operands of the launch: `q`, the key slot, the value slot, the result, then the tables of the checkpoint that mask and score gather from.

mod keys;
mod tables;

use xfc_lang::graph::{DType, Graph};
use xfc_lang::ops::Core;
use xfc_lang::passes::analysis::mask::{Span, span};
use xfc_runtime::artifact::abi::offsets as abi;
use xfc_runtime::artifact::manifest::When;

use self::tables::{Read, brings_integers};
use super::expr::{cast, elem_of, scalar_graph, scalar_graph_with};
use super::frame::{Buffer, CacheTable, RowSpace};
use super::machine::Machine;
use super::schedule::AttentionSchedule;
use super::writer::{Cmp, Elem, Spread, Ty, Val, Writer};
use crate::error::CodegenError;
use crate::plan::kernel::{AttentionSpec, PageLayout, page_bytes};

/// Below any score that a finite model computes; finite, so that a difference of two is never NaN.
const LOWEST: f64 = -3.0e38;

/// More tokens than a sequence has.
const FAR: i64 = 1 << 40;

/// Writes the kernel.
///
/// # Errors
/// An element type, or an operation of the mask or score, without a lowering.
pub fn emit(
    symbol: &str,
    spec: &AttentionSpec,
    machine: &Machine,
    schedule: &AttentionSchedule,
) -> Result<String, CodegenError> {
    let (mut w, params) = Writer::kernel(symbol, machine);
    let args = params.args;
    let n_rows = w.n_rows(args, RowSpace { axis: spec.axis, selected: false });
    let tables = tables::open(&mut w, args, &spec.tables);
    let kernel = Attention {
        spec,
        lanes: schedule.lanes,
        q: w.buffer(args, 0),
        k: w.buffer(args, 1),
        v: w.buffer(args, 2),
        out: w.buffer(args, 3),
        positions: w.axis_array(args, spec.axis, abi::AXIS_POSITIONS),
        sequences: w.axis_array(args, spec.axis, abi::AXIS_SEQUENCES),
        offsets: w.axis_array(args, spec.axis, abi::AXIS_OFFSETS),
        cache: w.cache(args, spec.group),
        scratch: params.scratch,
        span: span(&spec.mask),
        tables,
        ints: if [&spec.mask, &spec.score].into_iter().chain(&spec.sink).all(fits_i32)
            && !spec.tables.iter().any(brings_integers)
        {
            Elem::I32
        } else {
            Elem::I64
        },
    };
    let blocks = w.ceil_div(n_rows, schedule.rows_per_tile);
    w.for_loop(params.tile_begin, params.tile_end, 1, &[], |w, tile, _| {
        let heads = kernel.heads_of(w, schedule, tile, blocks);
        let block = w.rem_unsigned(tile, blocks);
        let size = w.i64(schedule.rows_per_tile as i64);
        let begin = w.mul(block, size);
        let end = w.add(begin, size);
        let end = w.min(end, n_rows);
        w.for_loop(begin, end, 1, &[], |w, row, _| {
            match kernel.is_meant(w, row) {
                None => kernel.one_row(w, row, heads)?,
                Some(meant) => w.if_then(meant, |w| kernel.one_row(w, row, heads))?,
            }
            Ok(vec![])
        })?;
        Ok(vec![])
    })?;
    Ok(w.finish())
}

/// Bytes of scratch: the weights of one page's tokens.
pub fn scratch_bytes(spec: &AttentionSpec) -> u64 {
    spec.page_tokens * 4
}

struct Attention<'a> {
    spec: &'a AttentionSpec,
    lanes: u32,
    q: Buffer,
    k: Buffer,
    v: Buffer,
    out: Buffer,
    positions: Val,
    sequences: Val,
    /// First element of each sequence.
    offsets: Val,
    cache: CacheTable,
    scratch: Val,
    /// Of the mask.
    span: Span,
    tables: Vec<Read<'a>>,
    /// Of positions in masks and scores.
    ints: Elem,
}

/// Whether every integer of a graph of scalars is a 32-bit one.
fn fits_i32(graph: &Graph) -> bool {
    graph.nodes().all(|node| match graph.op(node).as_core() {
        Some(Core::Const { values }) if graph.types(node)[0].dtype == DType::I64 => {
            values.iter().all(|v| v.abs() < f64::from(i32::MAX))
        }
        _ => true,
    })
}

/// The query heads of a tile: some of the `group` that read one head of keys and values.
#[derive(Clone, Copy)]
struct Heads {
    kv_head: Val,
    group: Val,
    begin: Val,
    end: Val,
}

/// What masks and scores are functions of, for a vector of keys.
struct Keys {
    q_pos: Val,
    k_pos: Val,
    head: Val,
    tables: Vec<Val>,
    /// Of rows kept of keys: how they lie.
    spread: Vec<Option<Spread>>,
}

impl Keys {
    /// How the parameters of a graph of scalars lie that has so many before its tables.
    fn spread(&self, before: usize) -> Vec<Option<Spread>> {
        [&vec![None; before][..], &self.spread[..]].concat()
    }
}

/// A page of keys for one query and head.
#[derive(Clone, Copy)]
struct Page<'q> {
    query: &'q Query,
    page: Val,
    first_key: Val,
    kv_head: Val,
    head: Val,
    /// The query's elements.
    q: (Val, Elem),
}

/// One query row.
struct Query {
    row: Val,
    sequence: Val,
    position: Val,
    /// First and one past the last key to look at.
    low: Val,
    high: Val,
}

impl Attention<'_> {
    /// Whether a row is of a sequence that is meant; `None` when all are.
    fn is_meant(&self, w: &mut Writer, row: Val) -> Option<Val> {
        let when = self.spec.when?;
        let sequence = w.load_u32(self.sequences, row);
        let first = w.load_u32(self.offsets, sequence);
        let before = w.load_u32(self.positions, first);
        let zero = w.i64(0);
        let how = if when == When::FromStart { Cmp::Eq } else { Cmp::Ne };
        Some(w.cmp(how, before, zero))
    }

    /// The heads of a tile.
    fn heads_of(&self, w: &mut Writer, schedule: &AttentionSchedule, tile: Val, blocks: Val) -> Heads {
        let group = self.spec.heads / self.spec.kv_heads;
        let of_tile = w.div_unsigned(tile, blocks);
        let all = w.i64(group as i64);
        if group <= schedule.heads_per_tile {
            let zero = w.i64(0);
            return Heads { kv_head: of_tile, group: all, begin: zero, end: all };
        }
        let parts = w.i64(schedule.tiles_per_block(1, group) as i64);
        let kv_head = w.div_unsigned(of_tile, parts);
        let part = w.rem_unsigned(of_tile, parts);
        let size = w.i64(schedule.heads_per_tile as i64);
        let begin = w.mul(part, size);
        let end = w.add(begin, size);
        let end = w.min(end, all);
        Heads { kv_head, group: all, begin, end }
    }

    /// The heads of a tile, of one row.
    fn one_row(&self, w: &mut Writer, row: Val, heads: Heads) -> Result<(), CodegenError> {
        let query = self.enter_row(w, row);
        w.for_loop(heads.begin, heads.end, 1, &[], |w, g, _| {
            let first = w.mul(heads.kv_head, heads.group);
            let head = w.add(first, g);
            self.one_head(w, &query, heads.kv_head, head)?;
            Ok(vec![])
        })?;
        Ok(())
    }

    fn enter_row(&self, w: &mut Writer, row: Val) -> Query {
        let sequence = w.load_u32(self.sequences, row);
        let position = w.load_u32(self.positions, row);
        let length = w.load_u32(self.cache.lengths, sequence);
        let zero = w.i64(0);
        let one = w.i64(1);
        let next = w.add(position, one);
        let high = match (self.spec.reach.future, self.span.least.map(|age| i64::try_from(-age))) {
            (false, _) => w.min(next, length),
            (true, Some(Ok(ahead))) if ahead < FAR => {
                let ahead = w.i64(ahead);
                let end = w.add(next, ahead);
                w.min(end, length)
            }
            (true, _) => length,
        };
        let low = match self.spec.reach.window {
            None => zero,
            Some(n) => {
                let n = w.i64(i64::try_from(n).unwrap_or(i64::MAX));
                let low = w.sub(next, n);
                w.max(low, zero)
            }
        };
        Query { row, sequence, position, low, high }
    }

    fn one_head(&self, w: &mut Writer, query: &Query, kv_head: Val, head: Val) -> Result<(), CodegenError> {
        let spec = self.spec;
        let query_elem = elem_of(spec.query, Elem::I64)?;
        let q_row = w.row(self.q, query.row, query_elem.bytes());
        let q = w.element(q_row, head, spec.key_dim * query_elem.bytes());
        let page_size = w.i64(spec.page_tokens as i64);
        let first_page = w.div_unsigned(query.low, page_size);
        let end_page = w.ceil_div(query.high, spec.page_tokens);
        let n_out = spec.value_dim.div_ceil(u64::from(self.lanes)) as usize;
        let mut state = match &spec.sink {
            None => vec![w.f32(LOWEST, 0), w.f32(if spec.softmax { 0.0 } else { 1.0 }, 0)],
            Some(sink) => vec![self.sink(w, query, sink, head)?, w.f32(1.0, 0)],
        };
        let zero = w.f32(0.0, self.lanes);
        state.extend(std::iter::repeat_n(zero, n_out));
        let state = w.for_loop(first_page, end_page, 1, &state, |w, page, state| {
            let first_key = w.mul(page, page_size);
            self.one_page(w, Page { query, page, first_key, kv_head, head, q: (q, query_elem) }, state)
        })?;
        self.store(w, query.row, head, &state)
    }

    /// The score that takes part without a value, in no key's lane.
    fn sink(&self, w: &mut Writer, query: &Query, sink: &Graph, head: Val) -> Result<Val, CodegenError> {
        let tables = self.tables.iter().map(|table| self.of_all_keys(w, table, query, head));
        let tables = tables.collect::<Result<Vec<_>, _>>()?;
        let [q_pos, k_pos, head] = [query.position, query.position, head].map(|v| w.resize(v, self.ints));
        let sink = scalar_graph(w, sink, &[&[q_pos, k_pos, head], &tables[..]].concat(), self.ints)?;
        sink.first().copied().ok_or_else(|| CodegenError::bug("attention", "a sink without a result"))
    }

    /// One page: `state` is the running maximum, the running sum and the unnormalised result, which stay where no key of the page is seen.
    fn one_page(&self, w: &mut Writer, page: Page<'_>, state: &[Val]) -> Result<Vec<Val>, CodegenError> {
        if !self.span.has_gaps {
            return self.seen_page(w, page, None, state);
        }
        let mut visible = Vec::new();
        for v in 0..self.n_vectors() {
            let keys = self.keys_of(w, page, v)?;
            visible.push(self.visible(w, page.query, &keys)?);
        }
        let mut any = visible[0];
        for more in &visible[1..] {
            any = w.or(any, *more);
        }
        let any = w.reduce_or(any);
        w.if_else(any, state, |w| self.seen_page(w, page, Some(&visible), state))
    }

    /// Vectors of the keys of a page.
    fn n_vectors(&self) -> usize {
        (self.spec.page_tokens / u64::from(self.lanes)) as usize
    }

    /// A page of which keys are seen: `visible`, where that is known before their scores.
    fn seen_page(
        &self,
        w: &mut Writer,
        page: Page<'_>,
        visible: Option<&[Val]>,
        state: &[Val],
    ) -> Result<Vec<Val>, CodegenError> {
        let spec = self.spec;
        let lanes = self.lanes;
        let Page { query, first_key, kv_head, q, .. } = page;
        let id = w.page_id(self.cache, query.sequence, page.page);
        let k_page = w.element(self.k.data, id, page_bytes(spec.kv_heads, spec.key_dim, spec.page_tokens, spec.kept));
        let keys = w.element(k_page, kv_head, spec.key_dim * spec.page_tokens * self.kept_bytes());
        let values = match spec.value_in_key {
            Some(first) => w.offset_const(keys, first * self.kept_bytes()),
            None => {
                let bytes = page_bytes(spec.kv_heads, spec.value_dim, spec.page_tokens, spec.kept);
                let v_page = w.element(self.v.data, id, bytes);
                w.element(v_page, kv_head, spec.value_dim * spec.page_tokens * self.kept_bytes())
            }
        };

        let n_vectors = self.n_vectors();
        let dots = match spec.key_layout {
            PageLayout::TokensLast => self.dots(w, q, keys, n_vectors)?,
            PageLayout::TokensMiddle => self.dots_by_token(w, q, keys, n_vectors)?,
        };
        let (mut scores, mut masks) = (Vec::new(), Vec::new());
        for (v, dot) in dots.iter().enumerate() {
            let keys = self.keys_of(w, page, v)?;
            let mask = match visible {
                Some(visible) => visible[v],
                None => self.visible(w, query, &keys)?,
            };
            scores.push(self.score(w, &keys, *dot, mask)?);
            masks.push(mask);
        }
        if !spec.softmax {
            // Behind a sum of 1 nothing is divided.
            let zero = w.f32(0.0, lanes);
            for (v, score) in scores.iter().enumerate() {
                let p = w.select(masks[v], *score, zero);
                let at = w.offset_const(self.scratch, v as u64 * u64::from(lanes) * 4);
                w.store(p, at);
            }
            let out = self.weighted_values(w, query, first_key, values, &state[2..])?;
            return Ok([&state[..2], &out[..]].concat());
        }
        let mut highest = scores[0];
        for score in &scores[1..] {
            highest = w.max(highest, *score);
        }
        let highest = w.reduce_max(highest);
        let maximum = w.max(state[0], highest);
        let shift = w.sub(state[0], maximum);
        let decay = w.exp(shift);
        let mut sum = w.mul(state[1], decay);
        let maximum_lanes = w.splat(maximum, lanes);
        let zero = w.f32(0.0, lanes);
        for (v, score) in scores.iter().enumerate() {
            let x = w.sub(*score, maximum_lanes);
            let p = w.exp(x);
            let p = w.select(masks[v], p, zero);
            let at = w.offset_const(self.scratch, v as u64 * u64::from(lanes) * 4);
            w.store(p, at);
            let s = w.reduce_add(p);
            sum = w.add(sum, s);
        }
        let decay = w.splat(decay, lanes);
        let out: Vec<Val> = state[2..].iter().map(|o| w.mul(*o, decay)).collect();
        let out = self.weighted_values(w, query, first_key, values, &out)?;
        let mut next = vec![maximum, sum];
        next.extend(out);
        Ok(next)
    }

    /// What masks and scores read of vector `v` of a page.
    fn keys_of(&self, w: &mut Writer, page: Page<'_>, v: usize) -> Result<Keys, CodegenError> {
        let lanes = self.lanes;
        let first = w.resize(page.first_key, self.ints);
        let first = w.splat(first, lanes);
        let iota: Vec<i64> = (0..lanes).map(|l| i64::from(v as u32 * lanes + l)).collect();
        let iota = w.lanes(&iota, self.ints);
        let k_pos = w.add(first, iota);
        let q_pos = w.resize(page.query.position, self.ints);
        let q_pos = w.splat(q_pos, lanes);
        let mut tables = Vec::with_capacity(self.tables.len());
        let mut spread = vec![None; self.tables.len()];
        for (table, spread) in self.tables.iter().zip(&mut spread) {
            tables.push(match table {
                Read::Key { data, table, dtype, page_bytes, row } => {
                    let id = w.page_id(*table, page.query.sequence, page.page);
                    let at = w.element(*data, id, *page_bytes);
                    match row {
                        None => self.of_keys(w, at, *dtype, v)?,
                        Some(row) => {
                            let (at, lies) = self.rows_of_keys(w, (at, *dtype, *row), page.head, v)?;
                            *spread = Some(lies);
                            at
                        }
                    }
                }
                table => self.of_all_keys(w, table, page.query, page.head)?,
            });
        }
        let head = w.resize(page.head, self.ints);
        let head = w.splat(head, lanes);
        Ok(Keys { q_pos, k_pos, head, tables, spread })
    }

    /// Of a vector of keys, those that exist and that the mask does not leave out.
    fn visible(&self, w: &mut Writer, query: &Query, keys: &Keys) -> Result<Val, CodegenError> {
        let high = w.resize(query.high, self.ints);
        let high = w.splat(high, self.lanes);
        let exists = w.cmp(Cmp::Lt, keys.k_pos, high);
        let parameters = [&[keys.q_pos, keys.k_pos, keys.head], &keys.tables[..]].concat();
        let masked = scalar_graph_with(w, &self.spec.mask, &parameters, &keys.spread(3), self.ints)?;
        let masked = w.splat(masked[0], self.lanes);
        Ok(w.and(exists, masked))
    }

    /// Scores of a vector of keys; what is not visible scores [`LOWEST`].
    fn score(&self, w: &mut Writer, keys: &Keys, dot: Val, visible: Val) -> Result<Val, CodegenError> {
        let scale = w.f32(self.spec.scale, self.lanes);
        let scaled = w.mul(dot, scale);
        let parameters = [&[scaled, keys.q_pos, keys.k_pos, keys.head], &keys.tables[..]].concat();
        let score = scalar_graph_with(w, &self.spec.score, &parameters, &keys.spread(4), self.ints)?;
        let score = w.splat(score[0], self.lanes);
        let lowest = w.f32(LOWEST, self.lanes);
        Ok(w.select(visible, score, lowest))
    }

    /// `out += p[j] * value[j]` for the tokens of the page that exist.
    fn weighted_values(
        &self,
        w: &mut Writer,
        query: &Query,
        first_key: Val,
        values: Val,
        out: &[Val],
    ) -> Result<Vec<Val>, CodegenError> {
        let spec = self.spec;
        let zero = w.i64(0);
        let page_size = w.i64(spec.page_tokens as i64);
        let begin = w.sub(query.low, first_key);
        let begin = w.max(begin, zero);
        let end = w.sub(query.high, first_key);
        let end = w.min(end, page_size);
        let masks = self.value_masks(w);
        let stride = if spec.value_in_key.is_some() { spec.key_dim } else { spec.value_dim };
        w.for_loop(begin, end, 1, out, |w, j, out| {
            let at = w.element(self.scratch, j, 4);
            let p = w.load(Ty::scalar(Elem::F32), at);
            let p = w.splat(p, self.lanes);
            let row = w.element(values, j, stride * self.kept_bytes());
            let mut next = Vec::new();
            for (v, o) in out.iter().enumerate() {
                let at = w.offset_const(row, v as u64 * u64::from(self.lanes) * self.kept_bytes());
                let value = self.load_kept(w, at, self.lanes, masks[v])?;
                next.push(w.fma(p, value, *o));
            }
            Ok(next)
        })
    }

    /// Of each vector of a value head, the lanes that exist; `None` when all do.
    fn value_masks(&self, w: &mut Writer) -> Vec<Option<Val>> {
        let lanes = u64::from(self.lanes);
        (0..self.spec.value_dim.div_ceil(lanes))
            .map(|v| {
                let inside: Vec<i64> = (0..lanes).map(|l| i64::from(v * lanes + l < self.spec.value_dim)).collect();
                inside.contains(&0).then(|| w.lanes(&inside, Elem::I1))
            })
            .collect()
    }

    fn store(&self, w: &mut Writer, row: Val, head: Val, state: &[Val]) -> Result<(), CodegenError> {
        let elem = elem_of(self.spec.result, Elem::I64)?;
        let zero = w.f32(0.0, 0);
        let one = w.f32(1.0, 0);
        // A query that sees nothing gives zeros.
        let nothing = w.cmp(Cmp::Eq, state[1], zero);
        let divisor = w.select(nothing, one, state[1]);
        let factor = w.div(one, divisor);
        let factor = w.splat(factor, self.lanes);
        let out = w.row(self.out, row, elem.bytes());
        let out = w.element(out, head, self.spec.value_dim * elem.bytes());
        let masks = self.value_masks(w);
        for (v, o) in state[2..].iter().enumerate() {
            let y = w.mul(*o, factor);
            let y = cast(w, y, elem)?;
            let at = w.offset_const(out, v as u64 * u64::from(self.lanes) * elem.bytes());
            match masks[v] {
                None => w.store(y, at),
                Some(mask) => w.store_masked(y, at, mask),
            }
        }
        Ok(())
    }
}
