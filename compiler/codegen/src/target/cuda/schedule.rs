//! How kernels are tiled on a GPU.

use xfc_lang::graph::DType;

use crate::mlir::linear::tiles;
use crate::mlir::machine::{ByteDot, ByteTileDot, Machine, PairDot, TileDot};
use crate::mlir::schedule::{AttentionSchedule, LinearSchedule, RowsSchedule, TileSchedule};
use crate::plan::kernel::{LinearSpec, dtype_bytes};
use crate::target::cpu::schedule::Regime;

/// Outputs in a panel of packed weights: a vector of a warp.
pub(super) const PANEL_COLUMNS: u64 = 32;

/// Bytes of a column that lie side by side: what a thread loads at a time.
const COLUMN_BYTES: u64 = 16;

/// Tokens in a page of the caches: a vector of a warp.
pub(super) const PAGE_TOKENS: u64 = 32;

/// Threads of a warp.
const WARP: u32 = 32;

/// A block of so many threads as one worker.
pub(super) fn machine(threads: u32) -> Machine {
    Machine {
        lanes: threads,
        threads,
        groups: 1,
        side_by_side: 0,
        fma: true,
        round: true,
        pair_dot: PairDot::Widened,
        byte_dot: ByteDot::Widened,
        half: true,
        tile_dot: Some(TileDot("llvm.nvvm.mma.m16n8k16.row.col.bf16")),
        byte_tile_dot: Some(ByteTileDot("llvm.nvvm.mma.m16n8k32.row.col.s8.u8")),
    }
}

/// Warps that divide the inputs of a product, or its rows.
pub(super) fn product_machine(regime: Regime, spec: &LinearSpec, schedule: &LinearSchedule) -> Machine {
    // Without a limit a block of tiles takes all registers that there are, to load early. Three blocks leave each thread 168, which are enough for 64 sums in
    // bf16, or for half as many and scales; two leave it 255.
    let side_by_side = match schedule.tiles {
        None => 0,
        Some(_) if spec.operand.blocks().is_some() && schedule.rows_per_tile > 64 => 2,
        Some(_) => 3,
    };
    // Few rows are bound by memory: the more warps, the more of it is asked for at a time.
    Machine { groups: if regime == Regime::Many { 4 } else { 8 }, side_by_side, ..machine(WARP) }
}

/// Inputs that lie side by side in a panel.
pub(super) fn depth(operand: DType) -> u64 {
    COLUMN_BYTES / dtype_bytes(operand)
}

/// The schedule of a linear in a regime.
pub(super) fn linear(regime: Regime, spec: &LinearSpec) -> LinearSchedule {
    let micro_rows = if regime == Regime::One { 1 } else { 8 };
    let tiles = tiles_of(regime, spec);
    LinearSchedule {
        lanes: WARP,
        micro_rows,
        vectors: 1,
        chains: 1,
        unroll: 1,
        prefetch: 0,
        next_panel: false,
        panel_columns: PANEL_COLUMNS,
        depth: depth(spec.operand),
        rows_per_tile: tiles.map_or(u64::from(micro_rows), |(rows, _)| rows),
        tiles: tiles.map(|(_, tiles)| tiles),
        by_expert: regime != Regime::One,
    }
}

/// Rows of a tile, and its schedule, where tensor cores multiply.
fn tiles_of(regime: Regime, spec: &LinearSpec) -> Option<(u64, TileSchedule)> {
    let is_tiled = spec.operand == DType::BF16 || spec.operand.blocks().is_some();
    if regime != Regime::Many || !is_tiled || spec.heads > 1 {
        return None;
    }
    let parts = spec.parts as u64;
    let panels = (2 / parts).max(1);
    // The more columns, the fewer rows: registers and shared memory hold the sums of both. Of many experts each has few rows.
    let is_wide = parts * panels * PANEL_COLUMNS > 64;
    let is_sparse = spec.experts.is_some_and(|experts| experts.count >= SPARSE * experts.chosen);
    let ways = [(128, 3), (64, 3), (64, 2)];
    let way = |(rows, stages): (u64, u64)| {
        let tiles = TileSchedule { panels, stages };
        let fits = tiles::shared_bytes(spec.operand, parts, rows, tiles) <= SHARED_BYTES;
        (fits && !(rows > 64 && (is_wide || is_sparse))).then_some((rows, tiles))
    };
    ways.into_iter().find_map(way)
}

/// So many times as many experts as each row chooses are many.
const SPARSE: u64 = 8;

/// Shared memory that a block has without asking.
const SHARED_BYTES: u64 = 48 << 10;

/// The schedule of attention: a warp a head and row.
pub(super) fn attention() -> AttentionSchedule {
    AttentionSchedule { lanes: WARP, rows_per_tile: 1, heads_per_tile: 1, blocks: None }
}

/// The schedule of token-wise kernels: a block a row.
pub(super) fn rows(regime: Regime) -> RowsSchedule {
    RowsSchedule { lanes: if regime == Regime::Many { WARP } else { 4 * WARP }, rows_per_tile: 1 }
}
