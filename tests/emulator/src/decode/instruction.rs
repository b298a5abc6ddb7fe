//! One instruction to one operation: which family decodes which name.

use super::Decoded;
use super::context::{Context, SINK};
use super::lanes::LaneFn;
use super::modifiers::Modifiers;
use super::program::{Constant, Op};
use super::types::Ty;
use super::{asynchronous, bits, collective, compare, convert, float, half, integer, memory, moves, tensor};
use crate::ptx::ast::{Instruction, Operand};

/// Decodes an instruction that is not a jump or a call.
pub(crate) fn decode(cx: &mut Context, i: &Instruction) -> Result<Decoded, String> {
    let mut m = Modifiers::new(i);
    let decoded = family(cx, i, &mut m)?;
    m.finish()?;
    Ok(decoded)
}

fn family(cx: &mut Context, i: &Instruction, m: &mut Modifiers<'_>) -> Result<Decoded, String> {
    let o = &i.operands;
    Ok(match i.name.as_str() {
        "mov" => moves::mov(cx, m, o)?,
        "ld" | "ldu" => memory::load_store(cx, true, m, o)?,
        "st" => memory::load_store(cx, false, m, o)?,
        "cvta" => memory::cvta(cx, m, o)?,
        "isspacep" => memory::isspacep(cx, m, o)?,
        "atom" => memory::atomic(cx, true, m, o)?,
        "red" if !m.take("async") => memory::atomic(cx, false, m, o)?,
        "mapa" | "getctarank" => memory::cluster(cx, &i.name, m, o)?,
        "add" | "sub" | "addc" | "subc" if i.modifiers.iter().any(|m| m == "cc") || i.name.ends_with('c') => {
            carrying(cx, &i.name, m, o)?
        }
        "add" | "sub" | "mul" | "mad" | "fma" | "div" | "rem" | "min" | "max" | "abs" | "neg" | "sad" | "mul24"
        | "mad24" | "rcp" | "sqrt" | "rsqrt" | "ex2" | "lg2" | "sin" | "cos" | "tanh" => arithmetic(cx, &i.name, m, o)?,
        "dp4a" | "dp2a" => {
            let high = i.name == "dp2a" && m.one_of(&["hi", "lo"]).ok_or("dp2a needs .lo or .hi")? == "hi";
            let (a, b) = (m.ty()?, m.ty()?);
            let run = integer::dot(&i.name, a.signed(), b.signed(), high);
            same(cx, run, Ty::B32, o, 3)?
        }
        "and" | "or" | "xor" | "not" | "cnot" => {
            let ty = m.ty()?;
            let run = bits::logic(&i.name, ty)?;
            same(cx, run, ty, o, if i.name.ends_with("not") { 1 } else { 2 })?
        }
        "shl" | "shr" => {
            let ty = m.ty()?;
            mixed(cx, bits::shift(&i.name, ty)?, o, &[ty, Ty::U32])?
        }
        "shf" => {
            let run = bits::funnel(m)?;
            m.require("b32")?;
            same(cx, run, Ty::B32, o, 3)?
        }
        "lop3" => lop3(cx, m, o)?,
        "prmt" => {
            m.require("b32")?;
            same(cx, bits::permute(m), Ty::B32, o, 3)?
        }
        "popc" | "clz" | "brev" | "bfind" => {
            let run_of = |m: &mut Modifiers<'_>, ty| bits::count(&i.name, ty, m);
            let ty = m.ty()?;
            let run = run_of(m, ty)?;
            same(cx, run, ty, o, 1)?
        }
        "bfe" => {
            let ty = m.ty()?;
            mixed(cx, bits::extract(ty), o, &[ty, Ty::U32, Ty::U32])?
        }
        "bfi" => {
            let ty = m.ty()?;
            mixed(cx, bits::insert(ty), o, &[ty, ty, Ty::U32, Ty::U32])?
        }
        "bmsk" => {
            m.require("b32")?;
            same(cx, bits::mask(m), Ty::B32, o, 2)?
        }
        "szext" => {
            let ty = m.ty()?;
            let run = bits::extend(ty, m)?;
            mixed(cx, run, o, &[ty, Ty::U32])?
        }
        "setp" | "set" => comparison(cx, &i.name, m, o)?,
        "selp" => {
            let ty = m.ty()?;
            mixed(cx, compare::select(), o, &[ty, ty, Ty::Pred])?
        }
        "slct" => {
            m.ignore(&["ftz"]);
            let (ty, by) = (m.ty()?, m.ty()?);
            mixed(cx, compare::select_by_sign(by)?, o, &[ty, ty, by])?
        }
        "copysign" => {
            let ty = m.ty()?;
            same(cx, float::copysign(ty)?, ty, o, 2)?
        }
        "testp" => {
            let ty = m.ty()?;
            let run = float::test(ty, m)?;
            same(cx, run, ty, o, 1)?
        }
        "cvt" => {
            let d = o.first().ok_or("operands are missing")?;
            let width = cx.reg(d).ok().and_then(|d| cx.declared(d)).map_or(64, Ty::bits);
            let (run, ty, sources) = convert::cvt(m, width)?;
            let types = [ty, ty, if sources == 3 { Ty::B32 } else { ty }];
            mixed(cx, run, o, &types[..sources])?
        }
        "trap" => Decoded { op: Op::Trap, results: vec![], sources: vec![] },
        "nanosleep" => {
            m.require("u32")?;
            Decoded::nothing()
        }
        "brkpt" => Decoded { op: Op::Trap, results: vec![], sources: vec![] },
        // Hints, whatever they say.
        "prefetch" | "prefetchu" | "discard" | "applypriority" | "createpolicy" => {
            while m.first().is_some() {}
            Decoded::nothing()
        }
        "setmaxnreg" => super::registers::decode(m, o)?,
        "membar" => {
            let between_blocks = m.one_of(&["gl", "sys", "cta"]).is_some_and(|scope| scope != "cta");
            if between_blocks { Decoded::fence() } else { Decoded::nothing() }
        }
        name => {
            if let Some(decoded) = collective::decode(cx, name, m, o)? {
                decoded
            } else if let Some(decoded) = tensor::decode(cx, name, m, o)? {
                decoded
            } else if let Some(decoded) = asynchronous::decode(cx, name, m, o)? {
                decoded
            } else {
                return Err(format!("the instruction {name} is not supported"));
            }
        }
    })
}

/// A result and sources that all have one type.
fn same(cx: &mut Context, run: LaneFn, ty: Ty, operands: &[Operand], sources: usize) -> Result<Decoded, String> {
    mixed(cx, run, operands, &[ty; 4][..sources])
}

/// A result and sources of these types.
fn mixed(cx: &mut Context, run: LaneFn, operands: &[Operand], types: &[Ty]) -> Result<Decoded, String> {
    let [d, sources @ ..] = operands else { return Err("operands are missing".to_owned()) };
    if sources.len() != types.len() {
        return Err(format!("{} sources are expected, and {} are given", types.len(), sources.len()));
    }
    let sources = sources.iter().zip(types).map(|(o, &ty)| cx.source(o, ty)).collect::<Result<Vec<_>, _>>()?;
    Ok(Decoded::lanes(run, vec![cx.reg(d)?], sources))
}

fn arithmetic(cx: &mut Context, name: &str, m: &mut Modifiers<'_>, o: &[Operand]) -> Result<Decoded, String> {
    if let Some(pair) = m.one_of(&["s16x2", "u16x2"]) {
        return same(cx, integer::pairs(name, pair == "s16x2")?, Ty::B32, o, 2);
    }
    if m.take("f32x2") {
        let (run, sources) = float::pairs(name, m)?;
        return same(cx, run, Ty::B64, o, sources);
    }
    let ty = m.ty()?;
    let sources = match name {
        "abs" | "neg" | "rcp" | "sqrt" | "rsqrt" | "ex2" | "lg2" | "sin" | "cos" | "tanh" => 1,
        "mad" | "fma" | "sad" | "mad24" => 3,
        _ => 2,
    };
    let run = match ty {
        Ty::F32 => float::single(name, m)?,
        Ty::F64 => float::double(name, m)?,
        Ty::F16 | Ty::F16x2 | Ty::Bf16 | Ty::Bf16x2 => half::half(name, ty, m)?,
        _ => {
            let (run, wide) = integer::arithmetic(name, ty, m)?;
            let addend = match (wide, ty.bits()) {
                (false, _) => ty,
                (true, 16) => Ty::B32,
                (true, _) => Ty::B64,
            };
            return mixed(cx, run, o, &[ty, ty, addend][..sources]);
        }
    };
    same(cx, run, ty, o, sources)
}

/// The carry is a register of its own, of all functions the same.
fn carrying(cx: &mut Context, name: &str, m: &mut Modifiers<'_>, o: &[Operand]) -> Result<Decoded, String> {
    let sets = m.take("cc");
    let ty = m.ty()?;
    let [d, a, b] = o else { return Err("three operands are expected".to_owned()) };
    let carry = cx.carry();
    let before = if name.ends_with('c') { carry } else { cx.constant(Constant::Bits(0)) };
    let results = vec![cx.reg(d)?, if sets { carry } else { SINK }];
    let sources = vec![cx.source(a, ty)?, cx.source(b, ty)?, before];
    Ok(Decoded::lanes(integer::carrying(name, ty)?, results, sources))
}

fn lop3(cx: &mut Context, m: &mut Modifiers<'_>, o: &[Operand]) -> Result<Decoded, String> {
    m.require("b32")?;
    let [d, a, b, c, table] = o else { return Err("five operands are expected".to_owned()) };
    let run = bits::lop3(Context::immediate(table)? as u8);
    same(cx, run, Ty::B32, &[d.clone(), a.clone(), b.clone(), c.clone()], 3)
}

fn comparison(cx: &mut Context, name: &str, m: &mut Modifiers<'_>, o: &[Operand]) -> Result<Decoded, String> {
    let (d, a, b, with) = match o {
        [d, a, b] => (d, a, b, None),
        [d, a, b, with] => (d, a, b, Some(with)),
        _ => return Err("three or four operands are expected".to_owned()),
    };
    let (with, negated) = match with {
        None => (SINK, false),
        Some(Operand::Not(name)) => (cx.reg(&Operand::Name(name.clone()))?, true),
        Some(with) => (cx.reg(with)?, false),
    };
    if name == "set" {
        let (run, ty) = compare::set(m, negated)?;
        let sources = vec![cx.source(a, ty)?, cx.source(b, ty)?, with];
        return Ok(Decoded::lanes(run, vec![cx.reg(d)?], sources));
    }
    let (run, ty) = compare::setp(m, negated)?;
    let (p, q) = match d {
        Operand::Pair(p, q) => (cx.reg(p)?, cx.reg(q)?),
        p => (cx.reg(p)?, SINK),
    };
    let sources = vec![cx.source(a, ty)?, cx.source(b, ty)?, with];
    Ok(Decoded::lanes(run, vec![p, q], sources))
}
