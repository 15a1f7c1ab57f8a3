//! A factor of a product whose dtype is known at run time.

use std::ops::Range;

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, Layout, Result, bail};
use half::{bf16, f16};

use super::element::Element;
use super::matrix::Matrix;

/// A matrix of floats that f32 holds exactly.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Operand<'a> {
    F32(Matrix<'a, f32>),
    Bf16(Matrix<'a, bf16>),
    F16(Matrix<'a, f16>),
}

/// Evaluates an expression with the matrix of an operand, whatever its type.
macro_rules! with_matrix {
    ($operand:expr, $matrix:ident => $value:expr) => {
        match $operand {
            $crate::ops::cpu::operand::Operand::F32($matrix) => $value,
            $crate::ops::cpu::operand::Operand::Bf16($matrix) => $value,
            $crate::ops::cpu::operand::Operand::F16($matrix) => $value,
        }
    };
}

pub(super) use with_matrix;

/// [`with_matrix`] where the value is an operand of the same type again.
macro_rules! map_matrix {
    ($operand:expr, $matrix:ident => $value:expr) => {
        match $operand {
            Operand::F32($matrix) => Operand::F32($value),
            Operand::Bf16($matrix) => Operand::Bf16($value),
            Operand::F16($matrix) => Operand::F16($value),
        }
    };
}

impl<'a> Operand<'a> {
    /// The two-dimensional tensor that `layout` describes over its storage.
    pub(crate) fn from_storage(storage: &'a CpuStorage, layout: &Layout) -> Result<Self> {
        Ok(match storage {
            CpuStorage::F32(data) => Self::F32(Matrix::from_layout(data, layout)?),
            CpuStorage::BF16(data) => Self::Bf16(Matrix::from_layout(data, layout)?),
            CpuStorage::F16(data) => Self::F16(Matrix::from_layout(data, layout)?),
            storage => {
                bail!("products that are summed in f32 take f32, bf16 and f16, not {:?}", storage.dtype())
            }
        })
    }

    pub(crate) fn rows(&self) -> usize {
        with_matrix!(self, matrix => matrix.rows())
    }

    pub(crate) fn columns(&self) -> usize {
        with_matrix!(self, matrix => matrix.columns())
    }

    /// The same elements with rows and columns exchanged.
    pub(crate) fn transposed(self) -> Self {
        map_matrix!(self, matrix => matrix.transposed())
    }

    /// Some of the rows and columns.
    pub(crate) fn block(self, rows: Range<usize>, columns: Range<usize>) -> Result<Self> {
        Ok(map_matrix!(self, matrix => matrix.block(rows, columns)?))
    }

    /// The matrix in f32; one of another type is written into `space`, in the same order.
    pub(super) fn wide<'s>(self, space: &'s mut Vec<f32>) -> Result<Matrix<'s, f32>>
    where
        'a: 's,
    {
        match self {
            Self::F32(matrix) => Ok(matrix),
            Self::Bf16(matrix) => widened(matrix, space),
            Self::F16(matrix) => widened(matrix, space),
        }
    }
}

/// The elements in f32, with contiguous columns if those of `matrix` are, and else with contiguous rows.
fn widened<'s, T: Element>(matrix: Matrix<'_, T>, space: &'s mut Vec<f32>) -> Result<Matrix<'s, f32>> {
    if matrix.strides().0 == 1 && matrix.strides().1 != 1 {
        return Ok(widened(matrix.transposed(), space)?.transposed());
    }
    let (rows, columns) = (matrix.rows(), matrix.columns());
    let (row_stride, column_stride) = matrix.strides();
    if space.len() < rows * columns {
        space.resize(rows * columns, 0.0);
    }
    let space = &mut space[..rows * columns];
    for (row, wide) in space.chunks_exact_mut(columns.max(1)).enumerate() {
        let values = &matrix.data()[row * row_stride..];
        if column_stride == 1 {
            T::widen(&values[..columns], wide);
        } else {
            wide.iter_mut()
                .enumerate()
                .for_each(|(column, wide)| *wide = values[column * column_stride].wide());
        }
    }
    Matrix::contiguous(space, rows, columns)
}

impl<'a> From<Matrix<'a, f32>> for Operand<'a> {
    fn from(matrix: Matrix<'a, f32>) -> Self {
        Self::F32(matrix)
    }
}

impl<'a> From<Matrix<'a, bf16>> for Operand<'a> {
    fn from(matrix: Matrix<'a, bf16>) -> Self {
        Self::Bf16(matrix)
    }
}

impl<'a> From<Matrix<'a, f16>> for Operand<'a> {
    fn from(matrix: Matrix<'a, f16>) -> Self {
        Self::F16(matrix)
    }
}
