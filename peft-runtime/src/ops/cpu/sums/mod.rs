//! Sums of products whose factors and result may be of half precision: summed in f32, and each element rounded once.

use std::cell::Cell;
use std::ops::Range;

use candle_core::{Result, bail};

use super::element::Element;
use super::gemm::named::check_names;
use super::matmul::SHARED;
use super::matrix::Write;
use super::operand::Operand;
use super::slices::{add, first};
use super::threads::{self, try_for_each};
use super::tile::{Tile, UNIT, rows_of, steps, tiles};

/// The most rows that a thread works on at once, so that the left factors of its products, widened, stay in its cache.
const ROWS: usize = 256;

/// The most columns, so that the sums do.
const COLUMNS: usize = 1024;

/// With fewer rows, the columns are cut into more parts than there are threads: these finish at about the same time even
/// if some are slowed down.
const FEW_ROWS: usize = 8;
const PARTS_OF_FEW_ROWS: usize = 2;

/// `scale · lhs · rhs`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Term<'a> {
    pub(crate) scale: f64,
    pub(crate) lhs: Operand<'a>,
    pub(crate) rhs: Operand<'a>,
}

impl<'a> Term<'a> {
    /// What it contributes to some rows and columns of the sum.
    fn block(&self, rows: &Range<usize>, columns: &Range<usize>) -> Result<Term<'a>> {
        let inner = 0..self.lhs.columns();
        let (lhs, rhs) =
            (self.lhs.block(rows.clone(), inner.clone())?, self.rhs.block(inner, columns.clone())?);
        Ok(Term { scale: self.scale, lhs, rhs })
    }
}

/// `destination (+)= bias + Σ terms`, with a row-major destination of shape `(rows, columns)` and one bias for each column.
pub(crate) fn sum_into<T: Element>(
    destination: &mut [T],
    (rows, columns): (usize, usize),
    write: Write,
    bias: Option<&[f32]>,
    terms: &[Term<'_>],
) -> Result<()> {
    check((rows, columns), bias, terms)?;
    check_names()?;
    let depth: usize = terms.iter().map(|term| term.lhs.columns()).sum();
    let threads = if rows * columns * depth < SHARED { 1 } else { threads::count() };
    let parts = if rows < FEW_ROWS { threads * PARTS_OF_FEW_ROWS } else { threads };
    let widest = columns.div_ceil(parts).next_multiple_of(UNIT).min(COLUMNS);
    let (row_step, column_step) = steps(rows, columns, UNIT, widest);
    let run = |mut tile: Tile<'_, T>| {
        if let Some(mut tile) = tile.as_f32() {
            return add_terms(&mut tile, write, bias, terms);
        }
        rounded(&mut tile, write, bias, terms)
    };
    let tiles = tiles(destination, (rows, columns), (row_step.min(ROWS), column_step))?;
    if threads == 1 { tiles.into_iter().try_for_each(run) } else { try_for_each(tiles, run) }
}

/// `destination (+)= scale · lhs · rhs`, summed in f32, on the calling thread only, for callers that run on all threads already. The
/// rows of the destination start `row_stride` elements apart; what lies between them is left as it is.
pub(super) fn mixed_serial(
    destination: &mut [f32],
    row_stride: usize,
    write: Write,
    scale: f64,
    lhs: Operand<'_>,
    rhs: Operand<'_>,
) -> Result<()> {
    let (rows, columns) = (lhs.rows(), rhs.columns());
    if rows * columns == 0 {
        return Ok(());
    }
    if row_stride < columns || destination.len() < (rows - 1) * row_stride + columns {
        bail!("{rows} rows of {columns}, {row_stride} apart, do not fit {} elements", destination.len())
    }
    let mut tile = rows_of(destination, row_stride, rows, columns);
    tile.multiply(write, scale, lhs, rhs)
}

/// An error if a term or the bias does not fit.
fn check(shape: (usize, usize), bias: Option<&[f32]>, terms: &[Term<'_>]) -> Result<()> {
    for Term { lhs, rhs, .. } in terms {
        if (lhs.rows(), rhs.columns()) != shape || lhs.columns() != rhs.rows() {
            bail!(
                "cannot multiply {}x{} by {}x{} into a sum of shape {shape:?}",
                lhs.rows(),
                lhs.columns(),
                rhs.rows(),
                rhs.columns()
            )
        }
    }
    match bias {
        Some(bias) if bias.len() != shape.1 => bail!("{} biases do not fit {} columns", bias.len(), shape.1),
        _ => Ok(()),
    }
}

thread_local! {
    /// The sums of a thread's tile before they are rounded. It is kept because fresh memory costs more than rounding.
    static SUMS: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

/// A tile of half precision: its sums are computed elsewhere.
fn rounded<T: Element>(
    tile: &mut Tile<'_, T>,
    write: Write,
    bias: Option<&[f32]>,
    terms: &[Term<'_>],
) -> Result<()> {
    let (rows, columns) = (tile.rows(), tile.columns());
    let (height, width) = (rows.len(), columns.len());
    let mut space = SUMS.take();
    let sums = first(&mut space, height * width);
    if write == Write::Add {
        sums.chunks_exact_mut(width).zip(tile.slices()).for_each(|(sums, before)| T::widen(before, sums));
    }
    let bias = bias.map(|bias| &bias[columns.clone()]);
    let terms = terms.iter().map(|term| term.block(&rows, &columns)).collect::<Result<Vec<_>>>()?;
    for mut sums in tiles(sums, (height, width), (height, width))? {
        add_terms(&mut sums, write, bias, &terms)?;
    }
    sums.chunks_exact(width).zip(tile.slices()).for_each(|(sums, rounded)| T::round(sums, rounded));
    SUMS.set(space);
    Ok(())
}

/// The sum in f32.
fn add_terms(
    tile: &mut Tile<'_, f32>,
    mut write: Write,
    bias: Option<&[f32]>,
    terms: &[Term<'_>],
) -> Result<()> {
    let (rows, columns) = (tile.rows(), tile.columns());
    if let Some(bias) = bias {
        let bias = &bias[columns.clone()];
        match write {
            Write::Replace => tile.slices().for_each(|sums| sums.copy_from_slice(bias)),
            Write::Add => tile.slices().for_each(|sums| add(sums, bias)),
        }
        write = Write::Add;
    }
    for term in terms.iter().filter(|term| term.lhs.columns() > 0) {
        let Term { scale, lhs, rhs } = term.block(&rows, &columns)?;
        tile.multiply(write, scale, lhs, rhs)?;
        write = Write::Add;
    }
    if write == Write::Replace {
        tile.slices().for_each(|sums| sums.fill(0.0));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
