//! Floating-point arithmetic of 32 and 64 bits (PTX ISA, section 9.7.3). f32 add, mul and fma round to nearest even exactly; functions that
//! the hardware approximates are computed in f64 and rounded to f32.

use super::lanes::{LaneFn, binary, ternary, unary};
use super::modifiers::Modifiers;
use super::types::Ty;
use crate::numbers::{F32, Rounding, add_to_odd, flush};

/// NaN as f32 instructions write it.
const NAN: f32 = f32::from_bits(0x7fff_ffff);

/// The rounding that an instruction names, if it does.
pub(crate) fn rounding(modifiers: &mut Modifiers<'_>) -> Option<Rounding> {
    match modifiers.one_of(&["rn", "rz", "rm", "rp"])? {
        "rn" => Some(Rounding::Nearest),
        "rz" => Some(Rounding::Zero),
        "rm" => Some(Rounding::Down),
        _ => Some(Rounding::Up),
    }
}

fn saturated(value: f32) -> f32 {
    // Not clamp: NaN becomes zero.
    if value > 0.0 { value.min(1.0) } else { 0.0 }
}

/// The smaller of two numbers; one NaN loses unless `nan` has it win; -0 is below +0.
pub(crate) fn min<T: Copy + PartialOrd>(a: T, b: T, nan: bool, canonical: T, negative: impl Fn(T) -> bool) -> T {
    #[expect(clippy::eq_op, reason = "only NaN differs from itself")]
    match (a != a, b != b) {
        (true, true) => canonical,
        (true, false) | (false, true) if nan => canonical,
        (true, false) => b,
        (false, true) => a,
        _ if a == b => {
            if negative(a) {
                a
            } else {
                b
            }
        }
        _ => {
            if a < b {
                a
            } else {
                b
            }
        }
    }
}

/// The larger of two numbers, likewise.
pub(crate) fn max<T: Copy + PartialOrd>(a: T, b: T, nan: bool, canonical: T, negative: impl Fn(T) -> bool) -> T {
    #[expect(clippy::eq_op, reason = "only NaN differs from itself")]
    match (a != a, b != b) {
        (true, true) => canonical,
        (true, false) | (false, true) if nan => canonical,
        (true, false) => b,
        (false, true) => a,
        _ if a == b => {
            if negative(a) {
                b
            } else {
                a
            }
        }
        _ => {
            if a > b {
                a
            } else {
                b
            }
        }
    }
}

fn round(value: f64, rounding: Rounding) -> f32 {
    f32::from_bits(F32.encode(value, rounding, false))
}

/// Wraps a function in what `.ftz` and `.sat` ask for.
macro_rules! shaped {
    ($make:ident, $ftz:expr, $sat:expr, |$($x:ident),*| $e:expr) => {
        match ($ftz, $sat) {
            (false, false) => $make(move |$($x: f32),*| $e),
            (true, false) => $make(move |$($x: f32),*| { $(let $x = flush($x);)* flush($e) }),
            (false, true) => $make(move |$($x: f32),*| saturated($e)),
            (true, true) => $make(move |$($x: f32),*| { $(let $x = flush($x);)* saturated(flush($e)) }),
        }
    };
}

/// The closure of an instruction on f32.
pub(crate) fn single(name: &str, modifiers: &mut Modifiers<'_>) -> Result<LaneFn, String> {
    let (ftz, sat) = (modifiers.take("ftz"), modifiers.take("sat"));
    let direction = rounding(modifiers).filter(|r| *r != Rounding::Nearest);
    let functions = ["div", "rcp", "sqrt", "rsqrt", "ex2", "lg2", "sin", "cos", "tanh"];
    if functions.contains(&name) {
        if direction.is_some() {
            return Err(format!("{name} is supported with .rn, .approx and .full"));
        }
        modifiers.ignore(&["approx", "full"]);
    }
    if let Some(r) = direction {
        // Sums and products of two f32 are exact in f64, or odd where they are not.
        return Ok(match name {
            "add" => shaped!(binary, ftz, sat, |a, b| round(add_to_odd(a.into(), b.into()), r)),
            "sub" => shaped!(binary, ftz, sat, |a, b| round(add_to_odd(a.into(), (-b).into()), r)),
            "mul" => shaped!(binary, ftz, sat, |a, b| round(f64::from(a) * f64::from(b), r)),
            "fma" | "mad" => {
                shaped!(ternary, ftz, sat, |a, b, c| round(add_to_odd(f64::from(a) * f64::from(b), c.into()), r))
            }
            other => return Err(format!("{other} rounds only to nearest")),
        });
    }
    let nan = modifiers.take("NaN");
    let xorsign = modifiers.take("xorsign");
    let abs = xorsign && modifiers.take("abs");
    if xorsign && !abs {
        return Err(".xorsign comes with .abs".to_owned());
    }
    let sign = |a: f32, b: f32, value: f32| {
        f32::from_bits((value.to_bits() & 0x7fff_ffff) | ((a.to_bits() ^ b.to_bits()) & 0x8000_0000))
    };
    Ok(match name {
        "add" => shaped!(binary, ftz, sat, |a, b| a + b),
        "sub" => shaped!(binary, ftz, sat, |a, b| a - b),
        "mul" => shaped!(binary, ftz, sat, |a, b| a * b),
        "fma" | "mad" => shaped!(ternary, ftz, sat, |a, b, c| a.mul_add(b, c)),
        "div" => shaped!(binary, ftz, sat, |a, b| a / b),
        "min" if xorsign => {
            shaped!(binary, ftz, sat, |a, b| sign(a, b, min(a.abs(), b.abs(), nan, NAN, f32::is_sign_negative)))
        }
        "max" if xorsign => {
            shaped!(binary, ftz, sat, |a, b| sign(a, b, max(a.abs(), b.abs(), nan, NAN, f32::is_sign_negative)))
        }
        "min" => shaped!(binary, ftz, sat, |a, b| min(a, b, nan, NAN, f32::is_sign_negative)),
        "max" => shaped!(binary, ftz, sat, |a, b| max(a, b, nan, NAN, f32::is_sign_negative)),
        "abs" => shaped!(unary, ftz, sat, |a| a.abs()),
        "neg" => shaped!(unary, ftz, sat, |a| -a),
        "rcp" => shaped!(unary, ftz, sat, |a| 1.0 / a),
        "sqrt" => shaped!(unary, ftz, sat, |a| a.sqrt()),
        "rsqrt" => shaped!(unary, ftz, sat, |a| (1.0 / f64::from(a).sqrt()) as f32),
        "ex2" => shaped!(unary, ftz, sat, |a| libm::exp2(a.into()) as f32),
        "lg2" => shaped!(unary, ftz, sat, |a| libm::log2(a.into()) as f32),
        "sin" => shaped!(unary, ftz, sat, |a| libm::sin(a.into()) as f32),
        "cos" => shaped!(unary, ftz, sat, |a| libm::cos(a.into()) as f32),
        "tanh" => shaped!(unary, ftz, sat, |a| libm::tanh(a.into()) as f32),
        other => return Err(format!("{other} is not defined for F32")),
    })
}

/// The closure of an instruction on two f32 side by side, the first in the lower half (section 9.7.3, `add`, `sub`, `mul` and `fma` of `.f32x2`), and its sources.
pub(crate) fn pairs(name: &str, modifiers: &mut Modifiers<'_>) -> Result<(LaneFn, usize), String> {
    if rounding(modifiers).is_some_and(|r| r != Rounding::Nearest) {
        return Err("pairs round to nearest".to_owned());
    }
    let ftz = modifiers.take("ftz");
    let one: fn(f32, f32, f32) -> f32 = match name {
        "add" => |a, b, _| a + b,
        "sub" => |a, b, _| a - b,
        "mul" => |a, b, _| a * b,
        "fma" => f32::mul_add,
        other => return Err(format!("{other} is not defined for F32x2")),
    };
    let shaped = move |x: f32| if ftz { flush(x) } else { x };
    let both = move |x: [u64; 3]| {
        let half = |shift: u32| {
            let [a, b, c] = x.map(|bits| shaped(f32::from_bits((bits >> shift) as u32)));
            u64::from(shaped(one(a, b, c)).to_bits()) << shift
        };
        half(0) | half(32)
    };
    Ok(match name {
        "fma" => (ternary(move |a: u64, b: u64, c: u64| both([a, b, c])), 3),
        _ => (binary(move |a: u64, b: u64| both([a, b, 0])), 2),
    })
}

/// The closure of an instruction on f64.
pub(crate) fn double(name: &str, modifiers: &mut Modifiers<'_>) -> Result<LaneFn, String> {
    if rounding(modifiers).is_some_and(|r| r != Rounding::Nearest) {
        return Err("f64 rounds only to nearest".to_owned());
    }
    if ["rcp", "rsqrt"].contains(&name) {
        modifiers.ignore(&["approx", "ftz"]);
    }
    let negative = f64::is_sign_negative;
    Ok(match name {
        "add" => binary(|a: f64, b: f64| a + b),
        "sub" => binary(|a: f64, b: f64| a - b),
        "mul" => binary(|a: f64, b: f64| a * b),
        "fma" | "mad" => ternary(f64::mul_add),
        "div" => binary(|a: f64, b: f64| a / b),
        "min" => binary(move |a: f64, b: f64| min(a, b, false, f64::NAN, negative)),
        "max" => binary(move |a: f64, b: f64| max(a, b, false, f64::NAN, negative)),
        "abs" => unary(f64::abs),
        "neg" => unary(|a: f64| -a),
        "rcp" => unary(|a: f64| 1.0 / a),
        "sqrt" => unary(f64::sqrt),
        "rsqrt" => unary(|a: f64| 1.0 / a.sqrt()),
        other => return Err(format!("{other} is not defined for F64")),
    })
}

/// `copysign a, b`: the sign of `a` on `b`.
pub(crate) fn copysign(ty: Ty) -> Result<LaneFn, String> {
    match ty {
        Ty::F32 => Ok(binary(|a: f32, b: f32| b.copysign(a))),
        Ty::F64 => Ok(binary(|a: f64, b: f64| b.copysign(a))),
        other => Err(format!("copysign is not defined for {other:?}")),
    }
}

/// `testp`: asks for the class of a number.
pub(crate) fn test(ty: Ty, modifiers: &mut Modifiers<'_>) -> Result<LaneFn, String> {
    let class = modifiers
        .one_of(&["finite", "infinite", "number", "notanumber", "normal", "subnormal"])
        .ok_or("testp needs a class")?;
    macro_rules! classes {
        ($float:ty) => {
            match class {
                "finite" => unary(<$float>::is_finite),
                "infinite" => unary(<$float>::is_infinite),
                "number" => unary(|a: $float| !a.is_nan()),
                "notanumber" => unary(<$float>::is_nan),
                // As the hardware has it, zero is normal.
                "normal" => unary(|a: $float| a.is_normal() || a == 0.0),
                _ => unary(<$float>::is_subnormal),
            }
        };
    }
    match ty {
        Ty::F32 => Ok(classes!(f32)),
        Ty::F64 => Ok(classes!(f64)),
        other => Err(format!("testp is not defined for {other:?}")),
    }
}
