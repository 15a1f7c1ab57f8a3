//! Matrix products that can add to what is there.

use std::ops::Range;

use candle_core::{DType, Layout, Result, WithDType, bail};
use gemm::Parallelism;
use rayon::current_num_threads;
use rayon::prelude::*;

use super::clock::timed;
use super::gemm::{self as panels, Destination};
use super::tile::{UNIT, steps, tiles};

/// Products of fewer multiplications than this take less time than waking another thread.
const SHARED: usize = 1 << 18;

/// A matrix of any strides over a slice.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Matrix<'a, T> {
    data: &'a [T],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a, T: WithDType> Matrix<'a, T> {
    /// The same matrix, if its elements are f32.
    fn as_f32(self) -> Option<Matrix<'a, f32>> {
        if T::DTYPE != DType::F32 {
            return None;
        }
        // SAFETY: f32 is the one type of this dtype, so the slice is one of f32 already.
        let data = unsafe { std::slice::from_raw_parts(self.data.as_ptr().cast::<f32>(), self.data.len()) };
        let Self { rows, columns, row_stride, column_stride, .. } = self;
        Some(Matrix { data, rows, columns, row_stride, column_stride })
    }
}

impl<'a, T> Matrix<'a, T> {
    /// A view of `data`; fails if the last element would lie outside of it.
    pub(super) fn new(data: &'a [T], shape: (usize, usize), strides: (usize, usize)) -> Result<Self> {
        let ((rows, columns), (row_stride, column_stride)) = (shape, strides);
        let last = rows.saturating_sub(1) * row_stride + columns.saturating_sub(1) * column_stride;
        if rows * columns > 0 && last >= data.len() {
            bail!("a {rows}x{columns} matrix does not fit {} elements", data.len())
        }
        Ok(Self { data, rows, columns, row_stride, column_stride })
    }

    /// Row-major `data`.
    pub(crate) fn contiguous(data: &'a [T], rows: usize, columns: usize) -> Result<Self> {
        Self::new(data, (rows, columns), (columns, 1))
    }

    /// The two-dimensional tensor that `layout` describes over its storage.
    pub(crate) fn from_layout(data: &'a [T], layout: &Layout) -> Result<Self> {
        let (rows, columns) = layout.shape().dims2()?;
        let (row_stride, column_stride) = (layout.stride()[0], layout.stride()[1]);
        Self::new(
            &data[layout.start_offset().min(data.len())..],
            (rows, columns),
            (row_stride, column_stride),
        )
    }

    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    pub(crate) fn columns(&self) -> usize {
        self.columns
    }

    /// How far apart rows and columns are.
    pub(super) fn strides(&self) -> (usize, usize) {
        (self.row_stride, self.column_stride)
    }

    /// The slice that the matrix is a view of; it begins with the first element.
    pub(super) fn data(&self) -> &'a [T] {
        self.data
    }

    /// Some of the rows and columns.
    pub(crate) fn block(self, rows: Range<usize>, columns: Range<usize>) -> Result<Self> {
        if rows.end > self.rows || columns.end > self.columns {
            bail!(
                "rows {rows:?} and columns {columns:?} are not all in a {}x{} matrix",
                self.rows,
                self.columns
            )
        }
        let start = rows.start * self.row_stride + columns.start * self.column_stride;
        let strides = (self.row_stride, self.column_stride);
        Self::new(&self.data[start.min(self.data.len())..], (rows.len(), columns.len()), strides)
    }

    /// The same elements with rows and columns exchanged.
    pub(crate) fn transposed(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }
}

/// How a product meets the values that are in its place already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Write {
    /// It replaces them.
    Replace,
    /// It is added to them.
    Add,
}

/// `destination (+)= scale · lhs · rhs`, with a row-major destination. `T` is f32 or f64.
pub(crate) fn matmul_into<T: WithDType>(
    destination: &mut [T],
    write: Write,
    scale: f64,
    lhs: Matrix<'_, T>,
    rhs: Matrix<'_, T>,
) -> Result<()> {
    let (rows, columns, inner) = (lhs.rows, rhs.columns, lhs.columns);
    if inner != rhs.rows || destination.len() != rows * columns {
        bail!("cannot multiply {rows}x{inner} by {}x{columns} into {} elements", rhs.rows, destination.len())
    }
    if inner == 0 && write == Write::Replace {
        destination.fill(T::from_f64(0.0));
    }
    if rows * columns * inner == 0 {
        return Ok(());
    }
    let threads = if rows * columns * inner < SHARED { 1 } else { current_num_threads() };
    if threads > 1 && panel_factors(lhs, rhs).is_some() {
        let steps = steps(rows, columns, UNIT, columns.div_ceil(threads).next_multiple_of(UNIT));
        return tiles(destination, (rows, columns), steps)?.into_par_iter().try_for_each(|mut tile| {
            let (lhs, rhs) = (lhs.block(tile.rows(), 0..inner)?, rhs.block(0..inner, tile.columns())?);
            tile.matmul(write, scale, lhs, rhs)
        });
    }
    let parallelism = if threads > 1 { Parallelism::Rayon(threads) } else { Parallelism::None };
    // SAFETY: the destination holds exactly `rows * columns` elements, and it is borrowed mutably.
    unsafe { multiply(destination.as_mut_ptr(), columns, write, scale, lhs, rhs, parallelism) };
    Ok(())
}

/// The same on the calling thread alone, for callers that run on all threads already. The rows of the destination start
/// `row_stride` elements apart; what lies between them is left as it is.
pub(super) fn matmul_serial<T: WithDType>(
    destination: &mut [T],
    row_stride: usize,
    write: Write,
    scale: f64,
    lhs: Matrix<'_, T>,
    rhs: Matrix<'_, T>,
) -> Result<()> {
    let (rows, columns, inner) = (lhs.rows, rhs.columns, lhs.columns);
    if inner != rhs.rows {
        bail!("cannot multiply {rows}x{inner} by {}x{columns}", rhs.rows)
    }
    if rows * columns == 0 {
        return Ok(());
    }
    if row_stride < columns || destination.len() < (rows - 1) * row_stride + columns {
        bail!("{rows} rows of {columns}, {row_stride} apart, do not fit {} elements", destination.len())
    }
    // SAFETY: the last element of the last row lies in the destination, which is borrowed mutably.
    unsafe { multiply(destination.as_mut_ptr(), row_stride, write, scale, lhs, rhs, Parallelism::None) };
    Ok(())
}

/// The matrices as matrices of f32, if they are, and panels of the right one are worth packing.
fn panel_factors<'a, T: WithDType>(
    lhs: Matrix<'a, T>,
    rhs: Matrix<'a, T>,
) -> Option<(Matrix<'a, f32>, Matrix<'a, f32>)> {
    let (lhs, rhs) = (lhs.as_f32()?, rhs.as_f32()?);
    panels::takes(lhs, rhs).then_some((lhs, rhs))
}

/// The same into rows that are `row_stride` elements apart, for factors that fit; an empty inner dimension makes a
/// product of zeros.
///
/// # Safety
/// `destination` points to as many rows as `lhs` has, each of as many elements as `rhs` has columns, and nobody else reads
/// or writes those elements meanwhile.
pub(super) unsafe fn multiply<T: WithDType>(
    destination: *mut T,
    row_stride: usize,
    write: Write,
    scale: f64,
    lhs: Matrix<'_, T>,
    rhs: Matrix<'_, T>,
    parallelism: Parallelism,
) {
    if matches!(parallelism, Parallelism::None)
        && lhs.columns > 0
        && let Some((lhs, rhs)) = panel_factors(lhs, rhs)
    {
        let destination = Destination { start: destination.cast(), row_stride, write, scale: scale as f32 };
        // SAFETY: the caller vouches for the destination; its elements are f32, as those of the factors.
        return timed(1, || unsafe { panels::multiply(destination, lhs, rhs) });
    }
    let threads = match parallelism {
        Parallelism::None => 1,
        Parallelism::Rayon(threads) => threads,
    };
    timed(threads, || {
        // SAFETY: `Matrix::new` checked that every element of `lhs` and `rhs` lies in its slice, and the caller vouches
        // for the destination, which for that reason overlaps neither.
        unsafe {
            gemm::gemm(
                lhs.rows,
                rhs.columns,
                lhs.columns.min(rhs.rows),
                destination,
                1,
                row_stride as isize,
                write == Write::Add,
                lhs.data.as_ptr(),
                lhs.column_stride as isize,
                lhs.row_stride as isize,
                rhs.data.as_ptr(),
                rhs.column_stride as isize,
                rhs.row_stride as isize,
                T::from_f64(1.0),
                T::from_f64(scale),
                false,
                false,
                false,
                parallelism,
            );
        }
    });
}

#[cfg(test)]
mod tests {
    use super::{Matrix, Write, matmul_into, matmul_serial};

    #[test]
    fn the_product_is_added_to_or_replaces_the_destination() {
        let lhs = [1f32, 2., 3., 4., 5., 6.];
        let rhs = [1f32, 0., 0., 1., 1., 1.];
        let lhs = Matrix::contiguous(&lhs, 2, 3).unwrap();
        let rhs = Matrix::contiguous(&rhs, 3, 2).unwrap();
        let mut y = [100f32, 100., 100., 100.];
        matmul_into(&mut y, Write::Add, 2.0, lhs, rhs).unwrap();
        assert_eq!(y, [108., 110., 120., 122.]);
        matmul_into(&mut y, Write::Replace, 1.0, lhs, rhs).unwrap();
        assert_eq!(y, [4., 5., 10., 11.]);
    }

    #[test]
    fn an_empty_inner_dimension_gives_zeros_or_leaves_what_is_there() {
        let (lhs, rhs) =
            (Matrix::<f32>::contiguous(&[], 2, 0).unwrap(), Matrix::contiguous(&[], 0, 1).unwrap());
        let mut y = [7f32, 8.];
        matmul_into(&mut y, Write::Add, 1.0, lhs, rhs).unwrap();
        assert_eq!(y, [7., 8.]);
        matmul_into(&mut y, Write::Replace, 1.0, lhs, rhs).unwrap();
        assert_eq!(y, [0., 0.]);
    }

    #[test]
    fn views_outside_their_slice_are_refused() {
        assert!(Matrix::contiguous(&[1f32; 5], 2, 3).is_err());
        let matrix = [0f32; 6];
        let matrix = Matrix::contiguous(&matrix, 2, 3).unwrap();
        assert!(matrix.block(0..3, 0..1).is_err() && matrix.block(0..2, 2..4).is_err());
        let block = matrix.block(1..2, 1..3).unwrap();
        assert_eq!((block.rows(), block.columns()), (1, 2));
    }

    #[test]
    fn rows_apart_leave_what_is_between_them() {
        let (lhs, rhs) = ([1f64, 2., 3., 4.], [1f64, 1., 0., 1.]);
        let lhs = Matrix::contiguous(&lhs, 2, 2).unwrap();
        let rhs = Matrix::contiguous(&rhs, 2, 2).unwrap();
        let mut y = [9f64; 5];
        matmul_serial(&mut y, 3, Write::Replace, 1.0, lhs, rhs).unwrap();
        assert_eq!(y, [1., 3., 9., 3., 7.]);
        assert!(matmul_serial(&mut y[..4], 3, Write::Add, 1.0, lhs, rhs).is_err());
    }
}
