//! Attention over paged keys and values as one online-softmax loop: scores of a few pages at a time, never a row of them.
//!
//! A tile is a block of query rows by one key/value head, and by some of the query heads that read it where they are many; of few rows it is a part of
//! the keys of all heads, so that pages are read as they lie, as those of sequences are that have few rows in a step of many.
//! `blocks` goes over the keys in blocks of pages, each for all rows and heads of the tile (`by_page`, where rows are few); `by_row` goes over all of them for one query after
//! another, where keys lie as values do: because values are a part of them, or on a GPU. There `staged`, `teams` and `divided` multiply bf16 by tensor cores, in steps of many
//! rows and of few, and `latent` where many heads read the same keys, of which the values are a part. Pages outside what the mask can reach are not visited; inside, the mask
//! decides lane by lane, where its bounds cut a block. Where it may leave out keys within its reach (a window or tokens chosen by what is kept of
//! them, every second block, no key for this query), it is evaluated first, and where it leaves out all keys neither keys nor values are read.
//!
//! Where tiles would be too few for the threads, the keys of a query are divided into parts, tiles of their own, and [`combine`] makes one result of theirs, or the attention itself
//! as soon as the last of them is done (`divided/join.rs`).
//!
//! Operands of the launch: `q`, the key slot, the value slot, the result, then the tables of the checkpoint that mask and score gather from, and
//! where results of parts go, and the counters of those that are done.

mod blocks;
mod by_page;
mod by_row;
pub mod by_tiles;
pub mod combine;
mod divided;
pub mod latent;
mod layout;
mod leave;
mod products;
mod queries;
mod results;
mod segment;
mod softmax;
mod staged;
mod tables;
mod tiles;
pub mod teams;
pub mod tensors;
mod turned;
mod words;

use xfc_lang::graph::Graph;
use xfc_lang::passes::analysis::mask::{Span, span};
use xfc_runtime::artifact::abi::offsets as abi;
use xfc_runtime::artifact::manifest::When;

use self::blocks::Blocks;
use self::by_page::Few;
use self::divided::Divided;
use self::latent::Latent;
use self::results::Results;
use self::staged::Staged;
use self::tables::{Read, brings_integers, fits_i32};
use self::teams::Teams;
use super::expr::{scalar_graph, scalar_graph_with};
use super::frame::{Buffer, CacheTable, RowSpace};
use super::machine::Machine;
use super::schedule::{AttentionSchedule, TensorSchedule};
use super::writer::{Cmp, Elem, Spread, Val, Writer};
use crate::error::CodegenError;
use crate::plan::kernel::{AttentionSpec, HeadPage};

/// Below any score that a finite model computes; finite, so that a difference of two is never NaN.
const LOWEST: f64 = -3.0e38;

/// The maximum of a part that has no keys: below [`LOWEST`].
const ABSENT: f64 = -3.3e38;

/// More tokens than a sequence has.
const FAR: i64 = 1 << 40;

/// Writes the kernel; gives its text and the bytes of scratch it needs.
///
/// # Errors
/// An element type, or an operation of the mask or score, without a lowering.
pub fn emit(
    symbol: &str,
    spec: &AttentionSpec,
    machine: &Machine,
    schedule: &AttentionSchedule,
) -> Result<(String, u64), CodegenError> {
    let (mut w, params) = Writer::kernel(symbol, machine);
    let args = params.args;
    let tables = tables::open(&mut w, args, &spec.tables);
    let kernel = Attention {
        spec,
        lanes: schedule.lanes,
        q: w.buffer(args, 0),
        k: w.buffer(args, 1),
        v: w.buffer(args, 2),
        results: Results { out: w.buffer(args, 3), elem: spec.result, dim: spec.value_dim, lanes: schedule.lanes },
        parts: (spec.division.parts > 1).then(|| w.buffer(args, 4 + tables::operands(&spec.tables))),
        counters: (spec.division.joined > 0).then(|| w.buffer(args, 5 + tables::operands(&spec.tables))),
        rows: Rows::of(&mut w, args, spec.axis, spec.when),
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
    let scratch_bytes = match (&schedule.blocks, &schedule.tensors) {
        (_, Some(TensorSchedule::Divided(divided))) => {
            let n_rows = w.n_rows(args, RowSpace { axis: spec.axis, selected: false });
            let heads = kernel.group().div_ceil(schedule.parts(kernel.group()));
            let divided = Divided::new(&mut w, &kernel, *divided, heads, n_rows)?;
            kernel.tiles(&mut w, &params, schedule, |w, tile| divided.tile(w, tile))?;
            0
        }
        (_, Some(TensorSchedule::Staged(staged))) => {
            let staged = Staged::new(&mut w, &kernel, *staged)?;
            kernel.tiles(&mut w, &params, schedule, |w, tile| staged.tile(w, tile))?;
            0
        }
        (_, Some(TensorSchedule::Teams(teams))) => {
            let teams = Teams::new(&mut w, &kernel, *teams)?;
            teams.roles(&mut w, &params, |w, params, role| {
                kernel.tiles(w, params, schedule, |w, tile| teams.tile(w, tile, role))
            })?;
            0
        }
        (_, Some(TensorSchedule::Latent(latent))) => {
            let latent = Latent::new(&mut w, &kernel, *latent, args)?;
            latent.roles(&mut w, &params, |w, params, role| {
                kernel.tiles(w, params, schedule, |w, tile| latent.tile(w, tile, role))
            })?;
            0
        }
        (Some(_), None) => {
            let blocks = Blocks::new(&kernel, schedule, machine)?;
            let few = schedule.few.map(|few| Few::new(&kernel, schedule, few, machine)).transpose()?;
            blocks.enter_form(&mut w)?;
            kernel.tiles(&mut w, &params, schedule, |w, tile| match &few {
                None => blocks.tile(w, tile),
                Some(few) => few.tile(w, tile, &blocks),
            })?;
            blocks.leave_form(&mut w)?;
            blocks.scratch_bytes().max(few.map_or(0, |few| few.scratch_bytes()))
        }
        (None, None) => {
            kernel.tiles(&mut w, &params, schedule, |w, tile| kernel.rows(w, tile))?;
            spec.page_tokens * 4
        }
    };
    Ok(w.finish(scratch_bytes))
}

/// Bytes of shared memory that a launch must bring for each block of threads.
pub fn shared_bytes(spec: &AttentionSpec, schedule: &AttentionSchedule) -> u64 {
    let group = spec.heads / spec.kv_heads;
    let heads = group.div_ceil(schedule.parts(group));
    match &schedule.tensors {
        None => 0,
        Some(TensorSchedule::Divided(divided)) => divided::shared_bytes(spec, divided, heads),
        Some(TensorSchedule::Staged(staged)) => staged::shared_bytes(spec, *staged),
        Some(TensorSchedule::Teams(teams)) => teams::shared_bytes(spec, *teams),
        Some(TensorSchedule::Latent(_)) => latent::shared_bytes(spec),
    }
}

/// The rows of the launch.
#[derive(Clone, Copy)]
struct Rows {
    positions: Val,
    sequences: Val,
    /// First element of each sequence.
    offsets: Val,
    /// Of which sequences.
    when: Option<When>,
}

impl Rows {
    fn of(w: &mut Writer, args: Val, axis: usize, when: Option<When>) -> Self {
        Rows {
            positions: w.axis_array(args, axis, abi::AXIS_POSITIONS),
            sequences: w.axis_array(args, axis, abi::AXIS_SEQUENCES),
            offsets: w.axis_array(args, axis, abi::AXIS_OFFSETS),
            when,
        }
    }

    /// Whether a row is of a sequence that is meant; `None` when all are.
    fn is_meant(&self, w: &mut Writer, row: Val) -> Option<Val> {
        let when = self.when?;
        let sequence = w.load_u32(self.sequences, row);
        let first = w.load_u32(self.offsets, sequence);
        let before = w.load_u32(self.positions, first);
        let zero = w.i64(0);
        let how = if when == When::FromStart { Cmp::Eq } else { Cmp::Ne };
        Some(w.cmp(how, before, zero))
    }
}

struct Attention<'a> {
    spec: &'a AttentionSpec,
    lanes: u32,
    q: Buffer,
    k: Buffer,
    v: Buffer,
    results: Results,
    /// Where the results of parts go.
    parts: Option<Buffer>,
    /// Where tiles whose parts are done are counted.
    counters: Option<Buffer>,
    rows: Rows,
    cache: CacheTable,
    scratch: Val,
    /// Of the mask.
    span: Span,
    tables: Vec<Read<'a>>,
    /// Of positions in masks and scores.
    ints: Elem,
}

/// Rows `begin .. end` by some of the query heads, from `first_head` on, that read a head of keys and values. Where a tile has several heads of
/// keys and values, this is the first.
#[derive(Clone, Copy)]
struct Tile {
    begin: Val,
    end: Val,
    kv_head: Val,
    first_head: Val,
    /// One past the last head that reads the same keys.
    end_head: Val,
    /// Heads of the tile; those from `end_head` on do not exist.
    heads: u64,
    /// Which part of the keys; `None`: all.
    part: Option<Val>,
    /// Which of the tiles that share sequences of few rows, where there are several for the same rows and heads.
    share: Option<Val>,
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
    head: Val,
}

/// One query row.
#[derive(Clone, Copy)]
struct Query {
    row: Val,
    sequence: Val,
    position: Val,
    /// First and one past the last key to look at.
    low: Val,
    high: Val,
}

impl Attention<'_> {
    /// The row and the head of a query, of `n` that begin with row `from`; those after the last repeat it.
    fn locate(&self, w: &mut Writer, tile: Tile, from: Val, n: Val, query: Val) -> (Val, Val) {
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

    /// Query heads that read a head of keys and values.
    fn group(&self) -> u64 {
        self.spec.heads / self.spec.kv_heads
    }

    /// Vectors of the keys of a page.
    fn page_vectors(&self) -> usize {
        (self.spec.page_tokens / u64::from(self.lanes)) as usize
    }

    /// Whether a row is of a sequence that is meant; `None` when all are.
    fn is_meant(&self, w: &mut Writer, row: Val) -> Option<Val> {
        self.rows.is_meant(w, row)
    }

    fn enter_row(&self, w: &mut Writer, row: Val) -> Query {
        let sequence = w.load_u32(self.rows.sequences, row);
        let position = w.load_u32(self.rows.positions, row);
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

    /// The score that takes part without a value, in no key's lane.
    fn sink(&self, w: &mut Writer, query: &Query, sink: &Graph, head: Val) -> Result<Val, CodegenError> {
        let tables = self.tables.iter().map(|table| self.of_all_keys(w, table, query, head));
        let tables = tables.collect::<Result<Vec<_>, _>>()?;
        let [q_pos, k_pos, head] = [query.position, query.position, head].map(|v| w.resize(v, self.ints));
        let sink = scalar_graph(w, sink, &[&[q_pos, k_pos, head], &tables[..]].concat(), self.ints)?;
        sink.first().copied().ok_or_else(|| CodegenError::bug("attention", "a sink without a result"))
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
        let lanes = keys.k_pos.ty.lanes;
        let high = w.resize(query.high, self.ints);
        let high = w.splat(high, lanes);
        let exists = w.cmp(Cmp::Lt, keys.k_pos, high);
        let parameters = [&[keys.q_pos, keys.k_pos, keys.head], &keys.tables[..]].concat();
        let masked = scalar_graph_with(w, &self.spec.mask, &parameters, &keys.spread(3), self.ints)?;
        let masked = w.splat(masked[0], lanes);
        Ok(w.and(exists, masked))
    }

    /// Scores of a vector of keys.
    fn score(&self, w: &mut Writer, keys: &Keys, dot: Val) -> Result<Val, CodegenError> {
        let lanes = dot.ty.lanes;
        let scale = w.f32(self.spec.scale, lanes);
        let scaled = w.mul(dot, scale);
        let parameters = [&[scaled, keys.q_pos, keys.k_pos, keys.head], &keys.tables[..]].concat();
        let score = scalar_graph_with(w, &self.spec.score, &parameters, &keys.spread(4), self.ints)?;
        Ok(w.splat(score[0], lanes))
    }

    /// Where a page holds what of the values of a head, which may be a part of its keys.
    fn values(&self) -> HeadPage {
        if self.spec.value_in_key.is_some() { self.spec.keys() } else { self.spec.values() }
    }
}
