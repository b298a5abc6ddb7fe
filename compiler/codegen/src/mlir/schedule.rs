//! How a kernel is tiled: given by the target, printable, never part of what is computed.

use crate::plan::kernel::Division;

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
    /// Bytes that weights are asked for before they are read; 0: whatever the processor does by itself.
    pub prefetch: u64,
    /// While a panel is gone over for one register tile of rows after another, the next one is asked for.
    pub next_panel: bool,
    /// Outputs in a panel of the packed weights: a multiple of `lanes * vectors`.
    pub panel_columns: u64,
    /// Inputs that lie side by side in a panel, for each output.
    pub depth: u64,
    /// Rows of a tile.
    pub rows_per_tile: u64,
    /// Tiles are of several panels, and are multiplied by tensor cores.
    pub tiles: Option<TileSchedule>,
    /// Products go block by block over their inputs, with sums in scratch.
    pub scratch: Option<ScratchSchedule>,
    /// Of chosen experts: a tile is all rows of one expert, so that its matrix is read once, and not the choices of one row.
    pub by_expert: bool,
    /// Where launches overlap: most bytes of its matrices that a block asks for before it waits for those before, in steps whose rows are one block; 0: none.
    pub ahead_bytes: u64,
}

impl LinearSchedule {
    /// Panels of a tile.
    pub fn panels_per_tile(&self) -> u64 {
        self.tiles.map(|tiles| tiles.panels).or(self.scratch.map(|blocks| blocks.panels)).unwrap_or(1)
    }
}

/// Tiling of a product whose sums lie in scratch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ScratchSchedule {
    /// Most inputs of a block.
    pub inputs: u64,
    /// Panels of each part in a tile.
    pub panels: u64,
    /// In what form they are multiplied.
    pub form: Multiplied,
}

/// The form in which products with sums in scratch are multiplied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Multiplied {
    /// Of bf16, widened to f32.
    Widened,
    /// As they are, bf16 or integers, by registers that hold tiles. Inputs are whole tiles, and `micro_rows` and `vectors` such that there are registers for the sums.
    Tiles,
    /// Of integers, widened to bf16, by such registers.
    WidenedTiles,
}

/// Tiling of a product by tensor cores.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TileSchedule {
    /// Panels of each part in a tile.
    pub panels: u64,
    /// Parts of the inputs that are on their way to shared memory, or there.
    pub stages: u64,
    /// Some groups of threads multiply while others bring; otherwise each does both.
    pub teams: Option<TeamSchedule>,
}

/// Who does what where tiles are multiplied by teams of four groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TeamSchedule {
    /// Teams that multiply, each 64 rows of the tile by all its columns.
    pub multiplying: u32,
    /// Groups that bring what they multiply.
    pub bringing: u32,
}

impl TeamSchedule {
    /// Groups of threads of a team.
    pub const GROUPS: u32 = 4;

    /// All groups.
    pub fn groups(self) -> u32 {
        self.multiplying * Self::GROUPS + self.bringing
    }
}

/// Inputs in a group of packed weights: pairs of bf16 fill the 32 bits of a lane.
pub fn panel_depth(bf16: bool) -> u64 {
    if bf16 { 2 } else { 1 }
}

/// Tiling of attention. What a row asks for one head is a *query*: the queries of a tile are its rows times its heads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AttentionSchedule {
    /// f32 lanes of a vector.
    pub lanes: u32,
    /// Query rows of a tile.
    pub rows_per_tile: u64,
    /// Most query heads of a tile, of those that read one head of keys and values.
    pub heads_per_tile: u64,
    /// Blocks of keys, or every query by itself.
    pub blocks: Option<BlockSchedule>,
    /// Of sequences that have few rows in a step of many: how they are gone over.
    pub few: Option<FewSchedule>,
    /// By tensor cores, in one of four forms; `blocks` is then `None`.
    pub tensors: Option<TensorSchedule>,
}

/// How sequences that have few rows in a step are gone over: each by itself, by all its heads of keys, in one of the tiles that have these rows of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FewSchedule {
    /// Most rows of such a sequence.
    pub rows: u64,
    /// Tiles for each head of keys, among which they are shared, and of which the first has what other sequences want.
    pub shares: u64,
    /// The keys of all heads.
    pub blocks: BlockSchedule,
}

/// Who does what in an attention of many rows by teams of four groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AttentionTeams {
    /// Teams that multiply, each 64 queries.
    pub teams: u32,
    /// Groups that bring what they multiply.
    pub bringing: u32,
    /// Keys of a block: some pages.
    pub keys: u64,
    /// Blocks of keys and values that are on their way to shared memory, or there.
    pub stages: u64,
    /// Registers of threads.
    pub registers: TeamRegisters,
}

/// Registers of a thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TeamRegisters {
    /// That a launch gives to each.
    pub all: u32,
    /// That those have which multiply, and those which bring, while they do.
    pub multiplying: u32,
    /// See `multiplying`.
    pub bringing: u32,
}

impl AttentionTeams {
    /// All groups.
    pub fn groups(self) -> u32 {
        self.teams * TeamSchedule::GROUPS + self.bringing
    }

    /// Queries of a tile of the launch.
    pub fn queries(self) -> u64 {
        u64::from(self.teams) * 64
    }
}

/// Who does what in an attention whose values are a part of keys, by teams of four groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LatentSchedule {
    /// Tiles of the same heads in a step, which its rows share as the [`Division`] says; 1: each row is a tile.
    pub key_parts: u64,
    /// Registers of threads.
    pub registers: LatentRegisters,
}

/// Registers of a thread: that a launch gives to each, and that those have while they do something which make scores, which sum values, and which bring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LatentRegisters {
    /// Of all.
    pub all: u32,
    /// One team.
    pub scoring: u32,
    /// Two teams.
    pub summing: u32,
    /// One team.
    pub bringing: u32,
}

impl LatentSchedule {
    /// Query heads of a tile.
    pub const HEADS: u64 = 64;

    /// All groups: four teams.
    pub const GROUPS: u32 = 4 * TeamSchedule::GROUPS;
}

/// How an attention is multiplied by tensor cores.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TensorSchedule {
    /// Row by row, each over pages that are divided: of few rows, or of values that are too wide for the other form.
    Divided(DividedSchedule),
    /// Of many rows, for which keys come to shared memory in stages.
    Staged(StagedSchedule),
    /// The same where teams of groups multiply out of shared memory.
    Teams(AttentionTeams),
    /// By such teams, of few rows and many, where many heads read the same keys, of which the values are a part.
    Latent(LatentSchedule),
}

/// Tiling of an attention of many rows by tensor cores.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StagedSchedule {
    /// Groups of threads, each with queries of its own.
    pub groups: u32,
    /// Tiles of 16 queries of a group: what is loaded of keys and values serves all of them.
    pub row_tiles: u32,
}

impl StagedSchedule {
    /// Queries of a tile of the launch.
    pub fn queries(self) -> u64 {
        u64::from(self.groups * self.row_tiles) * 16
    }
}

/// Tiling of an attention by tensor cores row by row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DividedSchedule {
    /// Groups of threads that pages are divided among.
    pub key_groups: u32,
    /// Groups that the columns of values are divided among.
    pub value_groups: u32,
    /// Tiles of the same heads in a step, which its rows share as the [`Division`] says; 1: keys are not divided.
    pub key_parts: u32,
}

/// Tiling of the keys of an attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BlockSchedule {
    /// Queries of a register tile.
    pub queries: u32,
    /// Heads of keys of a tile.
    pub kv_heads: u64,
    /// Pages are read once and as they lie, each for all heads and queries of the tile; otherwise all that is done to a block is done for one
    /// register tile of queries after another.
    pub by_page: bool,
    /// Pages of keys in a register tile of scores: 1 where pages are read as they lie.
    pub pages_per_tile: u32,
    /// Independent accumulators of a score for successive elements, added at the end.
    pub chains: u32,
    /// Pages of a block, for which a query's maximum and sum are brought up to date once: a multiple of `pages_per_tile`.
    pub pages: u32,
    /// Most vectors of values in a register tile.
    pub value_vectors: u32,
    /// Of those, how many are loaded before they are multiplied.
    pub values_together: u32,
    /// Parts that the keys of a query are divided into, tiles of their own.
    pub key_parts: u32,
    /// Where pages are read as they lie: bytes that are asked for ahead; 0: whatever the processor does by itself.
    pub prefetch: u64,
    /// Products by registers that hold tiles, of 16 queries each; pages of a block are a multiple of four then.
    pub tiles: bool,
}

impl AttentionSchedule {
    /// Tiles for each block of rows, where `group` query heads read each of `kv_heads`.
    pub fn tiles_per_block(&self, kv_heads: u64, group: u64) -> u64 {
        kv_heads / self.kv_heads() * self.parts(group) * self.key_parts() * self.shares()
    }

    /// Heads of keys of a tile.
    pub fn kv_heads(&self) -> u64 {
        self.blocks.map_or(1, |blocks| blocks.kv_heads)
    }

    /// Parts that the keys of a query are divided into.
    pub fn key_parts(&self) -> u64 {
        match self.tensors {
            Some(TensorSchedule::Divided(divided)) => u64::from(divided.key_parts),
            Some(TensorSchedule::Latent(latent)) => latent.key_parts,
            Some(TensorSchedule::Staged(_) | TensorSchedule::Teams(_)) => 1,
            None => self.blocks.map_or(1, |blocks| u64::from(blocks.key_parts)),
        }
    }

    /// Whether the rows of a step share the parts of a division: a tile is then a part of one of them.
    pub fn shares_parts(&self, division: &Division) -> bool {
        division.shared && self.key_parts() > 1
    }

    /// Tiles for the same rows and heads, among which sequences that have few rows are shared.
    pub fn shares(&self) -> u64 {
        self.few.map_or(1, |few| few.shares)
    }

    /// Tiles that the query heads of a group are divided into.
    pub fn parts(&self, group: u64) -> u64 {
        group.div_ceil(self.heads_per_tile)
    }
}

/// Tiling of token-wise kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RowsSchedule {
    /// f32 lanes of a vector.
    pub lanes: u32,
    /// Rows of a tile.
    pub rows_per_tile: u64,
    /// Of rows in blocks that have room for bf16 nothing else is read, nor written.
    pub halves_alone: bool,
}
