//! The outer form of an artifact: a minimal ELF64 shared object, written here and nowhere else.
//!
//! Given sections, promises a file with no imports, no relocations, no constructors, no build id and no timestamps, and with one
//! exported symbol. Tools (`readelf`, `nm -D`, `objdump`) read it as any other shared object.
//!
//! ```text
//! header, program headers, .hash, .dynsym, .dynstr, data sections    PT_LOAD r
//! code sections                                                      PT_LOAD r-x
//! .dynamic                                                           PT_LOAD rw-
//! .shstrtab, section headers                                         not loaded
//! ```
//!
//! Addresses equal file offsets, so that everything within the file is reached relative to where it is.

use object::Endianness;
use object::elf;
use object::write::StringId;
use object::write::elf::{FileHeader, ProgramHeader, SectionHeader, SectionIndex, Sym, Writer};

/// Segments start at multiples of this, in the file and in memory.
const SEGMENT_ALIGN: usize = 4096;
/// Sections start at multiples of this.
const SECTION_ALIGN: usize = 64;

/// A section to write.
pub(super) struct Section {
    /// `.xfm.card`.
    pub(super) name: String,
    /// Contents.
    pub(super) data: Vec<u8>,
    /// Goes to the executable segment.
    pub(super) executable: bool,
}

/// The file, and where each section's data begins in it.
pub(super) struct Written {
    pub(super) bytes: Vec<u8>,
    pub(super) offsets: Vec<usize>,
}

/// Writes `sections` (data first or code first, in any order) with the symbol `symbol` at the start of section `symbol_section`.
///
/// # Errors
/// The file does not fit into memory.
pub(super) fn write(arch: &str, sections: &[Section], symbol: &str, symbol_section: usize) -> Result<Written, String> {
    let mut bytes = Vec::new();
    let mut w = Writer::new(Endianness::Little, true, &mut bytes);

    // Reserve, in file order.
    w.reserve_file_header();
    w.reserve_program_headers(5);
    let symbol_name = w.add_dynamic_string(symbol.as_bytes());
    let soname = w.add_dynamic_string(b"model.xfm");
    w.reserve_null_dynamic_symbol_index();
    w.reserve_dynamic_symbol_index();
    w.reserve_hash_section_index();
    w.reserve_dynsym_section_index();
    w.reserve_dynstr_section_index();
    let mut named: Vec<(StringId, SectionIndex)> = Vec::with_capacity(sections.len());
    for section in sections {
        let name = w.add_section_name(section.name.as_bytes());
        named.push((name, w.reserve_section_index()));
    }
    w.reserve_dynamic_section_index();
    w.reserve_shstrtab_section_index();

    let hash_at = w.reserve_hash(1, 2);
    let dynsym_at = w.reserve_dynsym();
    let dynstr_at = w.reserve_dynstr();
    let dynstr_len = w.dynstr_len();
    let mut offsets = vec![0; sections.len()];
    let reserve = |w: &mut Writer<'_>, offsets: &mut Vec<usize>, executable: bool| {
        for (section, offset) in sections.iter().zip(offsets).filter(|(section, _)| section.executable == executable) {
            *offset = w.reserve(section.data.len(), align(section));
        }
    };
    reserve(&mut w, &mut offsets, false);
    let data_end = w.reserved_len();
    let code_at = w.reserve(0, SEGMENT_ALIGN);
    reserve(&mut w, &mut offsets, true);
    let code_end = w.reserved_len();
    let dynamic_at = w.reserve(0, SEGMENT_ALIGN);
    w.reserve_dynamic(7);
    let dynamic_end = w.reserved_len();
    w.reserve_shstrtab();
    w.reserve_section_headers();

    // Write, in the same order.
    w.write_file_header(&FileHeader {
        os_abi: elf::ELFOSABI_NONE,
        abi_version: 0,
        e_type: elf::ET_DYN,
        e_machine: machine(arch),
        e_entry: 0,
        e_flags: 0,
    })
    .map_err(|error| error.to_string())?;
    w.write_align_program_headers();
    let segment = |p_type, p_flags, from: usize, to: usize, align: usize| ProgramHeader {
        p_type,
        p_flags,
        p_offset: from as u64,
        p_vaddr: from as u64,
        p_paddr: from as u64,
        p_filesz: (to - from) as u64,
        p_memsz: (to - from) as u64,
        p_align: align as u64,
    };
    w.write_program_header(&segment(elf::PT_LOAD, elf::PF_R, 0, data_end, SEGMENT_ALIGN));
    w.write_program_header(&segment(elf::PT_LOAD, elf::PF_R | elf::PF_X, code_at, code_end, SEGMENT_ALIGN));
    w.write_program_header(&segment(elf::PT_LOAD, elf::PF_R | elf::PF_W, dynamic_at, dynamic_end, SEGMENT_ALIGN));
    w.write_program_header(&segment(elf::PT_DYNAMIC, elf::PF_R | elf::PF_W, dynamic_at, dynamic_end, 8));
    w.write_program_header(&segment(elf::PT_GNU_STACK, elf::PF_R | elf::PF_W, 0, 0, 16));
    let symbol_hash = elf::hash(symbol.as_bytes());
    w.write_hash(1, 2, |index| (index == 1).then_some(symbol_hash));
    w.write_null_dynamic_symbol();
    w.write_dynamic_symbol(&Sym {
        name: Some(symbol_name),
        section: Some(named[symbol_section].1),
        st_info: (elf::STB_GLOBAL << 4) | elf::STT_OBJECT,
        st_other: elf::STV_DEFAULT,
        st_shndx: 0,
        st_value: offsets[symbol_section] as u64,
        st_size: sections[symbol_section].data.len() as u64,
    });
    w.write_dynstr();
    for executable in [false, true] {
        if executable {
            w.pad_until(code_at);
        }
        for (section, offset) in sections.iter().zip(&offsets).filter(|(section, _)| section.executable == executable) {
            w.pad_until(*offset);
            w.write(&section.data);
        }
    }
    w.pad_until(dynamic_at);
    w.write_dynamic_string(elf::DT_SONAME, soname);
    w.write_dynamic(elf::DT_HASH, hash_at as u64);
    w.write_dynamic(elf::DT_SYMTAB, dynsym_at as u64);
    w.write_dynamic(elf::DT_STRTAB, dynstr_at as u64);
    w.write_dynamic(elf::DT_STRSZ, dynstr_len as u64);
    w.write_dynamic(elf::DT_SYMENT, size_of::<elf::Sym64<Endianness>>() as u64);
    w.write_dynamic(elf::DT_NULL, 0);
    w.write_shstrtab();

    w.write_null_section_header();
    w.write_hash_section_header(hash_at as u64);
    w.write_dynsym_section_header(dynsym_at as u64, 1);
    w.write_dynstr_section_header(dynstr_at as u64);
    for ((section, offset), (name, _)) in sections.iter().zip(&offsets).zip(&named) {
        w.write_section_header(&SectionHeader {
            name: Some(*name),
            sh_type: elf::SHT_PROGBITS,
            sh_flags: u64::from(elf::SHF_ALLOC | if section.executable { elf::SHF_EXECINSTR } else { 0 }),
            sh_addr: *offset as u64,
            sh_offset: *offset as u64,
            sh_size: section.data.len() as u64,
            sh_link: 0,
            sh_info: 0,
            sh_addralign: align(section) as u64,
            sh_entsize: 0,
        });
    }
    w.write_dynamic_section_header(dynamic_at as u64);
    w.write_shstrtab_section_header();
    Ok(Written { bytes, offsets })
}

/// Code reaches its data by pages on some architectures, so that it keeps its place in a page.
fn align(section: &Section) -> usize {
    if section.executable { SEGMENT_ALIGN } else { SECTION_ALIGN }
}

/// ELF's number for an architecture.
fn machine(arch: &str) -> u16 {
    match arch {
        "x86_64" => elf::EM_X86_64,
        "aarch64" => elf::EM_AARCH64,
        _ => elf::EM_NONE,
    }
}
