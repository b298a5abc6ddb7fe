//! Code for GPUs: the PTX of the artifacts, run by an emulator, against other implementations.

use xfc_codegen::driver::Options;
use xfc_tests::compare::{Precision, Tier, compare, measure};
use xfc_tests::compile::Runner;
use xfc_tests::gpu;

use crate::cases::every_case;

/// Prints each case's largest difference under `--nocapture`.
#[test]
#[expect(clippy::print_stdout, reason = "a measurement for people, hidden unless asked for")]
fn outputs_match() {
    every_case(|case| {
        let mut runner = Runner::new(&gpu::load_case(case, "cuda:sm_80", &Options::default())?, 1)?;
        let sequence = runner.session.add_sequence()?;
        let outputs = runner.outputs_of(sequence, case)?;
        for (name, golden) in case.outputs()? {
            let got = outputs.get(&name).ok_or_else(|| format!("there is no output `{name}`"))?;
            compare(&name, &golden.shape, got, &golden.values, Tier::Model, Precision::F32)?;
            let furthest = measure(got, &golden.values, Tier::Model, Precision::F32).largest();
            println!("{}: {furthest:.1e} in {name}", case.name);
        }
        Ok(())
    });
}
