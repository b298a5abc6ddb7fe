//! Normalisation over the last dimension, recognised by `passes/fuse_norm.rs`.

/// `x * rsqrt(mean(x²) + eps) * w`.
///
/// # Shapes
/// `x [.., D]`, optional `w [D]` -> `[.., D]`.
///
/// # Precision
/// Computed in f32.
///
/// # Source
/// Zhang and Sennrich 2019, eq. 4.
#[derive(Clone, Debug, PartialEq)]
pub struct RmsNorm {
    /// Added to the mean square.
    pub eps: f64,
    /// Whether `w` is an operand.
    pub gain: bool,
}

/// `(x - mean(x)) * rsqrt(mean((x - mean(x))²) + eps) * w + b`.
///
/// # Shapes
/// `x [.., D]`, optional `w [D]`, optional `b [D]` -> `[.., D]`.
///
/// # Precision
/// Computed in f32.
///
/// # Source
/// Ba, Kiros and Hinton 2016, eq. 4.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerNorm {
    /// Added to the variance.
    pub eps: f64,
    /// Whether `w` is an operand.
    pub gain: bool,
    /// Whether `b` is an operand.
    pub bias: bool,
}
