//! Matrix products that replace what a slice holds, or add to it: on all threads, or on the calling one.

use candle_core::{Result, WithDType, bail};
use gemm::Parallelism;

use super::gemm::named::check_names;
use super::gemm::{multiply, own_factors};
use super::matrix::{Matrix, Write};
use super::threads::{self, try_for_each};
use super::tile::{UNIT, steps, tiles};

/// Products with fewer multiplications than this take less time than waking another thread.
pub(super) const SHARED: usize = 1 << 18;

/// `destination (+)= scale · lhs · rhs`, with a row-major destination. `T` is f32 or f64.
pub(crate) fn matmul_into<T: WithDType>(
    destination: &mut [T],
    write: Write,
    scale: f64,
    lhs: Matrix<'_, T>,
    rhs: Matrix<'_, T>,
) -> Result<()> {
    let (rows, columns, inner) = (lhs.rows(), rhs.columns(), lhs.columns());
    if inner != rhs.rows() || destination.len() != rows * columns {
        bail!(
            "cannot multiply {rows}x{inner} by {}x{columns} into {} elements",
            rhs.rows(),
            destination.len()
        )
    }
    check_names()?;
    if inner == 0 && write == Write::Replace {
        destination.fill(T::from_f64(0.0));
    }
    if rows * columns * inner == 0 {
        return Ok(());
    }
    let threads = if rows * columns * inner < SHARED { 1 } else { threads::count() };
    if threads > 1 && own_factors(lhs, rhs).is_some() {
        let steps = steps(rows, columns, UNIT, columns.div_ceil(threads).next_multiple_of(UNIT));
        return try_for_each(tiles(destination, (rows, columns), steps)?, |mut tile| {
            let (lhs, rhs) = (lhs.block(tile.rows(), 0..inner)?, rhs.block(0..inner, tile.columns())?);
            tile.matmul(write, scale, lhs, rhs)
        });
    }
    let parallelism = if threads > 1 { Parallelism::Rayon(threads) } else { Parallelism::None };
    // SAFETY: the destination holds exactly `rows * columns` elements, and it is borrowed mutably.
    unsafe { multiply(destination.as_mut_ptr(), columns, write, scale, lhs, rhs, parallelism) };
    Ok(())
}

/// [`matmul_into`] on the calling thread only, for callers that run on all threads already. The rows of the destination
/// start `row_stride` elements apart; what lies between them is left as it is.
pub(crate) fn matmul_serial<T: WithDType>(
    destination: &mut [T],
    row_stride: usize,
    write: Write,
    scale: f64,
    lhs: Matrix<'_, T>,
    rhs: Matrix<'_, T>,
) -> Result<()> {
    let (rows, columns, inner) = (lhs.rows(), rhs.columns(), lhs.columns());
    if inner != rhs.rows() {
        bail!("cannot multiply {rows}x{inner} by {}x{columns}", rhs.rows())
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

#[cfg(test)]
mod tests {
    use super::{matmul_into, matmul_serial};
    use crate::ops::cpu::matrix::{Matrix, Write};

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
