//! The exported `xfm_entry_table`: where each variant's code is and where its kernels begin.
//!
//! Little-endian; offsets are relative to the table's first byte, so that it needs no relocation:
//!
//! ```text
//! 0   "XFMTABLE"
//! 8   u32 version   u32 variants
//! 16  per variant:  u64 offset of the code   u64 bytes of code   u64 kernels   u64 offset of its entries
//! ..  per variant:  u64 entry of each kernel, in bytes from the start of the code
//! ```

use super::VERSION;

pub(super) const SECTION: &str = ".xfm.table";
pub(super) const SYMBOL: &str = "xfm_entry_table";
const MAGIC: &[u8; 8] = b"XFMTABLE";
const HEADER: usize = 16;
const ROW: usize = 32;

/// One variant's row and entries.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct VariantEntries {
    /// From the start of the table.
    pub(super) code_offset: u64,
    pub(super) code_bytes: u64,
    /// From the start of the code.
    pub(super) entries: Vec<u64>,
}

/// Why a table is not taken.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Problem {
    /// Written by another version.
    Version(u32),
    Damaged,
}

/// Bytes of the table for these entries.
pub(super) fn size_bytes(entries: &[&[u64]]) -> usize {
    HEADER + entries.iter().map(|entries| ROW + 8 * entries.len()).sum::<usize>()
}

pub(super) fn to_bytes(variants: &[VariantEntries]) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend(VERSION.to_le_bytes());
    bytes.extend((variants.len() as u32).to_le_bytes());
    let mut at = (HEADER + ROW * variants.len()) as u64;
    for variant in variants {
        for field in [variant.code_offset, variant.code_bytes, variant.entries.len() as u64, at] {
            bytes.extend(field.to_le_bytes());
        }
        at += 8 * variant.entries.len() as u64;
    }
    for entry in variants.iter().flat_map(|variant| &variant.entries) {
        bytes.extend(entry.to_le_bytes());
    }
    bytes
}

pub(super) fn parse(bytes: &[u8]) -> Result<Vec<VariantEntries>, Problem> {
    let u64_at = |at: usize| -> Result<u64, Problem> {
        let field = bytes.get(at..at.checked_add(8).ok_or(Problem::Damaged)?).ok_or(Problem::Damaged)?;
        Ok(u64::from_le_bytes(field.try_into().map_err(|_| Problem::Damaged)?))
    };
    if !bytes.starts_with(MAGIC) {
        return Err(Problem::Damaged);
    }
    let word = u64_at(8)?;
    let (version, variants) = (word as u32, (word >> 32) as usize);
    if version != VERSION {
        return Err(Problem::Version(version));
    }
    if variants == 0 || variants > bytes.len() / ROW {
        return Err(Problem::Damaged);
    }
    (0..variants)
        .map(|i| {
            let row = HEADER + ROW * i;
            let n_kernels = u64_at(row + 16)?;
            let first = u64_at(row + 24)?;
            if n_kernels > bytes.len() as u64 / 8 || first > bytes.len() as u64 {
                return Err(Problem::Damaged);
            }
            let entries = (0..n_kernels as usize).map(|k| u64_at(first as usize + 8 * k)).collect::<Result<_, _>>()?;
            Ok(VariantEntries { code_offset: u64_at(row)?, code_bytes: u64_at(row + 8)?, entries })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip() {
        let rows = vec![
            VariantEntries { code_offset: 4096, code_bytes: 128, entries: vec![0, 64] },
            VariantEntries { code_offset: 8192, code_bytes: 64, entries: vec![0] },
        ];
        let bytes = to_bytes(&rows);
        assert_eq!(bytes.len(), size_bytes(&[&[0, 64], &[0]]));
        assert_eq!(parse(&bytes).unwrap(), rows);
        for end in 0..bytes.len() {
            assert!(parse(&bytes[..end]).is_err());
        }
    }
}
