//! `wgmma` on what a copy brings stage after stage, while mbarriers say which stages are full and which are empty.

use xfc_emulator::FaultKind;

use crate::groups::{BF16, Layout, Placed, place};
use crate::harness::{Random, kernel_with, run_grid, words};

/// Four steps through one stage: a thread of a fifth warp copies, four warps multiply, one thread of them says that the stage is empty.
fn pipeline(change: impl Fn(String) -> String) -> Result<(), FaultKind> {
    const STAGE: usize = 2048 + 256;
    let mut random = Random::new(12);
    let layout = Layout { width: 16, transposed: false };
    let steps: Vec<[Placed; 2]> =
        (0..4).map(|_| [place(&mut random, BF16, 64, 16, layout), place(&mut random, BF16, 8, 16, layout)]).collect();
    let input: Vec<u8> = steps.iter().flatten().flat_map(|p| p.image.iter().copied()).collect();
    assert_eq!(input.len(), 4 * STAGE);
    let body = format!(
        ".reg .b32 %acc<4>;
.reg .b64 %desc<2>;
.shared .align 128 .b8 s[{STAGE}];
.shared .align 8 .b64 full;
.shared .align 8 .b64 empty;
mov.u32 %r20, s;
mov.u32 %r10, full;
mov.u32 %r11, empty;
setp.eq.u32 %p0, %t, 128;
@%p0 mbarrier.init.shared.b64 [%r10], 1;
@%p0 mbarrier.init.shared.b64 [%r11], 1;
@%p0 fence.mbarrier_init.release.cluster;
bar.sync 0;
mov.u32 %r12, 0;
setp.lt.u32 %p2, %t, 128;
@%p2 bra CONSUMER;
@!%p0 ret;
PRODUCE:
and.b32 %r13, %r12, 1;
xor.b32 %r13, %r13, 1;
EMPTY:
mbarrier.try_wait.parity.shared.b64 %p1, [%r11], %r13;
@!%p1 bra EMPTY;
mbarrier.arrive.expect_tx.shared.b64 %a9, [%r10], {STAGE};
cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r20], [%in], {STAGE}, [%r10];
add.s64 %in, %in, {STAGE};
add.u32 %r12, %r12, 1;
setp.lt.u32 %p3, %r12, 4;
@%p3 bra PRODUCE;
ret;
CONSUMER:
cvt.u64.u32 %a0, %r20;
shr.u64 %a0, %a0, 4;
or.b64 %desc0, %a0, {:#x};
add.u64 %a0, %a0, 128;
or.b64 %desc1, %a0, {:#x};
setp.eq.u32 %p4, %t, 0;
CONSUME:
and.b32 %r13, %r12, 1;
FULL:
mbarrier.try_wait.parity.shared.b64 %p1, [%r10], %r13;
@!%p1 bra FULL;
setp.ne.u32 %p5, %r12, 0;
wgmma.fence.sync.aligned;
wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {{%acc0, %acc1, %acc2, %acc3}}, %desc0, %desc1, %p5, 1, 1, 0, 0;
wgmma.commit_group.sync.aligned;
wgmma.wait_group.sync.aligned 0;
@%p4 mbarrier.arrive.shared.b64 %a9, [%r11];
add.u32 %r12, %r12, 1;
setp.lt.u32 %p3, %r12, 4;
@%p3 bra CONSUME;
mul.wide.u32 %slot, %t, 16;
add.s64 %slot, %slot, %out;
st.global.v4.b32 [%slot], {{%acc0, %acc1, %acc2, %acc3}};",
        steps[0][0].descriptor, steps[0][1].descriptor
    );
    let done =
        run_grid(&kernel_with("", &change(body)), [1, 1, 1], [160, 1, 1], 0, &input, 2048).map_err(|f| f.kind)?;
    assert_sums(&steps, &done.out);
    Ok(())
}

#[test]
fn one_thread_speaks_for_four_warps() {
    assert_eq!(pipeline(|b| b), Ok(()));
    let (wait, arrive) = ("wgmma.wait_group.sync.aligned 0;\n", "@%p4 mbarrier.arrive.shared.b64 %a9, [%r11];\n");
    let early = pipeline(|b| b.replace(arrive, "").replace(wait, &format!("{arrive}{wait}")));
    let Err(kind) = early else { panic!("an early arrival is not found") };
    assert!(matches!(kind, FaultKind::Race { .. } | FaultKind::InFlight(_)), "{kind}");
    // Copies do not see a barrier that only threads know of.
    let unseen = pipeline(|b| b.replace("@%p0 fence.mbarrier_init.release.cluster;\n", ""));
    assert!(matches!(unseen, Err(FaultKind::Proxy { thread: 128, .. })), "{unseen:?}");
    // Who waits may be told that it took too long.
    let hasty = pipeline(|b| b.replace("@!%p1 bra FULL;\n", ""));
    let Err(kind) = hasty else { panic!("a wait that is tried once is not found") };
    assert!(!matches!(kind, FaultKind::Deadlock(_)), "{kind}");
}

/// What each thread wrote of its sums is that of the steps' products.
fn assert_sums(steps: &[[Placed; 2]], out: &[u8]) {
    for (at, got) in words(out).into_iter().enumerate() {
        let (thread, i) = (at / 4, at % 4);
        let (row, column) = (16 * (thread / 32) + thread % 32 / 4 + 8 * (i / 2), 2 * (thread % 4) + i % 2);
        let exact: f64 = steps
            .iter()
            .map(|[a, b]| (0..16).map(|k| a.values[row * 16 + k] * b.values[column * 16 + k]).sum::<f64>())
            .sum();
        assert!((f64::from(f32::from_bits(got)) - exact).abs() < 1e-5);
    }
}

/// Five steps through two stages, whose products go on while those of the step before are said to be done: a warp may be a step ahead of its neighbours.
fn overlapping(change: impl Fn(String) -> String) -> Result<(), FaultKind> {
    const STAGE: usize = 2048 + 256;
    let mut random = Random::new(13);
    let layout = Layout { width: 16, transposed: false };
    let steps: Vec<[Placed; 2]> =
        (0..5).map(|_| [place(&mut random, BF16, 64, 16, layout), place(&mut random, BF16, 8, 16, layout)]).collect();
    let input: Vec<u8> = steps.iter().flatten().flat_map(|p| p.image.iter().copied()).collect();
    let body = format!(
        ".reg .b32 %acc<4>;
.reg .b64 %desc<2>;
.shared .align 128 .b8 s[{}];
.shared .align 8 .b64 barriers[4];
mov.u32 %r20, s;
mov.u32 %r10, barriers;
setp.eq.u32 %p0, %t, 128;
@%p0 mbarrier.init.shared.b64 [%r10], 1;
@%p0 mbarrier.init.shared.b64 [%r10+8], 1;
@%p0 mbarrier.init.shared.b64 [%r10+16], 4;
@%p0 mbarrier.init.shared.b64 [%r10+24], 4;
@%p0 fence.mbarrier_init.release.cluster;
bar.sync 0;
mov.u32 %r12, 0;
setp.lt.u32 %p2, %t, 128;
@%p2 bra CONSUMER;
@!%p0 ret;
PRODUCE:
and.b32 %r14, %r12, 1;
shr.u32 %r13, %r12, 1;
and.b32 %r13, %r13, 1;
xor.b32 %r13, %r13, 1;
mad.lo.u32 %r11, %r14, 8, %r10;
mad.lo.u32 %r15, %r14, {STAGE}, %r20;
EMPTY:
mbarrier.try_wait.parity.shared.b64 %p1, [%r11+16], %r13;
@!%p1 bra EMPTY;
mbarrier.arrive.expect_tx.shared.b64 %a9, [%r11], {STAGE};
cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r15], [%in], {STAGE}, [%r11];
add.s64 %in, %in, {STAGE};
add.u32 %r12, %r12, 1;
setp.lt.u32 %p3, %r12, 5;
@%p3 bra PRODUCE;
ret;
CONSUMER:
and.b32 %r16, %t, 31;
setp.eq.u32 %p4, %r16, 0;
mov.b32 %acc0, 0;
mov.b32 %acc1, 0;
mov.b32 %acc2, 0;
mov.b32 %acc3, 0;
CONSUME:
and.b32 %r14, %r12, 1;
shr.u32 %r13, %r12, 1;
and.b32 %r13, %r13, 1;
mad.lo.u32 %r11, %r14, 8, %r10;
mad.lo.u32 %r15, %r14, {STAGE}, %r20;
FULL:
mbarrier.try_wait.parity.shared.b64 %p1, [%r11], %r13;
@!%p1 bra FULL;
cvt.u64.u32 %a0, %r15;
shr.u64 %a0, %a0, 4;
or.b64 %desc0, %a0, {:#x};
add.u64 %a0, %a0, 128;
or.b64 %desc1, %a0, {:#x};
setp.eq.u32 %p5, 0, 0;
wgmma.fence.sync.aligned;
wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {{%acc0, %acc1, %acc2, %acc3}}, %desc0, %desc1, %p5, 1, 1, 0, 0;
wgmma.commit_group.sync.aligned;
wgmma.wait_group.sync.aligned 1;
xor.b32 %r14, %r14, 1;
mad.lo.u32 %r11, %r14, 8, %r10;
setp.ne.and.u32 %p5, %r12, 0, %p4;
@%p5 mbarrier.arrive.shared.b64 %a9, [%r11+16];
add.u32 %r12, %r12, 1;
setp.lt.u32 %p3, %r12, 5;
@%p3 bra CONSUME;
wgmma.wait_group.sync.aligned 0;
mul.wide.u32 %slot, %t, 16;
add.s64 %slot, %slot, %out;
st.global.v4.b32 [%slot], {{%acc0, %acc1, %acc2, %acc3}};",
        2 * STAGE,
        steps[0][0].descriptor,
        steps[0][1].descriptor
    );
    let done =
        run_grid(&kernel_with("", &change(body)), [1, 1, 1], [160, 1, 1], 0, &input, 2048).map_err(|f| f.kind)?;
    assert_sums(&steps, &done.out);
    Ok(())
}

#[test]
fn a_step_is_done_while_the_next_goes_on() {
    assert_eq!(overlapping(|b| b), Ok(()));
    // A lane that arrives by itself waits for the others at the next fence, or in the end at the wait.
    let alone = "@!%p5 bra APART;\nmbarrier.arrive.shared.b64 %a9, [%r11+16];\nAPART:\n";
    assert_eq!(overlapping(|b| b.replace("@%p5 mbarrier.arrive.shared.b64 %a9, [%r11+16];\n", alone)), Ok(()));
    let parted = "wgmma.wait_group.sync.aligned 0;\n@%p4 bra FIRST;\nmov.u32 %r0, 1;\nFIRST:\nwgmma.wait_group.sync.aligned 0;\n";
    assert_eq!(overlapping(|b| b.replace("wgmma.wait_group.sync.aligned 0;\n", parted)), Ok(()));
    let parted = "@%p4 bra FIRST;\nmov.u32 %r0, 1;\nFIRST:\nwgmma.wait_group.sync.aligned 0;\n";
    assert_eq!(overlapping(|b| b.replace("wgmma.wait_group.sync.aligned 0;\n", parted)), Ok(()));
    // Of the step itself nothing is known yet.
    let early = overlapping(|b| {
        b.replace("xor.b32 %r14, %r14, 1;\n", "")
            .replace("setp.ne.and.u32 %p5, %r12, 0, %p4;\n", "mov.pred %p5, %p4;\n")
    });
    let Err(kind) = early else { panic!("an early arrival is not found") };
    assert!(matches!(kind, FaultKind::Race { .. } | FaultKind::InFlight(_)), "{kind}");
    // One warp that is done says nothing of the others.
    let alone = overlapping(|b| {
        b.replace("+24], 4", "+24], 1")
            .replace("+16], 4", "+16], 1")
            .replace("setp.eq.u32 %p4, %r16, 0", "setp.eq.u32 %p4, %t, 0")
            .replace("group.sync.aligned 1", "group.sync.aligned 2")
    });
    let Err(kind) = alone else { panic!("an arrival without a wait is not found") };
    assert!(matches!(kind, FaultKind::Race { .. } | FaultKind::InFlight(_)), "{kind}");
}
