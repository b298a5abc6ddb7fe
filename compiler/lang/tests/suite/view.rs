//! Drawings.

use xfc_lang::passes::{Options, run as run_passes};
use xfc_lang::view::dot;

use crate::support::{DENSE, program};

#[test]
fn a_fused_program_is_drawn() {
    let mut program = program(DENSE);
    run_passes(&mut program, &mut Options::default()).unwrap();
    let all = dot(&program, &[0, 1]);
    let body = dot(&program, &[1]);
    assert!(all.contains(&body[body.find("subgraph").unwrap()..]));
    insta::assert_snapshot!(body);
}
