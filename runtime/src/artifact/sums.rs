//! Checksums of an artifact: one over the file, one over each section, as text that `readelf -p .xfm.sums` shows.
//!
//! ```text
//! xfm-sums 1
//! file 00000000000a1000 89abcdef
//! .xfm.card 0000000000000200 01234567
//! ```
//!
//! Lengths and CRC-32 in hexadecimal of fixed width, so that the length of this section depends on names only. The file's sum takes this section as zeros.

use std::fmt::Write as _;
use std::ops::Range;

/// Name of the section.
pub(super) const SECTION: &str = ".xfm.sums";
const HEADER: &str = "xfm-sums 1";

/// What the section says.
pub(super) struct Sums {
    file_bytes: u64,
    file_sum: u32,
    sections: Vec<(String, u64, u32)>,
}

impl Sums {
    /// Bytes of the section for sections of these names.
    pub(super) fn len<'a>(names: impl Iterator<Item = &'a str>) -> usize {
        let line = |name: &str| name.len() + 1 + 16 + 1 + 8 + 1;
        HEADER.len() + 1 + line("file") + names.map(line).sum::<usize>()
    }

    /// Computes all sums; `own` is where this section lies in `file`.
    pub(super) fn compute<'a>(
        file: &[u8],
        own: Range<usize>,
        sections: impl Iterator<Item = (&'a str, &'a [u8])>,
    ) -> Self {
        Self {
            file_bytes: file.len() as u64,
            file_sum: file_sum(file, own),
            sections: sections
                .map(|(name, data)| (name.to_owned(), data.len() as u64, crc32fast::hash(data)))
                .collect(),
        }
    }

    /// The text form.
    pub(super) fn to_text(&self) -> String {
        let mut text = format!("{HEADER}\nfile {:016x} {:08x}\n", self.file_bytes, self.file_sum);
        for (name, len, sum) in &self.sections {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{name} {len:016x} {sum:08x}");
        }
        text
    }

    /// Reads the text form.
    pub(super) fn parse(data: &[u8]) -> Result<Self, String> {
        let bad = || "the table of checksums is damaged".to_owned();
        let text = std::str::from_utf8(data).map_err(|_| bad())?;
        let mut lines = text.lines();
        if lines.next() != Some(HEADER) {
            return Err(bad());
        }
        let mut rows = lines.map(|line| {
            let mut words = line.split(' ');
            let (Some(name), Some(len), Some(sum), None) = (words.next(), words.next(), words.next(), words.next())
            else {
                return Err(bad());
            };
            let len = u64::from_str_radix(len, 16).map_err(|_| bad())?;
            let sum = u32::from_str_radix(sum, 16).map_err(|_| bad())?;
            Ok((name.to_owned(), len, sum))
        });
        let (_, file_bytes, file_sum) =
            rows.next().filter(|row| row.as_ref().is_ok_and(|row| row.0 == "file")).ok_or_else(bad)??;
        let sums = Self { file_bytes, file_sum, sections: rows.collect::<Result<_, _>>()? };
        // One form only: upper-case digits or signs are damage too.
        if sums.to_text().as_bytes() == data { Ok(sums) } else { Err(bad()) }
    }

    /// Compares with what was read: `file`, this section's place in it, and each section by name.
    ///
    /// # Errors
    /// Names the section that is damaged, or says that it is the file's own structure.
    pub(super) fn verify<'a>(
        &self,
        file: &[u8],
        own: Range<usize>,
        mut section: impl FnMut(&str) -> Option<&'a [u8]>,
    ) -> Result<(), String> {
        if file.len() as u64 != self.file_bytes {
            return Err(format!("has {} bytes, {} were written", file.len(), self.file_bytes));
        }
        for (name, len, sum) in &self.sections {
            let data = section(name).ok_or_else(|| format!("section {name} is missing"))?;
            if data.len() as u64 != *len || crc32fast::hash(data) != *sum {
                return Err(format!("section {name} does not have the checksum it was written with"));
            }
        }
        if file_sum(file, own) != self.file_sum {
            return Err("does not have the checksum it was written with".to_owned());
        }
        Ok(())
    }

    /// The sum of one section, to verify a copy of it.
    pub(super) fn of(&self, name: &str) -> Option<u32> {
        self.sections.iter().find(|row| row.0 == name).map(|row| row.2)
    }
}

/// CRC-32 of `file` with `own` taken as zeros. `own` lies within the file.
fn file_sum(file: &[u8], own: Range<usize>) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&file[..own.start]);
    hasher.update(&vec![0; own.len()]);
    hasher.update(&file[own.end..]);
    hasher.finalize()
}
