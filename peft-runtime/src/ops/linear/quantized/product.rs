//! Products with a quantized matrix, which is dequantized a tile at a time and never as a whole.
//!
//! A thread dequantizes a tile into memory of its own and multiplies it there. Each tile produces its own part of the
//! result, so threads have nothing to add up. The values are bit for bit those of the dense matrix: unlike in candle's
//! `QMatMul`, the other factor is not rounded. For a factor of bf16 they are rounded to bf16, as those of a dense bf16 weight are.

use std::cell::Cell;
use std::ops::Range;

use candle_core::{Result, WithDType};
use half::bf16;

use crate::ops::cpu::dequantize::QuantizedMatrix;
use crate::ops::cpu::element::Element;
use crate::ops::cpu::matrix::{Matrix, Write};
use crate::ops::cpu::real::Real;
use crate::ops::cpu::slices::first;
use crate::ops::cpu::threads::try_for_each_with;
use crate::ops::cpu::tile::{Tile, UNIT, steps, tiles};

/// The most bytes that a tile has: they leave room in a core's own cache.
const TILE_BYTES: usize = 512 * 1024;

/// The same limit if the other factor has at most [`FEW_ROWS`] rows: a tile is then read as soon as it is written.
const SMALL_TILE_BYTES: usize = 64 * 1024;
const FEW_ROWS: usize = 8;

/// How many rows of the matrix are multiplied at a time in the backward pass, whatever the number of threads: the order
/// of the sum depends on this.
const DEPTH: usize = 512;

/// About how many values are rounded at a time.
const ROUNDED: usize = 4096;

/// `y (+)= x·Wᵀ` for `x` of shape `[rows, in]`, `W` `[out, in]` and `y` `[rows, out]`.
pub(super) fn multiply_transposed<F: Factor>(
    y: &mut [F::Sum],
    write: Write,
    x: &[F],
    rows: usize,
    weight: &QuantizedMatrix<'_>,
) -> Result<()> {
    let (out_features, in_features) = (weight.rows(), weight.columns());
    let x = Matrix::contiguous(x, rows, in_features)?;
    let bytes = if rows <= FEW_ROWS { SMALL_TILE_BYTES } else { TILE_BYTES };
    let steps = steps(rows, out_features, UNIT, bytes / size_of::<F>() / in_features.max(1));
    for_each(tiles(y, (rows, out_features), steps)?, |tile, scratch| {
        let dense = F::dense(weight, tile.columns(), 0..in_features, scratch)?;
        let x = x.block(tile.rows(), 0..in_features)?;
        F::multiply(tile, write, x, dense.transposed())
    })
}

/// `x·W` for `x` of shape `[rows, out]` and `W` `[out, in]`: `[rows, in]`.
pub(super) fn product<F: Factor>(x: &[F], rows: usize, weight: &QuantizedMatrix<'_>) -> Result<Vec<F::Sum>> {
    let (out_features, in_features) = (weight.rows(), weight.columns());
    let x = Matrix::contiguous(x, rows, out_features)?;
    let mut y = vec![F::Sum::ZERO; rows * in_features];
    let steps = steps(rows, in_features, UNIT.max(weight.block_size()), TILE_BYTES / size_of::<F>() / DEPTH);
    for_each(tiles(&mut y, (rows, in_features), steps)?, |tile, scratch| {
        for start in (0..out_features).step_by(DEPTH) {
            let depth = start..out_features.min(start + DEPTH);
            let dense = F::dense(weight, depth.clone(), tile.columns(), scratch)?;
            let write = if start == 0 { Write::Replace } else { Write::Add };
            F::multiply(tile, write, x.block(tile.rows(), depth)?, dense)?;
        }
        Ok(())
    })?;
    Ok(y)
}

thread_local! {
    /// Where the thread dequantizes tiles. It is kept because fresh memory costs more than dequantizing.
    static SCRATCH: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };

    /// Where it rounds them.
    static ROUNDED_TILE: Cell<Vec<bf16>> = const { Cell::new(Vec::new()) };
}

/// What a quantized matrix is multiplied with: a tile of the matrix becomes dense in the same type.
pub(in crate::ops::linear) trait Factor: WithDType {
    /// What products are summed in.
    type Sum: Real;

    /// Some rows and columns of `matrix` in this type.
    fn dense<'s>(
        matrix: &QuantizedMatrix<'_>,
        rows: Range<usize>,
        columns: Range<usize>,
        scratch: &'s mut Scratch<Self>,
    ) -> Result<Matrix<'s, Self>>;

    /// `tile (+)= lhs · rhs`.
    fn multiply(
        tile: &mut Tile<'_, Self::Sum>,
        write: Write,
        lhs: Matrix<'_, Self>,
        rhs: Matrix<'_, Self>,
    ) -> Result<()>;

    /// The thread's memory for tiles of this type, if it keeps any.
    fn kept() -> Vec<Self> {
        Vec::new()
    }

    /// Keeps it for the next call.
    fn keep(_: Vec<Self>) {}
}

impl<T: Real> Factor for T {
    type Sum = Self;

    fn dense<'s>(
        matrix: &QuantizedMatrix<'_>,
        rows: Range<usize>,
        columns: Range<usize>,
        scratch: &'s mut Scratch<Self>,
    ) -> Result<Matrix<'s, Self>> {
        let (height, width) = (rows.len(), columns.len());
        let values = first(&mut scratch.values, height * width);
        matrix.dequantize(rows, columns, values)?;
        Matrix::contiguous(Self::widened(values, &mut scratch.converted), height, width)
    }

    fn multiply(
        tile: &mut Tile<'_, Self>,
        write: Write,
        lhs: Matrix<'_, Self>,
        rhs: Matrix<'_, Self>,
    ) -> Result<()> {
        tile.matmul(write, 1.0, lhs, rhs)
    }
}

impl Factor for bf16 {
    type Sum = f32;

    /// A few rows at a time are rounded while they are in the first cache.
    fn dense<'s>(
        matrix: &QuantizedMatrix<'_>,
        rows: Range<usize>,
        columns: Range<usize>,
        scratch: &'s mut Scratch<Self>,
    ) -> Result<Matrix<'s, Self>> {
        let (height, width) = (rows.len(), columns.len());
        let step = (ROUNDED / width.max(1)).max(1);
        let rounded = first(&mut scratch.converted, height * width);
        for (start, rounded) in rows.clone().step_by(step).zip(rounded.chunks_mut((step * width).max(1))) {
            let values = first(&mut scratch.values, rounded.len());
            matrix.dequantize(start..rows.end.min(start + step), columns.clone(), values)?;
            Self::round(values, rounded);
        }
        Matrix::contiguous(rounded, height, width)
    }

    fn kept() -> Vec<Self> {
        ROUNDED_TILE.take()
    }

    fn keep(memory: Vec<Self>) {
        ROUNDED_TILE.set(memory);
    }

    fn multiply(
        tile: &mut Tile<'_, f32>,
        write: Write,
        lhs: Matrix<'_, Self>,
        rhs: Matrix<'_, Self>,
    ) -> Result<()> {
        tile.multiply(write, 1.0, lhs.into(), rhs.into())
    }
}

/// A thread's memory for one dense tile.
pub(in crate::ops::linear) struct Scratch<F: Factor> {
    values: Vec<f32>,
    converted: Vec<F>,
}

impl<F: Factor> Drop for Scratch<F> {
    fn drop(&mut self) {
        SCRATCH.set(std::mem::take(&mut self.values));
        F::keep(std::mem::take(&mut self.converted));
    }
}

/// Calls `work` for every tile, on all threads.
fn for_each<'a, F: Factor>(
    tiles: Vec<Tile<'a, F::Sum>>,
    work: impl Fn(&mut Tile<'a, F::Sum>, &mut Scratch<F>) -> Result<()> + Sync,
) -> Result<()> {
    let scratch = || Scratch { values: SCRATCH.take(), converted: F::kept() };
    try_for_each_with(tiles, scratch, |scratch, mut tile| work(&mut tile, scratch))
}

#[cfg(test)]
mod tests {
    use candle_core::quantized::{GgmlDType, QTensor};
    use candle_core::{DType, Device, Tensor};

    use super::{DEPTH, Write, multiply_transposed, product};
    use crate::ops::cpu::dequantize::QuantizedMatrix;
    use crate::ops::testing::{assert_close, random, random_as};

    /// Sizes with several tiles and depths, and with edges that are not multiples of anything.
    #[test]
    fn products_of_many_tiles_are_those_of_the_dense_matrix() {
        let (rows, out_features, in_features) = (70, DEPTH * 2 + 75, 1056);
        let weight = random_as(DType::F32, "weight", &[out_features, in_features]);
        let weight = QTensor::quantize(&weight, GgmlDType::Q4_0).unwrap();
        let dense = weight.dequantize(&Device::Cpu).unwrap().to_dtype(DType::F64).unwrap();
        let matrix = QuantizedMatrix::new(&weight).unwrap();
        let values = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f64>().unwrap();
        let check = |product: Vec<f64>, expected: &Tensor| {
            let product = Tensor::from_vec(product, expected.dims(), &Device::Cpu).unwrap();
            assert_close(&product, expected, 1e-13, "a product of many tiles");
        };

        let x = random("x", &[rows, in_features]);
        let mut y = vec![1f64; rows * out_features];
        multiply_transposed(&mut y, Write::Add, &values(&x), rows, &matrix).unwrap();
        check(y, &(x.matmul(&dense.t().unwrap()).unwrap() + 1.0).unwrap());

        let x = random("x", &[rows, out_features]);
        check(product(&values(&x), rows, &matrix).unwrap(), &x.matmul(&dense).unwrap());
    }

    #[test]
    fn no_rows_and_wrong_sizes() {
        let weight = Tensor::zeros((3, 32), DType::F32, &Device::Cpu).unwrap();
        let weight = QTensor::quantize(&weight, GgmlDType::Q8_0).unwrap();
        let matrix = QuantizedMatrix::new(&weight).unwrap();
        assert!(product::<f32>(&[], 0, &matrix).unwrap().is_empty());
        multiply_transposed::<f32>(&mut [], Write::Replace, &[], 0, &matrix).unwrap();
        assert!(multiply_transposed(&mut [0f32; 4], Write::Replace, &[0f32; 32], 1, &matrix).is_err());
        assert!(multiply_transposed(&mut [0f32; 3], Write::Replace, &[0f32; 31], 1, &matrix).is_err());
    }
}
