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
use candle_core::{DType, Result, Tensor};

use self::ops::{FrozenSum, Hidden, LowRankSum, SharedByOps, matrix, rows_of};
use crate::ops::cpu::matrix::{Matrix, Write};
use crate::ops::cpu::real::Real;
use crate::ops::elements::Elements;
use crate::ops::graph::handover::GradientHandover;
use crate::ops::graph::precomputed::Precomputed;
use crate::ops::linear::base::FrozenBase;
use crate::ops::linear::input::LayerInput;
use crate::ops::linear::low_rank::{LowRank, multiply_low_rank};
use crate::ops::linear::quantized::FrozenQuantized;
use crate::ops::linear::{FrozenLinear, check_input, output_dims};

/// `residual + x·Wᵀ + b + s·(x·Aᵀ)·Bᵀ`, without the product if there are no `terms`. `None` if it cannot be one pass:
/// that needs a frozen layer, tensors in main memory that are all f32 or all f64, and a residual of the output's shape.
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

/// [`linear_add`] for a quantized weight, which has the dtype of the input once it is dense.
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

/// Whether all tensors hold f32, or all f64, in main memory, and the parts of the input have one shape.
fn alike(
    residual: &Tensor,
    x: LayerInput<'_>,
    terms: Option<&LowRank>,
    parameters: &[Option<&Tensor>],
) -> bool {
    let (dtype, (first, second)) = (residual.dtype(), x.parts());
    let factors = terms.map(|terms| [&terms.a, &terms.b]).into_iter().flatten();
    let others = parameters.iter().copied().flatten().chain(second);
    let mut tensors = [residual, first].into_iter().chain(factors).chain(others);
    matches!(dtype, DType::F32 | DType::F64)
        && tensors.all(|tensor| tensor.dtype() == dtype && tensor.device().is_cpu())
        && second.is_none_or(|second| second.dims() == first.dims())
}

fn added(x: LayerInput<'_>, base: FrozenBase, terms: Option<&LowRank>, residual: &Tensor) -> Result<Tensor> {
    match residual.dtype() {
        DType::F64 => added_as::<f64>(x, base, terms, residual),
        _ => added_as::<f32>(x, base, terms, residual),
    }
}

/// The values, and then the ops that put them into the graph.
fn added_as<T: Real>(
    x: LayerInput<'_>,
    base: FrozenBase,
    terms: Option<&LowRank>,
    residual: &Tensor,
) -> Result<Tensor> {
    let (y, hidden) = values::<T>(&matrix(&x.constant()?)?, &base, terms, &matrix(residual)?)?;
    let y = Precomputed::new(y, residual.shape());
    let Some(LowRank { a, b, scaling }) = terms else {
        let sum = FrozenSum { base, y };
        return match x.parts() {
            (x, None) => residual.apply_op2(x, sum),
            (gate, Some(up)) => residual.apply_op3(gate, up, sum),
        };
    };
    let shared = Arc::new(SharedByOps { base, handover: GradientHandover::default() });
    let hidden = Precomputed::new(hidden, (rows_of(residual), a.dim(0)?));
    let hidden = Hidden { shared: Arc::clone(&shared), hidden };
    let hidden = match x.parts() {
        (x, None) => x.apply_op2(a, hidden)?,
        (gate, Some(up)) => gate.apply_op3(up, a, hidden)?,
    };
    residual.apply_op3(&hidden, b, LowRankSum { shared, scaling: *scaling, y })
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
