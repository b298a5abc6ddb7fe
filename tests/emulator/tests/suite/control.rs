//! Branches, calls, scopes, variables, predication; and what the parser refuses.

use xfc_emulator::{Launch, Memory, Module, launch};

use crate::harness::{HEADER, bytes_of, kernel, kernel_with, run, run_grid, words};

const STORE: &str = "mul.wide.u32 %slot, %t, 4;\nadd.s64 %slot, %slot, %out;\nst.global.b32 [%slot], %r0;\n";

fn out(body: &str) -> Vec<u32> {
    words(&run(&kernel(&format!("{body}\n{STORE}")), 64, &[], 256).unwrap_or_else(|f| panic!("{f}")).out)
}

#[test]
fn loops_diverge_and_meet() {
    // Collatz steps of each thread's number.
    let body = "mov.u32 %r0, 0;
add.u32 %r1, %t, 1;
LOOP:
setp.eq.u32 %p0, %r1, 1;
@%p0 bra DONE;
and.b32 %r2, %r1, 1;
setp.eq.u32 %p1, %r2, 0;
@%p1 shr.u32 %r1, %r1, 1;
@!%p1 mad.lo.u32 %r1, %r1, 3, 1;
add.u32 %r0, %r0, 1;
bra.uni LOOP;
DONE:";
    let steps = |mut n: u32| {
        let mut steps = 0;
        while n != 1 {
            n = if n.is_multiple_of(2) { n / 2 } else { 3 * n + 1 };
            steps += 1;
        }
        steps
    };
    assert_eq!(out(body), (1..=64).map(steps).collect::<Vec<_>>());
}

#[test]
fn indexed_branches() {
    let body = "and.b32 %r1, %t, 3;
targets: .branchtargets A, B, A, C;
brx.idx %r1, targets;
A: mov.u32 %r0, 10; bra END;
B: mov.u32 %r0, 20; bra END;
C: mov.u32 %r0, 30;
END:";
    assert_eq!(out(body), (0..64).map(|t| [10, 20, 10, 30][t % 4]).collect::<Vec<_>>());
}

#[test]
fn scopes_hide_names() {
    let body = "mov.u32 %r0, 5;
{ .reg .b32 %r0; mov.u32 %r0, 7; L: add.u32 %r0, %r0, 1; setp.lt.u32 %p0, %r0, 10; @%p0 bra L; }
{ .reg .pred q; L: setp.ne.u32 q, %t, 0; @q add.u32 %r0, %r0, 1; }";
    assert_eq!(out(body), (0..64).map(|t| if t == 0 { 5 } else { 6 }).collect::<Vec<_>>());
}

#[test]
fn functions_are_called() {
    let functions = ".visible .func (.param .b32 ret) twice(.param .b32 x)
{
.reg .b32 %r<3>; .reg .pred %p;
ld.param.b32 %r0, [x];
setp.gt.u32 %p, %r0, 40;
@%p bra BIG;
add.u32 %r1, %r0, %r0;
st.param.b32 [ret], %r1;
ret;
BIG:
mov.u32 %r1, 1;
st.param.b32 [ret], %r1;
ret;
}
.func (.param .b32 ret) four(.param .align 8 .b8 x[8])
{
.reg .b32 %r<3>;
ld.param.b32 %r0, [x+4];
{ .param .b32 a; .param .b32 b;
st.param.b32 [a], %r0;
call.uni (b), twice, (a);
ld.param.b32 %r1, [b]; }
{ .param .b32 a; .param .b32 b;
st.param.b32 [a+0], %r1;
call (b), twice, (a);
ld.param.b32 %r2, [b+0]; }
st.param.b32 [ret], %r2;
ret;
}";
    let body = format!(
        "{{ .param .align 8 .b8 p[8]; .param .b32 q;
st.param.v2.b32 [p], {{%t, %t}};
call (q), four, (p);
ld.param.b32 %r0, [q]; }}\n{STORE}"
    );
    let done = run(&kernel_with(functions, &body), 64, &[], 256).unwrap_or_else(|f| panic!("{f}"));
    let twice = |x: u32| if x > 40 { 1 } else { 2 * x };
    assert_eq!(words(&done.out), (0..64).map(|t| twice(twice(t))).collect::<Vec<_>>());
}

/// A function's shared variable is the same in all calls.
#[test]
fn functions_share_their_memory() {
    let function = ".func (.param .b32 ret) cell()
{
.reg .b32 %r;
.shared .align 4 .b32 hidden;
mov.b32 %r, hidden;
st.param.b32 [ret], %r;
ret;
}";
    let call = |to: &str| format!("{{ .param .b32 q; call.uni (q), cell; ld.param.b32 {to}, [q]; }}\n");
    let body = format!(
        "{}{}setp.eq.u32 %p0, %t, 0;\n@%p0 st.shared.u32 [%r1], 9;\nbar.sync 0;\nld.shared.u32 %r0, [%r2];\n{STORE}",
        call("%r1"),
        call("%r2")
    );
    let done = run(&kernel_with(function, &body), 64, &[], 256).unwrap_or_else(|f| panic!("{f}"));
    assert_eq!(words(&done.out), [9; 64]);
}

#[test]
fn variables_of_all_spaces() {
    let declarations = ".global .align 4 .b32 counter = 5;
.const .align 4 .u32 table[4] = {10, 11, 12, 13};
.global .align 8 .u64 pointers[2] = {table, table+8};
.extern .shared .align 16 .b8 dyn[];";
    let body = "
.local .align 8 .b8 depot[16];
.shared .align 4 .b32 cell;
mov.u64 %a0, depot;
cvta.local.u64 %a1, %a0;
st.u32 [%a1+4], %t;
ld.local.u32 %r1, [depot+4];
ld.global.u64 %a2, [pointers+8];
ld.u32 %r2, [%a2+4];
ld.const.u32 %r3, [table];
mov.u32 %r4, dyn;
mad.lo.u32 %r5, %t, 4, %r4;
st.shared.u32 [%r5], %r3;
ld.shared.u32 %r6, [%r5];
setp.eq.u32 %p0, %t, 0;
@%p0 st.shared.u32 [cell], 100;
bar.sync 0;
ld.shared.u32 %r7, [cell];
@%p0 atom.global.add.u32 %r8, [counter], 1;
add.u32 %r0, %r1, %r2;
add.u32 %r0, %r0, %r6;
add.u32 %r0, %r0, %r7;";
    let text = kernel_with(declarations, &format!("{body}\n{STORE}"));
    let done = run_grid(&text, [1, 1, 1], [64, 1, 1], 256, &[], 256).unwrap_or_else(|f| panic!("{f}"));
    assert_eq!(words(&done.out), (0..64).map(|t| t + 13 + 10 + 100).collect::<Vec<_>>());
}

#[test]
fn variables_keep_their_value_between_launches() {
    let text = kernel_with(
        ".visible .global .u32 counter = 5;",
        "setp.ne.u32 %p0, %t, 0; @%p0 ret; red.global.add.u32 [counter], 2;",
    );
    let module = Module::parse(&text).unwrap();
    let mut memory = Memory::new();
    for _ in 0..3 {
        launch(&module, "k", &mut memory, &Launch::new([2, 1, 1], [32, 1, 1], &[0; 16])).unwrap();
    }
    let at = module.variable("counter", &mut memory).unwrap();
    let mut value = [0; 4];
    memory.read(at, &mut value).unwrap();
    assert_eq!(u32::from_le_bytes(value), 5 + 3 * 2 * 2);
}

#[test]
fn special_registers() {
    let body = "mov.u32 %r1, %ctaid.y; mov.u32 %r2, %nctaid.x; mov.u32 %r3, %ctaid.x; mad.lo.u32 %r4, %r1, %r2, %r3;
mov.u32 %r5, %tid.y; mov.u32 %r6, %ntid.x; mad.lo.u32 %r7, %r5, %r6, %t;
mad.lo.u32 %r8, %r4, 24, %r7;
mul.wide.u32 %slot, %r8, 8; add.s64 %slot, %slot, %out;
mov.u32 %r9, %laneid; mov.u32 %r10, %lanemask_lt; st.global.v2.u32 [%slot], {%r9, %r10};";
    let done = run_grid(&kernel(body), [3, 2, 1], [8, 3, 1], 0, &[], 6 * 24 * 8).unwrap_or_else(|f| panic!("{f}"));
    for (index, pair) in words(&done.out).chunks(2).enumerate() {
        let lane = index as u32 % 24;
        assert_eq!(pair, [lane, (1 << lane) - 1]);
    }
}

#[test]
fn blocks_may_wait_for_each_other() {
    // Block 0 waits for a flag that block 1 sets.
    let body = "mov.u32 %r1, %ctaid.x;
setp.eq.u32 %p0, %r1, 0;
@%p0 bra WAIT;
st.global.release.gpu.u32 [%out], 7;
ret;
WAIT:
ld.global.acquire.gpu.u32 %r2, [%out];
setp.eq.u32 %p1, %r2, 0;
@%p1 bra WAIT;
st.global.u32 [%out+4], %r2;";
    let text = kernel(body);
    let module = Module::parse(&text).unwrap();
    let mut memory = Memory::new();
    let out = memory.alloc(8, 8);
    let params = bytes_of(&[0, out], u64::to_le_bytes);
    let mut how = Launch::new([2, 1, 1], [1, 1, 1], &params);
    how.step_limit = 10_000_000;
    launch(&module, "k", &mut memory, &how).unwrap_or_else(|f| panic!("{f}"));
    let mut value = [0; 8];
    memory.read(out, &mut value).unwrap();
    assert_eq!(words(&value), [7, 7]);
}

#[test]
fn what_is_not_understood_is_refused_with_its_line() {
    for (body, message) in [
        ("frobnicate.u32 %r0;", "the instruction frobnicate is not supported"),
        ("add.weird.u32 %r0, %r1, %r2;", "the modifier .weird is not supported here"),
        ("add.u32 %r0, %r1;", "2 sources are expected, and 1 are given"),
        ("add.u32 %r0, %r1, %nothing;", "%nothing is not declared"),
        ("bra NOWHERE;", "there is no label NOWHERE"),
        ("mov.b64 %a0, %r1;", "a move of B64 between registers of 64 and 32 bits"),
        ("@%r1 ret;", "%r1 is not a predicate"),
        ("ld.global.v2.u32 %r0, [%in];", "2 elements are expected, and 1 are given"),
        ("call nobody, ();", "there is no function nobody"),
        ("wmma.load.a.sync %r1;", "the instruction wmma is not supported"),
    ] {
        let Err(error) = Module::parse(&kernel(&format!("\n{body}"))) else { panic!("accepted: {body}") };
        assert_eq!((error.message.as_str(), error.text.as_str()), (message, body));
    }
    let Err(error) = Module::parse(&format!("{HEADER}\n.entry k()\n{{\nadd.u32 %r1, %r1, 1;\n}}")) else { panic!() };
    assert_eq!(error.line, 7);
}
