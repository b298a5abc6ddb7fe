//! Asynchronous instructions.
use super::Decoded;
use super::context::Context;
use super::modifiers::Modifiers;
use crate::ptx::ast::Operand;

pub(crate) enum Async {}

pub(crate) fn decode(
    _: &mut Context,
    name: &str,
    m: &mut Modifiers<'_>,
    _: &[Operand],
) -> Result<Option<Decoded>, String> {
    if name == "fence" {
        while m.first().is_some() {}
        return Ok(Some(Decoded::nothing()));
    }
    Ok(None)
}
