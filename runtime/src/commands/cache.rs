//! The body of `cache`: where the cache folder is, what is in it, and emptying it.

use super::{Output, counted};
use crate::error::Result;
use crate::folder::{CacheFolder, Kind};
use crate::memory::human;
use std::time::{Duration, SystemTime};

const DAY: u64 = 24 * 60 * 60;

/// What to do with the cache folder.
#[derive(clap::Subcommand, Clone, Debug)]
pub enum CacheArgs {
    /// Print its path
    Dir,
    /// List its files: size, days since the last use, what it is, path
    List,
    /// Remove its files; what is needed is made again
    Clean {
        /// Keep what was used within so many days
        #[arg(long, value_name = "DAYS", default_value_t = 0)]
        unused_for: u32,
    },
}

/// Runs the command.
///
/// # Errors
/// There is no cache folder, or the system refuses.
pub fn run(args: &CacheArgs, output: &mut Output<'_>) -> Result<()> {
    let folder = CacheFolder::needed()?;
    match args {
        CacheArgs::Dir => output.print(format_args!("{}\n", folder.root().display())),
        CacheArgs::List => {
            let mut entries = folder.entries()?;
            entries.reverse();
            for entry in &entries {
                let days = entry.used.elapsed().unwrap_or_default().as_secs() / DAY;
                let kind = match entry.kind {
                    Kind::Artifact => "compiled",
                    Kind::Weights => "weights",
                    Kind::Plan => "plan",
                    Kind::Code => "kernel",
                };
                let (size, path) = (human(entry.bytes), entry.path.display());
                output.print(format_args!("{size:>12}  {days:>4} d  {kind:8}  {path}\n"))?;
            }
            let total: u64 = entries.iter().map(|entry| entry.bytes).sum();
            output.note(format_args!(
                "{}, {} of at most {} (XFC_CACHE_MAX)\n",
                counted(entries.len() as u64, "file"),
                human(total),
                human(folder.most_bytes())
            ))
        }
        CacheArgs::Clean { unused_for } => {
            let kept = Duration::from_secs(u64::from(*unused_for) * DAY);
            let since = SystemTime::now().checked_sub(kept).unwrap_or(SystemTime::UNIX_EPOCH);
            let (files, bytes) = folder.clean(since)?;
            output.note(format_args!("removed {}, {}\n", counted(files as u64, "file"), human(bytes)))
        }
    }
}
