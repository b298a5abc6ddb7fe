//! Whether something else ran on a thread's processor.

use std::cell::Cell;
use std::fs::File;
use std::io::Read;
use std::time::{Duration, Instant};

/// What a thread may wait for a processor without anybody noticing.
const LITTLE: Duration = Duration::from_micros(200);
/// A thread that waits for a processor for more than one part in so many is in somebody's way.
const PART: u32 = 8;

thread_local! {
    /// When this thread last asked, and how long it had waited then.
    static ASKED: Cell<Option<(Instant, Duration)>> = const { Cell::new(None) };
}

/// Whether this thread has waited for a processor for a good part of the time since it last asked. Where the system does not say, it has not.
pub(super) fn was_put_off() -> bool {
    let Some(waited) = waited() else { return false };
    let now = Instant::now();
    let Some((then, before)) = ASKED.replace(Some((now, waited))) else { return false };
    is_much(waited.saturating_sub(before), now - then)
}

/// Counts from now on.
pub(super) fn forget() {
    ASKED.set(waited().map(|waited| (Instant::now(), waited)));
}

fn is_much(waited: Duration, of: Duration) -> bool {
    waited > LITTLE && waited * PART > of
}

/// How long this thread could have run and did not, as Linux counts it.
fn waited() -> Option<Duration> {
    let mut text = [0; 128];
    let length = File::open("/proc/thread-self/schedstat").and_then(|mut file| file.read(&mut text)).ok()?;
    parse(std::str::from_utf8(&text[..length]).ok()?)
}

/// The second of the numbers: nanoseconds.
fn parse(text: &str) -> Option<Duration> {
    Some(Duration::from_nanos(text.split_ascii_whitespace().nth(1)?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_counts_where_it_is_a_good_part_of_the_time() {
        let us = Duration::from_micros;
        assert_eq!(parse("1086137 16094143 2\n"), Some(Duration::from_nanos(16_094_143)));
        assert_eq!((parse(""), parse("7"), parse("7 x 3")), (None, None, None));
        assert!(is_much(us(3000), us(6000)));
        // A pause for a moment, and a pause after a long time.
        assert!(!is_much(us(150), us(200)) && !is_much(us(3000), us(60_000)));
        forget();
        // Nothing can have been waited for longer than time has passed.
        assert!(waited().is_none_or(|waited| waited < us(u64::MAX >> 20)));
    }
}
