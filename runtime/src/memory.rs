//! How much memory the machine has, so that what does not fit is refused before anything is allocated: systems hand out memory that they do
//! not have, and end the process when it is used.

use crate::error::{Result, RuntimeError};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// Bytes that this process can still use, swap included, where the system says: the least of what the machine and what the process's
/// control group have left.
pub fn available_bytes() -> Option<u64> {
    let machine = meminfo("MemAvailable").map(|bytes| bytes.saturating_add(meminfo("SwapFree").unwrap_or(0)));
    [machine, group_bytes()].into_iter().flatten().min()
}

/// Bytes of memory that the machine has, where the system says.
pub fn total_bytes() -> Option<u64> {
    meminfo("MemTotal")
}

/// Refuses `what` when it needs more than is available. Where the system does not say, nothing is refused.
///
/// # Errors
/// Names both numbers.
pub fn ensure(what: &str, needed: u64) -> Result<()> {
    check(what, needed, available_bytes())
}

fn check(what: &str, needed: u64, available: Option<u64>) -> Result<()> {
    match available {
        Some(available) if needed > available => Err(RuntimeError::request(
            format!("{what} needs {} of memory, {} are available", human(needed), human(available)),
            "free some memory, or take a smaller model, a narrower `--dtype`, or a smaller context",
        )),
        _ => Ok(()),
    }
}

/// Bytes for people: `2.47 GB`.
pub fn human(bytes: u64) -> String {
    let units = [(1e9, "GB"), (1e6, "MB"), (1e3, "KB")];
    match units.iter().find(|(unit, _)| bytes as f64 >= *unit) {
        Some((unit, name)) => format!("{:.2} {name}", bytes as f64 / unit),
        None => format!("{bytes} bytes"),
    }
}

/// Bytes of all caches of the last level, where the system says.
pub fn last_cache_bytes() -> Option<u64> {
    let mut seen = BTreeSet::new();
    let mut total = 0u64;
    for cpu in fs::read_dir("/sys/devices/system/cpu").ok()?.flatten() {
        // The last level has the highest index; of caches that processors share, one counts.
        let Some(index) = (0..=4).rev().map(|i| cpu.path().join(format!("cache/index{i}"))).find(|p| p.is_dir()) else {
            continue;
        };
        let Ok(shared) = fs::read_to_string(index.join("shared_cpu_list")) else { continue };
        if seen.insert(shared) {
            total = total.saturating_add(size(&fs::read_to_string(index.join("size")).ok()?)?);
        }
    }
    (total > 0).then_some(total)
}

/// `32768K` as bytes.
fn size(text: &str) -> Option<u64> {
    let text = text.trim();
    let (digits, unit) = match text.strip_suffix('K') {
        Some(digits) => (digits, 1 << 10),
        None => text.strip_suffix('M').map_or((text, 1), |digits| (digits, 1 << 20)),
    };
    digits.parse::<u64>().ok()?.checked_mul(unit)
}

fn meminfo(key: &str) -> Option<u64> {
    line_of(&fs::read_to_string("/proc/meminfo").ok()?, key)
}

/// A line `Key:   123 kB` as bytes.
fn line_of(text: &str, key: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    rest.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

/// What the control group of this process leaves, if it has a limit: of its folder and of all above it.
fn group_bytes() -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let own = groups.lines().find_map(|line| line.strip_prefix("0::/"))?.to_owned();
    let mut folder = Path::new("/sys/fs/cgroup").join(own);
    let mut least = None;
    while folder.starts_with("/sys/fs/cgroup") {
        let number = |name: &str| fs::read_to_string(folder.join(name)).ok()?.trim().parse::<u64>().ok();
        if let (Some(most), Some(used)) = (number("memory.max"), number("memory.current")) {
            // Cached files are given up when memory is wanted.
            let stat = fs::read_to_string(folder.join("memory.stat")).unwrap_or_default();
            let cached = stat.lines().find_map(|l| l.strip_prefix("inactive_file ")?.trim().parse::<u64>().ok());
            let left = most.saturating_sub(used.saturating_sub(cached.unwrap_or(0)));
            least = Some(least.map_or(left, |least: u64| least.min(left)));
        }
        if !folder.pop() {
            break;
        }
    }
    least
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_the_system_says() {
        assert_eq!(line_of("MemTotal:  10 kB\nMemAvailable:    7 kB\n", "MemAvailable"), Some(7 * 1024));
        assert_eq!(line_of("MemTotal:  10 kB\n", "SwapFree"), None);
        assert_eq!((size("32768K\n"), size("2M"), size("x")), (Some(32 << 20), Some(2 << 20), None));
        if cfg!(target_os = "linux") {
            assert!(available_bytes().is_some_and(|bytes| bytes > 1 << 20 && bytes <= total_bytes().unwrap_or(0) * 4));
        }
    }

    #[test]
    fn refuses_with_both_numbers() {
        check("a thing", 10, Some(10)).unwrap();
        check("a thing", u64::MAX, None).unwrap();
        let error = check("the weights", 3_000_000_000, Some(1_500_000)).unwrap_err();
        assert_eq!(error.to_string(), "the weights needs 3.00 GB of memory, 1.50 MB are available");
        assert!(error.help().is_some());
    }
}
