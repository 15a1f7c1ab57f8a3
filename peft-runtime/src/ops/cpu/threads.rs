//! Work on all threads.
//!
//! The threads are those that compute candle's own elementwise operations. Between two pieces of work they wait for a moment before
//! they sleep, so that the next one, which in a training step comes soon, does not have to wake them. Where candle has more threads
//! than this process may use cores, in a container for example, waiting would take time from working, and rayon's threads compute.
//!
//! What runs here must not call candle's operations: on the calling thread they would wait for the work that they are a part of.

use std::any::Any;
use std::cell::Cell;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread::available_parallelism;

use candle_core::Result;
use candle_core::utils::barrier_pool;
use rayon::prelude::*;

/// How many threads compute.
pub(crate) fn count() -> usize {
    if has_cores() { barrier_pool().n_workers() + 1 } else { rayon::current_num_threads() }
}

/// Whether there is a core for each of candle's threads.
fn has_cores() -> bool {
    static HAS_CORES: OnceLock<bool> = OnceLock::new();
    *HAS_CORES
        .get_or_init(|| available_parallelism().is_ok_and(|cores| barrier_pool().n_workers() < cores.get()))
}

thread_local! {
    /// Whether this thread is doing a part of the work of [`for_each`].
    static WORKS: Cell<bool> = const { Cell::new(false) };
}

/// Calls `work` for every task, on all threads; on this one only if it is itself called by `work`.
pub(crate) fn for_each<T: Send>(tasks: impl IntoIterator<Item = T>, work: impl Fn(T) + Sync) {
    for_each_with(tasks, || (), |(), task| work(task));
}

/// [`for_each`] with work that may fail.
///
/// # Errors
/// The first error.
pub(crate) fn try_for_each<T: Send>(
    tasks: impl IntoIterator<Item = T>,
    work: impl Fn(T) -> Result<()> + Sync,
) -> Result<()> {
    try_for_each_with(tasks, || (), |(), task| work(task))
}

/// [`for_each_with`] with work that may fail.
///
/// # Errors
/// The first error.
pub(crate) fn try_for_each_with<T: Send, S>(
    tasks: impl IntoIterator<Item = T>,
    state: impl Fn() -> S + Sync,
    work: impl Fn(&mut S, T) -> Result<()> + Sync,
) -> Result<()> {
    let failed = Mutex::new(Ok(()));
    for_each_with(tasks, state, |state, task| {
        if let Err(error) = work(state, task) {
            let mut failed = failed.lock().unwrap_or_else(PoisonError::into_inner);
            if failed.is_ok() {
                *failed = Err(error);
            }
        }
    });
    failed.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// What `work` returns for each task, in their order; on all threads.
pub(crate) fn map<T: Send, R: Send>(
    tasks: impl IntoIterator<Item = T>,
    work: impl Fn(T) -> R + Sync,
) -> Vec<R> {
    let tasks: Vec<T> = tasks.into_iter().collect();
    let mut results: Vec<Option<R>> = tasks.iter().map(|_| None).collect();
    for_each(results.iter_mut().zip(tasks), |(result, task)| *result = Some(work(task)));
    results.into_iter().flatten().collect()
}

/// [`for_each`] with a value for the tasks that a thread takes one after the other.
pub(crate) fn for_each_with<T: Send, S>(
    tasks: impl IntoIterator<Item = T>,
    state: impl Fn() -> S + Sync,
    work: impl Fn(&mut S, T) + Sync,
) {
    let tasks: Vec<Mutex<Option<T>>> = tasks.into_iter().map(|task| Mutex::new(Some(task))).collect();
    let range = |range: Range<usize>| {
        let mut state = state();
        for task in &tasks[range] {
            if let Some(task) = task.lock().unwrap_or_else(PoisonError::into_inner).take() {
                work(&mut state, task);
            }
        }
    };
    if tasks.len() <= 1 || WORKS.get() {
        return range(0..tasks.len());
    }
    if !has_cores() {
        return (0..tasks.len()).into_par_iter().for_each(|task| range(task..task + 1));
    }
    // A panic on the way through candle's pool would leave its lock poisoned for the rest of the process.
    let panicked: Mutex<Option<Box<dyn Any + Send>>> = Mutex::new(None);
    barrier_pool().execute_chunked(tasks.len(), |part| {
        // A call of `work` that comes here again would wait for itself.
        let _reset = Reset(WORKS.replace(true));
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| range(part))) {
            panicked.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(panic);
        }
    });
    if let Some(panic) = panicked.into_inner().unwrap_or_else(PoisonError::into_inner) {
        resume_unwind(panic);
    }
}

/// Sets [`WORKS`] back, also after a panic.
struct Reset(bool);

impl Drop for Reset {
    fn drop(&mut self) {
        WORKS.set(self.0);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use candle_core::bail;

    use super::{for_each, for_each_with, map, try_for_each};

    #[test]
    fn every_task_is_done_once_also_by_tasks() {
        let mut counts = vec![0usize; 1000];
        for_each(counts.iter_mut().enumerate(), |(index, count)| {
            let inner = AtomicUsize::new(0);
            for_each(0..index % 7, |_| {
                inner.fetch_add(1, Ordering::Relaxed);
            });
            *count += 1 + inner.into_inner();
        });
        assert!(counts.iter().enumerate().all(|(index, count)| *count == 1 + index % 7));
    }

    #[test]
    fn an_error_ends_the_call_and_the_next_one_works() {
        let run = |limit: usize| {
            try_for_each(0..100usize, |task| if task > limit { bail!("{task} is too large") } else { Ok(()) })
        };
        assert!(run(98).is_err());
        assert!(run(100).is_ok());
    }

    #[test]
    fn several_threads_call_at_the_same_time() {
        let sum = AtomicUsize::new(0);
        let add = |one: &mut usize, task: usize| {
            sum.fetch_add(task * *one, Ordering::Relaxed);
        };
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| for_each_with(0..100usize, || 1, add));
            }
        });
        assert_eq!(sum.into_inner(), 4 * 4950);
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_next_call_works() {
        for bad in [0usize, 63] {
            let panics = || for_each(0..64usize, |task| assert_ne!(task, bad, "the bad task"));
            let panic = std::panic::catch_unwind(panics).unwrap_err();
            assert!(panic.downcast_ref::<String>().unwrap().contains("the bad task"));
            assert_eq!(map(0..3u32, |task| task), [0, 1, 2]);
        }
    }

    #[test]
    fn results_are_in_the_order_of_the_tasks() {
        assert_eq!(map(0..50u32, |task| task * task), (0..50).map(|task| task * task).collect::<Vec<_>>());
    }
}
