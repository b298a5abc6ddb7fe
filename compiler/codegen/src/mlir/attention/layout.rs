//! What a tile of an attention keeps in the worker's scratch, and in which form products want it.

use super::super::machine::{Machine, PairDot, WordDot};
use super::super::schedule::BlockSchedule;
use super::Attention;
use super::by_tiles::Room;
use crate::error::CodegenError;
use crate::plan::kernel::PageLayout;
use xfc_lang::graph::DType;

/// How products are made of what a page holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// Element by element, in f32.
    Plain,
    /// Of pairs of bf16, each half widened to f32.
    Widened,
    /// Of pairs of bf16, by this instruction.
    Paired(&'static str),
    /// Of pairs of bf16, by registers that hold tiles.
    Tiles,
    /// Of pairs of integers of 8 bits, with factors that are rounded to integers of 16.
    Words(WordDot),
}

impl Form {
    /// Of what lies so, where `paired` is how pairs lie, that are multiplied by numbers of bf16 where these are `narrow`.
    ///
    /// # Errors
    /// Pairs of bytes on a machine that does not multiply them.
    pub(super) fn of(
        kept: DType,
        (layout, paired): (PageLayout, PageLayout),
        narrow: bool,
        machine: &Machine,
    ) -> Result<Form, CodegenError> {
        Ok(match (machine.pair_dot, machine.word_dot) {
            _ if layout != paired => Form::Plain,
            (_, Some(dot)) if kept.blocks().is_some() => Form::Words(dot),
            _ if kept.blocks().is_some() => return Err(CodegenError::bug("attention", "pairs of bytes")),
            (PairDot::Intrinsic(name), _) if narrow => Form::Paired(name),
            _ => Form::Widened,
        })
    }

    /// Elements that are multiplied at a time.
    pub(super) fn depth(self) -> u64 {
        if self == Form::Plain { 1 } else { 2 }
    }

    /// Bytes of a factor that is made for it.
    pub(super) fn bytes(self) -> u64 {
        if matches!(self, Form::Paired(_) | Form::Tiles | Form::Words(_)) { 2 } else { 4 }
    }
}

/// Where things lie in scratch: first bytes.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Layout {
    /// Of each query: its elements.
    pub(super) queries: u64,
    /// Bytes of one query.
    pub(super) query_bytes: u64,
    /// Where it is integers: bytes from these to what rounding left of each, as integers again.
    pub(super) query_rests: u64,
    /// What its elements are to be multiplied by, where they are integers.
    pub(super) query_scales: u64,
    /// The weighted sum of values.
    pub(super) out: u64,
    /// Bytes of one.
    pub(super) out_bytes: u64,
    /// A vector of sums of weights.
    pub(super) sums: u64,
    /// What exponents are relative to, in powers of two.
    pub(super) maxima: u64,
    /// Position, first key, one past the last.
    pub(super) positions: u64,
    pub(super) lows: u64,
    pub(super) highs: u64,
    /// Of each register tile: keys that some query of it sees, keys that all do.
    pub(super) bounds: u64,
    /// Of each register tile: keys of the block that it looks at, and whether all its queries see all of them.
    pub(super) seen: u64,
    pub(super) whole: u64,
    /// For the keys of a block, of the queries of a register tile, or of all where they are gone over page by page: scores, then weights.
    pub(super) scores: u64,
    /// Addresses of the block's pages.
    pub(super) key_pages: u64,
    pub(super) value_pages: u64,
    /// For registers that hold tiles: the values of a block, the last elements of its keys, and the weights of a register tile.
    pub(super) values: u64,
    pub(super) rests: u64,
    pub(super) weights: u64,
    /// All of it.
    pub(super) bytes: u64,
}

impl Layout {
    /// For so many queries of each head of keys.
    pub(super) fn new(at: &Attention<'_>, blocks: &BlockSchedule, of_head: u64, keys: Form) -> Self {
        let spec = at.spec;
        let of_head = of_head.next_multiple_of(u64::from(blocks.queries));
        let queries = of_head * blocks.kv_heads;
        let tiles = queries / u64::from(blocks.queries);
        let scored = if blocks.by_page { queries } else { u64::from(blocks.queries) };
        let vector = u64::from(at.lanes) * 4;
        let tokens = u64::from(blocks.pages) * spec.page_tokens;
        let query_rests = (spec.key_dim * keys.bytes()).next_multiple_of(64);
        let mut layout = Layout {
            query_bytes: if matches!(keys, Form::Words(_)) { 2 * query_rests } else { query_rests },
            query_rests,
            out_bytes: spec.value_dim.div_ceil(u64::from(at.lanes)) * vector,
            ..Layout::default()
        };
        let mut end = 0;
        let mut take = |bytes: u64| {
            let first = end;
            end = (end + bytes).next_multiple_of(64);
            first
        };
        layout.queries = take(queries * layout.query_bytes);
        layout.query_scales = take(if matches!(keys, Form::Words(_)) { queries * 4 } else { 0 });
        layout.out = take(queries * layout.out_bytes);
        layout.sums = take(queries * vector);
        layout.maxima = take(queries * 4);
        layout.positions = take(of_head * 8);
        layout.lows = take(of_head * 8);
        layout.highs = take(of_head * 8);
        layout.bounds = take(of_head / u64::from(blocks.queries) * 32);
        layout.seen = take(tiles * 8);
        layout.whole = take(tiles * 8);
        layout.scores = take(scored * tokens * 4);
        layout.key_pages = take(u64::from(blocks.pages) * 8);
        layout.value_pages = take(u64::from(blocks.pages) * 8);
        if blocks.tiles {
            let room = Room::new(at, blocks);
            layout.values = take(room.values);
            layout.rests = take(room.rests);
            layout.weights = take(room.weights);
        }
        layout.bytes = end;
        layout
    }
}
