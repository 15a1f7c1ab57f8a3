//! The frozen linear map that a fused op starts from, dense or quantized.

use candle_core::{Result, Tensor};

use crate::ops::cpu::matrix::Write;
use crate::ops::cpu::real::Real;
use crate::ops::cpu::slices::add;
use crate::ops::linear::FrozenLinear;
use crate::ops::linear::quantized::FrozenQuantized;
use crate::ops::matmul::product;

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

    /// dx = dy·W for a contiguous `grad` of shape `[rows, out]`; the result is not shared.
    pub(super) fn input_gradient(&self, grad: &Tensor) -> Result<Tensor> {
        match self {
            Self::Dense(base) => product(grad, &base.weight, 1.0),
            Self::Quantized(base) => base.input_gradient(grad),
        }
    }
}
