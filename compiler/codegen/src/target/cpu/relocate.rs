//! Relocations that are relative to their own place, so that nothing is left to do when the image is mapped.
//!
//! x86-64 reaches everything by a 32-bit distance. AArch64 reaches data by a page and the offset in it: images are mapped at multiples of
//! 4096 bytes, so that offsets in a page are known here.

use object::elf;

/// Applies relocation `r_type` of ELF machine `machine` at byte `place` of the image, for something at byte `value` (symbol and addend).
///
/// # Errors
/// A machine or relocation that is not known to be relative, or a distance that does not fit.
pub(super) fn relocate(bytes: &mut [u8], machine: u16, r_type: u32, place: u64, value: i64) -> Result<(), String> {
    let place = Place { bytes, at: usize::try_from(place).map_err(|e| e.to_string())?, value };
    match machine {
        elf::EM_X86_64 => x86_64(place, r_type),
        elf::EM_AARCH64 => aarch64(place, r_type),
        _ => Err(format!("no relocations are known for ELF machine {machine}")),
    }
}

struct Place<'a> {
    bytes: &'a mut [u8],
    at: usize,
    value: i64,
}

impl Place<'_> {
    fn relative(&self) -> i64 {
        self.value - self.at as i64
    }

    fn put(&mut self, field: &[u8]) -> Result<(), String> {
        let end = self.at + field.len();
        let place = self.bytes.get_mut(self.at..end).ok_or("a relocation outside of its section")?;
        place.copy_from_slice(field);
        Ok(())
    }

    fn put_i32(&mut self) -> Result<(), String> {
        let field = i32::try_from(self.relative()).map_err(|_| "code image over 2 GiB".to_owned())?;
        self.put(&field.to_le_bytes())
    }

    /// Puts the low `bits` of `field` at bit `shift` of the instruction there.
    fn put_bits(&mut self, field: i64, bits: u32, shift: u32) -> Result<(), String> {
        let place = self.bytes.get(self.at..self.at + 4).ok_or("a relocation outside of its section")?;
        let old = place.try_into().map(u32::from_le_bytes).map_err(|_| "an instruction is 4 bytes".to_owned())?;
        let mask = ((1_u32 << bits) - 1) << shift;
        let new = (old & !mask) | (((field as u32) << shift) & mask);
        self.put(&new.to_le_bytes())
    }

    /// The distance in instructions, in `bits` signed bits at `shift`.
    fn put_branch(&mut self, bits: u32, shift: u32) -> Result<(), String> {
        let distance = self.relative();
        if distance % 4 != 0 || !fits(distance / 4, bits) {
            return Err(format!("a branch over {distance} bytes does not fit"));
        }
        self.put_bits(distance / 4, bits, shift)
    }

    /// The offset in its page of something that `bytes` divides.
    fn put_page_offset(&mut self, bytes: i64) -> Result<(), String> {
        let offset = self.value & 0xFFF;
        if offset % bytes != 0 {
            return Err(format!("a load of {bytes} bytes from offset {offset}"));
        }
        self.put_bits(offset / bytes, 12, 10)
    }
}

/// Whether `value` is one of the signed numbers of so many bits.
fn fits(value: i64, bits: u32) -> bool {
    let half = 1_i64 << (bits - 1);
    (-half..half).contains(&value)
}

fn x86_64(mut place: Place<'_>, r_type: u32) -> Result<(), String> {
    match r_type {
        elf::R_X86_64_PC32 | elf::R_X86_64_PLT32 => place.put_i32(),
        elf::R_X86_64_PC64 => {
            let field = place.relative();
            place.put(&field.to_le_bytes())
        }
        other => Err(format!("relocation type {other} would need work at load time")),
    }
}

fn aarch64(mut place: Place<'_>, r_type: u32) -> Result<(), String> {
    match r_type {
        elf::R_AARCH64_PREL32 => place.put_i32(),
        elf::R_AARCH64_PREL64 => {
            let field = place.relative();
            place.put(&field.to_le_bytes())
        }
        // ADR: 21 bits, of which the two lowest are apart.
        elf::R_AARCH64_ADR_PREL_LO21 => {
            let distance = place.relative();
            put_adr(&mut place, distance)
        }
        // ADRP: the distance between pages.
        elf::R_AARCH64_ADR_PREL_PG_HI21 | elf::R_AARCH64_ADR_PREL_PG_HI21_NC => {
            let pages = (place.value >> 12) - (place.at as i64 >> 12);
            put_adr(&mut place, pages)
        }
        elf::R_AARCH64_ADD_ABS_LO12_NC | elf::R_AARCH64_LDST8_ABS_LO12_NC => place.put_page_offset(1),
        elf::R_AARCH64_LDST16_ABS_LO12_NC => place.put_page_offset(2),
        elf::R_AARCH64_LDST32_ABS_LO12_NC => place.put_page_offset(4),
        elf::R_AARCH64_LDST64_ABS_LO12_NC => place.put_page_offset(8),
        elf::R_AARCH64_LDST128_ABS_LO12_NC => place.put_page_offset(16),
        elf::R_AARCH64_CALL26 | elf::R_AARCH64_JUMP26 => place.put_branch(26, 0),
        elf::R_AARCH64_CONDBR19 | elf::R_AARCH64_LD_PREL_LO19 => place.put_branch(19, 5),
        elf::R_AARCH64_TSTBR14 => place.put_branch(14, 5),
        other => Err(format!("relocation type {other} would need work at load time")),
    }
}

fn put_adr(place: &mut Place<'_>, distance: i64) -> Result<(), String> {
    if !fits(distance, 21) {
        return Err("code image over 4 GiB".to_owned());
    }
    place.put_bits(distance & 3, 2, 29)?;
    place.put_bits(distance >> 2, 19, 5)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The instruction `word` at `place` of a zeroed image of three pages, relocated for `value`.
    fn word(word: u32, r_type: u32, place: usize, value: i64) -> Result<u32, String> {
        let mut bytes = vec![0; 3 * 4096];
        bytes[place..place + 4].copy_from_slice(&word.to_le_bytes());
        relocate(&mut bytes, elf::EM_AARCH64, r_type, place as u64, value)?;
        Ok(u32::from_le_bytes(bytes[place..place + 4].try_into().unwrap()))
    }

    #[test]
    fn aarch64_instructions_are_as_an_assembler_encodes_them() {
        // adrp x0, +2 pages; adrp x0, -1 page.
        assert_eq!(word(0x9000_0000, elf::R_AARCH64_ADR_PREL_PG_HI21, 0x10, 0x2345), Ok(0xD000_0000));
        assert_eq!(word(0x9000_0000, elf::R_AARCH64_ADR_PREL_PG_HI21, 0x1010, 0xFF0), Ok(0xF0FF_FFE0));
        // add x0, x0, #0x345; ldr q0, [x0, #0x340]; ldr s0, [x0, #0x344].
        assert_eq!(word(0x9100_0000, elf::R_AARCH64_ADD_ABS_LO12_NC, 0x14, 0x2345), Ok(0x910D_1400));
        assert_eq!(word(0x3DC0_0000, elf::R_AARCH64_LDST128_ABS_LO12_NC, 0x14, 0x2340), Ok(0x3DC0_D000));
        assert_eq!(word(0xBD40_0000, elf::R_AARCH64_LDST32_ABS_LO12_NC, 0x14, 0x2344), Ok(0xBD43_4400));
        // adr x1, +5; bl -8; b.eq +12.
        assert_eq!(word(0x1000_0001, elf::R_AARCH64_ADR_PREL_LO21, 0x20, 0x25), Ok(0x3000_0021));
        assert_eq!(word(0x9400_0000, elf::R_AARCH64_CALL26, 0x20, 0x18), Ok(0x97FF_FFFE));
        assert_eq!(word(0x5400_0000, elf::R_AARCH64_CONDBR19, 0x20, 0x2C), Ok(0x5400_0060));
    }

    #[test]
    fn what_does_not_fit_or_is_absolute_is_refused() {
        assert!(word(0x3DC0_0000, elf::R_AARCH64_LDST128_ABS_LO12_NC, 0, 0x2348).is_err());
        assert!(word(0x9400_0000, elf::R_AARCH64_CALL26, 0, 2).is_err());
        assert!(word(0x9400_0000, elf::R_AARCH64_CALL26, 0, 1 << 28).is_err());
        assert!(word(0, elf::R_AARCH64_ABS64, 0, 0x100).is_err());
        assert!(word(0, elf::R_AARCH64_PREL64, 3 * 4096 - 4, 0).is_err());
        assert!(relocate(&mut [0; 8], elf::EM_X86_64, elf::R_X86_64_64, 0, 0).is_err());
        assert!(relocate(&mut [0; 8], elf::EM_RISCV, 1, 0, 0).is_err());
    }
}
