//! Attention from candle's own differentiable ops, for devices that have no kernel.

use candle_core::{D, DType, Device, Result, Tensor};

use super::kernel::Sizes;
use crate::ops::constant::{add_constant, mul_constant};
use crate::ops::dropout::DropoutMask;

/// The attention of all queries, with all scores at once.
pub(super) fn composed(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    sizes: &Sizes,
    mask: Option<&[bool]>,
    dropout: Option<DropoutMask>,
) -> Result<Tensor> {
    let internal = match q.dtype() {
        DType::F16 | DType::BF16 => DType::F32,
        dtype => dtype,
    };
    let heads_first = |tensor: &Tensor| tensor.to_dtype(internal)?.transpose(1, 2)?.contiguous();
    let (q_heads, k, v) = (heads_first(q)?, heads_first(k)?, heads_first(v)?);
    let (k, v) = (repeated(&k, sizes)?, repeated(&v, sizes)?);
    let scores = (q_heads.matmul(&k.transpose(2, 3)?.contiguous()?)? * sizes.scale)?;
    let allowed = allowed(sizes, mask)?.to_dtype(internal)?.to_device(q.device())?;
    // A row with nothing to attend to has a sum of zero; dividing by one instead leaves its zeros as they are.
    let empty = allowed.max_keepdim(D::Minus1)?.affine(-1.0, 1.0)?;
    let allowed = allowed.broadcast_as(scores.shape())?;
    let far_below = allowed.affine(1e30, -1e30)?;
    let scores = add_constant(&mul_constant(&scores, &allowed)?, &far_below)?;
    let highest = scores.detach().max_keepdim(D::Minus1)?.broadcast_as(scores.shape())?;
    let exponentials = add_constant(&scores, &highest.neg()?)?.exp()?;
    let exponentials = mul_constant(&exponentials, &allowed)?;
    let sums = exponentials.sum_keepdim(D::Minus1)?;
    let sums = add_constant(&sums, &empty.broadcast_as(sums.shape())?)?;
    let probabilities = exponentials.broadcast_div(&sums)?;
    let probabilities = match dropout {
        Some(mask) => {
            let factors = factors(sizes, mask)?.to_dtype(internal)?.to_device(q.device())?;
            mul_constant(&probabilities, &factors)?
        }
        None => probabilities,
    };
    let y = probabilities.matmul(&v)?;
    y.transpose(1, 2)?.contiguous()?.to_dtype(q.dtype())
}

/// What dropout multiplies the probabilities by: `[batch, heads, length, keys]`.
fn factors(sizes: &Sizes, mask: DropoutMask) -> Result<Tensor> {
    let Sizes { batch, length, keys, heads, .. } = *sizes;
    let mut factors = vec![1f64; batch * heads * length * keys];
    for (index, factors) in factors.chunks_mut(keys.max(1)).enumerate() {
        let (of_batch, of_head) = (index / (heads * length), index / length % heads);
        mask.apply(sizes.row_index(of_batch, index % length, of_head), factors);
    }
    Tensor::from_vec(factors, (batch, heads, length, keys), &Device::Cpu)
}

/// `[batch, kv_heads, keys, size]` with each head repeated for every query head that shares it.
fn repeated(heads: &Tensor, sizes: &Sizes) -> Result<Tensor> {
    let Sizes { batch, keys, heads: query_heads, kv_heads, size, .. } = *sizes;
    let apart = heads.reshape((batch, kv_heads, 1, keys, size))?;
    let apart = apart.broadcast_as((batch, kv_heads, sizes.group(), keys, size))?.contiguous()?;
    apart.reshape((batch, query_heads, keys, size))
}

/// 1 where a query may attend to a key, else 0: `[batch or 1, 1, length, keys]`.
fn allowed(sizes: &Sizes, mask: Option<&[bool]>) -> Result<Tensor> {
    let batch = if mask.is_some() { sizes.batch } else { 1 };
    let mut allowed = Vec::with_capacity(batch * sizes.length * sizes.keys);
    for index in 0..batch {
        for row in 0..sizes.length {
            let visible = sizes.visible(row);
            allowed.extend((0..sizes.keys).map(|key| {
                let attended = mask.is_none_or(|mask| mask[index * sizes.keys + key]);
                if attended && key < visible { 1f32 } else { 0.0 }
            }));
        }
    }
    Tensor::from_vec(allowed, (batch, 1, sizes.length, sizes.keys), &Device::Cpu)
}
