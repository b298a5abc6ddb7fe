//! `cvt` and moves between registers and their parts.

use half::{bf16, f16};

use crate::harness::{Random, each};

fn check(instruction: &str, types: &str, want: impl Fn(u64) -> u64) {
    let mut random = Random::new(21);
    let bits = match types.chars().nth(1) {
        Some('h') => 16,
        Some('a' | 'd') => 64,
        _ => 32,
    };
    let float = types.chars().nth(1) == Some('f');
    let sources: Vec<[u64; 3]> = (0..1024)
        .map(|_| [if float { u64::from((random.f32() * 100.0).to_bits()) } else { random.bits(bits) }, 0, 0])
        .collect();
    for (&[a, ..], got) in sources.iter().zip(each(instruction, types, &sources)) {
        assert_eq!(got, want(a), "{instruction} of {a:#x}: {got:#x} for {:#x}", want(a));
    }
}

fn f(bits: u64) -> f32 {
    f32::from_bits(bits as u32)
}

fn nan(value: f32) -> u64 {
    if value.is_nan() { 0x7fff } else { 0 }
}

#[test]
fn between_integers() {
    check("cvt.s64.s32 D, A", "ar", |a| i64::from(a as i32) as u64);
    check("cvt.u64.u32 D, A", "ar", |a| a);
    check("cvt.u32.u64 D, A", "ra", |a| a & 0xffff_ffff);
    check("cvt.s32.s8 D, A", "rr", |a| u64::from(i32::from(a as i8) as u32));
    check("cvt.u16.u32 D, A", "hr", |a| a & 0xffff);
    check("cvt.s16.s8 D, A", "hh", |a| u64::from(i16::from(a as i8) as u16));
    check("cvt.sat.s8.s32 D, A", "rr", |a| u64::from((a as i32).clamp(-128, 127) as u32));
    check("cvt.sat.u16.s32 D, A", "rr", |a| (a as i32).clamp(0, 65535) as u64);
    check("cvt.u8.u32 D, A", "rr", |a| a & 0xff);
    check("cvt.s8.s32 D, A", "rr", |a| u64::from(i32::from(a as i8) as u32));
}

#[test]
fn between_floats_and_integers() {
    check("cvt.rn.f32.s32 D, A", "fr", |a| (a as i32 as f32).to_bits().into());
    check("cvt.rn.f32.u64 D, A", "fa", |a| (a as f32).to_bits().into());
    check("cvt.rn.f64.s64 D, A", "da", |a| (a as i64 as f64).to_bits());
    check("cvt.rn.f16.s32 D, A", "hr", |a| {
        let value = f64::from(a as i32);
        // f16 overflows above 65519.
        if value.abs() >= 65520.0 {
            if value < 0.0 { 0xfc00 } else { 0x7c00 }
        } else {
            f16::from_f32(value as f32).to_bits().into()
        }
    });
    check("cvt.rzi.s32.f32 D, A", "rf", |a| u64::from(f(a) as i32 as u32));
    check("cvt.rni.s32.f32 D, A", "rf", |a| u64::from(f(a).round_ties_even() as i32 as u32));
    check("cvt.rmi.s64.f32 D, A", "af", |a| if f(a).is_nan() { 1 << 63 } else { f(a).floor() as i64 as u64 });
    check("cvt.f64.f32 %d1, A; cvt.rzi.s32.f64 D, %d1", "rf", |a| {
        if f(a).is_nan() { 1 << 31 } else { u64::from(f(a) as i32 as u32) }
    });
    check("cvt.rpi.u32.f32 D, A", "rf", |a| u64::from(f(a).ceil() as u32));
    check("cvt.rzi.s16.f32 D, A", "hf", |a| u64::from(f(a) as i16 as u16));
    check("cvt.rzi.u8.f32 D, A", "hf", |a| u64::from(f(a) as u8));
}

#[test]
fn between_floats() {
    check("cvt.rn.f16.f32 D, A", "hf", |a| {
        nan(f(a)).max(if f(a).is_nan() { 0 } else { f16::from_f32(f(a)).to_bits().into() })
    });
    check("cvt.rn.bf16.f32 D, A", "hf", |a| {
        nan(f(a)).max(if f(a).is_nan() { 0 } else { bf16::from_f32(f(a)).to_bits().into() })
    });
    check("cvt.rna.tf32.f32 D, A", "rf", |a| {
        let a = a as u32;
        if f32::from_bits(a).is_nan() {
            0x7fff_ffff
        } else {
            u64::from(if a & 0x7f80_0000 == 0x7f80_0000 { a } else { (a + 0x1000) & !0x1fff })
        }
    });
    check("cvt.rmi.f32.f32 D, A; min.f32 D, %f0, %f0", "ff", |a| {
        let floor = f(a).floor();
        if floor.is_nan() { 0x7fff_ffff } else { floor.to_bits().into() }
    });
    check("cvt.f32.bf16 D, A", "fh", |a| a << 16);
    check("cvt.rz.bf16.f32 D, A", "hf", |a| if f(a).is_nan() { 0x7fff } else { a >> 16 });
}

#[test]
fn packed() {
    check("mov.b32 %f2, 0f40490FDB; cvt.rn.bf16x2.f32 D, A, %f2", "rf", |a| {
        let high = if f(a).is_nan() { 0x7fff } else { u64::from(bf16::from_f32(f(a)).to_bits()) };
        high << 16 | 0x4049
    });
    check("cvt.rn.satfinite.e4m3x2.f32 %h1, A, 0f3F800000; cvt.rn.f16x2.e4m3x2 D, %h1", "rf", |a| {
        // The nearest of all 8-bit numbers, ties to even.
        let value = f(a);
        let number = |bits: u32| {
            let (e, m) = ((bits >> 3 & 15) as i32, f64::from(bits & 7));
            let magnitude = if e == 0 { m / 512.0 } else { (1.0 + m / 8.0) * 2f64.powi(e - 7) };
            if bits & 0x80 != 0 { -magnitude } else { magnitude }
        };
        let near = if value.is_nan() {
            return 0x7fff << 16 | 0x3c00;
        } else {
            (0..0x7fu32).map(|bits| bits | u32::from(value.is_sign_negative()) << 7).min_by(|&x, &y| {
                let far = |bits| (number(bits) - f64::from(value).clamp(-1e4, 1e4)).abs();
                far(x).total_cmp(&far(y)).then((x & 1).cmp(&(y & 1)))
            })
        };
        let half = f16::from_f64(near.map_or(0.0, number)).to_bits();
        u64::from(half) << 16 | 0x3c00
    });
    check("cvt.pack.sat.s8.s32.b32 D, A, -200, 0x1234", "rr", |a| {
        0x1234 << 16 | u64::from((a as i32).clamp(-128, 127) as u8) << 8 | 0x80
    });
}

#[test]
fn parts() {
    check("mov.b64 {%r3, %r4}, A; mov.b64 D, {%r4, %r3}", "aa", |a| a.rotate_left(32));
    check("mov.b32 {%h3, %h4}, A; mov.b32 D, {%h4, %h3}", "rr", |a| u64::from((a as u32).rotate_left(16)));
    check("mov.b64 {%h3, %h4, %h5, %h6}, A; mov.b64 D, {%h6, %h5, %h4, %h3}", "aa", |a| {
        (0..4).fold(0, |out, i| out | (a >> (16 * i) & 0xffff) << (48 - 16 * i))
    });
}
