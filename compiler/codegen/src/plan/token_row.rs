//! Rows in blocks, as tokens bring them to products with weights in groups: how they lie, and whether there is room for them in bf16 too.

use xfc_lang::graph::DType;
use xfc_lang::graph::blocks::Blocks;

use super::build::Planner;

impl Planner<'_> {
    /// Whether steps of many rows multiply weights in these blocks as bf16.
    pub(super) fn is_widened(&self, dtype: DType) -> bool {
        dtype.blocks().is_some_and(|blocks| !blocks.form.is_float() && u64::from(blocks.group) <= self.widened)
    }
}

/// How far apart rows of so many elements lie, in units of [`dtype_bytes`](super::kernel::dtype_bytes): as many as there are, but for rows in blocks, which have room for bf16
/// where their groups have at most `widened` elements.
pub fn row_elements(dtype: DType, elements: u64, widened: u64) -> u64 {
    match dtype {
        DType::Blocks(blocks) if !blocks.is_kept() => TokenRow::with(elements, blocks, widened).bytes,
        _ => elements,
    }
}

/// A row of what tokens bring, in blocks: its integers, then lists of a number for each group: its scale in f32, the sum of its integers in i32, and
/// what products make of both. The last group is padded with zeros. Where products of many rows are of bf16, there is room behind all this for what tokens bring in bf16, rounded once:
/// steps of many rows hold that alone, others the rest, or both where a row of the step is several of a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenRow {
    /// Groups.
    pub groups: u64,
    /// First byte of the scales.
    pub scales_at: u64,
    /// First byte of the sums.
    pub sums_at: u64,
    /// First byte of the scales times [`TokenRow::WHOLE`], negative.
    pub offsets_at: u64,
    /// First byte of what sums with weights of 4 and of 8 bits begin at, the bits of a float: [`TokenRow::WHOLE`] minus what was added to each weight,
    /// half their range, times the sum.
    pub starts_at: [u64; 2],
    /// First byte of the elements in bf16, where there is room for them.
    pub widened_at: Option<u64>,
    /// From one row to the next.
    pub bytes: u64,
}

impl TokenRow {
    /// A float whose neighbours are whole numbers: an integer below 2^22 that is added to its bits is added to its value.
    pub const WHOLE: f32 = 12_582_912.0;
    /// The bits of a scale that are kept: without its last two, that times [`TokenRow::WHOLE`], three times a power of two, is a float.
    pub const SCALE_BITS: i64 = !0b11;

    /// Of a row of so many elements in groups of that size.
    pub fn new(elements: u64, blocks: Blocks) -> Self {
        let groups = elements.div_ceil(u64::from(blocks.group));
        let scales_at = groups * u64::from(blocks.group);
        let list = |n: u64| scales_at + n * groups * 4;
        TokenRow {
            groups,
            scales_at,
            sums_at: list(1),
            offsets_at: list(2),
            starts_at: [list(3), list(4)],
            widened_at: None,
            bytes: list(5).next_multiple_of(64),
        }
    }

    /// The same row, with room for bf16.
    pub fn widened(self) -> Self {
        let bytes = self.bytes + (self.scales_at * 2).next_multiple_of(64);
        TokenRow { widened_at: Some(self.bytes), bytes, ..self }
    }

    /// A row with room for bf16 if its groups have at most `widened` elements.
    pub fn with(elements: u64, blocks: Blocks, widened: u64) -> Self {
        let row = TokenRow::new(elements, blocks);
        if u64::from(blocks.group) <= widened { row.widened() } else { row }
    }
}

#[cfg(test)]
mod tests {
    use xfc_lang::graph::blocks::BlockForm;

    use super::*;

    #[test]
    fn room_for_bf16_follows_everything_else() {
        let blocks = |group| Blocks::weights(BlockForm::Token8, group);
        let row = TokenRow::new(70, blocks(32));
        assert_eq!((row.groups, row.scales_at, row.widened_at, row.bytes), (3, 96, None, 192));
        let widened = TokenRow::with(70, blocks(32), 64);
        assert_eq!((widened.widened_at, widened.bytes), (Some(192), 192 + 192));
        assert_eq!(TokenRow { widened_at: None, bytes: row.bytes, ..widened }, row);
        assert_eq!(TokenRow::with(70, blocks(128), 64), TokenRow::new(70, blocks(128)));
        assert_eq!(row_elements(DType::Blocks(blocks(32)), 70, 0), 192);
        assert_eq!(row_elements(DType::BF16, 70, 128), 70);
    }
}
