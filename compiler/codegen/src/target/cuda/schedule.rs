//! How kernels are tiled on a GPU.

use xfc_lang::graph::DType;
use xfc_runtime::artifact::manifest::When;

use super::arch::{Arch, LAUNCHED_BYTES};
use crate::mlir::attention::{latent, shared_bytes, teams, tensors};
use crate::mlir::linear::tiles;
use crate::mlir::machine::{ByteDot, ByteTileDot, Machine, PairDot, TeamDot, TileDot};
use crate::mlir::schedule::{
    AttentionSchedule, AttentionTeams, DividedSchedule, LatentRegisters, LatentSchedule, LinearSchedule, RowsSchedule,
    StagedSchedule, TeamRegisters, TeamSchedule, TensorSchedule, TileSchedule,
};
use crate::plan::kernel::{AttentionSpec, Division, LinearSpec, dtype_bytes};
use crate::target::cpu::schedule::{ALL_ROWS, Regime};

/// Outputs in a panel of packed weights: a vector of a warp.
pub(super) const PANEL_COLUMNS: u64 = 32;

/// Bytes of a column that lie side by side: what a thread loads at a time.
const COLUMN_BYTES: u64 = 16;

/// Tokens in a page of the caches: a vector of a warp.
pub(super) const PAGE_TOKENS: u64 = 32;

/// Threads of a warp.
pub(super) const WARP: u32 = 32;

/// Steps by how many rows a launch has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Steps {
    /// One sequence decoding.
    One,
    /// Several.
    Few,
    /// Many: bound by weights still, and by what is kept of each sequence.
    Batch,
    /// Prompts.
    Many,
    /// Long prompts, or several, where that makes a difference.
    Long,
}

impl Steps {
    /// Those of an architecture, in the order of the manifest's phases.
    pub(super) fn of(arch: &Arch) -> &'static [Steps] {
        const ALL: [Steps; 5] = [Steps::One, Steps::Few, Steps::Batch, Steps::Many, Steps::Long];
        if arch.teams { &ALL } else { &ALL[..4] }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Steps::Batch => "batch",
            Steps::Long => "long",
            _ => self.regime().name(),
        }
    }

    pub(super) fn max_rows(self, arch: &Arch) -> Option<u64> {
        match self {
            Steps::Batch => Some(DIVIDED_ROWS),
            Steps::Many if arch.teams => Some(MANY_ROWS),
            _ => self.regime().max_rows(),
        }
    }

    /// How products and what goes row by row see them.
    pub(super) fn regime(self) -> Regime {
        match self {
            Steps::One => Regime::One,
            Steps::Few => Regime::Few,
            Steps::Batch | Steps::Many | Steps::Long => Regime::Many,
        }
    }

    /// Whether the keys of a query are divided.
    pub(super) fn is_divided(self) -> bool {
        !matches!(self, Steps::Many | Steps::Long)
    }
}

/// Most rows of a step in which the keys of a query are divided.
const DIVIDED_ROWS: u64 = 64;

/// Most rows of a step that is not long.
const MANY_ROWS: u64 = 512;

/// Blocks of an attention that are worth having: one for each processor of a large GPU.
const BLOCKS: u64 = 128;

/// The same where each takes a processor for itself, of a GPU whose warps multiply in teams: no more, since the last would follow the first.
const TEAM_BLOCKS: u64 = 132;

/// Query heads of a tile whose keys are divided: rows of a tile of tensor cores.
const DIVIDED_HEADS: u64 = 16;

/// Widest values that a warp sums by itself.
const WIDEST: u64 = 256;

/// Threads that share the registers of a multiprocessor at least: 128 registers each. Left to itself, ptxas gives a kernel as few registers as lets
/// more threads run, and spills a few bytes for it.
const RESIDENT_THREADS: u32 = 512;

/// The same of products whose rows are chosen, each with an address of its own, and of several rows by floats that are widened: 168 registers.
const GATHERED_THREADS: u32 = 384;

/// The same of two such products and of what is made of both: all that a thread can have.
const GATED_THREADS: u32 = 256;

/// A block of so many threads as one worker.
pub(super) fn machine(threads: u32) -> Machine {
    Machine {
        lanes: threads,
        threads,
        groups: 1,
        side_by_side: RESIDENT_THREADS / threads,
        fma: true,
        round: true,
        pair_dot: PairDot::Widened,
        byte_dot: ByteDot::Widened,
        word_dot: None,
        half: true,
        tile_dot: Some(TileDot("llvm.nvvm.mma.m16n8k16.row.col.bf16")),
        byte_tile_dot: Some(ByteTileDot("llvm.nvvm.mma.m16n8k32.row.col.s8.u8")),
        tile_registers: None,
        team_dot: None,
        overlaps: false,
    }
}

/// Warps of which teams multiply. Their stages are most of the shared memory, so that no second block fits beside it.
fn team_machine(groups: u32) -> Machine {
    let team_dot = Some(TeamDot("wgmma.mma_async.sync.aligned.m64n", "k16.f32.bf16.bf16"));
    Machine { groups, side_by_side: 1, team_dot, ..machine(WARP) }
}

/// Warps that divide the inputs of a product, or its rows.
pub(super) fn product_machine(regime: Regime, spec: &LinearSpec, schedule: &LinearSchedule) -> Machine {
    if let Some(teams) = schedule.tiles.and_then(|tiles| tiles.teams) {
        return team_machine(teams.groups());
    }
    // Few rows are bound by memory: the more warps, the more of it is asked for at a time.
    let groups = if regime == Regime::Many { 4 } else { 8 };
    // Without a limit a block of tiles takes all registers that there are, to load early. Three blocks leave each thread 168, which are enough for 64 sums in
    // bf16, or for half as many and scales; two leave it 255.
    let is_of_floats = spec.operand.blocks().is_some_and(|blocks| blocks.form.is_float());
    let side_by_side = match (schedule.tiles, spec.experts) {
        (Some(_), _) if spec.operand.blocks().is_some() && schedule.rows_per_tile > 64 => 2,
        (Some(_), _) => 3,
        // What is asked for ahead of floats of 8 bits is more than one row has registers for, left to itself.
        (None, _) if regime == Regime::One && is_of_floats => RESIDENT_THREADS / (WARP * groups),
        // One row needs few registers.
        (None, _) if regime == Regime::One => 0,
        (None, Some(_)) if spec.parts > 1 => GATED_THREADS / (WARP * groups),
        (None, Some(_)) => GATHERED_THREADS / (WARP * groups),
        (None, None) if is_of_floats => GATHERED_THREADS / (WARP * groups),
        (None, None) => RESIDENT_THREADS / (WARP * groups),
    };
    Machine { groups, side_by_side, ..machine(WARP) }
}

/// Inputs that lie side by side in a panel.
pub(super) fn depth(operand: DType) -> u64 {
    COLUMN_BYTES / dtype_bytes(operand)
}

/// The schedule of a linear in some steps.
pub(super) fn linear(arch: &Arch, steps: Steps, spec: &LinearSpec) -> LinearSchedule {
    let regime = steps.regime();
    let micro_rows = if regime == Regime::One { 1 } else { 8 };
    let tiles = tiles_of_teams(arch, steps, spec).or_else(|| tiles_of(regime, spec));
    // Prompts, which memory does not hold up.
    let is_of_teams = tiles.is_some_and(|(_, tiles)| tiles.teams.is_some());
    LinearSchedule {
        lanes: WARP,
        micro_rows,
        vectors: 1,
        chains: 1,
        unroll: 1,
        prefetch: 0,
        next_panel: false,
        panel_columns: PANEL_COLUMNS,
        depth: depth(spec.operand),
        rows_per_tile: tiles.map_or(u64::from(micro_rows), |(rows, _)| rows),
        tiles: tiles.map(|(_, tiles)| tiles),
        scratch: None,
        by_expert: regime != Regime::One,
        ahead_bytes: if arch.overlaps && !is_of_teams { ahead_bytes(spec) } else { 0 },
    }
}

/// Bytes that the blocks of a product ask for before the launches before it have ended: what memory brings in two microseconds, and fits into half of the
/// caches that they share. And of one block at least and at most.
const AHEAD: u64 = 8 << 20;
const AHEAD_OF_BLOCK: (u64, u64) = (8 << 10, 64 << 10);

/// Those of one block, of a step in which each panel is read once.
fn ahead_bytes(spec: &LinearSpec) -> u64 {
    let panels = spec.outputs.div_ceil(PANEL_COLUMNS) * spec.heads;
    (AHEAD / panels.max(1)).clamp(AHEAD_OF_BLOCK.0, AHEAD_OF_BLOCK.1)
}

/// Rows of a tile, and its schedule, where tensor cores multiply.
fn tiles_of(regime: Regime, spec: &LinearSpec) -> Option<(u64, TileSchedule)> {
    let is_tiled = spec.operand == DType::BF16 || spec.operand.blocks().is_some();
    if regime != Regime::Many || !is_tiled || spec.heads > 1 {
        return None;
    }
    let parts = spec.parts as u64;
    let panels = (2 / parts).max(1);
    // The more columns, the fewer rows: registers and shared memory hold the sums of both. Of many experts each has few rows.
    let is_wide = parts * panels * PANEL_COLUMNS > 64;
    let is_sparse = is_sparse(spec);
    let ways = [(128, 3), (64, 3), (64, 2)];
    let way = |(rows, stages): (u64, u64)| {
        let tiles = TileSchedule { panels, stages, teams: None };
        let fits = tiles::shared_bytes(spec.operand, parts, rows, tiles) <= SHARED_BYTES;
        (fits && !(rows > 64 && (is_wide || is_sparse))).then_some((rows, tiles))
    };
    ways.into_iter().find_map(way)
}

/// So many times as many experts as each row chooses are many.
const SPARSE: u64 = 8;

/// Whether each matrix has few rows of a step.
fn is_sparse(spec: &LinearSpec) -> bool {
    spec.experts.is_some_and(|experts| experts.count >= SPARSE * experts.chosen)
}

/// The same where teams of warps multiply: as many columns as leave a tile for most processors, since what a tile reads is shared by its columns.
fn tiles_of_teams(arch: &Arch, steps: Steps, spec: &LinearSpec) -> Option<(u64, TileSchedule)> {
    let is_short = steps == Steps::Many;
    let is_meant = arch.teams && !steps.is_divided() && spec.operand == DType::BF16 && spec.heads == 1;
    if !is_meant || (is_short && is_sparse(spec)) {
        return None;
    }
    let parts = spec.parts as u64;
    let blocks = if is_short { SHORT_BLOCKS } else { LONG_BLOCKS };
    let matrices = spec.experts.map_or(1, |experts| experts.chosen);
    let total = spec.outputs.div_ceil(PANEL_COLUMNS) * parts;
    let most = (WIDEST_TILE / PANEL_COLUMNS).min(blocks * matrices * total / WAVE);
    let most = most.next_power_of_two() >> u64::from(!most.is_power_of_two());
    let panels = (most.max(2) / parts).max(1);
    if parts * panels * PANEL_COLUMNS > WIDEST_TILE {
        return None;
    }
    let teams = Some(TeamSchedule { multiplying: 2, bringing: TeamSchedule::GROUPS });
    let of = |stages| TileSchedule { panels, stages, teams };
    let fits = |stages: &u64| {
        tiles::shared_bytes(spec.operand, parts, TEAM_ROWS, of(*stages)) + SPARE_BYTES <= arch.launched_bytes
    };
    let stages = (STAGES.0..=STAGES.1).rev().find(fits)?;
    Some((TEAM_ROWS, of(stages)))
}

/// Rows of a tile of two teams.
const TEAM_ROWS: u64 = 128;

/// Columns of all matrices of such a tile: as many as an instruction takes.
const WIDEST_TILE: u64 = 256;

/// Least and most stages of such a tile.
const STAGES: (u64, u64) = (3, 8);

/// Blocks of rows that steps are thought to have, short and long ones.
const SHORT_BLOCKS: u64 = 3;
const LONG_BLOCKS: u64 = 8;

/// Tiles that keep most processors of a GPU busy.
const WAVE: u64 = 96;

/// Shared memory beside the stages: what the code itself asks for, and what is lost before the first.
const SPARE_BYTES: u64 = 4 << 10;

/// Shared memory that a block has without asking.
const SHARED_BYTES: u64 = 48 << 10;

/// How the keys of a query are divided in steps of few rows.
pub(super) fn division(arch: &Arch, spec: &AttentionSpec) -> Division {
    let (blocks, heads) = match attention(arch, Steps::One, spec).tensors {
        Some(TensorSchedule::Divided(_)) => (BLOCKS, DIVIDED_HEADS),
        Some(TensorSchedule::Latent(_)) => (TEAM_BLOCKS, LatentSchedule::HEADS),
        _ => return Division::NONE,
    };
    // Sequences that begin have few keys where a step has few rows.
    if spec.when == Some(When::FromStart) {
        return Division::NONE;
    }
    let tiles = spec.kv_heads * (spec.heads / spec.kv_heads).div_ceil(heads);
    let parts = if heads == LatentSchedule::HEADS { blocks / tiles } else { blocks.div_ceil(tiles) };
    let parts = parts.max(1);
    let of_tile = (spec.heads / spec.kv_heads).min(heads) * (spec.value_dim + 2) * 4;
    let joined = if heads == DIVIDED_HEADS && parts * of_tile <= JOINED_BYTES { tiles } else { 0 };
    Division { parts, rows: DIVIDED_ROWS, shared: true, joined }
}

/// Most bytes of parts that one block makes one: what it reads in less than three microseconds, 64 bytes a cycle, for which a launch would have all processors of a GPU.
const JOINED_BYTES: u64 = 288 << 10;

/// The schedule of attention: where tensor cores do not multiply, a warp a head and row.
pub(super) fn attention(arch: &Arch, steps: Steps, spec: &AttentionSpec) -> AttentionSchedule {
    let by_row = BY_ROW;
    if !tensors::fits(spec) {
        return by_row;
    }
    // What has to be widened on its way to be multiplied passes through registers.
    let is_as_kept = tensors::is_as_kept(spec);
    let of_teams = || attention_of_teams(arch, steps, spec).or_else(|| attention_of_latents(arch, steps, spec));
    if let Some(schedule) = is_as_kept.then(of_teams).flatten() {
        return schedule;
    }
    // Of two tiles the results of narrow values fill the registers of a thread.
    let row_tiles = match spec.value_dim {
        n if steps.is_divided() || n > WIDEST || !is_as_kept => &[][..],
        n if n + spec.key_dim > WIDEST => &[1],
        // Beside wide values there are no registers for what the scores of two tiles read.
        n if n + spec.key_dim > WIDEST / 2 && !spec.tables.is_empty() => &[1],
        _ => &[2, 1],
    };
    for &row_tiles in row_tiles {
        let staged = TensorSchedule::Staged(StagedSchedule { groups: ATTENTION_WARPS, row_tiles });
        let queries = u64::from(16 * ATTENTION_WARPS * row_tiles);
        let schedule = of_queries(spec, queries, staged);
        if shared_bytes(spec, &schedule) <= LAUNCHED_BYTES {
            return schedule;
        }
    }
    // Wide values are divided among warps.
    let value_groups = match spec.value_dim {
        n if n <= WIDEST / 2 => 1,
        n if n <= WIDEST && n.is_multiple_of(2 * 64) => 2,
        ..=WIDEST => 1,
        n if n.is_multiple_of(4 * 64) => 4,
        _ => return by_row,
    };
    let (key_parts, rows_per_tile) = key_parts(steps, spec);
    let key_groups = ATTENTION_WARPS / value_groups;
    let divided = DividedSchedule { key_groups, value_groups, key_parts: key_parts as u32 };
    let tensors = Some(TensorSchedule::Divided(divided));
    let schedule = AttentionSchedule { rows_per_tile, heads_per_tile: DIVIDED_HEADS, tensors, ..by_row };
    if shared_bytes(spec, &schedule) <= LAUNCHED_BYTES { schedule } else { by_row }
}

/// Most tiles of the same heads in a step whose keys are divided, and rows of a tile as launches count them.
fn key_parts(steps: Steps, spec: &AttentionSpec) -> (u64, u64) {
    let is_divided = steps.is_divided() && spec.division.parts > 1;
    if is_divided { (spec.division.of_step(), ALL_ROWS) } else { (1, 1) }
}

/// Tiles of a launch of attention for each block of its rows: where these share parts of keys as many as most of them have, and not as many as each would have alone, since
/// tiles without anything to do would cost more than those which have something.
pub(super) fn attention_tiles(arch: &Arch, steps: Steps, spec: &AttentionSpec) -> u64 {
    let schedule = attention(arch, steps, spec);
    let group = spec.heads / spec.kv_heads;
    if !schedule.shares_parts(&spec.division) {
        return schedule.tiles_per_block(spec.kv_heads, group);
    }
    let rows = steps.max_rows(arch).unwrap_or(spec.division.rows);
    spec.kv_heads * schedule.parts(group) * spec.division.parts.max(rows)
}

/// A warp a head and row.
const BY_ROW: AttentionSchedule =
    AttentionSchedule { lanes: WARP, rows_per_tile: 1, heads_per_tile: 1, blocks: None, few: None, tensors: None };

/// Where tiles have so many queries.
fn of_queries(spec: &AttentionSpec, queries: u64, tensors: TensorSchedule) -> AttentionSchedule {
    let group = spec.heads / spec.kv_heads;
    let heads = group.div_ceil(group.div_ceil(queries));
    AttentionSchedule { rows_per_tile: queries / heads, heads_per_tile: queries, tensors: Some(tensors), ..BY_ROW }
}

/// The schedule of attention of many rows where teams of warps multiply.
fn attention_of_teams(arch: &Arch, steps: Steps, spec: &AttentionSpec) -> Option<AttentionSchedule> {
    let dims = [spec.key_dim, spec.value_dim];
    let fits = spec.value_in_key.is_none() && dims.iter().all(|dim| teams::fits(*dim) && *dim <= WIDEST);
    if !arch.teams || steps.is_divided() || !fits {
        return None;
    }
    // Scores of a block, weights of the one before and results share the registers of a thread, with what masks and scores read.
    let keys = if spec.value_dim > WIDEST / 2 || !spec.tables.is_empty() { 64 } else { 128 };
    let of = |stages| {
        let teams = AttentionTeams { teams: 2, bringing: TeamSchedule::GROUPS, keys, stages, registers: REGISTERS };
        of_queries(spec, teams.queries(), TensorSchedule::Teams(teams))
    };
    let fits = |schedule: &AttentionSchedule| shared_bytes(spec, schedule) + SPARE_SHARED <= arch.launched_bytes;
    ATTENTION_STAGES.into_iter().map(of).find(fits)
}

/// The schedule of attention of many heads whose values are a part of the keys that they share, where teams of warps multiply: tiles of 64 heads, of which some may not exist.
/// They are multiplied nevertheless, by an instruction that is almost twice as fast as those of [`DIVIDED_HEADS`].
fn attention_of_latents(arch: &Arch, steps: Steps, spec: &AttentionSpec) -> Option<AttentionSchedule> {
    let group = spec.heads / spec.kv_heads;
    let tiles = group.div_ceil(LatentSchedule::HEADS);
    let is_filled = group * LATENT_FILLED.1 >= tiles * LatentSchedule::HEADS * LATENT_FILLED.0;
    if !arch.teams || !is_filled || !latent::fits(spec) {
        return None;
    }
    let (key_parts, rows_per_tile) = key_parts(steps, spec);
    let tensors = Some(TensorSchedule::Latent(LatentSchedule { key_parts, registers: LATENT_REGISTERS }));
    let schedule = AttentionSchedule { rows_per_tile, heads_per_tile: LatentSchedule::HEADS, tensors, ..BY_ROW };
    (shared_bytes(spec, &schedule) + SPARE_SHARED <= arch.launched_bytes).then_some(schedule)
}

/// The part of such a tile that exists at least.
const LATENT_FILLED: (u64, u64) = (5, 8);

/// Registers of its four teams: together as many as there are.
const LATENT_REGISTERS: LatentRegisters = LatentRegisters { all: 128, scoring: 136, summing: 168, bringing: 40 };

/// Registers of the three teams of an attention: together as many as there are.
const REGISTERS: TeamRegisters = TeamRegisters { all: 168, multiplying: 224, bringing: 56 };

/// Stages of such an attention, the best first.
const ATTENTION_STAGES: [u64; 3] = [4, 3, 2];

/// Shared memory that its code asks for itself.
const SPARE_SHARED: u64 = 512;

/// Warps of an attention by tensor cores.
const ATTENTION_WARPS: u32 = 4;

/// The threads of an attention.
pub(super) fn attention_machine(schedule: &AttentionSchedule) -> Machine {
    match schedule.tensors {
        None => machine(schedule.lanes),
        Some(TensorSchedule::Teams(teams)) => team_machine(teams.groups()),
        Some(TensorSchedule::Latent(_)) => team_machine(LatentSchedule::GROUPS),
        // Results fill the registers of threads.
        Some(_) => Machine { groups: ATTENTION_WARPS, side_by_side: 2, ..machine(schedule.lanes) },
    }
}

/// The schedule of token-wise kernels: a block a row.
pub(super) fn rows(regime: Regime) -> RowsSchedule {
    RowsSchedule { lanes: if regime == Regime::Many { WARP } else { 4 * WARP }, rows_per_tile: 1, halves_alone: false }
}
