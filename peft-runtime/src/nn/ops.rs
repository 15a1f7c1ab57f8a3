//! The functions of `candle_nn::ops`, with backward passes.
//!
//! candle's fused functions compute without a graph, so that whatever comes before them does not train. These have the same names, arguments
//! and values. Functions that already have backward passes are candle's own.

use candle_core::{D, Result, Tensor};

use crate::ops::attention::kernel::visible_keys;
use crate::ops::attention::{AttentionOptions, attention};
use crate::ops::graph::attach::with_gradient;

pub use candle_nn::ops::{
    Identity, dropout, hard_sigmoid, layer_norm_slow, leaky_relu, log_softmax, mish, pixel_shuffle,
    pixel_unshuffle, replication_pad2d, rms_norm_slow, selu, sigmoid, silu, softmax, swiglu,
};

/// The softmax over the last dimension.
///
/// # Errors
/// If `xs` is a scalar, or does not hold floats.
pub fn softmax_last_dim(xs: &Tensor) -> Result<Tensor> {
    let y = candle_nn::ops::softmax_last_dim(&xs.detach().contiguous()?)?;
    let probabilities = y.clone();
    with_gradient(xs, y, move |grad| {
        let product = (grad * &probabilities)?;
        let total = product.sum_keepdim(D::Minus1)?;
        product - probabilities.broadcast_mul(&total)?
    })
}

/// `x / √(mean(x²) + eps) · alpha` over the last dimension, for `alpha` of its length. <https://arxiv.org/abs/1910.07467>
///
/// # Errors
/// If the sizes differ, or the tensors do not hold floats.
pub fn rms_norm(xs: &Tensor, alpha: &Tensor, eps: f32) -> Result<Tensor> {
    crate::ops::norm::rms_norm(xs, alpha, eps.into())
}

/// `(x − mean) / √(variance + eps) · alpha + beta` over the last dimension, for `alpha` and `beta` of its length.
/// <https://arxiv.org/abs/1607.06450>
///
/// # Errors
/// If the sizes differ, or the tensors do not hold floats.
pub fn layer_norm(xs: &Tensor, alpha: &Tensor, beta: &Tensor, eps: f32) -> Result<Tensor> {
    crate::ops::norm::layer_norm(xs, alpha, Some(beta), eps.into())
}

/// Scaled dot-product attention, which in candle has no kernel for the CPU: softmax(q·kᵀ·scale + mask)·v.
///
/// `q` has shape `[batch, heads, length, size]`, `k` `[batch, kv_heads, keys, size]`, `v` `[batch, kv_heads, keys, value_size]`; `heads` is a
/// multiple of `kv_heads`. `mask` is added to the scores, and its shape broadcasts to `[batch, heads, length, keys]`. With `do_causal`, a query
/// sees only the keys up to its own position, the last query being at the position of the last key. A `softcapping` other than 1 makes the
/// scores `tanh(score / softcapping) · softcapping`.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use peft_runtime::nn::ops::sdpa;
///
/// let q = Tensor::rand(0f32, 1.0, (1, 4, 3, 8), &Device::Cpu)?;
/// let k = Tensor::rand(0f32, 1.0, (1, 2, 5, 8), &Device::Cpu)?;
/// assert_eq!(sdpa(&q, &k, &k, None, true, 0.35, 1.0)?.dims(), [1, 4, 3, 8]);
/// # Ok::<(), candle_core::Error>(())
/// ```
///
/// # Errors
/// If the shapes do not fit, or the tensors do not hold floats of one dtype.
pub fn sdpa(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    mask: Option<&Tensor>,
    do_causal: bool,
    scale: f32,
    softcapping: f32,
) -> Result<Tensor> {
    if mask.is_none() && softcapping == 1.0 && k.dims() == v.dims() {
        let options = AttentionOptions { scale: scale.into(), causal: do_causal, mask: None, dropout: None };
        let turned = |tensor: &Tensor| tensor.transpose(1, 2);
        return attention(&turned(q)?, &turned(k)?, &turned(v)?, &options)?.transpose(1, 2)?.contiguous();
    }
    let (batch, heads, length, size) = q.dims4()?;
    let (_, kv_heads, keys, _) = k.dims4()?;
    if kv_heads == 0 || !heads.is_multiple_of(kv_heads) {
        candle_core::bail!("{heads} heads of queries are not a multiple of {kv_heads} heads of keys")
    }
    // The heads of queries that share keys are rows of one product.
    let rows = q.contiguous()?.reshape((batch, kv_heads, heads / kv_heads * length, size))?;
    let scores = rows.matmul(&k.transpose(2, 3)?.contiguous()?)?.affine(scale.into(), 0.0)?;
    let mut scores = scores.reshape((batch, heads, length, keys))?;
    if softcapping != 1.0 {
        let cap = f64::from(softcapping);
        scores = scores.affine(1.0 / cap, 0.0)?.tanh()?.affine(cap, 0.0)?;
    }
    if let Some(mask) = mask {
        scores = scores.broadcast_add(&mask.to_dtype(scores.dtype())?)?;
    }
    if do_causal {
        scores = scores.broadcast_add(&causal_mask(length, keys, &scores)?)?;
    }
    let probabilities =
        softmax_last_dim(&scores)?.reshape((batch, kv_heads, heads / kv_heads * length, keys))?;
    probabilities.matmul(&v.contiguous()?)?.reshape((batch, heads, length, v.dim(3)?))
}

/// `[length, keys]`: −∞ where a key comes after the query.
fn causal_mask(length: usize, keys: usize, like: &Tensor) -> Result<Tensor> {
    let value = |query, key| if key < visible_keys(query, length, keys) { 0.0 } else { f32::NEG_INFINITY };
    let values: Vec<f32> = (0..length * keys).map(|place| value(place / keys, place % keys)).collect();
    Tensor::from_vec(values, (length, keys), like.device())?.to_dtype(like.dtype())
}

#[cfg(test)]
mod tests {
    use candle_core::{D, DType, Tensor};

    use super::{causal_mask, layer_norm, rms_norm, sdpa, softmax_last_dim};
    use crate::ops::testing::{assert_agree, assert_close, assert_differences, random};

    #[test]
    fn the_softmax_has_candles_values_and_the_gradient_of_its_slow_one() {
        let inputs = [random("x", &[2, 3, 5])];
        assert_agree(
            &|x| softmax_last_dim(&x[0]),
            &|x| candle_nn::ops::softmax(&x[0], D::Minus1),
            &inputs,
            1e-12,
            "softmax",
        );
        assert_differences(&|x| softmax_last_dim(&x[0]), &inputs, 1e-6, "softmax");
        let x = random("x", &[4, 7]).to_dtype(DType::F32).unwrap();
        let theirs = candle_nn::ops::softmax_last_dim(&x).unwrap();
        assert_close(&softmax_last_dim(&x).unwrap(), &theirs, 0.0, "candle's fused softmax");
    }

    #[test]
    fn norms_agree_with_candles_slow_ones_in_values_and_gradients() {
        let inputs = [random("x", &[2, 3, 6]), random("alpha", &[6]), random("beta", &[6])];
        let eps = 1e-5;
        assert_agree(
            &|t| rms_norm(&t[0], &t[1], eps),
            &|t| candle_nn::ops::rms_norm_slow(&t[0], &t[1], eps),
            &inputs[..2],
            1e-6,
            "rms_norm",
        );
        assert_agree(
            &|t| layer_norm(&t[0], &t[1], &t[2], eps),
            &|t| candle_nn::ops::layer_norm_slow(&t[0], &t[1], &t[2], eps),
            &inputs,
            1e-6,
            "layer_norm",
        );
    }

    /// The definition, with keys and values repeated for each head.
    fn defined(
        inputs: &[Tensor],
        mask: Option<&Tensor>,
        causal: bool,
        cap: f64,
    ) -> candle_core::Result<Tensor> {
        let (q, heads) = (&inputs[0], inputs[0].dim(1)?);
        let repeated = |tensor: &Tensor| {
            let times = heads / tensor.dim(1)?;
            let indices: Vec<u32> = (0..heads).map(|head| (head / times) as u32).collect();
            tensor.index_select(&Tensor::new(indices, tensor.device())?, 1)
        };
        let (k, v) = (repeated(&inputs[1])?, repeated(&inputs[2])?);
        let mut scores = (q.matmul(&k.transpose(2, 3)?.contiguous()?)? * 0.5)?;
        if cap != 1.0 {
            scores = ((scores / cap)?.tanh()? * cap)?;
        }
        if let Some(mask) = mask {
            scores = scores.broadcast_add(mask)?;
        }
        if causal {
            scores = scores.broadcast_add(&causal_mask(q.dim(2)?, k.dim(2)?, &scores)?)?;
        }
        candle_nn::ops::softmax(&scores, D::Minus1)?.matmul(&v)
    }

    #[test]
    fn attention_is_that_of_the_definition_with_every_option() {
        let inputs = [random("q", &[2, 4, 3, 6]), random("k", &[2, 2, 5, 6]), random("v", &[2, 2, 5, 6])];
        let wide = [inputs[0].clone(), inputs[1].clone(), random("v", &[2, 2, 5, 3])];
        let mask = random("mask", &[2, 1, 3, 5]);
        for (inputs, mask, causal, cap) in [
            (&inputs, None, false, 1.0),
            (&inputs, None, true, 1.0),
            (&inputs, Some(&mask), false, 1.0),
            (&inputs, Some(&mask), true, 0.5),
            (&inputs, None, true, 2.0),
            (&wide, None, true, 1.0),
        ] {
            let what = format!("mask {}, causal {causal}, cap {cap}", mask.is_some());
            assert_agree(
                &|t| sdpa(&t[0], &t[1], &t[2], mask, causal, 0.5, cap as f32),
                &|t| defined(t, mask, causal, cap),
                inputs,
                1e-9,
                &what,
            );
        }
    }

    #[test]
    fn heads_that_do_not_share_keys_evenly_are_refused() {
        let (q, k) = (random("q", &[1, 3, 2, 4]), random("k", &[1, 2, 2, 4]));
        let error = sdpa(&q, &k, &k, None, false, 1.0, 2.0).unwrap_err();
        assert!(error.to_string().contains("3 heads of queries are not a multiple of 2 heads of keys"));
        assert!(sdpa(&q, &k, &k, None, false, 1.0, 1.0).is_err());
    }
}
