//! Values of metadata: numbers, texts, and lists that stay in the file.

use super::cursor::{Cursor, Problem, wrong};
use std::fmt::Write as _;
use std::ops::Range;

/// Lists of lists, at most so deep.
const MAX_DEPTH: usize = 4;
/// Elements of a list in a message.
const MOST_SHOWN: usize = 8;

/// A value of the metadata. Texts and lists are places in the file.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Of 8 to 64 bits.
    Unsigned(u64),
    /// Of 8 to 64 bits.
    Signed(i64),
    /// Of 32 or 64 bits. One of 32 is the shortest decimal number that it is nearest to: `1e-5`, as it was before it was rounded.
    Float(f64),
    /// True or false.
    Bool(bool),
    /// A text, checked to be UTF-8.
    Text(Range<usize>),
    /// Several of one type.
    List(List),
}

/// A list of the metadata.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct List {
    kind: Kind,
    /// Elements.
    pub len: u64,
    bytes: Range<usize>,
}

/// The type of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    Text,
    List,
    U64,
    I64,
    F64,
}

impl Kind {
    fn of(number: u32) -> Option<Self> {
        const KINDS: [Kind; 13] = [
            Kind::U8,
            Kind::I8,
            Kind::U16,
            Kind::I16,
            Kind::U32,
            Kind::I32,
            Kind::F32,
            Kind::Bool,
            Kind::Text,
            Kind::List,
            Kind::U64,
            Kind::I64,
            Kind::F64,
        ];
        KINDS.get(usize::try_from(number).ok()?).copied()
    }

    /// Bytes of a value; the fewest of one that has no fixed size.
    fn bytes(self) -> u64 {
        match self {
            Kind::U8 | Kind::I8 | Kind::Bool => 1,
            Kind::U16 | Kind::I16 => 2,
            Kind::U32 | Kind::I32 | Kind::F32 => 4,
            Kind::U64 | Kind::I64 | Kind::F64 | Kind::Text => 8,
            Kind::List => 12,
        }
    }

    fn is_fixed(self) -> bool {
        !matches!(self, Kind::Text | Kind::List)
    }
}

/// The value behind a key, with its type before it.
pub(super) fn read(cursor: &mut Cursor<'_>, key: &str) -> Result<Value, Problem> {
    let kind = kind(cursor, key)?;
    one(cursor, kind, key, 0)
}

fn kind(cursor: &mut Cursor<'_>, key: &str) -> Result<Kind, Problem> {
    let at = cursor.at();
    let number = cursor.u32("the type of a metadata value")?;
    Kind::of(number)
        .ok_or_else(|| wrong(at, format!("the metadata value `{key}` is of type {number}, 0 to 12 was expected")))
}

fn one(cursor: &mut Cursor<'_>, kind: Kind, key: &str, depth: usize) -> Result<Value, Problem> {
    const WHAT: &str = "a metadata value";
    let at = cursor.at();
    Ok(match kind {
        Kind::Text => {
            let bytes = cursor.raw_text(WHAT)?;
            if let Err(error) = std::str::from_utf8(bytes) {
                return Err(wrong(at, format!("the metadata value `{key}` is not UTF-8: {error}")));
            }
            Value::Text(cursor.at() - bytes.len()..cursor.at())
        }
        Kind::List => {
            if depth == MAX_DEPTH {
                return Err(wrong(
                    at,
                    format!("the metadata value `{key}` has lists inside lists, more than {MAX_DEPTH} deep"),
                ));
            }
            let kind = self::kind(cursor, key)?;
            let len = cursor.count(kind.bytes(), "the length of a metadata list")?;
            let begin = cursor.at();
            if kind.is_fixed() {
                // It was counted: there are as many.
                cursor.take(len * kind.bytes(), WHAT)?;
            } else {
                for _ in 0..len {
                    match kind {
                        Kind::Text => cursor.raw_text("a text of a metadata list").map(|_| ())?,
                        _ => one(cursor, kind, key, depth + 1).map(|_| ())?,
                    }
                }
            }
            Value::List(List { kind, len, bytes: begin..cursor.at() })
        }
        Kind::Bool => match cursor.take(1, WHAT)? {
            [0] => Value::Bool(false),
            [1] => Value::Bool(true),
            other => return Err(wrong(at, format!("the metadata value `{key}` is {other:?}, 0 or 1 was expected"))),
        },
        kind => number(kind, cursor.take(kind.bytes(), WHAT)?),
    })
}

/// A number of exactly its type's bytes.
fn number(kind: Kind, bytes: &[u8]) -> Value {
    let mut wide = [0; 8];
    wide[..bytes.len().min(8)].copy_from_slice(&bytes[..bytes.len().min(8)]);
    let bits = u64::from_le_bytes(wide);
    match kind {
        Kind::I8 => Value::Signed(i64::from(bits as i8)),
        Kind::I16 => Value::Signed(i64::from(bits as i16)),
        Kind::I32 => Value::Signed(i64::from(bits as i32)),
        Kind::I64 => Value::Signed(bits as i64),
        Kind::F32 => Value::Float(shortest(f32::from_bits(bits as u32))),
        Kind::F64 => Value::Float(f64::from_bits(bits)),
        _ => Value::Unsigned(bits),
    }
}

/// The number that a person would have written for it.
fn shortest(x: f32) -> f64 {
    x.to_string().parse().unwrap_or(f64::from(x))
}

impl Value {
    /// A whole number that is not negative.
    pub fn as_u64(&self) -> Option<u64> {
        match self {
            Value::Unsigned(n) => Some(*n),
            Value::Signed(n) => u64::try_from(*n).ok(),
            _ => None,
        }
    }

    /// Any number.
    pub fn as_f64(&self) -> Option<f64> {
        match self {
            Value::Unsigned(n) => Some(*n as f64),
            Value::Signed(n) => Some(*n as f64),
            Value::Float(x) => Some(*x),
            _ => None,
        }
    }

    /// True or false.
    pub fn as_bool(&self) -> Option<bool> {
        if let Value::Bool(value) = self { Some(*value) } else { None }
    }

    /// A text; `file` is the file that the value was read from.
    pub fn as_text<'a>(&self, file: &'a [u8]) -> Option<&'a str> {
        if let Value::Text(range) = self { std::str::from_utf8(file.get(range.clone())?).ok() } else { None }
    }

    /// A list.
    pub fn as_list(&self) -> Option<&List> {
        if let Value::List(list) = self { Some(list) } else { None }
    }

    /// As JSON, where a list has at most `most` elements; `None` for a longer one. Numbers that are not finite are null.
    pub fn to_json(&self, file: &[u8], most: u64) -> Option<serde_json::Value> {
        Some(match self {
            Value::Unsigned(n) => (*n).into(),
            Value::Signed(n) => (*n).into(),
            Value::Float(x) => (*x).into(),
            Value::Bool(value) => (*value).into(),
            Value::Text(_) => self.as_text(file)?.into(),
            Value::List(list) if list.len <= most => {
                list.values(file).map(|value| value.to_json(file, most)).collect::<Option<Vec<_>>>()?.into()
            }
            Value::List(_) => return None,
        })
    }

    /// For messages.
    pub fn shown(&self, file: &[u8]) -> String {
        match self {
            Value::List(list) => {
                let mut text = String::from("[");
                for (i, value) in list.values(file).take(MOST_SHOWN).enumerate() {
                    let comma = if i > 0 { ", " } else { "" };
                    let _ = write!(text, "{comma}{}", value.shown(file));
                }
                text + if list.len > MOST_SHOWN as u64 { ", ..]" } else { "]" }
            }
            other => other.to_json(file, 0).map_or_else(|| "no text".to_owned(), |json| json.to_string()),
        }
    }
}

impl List {
    /// Its elements; `file` is the file that it was read from.
    pub fn values<'a>(&self, file: &'a [u8]) -> impl Iterator<Item = Value> + use<'a> {
        let (kind, begin) = (self.kind, self.bytes.start);
        let mut cursor = Cursor::new(file.get(..self.bytes.end).unwrap_or_default());
        // What was read once is read again: it ends where it ended.
        let _ = cursor.take(begin as u64, "");
        (0..self.len).map_while(move |_| one(&mut cursor, kind, "", 1).ok())
    }

    /// Its texts; `None` where it has other elements, or one that is not UTF-8.
    pub fn texts<'a>(&self, file: &'a [u8]) -> Option<Vec<&'a str>> {
        let texts: Option<Vec<&str>> = self.values(file).map(|value| value.as_text(file)).collect();
        texts.filter(|texts| texts.len() as u64 == self.len)
    }

    /// Its numbers; `None` where it has other elements.
    pub fn numbers(&self, file: &[u8]) -> Option<Vec<f64>> {
        self.values(file).map(|value| value.as_f64()).collect()
    }
}
