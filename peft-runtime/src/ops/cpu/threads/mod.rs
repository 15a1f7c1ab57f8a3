//! Work on all threads.

mod pool;

use std::num::NonZero;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread::available_parallelism;

use candle_core::Result;
use candle_core::utils::get_num_threads;

use self::pool::{Pool, Queue};

/// How many threads compute.
pub(crate) fn count() -> usize {
    pool().threads()
}

/// The threads that compute: as many as `RAYON_NUM_THREADS` says, or else as many as candle would use, but no more than this process
/// has cores, in a container for example.
fn pool() -> &'static Pool {
    static POOL: OnceLock<&Pool> = OnceLock::new();
    POOL.get_or_init(|| {
        let cores = match std::env::var_os("RAYON_NUM_THREADS") {
            Some(_) => usize::MAX,
            None => available_parallelism().map_or(1, NonZero::get),
        };
        Pool::start(get_num_threads().min(cores))
    })
}

/// Calls `work` for every task, on all threads.
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
    let tasks: Vec<T> = tasks.into_iter().collect();
    if tasks.len() <= 1 || count() == 1 {
        let mut state = state();
        return tasks.into_iter().for_each(|task| work(&mut state, task));
    }
    let tasks: Vec<Mutex<Option<T>>> = tasks.into_iter().map(|task| Mutex::new(Some(task))).collect();
    pool().run(tasks.len(), &|queue: &Queue| {
        let mut kept = None;
        while let Some(part) = queue.take() {
            let state = kept.get_or_insert_with(&state);
            for task in &tasks[part] {
                let task = task.lock().unwrap_or_else(PoisonError::into_inner).take();
                task.into_iter().for_each(|task| work(state, task));
            }
        }
    });
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
    fn a_caller_does_all_tasks_while_the_other_threads_are_busy() {
        // The long tasks keep their caller and a thread of the pool until all the other tasks are done.
        let done = AtomicUsize::new(0);
        let wait = |_| {
            while done.load(Ordering::Acquire) < 1000 {
                std::thread::yield_now();
            }
        };
        std::thread::scope(|scope| {
            scope.spawn(|| for_each(0..super::count(), wait));
            for_each(0..1000usize, |_| {
                done.fetch_add(1, Ordering::Release);
            });
        });
        assert_eq!(done.into_inner(), 1000);
    }

    #[test]
    fn results_are_in_the_order_of_the_tasks() {
        assert_eq!(map(0..50u32, |task| task * task), (0..50).map(|task| task * task).collect::<Vec<_>>());
    }
}
