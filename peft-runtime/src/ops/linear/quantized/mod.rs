//! The frozen linear map with a quantized weight: y = x·Wᵀ + b with a gradient only for x.

mod product;

use std::sync::Arc;

use candle_core::quantized::QTensor;
use candle_core::{CpuStorage, CustomOp1, DType, Device, Layout, Result, Shape, Storage, Tensor, bail};

use self::product::{multiply_transposed, product};
use crate::ops::cpu::dequantize::QuantizedMatrix;
use crate::ops::cpu::matrix::Write;
use crate::ops::cpu::real::Real;
use crate::ops::elements::contiguous_slice;
use crate::ops::graph::attach::with_gradient;
use crate::ops::linear::{add_bias, output_dims};

/// `x·Wᵀ + b` in the dtype of `x`, for `x` of shape `[…, in]` and `weight` of shape `[out, in]`.
///
/// The product is that with the dense weight, in f32, or in f64 if `x` is f64; half precision is rounded once. On the
/// CPU, the weight is dequantized a tile at a time; on other devices, all of it is dense during the call.
///
/// A bias that is a variable trains; the weight never gets a gradient.
pub(crate) fn quantized_linear(x: &Tensor, weight: &Arc<QTensor>, bias: Option<&Tensor>) -> Result<Tensor> {
    let dtype = match x.dtype() {
        DType::F64 => DType::F64,
        DType::F32 | DType::F16 | DType::BF16 => DType::F32,
        _ => bail!("a linear layer takes floats only"),
    };
    let bias = bias.map(|bias| bias.to_dtype(dtype)).transpose()?;
    let wide = x.to_dtype(dtype)?;
    let y = match bias.as_ref() {
        Some(bias) if bias.track_op() => add_bias(frozen(&wide, weight, None)?, Some(bias)),
        bias => frozen(&wide, weight, bias),
    };
    y?.to_dtype(x.dtype())
}

fn frozen(x: &Tensor, weight: &Arc<QTensor>, bias: Option<&Tensor>) -> Result<Tensor> {
    let (rows, dims) = output_dims(x, weight.shape().dims2()?)?;
    let x = x.contiguous()?;
    if x.device().is_cpu() && weight.device().is_cpu() {
        return x.apply_op1(FrozenQuantized::new(weight, bias));
    }
    let (weight, input_dims) = (Arc::clone(weight), x.dims().to_vec());
    let (out_features, in_features) = weight.shape().dims2()?;
    let dense = move |like: &Tensor| weight.dequantize(like.device())?.to_dtype(like.dtype());
    let y = x.detach().reshape((rows, in_features))?.matmul(&dense(&x)?.t()?)?.reshape(dims)?;
    let y = add_bias(y, bias.map(Tensor::detach).as_ref())?;
    with_gradient(&x, y, move |grad| {
        let rows = grad.contiguous()?.reshape((rows, out_features))?;
        rows.matmul(&dense(grad)?)?.reshape(input_dims.as_slice())
    })
}

/// The map as an op on the CPU, for f32 and f64.
pub(super) struct FrozenQuantized {
    weight: Arc<QTensor>,
    pub(super) bias: Option<Tensor>,
}

impl FrozenQuantized {
    pub(super) fn new(weight: &Arc<QTensor>, bias: Option<&Tensor>) -> Self {
        Self { weight: Arc::clone(weight), bias: bias.map(Tensor::detach) }
    }

    /// The product on rows in main memory; the result is initialised with the bias.
    pub(super) fn forward_rows<T: Real>(&self, x: &[T], rows: usize) -> Result<Vec<T>> {
        let (out_features, _) = self.weight.shape().dims2()?;
        let (mut y, write) = match &self.bias {
            Some(bias) => (bias.to_dtype(T::DTYPE)?.to_vec1::<T>()?.repeat(rows), Write::Add),
            None => (vec![T::from_f64(0.0); rows * out_features], Write::Replace),
        };
        self.multiply(&mut y, write, x, rows)?;
        Ok(y)
    }

    /// `y (+)= x·Wᵀ` on rows in main memory.
    pub(super) fn multiply<T: Real>(&self, y: &mut [T], write: Write, x: &[T], rows: usize) -> Result<()> {
        multiply_transposed(y, write, x, rows, &QuantizedMatrix::new(&self.weight)?)
    }

    /// dx = dy·W for a contiguous `grad` of shape `[rows, out]`.
    pub(super) fn input_gradient(&self, grad: &Tensor) -> Result<Tensor> {
        let (storage, layout) = grad.storage_and_layout();
        match &*storage {
            Storage::Cpu(CpuStorage::F32(grad)) => self.backward_rows(contiguous_slice(grad, layout)?),
            Storage::Cpu(CpuStorage::F64(grad)) => self.backward_rows(contiguous_slice(grad, layout)?),
            _ => bail!("the gradient of a quantized linear layer is not of f32 or f64 on the CPU"),
        }
    }

    fn backward_rows<T: Real>(&self, grad: &[T]) -> Result<Tensor> {
        let weight = QuantizedMatrix::new(&self.weight)?;
        let rows = grad.len() / weight.rows().max(1);
        Tensor::from_vec(product(grad, rows, &weight)?, (rows, weight.columns()), &Device::Cpu)
    }
}

impl CustomOp1 for FrozenQuantized {
    fn name(&self) -> &'static str {
        "frozen-quantized-linear"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (out_features, in_features) = self.weight.shape().dims2()?;
        let rows = layout.shape().elem_count() / in_features.max(1);
        let y = match storage {
            CpuStorage::F32(x) => CpuStorage::F32(self.forward_rows(contiguous_slice(x, layout)?, rows)?),
            CpuStorage::F64(x) => CpuStorage::F64(self.forward_rows(contiguous_slice(x, layout)?, rows)?),
            _ => bail!("a quantized linear layer takes f32 or f64"),
        };
        let mut dims = layout.dims().to_vec();
        if let Some(last) = dims.last_mut() {
            *last = out_features;
        }
        Ok((y, Shape::from(dims)))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let (out_features, in_features) = self.weight.shape().dims2()?;
        let rows = x.elem_count() / in_features.max(1);
        let grad = grad.contiguous()?.reshape((rows, out_features))?;
        self.input_gradient(&grad)?.reshape(x.dims()).map(Some)
    }
}

#[cfg(test)]
mod tests;
