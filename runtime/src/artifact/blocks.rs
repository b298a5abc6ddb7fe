//! Weights of few bits: how a panel of them is laid out, and what they take.

use serde::{Deserialize, Serialize};

use super::manifest::{Pack, Weight};

/// A matrix in panels of integers of few bits, which are what the weight's numbers, first rounded to its dtype, are rounded to. A panel holds, for
/// each group of inputs, the scales of its `columns` outputs in f16, their minima in f16 where there are any, and then for each run of
/// `32 / bits` inputs `columns` words of 32 bits: of 8 bits the bytes of a word are the inputs in order, of 4 bits the low halves of its bytes
/// are the first four inputs and the high halves the next. Stored integers are unsigned: without minima, half their range was added.
/// The last group is padded with zeros.
///
/// Of floats of 8 bits ([`floats`](Blocks::floats)), a group's scales are in f32, and for each run of so many inputs a panel holds those of each output
/// side by side, as E4M3. A group with a NaN has a scale that is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Blocks {
    /// Outputs a panel.
    pub columns: u64,
    /// Bits of an integer: 4 or 8.
    pub bits: u64,
    /// Inputs of a group: a multiple of 8.
    pub group: u64,
    /// Each group has a minimum, which is added to its integers times its scale; without, integers have a sign.
    pub minimum: bool,
    /// Elements are taken over from a checkpoint that stores such, with scales and minima rounded to what a group has; what it stores otherwise is
    /// rounded.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stored: bool,
    /// Elements are floats of 8 bits, of which so many inputs of an output lie side by side; `None`: they are integers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub floats: Option<u64>,
}

impl Blocks {
    /// As `--quant` names them: `int4:g64`.
    pub fn name(&self) -> String {
        if self.floats.is_some() {
            return format!("fp8:g{}", self.group);
        }
        format!("{}int{}:g{}", if self.minimum { "u" } else { "" }, self.bits, self.group)
    }

    /// Bytes of the scales, or of the minima, of a group of a panel.
    pub fn scales_bytes(&self) -> u64 {
        self.columns * if self.floats.is_some() { 4 } else { 2 }
    }

    /// Bytes of the scale and the minimum of a group of one output.
    pub fn shared_bytes(&self) -> u64 {
        if self.minimum || self.floats.is_some() { 4 } else { 2 }
    }

    /// Bytes of a group of a panel before its integers.
    pub fn integers_at(&self) -> u64 {
        self.scales_bytes() * if self.minimum { 2 } else { 1 }
    }

    /// Bytes of a group of a panel.
    pub fn group_bytes(&self) -> u64 {
        self.integers_at() + self.columns * self.group * self.bits / 8
    }

    /// Bytes of the integers of one output of so many inputs, with its scales and minima, without padding.
    pub fn row_bytes(&self, inputs: u64) -> u64 {
        inputs * self.bits / 8 + inputs.div_ceil(self.group) * self.shared_bytes()
    }

    /// Bytes of a panel of so many inputs.
    pub fn panel_bytes(&self, inputs: u64) -> u64 {
        inputs.div_ceil(self.group) * self.group_bytes()
    }
}

impl Weight {
    /// Bytes of the weight in this layout, without padding of outputs and inputs.
    pub fn stored_bytes(&self) -> u64 {
        let elements = self.shape.iter().fold(1u64, |n, dim| n.saturating_mul(*dim));
        match (self.pack, self.shape.last()) {
            (Pack::Blocks(blocks), Some(&inputs)) if inputs > 0 => {
                (elements / inputs).saturating_mul(blocks.row_bytes(inputs))
            }
            _ => elements.saturating_mul(self.dtype.size_bytes() as u64),
        }
    }
}
