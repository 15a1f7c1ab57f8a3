//! Panels of B in one piece.

use std::ops::Range;

use crate::ops::cpu::matmul::Matrix;

/// A block of this many rows and columns is turned over in registers.
const BLOCK: usize = 8;

/// Copies some rows and columns of `matrix` into rows of `width` elements, and fills these up with zeros.
///
/// The matrix has contiguous rows or columns.
#[inline(always)]
pub(super) fn pack(
    matrix: Matrix<'_, f32>,
    rows: Range<usize>,
    columns: Range<usize>,
    width: usize,
    packed: &mut [f32],
) {
    let (row_stride, column_stride) = matrix.strides();
    if columns.len() < width {
        packed.fill(0.0);
    }
    if column_stride == 1 {
        for (row, packed) in rows.zip(packed.chunks_exact_mut(width)) {
            let start = row * row_stride + columns.start;
            packed[..columns.len()].copy_from_slice(&matrix.data()[start..start + columns.len()]);
        }
        return;
    }
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

/// Makes `BLOCK` columns of rows of `width` elements, beginning at `place`.
#[inline(always)]
fn turn(columns: [&[f32]; BLOCK], width: usize, place: usize, packed: &mut [f32]) {
    let rows = columns[0].len();
    let whole = rows / BLOCK * BLOCK;
    for row in (0..whole).step_by(BLOCK) {
        let mut block = [[0f32; BLOCK]; BLOCK];
        for (i, column) in columns.iter().enumerate() {
            for (j, value) in column[row..row + BLOCK].iter().enumerate() {
                block[j][i] = *value;
            }
        }
        for (j, values) in block.iter().enumerate() {
            let start = (row + j) * width + place;
            packed[start..start + BLOCK].copy_from_slice(values);
        }
    }
    for row in whole..rows {
        for (i, column) in columns.iter().enumerate() {
            packed[row * width + place + i] = column[row];
        }
    }
}
