//! Conversions (PTX ISA, section 9.7.9.21): between integers and floats of all widths, and packing.

use super::lanes::{LaneFn, binary, general, ternary, unary};
use super::modifiers::Modifiers;
use super::types::{Ty, sign_extend, truncate};
use crate::numbers::{BF16, E4M3, E5M2, F16, F32, Format, Rounding, TF32, bf16_from_f32, f16_from_f32, flush};

/// A float format, or none for f64.
fn format(ty: Ty) -> Option<Format> {
    match ty {
        Ty::F16 | Ty::F16x2 => Some(F16),
        Ty::Bf16 | Ty::Bf16x2 => Some(BF16),
        Ty::F32 => Some(F32),
        Ty::Tf32 => Some(TF32),
        Ty::E4m3 | Ty::E4m3x2 => Some(E4M3),
        Ty::E5m2 | Ty::E5m2x2 => Some(E5M2),
        _ => None,
    }
}

fn to_f64(ty: Ty) -> impl Fn(u64) -> f64 + Copy + Send + Sync + 'static {
    let format = format(ty);
    move |bits| match format {
        Some(F32) => f64::from(f32::from_bits(bits as u32)),
        Some(format) => format.decode(bits as u32),
        None => f64::from_bits(bits),
    }
}

#[derive(Default)]
struct Options {
    rounding: Option<Rounding>,
    /// To a whole number.
    whole: Option<Rounding>,
    ftz: bool,
    sat: bool,
    satfinite: bool,
    relu: bool,
}

fn options(modifiers: &mut Modifiers<'_>) -> Options {
    let whole = modifiers.one_of(&["rni", "rzi", "rmi", "rpi"]).map(|name| match name {
        "rni" => Rounding::Nearest,
        "rzi" => Rounding::Zero,
        "rmi" => Rounding::Down,
        _ => Rounding::Up,
    });
    let away = modifiers.take("rna");
    Options {
        rounding: if away { Some(Rounding::NearestAway) } else { super::float::rounding(modifiers) },
        whole,
        ftz: modifiers.take("ftz"),
        sat: modifiers.take("sat"),
        satfinite: modifiers.take("satfinite"),
        relu: modifiers.take("relu"),
    }
}

fn to_whole(value: f64, rounding: Rounding) -> f64 {
    match rounding {
        Rounding::Nearest => value.round_ties_even(),
        Rounding::NearestAway => value.round(),
        Rounding::Zero => value.trunc(),
        Rounding::Down => value.floor(),
        Rounding::Up => value.ceil(),
    }
}

/// `cvt`: the closure, the type of the sources and their number. `width` is the result's declared width in bits.
pub(crate) fn cvt(modifiers: &mut Modifiers<'_>, width: u32) -> Result<(LaneFn, Ty, usize), String> {
    if modifiers.take("pack") {
        return pack(modifiers);
    }
    let options = options(modifiers);
    let (to, from) = (modifiers.ty()?, modifiers.ty()?);
    if matches!(to, Ty::F16x2 | Ty::Bf16x2 | Ty::E4m3x2 | Ty::E5m2x2) {
        return pairs(to, from, &options);
    }
    let run = match (to.integer(), from.integer()) {
        (true, true) => integers(to, from, options.sat, width),
        (true, false) => {
            let rounding = options.whole.ok_or("a conversion to an integer needs its rounding")?;
            float_to_integer(to, from, rounding, options.ftz, width)
        }
        (false, true) => integer_to_float(to, from, options.rounding.unwrap_or(Rounding::Nearest))?,
        (false, false) => floats(to, from, &options)?,
    };
    Ok((run, from, 1))
}

fn integers(to: Ty, from: Ty, sat: bool, width: u32) -> LaneFn {
    let (source, target) = (from.bits(), to.bits());
    let (signed, to_signed) = (from.signed(), to.signed());
    if sat {
        return unary(move |a: u64| {
            let value =
                if signed { i128::from(sign_extend(a, source) as i64) } else { i128::from(truncate(a, source)) };
            let (least, most) = limits(target, to_signed);
            truncate(value.clamp(least, most) as u64, width)
        });
    }
    // Widening takes the source's sign, a result in a wider register the result's.
    unary(move |a: u64| {
        let value = if signed { sign_extend(a, source) } else { truncate(a, source) };
        let value = if to_signed { sign_extend(value, target) } else { truncate(value, target) };
        truncate(value, width)
    })
}

fn limits(bits: u32, signed: bool) -> (i128, i128) {
    if signed { (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) } else { (0, (1 << bits) - 1) }
}

fn float_to_integer(to: Ty, from: Ty, rounding: Rounding, ftz: bool, width: u32) -> LaneFn {
    let wide = to_f64(from);
    let (least, most) = limits(to.bits(), to.signed());
    // Zero, but where one side has 64 bits the upper half starts.
    let nan = if from == Ty::F64 || to.bits() == 64 { 1 << (to.bits() - 1) } else { 0 };
    let convert = move |a: u64| {
        let a = if ftz { u64::from(flush(f32::from_bits(a as u32)).to_bits()) } else { a };
        let value = wide(a);
        if value.is_nan() {
            return nan;
        }
        // A cast saturates.
        let value = to_whole(value, rounding) as i128;
        truncate(value.clamp(least, most) as u64, width)
    };
    unary(convert)
}

fn integer_to_float(to: Ty, from: Ty, rounding: Rounding) -> Result<LaneFn, String> {
    let (bits, signed) = (from.bits(), from.signed());
    let value =
        move |a: u64| if signed { i128::from(sign_extend(a, bits) as i64) } else { i128::from(truncate(a, bits)) };
    Ok(match (to, rounding) {
        (Ty::F32, Rounding::Nearest) if bits <= 32 && signed => unary(move |a: u64| sign_extend(a, bits) as i64 as f32),
        (Ty::F32, Rounding::Nearest) => unary(move |a: u64| value(a) as f32),
        (Ty::F64, Rounding::Nearest) => unary(move |a: u64| value(a) as f64),
        (Ty::F64, _) if bits <= 32 => unary(move |a: u64| value(a) as f64),
        (Ty::F64, _) => return Err("f64 rounds only to nearest".to_owned()),
        _ if bits <= 32 => {
            let format = format(to).ok_or_else(|| format!("no conversion to {to:?}"))?;
            unary(move |a: u64| format.encode(value(a) as f64, rounding, false))
        }
        _ => {
            let format = format(to).ok_or_else(|| format!("no conversion to {to:?}"))?;
            // The upper part and the rest, to odd.
            unary(move |a: u64| {
                let v = value(a);
                let high = (v >> 32) << 32;
                format.encode(crate::numbers::add_to_odd(high as f64, (v - high) as f64), rounding, false)
            })
        }
    })
}

fn floats(to: Ty, from: Ty, options: &Options) -> Result<LaneFn, String> {
    let &Options { rounding, whole, ftz, sat, relu, satfinite } = options;
    let plain = whole.is_none() && !ftz && !sat && !relu && !satfinite;
    let nearest = rounding.unwrap_or(Rounding::Nearest) == Rounding::Nearest;
    match (to, from) {
        (Ty::F16, Ty::F32) if plain && nearest => return Ok(unary(f16_from_f32)),
        (Ty::Bf16, Ty::F32) if plain && nearest => return Ok(unary(bf16_from_f32)),
        (Ty::F32, Ty::F16) if plain => return Ok(unary(|a: half::f16| a.to_f32())),
        (Ty::F32, Ty::Bf16) if plain => return Ok(unary(|a: u16| u32::from(a) << 16)),
        (Ty::F64, Ty::F32) if plain => return Ok(unary(|a: f32| f64::from(a))),
        _ => {}
    }
    let convert = converter(to, from, options)?;
    Ok(unary(convert))
}

/// One value of a float type to another, with all that the options say.
fn converter(to: Ty, from: Ty, options: &Options) -> Result<impl Fn(u64) -> u64 + Send + Sync + 'static, String> {
    let &Options { rounding, whole, ftz, sat, relu, satfinite } = options;
    let wide = to_f64(from);
    let target = format(to);
    if target.is_none() && to != Ty::F64 {
        return Err(format!("no conversion to {to:?}"));
    }
    let rounding = rounding.unwrap_or(Rounding::Nearest);
    Ok(move |a: u64| {
        let a = if ftz && from == Ty::F32 { u64::from(flush(f32::from_bits(a as u32)).to_bits()) } else { a };
        let mut value = wide(a);
        if let Some(whole) = whole {
            value = to_whole(value, whole);
        }
        if sat {
            value = if value > 0.0 { value.min(1.0) } else { 0.0 };
        }
        if relu && value <= 0.0 {
            value = 0.0;
        }
        let Some(format) = target else { return value.to_bits() };
        if to == Ty::Tf32 && value.is_nan() {
            return 0x7fff_ffff;
        }
        let bits = format.encode(value, rounding, satfinite);
        let bits = if to == Ty::F32 && ftz { flush(f32::from_bits(bits)).to_bits() } else { bits };
        // A tf32 number lies in the upper bits of 32.
        u64::from(if to == Ty::Tf32 { bits << 13 } else { bits })
    })
}

/// Packed conversions: of two f32 (the first source is the upper half), or of two small numbers in one register.
fn pairs(to: Ty, from: Ty, options: &Options) -> Result<(LaneFn, Ty, usize), String> {
    let bits = to.bits() / 2;
    if from == Ty::F32 {
        let plain = !options.ftz && !options.relu && !options.satfinite && options.rounding == Some(Rounding::Nearest);
        let run = match to {
            Ty::Bf16x2 if plain => {
                binary(|a: f32, b: f32| u32::from(bf16_from_f32(a)) << 16 | u32::from(bf16_from_f32(b)))
            }
            Ty::F16x2 if plain => {
                binary(|a: f32, b: f32| u32::from(f16_from_f32(a)) << 16 | u32::from(f16_from_f32(b)))
            }
            _ => {
                let one = converter(to, from, options)?;
                binary(move |a: u64, b: u64| one(a) << bits | one(b))
            }
        };
        return Ok((run, from, 2));
    }
    let source = match from {
        Ty::F16x2 | Ty::Bf16x2 => 16,
        Ty::E4m3x2 | Ty::E5m2x2 => 8,
        other => return Err(format!("no packed conversion from {other:?}")),
    };
    let one = converter(to, from, options)?;
    let run = unary(move |a: u64| one(truncate(a, source)) | one(truncate(a >> source, source)) << bits);
    Ok((run, from, 1))
}

/// `cvt.pack.sat`: two integers, saturated, above what a third register holds.
fn pack(modifiers: &mut Modifiers<'_>) -> Result<(LaneFn, Ty, usize), String> {
    modifiers.require("sat")?;
    let mut types = vec![modifiers.first().unwrap_or_default()];
    while let Some(more) = modifiers.first() {
        types.push(more);
    }
    let (bits, signed) = match types[0] {
        "u16" => (16, false),
        "s16" => (16, true),
        "u8" => (8, false),
        "s8" => (8, true),
        other => return Err(format!("cvt.pack to {other} is not supported")),
    };
    let third = match types[1..] {
        ["s32"] => false,
        ["s32", "b32"] => true,
        _ => return Err("cvt.pack takes .s32 and .b32".to_owned()),
    };
    let (least, most) = limits(bits, signed);
    let one = move |a: i32| truncate(i128::from(a).clamp(least, most) as u64, bits);
    if third {
        // The earlier value moves up by two places.
        return Ok((
            ternary(move |a: i32, b: i32, c: u32| (u64::from(c) << (2 * bits) | one(a) << bits | one(b)) as u32),
            Ty::S32,
            3,
        ));
    }
    Ok((binary(move |a: i32, b: i32| (one(a) << bits | one(b)) as u32), Ty::S32, 2))
}

/// `mov` of a register to its parts, or of parts to a register; parts are of equal width.
pub(crate) fn split<const N: usize>(part_bits: u32) -> LaneFn {
    general(move |[a]: [u64; 1]| std::array::from_fn::<u64, N, _>(|i| truncate(a >> (part_bits * i as u32), part_bits)))
}

/// The inverse of `split`.
pub(crate) fn join<const N: usize>(part_bits: u32) -> LaneFn {
    general(move |parts: [u64; N]| {
        [(0..N).fold(0, |out, i| out | truncate(parts[i], part_bits) << (part_bits * i as u32))]
    })
}
