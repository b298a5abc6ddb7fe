//! Blocks that tell each other what they wrote, by atomics between fences.

use xfc_emulator::FaultKind;

use crate::harness::{kernel, run_grid, words};

/// Each block leaves its number in `out[1 + block]` and counts itself in `out[0]`; the last one adds up what all left, in `out[9]`.
const LAST: &str = "mov.u32 %r0, %ctaid.x;
mad.wide.u32 %a0, %r0, 4, %out;
setp.eq.u32 %p0, %t, 1;
add.u32 %r1, %r0, 100;
@%p0 st.global.u32 [%a0+4], %r1;
bar.sync 0;
.shared .align 4 .b8 found[4];
mov.u32 %r20, found;
setp.ne.u32 %p1, %t, 0;
@%p1 bra MET;
fence.acq_rel.gpu;
atom.relaxed.gpu.global.inc.u32 %r2, [%out], 7;
fence.acq_rel.gpu;
st.shared.u32 [%r20], %r2;
MET:
bar.sync 0;
ld.shared.u32 %r3, [%r20];
setp.ne.u32 %p2, %r3, 7;
@%p2 ret;
setp.ne.u32 %p3, %t, 40;
@%p3 ret;
mov.u32 %r4, 0;
mov.u32 %r5, 0;
mov.u64 %a1, %out;
ADD:
ld.global.u32 %r6, [%a1+4];
add.u32 %r4, %r4, %r6;
add.u64 %a1, %a1, 4;
add.u32 %r5, %r5, 1;
setp.lt.u32 %p4, %r5, 8;
@%p4 bra ADD;
st.global.u32 [%out+36], %r4;";

fn found(body: &str) -> Result<Vec<u32>, FaultKind> {
    let done = run_grid(&kernel(body), [8, 1, 1], [64, 1, 1], 0, &[0; 4], 40).map_err(|fault| fault.kind)?;
    Ok(words(&done.out))
}

#[test]
fn the_last_block_sees_what_others_left() {
    let out = found(LAST).unwrap_or_else(|kind| panic!("{kind}"));
    assert_eq!((out[0], out[9]), (0, 8 * 100 + 28));
    for (from, to) in [
        ("fence.acq_rel.gpu;", "membar.gl;"),
        ("fence.acq_rel.gpu;", "fence.sc.sys;"),
        ("fence.acq_rel.gpu;\natom.relaxed.gpu", "atom.acq_rel.gpu"),
    ] {
        let changed = LAST.replace(from, to);
        assert_ne!(changed, LAST);
        assert_eq!(found(&changed).unwrap_or_else(|kind| panic!("{to}: {kind}")), out);
    }
}

#[test]
fn without_a_fence_nothing_is_told() {
    let atomic = "atom.relaxed.gpu.global.inc.u32 %r2, [%out], 7;\n";
    for (from, to) in [
        // Before: what the block wrote may come later than its count.
        (format!("fence.acq_rel.gpu;\n{atomic}"), atomic.to_owned()),
        // Behind: what others wrote may have been read earlier than their counts.
        (format!("{atomic}fence.acq_rel.gpu;\n"), atomic.to_owned()),
        // Of a block alone.
        ("fence.acq_rel.gpu".to_owned(), "fence.acq_rel.cta".to_owned()),
        ("fence.acq_rel.gpu".to_owned(), "membar.cta".to_owned()),
        ("relaxed.gpu".to_owned(), "relaxed.cta".to_owned()),
        // The one who fences and counts does not know of who wrote.
        ("bar.sync 0;\n.shared".to_owned(), ".shared".to_owned()),
        // Not what the others know of.
        ("MET:\nbar.sync 0;\n".to_owned(), "MET:\n".to_owned()),
    ] {
        let changed = LAST.replace(&from, &to);
        assert_ne!(changed, LAST, "{from}");
        let kind = found(&changed).err();
        let seen =
            matches!(kind, Some(FaultKind::GlobalRace { .. } | FaultKind::Race { .. } | FaultKind::Unwritten { .. }));
        assert!(seen, "{from}: {kind:?}");
    }
}

#[test]
fn others_see_changes_by_atomics_only_by_atomics() {
    for other in ["ld.global.u32 %r3, [%out];", "st.global.u32 [%out], %r1;"] {
        let kind = found(&LAST.replace("MET:", &format!("MET:\n{other}"))).err();
        assert!(matches!(kind, Some(FaultKind::GlobalRace { .. })), "{other}: {kind:?}");
    }
}
