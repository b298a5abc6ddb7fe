//! `wgmma` against products of matrices: every type, swizzle and major, A from registers and from memory.

use half::{bf16, f16};
use xfc_emulator::FaultKind;

use crate::harness::{Random, kernel_with, run_grid, words};

/// A type of elements.
#[derive(Clone, Copy)]
pub(crate) struct Element {
    name: &'static str,
    bytes: usize,
    value: fn(u32) -> f64,
    random: fn(&mut Random) -> u32,
}

const F16: Element = Element {
    name: "f16",
    bytes: 2,
    value: |b| f16::from_bits(b as u16).to_f64(),
    random: |r| f16::from_f32(r.unit()).to_bits().into(),
};
pub(crate) const BF16: Element = Element {
    name: "bf16",
    bytes: 2,
    value: |b| bf16::from_bits(b as u16).to_f64(),
    random: |r| bf16::from_f32(r.unit()).to_bits().into(),
};
const TF32: Element =
    Element { name: "tf32", bytes: 4, value: |b| f32::from_bits(b & !0x1fff).into(), random: |r| r.unit().to_bits() };
const S8: Element = Element { name: "s8", bytes: 1, value: |b| f64::from(b as i8), random: |r| r.below(256) as u32 };
const U8: Element = Element { name: "u8", bytes: 1, value: |b| f64::from(b as u8), random: |r| r.below(256) as u32 };
/// Values from -3.75 to 3.75 in quarters are e4m3 numbers of exponent field 5 to 8.
const E4M3: Element = Element {
    name: "e4m3",
    bytes: 1,
    value: |b| {
        let magnitude = (1.0 + f64::from(b & 7) / 8.0) * 2f64.powi((b >> 3 & 15) as i32 - 7);
        if b & 0x80 != 0 { -magnitude } else { magnitude }
    },
    random: |r| (0x28 + r.below(0x18) + 0x80 * r.below(2)) as u32,
};

/// How a matrix lies in shared memory: bytes that chunks are exchanged in (16 is none), and which way.
#[derive(Clone, Copy)]
pub(crate) struct Layout {
    pub(crate) width: usize,
    pub(crate) transposed: bool,
}

/// A matrix of lines (rows of A, columns of B) by `k`, its image in memory and its descriptor but for the address.
pub(crate) struct Placed {
    pub(crate) values: Vec<f64>,
    pub(crate) image: Vec<u8>,
    pub(crate) descriptor: u64,
    /// What the address grows by from one step of 32 bytes along K to the next.
    pub(crate) step: usize,
}

/// The canonical layouts of PTX ISA, section 9.7.15.5.1.2.1.3, in chunks of 16 bytes.
pub(crate) fn place(random: &mut Random, element: Element, lines: usize, k: usize, layout: Layout) -> Placed {
    let per_chunk = 16 / element.bytes;
    let chunks = layout.width / 16;
    let (leading, stride, step, size);
    if layout.transposed {
        // ((T, chunks, m), (8, k)): ((1, T, LBO), (chunks T, SBO)); without swizzle LBO and SBO change places.
        let panel = k * layout.width;
        (leading, stride) = if chunks == 1 { (128, panel) } else { (panel, 8 * layout.width) };
        step = 2 * 8 * layout.width;
        size = (lines * element.bytes).div_ceil(layout.width) * panel;
    } else {
        // ((8, m), (T, 2k)): ((chunks T, SBO), (1, T or LBO)).
        leading = if chunks == 1 { lines * 16 } else { 16 };
        stride = 8 * layout.width;
        step = if chunks == 1 { 2 * leading } else { 32 };
        size = if chunks == 1 { leading * k / per_chunk } else { lines.div_ceil(8) * stride };
    }
    let (mut values, mut image) = (vec![0.0; lines * k], vec![0; size]);
    for line in 0..lines {
        for x in 0..k {
            let (outer, inner) = if layout.transposed { (x, line) } else { (line, x) };
            let (chunk, within) = (inner / per_chunk, inner % per_chunk * element.bytes);
            let linear = match (layout.transposed, chunks) {
                (false, 1) => outer % 8 * 16 + outer / 8 * stride + chunk * leading,
                (false, _) => outer % 8 * layout.width + outer / 8 * stride + chunk * 16,
                (true, 1) => outer % 8 * 16 + outer / 8 * leading + chunk * stride,
                (true, _) => {
                    outer % 8 * layout.width + outer / 8 * stride + chunk / chunks * leading + chunk % chunks * 16
                }
            } + within;
            // Swizzle<b, 4, 3>: bits 4 to 4 + b are combined with those three above.
            let swizzled = linear ^ ((linear >> 7) % chunks) << 4;
            let bits = (element.random)(random);
            values[line * k + x] = (element.value)(bits);
            image[swizzled..swizzled + element.bytes].copy_from_slice(&bits.to_le_bytes()[..element.bytes]);
        }
    }
    let mode = [0u64, 3, 2, 1][chunks.ilog2() as usize];
    let descriptor = mode << 62 | (stride as u64 >> 4) << 32 | (leading as u64 >> 4) << 16;
    Placed { values, image, descriptor, step }
}

struct Case {
    n: usize,
    a: Element,
    b: Element,
    a_layout: Option<Layout>,
    b_layout: Layout,
    negate: [bool; 2],
}

const A_BYTES: usize = 32768;

fn list(name: &str, n: usize) -> String {
    (0..n).map(|i| format!("%{name}{i}")).collect::<Vec<_>>().join(", ")
}

/// Copies the images to shared memory, fences, and waits.
fn fill(bytes: usize) -> String {
    format!(
        "mov.u32 %r20, s;
mul.wide.u32 %slot, %t, 16;
add.s64 %slot, %slot, %in;
mad.lo.u32 %r21, %t, 16, %r20;
mov.u32 %r22, 0;
FILL:
ld.global.v4.b32 {{%r0, %r1, %r2, %r3}}, [%slot];
st.shared.v4.b32 [%r21], {{%r0, %r1, %r2, %r3}};
add.s64 %slot, %slot, 2048;
add.u32 %r21, %r21, 2048;
add.u32 %r22, %r22, 2048;
setp.lt.u32 %p0, %r22, {bytes};
@%p0 bra FILL;
fence.proxy.async.shared::cta;
bar.sync 0;
"
    )
}

fn check(case: &Case) {
    let Case { n, a, b, a_layout, b_layout, negate } = case;
    let (n, mut random) = (*n, Random::new(*n as u64));
    // Steps along K that one swizzled row holds; A in registers has one.
    let k_step = 32 / a.bytes;
    let steps = match a_layout {
        None => 1,
        Some(l) if l.transposed || b_layout.transposed => 2,
        Some(l) => l.width.min(b_layout.width).max(32) / 32,
    };
    let k = k_step * steps;
    let in_registers = a_layout.is_none();
    let a_placed = place(&mut random, *a, 64, k, a_layout.unwrap_or(Layout { width: 32, transposed: false }));
    let b_placed = place(&mut random, *b, n, k, *b_layout);
    let mut input = a_placed.image.clone();
    assert!(input.len() <= A_BYTES);
    input.resize(A_BYTES, 0);
    input.extend(&b_placed.image);
    input.resize(input.len().next_multiple_of(2048), 0);
    let (sum, integer) = if a.name.ends_with('8') { ("s32", true) } else { ("f32", false) };
    let mut body = format!(".reg .b32 %acc<{}>;\n.reg .b64 %desc<2>;\n", n / 2) + &fill(input.len());
    if in_registers {
        body += &load_fragments();
    }
    for i in 0..n / 2 {
        body += &format!("mov.b32 %acc{i}, 0;\n");
    }
    body += &format!(
        "cvt.u64.u32 %a0, %r20;
shr.u64 %a0, %a0, 4;
or.b64 %desc0, %a0, {:#x};
add.u64 %a0, %a0, {};
or.b64 %desc1, %a0, {:#x};
wgmma.fence.sync.aligned;
",
        a_placed.descriptor,
        A_BYTES / 16,
        b_placed.descriptor
    );
    let sign = |n: bool| if n { "-1" } else { "1" };
    let mut rest = String::new();
    if !integer {
        rest += &format!(", {}, {}", sign(negate[0]), sign(negate[1]));
    }
    if a.bytes == 2 {
        if let Some(l) = a_layout {
            rest += &format!(", {}", u8::from(l.transposed));
        }
        rest += &format!(", {}", u8::from(b_layout.transposed));
    }
    let first = if in_registers { format!("{{{}}}", list("r", 4)) } else { "%desc0".to_owned() };
    for step in 0..steps {
        // The first step does not add what the registers hold.
        body += &format!(
            "setp.ne.u32 %p1, {step}, 0;
wgmma.mma_async.sync.aligned.m64n{n}k{k_step}.{sum}.{}.{} {{{}}}, {first}, %desc1, %p1{rest};
add.u64 %desc0, %desc0, {};
add.u64 %desc1, %desc1, {};\n",
            a.name,
            b.name,
            list("acc", n / 2),
            a_placed.step / 16,
            b_placed.step / 16
        );
    }
    body += "wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 0;\n";
    body += &format!("mul.wide.u32 %slot, %t, {};\nadd.s64 %slot, %slot, %out;\n", 2 * n);
    for i in 0..n / 2 {
        body += &format!("st.global.b32 [%slot+{}], %acc{i};\n", 4 * i);
    }
    let text = kernel_with(".extern .shared .align 1024 .b8 s[];", &body);
    let shared = input.len() as u32;
    let done = run_grid(&text, [1, 1, 1], [128, 1, 1], shared, &input, 64 * n * 4).unwrap_or_else(|f| panic!("{f}"));
    let flip = if negate[0] != negate[1] { -1.0 } else { 1.0 };
    for (at, got) in words(&done.out).into_iter().enumerate() {
        let (thread, i) = (at / (n / 2), at % (n / 2));
        let row = 16 * (thread / 32) + thread % 32 / 4 + 8 * (i / 2 % 2);
        let column = 8 * (i / 4) + 2 * (thread % 4) + i % 2;
        let exact: f64 =
            (0..k).map(|x| a_placed.values[row * k + x] * b_placed.values[column * k + x]).sum::<f64>() * flip;
        if integer {
            assert_eq!(got as i32, exact as i32, "row {row} column {column}");
        } else {
            let got = f64::from(f32::from_bits(got));
            assert!((got - exact).abs() <= 1e-5, "row {row} column {column}: {got} for {exact}");
        }
    }
}

/// A's fragment of a warp from rows of 32 bytes with a swizzle over 32: four registers of 4 bytes each.
fn load_fragments() -> String {
    let mut body = "shr.u32 %r8, %t, 5;
and.b32 %r9, %t, 31;
shr.u32 %r10, %r9, 2;
and.b32 %r11, %r9, 3;
mad.lo.u32 %r8, %r8, 16, %r10;
"
    .to_owned();
    for register in 0..4 {
        // Row of the group or eight below, four bytes of the first or the second chunk.
        let (down, chunk) = (8 * (register % 2), 16 * (register / 2));
        body += &format!(
            "add.u32 %r12, %r8, {down};
mul.lo.u32 %r12, %r12, 32;
mad.lo.u32 %r12, %r11, 4, %r12;
add.u32 %r12, %r12, {chunk};
shr.u32 %r13, %r12, 3;
and.b32 %r13, %r13, 16;
xor.b32 %r12, %r12, %r13;
add.u32 %r12, %r12, %r20;
ld.shared.b32 %r{register}, [%r12];\n"
        );
    }
    body
}

fn k_major(width: usize) -> Layout {
    Layout { width, transposed: false }
}

const PLAIN: [bool; 2] = [false, false];

#[test]
fn every_swizzle() {
    for width in [16, 32, 64, 128] {
        for n in [8, 64, 136] {
            let case =
                Case { n, a: BF16, b: BF16, a_layout: Some(k_major(width)), b_layout: k_major(width), negate: PLAIN };
            check(&case);
        }
    }
    let mixed =
        Case { n: 32, a: F16, b: F16, a_layout: Some(k_major(64)), b_layout: k_major(128), negate: [true, false] };
    check(&mixed);
}

#[test]
fn every_type() {
    for (a, b) in [(F16, F16), (TF32, TF32), (S8, U8), (U8, S8), (E4M3, E4M3)] {
        let case = Case {
            n: 64,
            a,
            b,
            a_layout: Some(k_major(128)),
            b_layout: k_major(128),
            negate: [a.name == "f16", a.name == "tf32"],
        };
        check(&case);
    }
}

#[test]
fn transposed() {
    for width in [16, 32, 64, 128] {
        let layout = Layout { width, transposed: true };
        for (a_layout, b_layout) in [(layout, layout), (layout, k_major(64)), (k_major(128), layout)] {
            check(&Case { n: 64, a: F16, b: F16, a_layout: Some(a_layout), b_layout, negate: PLAIN });
        }
        check(&Case { n: 256, a: BF16, b: BF16, a_layout: None, b_layout: layout, negate: PLAIN });
    }
}

#[test]
fn a_from_registers() {
    for (a, b) in [(BF16, BF16), (S8, S8), (E4M3, E4M3), (TF32, TF32)] {
        check(&Case { n: 16, a, b, a_layout: None, b_layout: k_major(128), negate: PLAIN });
    }
}

/// The smallest product, with parts left out or added.
fn small(change: impl Fn(String) -> String) -> Result<(), FaultKind> {
    let body = ".reg .b32 %acc<4>;\n.reg .b64 %desc;\n".to_owned()
        + &fill(8192)
        + "mov.b32 %acc0, 0;
mov.b32 %acc1, 0;
mov.b32 %acc2, 0;
mov.b32 %acc3, 0;
cvt.u64.u32 %a0, %r20;
shr.u64 %a0, %a0, 4;
or.b64 %desc, %a0, 0x4000004000010000;
wgmma.fence.sync.aligned;
setp.ne.u32 %p1, 0, 0;
wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%acc0, %acc1, %acc2, %acc3}, %desc, %desc, %p1, 1, 1, 0, 0;
wgmma.commit_group.sync.aligned;
wgmma.wait_group.sync.aligned 0;
st.global.b32 [%out], 0;
";
    let text = kernel_with(".extern .shared .align 1024 .b8 s[];", &change(body));
    run_grid(&text, [1, 1, 1], [128, 1, 1], 8192, &[0; 8192], 4).map(|_| ()).map_err(|f| f.kind)
}

fn wants(change: impl Fn(String) -> String, what: &str) {
    match small(change) {
        Err(kind) => assert!(kind.to_string().contains(what), "{kind}"),
        Ok(()) => panic!("no fault: {what}"),
    }
}

#[test]
fn what_is_in_flight_is_left_alone() {
    assert_eq!(small(|b| b), Ok(()));
    let wait = "wgmma.wait_group.sync.aligned 0;";
    wants(|b| b.replace(wait, "mov.b32 %r0, %acc1;"), "a register of sums is used");
    wants(|b| b.replace(wait, "wgmma.wait_group.sync.aligned 1;\nmov.b32 %acc2, 0;"), "a register of sums is used");
    wants(|b| b.replace(wait, "add.u32 %r21, %r21, -8192;\nst.shared.b32 [%r21], 0;"), "is written while");
    let fence = "wgmma.fence.sync.aligned;\n";
    wants(|b| b.replace(fence, ""), "before the first wgmma.fence");
    wants(|b| b.replace(fence, &format!("{fence}mov.b32 %acc3, 0;\n")), "accessed after the last wgmma.fence");
    // Also who only reads.
    wants(|b| b.replace(fence, &format!("{fence}mov.b32 %r0, %acc3;\n")), "accessed after the last wgmma.fence");
    wants(|b| b.replace("fence.proxy.async.shared::cta;", ""), "without fence.proxy.async");
    // The first warp reads before the others write.
    wants(|b| b.replace("bar.sync 0;", ""), "nothing wrote it");
    wants(|b| b.replace("bar.sync 0;", "bar.sync 0;\nsetp.lt.u32 %p3, %t, 5;\n@%p3 ret;"), "only the lanes");
    wants(|b| b.replace("0x4000004000010000", "0x4002004000010000"), "base offset");
}

#[test]
fn products_follow_each_other_without_a_wait() {
    let line = "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%acc0, %acc1, %acc2, %acc3}, %desc, %desc, %p1, 1, 1, 0, 0;\n";
    assert_eq!(small(|b| b.replace(line, &line.repeat(3))), Ok(()));
    // Groups retire in order.
    let commit = "wgmma.commit_group.sync.aligned;\n";
    let two = format!("{line}{commit}{line}");
    assert_eq!(small(|b| b.replace(line, &two)), Ok(()));
    // Of one shape alone.
    let wide = line.replace("n8k16", "n16k16").replace("%acc3}", "%acc3, %r4, %r5, %r6, %r7}");
    let other = format!("{line}{wide}");
    wants(|b| b.replace(line, &other), "of another shape");
    let fenced = format!("{line}wgmma.fence.sync.aligned;\n{wide}");
    assert_eq!(small(|b| b.replace(line, &fenced)), Ok(()));
    // Rows in registers are there when a wait says so.
    let rows =
        line.replacen("%desc, %desc", "{%acc0, %acc1, %acc2, %acc3}, %desc", 1).replace(", 1, 1, 0, 0;", ", 1, 1, 0;");
    let rows = rows.replacen("{%acc0, %acc1, %acc2, %acc3}", "{%r4, %r5, %r6, %r7}", 1);
    wants(|b| b.replace(line, &format!("{line}wgmma.fence.sync.aligned;\n{rows}")), "rows in registers are sums");
}
