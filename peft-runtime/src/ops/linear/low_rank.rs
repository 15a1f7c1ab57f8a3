//! The low-rank product s·(x·Aᵀ)·Bᵀ, on its own or together with the frozen linear map that it adapts.

use std::sync::{Arc, OnceLock};

use candle_core::quantized::QTensor;
use candle_core::{CpuStorage, CustomOp3, DType, Device, Layout, Result, Shape, Tensor, bail};

use crate::ops::cpu::matmul::matmul_into;
use crate::ops::cpu::matrix::{Matrix, Write};
use crate::ops::cpu::real::Real;
use crate::ops::elements::contiguous_slice;
use crate::ops::linear::base::FrozenBase;
use crate::ops::linear::quantized::{FrozenQuantized, quantized_linear};
use crate::ops::linear::{FrozenLinear, check_input, linear, output_dims};
use crate::ops::matmul::{add_product, product};
use crate::ops::{add_promoted, is_half_on_cpu};

/// The factors of a low-rank product: A of shape `[rank, in]`, B of shape `[out, rank]`, and the scaling.
#[derive(Clone, Debug)]
pub struct LowRank {
    /// The factor that reads the input, `[rank, in]`.
    pub a: Tensor,
    /// The factor that writes the output, `[out, rank]`.
    pub b: Tensor,
    /// What the product is multiplied by.
    pub scaling: f64,
}

/// `s·(x·Aᵀ)·Bᵀ` in the dtype of the factors, for `x` of shape `[…, in]`.
pub(crate) fn low_rank(x: &Tensor, terms: &LowRank) -> Result<Tensor> {
    let (rows, dims) = check_input(x, &terms.a)?;
    let mut dims = dims;
    if let Some(last) = dims.last_mut() {
        *last = terms.b.dim(0)?;
    }
    let x = x.to_dtype(terms.a.dtype())?;
    if is_half_on_cpu(&x) {
        let wide = |tensor: &Tensor| tensor.to_dtype(DType::F32);
        let terms = LowRank { a: wide(&terms.a)?, b: wide(&terms.b)?, scaling: terms.scaling };
        return low_rank(&wide(&x)?, &terms)?.to_dtype(x.dtype());
    }
    if x.device().is_cpu() {
        return x.contiguous()?.apply_op3(&terms.a, &terms.b, LowRankLinear::new(None, terms.scaling));
    }
    let hidden = x.reshape((rows, terms.a.dim(1)?))?.matmul(&terms.a.t()?)?;
    (hidden.matmul(&terms.b.t()?)? * terms.scaling)?.reshape(dims)
}

/// `x·Wᵀ + b + s·(x·Aᵀ)·Bᵀ`, rounded once to the dtype of the plain layer's output.
pub(crate) fn linear_low_rank(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    terms: &LowRank,
) -> Result<Tensor> {
    if can_fuse(x, weight, bias, terms) {
        check_input(x, weight)?;
        let base = FrozenLinear { weight: weight.detach(), bias: bias.map(Tensor::detach) };
        return fused(x, FrozenBase::Dense(base), terms);
    }
    let y = linear(x, weight, bias)?;
    add_promoted(&y, &low_rank(x, terms)?)?.to_dtype(y.dtype())
}

/// [`linear_low_rank`] for a quantized weight.
pub(crate) fn quantized_linear_low_rank(
    x: &Tensor,
    weight: &Arc<QTensor>,
    bias: Option<&Tensor>,
    terms: &LowRank,
) -> Result<Tensor> {
    if can_fuse_quantized(x, weight, bias, terms) {
        output_dims(x, weight.shape().dims2()?)?;
        return fused(x, FrozenBase::Quantized(FrozenQuantized::new(weight, bias)), terms);
    }
    let y = quantized_linear(x, weight, bias)?;
    add_promoted(&y, &low_rank(x, terms)?)?.to_dtype(y.dtype())
}

fn fused(x: &Tensor, base: FrozenBase, terms: &LowRank) -> Result<Tensor> {
    x.contiguous()?.apply_op3(&terms.a, &terms.b, LowRankLinear::new(Some(base), terms.scaling))
}

/// Whether layer and product can be one op: the layer is frozen and in main memory, and there is one dtype throughout.
pub(crate) fn can_fuse(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, terms: &LowRank) -> bool {
    let frozen = !weight.track_op() && !bias.is_some_and(Tensor::track_op);
    let one_dtype = x.dtype() == weight.dtype() && x.dtype() == terms.a.dtype();
    frozen && one_dtype && x.device().is_cpu() && !is_half_on_cpu(x)
}

/// [`can_fuse`] for a quantized weight, which has the dtype of the input once it is dense.
pub(crate) fn can_fuse_quantized(
    x: &Tensor,
    weight: &QTensor,
    bias: Option<&Tensor>,
    terms: &LowRank,
) -> bool {
    let frozen = !bias.is_some_and(Tensor::track_op);
    let one_dtype = matches!(x.dtype(), DType::F32 | DType::F64) && x.dtype() == terms.a.dtype();
    frozen && one_dtype && x.device().is_cpu() && weight.device().is_cpu()
}

/// The op on the CPU: with a base, the product is added into the base's output.
struct LowRankLinear {
    base: Option<FrozenBase>,
    scaling: f64,
    /// x·Aᵀ of the forward pass, `[rows, rank]`: small, and the backward pass needs it again.
    hidden: OnceLock<Tensor>,
}

impl LowRankLinear {
    fn new(base: Option<FrozenBase>, scaling: f64) -> Self {
        Self { base, scaling, hidden: OnceLock::new() }
    }

    fn forward_rows<T: Real>(&self, x: &[T], a: Matrix<'_, T>, b: Matrix<'_, T>) -> Result<Vec<T>> {
        let rows = x.len() / a.columns().max(1);
        let (mut y, write) = match &self.base {
            Some(base) => (base.forward_rows(x, rows)?, Write::Add),
            None => (vec![T::ZERO; rows * b.rows()], Write::Replace),
        };
        let hidden = multiply_low_rank(&mut y, write, self.scaling, x, a, b)?;
        // It is set once: an op runs forward once.
        let _ = self.hidden.set(Tensor::from_vec(hidden, (rows, a.rows()), &Device::Cpu)?);
        Ok(y)
    }
}

/// `y (+)= s·h·Bᵀ` with h = x·Aᵀ, `[rows, rank]`, which is returned.
pub(super) fn multiply_low_rank<T: Real>(
    y: &mut [T],
    write: Write,
    scaling: f64,
    x: &[T],
    a: Matrix<'_, T>,
    b: Matrix<'_, T>,
) -> Result<Vec<T>> {
    let (rank, in_features) = (a.rows(), a.columns());
    let rows = x.len() / in_features.max(1);
    let mut hidden = vec![T::ZERO; rows * rank];
    matmul_into(&mut hidden, Write::Replace, 1.0, Matrix::contiguous(x, rows, in_features)?, a.transposed())?;
    matmul_into(y, write, scaling, Matrix::contiguous(&hidden, rows, rank)?, b.transposed())?;
    Ok(hidden)
}

impl CustomOp3 for LowRankLinear {
    fn name(&self) -> &'static str {
        "low-rank-linear"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        a: &CpuStorage,
        a_layout: &Layout,
        b: &CpuStorage,
        b_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let mut dims = x_layout.dims().to_vec();
        if let Some(last) = dims.last_mut() {
            *last = b_layout.shape().dims2()?.0;
        }
        let y = match (x, a, b) {
            (CpuStorage::F32(x), CpuStorage::F32(a), CpuStorage::F32(b)) => {
                CpuStorage::F32(self.forward_rows(
                    contiguous_slice(x, x_layout)?,
                    Matrix::from_layout(a, a_layout)?,
                    Matrix::from_layout(b, b_layout)?,
                )?)
            }
            (CpuStorage::F64(x), CpuStorage::F64(a), CpuStorage::F64(b)) => {
                CpuStorage::F64(self.forward_rows(
                    contiguous_slice(x, x_layout)?,
                    Matrix::from_layout(a, a_layout)?,
                    Matrix::from_layout(b, b_layout)?,
                )?)
            }
            _ => bail!("a low-rank product takes operands of one dtype, f32 or f64"),
        };
        Ok((y, Shape::from(dims)))
    }

    /// With h = x·Aᵀ and dh = s·dy·B: dA = dhᵀ·x, dB = s·dyᵀ·h, dx = dy·W + dh·A.
    fn bwd(
        &self,
        x: &Tensor,
        a: &Tensor,
        b: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (factor_a, factor_b) = (a.detach(), b.detach());
        let rows = x.elem_count() / factor_a.dim(1)?.max(1);
        let x_rows = x.detach().reshape((rows, factor_a.dim(1)?))?;
        let grad = grad.contiguous()?.reshape((rows, factor_b.dim(0)?))?;
        let grad_hidden = product(&grad, &factor_b, self.scaling)?;
        let grad_b = match self.hidden.get() {
            Some(hidden) if b.track_op() => Some(product(&grad.t()?, hidden, self.scaling)?),
            _ => None,
        };
        let grad_a = if a.track_op() { Some(product(&grad_hidden.t()?, &x_rows, 1.0)?) } else { None };
        let grad_x = match (x.track_op(), &self.base) {
            (false, _) => None,
            (true, Some(base)) => {
                let through_base = base.input_gradient(&grad)?;
                Some(add_product(through_base, &grad_hidden, &factor_a, 1.0)?.reshape(x.dims())?)
            }
            (true, None) => Some(product(&grad_hidden, &factor_a, 1.0)?.reshape(x.dims())?),
        };
        Ok((grad_x, grad_a, grad_b))
    }
}
