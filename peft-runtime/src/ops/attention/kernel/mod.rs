//! Attention over blocks of queries: only the scores of one block and one head exist at a time.

mod backward;
mod forward;

use std::ops::Range;

use candle_core::{Layout, Result, bail};

use crate::ops::cpu::float::{Factor, Float};
use crate::ops::cpu::matrix::{Matrix, Write};
use crate::ops::dropout::DropoutMask;

pub(crate) use backward::Backward;

/// The most queries whose scores are formed at once.
const QUERY_BLOCK: usize = 64;

/// The sizes of one call: queries `[batch, length, heads, size]`, keys and values `[batch, keys, kv_heads, size]`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    pub(crate) batch: usize,
    pub(crate) length: usize,
    pub(crate) keys: usize,
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) size: usize,
    pub(crate) causal: bool,
    pub(crate) scale: f64,
}

impl Sizes {
    /// The number of query heads that share a head of keys and values.
    pub(crate) fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// How many keys, counted from the first, query `row` sees. The last query is at the position of the last key.
    pub(crate) fn visible(&self, row: usize) -> usize {
        if self.causal { visible_keys(row, self.length, self.keys) } else { self.keys }
    }

    /// The place of a query of one head in `[batch, length, heads]`.
    pub(crate) fn row_index(&self, batch: usize, row: usize, head: usize) -> usize {
        (batch * self.length + row) * self.heads + head
    }
}

/// How many keys, counted from the first, query `row` of `length` sees: the last query is at the position of the last key.
pub(crate) fn visible_keys(row: usize, length: usize, keys: usize) -> usize {
    (row + 1 + keys).saturating_sub(length).min(keys)
}

/// A tensor `[batch, rows, heads, size]` of any strides.
#[derive(Clone, Copy)]
pub(crate) struct Heads<'a, T> {
    data: &'a [T],
    size: usize,
    strides: [usize; 4],
}

impl<'a, T> Heads<'a, T> {
    /// The tensor that `layout` describes over its storage.
    pub(crate) fn from_layout(data: &'a [T], layout: &Layout) -> Result<Self> {
        let (_, _, _, size) = layout.shape().dims4()?;
        let &[batch, rows, heads, elements] = layout.stride() else {
            bail!("a tensor of four dimensions has strides {:?}", layout.stride())
        };
        let data = &data[layout.start_offset().min(data.len())..];
        Ok(Self { data, size, strides: [batch, rows, heads, elements] })
    }

    /// Elements in order, `[batch, rows, heads, size]`.
    fn contiguous(data: &'a [T], [rows, heads, size]: [usize; 3]) -> Self {
        Self { data, size, strides: [rows * heads * size, heads * size, size, 1] }
    }

    /// Some rows of one head, `[rows, size]`.
    fn rows(&self, batch: usize, head: usize, rows: Range<usize>) -> Result<Matrix<'a, T>> {
        let [per_batch, per_row, per_head, per_element] = self.strides;
        let start = batch * per_batch + rows.start * per_row + head * per_head;
        let data = &self.data[start.min(self.data.len())..];
        Matrix::new(data, (rows.len(), self.size), (per_row, per_element))
    }
}

/// A block of queries of one head.
#[derive(Clone, Debug)]
struct Block {
    batch: usize,
    head: usize,
    rows: Range<usize>,
}

/// The operands of one call.
#[derive(Clone, Copy)]
pub(crate) struct Attention<'a, T: Float> {
    pub(crate) sizes: Sizes,
    pub(crate) q: Heads<'a, T>,
    pub(crate) k: Heads<'a, T>,
    pub(crate) v: Heads<'a, T>,
    /// `[batch, keys]`: zero where a key may be attended to, −∞ where not.
    pub(crate) bias: Option<&'a [T::Wide]>,
    /// Which probabilities are dropped: a row of the mask for each query of each head, a place in it for each key.
    pub(crate) dropout: Option<DropoutMask>,
}

impl<T: Float> Attention<'_, T> {
    /// Scaled scores of a block's queries with the first `visible` keys.
    fn scores(&self, block: &Block, visible: usize, scores: &mut [T::Wide]) -> Result<()> {
        let queries = self.q.rows(block.batch, block.head, block.rows.clone())?;
        let keys = self.k.rows(block.batch, block.head / self.sizes.group(), 0..visible)?;
        let (queries, keys) = (Factor::Read(queries), Factor::Read(keys));
        T::multiply(scores, visible, Write::Replace, self.sizes.scale, queries, keys.transposed())
    }

    /// Drops probabilities of the query at `row`, or gradients of them.
    fn drop_keys(&self, block: &Block, row: usize, values: &mut [T::Wide]) {
        if let Some(mask) = &self.dropout {
            mask.apply(self.sizes.row_index(block.batch, row, block.head), values);
        }
    }

    fn bias_of(&self, batch: usize, keys: usize) -> Option<&[T::Wide]> {
        self.bias.map(|bias| &bias[batch * self.sizes.keys..][..keys])
    }
}
