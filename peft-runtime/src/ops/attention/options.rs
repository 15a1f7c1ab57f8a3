//! The settings of a call of attention: its options, its sizes and its mask.

use candle_core::{DType, Result, Tensor, bail};

use super::kernel::Sizes;
use crate::ops::dropout::DropoutMask;

/// How [`attention`](super::attention) weighs keys.
#[derive(Clone, Copy, Debug)]
pub struct AttentionOptions<'a> {
    /// What the scores are multiplied by, usually `1 / √head_dim`.
    pub scale: f64,
    /// Whether a query sees only the keys up to its own position. With more keys than queries, as with a cache, the
    /// last query is at the position of the last key.
    pub causal: bool,
    /// `[batch, keys]` of 0 and 1 in any dtype: 1 where a key may be attended to, as transformers' `attention_mask` has it.
    pub mask: Option<&'a Tensor>,
    /// Which of the probabilities are dropped: what [`Dropout::draw`](crate::nn::Dropout::draw) gives for one call.
    pub dropout: Option<DropoutMask>,
}

/// The sizes of a call, or an error if the shapes do not fit.
pub(super) fn sizes(q: &Tensor, k: &Tensor, v: &Tensor, options: &AttentionOptions<'_>) -> Result<Sizes> {
    let (batch, length, heads, size) = q.dims4()?;
    let (_, keys, kv_heads, _) = k.dims4()?;
    let fits = k.dims() == [batch, keys, kv_heads, size] && k.dims() == v.dims();
    if !fits || kv_heads == 0 || size == 0 || heads == 0 || !heads.is_multiple_of(kv_heads) {
        bail!(
            "queries of shape {:?} cannot attend to keys of shape {:?} and values of shape {:?}; expected \
             [batch, length, heads, head_dim], and for both keys and values [batch, keys, kv_heads, head_dim], with \
             heads a multiple of kv_heads",
            q.dims(),
            k.dims(),
            v.dims()
        )
    }
    let AttentionOptions { scale, causal, .. } = *options;
    Ok(Sizes { batch, length, keys, heads, kv_heads, size, causal, scale })
}

/// The mask in order of `[batch, keys]`.
pub(super) fn attended(mask: &Tensor, sizes: &Sizes) -> Result<Vec<bool>> {
    let expected = [sizes.batch, sizes.keys];
    if mask.dims() != expected {
        bail!("the mask has shape {:?}, expected [batch, keys], here {expected:?}", mask.dims())
    }
    let values = mask.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
    Ok(values.into_iter().map(|value| value != 0.0).collect())
}
