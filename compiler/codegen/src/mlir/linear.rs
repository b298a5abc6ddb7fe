//! Products with packed weights, and everything elementwise that follows, as one register-tiled loop nest.
//!
//! A tile is a block of rows by one panel of outputs. Inside, a register tile of `micro_rows x vectors` accumulators runs over all inputs.
//! Rows beyond the tile repeat its last row and are not stored; outputs beyond the last are zero weights and are masked off.
//!
//! Where each head has a matrix of its own, its panels follow those of the head before, and its inputs and outputs are a part of each row.
//!
//! Operands of the launch: `x`, the packed matrices, the index of the experts where rows choose them, the extras, the result.

mod ahead;
mod blocks;
pub mod by_block;
mod experts;
mod finish;
mod floats;
pub mod tiles;
mod turns;

use xfc_lang::graph::DType;
use xfc_lang::graph::blocks::Blocks;

pub use self::blocks::packed;

use super::frame::Buffer;
use super::machine::{Machine, PairDot};
use super::schedule::LinearSchedule;
use super::writer::{Cmp, Elem, Ty, Val, Writer};
use crate::error::CodegenError;
use crate::plan::kernel::{LinearSpec, dtype_bytes, row_elements};

/// Bytes that memory is read in.
const CACHE_LINE: u64 = 64;

/// More rows than a step has: a tile of all of them.
pub const ALL_ROWS: u64 = 1 << 40;

/// Writes the kernel; gives its text and the bytes of scratch it needs.
///
/// # Errors
/// An element type without a lowering.
pub fn emit(
    symbol: &str,
    spec: &LinearSpec,
    machine: &Machine,
    schedule: &LinearSchedule,
) -> Result<(String, u64), CodegenError> {
    if !matches!(spec.operand, DType::F32 | DType::BF16 | DType::Blocks(_)) {
        return Err(CodegenError::unsupported(format!("a product of {} operands", spec.operand), ""));
    }
    let (mut w, params) = Writer::kernel_ahead(symbol, machine, |w, args, tile| {
        ahead::ask_ahead(w, (args, tile), spec, schedule);
    });
    let mut linear = Linear::new(&mut w, params.args, spec, schedule);
    if let Some(tiles) = schedule.tiles.filter(|_| tiles::multiplies(machine, spec.operand)) {
        let scratch_bytes = linear.of_tiles(&mut w, &params, tiles)?;
        return Ok(w.finish(scratch_bytes));
    }
    if let Some(experts) = spec.experts {
        let scratch_bytes = linear.of_experts(&mut w, &params, experts)?;
        return Ok(w.finish(scratch_bytes));
    }
    if let Some(blocks) = schedule.scratch {
        let scratch_bytes = linear.of_blocks(&mut w, &params, blocks)?;
        return Ok(w.finish(scratch_bytes));
    }
    let n_rows = linear.n_rows(&mut w, params.args);
    let blocks = w.ceil_div(n_rows, schedule.rows_per_tile);
    w.for_loop(params.tile_begin, params.tile_end, 1, &[], |w, tile, _| {
        let panel = w.div_unsigned(tile, blocks);
        let block = w.rem_unsigned(tile, blocks);
        let (begin, end) = w.rows_of_block(block, schedule.rows_per_tile, n_rows);
        for step in 0..linear.steps() {
            linear.enter_columns(w, panel, step, None);
            w.for_loop(begin, end, i64::from(schedule.micro_rows), &[], |w, row, _| {
                linear.next = schedule.next_panel.then(|| linear.next_panel(w, row, begin, end));
                linear.register_tile(w, row, end)?;
                Ok(vec![])
            })?;
        }
        Ok(vec![])
    })?;
    Ok(w.finish(0))
}

/// A row of the result: of a row of the launch, or of one of its choices.
#[derive(Clone, Copy, Debug)]
struct Place {
    row: Val,
    choice: Option<Val>,
}

struct Linear<'a> {
    spec: &'a LinearSpec,
    schedule: &'a LinearSchedule,
    x: Buffer,
    weights: Vec<Buffer>,
    /// The experts of each row.
    index: Option<Buffer>,
    extras: Vec<Buffer>,
    out: Buffer,
    /// Of the columns being worked on: expert, first output, start of the weights of each part, masks.
    expert: Option<Val>,
    column: Option<Val>,
    /// Number of the register tile in its panel.
    step: u64,
    starts: Vec<Val>,
    masks: Vec<Option<Val>>,
    next: Option<NextPanel>,
    /// The head that the columns are of, where there are several.
    head: Option<Val>,
}

/// What is asked for of the next panel while one register tile of rows is multiplied.
struct NextPanel {
    /// Where it begins, for each matrix.
    starts: Vec<Val>,
    /// Times that a panel is gone over: each asks for as large a part of the next.
    passes: u64,
}

impl<'a> Linear<'a> {
    fn new(w: &mut Writer, args: Val, spec: &'a LinearSpec, schedule: &'a LinearSchedule) -> Self {
        let x = w.buffer(args, 0);
        let weights = (0..spec.parts).map(|p| w.buffer(args, 1 + p)).collect();
        let index = spec.experts.map(|_| w.buffer(args, 1 + spec.parts));
        let n_fixed = 1 + spec.parts + usize::from(index.is_some());
        let extras = (0..spec.extras.len()).map(|e| w.buffer(args, n_fixed + e)).collect();
        let out = w.buffer(args, n_fixed + spec.extras.len());
        Linear {
            spec,
            schedule,
            x,
            weights,
            index,
            extras,
            out,
            expert: None,
            column: None,
            step: 0,
            starts: Vec::new(),
            masks: Vec::new(),
            next: None,
            head: None,
        }
    }

    /// Rows of a step that it multiplies.
    fn n_rows(&self, w: &mut Writer, args: Val) -> Val {
        let elements = w.n_rows(args, self.spec.space);
        let times = w.i64(self.spec.times as i64);
        w.mul(elements, times)
    }

    /// Register tiles that a panel is wide.
    fn steps(&self) -> u64 {
        self.schedule.panel_columns / u64::from(self.schedule.lanes * self.schedule.vectors)
    }

    fn panels(&self) -> u64 {
        self.spec.outputs.div_ceil(self.schedule.panel_columns)
    }

    fn bf16(&self) -> bool {
        self.spec.operand == DType::BF16
    }

    fn blocks(&self) -> Option<Blocks> {
        self.spec.operand.blocks()
    }

    /// Elements from one row of inputs to the next.
    fn width_of_x(&self) -> u64 {
        row_elements(self.spec.brought(), self.spec.inputs, if self.spec.widened { u64::MAX } else { 0 })
    }

    /// Bytes of a panel.
    fn panel_bytes(&self) -> u64 {
        match self.blocks() {
            Some(blocks) => self.packed(blocks).panel_bytes(self.spec.inputs),
            None => self.group_bytes() * self.groups(),
        }
    }

    /// Bytes of one group of inputs of a panel.
    fn group_bytes(&self) -> u64 {
        self.schedule.panel_columns * self.schedule.depth * dtype_bytes(self.spec.operand)
    }

    fn groups(&self) -> u64 {
        self.spec.inputs.div_ceil(self.schedule.depth)
    }

    fn enter_columns(&mut self, w: &mut Writer, panel: Val, step: u64, expert: Option<Val>) {
        let s = self.schedule;
        self.expert = expert;
        self.step = step;
        let columns = u64::from(s.lanes * s.vectors);
        let panel_columns = w.i64(s.panel_columns as i64);
        let mut of_head = panel;
        if self.spec.heads > 1 {
            let panels = w.i64(self.spec.outputs.div_ceil(s.panel_columns) as i64);
            self.head = Some(w.div_unsigned(panel, panels));
            of_head = w.rem_unsigned(panel, panels);
        }
        let first = w.mul(of_head, panel_columns);
        let shift = w.i64((step * columns) as i64);
        let column = w.add(first, shift);
        self.column = Some(column);
        // In blocks, columns have scales and integers, which lie apart.
        let offset = match self.blocks() {
            Some(_) => 0,
            None => step * columns * self.schedule.depth * dtype_bytes(self.spec.operand),
        };
        let panel = match expert {
            None => panel,
            Some(expert) => {
                let panels = w.i64(self.panels() as i64);
                let before = w.mul(expert, panels);
                w.add(before, panel)
            }
        };
        self.starts = self
            .weights
            .iter()
            .map(|b| {
                let at = w.element(b.data, panel, self.panel_bytes());
                w.offset_const(at, offset)
            })
            .collect();
        let ragged = !self.spec.outputs.is_multiple_of(s.panel_columns);
        self.masks = (0..s.vectors)
            .map(|v| {
                ragged.then(|| {
                    let narrow = w.resize(column, Elem::I32);
                    let splat = w.splat(narrow, s.lanes);
                    let lanes: Vec<i64> = (0..s.lanes).map(|l| i64::from(v * s.lanes + l)).collect();
                    let iota = w.lanes(&lanes, Elem::I32);
                    let index = w.add(splat, iota);
                    let n = w.int(self.spec.outputs as i64, index.ty);
                    w.cmp(Cmp::Lt, index, n)
                })
            })
            .collect();
    }

    /// The part of the next panel that belongs to the rows from `row` on. One register tile of rows waits for memory as it is, and asks for what it
    /// has.
    fn next_panel(&self, w: &mut Writer, row: Val, begin: Val, end: Val) -> NextPanel {
        let s = self.schedule;
        let of_rows = s.rows_per_tile.div_ceil(u64::from(s.micro_rows));
        let passes = self.steps() * of_rows;
        let micro_rows = w.i64(i64::from(s.micro_rows));
        let before = w.sub(row, begin);
        let before = w.div_unsigned(before, micro_rows);
        let first = w.i64((self.step * of_rows) as i64);
        let pass = w.add(first, before);
        let rows = w.sub(end, begin);
        let several = w.cmp(Cmp::Gt, rows, micro_rows);
        let one = |start: &Val| {
            let part = w.element(*start, pass, self.panel_bytes() / passes);
            let part = w.offset_const(part, self.panel_bytes());
            w.select(several, part, *start)
        };
        NextPanel { starts: self.starts.iter().map(one).collect(), passes }
    }

    /// Asks for the next panel's share of `groups` groups of inputs, of `group_bytes` each, from group `first` on.
    fn ask_for_next(&self, w: &mut Writer, first: Val, groups: u64, group_bytes: u64) {
        let Some(next) = &self.next else { return };
        for start in &next.starts {
            let at = w.element(*start, first, group_bytes / next.passes);
            for line in 0..(groups * group_bytes / next.passes).div_ceil(CACHE_LINE) {
                let at = w.offset_const(at, line * CACHE_LINE);
                w.prefetch(at, 2);
            }
        }
    }

    /// Rows `row .. min(row + micro_rows, end)` by the current columns.
    fn register_tile(&self, w: &mut Writer, row: Val, end: Val) -> Result<(), CodegenError> {
        let s = self.schedule;
        let one = w.i64(1);
        let last = w.sub(end, one);
        let rows: Vec<Val> = (0..s.micro_rows)
            .map(|i| {
                let i = w.i64(i64::from(i));
                w.add(row, i)
            })
            .collect();
        let xs: Vec<Val> = rows
            .iter()
            .map(|r| {
                let r = if s.micro_rows == 1 { *r } else { w.min(*r, last) };
                self.inputs_of_row(w, r)
            })
            .collect();
        let places: Vec<(Val, Place)> = rows.iter().map(|r| (*r, Place { row: *r, choice: None })).collect();
        self.block(w, &xs, &places, end)
    }

    /// Products of rows at `xs`. Each goes to a place, if its number is below `end`.
    fn block(&self, w: &mut Writer, xs: &[Val], places: &[(Val, Place)], end: Val) -> Result<(), CodegenError> {
        let sums = match self.blocks() {
            Some(blocks) if blocks.form.is_float() => self.products_of_floats(w, xs, blocks)?,
            Some(blocks) => self.products_of_groups(w, xs, blocks)?,
            None if w.is_block() => self.products_in_turns(w, xs)?,
            None => self.products(w, xs)?,
        };
        let sums = w.add_groups(sums);
        let per_row = (self.schedule.vectors as usize) * self.spec.parts;
        for ((number, place), mine) in places.iter().zip(sums.chunks_exact(per_row)) {
            let inside = w.cmp(Cmp::Lt, *number, end);
            let inside = w.in_first_group(inside);
            w.if_then(inside, |w| self.finish_row(w, *place, mine))?;
        }
        Ok(())
    }

    /// The row of a place in a buffer that has `width` elements for each choice.
    fn row_at(&self, w: &mut Writer, buffer: Buffer, place: Place, width: u64, bytes: u64) -> Val {
        let row = w.row(buffer, place.row, bytes);
        match place.choice {
            None => row,
            Some(choice) => w.element(row, choice, width * bytes),
        }
    }

    /// Accumulators in the order row, part, vector.
    fn products(&self, w: &mut Writer, xs: &[Val]) -> Result<Vec<Val>, CodegenError> {
        let s = self.schedule;
        let n = xs.len() * self.spec.parts * s.vectors as usize;
        let depth = self.schedule.depth;
        let whole = self.spec.inputs / depth;
        let unroll = u64::from(s.unroll);
        let looped = whole / unroll * unroll;
        let chains = if unroll.is_multiple_of(u64::from(s.chains)) { s.chains as usize } else { 1 };
        let zero = w.f32(0.0, s.lanes);
        let mut sums = vec![zero; n * chains];
        if looped > 0 {
            let begin = w.i64(0);
            let end = w.i64(looped as i64);
            sums = w.for_loop(begin, end, unroll as i64, &sums, |w, k, sums| {
                let mut sums = sums.to_vec();
                self.ask_for_next(w, k, unroll, self.group_bytes());
                let x_bytes = w.i64((depth * dtype_bytes(self.spec.operand)) as i64);
                let x_at = w.mul(k, x_bytes);
                let xs: Vec<Val> = xs.iter().map(|x| w.offset(*x, x_at)).collect();
                let w_bytes = w.i64(self.group_bytes() as i64);
                let w_at = w.mul(k, w_bytes);
                let starts: Vec<Val> = self.starts.iter().map(|p| w.offset(*p, w_at)).collect();
                for u in 0..unroll {
                    let chain = (u as usize % chains) * n;
                    self.multiply(w, &xs, &starts, u, false, &mut sums[chain..chain + n]);
                }
                Ok(sums)
            })?;
        }
        let x_bytes = depth * dtype_bytes(self.spec.operand);
        let xs: Vec<Val> = xs.iter().map(|x| w.offset_const(*x, looped * x_bytes)).collect();
        let starts: Vec<Val> = self.starts.iter().map(|p| w.offset_const(*p, looped * self.group_bytes())).collect();
        for k in looped..self.groups() {
            self.multiply(w, &xs, &starts, k - looped, k == whole, &mut sums[..n]);
        }
        for chain in 1..chains {
            for i in 0..n {
                sums[i] = w.add(sums[i], sums[chain * n + i]);
            }
        }
        sums.truncate(n);
        Ok(sums)
    }

    /// Asks for what lies ahead of a vector of weights, `shift` bytes from a line of the cache.
    fn prefetch(&self, w: &mut Writer, at: Val, shift: u64) {
        if self.schedule.prefetch > 0 && shift.is_multiple_of(CACHE_LINE) {
            let ahead = w.offset_const(at, self.schedule.prefetch);
            w.prefetch(ahead, 1);
        }
    }

    /// Adds the products of input group `k` (from the given starts). `partial`: only the first input of the group exists.
    ///
    /// Weights of several rows stay in registers while one row after another is multiplied. Those of one row are used as they come: where four vectors are loaded and
    /// then multiplied, memory is asked in bursts, and some processors read a fifth less of it.
    fn multiply(&self, w: &mut Writer, xs: &[Val], starts: &[Val], k: u64, partial: bool, sums: &mut [Val]) {
        let vectors = u64::from(self.schedule.vectors);
        let places = starts.iter().flat_map(|start| (0..vectors).map(move |v| (*start, v)));
        let x_at = |w: &mut Writer, x: Val| w.offset_const(x, k * self.schedule.depth * dtype_bytes(self.spec.operand));
        if let [x] = xs {
            let x = x_at(w, *x);
            let factor = self.factor(w, x, partial);
            for ((start, v), sum) in places.zip(sums) {
                let weight = self.weight(w, start, k, v);
                *sum = self.multiply_add(w, factor, weight, *sum);
            }
            return;
        }
        let weights: Vec<Factor> = places.map(|(start, v)| self.weight(w, start, k, v)).collect();
        for (x, mine) in xs.iter().zip(sums.chunks_exact_mut(weights.len())) {
            let x = x_at(w, *x);
            let factor = self.factor(w, x, partial);
            for (sum, weight) in mine.iter_mut().zip(&weights) {
                *sum = self.multiply_add(w, factor, *weight, *sum);
            }
        }
    }

    /// Vector `v` of the weights of input group `k`.
    fn weight(&self, w: &mut Writer, start: Val, k: u64, v: u64) -> Factor {
        let shift = v * u64::from(self.schedule.lanes) * 4;
        let at = w.offset_const(start, k * self.group_bytes() + shift);
        self.prefetch(w, at, shift);
        let elem = if self.bf16() { Elem::I32 } else { Elem::F32 };
        let weight = w.load(Ty::of(elem, self.schedule.lanes), at);
        self.as_factor(w, weight)
    }

    /// The inputs of a row at `at` that a group of weights is multiplied by, in all lanes.
    fn factor(&self, w: &mut Writer, at: Val, partial: bool) -> Factor {
        let x = match (self.bf16(), partial) {
            (false, _) => w.load(Ty::scalar(Elem::F32), at),
            (true, true) => {
                let low = w.load(Ty::scalar(Elem::I16), at);
                w.widen_unsigned(low, Elem::I32)
            }
            // Rows of an odd number of inputs begin between pairs.
            (true, false) => w.load_aligned(Ty::scalar(Elem::I32), at, dtype_bytes(self.spec.operand)),
        };
        let x = w.splat(x, self.schedule.lanes);
        self.as_factor(w, x)
    }

    /// Numbers as a machine multiplies them.
    fn as_factor(&self, w: &mut Writer, x: Val) -> Factor {
        match w.machine().pair_dot {
            _ if !self.bf16() => (x, x),
            PairDot::Intrinsic(_) => {
                let pairs = w.bitcast(x, Ty::of(Elem::BF16, self.schedule.lanes * 2));
                (pairs, pairs)
            }
            PairDot::Widened => w.pair_halves(x),
        }
    }

    /// `sum + x * weight`.
    fn multiply_add(&self, w: &mut Writer, x: Factor, weight: Factor, sum: Val) -> Val {
        match w.machine().pair_dot {
            _ if !self.bf16() => w.fma(x.0, weight.0, sum),
            PairDot::Intrinsic(name) => w.intrinsic(name, &[sum, weight.0, x.0], sum.ty),
            PairDot::Widened => {
                let sum = w.fma(x.0, weight.0, sum);
                w.fma(x.1, weight.1, sum)
            }
        }
    }
}

/// A vector of numbers as it is multiplied: of pairs that are widened the first of each and the second of each, otherwise all of them, twice.
type Factor = (Val, Val);
