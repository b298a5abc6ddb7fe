//! Products of four warps (PTX ISA, section 9.7.15): A from registers or shared memory, B from shared memory, sums in registers.
//!
//! A warp computes its 16 rows at once, but its results are there only when `wgmma.wait_group` says so: until then nobody may touch the
//! registers of the sums, change those of A, or write the shared memory that was read.
//!
//! A `wgmma.fence` stands before the first product, and between whatever accesses a register, to read it too, and a product with that register; but products of one
//! shape follow each other on the same sums (section 9.7.15.7.1, `wgmma.fence`).

use std::collections::VecDeque;
use std::ops::Range;

use super::block::Env;
use super::clocks::Time;
use super::descriptor::Descriptor;
use super::fault::{FaultKind, LaneFault};
use super::mma::{Sum, element, gather_a};
use super::shared::Toucher;
use super::warp::{Step, Warp};
use crate::decode::lanes::Reg;
use crate::decode::program::{Inst, Op, Pc};
use crate::decode::tensor::{Factor, Tensor, Wgmma};
use crate::decode::types::Ty;

/// What some products read and write.
#[derive(Default)]
struct Group {
    sums: Vec<Reg>,
    factors: Vec<Reg>,
    ranges: Vec<Range<usize>>,
    /// When the first was issued.
    issued: Option<Time>,
}

/// What a warp's asynchronous products hold.
#[derive(Default)]
pub(crate) struct Held {
    open: Group,
    committed: VecDeque<Group>,
    /// Registers of products that other instructions accessed since the last `wgmma.fence`.
    dirty: Vec<Reg>,
    /// Sums that products accessed since then, with their columns and inputs.
    shapes: Vec<(Reg, (usize, usize))>,
    /// There was a `wgmma.fence`.
    fenced: bool,
}

impl Held {
    /// Whether anything is in flight.
    pub(crate) fn any(&self) -> bool {
        !self.committed.is_empty() || !self.open.ranges.is_empty()
    }

    fn groups(&self) -> impl Iterator<Item = &Group> {
        self.committed.iter().chain([&self.open])
    }

    /// Checks that an instruction leaves alone what is in flight.
    pub(crate) fn check(&self, inst: &Inst) -> Result<(), FaultKind> {
        let product = matches!(&inst.op, Op::Tensor(t) if matches!(**t, Tensor::Wgmma(_)));
        let (results, sources) = inst.registers.split_at(inst.results);
        for group in self.groups() {
            // Products follow each other on the same sums without a wait.
            if !product && results.iter().chain(sources).any(|r| group.sums.contains(r)) {
                let what = "a register of sums is used before wgmma.wait_group says that they are there";
                return Err(FaultKind::InFlight(what.to_owned()));
            }
            if product && sources.iter().any(|r| group.sums.contains(r)) {
                let what = "rows in registers are sums of a wgmma before wgmma.wait_group says that they are there";
                return Err(FaultKind::InFlight(what.to_owned()));
            }
            if results.iter().any(|r| group.factors.contains(r)) {
                let what = "a register that wgmma may still read is written before wgmma.wait_group";
                return Err(FaultKind::InFlight(what.to_owned()));
            }
        }
        Ok(())
    }

    /// An instruction accessed registers that products use.
    pub(crate) fn accessed(&mut self, registers: &[Reg]) {
        for reg in registers {
            if !self.dirty.contains(reg) {
                self.dirty.push(*reg);
            }
        }
    }

    pub(crate) fn fence(&mut self) {
        self.dirty.clear();
        self.shapes.clear();
        self.fenced = true;
    }

    /// Checks that fences stand between a product and what used its registers before.
    fn check_fences(&mut self, w: &Wgmma, factors: &[Reg]) -> Result<(), FaultKind> {
        if !self.fenced {
            return Err(FaultKind::InFlight("a wgmma before the first wgmma.fence".to_owned()));
        }
        if self.dirty.iter().any(|r| w.d.contains(r) || factors.contains(r)) {
            let what = "a register of this wgmma was accessed after the last wgmma.fence".to_owned();
            return Err(FaultKind::InFlight(what));
        }
        let shape = (w.n, w.k);
        if self.shapes.iter().any(|(r, of)| factors.contains(r) || (*of != shape && w.d.contains(r))) {
            let what = "sums of a wgmma of another shape, or its factors, after the last wgmma.fence".to_owned();
            return Err(FaultKind::InFlight(what));
        }
        for reg in &w.d {
            if !self.shapes.iter().any(|(r, _)| r == reg) {
                self.shapes.push((*reg, shape));
            }
        }
        Ok(())
    }

    pub(crate) fn commit(&mut self) {
        let group = std::mem::take(&mut self.open);
        self.committed.push_back(group);
    }
}

impl Warp {
    /// `wgmma.wait_group`: all groups but the last few are done.
    pub(crate) fn wait_for_products(&mut self, env: &mut Env<'_>, pending: usize, pc: Pc) -> Step {
        let held = &mut self.held;
        if held.committed.len() <= pending {
            return Step::Next;
        }
        while held.committed.len() > pending {
            for range in held.committed.pop_front().map(|g| g.ranges).unwrap_or_default() {
                env.shared.finish_read(range);
            }
        }
        let unfinished = held.groups().find_map(|group| group.issued);
        self.meet_group(env, unfinished, pc)
    }

    pub(crate) fn wgmma(&mut self, env: &mut Env<'_>, w: &Wgmma) -> Result<(), LaneFault> {
        if (self.index / 4 + 1) * 128 > env.clocks.threads() {
            let what = "wgmma takes four warps, from one whose number is a multiple of four".to_owned();
            return Err(FaultKind::Participation(what).into());
        }
        let factors: &[Reg] = match &w.a {
            Factor::Registers(a) => a,
            Factor::Descriptor(_) => &[],
        };
        self.held.check_fences(w, factors)?;
        let scale_d = self.uniform(w.scale_d)? & 1 != 0;
        let descriptor = |bits: u64| Descriptor::decode(bits);
        let mut a = match &w.a {
            Factor::Registers(regs) => gather_a(&self.rows, regs, w.a_ty, 16, w.k),
            Factor::Descriptor(reg) => {
                let first = 16 * (self.index as u64 % 4);
                let from = descriptor(self.uniform(*reg)?)?;
                self.matrix_in_memory(env, from, w.a_ty, (first, 16), w.k, w.transposed[0])?
            }
        };
        let from = descriptor(self.uniform(w.b)?)?;
        let columns = self.matrix_in_memory(env, from, w.b_ty, (0, w.n), w.k, w.transposed[1])?;
        // By rows of `n`.
        let b: Vec<f32> = (0..w.k).flat_map(|k| columns.iter().skip(k).step_by(w.k).copied()).collect();
        if w.negate_a != w.negate_b {
            a.iter_mut().for_each(|x| *x = -*x);
        }
        let sum = Sum { ty: w.sum, saturate: w.saturate };
        sum.add(&mut self.rows, &w.d, scale_d.then_some(&w.d), (16, w.n, w.k), &a, &b);
        self.held.open.issued.get_or_insert(env.clocks.now());
        env.clocks.tick();
        self.held.open.sums.extend(&w.d);
        self.held.open.factors.extend(factors);
        Ok(())
    }

    /// A value that all lanes must agree on.
    fn uniform(&self, reg: Reg) -> Result<u64, LaneFault> {
        let row = &self.rows[reg as usize];
        match row.iter().position(|v| *v != row[0]) {
            None => Ok(row[0]),
            Some(lane) => {
                let what = "lanes give different descriptors or predicates".to_owned();
                Err(LaneFault { lane: Some(lane), kind: FaultKind::Operand(what) })
            }
        }
    }

    /// Lines of a matrix, each of `k` elements: rows of A or columns of B.
    fn matrix_in_memory(
        &mut self,
        env: &mut Env<'_>,
        from: Descriptor,
        ty: Ty,
        (first, lines): (u64, usize),
        k: usize,
        transposed: bool,
    ) -> Result<Vec<f32>, LaneFault> {
        let (bytes, decode) = (ty.bytes() as usize, element(ty));
        let per_chunk = 16 / bytes;
        let mut out = vec![0.0; lines * k];
        let (outer, inner) = if transposed { (k, lines) } else { (lines, k) };
        for line in 0..outer {
            for chunk in (0..inner).step_by(per_chunk) {
                let address = if transposed {
                    from.chunk(line as u64, (first + chunk as u64) * bytes as u64, true)
                } else {
                    from.chunk(first + line as u64, (chunk * bytes) as u64, false)
                };
                let range = self.asynchronous_read(env, address)?;
                for (i, element) in env.shared.bytes(range).chunks(bytes).enumerate() {
                    let mut bits = [0; 4];
                    bits[..bytes].copy_from_slice(element);
                    let at = if transposed { (chunk + i) * k + line } else { line * k + chunk + i };
                    out[at] = decode(u32::from_le_bytes(bits));
                }
            }
        }
        Ok(out)
    }

    /// Checks a read of 16 bytes by the tensor core, which lasts until the group is waited for.
    fn asynchronous_read(&mut self, env: &mut Env<'_>, address: u64) -> Result<Range<usize>, LaneFault> {
        let by = Toucher { warp: self.index, lane: 0 };
        let range = env.shared.check_group_read(address, 16, by, &env.clocks)?;
        env.shared.check_proxy(range.clone(), &env.transfers.fenced, env.transfers.fenced[self.thread(0)])?;
        env.shared.begin_read(range.clone());
        self.held.open.ranges.push(range.clone());
        Ok(range)
    }
}
