//! Comparison and selection (PTX ISA, sections 9.7.6 and 9.7.7).

use super::integer::with_int;
use super::lanes::{LaneFn, general, ternary};
use super::modifiers::Modifiers;
use super::types::{Slot, Ty};
use crate::numbers::flush;

const COMPARISONS: [&str; 18] = [
    "eq", "ne", "lt", "le", "gt", "ge", "lo", "ls", "hi", "hs", "equ", "neu", "ltu", "leu", "gtu", "geu", "num", "nan",
];

/// Whether the comparison holds for the order of two numbers; `None` where one is NaN.
fn holds(comparison: &str) -> Result<[bool; 4], String> {
    // Less, equal, greater, unordered.
    Ok(match comparison {
        "eq" => [false, true, false, false],
        "ne" => [true, false, true, false],
        "lt" | "lo" => [true, false, false, false],
        "le" | "ls" => [true, true, false, false],
        "gt" | "hi" => [false, false, true, false],
        "ge" | "hs" => [false, true, true, false],
        "equ" => [false, true, false, true],
        "neu" => [true, false, true, true],
        "ltu" => [true, false, false, true],
        "leu" => [true, true, false, true],
        "gtu" => [false, false, true, true],
        "geu" => [false, true, true, true],
        "num" => [true, true, true, false],
        "nan" => [false, false, false, true],
        other => return Err(format!("there is no comparison {other}")),
    })
}

/// A comparison of two values of a type, as a function of slots.
type Compare = Box<dyn Fn(u64, u64) -> bool + Send + Sync>;

fn ordered<T: Slot + PartialOrd>(table: [bool; 4]) -> Compare {
    Box::new(move |a, b| {
        let (a, b) = (T::get(a), T::get(b));
        table[a.partial_cmp(&b).map_or(3, |order| (order as i8 + 1) as usize)]
    })
}

fn comparison(table: [bool; 4], ty: Ty, ftz: bool) -> Result<Compare, String> {
    Ok(match ty {
        Ty::F32 if ftz => {
            let inner = ordered::<f32>(table);
            let flushed = |slot: u64| flush(f32::get(slot)).put();
            Box::new(move |a, b| inner(flushed(a), flushed(b)))
        }
        Ty::F32 => ordered::<f32>(table),
        Ty::F64 => ordered::<f64>(table),
        Ty::F16 => ordered::<half::f16>(table),
        Ty::Bf16 => ordered::<half::bf16>(table),
        _ => with_int!(ty, T => ordered::<T>(table)),
    })
}

/// How a comparison is combined with a predicate.
fn combine(kind: Option<&str>, value: bool, with: bool) -> bool {
    match kind {
        Some("and") => value & with,
        Some("or") => value | with,
        Some("xor") => value ^ with,
        _ => value,
    }
}

/// `setp`: the results are p and q, the sources a, b and the predicate to combine with, which may be negated.
pub(crate) fn setp(modifiers: &mut Modifiers<'_>, negated: bool) -> Result<(LaneFn, Ty), String> {
    let name = modifiers.one_of(&COMPARISONS).ok_or("setp needs a comparison")?;
    let kind = modifiers.one_of(&["and", "or", "xor"]);
    let ftz = modifiers.take("ftz");
    let ty = modifiers.ty()?;
    let table = holds(name)?;
    if matches!(ty, Ty::F16x2 | Ty::Bf16x2) {
        let scalar = comparison(table, if ty == Ty::F16x2 { Ty::F16 } else { Ty::Bf16 }, false)?;
        let run = general(move |[a, b, c]: [u64; 3]| {
            let with = (c & 1 != 0) ^ negated;
            [scalar(a, b), scalar(a >> 16, b >> 16)].map(|v| u64::from(combine(kind, v, with)))
        });
        return Ok((run, ty));
    }
    if kind.is_none() {
        // What loops do: no boxed comparison inside.
        if let Some(run) = simple(name, ty) {
            return Ok((run, ty));
        }
    }
    let compare = comparison(table, ty, ftz)?;
    let run = general(move |[a, b, c]: [u64; 3]| {
        let (value, with) = (compare(a, b), (c & 1 != 0) ^ negated);
        [u64::from(combine(kind, value, with)), u64::from(combine(kind, !value, with))]
    });
    Ok((run, ty))
}

/// Comparisons of 32 and 64 bits, the first result only; the second is written by a row of its own.
fn simple(name: &str, ty: Ty) -> Option<LaneFn> {
    macro_rules! orders {
        ($t:ty) => {
            match name {
                "eq" => both(|a: $t, b: $t| a == b),
                "ne" => both(|a: $t, b: $t| a != b),
                "lt" => both(|a: $t, b: $t| a < b),
                "le" => both(|a: $t, b: $t| a <= b),
                "gt" => both(|a: $t, b: $t| a > b),
                "ge" => both(|a: $t, b: $t| a >= b),
                _ => return None,
            }
        };
    }
    Some(match ty {
        Ty::S32 => orders!(i32),
        Ty::U32 | Ty::B32 => orders!(u32),
        Ty::S64 => orders!(i64),
        Ty::U64 | Ty::B64 => orders!(u64),
        _ => return None,
    })
}

fn both<T: Slot>(f: impl Fn(T, T) -> bool + Send + Sync + 'static) -> LaneFn {
    Box::new(move |rows, regs, mask| {
        let (a, b) = (rows[regs[2] as usize], rows[regs[3] as usize]);
        let mut values = 0u32;
        for lane in 0..super::lanes::LANES {
            values |= u32::from(f(T::get(a[lane]), T::get(b[lane]))) << lane;
        }
        for (&reg, values) in regs[..2].iter().zip([values, !values]) {
            if reg == super::context::SINK {
                continue;
            }
            for (lane, slot) in rows[reg as usize].iter_mut().enumerate() {
                if mask >> lane & 1 != 0 {
                    *slot = u64::from(values >> lane & 1);
                }
            }
        }
    })
}

/// `set`: all ones or 1.0 where the comparison holds.
pub(crate) fn set(modifiers: &mut Modifiers<'_>, negated: bool) -> Result<(LaneFn, Ty), String> {
    let name = modifiers.one_of(&COMPARISONS).ok_or("set needs a comparison")?;
    let kind = modifiers.one_of(&["and", "or", "xor"]);
    let ftz = modifiers.take("ftz");
    let (to, ty) = (modifiers.ty()?, modifiers.ty()?);
    let yes = match to {
        Ty::F32 => 0x3f80_0000,
        Ty::F16 => 0x3c00,
        Ty::Bf16 => 0x3f80,
        Ty::U32 | Ty::S32 | Ty::B32 => 0xffff_ffff,
        Ty::U16 | Ty::S16 => 0xffff,
        other => return Err(format!("set has no results of type {other:?}")),
    };
    let compare = comparison(holds(name)?, ty, ftz)?;
    let run = general(move |[a, b, c]: [u64; 3]| {
        [if combine(kind, compare(a, b), (c & 1 != 0) ^ negated) { yes } else { 0 }]
    });
    Ok((run, ty))
}

/// `selp`: one of two, by a predicate.
pub(crate) fn select() -> LaneFn {
    ternary(|a: u64, b: u64, p: bool| if p { a } else { b })
}

/// `slct`: one of two, by the sign of a number.
pub(crate) fn select_by_sign(by: Ty) -> Result<LaneFn, String> {
    match by {
        Ty::S32 => Ok(ternary(|a: u64, b: u64, c: i32| if c >= 0 { a } else { b })),
        Ty::F32 => Ok(ternary(|a: u64, b: u64, c: f32| if c >= 0.0 { a } else { b })),
        other => Err(format!("slct does not select by {other:?}")),
    }
}
