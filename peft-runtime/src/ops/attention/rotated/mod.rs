//! Attention that rotates queries and keys itself, in both passes: the graph keeps only the unrotated ones.

use candle_core::{CpuStorage, CustomOp3, DType, Layout, Result, Shape, Tensor};
use half::{bf16, f16};

use crate::ops::attention::kernel::Heads;
use crate::ops::attention::op::{FusedAttention, in_tensors, no_common_float};
use crate::ops::attention::{AttentionOptions, attention};
use crate::ops::cpu::float::Float;
use crate::ops::elements::contiguous_slice;
use crate::ops::graph::carried::ApplyCarried;
use crate::ops::rotary::{Rotary, rotary};

/// [`attention`] of queries and keys that [`rotary`] rotates; both have to belong to the same tokens.
///
/// The result is that of the two functions one after the other. Training takes less memory: the backward pass rotates
/// the queries and keys again. A cache holds rotated keys: use the two separate functions there.
///
/// `q` has shape `[batch, length, heads, head_dim]`, `k` and `v` `[batch, length, kv_heads, head_dim]`, and `cos` and `sin`
/// `[length, head_dim / 2]`.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use peft_runtime::nn::{AttentionOptions, attention, rotary, rotary_attention};
///
/// let q = Tensor::randn(0f32, 1.0, (1, 5, 4, 8), &Device::Cpu)?;
/// let (k, v) = (q.narrow(2, 0, 2)?, q.narrow(2, 2, 2)?);
/// let angles = Tensor::randn(0f32, 1.0, (5, 4), &Device::Cpu)?;
/// let (cos, sin) = (angles.cos()?, angles.sin()?);
/// let options = AttentionOptions { scale: 8f64.sqrt().recip(), causal: true, mask: None, dropout: None };
/// let y = rotary_attention(&q, &k, &v, &cos, &sin, &options)?;
/// let same = attention(&rotary(&q, &cos, &sin)?, &rotary(&k, &cos, &sin)?, &v, &options)?;
/// assert_eq!(y.flatten_all()?.to_vec1::<f32>()?, same.flatten_all()?.to_vec1::<f32>()?);
/// # Ok::<(), candle_core::Error>(())
/// ```
///
/// # Errors
/// If the shapes do not fit, or the tensors do not hold floats of one dtype.
pub fn rotary_attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    cos: &Tensor,
    sin: &Tensor,
    options: &AttentionOptions<'_>,
) -> Result<Tensor> {
    if !q.device().is_cpu() {
        return attention(&rotary(q, cos, sin)?, &rotary(k, cos, sin)?, v, options);
    }
    Rotary::check(k, cos, sin)?;
    let op = RotaryAttention {
        rotation: Rotary::new(q, cos, sin)?,
        attention: FusedAttention::new(q, k, v, options)?,
    };
    q.contiguous()?.carry_op3(&k.contiguous()?, v, op)
}

/// The op on the CPU.
struct RotaryAttention {
    rotation: Rotary,
    attention: FusedAttention,
}

impl RotaryAttention {
    fn forward<T: Float>(&self, q: &[T], k: &[T], v: &[T], layouts: [&Layout; 3]) -> Result<Vec<T>> {
        let [q_layout, k_layout, v_layout] = layouts;
        let q = self.rotation.rotated(contiguous_slice(q, q_layout)?, q_layout.dims(), 1.0)?;
        let k = self.rotation.rotated(contiguous_slice(k, k_layout)?, k_layout.dims(), 1.0)?;
        self.attention.forward(
            Heads::from_layout(&q, &Layout::contiguous(q_layout.shape()))?,
            Heads::from_layout(&k, &Layout::contiguous(k_layout.shape()))?,
            Heads::from_layout(v, v_layout)?,
        )
    }

    fn gradients<T: Float>(
        &self,
        inputs: [&Tensor; 3],
        y: &Tensor,
        grad: &Tensor,
    ) -> Result<[Option<Tensor>; 3]> {
        let [q, k, v] = inputs;
        let rotated =
            (self.rotation.rotated_tensor::<T>(q, 1.0)?, self.rotation.rotated_tensor::<T>(k, 1.0)?);
        let wanted = inputs.map(Tensor::track_op);
        let mut found = self.attention.gradients::<T>([&rotated.0, &rotated.1, v], wanted, y, grad)?;
        for (gradient, input) in found.iter_mut().zip([q, k]) {
            if let Some(gradient) = gradient {
                self.rotation.rotate_back(gradient, input.dims())?;
            }
        }
        in_tensors::<T>(found, inputs)
    }
}

impl CustomOp3 for RotaryAttention {
    fn name(&self) -> &'static str {
        "rotary-attention"
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
        let layouts = [ql, kl, vl];
        let y = match (q, k, v) {
            (CpuStorage::F32(q), CpuStorage::F32(k), CpuStorage::F32(v)) => {
                CpuStorage::F32(self.forward(q, k, v, layouts)?)
            }
            (CpuStorage::F64(q), CpuStorage::F64(k), CpuStorage::F64(v)) => {
                CpuStorage::F64(self.forward(q, k, v, layouts)?)
            }
            (CpuStorage::F16(q), CpuStorage::F16(k), CpuStorage::F16(v)) => {
                CpuStorage::F16(self.forward(q, k, v, layouts)?)
            }
            (CpuStorage::BF16(q), CpuStorage::BF16(k), CpuStorage::BF16(v)) => {
                CpuStorage::BF16(self.forward(q, k, v, layouts)?)
            }
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
            DType::F64 => self.gradients::<f64>([q, k, v], y, grad)?,
            DType::F16 => self.gradients::<f16>([q, k, v], y, grad)?,
            DType::BF16 => self.gradients::<bf16>([q, k, v], y, grad)?,
            _ => self.gradients::<f32>([q, k, v], y, grad)?,
        };
        Ok((dq, dk, dv))
    }
}

#[cfg(test)]
mod tests;
