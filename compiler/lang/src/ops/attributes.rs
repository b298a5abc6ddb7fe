//! Attributes of operations as the text form writes them: `{eps = 0.00001, gain = true}`.
//!
//! Writing is a list of `(key, rendered value)` in a fixed order; reading takes each expected key out of
//! [`Attributes`] and then asserts that nothing is left.

use std::collections::BTreeMap;

use crate::graph::Graph;

/// What was written between the braces of one operation. Errors are lowercase messages that name the key.
#[derive(Debug, Default)]
pub struct Attributes {
    /// Values as written: strings with their quotes, lists with their brackets.
    pub values: BTreeMap<String, String>,
    /// Bodies.
    pub bodies: BTreeMap<String, Graph>,
}

/// A string as the text form writes it.
pub fn quote(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            '\n' => out.push_str("\\n"),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// The inverse of [`quote`].
pub fn unquote(text: &str) -> Option<String> {
    let inner = text.strip_prefix('"')?.strip_suffix('"')?;
    let mut out = String::new();
    let mut chars = inner.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next()? {
                'n' => out.push('\n'),
                c => out.push(c),
            },
            c => out.push(c),
        }
    }
    Some(out)
}

/// A number as the text form writes it: the shortest that reads back the same.
pub fn number(x: f64) -> String {
    if x.is_finite() && x == x.trunc() && x.abs() < 1e15 && !(x == 0.0 && x.is_sign_negative()) {
        format!("{x:.0}")
    } else {
        format!("{x:?}").to_lowercase()
    }
}

/// The inverse of [`number`].
pub fn parse_number(text: &str) -> Option<f64> {
    text.parse().ok()
}

/// A list of numbers.
pub fn numbers(values: &[f64]) -> String {
    let values: Vec<String> = values.iter().map(|v| number(*v)).collect();
    format!("[{}]", values.join(", "))
}

impl Attributes {
    fn raw(&mut self, key: &str) -> Result<String, String> {
        self.values.remove(key).ok_or_else(|| format!("'{key}' is missing"))
    }

    fn read<T>(&mut self, key: &str, what: &str, read: impl Fn(&str) -> Option<T>) -> Result<T, String> {
        let raw = self.raw(key)?;
        read(&raw).ok_or_else(|| format!("'{key}' is {raw}, not {what}"))
    }

    /// A real number.
    pub fn f64(&mut self, key: &str) -> Result<f64, String> {
        self.read(key, "a number", parse_number)
    }

    /// A non-negative integer.
    pub fn u64(&mut self, key: &str) -> Result<u64, String> {
        self.read(key, "a non-negative integer", |s| s.parse().ok())
    }

    /// A non-negative integer that counts things in memory.
    pub fn usize(&mut self, key: &str) -> Result<usize, String> {
        self.read(key, "a non-negative integer", |s| s.parse().ok())
    }

    /// A non-negative integer or `none`.
    pub fn optional_u64(&mut self, key: &str) -> Result<Option<u64>, String> {
        self.read(key, "a non-negative integer or none", |s| {
            if s == "none" { Some(None) } else { s.parse().ok().map(Some) }
        })
    }

    /// `true` or `false`; the latter where the key is absent.
    pub fn flag(&mut self, key: &str) -> Result<bool, String> {
        if self.values.contains_key(key) { self.bool(key) } else { Ok(false) }
    }

    /// `true` or `false`.
    pub fn bool(&mut self, key: &str) -> Result<bool, String> {
        self.read(key, "true or false", |s| s.parse().ok())
    }

    /// `true` or `false`, where it is written.
    pub fn optional_bool(&mut self, key: &str) -> Result<Option<bool>, String> {
        if self.values.contains_key(key) { self.bool(key).map(Some) } else { Ok(None) }
    }

    /// A quoted string.
    pub fn string(&mut self, key: &str) -> Result<String, String> {
        self.read(key, "a string", unquote)
    }

    /// A list of numbers.
    pub fn numbers(&mut self, key: &str) -> Result<Vec<f64>, String> {
        self.read(key, "a list of numbers", |s| {
            let inner = s.strip_prefix('[')?.strip_suffix(']')?.trim();
            if inner.is_empty() {
                return Some(Vec::new());
            }
            inner.split(',').map(|item| parse_number(item.trim())).collect()
        })
    }

    /// A list of non-negative integers.
    pub fn usizes(&mut self, key: &str) -> Result<Vec<usize>, String> {
        self.read(key, "a list of non-negative integers", |s| {
            let inner = s.strip_prefix('[')?.strip_suffix(']')?.trim();
            if inner.is_empty() {
                return Some(Vec::new());
            }
            inner.split(',').map(|item| item.trim().parse().ok()).collect()
        })
    }

    /// A body.
    pub fn body(&mut self, key: &str) -> Result<Graph, String> {
        self.bodies.remove(key).ok_or_else(|| format!("the body '{key}' is missing"))
    }

    /// A body that need not be there.
    pub fn optional_body(&mut self, key: &str) -> Option<Graph> {
        self.bodies.remove(key)
    }

    /// An error when something is left that nobody asked for.
    pub fn finish(self) -> Result<(), String> {
        match self.values.keys().chain(self.bodies.keys()).next() {
            Some(key) => Err(format!("'{key}' is not an attribute of this operation")),
            None => Ok(()),
        }
    }
}
