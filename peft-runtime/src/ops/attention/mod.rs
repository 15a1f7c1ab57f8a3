//! Scaled dot-product attention in which a thread never holds the scores of more than one block of queries and one
//! head.

mod composed;
pub(crate) mod kernel;
mod op;
mod options;
pub(crate) mod rotated;

use candle_core::{Result, Tensor};

use self::composed::composed;
use self::op::FusedAttention;

use crate::ops::graph::carried::ApplyCarried;

pub use self::options::AttentionOptions;

/// `softmax(scale · q·kᵀ)·v` for each head, with dropout on the softmax if the options have it.
///
/// `q` has shape `[batch, length, heads, head_dim]`, `k` and `v` `[batch, keys, kv_heads, head_dim]`; `heads` is a
/// multiple of `kv_heads`, and each head of keys and values serves the next `heads / kv_heads` heads of queries. The
/// output has the shape and dtype of `q`. A query that may attend to nothing gives zeros. On the CPU, any strides are
/// accepted, and half precision is computed in f32 and rounded once.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use peft_runtime::nn::{AttentionOptions, attention};
///
/// let q = Tensor::randn(0f32, 1.0, (1, 5, 4, 8), &Device::Cpu)?;
/// let (k, v) = (q.narrow(2, 0, 2)?, Tensor::ones((1, 5, 2, 8), DType::F32, &Device::Cpu)?);
/// let options = AttentionOptions { scale: 8f64.sqrt().recip(), causal: true, mask: None, dropout: None };
/// assert_eq!(attention(&q, &k, &v, &options)?.dims(), [1, 5, 4, 8]);
/// # Ok::<(), candle_core::Error>(())
/// ```
///
/// # Errors
/// If the shapes do not fit, or the tensors do not hold floats of one dtype.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, options: &AttentionOptions<'_>) -> Result<Tensor> {
    let op = FusedAttention::new(q, k, v, options)?;
    if !q.device().is_cpu() {
        return composed(q, k, v, &op.sizes, op.mask.as_deref(), op.dropout);
    }
    q.carry_op3(k, v, op)
}

#[cfg(test)]
mod tests;
