//! The floats that kernels read and write, whatever they compute in: f32 for half precision, and else the type itself.

use candle_core::{DType, Result, WithDType};
use half::{bf16, f16};

use super::element::{Element, round_all};
use super::matmul::{matmul_into, matmul_serial};
use super::matrix::{Matrix, Write};
use super::operand::Operand;
use super::real::Real;
use super::sums::{Term, mixed_serial, sum_into};

/// A float, and the type that kernels compute in for it.
pub(crate) trait Float: WithDType {
    /// What kernels compute in.
    type Wide: Real + Default + Float<Wide = Self::Wide>;

    /// The values in the wide type; they are widened into `space` if they have another one.
    fn read<'a>(values: &'a [Self], space: &'a mut Vec<Self::Wide>) -> &'a [Self::Wide];

    /// Has `compute` fill as many wide values, which are then rounded into `values` if these have another type.
    fn write(values: &mut [Self], space: &mut Vec<Self::Wide>, compute: impl FnOnce(&mut [Self::Wide]));

    /// The wide values, each rounded once.
    fn round(wide: Vec<Self::Wide>) -> Vec<Self>;

    /// `destination (+)= scale · lhs · rhs` on the calling thread; the rows of the destination start `row_stride` elements
    /// apart, and what lies between them is left as it is.
    fn multiply(
        destination: &mut [Self::Wide],
        row_stride: usize,
        write: Write,
        scale: f64,
        lhs: Factor<'_, Self>,
        rhs: Factor<'_, Self>,
    ) -> Result<()>;

    /// `destination = lhs · rhs` on all threads, each element rounded once.
    fn matmul(destination: &mut [Self], lhs: Matrix<'_, Self>, rhs: Matrix<'_, Self>) -> Result<()>;

    /// `destination (+)= lhs · rhs` on all threads.
    fn matmul_wide(
        destination: &mut [Self::Wide],
        write: Write,
        lhs: Matrix<'_, Self>,
        rhs: Matrix<'_, Self>,
    ) -> Result<()>;
}

/// A factor of a product: what a kernel reads, or what it has computed.
#[derive(Clone, Copy)]
pub(crate) enum Factor<'a, T: Float> {
    Read(Matrix<'a, T>),
    Computed(Matrix<'a, T::Wide>),
}

impl<T: Float> Factor<'_, T> {
    /// The same elements with rows and columns exchanged.
    pub(crate) fn transposed(self) -> Self {
        match self {
            Self::Read(matrix) => Self::Read(matrix.transposed()),
            Self::Computed(matrix) => Self::Computed(matrix.transposed()),
        }
    }
}

/// The dtype that kernels compute in for another one.
pub(crate) fn wide_dtype(dtype: DType) -> DType {
    if dtype == DType::F64 { DType::F64 } else { DType::F32 }
}

macro_rules! impl_wide {
    ($($type:ty),+) => {$(
        impl Float for $type {
            type Wide = Self;

            #[inline(always)]
            fn read<'a>(values: &'a [Self], _: &'a mut Vec<Self>) -> &'a [Self] {
                values
            }

            #[inline(always)]
            fn write(values: &mut [Self], _: &mut Vec<Self>, compute: impl FnOnce(&mut [Self])) {
                compute(values);
            }

            fn round(wide: Vec<Self>) -> Vec<Self> {
                wide
            }

            fn multiply(
                destination: &mut [Self],
                row_stride: usize,
                write: Write,
                scale: f64,
                lhs: Factor<'_, Self>,
                rhs: Factor<'_, Self>,
            ) -> Result<()> {
                let (Factor::Read(lhs) | Factor::Computed(lhs)) = lhs;
                let (Factor::Read(rhs) | Factor::Computed(rhs)) = rhs;
                matmul_serial(destination, row_stride, write, scale, lhs, rhs)
            }

            fn matmul(destination: &mut [Self], lhs: Matrix<'_, Self>, rhs: Matrix<'_, Self>) -> Result<()> {
                Self::matmul_wide(destination, Write::Replace, lhs, rhs)
            }

            fn matmul_wide(
                destination: &mut [Self],
                write: Write,
                lhs: Matrix<'_, Self>,
                rhs: Matrix<'_, Self>,
            ) -> Result<()> {
                matmul_into(destination, write, 1.0, lhs, rhs)
            }
        }
    )+};
}

impl_wide!(f32, f64);

macro_rules! impl_half {
    ($($type:ty),+) => {$(
        impl Float for $type {
            type Wide = f32;

            fn read<'a>(values: &'a [Self], space: &'a mut Vec<f32>) -> &'a [f32] {
                space.resize(values.len(), 0.0);
                Self::widen(values, space);
                space
            }

            fn write(values: &mut [Self], space: &mut Vec<f32>, compute: impl FnOnce(&mut [f32])) {
                space.resize(values.len(), 0.0);
                compute(space);
                <Self as Element>::round(space, values);
            }

            fn round(wide: Vec<f32>) -> Vec<Self> {
                let mut values = vec![Self::ZERO; wide.len()];
                round_all(&wide, &mut values);
                values
            }

            fn multiply(
                destination: &mut [f32],
                row_stride: usize,
                write: Write,
                scale: f64,
                lhs: Factor<'_, Self>,
                rhs: Factor<'_, Self>,
            ) -> Result<()> {
                let operand = |factor| match factor {
                    Factor::Read(matrix) => Operand::from(matrix),
                    Factor::Computed(matrix) => Operand::from(matrix),
                };
                mixed_serial(destination, row_stride, write, scale, operand(lhs), operand(rhs))
            }

            fn matmul(destination: &mut [Self], lhs: Matrix<'_, Self>, rhs: Matrix<'_, Self>) -> Result<()> {
                one_product(destination, Write::Replace, lhs.into(), rhs.into())
            }

            fn matmul_wide(
                destination: &mut [f32],
                write: Write,
                lhs: Matrix<'_, Self>,
                rhs: Matrix<'_, Self>,
            ) -> Result<()> {
                one_product(destination, write, lhs.into(), rhs.into())
            }
        }
    )+};
}

impl_half!(bf16, f16);

/// `destination (+)= lhs · rhs` on all threads, summed in f32.
fn one_product<T: Element>(
    destination: &mut [T],
    write: Write,
    lhs: Operand<'_>,
    rhs: Operand<'_>,
) -> Result<()> {
    let shape = (lhs.rows(), rhs.columns());
    sum_into(destination, shape, write, None, &[Term { scale: 1.0, lhs, rhs }])
}
