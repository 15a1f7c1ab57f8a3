//! The frozen linear map: y = x·Wᵀ + b with a gradient only for x.

mod base;
mod bias;
pub(crate) mod input;
pub(crate) mod low_rank;
pub(crate) mod quantized;
pub(crate) mod residual;

use candle_core::{CpuStorage, CustomOp1, DType, Layout, Result, Shape, Storage, Tensor, WithDType, bail};
use half::{bf16, f16};

use crate::ops::cpu::matmul::matmul_into;
use crate::ops::cpu::matrix::{Matrix, Write};
use crate::ops::elements::contiguous_slice;
use crate::ops::graph::attach::with_gradient;
use crate::ops::linear::bias::with_bias_gradient;
use crate::ops::matmul::product;
use crate::ops::{add_promoted, is_half_on_cpu, widened};

/// `x·Wᵀ + b` for `x` of shape `[…, in]` and `weight` of shape `[out, in]` with any strides.
///
/// A weight that is a variable trains through candle's own ops; a frozen one never gets a gradient. The output has the dtype of
/// `x`, whatever that of the weight is.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use peft_runtime::nn::linear_forward;
///
/// let weight = Tensor::new(&[[1f32, 2.], [3., 4.], [5., 6.]], &Device::Cpu)?;
/// let y = linear_forward(&Tensor::new(&[[10f32, 100.]], &Device::Cpu)?, &weight, None)?;
/// assert_eq!(y.to_vec2::<f32>()?, [[210., 430., 650.]]);
/// # Ok::<(), candle_core::Error>(())
/// ```
///
/// # Errors
/// If `x` does not end in the weight's input size.
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let (rows, dims) = check_input(x, weight)?;
    if x.dtype() != weight.dtype() || weight.track_op() && is_half_on_cpu(x) {
        let wide = widened(x)?;
        let bias = bias.map(|bias| bias.to_dtype(wide.dtype())).transpose()?;
        return linear(&wide, &weight.to_dtype(wide.dtype())?, bias.as_ref())?.to_dtype(x.dtype());
    }
    if weight.track_op() {
        let y = x.reshape((rows, weight.dim(1)?))?.matmul(&weight.t()?)?.reshape(dims)?;
        return add_bias(y, bias);
    }
    match bias {
        Some(bias) if bias.track_op() => with_bias_gradient(&frozen_linear(x, weight, Some(bias))?, bias),
        bias => frozen_linear(x, weight, bias),
    }
}

fn frozen_linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let op = FrozenLinear { weight: weight.detach(), bias: bias.map(Tensor::detach) };
    let x = x.contiguous()?;
    if x.device().is_cpu() {
        return x.apply_op1(op);
    }
    let (rows, dims) = check_input(&x, weight)?;
    let y = x.detach().reshape((rows, weight.dim(1)?))?.matmul(&op.weight.t()?)?.reshape(dims)?;
    let y = add_bias(y, op.bias.as_ref())?;
    let input_dims = x.dims().to_vec();
    with_gradient(&x, y, move |grad| op.input_gradient(grad, &input_dims))
}

pub(super) fn add_bias(y: Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    match bias {
        Some(bias) => add_promoted(&y, &bias.broadcast_as(y.shape())?),
        None => Ok(y),
    }
}

/// The number of rows of `x` and the dims of the output; an error if `x` does not end in the layer's input size.
pub(super) fn check_input(x: &Tensor, weight: &Tensor) -> Result<(usize, Vec<usize>)> {
    output_dims(x, weight.dims2()?)
}

/// [`check_input`] for a weight of shape `(out, in)`.
pub(super) fn output_dims(
    x: &Tensor,
    (out_features, in_features): (usize, usize),
) -> Result<(usize, Vec<usize>)> {
    let mut dims = x.dims().to_vec();
    match dims.last_mut() {
        Some(last) if *last == in_features => *last = out_features,
        _ => bail!(
            "a linear layer with {in_features} input features cannot take an input of shape {:?}",
            x.dims()
        ),
    }
    let rows = dims[..dims.len() - 1].iter().product();
    Ok((rows, dims))
}

pub(super) struct FrozenLinear {
    pub(super) weight: Tensor,
    pub(super) bias: Option<Tensor>,
}

impl FrozenLinear {
    /// dx = dy·W.
    fn input_gradient(&self, grad: &Tensor, input_dims: &[usize]) -> Result<Tensor> {
        let out_features = self.weight.dim(0)?;
        let rows = input_dims[..input_dims.len() - 1].iter().product::<usize>();
        product(&grad.contiguous()?.reshape((rows, out_features))?, &self.weight, 1.0)?.reshape(input_dims)
    }

    /// The product on rows in main memory; the result is initialised with the bias.
    pub(super) fn forward_rows<T: WithDType>(&self, x: &[T], rows: usize) -> Result<Vec<T>> {
        let (mut y, write) = match &self.bias {
            Some(bias) => (bias.to_vec1::<T>()?.repeat(rows), Write::Add),
            None => (vec![T::from_f64(0.0); rows * self.weight.dim(0)?], Write::Replace),
        };
        self.multiply(&mut y, write, x, rows)?;
        Ok(y)
    }

    /// `y (+)= x·Wᵀ` on rows in main memory.
    pub(super) fn multiply<T: WithDType>(
        &self,
        y: &mut [T],
        write: Write,
        x: &[T],
        rows: usize,
    ) -> Result<()> {
        let in_features = self.weight.dim(1)?;
        let (storage, layout) = self.weight.storage_and_layout();
        let Storage::Cpu(storage) = &*storage else {
            bail!("the weight of a linear layer is on another device")
        };
        let weight = Matrix::from_layout(storage.as_slice::<T>()?, layout)?.transposed();
        matmul_into(y, write, 1.0, Matrix::contiguous(x, rows, in_features)?, weight)
    }

    /// The product of half-precision rows, summed in f32 and rounded once.
    fn forward_half<T: WithDType>(
        &self,
        x: &[T],
        rows: usize,
        widen: impl Fn(T) -> f32,
        round: impl Fn(f32) -> T,
    ) -> Result<Vec<T>> {
        let wide = Self {
            weight: self.weight.to_dtype(DType::F32)?,
            bias: self.bias.as_ref().map(|bias| bias.to_dtype(DType::F32)).transpose()?,
        };
        let x: Vec<f32> = x.iter().map(|value| widen(*value)).collect();
        Ok(wide.forward_rows(&x, rows)?.into_iter().map(round).collect())
    }
}

impl CustomOp1 for FrozenLinear {
    fn name(&self) -> &'static str {
        "frozen-linear"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (out_features, in_features) = self.weight.dims2()?;
        let rows = layout.shape().elem_count() / in_features.max(1);
        let y = match storage {
            CpuStorage::F32(x) => CpuStorage::F32(self.forward_rows(contiguous_slice(x, layout)?, rows)?),
            CpuStorage::F64(x) => CpuStorage::F64(self.forward_rows(contiguous_slice(x, layout)?, rows)?),
            CpuStorage::F16(x) => {
                let x = contiguous_slice(x, layout)?;
                CpuStorage::F16(self.forward_half(x, rows, f16::to_f32, f16::from_f32)?)
            }
            CpuStorage::BF16(x) => {
                let x = contiguous_slice(x, layout)?;
                CpuStorage::BF16(self.forward_half(x, rows, bf16::to_f32, bf16::from_f32)?)
            }
            _ => bail!("a linear layer takes floats only"),
        };
        let mut dims = layout.dims().to_vec();
        if let Some(last) = dims.last_mut() {
            *last = out_features;
        }
        Ok((y, Shape::from(dims)))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(self.input_gradient(grad, x.dims())?))
    }
}
