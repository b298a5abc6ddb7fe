//! Loads, stores, address conversions and atomics (PTX ISA, sections 9.7.9.8 to 9.7.9.20 and 9.7.13).

use super::Decoded;
use super::context::{Context, SINK};
use super::lanes::{Reg, binary, unary};
use super::modifiers::Modifiers;
use super::program::Op;
use super::types::{Slot, Ty, sign_extend, truncate};
use crate::exec::spaces;
use crate::ptx::ast::{Operand, Space};

/// A load or a store of one to eight elements.
pub(crate) struct Access {
    pub(crate) space: Space,
    /// Bytes of one element.
    pub(crate) bytes: u32,
    pub(crate) elements: Box<[Reg]>,
    pub(crate) address: Reg,
    pub(crate) offset: i64,
    /// It says how strong it is.
    pub(crate) strong: bool,
    /// `ld.global.nc`: through a cache that sees no writes.
    pub(crate) read_only: bool,
    /// Loads of signed types fill the register: its bits.
    pub(crate) extend: Option<u32>,
}

/// What an atomic does: the old value and two operands give the new value.
pub(crate) type AtomicFn = Box<dyn Fn(u64, u64, u64) -> u64 + Send + Sync>;

/// What an atomic orders besides itself.
#[derive(Clone, Copy)]
pub(crate) struct Strength {
    /// Also for threads of other blocks.
    pub(crate) between_blocks: bool,
    pub(crate) acquires: bool,
    pub(crate) releases: bool,
}

/// A read-modify-write of one element, or of several side by side (`red.v4.f32`).
pub(crate) struct Atomic {
    pub(crate) space: Space,
    pub(crate) bytes: u32,
    /// `SINK` for `red`.
    pub(crate) old: Box<[Reg]>,
    pub(crate) b: Box<[Reg]>,
    pub(crate) c: Option<Reg>,
    pub(crate) address: Reg,
    pub(crate) offset: i64,
    pub(crate) apply: AtomicFn,
    pub(crate) strength: Strength,
}

/// Ordering, scope and caching: of no effect where blocks take turns, and blocks that wait see what others wrote.
const HINTS: [&str; 34] = [
    "weak",
    "relaxed",
    "acquire",
    "release",
    "acq_rel",
    "volatile",
    "mmio",
    "cta",
    "cluster",
    "gpu",
    "sys",
    "ca",
    "cg",
    "cs",
    "lu",
    "cv",
    "wb",
    "wt",
    "L1::evict_normal",
    "L1::evict_unchanged",
    "L1::evict_first",
    "L1::evict_last",
    "L1::no_allocate",
    "L2::64B",
    "L2::128B",
    "L2::256B",
    "L2::evict_first",
    "L2::evict_last",
    "L2::evict_normal",
    "unified",
    "entry",
    "func",
    "noftz",
    "L2::evict_unchanged",
];

fn space(modifiers: &mut Modifiers<'_>) -> Space {
    let names = ["global", "shared", "shared::cta", "local", "const", "param", "param::entry", "param::func"];
    match modifiers.one_of(&names) {
        Some("global") => Space::Global,
        Some("shared" | "shared::cta") => Space::Shared,
        Some("local") => Space::Local,
        Some("const") => Space::Const,
        Some(_) => Space::Param,
        None => Space::Generic,
    }
}

/// An operand that is a cache policy is ignored.
fn drop_policy<'o>(modifiers: &mut Modifiers<'_>, operands: &'o [Operand]) -> &'o [Operand] {
    if modifiers.take("L2::cache_hint") { &operands[..operands.len() - 1] } else { operands }
}

/// The base, offset and space of an address; parameters of inlined functions lie in local memory.
pub(crate) fn located(cx: &mut Context, operand: &Operand, space: Space) -> Result<(Reg, i64, Space), String> {
    let (address, offset, of) = cx.address(operand)?;
    let space = match (space, of) {
        (Space::Param, Some(space)) => space,
        (Space::Param, None) if cx.inlined() => Space::Local,
        // A name stands for its address in its own space.
        (Space::Generic, Some(of)) if of != Space::Global && of != Space::Const => of,
        (space, _) => space,
    };
    Ok((address, offset, space))
}

/// `ld`, `ldu`, `st`.
pub(crate) fn load_store(
    cx: &mut Context,
    load: bool,
    m: &mut Modifiers<'_>,
    operands: &[Operand],
) -> Result<Decoded, String> {
    let space = space(m);
    let operands = drop_policy(m, operands);
    let read_only = m.take("nc");
    let strong = m.one_of(&["relaxed", "acquire", "release", "volatile", "mmio"]).is_some();
    m.ignore(&HINTS);
    let count = match m.one_of(&["v2", "v4", "v8"]) {
        Some("v2") => 2,
        Some("v4") => 4,
        Some(_) => 8,
        None => 1,
    };
    let ty = m.ty()?;
    let [first, second] = operands else { return Err("two operands are expected".to_owned()) };
    let (value, at) = if load { (first, second) } else { (second, first) };
    if ty == Ty::B128 || count as u32 * ty.bytes() > 32 {
        return Err("registers of 128 bits are not supported".to_owned());
    }
    let (address, offset, space) = located(cx, at, space)?;
    if read_only && (!load || space != Space::Global) {
        return Err(".nc is of loads of global memory".to_owned());
    }
    let elements = if load { cx.regs(value)? } else { cx.sources(value, ty)? };
    if elements.len() != count {
        return Err(format!("{count} elements are expected, and {} are given", elements.len()));
    }
    let declared = elements.iter().find_map(|&r| cx.declared(r)).map_or(ty.bits(), Ty::bits);
    if ty.bits() > declared {
        return Err(format!("registers of {declared} bits do not hold {ty:?}"));
    }
    let extend = (load && ty.signed()).then_some(declared);
    let access = Access {
        space,
        bytes: ty.bytes(),
        elements: elements.clone().into(),
        address,
        offset,
        strong,
        read_only,
        extend,
    };
    Ok(if load {
        Decoded { op: Op::Load(access), results: elements, sources: vec![address] }
    } else {
        let sources = elements.into_iter().chain([address]).collect();
        Decoded { op: Op::Store(access), results: vec![], sources }
    })
}

/// `cvta`: between generic addresses and those of a space.
pub(crate) fn cvta(cx: &mut Context, m: &mut Modifiers<'_>, operands: &[Operand]) -> Result<Decoded, String> {
    let to = m.take("to");
    let space = if m.take("shared::cluster") { Space::Shared } else { space(m) };
    let ty = m.ty()?;
    let [d, a] = operands else { return Err("two operands are expected".to_owned()) };
    let base = spaces::base(space);
    let (d, a) = (cx.reg(d)?, cx.source(a, ty)?);
    let run = if to { unary(move |a: u64| a.wrapping_sub(base)) } else { unary(move |a: u64| a.wrapping_add(base)) };
    Ok(Decoded::lanes(run, vec![d], vec![a]))
}

/// `isspacep`: whether a generic address lies in a space.
pub(crate) fn isspacep(cx: &mut Context, m: &mut Modifiers<'_>, operands: &[Operand]) -> Result<Decoded, String> {
    let space = if m.take("shared::cluster") { Space::Shared } else { space(m) };
    let [p, a] = operands else { return Err("two operands are expected".to_owned()) };
    let (p, a) = (cx.reg(p)?, cx.source(a, Ty::B64)?);
    Ok(Decoded::lanes(unary(move |a: u64| spaces::of(a) == space), vec![p], vec![a]))
}

fn function(name: &str, ty: Ty) -> Result<AtomicFn, String> {
    let bits = ty.bits();
    let signed = move |v: u64| sign_extend(v, bits) as i64;
    fn float<T: Slot>(f: impl Fn(T, T) -> T + Send + Sync + 'static) -> AtomicFn {
        Box::new(move |old, b, _| f(T::get(old), T::get(b)).put())
    }
    let halves = |f: fn(half::f16, half::f16) -> half::f16| -> AtomicFn {
        Box::new(move |old, b, _| {
            let one = |shift: u32| f(half::f16::get(old >> shift), half::f16::get(b >> shift)).put() << shift;
            one(0) | one(16)
        })
    };
    let brains = |f: fn(half::bf16, half::bf16) -> half::bf16| -> AtomicFn {
        Box::new(move |old, b, _| {
            let one = |shift: u32| f(half::bf16::get(old >> shift), half::bf16::get(b >> shift)).put() << shift;
            one(0) | one(16)
        })
    };
    Ok(match (name, ty) {
        ("add", Ty::F32) => float(|a: f32, b: f32| a + b),
        ("add", Ty::F64) => float(|a: f64, b: f64| a + b),
        ("add", Ty::F16) => float(|a: half::f16, b: half::f16| a + b),
        ("add", Ty::Bf16) => float(|a: half::bf16, b: half::bf16| a + b),
        ("add", Ty::F16x2) => halves(|a, b| a + b),
        ("add", Ty::Bf16x2) => brains(|a, b| a + b),
        (_, ty) if ty.float() => return Err(format!("no atomic {name} of {ty:?}")),
        ("add", _) => Box::new(move |old, b, _| truncate(old.wrapping_add(b), bits)),
        ("min", _) if ty.signed() => Box::new(move |old, b, _| if signed(b) < signed(old) { b } else { old }),
        ("max", _) if ty.signed() => Box::new(move |old, b, _| if signed(b) > signed(old) { b } else { old }),
        ("min", _) => Box::new(|old, b, _| old.min(b)),
        ("max", _) => Box::new(|old, b, _| old.max(b)),
        ("and", _) => Box::new(|old, b, _| old & b),
        ("or", _) => Box::new(|old, b, _| old | b),
        ("xor", _) => Box::new(|old, b, _| old ^ b),
        ("exch", _) => Box::new(|_, b, _| b),
        ("cas", _) => Box::new(|old, b, c| if old == b { c } else { old }),
        ("inc", _) => Box::new(|old, b, _| if old >= b { 0 } else { old + 1 }),
        ("dec", _) => Box::new(|old, b, _| if old == 0 || old > b { b } else { old - 1 }),
        _ => return Err(format!("no atomic {name} of {ty:?}")),
    })
}

/// `atom` and `red`.
pub(crate) fn atomic(
    cx: &mut Context,
    result: bool,
    m: &mut Modifiers<'_>,
    operands: &[Operand],
) -> Result<Decoded, String> {
    let space = if m.take("shared::cluster") { Space::Shared } else { space(m) };
    let operands = drop_policy(m, operands);
    let order = m.one_of(&["acq_rel", "acquire", "release", "relaxed"]);
    let strength = Strength {
        between_blocks: m
            .one_of(&["cta", "cluster", "gpu", "sys"])
            .is_none_or(|scope| !matches!(scope, "cta" | "cluster")),
        acquires: matches!(order, Some("acq_rel" | "acquire")),
        releases: matches!(order, Some("acq_rel" | "release")),
    };
    m.ignore(&HINTS);
    let name = m
        .one_of(&["add", "min", "max", "and", "or", "xor", "exch", "cas", "inc", "dec"])
        .ok_or("an operation is expected")?;
    m.ignore(&["v2", "v4", "v8"]);
    let ty = m.ty()?;
    let (old, rest) = match (result, operands) {
        (true, [old, rest @ ..]) => (Some(old), rest),
        (_, rest) => (None, rest),
    };
    let ([at, b], c) = match rest {
        [at, b] if name != "cas" => ([at, b], None),
        [at, b, c] if name == "cas" => ([at, b], Some(c)),
        _ => return Err("a wrong number of operands".to_owned()),
    };
    let (address, offset, space) = located(cx, at, space)?;
    let b = cx.sources(b, ty)?;
    let old = match old {
        Some(old) => cx.regs(old)?,
        None => vec![SINK; b.len()],
    };
    if old.len() != b.len() {
        return Err("as many results as operands are expected".to_owned());
    }
    let c = c.map(|c| cx.source(c, ty)).transpose()?;
    let sources = b.iter().copied().chain(c).chain([address]).collect();
    let results = old.clone();
    let atomic = Atomic {
        space,
        bytes: ty.bytes(),
        old: old.into(),
        b: b.into(),
        c,
        address,
        offset,
        apply: function(name, ty)?,
        strength,
    };
    Ok(Decoded { op: Op::Atomic(atomic), results, sources })
}

/// `mapa` and `getctarank`, where a cluster is one block.
pub(crate) fn cluster(
    cx: &mut Context,
    name: &str,
    m: &mut Modifiers<'_>,
    operands: &[Operand],
) -> Result<Decoded, String> {
    m.ignore(&["shared::cluster"]);
    let ty = m.ty()?;
    match (name, operands) {
        ("mapa", [d, a, rank]) => {
            let regs = (cx.reg(d)?, cx.source(a, ty)?, cx.source(rank, Ty::U32)?);
            Ok(Decoded::lanes(binary(|a: u64, _: u64| a), vec![regs.0], vec![regs.1, regs.2]))
        }
        ("getctarank", [d, a]) => {
            let regs = (cx.reg(d)?, cx.source(a, ty)?);
            Ok(Decoded::lanes(unary(|_: u64| 0u32), vec![regs.0], vec![regs.1]))
        }
        _ => Err("a wrong number of operands".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_of_atomics() {
        let apply = |name, ty, old, b, c| function(name, ty).unwrap()(old, b, c);
        assert_eq!(apply("min", Ty::S32, 0xffff_ffff, 1, 0), 0xffff_ffff);
        assert_eq!(apply("min", Ty::U32, 0xffff_ffff, 1, 0), 1);
        assert_eq!(apply("inc", Ty::U32, 3, 3, 0), 0);
        assert_eq!(apply("dec", Ty::U32, 0, 7, 0), 7);
        assert_eq!(apply("cas", Ty::B32, 5, 5, 9), 9);
        assert_eq!(apply("add", Ty::F32, 1.5f32.put(), 2.0f32.put(), 0), 3.5f32.put());
        assert!(function("min", Ty::F32).is_err());
    }
}
