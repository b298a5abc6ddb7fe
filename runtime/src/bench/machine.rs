//! What a measurement was made on: processor, memory, and whether others were using them meanwhile.

use crate::memory;
use serde::Serialize;
use std::fs;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Facts about the machine and the build, for reports.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Machine {
    /// Name and version of this crate: `xfc 0.1.0`.
    pub version: &'static str,
    /// The commit it was built from, where the build was told (`XFC_COMMIT`).
    pub commit: Option<&'static str>,
    /// Whether it was built without optimisation; the generated code is the same.
    pub debug_build: bool,
    /// When, in UTC: `2026-01-31T12:00:00Z`.
    pub date: String,
    /// The processor's name, where the system says.
    pub cpu: String,
    /// `x86_64`.
    pub arch: &'static str,
    /// `linux`.
    pub os: &'static str,
    /// Processors that this process may use.
    pub processors: usize,
    /// Bytes of the last caches, all together.
    pub last_cache_bytes: Option<u64>,
    /// Bytes of memory.
    pub memory_bytes: Option<u64>,
}

impl Machine {
    /// This machine, now.
    pub fn here() -> Self {
        Self {
            version: concat!("xfc ", env!("CARGO_PKG_VERSION")),
            commit: option_env!("XFC_COMMIT").filter(|commit| !commit.is_empty()),
            debug_build: cfg!(debug_assertions),
            date: utc(SystemTime::now()),
            cpu: cpu_name().unwrap_or_else(|| format!("unknown {}", std::env::consts::ARCH)),
            arch: std::env::consts::ARCH,
            os: std::env::consts::OS,
            processors: std::thread::available_parallelism().map_or(1, usize::from),
            last_cache_bytes: memory::last_cache_bytes(),
            memory_bytes: memory::total_bytes(),
        }
    }
}

fn cpu_name() -> Option<String> {
    let text = fs::read_to_string("/proc/cpuinfo").ok()?;
    let value = |key: &str| {
        let line = text.lines().find(|line| line.split(':').next().is_some_and(|k| k.trim() == key))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    value("model name")
        .or_else(|| Some(format!("implementer {} part {}", value("CPU implementer")?, value("CPU part")?)))
}

/// `2026-01-31T12:00:00Z`.
fn utc(time: SystemTime) -> String {
    crate::text::format_utc("%Y-%m-%dT%H:%M:%SZ", time.max(UNIX_EPOCH))
}

/// Processor time used so far, by everybody and by this process.
#[derive(Clone, Copy, Debug)]
pub struct Use {
    at: Instant,
    /// Seconds that processors were busy, and those of this process.
    busy: Option<(f64, f64)>,
}

/// The unit of `/proc/stat`, which is the same on every Linux.
const TICKS_A_SECOND: f64 = 100.0;

impl Use {
    /// Up to now.
    pub fn now() -> Self {
        let busy = || {
            Some((
                busy_ticks(&fs::read_to_string("/proc/stat").ok()?)?,
                own_ticks(&fs::read_to_string("/proc/self/stat").ok()?)?,
            ))
        };
        Self { at: Instant::now(), busy: busy().map(|(all, own)| (all / TICKS_A_SECOND, own / TICKS_A_SECOND)) }
    }

    /// Processors that others used since then, on average; `None` where the system does not say.
    pub fn others_since(&self) -> Option<f64> {
        let now = Self::now();
        let seconds = now.at.duration_since(self.at).as_secs_f64();
        others(self.busy?, now.busy?, seconds)
    }
}

fn others(before: (f64, f64), now: (f64, f64), seconds: f64) -> Option<f64> {
    // The counters move in hundredths of a second: over a shorter time they say nothing.
    (seconds >= 0.2).then(|| (((now.0 - before.0) - (now.1 - before.1)) / seconds).max(0.0))
}

/// The first line of `/proc/stat`: everything but idle and waiting for disks.
fn busy_ticks(stat: &str) -> Option<f64> {
    let line = stat.lines().next()?.strip_prefix("cpu ")?;
    let ticks: Vec<f64> = line.split_whitespace().take(8).map_while(|n| n.parse().ok()).collect();
    // user nice system idle iowait irq softirq steal
    (ticks.len() >= 7).then(|| ticks.iter().enumerate().filter(|(i, _)| *i != 3 && *i != 4).map(|(_, n)| n).sum())
}

/// `/proc/self/stat`: user and system time, after a name that may hold anything.
fn own_ticks(stat: &str) -> Option<f64> {
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    Some(fields.get(11)?.parse::<f64>().ok()? + fields.get(12)?.parse::<f64>().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn reads_what_the_system_says() {
        assert_eq!(busy_ticks("cpu  10 1 5 1000 7 2 3 4 0 0\ncpu0 1"), Some(25.0));
        assert_eq!(busy_ticks("intr 3"), None);
        assert_eq!(own_ticks("7 (a (b) c) R 1 2 3 4 5 6 7 8 9 10 60 40 0 0"), Some(100.0));
        assert_eq!(others((10.0, 1.0), (14.0, 3.0), 2.0), Some(1.0));
        assert_eq!(others((10.0, 1.0), (11.0, 3.0), 2.0), Some(0.0));
        assert_eq!(others((10.0, 1.0), (14.0, 3.0), 0.1), None);
    }

    #[test]
    fn says_where_it_is() {
        let machine = Machine::here();
        assert!(machine.processors > 0 && !machine.cpu.is_empty());
        assert_eq!(utc(UNIX_EPOCH + Duration::from_secs(86400 + 3661)), "1970-01-02T01:01:01Z");
    }
}
