//! How kernels are tiled on a CPU: chosen from the instruction set and the sizes.

use serde::{Deserialize, Serialize};
use xfc_lang::graph::DType;

use super::isa::Isa;
use crate::mlir::attention::by_tiles;
use crate::mlir::linear::by_block::tiles::{self, SUMS, TILE_ROWS};
use crate::mlir::machine::PairDot;
use crate::mlir::schedule::{
    AttentionSchedule, BlockSchedule, FewSchedule, LinearSchedule, Multiplied, RowsSchedule, ScratchSchedule,
    panel_depth,
};
use crate::plan::kernel::{AttentionSpec, Division, LinearSpec, PageLayout, RowsSpec};
use crate::target::profile::AttentionFields;

/// A regime of steps, by how many rows a launch has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Regime {
    /// One row: decoding one sequence. Bound by memory.
    One,
    /// Up to 8 rows: several sequences, or a short check.
    Few,
    /// More: prefill. Bound by arithmetic.
    Many,
}

impl Regime {
    /// All regimes, in the order of the manifest's phases.
    pub const ALL: [Regime; 3] = [Regime::One, Regime::Few, Regime::Many];

    /// Name in the manifest.
    pub fn name(self) -> &'static str {
        match self {
            Regime::One => "one",
            Regime::Few => "few",
            Regime::Many => "many",
        }
    }

    /// Most rows it is meant for.
    pub fn max_rows(self) -> Option<u64> {
        match self {
            Regime::One => Some(1),
            Regime::Few => Some(8),
            Regime::Many => None,
        }
    }
}

/// Outputs in a panel of packed weights: the same for all regimes, since they share one copy.
pub fn panel_columns(isa: &Isa) -> u64 {
    u64::from(isa.machine.lanes) * 4
}

/// What of a product decides its schedule.
#[derive(Clone, Copy, Debug)]
pub struct ProductKind {
    /// Weights are bf16.
    pub is_bf16: bool,
    /// Weights lie in blocks of integers.
    pub in_blocks: bool,
    /// Weight matrices.
    pub parts: usize,
    /// Rows choose their matrices.
    pub of_experts: bool,
}

impl ProductKind {
    /// Of a specification.
    pub fn of(spec: &LinearSpec) -> Self {
        ProductKind {
            is_bf16: spec.operand == DType::BF16,
            in_blocks: spec.operand.blocks().is_some(),
            parts: spec.parts,
            of_experts: spec.experts.is_some(),
        }
    }
}

/// Vectors of widened weights that rows are multiplied with at a time: so many that the first level of caches keeps them.
const WIDENED_VECTORS: u64 = 512;

/// Columns of a tile, of all parts, for which its inputs are widened once.
const WIDENED_COLUMNS: u64 = 64;

/// The schedule of a linear in a regime.
pub fn linear(isa: &Isa, regime: Regime, kind: ProductKind) -> LinearSchedule {
    // The register tile holds rows x vectors x parts accumulators, one vector of weights for each column and one of inputs. Of weights in
    // blocks it holds sums of integers besides, for one group.
    let in_blocks = kind.in_blocks;
    let parts = kind.parts as u32 * if in_blocks { 2 } else { 1 };
    let wide = isa.registers >= 32;
    let is_widened = kind.is_bf16 && isa.machine.pair_dot == PairDot::Widened;
    let (micro_rows, vectors, chains, rows_per_tile) = match regime {
        // Of a panel all columns at once: memory is read as it lies, whatever registers are short of.
        Regime::One if in_blocks => (1, 4, 1, 1),
        Regime::One => (1, 4, if wide && parts == 1 { 2 } else { 1 }, 1),
        Regime::Few => (4, if wide { 4 / parts } else { 2 / parts }, 1, 8),
        Regime::Many if in_blocks && wide => (7, 4 / parts, 1, 49),
        Regime::Many if is_widened => (6, if wide { 4 / parts } else { 2 / parts }, 1, 132),
        Regime::Many => (6, if wide { 4 / parts } else { 2 / parts }, 1, 48),
    };
    let vectors = vectors.max(1);
    // Measured on Intel's servers, which ask ahead: of short steps that ask four times as far ahead one thread reads 95 % of what memory gives, of
    // those of integers and floats 92 %, and integers lose what bf16 gains.
    let widens_ahead = regime == Regime::One && is_widened && wide && isa.prefetch > 0;
    let scratch = (regime == Regime::Many && is_widened).then(|| ScratchSchedule {
        inputs: WIDENED_VECTORS / u64::from(parts * vectors),
        panels: if kind.of_experts { 1 } else { (WIDENED_COLUMNS / panel_columns(isa) / u64::from(parts)).max(1) },
        form: Multiplied::Widened,
    });
    LinearSchedule {
        lanes: isa.machine.lanes,
        micro_rows,
        vectors,
        chains,
        unroll: if widens_ahead { 2 } else { 4 },
        prefetch: match regime {
            Regime::One if widens_ahead => 4 * isa.prefetch,
            Regime::One => isa.prefetch,
            Regime::Few | Regime::Many => 0,
        },
        next_panel: regime == Regime::Few && !kind.of_experts,
        panel_columns: panel_columns(isa),
        depth: panel_depth(kind.is_bf16),
        rows_per_tile,
        tiles: None,
        scratch,
        // One row's experts differ.
        by_expert: regime != Regime::One,
        ahead_bytes: 0,
    }
}

/// Lets a product be by registers that hold tiles, where the machine has them and it can be by them.
pub fn by_tiles(isa: &Isa, regime: Regime, schedule: &mut LinearSchedule, spec: &LinearSpec) {
    let blocks = spec.operand.blocks();
    // Of few rows scaling the sums of integers takes as long as multiplying them by vectors.
    let pays = regime == Regime::Many || regime == Regime::Few && blocks.is_none();
    if !pays || !tiles::multiplies(&isa.machine, spec, schedule.panel_columns) {
        return;
    }
    (schedule.micro_rows, schedule.vectors) = (TILE_ROWS as u32, SUMS as u32);
    if spec.widened {
        let is_wide = spec.outputs.div_ceil(schedule.panel_columns) >= WIDE_PANELS;
        schedule.rows_per_tile = if is_wide { 2 * WIDENED_ROWS } else { WIDENED_ROWS };
        schedule.scratch = Some(ScratchSchedule { inputs: TILED_INPUTS, panels: 1, form: Multiplied::WidenedTiles });
        return;
    }
    schedule.rows_per_tile = if regime == Regime::Few { TILE_ROWS } else { TILED_ROWS };
    // Of few rows, which all regimes may have.
    (schedule.prefetch, schedule.next_panel) = (4 * isa.prefetch, false);
    // The whole numbers of as many groups stay there too.
    let inputs = blocks.map_or(TILED_INPUTS, |blocks| TILED_INPUTS.min(TILED_GROUPS * u64::from(blocks.group)));
    schedule.scratch = Some(ScratchSchedule { inputs, panels: 1, form: Multiplied::Tiles });
}

/// Rows of a tile by registers that hold tiles: so many that a panel is worth reading.
const TILED_ROWS: u64 = 128;

/// The same where weights are widened for a tile, which more rows are worth: twice as many where there are enough tiles still.
const WIDENED_ROWS: u64 = 256;

/// Panels that are tiles enough for some tens of threads.
const WIDE_PANELS: u64 = 32;

/// Most elements of a group of integers that registers which hold tiles multiply as bf16: of larger ones scaling sums takes less time than bf16 takes more.
pub fn widened_groups(isa: &Isa) -> u64 {
    match isa.machine.tile_registers {
        Some(names) if names.halves.is_some() => {
            if names.bytes.is_some() {
                64
            } else {
                128
            }
        }
        _ => 0,
    }
}

/// Inputs of a block there: so many that the first level of caches keeps the weights of a panel.
const TILED_INPUTS: u64 = 256;

/// Groups of a block there.
const TILED_GROUPS: u64 = 4;

/// Tokens in a page of the caches: one vector of the widest instruction set, four of the narrowest.
pub const PAGE_TOKENS: u64 = 16;

/// The schedule of attention in a regime, with what is set: in steps of few rows nothing.
pub fn attention(isa: &Isa, regime: Regime, spec: &AttentionSpec, set: &AttentionFields) -> AttentionSchedule {
    let lanes = isa.machine.lanes;
    let group = spec.heads / spec.kv_heads;
    if !is_blocked(spec) {
        return AttentionSchedule {
            lanes,
            rows_per_tile: 4,
            heads_per_tile: 8,
            blocks: None,
            few: None,
            tensors: None,
        };
    }
    // A register tile holds queries x vectors accumulators; the vectors of keys or values, of pairs both halves; and what multiplies them.
    let wide = isa.registers >= 32;
    let page_vectors = (PAGE_TOKENS / u64::from(lanes)) as u32;
    let paired = spec.value_layout == PageLayout::TokenPairs && spec.value_kept == DType::BF16;
    let tiles = regime == Regime::Many && by_tiles::multiplies(&isa.machine, spec);
    // Of those nothing may be set.
    let set =
        if tiles { &AttentionFields { queries: Some(by_tiles::QUERIES), ..AttentionFields::default() } } else { set };
    let queries = set.queries.unwrap_or(match (regime, wide) {
        // One row's heads, whose number is small.
        (Regime::One, true) => (group as u32).clamp(1, 8),
        (Regime::One, false) => (group as u32).clamp(1, 4),
        (Regime::Few, true) => (group as u32).clamp(2, 8),
        (Regime::Few, false) => (group as u32).clamp(2, 4),
        // What is widened serves as many as there are registers for.
        (Regime::Many, true) if paired && page_vectors == 1 && isa.machine.pair_dot == PairDot::Widened => 12,
        (Regime::Many, true) => 6,
        (Regime::Many, false) if page_vectors > 2 => 2,
        (Regime::Many, false) => {
            if paired {
                4
            } else {
                6
            }
        }
    });
    let halves = if paired { 2 } else { 1 };
    // Either all vectors of values are loaded and a factor is after another, or all factors are and a vector is.
    let of_vectors = isa.registers.saturating_sub(halves) / (queries + halves);
    let of_factors = isa.registers.saturating_sub(halves * (queries + 2)) / queries;
    let value_vectors = set.value_vectors.unwrap_or(of_vectors.max(of_factors).clamp(1, 8));
    let values_together = if of_factors >= value_vectors { 1 } else { value_vectors };
    let key_halves = if isa.machine.pair_dot == PairDot::Widened { halves } else { 1 };
    let most = ((isa.registers - key_halves) / (queries + key_halves)).max(page_vectors);
    let heads = group.div_ceil(group.div_ceil(HEADS_PER_TILE));
    let rows_per_tile = match regime {
        Regime::One => 1,
        Regime::Few => 8,
        // So many queries that a block of keys is worth fetching, in whole register tiles.
        Regime::Many => {
            let whole = u64::from(queries) / gcd(u64::from(queries), heads);
            let tile_queries = if tiles { TILED_QUERIES } else { TILE_QUERIES };
            (set.tile_queries.unwrap_or(tile_queries) / (heads * whole)).max(1) * whole
        }
    };
    // Few queries are bound by memory, which is fast where it is read as it lies.
    let by_page = regime != Regime::Many;
    let pages = if by_page { block_pages(spec) } else { set.pages.unwrap_or(BLOCK_PAGES) };
    let pages_per_tile =
        if by_page { 1 } else { set.pages_per_tile.unwrap_or(1 << (most / page_vectors).clamp(1, 4).ilog2()) };
    // A block is whole register tiles.
    let pages_per_tile = gcd(pages_per_tile.into(), pages.into()) as u32;
    // An accumulator takes its next product some cycles after the last.
    let chains = [4, 2].into_iter().find(|n| by_page && n * queries * page_vectors <= 8).unwrap_or(1);
    // Pages are read as fast as one row's weights are, where these are asked for as far ahead.
    let ahead = if isa.machine.pair_dot == PairDot::Widened { 4 * isa.prefetch } else { isa.prefetch };
    AttentionSchedule {
        lanes,
        rows_per_tile,
        heads_per_tile: HEADS_PER_TILE,
        blocks: Some(BlockSchedule {
            queries,
            kv_heads: if by_page { together(spec) } else { 1 },
            by_page,
            pages_per_tile,
            chains,
            pages,
            value_vectors,
            values_together,
            key_parts: if by_page { spec.division.parts as u32 } else { 1 },
            prefetch: if by_page { ahead } else { 0 },
            tiles,
        }),
        few: if by_page { None } else { few(isa, spec) },
        tensors: None,
    }
}

/// How sequences of few rows are gone over in steps of many: as one row alone is, but that they are tiles enough without parts of their keys.
fn few(isa: &Isa, spec: &AttentionSpec) -> Option<FewSchedule> {
    if spec.heads / spec.kv_heads > HEADS_PER_TILE {
        return None;
    }
    let blocks = attention(isa, Regime::One, spec, &AttentionFields::default()).blocks?;
    let blocks = BlockSchedule { kv_heads: spec.kv_heads, key_parts: 1, ..blocks };
    Some(FewSchedule { rows: FEW_ROWS, shares: LEAST_TILES.div_ceil(spec.kv_heads), blocks })
}

/// Most rows of a sequence whose pages are read as they lie in a step of many: more are worth bringing a block of keys to the caches for.
const FEW_ROWS: u64 = 4;

/// Queries of a tile in steps of many rows.
const TILE_QUERIES: u64 = 60;

/// The same where registers that hold tiles multiply them: what a block of keys brings to scratch serves more.
const TILED_QUERIES: u64 = 128;

/// Pages of a block in steps of many rows.
pub const BLOCK_PAGES: u32 = 4;

/// Keys of a block in steps of few rows.
const BLOCK_BYTES: u64 = 256 << 10;

/// Most query heads of a tile.
const HEADS_PER_TILE: u64 = 64;

/// Pages of a block in steps of few rows: some hundred kilobytes of keys, so that memory is seldom left for its values, and not more scores than the
/// first levels of caches hold.
fn block_pages(spec: &AttentionSpec) -> u32 {
    let bytes = spec.keys().page_bytes(spec.kv_heads);
    (BLOCK_BYTES / bytes.max(1)).clamp(4, 16).next_power_of_two() as u32
}

/// Heads of keys that are read together in steps of few rows: all, so that a page is read as it lies. Parts of the keys are the tiles then.
fn together(spec: &AttentionSpec) -> u64 {
    let group = spec.heads / spec.kv_heads;
    if spec.division.parts > 1 && group <= HEADS_PER_TILE { spec.kv_heads } else { 1 }
}

/// Tiles that a step of one row has at least, so that they divide evenly among some threads.
const LEAST_TILES: u64 = 16;

/// Most rows of a step in which keys are divided.
pub const PARTED_ROWS: u64 = 8;

/// How the keys of a query are divided in steps of few rows.
pub fn division(spec: &AttentionSpec) -> Division {
    // Of sequences of one kind alone, the results of others must stay.
    if !is_blocked(spec) || spec.when.is_some() {
        return Division::NONE;
    }
    let group = spec.heads / spec.kv_heads;
    let parts = if group <= HEADS_PER_TILE { LEAST_TILES } else { (LEAST_TILES / spec.kv_heads).max(1) };
    Division { parts, rows: PARTED_ROWS, shared: false, joined: 0 }
}

/// Whether keys lie so that they are multiplied block by block.
fn is_blocked(spec: &AttentionSpec) -> bool {
    matches!(spec.key_layout, PageLayout::TokensLast | PageLayout::DimPairs)
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// Rows of a tile that takes those of the whole step: more than a step has.
pub const ALL_ROWS: u64 = 1 << 24;

/// The schedule of token-wise kernels, and of what runs a body of rows.
pub fn rows(isa: &Isa, regime: Regime, spec: Option<&RowsSpec>) -> RowsSchedule {
    // Products of those rows are of as many, or of more.
    let halves_alone = regime == Regime::Many && spec.is_some_and(RowsSpec::widens);
    RowsSchedule { lanes: isa.machine.lanes, rows_per_tile: 4, halves_alone }
}
