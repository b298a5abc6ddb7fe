//! Writing files so that nobody ever sees half of one.

use crate::error::{Result, RuntimeError};
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Writes `bytes` to `path`: a temporary file in the same folder, synced, then renamed into place. A crash, an interrupt, a full disk or
/// another writer of the same path leaves the old file or the new one, whole. What a killed process left beside it is removed by the next
/// writer. A link is followed; a device or a pipe is written to as it is.
///
/// # Errors
/// The folder does not exist or cannot be written; names `path`. Nothing is left behind.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    write_atomic_with(path, |file| file.write_all(bytes))
}

/// Refuses a path that [`write_atomic`] could not write, before there is anything to write.
///
/// # Errors
/// It is a folder, or its own folder does not exist.
pub fn check_writable(path: &Path) -> Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if path.is_dir() {
        return Err(is_folder(path));
    }
    match fs::metadata(folder) {
        Ok(found) if found.is_dir() => Ok(()),
        Ok(_) => Err(cannot_write(path, std::io::ErrorKind::NotADirectory.into())),
        Err(error) => Err(cannot_write(path, error)),
    }
}

/// The error of a file that cannot be written, which names its folder where that is what is wrong.
fn cannot_write(path: &Path, error: std::io::Error) -> RuntimeError {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty() && !folder.is_dir());
    let error = match folder {
        Some(folder) if folder.exists() => {
            std::io::Error::new(error.kind(), format!("{} is no folder", folder.display()))
        }
        Some(folder) => std::io::Error::new(error.kind(), format!("there is no folder {}", folder.display())),
        None => error,
    };
    RuntimeError::io(path, "write", error)
}

fn is_folder(path: &Path) -> RuntimeError {
    RuntimeError::request(
        format!("{}: is a folder, a file was expected", path.display()),
        "give the path of a file to write",
    )
}

/// [`write_atomic`] with the contents written by `fill`.
///
/// # Errors
/// As [`write_atomic`], and what `fill` returns.
pub fn write_atomic_with(path: &Path, fill: impl FnOnce(&mut File) -> std::io::Result<()>) -> Result<()> {
    if path.is_dir() {
        return Err(is_folder(path));
    }
    let fail = |error| cannot_write(path, error);
    // A device is not replaced by a file of its name.
    if fs::metadata(path).is_ok_and(|found| !found.is_file()) {
        return OpenOptions::new().write(true).open(path).and_then(|mut file| fill(&mut file)).map_err(fail);
    }
    let followed = follow(path).map_err(fail)?;
    let path = followed.as_path();
    remove_left_behind(path);
    let (temporary, mut file) = create_beside(path).map_err(fail)?;
    let written = fill(&mut file).and_then(|()| file.sync_all()).and_then(|()| fs::rename(&temporary, path));
    if let Err(error) = written {
        // The first error is the one to report; a temporary file that cannot be removed either adds nothing.
        let _ = fs::remove_file(&temporary);
        return Err(fail(error));
    }
    Ok(())
}

/// The file that `path` leads to, which need not exist.
fn follow(path: &Path) -> std::io::Result<PathBuf> {
    let mut followed = path.to_owned();
    for _ in 0..MOST_LINKS {
        if !followed.is_symlink() {
            return Ok(followed);
        }
        // A relative target begins at the link's own folder.
        let target = fs::read_link(&followed)?;
        followed = followed.parent().map_or_else(|| target.clone(), |folder| folder.join(&target));
    }
    Err(std::io::Error::other("too many links lead to one another"))
}

/// Links that are followed from one to the next, as many as Linux does.
const MOST_LINKS: usize = 40;

/// Temporary files younger than this are left alone: another machine may share the folder and not the process numbers.
const LEFT_BEHIND: Duration = Duration::from_secs(600);

/// Removes temporary files of `path` whose process is gone. Nothing depends on it: what cannot be looked at or removed stays.
fn remove_left_behind(path: &Path) {
    // Elsewhere than on Linux, nothing says here which processes live.
    if !Path::new("/proc/self").exists() {
        return;
    }
    let (Some(folder), Some(name)) = (path.parent(), path.file_name().and_then(|name| name.to_str())) else { return };
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let file = entry.file_name();
        let process = file.to_str().and_then(|file| {
            file.strip_prefix('.')?.strip_prefix(name)?.strip_prefix('.')?.strip_suffix(".tmp")?.split_once('.')
        });
        let Some((process, _)) = process.filter(|(process, _)| process.bytes().all(|b| b.is_ascii_digit())) else {
            continue;
        };
        let age = entry.metadata().and_then(|found| found.modified()).ok().and_then(|time| time.elapsed().ok());
        let gone = !Path::new("/proc").join(process).exists();
        if gone && age.is_some_and(|age| age > LEFT_BEHIND) {
            let _ = fs::remove_file(entry.path());
        }
    }
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
    fn what_cannot_be_written_is_known_before() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        check_writable(&file).unwrap();
        check_writable(Path::new("file")).unwrap();
        write_atomic(&file, b"one").unwrap();
        for wrong in [folder.path().to_owned(), folder.path().join("none/file"), file.join("file")] {
            assert!(check_writable(&wrong).is_err() && write_atomic(&wrong, b"two").is_err(), "{}", wrong.display());
        }
    }

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
    fn what_a_killed_process_left_is_removed_later() {
        let folder = tempfile::tempdir().unwrap();
        let left = |process: u32, seconds: u64| {
            let path = folder.path().join(format!(".out.bin.{process}.0.tmp"));
            let file = File::create(&path).unwrap();
            file.set_modified(std::time::SystemTime::now() - Duration::from_secs(seconds)).unwrap();
            path
        };
        // No process has a number this large.
        let (old, new, alive) = (left(4_000_000_000, 4000), left(4_000_000_001, 1), left(process::id(), 4000));
        write_atomic(&folder.path().join("out.bin"), b"one").unwrap();
        assert_eq!([old.exists(), new.exists(), alive.exists()], [false, true, true]);
    }

    #[cfg(unix)]
    #[test]
    fn links_are_followed_and_devices_written() {
        let folder = tempfile::tempdir().unwrap();
        let (file, link) = (folder.path().join("file"), folder.path().join("link"));
        write_atomic(&file, b"one").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        write_atomic(&link, b"two").unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"two");
        assert!(link.is_symlink());
        let (missing, ring) = (folder.path().join("missing"), folder.path().join("ring"));
        std::os::unix::fs::symlink("missing", folder.path().join("dangling")).unwrap();
        std::os::unix::fs::symlink("dangling", folder.path().join("second")).unwrap();
        write_atomic(&folder.path().join("second"), b"new").unwrap();
        assert_eq!(fs::read(&missing).unwrap(), b"new");
        assert!(folder.path().join("dangling").is_symlink() && folder.path().join("second").is_symlink());
        std::os::unix::fs::symlink("ring", &ring).unwrap();
        write_atomic(&ring, b"none").unwrap_err();
        assert!(ring.is_symlink());
        write_atomic(Path::new("/dev/null"), b"three").unwrap();
        assert!(!fs::metadata("/dev/null").unwrap().is_file());
    }

    #[test]
    fn names_the_path() {
        let folder = tempfile::tempdir().unwrap();
        let error = write_atomic(&folder.path().join("none/out.bin"), b"").unwrap_err();
        assert!(error.to_string().contains("none/out.bin: cannot write: there is no folder"), "{error}");
        write_atomic(&folder.path().join("file"), b"one").unwrap();
        let error = check_writable(&folder.path().join("file/out.bin")).unwrap_err();
        assert!(error.to_string().contains("file is no folder"), "{error}");
        assert!(write_atomic(folder.path(), b"").is_err());
    }
}
