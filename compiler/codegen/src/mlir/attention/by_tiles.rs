//! The products of a register tile of 32 queries by registers that hold tiles: two of queries by two of keys, or of values.
//!
//! Keys lie in a page as such a register wants its columns: pairs of a key's elements by tokens. Those of the last elements, where they are fewer than a register
//! has room for, and values, whose page has half the tokens of a register, are brought to scratch, once for all queries of a tile; what does not exist is 0
//! there. Of values the tokens of two pages lie side by side, so that what a vector holds of the weights of each makes a pair as it is.
//!
//! Weights are not rounded to bf16 but split into two of them, what is left of one in the other: they keep 16 bits, and are multiplied twice.

use super::super::machine::{Machine, TileRegisters};
use super::super::schedule::BlockSchedule;
use super::super::tile_registers::REGISTER;
use super::super::writer::{Cmp, Elem, Ty, Val, Writer};
use super::Attention;
use super::blocks::{Block, Blocks, Micro, Segment};
use crate::error::CodegenError;
use crate::plan::kernel::{AttentionSpec, PageLayout};
use xfc_lang::graph::DType;

/// Registers of queries, and of keys or columns of values, that are multiplied with one another.
const SIDE: u64 = 2;

/// Registers: sums come first, then [`SIDE`] of queries or weights, then as many of keys or values.
const ROWS: u64 = SIDE * SIDE;
const COLUMNS: u64 = ROWS + SIDE;

/// Elements of a key, or tokens of values, that a register holds of a row.
const INPUTS: u64 = REGISTER.1 / 2;

/// Queries of a register tile.
pub const QUERIES: u32 = (SIDE * REGISTER.0) as u32;

/// Bytes of a register.
const BYTES: u64 = REGISTER.0 * REGISTER.1;

/// The numbers that a weight is split into.
const HALVES: u64 = 2;

/// Whether an attention can be by such registers.
pub fn multiplies(machine: &Machine, spec: &AttentionSpec) -> bool {
    machine.tile_registers.is_some_and(|names| names.halves.is_some())
        && u64::from(machine.lanes) == REGISTER.0
        && spec.page_tokens == REGISTER.0
        && [spec.query, spec.kept, spec.value_kept] == [DType::BF16; 3]
        && spec.key_layout == PageLayout::DimPairs
        && spec.value_layout == PageLayout::TokenPairs
}

/// What there is in scratch: bytes.
pub(super) struct Room {
    /// Of the values of a block.
    pub(super) values: u64,
    /// Of the last elements of its keys.
    pub(super) rests: u64,
    /// Of the weights of a register tile.
    pub(super) weights: u64,
}

impl Room {
    pub(super) fn new(at: &Attention<'_>, blocks: &BlockSchedule) -> Self {
        let pages = u64::from(blocks.pages);
        let tokens = pages * at.spec.page_tokens;
        Room {
            values: tokens / 2 * row_bytes(at),
            rests: if at.spec.key_dim.is_multiple_of(INPUTS) { 0 } else { pages * BYTES },
            weights: HALVES * u64::from(QUERIES) * tokens * 2,
        }
    }
}

/// Bytes of the values of two tokens.
fn row_bytes(at: &Attention<'_>) -> u64 {
    at.spec.value_dim.div_ceil(REGISTER.1 / 4) * REGISTER.1
}

impl Blocks<'_> {
    fn tile_registers(&self, w: &Writer) -> Result<(TileRegisters, &'static str), CodegenError> {
        let names = w.machine().tile_registers.filter(|_| self.schedule.tiles);
        let names = names.and_then(|names| Some((names, names.halves?)));
        names.ok_or_else(|| CodegenError::bug("attention", "no registers that hold tiles of bf16"))
    }

    /// Begins to multiply by registers, where the schedule says so.
    pub(super) fn enter_form(&self, w: &mut Writer) -> Result<(), CodegenError> {
        if self.schedule.tiles {
            let (names, _) = self.tile_registers(w)?;
            w.configure_tiles(names, [REGISTER; 8], None, self.at.scratch);
        }
        Ok(())
    }

    /// Ends it.
    pub(super) fn leave_form(&self, w: &mut Writer) -> Result<(), CodegenError> {
        if self.schedule.tiles {
            let (names, _) = self.tile_registers(w)?;
            w.release_tiles(names);
        }
        Ok(())
    }

    /// Brings to scratch what registers do not read where it lies.
    pub(super) fn bring(&self, w: &mut Writer, segment: &Segment, block: &Block) -> Result<(), CodegenError> {
        self.bring_rests(w)?;
        let at = self.at;
        let sequence = w.load_u32(at.rows.sequences, segment.from);
        let length = w.load_u32(at.cache.lengths, sequence);
        let masks = at.results.masks(w);
        let words = Ty::of(Elem::I32, at.lanes);
        let row = row_bytes(at);
        let (zero, n_pages, n_pairs) =
            (w.i64(0), w.i64(i64::from(self.schedule.pages)), w.i64(at.spec.page_tokens as i64 / 2));
        w.for_loop(zero, n_pages, 2, &[], |w, page, _| {
            let cell = self.cell(w, self.layout.value_pages, page, 8);
            let pages = [0, 1].map(|second| {
                let cell = w.offset_const(cell, second * 8);
                w.load(Ty::scalar(Elem::Ptr), cell)
            });
            let to = self.cell(w, self.layout.values, page, at.spec.page_tokens / 2 * row);
            let tokens = w.i64(at.spec.page_tokens as i64);
            let before = w.mul(page, tokens);
            let first = w.add(block.first_key, before);
            w.for_loop(zero, n_pairs, 1, &[], |w, pair, _| {
                let two = w.i64(2);
                let token = w.mul(pair, two);
                let token = w.add(first, token);
                let from = pages.map(|page| w.element(page, pair, at.spec.value_dim * 4));
                let there = [0, at.spec.page_tokens].map(|behind| {
                    let behind = w.i64(behind as i64);
                    let token = w.add(token, behind);
                    let left = w.sub(length, token);
                    there_of_two(w, left, at.lanes)
                });
                let to = w.element(to, pair, 2 * row);
                let upper = w.int(i64::from(UPPER as i32), words);
                let lower = w.int(0xFFFF, words);
                for (v, mask) in masks.iter().enumerate() {
                    let offset = v as u64 * REGISTER.1;
                    let [a, b] = [0, 1].map(|i| {
                        let from = w.offset_const(from[i], offset);
                        let x = match mask {
                            None => w.load(words, from),
                            Some(mask) => w.load_masked(words, from, *mask),
                        };
                        w.and(x, there[i])
                    });
                    let (first_a, first_b) = (w.and(a, lower), w.shl(b, 16));
                    let (second_a, second_b) = (w.shr(a, 16), w.and(b, upper));
                    for (behind, a, b) in [(0, first_a, first_b), (row, second_a, second_b)] {
                        let x = w.or(a, b);
                        let to = w.offset_const(to, behind + offset);
                        w.store(x, to);
                    }
                }
                Ok(vec![])
            })?;
            Ok(vec![])
        })?;
        Ok(())
    }

    /// The last elements of the keys of a block, where they fill no register.
    fn bring_rests(&self, w: &mut Writer) -> Result<(), CodegenError> {
        let (whole, rest) = (self.at.spec.key_dim / INPUTS, self.at.spec.key_dim % INPUTS);
        if rest == 0 {
            return Ok(());
        }
        let line = Ty::of(Elem::I32, self.at.lanes);
        let (zero, n_pages) = (w.i64(0), w.i64(i64::from(self.schedule.pages)));
        w.for_loop(zero, n_pages, 1, &[], |w, page, _| {
            let cell = self.cell(w, self.layout.key_pages, page, 8);
            let keys = w.load(Ty::scalar(Elem::Ptr), cell);
            let to = self.cell(w, self.layout.rests, page, BYTES);
            for pair in 0..REGISTER.0 {
                let x = if pair < rest / 2 {
                    let from = w.offset_const(keys, whole * BYTES + pair * REGISTER.1);
                    w.load(line, from)
                } else {
                    w.int(0, line)
                };
                let to = w.offset_const(to, pair * REGISTER.1);
                w.store(x, to);
            }
            Ok(vec![])
        })?;
        Ok(())
    }

    /// Products of the queries with the keys of a block, into scratch.
    pub(super) fn scores_by_tiles(&self, w: &mut Writer, micro: Micro, n_keys: Val) -> Result<(), CodegenError> {
        let at = self.at;
        let (names, dot) = self.tile_registers(w)?;
        let (query_bytes, score_bytes) = (self.layout.query_bytes, self.block_keys() * 4);
        let queries = self.cell(w, self.layout.queries, micro.first, query_bytes);
        let scores = self.cell(w, self.layout.scores, micro.place, score_bytes);
        let whole = at.spec.key_dim / INPUTS;
        let (zero, n_pages) = (w.i64(0), w.ceil_div(n_keys, at.spec.page_tokens));
        w.for_loop(zero, n_pages, SIDE as i64, &[], |w, first, _| {
            let numbers = [0, 1].map(|behind| {
                let behind = w.i64(behind);
                w.add(first, behind)
            });
            let pages = numbers.map(|page| self.page_of(w, micro, page, false));
            for sum in 0..ROWS {
                let sum = w.tile_register(sum);
                w.command(names.zero, &[sum]);
            }
            let n_whole = w.i64(whole as i64);
            w.for_loop(zero, n_whole, 1, &[], |w, k, _| {
                let queries = w.element(queries, k, REGISTER.1);
                let queries = [0, 1].map(|i| w.offset_const(queries, i * REGISTER.0 * query_bytes));
                let keys = pages.map(|page| w.element(page, k, BYTES));
                multiply(w, (names, dot), (&queries, query_bytes), (&keys, REGISTER.1));
                Ok(vec![])
            })?;
            if !at.spec.key_dim.is_multiple_of(INPUTS) {
                let queries =
                    [0, 1].map(|i| w.offset_const(queries, i * REGISTER.0 * query_bytes + whole * REGISTER.1));
                let keys = numbers.map(|page| self.cell(w, self.layout.rests, page, BYTES));
                multiply(w, (names, dot), (&queries, query_bytes), (&keys, REGISTER.1));
            }
            let scores = w.element(scores, first, REGISTER.1);
            each_sum(w, (names.store, SIDE), (scores, score_bytes));
            Ok(vec![])
        })?;
        Ok(())
    }

    /// Adds the values of a block, each with its weight, to the results of the queries.
    pub(super) fn weigh_by_tiles(&self, w: &mut Writer, micro: Micro, n_keys: Val) -> Result<(), CodegenError> {
        let (names, dot) = self.tile_registers(w)?;
        let [weights, values] =
            [self.layout.weights, self.layout.values].map(|array| w.offset_const(self.at.scratch, array));
        let out = self.cell(w, self.layout.out, micro.first, self.layout.out_bytes);
        let (row, weight_bytes) = (row_bytes(self.at), self.block_keys() * 2);
        let (n, zero, steps) = (row / REGISTER.1, w.i64(0), w.ceil_div(n_keys, INPUTS));
        for first in (0..n).step_by(SIDE as usize) {
            let columns = SIDE.min(n - first);
            let out = (w.offset_const(out, first * REGISTER.1), self.layout.out_bytes);
            each_sum(w, (names.load, columns), out);
            w.for_loop(zero, steps, 1, &[], |w, k, _| {
                let values = w.element(values, k, INPUTS / 2 * row);
                let values: Vec<Val> =
                    (first..first + columns).map(|column| w.offset_const(values, column * REGISTER.1)).collect();
                let weights = w.element(weights, k, REGISTER.1);
                for half in 0..HALVES {
                    let weights = [0, 1].map(|i| {
                        let before = half * u64::from(QUERIES) + i * REGISTER.0;
                        w.offset_const(weights, before * weight_bytes)
                    });
                    multiply(w, (names, dot), (&weights, weight_bytes), (&values, row));
                }
                Ok(vec![])
            })?;
            each_sum(w, (names.store, columns), out);
        }
        Ok(())
    }

    /// Stores weights in scratch as products want them: vectors of the keys of a block from the first on, each of a page.
    pub(super) fn store_weights(&self, w: &mut Writer, place: Val, first: Val, weights: &[Val]) {
        let to = self.cell(w, self.layout.weights, place, self.block_keys() * 2);
        let to = w.element(to, first, 2);
        for (i, pair) in weights.chunks(2).enumerate() {
            let halves = [pair[0], pair[pair.len() - 1]].map(|x| split(w, x));
            for half in 0..HALVES as usize {
                let [a, b] = halves.map(|halves| halves[half]);
                let a = w.shr(a, 16);
                let upper = w.int(i64::from(UPPER as i32), b.ty);
                let b = w.and(b, upper);
                let words = w.or(a, b);
                let behind = half as u64 * u64::from(QUERIES) * self.block_keys() * 2;
                let to = w.offset_const(to, behind + i as u64 * REGISTER.1);
                w.store(words, to);
            }
        }
    }

    /// The same of those that stand where scores did, of all queries of a register tile.
    pub(super) fn split_weights(&self, w: &mut Writer, micro: Micro, n_keys: Val) -> Result<(), CodegenError> {
        let (zero, queries) = (w.i64(0), w.i64(i64::from(QUERIES)));
        w.for_loop(zero, queries, 1, &[], |w, query, _| {
            let place = w.add(micro.place, query);
            let scores = self.cell(w, self.layout.scores, place, self.block_keys() * 4);
            w.for_loop(zero, n_keys, INPUTS as i64, &[], |w, first, _| {
                let from = w.element(scores, first, 4);
                let weights = [0, 1].map(|v| {
                    let from = w.offset_const(from, v * REGISTER.1);
                    w.load(Ty::of(Elem::F32, self.at.lanes), from)
                });
                self.store_weights(w, place, first, &weights);
                Ok(vec![])
            })?;
            Ok(vec![])
        })?;
        Ok(())
    }
}

/// Adds to sums the products of registers of rows with registers of columns, from their addresses and the bytes between their rows.
fn multiply(w: &mut Writer, (names, dot): (TileRegisters, &str), rows: (&[Val], u64), columns: (&[Val], u64)) {
    for ((places, bytes), from) in [(rows, ROWS), (columns, COLUMNS)] {
        let bytes = w.i64(bytes as i64);
        for (i, at) in places.iter().enumerate() {
            let register = w.tile_register(from + i as u64);
            w.command(names.load, &[register, *at, bytes]);
        }
    }
    for i in 0..rows.0.len() as u64 {
        for j in 0..columns.0.len() as u64 {
            let [sum, row, column] = [i * SIDE + j, ROWS + i, COLUMNS + j].map(|number| w.tile_register(number));
            w.command(dot, &[sum, row, column]);
        }
    }
}

/// Loads or stores sums, so many registers side by side.
fn each_sum(w: &mut Writer, (name, columns): (&str, u64), (at, bytes): (Val, u64)) {
    let stride = w.i64(bytes as i64);
    for i in 0..SIDE {
        for j in 0..columns {
            let at = w.offset_const(at, i * REGISTER.0 * bytes + j * REGISTER.1);
            let sum = w.tile_register(i * SIDE + j);
            w.command(name, &[sum, at, stride]);
        }
    }
}

/// Of words of which each is of two tokens, the bits of those that exist, of so many.
fn there_of_two(w: &mut Writer, left: Val, lanes: u32) -> Val {
    let [none, low, both] = [0, 0xFFFF, -1].map(|bits| w.int(bits, Ty::scalar(Elem::I32)));
    let [one, two] = [1, 2].map(|n| w.i64(n));
    let has_two = w.cmp(Cmp::Ge, left, two);
    let has_one = w.cmp(Cmp::Ge, left, one);
    let there = w.select(has_one, low, none);
    let there = w.select(has_two, both, there);
    w.splat(there, lanes)
}

/// The upper half of a word, which is f32 as bf16.
const UPPER: u32 = 0xFFFF_0000;

/// Of f32 the bf16 that its upper half is, and what is left, whose upper half is to nearest.
fn split(w: &mut Writer, x: Val) -> [Val; HALVES as usize] {
    let bits = w.bitcast(x, x.ty.with(Elem::I32));
    let upper = w.int(i64::from(UPPER as i32), bits.ty);
    let first = w.and(bits, upper);
    let rest = w.bitcast(first, x.ty);
    let rest = w.sub(x, rest);
    let rest = w.bitcast(rest, bits.ty);
    let half = w.int(0x8000, bits.ty);
    [first, w.add(rest, half)]
}
