//! A group of operations that treat every token by itself, as one kernel.

use crate::graph::Graph;

/// Any core or fused operations whose results at a token depend on that token alone: norms, rotary embedding, gathers,
/// elementwise chains, slices and concatenations, and the writing of caches.
///
/// # Shapes
/// The body is a graph with the group's operands as parameters and its results as outputs; every dimension in it is
/// fixed, but for a leading `tokens` or `rows(tokens)`. An output that is fed to a `Cache` right behind the group is written into its
/// pages by this kernel.
#[derive(Clone, Debug)]
pub struct Rows {
    /// The operations of the group.
    pub body: Graph,
    /// Why the group ends where it does, for people.
    pub reason: String,
}
