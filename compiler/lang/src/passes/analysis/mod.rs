//! Facts that passes derive from graphs.

pub mod mask;
pub(super) mod token_wise;
