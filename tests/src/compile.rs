//! A reference case, compiled: the artifact that `xfc compile` would write, in memory.

use xfc_codegen::driver::{Options, compile};
use xfc_codegen::target;

use crate::Result;
use crate::case::Case;
use crate::model;

/// The targets that every machine that runs the tests can compile for.
pub const TARGETS: [&str; 2] = ["cpu", "cpu:x86-64-v3"];

/// Compiles the model of a case for `targets`.
pub fn artifact(case: &Case, targets: &[&str], options: &Options) -> Result<Vec<u8>> {
    let model = model::expand(case)?;
    let targets = targets.iter().map(|name| target::parse(name)).collect::<std::result::Result<Vec<_>, _>>()?;
    Ok(compile(&model, &case.name, &targets, options)?.bytes)
}
