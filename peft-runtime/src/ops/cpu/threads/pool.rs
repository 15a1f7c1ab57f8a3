//! Threads that wait for tasks, and take those of several callers.
//!
//! A caller does tasks of its own and waits only for those that another thread has begun: where the other threads do not run,
//! because the processor is busy with something else, it does everything itself. Threads without tasks look for some for a
//! moment before they sleep, since in a training step the next operation comes soon; meanwhile they leave their core to
//! whatever else wants it.

use std::any::Any;
use std::hint::spin_loop;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, yield_now};
use std::time::{Duration, Instant};

/// How long a thread looks for tasks before it sleeps: operations follow one another sooner than that, and need not wake it.
const PATIENCE: Duration = Duration::from_micros(300);

/// How often a thread looks before it lets others run.
const LOOKS: usize = 64;

/// How many parts of a queue each thread takes if all are equally fast. More even out threads that are not, fewer let it do more at once.
const PARTS: usize = 8;

/// The numbers of the tasks that no thread has begun.
pub(super) struct Queue {
    next: AtomicUsize,
    count: usize,
    /// How many tasks a thread takes at once.
    part: usize,
}

impl Queue {
    /// Tasks for the thread that calls; no other thread is given their numbers.
    pub(super) fn take(&self) -> Option<Range<usize>> {
        let start = self.next.fetch_add(self.part, Relaxed);
        (start < self.count).then(|| start..self.count.min(start + self.part))
    }

    fn is_empty(&self) -> bool {
        self.next.load(Relaxed) >= self.count
    }
}

/// What does the tasks of a queue, on each thread that helps.
type Work = dyn Fn(&Queue) + Sync;

/// Tasks that a caller offers.
struct Job {
    queue: Queue,
    /// Borrowed from the caller, which does not return while a thread uses it.
    work: &'static Work,
    /// How many threads of the pool are doing tasks.
    helpers: AtomicUsize,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

/// What callers and threads share.
#[derive(Default)]
struct Offers {
    jobs: Vec<Arc<Job>>,
    /// How many threads sleep.
    asleep: usize,
}

/// Threads that help their callers.
pub(super) struct Pool {
    threads: usize,
    offers: Mutex<Offers>,
    /// How many jobs have been offered so far; it changes while `offers` is locked.
    offered: AtomicUsize,
    wake: Condvar,
}

impl Pool {
    /// A pool that computes on `threads` threads, the caller's among them, and lives as long as the process. It has fewer if the
    /// system does not give as many.
    pub(super) fn start(threads: usize) -> &'static Self {
        let pool: &Self = Box::leak(Box::new(Self {
            threads: threads.max(1),
            offers: Mutex::default(),
            offered: AtomicUsize::new(0),
            wake: Condvar::new(),
        }));
        for thread in 1..pool.threads {
            // Without this thread, the others do its tasks.
            let _ = Builder::new().name(format!("peft-{thread}")).spawn(|| pool.serve());
        }
        pool
    }

    /// How many threads compute, the caller's among them.
    pub(super) fn threads(&self) -> usize {
        self.threads
    }

    /// Calls `work` on this thread, and on others as long as the queue has tasks, until all `count` tasks are done.
    pub(super) fn run(&self, count: usize, work: &(dyn Fn(&Queue) + Sync)) {
        // SAFETY: only the lifetime changes. `Closing` is dropped before this function returns or unwinds: from then on no
        // thread begins to use `work`, and it waits for those that have begun.
        let work = unsafe { std::mem::transmute::<&(dyn Fn(&Queue) + Sync), &'static Work>(work) };
        let job = Arc::new(Job {
            queue: Queue { next: AtomicUsize::new(0), count, part: (count / (self.threads * PARTS)).max(1) },
            work,
            helpers: AtomicUsize::new(0),
            panic: Mutex::default(),
        });
        self.offer(&job);
        let closing = Closing { pool: self, job: &job };
        work(&job.queue);
        drop(closing);
        let panic = job.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }

    fn offer(&self, job: &Arc<Job>) {
        let mut offers = self.lock();
        offers.jobs.push(job.clone());
        self.offered.fetch_add(1, Release);
        let woken = offers.asleep.min(job.queue.count.saturating_sub(1));
        drop(offers);
        for _ in 0..woken {
            self.wake.notify_one();
        }
    }

    /// What a thread of the pool does.
    fn serve(&self) {
        loop {
            let seen = self.offered.load(Acquire);
            match self.join() {
                Some(job) => job.help(),
                None => self.wait(seen),
            }
        }
    }

    /// A job with tasks to do, which from now on waits for the thread that calls.
    fn join(&self) -> Option<Arc<Job>> {
        let offers = self.lock();
        let job = offers.jobs.iter().find(|job| !job.queue.is_empty())?;
        job.helpers.fetch_add(1, Relaxed);
        Some(job.clone())
    }

    /// Waits until there have been more offers than `seen`.
    fn wait(&self, seen: usize) {
        let start = Instant::now();
        while start.elapsed() < PATIENCE {
            for _ in 0..LOOKS {
                if self.offered.load(Acquire) != seen {
                    return;
                }
                spin_loop();
            }
            yield_now();
        }
        let mut offers = self.lock();
        offers.asleep += 1;
        while self.offered.load(Acquire) == seen {
            offers = self.wake.wait(offers).unwrap_or_else(PoisonError::into_inner);
        }
        offers.asleep -= 1;
    }

    fn lock(&self) -> MutexGuard<'_, Offers> {
        self.offers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Job {
    /// Does tasks until there are none left. A panic is kept for the caller.
    fn help(&self) {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| (self.work)(&self.queue))) {
            self.panic.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(panic);
        }
        // What this thread wrote is there for the caller once it sees the new number.
        self.helpers.fetch_sub(1, Release);
    }
}

/// Takes a job back when dropped, also after a panic of its caller.
struct Closing<'a> {
    pool: &'a Pool,
    job: &'a Arc<Job>,
}

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        self.pool.lock().jobs.retain(|job| !Arc::ptr_eq(job, self.job));
        let mut looks = 0usize;
        while self.job.helpers.load(Acquire) > 0 {
            looks += 1;
            if looks.is_multiple_of(LOOKS) {
                yield_now();
            } else {
                spin_loop();
            }
        }
    }
}
