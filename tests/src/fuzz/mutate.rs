//! Mutants of a corpus: the same sequence on every machine.
//!
//! Given seeds and words of the format, [`Mutator::next_input`] takes a seed and applies one to eight edits: bits, bytes, numbers that are
//! often wrong (0, -1, powers of two), removals, repetitions, words of the dictionary, nesting, pieces of another seed, truncation.

use crate::fill::{fnv1a64, splitmix64};

/// Inputs grow no further than this.
const LONGEST: usize = 64 * 1024;

/// Bytes that mean something in some format.
const MARKS: &[u8] = b"\0\n\t \"'\\{}[]()<>:,.-+*/%0129\xff\xc3";

const NUMBERS: [u64; 12] = [
    0,
    1,
    2,
    0x7f,
    0x80,
    0xff,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    0x7fff_ffff_ffff_ffff,
    0x8000_0000_0000_0000,
    0xffff_ffff_ffff_ffff,
];

/// An endless, repeatable sequence of inputs.
#[derive(Clone, Debug)]
pub struct Mutator<'a> {
    key: u64,
    drawn: u64,
    corpus: &'a [Vec<u8>],
    dictionary: &'a [&'a str],
}

impl<'a> Mutator<'a> {
    /// A sequence that depends on these arguments alone.
    pub fn new(name: &str, corpus: &'a [Vec<u8>], dictionary: &'a [&'a str]) -> Self {
        Mutator { key: fnv1a64(name), drawn: 0, corpus, dictionary }
    }

    /// The next mutant.
    pub fn next_input(&mut self) -> Vec<u8> {
        let mut input = self.seed();
        for _ in 0..=self.below(8) {
            self.edit(&mut input);
        }
        input.truncate(LONGEST);
        input
    }

    fn edit(&mut self, input: &mut Vec<u8>) {
        let at = self.below(input.len() + 1);
        let length = self.length().min(input.len() - at);
        match self.below(11) {
            0 if at < input.len() => input[at] ^= 1 << self.below(8),
            1 if at < input.len() => input[at] = self.below(256) as u8,
            2 => {
                let number = NUMBERS[self.below(NUMBERS.len())].to_le_bytes();
                let width = [1, 2, 4, 8][self.below(4)].min(input.len() - at);
                input[at..at + width].copy_from_slice(&number[..width]);
            }
            3 => {
                let number = NUMBERS[self.below(NUMBERS.len())];
                let text = if self.below(2) == 0 { number.to_string() } else { (number as i64).to_string() };
                let end = at + input[at..].iter().take_while(|b| b.is_ascii_digit()).count();
                input.splice(at..end, text.into_bytes());
            }
            4 => drop(input.drain(at..at + length)),
            5 => {
                let piece = input[at..at + length].to_vec();
                let times = 1 + self.below(4);
                input.splice(at..at, piece.repeat(times));
            }
            6 if !self.dictionary.is_empty() => {
                let word = self.dictionary[self.below(self.dictionary.len())];
                input.splice(at..at, word.bytes());
            }
            7 if !self.dictionary.is_empty() => {
                // Nesting: an opening word many times over.
                let word = self.dictionary[self.below(self.dictionary.len())];
                let times = 1 << self.below(12);
                input.splice(at..at, word.repeat(times).into_bytes());
            }
            8 => {
                let other = self.seed();
                let from = self.below(other.len() + 1);
                let to = from + self.length().min(other.len() - from);
                input.splice(at..at + length, other[from..to].iter().copied());
            }
            9 => {
                // Two pieces of the same input change places.
                let piece: Vec<u8> = input.drain(at..at + length).collect();
                let to = self.below(input.len() + 1);
                input.splice(to..to, piece);
            }
            _ => {
                if self.below(4) == 0 {
                    input.truncate(at);
                } else if at < input.len() {
                    input[at] = MARKS[self.below(MARKS.len())];
                }
            }
        }
        input.truncate(LONGEST);
    }

    fn seed(&mut self) -> Vec<u8> {
        if self.corpus.is_empty() {
            return Vec::new();
        }
        let index = self.below(self.corpus.len());
        self.corpus[index].iter().copied().take(LONGEST).collect()
    }

    /// Mostly short, now and then long.
    fn length(&mut self) -> usize {
        let bits = self.below(10);
        1 + self.below(1 << bits)
    }

    /// A number below `end`, which is at least 1.
    fn below(&mut self, end: usize) -> usize {
        let number = splitmix64(self.key, self.drawn);
        self.drawn += 1;
        (number % end.max(1) as u64) as usize
    }
}
