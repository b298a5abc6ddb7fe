//! How kernels are tiled on a CPU: chosen from the instruction set and the sizes.

use super::isa::Isa;
use crate::mlir::schedule::{AttentionSchedule, LinearSchedule, RowsSchedule};

/// A regime of steps, by how many rows a launch has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
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

/// The schedule of a linear of `parts` matrices in a regime.
pub fn linear(isa: &Isa, regime: Regime, parts: usize) -> LinearSchedule {
    // The register tile holds rows x vectors x parts accumulators, one vector of weights for each column and one of inputs.
    let parts = parts as u32;
    let wide = isa.registers >= 32;
    let (micro_rows, vectors, chains, rows_per_tile) = match regime {
        Regime::One => (1, 4, if wide && parts == 1 { 2 } else { 1 }, 1),
        Regime::Few => (4, if wide { 4 / parts } else { 2 / parts }, 1, 8),
        Regime::Many => (6, if wide { 4 / parts } else { 2 / parts }, 1, 48),
    };
    LinearSchedule {
        lanes: isa.machine.lanes,
        micro_rows,
        vectors: vectors.max(1),
        chains,
        unroll: 4,
        panel_columns: panel_columns(isa),
        rows_per_tile,
        // One row's experts differ.
        by_expert: regime != Regime::One,
    }
}

/// Tokens in a page of the caches: one vector of the widest instruction set, four of the narrowest.
pub const PAGE_TOKENS: u64 = 16;

/// The schedule of attention.
pub fn attention(isa: &Isa) -> AttentionSchedule {
    AttentionSchedule { lanes: isa.machine.lanes, rows_per_tile: 4, heads_per_tile: 8 }
}

/// Rows of a tile that takes those of the whole step: more than a step has.
pub const ALL_ROWS: u64 = 1 << 24;

/// The schedule of token-wise kernels.
pub fn rows(isa: &Isa) -> RowsSchedule {
    RowsSchedule { lanes: isa.machine.lanes, rows_per_tile: 4 }
}
