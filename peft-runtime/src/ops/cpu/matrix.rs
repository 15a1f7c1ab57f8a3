//! A matrix as a view of a slice, with any strides.

use std::ops::Range;

use candle_core::{DType, Layout, Result, WithDType, bail};

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
    pub(super) fn as_f32(self) -> Option<Matrix<'a, f32>> {
        if T::DTYPE != DType::F32 {
            return None;
        }
        // SAFETY: f32 is the only type of this dtype, so the slice is one of f32 already.
        let data = unsafe { std::slice::from_raw_parts(self.data.as_ptr().cast::<f32>(), self.data.len()) };
        let Self { rows, columns, row_stride, column_stride, .. } = self;
        Some(Matrix { data, rows, columns, row_stride, column_stride })
    }
}

impl<'a, T> Matrix<'a, T> {
    /// A view of `data`; fails if the last element would lie outside of it.
    pub(crate) fn new(data: &'a [T], shape: (usize, usize), strides: (usize, usize)) -> Result<Self> {
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
    pub(crate) fn strides(&self) -> (usize, usize) {
        (self.row_stride, self.column_stride)
    }

    /// The slice that the matrix is a view of; it begins with the first element.
    pub(crate) fn data(&self) -> &'a [T] {
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

/// What a product does to the values in its destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Write {
    /// It replaces them.
    Replace,
    /// It is added to them.
    Add,
}

#[cfg(test)]
mod tests {
    use super::Matrix;

    #[test]
    fn views_outside_their_slice_are_refused() {
        assert!(Matrix::contiguous(&[1f32; 5], 2, 3).is_err());
        let matrix = [0f32; 6];
        let matrix = Matrix::contiguous(&matrix, 2, 3).unwrap();
        assert!(matrix.block(0..3, 0..1).is_err() && matrix.block(0..2, 2..4).is_err());
        let block = matrix.block(1..2, 1..3).unwrap();
        assert_eq!((block.rows(), block.columns()), (1, 2));
    }
}
