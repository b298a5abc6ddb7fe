//! What the [`Writer`] writes for registers that hold tiles ([`TileRegisters`]).

use super::machine::TileRegisters;
use super::writer::{Elem, Ty, Val, Writer};

/// Rows of a register, and bytes of each of them.
pub(super) const REGISTER: (u64, u64) = (16, 64);

/// Rows and bytes of a row that a register is used with.
pub(super) type Size = (u64, u64);

impl Writer {
    /// Says how large the registers are from now on; they are empty then. `short`: rows that the first so many registers have, if they are known
    /// only then. `at`: 64 bytes of memory that are free meanwhile.
    pub fn configure_tiles(&mut self, names: TileRegisters, sizes: [Size; 8], short: Option<(Val, u64)>, at: Val) {
        // The one way that there is: bytes of a row in 16 bits from byte 16 on, rows from byte 48 on.
        let mut bytes = [0; 64];
        bytes[0] = 1;
        for (register, (rows, row_bytes)) in sizes.into_iter().enumerate() {
            bytes[16 + 2 * register] = row_bytes as i64;
            bytes[48 + register] = rows as i64;
        }
        let bytes = self.lanes(&bytes, Elem::I8);
        self.store(bytes, at);
        if let Some((rows, registers)) = short {
            let rows = self.resize(rows, Elem::I8);
            for register in 0..registers {
                let at = self.offset_const(at, 48 + register);
                self.store(rows, at);
            }
        }
        self.command(names.configure, &[at]);
    }

    /// Leaves registers empty, so that nothing has to keep them.
    pub fn release_tiles(&mut self, names: TileRegisters) {
        self.command(names.release, &[]);
    }

    /// The number of a register, as the intrinsics want it.
    pub fn tile_register(&mut self, number: u64) -> Val {
        self.int(number as i64, Ty::scalar(Elem::I8))
    }

    /// Instructions that do nothing but take time, of which there is one of this name everywhere.
    pub fn do_nothing(&mut self, times: usize) {
        let text = vec!["nop"; times].join("\\0A");
        self.line(&format!("llvm.inline_asm has_side_effects asm_dialect = att \"{text}\", \"\" : () -> ()"));
    }
}
