//! Each kind of fault is found, and names its line and thread.

use xfc_emulator::{FaultKind, Launch, Memory, Module, launch};

use crate::harness::{fault, fault_kind, kernel, run, run_grid};

fn ok(body: &str, threads: u32) {
    run(&kernel(body), threads, &[0; 4096], 4096).unwrap_or_else(|f| panic!("{f}"));
}

const SHARED: &str = ".shared .align 16 .b8 s[1024];\nmov.u32 %r20, s;\nmad.lo.u32 %r21, %t, 4, %r20;\n";

#[test]
fn bounds_and_alignment() {
    let (kind, text) = fault_kind("ld.global.u32 %r0, [%in+4096];", 32);
    assert!(matches!(kind, FaultKind::OutOfBounds { space: "global", bytes: 4, .. }), "{kind}");
    assert_eq!(text, "ld.global.u32 %r0, [%in+4096];");
    let beyond = fault("mul.wide.u32 %slot, %t, 1024;\nadd.s64 %slot, %slot, %out;\nst.global.u32 [%slot], %t;", 8);
    assert_eq!(beyond.thread, Some([4, 0, 0]));
    assert!(matches!(fault_kind("ld.global.v2.u32 {%r0, %r1}, [%in+4];", 1).0, FaultKind::Misaligned { align: 8, .. }));
    assert!(matches!(
        fault_kind(&format!("{SHARED}st.shared.u32 [%r20+1024], %t;"), 1).0,
        FaultKind::OutOfBounds { space: "shared", .. }
    ));
    assert!(matches!(
        fault_kind(".local .align 4 .b8 l[16]; st.local.u32 [l+16], %t;", 1).0,
        FaultKind::OutOfBounds { space: "local", .. }
    ));
    assert!(matches!(fault_kind("ld.param.u32 %r0, [p_in+16];", 1).0, FaultKind::OutOfBounds { space: "param", .. }));
}

#[test]
fn constants_are_read_only() {
    let text = crate::harness::kernel_with(".const .u32 c = 1;", "mov.u64 %a0, c; st.u32 [%a0], %t;");
    let Err(fault) = run(&text, 1, &[], 0) else { panic!() };
    assert!(matches!(fault.kind, FaultKind::ReadOnly { .. }), "{fault}");
}

#[test]
fn unwritten_memory() {
    let (kind, _) = fault_kind(&format!("{SHARED}ld.shared.u32 %r0, [%r21];"), 32);
    assert!(matches!(kind, FaultKind::Unwritten { space: "shared", .. }), "{kind}");
    ok(&format!("{SHARED}st.shared.u32 [%r21], %t;\nld.shared.u32 %r0, [%r21];"), 32);
}

#[test]
fn races_between_warps() {
    let write = format!("{SHARED}st.shared.u32 [%r21], %t;\n");
    let read_other = "xor.b32 %r1, %r21, 128;\nld.shared.u32 %r0, [%r1];\n";
    let (kind, text) = fault_kind(&format!("{write}bar.warp.sync -1;\n{read_other}"), 64);
    // The second warp has not run yet, or has: unwritten or a race, both are found at the read.
    assert!(matches!(kind, FaultKind::Race { .. } | FaultKind::Unwritten { .. }), "{kind}");
    assert_eq!(text, "ld.shared.u32 %r0, [%r1];");
    ok(&format!("{write}bar.sync 0;\n{read_other}"), 64);
    // A write after a read, without a barrier.
    let again = "st.shared.u32 [%r21], 1;\n";
    let (kind, _) = fault_kind(&format!("{write}bar.sync 0;\n{read_other}{again}"), 64);
    let FaultKind::Race { what, .. } = kind else { panic!("{kind}") };
    assert!(what.contains("read"), "{what}");
    ok(&format!("{write}bar.sync 0;\n{read_other}bar.sync 0;\n{again}"), 64);
    // Two warps write the same bytes.
    let (kind, _) = fault_kind(
        &format!("{SHARED}and.b32 %r1, %t, 31;\nmad.lo.u32 %r1, %r1, 4, %r20;\nst.shared.u32 [%r1], %t;"),
        64,
    );
    assert!(matches!(kind, FaultKind::Race { .. }), "{kind}");
}

#[test]
fn races_within_a_warp() {
    let write = format!("{SHARED}st.shared.u32 [%r21], %t;\n");
    let read_other = "xor.b32 %r1, %r21, 4;\nld.shared.u32 %r0, [%r1];\n";
    assert!(matches!(fault_kind(&format!("{write}{read_other}"), 32).0, FaultKind::Race { .. }));
    ok(&format!("{write}bar.warp.sync 0xffffffff;\n{read_other}"), 32);
    ok(&format!("{write}shfl.sync.bfly.b32 %r9, %t, 1, 31, -1;\n{read_other}"), 32);
    // Lanes that write one byte at once must agree.
    assert!(matches!(fault_kind(&format!("{SHARED}st.shared.u32 [%r20], %t;"), 32).0, FaultKind::Race { .. }));
    ok(&format!("{SHARED}st.shared.u32 [%r20], 7;"), 32);
    let equal = kernel(&format!("{SHARED}st.shared.u32 [%r20], 7;"));
    let params = [0; 16];
    let mut how = Launch::new([1, 1, 1], [32, 1, 1], &params);
    how.strict_stores = true;
    let module = Module::parse(&equal).unwrap();
    let Err(fault) = launch(&module, "k", &mut Memory::new(), &how) else { panic!() };
    assert!(matches!(fault.kind, FaultKind::Race { .. }), "{fault}");
    // Bytes side by side are apart.
    ok(
        &format!(
            "{SHARED}add.u32 %r1, %r20, %t;\nst.shared.u8 [%r1], %t;\nld.shared.u8 %r2, [%r1];\nst.shared.u8 [%r1], %r2;"
        ),
        32,
    );
}

#[test]
fn races_on_global_memory() {
    let own = "mul.wide.u32 %a0, %t, 4;\nadd.s64 %a1, %out, %a0;\nadd.u32 %r1, %t, 1;\nst.global.u32 [%a1], %r1;\n";
    let other = |by: u32| {
        format!("xor.b32 %r2, %t, {by};\nmul.wide.u32 %a2, %r2, 4;\nadd.s64 %a2, %a2, %out;\nld.global.u32 %r3, [%a2];")
    };
    let found = |body: &str, blocks: u32| {
        let done = run_grid(&kernel(body), [blocks, 1, 1], [64, 1, 1], 0, &[0; 4096], 4096);
        done.err().map(|fault| fault.kind)
    };
    for by in [32, 1] {
        let race = found(&format!("{own}{}", other(by)), 1);
        assert!(matches!(race, Some(FaultKind::GlobalRace { .. })), "{by}: {race:?}");
        assert_eq!(found(&format!("{own}bar.sync 0;\n{}", other(by)), 1), None, "{by}");
    }
    assert_eq!(found(&format!("{own}bar.warp.sync -1;\n{}", other(1)), 1), None);
    // Two threads write one place.
    assert!(matches!(found("st.global.u32 [%out], %t;", 1), Some(FaultKind::GlobalRace { .. })));
    // Nothing orders blocks: both write, or one reads what the other writes, in either order.
    let block = "mov.u32 %r4, %ctaid.x;\nadd.u32 %r5, %r4, 1;\n";
    assert!(matches!(found(&format!("{block}st.global.u32 [%out], %r5;"), 2), Some(FaultKind::GlobalRace { .. })));
    let apart = format!("{block}mul.wide.u32 %a3, %r4, 4;\nadd.s64 %a3, %a3, %out;\n");
    let write = "setp.ne.u32 %p0, %t, 0;\n@!%p0 st.global.u32 [%a3], %r5;\n";
    assert_eq!(found(&format!("{apart}{write}"), 2), None);
    for there in ["ld.global.u32 %r6, [%out];\n", "ld.global.u32 %r6, [%out+4];\n"] {
        let race = found(&format!("{apart}{write}bar.sync 0;\n{there}"), 2);
        assert!(matches!(race, Some(FaultKind::GlobalRace { .. })), "{there}: {race:?}");
    }
    // What is there already may be written again; and threads that speak to each other are left alone.
    assert_eq!(found("st.global.u32 [%out], 0;", 2), None);
    assert_eq!(found(&format!("{block}st.relaxed.gpu.global.u32 [%out], %r5;"), 2), None);
}

#[test]
fn atomics_do_not_race_with_each_other() {
    let clear = format!("{SHARED}st.shared.u32 [%r21], 0;\nbar.sync 0;\n");
    ok(&format!("{clear}atom.shared.add.u32 %r0, [%r20], 1;\nbar.sync 0;\nld.shared.u32 %r1, [%r20];"), 64);
    let (kind, _) = fault_kind(&format!("{clear}atom.shared.add.u32 %r0, [%r20], 1;\nld.shared.u32 %r1, [%r20];"), 64);
    assert!(matches!(kind, FaultKind::Race { .. }), "{kind}");
}

#[test]
fn named_barriers_order_those_that_meet() {
    // Warps 0 and 1 meet at barrier 1; warp 2 does not and races.
    let body = |reader: u32| {
        format!(
            "{SHARED}shr.u32 %r1, %t, 5;
setp.eq.u32 %p0, %r1, 0;
setp.eq.u32 %p1, %r1, {reader};
setp.lt.u32 %p2, %r1, 2;
@%p0 st.shared.u32 [%r21], %t;
@%p2 bar.sync 1, 64;
and.b32 %r2, %r21, 0xffffff7f;
@%p1 ld.shared.u32 %r3, [%r2];"
        )
    };
    ok(&body(1), 96);
    let base = "and.b32 %r2, %r21, 0xffffff7f;";
    let body2 = body(2).replace(base, "sub.u32 %r2, %r21, 256;");
    assert!(matches!(fault_kind(&body2, 96).0, FaultKind::Race { .. } | FaultKind::Unwritten { .. }));
    // A producer arrives, a consumer waits.
    ok(
        &format!(
            "{SHARED}setp.lt.u32 %p0, %t, 32;
@!%p0 bra CONSUME;
st.shared.u32 [%r21], %t;
bar.arrive 2, 64;
ret;
CONSUME:
bar.sync 2, 64;
ld.shared.u32 %r0, [%r21+-128];"
        ),
        64,
    );
}

#[test]
fn barriers_that_not_all_reach() {
    let fault = fault("setp.lt.u32 %p0, %t, 32;\n@%p0 bar.sync 1, 64;\n@!%p0 bar.sync 2, 64;", 64);
    let FaultKind::Deadlock(what) = &fault.kind else { panic!("{fault}") };
    assert!(what.contains("32 threads from 0 to 31") && what.contains("barrier 1 (32 of 64 arrived)"), "{what}");
    // Half of a warp at one barrier, half at another.
    let (kind, text) = fault_kind("setp.lt.u32 %p0, %t, 16;\n@%p0 bra A;\nbar.sync 0;\nret;\nA: bar.sync 1;", 32);
    assert!(matches!(kind, FaultKind::Participation(_)), "{kind}");
    assert!(text.contains("bar.sync"), "{text}");
    // Those that ended are not waited for, even if they end while others wait.
    ok(
        "setp.ge.u32 %p0, %t, 16;
@%p0 bra SLOW;
BAR: bar.sync 0;
ret;
SLOW: setp.lt.u32 %p1, %t, 20;
@%p1 ret;
bra BAR;",
        64,
    );
    ok("setp.lt.u32 %p0, %t, 40;\n@%p0 ret;\nbar.sync 0;", 96);
}

#[test]
fn shuffles_that_lanes_miss() {
    let (kind, _) = fault_kind("setp.lt.u32 %p0, %t, 16;\n@%p0 shfl.sync.idx.b32 %r0, %t, 0, 31, -1;\nbar.sync 0;", 32);
    assert!(matches!(kind, FaultKind::Participation(_)), "{kind}");
    let (kind, _) = fault_kind("shfl.sync.idx.b32 %r0, %t, 0, 31, 0xffff;", 32);
    assert!(matches!(kind, FaultKind::Participation(_)), "{kind}");
    ok("setp.lt.u32 %p0, %t, 16;\n@%p0 shfl.sync.idx.b32 %r0, %t, 0, 31, 0xffff;", 32);
}

#[test]
fn traps_and_endless_loops() {
    let trapped = fault("setp.eq.u32 %p0, %t, 5;\n@%p0 trap;", 32);
    assert_eq!((trapped.kind.clone(), trapped.thread), (FaultKind::Trap, Some([5, 0, 0])));
    assert!(trapped.to_string().starts_with("kernel k, block (0, 0, 0), thread (5, 0, 0), line "), "{trapped}");
    assert!(matches!(fault("L: bra L;", 32).kind, FaultKind::Steps(_)));
}

#[test]
fn what_is_written_is_not_read_as_read_only() {
    ok("ld.global.nc.u32 %r0, [%in];\nst.global.u32 [%out], %r0;", 32);
    let (kind, _) = fault_kind("st.global.u32 [%out], 1;\nbar.sync 0;\nld.global.nc.u32 %r0, [%out];", 32);
    assert!(kind.to_string().contains("while the kernel runs"), "{kind}");
}

#[test]
fn shared_memory_is_what_all_have_that_run_the_code() {
    let mut memory = Memory::new();
    let mut runs = |target: &str, bytes: u32| {
        let text = kernel("").replace("sm_90a", target);
        let params = [0; 16];
        let how = Launch::new([1, 1, 1], [32, 1, 1], &params).with_shared(bytes);
        launch(&Module::parse(&text).unwrap(), "k", &mut memory, &how).is_ok()
    };
    for (target, most) in [("sm_80", 99 << 10), ("sm_90a", 227 << 10), ("sm_100", 99 << 10), ("sm_100a", 227 << 10)] {
        assert!(runs(target, most) && !runs(target, most + 16), "{target}");
    }
}

#[test]
fn launches_that_cannot_be() {
    let module = Module::parse(&kernel(".shared .b8 s[200000];\nmov.u32 %r0, s;")).unwrap();
    let mut memory = Memory::new();
    let mut refuse = |how: Launch<'_>| match launch(&module, "k", &mut memory, &how) {
        Err(fault) => match fault.kind {
            FaultKind::Launch(what) => what,
            other => panic!("{other}"),
        },
        Ok(_) => panic!("launched"),
    };
    let params = [0; 16];
    assert!(refuse(Launch::new([1, 1, 1], [32, 1, 1], &params).with_shared(64000)).contains("shared memory"));
    assert!(refuse(Launch::new([1, 1, 1], [32, 1, 1], &params[..8])).contains("16 bytes"));
    assert!(refuse(Launch::new([1, 1, 1], [1025, 1, 1], &params)).contains("threads"));
    assert!(refuse(Launch::new([0, 1, 1], [32, 1, 1], &params)).contains("grid"));
    let mut cluster = Launch::new([2, 1, 1], [32, 1, 1], &params);
    cluster.cluster = [2, 1, 1];
    assert!(refuse(cluster).contains("clusters"));
}
