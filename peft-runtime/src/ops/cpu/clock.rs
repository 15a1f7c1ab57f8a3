//! How long matrix products take, if that is measured.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::Instant;

/// Whether products are timed. Off by default: a small product takes hardly longer than reading the time twice.
static RUNS: AtomicBool = AtomicBool::new(false);

/// How long the products took, on all threads together.
static NANOSECONDS: AtomicU64 = AtomicU64::new(0);

/// Times all products from now on, as long as the process lives.
pub(crate) fn start() {
    RUNS.store(true, Relaxed);
}

/// How long the products have taken so far, on all threads together.
pub(crate) fn nanoseconds() -> u64 {
    NANOSECONDS.load(Relaxed)
}

/// Runs `product`, which keeps `threads` threads busy.
pub(super) fn timed<T>(threads: usize, product: impl FnOnce() -> T) -> T {
    if !RUNS.load(Relaxed) {
        return product();
    }
    let start = Instant::now();
    let result = product();
    NANOSECONDS.fetch_add(start.elapsed().as_nanos() as u64 * threads as u64, Relaxed);
    result
}
