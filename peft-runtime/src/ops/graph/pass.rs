//! Which backward pass is running.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, ThreadId};

/// A backward pass: it runs on one thread, and another one that an op begins meanwhile is a pass of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pass {
    thread: ThreadId,
    nested: u64,
}

/// The nested passes so far.
static NESTED: AtomicU64 = AtomicU64::new(0);

thread_local! {
    /// The nested pass that this thread is in; 0 if it is in none.
    static CURRENT: Cell<u64> = const { Cell::new(0) };
}

impl Pass {
    /// The pass of this thread.
    pub(crate) fn current() -> Self {
        Self { thread: thread::current().id(), nested: CURRENT.get() }
    }

    /// Runs a backward pass inside of another one.
    pub(crate) fn nested<R>(run: impl FnOnce() -> R) -> R {
        let number = 1 + NESTED.fetch_add(1, Ordering::Relaxed);
        let _reset = Reset(CURRENT.replace(number));
        run()
    }
}

/// Returns to the pass before, also after a panic.
struct Reset(u64);

impl Drop for Reset {
    fn drop(&mut self) {
        CURRENT.set(self.0);
    }
}
