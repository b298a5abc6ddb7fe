//! Logic, shifts and bit fields (PTX ISA, sections 9.7.1.16 to 9.7.1.24 and 9.7.8).

use super::lanes::{LaneFn, binary, general, ternary, unary};
use super::modifiers::Modifiers;
use super::types::{Ty, sign_extend, truncate};

/// `and`, `or`, `xor`, `not`, `cnot`, on integers and predicates.
pub(crate) fn logic(name: &str, ty: Ty) -> Result<LaneFn, String> {
    let bits = if ty == Ty::Pred { 1 } else { ty.bits() };
    Ok(match name {
        "and" => binary(|a: u64, b: u64| a & b),
        "or" => binary(|a: u64, b: u64| a | b),
        "xor" => binary(|a: u64, b: u64| a ^ b),
        "not" => unary(move |a: u64| truncate(!a, bits)),
        "cnot" => unary(|a: u64| u64::from(a == 0)),
        other => return Err(format!("{other} is not logic")),
    })
}

/// `shl` and `shr`; amounts past the width shift everything out.
pub(crate) fn shift(name: &str, ty: Ty) -> Result<LaneFn, String> {
    let bits = ty.bits();
    if name == "shl" {
        return Ok(binary(move |a: u64, n: u32| if n >= bits { 0 } else { truncate(a << n, bits) }));
    }
    if ty.signed() {
        return Ok(binary(move |a: u64, n: u32| {
            truncate((sign_extend(a, bits) as i64 >> n.min(bits - 1)) as u64, bits)
        }));
    }
    Ok(binary(move |a: u64, n: u32| if n >= bits { 0 } else { a >> n }))
}

/// `shf`: a shift over two registers.
pub(crate) fn funnel(modifiers: &mut Modifiers<'_>) -> Result<LaneFn, String> {
    let left = match modifiers.one_of(&["l", "r"]) {
        Some(side) => side == "l",
        None => return Err("shf needs .l or .r".to_owned()),
    };
    let wrap = match modifiers.one_of(&["wrap", "clamp"]) {
        Some(mode) => mode == "wrap",
        None => return Err("shf needs .wrap or .clamp".to_owned()),
    };
    let amount = move |n: u32| if wrap { n & 31 } else { n.min(32) };
    Ok(ternary(move |low: u32, high: u32, n: u32| {
        let both = u64::from(high) << 32 | u64::from(low);
        if left { ((both << amount(n)) >> 32) as u32 } else { (both >> amount(n)) as u32 }
    }))
}

/// `lop3`: any function of three bits, by its table.
pub(crate) fn lop3(table: u8) -> LaneFn {
    ternary(move |a: u32, b: u32, c: u32| {
        let mut out = 0;
        for row in 0..8 {
            if table >> row & 1 != 0 {
                let take = |value: u32, bit: u32| if row >> bit & 1 != 0 { value } else { !value };
                out |= take(a, 2) & take(b, 1) & take(c, 0);
            }
        }
        out
    })
}

/// `prmt`: picks bytes of two registers.
pub(crate) fn permute(modifiers: &mut Modifiers<'_>) -> LaneFn {
    let byte = |a: u32, b: u32, at: u32| ((u64::from(b) << 32 | u64::from(a)) >> (8 * (at & 7))) as u32 & 0xff;
    let mode = modifiers.one_of(&["f4e", "b4e", "rc8", "ecl", "ecr", "rc16"]);
    // Where each byte comes from, in the modes that name one position.
    let from: Option<fn(u32, u32) -> u32> = match mode {
        Some("f4e") => Some(|n, i| n + i),
        Some("b4e") => Some(|n, i| n.wrapping_sub(i)),
        Some("rc8") => Some(|n, _| n),
        Some("ecl") => Some(|n, i| n.max(i)),
        Some("ecr") => Some(|n, i| n.min(i)),
        Some("rc16") => Some(|n, i| (n & 1) * 2 + (i & 1)),
        _ => None,
    };
    ternary(move |a: u32, b: u32, selector: u32| {
        (0..4).fold(0, |out, i| {
            let value = match from {
                Some(from) => byte(a, b, from(selector & 3, i)),
                None => {
                    let pick = selector >> (4 * i);
                    let value = byte(a, b, pick & 7);
                    // The fourth bit copies the sign over the byte.
                    if pick & 8 == 0 { value } else { (value >> 7) * 0xff }
                }
            };
            out | value << (8 * i)
        })
    })
}

/// `popc`, `clz`, `brev`, `bfind`.
pub(crate) fn count(name: &str, ty: Ty, modifiers: &mut Modifiers<'_>) -> Result<LaneFn, String> {
    let bits = ty.bits();
    Ok(match name {
        "popc" => unary(|a: u64| a.count_ones()),
        "clz" => unary(move |a: u64| a.leading_zeros() - (64 - bits)),
        "brev" => unary(move |a: u64| a.reverse_bits() >> (64 - bits)),
        "bfind" => {
            let amount = modifiers.take("shiftamt");
            let signed = ty.signed();
            unary(move |a: u64| {
                let a = if signed && sign_extend(a, bits) as i64 <= -1 { truncate(!a, bits) } else { a };
                match a.checked_ilog2() {
                    None => u32::MAX,
                    Some(at) if amount => bits - 1 - at,
                    Some(at) => at,
                }
            })
        }
        other => return Err(format!("{other} does not count bits")),
    })
}

/// `bfe`: a field, sign- or zero-extended.
pub(crate) fn extract(ty: Ty) -> LaneFn {
    let (bits, signed) = (ty.bits(), ty.signed());
    ternary(move |a: u64, at: u32, length: u32| {
        let (at, length) = (at & 0xff, length & 0xff);
        if length == 0 {
            return 0;
        }
        let sign_at = (at + length - 1).min(bits - 1);
        let fill = if signed && a >> sign_at & 1 != 0 { u64::MAX } else { 0 };
        let field = if at >= bits { 0 } else { a >> at };
        let held = bits.saturating_sub(at).min(length);
        let low = truncate(field, held);
        truncate(if held >= 64 { low } else { low | fill << held }, bits)
    })
}

/// `bfi`: a field put into a number.
pub(crate) fn insert(ty: Ty) -> LaneFn {
    let bits = ty.bits();
    general(move |[a, b, at, length]: [u64; 4]| {
        let (at, length) = ((at & 0xff) as u32, (length & 0xff) as u32);
        if at >= bits {
            return [b];
        }
        let mask = truncate(truncate(u64::MAX, length) << at, bits);
        [(b & !mask) | (a << at & mask)]
    })
}

/// `bmsk`: a mask of a width at a position.
pub(crate) fn mask(modifiers: &mut Modifiers<'_>) -> LaneFn {
    let wrap = modifiers.one_of(&["wrap", "clamp"]) == Some("wrap");
    binary(move |at: u32, length: u32| {
        let (at, length) = if wrap { (at & 31, length & 31) } else { (at.min(32), length.min(32)) };
        (truncate(u64::MAX, length) << at) as u32
    })
}

/// `szext`: the low bits, sign- or zero-extended.
pub(crate) fn extend(ty: Ty, modifiers: &mut Modifiers<'_>) -> Result<LaneFn, String> {
    let wrap = modifiers.one_of(&["wrap", "clamp"]) == Some("wrap");
    let signed = ty.signed();
    if !matches!(ty, Ty::U32 | Ty::S32) {
        return Err(format!("szext is not defined for {ty:?}"));
    }
    Ok(binary(move |a: u32, n: u32| {
        let n = if wrap { n & 31 } else { n.min(32) };
        let low = truncate(a.into(), n);
        if signed && n > 0 { sign_extend(low, n) as u32 } else { low as u32 }
    }))
}
