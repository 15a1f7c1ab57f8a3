//! Blocks of sums by `vdpbf16ps`.

use std::arch::x86_64::{
    __m512, __m512bh, __m512i, _mm512_dpbf16_ps, _mm512_load_ps, _mm512_load_si512, _mm512_set1_epi32,
    _mm512_setzero_ps, _mm512_store_ps,
};

use super::block::{BLOCK, Kernel, Line, SumLine};
use crate::ops::cpu::dispatch::has_avx512_bf16;

/// Rows whose sums are in registers at once: sixteen of these, and two of the right factor.
const ROWS: usize = 8;

/// Pairs in a step.
const PAIRS: usize = BLOCK / 2;

/// Why the instruction cannot be used, if it cannot.
pub(in crate::ops::cpu::gemm) fn missing() -> Option<&'static str> {
    (!has_avx512_bf16()).then_some("this processor has no AVX-512 instructions for bf16")
}

/// The kernel of a thread.
pub(in crate::ops::cpu::gemm) struct Avx512;

impl Kernel for Avx512 {
    unsafe fn begin() -> Self {
        Self
    }

    unsafe fn block(
        &self,
        left: &[Line],
        stride: usize,
        right: &[Line],
        steps: usize,
        sums: &mut [SumLine],
        continues: bool,
    ) {
        let (last, right) = ((BLOCK - 1) * stride + steps, &right[..steps * BLOCK]);
        let (left, sums) = (&left[..last], &mut sums[..2 * BLOCK]);
        for (i, sums) in sums.chunks_exact_mut(2 * ROWS).enumerate() {
            // SAFETY: the caller vouches for the instruction; the slices were cut to what is read and written.
            unsafe { rows(left[i * ROWS * stride..].as_ptr(), stride, right, sums, continues) };
        }
    }
}

/// Eight rows of a block.
///
/// # Safety
/// `left` points to eight rows, `stride` lines apart, of a line for each 32 lines of `right`; `sums` has 16 lines.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn rows(left: *const Line, stride: usize, right: &[Line], sums: &mut [SumLine], continues: bool) {
    let mut acc = [[_mm512_setzero_ps(); 2]; ROWS];
    let lines = sums.as_mut_ptr().cast::<f32>();
    if continues {
        for (i, acc) in acc.iter_mut().enumerate() {
            // SAFETY: the row has two lines.
            *acc = unsafe { [_mm512_load_ps(lines.add(32 * i)), _mm512_load_ps(lines.add(32 * i + 16))] };
        }
    }
    for (step, tiles) in right.chunks_exact(BLOCK).enumerate() {
        for pair in 0..PAIRS {
            let tiles = [line(&tiles[pair]), line(&tiles[PAIRS + pair])];
            for (i, acc) in acc.iter_mut().enumerate() {
                // SAFETY: each of the eight rows has a line for this step, with 16 pairs.
                let x = unsafe { left.add(i * stride + step).cast::<i32>().add(pair).read() };
                let x = halves(_mm512_set1_epi32(x));
                *acc = [_mm512_dpbf16_ps(acc[0], x, tiles[0]), _mm512_dpbf16_ps(acc[1], x, tiles[1])];
            }
        }
    }
    for (i, acc) in acc.iter().enumerate() {
        // SAFETY: the row has two lines.
        unsafe {
            _mm512_store_ps(lines.add(32 * i), acc[0]);
            _mm512_store_ps(lines.add(32 * i + 16), acc[1]);
        }
    }
}

#[target_feature(enable = "avx512f")]
fn line(line: &Line) -> __m512bh {
    // SAFETY: a line is 64 bytes, and aligned to as many.
    halves(unsafe { _mm512_load_si512(std::ptr::from_ref(line).cast::<__m512i>()) })
}

#[target_feature(enable = "avx512f")]
fn halves(bits: __m512i) -> __m512bh {
    // SAFETY: both are 64 bytes of any bits.
    unsafe { std::mem::transmute::<__m512i, __m512bh>(bits) }
}

const _: () = assert!(size_of::<__m512>() == size_of::<SumLine>());
