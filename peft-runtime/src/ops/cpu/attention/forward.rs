//! The output, and what the backward pass needs of the scores.

use std::ops::Range;

use candle_core::Result;
use rayon::prelude::*;

use super::{Attention, Block, QUERY_BLOCK, Sizes};
use crate::ops::cpu::matmul::{Matrix, Write, matmul_serial};
use crate::ops::cpu::real::Real;
use crate::ops::cpu::softmax::softmax;

/// Rows and heads that one task computes.
struct Tile {
    batch: usize,
    rows: Range<usize>,
    heads: Range<usize>,
}

impl Sizes {
    /// Rows and heads of a tile: all heads of some rows, or, of a single row, the heads that share keys.
    fn tile_sizes(&self) -> (usize, usize) {
        if self.length == 1 {
            (1, self.group())
        } else {
            (self.length.div_ceil(8).clamp(16, QUERY_BLOCK), self.heads)
        }
    }

    fn tile(&self, batch: usize, index: usize) -> Tile {
        let (rows, heads) = self.tile_sizes();
        if self.length == 1 {
            return Tile { batch, rows: 0..1, heads: index * heads..(index + 1) * heads };
        }
        let start = index * rows;
        Tile { batch, rows: start..(start + rows).min(self.length), heads: 0..heads }
    }
}

impl<T: Real> Attention<'_, T> {
    /// The output, `[batch, length, heads, size]`, and the logarithm of each row's sum, `[batch, length, heads]`.
    pub(crate) fn forward(&self) -> Result<(Vec<T>, Vec<T>)> {
        let Sizes { batch, length, heads, size, .. } = self.sizes;
        let mut y = vec![T::ZERO; batch * length * heads * size];
        let mut log_sums = vec![T::NEG_INFINITY; batch * length * heads];
        let (tile_rows, tile_heads) = self.sizes.tile_sizes();
        let (rows_of_tile, rows_of_batch) = (tile_rows * tile_heads, (length * heads).max(1));
        let batches = y.par_chunks_mut(rows_of_batch * size).zip(log_sums.par_chunks_mut(rows_of_batch));
        batches.enumerate().try_for_each(|(batch, (y, log_sums))| {
            let tiles = y.par_chunks_mut(rows_of_tile * size).zip(log_sums.par_chunks_mut(rows_of_tile));
            tiles.enumerate().with_max_len(1).try_for_each_init(Vec::new, |scores, (index, (y, log_sums))| {
                self.forward_tile(&self.sizes.tile(batch, index), y, log_sums, scores)
            })
        })?;
        Ok((y, log_sums))
    }

    /// `y` and `log_sums` start as zeros and −∞, which is what rows that see nothing keep.
    fn forward_tile(&self, tile: &Tile, y: &mut [T], log_sums: &mut [T], scores: &mut Vec<T>) -> Result<()> {
        let Sizes { size, .. } = self.sizes;
        let (rows, heads) = (tile.rows.len(), tile.heads.len());
        let visible = self.sizes.visible(tile.rows.end - 1);
        if visible == 0 {
            return Ok(());
        }
        scores.resize(rows * visible, T::ZERO);
        for (index, head) in tile.heads.clone().enumerate() {
            let block = Block { batch: tile.batch, head, rows: tile.rows.clone() };
            self.scores(&block, visible, scores)?;
            for (offset, scores) in scores.chunks_mut(visible).enumerate() {
                let row = tile.rows.start + offset;
                let (seen, unseen) = scores.split_at_mut(self.sizes.visible(row));
                unseen.fill(T::ZERO);
                let bias = self.bias_of(tile.batch, seen.len());
                log_sums[offset * heads + index] = softmax(seen, bias);
                self.drop_keys(&block, row, seen);
            }
            let probabilities = Matrix::contiguous(scores, rows, visible)?;
            let values = self.v.rows(tile.batch, head / self.sizes.group(), 0..visible)?;
            let y = &mut y[index * size..];
            matmul_serial(y, heads * size, Write::Replace, 1.0, probabilities, values)?;
        }
        Ok(())
    }
}
