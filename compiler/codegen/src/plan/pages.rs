//! What a page of a cache holds, and in which order.

use xfc_lang::graph::DType;

use super::kernel::dtype_bytes;

/// Order of the elements `[head, dim, token]` in a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PageLayout {
    /// `[head][dim][token]`: products with one query are sums over consecutive tokens (keys).
    TokensLast,
    /// `[head][token][dim]`: a weighted sum of tokens is over consecutive elements (values, and keys that values are a part of).
    TokensMiddle,
    /// `[head][dim / 2][token][2]`: keys of bf16, so that two elements of a token lie in the 32 bits of a lane.
    DimPairs,
    /// `[head][token / 2][dim][2]`: values of bf16, so that an element of two tokens lies in the 32 bits of a lane.
    TokenPairs,
}

/// What a page holds of a head. Of integers the scales come first, in bf16, `[group][token]`; then the elements, as the layout says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadPage {
    /// Elements of a token.
    pub dim: u64,
    /// Tokens of the page.
    pub tokens: u64,
    /// As kept.
    pub dtype: DType,
}

impl HeadPage {
    /// Bytes of an element.
    pub fn element_bytes(self) -> u64 {
        if self.dtype.blocks().is_some() { 1 } else { dtype_bytes(self.dtype) }
    }

    /// Elements that share a scale: the first ones of each group, and how many it has. Nothing where there are no scales.
    pub fn groups(self) -> Vec<(u64, u64)> {
        let Some(blocks) = self.dtype.blocks() else { return Vec::new() };
        let group = u64::from(blocks.group);
        (0..self.dim.div_ceil(group)).map(|i| (i * group, group.min(self.dim - i * group))).collect()
    }

    /// Bytes of the scales of a group.
    pub fn group_bytes(self) -> u64 {
        self.dtype.blocks().map_or(0, |blocks| blocks.form.shared_bytes() * self.tokens)
    }

    /// Bytes before the elements: of all scales.
    pub fn scale_bytes(self) -> u64 {
        self.groups().len() as u64 * self.group_bytes()
    }

    /// All of it.
    pub fn bytes(self) -> u64 {
        self.scale_bytes() + self.dim * self.tokens * self.element_bytes()
    }

    /// Bytes of a page of so many heads, rounded to a multiple of 64.
    pub fn page_bytes(self, heads: u64) -> u64 {
        (heads * self.bytes()).next_multiple_of(64)
    }

    /// Bytes of one token.
    pub fn token_bytes(self) -> u64 {
        HeadPage { tokens: 1, ..self }.bytes()
    }
}
