//! How much memory a model takes before any of it is there: weights as they are packed, pages, values of a step, scratch.
//!
//! Given a manifest and what a session is asked for, promises the bytes that loading and the session allocate; nothing is allocated.

use crate::artifact::abi::ROWS_ALIGN;
use crate::artifact::manifest::Manifest;
use crate::artifact::validate::packed_bytes;
use crate::cache::{CacheOptions, CacheStore, page_bytes};
use crate::error::{Result, RuntimeError};

/// Weights begin at multiples of so many bytes.
const ALIGN: u64 = 64;
/// Longest context that is looked for.
const LONGEST: u64 = 1 << 31;

/// Bytes, by what they are for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Need {
    /// Packed weights.
    pub weights: u64,
    /// Pages of all caches.
    pub caches: u64,
    /// Values between the kernels of a step.
    pub values: u64,
    /// What each worker has for itself, of all workers.
    pub scratch: u64,
}

impl Need {
    /// What a session of these options needs, with so many workers.
    ///
    /// # Errors
    /// The options ask for more than can be numbered.
    pub fn of(manifest: &Manifest, options: &CacheOptions, workers: u64) -> Result<Self> {
        let store = CacheStore::new(manifest, *options)?;
        let pages = manifest.caches.iter().zip(store.capacity_pages());
        let caches = pages.map(|(group, n)| page_bytes(group).saturating_mul(n)).fold(0, u64::saturating_add);
        let rows = |axis: usize| {
            let step = options.limit(manifest, axis).step;
            let is_known = manifest.extents.get(axis).copied().flatten().is_some();
            if is_known { step } else { step.checked_next_multiple_of(ROWS_ALIGN).unwrap_or(u64::MAX) }
        };
        let arenas = manifest.arenas.iter().map(|a| a.bytes_per_row.saturating_mul(rows(a.axis)));
        let scratch = manifest.kernels.iter().map(|k| k.scratch_bytes).max().unwrap_or(0);
        Ok(Self {
            weights: weight_bytes(manifest)?,
            caches,
            values: arenas.fold(0, u64::saturating_add),
            scratch: scratch.saturating_mul(workers),
        })
    }

    /// All of it.
    pub fn total(&self) -> u64 {
        [self.weights, self.caches, self.values, self.scratch].into_iter().fold(0, u64::saturating_add)
    }
}

/// Bytes of all weights as they are packed.
///
/// # Errors
/// A manifest whose weights cannot be packed.
fn weight_bytes(manifest: &Manifest) -> Result<u64> {
    let mut sum = 0u64;
    for weight in &manifest.weights {
        let bytes = packed_bytes(weight).map_err(|problem| {
            RuntimeError::request(format!("weight `{}`: {problem}", weight.name), "compile the model again")
        })?;
        sum = sum.saturating_add(bytes.next_multiple_of(ALIGN));
    }
    Ok(sum)
}

/// The longest context that fits into `budget` bytes, with everything else as in `options`; `None` where not even one token fits. What the
/// model itself allows is the most.
///
/// # Errors
/// As [`Need::of`].
pub fn largest_context(manifest: &Manifest, options: &CacheOptions, workers: u64, budget: u64) -> Result<Option<u64>> {
    let most = manifest.most_elements(0).unwrap_or(LONGEST).min(LONGEST);
    let need = |tokens: u64| Need::of(manifest, &CacheOptions { context_tokens: tokens, ..*options }, workers);
    // What cannot be numbered does not fit either.
    let fits = |tokens: u64| need(tokens).is_ok_and(|need| need.total() <= budget);
    if need(1)?.total() > budget {
        return Ok(None);
    }
    let (mut low, mut high) = (1, most);
    while low < high {
        let middle = low + (high - low).div_ceil(2);
        if fits(middle) { low = middle } else { high = middle - 1 }
    }
    Ok(Some(low))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artifact::sample;

    #[test]
    fn the_largest_context_is_the_last_that_fits() {
        let mut manifest = sample::manifest();
        manifest.max_positions = vec![None; manifest.axes.len()];
        let options =
            CacheOptions { max_sequences: 2, context_tokens: 1, once_tokens: 1, step_tokens: 8, pool_tokens: None };
        let need =
            |tokens| Need::of(&manifest, &CacheOptions { context_tokens: tokens, ..options }, 3).unwrap().total();
        assert!(need(4096) >= need(16));
        for budget in [need(1), need(100), need(5000) + 7] {
            let found = largest_context(&manifest, &options, 3, budget).unwrap().unwrap();
            assert!(need(found) <= budget && (found == LONGEST || need(found + 1) > budget), "{budget}: {found}");
        }
        assert_eq!(largest_context(&manifest, &options, 3, need(1) - 1).unwrap(), None);
        // More pages than can be numbered are too many for any memory.
        let many = CacheOptions { max_sequences: 1 << 20, ..options };
        let found = largest_context(&manifest, &many, 3, u64::MAX).unwrap().unwrap();
        assert!(found > 1 && found < LONGEST, "{found}");
        manifest.max_positions[0] = Some(40);
        assert_eq!(largest_context(&manifest, &options, 3, u64::MAX).unwrap(), Some(40));
    }
}
