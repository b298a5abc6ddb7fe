//! The GGUF container: metadata, the list of tensors, and where their bytes lie.
//!
//! ```text
//! "GGUF"  version  tensors  entries │ key type value … │ name dims type offset … │ padding │ bytes of tensors, each aligned
//! ```
//!
//! Given the bytes of a file (versions 2 and 3, little-endian), promises that everything read lies inside them: lengths and counts are compared
//! with what is left before anything is allocated. Values are not copied: a list of tokens is a range of the file. Dimensions are listed as
//! everywhere else, the last one contiguous; the file has them the other way round.

mod cursor;
mod value;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

pub use value::{List, Value};

use crate::weights::BlockFormat;
use cursor::{Cursor, Problem};
use safetensors::Dtype;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// The first bytes of a file.
const MAGIC: &[u8; 4] = b"GGUF";
/// Where the file does not say: tensors begin at multiples of it.
const ALIGNMENT: u64 = 32;
/// Most dimensions of a tensor.
const MAX_DIMS: u64 = 8;
/// Fewest bytes of an entry: the length of its key, a type and a value.
const LEAST_ENTRY: u64 = 8 + 4 + 1;
/// Fewest bytes of a tensor's line: the length of its name, the number of dimensions, a type and an offset.
const LEAST_TENSOR: u64 = 8 + 4 + 4 + 8;

/// Whether a file that begins so is GGUF.
pub fn is_gguf(head: &[u8]) -> bool {
    head.starts_with(MAGIC)
}

/// Whether the path is a file in this format; what cannot be read is not.
pub fn is_gguf_file(path: &Path) -> bool {
    let mut head = [0; 4];
    std::fs::File::open(path).and_then(|mut file| std::io::Read::read_exact(&mut file, &mut head)).is_ok()
        && is_gguf(&head)
}

/// How a tensor's numbers are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// Each by itself.
    Plain(Dtype),
    /// In blocks with scales.
    Blocks(BlockFormat),
    /// In a way that is known by name only.
    Unread(&'static str),
}

/// A tensor of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    /// How its numbers are stored.
    pub encoding: Encoding,
    /// Dimensions, the last one contiguous.
    pub shape: Vec<u64>,
    /// Its bytes in the file.
    pub bytes: Range<usize>,
}

/// What stands before the tensors' bytes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Header {
    /// By key.
    pub metadata: BTreeMap<String, Value>,
    /// By name.
    pub tensors: BTreeMap<String, Tensor>,
}

impl Header {
    /// Reads the bytes of a file.
    ///
    /// # Errors
    /// What is wrong and where, and what to do about it.
    pub fn read(file: &[u8]) -> Result<Self, Refusal> {
        read(file).map_err(|problem| match problem {
            Problem::Other(refusal) => refusal,
            Problem::Ends { at, what } => Refusal {
                problem: match at {
                    0 => format!("ends at byte {} inside {what}", file.len()),
                    _ => format!("ends at byte {} inside {what}, which begins at byte {at}", file.len()),
                },
                help: DAMAGED,
            },
            Problem::Wrong { at, what } => Refusal { problem: format!("byte {at}: {what}"), help: DAMAGED },
        })
    }

    /// A value; `None` where there is no such key.
    pub fn value(&self, key: &str) -> Option<&Value> {
        self.metadata.get(key)
    }

    /// How many files the tensors are in.
    fn split_count(&self) -> u64 {
        self.value("split.count").and_then(Value::as_u64).unwrap_or(1)
    }

    /// The files of a checkpoint that is in several, this one among them; only it, where it is whole.
    ///
    /// # Errors
    /// In words: the file's name does not follow from the number of parts.
    pub fn parts(&self, path: &Path) -> Result<Vec<PathBuf>, String> {
        let count = self.split_count();
        if count <= 1 {
            return Ok(vec![path.to_owned()]);
        }
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let no = self.value("split.no").and_then(Value::as_u64).unwrap_or(0).saturating_add(1);
        let ending = format!("-{no:05}-of-{count:05}.gguf");
        let stem = name.strip_suffix(&ending).filter(|_| count <= MOST_PARTS);
        let stem = stem.ok_or_else(|| format!("is part {no} of {count}, and its name does not end in `{ending}`"))?;
        Ok((1..=count).map(|part| path.with_file_name(format!("{stem}-{part:05}-of-{count:05}.gguf"))).collect())
    }
}

/// As many as five digits tell apart.
const MOST_PARTS: u64 = 99_999;

/// Why a file is not read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// What is wrong with it, and where.
    pub problem: String,
    /// What to do.
    pub help: &'static str,
}

const DAMAGED: &str = "the file is damaged or incomplete: download or write it again";
const OLD: &str = "convert the model again with a current converter, which writes version 3";

fn refuse<T>(problem: String, help: &'static str) -> Result<T, Problem> {
    Err(Problem::Other(Refusal { problem, help }))
}

fn read(file: &[u8]) -> Result<Header, Problem> {
    let mut cursor = Cursor::new(file);
    if cursor.take(4, "the first four bytes")? != MAGIC {
        return refuse("is not a GGUF file: it does not begin with `GGUF`".to_owned(), DAMAGED);
    }
    match cursor.u32("the version")? {
        2 | 3 => {}
        version if version & 0xffff == 0 => {
            return refuse(
                "is big-endian, little-endian was expected".to_owned(),
                "convert it on a little-endian machine",
            );
        }
        version => return refuse(format!("is of version {version}, 2 or 3 was expected"), OLD),
    }
    let n_tensors = cursor.count(LEAST_TENSOR, "the number of tensors")?;
    let n_entries = cursor.count(LEAST_ENTRY, "the number of metadata entries")?;
    let mut header = Header::default();
    for _ in 0..n_entries {
        let at = cursor.at();
        let key = cursor.text("a metadata key")?.to_owned();
        let value = value::read(&mut cursor, &key)?;
        if header.metadata.contains_key(&key) {
            return Err(cursor::wrong(at, format!("the metadata key `{key}` is there twice")));
        }
        header.metadata.insert(key, value);
    }
    let alignment = match header.value("general.alignment") {
        None => ALIGNMENT,
        Some(value) => value.as_u64().filter(|n| n.is_power_of_two() && *n <= 1 << 30).ok_or_else(|| {
            cursor::wrong(0, format!("`general.alignment` is {}, a power of two was expected", value.shown(file)))
        })?,
    };
    let mut lines = Vec::new();
    for _ in 0..n_tensors {
        lines.push(line(&mut cursor)?);
    }
    let start = (cursor.at() as u64).next_multiple_of(alignment);
    for line in lines {
        let (at, name) = (line.at, line.name.to_owned());
        let tensor = line.tensor(start, alignment, file.len())?;
        if header.tensors.insert(name.clone(), tensor).is_some() {
            return Err(cursor::wrong(at, format!("the tensor `{name}` is there twice")));
        }
    }
    Ok(header)
}

/// A tensor as listed.
struct Line<'a> {
    at: usize,
    name: &'a str,
    shape: Vec<u64>,
    kind: u32,
    offset: u64,
}

fn line<'a>(cursor: &mut Cursor<'a>) -> Result<Line<'a>, Problem> {
    let at = cursor.at();
    let name = cursor.text("the name of a tensor")?;
    let n_dims = u64::from(cursor.u32("the number of dimensions of a tensor")?);
    if n_dims > MAX_DIMS {
        return Err(cursor::wrong(
            at,
            format!("the tensor `{name}` has {n_dims} dimensions, at most {MAX_DIMS} were expected"),
        ));
    }
    let mut shape = Vec::new();
    for _ in 0..n_dims {
        shape.push(cursor.u64("a dimension of a tensor")?);
    }
    shape.reverse();
    let kind = cursor.u32("the type of a tensor")?;
    let offset = cursor.u64("the offset of a tensor")?;
    Ok(Line { at, name, shape, kind, offset })
}

impl Line<'_> {
    /// The tensor, whose bytes must lie in a file of `length` bytes, `start` being where the first may begin.
    fn tensor(self, start: u64, alignment: u64, length: usize) -> Result<Tensor, Problem> {
        let Line { at, name, shape, kind, offset } = self;
        let wrong = |what: String| cursor::wrong(at, format!("the tensor `{name}` {what}"));
        let Some((encoding, elements, block_bytes)) = stored_as(kind) else {
            return refuse(
                format!("byte {at}: the tensor `{name}` is stored as type {kind}, which this version does not know"),
                "convert the model to a common type, such as Q8_0 or BF16",
            );
        };
        let row = shape.last().copied().unwrap_or(1);
        if !row.is_multiple_of(elements) {
            return Err(wrong(format!("has rows of {row} elements, which are no whole blocks of {elements}")));
        }
        if !offset.is_multiple_of(alignment) {
            return Err(wrong(format!("begins at offset {offset}, which is no multiple of the alignment {alignment}")));
        }
        let n = shape.iter().try_fold(1u64, |n, &dim| n.checked_mul(dim));
        let bytes = n.and_then(|n| (n / elements).checked_mul(block_bytes));
        let begin = start.checked_add(offset);
        let end = begin.zip(bytes).and_then(|(begin, bytes)| begin.checked_add(bytes));
        let (Some(begin), Some(end)) = (begin, end.filter(|end| *end <= length as u64)) else {
            return Err(wrong(format!("of shape {shape:?} does not lie inside the file of {length} bytes")));
        };
        // Both are at most the file's length, which is a usize.
        Ok(Tensor { encoding, shape, bytes: begin as usize..end as usize })
    }
}

/// How numbers of a type of the format are stored: the encoding, elements of a block and its bytes; `None` for no type.
fn stored_as(kind: u32) -> Option<(Encoding, u64, u64)> {
    let plain = |dtype: Dtype| Some((Encoding::Plain(dtype), 1, dtype.bitsize() as u64 / 8));
    let blocks =
        |format: BlockFormat| Some((Encoding::Blocks(format), format.elements() as u64, format.bytes() as u64));
    let unread = |name, elements, bytes| Some((Encoding::Unread(name), elements, bytes));
    match kind {
        0 => plain(Dtype::F32),
        1 => plain(Dtype::F16),
        24 => plain(Dtype::I8),
        25 => plain(Dtype::I16),
        26 => plain(Dtype::I32),
        27 => plain(Dtype::I64),
        28 => plain(Dtype::F64),
        30 => plain(Dtype::BF16),
        2 => blocks(BlockFormat::Q4_0),
        3 => blocks(BlockFormat::Q4_1),
        6 => blocks(BlockFormat::Q5_0),
        7 => blocks(BlockFormat::Q5_1),
        8 => blocks(BlockFormat::Q8_0),
        10 => blocks(BlockFormat::Q2K),
        11 => blocks(BlockFormat::Q3K),
        12 => blocks(BlockFormat::Q4K),
        13 => blocks(BlockFormat::Q5K),
        14 => blocks(BlockFormat::Q6K),
        9 => unread("Q8_1", 32, 36),
        15 => unread("Q8_K", 256, 292),
        16 => unread("IQ2_XXS", 256, 66),
        17 => unread("IQ2_XS", 256, 74),
        18 => unread("IQ3_XXS", 256, 98),
        19 => unread("IQ1_S", 256, 50),
        20 => unread("IQ4_NL", 32, 18),
        21 => unread("IQ3_S", 256, 110),
        22 => unread("IQ2_S", 256, 82),
        23 => unread("IQ4_XS", 256, 136),
        29 => unread("IQ1_M", 256, 56),
        34 => unread("TQ1_0", 256, 54),
        35 => unread("TQ2_0", 256, 66),
        39 => unread("MXFP4", 32, 17),
        _ => None,
    }
}
