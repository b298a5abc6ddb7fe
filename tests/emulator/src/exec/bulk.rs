//! Bulk copies, of bytes and of tiles (PTX ISA, sections 9.7.9.25.5 and 9.7.9.27): issued here, completed by `transfers`.

use super::block::Env;
use super::descriptor::swizzle;
use super::early::Prefetched;
use super::fault::FaultKind;
use super::shared::{Kind, Toucher};
use super::transfers::{Piece, Transfer};
use super::warp::Warp;
use crate::decode::asynchronous::{BulkSource, Place};
use crate::ptx::ast::Space;
use crate::tensor_map::TensorMap;

fn aligned(space: &'static str, address: u64, align: u64) -> Result<(), FaultKind> {
    if address.is_multiple_of(align) { Ok(()) } else { Err(FaultKind::Misaligned { space, address, align }) }
}

impl Warp {
    /// The tensor map that a lane names, and its coordinates.
    fn tile(
        &self,
        env: &mut Env<'_>,
        map: Place,
        coordinates: &[u32],
        lane: usize,
    ) -> Result<(TensorMap, Vec<i32>), FaultKind> {
        let mut bytes = [0; 128];
        let (space, address) = self.at(lane, map.2, map.0, map.1);
        aligned("generic", address, 64)?;
        match space {
            Space::Param => {
                let from = env.params.get(address as usize..).and_then(|p| p.get(..128));
                bytes.copy_from_slice(from.ok_or(FaultKind::OutOfBounds { space: "param", address, bytes: 128 })?);
            }
            Space::Global => env.memory.read(address, &mut bytes)?,
            _ => return Err(FaultKind::Operand("a tensor map is in param, const or global memory".to_owned())),
        }
        let map = TensorMap::decode(&bytes)?;
        if map.dims.len() != coordinates.len() {
            return Err(FaultKind::Operand(format!("a map of {} dimensions", map.dims.len())));
        }
        Ok((map, coordinates.iter().map(|&r| self.rows[r as usize][lane] as i32).collect()))
    }

    pub(crate) fn bulk_load(
        &self,
        env: &mut Env<'_>,
        to: Place,
        from: &BulkSource,
        at: Place,
        (lane, line): (usize, u32),
    ) -> Result<(), FaultKind> {
        let (to, at) = (self.shared_address(lane, to)?, self.shared_address(lane, at)?);
        env.copy_agent(at)?;
        env.shown_to_copies(at, self.thread(lane))?;
        let mut chunks: Vec<(u64, Vec<u8>)> = Vec::new();
        let bytes = match from {
            BulkSource::Bytes { at, bytes } => {
                let bytes = self.rows[*bytes as usize][lane] & 0xffff_ffff;
                let (_, address) = self.at(lane, at.2, at.0, at.1);
                aligned("global", address, 16)?;
                aligned("shared", to, 16)?;
                aligned("length", bytes, 16)?;
                let mut data = vec![0; bytes as usize];
                self.reads(env, lane, address, data.len())?;
                env.memory.read(address, &mut data)?;
                env.stats.global_read_bytes += bytes;
                chunks.push((to, data));
                bytes
            }
            BulkSource::Tile { map, coordinates } => {
                let (map, coordinates) = self.tile(env, *map, coordinates, lane)?;
                aligned("shared", to, 128)?;
                for row in map.rows(&coordinates) {
                    // What is outside of the tensor is zero.
                    let mut data = vec![0; row.bytes as usize];
                    let valid = row.valid.start as usize..row.valid.end as usize;
                    if !valid.is_empty() {
                        env.stats.global_read_bytes += valid.len() as u64;
                        self.reads(env, lane, row.address, valid.len())?;
                        env.memory.read(row.address, &mut data[valid])?;
                    }
                    for (i, chunk) in data.chunks(16).enumerate() {
                        let linear = to + row.start + 16 * i as u64;
                        chunks.push((swizzle(linear, map.swizzle.width()), chunk.to_vec()));
                    }
                }
                map.box_bytes()
            }
        };
        let by = Toucher { warp: self.index, lane };
        let fenced = &env.transfers.fenced;
        let own = fenced[self.thread(lane)];
        let mut pieces = Vec::with_capacity(chunks.len());
        for (address, data) in chunks {
            let range = env.shared.check_write(address, data.len(), by, Kind::Async, &env.clocks)?;
            // Threads' reads need no fence: they are done when what orders them is, and leave nothing behind.
            env.shared.check_proxy(range.clone(), fenced, own)?;
            env.shared.begin_write(range.clone());
            pieces.push(Piece { range, data });
        }
        env.transfers.in_flight.push(Transfer::Load { pieces, bytes, at, line });
        Ok(())
    }

    /// Asks for bytes that will be read: a hint, which needs no wait.
    pub(crate) fn bulk_prefetch(&self, env: &mut Env<'_>, at: Place, bytes: u32, lane: usize) -> Result<(), FaultKind> {
        let bytes = self.rows[bytes as usize][lane] & 0xffff_ffff;
        let (_, address) = self.at(lane, at.2, at.0, at.1);
        aligned("global", address, 16)?;
        aligned("length", bytes, 16)?;
        env.memory.check(address, bytes as usize)?;
        env.stats.prefetched_bytes += bytes;
        env.prefetched.push(Prefetched::new(address, bytes as usize));
        Ok(())
    }

    pub(crate) fn bulk_store(
        &self,
        env: &mut Env<'_>,
        to: &BulkSource,
        from: Place,
        (lane, line): (usize, u32),
    ) -> Result<(), FaultKind> {
        let from = self.shared_address(lane, from)?;
        let mut chunks: Vec<(u64, u64, u64)> = Vec::new();
        match to {
            BulkSource::Bytes { at, bytes } => {
                let bytes = self.rows[*bytes as usize][lane] & 0xffff_ffff;
                let (_, address) = self.at(lane, at.2, at.0, at.1);
                aligned("global", address, 16)?;
                aligned("shared", from, 16)?;
                aligned("length", bytes, 16)?;
                chunks.push((from, address, bytes));
            }
            BulkSource::Tile { map, coordinates } => {
                let (map, coordinates) = self.tile(env, *map, coordinates, lane)?;
                aligned("shared", from, 128)?;
                for row in map.rows(&coordinates) {
                    // By chunks of shared memory, of each the part that is in the tensor.
                    for start in (0..row.bytes).step_by(16) {
                        let (first, last) = (row.valid.start.max(start), row.valid.end.min(start + 16));
                        if first < last {
                            let place = swizzle(from + row.start + start, map.swizzle.width()) + first - start;
                            chunks.push((place, row.address + first - row.valid.start, last - first));
                        }
                    }
                }
            }
        }
        let by = Toucher { warp: self.index, lane };
        let thread = self.thread(lane);
        let mut pieces = Vec::with_capacity(chunks.len());
        for (place, address, bytes) in chunks {
            let range = env.shared.check_read(place, bytes as usize, by, &env.clocks)?;
            env.shared.check_proxy(range.clone(), &env.transfers.fenced, env.transfers.fenced[thread])?;
            env.shared.begin_read(range.clone());
            env.stats.global_written_bytes += bytes;
            let data = env.shared.bytes(range.clone()).to_vec();
            self.writes(env, lane, address, &data)?;
            pieces.push((range, address));
        }
        let group = env.transfers.bulk_group(thread);
        env.transfers.in_flight.push(Transfer::Store { pieces, thread, group, line });
        Ok(())
    }
}
