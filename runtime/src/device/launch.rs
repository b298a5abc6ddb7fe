//! The arguments of a step's launches for devices with memory of their own: the arrays that kernels follow side by side in one block, and for each
//! launch an [`XfmLaunch`](crate::artifact::abi::XfmLaunch) with their addresses.
//!
//! Arrays keep their places from step to step while they fit, so that a launch of the same rows has the same arguments again: what was recorded of
//! a step can be replayed.

use super::{Launch, Step};
use crate::artifact::abi::{LAUNCH_AXES, LAUNCH_BYTES, LAUNCH_CACHES, offsets};
use crate::error::{Result, RuntimeError};

/// Arrays begin at multiples of this.
const ALIGN: usize = 64;

/// The arrays of a step.
#[derive(Debug, Default)]
pub struct StepTables {
    bytes: Vec<u8>,
    /// Of each array: first byte, and bytes that there is room for.
    places: Vec<(usize, usize)>,
}

impl StepTables {
    /// Puts the arrays of a step in their places; whether these are others than those of the step before.
    pub fn fill(&mut self, step: &Step<'_>) -> bool {
        let lengths = || arrays(step).map(size_of_val::<[u32]>);
        let fits = self.places.len() == lengths().count() && lengths().zip(&self.places).all(|(n, place)| n <= place.1);
        if !fits {
            let had: Vec<usize> = self.places.drain(..).map(|(_, room)| room).collect();
            let mut at = 0;
            for (i, length) in lengths().enumerate() {
                // Twice what is needed, as what grows by one goes on growing; what there was room for before will come again.
                let room = (2 * length).next_multiple_of(ALIGN).max(ALIGN).max(had.get(i).copied().unwrap_or(0));
                self.places.push((at, room));
                at += room;
            }
            self.bytes = vec![0; at];
        }
        for (array, (at, _)) in arrays(step).zip(&self.places) {
            for (to, word) in self.bytes[*at..].chunks_exact_mut(4).zip(array) {
                to.copy_from_slice(&word.to_le_bytes());
            }
        }
        !fits
    }

    /// What lies in the device's memory during the step.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// What the kernel of a launch takes, where [`bytes`](Self::bytes) lie at `base` and the scratch of its blocks at `scratch`.
    ///
    /// # Errors
    /// A model with more axes, cache groups or operands than fit.
    pub fn arguments(&self, step: &Step<'_>, launch: &Launch, base: u64, scratch: u64) -> Result<Vec<u8>> {
        let too_many = |what: &str, n: usize, most: usize| RuntimeError::Device {
            device: "cuda",
            problem: format!("a launch with {n} {what}; kernels of a GPU take at most {most}"),
        };
        let buffers = &step.buffers[launch.buffers.clone()];
        if step.axes.len() > LAUNCH_AXES {
            return Err(too_many("ragged axes", step.axes.len(), LAUNCH_AXES));
        }
        if step.caches.len() > LAUNCH_CACHES {
            return Err(too_many("cache groups", step.caches.len(), LAUNCH_CACHES));
        }
        let total = offsets::LAUNCH_BUFFERS + buffers.len() * offsets::OPERAND_SIZE;
        if total > LAUNCH_BYTES {
            let most = (LAUNCH_BYTES - offsets::LAUNCH_BUFFERS) / offsets::OPERAND_SIZE;
            return Err(too_many("operands", buffers.len(), most));
        }
        let mut bytes = vec![0; total];
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        put(offsets::LAUNCH_TILES, &launch.tiles.to_le_bytes());
        put(offsets::LAUNCH_N_SEQUENCES, &step.n_sequences.to_le_bytes());
        put(offsets::LAUNCH_SCRATCH, &scratch.to_le_bytes());
        for (i, size) in step.sizes.iter().enumerate() {
            put(offsets::LAUNCH_SIZES + 8 * i, &size.to_le_bytes());
        }
        let mut addresses = self.places.iter().map(|(at, _)| (base + *at as u64).to_le_bytes());
        let fields = [offsets::AXIS_OFFSETS, offsets::AXIS_POSITIONS, offsets::AXIS_SEQUENCES, offsets::AXIS_ROWS];
        for axis in 0..step.axes.len() {
            for (field, address) in fields.iter().zip(addresses.by_ref().take(fields.len())) {
                put(offsets::LAUNCH_AXES + axis * offsets::AXIS_SIZE + field, &address);
            }
        }
        for (i, cache) in step.caches.iter().enumerate() {
            let at = offsets::LAUNCH_CACHES + i * offsets::CACHE_SIZE;
            for (field, address) in
                [offsets::CACHE_TABLE, offsets::CACHE_LENGTHS].iter().zip(addresses.by_ref().take(2))
            {
                put(at + field, &address);
            }
            put(at + offsets::CACHE_ENTRIES, &cache.entries.to_le_bytes());
            put(at + offsets::CACHE_PAGE_TOKENS, &cache.page_tokens.to_le_bytes());
        }
        for (i, buffer) in buffers.iter().enumerate() {
            let at = offsets::LAUNCH_BUFFERS + i * offsets::OPERAND_SIZE;
            put(at + offsets::OPERAND_DATA, &(buffer.data.addr() as u64).to_le_bytes());
            put(at + offsets::OPERAND_ROW_STRIDE, &buffer.row_stride.to_le_bytes());
        }
        Ok(bytes)
    }
}

/// The arrays that kernels follow, those of axes first.
fn arrays<'a>(step: &Step<'a>) -> impl Iterator<Item = &'a [u32]> {
    let axes = step.axes.iter().flat_map(|axis| [&axis.offsets, &axis.positions, &axis.sequences, &axis.rows]);
    let caches = step.caches.iter().flat_map(|cache| [&cache.table, &cache.lengths]);
    axes.chain(caches).map(Vec::as_slice)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artifact::abi::XfmBuffer;
    use crate::cache::BlockTable;
    use crate::device::AxisStep;

    #[test]
    fn arrays_stay_where_they_are_while_they_fit() {
        let buffers = [XfmBuffer {
            data: std::ptr::without_provenance_mut(0x1000),
            scale: std::ptr::null_mut(),
            row_stride: 7,
            reserved: 0,
        }];
        let launch = Launch { index: 0, kernel: 0, tiles: 5, buffers: 0..1, stream: None };
        let axes = |n: u32| {
            [AxisStep {
                offsets: vec![0, n],
                positions: (0..n).collect(),
                sequences: vec![0; n as usize],
                ..AxisStep::default()
            }]
        };
        let caches = [BlockTable { table: vec![3, 4], lengths: vec![9], entries: 2, page_tokens: 32 }];
        let (small, large) = (axes(3), axes(400));
        let step = |axes| Step {
            workspace: 0,
            launches: &[],
            buffers: &buffers,
            sizes: &[3, 0],
            axes,
            caches: &caches,
            n_sequences: 1,
        };
        let mut tables = StepTables::default();
        assert!(tables.fill(&step(&small)));
        let first = tables.arguments(&step(&small), &launch, 1 << 20, 64).unwrap();
        assert!(!tables.fill(&step(&small)));
        assert_eq!(tables.arguments(&step(&small), &launch, 1 << 20, 64).unwrap(), first);
        let u64_at = |at: usize| u64::from_le_bytes(first[at..at + 8].try_into().unwrap());
        let at = (u64_at(offsets::LAUNCH_CACHES + offsets::CACHE_TABLE) - (1 << 20)) as usize;
        assert_eq!(tables.bytes()[at..at + 8], [3, 0, 0, 0, 4, 0, 0, 0]);
        let at = (u64_at(offsets::LAUNCH_AXES + offsets::AXIS_POSITIONS) - (1 << 20)) as usize;
        assert_eq!(tables.bytes()[at..at + 12], [0, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0]);
        assert_eq!(u64_at(offsets::LAUNCH_BUFFERS + offsets::OPERAND_DATA), 0x1000);
        assert_eq!(u64_at(offsets::LAUNCH_BUFFERS + offsets::OPERAND_ROW_STRIDE), 7);
        assert!(tables.fill(&step(&large)));
        // A longer table beside fewer rows needs other places once; then all that came before fit.
        let longer = [BlockTable { table: vec![3; 100], lengths: vec![9], entries: 100, page_tokens: 32 }];
        assert!(tables.fill(&Step { caches: &longer, ..step(&small) }));
        assert!(!tables.fill(&step(&large)));
        assert!(!tables.fill(&Step { caches: &longer, ..step(&small) }));
        let many = vec![AxisStep::default(); LAUNCH_AXES + 1];
        let step = step(&many);
        tables.fill(&step);
        assert!(tables.arguments(&step, &launch, 0, 0).unwrap_err().to_string().contains("9 ragged axes"));
    }
}
