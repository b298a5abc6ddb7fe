//! Packed weights in a file of the cache folder: mapped, not packed, when the same checkpoint is loaded with the same layout again.
//!
//! ```text
//! block, as it is in memory │ JSON {remarks, sums} │ bytes of the JSON: u64 │ its checksum: u32 │ magic
//! ```
//!
//! The name is a hash of what decides the bytes: how the manifest wants each weight, and of each of the checkpoint's files the size, the time of its last change, the
//! beginning and samples. To hash all of a checkpoint would take as long as to pack it. A file that is not whole, by its length or its sums, is
//! packed again.

use super::bind::{Layout, PackedWeights, Progress, bind, layout};
use super::checkpoint::{Checkpoint, map_privately};
use crate::artifact::manifest::Manifest;
use crate::error::{Result, RuntimeError};
use crate::files::write_atomic_with;
use crate::folder::{CacheFolder, Kind};
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::Path;

/// Raised when the layout of weights changes in a way that the manifest does not tell.
const MAGIC: &[u8; 8] = b"xfcpack1";
/// A sample of the block is taken at each multiple of this.
const SAMPLED_EVERY: usize = 1 << 20;
const SAMPLE_BYTES: usize = 4096;
/// Bytes that are written and brought to the disk at a time.
const WRITTEN_AT_ONCE: usize = 64 << 20;
/// Bytes behind the footer.
const END_BYTES: u64 = 20;

/// What stands behind the block.
#[derive(Serialize, Deserialize)]
struct Footer {
    remarks: Vec<String>,
    sums: Vec<u32>,
}

/// [`bind`], from the cache folder where the same was packed before, and else kept there. What cannot be kept is a remark.
///
/// # Errors
/// As [`bind`].
pub fn bind_kept(
    manifest: &Manifest,
    checkpoint: &Checkpoint,
    threads: usize,
    progress: Option<Progress<'_>>,
    folder: &CacheFolder,
) -> Result<PackedWeights> {
    let layout = layout(manifest)?;
    let Some(key) = key(manifest, checkpoint).filter(|_| layout.end >= folder.least_bytes()) else {
        return bind(manifest, checkpoint, threads, progress);
    };
    let path = folder.path(Kind::Weights, &key);
    if let Some(packed) = open(&path, &layout) {
        folder.touch(&path);
        return Ok(packed);
    }
    // Half of the work is packing, half is writing.
    let first_half = |done: u64, total: u64| progress.iter().for_each(|progress| progress(done, 2 * total));
    let mut packed = bind(manifest, checkpoint, threads, Some(&first_half))?;
    let second_half = |done: u64, total: u64| progress.iter().for_each(|progress| progress(total + done, 2 * total));
    if let Err(error) = keep(&path, &packed, folder, &second_half) {
        let why = error.help().map(|help| format!(" ({help})")).unwrap_or_default();
        packed.remarks.push(format!("the packed weights were not kept for the next start: {error}{why}"));
    }
    Ok(packed)
}

/// Whether the same was packed before, by its name: what is mapped takes no memory of the process.
pub fn are_kept(manifest: &Manifest, checkpoint: &Checkpoint, folder: &CacheFolder) -> bool {
    key(manifest, checkpoint).is_some_and(|key| folder.path(Kind::Weights, &key).is_file())
}

/// What the file is called; `None` where the checkpoint is not one that stays.
fn key(manifest: &Manifest, checkpoint: &Checkpoint) -> Option<String> {
    let Checkpoint::Stored(stored) = checkpoint else { return None };
    let mut hasher = blake3::Hasher::new();
    hasher.update(MAGIC);
    let wanted = (&manifest.weights, &manifest.format, &manifest.ignore, cfg!(target_endian = "little"));
    hasher.update(&serde_json::to_vec(&wanted).ok()?);
    stored.fingerprint(&mut hasher)?;
    stored.release();
    Some(hasher.finalize().to_hex().as_str()[..32].to_owned())
}

/// The weights of a file; `None` where there is none, or it is not what was written.
fn open(path: &Path, layout: &Layout) -> Option<PackedWeights> {
    let mut file = File::open(path).ok()?;
    let length = file.metadata().ok()?.len();
    let block_bytes = layout.end.max(1);
    let footer_bytes = length.checked_sub(block_bytes)?.checked_sub(END_BYTES)?;
    file.seek(SeekFrom::Start(block_bytes)).ok()?;
    let mut rest = Vec::new();
    file.read_to_end(&mut rest).ok()?;
    let (footer, end) = rest.split_at_checked(usize::try_from(footer_bytes).ok()?)?;
    if end != ending(footer) {
        return None;
    }
    let footer: Footer = serde_json::from_slice(footer).ok()?;
    let block = map_privately(&file, usize::try_from(block_bytes).ok()?).ok()?;
    (sums(&block) == footer.sums).then(|| PackedWeights {
        block,
        offsets: layout.offsets.clone(),
        remarks: footer.remarks,
    })
}

fn keep(path: &Path, packed: &PackedWeights, folder: &CacheFolder, progress: &dyn Fn(u64, u64)) -> Result<()> {
    let footer = Footer { remarks: packed.remarks.clone(), sums: sums(&packed.block) };
    let footer = serde_json::to_vec(&footer).unwrap_or_default();
    let total = packed.block.len() as u64;
    if !folder.make_room(Kind::Weights, total + footer.len() as u64 + END_BYTES)? {
        let (needs, most) = (crate::memory::human(total), crate::memory::human(folder.most_bytes()));
        return Err(RuntimeError::request(
            format!("they have {needs}, the cache folder at most {most}"),
            "raise XFC_CACHE_MAX, or give `--no-cache`",
        ));
    }
    write_atomic_with(path, |file| {
        let mut done = 0;
        for part in packed.block.chunks(WRITTEN_AT_ONCE) {
            file.write_all(part)?;
            file.sync_data()?;
            done += part.len() as u64;
            progress(done, total);
        }
        file.write_all(&footer)?;
        file.write_all(&ending(&footer))
    })
}

/// What stands behind the footer.
fn ending(footer: &[u8]) -> Vec<u8> {
    let (length, sum) = ((footer.len() as u64).to_le_bytes(), crc32fast::hash(footer).to_le_bytes());
    [&length[..], &sum, MAGIC].concat()
}

/// Checksums of samples of a block: what was lost of a file, by a machine that stopped, is lost in runs longer than the distance between two.
fn sums(block: &[u8]) -> Vec<u32> {
    block.chunks(SAMPLED_EVERY).map(|part| crc32fast::hash(&part[..part.len().min(SAMPLE_BYTES)])).collect()
}

/// Adds what tells one state of a file from another without reading all of it: its size, the time of its last change, its beginning and samples.
/// `None` where the system does not tell the time.
pub(super) fn fingerprint(path: &Path, bytes: &[u8], hasher: &mut blake3::Hasher) -> Option<()> {
    const BEGINNING: usize = 1 << 20;
    const SAMPLES: usize = 256;
    let changed = fs::metadata(path).and_then(|found| found.modified()).ok()?;
    let changed = changed.duration_since(std::time::UNIX_EPOCH).ok()?;
    hasher.update(&(bytes.len() as u64).to_le_bytes()).update(&changed.as_nanos().to_le_bytes());
    hasher.update(&bytes[..bytes.len().min(BEGINNING)]);
    let every = (bytes.len() / SAMPLES).max(SAMPLE_BYTES);
    for part in bytes.chunks(every) {
        hasher.update(&part[..part.len().min(SAMPLE_BYTES)]);
    }
    Some(())
}
