//! Integer arithmetic (PTX ISA, section 9.7.1) and its extended-precision forms (section 9.7.2).

use super::lanes::{LaneFn, binary, general, ternary, unary};
use super::modifiers::Modifiers;
use super::types::{Slot, Ty};

/// What arithmetic on integers needs of a type.
pub(crate) trait Int: Slot + Ord {
    const BITS: u32;
    fn add(self, other: Self) -> Self;
    fn sub(self, other: Self) -> Self;
    fn mul(self, other: Self) -> Self;
    fn wide(self) -> i128;
    fn narrow(value: i128) -> Self;
    /// Division as the hardware has it: by zero it gives all ones.
    fn div(self, other: Self) -> Self;
    fn rem(self, other: Self) -> Self;
}

macro_rules! ints {
    ($($int:ty),*) => {$(
        impl Int for $int {
            const BITS: u32 = <$int>::BITS;
            #[inline(always)]
            fn add(self, other: Self) -> Self { self.wrapping_add(other) }
            #[inline(always)]
            fn sub(self, other: Self) -> Self { self.wrapping_sub(other) }
            #[inline(always)]
            fn mul(self, other: Self) -> Self { self.wrapping_mul(other) }
            #[inline(always)]
            fn wide(self) -> i128 { i128::from(self) }
            #[inline(always)]
            fn narrow(value: i128) -> Self { value as $int }
            #[inline(always)]
            fn div(self, other: Self) -> Self { if other == 0 { !0 } else { self.wrapping_div(other) } }
            #[inline(always)]
            fn rem(self, other: Self) -> Self { if other == 0 { self } else { self.wrapping_rem(other) } }
        }
    )*};
}
ints!(i8, u8, i16, u16, i32, u32, i64, u64);

/// Evaluates an expression with a name bound to the Rust type of an integer type.
macro_rules! with_int {
    ($ty:expr, $t:ident => $make:expr) => {
        match $ty {
            $crate::decode::types::Ty::U16 | $crate::decode::types::Ty::B16 => {
                type $t = u16;
                $make
            }
            $crate::decode::types::Ty::U32 | $crate::decode::types::Ty::B32 => {
                type $t = u32;
                $make
            }
            $crate::decode::types::Ty::U64 | $crate::decode::types::Ty::B64 => {
                type $t = u64;
                $make
            }
            $crate::decode::types::Ty::S16 => {
                type $t = i16;
                $make
            }
            $crate::decode::types::Ty::S32 => {
                type $t = i32;
                $make
            }
            $crate::decode::types::Ty::S64 => {
                type $t = i64;
                $make
            }
            other => return Err(format!("no integers of type {other:?} here")),
        }
    };
}
pub(crate) use with_int;

/// Which part of a product is taken.
#[derive(Clone, Copy, PartialEq)]
enum Part {
    Low,
    High,
    Wide,
}

fn part(modifiers: &mut Modifiers<'_>) -> Result<Part, String> {
    match modifiers.one_of(&["lo", "hi", "wide"]) {
        Some("lo") => Ok(Part::Low),
        Some("hi") => Ok(Part::High),
        Some("wide") => Ok(Part::Wide),
        _ => Err("a product needs .lo, .hi or .wide".to_owned()),
    }
}

/// The closure of an instruction, and whether its result (and the addend of `mad`) is twice as wide.
pub(crate) fn arithmetic(name: &str, ty: Ty, modifiers: &mut Modifiers<'_>) -> Result<(LaneFn, bool), String> {
    let narrow = match name {
        "mul" => {
            let part = part(modifiers)?;
            return Ok((product(ty, part)?, part == Part::Wide));
        }
        "mad" => {
            let part = part(modifiers)?;
            return Ok((product_sum(ty, part)?, part == Part::Wide));
        }
        "mul24" | "mad24" => {
            modifiers.require("lo")?;
            let low = |v: u64| super::types::truncate(v, 24);
            match (name, ty.signed()) {
                (_, true) => return Err("only the unsigned form is supported".to_owned()),
                ("mul24", _) => binary(move |a: u64, b: u64| (low(a) * low(b)) as u32),
                _ => ternary(move |a: u64, b: u64, c: u32| ((low(a) * low(b)) as u32).wrapping_add(c)),
            }
        }
        "add" if ty == Ty::S32 && modifiers.take("sat") => binary(i32::saturating_add),
        "sub" if ty == Ty::S32 && modifiers.take("sat") => binary(i32::saturating_sub),
        "add" => with_int!(ty, T => binary(<T as Int>::add)),
        "sub" => with_int!(ty, T => binary(<T as Int>::sub)),
        "div" => with_int!(ty, T => binary(<T as Int>::div)),
        "rem" => with_int!(ty, T => binary(<T as Int>::rem)),
        "min" if ty == Ty::S32 && modifiers.take("relu") => binary(|a: i32, b: i32| a.min(b).max(0)),
        "max" if ty == Ty::S32 && modifiers.take("relu") => binary(|a: i32, b: i32| a.max(b).max(0)),
        "min" => with_int!(ty, T => binary(|a: T, b: T| a.min(b))),
        "max" => with_int!(ty, T => binary(|a: T, b: T| a.max(b))),
        "abs" => match ty {
            Ty::S16 => unary(i16::wrapping_abs),
            Ty::S32 => unary(i32::wrapping_abs),
            _ => unary(i64::wrapping_abs),
        },
        "neg" => with_int!(ty, T => unary(T::wrapping_neg)),
        "sad" => with_int!(ty, T => ternary(|a: T, b: T, c: T| Int::add(c, T::narrow((a.wide() - b.wide()).abs())))),
        other => return Err(format!("{other} is not defined for {ty:?}")),
    };
    Ok((narrow, false))
}

fn product(ty: Ty, part: Part) -> Result<LaneFn, String> {
    Ok(match (part, ty) {
        (Part::Low, _) => with_int!(ty, T => binary(<T as Int>::mul)),
        (Part::Wide, Ty::U16) => binary(|a: u16, b: u16| u32::from(a) * u32::from(b)),
        (Part::Wide, Ty::S16) => binary(|a: i16, b: i16| i32::from(a) * i32::from(b)),
        (Part::Wide, Ty::U32) => binary(|a: u32, b: u32| u64::from(a) * u64::from(b)),
        (Part::Wide, Ty::S32) => binary(|a: i32, b: i32| i64::from(a) * i64::from(b)),
        (Part::Wide, _) => return Err(format!("no wide products of {ty:?}")),
        (Part::High, _) => with_int!(ty, T => binary(|a: T, b: T| high(a, b))),
    })
}

/// The high half; of two u64 the product does not fit an i128.
fn high<T: Int>(a: T, b: T) -> T {
    let wrapped = a.wide().wrapping_mul(b.wide());
    if T::BITS == 64 && a.wide() >= 0 && b.wide() >= 0 {
        return T::narrow((wrapped as u128 >> 64) as i128);
    }
    T::narrow(wrapped >> T::BITS)
}

fn product_sum(ty: Ty, part: Part) -> Result<LaneFn, String> {
    Ok(match (part, ty) {
        (Part::Low, _) => with_int!(ty, T => ternary(|a: T, b: T, c: T| Int::add(Int::mul(a, b), c))),
        (Part::Wide, Ty::U16) => ternary(|a: u16, b: u16, c: u32| (u32::from(a) * u32::from(b)).wrapping_add(c)),
        (Part::Wide, Ty::S16) => ternary(|a: i16, b: i16, c: i32| (i32::from(a) * i32::from(b)).wrapping_add(c)),
        (Part::Wide, Ty::U32) => ternary(|a: u32, b: u32, c: u64| (u64::from(a) * u64::from(b)).wrapping_add(c)),
        (Part::Wide, Ty::S32) => ternary(|a: i32, b: i32, c: i64| (i64::from(a) * i64::from(b)).wrapping_add(c)),
        (Part::Wide, _) => return Err(format!("no wide products of {ty:?}")),
        (Part::High, _) => with_int!(ty, T => ternary(|a: T, b: T, c: T| Int::add(high(a, b), c))),
    })
}

/// `add`, `min`, `max` on pairs of 16 bits.
pub(crate) fn pairs(name: &str, signed: bool) -> Result<LaneFn, String> {
    fn both(a: u32, b: u32, f: impl Fn(u16, u16) -> u16) -> u32 {
        u32::from(f(a as u16, b as u16)) | u32::from(f((a >> 16) as u16, (b >> 16) as u16)) << 16
    }
    Ok(match (name, signed) {
        ("add", _) => binary(|a, b| both(a, b, u16::wrapping_add)),
        ("min", false) => binary(|a, b| both(a, b, Ord::min)),
        ("max", false) => binary(|a, b| both(a, b, Ord::max)),
        ("min", true) => binary(|a, b| both(a, b, |x, y| (x as i16).min(y as i16) as u16)),
        ("max", true) => binary(|a, b| both(a, b, |x, y| (x as i16).max(y as i16) as u16)),
        _ => return Err(format!("{name} is not defined for pairs of integers")),
    })
}

/// Sums with carries: results are the sum and the carry, sources the numbers and the carry before.
pub(crate) fn carrying(name: &str, ty: Ty) -> Result<LaneFn, String> {
    let bits = ty.bits();
    let split = move |v: u128| [super::types::truncate(v as u64, bits), (v >> bits) as u64 & 1];
    let wide = u128::from;
    Ok(match name {
        "add" | "addc" => general(move |[a, b, carry]: [u64; 3]| split(wide(a) + wide(b) + wide(carry))),
        "sub" | "subc" => {
            general(move |[a, b, borrow]: [u64; 3]| split(wide(a).wrapping_sub(wide(b)).wrapping_sub(wide(borrow))))
        }
        other => return Err(format!("{other} has no form with a carry")),
    })
}

/// `dp4a` and `dp2a`: sums of products of bytes.
pub(crate) fn dot(name: &str, a_signed: bool, b_signed: bool, high: bool) -> LaneFn {
    fn extended(value: u32, bits: u32, at: u32, signed: bool) -> i64 {
        let part = u64::from(value >> (at * bits)) & ((1 << bits) - 1);
        if signed { super::types::sign_extend(part, bits) as i64 } else { part as i64 }
    }
    if name == "dp4a" {
        return ternary(move |a: u32, b: u32, c: u32| {
            let sum: i64 = (0..4).map(|i| extended(a, 8, i, a_signed) * extended(b, 8, i, b_signed)).sum();
            c.wrapping_add(sum as u32)
        });
    }
    let from = if high { 2 } else { 0 };
    ternary(move |a: u32, b: u32, c: u32| {
        let sum: i64 = (0..2).map(|i| extended(a, 16, i, a_signed) * extended(b, 8, from + i, b_signed)).sum();
        c.wrapping_add(sum as u32)
    })
}
