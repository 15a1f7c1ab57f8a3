//! Disjoint parts of one matrix, which several threads write at once.

use std::cmp::Reverse;
use std::marker::PhantomData;
use std::ops::Range;

use candle_core::{DType, Result, WithDType, bail};
use gemm::Parallelism;

use super::gemm::{Destination, multiply, multiply_mixed};
use super::matrix::{Matrix, Write};
use super::operand::Operand;

/// Tile sizes are multiples of this, which is a few of the processor's vectors.
pub(crate) const UNIT: usize = 16;

/// Fewer rows than this are not split among threads.
const MIN_ROWS: usize = 64;

/// A rectangle of a row-major matrix, borrowed mutably.
pub(crate) struct Tile<'a, T> {
    start: *mut T,
    /// How far apart its rows start: the number of columns of the whole matrix.
    row_stride: usize,
    rows: Range<usize>,
    columns: Range<usize>,
    matrix: PhantomData<&'a mut [T]>,
}

// SAFETY: a tile is the only way to reach its elements while the matrix is borrowed, as a mutable slice would be.
unsafe impl<T: Send> Send for Tile<'_, T> {}

/// Cuts a row-major matrix of shape `(rows, columns)` into tiles that are `steps` apart.
pub(crate) fn tiles<T>(
    matrix: &mut [T],
    (rows, columns): (usize, usize),
    (row_step, column_step): (usize, usize),
) -> Result<Vec<Tile<'_, T>>> {
    if matrix.len() != rows * columns {
        bail!("a {rows}x{columns} matrix does not have {} elements", matrix.len())
    }
    let (row_step, column_step) = (row_step.max(1), column_step.max(1));
    let start = matrix.as_mut_ptr();
    let mut tiles = Vec::new();
    for row in (0..rows).step_by(row_step) {
        for column in (0..columns).step_by(column_step) {
            tiles.push(Tile {
                start: start.wrapping_add(row * columns + column),
                row_stride: columns,
                rows: row..rows.min(row + row_step),
                columns: column..columns.min(column + column_step),
                matrix: PhantomData,
            });
        }
    }
    Ok(tiles)
}

/// One tile of `rows` rows of `columns` elements that start `row_stride` elements apart, all in the slice; what lies between the rows is
/// not part of it.
pub(super) fn rows_of<T>(values: &mut [T], row_stride: usize, rows: usize, columns: usize) -> Tile<'_, T> {
    let length = if rows * columns == 0 { 0 } else { (rows - 1) * row_stride + columns };
    let start = values[..length].as_mut_ptr();
    Tile { start, row_stride, rows: 0..rows, columns: 0..columns, matrix: PhantomData }
}

/// How far apart the tiles of a result start, in rows and in columns. A tile has at most `limit` columns, or `unit`
/// if that is more.
pub(crate) fn steps(rows: usize, columns: usize, unit: usize, limit: usize) -> (usize, usize) {
    let threads = super::threads::count();
    let step = balanced_step(columns, unit, limit, threads);
    // If the columns do not keep all threads busy, rows are split as well; then several threads read the same columns.
    let parts = threads / columns.div_ceil(step).max(1);
    let parts = parts.clamp(1, rows.div_ceil(MIN_ROWS).max(1));
    (rows.div_ceil(parts), step)
}

/// The widest of the steps that leave the busiest thread the least to do.
fn balanced_step(length: usize, unit: usize, limit: usize, threads: usize) -> usize {
    let units = (limit.min(length.next_multiple_of(unit)) / unit).max(1);
    let busiest = |step: usize| length.div_ceil(step).div_ceil(threads) * step;
    let steps = (1..=units).map(|units| units * unit);
    steps.min_by_key(|step| (busiest(*step), Reverse(*step))).unwrap_or(unit)
}

impl<T> Tile<'_, T> {
    /// The rows of the matrix that it covers.
    pub(crate) fn rows(&self) -> Range<usize> {
        self.rows.clone()
    }

    /// The columns of the matrix that it covers.
    pub(crate) fn columns(&self) -> Range<usize> {
        self.columns.clone()
    }
}

impl<T> Tile<'_, T> {
    /// Its part of each row that it covers, from the first to the last.
    pub(super) fn slices(&mut self) -> impl Iterator<Item = &mut [T]> {
        let (start, row_stride, width) = (self.start, self.row_stride, self.columns.len());
        // SAFETY: `tiles` made the tile from rows and columns of a matrix that is borrowed mutably, no two tiles share an
        // element, and no two rows of one do.
        (0..self.rows.len())
            .map(move |row| unsafe { std::slice::from_raw_parts_mut(start.add(row * row_stride), width) })
    }
}

impl<T: WithDType> Tile<'_, T> {
    /// The same elements, if they are f32.
    pub(super) fn as_f32(&mut self) -> Option<Tile<'_, f32>> {
        let Tile { start, row_stride, rows, columns, .. } = self;
        // f32 is the only type of this dtype.
        (T::DTYPE == DType::F32).then(|| Tile {
            start: start.cast(),
            row_stride: *row_stride,
            rows: rows.clone(),
            columns: columns.clone(),
            matrix: PhantomData,
        })
    }

    /// `tile (+)= scale · lhs · rhs` on the calling thread. `T` is f32 or f64.
    pub(crate) fn matmul(
        &mut self,
        write: Write,
        scale: f64,
        lhs: Matrix<'_, T>,
        rhs: Matrix<'_, T>,
    ) -> Result<()> {
        let shape = (self.rows.len(), self.columns.len());
        if (lhs.rows(), rhs.columns()) != shape || lhs.columns() != rhs.rows() {
            bail!(
                "cannot multiply {}x{} by {}x{} into a tile of shape {shape:?}",
                lhs.rows(),
                lhs.columns(),
                rhs.rows(),
                rhs.columns()
            )
        }
        // SAFETY: `tiles` made the tile from rows and columns of a matrix that is borrowed mutably, `row_stride` elements
        // a row, no two tiles share an element, and the shape was checked above.
        unsafe { multiply(self.start, self.row_stride, write, scale, lhs, rhs, Parallelism::None) };
        Ok(())
    }
}

impl Tile<'_, f32> {
    /// `tile (+)= scale · lhs · rhs` on the calling thread, for factors of any types.
    pub(crate) fn multiply(
        &mut self,
        write: Write,
        scale: f64,
        lhs: Operand<'_>,
        rhs: Operand<'_>,
    ) -> Result<()> {
        let shape = (self.rows.len(), self.columns.len());
        if (lhs.rows(), rhs.columns()) != shape || lhs.columns() != rhs.rows() {
            bail!(
                "cannot multiply {}x{} by {}x{} into a tile of shape {shape:?}",
                lhs.rows(),
                lhs.columns(),
                rhs.rows(),
                rhs.columns()
            )
        }
        let destination =
            Destination { start: self.start, row_stride: self.row_stride, write, scale: scale as f32 };
        // SAFETY: as for `matmul`.
        unsafe { multiply_mixed(destination, lhs, rhs) }
    }
}

#[cfg(test)]
mod tests {
    use super::{balanced_step, tiles};
    use crate::ops::cpu::matrix::{Matrix, Write};

    #[test]
    fn steps_share_the_work_evenly_and_stay_within_the_limit() {
        // 4 × 144 and 6 × 96 share 576 evenly between two threads; the wider one is taken.
        assert_eq!(balanced_step(576, 16, 227, 2), 144);
        assert_eq!(balanced_step(576, 32, 256, 2), 96);
        assert_eq!(balanced_step(192, 16, 227, 2), 96);
        assert_eq!(balanced_step(192, 16, 227, 16), 16);
        assert_eq!(balanced_step(1536, 16, 4096, 1), 1536);
        assert_eq!(balanced_step(2048, 256, 256, 16), 256, "one block is the least there is");
        assert_eq!(balanced_step(1000, 16, 3, 4), 16, "one unit is the least there is");
        assert_eq!(balanced_step(0, 16, 100, 4), 16);
    }

    #[test]
    fn tiles_cover_a_matrix_once() {
        for steps in [(1, 1), (2, 3), (3, 2), (100, 100), (0, 4)] {
            let mut matrix = [0f32; 35];
            for mut tile in tiles(&mut matrix, (5, 7), steps).unwrap() {
                let ones = [1f32; 7];
                let lhs = Matrix::contiguous(&ones, tile.rows().len(), 1).unwrap();
                let rhs = Matrix::contiguous(&ones, 1, tile.columns().len()).unwrap();
                tile.matmul(Write::Add, 1.0, lhs, rhs).unwrap();
            }
            assert_eq!(matrix, [1.0; 35], "{steps:?}");
        }
    }

    #[test]
    fn factors_of_another_shape_are_refused() {
        let (mut matrix, ones) = ([0f32; 6], [1f32; 6]);
        let mut tiles = tiles(&mut matrix, (2, 3), (2, 3)).unwrap();
        let factor = |rows, columns| Matrix::contiguous(&ones, rows, columns).unwrap();
        assert!(tiles[0].matmul(Write::Add, 1.0, factor(2, 1), factor(1, 2)).is_err());
        assert!(tiles[0].matmul(Write::Add, 1.0, factor(1, 1), factor(1, 3)).is_err());
        assert!(tiles[0].matmul(Write::Add, 1.0, factor(2, 1), factor(2, 3)).is_err());
    }

    #[test]
    fn threads_write_their_tiles_of_a_product() {
        let lhs: Vec<f32> = (0..6 * 4).map(|value| value as f32).collect();
        let rhs: Vec<f32> = (0..4 * 9).map(|value| (value % 5) as f32).collect();
        let mut product = [7f32; 54];
        std::thread::scope(|scope| {
            for mut tile in tiles(&mut product, (6, 9), (4, 5)).unwrap() {
                let lhs = Matrix::contiguous(&lhs, 6, 4).unwrap().block(tile.rows(), 0..4).unwrap();
                let rhs = Matrix::contiguous(&rhs, 4, 9).unwrap().block(0..4, tile.columns()).unwrap();
                scope.spawn(move || tile.matmul(Write::Replace, 1.0, lhs, rhs).unwrap());
            }
        });
        for (place, value) in product.iter().enumerate() {
            let (row, column) = (place / 9, place % 9);
            let expected: f32 = (0..4).map(|inner| lhs[row * 4 + inner] * rhs[inner * 9 + column]).sum();
            assert_eq!(*value, expected);
        }
    }

    #[test]
    fn an_empty_inner_dimension_gives_zeros_or_leaves_what_is_there() {
        let mut matrix = [7f32; 4];
        let (lhs, rhs) = (Matrix::contiguous(&[], 2, 0).unwrap(), Matrix::contiguous(&[], 0, 2).unwrap());
        tiles(&mut matrix, (2, 2), (2, 2)).unwrap()[0].matmul(Write::Add, 1.0, lhs, rhs).unwrap();
        assert_eq!(matrix, [7.0; 4]);
        tiles(&mut matrix, (2, 2), (2, 2)).unwrap()[0].matmul(Write::Replace, 1.0, lhs, rhs).unwrap();
        assert_eq!(matrix, [0.0; 4]);
    }

    #[test]
    fn a_matrix_of_another_size_has_no_tiles() {
        assert!(tiles(&mut [0f32; 5], (2, 3), (1, 1)).is_err());
        assert!(tiles::<f32>(&mut [], (0, 3), (1, 1)).unwrap().is_empty());
    }
}
