//! What a kernel computes, apart from how (its schedule) and from which buffers (its launches).
//!
//! Specifications are compared by their rendered text, so that equal bodies of different layers become one kernel.

use xfc_lang::graph::{DType, Graph};
use xfc_lang::ops::fused::Reach;
use xfc_runtime::artifact::manifest::{Pack, When};

pub use super::division::Division;
pub use super::pages::{HeadPage, PageLayout};
pub use super::token_row::{TokenRow, row_elements};
use crate::mlir::frame::RowSpace;

/// Any kernel.
#[derive(Clone, Debug)]
pub enum KernelSpec {
    /// Products with weights.
    Linear(LinearSpec),
    /// Attention over pages.
    Attention(Box<AttentionSpec>),
    /// Results of parts of the keys, made one.
    Combine(CombineSpec),
    /// Token-wise operations.
    Rows(RowsSpec),
    /// A step for each token in order.
    Scan(ScanSpec),
}

impl KernelSpec {
    /// A short name for people: what it is and its sizes.
    pub fn name(&self) -> String {
        match self {
            KernelSpec::Linear(s) => {
                let parts = if s.parts > 1 { format!("{}x", s.parts) } else { String::new() };
                let heads = if s.heads > 1 { format!("{}of", s.heads) } else { String::new() };
                let of = s.experts.map(|e| format!("{}of{}_", e.chosen, e.count)).unwrap_or_default();
                format!("linear_{}_{of}{parts}{heads}{}x{}", s.operand, s.outputs, s.inputs)
            }
            KernelSpec::Attention(s) => format!("attention_{}_{}x{}x{}", s.kept, s.heads, s.kv_heads, s.key_dim),
            KernelSpec::Combine(s) => format!("combine_{}x{}x{}", s.division.parts, s.heads, s.value_dim),
            KernelSpec::Rows(s) => format!("rows_{}", s.label),
            KernelSpec::Scan(s) => {
                let state = s.step.params().first().map_or(&[][..], |p| &s.step.ty(p.value).dims[..]);
                let sizes: Vec<String> = state.iter().map(ToString::to_string).collect();
                format!("scan_{}x{}", s.parts, sizes.join("x"))
            }
        }
    }
}

/// `epilogue(x · w_0ᵀ, .., extras..)` over rows.
#[derive(Clone, Debug)]
pub struct LinearSpec {
    /// Which rows.
    pub space: RowSpace,
    /// Rows of the product for each of them: heads, windows.
    pub times: u64,
    /// Matrices, each for its own consecutive inputs and outputs of a row; 1 where all of a row is multiplied by the same.
    pub heads: u64,
    /// The matrices are stacks, and each row has those of the experts chosen for it.
    pub experts: Option<Experts>,
    /// Inputs of each product.
    pub inputs: u64,
    /// Outputs of each product.
    pub outputs: u64,
    /// Weight matrices.
    pub parts: usize,
    /// Of `x` and the weights: f32 or bf16. Of weights in blocks of integers, `x` is in groups of the same size, and of those of floats bf16.
    pub operand: DType,
    /// Graph of scalars: accumulators, then extras.
    pub epilogue: Graph,
    /// How the extras are read.
    pub extras: Vec<Extra>,
    /// Element type stored.
    pub result: DType,
    /// Rows in blocks have room for bf16 ([`TokenRow::widened`]), which steps of many rows multiply.
    pub widened: bool,
}

impl LinearSpec {
    /// The type of `x`, for [`dtype_bytes`] and [`row_elements`].
    pub fn brought(&self) -> DType {
        match self.operand {
            DType::Blocks(blocks) if blocks.form.is_float() => blocks.of_tokens(),
            other => other,
        }
    }
}

/// How rows choose their matrices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Experts {
    /// Matrices in a stack.
    pub count: u64,
    /// Experts of each row: so many rows of the result, one after another.
    pub chosen: u64,
    /// Each choice has a row of `x` of its own.
    pub by_choice: bool,
}

/// An operand of an epilogue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extra {
    /// Element type.
    pub dtype: DType,
    /// Differs from row to row.
    pub per_row: bool,
    /// One element for each output; otherwise one for all.
    pub per_column: bool,
    /// A stack, of which the row of the expert is read.
    pub per_expert: bool,
}

/// Attention of every row over the pages of its sequence.
#[derive(Clone, Debug)]
pub struct AttentionSpec {
    /// Ragged axis of queries and keys.
    pub axis: usize,
    /// Query heads.
    pub heads: u64,
    /// Key and value heads.
    pub kv_heads: u64,
    /// Width of a query or key head.
    pub key_dim: u64,
    /// Width of a value head.
    pub value_dim: u64,
    /// How keys lie in a page.
    pub key_layout: PageLayout,
    /// How values lie in a page.
    pub value_layout: PageLayout,
    /// Values are elements of the keys, from this one on, and lie where they do. Otherwise they have a slot of their own.
    pub value_in_key: Option<u64>,
    /// The sequences whose rows are computed; `None`: all.
    pub when: Option<When>,
    /// Multiplies products.
    pub scale: f64,
    /// Scalars `(q_pos, k_pos, head) -> bool`.
    pub mask: Graph,
    /// Scalars `(score, q_pos, k_pos, head) -> f32`.
    pub score: Graph,
    /// Scalars `(q_pos, k_pos, head) -> f32`, of which `k_pos` is not read: a score that takes part in the softmax and has no value.
    pub sink: Option<Graph>,
    /// What masks, scores and sinks read besides positions and heads: their parameters after `head`.
    pub tables: Vec<Table>,
    /// Whether scores become shares; otherwise they are the weights themselves.
    pub softmax: bool,
    /// What the mask implies.
    pub reach: Reach,
    /// Of the queries.
    pub query: DType,
    /// Of the cached keys.
    pub kept: DType,
    /// Of the cached values.
    pub value_kept: DType,
    /// Element type stored.
    pub result: DType,
    /// Cache group whose block table is read.
    pub group: usize,
    /// Tokens a page.
    pub page_tokens: u64,
    /// How the keys of a query are divided in steps of few rows.
    pub division: Division,
}

impl AttentionSpec {
    /// What a page holds of the keys of a head.
    pub fn keys(&self) -> HeadPage {
        HeadPage { dim: self.key_dim, tokens: self.page_tokens, dtype: self.kept }
    }

    /// What a page holds of the values of a head, where they are no part of the keys.
    pub fn values(&self) -> HeadPage {
        HeadPage { dim: self.value_dim, tokens: self.page_tokens, dtype: self.value_kept }
    }
}

/// The results of parts of the keys, made one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CombineSpec {
    /// Ragged axis of the queries.
    pub axis: usize,
    /// Query heads.
    pub heads: u64,
    /// Key and value heads.
    pub kv_heads: u64,
    /// Width of a value head.
    pub value_dim: u64,
    /// Parts of each head's result.
    pub division: Division,
    /// Whether weights are relative to a maximum.
    pub softmax: bool,
    /// The sequences whose rows are computed; `None`: all.
    pub when: Option<When>,
    /// Element type stored.
    pub result: DType,
}

impl CombineSpec {
    /// What follows an attention.
    pub fn of(spec: &AttentionSpec) -> CombineSpec {
        CombineSpec {
            axis: spec.axis,
            heads: spec.heads,
            kv_heads: spec.kv_heads,
            value_dim: spec.value_dim,
            division: spec.division,
            softmax: spec.softmax,
            when: spec.when,
            result: spec.result,
        }
    }

    /// f32 elements of a part of a head: the values, their maximum and the sum of weights.
    pub fn part_elements(&self) -> u64 {
        self.value_dim + 2
    }

    /// f32 elements of a step: of each row, head and part.
    pub fn step_elements(&self) -> u64 {
        self.division.of_step() * self.heads * self.part_elements()
    }
}

/// What a mask or a score of an attention reads.
#[derive(Clone, Debug, PartialEq)]
pub enum Table {
    /// A constant: one value for each query head, or one for all.
    Heads {
        /// f32, i64 or bool.
        dtype: DType,
        /// In the order of the heads.
        values: Vec<f64>,
    },
    /// A constant that they gather from.
    Constant {
        /// f32 or i64.
        dtype: DType,
        /// All of them.
        values: Vec<f64>,
    },
    /// A tensor of the checkpoint that they gather from: an operand of the launch, behind the result.
    Weight {
        /// f32 or bf16.
        dtype: DType,
    },
    /// What each query brings, for all heads or for each: an operand of the launch, as the next.
    Query {
        /// f32, i64 or bool.
        dtype: DType,
        /// One for each head.
        by_head: bool,
        /// Numbers of each, of which they gather one; otherwise there is one.
        row: Option<u64>,
    },
    /// What is kept of each key.
    Key {
        /// As kept.
        dtype: DType,
        /// Cache group whose block table is read.
        group: usize,
        /// Bytes from one page to the next.
        page_bytes: u64,
        /// Numbers of each key, of which they gather one; otherwise there is one.
        row: Option<KeyRow>,
    },
}

/// The numbers kept of each key, for all heads or for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyRow {
    /// Numbers of each head.
    pub size: u64,
    /// A row for each query head.
    pub by_head: bool,
    /// How they lie in a page.
    pub layout: PageLayout,
}

/// Token-wise operations: one run of `body` a row.
#[derive(Clone, Debug)]
pub struct RowsSpec {
    /// For people: `rms_norm`, `gather_layer_norm`. No part of what is computed.
    pub label: String,
    /// Which rows.
    pub space: RowSpace,
    /// Core operations only.
    pub body: Graph,
    /// How each parameter is read.
    pub params: Vec<RowParam>,
    /// Where outputs go: `(output of the body, sink)`.
    pub sinks: Vec<(usize, Sink)>,
    /// Most elements of a group of rows in blocks that have room for bf16 ([`TokenRow::widened`]).
    pub widened: u64,
}

impl RowsSpec {
    /// Whether any of its results are rows in blocks that have room for bf16.
    pub fn widens(&self) -> bool {
        self.body.outputs().iter().any(|output| match self.body.ty(output.value).dtype {
            DType::Blocks(blocks) => !blocks.is_kept() && u64::from(blocks.group) <= self.widened,
            _ => false,
        })
    }
}

/// `step` for each token of each sequence in order, with the states that the token before left.
#[derive(Clone, Debug)]
pub struct ScanSpec {
    /// Ragged axis of the tokens.
    pub axis: usize,
    /// Parts of the states that know nothing of one another.
    pub parts: u64,
    /// How many of the step's parameters and outputs are states, the first ones.
    pub states: usize,
    /// One token of one part, in core operations.
    pub step: Graph,
    /// How each parameter is read (of a state, its start), and which dimension of it is divided into parts.
    pub params: Vec<(ScanOperand, Option<usize>)>,
    /// The dimension of each output that is divided.
    pub outputs: Vec<Option<usize>>,
    /// Cache group of the states.
    pub group: usize,
    /// Bytes from one page to the next, of each state.
    pub page_bytes: Vec<u64>,
}

/// How an operand of a scan is read.
#[derive(Clone, Debug, PartialEq)]
pub enum ScanOperand {
    /// A row of a buffer for each token.
    Token,
    /// The same for all tokens: an operand of the launch, as the one before.
    Shared,
    /// A constant: one value for all elements, or each.
    Constant(Vec<f64>),
}

/// How a parameter of a row body is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowParam {
    /// A row of a buffer for each row of the kernel.
    PerRow,
    /// A row of a buffer over all elements of the axis, for each *selected* element.
    Selected,
    /// The first row of each sequence on another axis, or the last, for a kernel over what there is one of in a sequence.
    End {
        /// The axis of the buffer's rows.
        axis: usize,
        /// The last.
        last: bool,
    },
    /// The same for all rows.
    Shared,
    /// A table of rows that nothing but gathers reads, as a product's matrix is packed; integers are widened.
    Packed(Pack),
}

/// Where an output of a row body goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sink {
    /// A row of a buffer.
    Buffer,
    /// Where the kernel around the body says.
    Given,
    /// The page of the row's position.
    Cache {
        /// Whose block table.
        group: usize,
        /// How a page is laid out.
        layout: PageLayout,
        /// Tokens a page.
        page_tokens: u64,
        /// Bytes from one page of the slot to the next.
        page_bytes: u64,
    },
}

/// Bytes of an element in memory, in pages but for those of [`HeadPage::element_bytes`].
pub fn dtype_bytes(dtype: DType) -> u64 {
    match dtype {
        DType::I64 => 8,
        DType::F32 | DType::I32 => 4,
        DType::F16 | DType::BF16 => 2,
        // Outside of pages, what is rounded for them lies as f32.
        DType::Blocks(blocks) if blocks.is_kept() => 4,
        // Of groups of elements the layout says what they take.
        DType::Bool | DType::Blocks(_) => 1,
    }
}
