//! The frozen linear map with a quantized weight: y = x·Wᵀ + b with a gradient only for x.

mod product;

use std::sync::Arc;

use candle_core::quantized::QTensor;
use candle_core::{CpuStorage, CustomOp1, DType, Device, Layout, Result, Shape, Storage, Tensor, bail};

use self::product::{Factor, multiply_transposed, product};
use crate::ops::cpu::dequantize::QuantizedMatrix;
use crate::ops::cpu::element::{Element, round_all, widen_all};
use crate::ops::cpu::float::wide_dtype;
use crate::ops::cpu::gemm::multiplies_bf16;
use crate::ops::cpu::matrix::{Matrix, Write};
use crate::ops::cpu::operand::Operand;
use crate::ops::cpu::real::Real;
use crate::ops::cpu::sums::{Term, sum_into};
use crate::ops::elements::{contiguous_slice, converted};
use crate::ops::graph::attach::with_gradient;
use crate::ops::graph::carried::ApplyCarried;
use crate::ops::linear::bias::{add_bias_rows, with_bias_gradient};
use crate::ops::linear::frozen::as_rows;
use crate::ops::linear::{add_bias, output_dims};
use crate::ops::matmul::add_product;
use crate::ops::widened;

/// `x·Wᵀ + b` in the dtype of `x`, for `x` of shape `[…, in]` and `weight` of shape `[out, in]`.
///
/// The product is that with the dense weight, in f32, or in f64 if `x` is f64; half precision is rounded once. If `x` is bf16 and the
/// processor multiplies that faster than f32, the dense weight is rounded to bf16. On the CPU, the weight is dequantized a tile at a
/// time; on other devices, all of it is dense during the call.
///
/// A bias that is a variable trains; the weight never gets a gradient.
pub(crate) fn quantized_linear(x: &Tensor, weight: &Arc<QTensor>, bias: Option<&Tensor>) -> Result<Tensor> {
    match bias {
        Some(bias) if bias.track_op() => with_bias_gradient(&frozen(x, weight, Some(bias))?, bias),
        bias => frozen(x, weight, bias),
    }
}

fn frozen(x: &Tensor, weight: &Arc<QTensor>, bias: Option<&Tensor>) -> Result<Tensor> {
    let (rows, dims) = output_dims(x, weight.shape().dims2()?)?;
    let x = x.contiguous()?;
    if x.device().is_cpu() && weight.device().is_cpu() {
        return x.carry_op1(FrozenQuantized::new(weight, bias));
    }
    let (weight, input_dims) = (Arc::clone(weight), x.dims().to_vec());
    let (out_features, in_features) = weight.shape().dims2()?;
    let dtype = x.dtype();
    let dense = move |like: &Tensor| weight.dequantize(like.device())?.to_dtype(like.dtype());
    let wide = widened(&x.detach())?.reshape((rows, in_features))?;
    let y = wide.matmul(&dense(&wide)?.t()?)?.reshape(dims)?;
    let y = add_bias(y, bias.map(Tensor::detach).as_ref())?.to_dtype(dtype)?;
    with_gradient(&x, y, move |grad| {
        let rows = widened(&grad.contiguous()?.reshape((rows, out_features))?)?;
        rows.matmul(&dense(&rows)?)?.reshape(input_dims.as_slice())?.to_dtype(dtype)
    })
}

/// The map as an op on the CPU.
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
    pub(super) fn multiply<F: Factor>(
        &self,
        y: &mut [F::Sum],
        write: Write,
        x: &[F],
        rows: usize,
    ) -> Result<()> {
        multiply_transposed(y, write, x, rows, &QuantizedMatrix::new(&self.weight)?)
    }

    /// `y (+)= x·Wᵀ + b + others`, summed in f32 and rounded once, where not everything is f32.
    pub(super) fn sum_mixed<T: Element>(
        &self,
        y: &mut [T],
        write: Write,
        x: Operand<'_>,
        others: Option<Term<'_>>,
    ) -> Result<()> {
        let (rows, columns) = (x.rows(), self.weight.shape().dims2()?.0);
        let mut wide = vec![0f32; y.len()];
        if write == Write::Add {
            widen_all(y, &mut wide);
        }
        add_bias_rows(&mut wide, self.bias.as_ref())?;
        let mut space = Vec::new();
        match x {
            Operand::Bf16(x) if multiplies_bf16(rows)? => {
                self.multiply(&mut wide, Write::Add, rows_of(x), rows)?;
            }
            Operand::F32(x) => self.multiply(&mut wide, Write::Add, rows_of(x), rows)?,
            Operand::Bf16(x) => self.multiply(&mut wide, Write::Add, widened_into(x, &mut space), rows)?,
            Operand::F16(x) => self.multiply(&mut wide, Write::Add, widened_into(x, &mut space), rows)?,
        }
        if let Some(term) = others {
            sum_into(&mut wide, (rows, columns), Write::Add, None, &[term])?;
        }
        round_all(&wide, y);
        Ok(())
    }

    /// y for a contiguous input in half precision.
    fn half_rows<T: Element>(&self, x: Operand<'_>) -> Result<Vec<T>> {
        let mut y = vec![T::from_f64(0.0); x.rows() * self.weight.shape().dims2()?.0];
        self.sum_mixed(&mut y, Write::Replace, x, None)?;
        Ok(y)
    }

    /// dx = dy·W in `dtype` for a contiguous `grad` of shape `[rows, out]`, with the product of another pair added before
    /// the only rounding.
    pub(super) fn sum_of_gradients(
        &self,
        dtype: DType,
        grad: &Tensor,
        other: Option<(&Tensor, &Tensor)>,
    ) -> Result<Tensor> {
        let halves = grad.dtype() == DType::BF16 && multiplies_bf16(grad.dim(0)?)?;
        let dx = if halves {
            self.input_gradient(grad)?
        } else {
            self.input_gradient(&converted(grad, wide_dtype(dtype))?)?
        };
        let dx = match other {
            Some((lhs, rhs)) => add_product(dx, lhs, rhs, 1.0)?,
            None => dx,
        };
        converted(&dx, dtype)
    }

    /// dx = dy·W, summed in f32 or f64, for a contiguous `grad` of shape `[rows, out]` in f32, f64 or bf16.
    fn input_gradient(&self, grad: &Tensor) -> Result<Tensor> {
        let (storage, layout) = grad.storage_and_layout();
        match &*storage {
            Storage::Cpu(CpuStorage::F32(grad)) => self.backward_rows(contiguous_slice(grad, layout)?),
            Storage::Cpu(CpuStorage::F64(grad)) => self.backward_rows(contiguous_slice(grad, layout)?),
            Storage::Cpu(CpuStorage::BF16(grad)) => self.backward_rows(contiguous_slice(grad, layout)?),
            _ => bail!("the gradient of a quantized linear layer is not of f32, f64 or bf16 on the CPU"),
        }
    }

    fn backward_rows<F: Factor>(&self, grad: &[F]) -> Result<Tensor> {
        let weight = QuantizedMatrix::new(&self.weight)?;
        let rows = grad.len() / weight.rows().max(1);
        Tensor::from_vec(product(grad, rows, &weight)?, (rows, weight.columns()), &Device::Cpu)
    }
}

/// The elements of a contiguous matrix.
fn rows_of<T>(x: Matrix<'_, T>) -> &[T] {
    &x.data()[..x.rows() * x.columns()]
}

/// The same in f32.
fn widened_into<'s, T: Element>(x: Matrix<'_, T>, space: &'s mut Vec<f32>) -> &'s [f32] {
    space.resize(x.rows() * x.columns(), 0.0);
    widen_all(rows_of(x), space);
    space
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
            CpuStorage::BF16(_) => {
                CpuStorage::BF16(self.half_rows(as_rows(storage, layout, rows, in_features)?)?)
            }
            CpuStorage::F16(_) => {
                CpuStorage::F16(self.half_rows(as_rows(storage, layout, rows, in_features)?)?)
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
        let (out_features, in_features) = self.weight.shape().dims2()?;
        let rows = x.elem_count() / in_features.max(1);
        let grad = grad.contiguous()?.reshape((rows, out_features))?;
        self.sum_of_gradients(x.dtype(), &grad, None)?.reshape(x.dims()).map(Some)
    }
}

#[cfg(test)]
mod tests;
