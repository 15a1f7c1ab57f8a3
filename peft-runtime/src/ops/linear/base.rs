//! The frozen linear map that a fused op starts from, dense or quantized.

use candle_core::{DType, Result, Tensor};

use crate::ops::cpu::element::Element;
use crate::ops::cpu::matrix::Write;
use crate::ops::cpu::operand::Operand;
use crate::ops::cpu::real::Real;
use crate::ops::cpu::sums::Term;
use crate::ops::is_half;
use crate::ops::linear::bias::add_bias_rows;
use crate::ops::linear::frozen::FrozenLinear;
use crate::ops::linear::quantized::FrozenQuantized;
use crate::ops::matmul::sum_of_products;

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
        let (Self::Dense(FrozenLinear { bias, .. }) | Self::Quantized(FrozenQuantized { bias, .. })) = self;
        add_bias_rows(y, bias.as_ref())?;
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
            Self::Quantized(base) => base.sum_of_gradients(dtype, grad, other),
        }
    }

    /// Whether not all operands are of one dtype that kernels compute in, if the input is in `dtype`.
    pub(super) fn is_mixed(&self, dtype: DType) -> bool {
        is_half(dtype)
            || match self {
                Self::Dense(base) => base.weight.dtype() != dtype,
                Self::Quantized(_) => false,
            }
    }

    /// `y (+)= x·Wᵀ + b + others`, summed in f32 and rounded once, where not everything is f32.
    pub(super) fn sum_mixed<T: Element>(
        &self,
        y: &mut [T],
        write: Write,
        x: Operand<'_>,
        others: Option<Term<'_>>,
    ) -> Result<()> {
        match self {
            Self::Dense(base) => base.sum_mixed(y, write, x, others),
            Self::Quantized(base) => base.sum_mixed(y, write, x, others),
        }
    }
}
