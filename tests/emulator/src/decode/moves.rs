//! `mov`: of registers, constants, addresses, and between a register and its parts (PTX ISA, sections 9.7.9.1 and 9.7.9.3).

use super::Decoded;
use super::context::Context;
use super::convert::{join, split};
use super::lanes::{LaneFn, unary};
use super::modifiers::Modifiers;
use super::program::Op;
use super::types::Ty;
use crate::ptx::ast::Operand;

/// Decodes `mov`.
pub(crate) fn mov(cx: &mut Context, m: &mut Modifiers<'_>, operands: &[Operand]) -> Result<Decoded, String> {
    let ty = m.ty()?;
    let [d, a] = operands else { return Err("two operands are expected".to_owned()) };
    if let Operand::Name(name) = a
        && ["%clock", "%clock_hi", "%clock64", "%globaltimer", "%globaltimer_lo", "%globaltimer_hi"]
            .contains(&name.as_str())
    {
        let d = cx.reg(d)?;
        let shift = if name.ends_with("_hi") { 32 } else { 0 };
        return Ok(Decoded { op: Op::Clock(d, shift), results: vec![d], sources: vec![] });
    }
    match (d, a) {
        (Operand::Vector(parts), whole) => {
            let (bits, run) = parts_of(ty, parts.len(), true)?;
            let results = parts.iter().map(|p| cx.reg(p)).collect::<Result<Vec<_>, _>>()?;
            widths(cx, &results, bits)?;
            Ok(Decoded::lanes(run, results, vec![cx.source(whole, ty)?]))
        }
        (whole, Operand::Vector(parts)) => {
            let (bits, run) = parts_of(ty, parts.len(), false)?;
            let part = match bits {
                8 => Ty::B8,
                16 => Ty::B16,
                _ => Ty::B32,
            };
            let sources = parts.iter().map(|p| cx.source(p, part)).collect::<Result<Vec<_>, _>>()?;
            widths(cx, &sources, bits)?;
            Ok(Decoded::lanes(run, vec![cx.reg(whole)?], sources))
        }
        _ => {
            let d = cx.reg(d)?;
            let a = cx.source(a, ty)?;
            let widths = [d, a].map(|r| cx.declared(r).map_or(ty.bits(), Ty::bits));
            if ty != Ty::Pred && widths.iter().any(|&w| w != ty.bits()) {
                return Err(format!("a move of {ty:?} between registers of {} and {} bits", widths[0], widths[1]));
            }
            Ok(Decoded::lanes(unary(|a: u64| a), vec![d], vec![a]))
        }
    }
}

fn widths(cx: &Context, regs: &[u32], bits: u32) -> Result<(), String> {
    let wrong = regs.iter().filter_map(|&r| cx.declared(r)).find(|ty| ty.bits() != bits);
    match wrong {
        None => Ok(()),
        Some(ty) => Err(format!("a part of {bits} bits is expected, and {ty:?} is given")),
    }
}

fn parts_of(ty: Ty, n: usize, splits: bool) -> Result<(u32, LaneFn), String> {
    let bits = ty.bits() / n.max(1) as u32;
    let run = match (n, splits) {
        (2, true) => split::<2>(bits),
        (4, true) => split::<4>(bits),
        (2, false) => join::<2>(bits),
        (4, false) => join::<4>(bits),
        _ => return Err(format!("{n} parts of {ty:?}")),
    };
    Ok((bits, run))
}
