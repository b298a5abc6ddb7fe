//! Values that are a part of keys which many heads share, by teams of four warps: 64 heads of a row over a part of its keys, which are brought to shared memory once, as
//! keys and as values.
//!
//! ```text
//! queries  [part][query][bytes]            as `turned` says
//! stage    [part][key][bytes]              of two, 64 keys each: two pages
//! weights  [query][64 keys]
//! ```
//!
//! Results of 64 heads by 512 columns fill half of the registers of a processor, so that nobody who holds them makes scores too. One team makes the scores of a stage and,
//! of them, weights, which it leaves in shared memory; two others multiply them by half of the values' columns each; and each of four warps brings every fourth page to a
//! place of its own, so that a page comes as soon as the one before it in that place was multiplied. Scores of a stage are multiplied beside the values of the one before it.
//!
//! A page has two barriers: that it is there, for which the warp arrives that brought it, and that it is done, for which the warps arrive that multiplied its values: they
//! waited for weights, and thus for scores. Weights have two as well.

mod bring;
mod score;
mod sum;

use super::segment::Segment;
use super::turned::{ALIGNMENT, OF_TEAM, Rows, STEP, TEAM};
use super::{ABSENT, Attention, Tile, combine, tensors};
use crate::error::CodegenError;
use crate::mlir::frame::RowSpace;
use crate::mlir::machine::TeamDot;
use crate::mlir::schedule::LatentSchedule;
use crate::mlir::writer::{Cmp, Elem, KernelParams, Ty, Val, Writer};
use crate::plan::kernel::AttentionSpec;

/// Stages, the keys of one, and its pages.
const STAGES: u64 = 2;
const KEYS: u64 = 64;
const PAGES: u64 = 2;

/// Places of pages, each filled by a warp of its own.
const PLACES: u64 = STAGES * PAGES;

/// Teams that hold results.
const SUMMING: u64 = 2;

/// Most columns of one: half of its registers, and most of what it has when others have given it some.
const MOST_COLUMNS: u64 = 256;

/// Where the team that makes scores meets.
const SCORING: i64 = 1;

const I32: Ty = Ty::scalar(Elem::I32);

/// Bytes of shared memory that a launch must bring for a block of threads.
pub(super) fn shared_bytes(spec: &AttentionSpec) -> u64 {
    Layout::of(spec).bytes + ALIGNMENT
}

/// Whether an attention can be multiplied so.
pub fn fits(spec: &AttentionSpec) -> bool {
    let Some(first) = spec.value_in_key else { return false };
    let rows = Rows::of(spec.key_dim);
    let is_part = |dim: u64| (dim * 2).is_multiple_of(rows.width);
    let columns = spec.value_dim / SUMMING;
    let has_halves = spec.value_dim.is_multiple_of(SUMMING * 8) && columns <= MOST_COLUMNS;
    spec.page_tokens * PAGES == KEYS
        && super::turned::fits(spec.key_dim)
        && has_halves
        && is_part(columns)
        && is_part(first)
}

/// Where things lie in shared memory: queries, stages, weights.
#[derive(Clone, Copy)]
struct Layout {
    rows: Rows,
    stages: u64,
    stage_bytes: u64,
    weights: u64,
    bytes: u64,
    /// Columns of values of a team.
    columns: u64,
}

/// How the weights of a query lie.
const WEIGHTS: Rows = Rows { bytes: KEYS * 2, width: KEYS * 2 };

impl Layout {
    fn of(spec: &AttentionSpec) -> Self {
        let rows = Rows::of(spec.key_dim);
        let stages = (OF_TEAM * rows.bytes).next_multiple_of(ALIGNMENT);
        let stage_bytes = KEYS * rows.bytes;
        let weights = (stages + STAGES * stage_bytes).next_multiple_of(ALIGNMENT);
        let bytes = weights + OF_TEAM * WEIGHTS.bytes;
        Layout { rows, stages, stage_bytes, weights, bytes, columns: spec.value_dim / SUMMING }
    }
}

/// Barriers, of which pages have one for each place, and weights one.
#[derive(Clone, Copy)]
enum Barrier {
    PageThere,
    PageDone,
    WeightsThere,
    WeightsDone,
}

impl Barrier {
    const ALL: [Barrier; 4] = [Barrier::PageThere, Barrier::PageDone, Barrier::WeightsThere, Barrier::WeightsDone];

    /// How many there are of a kind.
    fn count(self) -> u64 {
        match self {
            Barrier::PageThere | Barrier::PageDone => PLACES,
            Barrier::WeightsThere | Barrier::WeightsDone => 1,
        }
    }

    /// Warps that arrive.
    fn arrivals(self) -> u64 {
        match self {
            Barrier::PageThere => 1,
            Barrier::WeightsThere => WARPS,
            Barrier::PageDone | Barrier::WeightsDone => SUMMING * WARPS,
        }
    }
}

/// Bytes from the barriers of a kind to those of the next.
const OF_KIND: u64 = PLACES * 8;

/// Warps of a team.
const WARPS: u64 = TEAM / 32;

/// What a warp does.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Scores,
    Sums,
    Brings,
}

/// The keys of a row that a tile has: its queries over pages, and which part they are.
struct Work {
    segment: Segment,
    /// Stages.
    n: Val,
    part: Option<Val>,
}

pub(super) struct Latent<'k> {
    at: &'k Attention<'k>,
    schedule: LatentSchedule,
    dot: TeamDot,
    layout: Layout,
    /// Rows of the step.
    n_rows: Val,
    shared: Val,
    /// The place of the first barrier.
    barriers: Val,
    /// Of each query, what its results are scaled by; in the end the sum of its weights.
    factors: Val,
}

impl<'k> Latent<'k> {
    pub(super) fn new(
        w: &mut Writer,
        at: &'k Attention<'k>,
        schedule: LatentSchedule,
        args: Val,
    ) -> Result<Self, CodegenError> {
        let Some(dot) = w.machine().team_dot else {
            return Err(CodegenError::bug("attention", "a schedule for teams of warps"));
        };
        if LatentSchedule::GROUPS != w.machine().groups || !fits(at.spec) || !tensors::is_as_kept(at.spec) {
            return Err(CodegenError::bug("attention", "four teams, and values of bf16 in keys that are whole parts"));
        }
        let n_rows = w.n_rows(args, RowSpace { axis: at.spec.axis, selected: false });
        let brought = w.shared_of_launch();
        let shared = w.aligned_shared(brought, ALIGNMENT);
        let barriers = w.shared("barriers", Barrier::ALL.len() as u64 * OF_KIND);
        let barriers = w.shared_place(barriers);
        let factors = w.shared("factors", OF_TEAM * 4);
        Ok(Latent { at, schedule, dot, layout: Layout::of(at.spec), n_rows, shared, barriers, factors })
    }

    /// The barrier of a kind and a number, of 32 bits.
    fn barrier(&self, w: &mut Writer, (which, number): (Barrier, Val)) -> Val {
        let behind = w.int((OF_KIND * which as u64) as i64, I32);
        let at = w.add(self.barriers, behind);
        let behind = w.shl(number, 3);
        w.add(at, behind)
    }

    /// Waits until the phase of a number, of which the lowest bit matters, is over.
    fn wait_for(&self, w: &mut Writer, which: (Barrier, Val), phase: Val) {
        let at = self.barrier(w, which);
        let one = w.int(1, I32);
        let bit = w.and(phase, one);
        w.wait_for_phase(at, bit);
    }

    /// The same of the phase before that, of which there is none at first.
    fn wait_for_last(&self, w: &mut Writer, which: (Barrier, Val), phase: Val) {
        let one = w.int(1, I32);
        let before = w.xor(phase, one);
        self.wait_for(w, which, before);
    }

    /// A warp arrives, by one of its threads.
    fn arrive(&self, w: &mut Writer, which: (Barrier, Val), is_first: Val) -> Result<(), CodegenError> {
        w.if_then(is_first, |w| {
            let at = self.barrier(w, which);
            w.arrive(at);
            Ok(())
        })
    }

    /// The barrier of weights.
    fn of_weights(w: &mut Writer, which: Barrier) -> (Barrier, Val) {
        (which, w.int(0, I32))
    }

    /// That of a page of a stage, which has the lowest bit of a number.
    fn of_page(w: &mut Writer, which: Barrier, (number, page): (Val, u64)) -> (Barrier, Val) {
        let one = w.int(1, I32);
        let stage = w.and(number, one);
        let first = w.shl(stage, PAGES.ilog2());
        let page = w.int(page as i64, I32);
        (which, w.add(first, page))
    }

    /// First byte of the rows in a page's place, a 32-bit number.
    fn page_at(&self, w: &mut Writer, place: Val) -> Val {
        let last = w.int(PAGES as i64 - 1, I32);
        let (stage, page) = (w.shr(place, PAGES.ilog2()), w.and(place, last));
        let of_stage = self.stage_at(w, stage);
        let size = w.int((KEYS / PAGES * self.layout.rows.width) as i64, I32);
        let of_page = w.mul(page, size);
        let first = w.int(self.layout.stages as i64, I32);
        let at = w.add(of_stage, of_page);
        w.add(at, first)
    }

    /// Has all warps do the tiles of the launch, each in its own way. What one way needs takes no registers of the others.
    pub(super) fn roles(
        &self,
        w: &mut Writer,
        params: &KernelParams,
        tiles: impl Fn(&mut Writer, &KernelParams, Role) -> Result<(), CodegenError>,
    ) -> Result<(), CodegenError> {
        let thread = w.thread();
        let [scores, sums] = [1, 1 + SUMMING].map(|teams| w.int((teams * TEAM) as i64, I32));
        let is_scoring = w.cmp(Cmp::Lt, thread, scores);
        let is_summing = w.cmp(Cmp::Lt, thread, sums);
        let registers = self.schedule.registers;
        let own = |w: &mut Writer, role: Role, of_role: u32| {
            let more = of_role > registers.all;
            if of_role != registers.all {
                w.set_registers(of_role, more);
            }
            let [tile_begin, tile_end] = [params.tile_begin, params.tile_end].map(|tile| w.anew(tile));
            tiles(w, &KernelParams { tile_begin, tile_end, ..*params }, role)?;
            // Registers are taken back when all have theirs, also where no tile had anything to do.
            w.sync();
            if of_role != registers.all {
                w.set_registers(registers.all, !more);
            }
            Ok(())
        };
        w.if_either(
            is_scoring,
            |w| own(w, Role::Scores, registers.scoring),
            |w| {
                w.if_either(
                    is_summing,
                    |w| own(w, Role::Sums, registers.summing),
                    |w| own(w, Role::Brings, registers.bringing),
                )
            },
        )
    }

    /// What a warp does of a tile of the launch: of the heads of a row, over the part of its keys that is the tile's.
    pub(super) fn tile(&self, w: &mut Writer, tile: Tile, role: Role) -> Result<(), CodegenError> {
        self.at.each_row(w, tile, |w, row| self.row(w, tile, row, role))
    }

    fn row(&self, w: &mut Writer, tile: Tile, row: Val, role: Role) -> Result<(), CodegenError> {
        let spec = self.at.spec;
        let query = self.at.enter_row(w, row);
        let tokens = w.i64(spec.page_tokens as i64);
        let end_page = w.ceil_div(query.high, spec.page_tokens);
        let first_page = w.div_unsigned(query.low, tokens);
        let first_page = w.min(first_page, end_page);
        let heads = w.i64(tile.heads as i64);
        let left = w.sub(tile.end_head, tile.first_head);
        let n = w.min(heads, left);
        let of = |first_page: Val, end_page: Val| Segment {
            tile,
            from: row,
            n,
            sequence: query.sequence,
            first_page,
            end_page,
            high: query.high,
        };
        let Some(part) = tile.part else { return self.pages(w, of(first_page, end_page), None, role) };
        // Whole stages for each part.
        let n_pages = w.sub(end_page, first_page);
        let n_stages = w.ceil_div(n_pages, PAGES);
        let one = w.i64(1);
        let most = combine::parts(w, &spec.division, self.n_rows);
        let n_parts = w.min(n_stages, most);
        let n_parts = w.max(n_parts, one);
        let there = w.cmp(Cmp::Lt, part, n_parts);
        let whole = |w: &mut Writer| {
            let next = w.add(part, one);
            let bounds = [part, next].map(|part| {
                let before = w.mul(part, n_stages);
                let before = w.div_unsigned(before, n_parts);
                let pages = w.i64(PAGES as i64);
                let before = w.mul(before, pages);
                let at = w.add(first_page, before);
                w.min(at, end_page)
            });
            self.pages(w, of(bounds[0], bounds[1]), Some(part), role)
        };
        if role != Role::Scores {
            return w.if_then(there, whole);
        }
        w.if_either(there, whole, |w| {
            let thread = w.thread();
            let number = w.widen_unsigned(thread, Elem::I64);
            let is_head = w.cmp(Cmp::Lt, number, n);
            w.if_then(is_head, |w| {
                let head = w.add(tile.first_head, number);
                let absent = w.f32(ABSENT, 0);
                if let Some(at) = self.at.part_of(w, self.n_rows, (row, head), part) {
                    let at = w.offset_const(at, spec.value_dim * 4);
                    w.store_own(absent, at);
                }
                Ok(())
            })
        })
    }

    /// What a warp does of the pages of a tile.
    fn pages(&self, w: &mut Writer, segment: Segment, part: Option<Val>, role: Role) -> Result<(), CodegenError> {
        let pages = w.sub(segment.end_page, segment.first_page);
        let work = Work { segment, n: w.ceil_div(pages, PAGES), part };
        let thread = w.thread();
        let thread = w.anew(thread);
        if role == Role::Scores {
            self.each_barrier(w, thread, Writer::make_barrier)?;
        }
        w.sync();
        match role {
            Role::Scores => self.score(w, &work, thread)?,
            Role::Sums => self.sum(w, &work, thread)?,
            Role::Brings => self.bring(w, &work, thread)?,
        }
        w.sync();
        if role == Role::Scores { self.each_barrier(w, thread, |w, at, _| w.end_barrier(at)) } else { Ok(()) }
    }

    /// Of each barrier, with how many warps arrive.
    fn each_barrier(
        &self,
        w: &mut Writer,
        thread: Val,
        body: impl Fn(&mut Writer, Val, Val),
    ) -> Result<(), CodegenError> {
        let zero = w.int(0, I32);
        let is_first = w.cmp(Cmp::Eq, thread, zero);
        w.if_then(is_first, |w| {
            for which in Barrier::ALL {
                for number in 0..which.count() {
                    let number = w.int(number as i64, I32);
                    let at = self.barrier(w, (which, number));
                    let arrivals = w.int(which.arrivals() as i64, I32);
                    body(w, at, arrivals);
                }
            }
            Ok(())
        })
    }

    /// Steps of a row's elements that an instruction multiplies.
    fn steps(&self) -> u64 {
        self.layout.rows.bytes / STEP
    }

    /// The first byte of a stage, the lowest bit of a 32-bit number, behind the first.
    fn stage_at(&self, w: &mut Writer, number: Val) -> Val {
        let one = w.int(1, I32);
        let stage = w.and(number, one);
        let size = w.int(self.layout.stage_bytes as i64, I32);
        w.mul(stage, size)
    }
}
