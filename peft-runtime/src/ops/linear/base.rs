//! The frozen linear map that a fused op starts from, dense or quantized.

use candle_core::{DType, Result, Tensor};

use crate::ops::cpu::matrix::Write;
use crate::ops::cpu::real::Real;
use crate::ops::cpu::slices::add;
use crate::ops::is_half;
use crate::ops::linear::frozen::FrozenLinear;
use crate::ops::linear::quantized::FrozenQuantized;
use crate::ops::matmul::{add_product, sum_of_products};

/// y = x·Wᵀ + b on the CPU, with constants W `[out, in]` and b `[out]`.
pub(super) enum FrozenBase {
    /// W is a tensor.
    Dense(FrozenLinear),
    /// W consists of quantized blocks.
    Quantized(FrozenQuantized),
}

impl FrozenBase {
    /// y for `x` of shape `[rows, in]`.
    pub(super) fn forward_rows<T: Real>(&self, x: &[T], rows: usize) -> Result<Vec<T>> {
        match self {
            Self::Dense(base) => base.forward_rows(x, rows),
            Self::Quantized(base) => base.forward_rows(x, rows),
        }
    }

    /// y += x·Wᵀ + b for `x` of shape `[rows, in]` and `y` `[rows, out]`.
    pub(super) fn add_rows<T: Real>(&self, y: &mut [T], x: &[T], rows: usize) -> Result<()> {
        let bias = match self {
            Self::Dense(base) => &base.bias,
            Self::Quantized(base) => &base.bias,
        };
        if let Some(bias) = bias {
            let bias = bias.to_dtype(T::DTYPE)?.to_vec1::<T>()?;
            y.chunks_mut(bias.len().max(1)).for_each(|row| add(row, &bias));
        }
        match self {
            Self::Dense(base) => base.multiply(y, Write::Add, x, rows),
            Self::Quantized(base) => base.multiply(y, Write::Add, x, rows),
        }
    }

    /// dx = dy·W in `dtype` for a contiguous `grad` of shape `[rows, out]`, with the product of another pair added before
    /// the only rounding; the result is not shared.
    pub(super) fn input_gradient(
        &self,
        dtype: DType,
        grad: &Tensor,
        other: Option<(&Tensor, &Tensor)>,
    ) -> Result<Tensor> {
        match self {
            Self::Dense(base) => {
                let weight = base.weight_for(dtype)?;
                let pairs: Vec<_> = [Some((grad, &weight)), other].into_iter().flatten().collect();
                sum_of_products(dtype, &pairs)
            }
            Self::Quantized(base) => match (base.input_gradient(grad)?, other) {
                (dx, Some((lhs, rhs))) => add_product(dx, lhs, rhs, 1.0),
                (dx, None) => Ok(dx),
            },
        }
    }

    /// The dense map, if not all of its operands are of one dtype that kernels compute in.
    pub(super) fn mixed(&self, dtype: DType) -> Option<&FrozenLinear> {
        match self {
            Self::Dense(base) => (is_half(dtype) || base.weight.dtype() != dtype).then_some(base),
            Self::Quantized(_) => None,
        }
    }
}
