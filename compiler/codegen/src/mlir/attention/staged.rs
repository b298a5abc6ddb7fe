//! Many rows by tensor cores: a block of threads has some rows by the query heads that read the same keys, and each of its groups some tiles of them. The
//! pages of their keys come to shared memory one after another, while those before them are multiplied.
//!
//! Rows of queries, keys and values lie an odd number of 16 bytes apart in shared memory, so that the same piece of eight of them is in all banks. Results in
//! bf16 take the place of the queries on their way to memory; those in f32 go there from registers, four threads a sector.

mod bring;

use xfc_lang::graph::DType;

use super::leave::Leaving;
use super::segment::{Bounds, Place, Segment};
use super::tensors::{Asked, Four, Held, KEYS, QUERIES};
use super::{Attention, Tile};
use crate::error::CodegenError;
use crate::mlir::machine::TileDot;
use crate::mlir::schedule::StagedSchedule;
use crate::mlir::writer::{Cmp, Elem, Ty, Val, Writer};
use crate::plan::kernel::AttentionSpec;

/// Bytes that are moved at a time: eight elements.
const PIECE: u64 = 16;

/// Stages: one is multiplied while the other comes.
const STAGES: u64 = 2;

/// Elements that a product of tiles takes at a time, in pieces.
const STEP_PIECES: u64 = 2;

const I32: Ty = Ty::scalar(Elem::I32);

/// Bytes of shared memory that a block needs.
pub(super) fn shared_bytes(spec: &AttentionSpec, schedule: StagedSchedule) -> u64 {
    Layout::of(spec, schedule).bytes
}

/// Rows of keys or of values in a stage.
#[derive(Clone, Copy)]
struct Rows {
    /// Pieces that there are of a row, and that products take.
    there: u64,
    pieces: u64,
    /// Bytes from one row to the next.
    stride: u64,
}

impl Rows {
    fn of(dim: u64) -> Self {
        let there = dim * 2 / PIECE;
        let pieces = there.next_multiple_of(STEP_PIECES);
        Rows { there, pieces, stride: (pieces | 1) * PIECE }
    }
}

/// Where things lie in shared memory: queries, then stages of keys and values.
#[derive(Clone, Copy)]
struct Layout {
    keys: Rows,
    values: Rows,
    /// Bytes from one query to the next, or its result.
    query_stride: u64,
    stages: u64,
    /// First byte of the values of a stage.
    values_at: u64,
    stage_bytes: u64,
    bytes: u64,
}

impl Layout {
    fn of(spec: &AttentionSpec, schedule: StagedSchedule) -> Self {
        let (keys, values) = (Rows::of(spec.key_dim), Rows::of(spec.value_dim));
        let query_stride = if spec.result == DType::BF16 { keys.stride.max(values.stride) } else { keys.stride };
        let stages = schedule.queries() * query_stride;
        let keys_bytes = spec.page_tokens * keys.stride;
        let (values_at, stage_bytes) = match spec.value_in_key {
            Some(first) => (first * 2, keys_bytes),
            None => (keys_bytes, keys_bytes + spec.page_tokens * values.stride),
        };
        Layout { keys, values, query_stride, stages, values_at, stage_bytes, bytes: stages + STAGES * stage_bytes }
    }
}

pub(super) struct Staged<'k> {
    at: &'k Attention<'k>,
    schedule: StagedSchedule,
    dot: TileDot,
    layout: Layout,
    shared: Val,
}

impl<'k> Staged<'k> {
    pub(super) fn new(w: &mut Writer, at: &'k Attention<'k>, schedule: StagedSchedule) -> Result<Self, CodegenError> {
        let Some(dot) = w.machine().tile_dot else {
            return Err(CodegenError::bug("attention", "a schedule for tensor cores"));
        };
        if schedule.groups != w.machine().groups {
            return Err(CodegenError::bug("attention", "as many groups as the schedule has"));
        }
        let shared = w.shared_of_launch();
        Ok(Staged { at, schedule, dot, layout: Layout::of(at.spec, schedule), shared })
    }

    /// Queries of a group.
    fn queries_of_group(&self) -> u64 {
        u64::from(self.schedule.row_tiles) * QUERIES
    }

    /// A tile of the launch.
    pub(super) fn tile(&self, w: &mut Writer, tile: Tile) -> Result<(), CodegenError> {
        self.at.segments(w, tile, |w, segment| self.segment(w, segment))
    }

    fn segment(&self, w: &mut Writer, segment: &Segment) -> Result<(), CodegenError> {
        let thread = w.thread();
        let place = Place::of(w, thread, self.queries_of_group());
        self.bring_queries(w, segment, place)?;
        self.bring(w, segment, place, segment.first_page)?;
        let asked: Vec<Vec<Asked>> = (0..u64::from(self.schedule.row_tiles))
            .map(|tile| self.at.asked_of_tile(w, segment, place, tile * QUERIES))
            .collect();
        let bounds = Bounds::of(w, asked.iter().flatten());
        let zero = w.int(0, I32);
        let is_first = w.cmp(Cmp::Eq, place.quarter, zero);
        let tiles = self.at.spec.value_dim / KEYS;
        let mut list = Vec::new();
        for asked in &asked {
            list.extend(self.at.held(w, asked, is_first, tiles)?.list());
        }
        let list = w.for_loop(segment.first_page, segment.end_page, 1, &list, |w, page, list| {
            // This page has come; and all are done with the one whose place the next takes.
            w.wait_for_copies(0);
            w.sync();
            let one = w.i64(1);
            let next = w.add(page, one);
            self.bring(w, segment, place, next)?;
            // Whether the group sees any of it.
            let tokens = w.i64(self.at.spec.page_tokens as i64);
            let first_key = w.mul(page, tokens);
            let first = w.resize(first_key, Elem::I32);
            let tokens = w.int(self.at.spec.page_tokens as i64, I32);
            let end = w.add(first, tokens);
            let sees = bounds.see(w, first, end);
            let whole = (!self.at.span.has_gaps).then(|| bounds.see_all(w, first, end));
            let stage = self.stage_of(w, page);
            w.if_else(sees, list, |w| self.page(w, place, &asked, (first_key, stage, whole), list))
        })?;
        w.wait_for_copies(0);
        // Where there is no page, others may still bring queries.
        w.sync();
        let leaving =
            Leaving { shared: self.shared, stride: self.layout.query_stride, queries: self.queries_of_group() };
        // The queries of a group are read by no other.
        w.sync_group();
        self.at.leave(w, segment, place, leaving, &list)?;
        w.sync();
        Ok(())
    }

    /// One page for the queries of a group: `whole`, all of them see all of it.
    fn page(
        &self,
        w: &mut Writer,
        place: Place,
        asked: &[Vec<Asked>],
        (first_key, stage, whole): (Val, Val, Option<Val>),
        list: &[Val],
    ) -> Result<Vec<Val>, CodegenError> {
        // Where a thread reads is found for each page: known ahead, it would take registers from the products.
        let place = Place { lane: w.anew(place.lane), first_query: w.anew(place.first_query), ..place };
        let stage = w.offset(self.shared, stage);
        let products = self.products(w, place, stage);
        let own = w.add(place.quarter, place.quarter);
        let own = w.widen_unsigned(own, Elem::I64);
        let own_key = w.add(first_key, own);
        let of_tile = list.len() / asked.len();
        let (mut weights, mut held) = (Vec::new(), Vec::new());
        for (tile, (asked, products)) in asked.iter().zip(products).enumerate() {
            // What scores are made of is not kept from one tile to the next.
            let own_key = w.anew(own_key);
            let scores = self.at.scored(w, asked, (own_key, products))?;
            let scores = self.at.seen_alone(w, asked, (own_key, scores), whole)?;
            let of_list = Held::of(&list[tile * of_tile..(tile + 1) * of_tile], asked.len());
            let (of_weights, of_held) = self.at.weights(w, &scores, of_list, None);
            weights.push(of_weights);
            held.push(of_held);
        }
        let values = w.offset_const(stage, self.layout.values_at);
        let stride =
            if self.at.spec.value_in_key.is_some() { self.layout.keys.stride } else { self.layout.values.stride };
        // Of four tiles that are loaded together, every second has the later keys, and the last two the later columns.
        let [seven, one] = [7, 1].map(|n| w.int(n, I32));
        let eighth = w.shr(place.lane, 3);
        let later = w.and(eighth, one);
        let later = w.shl(later, 3);
        let row = w.and(place.lane, seven);
        let row = w.add(row, later);
        let size = w.int(stride as i64, I32);
        let row = w.mul(row, size);
        let columns = w.shr(place.lane, 4);
        let columns = w.shl(columns, PIECE.ilog2());
        let own = w.add(row, columns);
        let own = w.widen_unsigned(own, Elem::I64);
        let own = w.offset(values, own);
        for step in 0..weights[0].len() {
            for pair in 0..self.layout.values.pieces / 2 {
                let at = w.offset_const(own, step as u64 * QUERIES * stride + pair * 2 * PIECE);
                let [a, b, c, d] = w.load_tiles_at(at, true);
                for (weights, held) in weights.iter().zip(&mut held) {
                    for (half, columns) in [[a, b], [c, d]].into_iter().enumerate() {
                        if let Some(out) = held.out.get_mut(pair as usize * 2 + half) {
                            *out = w.tile_dot(self.dot, weights[step], columns, *out);
                        }
                    }
                }
            }
        }
        Ok(held.iter().flat_map(Held::list).collect())
    }

    /// Products of the queries of a group with the keys of a stage.
    fn products(&self, w: &mut Writer, place: Place, stage: Val) -> Vec<Vec<Four>> {
        let zero = w.f32(0.0, 0);
        let n_tiles = self.at.spec.page_tokens / KEYS;
        let row_tiles = u64::from(self.schedule.row_tiles);
        let mut products = vec![vec![[zero; 4]; n_tiles as usize]; row_tiles as usize];
        let [fifteen, seven, one] = [15, 7, 1].map(|n| w.int(n, I32));
        let query = w.and(place.lane, fifteen);
        let query = w.add(place.first_query, query);
        let size = w.int(self.layout.query_stride as i64, I32);
        let query = w.mul(query, size);
        let half = w.shr(place.lane, 4);
        let half = w.shl(half, PIECE.ilog2());
        let of_queries = w.add(query, half);
        let of_queries = w.widen_unsigned(of_queries, Elem::I64);
        let of_queries = w.offset(self.shared, of_queries);
        let later = w.shr(place.lane, 4);
        let later = w.shl(later, 3);
        let key = w.and(place.lane, seven);
        let key = w.add(key, later);
        let size = w.int(self.layout.keys.stride as i64, I32);
        let key = w.mul(key, size);
        let piece = w.shr(place.lane, 3);
        let piece = w.and(piece, one);
        let piece = w.shl(piece, PIECE.ilog2());
        let of_keys = w.add(key, piece);
        let of_keys = w.widen_unsigned(of_keys, Elem::I64);
        let of_keys = w.offset(stage, of_keys);
        for step in 0..self.layout.keys.pieces / STEP_PIECES {
            let within = step * STEP_PIECES * PIECE;
            let rows: Vec<[Val; 4]> = (0..row_tiles)
                .map(|tile| {
                    let at = w.offset_const(of_queries, tile * QUERIES * self.layout.query_stride + within);
                    w.load_tiles_at(at, false)
                })
                .collect();
            for pair in 0..n_tiles / 2 {
                let at = w.offset_const(of_keys, pair * 2 * KEYS * self.layout.keys.stride + within);
                let [a, b, c, d] = w.load_tiles_at(at, false);
                for (rows, sums) in rows.iter().zip(&mut products) {
                    for (half, columns) in [[a, b], [c, d]].into_iter().enumerate() {
                        let sums = &mut sums[pair as usize * 2 + half];
                        *sums = w.tile_dot(self.dot, *rows, columns, *sums);
                    }
                }
            }
        }
        products
    }
}
