//! Where threads sleep until something has changed.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Turns of spinning between looks at the clock.
const TURNS: u32 = 32;

/// Threads that wait: they spin, then they sleep.
#[derive(Debug, Default)]
pub(super) struct Bed {
    sleepers: AtomicUsize,
    lock: Mutex<()>,
    wake: Condvar,
}

impl Bed {
    /// Waits until there are news. Who makes them, with [`Ordering::SeqCst`], [calls](Self::call) afterwards.
    pub(super) fn wait<T>(&self, spin: Duration, news: impl Fn() -> Option<T>) -> T {
        let mut asleep_at = None;
        loop {
            for _ in 0..TURNS {
                if let Some(news) = news() {
                    return news;
                }
                std::hint::spin_loop();
            }
            let now = Instant::now();
            if now >= *asleep_at.get_or_insert(now + spin) {
                break;
            }
        }
        let mut lock = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        // Either whoever makes the news sees that somebody sleeps, or the sleeper sees the news.
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        let news = loop {
            match news() {
                Some(news) => break news,
                None => lock = self.wake.wait(lock).unwrap_or_else(PoisonError::into_inner),
            }
        };
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
        news
    }

    /// Wakes whoever sleeps; whether somebody did.
    pub(super) fn call(&self) -> bool {
        let asleep = self.sleepers.load(Ordering::SeqCst) > 0;
        if asleep {
            let _lock = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
            self.wake.notify_all();
        }
        asleep
    }
}
