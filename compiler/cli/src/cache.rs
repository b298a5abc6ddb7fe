//! The cache folder: artifacts compiled on the way to running a model, keyed by everything that decides their bytes.
//!
//! An entry is written under a lock and renamed into place, so that two processes compile it once and nobody sees half of it.

use std::fs::File;
use std::path::{Path, PathBuf};

use xfc_codegen::driver;
use xfc_codegen::kernels::build_of;
use xfc_codegen::target::Target;
use xfc_runtime::artifact::container::Artifact;
use xfc_runtime::folder::{CacheFolder, Kind, lock_of};

use crate::args::ModelArgs;
use crate::error::{CliError, Result};
use crate::model::Loaded;
use crate::output::remark;

/// An artifact that was in the cache, or is now where there is room.
#[derive(Debug)]
pub(crate) struct Entry {
    /// What was compiled.
    pub(crate) artifact: Artifact,
    /// The file; `None` where it could not be kept, which was said.
    pub(crate) path: Option<PathBuf>,
    /// Whether it was compiled just now.
    pub(crate) fresh: bool,
}

/// The artifact of a model, compiled if it is not there. A folder that cannot be written is a warning: what is compiled runs as well.
///
/// # Errors
/// The model does not compile; a size of the cache that is none.
pub(crate) fn artifact(loaded: &Loaded, args: &ModelArgs) -> Result<Entry> {
    let targets = args.targets()?;
    let options = args.options()?;
    let compile = || Ok::<_, CliError>(driver::compile(&loaded.model, &loaded.card, &targets, &options)?.bytes);
    let Some(folder) = CacheFolder::of_user()? else {
        remark(
            "warning: the compiled model is not kept: there is no cache folder, for HOME is not set; set XFC_CACHE_DIR",
        );
        return Ok(Entry { artifact: Artifact::from_bytes(compile()?)?, path: None, fresh: true });
    };
    let path = folder.path(Kind::Artifact, &key(loaded, &targets));
    // A damaged entry is compiled again.
    let whole = || if path.is_file() { Artifact::open(&path).ok() } else { None };
    let of_file = |artifact, fresh| Entry { artifact, path: Some(path.clone()), fresh };
    if let Some(artifact) = whole() {
        folder.touch(&path);
        return Ok(of_file(artifact, false));
    }
    let locked = lock(&folder, &path);
    // Another process may have compiled it while this one waited.
    if let Some(artifact) = whole() {
        return Ok(of_file(artifact, false));
    }
    let bytes = compile()?;
    let written = locked.and_then(|lock| {
        // What is needed now is written even where it takes more than may be kept.
        folder.make_room(Kind::Artifact, bytes.len() as u64)?;
        xfc_runtime::files::write_atomic(&path, &bytes)?;
        drop(lock);
        Ok(Artifact::open(&path)?)
    });
    match written {
        Ok(artifact) => Ok(of_file(artifact, true)),
        Err(error) => {
            remark(format!(
                "warning: the compiled model is not kept: {error}; set XFC_CACHE_DIR to a folder with room, or give `--no-cache`"
            ));
            Ok(Entry { artifact: Artifact::from_bytes(bytes)?, path: None, fresh: true })
        }
    }
}

/// A lock on the making of `path`, whose folder is made.
fn lock(folder: &CacheFolder, path: &Path) -> Result<File> {
    folder.make_room(Kind::Artifact, 0)?;
    let path = lock_of(path);
    let lock = File::create(&path).map_err(|e| CliError::file(&path, format!("cannot write: {e}")))?;
    lock.lock().map_err(|e| CliError::file(&path, format!("cannot lock: {e}")))?;
    Ok(lock)
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
