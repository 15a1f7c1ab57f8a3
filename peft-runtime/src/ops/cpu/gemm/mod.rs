//! One matrix product, by the kernel that suits its shape, its type and the processor: the crate's own on packed panels, or
//! the library `gemm`.

mod panels;

use candle_core::WithDType;
use gemm::Parallelism;

use self::panels::Destination;
use super::clock::timed;
use super::matrix::{Matrix, Write};

/// The matrices as f32 matrices, if they are of f32 and panels of the right one are worth packing.
pub(super) fn panel_factors<'a, T: WithDType>(
    lhs: Matrix<'a, T>,
    rhs: Matrix<'a, T>,
) -> Option<(Matrix<'a, f32>, Matrix<'a, f32>)> {
    let (lhs, rhs) = (lhs.as_f32()?, rhs.as_f32()?);
    panels::takes(lhs, rhs).then_some((lhs, rhs))
}

/// `destination (+)= scale · lhs · rhs`, into rows that are `row_stride` elements apart, for factors that fit; an empty inner
/// dimension makes a product of zeros.
///
/// # Safety
/// `destination` points to as many rows as `lhs` has, each of as many elements as `rhs` has columns, and nothing else
/// reads or writes those elements meanwhile.
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
        && lhs.columns() > 0
        && let Some((lhs, rhs)) = panel_factors(lhs, rhs)
    {
        let destination = Destination { start: destination.cast(), row_stride, write, scale: scale as f32 };
        // SAFETY: the caller vouches for the destination; its elements are f32, like those of the factors.
        return timed(1, || unsafe { panels::multiply(destination, lhs, rhs) });
    }
    let threads = match parallelism {
        Parallelism::None => 1,
        Parallelism::Rayon(threads) => threads,
    };
    let (lhs_strides, rhs_strides) = (lhs.strides(), rhs.strides());
    timed(threads, || {
        // SAFETY: `Matrix::new` checked that every element of `lhs` and `rhs` lies in its slice, and the caller vouches
        // for the destination, which therefore overlaps neither.
        unsafe {
            gemm::gemm(
                lhs.rows(),
                rhs.columns(),
                lhs.columns().min(rhs.rows()),
                destination,
                1,
                row_stride as isize,
                write == Write::Add,
                lhs.data().as_ptr(),
                lhs_strides.1 as isize,
                lhs_strides.0 as isize,
                rhs.data().as_ptr(),
                rhs_strides.1 as isize,
                rhs_strides.0 as isize,
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
