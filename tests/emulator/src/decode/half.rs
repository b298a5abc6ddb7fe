//! Arithmetic on f16 and bf16, alone and in pairs (PTX ISA, section 9.7.4): computed exactly or to odd in f64, rounded once.

use super::lanes::{LaneFn, binary, ternary, unary};
use super::modifiers::Modifiers;
use super::types::Ty;
use crate::numbers::{BF16, F16, Format, Rounding, add_to_odd, bf16_from_f32, f16_from_f32};

/// f32 to a 16-bit format: what the result needs when f32 holds it exactly or nearly so.
fn narrow(format: Format, value: f32) -> u16 {
    if format == F16 { f16_from_f32(value) } else { bf16_from_f32(value) }
}

fn encode(format: Format, value: f64) -> u16 {
    format.encode(value, Rounding::Nearest, false) as u16
}

fn widen(format: Format, bits: u16) -> f64 {
    if format == F16 { half::f16::from_bits(bits).to_f64() } else { f64::from(f32::from_bits(u32::from(bits) << 16)) }
}

fn flush(format: Format, bits: u16) -> u16 {
    let mantissa = if format == F16 { 0x3ff } else { 0x7f };
    if bits & 0x7fff <= mantissa { bits & 0x8000 } else { bits }
}

/// What `.ftz`, `.sat` and `.relu` do to a result.
#[derive(Clone, Copy)]
struct Shape {
    format: Format,
    ftz: bool,
    sat: bool,
    relu: bool,
}

impl Shape {
    fn source(self, bits: u16) -> u16 {
        if self.ftz { flush(self.format, bits) } else { bits }
    }

    fn result(self, bits: u16) -> u16 {
        let mut bits = self.source(bits);
        let negative_or_nan = bits & 0x8000 != 0 || widen(self.format, bits).is_nan();
        if self.sat {
            if negative_or_nan {
                bits = 0;
            } else if widen(self.format, bits) > 1.0 {
                bits = encode(self.format, 1.0);
            }
        }
        if self.relu && bits & 0x8000 != 0 && !widen(self.format, bits).is_nan() {
            bits = 0;
        }
        bits
    }
}

/// A function of up to three numbers of 16 bits.
type Scalar = Box<dyn Fn([u16; 3]) -> u16 + Send + Sync>;

fn scalar(name: &str, shape: Shape, nan: bool) -> Result<(usize, Scalar), String> {
    let format = shape.format;
    let wide = move |bits: u16| widen(format, bits);
    let canonical = 0x7fff;
    let negative = f64::is_sign_negative;
    let (sources, f): (usize, Scalar) = match name {
        "add" => (2, Box::new(move |[a, b, _]| encode(format, add_to_odd(wide(a), wide(b))))),
        "sub" => (2, Box::new(move |[a, b, _]| encode(format, add_to_odd(wide(a), -wide(b))))),
        "mul" => (2, Box::new(move |[a, b, _]| encode(format, wide(a) * wide(b)))),
        "fma" => (3, Box::new(move |[a, b, c]| encode(format, add_to_odd(wide(a) * wide(b), wide(c))))),
        "min" => (
            2,
            Box::new(move |[a, b, _]| {
                let least = super::float::min(wide(a), wide(b), nan, f64::NAN, negative);
                if least.is_nan() { canonical } else { encode(format, least) }
            }),
        ),
        "max" => (
            2,
            Box::new(move |[a, b, _]| {
                let most = super::float::max(wide(a), wide(b), nan, f64::NAN, negative);
                if most.is_nan() { canonical } else { encode(format, most) }
            }),
        ),
        "abs" => (1, Box::new(|[a, ..]| a & 0x7fff)),
        "neg" => (1, Box::new(|[a, ..]| a ^ 0x8000)),
        "ex2" => (1, Box::new(move |[a, ..]| narrow(format, libm::exp2(wide(a)) as f32))),
        "tanh" => (1, Box::new(move |[a, ..]| narrow(format, libm::tanh(wide(a)) as f32))),
        other => return Err(format!("{other} is not defined for numbers of 16 bits")),
    };
    Ok((sources, Box::new(move |x| shape.result(f(x.map(|bits| shape.source(bits)))))))
}

/// The closure of an instruction on `f16`, `f16x2`, `bf16`, `bf16x2`.
pub(crate) fn half(name: &str, ty: Ty, modifiers: &mut Modifiers<'_>) -> Result<LaneFn, String> {
    if super::float::rounding(modifiers).is_some_and(|r| r != Rounding::Nearest) {
        return Err("numbers of 16 bits round to nearest".to_owned());
    }
    if ["ex2", "tanh"].contains(&name) {
        modifiers.require("approx")?;
    }
    let format = if matches!(ty, Ty::F16 | Ty::F16x2) { F16 } else { BF16 };
    let shape = Shape { format, ftz: modifiers.take("ftz"), sat: modifiers.take("sat"), relu: modifiers.take("relu") };
    let nan = modifiers.take("NaN");
    let (sources, f) = scalar(name, shape, nan)?;
    if matches!(ty, Ty::F16 | Ty::Bf16) {
        return Ok(match sources {
            1 => unary(move |a: u16| f([a, 0, 0])),
            2 => binary(move |a: u16, b: u16| f([a, b, 0])),
            _ => ternary(move |a: u16, b: u16, c: u16| f([a, b, c])),
        });
    }
    let both = move |x: [u32; 3]| u32::from(f(x.map(|v| v as u16))) | u32::from(f(x.map(|v| (v >> 16) as u16))) << 16;
    Ok(match sources {
        1 => unary(move |a: u32| both([a, 0, 0])),
        2 => binary(move |a: u32, b: u32| both([a, b, 0])),
        _ => ternary(move |a: u32, b: u32, c: u32| both([a, b, c])),
    })
}
