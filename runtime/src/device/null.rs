//! A device that runs nothing and remembers what it was told: for tests of everything above it.

use super::{Device, Launch, Step};
use crate::error::{Result, RuntimeError};
use std::sync::Mutex;

/// What one step was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recorded {
    /// Its launches.
    pub launches: Vec<Launch>,
    /// Elements and selected rows of each axis.
    pub sizes: Vec<u64>,
    /// Number of sequences.
    pub n_sequences: u32,
}

/// Records steps. Its memory is the host's, so that outputs are zeros.
#[derive(Debug, Default)]
pub struct NullDevice {
    steps: Mutex<Vec<Recorded>>,
}

impl NullDevice {
    /// The steps so far.
    pub fn steps(&self) -> Vec<Recorded> {
        self.steps.lock().map(|steps| steps.clone()).unwrap_or_default()
    }
}

impl Device for NullDevice {
    fn name(&self) -> &'static str {
        "null"
    }

    fn n_workers(&self) -> usize {
        1
    }

    unsafe fn run(&self, step: &Step<'_>) -> Result<()> {
        let poisoned = |_| RuntimeError::Device { device: "null", problem: "another thread panicked".to_owned() };
        self.steps.lock().map_err(poisoned)?.push(Recorded {
            launches: step.launches.to_vec(),
            sizes: step.sizes.to_vec(),
            n_sequences: step.n_sequences,
        });
        Ok(())
    }
}
