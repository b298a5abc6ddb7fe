//! Attention over kept keys and values as one online-softmax kernel.

use crate::graph::Graph;

/// `softmax(score(scale · q·kᵀ) where mask) · v`, without ever holding a row of scores.
///
/// # Shapes
/// Operands: `q [tokens, H, Dk]`, `k [visible(tokens), K, Dk]`, `v [visible(tokens), K, Dv]` (or `[tokens, ..]` where nothing is
/// cached: the whole sequence in one step), then extras -> `[tokens, H, Dv]`, with `H % K == 0`.
/// Query head `h` reads key and value head `h / (H / K)`.
/// `mask` is a graph of scalars with parameters `(q_pos, k_pos, head, extras..)`, i64 positions and head, giving a bool.
/// `score` is a graph of scalars with parameters `(score, q_pos, k_pos, head, extras..)` giving f32; `score` is already scaled.
/// Extras are broadcastable to `[tokens, H, visible(tokens)]`.
///
/// # Precision
/// Scores, softmax and the weighted sum in f32 for any operand dtype; the result is f32.
///
/// # Source
/// Dao et al. 2022; Milakov and Gimelshein 2018 for the online softmax; Ainslie et al. 2023 for grouped queries.
#[derive(Clone, Debug)]
pub struct Attention {
    /// Multiplies the products before `score` sees them.
    pub scale: f64,
    /// Which keys a query sees.
    pub mask: Graph,
    /// Identity when it returns its first parameter.
    pub score: Graph,
    /// What the mask implies, derived by interval evaluation.
    pub reach: Reach,
}

/// How far a query sees, derived from its mask: nobody declares it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reach {
    /// `Some(n)`: only keys with `q_pos - k_pos < n` can be visible. `None`: any age (also when unknown).
    pub window: Option<u64>,
    /// Keys after the query can be visible: the whole sequence must be there in one step.
    pub future: bool,
}
