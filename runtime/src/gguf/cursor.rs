//! Reading on in the bytes of a file, never past their end.

use super::Refusal;

/// What stops reading.
#[derive(Debug)]
pub(super) enum Problem {
    /// The file ends inside something.
    Ends {
        /// Where it begins.
        at: usize,
        /// What it is.
        what: &'static str,
    },
    /// What is there is not what may be there.
    Wrong {
        /// Where.
        at: usize,
        /// Found and expected.
        what: String,
    },
    /// Anything else, said whole.
    Other(Refusal),
}

pub(super) fn wrong(at: usize, what: String) -> Problem {
    Problem::Wrong { at, what }
}

/// A place in the bytes of a file.
#[derive(Clone, Debug)]
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    pub(super) fn at(&self) -> usize {
        self.at
    }

    /// Bytes that are left.
    pub(super) fn left(&self) -> u64 {
        (self.bytes.len() - self.at) as u64
    }

    /// The next `n` bytes, which are `what`.
    pub(super) fn take(&mut self, n: u64, what: &'static str) -> Result<&'a [u8], Problem> {
        if n > self.left() {
            return Err(Problem::Ends { at: self.at, what });
        }
        let taken = &self.bytes[self.at..self.at + n as usize];
        self.at += n as usize;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], Problem> {
        let taken = self.take(N as u64, what)?;
        let mut bytes = [0; N];
        bytes.copy_from_slice(taken);
        Ok(bytes)
    }

    pub(super) fn u32(&mut self, what: &'static str) -> Result<u32, Problem> {
        self.array(what).map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self, what: &'static str) -> Result<u64, Problem> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// A number of things that take at least `each` bytes.
    pub(super) fn count(&mut self, each: u64, what: &'static str) -> Result<u64, Problem> {
        let at = self.at;
        let n = self.u64(what)?;
        if n > self.left() / each.max(1) {
            return Err(wrong(at, format!("{what} is {n}, more than the {} bytes behind it can hold", self.left())));
        }
        Ok(n)
    }

    /// A text behind its length.
    pub(super) fn text(&mut self, what: &'static str) -> Result<&'a str, Problem> {
        let at = self.at;
        let length = self.u64(what)?;
        let bytes = self.take(length, what)?;
        std::str::from_utf8(bytes).map_err(|error| wrong(at, format!("{what} is not UTF-8: {error}")))
    }

    /// A text behind its length that need not be UTF-8.
    pub(super) fn raw_text(&mut self, what: &'static str) -> Result<&'a [u8], Problem> {
        let length = self.u64(what)?;
        self.take(length, what)
    }
}
