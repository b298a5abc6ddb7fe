//! `ldmatrix`, `stmatrix`, `movmatrix` against plain copies of tiles.

use xfc_emulator::FaultKind;

use crate::harness::{Random, bytes_of, fault_kind, kernel, run};

/// 256 threads' worth of shared memory, filled from the input by 32 lanes; rows of 16 bytes.
const FILL: &str = ".shared .align 16 .b8 s[512];
mov.u32 %r20, s;
mad.lo.u32 %r21, %t, 16, %r20;
mul.wide.u32 %slot, %t, 16;
add.s64 %slot, %slot, %in;
ld.global.v4.b32 {%r0, %r1, %r2, %r3}, [%slot];
st.shared.v4.b32 [%r21], {%r0, %r1, %r2, %r3};
bar.warp.sync -1;
";
const STORE: &str = "mul.wide.u32 %slot, %t, 16;
add.s64 %slot, %slot, %out;
st.global.v4.b32 [%slot], {%r0, %r1, %r2, %r3};
";

fn halves(bytes: &[u8]) -> Vec<u16> {
    bytes.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]])).collect()
}

/// Four matrices, as rows of eight.
fn tiles() -> Vec<u16> {
    let mut random = Random::new(4);
    (0..256).map(|_| random.next() as u16).collect()
}

/// Element `i` (0 or 1) of a lane in matrix `m`, as PTX ISA draws it: row `lane / 4`, columns `2 (lane % 4)` and the next.
fn element(tiles: &[u16], m: usize, lane: usize, i: usize, transposed: bool) -> u16 {
    let (row, column) = (lane / 4, lane % 4 * 2 + i);
    if transposed { tiles[m * 64 + column * 8 + row] } else { tiles[m * 64 + row * 8 + column] }
}

#[test]
fn loads() {
    let tiles = tiles();
    let input = bytes_of(&tiles, u16::to_le_bytes);
    for (count, registers) in [(1, "{%r0}"), (2, "{%r0, %r1}"), (4, "{%r0, %r1, %r2, %r3}")] {
        for transposed in [false, true] {
            let trans = if transposed { ".trans" } else { "" };
            let body =
                format!("{FILL}ldmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16 {registers}, [%r21];\n{STORE}");
            let done = run(&kernel(&body), 32, &input, 512).unwrap_or_else(|f| panic!("{f}"));
            let got = halves(&done.out);
            for lane in 0..32 {
                for m in 0..count {
                    for i in 0..2 {
                        let want = element(&tiles, m, lane, i, transposed);
                        assert_eq!(got[lane * 8 + 2 * m + i], want, "x{count}{trans} lane {lane} matrix {m}");
                    }
                }
            }
            assert_eq!(done.stats.bank_conflicts().count(), 0);
        }
    }
}

#[test]
fn stores_are_the_inverse() {
    let tiles = tiles();
    let input = bytes_of(&tiles, u16::to_le_bytes);
    for trans in ["", ".trans"] {
        let body = format!(
            "{FILL}ldmatrix.sync.aligned.m8n8.x4{trans}.shared.b16 {{%r4, %r5, %r6, %r7}}, [%r21];
xor.b32 %r22, %r21, 256;
stmatrix.sync.aligned.m8n8.x4{trans}.shared.b16 [%r22], {{%r4, %r5, %r6, %r7}};
bar.warp.sync -1;
ld.shared.v4.b32 {{%r0, %r1, %r2, %r3}}, [%r21];\n{STORE}"
        );
        let done = run(&kernel(&body), 32, &input, 512).unwrap_or_else(|f| panic!("{f}"));
        let got = halves(&done.out);
        assert!((0..256).all(|i| got[i] == tiles[i ^ 128]));
    }
}

#[test]
fn moves_transpose() {
    let tiles = tiles();
    let input = bytes_of(&tiles, u16::to_le_bytes);
    let body = format!(
        "{FILL}ldmatrix.sync.aligned.m8n8.x1.shared.b16 {{%r4}}, [%r21];
movmatrix.sync.aligned.m8n8.trans.b16 %r0, %r4;\n{STORE}"
    );
    let done = run(&kernel(&body), 32, &input, 512).unwrap_or_else(|f| panic!("{f}"));
    let got = halves(&done.out);
    for lane in 0..32 {
        assert_eq!([got[lane * 8], got[lane * 8 + 1]], [0, 1].map(|i| element(&tiles, 0, lane, i, true)));
    }
}

#[test]
fn conflicts_and_faults() {
    // Rows 128 bytes apart: all in the same banks.
    let body = ".shared .align 16 .b8 s[4096];
mov.u32 %r20, s;
mad.lo.u32 %r21, %t, 128, %r20;
st.shared.v4.b32 [%r21], {%t, %t, %t, %t};
bar.warp.sync -1;
ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r0, %r1, %r2, %r3}, [%r21];";
    let done = run(&kernel(body), 32, &[], 0).unwrap_or_else(|f| panic!("{f}"));
    assert_eq!(done.stats.bank_conflicts().map(|(_, ways)| ways).collect::<Vec<_>>(), [8, 8]);
    let misaligned = body.replace("[%r21];", "[%r21+8];");
    assert!(matches!(fault_kind(&misaligned, 32).0, FaultKind::Misaligned { align: 16, .. }));
    let partial = "setp.lt.u32 %p0, %t, 16; @%p0 movmatrix.sync.aligned.m8n8.trans.b16 %r0, %t; bar.sync 0;";
    assert!(matches!(fault_kind(partial, 32).0, FaultKind::Participation(_)));
    assert!(matches!(fault_kind("movmatrix.sync.aligned.m8n8.trans.b16 %r0, %t;", 16).0, FaultKind::Participation(_)));
}
