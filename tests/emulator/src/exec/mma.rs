//! Products of small matrices held in the registers of a warp (PTX ISA, section 9.7.14.5): which lane holds which element, and the sums.
//!
//! All shapes follow one rule. With `n` elements in a register of 32 bits, lane `l` of group `g = l / 4` and place `p = l % 4` holds, in
//! register `r` of A, row `g + 8 (r % 2)` from column `p n + 4 n (r / 2)`; of B, column `g` from row `p n + 4 n r`; and of C and D, in
//! element `i`, row `g + 8 (i / 2)` and column `2 p + i % 2`. Products are exact, sums are made in f64 and rounded once.

use super::warp::Warp;
use crate::decode::lanes::{LANES, Reg, Row};
use crate::decode::tensor::Mma;
use crate::decode::types::Ty;
use crate::numbers::{E4M3, E5M2, F16, Format, Rounding};

/// The value of an element, given its bits.
pub(crate) fn element(ty: Ty) -> fn(u32) -> f32 {
    fn small(format: Format, bits: u32) -> f32 {
        format.decode(bits) as f32
    }
    match ty {
        Ty::F16 => |bits| half::f16::from_bits(bits as u16).to_f32(),
        Ty::Bf16 => |bits| f32::from_bits(bits << 16),
        // The hardware does not see the lower bits.
        Ty::Tf32 => |bits| f32::from_bits(bits & 0xffff_e000),
        Ty::E4m3 => |bits| small(E4M3, bits),
        Ty::E5m2 => |bits| small(E5M2, bits),
        Ty::S8 => |bits| f32::from(bits as u8 as i8),
        _ => |bits| f32::from(bits as u8),
    }
}

/// The elements of A that a warp holds, by rows of `k`.
pub(crate) fn gather_a(rows: &[Row], regs: &[Reg], ty: Ty, m: usize, k: usize) -> Vec<f32> {
    let (per, decode) = (4 / ty.bytes() as usize, element(ty));
    let halves = m / 8;
    let mut a = vec![0.0; m * k];
    for (r, &reg) in regs.iter().enumerate() {
        for (lane, &value) in rows[reg as usize].iter().enumerate() {
            let row = lane / 4 + 8 * (r % halves);
            let column = lane % 4 * per + 4 * per * (r / halves);
            for i in 0..per {
                a[row * k + column + i] = decode(part(value as u32, i, per));
            }
        }
    }
    a
}

/// The elements of B, by rows of 8.
fn gather_b(rows: &[Row], regs: &[Reg], ty: Ty, k: usize) -> Vec<f32> {
    let (per, decode) = (4 / ty.bytes() as usize, element(ty));
    let mut b = vec![0.0; k * 8];
    for (r, &reg) in regs.iter().enumerate() {
        for (lane, &value) in rows[reg as usize].iter().enumerate() {
            let row = lane % 4 * per + 4 * per * r;
            for i in 0..per {
                b[(row + i) * 8 + lane / 4] = decode(part(value as u32, i, per));
            }
        }
    }
    b
}

fn part(register: u32, i: usize, per: usize) -> u32 {
    let bits = 32 / per as u32;
    if bits == 32 { register } else { register >> (bits * i as u32) & ((1 << bits) - 1) }
}

/// What is added up, and how it is rounded.
#[derive(Clone, Copy)]
pub(crate) struct Sum {
    pub(crate) ty: Ty,
    pub(crate) saturate: bool,
}

impl Sum {
    /// The accumulator's value, exactly.
    fn read(self, bits: u64) -> f64 {
        match self.ty {
            Ty::F32 => f32::from_bits(bits as u32).into(),
            Ty::F16 => F16.decode(bits as u32),
            _ => f64::from(bits as u32 as i32),
        }
    }

    /// The result's bits, rounded once; integers wrap unless they saturate.
    fn write(self, value: f64) -> u64 {
        match self.ty {
            Ty::F32 => {
                let rounded = value as f32;
                u64::from(if rounded.is_nan() { 0x7fff_ffff } else { rounded.to_bits() })
            }
            Ty::F16 => F16.encode(value, Rounding::Nearest, false).into(),
            // At most 2^16 * 128 products of 16 bits and one of 32: exact in f64.
            _ if self.saturate => u64::from(value as i32 as u32),
            _ => u64::from(value as i64 as u32),
        }
    }

    /// Adds `A · B` to accumulators in registers, 16 (or 8) rows by `n` columns: each lane's elements in order of its registers. Without
    /// `keep` they start at zero.
    pub(crate) fn add(
        self,
        rows: &mut [Row],
        d: &[Reg],
        c: Option<&[Reg]>,
        (m, n, k): (usize, usize, usize),
        a: &[f32],
        b: &[f32],
    ) {
        let mut sums = vec![0f64; m * n];
        let packed = self.ty == Ty::F16;
        let per_tile = m / 8 * 2;
        // Register and shift of a lane's element `i` of eight columns.
        let place = move |tile: usize, i: usize| {
            let index = tile * per_tile + i;
            if packed { (index / 2, 16 * (index % 2) as u32) } else { (index, 0) }
        };
        let at =
            move |lane: usize, tile: usize, i: usize| (lane / 4 + 8 * (i / 2)) * n + 8 * tile + lane % 4 * 2 + i % 2;
        if let Some(c) = c {
            for (lane, tile, i) in elements(n, per_tile) {
                let (register, shift) = place(tile, i);
                let bits = rows[c[register] as usize][lane] >> shift;
                sums[at(lane, tile, i)] = self.read(if packed { bits & 0xffff } else { bits });
            }
        }
        for row in 0..m {
            let sums = &mut sums[row * n..][..n];
            for (step, b) in b.chunks_exact(n).take(k).enumerate() {
                let a = f64::from(a[row * k + step]);
                for (sum, &b) in sums.iter_mut().zip(b) {
                    *sum += a * f64::from(b);
                }
            }
        }
        for (lane, tile, i) in elements(n, per_tile) {
            let (register, shift) = place(tile, i);
            let bits = self.write(sums[at(lane, tile, i)]);
            let slot = &mut rows[d[register] as usize][lane];
            *slot = if packed { (*slot & !(0xffff << shift)) | bits << shift } else { bits };
        }
    }
}

/// All lanes, tiles of eight columns, and elements of a tile.
fn elements(n: usize, per_tile: usize) -> impl Iterator<Item = (usize, usize, usize)> {
    (0..n / 8).flat_map(move |tile| (0..LANES).flat_map(move |lane| (0..per_tile).map(move |i| (lane, tile, i))))
}

impl Warp {
    pub(crate) fn mma(&mut self, mma: &Mma) {
        let a = gather_a(&self.rows, &mma.a, mma.a_ty, mma.m, mma.k);
        let b = gather_b(&self.rows, &mma.b, mma.b_ty, mma.k);
        let sum = Sum { ty: mma.sum, saturate: mma.saturate };
        sum.add(&mut self.rows, &mma.d, Some(&mma.c), (mma.m, 8, mma.k), &a, &b);
    }
}
