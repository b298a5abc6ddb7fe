//! `mma` of every shape against a product of matrices; fragments are placed by the formulas of PTX ISA, sections 9.7.14.5.4 to 9.7.14.5.11.

use half::{bf16, f16};

use crate::harness::{Random, bytes_of, kernel, run, words};

/// A type of elements: its name, bits, value and random patterns.
#[derive(Clone, Copy)]
struct Element {
    name: &'static str,
    bits: usize,
    value: fn(u32) -> f64,
}

fn e4m3(bits: u32) -> f64 {
    small(bits, 3, 7)
}

fn e5m2(bits: u32) -> f64 {
    small(bits, 2, 15)
}

/// Numbers of eight bits, infinities and NaN left out of the tests.
fn small(bits: u32, mantissa: u32, bias: i32) -> f64 {
    let (e, m) = ((bits >> mantissa & ((1 << (7 - mantissa)) - 1)) as i32, f64::from(bits & ((1 << mantissa) - 1)));
    let scale = f64::from(1 << mantissa);
    let magnitude = if e == 0 { m / scale * 2f64.powi(1 - bias) } else { (1.0 + m / scale) * 2f64.powi(e - bias) };
    if bits & 0x80 != 0 { -magnitude } else { magnitude }
}

const F16: Element = Element { name: "f16", bits: 16, value: |b| f16::from_bits(b as u16).to_f64() };
const BF16: Element = Element { name: "bf16", bits: 16, value: |b| bf16::from_bits(b as u16).to_f64() };
const TF32: Element = Element { name: "tf32", bits: 32, value: |b| f32::from_bits(b & !0x1fff).into() };
const S8: Element = Element { name: "s8", bits: 8, value: |b| f64::from(b as i8) };
const U8: Element = Element { name: "u8", bits: 8, value: |b| f64::from(b as u8) };
const E4M3: Element = Element { name: "e4m3", bits: 8, value: e4m3 };
const E5M2: Element = Element { name: "e5m2", bits: 8, value: e5m2 };

impl Element {
    /// A pattern of a moderate value.
    fn random(self, random: &mut Random) -> u32 {
        match self.name {
            "f16" => f16::from_f32(random.unit() * 3.0).to_bits().into(),
            "bf16" => bf16::from_f32(random.unit() * 3.0).to_bits().into(),
            "tf32" => (random.unit() * 3.0).to_bits(),
            "e4m3" => (random.below(0x7f) | random.below(2) << 7) as u32,
            "e5m2" => (random.below(0x7c) | random.below(2) << 7) as u32,
            _ => random.below(256) as u32,
        }
    }
}

/// Row and column of element `i` of A that a lane holds.
fn place_a(bits: usize, k: usize, m: usize, lane: usize, i: usize) -> (usize, usize) {
    let (group, place) = (lane / 4, lane % 4);
    match (bits, k) {
        _ if m == 8 => (group, place * 4 + i),
        (16, 16) => {
            let row = if i < 2 || (4..6).contains(&i) { group } else { group + 8 };
            (row, place * 2 + (i & 1) + if i < 4 { 0 } else { 8 })
        }
        (16, 8) => (if i < 2 { group } else { group + 8 }, place * 2 + (i & 1)),
        (32, 8) => (if i.is_multiple_of(2) { group } else { group + 8 }, place + if i < 2 { 0 } else { 4 }),
        (32, 4) => (if i == 0 { group } else { group + 8 }, place),
        (8, 32) => {
            let row = if i < 4 || (8..12).contains(&i) { group } else { group + 8 };
            (row, place * 4 + (i & 3) + if i < 8 { 0 } else { 16 })
        }
        _ => (if i < 4 { group } else { group + 8 }, place * 4 + (i & 3)),
    }
}

fn place_b(bits: usize, lane: usize, i: usize) -> (usize, usize) {
    let (group, place) = (lane / 4, lane % 4);
    match bits {
        16 => (place * 2 + (i & 1) + if i < 2 { 0 } else { 8 }, group),
        32 => (place + 4 * i, group),
        _ => (place * 4 + (i & 3) + if i < 4 { 0 } else { 16 }, group),
    }
}

fn place_c(lane: usize, i: usize) -> (usize, usize) {
    (lane / 4 + if i < 2 { 0 } else { 8 }, lane % 4 * 2 + (i & 1))
}

/// What the sums are.
#[derive(Clone, Copy, PartialEq)]
enum Sum {
    F32,
    F16,
    S32,
    S32Saturated,
}

/// The registers of a matrix: patterns and, by row and column, values.
fn fragment(
    random: &mut Random,
    element: Element,
    registers: usize,
    columns: usize,
    place: impl Fn(usize, usize) -> (usize, usize),
    matrix: &mut [f64],
) -> Vec<u32> {
    let per = 32 / element.bits;
    let mut out = vec![0u32; 32 * registers];
    for lane in 0..32 {
        for i in 0..registers * per {
            let bits = element.random(random);
            let (row, column) = place(lane, i);
            matrix[row * columns + column] = (element.value)(bits);
            out[lane * registers + i / per] |= bits << (element.bits * (i % per));
        }
    }
    out
}

fn check(m: usize, k: usize, a: Element, b: Element, sum: Sum) {
    let mut random = Random::new((k * 100 + a.bits) as u64);
    let (ra, rb) = (m / 8 * k * a.bits / 128, k * b.bits / 128);
    let rc = m / 8 * if sum == Sum::F16 { 1 } else { 2 };
    let (mut av, mut bv, mut cv) = (vec![0.0; m * k], vec![0.0; k * 8], vec![0.0; m * 8]);
    let mut input = fragment(&mut random, a, ra, k, |l, i| place_a(a.bits, k, m, l, i), &mut av);
    input.extend(fragment(&mut random, b, rb, 8, |l, i| place_b(b.bits, l, i), &mut bv));
    let c = match sum {
        Sum::F32 => Element { name: "tf32", bits: 32, value: |b| f32::from_bits(b).into() },
        Sum::F16 => F16,
        _ => Element { name: "s32", bits: 32, value: |b| f64::from(b as i32) },
    };
    input.extend(fragment(&mut random, c, rc, 8, place_c, &mut cv));
    if sum == Sum::S32Saturated {
        // Some sums beyond the limits.
        let start = input.len() - 32 * rc;
        for lane in 0..32 {
            for i in 0..rc {
                let value = if i % 2 == 0 { i32::MAX - 10 } else { i32::MIN + 10 };
                input[start + lane * rc + i] = value as u32;
                let (row, column) = place_c(lane, i);
                cv[row * 8 + column] = value.into();
            }
        }
    }
    let list = |first: usize, n: usize| (first..first + n).map(|i| format!("%r{i}")).collect::<Vec<_>>().join(", ");
    let mut body = String::new();
    let mut offset = 0;
    for (first, n) in [(0, ra), (4, rb), (8, rc)] {
        body += &format!("mul.wide.u32 %slot, %t, {};\nadd.s64 %slot, %slot, %in;\n", 4 * n);
        for i in 0..n {
            body += &format!("ld.global.b32 %r{}, [%slot+{}];\n", first + i, offset + 4 * i);
        }
        offset += 128 * n;
    }
    let (ty, saturate) = match sum {
        Sum::F32 => ("f32", ""),
        Sum::F16 => ("f16", ""),
        Sum::S32 => ("s32", ""),
        Sum::S32Saturated => ("s32", ".satfinite"),
    };
    body += &format!(
        "mma.sync.aligned.m{m}n8k{k}.row.col{saturate}.{ty}.{}.{}.{ty} {{{}}}, {{{}}}, {{{}}}, {{{}}};\n",
        a.name,
        b.name,
        list(12, rc),
        list(0, ra),
        list(4, rb),
        list(8, rc)
    );
    body += &format!("mul.wide.u32 %slot, %t, {};\nadd.s64 %slot, %slot, %out;\n", 4 * rc);
    for i in 0..rc {
        body += &format!("st.global.b32 [%slot+{}], %r{};\n", 4 * i, 12 + i);
    }
    let done = run(&kernel(&body), 32, &bytes_of(&input, u32::to_le_bytes), 128 * rc).unwrap_or_else(|f| panic!("{f}"));
    let out = words(&done.out);
    for lane in 0..32 {
        for i in 0..m / 4 {
            let (row, column) = place_c(lane, i);
            let exact: f64 = (0..k).map(|x| av[row * k + x] * bv[x * 8 + column]).sum::<f64>() + cv[row * 8 + column];
            let what = format!("{}{m}x8x{k} {} lane {lane} element {i}", a.name, b.name);
            match sum {
                Sum::F32 => {
                    let got = f32::from_bits(out[lane * rc + i]);
                    assert!((f64::from(got) - exact).abs() <= exact.abs() * 6e-8 + 1e-12, "{what}: {got} for {exact}");
                }
                Sum::F16 => {
                    let got = f16::from_bits((out[lane * rc + i / 2] >> (16 * (i % 2))) as u16);
                    assert_eq!(got, f16::from_f64(exact), "{what}");
                }
                Sum::S32 => assert_eq!(out[lane * rc + i] as i32, exact as i64 as i32, "{what}"),
                Sum::S32Saturated => assert_eq!(out[lane * rc + i] as i32, exact as i32, "{what}"),
            }
        }
    }
}

#[test]
fn of_sixteen_bits() {
    for (k, element, sum) in
        [(16, BF16, Sum::F32), (8, BF16, Sum::F32), (16, F16, Sum::F32), (8, F16, Sum::F32), (16, F16, Sum::F16)]
    {
        check(16, k, element, element, sum);
    }
}

#[test]
fn of_tf32() {
    check(16, 8, TF32, TF32, Sum::F32);
    check(16, 4, TF32, TF32, Sum::F32);
}

#[test]
fn of_integers() {
    for a in [S8, U8] {
        for b in [S8, U8] {
            check(16, 32, a, b, Sum::S32);
            check(16, 16, a, b, Sum::S32);
            check(8, 16, a, b, Sum::S32);
        }
    }
    check(16, 32, U8, S8, Sum::S32Saturated);
}

#[test]
fn of_eight_bits() {
    for a in [E4M3, E5M2] {
        for b in [E4M3, E5M2] {
            check(16, 32, a, b, Sum::F32);
        }
    }
}
