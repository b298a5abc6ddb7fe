//! Shuffles, votes, reductions, barriers with results; bank conflicts and sectors.

use crate::harness::{kernel, run, words};

fn lanes(body: &str) -> Vec<u32> {
    let store = "mul.wide.u32 %slot, %t, 4;\nadd.s64 %slot, %slot, %out;\nst.global.b32 [%slot], %r0;\n";
    words(&run(&kernel(&format!("{body}\n{store}")), 32, &[], 128).unwrap_or_else(|f| panic!("{f}")).out)
}

#[test]
fn shuffles() {
    let each = |f: fn(u32) -> u32| (0..32).map(f).collect::<Vec<_>>();
    assert_eq!(lanes("shfl.sync.bfly.b32 %r0, %t, 5, 31, -1;"), each(|t| t ^ 5));
    assert_eq!(lanes("shfl.sync.up.b32 %r0, %t, 3, 0, -1;"), each(|t| if t >= 3 { t - 3 } else { t }));
    assert_eq!(lanes("shfl.sync.down.b32 %r0, %t, 3, 31, -1;"), each(|t| if t + 3 < 32 { t + 3 } else { t }));
    assert_eq!(lanes("shfl.sync.idx.b32 %r0, %t, 9, 31, -1;"), each(|_| 9));
    // Segments of eight lanes: the mask is 24, in bits 8 to 12.
    assert_eq!(lanes("shfl.sync.idx.b32 %r0, %t, 2, 0x181f, -1;"), each(|t| t / 8 * 8 + 2));
    assert_eq!(lanes("shfl.sync.down.b32 %r0, %t, 3, 0x181f, -1;"), each(|t| if t % 8 + 3 < 8 { t + 3 } else { t }));
    assert_eq!(
        lanes("shfl.sync.up.b32 %r1|%p0, %t, 1, 0x1800, -1; selp.u32 %r0, 1, 0, %p0;"),
        each(|t| u32::from(t % 8 != 0))
    );
}

#[test]
fn votes_and_reductions() {
    let third = "rem.u32 %r1, %t, 3; setp.eq.u32 %p0, %r1, 0;";
    let ballot = (0..32).filter(|t| t % 3 == 0).fold(0u32, |m, t| m | 1 << t);
    assert_eq!(lanes(&format!("{third} vote.sync.ballot.b32 %r0, %p0, -1;")), vec![ballot; 32]);
    assert_eq!(lanes(&format!("{third} vote.sync.ballot.b32 %r0, !%p0, -1;")), vec![!ballot; 32]);
    assert_eq!(lanes(&format!("{third} vote.sync.any.pred %p1, %p0, -1; selp.u32 %r0, 1, 0, %p1;")), vec![1; 32]);
    assert_eq!(lanes(&format!("{third} vote.sync.all.pred %p1, %p0, -1; selp.u32 %r0, 1, 0, %p1;")), vec![0; 32]);
    assert_eq!(lanes("redux.sync.add.u32 %r0, %t, -1;"), vec![496; 32]);
    assert_eq!(lanes("sub.u32 %r1, %t, 5; redux.sync.min.s32 %r0, %r1, -1;"), vec![-5i32 as u32; 32]);
    assert_eq!(lanes("and.b32 %r1, %t, 1; match.any.sync.b32 %r0, %r1, -1;")[..2], [0x5555_5555, 0xaaaa_aaaa]);
    assert_eq!(
        lanes("elect.sync %r1|%p0, -1; selp.u32 %r0, 1, 0, %p0;"),
        (0..32).map(|t| u32::from(t == 0)).collect::<Vec<_>>()
    );
    assert_eq!(
        lanes("setp.lt.u32 %p0, %t, 4; mov.u32 %r0, 0; @%p0 bra A; bra B; A: activemask.b32 %r0; B:")[..5],
        [15, 15, 15, 15, 0]
    );
}

#[test]
fn barriers_reduce() {
    let body = "setp.lt.u32 %p0, %t, 40;
barrier.cta.red.popc.aligned.u32 %r0, 0, %p0;
bar.red.and.pred %p1, 0, %p0;
bar.red.or.pred %p2, 1, 64, %p0;
selp.u32 %r1, 100, 0, %p1;
selp.u32 %r2, 1000, 0, %p2;
add.u32 %r0, %r0, %r1;
add.u32 %r0, %r0, %r2;
mul.wide.u32 %slot, %t, 4;
add.s64 %slot, %slot, %out;
st.global.b32 [%slot], %r0;";
    let done = run(&kernel(body), 64, &[], 256).unwrap_or_else(|f| panic!("{f}"));
    assert_eq!(words(&done.out), vec![1040; 64]);
}

#[test]
fn a_block_has_sixteen_barriers() {
    assert!(run(&kernel("bar.sync 15;\nbarrier.cluster.arrive;\nbarrier.cluster.wait;"), 64, &[], 4).is_ok());
    for number in [16, 17, u32::MAX] {
        let fault = run(&kernel(&format!("mov.u32 %r0, {number};\nbarrier.sync %r0;")), 64, &[], 4).err();
        let kind = fault.map(|fault| fault.kind.to_string());
        assert_eq!(kind, Some(format!("there is no barrier {number}")));
    }
}

#[test]
fn atomics_count() {
    let body = "red.global.add.u32 [%out], %t;
atom.global.max.s32 %r0, [%out+4], %t;
atom.global.cas.b32 %r1, [%out+8], 0, %t;
atom.add.f32 %f0, [%out+12], 0f3F000000;
atom.global.inc.u32 %r2, [%out+16], 9;";
    let out = words(&run(&kernel(body), 64, &[], 20).unwrap_or_else(|f| panic!("{f}")).out);
    assert_eq!(out, [64 * 63 / 2, 63, 1, 32f32.to_bits(), 4]);
}

#[test]
fn conflicts_and_sectors_are_counted() {
    let body = ".shared .align 16 .b8 s[8192];
mov.u32 %r20, s;
mad.lo.u32 %r1, %t, 128, %r20;
st.shared.u32 [%r1], %t;
mad.lo.u32 %r1, %t, 132, %r20;
ld.shared.u32 %r2, [%r20];
st.shared.u8 [%r1+3], %t;
mul.wide.u32 %slot, %t, 64;
add.s64 %slot, %slot, %in;
ld.global.u32 %r3, [%slot];
mad.lo.u32 %r1, %t, 4, 0;
cvt.u64.u32 %slot, %r1;
add.s64 %slot, %slot, %in;
ld.global.u32 %r3, [%slot];";
    let body = body.replace("ld.shared.u32 %r2, [%r20];\n", "");
    let done = run(&kernel(&body), 32, &[0; 2048], 4).unwrap_or_else(|f| panic!("{f}"));
    let ways: Vec<u32> = done.stats.bank_conflicts().map(|(_, ways)| ways).collect();
    assert_eq!(ways, [32]);
    let sectors: Vec<_> =
        done.stats.lines.values().filter(|l| l.sectors > 0).map(|l| (l.sectors, l.least_sectors)).collect();
    assert_eq!(sectors, [(32, 4), (4, 4)]);
    assert_eq!(done.stats.global_read_bytes, 256);
}
