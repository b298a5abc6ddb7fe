//! Rewrites of programs: one file a pass, one list, one runner.
//!
//! The [`pipeline`] turns what the front end made into the fused form that [`check_fused`] describes. Required passes make that
//! form; the others make it faster, and `--skip-pass` may leave them out. The verifier runs after each.

pub mod analysis;
mod check_fused;
mod common_subexpressions;
mod dead_code;
mod fuse_attention;
mod group_rows;
mod linear;
mod matching;
mod run;

use crate::graph::Program;

pub use self::check_fused::check_fused;
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
        &common_subexpressions::CommonSubexpressions,
        &dead_code::DeadCode,
        &fuse_attention::FuseAttention,
        &dead_code::DeadCode,
        &common_subexpressions::CommonSubexpressions,
        &dead_code::DeadCode,
        &linear::ContractToLinear,
        &dead_code::DeadCode,
        &common_subexpressions::CommonSubexpressions,
        &dead_code::DeadCode,
        &group_rows::GroupRows,
        &dead_code::DeadCode,
    ]
}
