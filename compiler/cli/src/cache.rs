//! The cache folder: artifacts compiled on the way to running a model, keyed by everything that decides their bytes.
//!
//! An entry is written under a lock and renamed into place, so that two processes compile it once and nobody sees half of it.

use std::fs::File;
use std::path::PathBuf;

use xfc_codegen::driver;
use xfc_codegen::kernels::build_of;
use xfc_codegen::target::Target;
use xfc_runtime::artifact::container::Artifact;
use xfc_runtime::folder::{CacheFolder, Kind, lock_of};

use crate::args::ModelArgs;
use crate::error::{CliError, Result};
use crate::model::Loaded;

/// An artifact in the cache.
#[derive(Debug)]
pub(crate) struct Entry {
    /// The file.
    pub(crate) path: PathBuf,
    /// Whether it was compiled just now.
    pub(crate) fresh: bool,
}

/// The artifact of a model, compiled if it is not there.
///
/// # Errors
/// The model does not compile, or the cache folder cannot be written.
pub(crate) fn artifact(loaded: &Loaded, args: &ModelArgs) -> Result<Entry> {
    let targets = args.targets()?;
    let folder = CacheFolder::needed()?;
    let path = folder.path(Kind::Artifact, &key(loaded, &targets));
    // A damaged entry is compiled again.
    let is_whole = || path.is_file() && Artifact::open(&path).is_ok();
    if is_whole() {
        folder.touch(&path);
        return Ok(Entry { path, fresh: false });
    }
    folder.make_room(Kind::Artifact, 0)?;
    let lock_path = lock_of(&path);
    let lock = File::create(&lock_path).map_err(|e| CliError::file(&lock_path, format!("cannot write: {e}")))?;
    lock.lock().map_err(|e| CliError::file(&lock_path, format!("cannot lock: {e}")))?;
    // Another process may have compiled it while this one waited.
    if is_whole() {
        return Ok(Entry { path, fresh: false });
    }
    let compiled = driver::compile(&loaded.model, &loaded.card, &targets, &args.options()?)?;
    // What is needed now is written even where it takes more than may be kept.
    folder.make_room(Kind::Artifact, compiled.bytes.len() as u64)?;
    xfc_runtime::files::write_atomic(&path, &compiled.bytes)?;
    Ok(Entry { path, fresh: true })
}

fn key(loaded: &Loaded, targets: &[Box<dyn Target>]) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update(loaded.key.as_bytes());
    for target in targets {
        hasher.update(b"\ntarget ").update(target.name().as_bytes());
        if let Some(profile) = target.profile() {
            hasher.update(b"\nprofile ").update(profile.to_text().as_bytes());
        }
    }
    hasher.update(compiler_build().as_bytes());
    hasher.finalize().to_hex().as_str()[..32].to_owned()
}

/// Tells builds of the compiler apart: its version, and the size and time of its file.
pub(crate) fn compiler_build() -> String {
    let stamp = std::env::current_exe().map(|program| build_of(&program)).unwrap_or_default();
    format!("\nxfc {} {stamp}", env!("CARGO_PKG_VERSION"))
}
