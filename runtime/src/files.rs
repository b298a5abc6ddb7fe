//! Writing files so that nobody ever sees half of one.

use crate::error::{Result, RuntimeError};
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU64, Ordering};

/// Writes `bytes` to `path`: a temporary file in the same folder, synced, then renamed into place. A crash, a full disk or
/// another writer of the same path leaves the old file or the new one, whole.
///
/// # Errors
/// The folder does not exist or cannot be written; names `path`. Nothing is left behind.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    write_atomic_with(path, |file| file.write_all(bytes))
}

/// [`write_atomic`] with the contents written by `fill`.
///
/// # Errors
/// As [`write_atomic`], and what `fill` returns.
pub fn write_atomic_with(path: &Path, fill: impl FnOnce(&mut File) -> std::io::Result<()>) -> Result<()> {
    if path.is_dir() {
        return Err(RuntimeError::request(
            format!("{}: is a folder, a file was expected", path.display()),
            "give the path of a file to write",
        ));
    }
    let fail = |error| RuntimeError::io(path, "write", error);
    let (temporary, mut file) = create_beside(path).map_err(fail)?;
    let written = fill(&mut file).and_then(|()| file.sync_all()).and_then(|()| fs::rename(&temporary, path));
    if let Err(error) = written {
        // The first error is the one to report; a temporary file that cannot be removed either adds nothing.
        let _ = fs::remove_file(&temporary);
        return Err(fail(error));
    }
    Ok(())
}

/// A new file next to `path` with a name of its own.
fn create_beside(path: &Path) -> std::io::Result<(PathBuf, File)> {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let name = path
        .file_name()
        .ok_or_else(|| std::io::Error::new(std::io::ErrorKind::InvalidInput, "the path has no file name"))?;
    loop {
        let mut temporary = std::ffi::OsString::from(".");
        temporary.push(name);
        temporary.push(format!(".{}.{}.tmp", process::id(), COUNTER.fetch_add(1, Ordering::Relaxed)));
        let temporary = path.with_file_name(temporary);
        match OpenOptions::new().write(true).create_new(true).open(&temporary) {
            Ok(file) => return Ok((temporary, file)),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replaces_whole_and_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out.bin");
        write_atomic(&path, b"one").unwrap();
        write_atomic(&path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        write_atomic_with(&path, |_| Err(std::io::Error::other("stop"))).unwrap_err();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn names_the_path() {
        let folder = tempfile::tempdir().unwrap();
        let error = write_atomic(&folder.path().join("none/out.bin"), b"").unwrap_err();
        assert!(error.to_string().contains("none/out.bin: cannot write"), "{error}");
        assert!(write_atomic(folder.path(), b"").is_err());
    }
}
