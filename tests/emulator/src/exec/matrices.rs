//! `ldmatrix`, `stmatrix`, `movmatrix` (PTX ISA, sections 9.7.14.5.15 to 9.7.14.5.17): matrices of 8 by 8 elements of 16 bits. Lane `l`
//! holds elements `2 (l % 4)` and the next of row `l / 4`; lanes `8 i` to `8 i + 7` give the addresses of the rows of matrix `i`.

use super::block::Env;
use super::fault::{FaultKind, LaneFault, by_lane};
use super::shared::{Kind, Toucher};
use super::warp::Warp;
use super::{spaces, stats};
use crate::decode::lanes::{LANES, Reg};
use crate::decode::program::Pc;
use crate::decode::tensor::Matrices;
use crate::ptx::ast::Space;

type Matrix = [[u16; 8]; 8];

/// The elements that a lane holds: two places, as row and column.
fn held(lane: usize, transposed: bool) -> [(usize, usize); 2] {
    [0, 1].map(|i| {
        let (row, column) = (lane / 4, lane % 4 * 2 + i);
        if transposed { (column, row) } else { (row, column) }
    })
}

impl Warp {
    /// The address of each row, checked.
    fn row_addresses(&self, env: &mut Env<'_>, m: &Matrices, pc: Pc) -> Result<Vec<u64>, LaneFault> {
        let mut addresses = Vec::new();
        for lane in 0..8 * m.registers.len() {
            let generic = self.rows[m.address as usize][lane].wrapping_add_signed(m.offset);
            let (space, address) = spaces::resolve(m.space, generic);
            if space != Space::Shared {
                let what = format!("lane {lane} gives an address that is not in shared memory");
                return Err(by_lane(lane)(FaultKind::Operand(what)));
            }
            if !address.is_multiple_of(16) {
                return Err(by_lane(lane)(FaultKind::Misaligned { space: "shared", address, align: 16 }));
            }
            addresses.push(address);
        }
        let line = &mut env.lines[pc as usize];
        line.executions += 1;
        line.max_bank_ways = line.max_bank_ways.max(stats::bank_ways(&addresses, 16));
        Ok(addresses)
    }

    pub(crate) fn load_matrices(&mut self, env: &mut Env<'_>, m: &Matrices, pc: Pc) -> Result<(), LaneFault> {
        let addresses = self.row_addresses(env, m, pc)?;
        let mut matrices = vec![Matrix::default(); m.registers.len()];
        for (lane, &address) in addresses.iter().enumerate() {
            let by = Toucher { warp: self.index, lane };
            let range = env.shared.check_read(address, 16, by, &env.clocks).map_err(by_lane(lane))?;
            for (element, bytes) in matrices[lane / 8][lane % 8].iter_mut().zip(env.shared.bytes(range).chunks(2)) {
                *element = u16::from_le_bytes([bytes[0], bytes[1]]);
            }
        }
        for (matrix, &to) in matrices.iter().zip(&m.registers) {
            for lane in 0..LANES {
                let [low, high] = held(lane, m.transposed).map(|(row, column)| matrix[row][column]);
                self.rows[to as usize][lane] = u64::from(low) | u64::from(high) << 16;
            }
        }
        Ok(())
    }

    fn matrix(&self, from: Reg, transposed: bool) -> Matrix {
        let mut matrix = Matrix::default();
        for lane in 0..LANES {
            let value = self.rows[from as usize][lane];
            for (i, (row, column)) in held(lane, transposed).into_iter().enumerate() {
                matrix[row][column] = (value >> (16 * i)) as u16;
            }
        }
        matrix
    }

    pub(crate) fn store_matrices(&mut self, env: &mut Env<'_>, m: &Matrices, pc: Pc) -> Result<(), LaneFault> {
        let addresses = self.row_addresses(env, m, pc)?;
        let mut ranges = Vec::new();
        for (lane, &address) in addresses.iter().enumerate() {
            let by = Toucher { warp: self.index, lane };
            ranges.push(env.shared.check_write(address, 16, by, Kind::Plain, &env.clocks).map_err(by_lane(lane))?);
        }
        let matrices: Vec<Matrix> = m.registers.iter().map(|&r| self.matrix(r, m.transposed)).collect();
        let time = env.clocks.tick();
        for (lane, range) in ranges.into_iter().enumerate() {
            let row = matrices[lane / 8][lane % 8].map(u16::to_le_bytes);
            let by = Toucher { warp: self.index, lane };
            env.shared.write(range, row.as_flattened(), by, Kind::Plain, time).map_err(by_lane(lane))?;
        }
        env.clocks.tick();
        Ok(())
    }

    pub(crate) fn move_matrix(&mut self, d: Reg, a: Reg) {
        let matrix = self.matrix(a, true);
        for lane in 0..LANES {
            let [low, high] = held(lane, false).map(|(row, column)| matrix[row][column]);
            self.rows[d as usize][lane] = u64::from(low) | u64::from(high) << 16;
        }
    }
}
