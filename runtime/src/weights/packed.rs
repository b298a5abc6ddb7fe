//! Matrices of integers of few bits with a scale and a zero for each group of inputs, as tools that quantise write them: `(integer - zero) scale`.
//!
//! Given the words, promises each number as f64, where it is exact, and so one rounding on the way to a packed weight.
//!
//! ```text
//! per = 32 / bits integers a word, the lowest bits first; groups of inputs, or an index of them for each input
//! Inputs   words [inputs / per, outputs]          zeros [groups, outputs / per]     scales [groups, outputs]
//! Outputs  words [inputs, outputs / per]          zeros [groups, outputs / per]     scales [groups, outputs]   0 2 4 6 1 3 5 7 of eight outputs
//! Rows     words [outputs, inputs / per]          zeros [outputs / per, groups]     scales [outputs, groups]
//! Bytes    bytes with a sign [outputs, inputs]    zeros the same [outputs, groups]  scales [outputs, groups]
//! ```

use super::convert::store;
use super::scaled::ScaleCode;
use crate::artifact::manifest::DType;

/// Where the integers of eight outputs are in a word of [`Layout::Outputs`].
const IN_TURN: [usize; 8] = [0, 4, 1, 5, 2, 6, 3, 7];

/// What neighbours in a word, or in memory, are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    Inputs,
    Outputs,
    Rows,
    Bytes,
}

/// The integers that stand for zero.
#[derive(Clone, Copy, Debug)]
pub(super) enum Zeros<'a> {
    /// One for all.
    All(i32),
    /// Words, as the layout says, to which `plus` is added.
    Words { words: &'a [u8], plus: i32 },
    /// A byte with a sign beside each scale, to which `plus` is added.
    Bytes { bytes: &'a [u8], plus: i32 },
}

/// How inputs share scales.
#[derive(Clone, Copy, Debug)]
pub(super) enum Groups<'a> {
    /// So many neighbours.
    Of(usize),
    /// A word for each input says.
    Index(&'a [u8]),
}

/// A matrix, `[outputs, inputs]` row after row.
#[derive(Clone, Copy, Debug)]
pub(super) struct Packed<'a> {
    pub(super) layout: Layout,
    pub(super) bits: usize,
    pub(super) outputs: usize,
    pub(super) inputs: usize,
    pub(super) n_groups: usize,
    pub(super) integers: &'a [u8],
    pub(super) scales: (ScaleCode, &'a [u8]),
    /// There is one scale for all.
    pub(super) one_scale: bool,
    pub(super) zeros: Zeros<'a>,
    pub(super) groups: Groups<'a>,
}

/// A 32-bit word, or nothing where there is none.
fn word(bytes: &[u8], at: usize) -> u32 {
    bytes.as_chunks().0.get(at).map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

fn byte(bytes: &[u8], at: usize) -> i32 {
    i32::from(bytes.get(at).copied().unwrap_or_default().cast_signed())
}

impl Packed<'_> {
    /// The integer at place `at` of a word.
    fn of_word(&self, word: u32, at: usize) -> i32 {
        (word >> (at * self.bits) & ((1 << self.bits) - 1)).cast_signed()
    }

    fn per_word(&self) -> usize {
        32 / self.bits
    }

    /// As stored.
    fn integer(&self, output: usize, input: usize) -> i32 {
        let (per, integers) = (self.per_word(), self.integers);
        match self.layout {
            Layout::Inputs => self.of_word(word(integers, input / per * self.outputs + output), input % per),
            Layout::Outputs => {
                let at = input * self.outputs.div_ceil(per) + output / per;
                self.of_word(word(integers, at), IN_TURN[output % 8])
            }
            Layout::Rows => self.of_word(word(integers, output * self.inputs.div_ceil(per) + input / per), input % per),
            Layout::Bytes => byte(integers, output * self.inputs + input),
        }
    }

    fn group(&self, input: usize) -> usize {
        match self.groups {
            Groups::Of(size) => input / size,
            Groups::Index(index) => word(index, input) as usize,
        }
    }

    /// Where the scale of a group of an output is.
    fn scale_at(&self, output: usize, group: usize) -> usize {
        match self.layout {
            _ if self.one_scale => 0,
            Layout::Inputs | Layout::Outputs => group * self.outputs + output,
            Layout::Rows | Layout::Bytes => output * self.n_groups + group,
        }
    }

    /// Scale and zero of a group of an output.
    fn scale(&self, output: usize, group: usize) -> (f64, i32) {
        let per = self.per_word();
        let (at, (code, scales)) = (self.scale_at(output, group), self.scales);
        let zero = match self.zeros {
            Zeros::All(zero) => zero,
            Zeros::Bytes { bytes, plus } => byte(bytes, at) + plus,
            Zeros::Words { words, plus } => {
                let (at, place) = match self.layout {
                    Layout::Inputs => (group * self.outputs.div_ceil(per) + output / per, output % per),
                    Layout::Outputs => (group * self.outputs.div_ceil(per) + output / per, IN_TURN[output % 8]),
                    Layout::Rows | Layout::Bytes => (output / per * self.n_groups + group, output % per),
                };
                self.of_word(word(words, at), place) + plus
            }
        };
        (code.value(scales, at), zero)
    }

    /// The one integer that stands for zero, where there is one and all words are full of it.
    pub(super) fn one_zero(&self) -> Option<i32> {
        match self.zeros {
            Zeros::All(zero) => Some(zero),
            Zeros::Words { words, plus } => {
                let first = self.of_word(word(words, 0), 0);
                let full = (0..self.per_word()).fold(0, |full, at| full | first.cast_unsigned() << (at * self.bits));
                let same = words.as_chunks().0.iter().all(|word| u32::from_le_bytes(*word) == full);
                same.then_some(first + plus)
            }
            Zeros::Bytes { bytes, plus } => bytes.iter().all(|zero| *zero == bytes[0]).then(|| byte(bytes, 0) + plus),
        }
    }

    /// Whether integers have a sign as they are stored.
    pub(super) fn has_signs(&self) -> bool {
        self.layout == Layout::Bytes
    }

    /// Neighbours in a row that share a scale.
    pub(super) fn group_size(&self) -> Option<u64> {
        match self.groups {
            Groups::Of(size) => Some(size as u64),
            Groups::Index(_) => None,
        }
    }

    /// The integers from `position` on, as stored, what they are multiplied by and the one that stands for zero; `None` where they share no
    /// scale.
    pub(super) fn integers(&self, position: usize, out: &mut [i16]) -> Option<(f64, i32)> {
        let (output, input) = (position / self.inputs, position % self.inputs);
        let last = input + out.len().checked_sub(1)?;
        let shared = matches!(self.groups, Groups::Of(size) if input / size == last / size);
        if !shared || last >= self.inputs {
            return None;
        }
        out.iter_mut().zip(input..).for_each(|(x, input)| *x = self.integer(output, input) as i16);
        Some(self.scale(output, self.group(input)))
    }

    /// Converts elements `base`, `base + stride`, ... until `out` is full.
    pub(super) fn convert_run(&self, base: usize, stride: usize, to: DType, out: &mut [u8]) {
        let mut known = (usize::MAX, usize::MAX);
        let (mut scale, mut zero) = (0.0, 0);
        for (k, element) in out.chunks_exact_mut(to.size_bytes()).enumerate() {
            let position = base + k * stride;
            let (output, input) = (position / self.inputs, position % self.inputs);
            let group = self.group(input);
            if known != (output, group) {
                known = (output, group);
                (scale, zero) = self.scale(output, group);
            }
            store(f64::from(self.integer(output, input) - zero) * scale, to, element);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    fn numbers(packed: &Packed<'_>, base: usize, stride: usize, n: usize) -> Vec<f32> {
        let mut out = vec![0; 4 * n];
        packed.convert_run(base, stride, DType::F32, &mut out);
        out.as_chunks().0.iter().map(|x| f32::from_le_bytes(*x)).collect()
    }

    /// Eight outputs of eight inputs in two groups, `integer(output, input) = (3 output + input) % 16`, in each layout by hand.
    #[test]
    fn layouts_hold_the_same_numbers() {
        let integer = |output: usize, input: usize| ((3 * output + input) % 16) as u32;
        let zero = |output: usize, group: usize| (output + 5 * group) as u32;
        let scale = |output: usize, group: usize| (1 + output + 10 * group) as f32;
        let want: Vec<f32> = (0..64)
            .map(|at| (at / 8, at % 8))
            .map(|(o, i)| (integer(o, i) as f32 - zero(o, i / 4) as f32) * scale(o, i / 4))
            .collect();
        // Eight of four bits, the first lowest.
        let packed = |of: &dyn Fn(usize) -> u32| (0..8).fold(0, |word, at| word | of(at) << (4 * at));
        let turned = [0, 2, 4, 6, 1, 3, 5, 7];
        let floats = |of: &dyn Fn(usize) -> f32| (0..16).flat_map(|at| of(at).to_le_bytes()).collect::<Vec<u8>>();
        let by_group = floats(&|at| scale(at % 8, at / 8));
        let by_output = floats(&|at| scale(at / 2, at % 2));
        let along = |layout, integers, scales, zeros, plus| Packed {
            layout,
            bits: 4,
            outputs: 8,
            inputs: 8,
            n_groups: 2,
            integers,
            scales: (ScaleCode::F32, scales),
            one_scale: false,
            zeros: Zeros::Words { words: zeros, plus },
            groups: Groups::Of(4),
        };
        let inputs = words(&(0..8).map(|o| packed(&|i| integer(o, i))).collect::<Vec<_>>());
        // One less than the zeros; the one that is none wraps, and what reads it adds one again.
        let less = words(&[0, 1].map(|g| packed(&|o| (zero(o, g) + 15) % 16)));
        let mut first = along(Layout::Inputs, &inputs, &by_group, &less, 1);
        let got = numbers(&first, 0, 1, 64);
        assert_eq!(got[8..], want[8..]);
        assert_eq!(got[4..8], want[4..8]);
        let zeros = words(&[0, 1].map(|g| packed(&|o| zero(o, g))));
        first.zeros = Zeros::Words { words: &zeros, plus: 0 };
        assert_eq!(numbers(&first, 0, 1, 64), want);
        assert_eq!(numbers(&first, 3, 8, 8), want[3..].iter().copied().step_by(8).collect::<Vec<_>>());

        let outputs = words(&(0..8).map(|i| packed(&|at| integer(turned[at], i))).collect::<Vec<_>>());
        let zeros_turned = words(&[0, 1].map(|g| packed(&|at| zero(turned[at], g))));
        let second = along(Layout::Outputs, &outputs, &by_group, &zeros_turned, 0);
        assert_eq!(numbers(&second, 0, 1, 64), want);

        let third = along(Layout::Rows, &inputs, &by_output, &zeros, 0);
        assert_eq!(numbers(&third, 0, 1, 64), want);

        let bytes: Vec<u8> = (0..64).map(|at| (integer(at / 8, at % 8) as i32 - 100) as u8).collect();
        let zero_bytes: Vec<u8> = (0..16).map(|at| (zero(at / 2, at % 2) as i32 - 100) as u8).collect();
        let fourth = Packed {
            bits: 8,
            zeros: Zeros::Bytes { bytes: &zero_bytes, plus: 0 },
            ..along(Layout::Bytes, &bytes, &by_output, &[], 0)
        };
        assert_eq!(numbers(&fourth, 0, 1, 64), want);

        // Inputs that say their groups: the other way round.
        let index = words(&[1, 1, 1, 1, 0, 0, 0, 0]);
        let fifth = Packed { groups: Groups::Index(&index), ..third };
        let swapped = |at: usize| {
            let (o, i) = (at / 8, at % 8);
            (integer(o, i) as f32 - zero(o, 1 - i / 4) as f32) * scale(o, 1 - i / 4)
        };
        assert_eq!(numbers(&fifth, 0, 1, 64), (0..64).map(swapped).collect::<Vec<_>>());
    }
}
