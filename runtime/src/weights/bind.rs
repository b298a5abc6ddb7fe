//! Binds a checkpoint to a manifest: finds every tensor, checks names and shapes, packs them all into one block of memory.

use super::checkpoint::{Checkpoint, Stored};
use super::convert::Numbers;
use super::encoded;
use super::lens::Lens;
use super::names;
use super::pack::{Found, Job, Piece};
use super::random::Random;
use crate::artifact::manifest::{Manifest, Source};
use crate::artifact::validate::packed_bytes;
use crate::error::{Result, RuntimeError};
use crate::memory;
use memmap2::MmapMut;
use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// Missing tensors for which similar names are looked up.
const MOST_SUGGESTIONS: usize = 50;
/// Tensors named in a remark.
const MOST_NAMED: usize = 12;
/// Packed bytes after which what was read of the checkpoint is given back: it would be as large as the weights again.
const RELEASED_EVERY: u64 = 32 << 20;
/// Weights begin at multiples of this.
const ALIGN: u64 = 64;

/// Told how many bytes of how many are packed; called from several threads.
pub type Progress<'a> = &'a (dyn Fn(u64, u64) + Sync);

/// All weights of a model in one block, each at a multiple of 64 bytes.
#[derive(Debug)]
pub struct PackedWeights {
    /// Page-aligned memory.
    pub block: MmapMut,
    /// First byte of each of [`Manifest::weights`].
    pub offsets: Vec<u64>,
    /// What a user should know though it is no error: tensors that were made up, tensors that nothing reads, or only a part of.
    pub remarks: Vec<String>,
}

/// Reads what `manifest` asks for from `checkpoint` and packs it, with `threads` threads (at least one).
///
/// # Errors
/// Tensors that are missing, misshapen or of an unknown type: all of them in one [`RuntimeError::Binding`], with those that nothing reads,
/// which may be the same under another name. No memory.
pub fn bind(
    manifest: &Manifest,
    checkpoint: &Checkpoint,
    threads: usize,
    progress: Option<Progress<'_>>,
) -> Result<PackedWeights> {
    if let Some(format) = checkpoint.format().filter(|format| *format != manifest.format) {
        return Err(RuntimeError::input(
            checkpoint.path(),
            format!(
                "its tensors have the names of `{format}`, and the artifact was compiled for those of `{}`",
                manifest.format
            ),
            "compile the checkpoint itself, `xfc compile CHECKPOINT`, or give the card with `--checkpoint`",
        ));
    }
    let (jobs, remarks) = find(manifest, checkpoint)?;
    let Layout { offsets, sizes, end } = layout(manifest)?;
    memory::ensure("holding the weights", end)?;
    let length = usize::try_from(end.max(1)).map_err(|_| too_large(format!("{end} bytes")))?;
    let mut block = MmapMut::map_anon(length).map_err(|error| too_large(format!("{end} bytes: {error}")))?;

    // Large pages make reading weights faster; where they are not to be had, nothing is lost.
    #[cfg(target_os = "linux")]
    let _ = block.advise(memmap2::Advice::HugePage);

    let mut tasks: Vec<(usize, Piece, &mut [u8])> = Vec::new();
    let mut rest: &mut [u8] = &mut block;
    for (index, (job, &bytes)) in jobs.iter().zip(&sizes).enumerate() {
        let (mut own, after) = rest.split_at_mut(bytes.next_multiple_of(ALIGN) as usize);
        rest = after;
        for piece in job.pieces(bytes) {
            let (part, after) = own.split_at_mut(piece.bytes as usize);
            own = after;
            tasks.push((index, piece, part));
        }
    }
    let total: u64 = sizes.iter().sum();
    let done = AtomicU64::new(0);
    let tasks = Mutex::new(tasks.into_iter());
    let work = || {
        loop {
            // A poisoned lock means that another thread panicked; the scope passes that on.
            let task = tasks.lock().ok().and_then(|mut tasks| tasks.next());
            let Some((index, piece, out)) = task else { return };
            jobs[index].pack(piece, out);
            let before = done.fetch_add(piece.bytes, Ordering::Relaxed);
            let now = before + piece.bytes;
            if let Checkpoint::Stored(stored) = checkpoint
                && before / RELEASED_EVERY != now / RELEASED_EVERY
            {
                stored.release();
            }
            if let Some(progress) = progress {
                progress(now, total);
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads.max(1) {
            scope.spawn(work);
        }
        work();
    });
    Ok(PackedWeights { block, offsets, remarks })
}

/// Where the weights of a manifest are in their block.
#[derive(Debug)]
pub(super) struct Layout {
    /// First byte of each.
    pub(super) offsets: Vec<u64>,
    /// Bytes of each.
    pub(super) sizes: Vec<u64>,
    /// Bytes of the block.
    pub(super) end: u64,
}

fn too_large(problem: String) -> RuntimeError {
    RuntimeError::Device { device: "cpu", problem: format!("the weights do not fit into memory: {problem}") }
}

/// # Errors
/// More than can be addressed.
pub(super) fn layout(manifest: &Manifest) -> Result<Layout> {
    let mut layout = Layout { offsets: Vec::new(), sizes: Vec::new(), end: 0 };
    for weight in &manifest.weights {
        let bytes = packed_bytes(weight).map_err(too_large)?;
        layout.offsets.push(layout.end);
        layout.sizes.push(bytes);
        let end = layout.end.checked_add(bytes.next_multiple_of(ALIGN));
        layout.end = end.ok_or_else(|| too_large("too many".to_owned()))?;
    }
    Ok(layout)
}

/// Finds every source and says what is remarkable, or reports every tensor that does not fit.
fn find<'a>(manifest: &'a Manifest, checkpoint: &'a Checkpoint) -> Result<(Vec<Job<'a>>, Vec<String>)> {
    let mut problems = Vec::new();
    let mut remarks = Vec::new();
    let mut missing: Vec<&Source> = Vec::new();
    let mut made_up: Vec<&str> = Vec::new();
    let mut in_part: Vec<String> = Vec::new();
    let made = |random: &Random, source: &Source| {
        Numbers::Random(random.tensor(source.names.first().unwrap_or(&source.path), &source.shape))
    };
    let mut jobs = Vec::with_capacity(manifest.weights.len());
    for weight in &manifest.weights {
        let mut sources = Vec::with_capacity(weight.sources.len());
        for source in &weight.sources {
            // The manifest was validated, so the steps apply.
            let Ok(lens) = Lens::new(&source.shape, &source.steps) else { continue };
            match checkpoint {
                Checkpoint::Random(random) => {
                    sources.push(Found { numbers: made(random, source), lens, offset: source.offset, larger: None });
                }
                Checkpoint::Stored(stored) => match (encoded::take(stored, source), stored.instead_of_missing()) {
                    (Some(Ok(found)), _) => {
                        let shapes = |(name, shape)| format!("{name} {:?} of {shape:?}", source.shape);
                        in_part.extend(found.larger.clone().map(shapes));
                        sources.push(found);
                    }
                    (Some(Err(problem)), _) => problems.push(problem),
                    (None, Some(random)) => {
                        made_up.push(source.names.first().unwrap_or(&source.path));
                        sources.push(Found {
                            numbers: made(random, source),
                            lens,
                            offset: source.offset,
                            larger: None,
                        });
                    }
                    (None, None) => missing.push(source),
                },
            }
        }
        jobs.push(Job { weight, sources });
    }
    if let Checkpoint::Stored(stored) = checkpoint {
        let unread = unread(manifest, stored);
        report_missing(&missing, &unread, &mut problems);
        if problems.is_empty() {
            remarks.extend(remark("the checkpoint lacks these tensors, and numbers were made up for them", &made_up));
            let in_part: Vec<&str> = in_part.iter().map(String::as_str).collect();
            remarks.extend(remark("of these tensors of the checkpoint only the leading part is read", &in_part));
            remarks.extend(remark("nothing reads these tensors of the checkpoint", &unread));
            return Ok((jobs, remarks));
        }
        for name in unread {
            let shape = stored.tensor(name).map(|tensor| tensor.shape.clone()).unwrap_or_default();
            problems.push(format!("`{name}`: shape {shape:?}, nothing reads it"));
        }
        problems.extend(stored.method().map(|method| format!("config.json says that it is quantised: `{method}`")));
    }
    if problems.is_empty() {
        return Ok((jobs, remarks));
    }
    let mut seen = BTreeSet::new();
    problems.retain(|problem| seen.insert(problem.clone()));
    let help = "a card says under `names` what a checkpoint calls its tensors; a compiled model fits the checkpoints of the config.json that it was \
                compiled with";
    Err(RuntimeError::Binding { path: checkpoint.path(), problems, missing: missing.len(), help: help.to_owned() })
}

/// The tensors that nothing reads and that the card does not pass over.
fn unread<'a>(manifest: &Manifest, stored: &'a Stored) -> Vec<&'a str> {
    let sources = manifest.weights.iter().flat_map(|weight| &weight.sources);
    let known: BTreeSet<String> =
        sources.flat_map(|source| &source.names).flat_map(|name| encoded::names_read(stored, name)).collect();
    let ignored = |name: &str| manifest.ignore.iter().any(|pattern| names::matches(pattern, name));
    stored.tensors().map(|(name, _)| name).filter(|name| !known.contains(*name) && !ignored(name)).collect()
}

/// Adds a line for each tensor that is missing, with those of `unread` that it resembles.
fn report_missing(missing: &[&Source], unread: &[&str], problems: &mut Vec<String>) {
    for (i, source) in missing.iter().enumerate() {
        let names: Vec<String> = source.names.iter().map(|name| format!("`{name}`")).collect();
        let mut problem = format!("{}: missing, expected shape {:?}", names.join(" or "), source.shape);
        let similar = match source.names.first() {
            Some(name) if i < MOST_SUGGESTIONS => names::closest(name, unread),
            _ => Vec::new(),
        };
        if !similar.is_empty() {
            problem.push_str(&format!("; did you mean `{}`?", similar.join("`, `")));
        }
        problems.push(problem);
    }
}

/// One line about tensors, the first of them named; `None` for none.
fn remark(what: &str, names: &[&str]) -> Option<String> {
    let unique: BTreeSet<&str> = names.iter().copied().collect();
    let more = unique.len().saturating_sub(MOST_NAMED);
    let shown: Vec<String> = unique.iter().take(MOST_NAMED).map(|name| format!("`{name}`")).collect();
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    (!names.is_empty()).then(|| format!("{what}: {}{more}", shown.join(", ")))
}
