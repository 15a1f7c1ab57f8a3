//! Loading what is needed next while something else is computed.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};

/// Has the processor load the cache line of `values[place]`, which may lie beyond the end: nothing is read.
#[inline(always)]
pub(super) fn fetch<T>(values: &[T], place: usize) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: any address may be fetched; one that cannot be read is ignored.
    unsafe {
        _mm_prefetch::<_MM_HINT_T0>(values.as_ptr().wrapping_add(place).cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (values, place);
}
