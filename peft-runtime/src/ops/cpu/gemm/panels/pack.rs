//! Packs panels of B into contiguous memory.

use std::ops::Range;

use pulp::Simd;

#[cfg(target_arch = "x86_64")]
use crate::ops::cpu::dispatch;
use crate::ops::cpu::matrix::Matrix;

/// A block of this many rows and columns is transposed in registers.
const BLOCK: usize = 8;

/// Copies some rows and columns of `matrix` into rows of `WIDTH` vectors, padded with zeros.
///
/// The matrix has contiguous rows or columns.
#[inline(always)]
pub(super) fn pack<S: Simd, const WIDTH: usize>(
    matrix: Matrix<'_, f32>,
    rows: Range<usize>,
    columns: Range<usize>,
    packed: &mut [f32],
) {
    let width = WIDTH * S::F32_LANES;
    if columns.len() < width {
        packed.fill(0.0);
    }
    if matrix.strides().1 == 1 {
        pack_rows::<S, WIDTH>(matrix, rows, columns, packed);
    } else {
        pack_columns(matrix, rows, columns, width, packed);
    }
}

/// [`pack`] for contiguous rows.
#[inline(always)]
fn pack_rows<S: Simd, const WIDTH: usize>(
    matrix: Matrix<'_, f32>,
    rows: Range<usize>,
    columns: Range<usize>,
    packed: &mut [f32],
) {
    let row_stride = matrix.strides().0;
    for (row, packed) in rows.zip(packed.chunks_exact_mut(WIDTH * S::F32_LANES)) {
        let start = row * row_stride + columns.start;
        let values = &matrix.data()[start..start + columns.len()];
        if values.len() < packed.len() {
            packed[..values.len()].copy_from_slice(values);
            continue;
        }
        // A whole row: a fixed number of vectors, without the function call that copying a slice of any length takes.
        let (from, to) = (values.as_ptr().cast::<S::f32s>(), packed.as_mut_ptr().cast::<S::f32s>());
        for vector in 0..WIDTH {
            // SAFETY: both slices have `WIDTH` vectors, of any alignment.
            unsafe { to.add(vector).write_unaligned(from.add(vector).read_unaligned()) };
        }
    }
}

/// [`pack`] for contiguous columns.
#[inline(always)]
fn pack_columns(
    matrix: Matrix<'_, f32>,
    rows: Range<usize>,
    columns: Range<usize>,
    width: usize,
    packed: &mut [f32],
) {
    let column_stride = matrix.strides().1;
    let column = |place: usize| {
        let start = (columns.start + place) * column_stride + rows.start;
        &matrix.data()[start..start + rows.len()]
    };
    let whole = columns.len() / BLOCK * BLOCK;
    for place in (0..whole).step_by(BLOCK) {
        turn(std::array::from_fn(|i| column(place + i)), width, place, packed);
    }
    for place in whole..columns.len() {
        for (value, packed) in column(place).iter().zip(packed.chunks_exact_mut(width)) {
            packed[place] = *value;
        }
    }
}

/// Writes `BLOCK` columns into rows of `width` elements, beginning at `place`.
#[inline(always)]
fn turn(columns: [&[f32]; BLOCK], width: usize, place: usize, packed: &mut [f32]) {
    let rows = columns[0].len();
    let mut done = 0;
    #[cfg(target_arch = "x86_64")]
    if dispatch::has_avx() {
        done = rows / BLOCK * BLOCK;
        for row in (0..done).step_by(BLOCK) {
            let from = columns.map(|column| &column[row..row + BLOCK]);
            let to = &mut packed[row * width + place..][..(BLOCK - 1) * width + BLOCK];
            // SAFETY: the processor has AVX; each slice has a vector, and each of the eight rows of `to` as well.
            unsafe { avx::turn_block(from.map(<[f32]>::as_ptr), to.as_mut_ptr(), width) };
        }
    }
    for row in done..rows {
        for (i, column) in columns.iter().enumerate() {
            packed[row * width + place + i] = column[row];
        }
    }
}

/// Transposes a block by hand: compilers would move it value by value.
#[cfg(target_arch = "x86_64")]
mod avx {
    use std::arch::x86_64::{
        __m256, _mm256_loadu_ps, _mm256_permute2f128_ps, _mm256_shuffle_ps, _mm256_storeu_ps,
        _mm256_unpackhi_ps, _mm256_unpacklo_ps,
    };

    use super::BLOCK;

    /// Writes eight columns of eight values as rows, `stride` elements apart.
    ///
    /// # Safety
    /// Eight values may be read from each of `from`, and written to each row of `to`.
    #[inline]
    #[target_feature(enable = "avx")]
    pub(super) unsafe fn turn_block(from: [*const f32; BLOCK], to: *mut f32, stride: usize) {
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
}
