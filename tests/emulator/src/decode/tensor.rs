//! Instructions of tensor cores.
use super::Decoded;
use super::context::Context;
use super::modifiers::Modifiers;
use crate::ptx::ast::Operand;

pub(crate) enum Tensor {}

pub(crate) fn decode(
    _: &mut Context,
    _: &str,
    _: &mut Modifiers<'_>,
    _: &[Operand],
) -> Result<Option<Decoded>, String> {
    Ok(None)
}
