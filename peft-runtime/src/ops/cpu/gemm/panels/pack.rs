//! Packs panels of B into contiguous memory.

use std::array::from_fn;
use std::ops::Range;

use candle_core::DType;
use pulp::Simd;

#[cfg(target_arch = "x86_64")]
use crate::ops::cpu::dispatch;
use crate::ops::cpu::element::Element;
use crate::ops::cpu::gemm::turn::BLOCK;
#[cfg(target_arch = "x86_64")]
use crate::ops::cpu::gemm::turn::turn_block;
use crate::ops::cpu::matrix::Matrix;

/// How many values of a column are widened before they are turned.
const RUN: usize = 64;

/// Copies some rows and columns of `matrix` into rows of `WIDTH` vectors of f32, padded with zeros.
#[inline(always)]
pub(super) fn pack<S: Simd, R: Element, const WIDTH: usize>(
    matrix: Matrix<'_, R>,
    rows: Range<usize>,
    columns: Range<usize>,
    packed: &mut [f32],
) {
    let width = WIDTH * S::F32_LANES;
    if columns.len() < width {
        packed.fill(0.0);
    }
    match matrix.strides() {
        (_, 1) => pack_rows::<S, R, WIDTH>(matrix, rows, columns, packed),
        (1, _) => pack_columns(matrix, rows, columns, width, packed),
        _ => pack_any(matrix, rows, columns, width, packed),
    }
}

/// [`pack`] for contiguous rows.
#[inline(always)]
fn pack_rows<S: Simd, R: Element, const WIDTH: usize>(
    matrix: Matrix<'_, R>,
    rows: Range<usize>,
    columns: Range<usize>,
    packed: &mut [f32],
) {
    let row_stride = matrix.strides().0;
    for (row, packed) in rows.zip(packed.chunks_exact_mut(WIDTH * S::F32_LANES)) {
        let start = row * row_stride + columns.start;
        let values = &matrix.data()[start..start + columns.len()];
        if R::DTYPE != DType::F32 || values.len() < packed.len() {
            R::widen(values, &mut packed[..values.len()]);
            continue;
        }
        // A whole row: a fixed number of vectors, without the function call that copying a slice of any length takes.
        let (from, to) = (values.as_ptr().cast::<S::f32s>(), packed.as_mut_ptr().cast::<S::f32s>());
        for vector in 0..WIDTH {
            // SAFETY: both slices have `WIDTH` vectors of f32, of any alignment.
            unsafe { to.add(vector).write_unaligned(from.add(vector).read_unaligned()) };
        }
    }
}

/// [`pack`] for contiguous columns.
#[inline(always)]
fn pack_columns<R: Element>(
    matrix: Matrix<'_, R>,
    rows: Range<usize>,
    columns: Range<usize>,
    width: usize,
    packed: &mut [f32],
) {
    let whole = columns.len() / BLOCK * BLOCK;
    for place in (0..whole).step_by(BLOCK) {
        let block = |i| columns.start + place + i;
        match matrix.as_f32() {
            Some(matrix) => turn(from_fn(|i| column(matrix, block(i), &rows)), width, place, packed),
            None => turn_wide(from_fn(|i| column(matrix, block(i), &rows)), width, place, packed),
        }
    }
    for place in whole..columns.len() {
        let values = column(matrix, columns.start + place, &rows);
        for (value, packed) in values.iter().zip(packed.chunks_exact_mut(width)) {
            packed[place] = value.wide();
        }
    }
}

/// Some rows of a column, which is contiguous.
#[inline(always)]
fn column<'a, R>(matrix: Matrix<'a, R>, column: usize, rows: &Range<usize>) -> &'a [R] {
    &matrix.data()[column * matrix.strides().1 + rows.start..][..rows.len()]
}

/// [`pack`] for any strides.
fn pack_any<R: Element>(
    matrix: Matrix<'_, R>,
    rows: Range<usize>,
    columns: Range<usize>,
    width: usize,
    packed: &mut [f32],
) {
    let (row_stride, column_stride) = matrix.strides();
    for (row, packed) in rows.zip(packed.chunks_exact_mut(width)) {
        for (column, packed) in columns.clone().zip(packed) {
            *packed = matrix.data()[row * row_stride + column * column_stride].wide();
        }
    }
}

/// Writes `BLOCK` columns into rows of `width` elements, beginning at `place`.
#[inline(always)]
fn turn_wide<R: Element>(columns: [&[R]; BLOCK], width: usize, place: usize, packed: &mut [f32]) {
    let mut wide = [[0f32; RUN]; BLOCK];
    for start in (0..columns[0].len()).step_by(RUN) {
        let length = (columns[0].len() - start).min(RUN);
        for (wide, column) in wide.iter_mut().zip(columns) {
            R::widen(&column[start..start + length], &mut wide[..length]);
        }
        turn(wide.each_ref().map(|wide| &wide[..length]), width, place, &mut packed[start * width..]);
    }
}

/// [`turn_wide`] for columns of f32.
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
            unsafe { turn_block(from.map(<[f32]>::as_ptr), to.as_mut_ptr(), width) };
        }
    }
    for row in done..rows {
        for (i, column) in columns.iter().enumerate() {
            packed[row * width + place + i] = column[row];
        }
    }
}
