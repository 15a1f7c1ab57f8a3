//! The sums with vectors of AVX2 and of AVX-512.

use std::arch::x86_64::{
    __m128i, __m256, __m256i, __m512, _MM_HINT_T0, _mm_loadu_si128, _mm_prefetch, _mm256_add_ps,
    _mm256_castsi256_ps, _mm256_cvtepu16_epi32, _mm256_cvtph_ps, _mm256_fmadd_ps, _mm256_loadu_ps,
    _mm256_loadu_si256, _mm256_setzero_ps, _mm256_slli_epi32, _mm256_storeu_ps, _mm512_add_ps,
    _mm512_castsi512_ps, _mm512_cvtepu16_epi32, _mm512_cvtph_ps, _mm512_fmadd_ps, _mm512_loadu_ps,
    _mm512_reduce_add_ps, _mm512_setzero_ps, _mm512_slli_epi32,
};

use half::{bf16, f16};

use super::scalar;
use crate::ops::cpu::dispatch::{has_avx2_fma_f16c, has_avx512};
use crate::ops::cpu::element::Element;

/// Loads vectors of f32, from memory of any alignment.
pub(super) trait Load: Element {
    /// # Safety
    /// There are eight values; the caller is compiled for AVX2 and F16C.
    unsafe fn load_eight(place: *const Self) -> __m256;

    /// # Safety
    /// There are sixteen values; the caller is compiled for AVX-512.
    unsafe fn load_sixteen(place: *const Self) -> __m512;
}

impl Load for f32 {
    #[inline(always)]
    unsafe fn load_eight(place: *const Self) -> __m256 {
        // SAFETY: as the caller vouches.
        unsafe { _mm256_loadu_ps(place) }
    }

    #[inline(always)]
    unsafe fn load_sixteen(place: *const Self) -> __m512 {
        // SAFETY: as the caller vouches.
        unsafe { _mm512_loadu_ps(place) }
    }
}

impl Load for bf16 {
    #[inline(always)]
    unsafe fn load_eight(place: *const Self) -> __m256 {
        // SAFETY: as the caller vouches.
        unsafe {
            let halves = _mm256_cvtepu16_epi32(_mm_loadu_si128(place.cast::<__m128i>()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(halves))
        }
    }

    #[inline(always)]
    unsafe fn load_sixteen(place: *const Self) -> __m512 {
        // SAFETY: as the caller vouches.
        unsafe {
            let halves = _mm512_cvtepu16_epi32(_mm256_loadu_si256(place.cast::<__m256i>()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(halves))
        }
    }
}

impl Load for f16 {
    #[inline(always)]
    unsafe fn load_eight(place: *const Self) -> __m256 {
        // SAFETY: as the caller vouches.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(place.cast::<__m128i>())) }
    }

    #[inline(always)]
    unsafe fn load_sixteen(place: *const Self) -> __m512 {
        // SAFETY: as the caller vouches.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(place.cast::<__m256i>())) }
    }
}

const CACHE_LINE: usize = 64;

/// How many bytes ahead a column is fetched from memory. The processor fetches ahead too, but not beyond a page; columns follow one
/// another.
const AHEAD: usize = 4096;

/// Declares the sums for one kind of vector; `UNROLLED` vectors of the column are under way at once.
macro_rules! sums {
    ($name:ident, $features:literal, $lanes:literal, $zero:ident, $load:ident, $load_row:ident, $fmadd:ident, $add:ident, $total:ident) => {
        #[target_feature(enable = $features)]
        unsafe fn $name<T: Load, const M: usize, const UNROLLED: usize>(
            rows: [*const f32; M],
            column: &[T],
        ) -> [f32; M] {
            let mut sums = [[$zero(); UNROLLED]; M];
            let whole = column.len() / ($lanes * UNROLLED) * ($lanes * UNROLLED);
            for place in (0..whole).step_by($lanes * UNROLLED) {
                for line in (0..$lanes * UNROLLED * size_of::<T>()).step_by(CACHE_LINE) {
                    let byte = place * size_of::<T>() + line + AHEAD;
                    // Nothing is loaded, and an address outside of the memory of the process does nothing.
                    _mm_prefetch::<_MM_HINT_T0>(column.as_ptr().cast::<i8>().wrapping_add(byte));
                }
                for u in 0..UNROLLED {
                    let place = place + u * $lanes;
                    // SAFETY: a whole vector lies before the end of the column, and of each row.
                    let values = unsafe { T::$load(column.as_ptr().add(place)) };
                    for (sums, row) in sums.iter_mut().zip(rows) {
                        // SAFETY: the same.
                        sums[u] = $fmadd(unsafe { $load_row(row.add(place)) }, values, sums[u]);
                    }
                }
            }
            let mut totals = [0f32; M];
            if whole < column.len() {
                // SAFETY: as many values are left in each row as in the column.
                totals = unsafe { scalar::sums(rows.map(|row| row.add(whole)), &column[whole..]) };
            }
            for (total, sums) in totals.iter_mut().zip(sums) {
                let mut all = $zero();
                for sum in sums {
                    all = $add(all, sum);
                }
                *total += $total(all);
            }
            totals
        }
    };
}

sums!(
    avx2,
    "avx2,fma,f16c",
    8,
    _mm256_setzero_ps,
    load_eight,
    _mm256_loadu_ps,
    _mm256_fmadd_ps,
    _mm256_add_ps,
    total_of_eight
);
sums!(
    avx512,
    "avx512f,avx512bw,avx512vl",
    16,
    _mm512_setzero_ps,
    load_sixteen,
    _mm512_loadu_ps,
    _mm512_fmadd_ps,
    _mm512_add_ps,
    _mm512_reduce_add_ps
);

#[target_feature(enable = "avx2")]
fn total_of_eight(vector: __m256) -> f32 {
    let mut values = [0f32; 8];
    // SAFETY: there is room for eight values.
    unsafe { _mm256_storeu_ps(values.as_mut_ptr(), vector) };
    values.iter().sum()
}

/// A kind of vector that the processor has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Vectors {
    Avx2,
    Avx512,
}

impl Vectors {
    /// The widest that the processor has.
    #[inline(always)]
    pub(super) fn widest() -> Option<Self> {
        if has_avx512() { Some(Self::Avx512) } else { has_avx2_fma_f16c().then_some(Self::Avx2) }
    }

    /// All that the processor has.
    #[cfg(test)]
    pub(super) fn all() -> impl Iterator<Item = Self> {
        let kinds = [(has_avx2_fma_f16c(), Self::Avx2), (has_avx512(), Self::Avx512)];
        kinds.into_iter().filter_map(|(there, kind)| there.then_some(kind))
    }

    /// Σ x·y for slices that begin at `rows` and are as long as `column`.
    ///
    /// # Safety
    /// The processor has these vectors, and each of `rows` points to as many values as `column` has.
    #[inline(always)]
    pub(super) unsafe fn sums<T: Load, const M: usize>(
        self,
        rows: [*const f32; M],
        column: &[T],
    ) -> [f32; M] {
        // As many sums are under way as the latency of an addition takes, and as there are registers.
        // SAFETY: as the caller vouches.
        unsafe {
            match (self, M) {
                (Self::Avx512, 1..=2) => avx512::<T, M, 4>(rows, column),
                (Self::Avx512, _) => avx512::<T, M, 2>(rows, column),
                (Self::Avx2, 1..=2) => avx2::<T, M, 4>(rows, column),
                (Self::Avx2, _) => avx2::<T, M, 2>(rows, column),
            }
        }
    }
}
