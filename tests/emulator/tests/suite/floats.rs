//! Floating-point arithmetic of all widths.

use half::{bf16, f16};

use crate::harness::{Random, each};

fn flush(v: f32) -> f32 {
    if v.is_subnormal() { 0f32.copysign(v) } else { v }
}

fn same(got: f32, want: f32) -> bool {
    got.to_bits() == want.to_bits() || (got.is_nan() && want.is_nan())
}

fn check(instruction: &str, sources: usize, want: impl Fn(f32, f32, f32) -> f32) {
    let mut random = Random::new(7);
    let values: Vec<[f32; 3]> = (0..1024).map(|_| std::array::from_fn(|_| random.f32())).collect();
    let slots: Vec<[u64; 3]> = values.iter().map(|v| v.map(|x| x.to_bits().into())).collect();
    for (&[a, b, c], got) in values.iter().zip(each(instruction, &"ffff"[..=sources], &slots)) {
        let (got, want) = (f32::from_bits(got as u32), want(a, b, c));
        assert!(same(got, want), "{instruction} of {a:e} {b:e} {c:e}: {got:e} for {want:e}");
    }
}

/// Within a few units of the last place.
fn near(instruction: &str, want: impl Fn(f64) -> f64) {
    let mut random = Random::new(9);
    let values: Vec<f32> = (0..512).map(|_| random.unit() * 8.0).collect();
    let slots: Vec<[u64; 3]> = values.iter().map(|v| [v.to_bits().into(), 0, 0]).collect();
    for (&a, got) in values.iter().zip(each(instruction, "ff", &slots)) {
        let (got, want) = (f32::from_bits(got as u32), want(a.into()) as f32);
        let close = same(got, want) || (got - want).abs() <= want.abs() * 2e-7;
        assert!(close, "{instruction} of {a}: {got} for {want}");
    }
}

#[test]
fn single_precision_is_exact() {
    check("add.rn.f32 D, A, B", 2, |a, b, _| a + b);
    check("sub.f32 D, A, B", 2, |a, b, _| a - b);
    check("mul.rn.f32 D, A, B", 2, |a, b, _| a * b);
    check("fma.rn.f32 D, A, B, C", 3, f32::mul_add);
    check("div.rn.f32 D, A, B", 2, |a, b, _| a / b);
    check("sqrt.rn.f32 D, A", 1, |a, _, _| a.sqrt());
    check("abs.f32 D, A", 1, |a, _, _| a.abs());
    check("neg.f32 D, A", 1, |a, _, _| -a);
    check("copysign.f32 D, A, B", 2, |a, b, _| b.copysign(a));
}

#[test]
fn pairs_are_two() {
    let mut random = Random::new(8);
    let values: Vec<[[f32; 2]; 3]> = (0..512).map(|_| std::array::from_fn(|_| [random.f32(), random.f32()])).collect();
    let bits = |v: [f32; 2]| u64::from(v[0].to_bits()) | u64::from(v[1].to_bits()) << 32;
    let slots: Vec<[u64; 3]> = values.iter().map(|v| v.map(bits)).collect();
    type Scalar = fn(f32, f32, f32) -> f32;
    let all: [(&str, &str, Scalar); 4] = [
        ("add.rn.f32x2 D, A, B", "aaa", |a, b, _| a + b),
        ("sub.f32x2 D, A, B", "aaa", |a, b, _| a - b),
        ("mul.rn.ftz.f32x2 D, A, B", "aaa", |a, b, _| flush(flush(a) * flush(b))),
        ("fma.rn.f32x2 D, A, B, C", "aaaa", f32::mul_add),
    ];
    for (instruction, types, want) in all {
        for (&[a, b, c], got) in values.iter().zip(each(instruction, types, &slots)) {
            for (i, got) in [got as u32, (got >> 32) as u32].into_iter().enumerate() {
                assert!(same(f32::from_bits(got), want(a[i], b[i], c[i])), "{instruction}: {a:?} {b:?} {c:?}");
            }
        }
    }
}

#[test]
fn modifiers_are_honoured() {
    check("add.rn.ftz.f32 D, A, B", 2, |a, b, _| flush(flush(a) + flush(b)));
    check("mul.ftz.f32 D, A, B", 2, |a, b, _| flush(flush(a) * flush(b)));
    check("fma.rn.ftz.f32 D, A, B, C", 3, |a, b, c| flush(flush(a).mul_add(flush(b), flush(c))));
    check("add.sat.f32 D, A, B", 2, |a, b, _| if a + b > 0.0 { (a + b).min(1.0) } else { 0.0 });
    check("max.f32 D, A, B", 2, |a, b, _| match (a.is_nan(), b.is_nan()) {
        (true, _) => b,
        (_, true) => a,
        _ if a == b => {
            if a.is_sign_positive() {
                a
            } else {
                b
            }
        }
        _ => {
            if a > b {
                a
            } else {
                b
            }
        }
    });
    check("min.NaN.f32 D, A, B", 2, |a, b, _| {
        if a.is_nan() || b.is_nan() {
            f32::NAN
        } else if a == b {
            if a.is_sign_negative() { a } else { b }
        } else {
            a.min(b)
        }
    });
    // Rounding toward zero: the nearest, or its neighbour when that is farther out than the exact product.
    check("mul.rz.f32 D, A, B", 2, |a, b, _| {
        let (exact, near) = (f64::from(a) * f64::from(b), a * b);
        if !near.is_nan() && f64::from(near).abs() > exact.abs() && a.is_finite() && b.is_finite() {
            f32::from_bits(near.to_bits() - 1)
        } else {
            near
        }
    });
}

#[test]
fn approximations_are_close() {
    near("ex2.approx.ftz.f32 D, A", f64::exp2);
    near("lg2.approx.f32 D, A", f64::log2);
    near("sin.approx.f32 D, A", f64::sin);
    near("cos.approx.f32 D, A", f64::cos);
    near("tanh.approx.f32 D, A", f64::tanh);
    near("rcp.approx.ftz.f32 D, A", |a| 1.0 / a);
    near("rcp.rn.f32 D, A", |a| 1.0 / a);
    near("rsqrt.approx.f32 D, A", |a| 1.0 / a.sqrt());
    near("sqrt.approx.ftz.f32 D, A", f64::sqrt);
}

#[test]
fn comparisons_know_nan() {
    let mut random = Random::new(3);
    let values: Vec<[f32; 2]> = (0..512).map(|_| [random.f32(), random.f32()]).collect();
    let slots: Vec<[u64; 3]> = values.iter().map(|v| [v[0].to_bits().into(), v[1].to_bits().into(), 0]).collect();
    let check = |instruction: &str, want: fn(f32, f32) -> bool| {
        for (&[a, b], got) in values.iter().zip(each(instruction, "pff", &slots)) {
            assert_eq!(got != 0, want(a, b), "{instruction} of {a} {b}");
        }
    };
    check("setp.lt.f32 D, A, B", |a, b| a < b);
    check("setp.ne.f32 D, A, B", |a, b| a.partial_cmp(&b).is_some_and(std::cmp::Ordering::is_ne));
    check("setp.ltu.f32 D, A, B", |a, b| a.partial_cmp(&b).is_none_or(std::cmp::Ordering::is_lt));
    check("setp.neu.f32 D, A, B", |a, b| a != b);
    check("setp.num.f32 D, A, B", |a, b| !a.is_nan() && !b.is_nan());
    check("setp.nan.f32 D, A, B", |a, b| a.is_nan() || b.is_nan());
    check("setp.gt.ftz.f32 D, A, B", |a, b| flush(a) > flush(b));
    check("testp.subnormal.f32 D, A", |a, _| a.is_subnormal());
    check("testp.notanumber.f32 D, A", |a, _| a.is_nan());
}

#[test]
fn double_precision() {
    let mut random = Random::new(5);
    let values: Vec<[f64; 3]> = (0..256).map(|_| std::array::from_fn(|_| f64::from(random.unit()) * 1e3)).collect();
    let slots: Vec<[u64; 3]> = values.iter().map(|v| v.map(f64::to_bits)).collect();
    let check = |instruction: &str, types: &str, want: fn(f64, f64, f64) -> f64| {
        for (&[a, b, c], got) in values.iter().zip(each(instruction, types, &slots)) {
            assert_eq!(got, want(a, b, c).to_bits(), "{instruction} of {a} {b} {c}");
        }
    };
    check("add.rn.f64 D, A, B", "aaa", |a, b, _| a + b);
    check("fma.rn.f64 D, A, B, C", "dddd", f64::mul_add);
    check("div.rn.f64 D, A, B", "aaa", |a, b, _| a / b);
    check("max.f64 D, A, B", "aaa", |a, b, _| a.max(b));
}

/// Sums of two numbers of 16 bits are exact in f64, products in f32; a fused one is, in integers of 128 bits.
#[test]
fn half_precision_rounds_once() {
    let mut random = Random::new(11);
    let mut halves = || (0..1024).map(|_| std::array::from_fn(|_| random.bits(16))).collect::<Vec<[u64; 3]>>();
    let slots = halves();
    let h = |v: u64| f16::from_bits(v as u16);
    let b = |v: u64| bf16::from_bits(v as u16);
    for (&[x, y, _], got) in slots.iter().zip(each("mul.rn.f16 D, A, B", "hhh", &slots)) {
        let want = f16::from_f32(h(x).to_f32() * h(y).to_f32());
        assert!(h(got) == want || (h(got).is_nan() && want.is_nan()), "{x:#x} {y:#x}");
    }
    for (&[x, y, _], got) in slots.iter().zip(each("add.rn.bf16 D, A, B", "hhh", &slots)) {
        // A sum of two bf16 in f32 rounds twice only if f32 rounds: exponents far apart, where the larger wins anyway.
        let sum = f64::from(b(x).to_f32()) + f64::from(b(y).to_f32());
        let want = b(got).to_f64();
        let (up, down) =
            (bf16::from_bits(got as u16 + 1).to_f64(), bf16::from_bits((got as u16).wrapping_sub(1)).to_f64());
        let nearest = [up, down].iter().all(|o| !o.is_finite() || (sum - want).abs() <= (sum - o).abs());
        assert!(nearest || !sum.is_finite() || !want.is_finite(), "{x:#x} {y:#x} {got:#x}");
    }
    for (&[x, y, z], got) in slots.iter().zip(each("fma.rn.f16 D, A, B, C", "hhhh", &slots)) {
        let want = exact_fma(h(x), h(y), h(z));
        assert!(h(got) == want || (h(got).is_nan() && want.is_nan()), "{} {} {}: {} {want}", h(x), h(y), h(z), h(got));
    }
    let pairs: Vec<[u64; 3]> = slots.iter().map(|[x, y, _]| [x | y << 16, y | x << 16, 0]).collect();
    for (&[x, y, _], got) in slots.iter().zip(each("max.f16x2 D, A, B", "rrr", &pairs)) {
        let want = h(x).to_f32().max(h(y).to_f32());
        for half in [got & 0xffff, got >> 16] {
            assert!(h(half).to_f32() == want || (h(half).is_nan() && want.is_nan()), "{} {}", h(x), h(y));
        }
    }
}

/// A fused product and sum of f16, in fixed point.
fn exact_fma(x: f16, y: f16, z: f16) -> f16 {
    if [x, y, z].iter().any(|v| !v.is_finite()) {
        return f16::from_f32(x.to_f32() * y.to_f32() + z.to_f32());
    }
    // Units of 2^-48: a product has at most 2 * 24 places after the point.
    let fixed = |v: f64| (v * 2f64.powi(48)) as i128;
    let product = fixed(f64::from(x.to_f32()) * f64::from(y.to_f32()));
    let sum = product + fixed(z.to_f64());
    if sum == 0 {
        let (p, z) = (x.to_f32() * y.to_f32(), z.to_f32());
        return f16::from_f32(p + z);
    }
    let exponent = 127 - sum.unsigned_abs().leading_zeros() as i32;
    // The last place of f16: 10 below the leading one, but at least 2^-24, which is 2^24 units.
    let last = (exponent - 10).max(24) as u32;
    let (whole, rest) = (sum.unsigned_abs() >> last, sum.unsigned_abs() & ((1 << last) - 1));
    let half = 1u128 << (last - 1);
    let whole = whole + u128::from(rest > half || (rest == half && whole & 1 == 1));
    let value = whole as f64 * 2f64.powi(last as i32 - 48);
    f16::from_f32(if sum < 0 { -value } else { value } as f32)
}
