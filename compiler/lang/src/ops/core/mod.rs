//! The core operations: a closed set, matched exhaustively by the verifier, the printer, the
//! interpreter and the lowering.
//!
//! # Shapes
//!
//! Dimensions are positional. Elementwise operations (`Unary`, `Binary`, `Select`, `Cast`) broadcast as
//! numpy does: shapes are aligned at the last dimension, a missing or 1-sized dimension repeats.
//! A value describes **one sequence**: `tokens` are the tokens this step adds to it, `visible(tokens)`
//! everything it has kept. How several sequences share a step is the executor's business, never the graph's.
//!
//! # Precision
//!
//! Results have the dtype the node states. The interpreter computes `f32` values in f32 (or f64 when asked
//! to) and rounds only at `Cast`. Arithmetic is on f32 and integers; values of other float types are only moved, cast and contracted.

pub mod scan;
mod text;

use std::sync::Arc;

use crate::graph::Graph;

/// An operation of the closed set.
#[derive(Clone, Debug, PartialEq)]
pub enum Core {
    /// Parameter `index` of the graph: an input of the program in the main graph, an argument of the call elsewhere.
    Arg {
        /// Position among the graph's parameters.
        index: usize,
    },
    /// A tensor of the checkpoint, by instance path. Relative to the `at` of the calls that lead here;
    /// a leading `/` makes it absolute (an instance shared with, or captured from, an outer body). A range in the place of a component
    /// stacks the tensors of those numbers along a new dimension 0 (see [`Stack`](crate::graph::path::Stack)).
    Weight {
        /// For example `self_attn.q_proj.weight`, or `experts.{0..64}.gate_proj.weight`.
        path: String,
    },
    /// A constant of the result's type, in row-major order.
    Const {
        /// One value per element of the result; a single value fills it.
        values: Vec<f64>,
    },
    /// The absolute position in its sequence of each element of a ragged dimension: `i64[tokens]` or `i64[visible(tokens)]`.
    Position,
    /// `0, 1, 2, ...` along the one fixed dimension of the result: `i64[n]`.
    Index,
    /// One operand, elementwise.
    Unary(UnaryOp),
    /// Two operands, elementwise.
    Binary(BinaryOp),
    /// `(condition, a, b)`: `a` where the condition holds, else `b`, elementwise.
    Select,
    /// To the dtype of the result, round to nearest even; float to integer truncates.
    Cast,
    /// The same elements in row-major order under other dimensions; ragged dimensions stay where they are.
    Reshape,
    /// Dimension `d` of the result is dimension `perm[d]` of the operand.
    Transpose {
        /// A permutation of the dimensions.
        perm: Vec<usize>,
    },
    /// Elements `start .. start + size` of dimension `dim`; `size` is the result's.
    Slice {
        /// A fixed dimension.
        dim: usize,
        /// First element kept.
        start: u64,
    },
    /// The operands one after another along `dim`.
    Concat {
        /// A fixed dimension.
        dim: usize,
    },
    /// Each element along `dim` repeated `times` times in a row: `a a b b`.
    Repeat {
        /// A fixed dimension.
        dim: usize,
        /// At least 1.
        times: u64,
    },
    /// The operand repeated to the dimensions of the result, aligned at the last; ragged ones are the step's.
    Broadcast,
    /// Windows of `size` elements along `dim`, each `stride` after the one before: `[.., n, ..] -> [.., (n - size) / stride + 1, size, ..]`.
    Windows {
        /// A fixed dimension.
        dim: usize,
        /// Elements of a window.
        size: u64,
        /// Elements from one window to the next.
        stride: u64,
    },
    /// `(table, indices)`: row `indices[..]` of `table [n, rest..]`, shape `[indices.., rest..]`. Indices outside the table are an error at run time.
    Gather,
    /// `(values, indices)`: `take_along_axis` on the last dimension; leading dimensions are shared.
    Take,
    /// Over the last dimension, which is kept with size 1.
    Reduce(ReduceOp),
    /// The indices (`i64`) of the `k` largest along the last dimension, largest first, ties to the lower index. NaN counts as the largest.
    TopK {
        /// At most the size of the last dimension.
        k: u64,
    },
    /// `(scores)` or `(scores, mask)`: softmax over the last dimension of the scores where the boolean mask (broadcast) holds, 0 elsewhere.
    /// A row with nothing visible is all zeros, one that sees NaN all NaN. `(scores, mask, sink)`: the sink, broadcast to the scores with one
    /// element a row, is one score more of each row, of which no share is given: the shares add up to less than 1.
    Softmax,
    /// A sum of products in Einstein notation over two operands, accumulated in f32 (f64 in the f64 interpreter): `"nkgd,vkd->nkgv"`.
    Contract {
        /// `labels,labels->labels`, one lowercase letter a dimension.
        spec: String,
    },
    /// What is kept of each token of the sequence: `[tokens, ..] -> [visible(tokens), ..]`.
    Cache {
        /// Instance path of the cache, relative like a weight's.
        path: String,
    },
    /// The tokens whose outputs were asked for: `[tokens, ..] -> [rows(tokens), ..]`.
    SelectRows,
    /// The same elements of a sequence in row-major order under another axis, where it is known how many elements of both a sequence has:
    /// `[images, 196, ..] -> [patches, ..]`. The sequence is whole.
    Regroup,
    /// The first element of each sequence: `[tokens, ..] -> [sequence, ..]`, to an axis of one element. The sequence is whole.
    First,
    /// The last element of each sequence, as the one before.
    Last,
    /// `(starts.., values..)`: `step` for each token in order, with what it gave as states for the token before; states go on from step to step of
    /// the sequence. `step` is given the states, and of each value `[tokens, ..]` that of its token `[..]`, of others the whole; it gives
    /// the new states, then the results, which become `[tokens, ..]`.
    Scan {
        /// Instance path of the states, relative like a weight's.
        path: String,
        /// How many of the operands are starts of states.
        states: usize,
        /// A graph of one token: no ragged dimensions, no paths, no calls.
        step: Arc<Graph>,
    },
    /// The body `graph` of the program, at instance path `at` (relative, prefixed to every path in it).
    Call {
        /// Index into [`crate::graph::Program::graphs`].
        graph: usize,
        /// For example `layers.3`.
        at: String,
    },
}

impl Core {
    /// Whether the result is elements of the operands, or arithmetic on them, in any order and number: the same wherever it is computed, and cheap.
    pub fn is_pure(&self) -> bool {
        match self {
            Core::Unary(_)
            | Core::Binary(_)
            | Core::Select
            | Core::Cast
            | Core::Reshape
            | Core::Transpose { .. }
            | Core::Slice { .. }
            | Core::Concat { .. }
            | Core::Repeat { .. }
            | Core::Broadcast
            | Core::Windows { .. }
            | Core::Gather
            | Core::Take
            | Core::Reduce(_) => true,
            Core::Arg { .. }
            | Core::Weight { .. }
            | Core::Const { .. }
            | Core::Position
            | Core::Index
            | Core::TopK { .. }
            | Core::Softmax
            | Core::Contract { .. }
            | Core::Cache { .. }
            | Core::SelectRows
            | Core::Regroup
            | Core::First
            | Core::Last
            | Core::Scan { .. }
            | Core::Call { .. } => false,
        }
    }
}

/// Elementwise functions of one operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "each is the mathematical function it is named after")]
pub enum UnaryOp {
    Neg,
    Abs,
    Exp,
    /// Natural logarithm.
    Log,
    Sqrt,
    /// `1 / sqrt(x)`.
    Rsqrt,
    Tanh,
    Erf,
    /// `1 / (1 + exp(-x))`.
    Sigmoid,
    /// `log(1 + exp(x))`.
    Softplus,
    Sin,
    Cos,
    Floor,
    Not,
}

/// Elementwise functions of two operands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "each is the mathematical function it is named after")]
pub enum BinaryOp {
    Add,
    Sub,
    Mul,
    /// Real division.
    Div,
    /// Division rounded down, integers or floats.
    FloorDiv,
    /// `a - b * floor(a / b)`.
    Mod,
    Pow,
    /// The smaller; NaN where either is.
    Min,
    /// The larger; NaN where either is.
    Max,
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    And,
    Or,
}

/// Reductions over the last dimension.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "each is the mathematical function it is named after")]
pub enum ReduceOp {
    Sum,
    Mean,
    Max,
    Min,
    /// Index (`i64`) of the largest, ties to the lower index; of the first NaN where there is one.
    ArgMax,
}
