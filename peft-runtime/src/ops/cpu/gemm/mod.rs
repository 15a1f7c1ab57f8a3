//! One matrix product, by the kernel that suits its shape, its type and the processor: the crate's own on packed panels or
//! for few rows, those that have names, or the library `gemm`.

#[cfg(any(test, target_arch = "x86_64"))]
mod bf16;
mod fetch;
mod few_rows;
mod measured;
pub(super) mod named;
mod panels;
mod turn;

use std::cell::Cell;

use candle_core::{Result, WithDType};
use gemm::Parallelism;

use self::few_rows::Sums;
use super::clock::timed;
use super::matrix::{Matrix, Write};
use super::operand::{Operand, with_matrix};

pub(super) use self::panels::Destination;

/// The matrices as f32 matrices, if they are of f32 and one of this crate's kernels is the fastest for them.
pub(super) fn own_factors<'a, T: WithDType>(
    lhs: Matrix<'a, T>,
    rhs: Matrix<'a, T>,
) -> Option<(Matrix<'a, f32>, Matrix<'a, f32>)> {
    let (lhs, rhs) = (lhs.as_f32()?, rhs.as_f32()?);
    (panels::takes(lhs, rhs) || few_rows::takes(lhs, rhs)).then_some((lhs, rhs))
}

/// `destination (+)= scale · lhs · rhs` by one of this crate's kernels, on the calling thread.
///
/// # Safety
/// As for [`multiply_mixed`].
unsafe fn multiply_own<R: Sums>(destination: Destination, lhs: Matrix<'_, f32>, rhs: Matrix<'_, R>) {
    // SAFETY: the caller vouches for the destination.
    timed(1, || unsafe {
        if few_rows::takes(lhs, rhs) {
            few_rows::multiply(destination, lhs, rhs);
        } else {
            panels::multiply(destination, lhs, rhs);
        }
    });
}

/// Whether products of bf16 with bf16 that have this many rows are computed without widening both factors.
pub(crate) fn multiplies_bf16(rows: usize) -> Result<bool> {
    Ok(rows >= panels::MIN_ROWS && named::chosen()?.is_some())
}

thread_local! {
    /// Where the thread widens left factors. It is kept because fresh memory costs more than widening.
    static WIDE: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

/// `destination (+)= scale · lhs · rhs` for factors that fit, of any types, summed in f32 on the calling thread. A left
/// factor of half precision is widened a part of its columns at a time, a right one while it is multiplied.
///
/// # Safety
/// The destination has as many rows as `lhs` and as many columns as `rhs`, and nothing else reads or writes them
/// meanwhile.
pub(super) unsafe fn multiply_mixed(
    mut destination: Destination,
    lhs: Operand<'_>,
    rhs: Operand<'_>,
) -> Result<()> {
    let (rows, inner) = (lhs.rows(), lhs.columns());
    if let (Operand::Bf16(lhs), Operand::Bf16(rhs)) = (lhs, rhs)
        && rows >= panels::MIN_ROWS
        && inner > 0
        && let Some(kernel) = named::chosen()?
    {
        // SAFETY: a kernel that is chosen can run, and the caller vouches for the destination.
        timed(1, || unsafe { kernel.multiply(destination, lhs, rhs) });
        return Ok(());
    }
    // Few rows are small, and what they are multiplied by is best read in order.
    let whole = matches!(lhs, Operand::F32(_)) || rows < panels::MIN_ROWS;
    let step = if whole { inner } else { panels::DEPTH };
    let mut space = WIDE.take();
    for start in (0..inner).step_by(step.max(1)) {
        let depth = start..inner.min(start + step);
        let lhs = lhs.block(0..rows, depth.clone())?.wide(&mut space)?;
        let rhs = rhs.block(depth, 0..rhs.columns())?;
        // SAFETY: the caller vouches for the destination.
        with_matrix!(rhs, rhs => unsafe { multiply_own(destination, lhs, rhs) });
        destination.write = Write::Add;
    }
    WIDE.set(space);
    Ok(())
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
        && let Some((lhs, rhs)) = own_factors(lhs, rhs)
    {
        let destination = Destination { start: destination.cast(), row_stride, write, scale: scale as f32 };
        // SAFETY: the caller vouches for the destination; its elements are f32, like those of the factors.
        return unsafe { multiply_own(destination, lhs, rhs) };
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
