//! Many rows by teams of four warps: each multiplies 64 queries, rows by the heads that read the same keys, by blocks of keys out of shared memory, and four other
//! warps bring these there.
//!
//! ```text
//! queries  [team][part][query][bytes]      as `turned` says
//! stage    keys    [part][key][bytes]
//!          values  [part][key][bytes]
//! ```
//!
//! Keys and values lie in pages as they are multiplied: the elements of a key side by side, and those of a value, which products take turned. Keys of a block behind
//! the last are zeros.
//!
//! A team multiplies its queries by a block's keys and, behind that, the weights of the block before, which it holds in registers, by its values. While the second is
//! under way the scores of the first become weights; then results are scaled if maxima were raised. Teams take turns at beginning products, so that those of one are
//! multiplied while the other works on scores.
//!
//! A stage has four barriers: that its keys are there and that its values are, for which the warps arrive that bring them, when their copies of the next part of a stage
//! are begun; and that the one and the other may be written over, for which all warps arrive that multiplied them.

mod bring;
mod multiply;

use super::segment::{Place, Segment};
use super::tensors::QUERIES;
pub use super::turned::fits;
use super::turned::{ALIGNMENT, OF_TEAM, PIECE, Rows, STEP, STEP_ROWS, TEAM};
use super::{Attention, Tile};
use crate::error::CodegenError;
use crate::mlir::machine::TeamDot;
use crate::mlir::schedule::{AttentionTeams, TeamSchedule};
use crate::mlir::writer::{Cmp, Elem, KernelParams, Ty, Val, Writer};
use crate::plan::kernel::AttentionSpec;

/// Meeting points: of all that multiply, and the first of those of a team, and of those where teams take turns.
const MULTIPLY: i64 = 1;
const OWN: i64 = 2;
const TURNS: i64 = 4;

const I32: Ty = Ty::scalar(Elem::I32);

/// Bytes of shared memory that a launch must bring for a block of threads.
pub(super) fn shared_bytes(spec: &AttentionSpec, teams: AttentionTeams) -> u64 {
    Layout::of(spec, teams).bytes + ALIGNMENT
}

/// Where things lie in shared memory: queries, then stages of keys and values.
#[derive(Clone, Copy)]
struct Layout {
    keys: Rows,
    values: Rows,
    team_bytes: u64,
    stages: u64,
    /// First byte of the values of a stage.
    values_at: u64,
    stage_bytes: u64,
    /// Bytes from one query's results to the next, where these take the place of stages.
    result_stride: u64,
    bytes: u64,
}

impl Layout {
    fn of(spec: &AttentionSpec, teams: AttentionTeams) -> Self {
        let (keys, values) = (Rows::of(spec.key_dim), Rows::of(spec.value_dim));
        let team_bytes = OF_TEAM * keys.bytes;
        let stages = (u64::from(teams.teams) * team_bytes).next_multiple_of(ALIGNMENT);
        let values_at = (teams.keys * keys.bytes).next_multiple_of(ALIGNMENT);
        let stage_bytes = values_at + (teams.keys * values.bytes).next_multiple_of(ALIGNMENT);
        // An odd number of pieces, so that the same piece of eight results is in all banks.
        let result_stride = ((values.bytes / PIECE) | 1) * PIECE;
        let results = u64::from(teams.teams) * OF_TEAM * result_stride;
        let bytes = stages + (teams.stages * stage_bytes).max(results);
        Layout { keys, values, team_bytes, stages, values_at, stage_bytes, result_stride, bytes }
    }
}

/// Of a stage's barriers.
#[derive(Clone, Copy)]
enum Barrier {
    KeysThere,
    ValuesThere,
    KeysDone,
    ValuesDone,
}

pub(super) struct Teams<'k> {
    at: &'k Attention<'k>,
    schedule: AttentionTeams,
    dot: TeamDot,
    layout: Layout,
    shared: Val,
    /// The place of the first barrier.
    barriers: Val,
}

/// What a warp does.
#[derive(Clone, Copy)]
pub(super) enum Role {
    Brings,
    Multiplies,
}

/// A stage, and the bit of its phase.
#[derive(Clone, Copy)]
struct Slot {
    number: Val,
    bit: Val,
}

impl<'k> Teams<'k> {
    pub(super) fn new(w: &mut Writer, at: &'k Attention<'k>, schedule: AttentionTeams) -> Result<Self, CodegenError> {
        let Some(dot) = w.machine().team_dot else {
            return Err(CodegenError::bug("attention", "a schedule for teams of warps"));
        };
        if schedule.groups() != w.machine().groups || schedule.teams != 2 || schedule.stages < 2 {
            return Err(CodegenError::bug("attention", "two teams, one that brings, and two stages"));
        }
        let brought = w.shared_of_launch();
        let shared = w.aligned_shared(brought, ALIGNMENT);
        let barriers = w.shared("barriers", 4 * schedule.stages * 8);
        let barriers = w.shared_place(barriers);
        Ok(Teams { at, schedule, dot, layout: Layout::of(at.spec, schedule), shared, barriers })
    }

    fn barrier(&self, w: &mut Writer, which: Barrier, slot: Val) -> Val {
        let behind = w.shl(slot, 5);
        let first = w.int(8 * which as i64, I32);
        let at = w.add(self.barriers, first);
        w.add(at, behind)
    }

    /// Waits for what a barrier says of a stage.
    fn wait_for(&self, w: &mut Writer, which: Barrier, slot: Slot) {
        let at = self.barrier(w, which, slot.number);
        w.wait_for_phase(at, slot.bit);
    }

    /// Of all stages, with how many warps arrive.
    fn each_barrier(
        &self,
        w: &mut Writer,
        place: Place,
        body: impl Fn(&mut Writer, Val, Val),
    ) -> Result<(), CodegenError> {
        let zero = w.int(0, I32);
        let is_first = w.cmp(Cmp::Eq, place.thread, zero);
        w.if_then(is_first, |w| {
            for slot in 0..self.schedule.stages {
                let slot = w.int(slot as i64, I32);
                let bring = i64::from(self.schedule.bringing);
                let multiply = i64::from(self.schedule.teams * TeamSchedule::GROUPS);
                for (which, arrivals) in [
                    (Barrier::KeysThere, bring),
                    (Barrier::ValuesThere, bring),
                    (Barrier::KeysDone, multiply),
                    (Barrier::ValuesDone, multiply),
                ] {
                    let at = self.barrier(w, which, slot);
                    let arrivals = w.int(arrivals, I32);
                    body(w, at, arrivals);
                }
            }
            Ok(())
        })
    }

    /// Has all warps do the tiles of the launch, each in its own way. What one way needs takes no registers of the other.
    pub(super) fn roles(
        &self,
        w: &mut Writer,
        params: &KernelParams,
        tiles: impl Fn(&mut Writer, &KernelParams, Role) -> Result<(), CodegenError>,
    ) -> Result<(), CodegenError> {
        let thread = w.thread();
        let multiplying = w.int(i64::from(self.schedule.teams) * TEAM as i64, I32);
        let brings = w.cmp(Cmp::Ge, thread, multiplying);
        let AttentionTeams { registers, .. } = self.schedule;
        let own = |w: &mut Writer, role: Role| {
            let [tile_begin, tile_end] = [params.tile_begin, params.tile_end].map(|tile| w.anew(tile));
            tiles(w, &KernelParams { tile_begin, tile_end, ..*params }, role)
        };
        let bring = |w: &mut Writer| {
            w.set_registers(registers.bringing, false);
            own(w, Role::Brings)?;
            // Registers are taken back when all have theirs, also where no tile had anything to do.
            w.sync();
            w.set_registers(registers.all, true);
            Ok(())
        };
        let multiply = |w: &mut Writer| {
            w.set_registers(registers.multiplying, true);
            own(w, Role::Multiplies)?;
            w.sync();
            w.set_registers(registers.all, false);
            Ok(())
        };
        w.if_either(brings, bring, multiply)
    }

    /// What a warp does of a tile of the launch.
    pub(super) fn tile(&self, w: &mut Writer, tile: Tile, role: Role) -> Result<(), CodegenError> {
        self.at.segments(w, tile, |w, segment| {
            let thread = w.thread();
            let thread = w.anew(thread);
            let place = Place::of(w, thread, QUERIES);
            let pages = w.sub(segment.end_page, segment.first_page);
            let n_blocks = w.ceil_div(pages, self.schedule.keys / self.at.spec.page_tokens);
            match role {
                Role::Brings => {
                    w.sync();
                    self.bring_blocks(w, segment, place, n_blocks)?;
                    w.sync();
                    Ok(())
                }
                Role::Multiplies => {
                    self.each_barrier(w, place, Writer::make_barrier)?;
                    w.sync();
                    self.multiply(w, segment, place, n_blocks)?;
                    w.sync();
                    self.each_barrier(w, place, |w, at, _| w.end_barrier(at))
                }
            }
        })
    }
}
