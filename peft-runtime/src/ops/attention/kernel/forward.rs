//! The output, and what the backward pass needs to know about the scores.

use std::ops::Range;

use candle_core::Result;

use super::{Attention, Block, QUERY_BLOCK, Sizes};
use crate::ops::cpu::float::{Factor, Float};
use crate::ops::cpu::matrix::{Matrix, Write};
use crate::ops::cpu::real::Real;
use crate::ops::cpu::softmax::softmax;
use crate::ops::cpu::threads::try_for_each_with;

/// Rows and heads that one task computes.
struct Task {
    batch: usize,
    rows: Range<usize>,
    heads: Range<usize>,
}

impl Sizes {
    /// Rows and heads of a task: all heads of some rows, or, if there is a single row, the heads that share keys.
    fn task_sizes(&self) -> (usize, usize) {
        if self.length == 1 {
            (1, self.group())
        } else {
            (self.length.div_ceil(8).clamp(16, QUERY_BLOCK), self.heads)
        }
    }

    fn task(&self, batch: usize, index: usize) -> Task {
        let (rows, heads) = self.task_sizes();
        if self.length == 1 {
            return Task { batch, rows: 0..1, heads: index * heads..(index + 1) * heads };
        }
        let start = index * rows;
        Task { batch, rows: start..(start + rows).min(self.length), heads: 0..heads }
    }
}

/// What a thread reuses from task to task: the scores of a block, its part of the output, and room for a row of that.
#[derive(Default)]
struct Scratch<W> {
    scores: Vec<W>,
    output: Vec<W>,
    row: Vec<W>,
}

impl<T: Float> Attention<'_, T> {
    /// The output, `[batch, length, heads, size]`, and the logarithm of each row's sum, `[batch, length, heads]`.
    pub(crate) fn forward(&self) -> Result<(Vec<T>, Vec<T::Wide>)> {
        let Sizes { batch, length, heads, size, .. } = self.sizes;
        let mut y = vec![T::from_f64(0.0); batch * length * heads * size];
        let mut log_sums = vec![T::Wide::NEG_INFINITY; batch * length * heads];
        let (task_rows, task_heads) = self.sizes.task_sizes();
        let (rows_of_task, rows_of_batch) = (task_rows * task_heads, (length * heads).max(1));
        let batches = y.chunks_mut(rows_of_batch * size).zip(log_sums.chunks_mut(rows_of_batch));
        let tasks = batches.enumerate().flat_map(|(batch, (y, log_sums))| {
            let tasks = y.chunks_mut(rows_of_task * size).zip(log_sums.chunks_mut(rows_of_task));
            tasks.enumerate().map(move |(index, rows)| (batch, index, rows))
        });
        try_for_each_with(tasks, Scratch::default, |scratch, (batch, index, (y, log_sums))| {
            self.forward_task(&self.sizes.task(batch, index), y, log_sums, scratch)
        })?;
        Ok((y, log_sums))
    }

    /// `y` and `log_sums` start as zeros and −∞, which rows that see nothing keep.
    fn forward_task(
        &self,
        task: &Task,
        y: &mut [T],
        log_sums: &mut [T::Wide],
        scratch: &mut Scratch<T::Wide>,
    ) -> Result<()> {
        let Sizes { size, .. } = self.sizes;
        let (rows, heads) = (task.rows.len(), task.heads.len());
        let visible = self.sizes.visible(task.rows.end - 1);
        if visible == 0 {
            return Ok(());
        }
        scratch.scores.resize(rows * visible, T::Wide::ZERO);
        scratch.output.resize(rows * size, T::Wide::ZERO);
        for (index, head) in task.heads.clone().enumerate() {
            let scores = &mut scratch.scores;
            let block = Block { batch: task.batch, head, rows: task.rows.clone() };
            self.scores(&block, visible, scores)?;
            for (offset, scores) in scores.chunks_mut(visible).enumerate() {
                let row = task.rows.start + offset;
                let (seen, unseen) = scores.split_at_mut(self.sizes.visible(row));
                unseen.fill(T::Wide::ZERO);
                let bias = self.bias_of(task.batch, seen.len());
                log_sums[offset * heads + index] = softmax(seen, bias);
                self.drop_keys(&block, row, seen);
            }
            let probabilities = Factor::Computed(Matrix::contiguous(scores, rows, visible)?);
            let values = Factor::Read(self.v.rows(task.batch, head / self.sizes.group(), 0..visible)?);
            T::multiply(&mut scratch.output, size, Write::Replace, 1.0, probabilities, values)?;
            for (y, output) in y.chunks_mut(heads * size).zip(scratch.output.chunks(size)) {
                let y = &mut y[index * size..][..size];
                T::write(y, &mut scratch.row, |y| y.copy_from_slice(output));
            }
        }
        Ok(())
    }
}
