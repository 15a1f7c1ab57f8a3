//! The gradients, from scores that are computed again block by block.
//!
//! With P the probabilities and M the mask of dropout, which holds 0 and 1 / (1 − p): dV = (P ∘ M)ᵀ·dO, dP = M ∘ (dO·Vᵀ),
//! dS = P ∘ (dP − rowsum(dO ∘ O)), dQ = s·dS·K, dK = s·dSᵀ·Q. <https://arxiv.org/abs/2205.14135>

use std::ops::Range;

use candle_core::{Result, WithDType};

use super::{Attention, Block, Heads, QUERY_BLOCK, Sizes};
use crate::ops::cpu::float::{Factor, Float};
use crate::ops::cpu::matrix::{Matrix, Write};
use crate::ops::cpu::real::Real;
use crate::ops::cpu::slices::{add, dot};
use crate::ops::cpu::softmax::{softmax_again, softmax_gradient};
use crate::ops::cpu::threads::{for_each, map};

/// From this many pairs of a sequence and a key head on, one task takes all query heads that share the keys.
const ENOUGH_TASKS: usize = 16;

/// What a backward pass reads.
pub(crate) struct Backward<'a, T: Float> {
    pub(crate) attention: Attention<'a, T>,
    /// The output and its gradient, in order.
    pub(crate) y: &'a [T],
    pub(crate) dy: &'a [T],
    pub(crate) log_sums: &'a [T::Wide],
    /// Whether the queries, the keys and the values need gradients.
    pub(crate) wanted: [bool; 3],
}

/// The gradients of one task, each empty if it is not needed: of the queries `[heads, length, size]`, of the keys and
/// the values `[keys, size]`, summed over the task's query heads.
struct TaskGradients<T> {
    queries: Vec<T>,
    keys: Vec<T>,
    values: Vec<T>,
}

/// What a task reuses from block to block.
#[derive(Default)]
struct Scratch<T> {
    probabilities: Vec<T>,
    gradients: Vec<T>,
    /// Room for a row of the output, and for its gradient.
    rows: [Vec<T>; 2],
}

impl<T: Float> Backward<'_, T> {
    /// The gradients of queries, keys and values, each in the order of its dimensions.
    pub(crate) fn run(&self) -> Result<[Option<Vec<T::Wide>>; 3]> {
        let Sizes { batch, length, keys, heads, kv_heads, size, .. } = self.attention.sizes;
        let share = self.heads_of_task();
        let tasks = heads / share;
        let parts = map(0..batch * tasks, |task| {
            let first = task % tasks * share;
            self.part(task / tasks, first..first + share)
        });
        let parts = parts.into_iter().collect::<Result<Vec<TaskGradients<T::Wide>>>>()?;

        let of_queries = self.wanted[0].then(|| {
            interleaved([batch, length, heads, size], |piece, batch, row, head| {
                let part = &parts[batch * tasks + head / share];
                piece.copy_from_slice(&part.queries[(head % share * length + row) * size..][..size]);
            })
        });
        let parts_of_head = tasks / kv_heads;
        let of_keys = |select: fn(&TaskGradients<T::Wide>) -> &[T::Wide]| {
            interleaved([batch, keys, kv_heads, size], |piece, batch, row, head| {
                let first = batch * tasks + head * parts_of_head;
                for part in &parts[first..first + parts_of_head] {
                    add(piece, &select(part)[row * size..][..size]);
                }
            })
        };
        let keys_gradient = self.wanted[1].then(|| of_keys(|part| part.keys.as_slice()));
        let values_gradient = self.wanted[2].then(|| of_keys(|part| part.values.as_slice()));
        Ok([of_queries, keys_gradient, values_gradient])
    }

    /// The number of query heads that one task computes. It depends only on shapes, and so does the order of additions.
    fn heads_of_task(&self) -> usize {
        let sizes = self.attention.sizes;
        if sizes.batch * sizes.kv_heads < ENOUGH_TASKS { 1 } else { sizes.group() }
    }

    /// The gradients through query heads that share their keys.
    fn part(&self, batch: usize, heads: Range<usize>) -> Result<TaskGradients<T::Wide>> {
        let Sizes { length, keys, size, .. } = self.attention.sizes;
        let buffer =
            |wanted: bool, elements: usize| vec![T::Wide::ZERO; if wanted { elements * size } else { 0 }];
        let mut part = TaskGradients {
            queries: buffer(self.wanted[0], heads.len() * length),
            keys: buffer(self.wanted[1], keys),
            values: buffer(self.wanted[2], keys),
        };
        let mut scratch = Scratch::default();
        for (index, head) in heads.enumerate() {
            for start in (0..length).step_by(QUERY_BLOCK) {
                let rows = start..(start + QUERY_BLOCK).min(length);
                let visible = self.attention.sizes.visible(rows.end - 1);
                if visible == 0 {
                    continue;
                }
                let block = Block { batch, head, rows };
                self.probabilities(&block, visible, &mut scratch.probabilities)?;
                self.add_scores(&block, visible, index, &mut scratch, &mut part)?;
                self.add_values(&block, visible, &mut scratch, &mut part)?;
            }
        }
        Ok(part)
    }

    fn probabilities(&self, block: &Block, visible: usize, probabilities: &mut Vec<T::Wide>) -> Result<()> {
        probabilities.resize(block.rows.len() * visible, T::Wide::ZERO);
        self.attention.scores(block, visible, probabilities)?;
        for (row, scores) in block.rows.clone().zip(probabilities.chunks_mut(visible)) {
            let (seen, unseen) = scores.split_at_mut(self.attention.sizes.visible(row));
            unseen.fill(T::Wide::ZERO);
            let bias = self.attention.bias_of(block.batch, seen.len());
            softmax_again(seen, bias, self.log_sums[self.row_index(block, row)]);
        }
        Ok(())
    }

    /// dV += (P ∘ M)ᵀ·dO; the scratch then holds P ∘ M.
    fn add_values(
        &self,
        block: &Block,
        visible: usize,
        scratch: &mut Scratch<T::Wide>,
        part: &mut TaskGradients<T::Wide>,
    ) -> Result<()> {
        if !self.wanted[2] {
            return Ok(());
        }
        let size = self.attention.sizes.size;
        for (row, probabilities) in block.rows.clone().zip(scratch.probabilities.chunks_mut(visible)) {
            self.attention.drop_keys(block, row, probabilities);
        }
        let probabilities = Matrix::contiguous(&scratch.probabilities, block.rows.len(), visible)?;
        let probabilities = Factor::Computed(probabilities.transposed());
        let values = &mut part.values[..visible * size];
        T::multiply(values, size, Write::Add, 1.0, probabilities, self.output_gradient(block)?)
    }

    /// dQ += s·dS·K and dK += s·dSᵀ·Q; `index` is the place of the block's head in the task.
    fn add_scores(
        &self,
        block: &Block,
        visible: usize,
        index: usize,
        scratch: &mut Scratch<T::Wide>,
        part: &mut TaskGradients<T::Wide>,
    ) -> Result<()> {
        if !self.wanted[0] && !self.wanted[1] {
            return Ok(());
        }
        let Sizes { length, size, scale, .. } = self.attention.sizes;
        let (rows, kv_head) = (block.rows.len(), block.head / self.attention.sizes.group());
        scratch.gradients.resize(rows * visible, T::Wide::ZERO);
        let values = Factor::Read(self.attention.v.rows(block.batch, kv_head, 0..visible)?.transposed());
        let gradients = &mut scratch.gradients;
        T::multiply(gradients, visible, Write::Replace, 1.0, self.output_gradient(block)?, values)?;
        let pairs = gradients.chunks_mut(visible).zip(scratch.probabilities.chunks(visible));
        for (row, (gradients, probabilities)) in block.rows.clone().zip(pairs) {
            self.attention.drop_keys(block, row, gradients);
            let mean = self.mean(block, row, gradients, probabilities, &mut scratch.rows);
            softmax_gradient(gradients, probabilities, mean);
        }
        let gradients = Matrix::contiguous(&scratch.gradients, rows, visible)?;
        if self.wanted[0] {
            let keys = Factor::Read(self.attention.k.rows(block.batch, kv_head, 0..visible)?);
            let start = (index * length + block.rows.start) * size;
            let queries = &mut part.queries[start..][..rows * size];
            T::multiply(queries, size, Write::Replace, scale, Factor::Computed(gradients), keys)?;
        }
        if self.wanted[1] {
            let queries = Factor::Read(self.attention.q.rows(block.batch, block.head, block.rows.clone())?);
            let keys = &mut part.keys[..visible * size];
            T::multiply(keys, size, Write::Add, scale, Factor::Computed(gradients.transposed()), queries)?;
        }
        Ok(())
    }

    /// rowsum(dO ∘ O) of a query, which is rowsum(dP ∘ P): the second where O was rounded.
    fn mean(
        &self,
        block: &Block,
        row: usize,
        gradients: &[T::Wide],
        probabilities: &[T::Wide],
        [wide_y, wide_dy]: &mut [Vec<T::Wide>; 2],
    ) -> T::Wide {
        if T::DTYPE != T::Wide::DTYPE {
            let seen = self.attention.sizes.visible(row).min(gradients.len());
            return dot(&gradients[..seen], &probabilities[..seen]);
        }
        let size = self.attention.sizes.size;
        let start = self.row_index(block, row) * size;
        let (y, dy) = (&self.y[start..][..size], &self.dy[start..][..size]);
        dot(T::read(y, wide_y), T::read(dy, wide_dy))
    }

    fn output_gradient(&self, block: &Block) -> Result<Factor<'_, T>> {
        let Sizes { length, heads, size, .. } = self.attention.sizes;
        let gradient = Heads::contiguous(self.dy, [length, heads, size]);
        Ok(Factor::Read(gradient.rows(block.batch, block.head, block.rows.clone())?))
    }

    /// The place of a query in `[batch, length, heads]`.
    fn row_index(&self, block: &Block, row: usize) -> usize {
        self.attention.sizes.row_index(block.batch, row, block.head)
    }
}

/// A new tensor `[batch, rows, heads, size]`; `fill` gets each piece of `size` zeros with its batch, row and head.
fn interleaved<T: Real>(
    [batch, rows, heads, size]: [usize; 4],
    fill: impl Fn(&mut [T], usize, usize, usize) + Sync,
) -> Vec<T> {
    let mut all = vec![T::ZERO; batch * rows * heads * size];
    for_each(all.chunks_mut(heads * size).enumerate(), |(index, row)| {
        for (head, piece) in row.chunks_mut(size).enumerate() {
            fill(piece, index / rows, index % rows, head);
        }
    });
    all
}
