//! The user's cache folder: what can be made again from other files, under names that say what it was made from.
//!
//! Given a kind and a key, promises a path that is the same in every process, files that are whole, and that all of them together stay below a
//! cap: what was not used for longest goes first. Nothing depends on a file being there.

use crate::error::{Result, RuntimeError};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Most bytes that are kept where nothing says otherwise.
const MOST_BYTES: u64 = 32_000_000_000;

/// Fewer bytes of weights than this are packed sooner than they are looked up.
const LEAST_BYTES: u64 = 64 << 20;
/// Of the file that a process locks while it makes an artifact, beside it.
const LOCK: &str = "lock";

/// What a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A compiled model.
    Artifact,
    /// A checkpoint's weights, packed for a compiled model.
    Weights,
    /// How the matrices of a checkpoint are held with so many bits a weight.
    Plan,
    /// A kernel as a GPU's driver compiled it.
    Code,
}

impl Kind {
    /// All.
    pub const ALL: [Kind; 4] = [Kind::Artifact, Kind::Weights, Kind::Plan, Kind::Code];

    /// Its folder.
    fn folder(self) -> &'static str {
        match self {
            Kind::Artifact => "artifacts",
            Kind::Weights => "weights",
            Kind::Plan => "plans",
            Kind::Code => "kernels",
        }
    }

    fn extension(self) -> &'static str {
        match self {
            Kind::Artifact => "xfm",
            Kind::Weights => "xfw",
            Kind::Plan => "txt",
            Kind::Code => "cubin",
        }
    }
}

/// A file of the cache folder.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Where it is.
    pub path: PathBuf,
    /// What it is.
    pub kind: Kind,
    /// Its size.
    pub bytes: u64,
    /// When it was last read or written.
    pub used: SystemTime,
}

/// The cache folder, which need not exist.
#[derive(Clone, Debug)]
pub struct CacheFolder {
    root: PathBuf,
    most: u64,
    least: u64,
}

impl CacheFolder {
    /// `$XFC_CACHE_DIR`, else `xfc` under the user's cache folder; at most `$XFC_CACHE_MAX` (`20GB`) is kept in it. `None` where no variable
    /// names one.
    ///
    /// # Errors
    /// A maximum that is no size.
    pub fn of_user() -> Result<Option<Self>> {
        let var = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let root = var("XFC_CACHE_DIR")
            .or_else(|| var("XDG_CACHE_HOME").map(|folder| folder.join("xfc")))
            .or_else(|| var("HOME").map(|folder| folder.join(".cache").join("xfc")));
        let most = match std::env::var("XFC_CACHE_MAX") {
            Ok(text) if !text.is_empty() => size(&text).ok_or_else(|| {
                RuntimeError::request(
                    format!("XFC_CACHE_MAX is {text:?}, which is no size"),
                    "write it as `20GB` or `500MB`",
                )
            })?,
            _ => MOST_BYTES,
        };
        Ok(root.map(|root| Self { root, most, least: LEAST_BYTES }))
    }

    /// [`CacheFolder::of_user`] where there must be one.
    ///
    /// # Errors
    /// The same, and that there is none.
    pub fn needed() -> Result<Self> {
        let none = || RuntimeError::request("there is no cache folder: HOME is not set", "set XFC_CACHE_DIR");
        Self::of_user()?.ok_or_else(none)
    }

    /// A folder that keeps at most so many bytes, of weights however few.
    pub fn new(root: impl Into<PathBuf>, most: u64) -> Self {
        Self { root: root.into(), most, least: 0 }
    }

    /// The folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Most bytes that are kept.
    pub fn most_bytes(&self) -> u64 {
        self.most
    }

    /// Least bytes of weights that are worth keeping.
    pub fn least_bytes(&self) -> u64 {
        self.least
    }

    /// Where the file of this kind and key is, or would be.
    pub fn path(&self, kind: Kind, key: &str) -> PathBuf {
        self.root.join(kind.folder()).join(format!("{key}.{}", kind.extension()))
    }

    /// Remembers that a file is used, so that it is not the first to go. Nothing is lost where that cannot be written.
    pub fn touch(&self, path: &Path) {
        let _ = File::open(path).and_then(|file| file.set_modified(SystemTime::now()));
    }

    /// All files, the one that was not used for longest first, those that are being written among them. Files to lock are none.
    ///
    /// # Errors
    /// A folder that cannot be read.
    pub fn entries(&self) -> Result<Vec<Entry>> {
        let mut entries = Vec::new();
        for kind in Kind::ALL {
            let folder = self.root.join(kind.folder());
            let files = match fs::read_dir(&folder) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                files => files.map_err(|error| refused(&folder, "read", &error))?,
            };
            // A file that is gone meanwhile is no entry.
            for file in files.flatten() {
                let Ok(found) = file.metadata() else { continue };
                if found.is_file() && file.path().extension().is_none_or(|extension| extension != LOCK) {
                    let used = found.modified().unwrap_or(SystemTime::UNIX_EPOCH);
                    entries.push(Entry { path: file.path(), kind, bytes: found.len(), used });
                }
            }
        }
        entries.sort_by(|a, b| (a.used, &a.path).cmp(&(b.used, &b.path)));
        Ok(entries)
    }

    /// Makes the folder of a kind and room in it for a file of so many bytes, by removing what was not used for longest. Whether there can be room.
    ///
    /// # Errors
    /// A folder that cannot be made or read.
    pub fn make_room(&self, kind: Kind, bytes: u64) -> Result<bool> {
        let Some(others) = self.most.checked_sub(bytes) else { return Ok(false) };
        let folder = self.root.join(kind.folder());
        fs::create_dir_all(&folder).map_err(|error| refused(&folder, "write", &error))?;
        let entries = self.entries()?;
        let mut kept: u64 = entries.iter().map(|entry| entry.bytes).sum();
        for entry in entries {
            if kept <= others {
                break;
            }
            // One that cannot be removed stays, and the next goes instead.
            if fs::remove_file(&entry.path).is_ok() {
                remove_lock(&lock_of(&entry.path));
                kept -= entry.bytes;
            }
        }
        Ok(kept <= others)
    }

    /// Removes every file that was not used since `since`; how many there were, and their bytes. A file that a process has mapped stays readable to it.
    ///
    /// # Errors
    /// A file that cannot be removed: those before it are gone.
    pub fn clean(&self, since: SystemTime) -> Result<(usize, u64)> {
        let (mut files, mut bytes) = (0, 0);
        for entry in self.entries()?.into_iter().filter(|entry| entry.used <= since) {
            match fs::remove_file(&entry.path) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                removed => {
                    removed.map_err(|error| RuntimeError::io(&entry.path, "remove", error))?;
                    (files, bytes) = (files + 1, bytes + entry.bytes);
                }
            }
            remove_lock(&lock_of(&entry.path));
        }
        Ok((files, bytes))
    }
}

/// What a process locks while it makes a file of the folder.
pub fn lock_of(path: &Path) -> PathBuf {
    path.with_extension(LOCK)
}

/// Removes a file to lock, unless a process has it locked.
fn remove_lock(path: &Path) {
    let is_free = |file: File| file.try_lock().is_ok();
    if File::open(path).is_ok_and(is_free) {
        // One that stays is in nobody's way.
        let _ = fs::remove_file(path);
    }
}

/// The system does not let the folder be used.
fn refused(folder: &Path, doing: &str, error: &std::io::Error) -> RuntimeError {
    RuntimeError::request(
        format!("{}: cannot {doing}: {error}", folder.display()),
        "set XFC_CACHE_DIR to a folder that can be written, or give `--no-cache` to a command that has it",
    )
}

/// `20GB`, `500 MB`, `1.5GB` or a number of bytes.
fn size(text: &str) -> Option<u64> {
    let text = text.trim();
    let at = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let unit = match text[at..].to_ascii_uppercase().as_str() {
        "" | "B" => 1.0,
        "K" | "KB" => 1e3,
        "M" | "MB" => 1e6,
        "G" | "GB" => 1e9,
        "T" | "TB" => 1e12,
        _ => return None,
    };
    let number: f64 = text[..at].trim().parse().ok()?;
    (number >= 0.0 && number.is_finite()).then_some((number * unit) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn write(folder: &CacheFolder, kind: Kind, key: &str, bytes: usize, seconds_ago: u64) -> PathBuf {
        let path = folder.path(kind, key);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, vec![0; bytes]).unwrap();
        let file = File::options().write(true).open(&path).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(seconds_ago)).unwrap();
        path
    }

    #[test]
    fn what_was_not_used_for_longest_goes_first() {
        let root = tempfile::tempdir().unwrap();
        let folder = CacheFolder::new(root.path(), 100);
        assert!(folder.entries().unwrap().is_empty());
        let old = write(&folder, Kind::Artifact, "old", 30, 300);
        let used = write(&folder, Kind::Weights, "used", 30, 400);
        let new = write(&folder, Kind::Weights, "new", 30, 100);
        folder.touch(&used);
        assert!(folder.make_room(Kind::Weights, 10).unwrap());
        assert!(old.exists() && used.exists() && new.exists());
        assert!(folder.make_room(Kind::Weights, 40).unwrap());
        assert_eq!([old.exists(), new.exists(), used.exists()], [false, true, true]);
        assert!(folder.make_room(Kind::Weights, 100).unwrap());
        assert!(folder.entries().unwrap().is_empty());
        assert!(!folder.make_room(Kind::Weights, 101).unwrap());
    }

    #[test]
    fn a_cleaned_folder_keeps_what_was_used_since() {
        let root = tempfile::tempdir().unwrap();
        let folder = CacheFolder::new(root.path(), 100);
        write(&folder, Kind::Artifact, "old", 7, 300);
        write(&folder, Kind::Weights, "new", 5, 0);
        assert_eq!(folder.clean(SystemTime::now() - Duration::from_secs(60)).unwrap(), (1, 7));
        assert_eq!(folder.clean(SystemTime::now()).unwrap(), (1, 5));
        assert_eq!(folder.clean(SystemTime::now()).unwrap(), (0, 0));
    }

    #[test]
    fn files_to_lock_are_no_entries_and_go_with_what_they_are_of() {
        let root = tempfile::tempdir().unwrap();
        let folder = CacheFolder::new(root.path(), 10);
        let [made, held] = ["made", "held"].map(|key| write(&folder, Kind::Artifact, key, 5, 100));
        let [free, locked] = [&made, &held].map(|path| File::create(lock_of(path)).unwrap());
        locked.lock().unwrap();
        assert_eq!(folder.entries().unwrap().len(), 2);
        assert_eq!(folder.clean(SystemTime::now()).unwrap(), (2, 10));
        assert!(!lock_of(&made).exists() && lock_of(&held).exists());
        drop((free, locked));
        // Room is made in the same way.
        let made = write(&folder, Kind::Artifact, "made", 5, 100);
        File::create(lock_of(&made)).unwrap();
        assert!(folder.make_room(Kind::Plan, 10).unwrap());
        assert!(!made.exists() && !lock_of(&made).exists());
    }

    #[test]
    fn a_folder_that_is_a_file_is_said_with_what_to_do() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("file"), "").unwrap();
        let folder = CacheFolder::new(root.path().join("file"), 10);
        let error = folder.make_room(Kind::Artifact, 1).unwrap_err();
        assert!(error.to_string().contains("cannot write"), "{error}");
        assert!(error.help().unwrap().contains("XFC_CACHE_DIR"));
        assert!(folder.entries().unwrap_err().help().unwrap().contains("XFC_CACHE_DIR"));
    }

    #[test]
    fn sizes_have_units() {
        assert_eq!((size("20GB"), size(" 1.5 mb"), size("7")), (Some(20_000_000_000), Some(1_500_000), Some(7)));
        assert_eq!((size("-1GB"), size("GB"), size("1 light-year"), size("nan")), (None, None, None, None));
    }
}
