//! Relocatable objects, one a kernel, to one position-independent image with an entry for each.
//!
//! Kernels are self-contained: a symbol that no kernel of the same object defines, or a relocation that would have to be applied at load
//! time, is an error here, so that an artifact with one cannot exist.

use object::read::elf::{ElfFile64, FileHeader as _};
use object::{Object as _, ObjectSection as _, ObjectSymbol as _, RelocationTarget, SectionIndex, SectionKind};
use std::collections::BTreeMap;

use xfc_runtime::artifact::container::CodeImage;

use super::relocate::relocate;
use crate::error::CodegenError;

/// Links objects, given as `(name for messages, bytes)` in kernel order; each defines its kernel as `symbol`.
///
/// # Errors
/// An object that is malformed, imports a symbol, or needs a relocation at load time.
pub fn link(objects: &[(String, &[u8])], symbol: &str) -> Result<CodeImage, CodegenError> {
    let mut image = CodeImage::default();
    for (name, bytes) in objects {
        let failed = |message: String| CodegenError::Llvm { kernel: name.clone(), message };
        link_one(&mut image, symbol, bytes).map_err(failed)?;
    }
    Ok(image)
}

fn link_one(image: &mut CodeImage, symbol: &str, bytes: &[u8]) -> Result<(), String> {
    let file = ElfFile64::<object::Endianness>::parse(bytes).map_err(|e| e.to_string())?;
    let machine = file.elf_header().e_machine(file.endian());
    let mut at: BTreeMap<usize, u64> = BTreeMap::new();
    for section in file.sections() {
        let data = section.data().map_err(|e| e.to_string())?;
        match section.kind() {
            SectionKind::Text | SectionKind::ReadOnlyData | SectionKind::ReadOnlyString if !data.is_empty() => {
                // Unwinding tables are not code: kernels do not unwind.
                if section.name() == Ok(".eh_frame") {
                    continue;
                }
                let align = section.align().max(64) as usize;
                image.bytes.resize(image.bytes.len().next_multiple_of(align), 0);
                at.insert(section.index().0, image.bytes.len() as u64);
                image.bytes.extend_from_slice(data);
            }
            SectionKind::Data | SectionKind::UninitializedData | SectionKind::Tls | SectionKind::Common
                if section.size() > 0 =>
            {
                return Err(format!("writable section {}", section.name().unwrap_or("?")));
            }
            _ => {}
        }
    }
    for section in file.sections() {
        let Some(&base) = at.get(&section.index().0) else { continue };
        for (offset, relocation) in section.relocations() {
            let RelocationTarget::Symbol(index) = relocation.target() else {
                return Err("relocation against no symbol".into());
            };
            let target = file.symbol_by_index(index).map_err(|e| e.to_string())?;
            let name = target.name().unwrap_or("?");
            let Some(SectionIndex(section_index)) = target.section_index() else {
                return Err(format!("undefined symbol `{name}`: generated code must call nothing"));
            };
            let Some(&target_base) = at.get(&section_index) else {
                return Err(format!("relocation against `{name}` in a section that is not loaded"));
            };
            let object::RelocationFlags::Elf { r_type } = relocation.flags() else {
                return Err("not an ELF relocation".into());
            };
            let place = base + offset;
            let value = (target_base + target.address()) as i64 + relocation.addend();
            relocate(&mut image.bytes, machine, r_type, place, value)?;
        }
    }
    let entry = file
        .symbols()
        .find(|s| s.name() == Ok(symbol) && s.is_definition())
        .ok_or_else(|| format!("symbol `{symbol}` is not defined"))?;
    let section = entry.section_index().and_then(|s| at.get(&s.0)).ok_or("the entry is in no loaded section")?;
    image.entries.push(section + entry.address());
    if let Some(undefined) = file.symbols().find(|s| s.is_undefined() && s.name().is_ok_and(|n| !n.is_empty())) {
        return Err(format!(
            "undefined symbol `{}`: generated code must call nothing",
            undefined.name().unwrap_or("?")
        ));
    }
    Ok(())
}
