//! How a kernel is tiled: given by the target, printable, never part of what is computed.

/// Tiling of a product with weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LinearSchedule {
    /// f32 lanes of a vector.
    pub lanes: u32,
    /// Rows of the register tile.
    pub micro_rows: u32,
    /// Vectors of each weight matrix in the register tile.
    pub vectors: u32,
    /// Independent accumulators for successive inputs, added at the end.
    pub chains: u32,
    /// Steps of the inner loop written out.
    pub unroll: u32,
    /// Outputs in a panel of the packed weights: a multiple of `lanes * vectors`.
    pub panel_columns: u64,
    /// Rows of a tile.
    pub rows_per_tile: u64,
    /// Of chosen experts: a tile is all rows of one expert, so that its matrix is read once, and not the choices of one row.
    pub by_expert: bool,
}

/// Inputs in a group of packed weights: pairs of bf16 fill the 32 bits of a lane.
pub fn panel_depth(bf16: bool) -> u64 {
    if bf16 { 2 } else { 1 }
}

/// Tiling of attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AttentionSchedule {
    /// f32 lanes of a vector.
    pub lanes: u32,
    /// Query rows of a tile.
    pub rows_per_tile: u64,
    /// Most query heads of a tile, of those that read one head of keys and values.
    pub heads_per_tile: u64,
}

impl AttentionSchedule {
    /// Tiles for each block of rows, where `group` query heads read each of `kv_heads`.
    pub fn tiles_per_block(&self, kv_heads: u64, group: u64) -> u64 {
        kv_heads * group.div_ceil(self.heads_per_tile)
    }
}

/// Tiling of token-wise kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RowsSchedule {
    /// f32 lanes of a vector.
    pub lanes: u32,
    /// Rows of a tile.
    pub rows_per_tile: u64,
}
