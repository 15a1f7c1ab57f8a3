//! A residual connection around a frozen linear map, with or without a low-rank product, computed in one buffer:
//! y = r + x·Wᵀ + b + s·(x·Aᵀ)·Bᵀ.
//!
//! candle keeps the arguments of an op as long as the graph. A separate sum would also keep the output of the map,
//! which no backward pass reads. An input that is a product of two tensors is not an argument either: the backward pass
//! computes it again.
//!
//! Four or five tensors get gradients here, but a candle op has at most three arguments. So there are two ops: one
//! computes h = x·Aᵀ, which is small and needed again, from x, or its factors, and A; the other computes y from r, h
//! and B. The backward pass of the first needs the gradient of y, because dx = dy·W + dh·A, and gets it through a
//! [`GradientHandover`].

mod ops;

use std::sync::Arc;

use candle_core::quantized::QTensor;
use candle_core::{DType, Result, Tensor, WithDType};
use half::{bf16, f16};

use self::ops::{FrozenSum, Hidden, LowRankSum, SharedByOps, matrix, rows_of};
use crate::ops::cpu::element::Element;
use crate::ops::cpu::matrix::{Matrix, Write};
use crate::ops::cpu::real::Real;
use crate::ops::cpu::sums::Term;
use crate::ops::elements::Elements;
use crate::ops::graph::carried::ApplyCarried;
use crate::ops::graph::handover::GradientHandover;
use crate::ops::graph::precomputed::Precomputed;
use crate::ops::linear::base::FrozenBase;
use crate::ops::linear::frozen::FrozenLinear;
use crate::ops::linear::input::LayerInput;
use crate::ops::linear::low_rank::{LowRank, hidden, multiply_low_rank, one_sum};
use crate::ops::linear::quantized::FrozenQuantized;
use crate::ops::linear::{check_input, output_dims};

/// `residual + x·Wᵀ + b + s·(x·Aᵀ)·Bᵀ`, without the product if there are no `terms`. `None` if it cannot be one pass:
/// that needs a frozen layer, tensors in main memory that one sum can have, and a residual of the output's shape and dtype.
pub(crate) fn linear_add(
    x: LayerInput<'_>,
    weight: &Tensor,
    bias: Option<&Tensor>,
    terms: Option<&LowRank>,
    residual: &Tensor,
) -> Result<Option<Tensor>> {
    let (_, dims) = check_input(x.parts().0, weight)?;
    let parameters = [Some(weight), bias];
    let frozen = !parameters.into_iter().flatten().any(Tensor::track_op);
    if !frozen || residual.dims() != dims || !alike(residual, x, terms, &parameters) {
        return Ok(None);
    }
    let base = FrozenLinear { weight: weight.detach(), bias: bias.map(Tensor::detach) };
    added(x, FrozenBase::Dense(base), terms, residual).map(Some)
}

/// [`linear_add`] for a quantized weight, which is dense in f32, or in f64 for an input in f64.
pub(crate) fn quantized_linear_add(
    x: LayerInput<'_>,
    weight: &Arc<QTensor>,
    bias: Option<&Tensor>,
    terms: Option<&LowRank>,
    residual: &Tensor,
) -> Result<Option<Tensor>> {
    let (_, dims) = output_dims(x.parts().0, weight.shape().dims2()?)?;
    let frozen = !bias.is_some_and(Tensor::track_op) && weight.device().is_cpu();
    if !frozen || residual.dims() != dims || !alike(residual, x, terms, &[]) {
        return Ok(None);
    }
    added(x, FrozenBase::Quantized(FrozenQuantized::new(weight, bias)), terms, residual).map(Some)
}

/// Whether all tensors are in main memory, input and residual are alike, and one sum can have all of them.
fn alike(
    residual: &Tensor,
    x: LayerInput<'_>,
    terms: Option<&LowRank>,
    parameters: &[Option<&Tensor>],
) -> bool {
    let (dtype, (first, second)) = (residual.dtype(), x.parts());
    let factors = terms.map(|terms| [&terms.a, &terms.b]).into_iter().flatten();
    let others = parameters.iter().copied().flatten().chain(second);
    let tensors: Vec<&Tensor> = [residual, first].into_iter().chain(factors).chain(others).collect();
    one_sum(&tensors)
        && tensors.iter().all(|tensor| tensor.device().is_cpu())
        && first.dtype() == dtype
        && second.is_none_or(|second| second.dims() == first.dims() && second.dtype() == dtype)
}

/// Whether all of them are f32, or all f64.
fn uniform(residual: &Tensor, base: &FrozenBase, terms: Option<&LowRank>) -> bool {
    let dtype = residual.dtype();
    !base.is_mixed(dtype)
        && terms.is_none_or(|terms| [&terms.a, &terms.b].iter().all(|factor| factor.dtype() == dtype))
}

fn added(x: LayerInput<'_>, base: FrozenBase, terms: Option<&LowRank>, residual: &Tensor) -> Result<Tensor> {
    let (rows, residual_rows) = (matrix(&x.constant()?)?, matrix(residual)?);
    let uniform = uniform(residual, &base, terms);
    let values = match residual.dtype() {
        DType::F64 => precomputed(values::<f64>(&rows, &base, terms, &residual_rows)?, residual, terms),
        DType::F32 if uniform => {
            precomputed(values::<f32>(&rows, &base, terms, &residual_rows)?, residual, terms)
        }
        DType::F32 => precomputed(mixed_values::<f32>(&rows, &base, terms, &residual_rows)?, residual, terms),
        DType::BF16 => {
            precomputed(mixed_values::<bf16>(&rows, &base, terms, &residual_rows)?, residual, terms)
        }
        _ => precomputed(mixed_values::<f16>(&rows, &base, terms, &residual_rows)?, residual, terms),
    };
    attach(x, base, terms, residual, values?)
}

/// y and h, until their ops hand them out.
fn precomputed<T: WithDType, H: WithDType>(
    (y, hidden): (Vec<T>, Vec<H>),
    residual: &Tensor,
    terms: Option<&LowRank>,
) -> Result<(Precomputed, Precomputed)> {
    let rank = terms.map_or(Ok(0), |terms| terms.a.dim(0))?;
    Ok((Precomputed::new(y, residual.shape()), Precomputed::new(hidden, (rows_of(residual), rank))))
}

/// Puts the values into the graph.
fn attach(
    x: LayerInput<'_>,
    base: FrozenBase,
    terms: Option<&LowRank>,
    residual: &Tensor,
    (y, hidden): (Precomputed, Precomputed),
) -> Result<Tensor> {
    let Some(LowRank { a, b, scaling }) = terms else {
        let sum = FrozenSum { base, y };
        return match x.parts() {
            (x, None) => residual.carry_op2(x, sum),
            (gate, Some(up)) => residual.carry_op3(gate, up, sum),
        };
    };
    let shared = Arc::new(SharedByOps { base, handover: GradientHandover::default() });
    let hidden = Hidden { shared: Arc::clone(&shared), hidden };
    let hidden = match x.parts() {
        (x, None) => x.carry_op2(a, hidden)?,
        (gate, Some(up)) => gate.carry_op3(up, a, hidden)?,
    };
    residual.carry_op3(&hidden, b, LowRankSum { shared, scaling: *scaling, y })
}

/// y, and h if there is a low-rank product, where not everything is f32: summed in f32, y rounded once.
fn mixed_values<T: Element>(
    x: &Tensor,
    base: &FrozenBase,
    terms: Option<&LowRank>,
    residual: &Tensor,
) -> Result<(Vec<T>, Vec<f32>)> {
    let mut y = Elements::of(residual).as_slice::<T>()?.to_vec();
    let elements = Elements::of(x);
    let x = elements.operand()?;
    let Some(LowRank { a, b, scaling }) = terms else {
        base.sum_mixed(&mut y, Write::Add, x, None)?;
        return Ok((y, Vec::new()));
    };
    let (a, b) = (Elements::of(a), Elements::of(b));
    let (a, b) = (a.operand()?, b.operand()?);
    let hidden = hidden(x, a)?;
    let lhs = Matrix::contiguous(&hidden, x.rows(), a.rows())?.into();
    let low_rank = Term { scale: *scaling, lhs, rhs: b.transposed() };
    base.sum_mixed(&mut y, Write::Add, x, Some(low_rank))?;
    Ok((y, hidden))
}

/// y, and h if there is a low-rank product, for matrices.
fn values<T: Real>(
    x: &Tensor,
    base: &FrozenBase,
    terms: Option<&LowRank>,
    residual: &Tensor,
) -> Result<(Vec<T>, Vec<T>)> {
    let mut y = Elements::of(residual).as_slice::<T>()?.to_vec();
    let elements = Elements::of(x);
    let values = elements.as_slice::<T>()?;
    base.add_rows(&mut y, values, rows_of(x))?;
    let Some(LowRank { a, b, scaling }) = terms else { return Ok((y, Vec::new())) };
    let (a, b) = (Elements::of(a), Elements::of(b));
    let a = Matrix::from_layout(a.data::<T>()?, a.layout())?;
    let b = Matrix::from_layout(b.data::<T>()?, b.layout())?;
    let hidden = multiply_low_rank(&mut y, Write::Add, *scaling, values, a, b)?;
    Ok((y, hidden))
}

#[cfg(test)]
mod tests;
