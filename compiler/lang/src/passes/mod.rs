//! Rewrites of programs: one file a pass, one list, one runner.
//!
//! The [`pipeline`] turns what the front end made into the fused form that [`check_fused`](check_fused()) describes. Required passes make that
//! form; the others make it faster, and `--skip-pass` may leave them out. The verifier runs after each.

mod absorb;
pub mod analysis;
mod check_fused;
mod common_subexpressions;
mod dead_code;
mod fold_constants;
mod fuse_attention;
mod fuse_epilogue;
mod fuse_experts;
mod fuse_gate;
mod fuse_norm;
mod group_rows;
mod hoist;
mod keep_results;
mod linear;
mod matching;
mod merge_linears;
mod narrow_attention;
pub mod precision;
mod product;
pub mod quantise;
mod region;
mod run;
mod scan_constants;
mod select_rows;
mod stored;

use crate::graph::Program;

pub use self::check_fused::check_fused;
pub(crate) use self::matching::is_constant;
pub use self::run::{Event, Moment, Options, PassError, Report, run};

/// A rewrite of a program.
pub trait Pass: Sync {
    /// As `--skip-pass` and dumps name it.
    fn name(&self) -> &'static str;

    /// Whether later stages need what it makes.
    fn required(&self) -> bool {
        false
    }

    /// Rewrites the program; whether anything changed.
    fn run(&self, program: &mut Program) -> bool;
}

/// Every pass, in the order they run. A pass may stand here more than once.
pub fn pipeline() -> Vec<&'static dyn Pass> {
    vec![
        &fold_constants::FoldConstants,
        &common_subexpressions::CommonSubexpressions,
        &dead_code::DeadCode,
        &fuse_attention::FuseAttention,
        &absorb::Absorb,
        &keep_results::KeepResults,
        &fold_constants::FoldConstants,
        &dead_code::DeadCode,
        &hoist::Hoist,
        &common_subexpressions::CommonSubexpressions,
        &dead_code::DeadCode,
        &fuse_norm::FuseNorm,
        &fuse_experts::FuseExperts,
        &linear::ContractToLinear,
        &fuse_gate::FuseGate,
        &merge_linears::MergeLinears,
        &fuse_epilogue::FuseEpilogue,
        &narrow_attention::NarrowAttention,
        &dead_code::DeadCode,
        &scan_constants::ScanConstants,
        &select_rows::SelectRows,
        &common_subexpressions::CommonSubexpressions,
        &dead_code::DeadCode,
        &group_rows::GroupRows,
        &dead_code::DeadCode,
    ]
}
