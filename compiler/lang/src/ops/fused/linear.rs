//! One or two products with weight matrices that share their input, and everything elementwise that follows.

use crate::graph::Graph;

/// `y = epilogue(x · w_0ᵀ, .., x · w_{P-1}ᵀ, extras..)`.
///
/// # Shapes
/// Operands: `x [.., I]`, `parts` matrices `w_j [O, I]` (all alike), then extras, each broadcastable to
/// `[.., O]` (a bias `[O]`, a residual `[.., O]`). Result `[.., O]`.
/// The epilogue is a graph of scalars (rank 0): parameters `0 .. parts` are the accumulators (f32), the rest
/// the extras in order; its one output is an element of the result.
///
/// A matrix operand is a constant expression over weights: `Weight`, or `Concat` along dimension 0,
/// `Transpose`, `Slice` and `Cast` of such. Linears that share an input are merged into one whose matrix is a `Concat`,
/// and whose result is sliced.
///
/// # Precision
/// Products of operands of the stated dtypes (f32, or bf16 by bf16), accumulated in f32; the epilogue in f32.
#[derive(Clone, Debug)]
pub struct Linear {
    /// Number of weight matrices.
    pub parts: usize,
    /// What is done with the accumulators.
    pub epilogue: Graph,
}
