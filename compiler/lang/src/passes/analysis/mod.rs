//! Facts that passes derive from graphs.

pub mod mask;
pub mod phase;
pub(super) mod token_wise;
