//! The loss from logits that exist already; the backward pass forms their gradient in one buffer.

use std::sync::OnceLock;

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp1, DType, Device, Layout, Result, Shape, Tensor, bail};

use crate::ops::cpu::real::Real;
use crate::ops::cpu::softmax::{log_sum_exp, scaled_softmax};
use crate::ops::cpu::threads::{for_each, map};
use crate::ops::cross_entropy::targets::{Targets, index_tensors};
use crate::ops::elements::{Elements, contiguous_slice};
use crate::ops::graph::carried::ApplyCarried;

/// The mean over all rows of −ln softmax(logits) at the target: a scalar.
///
/// `logits` has shape `[…, vocabulary]`, `targets` the same without the last dimension, in integers. Rows whose target
/// is `ignore_index` do not count. The loss of half-precision logits is f32.
///
/// A model whose output layer is frozen needs no logits: see [`linear_cross_entropy`](crate::nn::linear_cross_entropy).
///
/// # Errors
/// If the shapes do not fit, a target is outside of the vocabulary, no target counts (see
/// [`count_targets`](crate::nn::count_targets)), or the logits are not floats.
pub fn cross_entropy(logits: &Tensor, targets: &Tensor, ignore_index: Option<i64>) -> Result<Tensor> {
    let Some((vocabulary, dims)) = logits.dims().split_last() else {
        bail!("logits have at least one dimension, of the vocabulary")
    };
    mean_loss(logits, Targets::read(targets, dims, *vocabulary, ignore_index)?)
}

pub(crate) fn mean_loss(logits: &Tensor, targets: Targets) -> Result<Tensor> {
    let logits = match logits.dtype() {
        DType::F16 | DType::BF16 => logits.to_dtype(DType::F32)?,
        _ => logits.clone(),
    };
    if !logits.device().is_cpu() {
        return composed(&logits, &targets);
    }
    logits.contiguous()?.carry_op1(CrossEntropy { targets, log_sums: OnceLock::new() })
}

/// The loss from candle's own differentiable ops.
fn composed(logits: &Tensor, targets: &Targets) -> Result<Tensor> {
    let kept = targets.kept();
    let (rows, classes) = index_tensors(&kept, logits)?;
    let vocabulary = logits.dims().last().copied().unwrap_or_default();
    let logits = logits.reshape(((), vocabulary))?.index_select(&rows, 0)?;
    let shifted = logits.broadcast_sub(&logits.detach().max_keepdim(1)?)?;
    let log_sums = shifted.exp()?.sum_keepdim(1)?.log()?;
    let losses = (log_sums - shifted.gather(&classes, 1)?)?;
    losses.sum_all()?.affine(1.0 / targets.divisor(), 0.0)
}

/// The op on the CPU.
struct CrossEntropy {
    targets: Targets,
    /// ln Σ exp of every row that counts; zero for the others.
    log_sums: OnceLock<Vec<f64>>,
}

impl CrossEntropy {
    fn forward<T: Real>(&self, logits: &[T], vocabulary: usize) -> T {
        let rows = logits.chunks(vocabulary.max(1)).zip(self.targets.classes());
        let rows = map(rows, |(row, class)| {
            let Some(class) = class else { return (0.0, 0.0) };
            let log_sum = log_sum_exp(row);
            (log_sum.to_f64(), (log_sum - row[*class]).to_f64())
        });
        let (log_sums, losses): (Vec<f64>, Vec<f64>) = rows.into_iter().unzip();
        // It is set once: an op runs forward once.
        let _ = self.log_sums.set(log_sums);
        T::of(losses.iter().sum::<f64>() / self.targets.divisor())
    }

    /// `(softmax − one-hot) · factor / n`.
    fn gradient<T: Real>(&self, logits: &Tensor, factor: f64) -> Result<Tensor> {
        let Some(log_sums) = self.log_sums.get() else {
            bail!("the backward pass of a cross-entropy came before its forward pass")
        };
        let elements = Elements::of(logits);
        let values = elements.as_slice::<T>()?;
        let vocabulary = logits.dims().last().copied().unwrap_or_default().max(1);
        let scale = T::of(factor / self.targets.divisor());
        let mut gradient = vec![T::ZERO; values.len()];
        let rows = gradient.chunks_mut(vocabulary).zip(values.chunks(vocabulary));
        let known = self.targets.classes().iter().zip(log_sums);
        for_each(rows.zip(known), |((gradient, row), (class, log_sum))| {
            let Some(class) = class else { return };
            scaled_softmax(gradient, row, T::of(*log_sum), scale);
            gradient[*class] -= scale;
        });
        Tensor::from_vec(gradient, logits.dims(), &Device::Cpu)
    }
}

impl CustomOp1 for CrossEntropy {
    fn name(&self) -> &'static str {
        "cross-entropy"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let vocabulary = layout.dims().last().copied().unwrap_or_default();
        let loss = match storage {
            CpuStorage::F32(logits) => {
                CpuStorage::F32(vec![self.forward(contiguous_slice(logits, layout)?, vocabulary)])
            }
            CpuStorage::F64(logits) => {
                CpuStorage::F64(vec![self.forward(contiguous_slice(logits, layout)?, vocabulary)])
            }
            storage => bail!("a cross-entropy takes floats, not {:?}", storage.dtype()),
        };
        Ok((loss, Shape::from(())))
    }

    fn bwd(&self, logits: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let factor = grad.to_dtype(DType::F64)?.to_scalar::<f64>()?;
        Ok(Some(match logits.dtype() {
            DType::F64 => self.gradient::<f64>(logits, factor)?,
            _ => self.gradient::<f32>(logits, factor)?,
        }))
    }
}

#[cfg(test)]
mod tests;
