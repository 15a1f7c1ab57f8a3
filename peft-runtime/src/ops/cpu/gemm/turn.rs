//! Transposes a block by hand: compilers would move it value by value.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{
    __m256, _mm256_loadu_ps, _mm256_permute2f128_ps, _mm256_shuffle_ps, _mm256_storeu_ps, _mm256_unpackhi_ps,
    _mm256_unpacklo_ps,
};

/// A block of this many rows and columns is transposed in registers.
pub(super) const BLOCK: usize = 8;

/// Writes eight columns of eight values as rows, `stride` elements apart. The values are only moved, whatever their bits mean.
///
/// # Safety
/// Eight values may be read from each of `from`, and written to each row of `to`.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx")]
pub(in crate::ops::cpu::gemm) unsafe fn turn_block(from: [*const f32; BLOCK], to: *mut f32, stride: usize) {
    // SAFETY: the caller vouches for eight values each.
    let a = from.map(|column| unsafe { _mm256_loadu_ps(column) });
    let pairs = |low: usize| {
        let (x, y) = (a[low], a[low + 1]);
        (_mm256_unpacklo_ps(x, y), _mm256_unpackhi_ps(x, y))
    };
    // Each half of a vector has the rows 0..4 or 4..8 of four columns.
    let fours = |first: usize| -> [__m256; 4] {
        let ((low, high), (next_low, next_high)) = (pairs(first), pairs(first + 2));
        [
            _mm256_shuffle_ps::<0b01_00_01_00>(low, next_low),
            _mm256_shuffle_ps::<0b11_10_11_10>(low, next_low),
            _mm256_shuffle_ps::<0b01_00_01_00>(high, next_high),
            _mm256_shuffle_ps::<0b11_10_11_10>(high, next_high),
        ]
    };
    let (left, right) = (fours(0), fours(4));
    for row in 0..BLOCK / 2 {
        let upper = _mm256_permute2f128_ps::<0x20>(left[row], right[row]);
        let lower = _mm256_permute2f128_ps::<0x31>(left[row], right[row]);
        // SAFETY: the caller vouches for eight values in each of the eight rows.
        unsafe {
            _mm256_storeu_ps(to.add(row * stride), upper);
            _mm256_storeu_ps(to.add((row + BLOCK / 2) * stride), lower);
        }
    }
}
