//! Every pass keeps what a program means, and the pipeline ends in the fused form.

use xfc_lang::graph::Program;
use xfc_lang::passes::{Moment, Options, check_fused, run as run_passes};

use crate::support::{DENSE, ENCODER, difference, program, run};

/// Steps of one sequence that every fixture can take.
const STEPS: [&[usize]; 3] = [&[9], &[1], &[4, 1, 3]];

/// Runs the pipeline and compares the meaning after each pass with the meaning before all.
pub(crate) fn fuse_checked(program: &mut Program, steps: &[&[usize]]) {
    let meaning: Vec<_> = steps.iter().map(|s| run(program, s, 7)).collect();
    let mut dump = |event: xfc_lang::passes::Event<'_>| {
        if event.moment == Moment::After {
            for (steps, meaning) in steps.iter().zip(&meaning) {
                let d = difference(meaning, &run(event.program, steps, 7));
                assert!(d < 1e-9, "{} changes results by {d}\n{}", event.pass, event.program);
            }
        }
    };
    let mut options = Options { dump: Some(&mut dump), ..Options::default() };
    run_passes(program, &mut options).unwrap_or_else(|e| panic!("{e}\n{program}"));
    check_fused(program).unwrap();
}

#[test]
fn a_decoder_is_fused() {
    let mut program = program(DENSE);
    fuse_checked(&mut program, &STEPS);
    insta::assert_snapshot!(program.to_string());
}

#[test]
fn an_encoder_is_fused() {
    let mut program = program(ENCODER);
    fuse_checked(&mut program, &STEPS[..2]);
    insta::assert_snapshot!(program.to_string());
}
