//! Asynchronous copies and mbarriers: pipelines that are right, and each way to get them wrong.
#![expect(clippy::unwrap_used, reason = "a test that cannot set its case up has failed")]

use xfc_emulator::{FaultKind, Launch, Memory, Module, Swizzle, TensorMap, launch};

use crate::harness::{HEADER, Random, bytes_of, dump, kernel_with, run, words};

const SHARED: &str = ".shared .align 128 .b8 s[4096];\n.shared .align 8 .b64 full;\n.shared .align 8 .b64 empty;\n";

fn input() -> Vec<u8> {
    let mut random = Random::new(6);
    (0..4096).map(|_| random.next() as u8).collect()
}

fn go(threads: u32, body: &str) -> Result<Vec<u8>, FaultKind> {
    run(&kernel_with("", &format!("{SHARED}{body}")), threads, &input(), 4096).map(|d| d.out).map_err(|f| f.kind)
}

fn wants(threads: u32, body: &str, what: &str) {
    match go(threads, body) {
        Err(kind) => assert!(kind.to_string().contains(what), "{kind}\n{body}"),
        Ok(_) => panic!("no fault: {what}\n{body}"),
    }
}

/// Four steps of 512 bytes through two stages, each thread 16 bytes; it reads what its neighbour copied.
fn double_buffered(wait: &str, before_read: &str, after_read: &str) -> String {
    format!(
        "mov.u32 %r20, s;
mad.lo.u32 %r21, %t, 16, %r20;
xor.b32 %r22, %t, 1;
mad.lo.u32 %r22, %r22, 16, %r20;
mul.wide.u32 %slot, %t, 16;
add.s64 %a0, %in, %slot;
add.s64 %a1, %out, %slot;
cp.async.cg.shared.global [%r21], [%a0], 16;
cp.async.commit_group;
mov.u32 %r23, 0;
LOOP:
add.s64 %a0, %a0, 1024;
add.u32 %r24, %r23, 1;
and.b32 %r25, %r24, 1;
mad.lo.u32 %r26, %r25, 1024, %r21;
setp.lt.u32 %p0, %r24, 4;
@%p0 cp.async.cg.shared.global [%r26], [%a0], 16;
cp.async.commit_group;
{wait}
{before_read}
and.b32 %r25, %r23, 1;
mad.lo.u32 %r26, %r25, 1024, %r22;
ld.shared.v4.u32 {{%r0, %r1, %r2, %r3}}, [%r26];
st.global.v4.u32 [%a1], {{%r0, %r1, %r2, %r3}};
add.s64 %a1, %a1, 1024;
{after_read}
mov.u32 %r23, %r24;
@%p0 bra LOOP;"
    )
}

#[test]
fn copies_of_threads() {
    let right = double_buffered("cp.async.wait_group 1;", "bar.sync 0;", "bar.sync 0;");
    let out = go(64, &right).unwrap_or_else(|f| panic!("{f}"));
    let from = input();
    for (at, chunk) in out.chunks(16).enumerate() {
        assert_eq!(*chunk, from[(at ^ 1) * 16..][..16], "{at}");
    }
    wants(64, &double_buffered("", "bar.sync 0;", "bar.sync 0;"), "while an asynchronous operation has it");
    wants(64, &double_buffered("cp.async.wait_group 1;", "bar.warp.sync -1;", ""), "nothing orders them");
    wants(32, &double_buffered("cp.async.wait_group 1;", "", "bar.sync 0;"), "nothing orders them");
    wants(
        64,
        &double_buffered("cp.async.wait_group 2;", "bar.sync 0;", "bar.sync 0;"),
        "while an asynchronous operation has it",
    );
}

#[test]
fn copies_may_end_in_zeros() {
    let body = "mov.u32 %r20, s;
mad.lo.u32 %r21, %t, 16, %r20;
mul.wide.u32 %slot, %t, 16;
add.s64 %a0, %in, %slot;
add.s64 %a1, %out, %slot;
cp.async.ca.shared.global [%r21], [%a0], 16, %t;
cp.async.wait_all;
ld.shared.v4.u32 {%r0, %r1, %r2, %r3}, [%r21];
st.global.v4.u32 [%a1], {%r0, %r1, %r2, %r3};";
    let out = go(17, body).unwrap_or_else(|f| panic!("{f}"));
    let from = input();
    for thread in 0..17 {
        let expected: Vec<u8> = (0..16).map(|i| if i < thread { from[thread * 16 + i] } else { 0 }).collect();
        assert_eq!(out[thread * 16..][..16], expected);
    }
    wants(32, body, "more than the 16 copied");
    wants(1, &body.replace("[%a0]", "[%a0+4]"), "multiple of 16");
}

const INIT: &str = "mov.u32 %r20, s;
mov.u32 %r10, full;
mov.u32 %r11, empty;
setp.eq.u32 %p0, %t, 0;
@%p0 mbarrier.init.shared.b64 [%r10], 1;
@%p0 mbarrier.init.shared.b64 [%r11], 32;
fence.mbarrier_init.release.cluster;
bar.sync 0;
";

/// Thread 0 copies 1024 bytes; all wait and read.
const BULK: &str = "@%p0 mbarrier.arrive.expect_tx.shared.b64 _, [%r10], 1024;
@%p0 cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r20], [%in], 1024, [%r10];
WAIT:
mbarrier.try_wait.parity.shared.b64 %p1, [%r10], 0;
@!%p1 bra WAIT;
mad.lo.u32 %r21, %t, 16, %r20;
mul.wide.u32 %slot, %t, 16;
add.s64 %a1, %out, %slot;
ld.shared.v4.u32 {%r0, %r1, %r2, %r3}, [%r21];
st.global.v4.u32 [%a1], {%r0, %r1, %r2, %r3};
";

#[test]
fn bulk_copies() {
    let body = format!("{INIT}{BULK}").replace(".shared.b64 _,", ".shared.b64 %a9,");
    let out = go(64, &body).unwrap_or_else(|f| panic!("{f}"));
    assert_eq!(out[..1024], input()[..1024]);
    let change = |from: &str, to: &str| body.replace(from, to);
    // Nobody waits: the bytes are not there; or one thread waits for all.
    wants(
        64,
        &change("@!%p1 bra WAIT;", "").replace("mbarrier.try_wait", "mbarrier.test_wait"),
        "an asynchronous copy wrote",
    );
    wants(
        64,
        &change("WAIT:", "@!%p0 bra READ;\nWAIT:")
            .replace("mad.lo.u32 %r21", "READ:\nbar.warp.sync -1;\nmad.lo.u32 %r21"),
        "asynchronous operation has it",
    );
    wants(64, &change("[%in], 1024,", "[%in], 1000,"), "multiple of 16");
    wants(64, &change("%a9, [%r10], 1024;", "%a9, [%r10], 1040;"), "deadlock");
    wants(64, &change("[%in], 1024,", "[%in], 8192,"), "out of bounds");
    wants(64, &change("@%p0 mbarrier.init.shared.b64 [%r10], 1;", ""), "there is no mbarrier");
    wants(64, &change("bar.sync 0;", "bar.warp.sync -1;"), "uses an mbarrier that thread 0 makes");
    wants(64, &change("[%r10], 0;", "[%r10], 1;"), "asynchronous operation has it");
    wants(
        64,
        &change("@!%p1 bra WAIT;", "@!%p1 bra WAIT;\n@%p0 mbarrier.arrive.shared.b64 %a9, [%r10], 2;"),
        "more arrivals",
    );
    // Overwritten while it arrives.
    wants(64, &change("WAIT:", "@%p0 st.shared.u32 [%r20], 1;\nWAIT:"), "asynchronous operation has it");
}

/// What threads only read may be copied over without a fence (`producer_and_consumer` does), what they wrote may not.
#[test]
fn bulk_copies_over_what_threads_wrote() {
    let body = format!(
        "{INIT}mad.lo.u32 %r21, %t, 16, %r20;
mov.u32 %r0, 7;
st.shared.v4.u32 [%r21], {{%r0, %r0, %r0, %r0}};
fence.proxy.async.shared::cta;
bar.sync 0;
{BULK}"
    )
    .replace(".shared.b64 _,", ".shared.b64 %a9,");
    let out = go(64, &body).unwrap_or_else(|f| panic!("{f}"));
    assert_eq!(out[..1024], input()[..1024]);
    let fence = "fence.proxy.async.shared::cta;\n";
    wants(64, &body.replace(fence, ""), "without fence.proxy.async before it is read or written asynchronously");
    // One thread's is enough where it knows of the writes, and not before.
    let later = body.replace(&format!("{fence}bar.sync 0;\n"), &format!("bar.sync 0;\n@%p0 {fence}"));
    let out = go(64, &later).unwrap_or_else(|f| panic!("{f}"));
    assert_eq!(out[..1024], input()[..1024]);
    wants(64, &body.replace(fence, &format!("@%p0 {fence}")), "without fence.proxy.async");
}

#[test]
fn bulk_stores() {
    let body = format!(
        "{INIT}mad.lo.u32 %r21, %t, 16, %r20;
mul.wide.u32 %slot, %t, 16;
add.s64 %a0, %in, %slot;
ld.global.v4.u32 {{%r0, %r1, %r2, %r3}}, [%a0];
st.shared.v4.u32 [%r21], {{%r0, %r1, %r2, %r3}};
fence.proxy.async.shared::cta;
bar.sync 0;
@%p0 cp.async.bulk.global.shared::cta.bulk_group [%out], [%r20], 1024;
@%p0 cp.async.bulk.commit_group;
@%p0 cp.async.bulk.wait_group.read 0;
bar.sync 0;
st.shared.u32 [%r21], 0;"
    );
    let out = go(64, &body).unwrap_or_else(|f| panic!("{f}"));
    assert_eq!(out[..1024], input()[..1024]);
    let change = |from: &str, to: &str| body.replace(from, to);
    wants(64, &change("fence.proxy.async.shared::cta;\n", ""), "without fence.proxy.async");
    wants(64, &change("@%p0 cp.async.bulk.wait_group.read 0;\n", ""), "asynchronous operation has it");
    let unwaited = change("@%p0 cp.async.bulk.wait_group.read 0;\n", "").replace("st.shared.u32 [%r21], 0;", "");
    wants(64, &unwaited, "before cp.async.bulk.wait_group");
}

/// A warp that copies and a warp that reads, eight steps of 512 bytes through one stage: a full and an empty barrier.
fn pipeline(produce_wait: &str, consume_arrive: &str) -> String {
    format!(
        "{INIT}mov.u32 %r12, 0;
setp.ge.u32 %p2, %t, 32;
@%p2 bra CONSUMER;
@!%p0 ret;
mov.b64 %a0, %in;
PRODUCE:
xor.b32 %r13, %r12, 1;
and.b32 %r13, %r13, 1;
{produce_wait}
mbarrier.arrive.expect_tx.shared.b64 %a9, [%r10], 512;
cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r20], [%a0], 512, [%r10];
add.s64 %a0, %a0, 512;
add.u32 %r12, %r12, 1;
setp.lt.u32 %p3, %r12, 8;
@%p3 bra PRODUCE;
ret;
CONSUMER:
sub.u32 %r14, %t, 32;
mad.lo.u32 %r21, %r14, 16, %r20;
mul.wide.u32 %slot, %r14, 16;
add.s64 %a1, %out, %slot;
CONSUME:
and.b32 %r13, %r12, 1;
FULL:
mbarrier.try_wait.parity.shared.b64 %p1, [%r10], %r13;
@!%p1 bra FULL;
ld.shared.v4.u32 {{%r0, %r1, %r2, %r3}}, [%r21];
{consume_arrive}
st.global.v4.u32 [%a1], {{%r0, %r1, %r2, %r3}};
add.s64 %a1, %a1, 512;
add.u32 %r12, %r12, 1;
setp.lt.u32 %p3, %r12, 8;
@%p3 bra CONSUME;"
    )
}

const EMPTY: &str = "EMPTY:\nmbarrier.try_wait.parity.shared.b64 %p1, [%r11], %r13;\n@!%p1 bra EMPTY;";

#[test]
fn producer_and_consumer() {
    let arrive = "mbarrier.arrive.shared.b64 %a9, [%r11];";
    assert_eq!(go(64, &pipeline(EMPTY, arrive)).unwrap_or_else(|f| panic!("{f}")), input());
    // One lane arrives for the warp: only after the warp met.
    let alone = format!("setp.eq.u32 %p4, %r14, 0;\n@%p4 {arrive}");
    let counted = |arrive: &str| pipeline(EMPTY, arrive).replace("[%r11], 32;", "[%r11], 1;");
    go(64, &counted(&format!("bar.warp.sync -1;\n{alone}"))).unwrap_or_else(|f| panic!("{f}"));
    wants(64, &counted(&alone), "nothing orders them");
    // Arriving before reading, or never; not waiting for it to be empty.
    let early = pipeline(EMPTY, "").replace("ld.shared.v4", "mbarrier.arrive.shared.b64 %a9, [%r11];\nld.shared.v4");
    wants(64, &early, "nothing orders them");
    wants(64, &pipeline(EMPTY, ""), "0 wait in line");
    wants(64, &pipeline("", arrive), "more arrivals");
}

#[test]
fn copies_arrive_at_mbarriers() {
    let body = format!(
        "{}mad.lo.u32 %r21, %t, 16, %r20;
xor.b32 %r22, %r21, 512;
mul.wide.u32 %slot, %t, 16;
add.s64 %a0, %in, %slot;
add.s64 %a1, %out, %slot;
cp.async.cg.shared.global [%r21], [%a0], 16;
cp.async.mbarrier.arrive.noinc.shared.b64 [%r10];
WAIT:
mbarrier.try_wait.parity.shared.b64 %p1, [%r10], 0;
@!%p1 bra WAIT;
ld.shared.v4.u32 {{%r0, %r1, %r2, %r3}}, [%r22];
st.global.v4.u32 [%a1], {{%r0, %r1, %r2, %r3}};",
        INIT.replace("[%r10], 1;", "[%r10], 64;")
    );
    let out = go(64, &body).unwrap_or_else(|f| panic!("{f}"));
    let from = input();
    assert!((0..1024).all(|i| out[i] == from[i ^ 512]));
    wants(64, &body.replace("@!%p1 bra WAIT;", "").replace("try_wait", "test_wait"), "asynchronous operation has it");
}

/// Copies a box to shared memory and out to `out` as it lies there, and with a store to another place of the tensor.
fn tiles(swizzle: Swizzle, at: [i32; 2]) {
    const INNER: usize = 24;
    const OUTER: usize = 10;
    let text = format!(
        "{HEADER}.visible .entry k(.param .align 64 .b8 map[128], .param .align 64 .b8 map2[128], .param .u64 out)
{{
.reg .b64 %rd<8>; .reg .b32 %r<16>; .reg .pred %p<4>;
.shared .align 1024 .b8 s[512];
.shared .align 8 .b64 bar;
mov.u32 %r0, %tid.x;
setp.eq.u32 %p0, %r0, 0;
mov.u32 %r1, s;
mov.u32 %r2, bar;
mov.b64 %rd0, map;
cvta.param.u64 %rd1, %rd0;
mov.b64 %rd0, map2;
cvta.param.u64 %rd2, %rd0;
@%p0 mbarrier.init.shared.b64 [%r2], 1;
fence.mbarrier_init.release.cluster;
bar.sync 0;
mov.u32 %r5, {};
mov.u32 %r6, {};
@!%p0 bra WAIT;
prefetch.tensormap [%rd1];
mbarrier.arrive.expect_tx.shared.b64 %rd7, [%r2], 512;
cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%r1], [%rd1, {{%r5, %r6}}], [%r2];
WAIT:
mbarrier.try_wait.parity.shared.b64 %p1, [%r2], 0;
@!%p1 bra WAIT;
mad.lo.u32 %r3, %r0, 16, %r1;
ld.shared.v4.b32 {{%r8, %r9, %r10, %r11}}, [%r3];
ld.param.b64 %rd3, [out];
mul.wide.u32 %rd4, %r0, 16;
add.s64 %rd3, %rd3, %rd4;
st.global.v4.b32 [%rd3], {{%r8, %r9, %r10, %r11}};
@%p0 cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%rd2, {{%r5, %r6}}], [%r1];
@%p0 cp.async.bulk.commit_group;
@%p0 cp.async.bulk.wait_group 0;
ret;
}}
",
        at[0], at[1]
    );
    dump(&text);
    let module = Module::parse(&text).unwrap_or_else(|e| panic!("{e}"));
    let mut random = Random::new(8);
    let tensor: Vec<u16> = (0..INNER * OUTER).map(|_| random.next() as u16 | 1).collect();
    let mut memory = Memory::new();
    let (from, to) = (memory.alloc(tensor.len() as u64 * 2, 128), memory.alloc(tensor.len() as u64 * 2, 128));
    let out = memory.alloc(512, 128);
    memory.write(from, &bytes_of(&tensor, u16::to_le_bytes)).unwrap();
    let inner = swizzle_width(swizzle) / 2;
    let box_dims = vec![inner as u32, 256 / inner as u32];
    let map = |address| TensorMap {
        address,
        element_bytes: 2,
        dims: vec![INNER as u64, OUTER as u64],
        strides: vec![INNER as u64 * 2],
        box_dims: box_dims.clone(),
        swizzle,
    };
    let mut params = map(from).encode().unwrap().to_vec();
    params.extend(map(to).encode().unwrap());
    params.extend(out.to_le_bytes());
    launch(&module, "k", &mut memory, &Launch::new([1, 1, 1], [32, 1, 1], &params)).unwrap_or_else(|f| panic!("{f}"));
    let mut got = vec![0; 512];
    memory.read(out, &mut got).unwrap();
    let mut stored = vec![0; tensor.len() * 2];
    memory.read(to, &mut stored).unwrap();
    let inside = |x: i32, y: i32| (0..INNER as i32).contains(&x) && (0..OUTER as i32).contains(&y);
    let value = |bytes: &[u8], at: usize| u16::from_le_bytes([bytes[2 * at], bytes[2 * at + 1]]);
    for i in 0..256 {
        let (x, y) = (at[0] + (i % inner) as i32, at[1] + (i / inner) as i32);
        let want = if inside(x, y) { tensor[y as usize * INNER + x as usize] } else { 0 };
        // Chunks of 16 bytes change places by the number of the row of 128 bytes they are in.
        let mask = swizzle_width(swizzle) / 16 - 1;
        let chunk = i / 8;
        let moved = chunk ^ ((chunk / 8) & mask);
        assert_eq!(value(&got, moved * 8 + i % 8), want, "{swizzle:?} element {i}");
    }
    for (i, want) in tensor.iter().enumerate() {
        let (x, y) = ((i % INNER) as i32 - at[0], (i / INNER) as i32 - at[1]);
        let copied = (0..inner as i32).contains(&x) && (0..256 / inner as i32).contains(&y);
        assert_eq!(value(&stored, i), if copied { *want } else { 0 }, "{swizzle:?} {i}");
    }
}

fn swizzle_width(swizzle: Swizzle) -> usize {
    match swizzle {
        Swizzle::None => 16,
        Swizzle::B32 => 32,
        Swizzle::B64 => 64,
        Swizzle::B128 => 128,
    }
}

#[test]
fn tiles_of_tensors() {
    for swizzle in [Swizzle::None, Swizzle::B32, Swizzle::B64, Swizzle::B128] {
        for at in [[0, 0], [8, 3], [-5, -2], [20, 9]] {
            tiles(swizzle, at);
        }
    }
}

#[test]
fn states_of_phases() {
    // Arrivals give tokens; a token's phase is over when all have arrived.
    let body = format!(
        "{}mbarrier.arrive.shared.b64 %a2, [%r10];
WAIT:
mbarrier.test_wait.shared.b64 %p1, [%r10], %a2;
@!%p1 bra WAIT;
mbarrier.arrive.shared.b64 %a3, [%r10];
setp.eq.u64 %p2, %a2, %a3;
selp.u32 %r0, 1, 2, %p2;
mul.wide.u32 %slot, %t, 4;
add.s64 %a1, %out, %slot;
st.global.u32 [%a1], %r0;
bar.sync 0;
@%p0 mbarrier.inval.shared.b64 [%r10];",
        INIT.replace("[%r10], 1;", "[%r10], 64;")
    );
    let out = go(64, &body).unwrap_or_else(|f| panic!("{f}"));
    assert_eq!(words(&out)[..64], [2; 64]);
    wants(64, &format!("{body}\nbar.sync 0;\n@%p0 mbarrier.arrive.shared.b64 %a2, [%r10];"), "there is no mbarrier");
}
