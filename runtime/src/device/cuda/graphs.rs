//! Steps that were recorded, to be replayed: one graph for each number of rows, sequences and entries of block tables.

use super::context::{Context, failed};
use crate::device::Step;
use crate::error::Result;
use cudarc::driver::{result, sys};
use std::collections::HashMap;

/// Most recorded steps that are kept.
const MOST_GRAPHS: usize = 256;

/// What a step's launches depend on, besides what lies in the device's memory: steps with equal keys are equal launches with equal arguments while
/// the arrays of steps stay where they are.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    /// Whose memory: the addresses and row strides of operands.
    workspace: u64,
    sizes: Vec<u64>,
    n_sequences: u32,
    /// Entries of each block table, and tokens of its pages.
    tables: Vec<(u32, u32)>,
    /// Index, kernel and tiles.
    launches: Vec<(usize, usize, u32)>,
}

impl Key {
    pub(super) fn of(step: &Step<'_>) -> Self {
        Key {
            workspace: step.workspace,
            sizes: step.sizes.to_vec(),
            n_sequences: step.n_sequences,
            tables: step.caches.iter().map(|cache| (cache.entries, cache.page_tokens)).collect(),
            launches: step.launches.iter().map(|launch| (launch.index, launch.kernel, launch.tiles)).collect(),
        }
    }
}

/// A recorded step. Given back when it is dropped; the driver lets one that still runs come to its end.
#[derive(Debug)]
pub(super) struct Graph(sys::CUgraphExec);

impl Graph {
    /// Records what `launches` gives to the stream, which nothing else uses meanwhile; nothing of it runs.
    pub(super) fn record(context: &Context, launches: impl FnOnce() -> Result<()>) -> Result<Self> {
        let stream = context.stream;
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream is alive.
        unsafe { result::stream::begin_capture(stream, mode) }.map_err(|e| failed("recording a step", e))?;
        let launched = launches();
        // SAFETY: begun above.
        let recording = unsafe { result::stream::end_capture(stream) }.map_err(|e| failed("recording a step", e));
        // Made ready also where a launch failed, so that it is given back. A launch that failed often is why a recording did.
        let graph = recording.and_then(|made| Self::of(made).map_err(|e| failed("making a recorded step ready", e)));
        launched?;
        let graph = graph?;
        // The first launch then takes no longer than later ones.
        // SAFETY: alive, both.
        unsafe { result::graph::upload(graph.0, stream) }.map_err(|e| failed("making a recorded step ready", e))?;
        Ok(graph)
    }

    /// Makes a recording ready; it is given back.
    fn of(recording: sys::CUgraph) -> Result<Self, result::DriverError> {
        let mut exec = std::ptr::null_mut();
        // SAFETY: the graph was just recorded and is destroyed once, whether or not it could be made ready.
        let made = unsafe { sys::cuGraphInstantiateWithFlags(&raw mut exec, recording, 0) }.result();
        // SAFETY: as above.
        let _ = unsafe { result::graph::destroy(recording) };
        made.map(|()| Self(exec))
    }

    /// Gives it to the stream.
    ///
    /// # Safety
    /// The memory that it was recorded with is still there.
    pub(super) unsafe fn launch(&self, stream: sys::CUstream) -> Result<(), result::DriverError> {
        // SAFETY: alive; as the caller promises.
        unsafe { result::graph::launch(self.0, stream) }
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: made in `of`, destroyed once.
        let _ = unsafe { result::graph::exec_destroy(self.0) };
    }
}

/// Values by key; the one that was not used for longest goes first.
#[derive(Debug)]
pub(super) struct Recent<T> {
    found: HashMap<Key, (T, u64)>,
    uses: u64,
}

impl<T> Default for Recent<T> {
    fn default() -> Self {
        Self { found: HashMap::new(), uses: 0 }
    }
}

impl<T> Recent<T> {
    /// What was kept under a key, which now is the one used last.
    pub(super) fn get(&mut self, key: &Key) -> Option<&T> {
        self.uses += 1;
        let (value, used) = self.found.get_mut(key)?;
        *used = self.uses;
        Some(value)
    }

    /// Keeps a value.
    pub(super) fn insert(&mut self, key: Key, value: T) -> &T {
        if self.found.len() >= MOST_GRAPHS && !self.found.contains_key(&key) {
            // Uses are numbered, so that no two are equal and the order of the map does not matter.
            let oldest = self.found.iter().min_by_key(|(_, (_, used))| *used).map(|(key, _)| key.clone());
            oldest.map(|key| self.found.remove(&key));
        }
        self.uses += 1;
        let slot = self.found.entry(key).insert_entry((value, self.uses));
        &slot.into_mut().0
    }

    /// Gives everything back.
    pub(super) fn clear(&mut self) {
        self.found.clear();
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.found.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::BlockTable;
    use crate::device::Launch;

    fn key(workspace: u64) -> Key {
        Key { workspace, sizes: vec![1, 1], n_sequences: 1, tables: Vec::new(), launches: Vec::new() }
    }

    #[test]
    fn the_one_not_used_for_longest_goes() {
        let mut kept = Recent::default();
        for n in 0..MOST_GRAPHS as u64 {
            kept.insert(key(n), n);
        }
        assert_eq!(kept.get(&key(0)), Some(&0));
        assert_eq!(kept.insert(key(1000), 1000), &1000);
        assert_eq!([0, 1, 1000].map(|n| kept.get(&key(n)).copied()), [Some(0), None, Some(1000)]);
        assert_eq!(kept.len(), MOST_GRAPHS);
        // Another value of a key that is there takes nothing from others.
        kept.insert(key(2), 7);
        assert_eq!((kept.len(), kept.get(&key(2))), (MOST_GRAPHS, Some(&7)));
        kept.clear();
        assert_eq!(kept.get(&key(2)), None);
    }

    #[test]
    fn whatever_arguments_hold_is_in_the_key() {
        let launches = [Launch { index: 0, kernel: 2, tiles: 5, buffers: 0..0, stream: None }];
        let caches = [BlockTable { table: vec![3, 4], lengths: vec![9], entries: 2, page_tokens: 16 }];
        let step = Step {
            workspace: 1,
            launches: &launches,
            buffers: &[],
            sizes: &[3, 1],
            axes: &[],
            caches: &caches,
            n_sequences: 1,
        };
        let same = Key::of(&step);
        assert_eq!(same, Key::of(&Step { ..step }));
        let more = [BlockTable { entries: 3, ..caches[0].clone() }];
        let tiles = [Launch { tiles: 6, ..launches[0].clone() }];
        let kernel = [Launch { kernel: 3, ..launches[0].clone() }];
        for other in [
            Step { workspace: 2, ..step },
            Step { sizes: &[4, 1], ..step },
            Step { n_sequences: 2, ..step },
            Step { caches: &more, ..step },
            Step { launches: &tiles, ..step },
            Step { launches: &kernel, ..step },
            Step { launches: &[], ..step },
        ] {
            assert_ne!(same, Key::of(&other));
        }
        // Lengths lie in the device's memory.
        let longer = [BlockTable { lengths: vec![10], ..caches[0].clone() }];
        assert_eq!(same, Key::of(&Step { caches: &longer, ..step }));
    }
}
