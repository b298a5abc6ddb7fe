//! `setmaxnreg`: what teams of four warps may give back and take, and when.

use xfc_emulator::{FaultKind, Module};

use crate::harness::{HEADER, kernel, run};

/// A block of three teams whose threads begin with 168 registers: the first two take what the third gives back, and return it.
const TEAMS: &str = "setp.ge.u32 %p0, %t, 256;
@%p0 bra BRING;
setmaxnreg.inc.sync.aligned.u32 224;
bar.sync 0;
setmaxnreg.dec.sync.aligned.u32 168;
bra DONE;
BRING:
setmaxnreg.dec.sync.aligned.u32 56;
bar.sync 0;
setmaxnreg.inc.sync.aligned.u32 168;
DONE:
";

fn text(directives: &str, body: &str) -> String {
    kernel(body).replacen(")\n{", &format!(")\n{directives}\n{{"), 1)
}

fn of(directives: &str, body: &str, threads: u32) -> Option<FaultKind> {
    run(&text(directives, body), threads, &[0; 16], 16).err().map(|fault| fault.kind)
}

#[track_caller]
fn fine(directives: &str, body: &str, threads: u32) {
    assert_eq!(of(directives, body, threads), None, "{directives} {body}");
}

#[track_caller]
fn wrong(directives: &str, body: &str, threads: u32, what: &str) {
    match of(directives, body, threads) {
        Some(kind) => assert!(kind.to_string().contains(what), "{kind}"),
        None => panic!("no fault: {what}"),
    }
}

const BLOCK: &str = ".reqntid 384, 1, 1\n.minnctapersm 1";

#[test]
fn what_is_given_back_can_be_taken() {
    fine(BLOCK, TEAMS, 384);
    fine(".maxntid 384\n.minnctapersm 1", TEAMS, 384);
    fine(".reqntid 384\n.maxnreg 168", TEAMS, 384);
    // One after another, behind a meeting of the team.
    let twice = "setmaxnreg.dec.sync.aligned.u32 64;\nbar.sync 0;\nsetmaxnreg.dec.sync.aligned.u32 40;\n";
    fine(".maxnreg 128", twice, 128);
}

#[test]
fn nobody_takes_what_is_not_there() {
    wrong(BLOCK, &TEAMS.replace("u32 224", "u32 232"), 384, "deadlock: ");
    wrong(BLOCK, &TEAMS.replace("u32 56", "u32 64"), 384, "more registers of each thread");
    // Two blocks beside each other have half.
    wrong(".reqntid 384\n.minnctapersm 2", TEAMS, 384, "for 144 more registers of each thread");
    wrong(BLOCK, "setmaxnreg.inc.sync.aligned.u32 176;", 384, "more registers of each thread");
    // All take before any gives back.
    let late = TEAMS.replace(
        "setmaxnreg.dec.sync.aligned.u32 56;\nbar.sync 0;",
        "bar.sync 0;\nsetmaxnreg.dec.sync.aligned.u32 56;\nbar.sync 0;",
    );
    wrong(BLOCK, &late, 384, "deadlock: ");
}

#[test]
fn more_is_more_and_less_is_less() {
    wrong(".maxnreg 128", "setmaxnreg.inc.sync.aligned.u32 120;", 128, "the warp has 128");
    wrong(".maxnreg 128", "setmaxnreg.dec.sync.aligned.u32 136;", 128, "the warp has 128");
    fine(".maxnreg 128", "setmaxnreg.dec.sync.aligned.u32 128;", 128);
    wrong("", "setmaxnreg.dec.sync.aligned.u32 128;", 128, "does not say with how many registers");
}

#[test]
fn teams_are_four_warps_that_do_the_same() {
    let give = "setmaxnreg.dec.sync.aligned.u32 64;\n";
    wrong(".maxnreg 128", give, 96, "four whole warps");
    wrong(".maxnreg 128", give, 160, "four whole warps");
    wrong(
        ".maxnreg 128",
        &format!("setp.lt.u32 %p0, %t, 96;\n@%p0 bra OVER;\n{give}OVER:\n"),
        128,
        "not all warps of a team",
    );
    let ways = format!("setp.lt.u32 %p0, %t, 96;\n@%p0 bra OVER;\n{give}bra DONE;\nOVER:\n{give}DONE:\n");
    wrong(".maxnreg 128", &ways, 128, "different setmaxnreg");
    // Within a warp lanes come together.
    wrong(".maxnreg 128", &format!("setp.eq.u32 %p0, %t, 0;\n@%p0 bra OVER;\n{give}OVER:\n"), 128, "participation");
    wrong(".maxnreg 128", &format!("{give}setmaxnreg.dec.sync.aligned.u32 40;\n"), 128, "have not met");
}

#[test]
fn numbers_are_multiples_of_eight() {
    for count in [16, 23, 60, 264, 0] {
        let text = format!("{HEADER}.entry k() {{\nsetmaxnreg.dec.sync.aligned.u32 {count};\nret;\n}}\n");
        let error = Module::parse(&text).err().map(|error| error.to_string()).unwrap_or_default();
        assert!(error.contains("multiple of 8 from 24 to 256"), "{count}: {error}");
    }
}
