//! An allocator that counts: the memory in use, its peak, and the largest single allocation, for all threads and for each.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::io::Write;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;

/// The system's allocator that counts, for `#[global_allocator]`.
pub struct CountingAllocator;

static IN_USE: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);
static LARGEST_OF_ALL: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static LARGEST: Cell<usize> = const { Cell::new(0) };
    static INPUT: Cell<u64> = const { Cell::new(0) };
}

/// No test needs an allocation of this size. It is refused, which ends the process, after the input is named.
const REFUSED: usize = 1 << 33;

/// Starts counting the memory that is used beyond what is in use now, and returns how much is in use now.
pub fn start() -> usize {
    let in_use = IN_USE.load(Relaxed);
    MOST.store(in_use, Relaxed);
    LARGEST_OF_ALL.store(0, Relaxed);
    in_use
}

/// The most memory that was in use since [`start`], beyond what was in use then.
pub fn most_since(start: usize) -> usize {
    MOST.load(Relaxed).saturating_sub(start)
}

/// The largest allocation that any thread asked for since [`start`].
pub fn largest_of_all_threads() -> usize {
    LARGEST_OF_ALL.load(Relaxed)
}

/// Sets the input that this thread works on, and starts counting its largest allocation.
pub fn start_input(input: u64) {
    INPUT.set(input);
    LARGEST.set(0);
}

/// The largest allocation that this thread asked for since [`start_input`].
pub fn largest_piece() -> usize {
    LARGEST.get()
}

/// Prints the input of the thread that asks for too much. Nothing here may allocate.
fn say_refused(size: usize) {
    let input = INPUT.try_with(Cell::get).unwrap_or_default();
    let _ = writeln!(std::io::stderr(), "input {input} asks for {size} bytes in one piece");
}

// SAFETY: every call is passed on to the system's allocator unchanged, or returns null as if no memory were left.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let size = layout.size();
        if size > REFUSED {
            say_refused(size);
            return std::ptr::null_mut();
        }
        let in_use = IN_USE.fetch_add(size, Relaxed) + size;
        MOST.fetch_max(in_use, Relaxed);
        LARGEST_OF_ALL.fetch_max(size, Relaxed);
        // A thread that is ending no longer has a count.
        let _ = LARGEST.try_with(|largest| largest.set(largest.get().max(size)));
        // SAFETY: the caller keeps the contract, which is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        IN_USE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller keeps the contract, which is the same.
        unsafe { System.dealloc(pointer, layout) }
    }
}
