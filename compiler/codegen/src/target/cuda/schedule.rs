//! How kernels are tiled on a GPU.

use xfc_lang::graph::DType;

use crate::mlir::machine::{ByteDot, Machine, PairDot};
use crate::mlir::schedule::{AttentionSchedule, LinearSchedule, RowsSchedule};
use crate::plan::kernel::LinearSpec;
use crate::target::cpu::schedule::Regime;

/// Outputs in a panel of packed weights: a vector of a block of threads.
pub(super) const PANEL_COLUMNS: u64 = 128;

/// Tokens in a page of the caches: a vector of a warp.
pub(super) const PAGE_TOKENS: u64 = 32;

/// Threads of a warp.
const WARP: u32 = 32;

/// A block of so many threads as one worker.
pub(super) fn machine(threads: u32) -> Machine {
    Machine {
        lanes: threads,
        threads,
        fma: true,
        round: true,
        pair_dot: PairDot::Widened,
        byte_dot: ByteDot::Widened,
        half: true,
    }
}

/// The schedule of a linear in a regime.
pub(super) fn linear(regime: Regime, spec: &LinearSpec) -> LinearSchedule {
    let micro_rows = match regime {
        Regime::One => 1,
        Regime::Few => 8,
        Regime::Many if matches!(spec.operand, DType::Blocks(_)) || spec.parts > 1 => 8,
        Regime::Many => 16,
    };
    LinearSchedule {
        lanes: PANEL_COLUMNS as u32,
        micro_rows,
        vectors: 1,
        chains: 1,
        unroll: 4,
        prefetch: 0,
        next_panel: false,
        panel_columns: PANEL_COLUMNS,
        rows_per_tile: u64::from(micro_rows),
        by_expert: regime != Regime::One,
    }
}

/// The schedule of attention: a warp a head and row.
pub(super) fn attention() -> AttentionSchedule {
    AttentionSchedule { lanes: WARP, rows_per_tile: 1, heads_per_tile: 1, blocks: None }
}

/// The schedule of token-wise kernels: a block a row.
pub(super) fn rows(regime: Regime) -> RowsSchedule {
    RowsSchedule { lanes: if regime == Regime::Many { WARP } else { 4 * WARP }, rows_per_tile: 1 }
}
