//! The low-rank product s·(x·Aᵀ)·Bᵀ, on its own or together with the frozen linear map that it adapts.

use std::sync::{Arc, OnceLock};

use candle_core::backend::BackendStorage;
use candle_core::quantized::QTensor;
use candle_core::{CpuStorage, CustomOp3, DType, Device, Layout, Result, Shape, Tensor, bail};

use crate::ops::cpu::element::Element;
use crate::ops::cpu::float::wide_dtype;
use crate::ops::cpu::matmul::matmul_into;
use crate::ops::cpu::matrix::{Matrix, Write};
use crate::ops::cpu::operand::Operand;
use crate::ops::cpu::real::Real;
use crate::ops::cpu::sums::{Term, sum_into};
use crate::ops::elements::contiguous_slice;
use crate::ops::graph::carried::ApplyCarried;
use crate::ops::linear::base::FrozenBase;
use crate::ops::linear::frozen::{FrozenLinear, as_rows};
use crate::ops::linear::quantized::{FrozenQuantized, quantized_linear};
use crate::ops::linear::{check_input, linear, output_dims};
use crate::ops::matmul::product_as;
use crate::ops::{add_promoted, is_at_most_f32, is_half};

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
    let dtype = terms.a.dtype();
    if x.device().is_cpu() {
        // The product reads halves as they are.
        let x = if one_sum(&[x, &terms.a, &terms.b]) { x.clone() } else { x.to_dtype(dtype)? };
        return x.contiguous()?.carry_op3(&terms.a, &terms.b, LowRankLinear::new(None, terms.scaling, dtype));
    }
    let x = x.to_dtype(dtype)?;
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
    let op = LowRankLinear::new(Some(base), terms.scaling, x.dtype());
    x.contiguous()?.carry_op3(&terms.a, &terms.b, op)
}

/// Whether one sum can have products of these tensors: all are f64, or all f32 or half precision.
pub(super) fn one_sum(tensors: &[&Tensor]) -> bool {
    let all = |fits: fn(DType) -> bool| tensors.iter().all(|tensor| fits(tensor.dtype()));
    all(|dtype| dtype == DType::F64) || all(is_at_most_f32)
}

/// Whether layer and product can be one op: the layer is frozen and in main memory, and one sum can have both.
pub(crate) fn can_fuse(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, terms: &LowRank) -> bool {
    let frozen = !weight.track_op() && !bias.is_some_and(Tensor::track_op);
    frozen && x.device().is_cpu() && one_sum(&[x, weight, &terms.a, &terms.b])
}

/// [`can_fuse`] for a quantized weight, which is dense in f32, or in f64 for an input in f64.
pub(crate) fn can_fuse_quantized(
    x: &Tensor,
    weight: &QTensor,
    bias: Option<&Tensor>,
    terms: &LowRank,
) -> bool {
    let frozen = !bias.is_some_and(Tensor::track_op);
    frozen && x.device().is_cpu() && weight.device().is_cpu() && one_sum(&[x, &terms.a, &terms.b])
}

/// The op on the CPU: with a base, the product is added into the base's output.
struct LowRankLinear {
    base: Option<FrozenBase>,
    scaling: f64,
    /// That of the output.
    dtype: DType,
    /// x·Aᵀ of the forward pass, `[rows, rank]`: small, and the backward pass needs it again.
    hidden: OnceLock<Tensor>,
}

impl LowRankLinear {
    fn new(base: Option<FrozenBase>, scaling: f64, dtype: DType) -> Self {
        Self { base, scaling, dtype, hidden: OnceLock::new() }
    }

    /// y in `T` where not everything is f32: summed in f32 and rounded once.
    fn forward_mixed<T: Element>(&self, x: Operand<'_>, a: Operand<'_>, b: Operand<'_>) -> Result<Vec<T>> {
        let hidden = hidden(x, a)?;
        let low_rank = Term {
            scale: self.scaling,
            lhs: Matrix::contiguous(&hidden, x.rows(), a.rows())?.into(),
            rhs: b.transposed(),
        };
        let mut y = vec![T::from_f64(0.0); x.rows() * b.rows()];
        match &self.base {
            Some(base) => base.sum_mixed(&mut y, Write::Replace, x, Some(low_rank))?,
            None => sum_into(&mut y, (x.rows(), b.rows()), Write::Replace, None, &[low_rank])?,
        }
        let _ = self.hidden.set(Tensor::from_vec(hidden, (x.rows(), a.rows()), &Device::Cpu)?);
        Ok(y)
    }

    /// Whether everything is f32, or f64.
    fn is_uniform(&self, dtypes: [DType; 3]) -> bool {
        let mixed = self.base.as_ref().is_some_and(|base| base.is_mixed(self.dtype));
        !mixed && !is_half(self.dtype) && dtypes == [self.dtype; 3]
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

/// h = x·Aᵀ in f32, `[rows, rank]`.
pub(super) fn hidden(x: Operand<'_>, a: Operand<'_>) -> Result<Vec<f32>> {
    let shape = (x.rows(), a.rows());
    let mut hidden = vec![0f32; shape.0 * shape.1];
    let term = Term { scale: 1.0, lhs: x, rhs: a.transposed() };
    sum_into(&mut hidden, shape, Write::Replace, None, &[term])?;
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
        if !self.is_uniform([x, a, b].map(BackendStorage::dtype)) {
            let in_features = a_layout.shape().dims2()?.1;
            let rows = x_layout.shape().elem_count() / in_features.max(1);
            let x = as_rows(x, x_layout, rows, in_features)?;
            let (a, b) = (Operand::from_storage(a, a_layout)?, Operand::from_storage(b, b_layout)?);
            let y = match self.dtype {
                DType::F32 => CpuStorage::F32(self.forward_mixed(x, a, b)?),
                DType::BF16 => CpuStorage::BF16(self.forward_mixed(x, a, b)?),
                DType::F16 => CpuStorage::F16(self.forward_mixed(x, a, b)?),
                dtype => bail!("a low-rank product in {dtype:?} takes operands of that dtype"),
            };
            return Ok((y, Shape::from(dims)));
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
        let wide = wide_dtype(x.dtype());
        let grad_hidden = product_as(wide, &grad, &factor_b, self.scaling)?;
        let grad_b = match self.hidden.get() {
            Some(hidden) if b.track_op() => Some(product_as(b.dtype(), &grad.t()?, hidden, self.scaling)?),
            _ => None,
        };
        let grad_a =
            a.track_op().then(|| product_as(a.dtype(), &grad_hidden.t()?, &x_rows, 1.0)).transpose()?;
        let through_product = (&grad_hidden, &factor_a);
        let grad_x = match (x.track_op(), &self.base) {
            (false, _) => None,
            (true, Some(base)) => Some(base.input_gradient(x.dtype(), &grad, Some(through_product))?),
            (true, None) => Some(product_as(x.dtype(), &grad_hidden, &factor_a, 1.0)?),
        };
        let grad_x = grad_x.map(|grad| grad.reshape(x.dims())).transpose()?;
        Ok((grad_x, grad_a, grad_b))
    }
}
