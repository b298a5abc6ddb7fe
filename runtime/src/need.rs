//! How much memory a model takes before any of it is there: weights as they are packed, pages, values of a step, scratch.
//!
//! Given a manifest and what a session is asked for, promises the bytes that loading and the session allocate; nothing is allocated. What does not
//! fit is refused with the size of each part, and with what would fit.

use crate::artifact::abi::ROWS_ALIGN;
use crate::artifact::manifest::{CacheGroup, Manifest, Pack};
use crate::artifact::validate::packed_bytes;
use crate::cache::{CacheOptions, CacheStore};
use crate::device::Room;
use crate::device::workspace::slot_memory;
use crate::error::{Result, RuntimeError};
use crate::memory::{self, human};

/// Weights begin at multiples of so many bytes.
const ALIGN: u64 = 64;
/// Longest context that is looked for.
const LONGEST: u64 = 1 << 31;
/// Bits of a weight in `int8` and in `int4`, in groups of 32 with a scale of 16 bits.
const NARROW_BITS: [(&str, f64); 2] = [("int8", 8.5), ("int4", 4.5)];

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
        Self::in_granules(manifest, options, workers, 1)
    }

    /// The same, where what is taken at a time is a multiple of so many bytes.
    fn in_granules(manifest: &Manifest, options: &CacheOptions, workers: u64, granule: u64) -> Result<Self> {
        let taken = |bytes: u64| bytes.checked_next_multiple_of(granule).unwrap_or(u64::MAX);
        let store = CacheStore::new(manifest, *options)?;
        let pages = manifest.caches.iter().zip(store.capacity_pages());
        let of_group = |(group, n): (&CacheGroup, u64)| {
            let sizes = slot_memory(group).0.into_iter().map(|bytes| taken(bytes.saturating_mul(n)));
            sizes.fold(0, u64::saturating_add)
        };
        let caches = pages.map(of_group).fold(0, u64::saturating_add);
        let rows = |axis: usize| {
            let step = options.limit(manifest, axis).step;
            let is_known = manifest.extents.get(axis).copied().flatten().is_some();
            if is_known { step } else { step.checked_next_multiple_of(ROWS_ALIGN).unwrap_or(u64::MAX) }
        };
        let arenas = manifest.arenas.iter().map(|a| taken(a.bytes_per_row.saturating_mul(rows(a.axis))));
        let scratch = manifest.kernels.iter().map(|k| k.scratch_bytes).max().unwrap_or(0);
        Ok(Self {
            weights: taken(weight_bytes(manifest)?),
            caches,
            values: arenas.fold(0, u64::saturating_add),
            scratch: taken(scratch.saturating_mul(workers)),
        })
    }

    /// All of it.
    pub fn total(&self) -> u64 {
        [self.weights, self.caches, self.values, self.scratch].into_iter().fold(0, u64::saturating_add)
    }
}

/// What is in a device's memory already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loaded {
    /// Nothing of the model.
    Nothing,
    /// The weights, and what workers have for themselves.
    Model,
}

/// Refuses a session that does not fit into what is free of a device's memory, before anything is taken.
///
/// # Errors
/// Names the size of each part, what is free, and what would fit; as [`Need::of`].
pub fn ensure(manifest: &Manifest, options: &CacheOptions, room: &Room, loaded: Loaded) -> Result<()> {
    let granule = room.granule_bytes.max(1);
    let scratch = room.scratch_bytes.checked_next_multiple_of(granule).unwrap_or(u64::MAX);
    let mut need = Need { scratch, ..Need::in_granules(manifest, options, 1, granule)? };
    if loaded == Loaded::Model {
        (need.weights, need.scratch) = (0, 0);
    }
    let needed = need.total();
    let free = room.free.saturating_sub(room.reserve_bytes);
    if needed <= free {
        return Ok(());
    }
    let of = room.total.map(|total| format!(" of {}", human(total))).unwrap_or_default();
    let what = match loaded {
        Loaded::Nothing => manifest.model.clone(),
        Loaded::Model => "the session".to_owned(),
    };
    let parts = parts(&need, options);
    let kept = match room.reserve_bytes {
        0 => String::new(),
        bytes => format!(", of which {} stay so for code and recorded steps", human(bytes.min(room.free))),
    };
    let problem = format!(
        "{what} does not fit on {}: {parts}, together {}; {}{of} are free{kept}",
        room.device,
        human(needed),
        human(room.free)
    );
    let context = largest_context_beside(manifest, options, &need, free, granule)?;
    Err(RuntimeError::request(problem, remedies(manifest, options, &need, free, context)))
}

/// Refuses weights, and the memory of a step, that do not fit into the host's memory, of which caches take what is used of them.
///
/// # Errors
/// As [`ensure`].
pub fn ensure_host(manifest: &Manifest, options: &CacheOptions, workers: u64) -> Result<()> {
    let Some(free) = memory::available_bytes() else { return Ok(()) };
    check_host(manifest, options, workers, free, memory::total_bytes())
}

fn check_host(manifest: &Manifest, options: &CacheOptions, workers: u64, free: u64, total: Option<u64>) -> Result<()> {
    let need = Need::of(manifest, options, workers)?;
    let at_once = Need { caches: 0, ..need };
    if at_once.total() <= free {
        return Ok(());
    }
    let of = total.map(|total| format!(" of {}", human(total))).unwrap_or_default();
    let problem = format!(
        "{} does not fit into this machine's memory: {}; {} without caches, which fill as they are used; {}{of} are available",
        manifest.model,
        parts(&need, options),
        human(at_once.total()),
        human(free),
    );
    Err(RuntimeError::request(problem, remedies(manifest, options, &at_once, free, None)))
}

/// `weights 16.06 GB, caches 2.15 GB (1 sequence of 4096 positions), values of a step 12.30 MB`.
fn parts(need: &Need, options: &CacheOptions) -> String {
    let (sequences, context) = (u64::from(options.max_sequences), options.context_tokens);
    let positions = format!("{sequences} sequence{} of {context} position{}", plural(sequences), plural(context));
    let parts = [
        ("weights", need.weights, String::new()),
        ("caches", need.caches, format!(" ({positions})")),
        ("values of a step", need.values, format!(" ({} token{})", options.step_tokens, plural(options.step_tokens))),
        ("scratch", need.scratch, String::new()),
    ];
    let shown = parts.into_iter().filter(|(_, bytes, _)| *bytes > 0);
    shown.map(|(name, bytes, of)| format!("{name} {}{of}", human(bytes))).collect::<Vec<_>>().join(", ")
}

fn plural(n: u64) -> &'static str {
    if n == 1 { "" } else { "s" }
}

/// The longest context with which the caches fit beside everything else.
fn largest_context_beside(
    manifest: &Manifest,
    options: &CacheOptions,
    need: &Need,
    free: u64,
    granule: u64,
) -> Result<Option<u64>> {
    let rest = Need { caches: 0, values: 0, ..*need }.total();
    let Some(left) = free.checked_sub(rest) else { return Ok(None) };
    // Weights and scratch are not looked for here: they are what they are.
    let own = Need { caches: 0, values: 0, ..Need::in_granules(manifest, options, 0, granule)? }.total();
    longest(manifest, options, (0, granule), left.saturating_add(own))
}

/// What would fit, for people; the least change first.
fn remedies(manifest: &Manifest, options: &CacheOptions, need: &Need, free: u64, context: Option<u64>) -> String {
    let mut ways = Vec::new();
    if let Some(context) = context.filter(|tokens| *tokens < options.context_tokens) {
        ways.push(format!("a context of at most {context} positions fits"));
    }
    let needed = need.total();
    if needed - need.caches / 2 <= free && need.caches > 0 {
        ways.push(
            "caches in 8 bits (`--kv-cache-dtype int8` when compiling) take half of what they take in bf16".to_owned(),
        );
    }
    let narrow = NARROW_BITS.into_iter().filter(|_| need.weights > 0).find_map(|(name, bits)| {
        let weights = narrow_weight_bytes(manifest, bits);
        let fits = needed - need.weights + weights <= free;
        (fits && weights < need.weights).then(|| {
            format!("weights in {name} (`--quant {name}` when compiling) take about {}, which fits", human(weights))
        })
    });
    ways.extend(narrow);
    if ways.is_empty() {
        return "free some memory, or take a smaller model, a narrower `--dtype`, `--quant`, or fewer tokens at a time"
            .to_owned();
    }
    ways.join("; ")
}

/// Bytes of all weights with so many bits for each number of a matrix that has more, about.
fn narrow_weight_bytes(manifest: &Manifest, bits: f64) -> u64 {
    let bytes = |weight: &crate::artifact::manifest::Weight| {
        let now = packed_bytes(weight).unwrap_or(0);
        let bits_now = match weight.pack {
            Pack::Plain => return now,
            Pack::Panels { .. } => 8.0 * weight.dtype.size_bytes() as f64,
            Pack::Blocks(blocks) => blocks.bits as f64 + (8 * blocks.shared_bytes()) as f64 / blocks.group as f64,
        };
        if bits < bits_now { (now as f64 * bits / bits_now) as u64 } else { now }
    };
    manifest.weights.iter().map(bytes).fold(0, u64::saturating_add)
}

/// Bytes of all weights as they are packed.
///
/// # Errors
/// A manifest whose weights cannot be packed.
pub fn weight_bytes(manifest: &Manifest) -> Result<u64> {
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
    longest(manifest, options, (workers, 1), budget)
}

/// The same, where what is taken at a time is a multiple of so many bytes.
fn longest(
    manifest: &Manifest,
    options: &CacheOptions,
    (workers, granule): (u64, u64),
    budget: u64,
) -> Result<Option<u64>> {
    let most = manifest.most_elements(0).unwrap_or(LONGEST).min(LONGEST);
    let need = |tokens: u64| {
        Need::in_granules(manifest, &CacheOptions { context_tokens: tokens, ..*options }, workers, granule)
    };
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

    /// Pages for sequences of any length, and weights that are matrices.
    fn growing() -> (Manifest, CacheOptions) {
        let mut manifest = sample::manifest();
        manifest.max_positions = vec![None; manifest.axes.len()];
        manifest.weights[0].pack = Pack::Panels { columns: 4, depth: 1 };
        manifest.weights[0].shape = vec![4096, 1024];
        let options =
            CacheOptions { max_sequences: 1, context_tokens: 4096, once_tokens: 1, step_tokens: 8, pool_tokens: None };
        (manifest, options)
    }

    fn room(free: u64) -> Room {
        Room {
            device: "GPU 0 (One)".to_owned(),
            free,
            total: Some(80_000_000_000),
            scratch_bytes: 1_000_000,
            granule_bytes: 1,
            reserve_bytes: 0,
        }
    }

    #[test]
    fn what_does_not_fit_is_told_with_what_would() {
        let (manifest, options) = growing();
        let need = Need { scratch: 1_000_000, ..Need::of(&manifest, &options, 1).unwrap() };
        assert_eq!(need.weights, 4096 * 1024 * 4);
        ensure(&manifest, &options, &room(need.total()), Loaded::Nothing).unwrap();
        let refused = |free| ensure(&manifest, &options, &room(free), Loaded::Nothing).unwrap_err();
        // A little too little: a shorter context is enough, and so is each of the others.
        let free = need.total() - 10_000;
        let error = refused(free);
        let text = error.to_string();
        for part in [
            "sample does not fit on GPU 0 (One): weights 16.78 MB, caches ",
            " (1 sequence of 4096 positions), values of a step ",
            " (8 tokens), scratch 1.00 MB, together ",
            " of 80.00 GB are free",
        ] {
            assert!(text.contains(part), "{part:?} is not in {text}");
        }
        let help = error.help().unwrap();
        let tokens: u64 = help.split("at most ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
        let with = |tokens| CacheOptions { context_tokens: tokens, ..options };
        ensure(&manifest, &with(tokens), &room(free), Loaded::Nothing).unwrap();
        ensure(&manifest, &with(tokens + 4), &room(free), Loaded::Nothing).unwrap_err();
        assert!(help.contains("`--kv-cache-dtype int8`") && help.contains("`--quant int8`"), "{help}");
        // Half of the weights at most: only four bits are few enough.
        let help = refused(need.total() - need.weights * 3 / 4).help().unwrap().to_owned();
        assert!(help.contains("`--quant int4`") && !help.contains("int8"), "{help}");
        assert!(refused(1000).help().unwrap().contains("smaller model"));
    }

    #[test]
    fn memory_is_taken_in_pieces_and_some_stays_free() {
        let (manifest, options) = growing();
        // Long enough for caches of several pieces.
        let options = CacheOptions { context_tokens: 1 << 20, ..options };
        let granule = 2 << 20;
        let memories = manifest.arenas.len() as u64 + 2;
        let slots: usize = manifest.caches.iter().map(|group| slot_memory(group).0.len()).sum();
        let exact = Need { scratch: 1_000_000, ..Need::of(&manifest, &options, 1).unwrap() }.total();
        let of = |free| Room { granule_bytes: granule, reserve_bytes: 50_000_000, ..room(free) };
        let fits = |free| ensure(&manifest, &options, &of(free), Loaded::Nothing);
        let error = fits(exact + 50_000_000).unwrap_err();
        assert!(
            error.to_string().ends_with(" are free, of which 50.00 MB stay so for code and recorded steps"),
            "{error}"
        );
        // Each memory is up to a piece larger.
        fits(exact + 50_000_000 + (memories + slots as u64) * granule).unwrap();
        let taken = Need::in_granules(&manifest, &options, 1, granule).unwrap();
        assert!([taken.weights, taken.caches, taken.values].iter().all(|bytes| bytes % granule == 0 && *bytes > 0));
        // What is said to fit does.
        let tokens =
            largest_context_beside(&manifest, &options, &taken, taken.total() - granule, granule).unwrap().unwrap();
        assert!(tokens < options.context_tokens && tokens > 0, "{tokens}");
        let shorter = CacheOptions { context_tokens: tokens, ..options };
        assert!(Need::in_granules(&manifest, &shorter, 1, granule).unwrap().total() <= taken.total() - granule);
    }

    #[test]
    fn a_loaded_model_needs_room_for_the_session_alone() {
        let (manifest, options) = growing();
        let need = Need::of(&manifest, &options, 1).unwrap();
        let session = need.caches + need.values;
        ensure(&manifest, &options, &room(session), Loaded::Model).unwrap();
        let error = ensure(&manifest, &options, &room(session - 1), Loaded::Model).unwrap_err();
        assert!(error.to_string().starts_with("the session does not fit on GPU 0 (One): caches "), "{error}");
        assert!(!error.help().unwrap().contains("--quant"), "{error:?}");
    }

    #[test]
    fn caches_of_the_host_fill_as_they_are_used() {
        let (manifest, options) = growing();
        let need = Need::of(&manifest, &options, 2).unwrap();
        let at_once = need.total() - need.caches;
        check_host(&manifest, &options, 2, at_once, None).unwrap();
        let error = check_host(&manifest, &options, 2, at_once - 1, Some(1 << 30)).unwrap_err();
        let text = error.to_string();
        assert!(
            text.starts_with("sample does not fit into this machine's memory: weights 16.78 MB, caches "),
            "{text}"
        );
        assert!(error.help().unwrap().contains("`--quant int8`"), "{error:?}");
    }
}
