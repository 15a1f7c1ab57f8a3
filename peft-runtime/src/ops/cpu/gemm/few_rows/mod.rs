//! Products of a few rows with a matrix of contiguous columns, as in decoding: x·Wᵀ with a row-major W.
//!
//! Each element of C is a sum over two contiguous slices. Nothing is packed: every value of W is read from memory once,
//! and widened in a register. What a row of W is multiplied by stays in the cache.

mod scalar;
#[cfg(target_arch = "x86_64")]
mod x86;

use half::{bf16, f16};

use crate::ops::cpu::element::Element;
use crate::ops::cpu::gemm::panels::{Destination, MIN_ROWS, SHORT};
use crate::ops::cpu::matrix::{Matrix, Write};

/// The most rows of A that go through one column of B together.
const ROWS: usize = 4;

/// Whether this module multiplies such matrices: fewer rows of A than panels are worth, contiguous rows of A, and
/// contiguous columns of B that are not short.
pub(super) fn takes<R>(lhs: Matrix<'_, f32>, rhs: Matrix<'_, R>) -> bool {
    lhs.rows() < MIN_ROWS && lhs.columns() > SHORT && lhs.strides().1 == 1 && rhs.strides().0 == 1
}

/// `destination (+)= scale · lhs · rhs`.
///
/// # Safety
/// The destination has as many rows as `lhs` and as many columns as `rhs`, and nothing else reads or writes them
/// meanwhile. The matrices are such as [`takes`] accepts.
pub(super) unsafe fn multiply<R: Sums>(destination: Destination, lhs: Matrix<'_, f32>, rhs: Matrix<'_, R>) {
    for column in 0..rhs.columns() {
        let values = &rhs.data()[column * rhs.strides().1..][..lhs.columns()];
        for first in (0..lhs.rows()).step_by(ROWS) {
            // SAFETY: the caller vouches for the destination and for contiguous rows.
            unsafe {
                match lhs.rows() - first {
                    1 => multiply_column::<R, 1>(destination, lhs, first, column, values),
                    2 => multiply_column::<R, 2>(destination, lhs, first, column, values),
                    3 => multiply_column::<R, 3>(destination, lhs, first, column, values),
                    _ => multiply_column::<R, ROWS>(destination, lhs, first, column, values),
                }
            }
        }
    }
}

/// `M` rows of one column of the destination, beginning with row `first`.
///
/// # Safety
/// As for [`multiply`].
#[inline(always)]
unsafe fn multiply_column<R: Sums, const M: usize>(
    destination: Destination,
    lhs: Matrix<'_, f32>,
    first: usize,
    column: usize,
    values: &[R],
) {
    let row = |i: usize| lhs.data()[(first + i) * lhs.strides().0..][..values.len()].as_ptr();
    // SAFETY: each row was cut from its slice with this length.
    let sums = unsafe { R::sums(std::array::from_fn::<_, M, _>(row), values) };
    for (i, sum) in sums.into_iter().enumerate() {
        let place = destination.start.wrapping_add((first + i) * destination.row_stride + column);
        let sum = destination.scale * sum;
        // SAFETY: the caller vouches for this element.
        unsafe {
            match destination.write {
                Write::Replace => *place = sum,
                Write::Add => *place += sum,
            }
        }
    }
}

/// An element that sums of products are computed with.
pub(super) trait Sums: Element {
    /// Σ x·y for slices that begin at `rows` and are as long as `column`.
    ///
    /// # Safety
    /// Each of `rows` points to as many values as `column` has.
    unsafe fn sums<const M: usize>(rows: [*const f32; M], column: &[Self]) -> [f32; M];
}

macro_rules! impl_sums {
    ($($type:ty),+) => {$(
        impl Sums for $type {
            #[inline(always)]
            unsafe fn sums<const M: usize>(rows: [*const f32; M], column: &[Self]) -> [f32; M] {
                #[cfg(target_arch = "x86_64")]
                if let Some(vectors) = x86::Vectors::widest() {
                    // SAFETY: the processor has these vectors, and the caller vouches for the rows.
                    return unsafe { vectors.sums(rows, column) };
                }
                // SAFETY: the caller vouches for the rows.
                unsafe { scalar::sums(rows, column) }
            }
        }
    )+};
}

impl_sums!(f32, bf16, f16);

#[cfg(test)]
mod tests;
