//! What a launch did, counted.

use std::collections::BTreeMap;

/// Counts of a launch, over all blocks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stats {
    /// Instructions, of whole warps.
    pub warp_instructions: u64,
    /// Instructions, of single threads.
    pub thread_instructions: u64,
    /// Bytes that instructions read from global memory.
    pub global_read_bytes: u64,
    /// Bytes that instructions wrote to global memory.
    pub global_written_bytes: u64,
    /// Bytes that blocks asked for ahead (`cp.async.bulk.prefetch`), and how many of these they did not read then.
    pub prefetched_bytes: u64,
    /// See above.
    pub prefetched_in_vain: u64,
    /// By the line of the PTX text, of lines that access memory.
    pub lines: BTreeMap<u32, LineStats>,
}

/// Counts of one memory instruction.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LineStats {
    /// How many warps executed it.
    pub executions: u64,
    /// The most accesses that one bank of shared memory had to serve one after another; 1 is without conflicts.
    pub max_bank_ways: u32,
    /// Sectors of 32 bytes of global memory that it touched.
    pub sectors: u64,
    /// Sectors that as many bytes side by side would have touched.
    pub least_sectors: u64,
}

impl Stats {
    /// The lines with bank conflicts, and their ways.
    pub fn bank_conflicts(&self) -> impl Iterator<Item = (u32, u32)> + '_ {
        self.lines.iter().filter(|(_, l)| l.max_bank_ways > 1).map(|(&line, l)| (line, l.max_bank_ways))
    }
}

/// How many accesses the busiest bank serves, for accesses of a width by lanes; wide accesses go in parts of 128 bytes.
pub(crate) fn bank_ways(addresses: &[u64], bytes: u32) -> u32 {
    let per_phase = (128 / bytes.max(4)) as usize;
    addresses.chunks(per_phase.max(1)).map(|phase| phase_ways(phase, bytes)).max().unwrap_or(0)
}

fn phase_ways(addresses: &[u64], bytes: u32) -> u32 {
    let mut words = [0u64; 32];
    let mut n = 0;
    for &address in addresses {
        for word in 0..bytes.div_ceil(4).max(1) {
            if n < words.len() {
                words[n] = address / 4 + u64::from(word);
                n += 1;
            }
        }
    }
    // No two words in one bank: the common case.
    let seen = words[..n].iter().fold(0u32, |seen, word| seen | 1 << (word % 32));
    if seen.count_ones() as usize == n {
        return 1;
    }
    let words = &mut words[..n];
    words.sort_unstable();
    let mut ways = [0u32; 32];
    let mut before = None;
    for &word in words.iter() {
        if before != Some(word) {
            ways[(word % 32) as usize] += 1;
        }
        before = Some(word);
    }
    ways.into_iter().max().unwrap_or(0)
}

/// Distinct sectors of 32 bytes that accesses touch.
pub(crate) fn sectors(addresses: &[u64], bytes: u32) -> u64 {
    // In order, as they mostly are, a sector is new if it is after the last.
    let mut sorted;
    let addresses = if addresses.is_sorted() {
        addresses
    } else {
        sorted = addresses.to_vec();
        sorted.sort_unstable();
        &sorted
    };
    let (mut count, mut next) = (0, 0);
    for &address in addresses {
        let (first, end) = ((address / 32).max(next), (address + u64::from(bytes)).div_ceil(32));
        count += end.saturating_sub(first);
        next = next.max(end);
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ways_of_strides() {
        let stride = |s: u64| (0..32).map(|i| i * s).collect::<Vec<_>>();
        assert_eq!(bank_ways(&stride(4), 4), 1);
        assert_eq!(bank_ways(&stride(8), 4), 2);
        assert_eq!(bank_ways(&stride(128), 4), 32);
        assert_eq!(bank_ways(&stride(132), 4), 1);
        assert_eq!(bank_ways(&stride(0), 4), 1);
        assert_eq!(bank_ways(&stride(16), 16), 1);
        assert_eq!(bank_ways(&stride(128), 16), 8);
        assert_eq!(bank_ways(&stride(1), 1), 1);
    }

    #[test]
    fn sectors_of_strides() {
        let stride = |s: u64| (0..32).map(|i| i * s).collect::<Vec<_>>();
        assert_eq!(sectors(&stride(4), 4), 4);
        assert_eq!(sectors(&stride(32), 4), 32);
        assert_eq!(sectors(&[30], 4), 2);
    }
}
