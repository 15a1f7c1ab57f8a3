//! Scaled dot-product attention that never holds the scores of more than one block of queries and one head a thread.

use std::sync::OnceLock;

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp3, D, DType, Device, Layout, Result, Shape, Tensor, bail};

use super::constant::{add_constant, mul_constant};
use super::cpu::attention::{Attention, Backward, Heads, Sizes};
use super::cpu::real::Real;
use super::dropout::DropoutMask;
use super::elements::Elements;
use super::is_half_on_cpu;

/// How [`attention`] weighs keys.
#[derive(Clone, Copy, Debug)]
pub struct AttentionOptions<'a> {
    /// The factor of the scores, as a rule `1 / √head_dim`.
    pub scale: f64,
    /// Whether a query sees keys up to its own position alone. With more keys than queries, as with a cache, the last
    /// query stands beside the last key.
    pub causal: bool,
    /// `[batch, keys]` of 0 and 1 in any dtype: 1 where a key may be attended to, as transformers' `attention_mask` has it.
    pub mask: Option<&'a Tensor>,
    /// Which of the probabilities are dropped: what [`Dropout::draw`](crate::nn::Dropout::draw) gives for one call.
    pub dropout: Option<DropoutMask>,
}

/// `softmax(scale · q·kᵀ)·v` for each head, with dropout on the softmax if the options have it.
///
/// `q` has shape `[batch, length, heads, head_dim]`, `k` and `v` `[batch, keys, kv_heads, head_dim]`; `heads` is a
/// multiple of `kv_heads`, and each head of keys and values serves the next `heads / kv_heads` heads of queries. The
/// output has shape and dtype of `q`. A query that may attend to nothing gives zeros. On the CPU the strides may be any,
/// and half precision is computed in f32 and rounded once.
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
    if is_half_on_cpu(q) {
        let wide = |tensor: &Tensor| tensor.to_dtype(DType::F32);
        return attention(&wide(q)?, &wide(k)?, &wide(v)?, options)?.to_dtype(q.dtype());
    }
    let op = FusedAttention::new(q, k, v, options)?;
    if !q.device().is_cpu() {
        return composed(q, k, v, &op.sizes, op.mask.as_deref(), op.dropout);
    }
    q.apply_op3(k, v, op)
}

fn sizes(q: &Tensor, k: &Tensor, v: &Tensor, options: &AttentionOptions<'_>) -> Result<Sizes> {
    let (batch, length, heads, size) = q.dims4()?;
    let (_, keys, kv_heads, _) = k.dims4()?;
    let fits = k.dims() == [batch, keys, kv_heads, size] && k.dims() == v.dims();
    if !fits || kv_heads == 0 || size == 0 || heads == 0 || !heads.is_multiple_of(kv_heads) {
        bail!(
            "queries of shape {:?} cannot attend to keys of shape {:?} and values of shape {:?}, expected \
             [batch, length, heads, head_dim] and twice [batch, keys, kv_heads, head_dim] with heads a multiple of \
             kv_heads",
            q.dims(),
            k.dims(),
            v.dims()
        )
    }
    let AttentionOptions { scale, causal, .. } = *options;
    Ok(Sizes { batch, length, keys, heads, kv_heads, size, causal, scale })
}

/// The mask in order of `[batch, keys]`.
fn attended(mask: &Tensor, sizes: &Sizes) -> Result<Vec<bool>> {
    let expected = [sizes.batch, sizes.keys];
    if mask.dims() != expected {
        bail!("the mask has shape {:?}, expected [batch, keys], here {expected:?}", mask.dims())
    }
    let values = mask.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
    Ok(values.into_iter().map(|value| value != 0.0).collect())
}

/// The op on the CPU.
pub(super) struct FusedAttention {
    sizes: Sizes,
    mask: Option<Vec<bool>>,
    dropout: Option<DropoutMask>,
    /// What the backward pass needs to form the probabilities anew: `[batch, length, heads]`.
    log_sums: OnceLock<Tensor>,
}

impl FusedAttention {
    /// The op for tensors of these shapes.
    pub(super) fn new(q: &Tensor, k: &Tensor, v: &Tensor, options: &AttentionOptions<'_>) -> Result<Self> {
        let sizes = sizes(q, k, v, options)?;
        let mask = options.mask.map(|mask| attended(mask, &sizes)).transpose()?;
        Ok(Self { sizes, mask, dropout: options.dropout, log_sums: OnceLock::new() })
    }

    fn bias<T: Real>(&self) -> Option<Vec<T>> {
        let bias = |attends: &bool| if *attends { T::ZERO } else { T::NEG_INFINITY };
        self.mask.as_ref().map(|mask| mask.iter().map(bias).collect())
    }

    pub(super) fn forward<T: Real>(
        &self,
        q: Heads<'_, T>,
        k: Heads<'_, T>,
        v: Heads<'_, T>,
    ) -> Result<Vec<T>> {
        let Sizes { batch, length, heads, .. } = self.sizes;
        let (bias, dropout) = (self.bias::<T>(), self.dropout);
        let attention = Attention { sizes: self.sizes, q, k, v, bias: bias.as_deref(), dropout };
        let (y, log_sums) = attention.forward()?;
        // A second value cannot come: an op runs forward once.
        let _ = self.log_sums.set(Tensor::from_vec(log_sums, (batch, length, heads), &Device::Cpu)?);
        Ok(y)
    }

    /// The gradients of queries, keys and values, of those that are wanted, each in the order of its dimensions.
    pub(super) fn gradients<T: Real>(
        &self,
        inputs: [&Tensor; 3],
        wanted: [bool; 3],
        y: &Tensor,
        grad: &Tensor,
    ) -> Result<[Option<Vec<T>>; 3]> {
        let Some(log_sums) = self.log_sums.get() else {
            bail!("the backward pass of an attention came before its forward pass")
        };
        let grad = grad.contiguous()?;
        let elements = inputs.map(Elements::of);
        let others = [y, &grad, log_sums].map(Elements::of);
        let heads = |index: usize| -> Result<Heads<'_, T>> {
            Heads::from_layout(elements[index].data()?, elements[index].layout())
        };
        let (bias, dropout) = (self.bias::<T>(), self.dropout);
        let (q, k, v) = (heads(0)?, heads(1)?, heads(2)?);
        let backward = Backward {
            attention: Attention { sizes: self.sizes, q, k, v, bias: bias.as_deref(), dropout },
            y: others[0].as_slice()?,
            dy: others[1].as_slice()?,
            log_sums: others[2].as_slice()?,
            wanted,
        };
        backward.run()
    }

    fn tracked_gradients<T: Real>(
        &self,
        inputs: [&Tensor; 3],
        y: &Tensor,
        grad: &Tensor,
    ) -> Result<[Option<Tensor>; 3]> {
        in_tensors(self.gradients::<T>(inputs, inputs.map(Tensor::track_op), y, grad)?, inputs)
    }
}

/// Gradients in the shapes of the inputs.
pub(super) fn in_tensors<T: Real>(
    gradients: [Option<Vec<T>>; 3],
    inputs: [&Tensor; 3],
) -> Result<[Option<Tensor>; 3]> {
    let mut found = [None, None, None];
    for ((found, values), input) in found.iter_mut().zip(gradients).zip(inputs) {
        *found = values.map(|values| Tensor::from_vec(values, input.dims(), &Device::Cpu)).transpose()?;
    }
    Ok(found)
}

/// The error of an attention whose operands are no floats of one dtype.
pub(super) fn no_common_float<T>(operands: [&CpuStorage; 3]) -> Result<T> {
    let [q, k, v] = operands.map(BackendStorage::dtype);
    bail!("attention takes floats of one dtype, not {q:?}, {k:?} and {v:?}")
}

impl CustomOp3 for FusedAttention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        ql: &Layout,
        k: &CpuStorage,
        kl: &Layout,
        v: &CpuStorage,
        vl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let y = match (q, k, v) {
            (CpuStorage::F32(q), CpuStorage::F32(k), CpuStorage::F32(v)) => CpuStorage::F32(self.forward(
                Heads::from_layout(q, ql)?,
                Heads::from_layout(k, kl)?,
                Heads::from_layout(v, vl)?,
            )?),
            (CpuStorage::F64(q), CpuStorage::F64(k), CpuStorage::F64(v)) => CpuStorage::F64(self.forward(
                Heads::from_layout(q, ql)?,
                Heads::from_layout(k, kl)?,
                Heads::from_layout(v, vl)?,
            )?),
            (q, k, v) => return no_common_float([q, k, v]),
        };
        Ok((y, ql.shape().clone()))
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        y: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [dq, dk, dv] = match q.dtype() {
            DType::F64 => self.tracked_gradients::<f64>([q, k, v], y, grad)?,
            _ => self.tracked_gradients::<f32>([q, k, v], y, grad)?,
        };
        Ok((dq, dk, dv))
    }
}

/// The same of candle's own differentiable ops, with all scores at once.
fn composed(
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
    // A row with nothing to attend to has a sum of zero; one instead leaves its zeros as they are.
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

/// `[batch, kv_heads, keys, size]` with each head as often as query heads share it.
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

#[cfg(test)]
mod tests;
