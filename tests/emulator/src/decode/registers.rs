//! `setmaxnreg` (PTX ISA, section 9.7.19, "Miscellaneous Instructions").

use super::Decoded;
use super::context::Context;
use super::modifiers::Modifiers;
use super::program::Op;
use crate::ptx::ast::Operand;

/// How many registers the threads of four warps have from here on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SetRegisters {
    /// More than before, and not fewer.
    pub(crate) more: bool,
    pub(crate) count: u32,
}

pub(crate) fn decode(m: &mut Modifiers<'_>, operands: &[Operand]) -> Result<Decoded, String> {
    let more = match m.one_of(&["inc", "dec"]) {
        Some(action) => action == "inc",
        None => return Err("setmaxnreg needs .inc or .dec".to_owned()),
    };
    for word in ["sync", "aligned", "u32"] {
        m.require(word)?;
    }
    let [count] = operands else { return Err("a number of registers is expected".to_owned()) };
    let count = Context::immediate(count)?;
    if !(24..=256).contains(&count) || count % 8 != 0 {
        return Err(format!("{count} registers are no multiple of 8 from 24 to 256"));
    }
    let op = Op::SetRegisters(SetRegisters { more, count: count as u32 });
    Ok(Decoded { op, results: vec![], sources: vec![] })
}
