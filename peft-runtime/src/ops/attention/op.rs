//! The op on the CPU, with both passes.

use std::sync::OnceLock;

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp3, DType, Device, Layout, Result, Shape, Tensor, bail};
use half::{bf16, f16};

use super::kernel::{Attention, Backward, Heads, Sizes};
use super::options::{AttentionOptions, attended, sizes};
use crate::ops::cpu::float::Float;
use crate::ops::cpu::real::Real;
use crate::ops::dropout::DropoutMask;
use crate::ops::elements::Elements;

/// The op on the CPU.
pub(super) struct FusedAttention {
    pub(super) sizes: Sizes,
    pub(super) mask: Option<Vec<bool>>,
    pub(super) dropout: Option<DropoutMask>,
    /// What the backward pass needs to compute the probabilities again: `[batch, length, heads]`.
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

    pub(super) fn forward<T: Float>(
        &self,
        q: Heads<'_, T>,
        k: Heads<'_, T>,
        v: Heads<'_, T>,
    ) -> Result<Vec<T>> {
        let Sizes { batch, length, heads, .. } = self.sizes;
        let (bias, dropout) = (self.bias::<T::Wide>(), self.dropout);
        let attention = Attention { sizes: self.sizes, q, k, v, bias: bias.as_deref(), dropout };
        let (y, log_sums) = attention.forward()?;
        // It is set once: an op runs forward once.
        let _ = self.log_sums.set(Tensor::from_vec(log_sums, (batch, length, heads), &Device::Cpu)?);
        Ok(y)
    }

    /// The wanted gradients of queries, keys and values, each in the order of its dimensions.
    pub(super) fn gradients<T: Float>(
        &self,
        inputs: [&Tensor; 3],
        wanted: [bool; 3],
        y: &Tensor,
        grad: &Tensor,
    ) -> Result<[Option<Vec<T::Wide>>; 3]> {
        let Some(log_sums) = self.log_sums.get() else {
            bail!("the backward pass of an attention came before its forward pass")
        };
        let grad = grad.contiguous()?;
        let elements = inputs.map(Elements::of);
        let others = [y, &grad, log_sums].map(Elements::of);
        let heads = |index: usize| -> Result<Heads<'_, T>> {
            Heads::from_layout(elements[index].data()?, elements[index].layout())
        };
        let (bias, dropout) = (self.bias::<T::Wide>(), self.dropout);
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

    fn tracked_gradients<T: Float>(
        &self,
        inputs: [&Tensor; 3],
        y: &Tensor,
        grad: &Tensor,
    ) -> Result<[Option<Tensor>; 3]> {
        in_tensors::<T>(self.gradients::<T>(inputs, inputs.map(Tensor::track_op), y, grad)?, inputs)
    }
}

/// Gradients in the shapes of the inputs, rounded to their type.
pub(super) fn in_tensors<T: Float>(
    gradients: [Option<Vec<T::Wide>>; 3],
    inputs: [&Tensor; 3],
) -> Result<[Option<Tensor>; 3]> {
    let mut found = [None, None, None];
    for ((found, values), input) in found.iter_mut().zip(gradients).zip(inputs) {
        *found = values
            .map(|values| Tensor::from_vec(T::round(values), input.dims(), &Device::Cpu))
            .transpose()?;
    }
    Ok(found)
}

/// The error for operands that are not floats of one dtype.
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
            (CpuStorage::F16(q), CpuStorage::F16(k), CpuStorage::F16(v)) => CpuStorage::F16(self.forward(
                Heads::from_layout(q, ql)?,
                Heads::from_layout(k, kl)?,
                Heads::from_layout(v, vl)?,
            )?),
            (CpuStorage::BF16(q), CpuStorage::BF16(k), CpuStorage::BF16(v)) => {
                CpuStorage::BF16(self.forward(
                    Heads::from_layout(q, ql)?,
                    Heads::from_layout(k, kl)?,
                    Heads::from_layout(v, vl)?,
                )?)
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
            DType::F64 => self.tracked_gradients::<f64>([q, k, v], y, grad)?,
            DType::F16 => self.tracked_gradients::<f16>([q, k, v], y, grad)?,
            DType::BF16 => self.tracked_gradients::<bf16>([q, k, v], y, grad)?,
            _ => self.tracked_gradients::<f32>([q, k, v], y, grad)?,
        };
        Ok((dq, dk, dv))
    }
}
