//! `--tuned`: which profile a target's schedules follow.
//!
//! Without the option it is the one that `xfc tune` wrote for the target on this machine, if there is one. A profile that was measured elsewhere is
//! let be with a remark, or is an error where it was asked for by name. What is wrong in a profile is an error in any case.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use xfc_codegen::target::Target;
use xfc_codegen::target::profile::{Profile, ProfileError};
use xfc_runtime::bench::Machine;

use crate::error::{CliError, Result};
use crate::output::remark;

/// What `--tuned` takes besides files.
const NONE: &str = "none";

/// The folder of profiles: `$XFC_TUNE_DIR`, else `xfc/tune` under the user's folder of settings. `None` where no variable names one.
pub(crate) fn folder() -> Option<PathBuf> {
    let var = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    var("XFC_TUNE_DIR")
        .or_else(|| var("XDG_CONFIG_HOME").map(|folder| folder.join("xfc").join("tune")))
        .or_else(|| var("HOME").map(|folder| folder.join(".config").join("xfc").join("tune")))
}

/// Where the profile of a target is, or would be.
pub(crate) fn path_of(target: &str) -> Option<PathBuf> {
    let name = target.strip_prefix("cpu:").unwrap_or(target).replace([':', '/'], "-");
    folder().map(|folder| folder.join(format!("{name}.json")))
}

/// Reads a profile.
///
/// # Errors
/// A file that cannot be read, or is no profile.
pub(crate) fn read(path: &Path) -> Result<Profile> {
    let text = std::fs::read_to_string(path).map_err(|e| CliError::file(path, format!("cannot read: {e}")))?;
    let profile = Profile::parse(&text).map_err(|error| wrong(path, error))?;
    Ok(Profile { file: path.display().to_string(), ..profile })
}

fn wrong(path: &Path, error: ProfileError) -> CliError {
    CliError::Profile { path: path.display().to_string(), error }
}

/// Gives targets the schedules that were measured for them.
///
/// # Errors
/// A profile that cannot be read, that sets what cannot be, or that was asked for and is of none of the targets.
pub(crate) fn apply(targets: Vec<Box<dyn Target>>, tuned: Option<&str>) -> Result<Vec<Box<dyn Target>>> {
    match tuned {
        Some(NONE) => Ok(targets),
        Some(file) => {
            let path = Path::new(file);
            let profile = read(path)?;
            let mut error = None;
            let mut given = false;
            let mut result = Vec::with_capacity(targets.len());
            for target in targets {
                match target.with_profile(profile.clone()) {
                    Ok(tuned) => {
                        given = true;
                        result.push(tuned);
                    }
                    Err(elsewhere @ ProfileError::Elsewhere { .. }) => {
                        error.get_or_insert(elsewhere);
                        result.push(target);
                    }
                    Err(error) => return Err(wrong(path, error)),
                }
            }
            match error.filter(|_| !given) {
                Some(error) => Err(wrong(path, error)),
                None => Ok(result),
            }
        }
        None => targets.into_iter().map(own).collect(),
    }
}

/// A target with the profile that was measured for it here, if there is one.
fn own(target: Box<dyn Target>) -> Result<Box<dyn Target>> {
    let Some(path) = path_of(target.name()).filter(|path| path.is_file()) else { return Ok(target) };
    let profile = read(&path)?;
    let here = Machine::here().cpu;
    if profile.processor != here {
        let found = format!("{} on `{}`", profile.target, profile.processor);
        let error = ProfileError::Elsewhere { found, here: format!("`{here}`") };
        remark_once(&format!("{}: {error}: it is not used ({})", path.display(), error.help()));
        return Ok(target);
    }
    match target.with_profile(profile) {
        Err(error @ ProfileError::Elsewhere { .. }) => {
            remark_once(&format!("{}: {error}: it is not used ({})", path.display(), error.help()));
            Ok(target)
        }
        result => result.map_err(|error| wrong(&path, error)),
    }
}

/// A command may ask for its targets more than once.
fn remark_once(text: &str) {
    static SAID: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    if SAID.lock().unwrap_or_else(std::sync::PoisonError::into_inner).insert(text.to_owned()) {
        remark(text);
    }
}

/// Which profile a target has, in words.
pub(crate) fn text(target: &dyn Target) -> String {
    let Some(profile) = target.profile() else { return "schedules by themselves, no profile".to_owned() };
    let n = profile.families().count();
    let families = if n == 1 { "1 family".to_owned() } else { format!("{n} families") };
    format!("schedules of {families} from {} ({}, measured {})", profile.file, profile.xfc, profile.date)
}
