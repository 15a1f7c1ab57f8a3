//! The loss from hidden states and a frozen output layer: only the logits of some rows exist at a time.
//!
//! The gradient of the hidden states is computed in the forward pass, while the logits of its rows exist, and is scaled
//! in the backward pass.

mod products;

use std::sync::OnceLock;

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp1, DType, Device, Layout, Result, Shape, Tensor, bail};

use crate::ops::cpu::matrix::Matrix;
use crate::ops::cpu::real::Real;
use crate::ops::cpu::softmax::{log_sum_exp, softmax};
use crate::ops::cpu::threads::map;
use crate::ops::cross_entropy::linear::products::OutputLayer;
use crate::ops::cross_entropy::logits::mean_loss;
use crate::ops::cross_entropy::targets::{Kept, Targets, index_tensors};
use crate::ops::elements::{Elements, contiguous_slice};
use crate::ops::graph::attach::with_gradient;
use crate::ops::graph::carried::ApplyCarried;
use crate::ops::is_half;
use crate::ops::linear::linear;

/// How many bytes of logits should exist at a time. They come on top of everything the model keeps for the backward
/// pass, so if they are large they set the peak memory of a training step.
const LOGITS_BYTES: usize = 8 << 20;

/// Fewer rows at a time would read and pack the weight too often: each group of rows needs all of it twice.
const ENOUGH_ROWS: usize = 128;

/// More rows at a time are not faster.
const MOST_ROWS: usize = 256;

/// The most bytes that the logits of [`ENOUGH_ROWS`] may take with a large vocabulary, unless sixteen rows take more.
const MOST_LOGITS_BYTES: usize = 80 << 20;

/// Kernels multiply as many rows at a time.
const BLOCK: usize = 32;

/// The mean over all rows of −ln softmax(hidden·Wᵀ) at the target: a scalar. The logits of all rows never exist at
/// once.
///
/// `hidden` has shape `[…, size]`, `weight` `[vocabulary, size]`, `targets` the shape of `hidden` without the last
/// dimension, in integers. Rows whose target is `ignore_index` do not count and cost nothing. The
/// weight is a constant: one that is a variable, or part of a graph, gets its gradient through the logits
/// of all rows. The loss of half-precision hidden states is f32.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use peft_runtime::nn::linear_cross_entropy;
///
/// let hidden = Tensor::zeros((1, 2, 8), DType::F32, &Device::Cpu)?;
/// let weight = Tensor::ones((4, 8), DType::F32, &Device::Cpu)?;
/// let targets = Tensor::new(&[[3i64, -100]], &Device::Cpu)?;
/// let loss = linear_cross_entropy(&hidden, &weight, &targets, Some(-100))?;
/// assert!((loss.to_scalar::<f32>()? - 4f32.ln()).abs() < 1e-6);
/// # Ok::<(), candle_core::Error>(())
/// ```
///
/// # Errors
/// If the shapes do not fit, a target is outside of the vocabulary, no target counts (see
/// [`count_targets`](crate::nn::count_targets)), or the hidden states are not floats.
pub fn linear_cross_entropy(
    hidden: &Tensor,
    weight: &Tensor,
    targets: &Tensor,
    ignore_index: Option<i64>,
) -> Result<Tensor> {
    let (vocabulary, size) = weight.dims2()?;
    let dims = match hidden.dims().split_last() {
        Some((last, dims)) if *last == size => dims,
        _ => bail!(
            "an output layer with a weight of shape {:?} cannot take hidden states of shape {:?}",
            weight.dims(),
            hidden.dims()
        ),
    };
    let targets = Targets::read(targets, dims, vocabulary, ignore_index)?;
    if weight.track_op() {
        return mean_loss(&linear(hidden, weight, None)?, targets);
    }
    if !hidden.device().is_cpu() {
        return composed(hidden, weight, &targets);
    }
    // A product in f32 reads a weight of half precision as it is.
    let weight = match (hidden.dtype(), weight.dtype()) {
        (DType::F64, _) => weight.to_dtype(DType::F64)?,
        (_, DType::F64) => weight.to_dtype(DType::F32)?,
        _ => weight.clone(),
    };
    let op =
        LinearCrossEntropy { weight, targets, wants_gradient: hidden.track_op(), gradient: OnceLock::new() };
    hidden.contiguous()?.carry_op1(op)
}

/// How many rows of logits are formed at a time.
fn rows_at_a_time(vocabulary: usize, element_bytes: usize) -> usize {
    let row = (vocabulary * element_bytes).max(1);
    let rows = (LOGITS_BYTES / row).clamp(ENOUGH_ROWS, MOST_ROWS);
    let rows = rows.min((MOST_LOGITS_BYTES / row).max(16));
    if rows > BLOCK { rows / BLOCK * BLOCK } else { rows }
}

/// The op on the CPU.
struct LinearCrossEntropy {
    weight: Tensor,
    targets: Targets,
    wants_gradient: bool,
    /// The gradient of the hidden states for a loss whose own gradient is one.
    gradient: OnceLock<Tensor>,
}

impl LinearCrossEntropy {
    fn forward<T: OutputLayer>(&self, hidden: &[T], dims: &[usize]) -> Result<T::Wide> {
        let weight = Elements::of(&self.weight);
        let (vocabulary, size) = self.weight.dims2()?;
        let kept = self.targets.kept();
        let rows = rows_at_a_time(vocabulary, size_of::<T::Wide>()).min(kept.len());
        let mut gradient = vec![T::from_f64(0.0); if self.wants_gradient { hidden.len() } else { 0 }];
        let mut logits = vec![T::Wide::ZERO; rows * vocabulary];
        let mut inputs = Vec::with_capacity(rows * size);
        let mut sum = 0.0;
        for kept in kept.chunks(rows.max(1)) {
            inputs.clear();
            for Kept { row, .. } in kept {
                inputs.extend_from_slice(&hidden[row * size..][..size]);
            }
            let logits = &mut logits[..kept.len() * vocabulary];
            T::logits(logits, Matrix::contiguous(&inputs, kept.len(), size)?, &weight)?;
            sum += self.losses(logits, kept, vocabulary).iter().sum::<f64>();
            if self.wants_gradient {
                let slopes = Matrix::contiguous(logits, kept.len(), vocabulary)?;
                T::gradient(&mut inputs, 1.0 / self.targets.divisor(), slopes, &weight)?;
                for (Kept { row, .. }, values) in kept.iter().zip(inputs.chunks(size.max(1))) {
                    gradient[row * size..][..size].copy_from_slice(values);
                }
            }
        }
        if self.wants_gradient {
            // It is set once: an op runs forward once.
            let _ = self.gradient.set(Tensor::from_vec(gradient, dims, &Device::Cpu)?);
        }
        Ok(T::Wide::of(sum / self.targets.divisor()))
    }

    /// The loss of each row; where a gradient is wanted, its logits become softmax − one-hot.
    fn losses<T: Real>(&self, logits: &mut [T], kept: &[Kept], vocabulary: usize) -> Vec<f64> {
        map(logits.chunks_mut(vocabulary.max(1)).zip(kept), |(logits, kept)| {
            let target = logits[kept.class];
            let log_sum = if self.wants_gradient {
                let log_sum = softmax(logits, None);
                logits[kept.class] -= T::ONE;
                log_sum
            } else {
                log_sum_exp(logits)
            };
            (log_sum - target).to_f64()
        })
    }
}

impl CustomOp1 for LinearCrossEntropy {
    fn name(&self) -> &'static str {
        "linear-cross-entropy"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let loss = match storage {
            CpuStorage::F32(hidden) => {
                CpuStorage::F32(vec![self.forward(contiguous_slice(hidden, layout)?, layout.dims())?])
            }
            CpuStorage::F64(hidden) => {
                CpuStorage::F64(vec![self.forward(contiguous_slice(hidden, layout)?, layout.dims())?])
            }
            CpuStorage::F16(hidden) => {
                CpuStorage::F32(vec![self.forward(contiguous_slice(hidden, layout)?, layout.dims())?])
            }
            CpuStorage::BF16(hidden) => {
                CpuStorage::F32(vec![self.forward(contiguous_slice(hidden, layout)?, layout.dims())?])
            }
            storage => bail!("a cross-entropy takes floats, not {:?}", storage.dtype()),
        };
        Ok((loss, Shape::from(())))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let Some(gradient) = self.gradient.get() else {
            bail!("the backward pass of a cross-entropy came before its forward pass")
        };
        let factor = grad.to_dtype(DType::F64)?.to_scalar::<f64>()?;
        if factor == 1.0 {
            return Ok(Some(gradient.clone()));
        }
        // candle would round the factor to half precision.
        let dtype = gradient.dtype();
        let wide = if is_half(dtype) { gradient.to_dtype(DType::F32)? } else { gradient.clone() };
        wide.affine(factor, 0.0)?.to_dtype(dtype).map(Some)
    }
}

/// The loss from candle's own ops, with the same bound on the logits.
fn composed(hidden: &Tensor, weight: &Tensor, targets: &Targets) -> Result<Tensor> {
    let (vocabulary, size) = weight.dims2()?;
    let (weight, dims) = (weight.to_dtype(hidden.dtype())?, hidden.dims().to_vec());
    let internal = match hidden.dtype() {
        DType::F16 | DType::BF16 => DType::F32,
        dtype => dtype,
    };
    let states = hidden.detach().reshape(((), size))?;
    let mut loss = Tensor::zeros((), internal, hidden.device())?;
    let mut gradient = states.zeros_like()?;
    for kept in targets.kept().chunks(rows_at_a_time(vocabulary, internal.size_in_bytes())) {
        let (rows, classes) = index_tensors(kept, hidden)?;
        let logits = states.index_select(&rows, 0)?.matmul(&weight.t()?)?.to_dtype(internal)?;
        let shifted = logits.broadcast_sub(&logits.max_keepdim(1)?)?;
        let exponentials = shifted.exp()?;
        let sums = exponentials.sum_keepdim(1)?;
        loss = (loss + (sums.log()? - shifted.gather(&classes, 1)?)?.sum_all()?)?;
        if hidden.track_op() {
            let minus_one = Tensor::full(-1f32, (kept.len(), 1), hidden.device())?.to_dtype(internal)?;
            let slopes = exponentials.broadcast_div(&sums)?.scatter_add(&classes, &minus_one, 1)?;
            let slopes = slopes.affine(1.0 / targets.divisor(), 0.0)?.to_dtype(hidden.dtype())?;
            gradient = gradient.index_add(&rows, &slopes.matmul(&weight)?, 0)?;
        }
    }
    let loss = loss.affine(1.0 / targets.divisor(), 0.0)?;
    with_gradient(hidden, loss, move |grad| {
        gradient.broadcast_mul(&grad.to_dtype(gradient.dtype())?)?.reshape(dims.as_slice())
    })
}

#[cfg(test)]
mod tests;
