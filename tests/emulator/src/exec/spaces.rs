//! Where state spaces lie among generic addresses (PTX ISA, section 5.1): windows far from the allocations of global memory.

use crate::ptx::ast::Space;

const SHARED: u64 = 0x7d00_0000_0000;
const LOCAL: u64 = 0x7c00_0000_0000;
const PARAM: u64 = 0x7b00_0000_0000;
const WINDOW: u64 = 1 << 32;

/// What is added to an address in a space to make it generic.
pub(crate) fn base(space: Space) -> u64 {
    match space {
        Space::Shared => SHARED,
        Space::Local => LOCAL,
        Space::Param => PARAM,
        Space::Generic | Space::Global | Space::Const => 0,
    }
}

/// The space that a generic address lies in.
pub(crate) fn of(address: u64) -> Space {
    match address & !(WINDOW - 1) {
        SHARED => Space::Shared,
        LOCAL => Space::Local,
        PARAM => Space::Param,
        _ => Space::Global,
    }
}

/// The space and the address in it.
pub(crate) fn resolve(space: Space, address: u64) -> (Space, u64) {
    match space {
        Space::Generic => {
            let space = of(address);
            (space, address - base(space))
        }
        Space::Const => (Space::Global, address),
        space => (space, address),
    }
}
